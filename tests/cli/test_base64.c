/* Vectors of RFC 4648, section 10, and everything section 3 tells a strict decoder to refuse. */
#include "tests/support/support.h"

#include <string.h>

#include "cli/base64.h"

static void the_vectors_of_the_standard_decode(void **state) {
    (void)state;
    static const char *const cases[][2] = {{"", ""}, {"Zg==", "f"}, {"Zm8=", "fo"}, {"Zm9v", "foo"},
                                           {"Zm9vYg==", "foob"}, {"Zm9vYmE=", "fooba"},
                                           {"Zm9vYmFy", "foobar"}, {"+/+/", "\xfb\xff\xbf"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        buf out;
        buf_init(&out, 64);
        assert_int_equal(base64_decode(&out, cases[i][0], strlen(cases[i][0])), STATUS_OK);
        assert_int_equal(out.len_bytes, strlen(cases[i][1]));
        if (out.len_bytes) assert_memory_equal(out.data, cases[i][1], out.len_bytes);
        buf_deinit(&out);
    }
}

static void anything_else_is_refused(void **state) {
    (void)state;
    static const char *const cases[] = {"Z", "Zg", "Zg=", "Zg===", "=", "====", "Z===", "Zm9v\n", "Zm 9", "Zm-_",
                                        "Zh==", "Zm9=", "Zg==Zg==", "Zm9vZg=a", "\xc3\xa9==", "Zm9*"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        buf out;
        buf_init(&out, 64);
        if (base64_decode(&out, cases[i], strlen(cases[i])) != STATUS_BAD_FORMAT)
            fail_msg("\"%s\" was taken", cases[i]);
        assert_int_equal(out.len_bytes, 0);
        buf_deinit(&out);
    }
}

static void the_buffers_limit_holds(void **state) {
    (void)state;
    buf out;
    buf_init(&out, 5);
    assert_int_equal(base64_decode(&out, "Zm9vYmFy", 8), STATUS_TOO_LARGE);
    assert_int_equal(base64_decode(&out, "Zm9vYmE=", 8), STATUS_OK);
    buf_deinit(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_vectors_of_the_standard_decode),
        cmocka_unit_test(anything_else_is_refused),
        cmocka_unit_test(the_buffers_limit_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
