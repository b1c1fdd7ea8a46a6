/* A job is open while its tasks are handed out. A worker joins an open job by adding one to `gate`,
 * takes tasks from a shared counter until there are none, and leaves. The caller works too; when the
 * counter is used up it shuts the gate and waits only for those who joined. A worker that wakes late
 * finds the gate shut and nobody waits for it, so a parked or preempted thread never costs more than
 * its own help.
 *
 * Waiting: a worker spins for some tens of microseconds, because operators follow each other closely,
 * then parks on a condition variable. The caller bumps `round` before it looks at `n_parked`, and a
 * worker raises `n_parked` before it looks at `round` again, so a wake-up cannot be missed. */
#include "ops/cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#define GATE_OPEN    0x40000000
#define SPINS_PARK   4000 /* about 50 microseconds of pauses before a worker parks */
#define SPINS_YIELD  2000 /* and before the caller lets others run */
#define CACHE_LINE   64

typedef struct {
    pool *owner;
    pthread_t thread;
    int number;
} worker;

struct pool {
    int n_threads, n_started;
    worker *workers;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_bool stop;
    /* the job; written while the gate is shut and nobody is inside */
    pool_task *run;
    void *job;
    int64_t n_tasks;
    _Alignas(CACHE_LINE) atomic_int_fast64_t next_task;
    _Alignas(CACHE_LINE) atomic_int gate; /* GATE_OPEN while open, plus the number inside */
    _Alignas(CACHE_LINE) atomic_uint round;
    atomic_int n_parked;
};

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static void work(pool *p, int thread) {
    for (;;) {
        int64_t task = atomic_fetch_add_explicit(&p->next_task, 1, memory_order_relaxed);
        if (task >= p->n_tasks) return;
        p->run(p->job, task, thread);
    }
}

/* Waits for a round after `seen`; returns it. */
static unsigned wait_round(pool *p, unsigned seen) {
    for (int i = 0; i < SPINS_PARK; i++) {
        unsigned now = atomic_load(&p->round);
        if (now != seen) return now;
        pause_briefly();
    }
    (void)pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->n_parked, 1);
    while (atomic_load(&p->round) == seen) (void)pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->n_parked, 1);
    unsigned now = atomic_load(&p->round);
    (void)pthread_mutex_unlock(&p->lock);
    return now;
}

static void next_round(pool *p) {
    atomic_fetch_add(&p->round, 1);
    if (atomic_load(&p->n_parked) == 0) return;
    (void)pthread_mutex_lock(&p->lock);
    (void)pthread_cond_broadcast(&p->wake);
    (void)pthread_mutex_unlock(&p->lock);
}

static void *worker_main(void *arg) {
    worker *w = arg;
    pool *p = w->owner;
    for (unsigned seen = 0;;) {
        seen = wait_round(p, seen);
        if (atomic_load(&p->stop)) return NULL;
        int gate = atomic_load(&p->gate);
        while (gate & GATE_OPEN) {
            if (!atomic_compare_exchange_weak(&p->gate, &gate, gate + 1)) continue;
            work(p, w->number);
            atomic_fetch_sub(&p->gate, 1);
            break;
        }
    }
}

status pool_open(pool **out, int n_threads, err *e) {
    *out = NULL;
    pool *p = aligned_alloc(CACHE_LINE, sizeof *p);
    worker *workers = calloc((size_t)n_threads, sizeof *workers);
    if (!p || !workers) {
        free(p);
        free(workers);
        return fail(e, STATUS_NO_MEMORY, "ops: no memory for %d threads", n_threads);
    }
    p->n_threads = n_threads;
    p->n_started = 0;
    p->workers = workers;
    atomic_init(&p->stop, false);
    atomic_init(&p->next_task, 0);
    atomic_init(&p->gate, 0);
    atomic_init(&p->round, 0);
    atomic_init(&p->n_parked, 0);
    (void)pthread_mutex_init(&p->lock, NULL); /* default attributes: cannot fail on Linux */
    (void)pthread_cond_init(&p->wake, NULL);
    for (int i = 1; i < n_threads; i++) {
        workers[i] = (worker){.owner = p, .number = i};
        int rc = pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]);
        if (rc != 0) {
            pool_close(&p);
            return fail(e, STATUS_NO_MEMORY, "ops: thread %d of %d did not start (error %d)", i,
                        n_threads, rc);
        }
        p->n_started = i;
    }
    *out = p;
    return STATUS_OK;
}

void pool_close(pool **pp) {
    pool *p = *pp;
    if (!p) return;
    atomic_store(&p->stop, true);
    next_round(p);
    for (int i = 1; i <= p->n_started; i++) (void)pthread_join(p->workers[i].thread, NULL);
    (void)pthread_cond_destroy(&p->wake);
    (void)pthread_mutex_destroy(&p->lock);
    free(p->workers);
    free(p);
    *pp = NULL;
}

int pool_threads(const pool *p) { return p->n_threads; }

void pool_run(pool *p, int64_t n_tasks, pool_task *run, void *job) {
    if (p->n_threads == 1 || n_tasks <= 1) {
        for (int64_t task = 0; task < n_tasks; task++) run(job, task, 0);
        return;
    }
    p->run = run;
    p->job = job;
    p->n_tasks = n_tasks;
    atomic_store_explicit(&p->next_task, 0, memory_order_relaxed);
    atomic_store(&p->gate, GATE_OPEN);
    next_round(p);
    work(p, 0);
    atomic_fetch_sub(&p->gate, GATE_OPEN);
    for (int spins = 0; atomic_load(&p->gate) != 0; spins++) {
        if (spins < SPINS_YIELD)
            pause_briefly();
        else
            (void)sched_yield();
    }
}
