/* The supervisor with real processes and real signals. */
#include "worker/supervisor.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/support/support.h"

#define STARTS_MAX  32
#define REPORTS_MAX 64

/* What the engines of a test write down for it; shared by test, supervisor and engines. */
typedef struct {
    _Atomic(int) n_starts;
    _Atomic(int) engine_pid;
    int64_t started_us[STARTS_MAX];
    size_t n_reports[STARTS_MAX]; /* found by the n-th engine */
    supervisor_report reports[REPORTS_MAX]; /* of the last engine */
    int signal;
} notes;

static notes *n;
static child supervisor; /* the process supervisor_run runs in */
static supervisor_child_main *engine;

static int share_notes(void **state) {
    (void)state;
    n = mmap(NULL, sizeof *n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(n, MAP_FAILED);
    return 0;
}

static int close_all(void **state) {
    (void)state;
    child_close(&supervisor);
    (void)munmap(n, sizeof *n);
    return 0;
}

static int run_supervisor(void *arg) { return supervisor_run(engine, arg); }

static void start(supervisor_child_main *engine_main) {
    engine = engine_main;
    child_start_function(&supervisor, run_supervisor, NULL);
}

/* Every engine begins with this; its number is returned, the first is 0. */
static int note_start(supervisor_child *c) {
    struct rlimit no_core = {0};
    (void)setrlimit(RLIMIT_CORE, &no_core);
    int idx = atomic_load(&n->n_starts);
    n->started_us[idx % STARTS_MAX] = clock_now_us();
    n->n_reports[idx % STARTS_MAX] = supervisor_n_reports(c);
    for (size_t i = 0; i < supervisor_n_reports(c) && i < REPORTS_MAX; i++)
        n->reports[i] = supervisor_get_report(c, i);
    supervisor_set_incarnation(c, 100 + (uint64_t)idx);
    atomic_store(&n->engine_pid, (int)getpid());
    atomic_fetch_add(&n->n_starts, 1);
    return idx;
}

/* A sanitizer's handler would turn the signal into an exit. */
static _Noreturn void die(int signo) {
    (void)signal(signo, SIG_DFL);
    (void)raise(signo);
    _exit(99);
}

static void item(unsigned char id[SUPERVISOR_ITEM_ID_BYTES], int number) {
    memset(id, number, SUPERVISOR_ITEM_ID_BYTES);
}

static void leave_crumb(supervisor_child *c, int number, uint32_t attempt) {
    unsigned char id[SUPERVISOR_ITEM_ID_BYTES];
    item(id, number);
    if (supervisor_breadcrumb_set(c, id, attempt) < 0) _exit(98);
}

/* ---- ending by itself ---- */

static int ends_with_seven(supervisor_child *c, void *arg) {
    (void)arg;
    (void)note_start(c);
    return 7;
}

static void an_engine_that_ends_by_itself_is_not_started_again(void **state) {
    (void)state;
    start(ends_with_seven);
    assert_int_equal(child_wait(&supervisor, 10000), 7);
    assert_int_equal(n->n_starts, 1);
}

/* ---- dying ---- */

static int dies_once_at_work(supervisor_child *c, void *arg) {
    (void)arg;
    if (note_start(c) > 0) return 0;
    unsigned char done[SUPERVISOR_ITEM_ID_BYTES];
    item(done, 1);
    int slot = supervisor_breadcrumb_set(c, done, 1);
    leave_crumb(c, 2, 5);
    leave_crumb(c, 3, 6);
    supervisor_breadcrumb_clear(c, slot);
    die(n->signal);
}

static void what_a_dead_engine_worked_on_is_reported_with_the_signal(void **state) {
    (void)state;
    static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS, SIGKILL};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        memset(n, 0, sizeof *n);
        n->signal = signals[i];
        start(dies_once_at_work);
        assert_int_equal(child_wait(&supervisor, 10000), 0);
        child_close(&supervisor);
        assert_int_equal(n->n_starts, 2);
        assert_int_equal(n->n_reports[0], 0);
        assert_int_equal(n->n_reports[1], 2); /* not the item that was finished */
        for (int k = 0; k < 2; k++) {
            unsigned char id[SUPERVISOR_ITEM_ID_BYTES];
            item(id, 2 + k);
            bool is_second = n->reports[k].attempt == 6; /* slots have no order */
            item(id, is_second ? 3 : 2);
            assert_memory_equal(n->reports[k].item_id, id, sizeof id);
            assert_int_equal(n->reports[k].attempt, is_second ? 6 : 5);
            assert_int_equal(n->reports[k].signal, signals[i]);
            assert_int_equal(n->reports[k].incarnation, 100);
        }
        assert_int_not_equal(n->reports[0].attempt, n->reports[1].attempt);
    }
}

/* Dies three times with one item each; the third engine acknowledges the first's report. */
static int dies_thrice(supervisor_child *c, void *arg) {
    (void)arg;
    int idx = note_start(c);
    if (idx == 2) {
        unsigned char id[SUPERVISOR_ITEM_ID_BYTES];
        item(id, 1);
        supervisor_report_done(c, id, 999); /* of another incarnation: nothing happens */
        if (supervisor_n_reports(c) != 2) _exit(97);
        supervisor_report_done(c, id, 100);
    }
    if (idx == 3) return 0;
    leave_crumb(c, idx + 1, 1);
    die(SIGKILL);
}

static void reports_stay_until_they_are_acknowledged(void **state) {
    (void)state;
    start(dies_thrice);
    assert_int_equal(child_wait(&supervisor, 10000), 0);
    assert_int_equal(n->n_starts, 4);
    assert_int_equal(n->n_reports[1], 1);
    assert_int_equal(n->n_reports[2], 2);
    assert_int_equal(n->n_reports[3], 2);
    assert_int_equal(n->reports[0].item_id[0], 2);
    assert_int_equal(n->reports[0].incarnation, 101);
    assert_int_equal(n->reports[1].item_id[0], 3);
    assert_int_equal(n->reports[1].incarnation, 102);
}

static void restarts_wait_longer_and_longer(void **state) {
    (void)state;
    start(dies_thrice);
    assert_int_equal(child_wait(&supervisor, 10000), 0);
    /* At once, after 0.1 s, after 0.5 s; only the lower limits hold on a busy machine. */
    assert_true(n->started_us[2] - n->started_us[1] >= 100 * CLOCK_MS_US);
    assert_true(n->started_us[3] - n->started_us[2] >= 500 * CLOCK_MS_US);
}

/* ---- being told to stop ---- */

static volatile sig_atomic_t got_signal;
static void remember(int signo) { got_signal = signo; }

static int ends_when_told(supervisor_child *c, void *arg) {
    (void)arg;
    sigset_t both, before;
    (void)sigemptyset(&both);
    (void)sigaddset(&both, SIGTERM);
    (void)sigaddset(&both, SIGINT);
    (void)sigprocmask(SIG_BLOCK, &both, &before);
    if (sigismember(&before, SIGTERM) || sigismember(&before, SIGCHLD)) _exit(96);
    struct sigaction action = {.sa_handler = remember};
    (void)sigaction(SIGTERM, &action, NULL);
    (void)sigaction(SIGINT, &action, NULL);
    (void)note_start(c);
    while (!got_signal) (void)sigsuspend(&before);
    return 40 + got_signal;
}

static bool has_started(void *arg) {
    return atomic_load(&n->n_starts) >= *(const int *)arg;
}

static void wait_for_start(int number) { assert_true(wait_until(has_started, &number, 10000)); }

static void being_told_to_stop_is_passed_on_and_the_engines_answer_back(void **state) {
    (void)state;
    static const int signals[] = {SIGTERM, SIGINT};
    for (int i = 0; i < 2; i++) {
        memset(n, 0, sizeof *n);
        start(ends_when_told);
        wait_for_start(1);
        assert_int_equal(kill(supervisor.pid, signals[i]), 0);
        assert_int_equal(child_wait(&supervisor, 10000), 40 + signals[i]);
        child_close(&supervisor);
        assert_int_equal(n->n_starts, 1);
    }
}

static int dies_at_once(supervisor_child *c, void *arg) {
    (void)arg;
    (void)note_start(c);
    die(SIGKILL);
}

static void being_told_to_stop_while_waiting_starts_no_engine(void **state) {
    (void)state;
    start(dies_at_once);
    wait_for_start(4); /* now it waits a second, then two */
    int64_t told_us = clock_now_us();
    assert_int_equal(kill(supervisor.pid, SIGTERM), 0);
    assert_int_equal(child_wait(&supervisor, 10000), 128 + SIGTERM);
    assert_true(clock_now_us() - told_us < 900 * CLOCK_MS_US);
    assert_int_equal(n->n_starts, 4);
}

static int waits_for_ever(supervisor_child *c, void *arg) {
    (void)arg;
    (void)note_start(c);
    for (;;) (void)pause();
    return 0;
}

static bool is_gone(void *arg) {
    (void)arg;
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)n->engine_pid);
    buf stat;
    buf_init(&stat, 65536);
    /* A zombie that nobody waits for is gone as well. */
    bool gone = !file_read(&stat, path) || stat.len_bytes == 0 || strstr((char *)stat.data, ") Z ");
    buf_deinit(&stat);
    return gone;
}

static void a_stop_at_any_moment_of_the_start_ends_it(void **state) {
    (void)state;
    for (int i = 0; i < 60; i++) {
        atomic_store(&n->n_starts, 0);
        start(waits_for_ever);
        struct timespec moment = {.tv_nsec = i * 30000};
        (void)nanosleep(&moment, NULL); /* another moment each time, not a wait for something */
        (void)kill(supervisor.pid, SIGTERM);
        assert_int_equal(child_wait(&supervisor, 10000), 128 + SIGTERM);
        child_close(&supervisor);
    }
}

static void a_killed_supervisor_leaves_no_engine(void **state) {
    (void)state;
    start(waits_for_ever);
    wait_for_start(1);
    assert_false(is_gone(NULL));
    assert_int_equal(kill(supervisor.pid, SIGKILL), 0);
    assert_int_equal(child_wait(&supervisor, 10000), 128 + SIGKILL);
    assert_true(wait_until(is_gone, NULL, 10000));
}

static void a_stopped_and_continued_engine_is_not_taken_for_dead(void **state) {
    (void)state;
    start(ends_when_told);
    wait_for_start(1);
    assert_int_equal(kill(n->engine_pid, SIGSTOP), 0);
    assert_int_equal(kill(n->engine_pid, SIGCONT), 0);
    assert_int_equal(kill(supervisor.pid, SIGTERM), 0);
    assert_int_equal(child_wait(&supervisor, 10000), 40 + SIGTERM);
    assert_int_equal(n->n_starts, 1);
}

/* ---- breadcrumbs ---- */

static int fills_every_slot(supervisor_child *c, void *arg) {
    (void)arg;
    if (note_start(c) > 0) return 0;
    unsigned char id[SUPERVISOR_ITEM_ID_BYTES];
    item(id, 1);
    for (int i = 0; i < SUPERVISOR_BREADCRUMBS; i++)
        if (supervisor_breadcrumb_set(c, id, (uint32_t)i) < 0) return 1;
    if (supervisor_breadcrumb_set(c, id, 0) != -1) return 2;
    supervisor_breadcrumb_clear(c, -1);
    supervisor_breadcrumb_clear(c, 17);
    if (supervisor_breadcrumb_set(c, id, 17) != 17) return 3;
    die(SIGKILL);
}

static void full_slots_are_said_and_all_reported(void **state) {
    (void)state;
    start(fills_every_slot);
    assert_int_equal(child_wait(&supervisor, 10000), 0);
    assert_int_equal(n->n_reports[1], SUPERVISOR_BREADCRUMBS);
}

static void *set_and_clear(void *arg) {
    supervisor_child *c = arg;
    unsigned char id[SUPERVISOR_ITEM_ID_BYTES];
    item(id, 9);
    for (int i = 0; i < 5000; i++) {
        int slot = supervisor_breadcrumb_set(c, id, 1);
        if (slot < 0) return arg;
        supervisor_breadcrumb_clear(c, slot);
    }
    return supervisor_breadcrumb_set(c, id, 1) < 0 ? arg : NULL; /* one stays */
}

static int works_with_threads(supervisor_child *c, void *arg) {
    (void)arg;
    if (note_start(c) > 0) return 0;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        if (pthread_create(&threads[i], NULL, set_and_clear, c) != 0) return 1;
    for (int i = 0; i < 4; i++) {
        void *failed = NULL;
        if (pthread_join(threads[i], &failed) != 0 || failed) return 2;
    }
    die(SIGKILL);
}

static void threads_leave_exactly_their_breadcrumbs(void **state) {
    (void)state;
    start(works_with_threads);
    assert_int_equal(child_wait(&supervisor, 30000), 0);
    assert_int_equal(n->n_reports[1], 4);
}

int main(void) {
#define TEST(t) cmocka_unit_test_setup_teardown(t, share_notes, close_all)
    const struct CMUnitTest tests[] = {
        TEST(an_engine_that_ends_by_itself_is_not_started_again),
        TEST(what_a_dead_engine_worked_on_is_reported_with_the_signal),
        TEST(reports_stay_until_they_are_acknowledged),
        TEST(restarts_wait_longer_and_longer),
        TEST(being_told_to_stop_is_passed_on_and_the_engines_answer_back),
        TEST(being_told_to_stop_while_waiting_starts_no_engine),
        TEST(a_stop_at_any_moment_of_the_start_ends_it),
        TEST(a_killed_supervisor_leaves_no_engine),
        TEST(a_stopped_and_continued_engine_is_not_taken_for_dead),
        TEST(full_slots_are_said_and_all_reported),
        TEST(threads_leave_exactly_their_breadcrumbs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
