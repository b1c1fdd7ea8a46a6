/* Every task of a job runs exactly once and is over when pool_run returns, for jobs that follow at once
 * and for jobs that come after the workers have parked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Before cmocka.h, which has a macro of the name of our function fail(). */
#include "base/err.h"

#include <cmocka.h>

#include "base/clock.h"
#include "ops/cpu/pool.h"

#define TASKS_MAX   200
#define THREADS_MAX 8

typedef struct {
    int runs[TASKS_MAX]; /* plain: a task that ran twice, or late, is a race that tsan sees */
    atomic_int threads_seen;
    int n_threads;
} count_job;

static void count_task(void *arg, int64_t task, int thread) {
    count_job *j = arg;
    j->runs[task]++;
    if (thread < 0 || thread >= j->n_threads) abort();
    atomic_fetch_or(&j->threads_seen, 1 << thread);
}

static void every_task_runs_once(void **state) {
    (void)state;
    for (int n_threads = 1; n_threads <= THREADS_MAX; n_threads++) {
        err e;
        pool *p;
        assert_int_equal(pool_open(&p, n_threads, &e), STATUS_OK);
        assert_int_equal(pool_threads(p), n_threads);
        for (int round = 0; round < 2000; round++) {
            count_job j = {.n_threads = n_threads};
            int n = round * 7 % (TASKS_MAX + 1);
            if (round % 500 == 499) { /* longer than a worker spins: it parks, and must wake */
                int64_t until = clock_now_us() + 5 * CLOCK_MS_US;
                while (clock_now_us() < until) {}
            }
            pool_run(p, n, count_task, &j);
            for (int i = 0; i < TASKS_MAX; i++) assert_int_equal(j.runs[i], i < n ? 1 : 0);
        }
        pool_close(&p);
        assert_null(p);
    }
}

static void wait_for_company(void *arg, int64_t task, int thread) {
    count_job *j = arg;
    (void)task;
    atomic_fetch_or(&j->threads_seen, 1 << thread);
    int64_t until = clock_now_us() + 20 * CLOCK_SECOND_US;
    while (atomic_load(&j->threads_seen) != (1 << j->n_threads) - 1 && clock_now_us() < until) {}
}

/* As many tasks as threads, none of which ends before all have begun. */
static void all_threads_take_part(void **state) {
    (void)state;
    err e;
    pool *p;
    assert_int_equal(pool_open(&p, 3, &e), STATUS_OK);
    for (int round = 0; round < 20; round++) {
        count_job j = {.n_threads = 3};
        pool_run(p, 3, wait_for_company, &j);
        assert_int_equal(atomic_load(&j.threads_seen), 7);
    }
    pool_close(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_task_runs_once),
        cmocka_unit_test(all_threads_take_part),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
