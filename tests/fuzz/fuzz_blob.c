/* Bytes from the cache: whatever they are, decoding reads only them, and what it accepts is one of our
 * blobs. The key is fixed; the first bit of the input decides whether checksum and key are repaired first,
 * so that the fuzzer also reaches what lies behind them. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "cache/blob.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void repair(unsigned char *stored, size_t len, const cache_key *key) {
    if (len < BLOB_HEADER_BYTES) return;
    cache_key_hash(stored + 24, key);
    unsigned char covered[64];
    memcpy(covered, stored, 56);
    bytes_store_le(covered + 56, hash_xxh3(stored + BLOB_HEADER_BYTES, len - BLOB_HEADER_BYTES), 8);
    bytes_store_le(stored + 56, hash_xxh3(covered, sizeof covered), 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const unsigned char nothing[HASH_SHA256_BYTES];
    if (size == 0) return 0;
    cache_key key;
    cache_key_make(&key, nothing, (cache_preprocess){1, false}, nothing);

    size_t len = size - 1;
    unsigned char *stored = malloc(len ? len : 1);
    if (!stored) return 0;
    memcpy(stored, data + 1, len);
    if (data[0] & 1) repair(stored, len, &key);

    blob b;
    err e;
    if (blob_decode(&b, (bytes){stored, len}, &key, &e) == STATUS_OK) {
        CHECK(b.values.data == stored + BLOB_HEADER_BYTES, "values lie behind the header");
        CHECK(b.values.len_bytes == len - BLOB_HEADER_BYTES, "values end with the blob");
        CHECK(blob_is_valid(&b), "what is accepted is valid");
        unsigned char again[BLOB_HEADER_BYTES];
        blob_header(again, &key, &b);
        CHECK(memcmp(again, stored, sizeof again) == 0, "writing it again gives the same header");
    }
    cache_key parsed;
    if (cache_key_parse(&parsed, (bytes){stored, len}))
        CHECK(memcmp(parsed.text, stored, len) == 0, "a key is taken as it is");
    free(stored);
    return 0;
}
