#include "vision_node/crew.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/check.h"

typedef struct {
    crew_work *first, **last;
} work_list;

struct crew {
    pthread_mutex_t mutex; /* guards todo, ended, is_closing */
    pthread_cond_t has_work;
    work_list todo, ended;
    bool is_closing;
    void (*tell)(void *user);
    void *user;
    pthread_t threads[CREW_THREADS_MAX];
    int n_threads; /* that were started */
};

static void push(work_list *l, crew_work *work) {
    work->next = NULL;
    *l->last = work;
    l->last = &work->next;
}

static crew_work *pop(work_list *l) {
    crew_work *work = l->first;
    if (!work) return NULL;
    l->first = work->next;
    if (!l->first) l->last = &l->first;
    return work;
}

/* NULL: the crew closes. */
static crew_work *wait_for_work(crew *c) {
    (void)pthread_mutex_lock(&c->mutex);
    while (!c->todo.first && !c->is_closing) (void)pthread_cond_wait(&c->has_work, &c->mutex);
    crew_work *work = c->is_closing ? NULL : pop(&c->todo);
    (void)pthread_mutex_unlock(&c->mutex);
    return work;
}

static void *crew_main(void *arg) {
    crew *c = arg;
    for (crew_work *work; (work = wait_for_work(c));) {
        work->run(work);
        (void)pthread_mutex_lock(&c->mutex);
        push(&c->ended, work);
        (void)pthread_mutex_unlock(&c->mutex);
        c->tell(c->user);
    }
    return NULL;
}

status crew_open(crew **out, int n_threads, void (*tell)(void *user), void *user, err *e) {
    CHECK(n_threads >= 1 && n_threads <= CREW_THREADS_MAX, "a crew has 1 to CREW_THREADS_MAX threads");
    *out = NULL;
    crew *c = calloc(1, sizeof *c);
    if (!c) return fail(e, STATUS_NO_MEMORY, "a crew of %d threads", n_threads);
    CHECK(pthread_mutex_init(&c->mutex, NULL) == 0, "a mutex can be made");
    CHECK(pthread_cond_init(&c->has_work, NULL) == 0, "a condition can be made");
    c->todo.last = &c->todo.first;
    c->ended.last = &c->ended.first;
    c->tell = tell;
    c->user = user;
    for (; c->n_threads < n_threads; c->n_threads++) {
        if (pthread_create(&c->threads[c->n_threads], NULL, crew_main, c) == 0) continue;
        status st = fail(e, STATUS_NO_MEMORY, "starting thread %d of a crew of %d", c->n_threads + 1, n_threads);
        crew_close(&c);
        return st;
    }
    *out = c;
    return STATUS_OK;
}

void crew_close(crew **out) {
    crew *c = *out;
    if (!c) return;
    (void)pthread_mutex_lock(&c->mutex);
    c->is_closing = true;
    (void)pthread_cond_broadcast(&c->has_work);
    (void)pthread_mutex_unlock(&c->mutex);
    for (int i = 0; i < c->n_threads; i++) CHECK(pthread_join(c->threads[i], NULL) == 0, "a thread of a crew ends");
    (void)pthread_cond_destroy(&c->has_work);
    (void)pthread_mutex_destroy(&c->mutex);
    free(c);
    *out = NULL;
}

void crew_give(crew *c, crew_work *work) {
    (void)pthread_mutex_lock(&c->mutex);
    push(&c->todo, work);
    (void)pthread_cond_signal(&c->has_work);
    (void)pthread_mutex_unlock(&c->mutex);
}

void crew_collect(crew *c) {
    for (;;) {
        (void)pthread_mutex_lock(&c->mutex);
        crew_work *work = pop(&c->ended);
        (void)pthread_mutex_unlock(&c->mutex);
        if (!work) return;
        work->done(work);
    }
}
