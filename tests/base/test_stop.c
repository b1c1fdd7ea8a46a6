/* Stopping by a real signal; each case in a process of its own because the flag cannot be taken back. CHECK is
 * tested here too: it also ends a process. */
#include "base/stop.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "tests/support/support.h"

static bool is_readable(int timeout_ms) {
    struct pollfd p = {.fd = stop_fd(), .events = POLLIN};
    int64_t until_us = clock_now_us() + timeout_ms * CLOCK_MS_US;
    /* poll is interrupted by the very signal we wait for */
    do {
        if (poll(&p, 1, timeout_ms) > 0) return p.revents & POLLIN;
    } while (clock_now_us() < until_us);
    return false;
}

static int waits_for_a_signal(void *arg) {
    (void)arg;
    err e;
    if (stop_fd() != -1 || stop_open(&e) != STATUS_OK) return 1;
    if (stop_requested() || stop_signal() != 0 || is_readable(0)) return 2;
    printf("ready\n");
    (void)fflush(stdout);
    if (!is_readable(10000)) return 3;
    if (!stop_requested()) return 4;
    if (!is_readable(0) || !is_readable(0)) return 5; /* stays readable for other loops */
    return 40 + stop_signal();
}

static void a_signal_sets_the_flag_and_wakes_every_loop(void **state) {
    (void)state;
    static const int signals[] = {SIGTERM, SIGINT};
    for (int i = 0; i < 2; i++) {
        child c;
        child_start_function(&c, waits_for_a_signal, NULL);
        assert_true(child_wait_for_output(&c, "ready", 10000));
        assert_int_equal(child_stop(&c, signals[i], 10000), 40 + signals[i]);
    }
}

static int keeps_the_first_signal(void *arg) {
    (void)arg;
    err e;
    if (stop_open(&e) != STATUS_OK || stop_open(&e) != STATUS_OK) return 1;
    (void)raise(SIGINT);
    for (int i = 0; i < 100000; i++) (void)raise(SIGTERM); /* must not fill the pipe and block */
    return 40 + stop_signal();
}

static void the_first_signal_is_remembered_and_more_do_no_harm(void **state) {
    (void)state;
    child c;
    child_start_function(&c, keeps_the_first_signal, NULL);
    assert_int_equal(child_wait(&c, 30000), 40 + SIGINT);
    child_close(&c);
}

static void *request(void *arg) {
    (void)arg;
    stop_request(SIGTERM);
    return NULL;
}

static int asks_itself(void *arg) {
    (void)arg;
    err e;
    pthread_t thread;
    if (stop_open(&e) != STATUS_OK || pthread_create(&thread, NULL, request, NULL) != 0) return 1;
    bool was_readable = is_readable(10000);
    (void)pthread_join(thread, NULL);
    return was_readable ? 40 + stop_signal() : 2;
}

static void a_thread_may_ask_for_the_stop(void **state) {
    (void)state;
    child c;
    child_start_function(&c, asks_itself, NULL);
    assert_int_equal(child_wait(&c, 20000), 40 + SIGTERM);
    child_close(&c);
}

static int writes_to_nobody(void *arg) {
    (void)arg;
    err e;
    int fds[2];
    if (stop_open(&e) != STATUS_OK || pipe(fds) < 0) return 1;
    (void)close(fds[0]);
    return write(fds[1], "x", 1) == -1 ? 0 : 2;
}

static void a_peer_that_went_away_does_not_end_the_program(void **state) {
    (void)state;
    child c;
    child_start_function(&c, writes_to_nobody, NULL);
    assert_int_equal(child_wait(&c, 10000), 0);
    child_close(&c);
}

static int checks(void *arg) {
    log_set_level(LOG_ERROR);
    CHECK(arg == NULL, "true conditions pass");
    (void)signal(SIGABRT, SIG_DFL);
    CHECK(1 + 1 == 3, "what must hold is said");
    return 0;
}

static void a_broken_check_says_what_and_where_and_aborts(void **state) {
    (void)state;
    child c;
    child_start_function(&c, checks, NULL);
    assert_int_equal(child_wait(&c, 20000), 128 + SIGABRT);
    assert_true(child_wait_for_output(&c, "cond=\"1 + 1 == 3\" what=\"what must hold is said\"", 0));
    assert_true(child_wait_for_output(&c, "test_stop.c:", 0));
    child_close(&c);
}

static void time_does_not_run_backwards(void **state) {
    (void)state;
    int64_t before_us = clock_now_us();
    for (int i = 0; i < 10000; i++) {
        int64_t now_us = clock_now_us();
        assert_true(now_us >= before_us);
        before_us = now_us;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_signal_sets_the_flag_and_wakes_every_loop),
        cmocka_unit_test(the_first_signal_is_remembered_and_more_do_no_harm),
        cmocka_unit_test(a_thread_may_ask_for_the_stop),
        cmocka_unit_test(a_peer_that_went_away_does_not_end_the_program),
        cmocka_unit_test(a_broken_check_says_what_and_where_and_aborts),
        cmocka_unit_test(time_does_not_run_backwards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
