/* The progress line says the right numbers and never wraps; text for terminals is harmless. */
#include "tests/support/support.h"

#include <stdlib.h>
#include <string.h>

#include "cli/progress.h"
#include "cli/terminal_text.h"

static void the_line_says_done_speed_cache_failures_and_time_left(void **state) {
    (void)state;
    progress p = {.n_total = 600, .n_done = 120, .n_failed = 2, .n_cached = 98};
    char line[PROGRESS_LINE_BYTES];
    progress_line(line, &p, 10 * 1000000, 100);
    assert_string_equal(line, "[######........................] 120/600  20%  12/s  98 cached  2 failed  40s left");
    p.n_before = 100; /* an earlier run's items were not done at this speed */
    progress_line(line, &p, 10 * 1000000, 100);
    assert_non_null(strstr(line, "  2.0/s  "));
    assert_non_null(strstr(line, "4m00s left"));
    p.n_done = 600;
    progress_line(line, &p, 3661 * (int64_t)1000000, 100);
    assert_non_null(strstr(line, "100%"));
    assert_non_null(strstr(line, "in 1h01m"));
}

static void while_it_waits_it_promises_nothing_and_afterwards_the_wait_is_no_slowness(void **state) {
    (void)state;
    progress p = {.n_total = 600, .n_done = 120, .n_failed = 2};
    char line[PROGRESS_LINE_BYTES];
    progress_wait(&p, "the broker");
    progress_wait(&p, "the broker");
    progress_line(line, &p, 10 * 1000000, 100);
    assert_string_equal(line, "[######........................] 120/600  20%  2 failed  waiting for the broker");
    p.wait_start_us -= 90 * (int64_t)1000000;
    progress_go_on(&p);
    progress_go_on(&p);
    progress_line(line, &p, 100 * 1000000, 100);
    assert_non_null(strstr(line, "  12/s  "));
    assert_non_null(strstr(line, "  40s left"));
    p.n_done = 600;
    progress_line(line, &p, 100 * 1000000, 100);
    assert_non_null(strstr(line, "in 1m40s"));
}

static void it_fits_any_terminal(void **state) {
    (void)state;
    progress p = {.n_total = 20000000, .n_done = 19999999, .n_failed = 1234567, .n_cached = 7654321};
    for (int width = 0; width < 200; width++) {
        char line[PROGRESS_LINE_BYTES];
        progress_line(line, &p, 86400 * (int64_t)1000000, width);
        assert_true((int)strlen(line) <= width);
    }
}

static void nothing_to_do_and_no_time_are_no_divisions_by_zero(void **state) {
    (void)state;
    progress p = {0};
    char line[PROGRESS_LINE_BYTES];
    progress_line(line, &p, 0, 80);
    assert_non_null(strstr(line, "0/0 100%"));
    p.n_total = 5;
    progress_line(line, &p, 0, 80);
    assert_non_null(strstr(line, "0/5   0%"));
}

static char *written(const char *text, size_t n, bool escaped) {
    char *out = NULL;
    size_t size;
    FILE *to = open_memstream(&out, &size);
    terminal_text_write(to, text, n, escaped);
    (void)fclose(to);
    return out;
}

static void control_characters_reach_no_terminal(void **state) {
    (void)state;
    static const char text[] = "a\x1b[2J\x07\t\n\r\x7f\xc2\x9b" "31m\xc3\xa9\xc2\xa0\xc2";
    char *shown = written(text, sizeof text - 1, true);
    assert_string_equal(shown, "a\\x1b[2J\\x07\t\n\\x0d\\x7f\\x9b31m\xc3\xa9\xc2\xa0\xc2");
    free(shown);
    shown = written(text, sizeof text - 1, false);
    assert_memory_equal(shown, text, sizeof text - 1);
    free(shown);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_line_says_done_speed_cache_failures_and_time_left),
        cmocka_unit_test(while_it_waits_it_promises_nothing_and_afterwards_the_wait_is_no_slowness),
        cmocka_unit_test(it_fits_any_terminal),
        cmocka_unit_test(nothing_to_do_and_no_time_are_no_divisions_by_zero),
        cmocka_unit_test(control_characters_reach_no_terminal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
