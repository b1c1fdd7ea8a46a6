/* One page of shared memory outlives every child: breadcrumbs of the present one, reports of former
 * ones. The parent does nothing but wait, so that nothing it could die of depends on the work. */
#include "worker/supervisor.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

#define HEALTHY_US (30 * CLOCK_SECOND_US) /* a child that lived this long starts the back-off anew */
#define EXIT_FAILED_TO_START 3

typedef struct {
    _Atomic(int) state; /* 0 free, 1 being written, 2 set */
    unsigned char item_id[SUPERVISOR_ITEM_ID_BYTES];
    uint32_t attempt;
} breadcrumb;

struct supervisor_child {
    _Atomic(uint64_t) incarnation;
    breadcrumb crumbs[SUPERVISOR_BREADCRUMBS];
    size_t n_reports;
    supervisor_report reports[SUPERVISOR_BREADCRUMBS];
};

void supervisor_set_incarnation(supervisor_child *c, uint64_t incarnation) {
    atomic_store(&c->incarnation, incarnation);
}

int supervisor_breadcrumb_set(supervisor_child *c, const unsigned char *item_id, uint32_t attempt) {
    for (int i = 0; i < SUPERVISOR_BREADCRUMBS; i++) {
        int is_free = 0;
        if (!atomic_compare_exchange_strong(&c->crumbs[i].state, &is_free, 1)) continue;
        memcpy(c->crumbs[i].item_id, item_id, SUPERVISOR_ITEM_ID_BYTES);
        c->crumbs[i].attempt = attempt;
        atomic_store(&c->crumbs[i].state, 2);
        return i;
    }
    return -1;
}

void supervisor_breadcrumb_clear(supervisor_child *c, int slot) {
    if (slot >= 0) atomic_store(&c->crumbs[slot].state, 0);
}

size_t supervisor_n_reports(const supervisor_child *c) { return c->n_reports; }

supervisor_report supervisor_get_report(const supervisor_child *c, size_t idx) {
    return c->reports[idx];
}

void supervisor_report_done(supervisor_child *c, const unsigned char *item_id, uint64_t incarnation) {
    size_t kept = 0;
    for (size_t i = 0; i < c->n_reports; i++) {
        const supervisor_report *r = &c->reports[i];
        bool is_it = r->incarnation == incarnation &&
                     memcmp(r->item_id, item_id, SUPERVISOR_ITEM_ID_BYTES) == 0;
        if (!is_it) c->reports[kept++] = *r;
    }
    c->n_reports = kept;
}

static void turn_into_reports(supervisor_child *c, int signo) {
    for (int i = 0; i < SUPERVISOR_BREADCRUMBS; i++) {
        breadcrumb *b = &c->crumbs[i];
        if (atomic_load(&b->state) == 2 && c->n_reports < SUPERVISOR_BREADCRUMBS) {
            supervisor_report *r = &c->reports[c->n_reports++];
            *r = (supervisor_report){.attempt = b->attempt,
                                     .incarnation = atomic_load(&c->incarnation),
                                     .signal = signo};
            memcpy(r->item_id, b->item_id, sizeof r->item_id);
        }
        atomic_store(&b->state, 0);
    }
}

/* The one thing a signal handler has to know; set before the handler is. */
static volatile sig_atomic_t child_pid;
static volatile sig_atomic_t was_told_to_stop;

static void pass_on(int signo) {
    was_told_to_stop = 1;
    if (child_pid > 0) (void)kill((pid_t)child_pid, signo);
}

static int wait_for(pid_t pid) {
    int wait_status;
    while (waitpid(pid, &wait_status, 0) < 0)
        if (errno != EINTR) return 0;
    return wait_status;
}

static void back_off(int n_deaths) {
    static const int wait_ms[] = {0, 100, 500, 1000, 2000, 5000};
    int last = (int)(sizeof wait_ms / sizeof *wait_ms) - 1;
    int ms = wait_ms[n_deaths < last ? n_deaths : last];
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
    (void)nanosleep(&t, NULL); /* a signal ends it early, which is wanted */
}

static pid_t start_child(supervisor_child *c, supervisor_child_main *child_main, void *arg) {
    pid_t parent = getpid();
    (void)fflush(NULL);
    pid_t pid = fork();
    if (pid != 0) return pid;
    (void)signal(SIGTERM, SIG_DFL);
    (void)signal(SIGINT, SIG_DFL);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(EXIT_FAILED_TO_START); /* it died before the line above */
    int code = child_main(c, arg);
    (void)fflush(NULL);
    _exit(code);
}

int supervisor_run(supervisor_child_main *child_main, void *arg) {
    supervisor_child *c =
        mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (c == MAP_FAILED) return EXIT_FAILED_TO_START;
    struct sigaction action = {.sa_handler = pass_on};
    (void)sigaction(SIGTERM, &action, NULL);
    (void)sigaction(SIGINT, &action, NULL);

    for (int n_deaths = 0;;) {
        int64_t started_us = clock_now_us();
        pid_t pid = start_child(c, child_main, arg);
        if (pid < 0) return EXIT_FAILED_TO_START;
        child_pid = pid;
        if (was_told_to_stop) (void)kill(pid, SIGTERM); /* the signal came while there was no child */
        int wait_status = wait_for(pid);
        child_pid = 0;
        if (WIFEXITED(wait_status)) return WEXITSTATUS(wait_status);
        int signo = WTERMSIG(wait_status);
        turn_into_reports(c, signo);
        log_error("engine_died", "signal=%d items=%zu", signo, c->n_reports);
        if (was_told_to_stop) return 128 + signo;
        if (clock_now_us() - started_us > HEALTHY_US) n_deaths = 0;
        back_off(n_deaths++);
    }
}
