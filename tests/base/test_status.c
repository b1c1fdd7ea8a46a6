/* The list of failures, error texts and the view of bytes. */
#include "base/status.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/err.h"
#include "tests/support/support.h"

static void numbers_codes_and_texts_belong_together(void **state) {
    (void)state;
    for (int i = 0; i < STATUS_COUNT; i++) {
        assert_int_equal(status_from_code(status_code(i)), i);
        assert_true(strlen(status_text(i)) > 0);
        for (const char *p = status_code(i); *p; p++)
            assert_true((*p >= 'a' && *p <= 'z') || *p == '_');
    }
}

/* These go over the wire and into result files: a changed number breaks what is out there. */
static void numbers_on_the_wire_do_not_move(void **state) {
    (void)state;
    assert_int_equal(STATUS_OK, 0);
    assert_int_equal(STATUS_BUSY, 9);
    assert_int_equal(STATUS_IMAGE_UNDECODABLE, 13);
    assert_int_equal(STATUS_BAD_MESSAGE, 20);
    assert_int_equal(STATUS_QUARANTINED, 23);
    assert_int_equal(STATUS_INTERNAL, 28);
    assert_string_equal(status_code(14), "image_too_large");
}

static void unknown_numbers_and_codes_have_an_answer(void **state) {
    (void)state;
    static const int unknown[] = {-1, STATUS_COUNT, 1000, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        assert_string_equal(status_code(unknown[i]), "unknown");
        assert_true(strlen(status_text(unknown[i])) > 0);
    }
    assert_int_equal(status_from_code("nonsense"), -1);
    assert_int_equal(status_from_code(""), -1);
}

static void fail_fills_code_and_text_and_returns_the_code(void **state) {
    (void)state;
    err e;
    assert_int_equal(fail(&e, STATUS_TOO_LARGE, "%s: %d bytes", "file", 7), STATUS_TOO_LARGE);
    assert_int_equal(e.code, STATUS_TOO_LARGE);
    assert_string_equal(e.text, "file: 7 bytes");
}

static void control_bytes_become_question_marks_and_utf8_stays(void **state) {
    (void)state;
    err e;
    IGNORE(fail(&e, STATUS_IO, "a\x1b[2J\r\nb\tc\x7f d\xc3\xa9"), "only the text is of interest");
    assert_string_equal(e.text, "a?[2J??b?c? d\xc3\xa9");
    for (int c = 1; c < 32; c++) {
        IGNORE(fail(&e, STATUS_IO, "%c", c), "only the text is of interest");
        assert_string_equal(e.text, "?");
    }
}

static void a_text_that_does_not_fit_is_cut(void **state) {
    (void)state;
    struct {
        err e;
        char guard[16];
    } s;
    char longer[2 * ERR_TEXT_BYTES];
    memset(s.guard, 0x5a, sizeof s.guard);
    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    IGNORE(fail(&s.e, STATUS_IO, "%s", longer), "only the text is of interest");
    assert_int_equal(strlen(s.e.text), ERR_TEXT_BYTES - 1);
    errno = ENOENT;
    IGNORE(fail_errno(&s.e, STATUS_IO, "%s", longer), "only the text is of interest");
    assert_int_equal(strlen(s.e.text), ERR_TEXT_BYTES - 1);
    for (size_t i = 0; i < sizeof s.guard; i++) assert_int_equal(s.guard[i], 0x5a);
}

static void fail_errno_adds_the_reason_of_the_system(void **state) {
    (void)state;
    err e;
    errno = ENOENT;
    assert_int_equal(fail_errno(&e, STATUS_IO, "opening %s", "x"), STATUS_IO);
    assert_string_equal(e.text, "opening x: No such file or directory");
}

static void readers_of_bytes_stop_at_the_end(void **state) {
    (void)state;
    static const unsigned char data[] = {1, 2, 3, 4, 5, 6, 7, 8, 0x80};
    uint16_t v16;
    uint32_t v32;
    uint64_t v64;
    bytes b = {data, sizeof data};
    assert_true(bytes_get_u16(b, 7, &v16) && v16 == 0x8008);
    assert_true(bytes_get_u32(b, 5, &v32) && v32 == UINT32_C(0x80080706));
    assert_true(bytes_get_u64(b, 1, &v64) && v64 == UINT64_C(0x8008070605040302));
    assert_false(bytes_get_u16(b, 8, &v16) || bytes_get_u32(b, 6, &v32) || bytes_get_u64(b, 2, &v64));
    assert_false(bytes_get_u16(b, SIZE_MAX, &v16) || bytes_get_u64(b, SIZE_MAX - 3, &v64));
    assert_true(bytes_has(b, 9, 0));
    assert_false(bytes_has(b, 10, 0) || bytes_has(b, 0, SIZE_MAX) || bytes_has(b, 1, SIZE_MAX));
    unsigned char out[5] = {0, 0, 0, 0, 0xee};
    bytes_store_le(out, UINT32_C(0x01020304), 4);
    assert_memory_equal(out, ((unsigned char[]){4, 3, 2, 1, 0xee}), 5);
}

static void sizes_that_wrap_are_noticed(void **state) {
    (void)state;
    size_t n;
    assert_true(size_mul(1 << 20, 1 << 20, &n) && n == (size_t)1 << 40);
    assert_true(size_mul(0, SIZE_MAX, &n) && n == 0);
    assert_false(size_mul(SIZE_MAX, 2, &n));
    assert_false(size_mul((size_t)1 << 32, (size_t)1 << 32, &n));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_codes_and_texts_belong_together),
        cmocka_unit_test(numbers_on_the_wire_do_not_move),
        cmocka_unit_test(unknown_numbers_and_codes_have_an_answer),
        cmocka_unit_test(fail_fills_code_and_text_and_returns_the_code),
        cmocka_unit_test(control_bytes_become_question_marks_and_utf8_stays),
        cmocka_unit_test(a_text_that_does_not_fit_is_cut),
        cmocka_unit_test(fail_errno_adds_the_reason_of_the_system),
        cmocka_unit_test(readers_of_bytes_stop_at_the_end),
        cmocka_unit_test(sizes_that_wrap_are_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
