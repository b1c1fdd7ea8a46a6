/* The blob format, byte by byte, and everything that must not pass for one. */
#include "cache/blob.h"

#include "tests/cache/sample.h"

static unsigned char *stored; /* a whole blob, exactly as large as it is */
static size_t stored_bytes;
static cache_key key;
static blob want;
static err e;

static int make_one(void **state) {
    (void)state;
    key = sample_key(7);
    want = sample_blob(7, 5, 3);
    stored_bytes = BLOB_HEADER_BYTES + want.values.len_bytes;
    stored = malloc(stored_bytes);
    assert_non_null(stored);
    blob_header(stored, &key, &want);
    memcpy(stored + BLOB_HEADER_BYTES, want.values.data, want.values.len_bytes);
    return 0;
}

static int drop_one(void **state) {
    (void)state;
    free(stored);
    sample_free(&want);
    return 0;
}

static status decode(const unsigned char *data, size_t len_bytes) {
    blob b;
    return blob_decode(&b, (bytes){data, len_bytes}, &key, &e);
}

static void a_blob_comes_back_as_it_was(void **state) {
    (void)state;
    blob got;
    assert_int_equal(blob_decode(&got, (bytes){stored, stored_bytes}, &key, &e), STATUS_OK);
    assert_same_blob(&got, &want);
    assert_ptr_equal(got.values.data, stored + BLOB_HEADER_BYTES);
}

/* Written down from the drawing in blob.h. */
static void the_header_has_its_fields_where_the_drawing_says(void **state) {
    (void)state;
    static const unsigned char fixed[24] = {'M', 'C', 'B', '1', 1, 0, 2, 0, 5, 0, 0, 0,
                                            3,   0,   0,   0,   30, 0, 0, 0, 0, 0, 0, 0};
    assert_memory_equal(stored, fixed, sizeof fixed);
    unsigned char hash[HASH_SHA256_BYTES];
    hash_sha256(hash, key.text, strlen(key.text));
    assert_memory_equal(stored + 24, hash, sizeof hash);
    unsigned char covered[64];
    memcpy(covered, stored, 56);
    bytes_store_le(covered + 56, hash_xxh3(want.values.data, want.values.len_bytes), 8);
    assert_true(bytes_load_le(stored + 56, 8) == hash_xxh3(covered, 64));
}

static void every_flipped_bit_is_noticed(void **state) {
    (void)state;
    for (size_t bit = 0; bit < 8 * stored_bytes; bit++) {
        stored[bit / 8] ^= (unsigned char)(1u << (bit % 8));
        if (decode(stored, stored_bytes) != STATUS_BAD_FORMAT) fail_msg("bit %zu", bit);
        stored[bit / 8] ^= (unsigned char)(1u << (bit % 8));
    }
    assert_int_equal(decode(stored, stored_bytes), STATUS_OK);
}

/* With the checksum made right again, so that only the check of the field itself is left. */
static void fields_that_must_have_one_value_are_looked_at(void **state) {
    (void)state;
    static const size_t offsets[] = {0, 3, 4, 5, 7, 16, 23, 24, 55};
    unsigned char whole[64];
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        stored[offsets[i]] ^= 1;
        memcpy(whole, stored, 56);
        bytes_store_le(whole + 56, hash_xxh3(want.values.data, want.values.len_bytes), 8);
        bytes_store_le(stored + 56, hash_xxh3(whole, sizeof whole), 8);
        if (decode(stored, stored_bytes) != STATUS_BAD_FORMAT) fail_msg("byte %zu", offsets[i]);
        stored[offsets[i]] ^= 1;
    }
}

static void every_truncation_and_every_extra_byte_is_noticed(void **state) {
    (void)state;
    for (size_t len = 0; len < stored_bytes; len++) {
        unsigned char *part = malloc(len ? len : 1);
        assert_non_null(part);
        memcpy(part, stored, len);
        assert_int_equal(decode(part, len), STATUS_BAD_FORMAT);
        free(part);
    }
    unsigned char *longer = calloc(1, stored_bytes + 1);
    assert_non_null(longer);
    memcpy(longer, stored, stored_bytes);
    assert_int_equal(decode(longer, stored_bytes + 1), STATUS_BAD_FORMAT);
    free(longer);
}

static void a_blob_under_another_key_is_refused(void **state) {
    (void)state;
    key = sample_key(8);
    assert_int_equal(decode(stored, stored_bytes), STATUS_BAD_FORMAT);
    assert_string_equal(e.text, "blob: belongs to another key");
}

static void a_blob_at_an_odd_address_is_read(void **state) {
    (void)state;
    unsigned char *shifted = malloc(stored_bytes + 1);
    assert_non_null(shifted);
    memcpy(shifted + 1, stored, stored_bytes);
    assert_int_equal(decode(shifted + 1, stored_bytes), STATUS_OK);
    free(shifted);
}

static void shapes_outside_the_limits_are_refused_before_anything_is_read(void **state) {
    (void)state;
    static const uint32_t shapes[][2] = {{0, 3},          {5, 0},           {65537, 1},
                                         {1, 65537},      {0xffffffff, 1},  {0xffffffff, 0xffffffff},
                                         {65536, 65536},  {0x80000000, 2},  {5, 4},
                                         {15, 15}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        bytes_store_le(stored + 8, shapes[i][0], 4);
        bytes_store_le(stored + 12, shapes[i][1], 4);
        /* Also with a length field that agrees modulo 2^64. */
        for (int agrees = 0; agrees < 2; agrees++) {
            uint64_t n = (uint64_t)shapes[i][0] * shapes[i][1] * 2;
            bytes_store_le(stored + 16, agrees ? n : 30, 8);
            assert_int_equal(decode(stored, stored_bytes), STATUS_BAD_FORMAT);
        }
    }
}

static void only_known_dtypes_have_a_size(void **state) {
    (void)state;
    assert_int_equal(blob_element_bytes(BLOB_F32), 4);
    assert_int_equal(blob_element_bytes(BLOB_F16), 2);
    assert_int_equal(blob_element_bytes(BLOB_BF16), 2);
    for (int i = -1; i < 256; i++)
        if (i < 1 || i > 3) assert_int_equal(blob_element_bytes(i), 0);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_one, drop_one)
    const struct CMUnitTest tests[] = {
        TEST(a_blob_comes_back_as_it_was),
        TEST(the_header_has_its_fields_where_the_drawing_says),
        TEST(every_flipped_bit_is_noticed),
        TEST(fields_that_must_have_one_value_are_looked_at),
        TEST(every_truncation_and_every_extra_byte_is_noticed),
        TEST(a_blob_under_another_key_is_refused),
        TEST(a_blob_at_an_odd_address_is_read),
        TEST(shapes_outside_the_limits_are_refused_before_anything_is_read),
        TEST(only_known_dtypes_have_a_size),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
