/* Arenas and growable buffers: bounds, alignment, and what a failure leaves behind. */
#include <string.h>

#include "base/arena.h"
#include "base/buf.h"
#include "tests/support/support.h"

static err e;

static void an_arena_gives_zeroed_aligned_memory_until_it_is_full(void **state) {
    (void)state;
    arena a;
    assert_int_equal(arena_init(&a, 4096, &e), STATUS_OK);
    size_t n = 0;
    unsigned char *last = NULL;
    for (unsigned char *p; (p = arena_alloc(&a, 1, 100)); n++) {
        assert_int_equal((uintptr_t)p % 64, 0);
        for (int i = 0; i < 100; i++) assert_int_equal(p[i], 0);
        memset(p, 0xa5, 100);
        assert_true(!last || p >= last + 100);
        last = p;
    }
    assert_int_equal(n, 32); /* 100 bytes take 128 */
    assert_null(arena_alloc(&a, 1, 129));
    arena_reset(&a);
    unsigned char *whole = arena_alloc(&a, 4096, 1);
    assert_non_null(whole);
    for (int i = 0; i < 4096; i++) assert_int_equal(whole[i], 0);
    assert_null(arena_alloc(&a, 1, 1));
    arena_deinit(&a);
    arena_deinit(&a);
}

static void a_size_that_wraps_gives_no_memory(void **state) {
    (void)state;
    arena a;
    assert_int_equal(arena_init(&a, 4096, &e), STATUS_OK);
    assert_null(arena_alloc(&a, SIZE_MAX, 2));
    assert_null(arena_alloc(&a, 2, SIZE_MAX));
    assert_null(arena_alloc(&a, SIZE_MAX, 1));
    assert_null(arena_alloc(&a, (size_t)1 << 32, (size_t)1 << 32));
    assert_non_null(arena_alloc(&a, 1, 4000));
    assert_null(arena_alloc(&a, 1, SIZE_MAX - 4000));
    arena_deinit(&a);
}

static void an_arena_copies_text(void **state) {
    (void)state;
    arena a;
    assert_int_equal(arena_init(&a, 128, &e), STATUS_OK);
    assert_string_equal(arena_strdup(&a, "text"), "text");
    assert_string_equal(arena_strdup(&a, ""), "");
    assert_null(arena_strdup(&a, "full"));
    arena_deinit(&a);
}

static void an_arena_that_cannot_be_had_is_an_error(void **state) {
    (void)state;
    arena a;
    assert_int_equal(arena_init(&a, SIZE_MAX / 2, &e), STATUS_NO_MEMORY);
    arena_deinit(&a);
}

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
        cmocka_unit_test(an_arena_gives_zeroed_aligned_memory_until_it_is_full),
        cmocka_unit_test(a_size_that_wraps_gives_no_memory),
        cmocka_unit_test(an_arena_copies_text),
        cmocka_unit_test(an_arena_that_cannot_be_had_is_an_error),
        cmocka_unit_test(a_buffer_grows_to_its_maximum_and_not_further),
        cmocka_unit_test(reserved_room_is_filled_by_the_caller),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
