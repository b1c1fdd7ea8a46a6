/* fork and exec rather than posix_spawn, because only code in the child can ask the kernel to be ended with
 * its parent. A failed exec is reported through a pipe that a successful one closes. */
#include "cli/child_process.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

/* In the child; only async-signal-safe calls. */
static void become(const char *const argv[], bool is_silent, pid_t parent, int report_fd) {
    (void)setpgid(0, 0);
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(127); /* it ended before the kernel was asked */
    for (int signo = 1; signo < 32; signo++) (void)signal(signo, SIG_DFL);
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    int nothing = open("/dev/null", O_RDWR);
    (void)dup2(nothing, STDIN_FILENO);
    (void)dup2(is_silent ? nothing : STDERR_FILENO, STDOUT_FILENO);
    (void)execvp(argv[0], (char *const *)(uintptr_t)argv);
    int reason = errno;
    ssize_t n = write(report_fd, &reason, sizeof reason);
    _exit(n == sizeof reason ? 127 : 126);
}

status child_process_start(child_process *p, const char *const argv[], bool is_silent, err *e) {
    const char *slash = strrchr(argv[0], '/');
    *p = (child_process){.name = slash ? slash + 1 : argv[0]};
    int report[2];
    if (pipe(report) != 0) return fail_errno(e, STATUS_IO, "starting %s", p->name);
    (void)fcntl(report[0], F_SETFD, FD_CLOEXEC);
    (void)fcntl(report[1], F_SETFD, FD_CLOEXEC);
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) become(argv, is_silent, parent, report[1]);
    int fork_errno = errno;
    (void)close(report[1]);
    int reason = 0;
    ssize_t n = 0;
    if (pid > 0)
        while ((n = read(report[0], &reason, sizeof reason)) < 0 && errno == EINTR) {}
    (void)close(report[0]);
    if (pid < 0) {
        errno = fork_errno;
        return fail_errno(e, STATUS_IO, "starting %s", p->name);
    }
    if (n > 0) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {}
        errno = reason;
        return fail_errno(e, STATUS_NOT_FOUND, "%s", argv[0]);
    }
    p->pid = pid;
    return STATUS_OK;
}

bool child_process_has_ended(child_process *p) {
    if (p->pid == 0) return true;
    pid_t ended = waitpid(p->pid, &p->wait_status, WNOHANG);
    if (ended == p->pid || (ended < 0 && errno == ECHILD)) p->pid = 0;
    return p->pid == 0;
}

void child_process_ask_to_stop(const child_process *p) {
    if (p->pid > 0) (void)kill(p->pid, SIGTERM);
}

void child_process_stop(child_process *p, int timeout_ms) {
    child_process_ask_to_stop(p);
    int64_t end_us = clock_now_us() + timeout_ms * CLOCK_MS_US;
    while (!child_process_has_ended(p) && clock_now_us() < end_us) (void)poll(NULL, 0, 10);
    if (p->pid == 0) return;
    (void)kill(p->pid, SIGKILL);
    while (waitpid(p->pid, &p->wait_status, 0) < 0 && errno == EINTR) {}
    p->pid = 0;
}

const char *child_process_end_text(char out[CHILD_PROCESS_TEXT_BYTES], const child_process *p) {
    if (WIFSIGNALED(p->wait_status))
        (void)snprintf(out, CHILD_PROCESS_TEXT_BYTES, "signal %d", WTERMSIG(p->wait_status));
    else
        (void)snprintf(out, CHILD_PROCESS_TEXT_BYTES, "exit status %d", WEXITSTATUS(p->wait_status));
    return out;
}

bool child_process_exists(const char *program) {
    if (strchr(program, '/')) return access(program, X_OK) == 0;
    const char *path = getenv("PATH");
    for (const char *at = path ? path : "/usr/bin:/bin"; *at;) {
        size_t len = strcspn(at, ":");
        char file[PATH_MAX];
        int n = snprintf(file, sizeof file, "%.*s/%s", (int)len, at, program);
        if (n > 0 && n < (int)sizeof file && access(file, X_OK) == 0) return true;
        at += len + (at[len] == ':');
    }
    return false;
}
