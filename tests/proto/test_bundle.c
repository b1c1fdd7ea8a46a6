/* Several files as one payload: whole after the way there and back, and nothing else is taken for one. */
#include "tests/support/support.h"

#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "proto/bundle.h"

/* In memory of exactly its size, so that a sanitizer sees a read past the end. */
typedef struct {
    unsigned char *data;
    size_t n;
} whole;

static whole bundle_of(const bytes *files, size_t n_files) {
    unsigned char head[BUNDLE_HEADER_BYTES_MAX];
    whole w = {.n = bundle_header(head, files, n_files)};
    size_t n_head = w.n;
    for (size_t i = 0; i < n_files; i++) w.n += files[i].len_bytes;
    w.data = malloc(w.n);
    assert_non_null(w.data);
    memcpy(w.data, head, n_head);
    for (size_t i = 0, at = n_head; i < n_files; at += files[i++].len_bytes)
        memcpy(w.data + at, files[i].data, files[i].len_bytes);
    return w;
}

static void refused(bytes payload, const char *says) {
    unsigned char *copy = malloc(payload.len_bytes ? payload.len_bytes : 1);
    assert_non_null(copy);
    memcpy(copy, payload.data, payload.len_bytes);
    bundle b;
    err e = {0};
    assert_int_equal(bundle_decode(&b, (bytes){copy, payload.len_bytes}, &e), STATUS_BAD_MESSAGE);
    if (!strstr(e.text, says)) fail_msg("\"%s\" does not say \"%s\"", e.text, says);
    assert_int_equal(b.n, 0);
    free(copy);
}

static void files_come_back_whole_and_in_order(void **state) {
    (void)state;
    rng r = rng_make(test_seed());
    static unsigned char data[4096];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (unsigned char)rng_next(&r);
    for (size_t n = 2; n <= MESSAGE_IMAGES_MAX; n++) {
        bytes files[MESSAGE_IMAGES_MAX];
        for (size_t i = 0; i < n; i++)
            files[i] = (bytes){data + rng_below(&r, 1024), 1 + (i % 3 ? rng_below(&r, 3000) : 0)};
        whole w = bundle_of(files, n);
        bundle b;
        err e;
        if (bundle_decode(&b, (bytes){w.data, w.n}, &e) != STATUS_OK) fail_msg("%s", e.text);
        assert_int_equal(b.n, n);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(b.files[i].len_bytes, files[i].len_bytes);
            assert_memory_equal(b.files[i].data, files[i].data, files[i].len_bytes);
        }
        free(w.data);
    }
}

static void the_layout_is_the_documented_one(void **state) {
    (void)state;
    static const unsigned char want[] = {'M', 'I', 'P', 'B', 1, 0, 3, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 'a', 'b', 'c', 'd'};
    const bytes files[] = {{(const unsigned char *)"a", 1}, {(const unsigned char *)"bc", 2}, {(const unsigned char *)"d", 1}};
    whole w = bundle_of(files, 3);
    assert_int_equal(w.n, sizeof want);
    assert_memory_equal(w.data, want, sizeof want);
    free(w.data);
}

static void every_bundle_cut_short_or_made_longer_is_refused(void **state) {
    (void)state;
    const bytes files[] = {{(const unsigned char *)"first", 5}, {(const unsigned char *)"second one", 10}};
    whole w = bundle_of(files, 2);
    for (size_t n = 0; n < w.n; n++) refused((bytes){w.data, n}, "bundle: ");
    unsigned char longer[64] = {0};
    memcpy(longer, w.data, w.n);
    refused((bytes){longer, w.n + 1}, "ends at 31 of 32 bytes");
    free(w.data);
}

static void hostile_headers_are_refused_and_named(void **state) {
    (void)state;
    const bytes files[] = {{(const unsigned char *)"first", 5}, {(const unsigned char *)"second one", 10}};
    whole w = bundle_of(files, 2);
    const struct {
        size_t offset;
        uint64_t value;
        int n_bytes;
        const char *says;
    } cases[] = {
        {0, 'm', 1, "do not start as one"}, {3, 'H', 1, "do not start as one"},
        {4, 0, 2, "version 0"},             {4, 2, 2, "version 2"},
        {6, 0, 2, "0 images"},              {6, 1, 2, "1 images"},
        {6, 17, 2, "17 images"},            {6, 65535, 2, "65535 images"},
        {6, 3, 2, "image 1 of 3"}, /* its third size is the first file's bytes, and all files start later */
        {8, 0, 4, "image 1 of 2 has 0 bytes"},
        {8, UINT32_MAX, 4, "image 1 of 2 has 4294967295 bytes"},
        {8, 6, 4, "image 2 of 2 has 10 bytes from 22 on, there are 31"},
        {8, 4, 4, "ends at 30 of 31"},
        {12, UINT32_MAX - 20, 4, "image 2 of 2"},
        {12, 0, 4, "image 2 of 2 has 0 bytes"},
        {12, 9, 4, "ends at 30 of 31"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unsigned char copy[64];
        memcpy(copy, w.data, w.n);
        bytes_store_le(copy + cases[i].offset, cases[i].value, cases[i].n_bytes);
        if (cases[i].value == 3) bytes_store_le(copy + 8, 30, 4);
        refused((bytes){copy, w.n}, cases[i].says);
    }
    free(w.data);
}

static void random_bytes_are_no_bundle(void **state) {
    (void)state;
    rng r = rng_make(test_seed());
    for (int round = 0; round < 20000; round++) {
        unsigned char data[96] = {'M', 'I', 'P', 'B', 1, 0};
        size_t n = rng_below(&r, sizeof data + 1);
        for (size_t i = round % 2 ? 6 : 0; i < n; i++) data[i] = rng_below(&r, 3) ? (unsigned char)rng_below(&r, 8) : (unsigned char)rng_next(&r);
        unsigned char *copy = malloc(n ? n : 1);
        assert_non_null(copy);
        memcpy(copy, data, n);
        bundle b;
        err e;
        if (bundle_decode(&b, (bytes){copy, n}, &e) == STATUS_OK) {
            assert_true(b.n >= 2 && b.n <= MESSAGE_IMAGES_MAX);
            size_t total = 8 + 4 * b.n;
            for (size_t i = 0; i < b.n; i++) {
                assert_ptr_equal(b.files[i].data, copy + total);
                total += b.files[i].len_bytes;
            }
            assert_int_equal(total, n);
        }
        free(copy);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_come_back_whole_and_in_order),
        cmocka_unit_test(the_layout_is_the_documented_one),
        cmocka_unit_test(every_bundle_cut_short_or_made_longer_is_refused),
        cmocka_unit_test(hostile_headers_are_refused_and_named),
        cmocka_unit_test(random_bytes_are_no_bundle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
