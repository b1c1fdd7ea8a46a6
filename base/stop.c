#include "base/stop.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

static _Atomic(int) first_signal;
static int pipe_fds[2] = {-1, -1};

void stop_request(int signo) {
    int none = 0;
    if (!atomic_compare_exchange_strong(&first_signal, &none, signo)) return;
    if (pipe_fds[1] >= 0) {
        ssize_t n = write(pipe_fds[1], "s", 1);
        (void)n; /* the flag alone is enough if the pipe is gone */
    }
}

static void on_signal(int signo) {
    int saved_errno = errno;
    stop_request(signo);
    errno = saved_errno;
}

status stop_open(err *e) {
    if (pipe_fds[0] < 0) {
        if (pipe(pipe_fds) < 0) return fail_errno(e, STATUS_IO, "stop pipe");
        for (int i = 0; i < 2; i++) {
            (void)fcntl(pipe_fds[i], F_SETFD, FD_CLOEXEC);
            (void)fcntl(pipe_fds[i], F_SETFL, O_NONBLOCK);
        }
    }
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    (void)sigemptyset(&action.sa_mask);
    if (sigaction(SIGTERM, &action, NULL) < 0 || sigaction(SIGINT, &action, NULL) < 0)
        return fail_errno(e, STATUS_IO, "installing signal handlers");
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    if (sigaction(SIGPIPE, &ignore, NULL) < 0) return fail_errno(e, STATUS_IO, "ignoring SIGPIPE");
    return STATUS_OK;
}

int stop_fd(void) { return pipe_fds[0]; }
bool stop_requested(void) { return atomic_load(&first_signal) != 0; }
status stop_check(err *e) { return stop_requested() ? fail(e, STATUS_INTERRUPTED, "interrupted") : STATUS_OK; }
int stop_signal(void) { return atomic_load(&first_signal); }
