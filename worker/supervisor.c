/* Shared memory outlives every child: breadcrumbs of the present one, reports of former ones. The parent
 * does nothing but wait, so that nothing it could die of depends on the work; what a dying child left in
 * the shared memory is looked at with suspicion.
 *
 * The parent has no signal handlers. SIGTERM, SIGINT and SIGCHLD are blocked and taken one by one with
 * sigwaitinfo, so that none can slip through between looking and waiting; the child gets back the mask
 * the program had. A child that is told to stop in the instant after fork has the signal pending and
 * dies of it or finds it when it looks. */
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

#include "base/check.h"
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
    CHECK(idx < c->n_reports && idx < SUPERVISOR_BREADCRUMBS, "a report that is asked for is there");
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
    if (c->n_reports > SUPERVISOR_BREADCRUMBS) c->n_reports = 0; /* overwritten by whatever it died of */
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

static int64_t back_off_ms(int n_deaths) {
    static const int wait_ms[] = {0, 100, 500, 1000, 2000, 5000};
    int last = (int)(sizeof wait_ms / sizeof *wait_ms) - 1;
    return wait_ms[n_deaths < last ? n_deaths : last];
}

/* Until the child has ended. SIGTERM and SIGINT are passed on and remembered in told. */
static int watch(pid_t pid, const sigset_t *watched, int *told) {
    for (;;) {
        int wait_status = 0;
        pid_t ended = waitpid(pid, &wait_status, WNOHANG);
        if (ended == pid) return wait_status;
        int signo = sigwaitinfo(watched, NULL);
        if (signo != SIGTERM && signo != SIGINT) continue; /* SIGCHLD, or EINTR after a stop */
        *told = signo;
        (void)kill(pid, signo);
    }
}

/* Whether the whole time passed; false: told to stop in between. */
static bool pause_for(int64_t ms, const sigset_t *watched, int *told) {
    int64_t until_us = clock_now_us() + ms * CLOCK_MS_US;
    for (;;) {
        int64_t left_us = until_us - clock_now_us();
        if (left_us < 0) left_us = 0;
        struct timespec left = {.tv_sec = left_us / CLOCK_SECOND_US,
                                .tv_nsec = left_us % CLOCK_SECOND_US * 1000};
        int signo = sigtimedwait(watched, NULL, &left);
        if (signo == SIGTERM || signo == SIGINT) {
            *told = signo;
            return false;
        }
        if (signo < 0 && errno == EAGAIN) return true;
    }
}

static pid_t start_child(supervisor_child *c, supervisor_child_main *child_main, void *arg,
                         const sigset_t *mask) {
    pid_t parent = getpid();
    (void)fflush(NULL);
    pid_t pid = fork();
    if (pid != 0) return pid;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(EXIT_FAILED_TO_START); /* it died before the line above */
    (void)sigprocmask(SIG_SETMASK, mask, NULL);
    int code = child_main(c, arg);
    (void)fflush(NULL);
    _exit(code);
}

/* Starts children until one ends by itself or we are told to stop. */
static int run(supervisor_child *c, supervisor_child_main *child_main, void *arg,
               const sigset_t *watched, const sigset_t *mask) {
    int told = 0;
    for (int n_deaths = 0;;) {
        int64_t started_us = clock_now_us();
        pid_t pid = start_child(c, child_main, arg, mask);
        if (pid < 0) {
            log_error("engine_not_started", "errno=%d", errno);
            return EXIT_FAILED_TO_START;
        }
        int wait_status = watch(pid, watched, &told);
        if (WIFEXITED(wait_status)) return WEXITSTATUS(wait_status);
        int signo = WTERMSIG(wait_status);
        turn_into_reports(c, signo);
        log_error("engine_died", "signal=%d items=%zu", signo, c->n_reports);
        if (clock_now_us() - started_us > HEALTHY_US) n_deaths = 0;
        if (told || !pause_for(back_off_ms(n_deaths++), watched, &told)) return 128 + told;
    }
}

int supervisor_run(supervisor_child_main *child_main, void *arg) {
    supervisor_child *c =
        mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (c == MAP_FAILED) return EXIT_FAILED_TO_START;
    sigset_t watched, mask;
    (void)sigemptyset(&watched);
    (void)sigaddset(&watched, SIGTERM);
    (void)sigaddset(&watched, SIGINT);
    (void)sigaddset(&watched, SIGCHLD);
    (void)signal(SIGCHLD, SIG_DFL); /* ignored, as some starters leave it, it would eat the status */
    (void)sigprocmask(SIG_BLOCK, &watched, &mask);
    int result = run(c, child_main, arg, &watched, &mask);
    (void)sigprocmask(SIG_SETMASK, &mask, NULL);
    (void)munmap(c, sizeof *c);
    return result;
}
