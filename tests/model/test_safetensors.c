/* safetensors files as they are published, and every way in which one can be damaged or lie. Expected values
 * are written down by hand from the format's description, bytes first. */
#include "tests/support/support.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "model/safetensors.h"

#define FILE_MAX ((size_t)64 << 20)

/* 8 bytes of length, the header, n_data bytes counting up from 0. */
static void make_file(buf *b, const char *header, size_t n_data) {
    unsigned char length[8];
    buf_init(b, FILE_MAX);
    bytes_store_le(length, strlen(header), sizeof length);
    assert_int_equal(buf_append(b, length, sizeof length), STATUS_OK);
    assert_int_equal(buf_append_text(b, header), STATUS_OK);
    for (size_t i = 0; i < n_data; i++) {
        unsigned char value = (unsigned char)i;
        assert_int_equal(buf_append(b, &value, 1), STATUS_OK);
    }
}

/* An exact-size copy on the heap, so that a sanitizer sees a read behind the end. */
static status open_copy(safetensors **f, unsigned char **copy, const void *data, size_t n, err *e) {
    *copy = malloc(n ? n : 1);
    assert_non_null(*copy);
    if (n) memcpy(*copy, data, n);
    return safetensors_open_bytes(f, (bytes){*copy, n}, "weights.safetensors", e);
}

/* Every needle is in the error, which always names the file; the list ends with NULL. */
static void refuses_bytes(const void *data, size_t n, const char *const *needles) {
    safetensors *f;
    unsigned char *copy;
    err e = {0};
    status st = open_copy(&f, &copy, data, n, &e);
    if (st == STATUS_OK) fail_msg("%zu bytes were taken", n);
    assert_int_equal(st, STATUS_BAD_FORMAT);
    assert_null(f);
    if (!strstr(e.text, "weights.safetensors")) fail_msg("\"%s\" does not name the file", e.text);
    for (; *needles; needles++)
        if (!strstr(e.text, *needles)) fail_msg("\"%s\" does not say \"%s\"", e.text, *needles);
    free(copy);
}

#define SAYS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void refuses(const char *header, size_t n_data, const char *const *needles) {
    buf b;
    make_file(&b, header, n_data);
    refuses_bytes(b.data, b.len_bytes, needles);
    buf_deinit(&b);
}

#define ONE(dtype, shape, offsets) \
    "{\"w\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

/* ---- what is taken ------------------------------------------------------------------------------- */

static const char GOOD[] = "{\"__metadata__\":{\"format\":\"pt\"},"
                           "\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                           "\"a\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[24,26]},"
                           "\"none\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[24,24]},"
                           "\"c\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[26,34]}}   ";

static void a_good_file_gives_its_tensors_by_name(void **state) {
    (void)state;
    buf b;
    safetensors *f;
    unsigned char *copy;
    err e;
    make_file(&b, GOOD, 34);
    if (open_copy(&f, &copy, b.data, b.len_bytes, &e) != STATUS_OK) fail_msg("%s", e.text);
    assert_int_equal(safetensors_count(f), 4);
    static const char *const names[] = {"a", "b", "c", "none"};
    for (size_t i = 0; i < 4; i++) assert_string_equal(safetensors_at(f, i)->name, names[i]);
    assert_null(safetensors_find(f, "__metadata__"));
    assert_null(safetensors_find(f, ""));
    const safetensors_tensor *t = safetensors_find(f, "b");
    assert_int_equal(t->dtype, SAFETENSORS_F32);
    assert_int_equal(t->n_dims, 2);
    assert_true(t->dims[0] == 2 && t->dims[1] == 3);
    assert_int_equal(t->len_bytes, 24);
    assert_int_equal(t->data[0], 0);
    t = safetensors_find(f, "a");
    assert_int_equal(t->n_dims, 0);
    assert_true(t->len_bytes == 2 && t->data[0] == 24 && t->data[1] == 25);
    assert_int_equal(safetensors_find(f, "none")->len_bytes, 0);
    assert_int_equal(safetensors_find(f, "c")->dtype, SAFETENSORS_OTHER);
    assert_string_equal(safetensors_find(f, "c")->dtype_text, "I64");
    safetensors_close(&f);
    assert_null(f);
    free(copy);
    buf_deinit(&b);
}

/* The format pads headers so that data begins at a multiple of 8, but readers must not rely on it. */
static void data_at_an_odd_address_is_taken(void **state) {
    (void)state;
    for (size_t pad = 0; pad < 8; pad++) {
        char header[256];
        (void)snprintf(header, sizeof header, "%s%.*s", ONE("F32", "[1]", "[0,4]"), (int)pad, "        ");
        buf b;
        safetensors *f;
        unsigned char *copy;
        err e;
        make_file(&b, header, 4);
        if (open_copy(&f, &copy, b.data, b.len_bytes, &e) != STATUS_OK) fail_msg("%s", e.text);
        assert_memory_equal(safetensors_find(f, "w")->data, "\0\1\2\3", 4);
        safetensors_close(&f);
        free(copy);
        buf_deinit(&b);
    }
}

static void a_file_on_disk_reads_as_its_bytes(void **state) {
    (void)state;
    char *dir = temp_dir_make(), *path = path_join(dir, "weights.safetensors");
    buf b;
    safetensors *f;
    err e;
    make_file(&b, GOOD, 34);
    file_write(path, b.data, b.len_bytes);
    if (safetensors_open(&f, path, &e) != STATUS_OK) fail_msg("%s", e.text);
    assert_int_equal(safetensors_find(f, "c")->data[0], 26);
    safetensors_close(&f);
    file_write(path, "", 0);
    assert_int_equal(safetensors_open(&f, path, &e), STATUS_BAD_FORMAT);
    assert_non_null(strstr(e.text, "0 bytes"));
    assert_int_equal(safetensors_open(&f, dir, &e), STATUS_IO);
    assert_non_null(strstr(e.text, "not a regular file"));
    (void)remove(path);
    assert_int_equal(safetensors_open(&f, path, &e), STATUS_IO);
    assert_non_null(strstr(e.text, "weights.safetensors"));
    free(path);
    buf_deinit(&b);
    temp_dir_remove(dir);
}

/* ---- damage -------------------------------------------------------------------------------------- */

static void every_truncation_is_refused(void **state) {
    (void)state;
    buf b;
    make_file(&b, GOOD, 34);
    for (size_t n = 0; n < b.len_bytes; n++) refuses_bytes(b.data, n, SAYS("bytes"));
    buf_deinit(&b);
}

static void every_flipped_bit_is_refused_or_stays_inside_the_file(void **state) {
    (void)state;
    buf b;
    make_file(&b, GOOD, 34);
    size_t n_taken = 0;
    for (size_t bit = 0; bit < 8 * (b.len_bytes - 34); bit++) {
        safetensors *f;
        unsigned char *copy;
        err e = {0};
        b.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
        if (open_copy(&f, &copy, b.data, b.len_bytes, &e) == STATUS_OK) {
            n_taken++;
            size_t sum = 0;
            for (size_t i = 0; i < safetensors_count(f); i++) {
                const safetensors_tensor *t = safetensors_at(f, i);
                assert_true(t->data >= copy && t->len_bytes <= (size_t)(copy + b.len_bytes - t->data));
                sum += t->len_bytes;
            }
            assert_int_equal(sum, 34);
        } else {
            assert_true(e.text[0] != '\0');
        }
        safetensors_close(&f);
        free(copy);
        b.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    assert_true(n_taken > 0); /* letters of names and of the metadata may change */
    buf_deinit(&b);
}

static void a_header_length_that_is_too_large_is_refused(void **state) {
    (void)state;
    static const uint64_t lengths[] = {9, 1 << 20, (16 << 20) + 1, UINT64_C(1) << 32, INT64_MAX,
                                       UINT64_MAX - 7, UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        unsigned char file[16] = {[8] = '{', '}', ' ', ' ', ' ', ' ', ' ', ' '};
        char found[32];
        bytes_store_le(file, lengths[i], 8);
        (void)snprintf(found, sizeof found, "%" PRIu64, lengths[i]);
        refuses_bytes(file, sizeof file, SAYS("header claims", found));
    }
}

static void a_header_that_is_not_a_json_object_is_refused(void **state) {
    (void)state;
    refuses("", 0, SAYS("does not begin with {"));
    refuses(" {}", 0, SAYS("does not begin with {"));
    refuses("[]", 0, SAYS("does not begin with {"));
    refuses("{", 0, SAYS("not valid JSON", "line"));
    refuses("{}}", 0, SAYS("not valid JSON"));
    refuses("{'a':1}", 0, SAYS("not valid JSON"));
    refuses("{\"a\\u0000\":{}}", 0, SAYS("not valid JSON"));
    refuses("{\"\xff\":{}}", 0, SAYS("not valid JSON"));
    buf deep;
    buf_init(&deep, 1 << 20);
    assert_int_equal(buf_append_text(&deep, "{\"a\":"), STATUS_OK);
    for (int i = 0; i < 10000; i++) assert_int_equal(buf_append_text(&deep, "["), STATUS_OK);
    refuses((const char *)deep.data, 0, SAYS("not valid JSON"));
    buf_deinit(&deep);
}

static void a_name_that_is_there_twice_is_refused(void **state) {
    (void)state;
    refuses("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
            "\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
            2, SAYS("duplicate", "\"w\""));
    refuses("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
            SAYS("duplicate", "\"shape\""));
}

static void a_tensor_that_is_not_described_is_refused(void **state) {
    (void)state;
    refuses("{\"w\":1}", 0, SAYS("tensor w"));
    refuses("{\"w\":{}}", 0, SAYS("tensor w", "dtype missing"));
    refuses(ONE("F31", "[1]", "[0,4]"), 4, SAYS("tensor w", "F31"));
    refuses(ONE("f32", "[1]", "[0,4]"), 4, SAYS("tensor w", "f32"));
    refuses("{\"w\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, SAYS("tensor w", "dtype"));
    refuses("{\"w\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, SAYS("tensor w", "no shape"));
    refuses("{\"w\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, SAYS("tensor w", "data_offsets"));
    refuses("{\"__metadata__\":[],\"w\":{}}", 0, SAYS("__metadata__"));
    refuses("{\"__metadata__\":{\"format\":1}}", 0, SAYS("__metadata__", "format"));
}

static void a_shape_that_cannot_be_is_refused(void **state) {
    (void)state;
    refuses(ONE("F32", "4", "[0,4]"), 4, SAYS("tensor w", "shape"));
    refuses(ONE("F32", "[-1]", "[0,4]"), 4, SAYS("tensor w", "dimension 0 is -1"));
    refuses(ONE("F32", "[1.0]", "[0,4]"), 4, SAYS("tensor w", "dimension 0 is 1"));
    refuses(ONE("F32", "[1,\"1\"]", "[0,4]"), 4, SAYS("tensor w", "dimension 1 is \"1\""));
    refuses(ONE("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4, SAYS("tensor w", "9 dimensions, at most 8"));
    refuses(ONE("F32", "[4294967296,4294967296]", "[0,0]"), 0, SAYS("tensor w", "more elements"));
    refuses(ONE("F32", "[4611686018427387904]", "[0,0]"), 0, SAYS("tensor w", "overflows"));
    refuses(ONE("F32", "[9223372036854775808]", "[0,0]"), 0, SAYS("header"));
    refuses(ONE("F32", "[2,3]", "[0,20]"), 20, SAYS("tensor w", "20 bytes", "[2, 3] of F32 needs 24"));
    refuses(ONE("F16", "[2,3]", "[0,24]"), 24, SAYS("tensor w", "24 bytes", "[2, 3] of F16 needs 12"));
}

static void offsets_outside_the_data_are_refused(void **state) {
    (void)state;
    refuses(ONE("U8", "[4]", "[0,4]"), 3, SAYS("tensor w", "[0, 4]", "3 bytes"));
    refuses(ONE("U8", "[4]", "[-4,0]"), 4, SAYS("tensor w", "[-4, 0]"));
    refuses(ONE("U8", "[4]", "[4,0]"), 4, SAYS("tensor w", "[4, 0]"));
    refuses(ONE("U8", "[4]", "[9223372036854775803,9223372036854775807]"), 4, SAYS("tensor w"));
    refuses(ONE("U8", "[4]", "[0]"), 4, SAYS("tensor w", "data_offsets"));
    refuses(ONE("U8", "[4]", "[0,4,4]"), 4, SAYS("tensor w", "data_offsets"));
    refuses(ONE("U8", "[4]", "[0.0,4.0]"), 4, SAYS("tensor w", "data_offsets"));
    refuses(ONE("U8", "[4]", "{\"0\":0}"), 4, SAYS("tensor w", "data_offsets"));
}

#define TWO(first, second)                                              \
    "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" first "}," \
    "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" second "}}"

static void tensors_that_overlap_or_leave_holes_are_refused(void **state) {
    (void)state;
    refuses(TWO("[0,4]", "[3,7]"), 7, SAYS("tensor b begins at byte 3", "overlaps a", "ends at 4"));
    refuses(TWO("[0,4]", "[0,4]"), 4, SAYS("overlaps"));
    refuses(TWO("[0,4]", "[5,9]"), 9, SAYS("1 bytes before tensor b"));
    refuses(TWO("[1,5]", "[5,9]"), 9, SAYS("1 bytes before tensor a"));
    refuses(TWO("[0,4]", "[4,8]"), 11, SAYS("3 bytes at the end"));
    refuses("{}", 1, SAYS("1 bytes at the end"));
}

static void more_tensors_than_the_limit_are_refused(void **state) {
    (void)state;
    buf b;
    buf_init(&b, FILE_MAX);
    for (int i = 0; i <= SAFETENSORS_TENSORS_MAX; i++) {
        char row[96];
        (void)snprintf(row, sizeof row, "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                       i ? "," : "{", i);
        assert_int_equal(buf_append_text(&b, row), STATUS_OK);
    }
    assert_int_equal(buf_append_text(&b, "}"), STATUS_OK);
    refuses((const char *)b.data, 0, SAYS("65537", "at most 65536"));
    buf_deinit(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_file_gives_its_tensors_by_name),
        cmocka_unit_test(data_at_an_odd_address_is_taken),
        cmocka_unit_test(a_file_on_disk_reads_as_its_bytes),
        cmocka_unit_test(every_truncation_is_refused),
        cmocka_unit_test(every_flipped_bit_is_refused_or_stays_inside_the_file),
        cmocka_unit_test(a_header_length_that_is_too_large_is_refused),
        cmocka_unit_test(a_header_that_is_not_a_json_object_is_refused),
        cmocka_unit_test(a_name_that_is_there_twice_is_refused),
        cmocka_unit_test(a_tensor_that_is_not_described_is_refused),
        cmocka_unit_test(a_shape_that_cannot_be_is_refused),
        cmocka_unit_test(offsets_outside_the_data_are_refused),
        cmocka_unit_test(tensors_that_overlap_or_leave_holes_are_refused),
        cmocka_unit_test(more_tensors_than_the_limit_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
