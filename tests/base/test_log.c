/* The form of a log line, and silence until somebody asks for lines. */
#include "base/log.h"

#include <pthread.h>
#include <regex.h>
#include <stdio.h>
#include <string.h>

#include "tests/support/support.h"

static char last[2048];
static int n_lines;
static log_level last_level;

static void keep(log_level level, const char *line) {
    last_level = level;
    n_lines++;
    (void)snprintf(last, sizeof last, "%s", line);
}

static int fresh(void **state) {
    (void)state;
    n_lines = 0;
    last[0] = '\0';
    log_set_sink(keep);
    log_set_level(LOG_INFO);
    log_set_role("broker");
    return 0;
}

static void nothing_is_written_before_a_level_is_set(void **state) {
    (void)state;
    n_lines = 0;
    log_set_sink(keep);
    log_error("event", "key=%d", 1);
    assert_int_equal(n_lines, 0);
}

static void a_line_has_time_level_role_event_and_fields(void **state) {
    (void)state;
    regex_t form;
    assert_int_equal(regcomp(&form,
                             "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z "
                             "warn broker\\[[0-9]+\\] node_joined node=a n=7$",
                             REG_EXTENDED | REG_NOSUB),
                     0);
    log_warn("node_joined", "node=%s n=%d", "a", 7);
    if (regexec(&form, last, 0, NULL, 0) != 0) fail_msg("\"%s\"", last);
    assert_int_equal(last_level, LOG_WARN);
    regfree(&form);
}

static void only_levels_up_to_the_chosen_one_are_written(void **state) {
    (void)state;
    for (int level = LOG_OFF; level <= LOG_DEBUG; level++) {
        n_lines = 0;
        log_set_level((log_level)level);
        log_error("e", "k=%d", 1);
        log_warn("e", "k=%d", 1);
        log_info("e", "k=%d", 1);
        log_debug("e", "k=%d", 1);
        assert_int_equal(n_lines, level);
    }
}

static void a_line_stays_one_line_whatever_is_in_it(void **state) {
    (void)state;
    log_info("event", "text=%s", "a\nb\x1b[31m\x7f");
    assert_null(strpbrk(last, "\n\x1b\x7f"));
    assert_non_null(strstr(last, "text=a?b?[31m?"));
}

static void a_long_line_is_cut(void **state) {
    (void)state;
    char text[5000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    log_info("event", "text=%s", text);
    assert_in_range(strlen(last), 900, 1023);
    log_set_role(text);
    log_info("event", "text=%s", text);
    assert_in_range(strlen(last), 900, 1023);
    log_set_role("broker");
}

static void names_of_levels_are_known(void **state) {
    (void)state;
    log_level level = LOG_OFF;
    assert_int_equal(log_level_from_name("debug", &level), 0);
    assert_int_equal(level, LOG_DEBUG);
    assert_int_equal(log_level_from_name("off", &level), 0);
    assert_int_equal(level, LOG_OFF);
    assert_int_equal(log_level_from_name("DEBUG", &level), -1);
    assert_int_equal(log_level_from_name("", &level), -1);
}

static void *write_lines(void *arg) {
    for (int i = 0; i < 200; i++) log_info("event", "thread=%d padding=%0100d", *(int *)arg, i);
    return NULL;
}

static int four_threads(void *arg) {
    (void)arg;
    pthread_t threads[4];
    int names[4] = {0, 1, 2, 3};
    log_set_sink(NULL);
    for (int i = 0; i < 4; i++)
        if (pthread_create(&threads[i], NULL, write_lines, &names[i]) != 0) return 1;
    for (int i = 0; i < 4; i++) (void)pthread_join(threads[i], NULL);
    return 0;
}

static void lines_of_threads_do_not_mix_on_stderr(void **state) {
    (void)state;
    child c;
    buf out;
    child_start_function(&c, four_threads, NULL);
    assert_int_equal(child_wait(&c, 20000), 0);
    buf_init(&out, 1 << 20);
    child_stderr(&c, &out);
    child_close(&c);
    size_t n = 0;
    for (char *rest = NULL, *line = strtok_r((char *)out.data, "\n", &rest); line;
         line = strtok_r(NULL, "\n", &rest)) {
        assert_int_equal(line[4], '-');
        assert_null(strstr(line + 1, "broker[") ? strstr(strstr(line, "broker[") + 1, "broker[") : NULL);
        n++;
    }
    assert_int_equal(n, 800);
    buf_deinit(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_written_before_a_level_is_set), /* stays first */
        cmocka_unit_test_setup(a_line_has_time_level_role_event_and_fields, fresh),
        cmocka_unit_test_setup(only_levels_up_to_the_chosen_one_are_written, fresh),
        cmocka_unit_test_setup(a_line_stays_one_line_whatever_is_in_it, fresh),
        cmocka_unit_test_setup(a_long_line_is_cut, fresh),
        cmocka_unit_test_setup(names_of_levels_are_known, fresh),
        cmocka_unit_test_setup(lines_of_threads_do_not_mix_on_stderr, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
