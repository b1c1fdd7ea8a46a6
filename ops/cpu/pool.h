/* Persistent compute threads that run numbered tasks.
 *
 *     st = pool_open(&p, 4, &e);                       // this thread and three more
 *     pool_run(p, n_tasks, do_task, &job);             // returns when every task is done
 *     pool_close(&p);
 *
 * Tasks are handed out in order, each to whichever thread is free; do_task gets the number of its
 * thread, 0 (the caller) to pool_threads - 1, for scratch memory. With one thread, or one task, the
 * caller does it all. One caller at a time. */
#ifndef OPS_CPU_POOL_H
#define OPS_CPU_POOL_H

#include <stdint.h>

#include "base/err.h"

typedef struct pool pool;
typedef void pool_task(void *job, int64_t task, int thread);

MUST_USE status pool_open(pool **p, int n_threads, err *e);
void pool_close(pool **p);
int pool_threads(const pool *p);
void pool_run(pool *p, int64_t n_tasks, pool_task *run, void *job);

#endif
