/* The supervisor and its workers.
 *
 * The supervisor sleeps until a worker dies, or the caller says "kill", or the caller is gone. It
 * does no decoding, keeps no state but the workers' pids and sockets, and is the only one who may wait for
 * them, so a pid it kills is always still its child. A dead worker is reported with its wait status and
 * the request it had taken, then replaced; one that dies before it is ready is reported and not
 * replaced, or a broken machine would fork for ever. Who is ready is known from the worker's own word, said
 * before it had seen an image, and not from memory that an image could make it write.
 *
 * A worker serves images until it has used RECYCLE_CPU_S of processor time, then leaves: RLIMIT_CPU
 * counts over a whole life, and this keeps room for one more image under it. */
#include "vision_node/image_worker.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "vision_node/image_preprocess.h"
#include "vision_node/image_sandbox.h"

#define RECYCLE_CPU_S 60
/* Beside the three bytes a pixel of the picture: a second picture while turning, coefficients of a
 * progressive JPEG (8 a pixel), rows of the resize. */
#define MEMORY_BYTES_PER_PIXEL 16
#define MEMORY_FIXED_BYTES     (UINT64_C(256) << 20)
#define EXIT_NOT_CONFINED      3
#define EXIT_CALLER_GONE       4

static void die_with_parent(pid_t parent) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) _exit(EXIT_CALLER_GONE);
}

static status serve(const image_worker_slot *slot, const image_decoder_limits *limits,
                    const image_request *request, image_info *info, err *e) {
    bytes encoded = {slot->input, (size_t)request->encoded_bytes};
    image_rgb image = {0};
    if (limits->before_decode) limits->before_decode(encoded);
    status st = image_decode(&image, info, encoded, &limits->image, e);
    if (st == STATUS_OK && request->apply_exif) st = image_rgb_orient(&image, info->orientation, e);
    if (st == STATUS_OK) st = image_preprocess(slot->output, &image, &request->config, e);
    image_rgb_deinit(&image);
    return st;
}

static bool send_answer(int fd, const image_answer *answer) {
    return send(fd, answer, sizeof *answer, MSG_NOSIGNAL) == (ssize_t)sizeof *answer;
}

/* A crash handler of the caller's would run in here otherwise, and break the sandbox's rules. A sanitizer's
 * is welcome. */
static void reset_fatal_signals(void) {
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS};
    for (size_t i = 0; image_sandbox_is_possible() && i < sizeof fatal / sizeof *fatal; i++)
        (void)signal(fatal[i], SIG_DFL);
}

static _Noreturn void worker_main(const image_worker_slot *slots, int n_slots, int own, int ready_fd,
                                  const image_decoder_limits *limits, pid_t supervisor) {
    const image_worker_slot *slot = &slots[own];
    (void)prctl(PR_SET_NAME, "mipha-decode");
    die_with_parent(supervisor);
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    reset_fatal_signals();
    for (int i = 0; i < n_slots; i++)
        if (i != own) (void)munmap(slots[i].shared, slots[i].region_bytes);
    int keep[2] = {slot->work_fd, ready_fd};
    bool is_confined = !limits->without_sandbox && image_sandbox_is_possible();
    if (!image_sandbox_close_files(keep, 2, !is_confined)) _exit(EXIT_NOT_CONFINED);
    int cpu_s = RECYCLE_CPU_S + limits->wall_ms / 1000 + 2;
    if (is_confined &&
        !image_sandbox_enter(MEMORY_FIXED_BYTES + MEMORY_BYTES_PER_PIXEL * limits->image.pixels_max, cpu_s))
        _exit(EXIT_NOT_CONFINED);

    image_answer answer = {.seq = IMAGE_WORKER_READY_SEQ};
    if (send(ready_fd, "", 1, MSG_NOSIGNAL) != 1) _exit(EXIT_CALLER_GONE);
    if (!send_answer(slot->work_fd, &answer)) _exit(EXIT_CALLER_GONE);
    while (clock() < (clock_t)RECYCLE_CPU_S * CLOCKS_PER_SEC) {
        image_request request;
        ssize_t n = recv(slot->work_fd, &request, sizeof request, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n != (ssize_t)sizeof request) _exit(EXIT_CALLER_GONE);
        atomic_store(&slot->shared->taken_seq, request.seq);
        err e = {0};
        answer = (image_answer){.seq = request.seq};
        answer.code = (int32_t)serve(slot, limits, &request, &answer.info, &e);
        memcpy(answer.text, e.text, sizeof answer.text);
        if (!send_answer(slot->work_fd, &answer)) _exit(EXIT_CALLER_GONE);
    }
    _exit(0);
}

typedef struct {
    pid_t pid;    /* 0: none */
    int ready_fd; /* one byte comes once it is confined */
} child;

typedef struct {
    image_worker_slot *slots;
    int n_slots;
    const image_decoder_limits *limits;
    child workers[IMAGE_DECODER_WORKERS_MAX];
} supervisor;

static void report_death(const image_worker_slot *slot, image_death_kind kind, int wait_status) {
    image_death death = {
        .kind = kind, .seq = atomic_load(&slot->shared->taken_seq), .wait_status = wait_status};
    (void)send(slot->control_fd, &death, sizeof death, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void start_worker(supervisor *s, int i) {
    child *c = &s->workers[i];
    int ready[2];
    pid_t self = getpid();
    c->pid = 0;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ready) == 0) {
        c->ready_fd = ready[0];
        c->pid = fork();
        if (c->pid == 0) worker_main(s->slots, s->n_slots, i, ready[1], s->limits, self);
        (void)close(ready[1]);
        if (c->pid < 0) (void)close(ready[0]);
    }
    if (c->pid > 0) return;
    c->pid = 0;
    report_death(&s->slots[i], IMAGE_DEATH_LAST, 0);
}

/* The worker of slot i was waited for. */
static void replace(supervisor *s, int i, image_death_kind kind, int wait_status) {
    child *c = &s->workers[i];
    char byte = 0;
    bool was_ready = recv(c->ready_fd, &byte, 1, MSG_DONTWAIT) == 1;
    (void)close(c->ready_fd);
    c->pid = 0;
    report_death(&s->slots[i], was_ready ? kind : IMAGE_DEATH_LAST, wait_status);
    if (was_ready) start_worker(s, i);
}

static void replace_dead(supervisor *s) {
    int wait_status = 0;
    for (pid_t pid; (pid = waitpid(-1, &wait_status, WNOHANG)) > 0;)
        for (int i = 0; i < s->n_slots; i++)
            if (s->workers[i].pid == pid) {
                replace(s, i, IMAGE_DEATH_OWN, wait_status);
                break;
            }
}

/* False when the caller is gone. */
static bool obey(supervisor *s, int i) {
    char command = 0;
    int wait_status = 0;
    child *c = &s->workers[i];
    ssize_t n = recv(s->slots[i].control_fd, &command, 1, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n <= 0) return false;
    if (command != IMAGE_WORKER_KILL || !c->pid) return true;
    (void)kill(c->pid, SIGKILL);
    while (waitpid(c->pid, &wait_status, 0) < 0 && errno == EINTR) continue;
    replace(s, i, IMAGE_DEATH_ORDERED, wait_status);
    return true;
}

static void ignore_terminal_signals(void) {
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    for (size_t i = 0; i < sizeof ignored / sizeof ignored[0]; i++)
        (void)signal(ignored[i], SIG_IGN);
    (void)signal(SIGCHLD, SIG_DFL);
}

_Noreturn void image_supervisor_main(image_worker_slot *slots, int n_slots,
                                     const image_decoder_limits *limits, pid_t caller) {
    (void)prctl(PR_SET_NAME, "mipha-decoders");
    die_with_parent(caller);
    ignore_terminal_signals();
    supervisor s = {.slots = slots, .n_slots = n_slots, .limits = limits};
    int keep[2 * IMAGE_DECODER_WORKERS_MAX];
    for (int i = 0; i < n_slots; i++) {
        keep[2 * i] = slots[i].work_fd;
        keep[2 * i + 1] = slots[i].control_fd;
    }
    bool is_confined = !limits->without_sandbox && image_sandbox_is_possible();
    if (!image_sandbox_close_files(keep, 2 * n_slots, !is_confined)) _exit(EXIT_NOT_CONFINED);
    sigset_t mask;
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, SIGCHLD);
    (void)sigprocmask(SIG_SETMASK, &mask, NULL);
    struct pollfd watched[1 + IMAGE_DECODER_WORKERS_MAX];
    watched[0] = (struct pollfd){.fd = signalfd(-1, &mask, SFD_NONBLOCK), .events = POLLIN};
    if (watched[0].fd < 0) _exit(EXIT_NOT_CONFINED);
    for (int i = 0; i < n_slots; i++) {
        watched[1 + i] = (struct pollfd){.fd = slots[i].control_fd, .events = POLLIN};
        start_worker(&s, i);
    }
    for (bool has_caller = true; has_caller;) {
        if (poll(watched, (nfds_t)n_slots + 1, -1) < 0 && errno != EINTR) break;
        struct signalfd_siginfo info;
        while (read(watched[0].fd, &info, sizeof info) == (ssize_t)sizeof info) continue;
        replace_dead(&s);
        for (int i = 0; i < n_slots; i++)
            if (watched[1 + i].revents && !obey(&s, i)) has_caller = false;
    }
    for (int i = 0; i < n_slots; i++)
        if (s.workers[i].pid) (void)kill(s.workers[i].pid, SIGKILL);
    while (waitpid(-1, NULL, 0) > 0) continue;
    _exit(0);
}
