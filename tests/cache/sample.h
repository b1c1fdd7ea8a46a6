/* Keys and blobs for the tests of cache/: made from a number, so that each test says what it needs. */
#ifndef TESTS_CACHE_SAMPLE_H
#define TESTS_CACHE_SAMPLE_H

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "cache/cache.h"
#include "tests/support/support.h"

static inline cache_key sample_key(uint64_t n) {
    unsigned char tower[HASH_SHA256_BYTES] = {0xaa, 0xbb}, source[HASH_SHA256_BYTES];
    cache_key key;
    hash_sha256(source, &n, sizeof n);
    cache_key_make(&key, tower, (cache_preprocess){1, true}, source);
    return key;
}

/* n_tokens x width halves of bytes that depend on n; values are freed by sample_free. */
static inline blob sample_blob(uint64_t n, uint32_t n_tokens, uint32_t width) {
    size_t len = (size_t)n_tokens * width * 2;
    unsigned char *values = malloc(len);
    rng r = rng_make(n);
    if (!values) abort();
    for (size_t i = 0; i < len; i++) values[i] = (unsigned char)rng_next(&r);
    return (blob){BLOB_F16, n_tokens, width, {values, len}};
}

static inline void sample_free(blob *b) {
    free((void *)b->values.data);
    *b = (blob){0};
}

static inline void assert_same_blob(const blob *got, const blob *want) {
    assert_int_equal(got->dtype, want->dtype);
    assert_int_equal(got->n_tokens, want->n_tokens);
    assert_int_equal(got->width, want->width);
    assert_int_equal(got->values.len_bytes, want->values.len_bytes);
    assert_memory_equal(got->values.data, want->values.data, want->values.len_bytes);
}

static inline status put_sample(cache *c, uint64_t n, uint32_t n_tokens, uint32_t width) {
    cache_key key = sample_key(n);
    blob b = sample_blob(n, n_tokens, width);
    status st = cache_put(c, &key, &b);
    sample_free(&b);
    return st;
}

/* What the cache says about entry n; a hit must be the sample, byte for byte. */
static inline status get_sample(cache *c, uint64_t n, uint32_t n_tokens, uint32_t width) {
    cache_key key = sample_key(n);
    buf storage;
    blob got;
    buf_init(&storage, BLOB_BYTES_MAX);
    status st = cache_get(c, &got, &storage, &key);
    if (st == STATUS_OK) {
        blob want = sample_blob(n, n_tokens, width);
        assert_same_blob(&got, &want);
        sample_free(&want);
    }
    buf_deinit(&storage);
    return st;
}

#endif
