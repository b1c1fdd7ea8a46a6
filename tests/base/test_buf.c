/* Growable buffers: bounds, and what a failure leaves behind. */
#include <string.h>

#include "base/buf.h"
#include "tests/support/support.h"

static void a_buffer_grows_to_its_maximum_and_not_further(void **state) {
    (void)state;
    buf b;
    buf_init(&b, 1000);
    char part[100];
    memset(part, 'x', sizeof part);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(buf_append(&b, part, sizeof part), STATUS_OK);
        assert_int_equal(b.data[b.len_bytes], 0);
    }
    assert_int_equal(buf_append(&b, "y", 1), STATUS_TOO_LARGE);
    assert_int_equal(b.len_bytes, 1000);
    assert_int_equal(b.data[999], 'x');
    assert_int_equal(buf_append(&b, NULL, 0), STATUS_OK);
    assert_null(buf_reserve(&b, 1));
    assert_null(buf_reserve(&b, SIZE_MAX));
    assert_int_equal(buf_append(&b, "y", SIZE_MAX), STATUS_TOO_LARGE);
    buf_clear(&b);
    assert_int_equal(b.data[0], 0);
    assert_int_equal(buf_append_text(&b, "again"), STATUS_OK);
    assert_string_equal((char *)b.data, "again");
    buf_deinit(&b);
    buf_deinit(&b);
}

static void reserved_room_is_filled_by_the_caller(void **state) {
    (void)state;
    buf b;
    buf_init(&b, 5000);
    unsigned char *to = buf_reserve(&b, 5000);
    assert_non_null(to);
    memset(to, 'z', 5000);
    b.len_bytes += 5000;
    assert_int_equal(b.data[4999], 'z');
    assert_int_equal(buf_append(&b, "", 0), STATUS_OK);
    assert_int_equal(b.data[5000], 0);
    buf_deinit(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_buffer_grows_to_its_maximum_and_not_further),
        cmocka_unit_test(reserved_room_is_filled_by_the_caller),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
