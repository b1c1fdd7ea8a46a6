/* Places for features of images: as large as was asked for, each somebody's alone, and kept when they are given back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Before cmocka.h, which has a macro of the name of our function fail(). */
#include "base/err.h"

#include <cmocka.h>

#include "lm_node/image_memory.h"

enum { BYTES = 1000, AT_ONCE = 3, N = 8 };

static void open_places(ops_ctx **ctx, image_memory **m) {
    err e;
    if (ops_open(ctx, &(ops_settings){.device = "cpu", .n_threads = 1}, &e) != STATUS_OK) fail_msg("%s", e.text);
    if (image_memory_open(m, *ctx, BYTES, AT_ONCE, &e) != STATUS_OK) fail_msg("%s", e.text);
}

static void places_are_whole_and_nobody_elses(void **state) {
    (void)state;
    ops_ctx *ctx;
    image_memory *m;
    unsigned char *places[N];
    open_places(&ctx, &m);
    for (int i = 0; i < N; i++) { /* more than are opened at once, twice */
        err e;
        places[i] = image_memory_take(m, &e);
        assert_non_null(places[i]);
        memset(places[i], i + 1, BYTES);
    }
    for (int i = 0; i < N; i++)
        for (int at = 0; at < BYTES; at++) assert_int_equal(places[i][at], i + 1);
    for (int i = 0; i < N; i++) image_memory_give(m, places[i]);
    image_memory_give(m, NULL);
    image_memory_close(&m);
    assert_null(m);
    ops_close(&ctx);
}

static void a_place_that_is_given_back_is_the_next(void **state) {
    (void)state;
    ops_ctx *ctx;
    image_memory *m;
    unsigned char *places[AT_ONCE];
    err e;
    open_places(&ctx, &m);
    for (int i = 0; i < AT_ONCE; i++) places[i] = image_memory_take(m, &e);
    for (int round = 0; round < 100; round++) {
        unsigned char *place = places[round % AT_ONCE];
        image_memory_give(m, place);
        assert_ptr_equal(image_memory_take(m, &e), place);
    }
    for (int i = 0; i < AT_ONCE; i++) image_memory_give(m, places[i]);
    image_memory_close(&m);
    ops_close(&ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(places_are_whole_and_nobody_elses),
        cmocka_unit_test(a_place_that_is_given_back_is_the_next),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
