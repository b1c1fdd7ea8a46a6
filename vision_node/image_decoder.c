/* The caller's side: free slots, one request at a time in each, and a deadline.
 *
 * Every request has a number. Answers and deaths that carry another number belong to a request that
 * was given up and are dropped, so neither a late answer nor an old death can be taken for a new
 * one. What a worker says is checked like any outside bytes: the status must be one a decoder may
 * return, the text is terminated here, and sizes come from the caller's own request.
 *
 * After a timeout the slot waits until the supervisor has reported the death, because only then is
 * the shared region ours again. */
#include "vision_node/image_decoder.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/cores.h"
#include "vision_node/image_worker.h"

#define PAGE_BYTES       65536             /* the largest page of any machine we run on */
#define START_MS         10000             /* for all workers to say they are ready */
#define KILL_MS          5000              /* for the supervisor to report a death we asked for */
#define KEEP_INPUT_BYTES ((size_t)1 << 20) /* pages of larger files go back to the system */
#define WALL_MS_MAX      600000
#define DEFAULT_WORKERS_MAX 16 /* more when somebody says so */

typedef struct {
    image_worker_slot child; /* its descriptors are -1 once the children have them */
    int work_fd, control_fd;
    uint64_t seq; /* of the last request */
    bool is_busy; /* guarded by the decoder's mutex, as is has_failed */
    bool has_failed;
} decoder_slot;

struct image_decoder {
    pthread_mutex_t mutex;
    pthread_cond_t is_free;
    decoder_slot slots[IMAGE_DECODER_WORKERS_MAX];
    int n_slots;
    pid_t supervisor;
    _Atomic uint64_t n_replaced;
    image_decoder_limits limits; /* defaults filled in */
};

static void close_fd(int *fd) {
    if (*fd >= 0) (void)close(*fd);
    *fd = -1;
}

static size_t page_up(size_t n) { return (n + PAGE_BYTES - 1) & ~(size_t)(PAGE_BYTES - 1); }

static status slot_init(decoder_slot *slot, const image_decoder_limits *limits, err *e) {
    int work[2], control[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, work) != 0)
        return fail_errno(e, STATUS_UNAVAILABLE, "image decoder: opening a socket pair");
    slot->work_fd = work[0];
    slot->child.work_fd = work[1];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) != 0)
        return fail_errno(e, STATUS_UNAVAILABLE, "image decoder: opening a socket pair");
    slot->control_fd = control[0];
    slot->child.control_fd = control[1];
    size_t input_bytes = page_up((size_t)limits->image.encoded_bytes_max);
    size_t side = (size_t)limits->size_max;
    size_t region_bytes = PAGE_BYTES + input_bytes + page_up(3 * side * side);
    unsigned char *region = mmap(NULL, region_bytes, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED)
        return fail_errno(e, STATUS_NO_MEMORY, "image decoder: %zu shared bytes", region_bytes);
    slot->child.shared = (image_shared *)(void *)region;
    slot->child.input = region + PAGE_BYTES;
    slot->child.output = region + PAGE_BYTES + input_bytes;
    slot->child.region_bytes = region_bytes;
    return STATUS_OK;
}

static void slot_deinit(decoder_slot *slot) {
    close_fd(&slot->work_fd);
    close_fd(&slot->control_fd);
    close_fd(&slot->child.work_fd);
    close_fd(&slot->child.control_fd);
    if (slot->child.shared) (void)munmap(slot->child.shared, slot->child.region_bytes);
    slot->child.shared = NULL;
}

typedef enum { HEARD_ANSWER, HEARD_DEATH, HEARD_NOTHING, HEARD_END } heard;

static heard note_death(image_decoder *d, ssize_t n_received, const image_death *death) {
    if (n_received == 0) return HEARD_END; /* the supervisor is gone */
    if (n_received != (ssize_t)sizeof *death) return HEARD_NOTHING;
    if (death->kind == IMAGE_DEATH_LAST) return HEARD_END;
    atomic_fetch_add(&d->n_replaced, 1);
    return HEARD_DEATH;
}

/* Waits until something about request seq is heard, or the deadline. A death that was reported
 * together with an answer loses: the answer was sent first. */
static heard listen_for(image_decoder *d, decoder_slot *slot, uint64_t seq, int64_t deadline_us,
                        image_answer *answer, image_death *death) {
    for (;;) {
        int64_t left_us = deadline_us - clock_now_us();
        struct pollfd fds[2] = {{.fd = slot->work_fd, .events = POLLIN},
                                {.fd = slot->control_fd, .events = POLLIN}};
        int n_ready = poll(fds, 2, left_us > 0 ? (int)((left_us + 999) / 1000) : 0);
        if (n_ready == 0) return HEARD_NOTHING;
        if (n_ready < 0) continue; /* only EINTR can happen here */
        ssize_t n = recv(slot->work_fd, answer, sizeof *answer, MSG_DONTWAIT);
        if (n == (ssize_t)sizeof *answer && answer->seq == seq) return HEARD_ANSWER;
        if (n > 0) continue;
        heard what = note_death(d, recv(slot->control_fd, death, sizeof *death, MSG_DONTWAIT), death);
        if (what == HEARD_END || (what == HEARD_DEATH && death->seq == seq)) return what;
    }
}

/* Has the worker of a slot killed, and waits until it is dead. False: the slot is of no more use. */
static bool kill_worker(image_decoder *d, decoder_slot *slot) {
    const char kill_it = IMAGE_WORKER_KILL;
    int64_t deadline_us = clock_now_us() + KILL_MS * CLOCK_MS_US, left_us;
    if (send(slot->control_fd, &kill_it, 1, MSG_NOSIGNAL) != 1) return false;
    while ((left_us = deadline_us - clock_now_us()) > 0) {
        image_death death;
        struct pollfd control = {.fd = slot->control_fd, .events = POLLIN};
        if (poll(&control, 1, (int)((left_us + 999) / 1000)) <= 0) continue;
        heard what = note_death(d, recv(slot->control_fd, &death, sizeof death, MSG_DONTWAIT), &death);
        if (what == HEARD_END) return false;
        if (what == HEARD_DEATH && death.kind == IMAGE_DEATH_ORDERED) return true;
    }
    return false;
}

static status wait_until_ready(image_decoder *d, err *e) {
    int64_t deadline_us = clock_now_us() + START_MS * CLOCK_MS_US;
    for (int i = 0; i < d->n_slots; i++) {
        image_answer answer;
        image_death death = {0};
        if (listen_for(d, &d->slots[i], IMAGE_WORKER_READY_SEQ, deadline_us, &answer, &death) ==
            HEARD_ANSWER)
            continue;
        return fail(e, STATUS_UNAVAILABLE,
                    "image decoder: worker %d of %d did not start (wait status 0x%x)", i + 1,
                    d->n_slots, (unsigned)death.wait_status);
    }
    return STATUS_OK;
}

static status fork_supervisor(image_decoder *d, err *e) {
    pid_t caller = getpid();
    d->supervisor = fork();
    if (d->supervisor < 0) {
        d->supervisor = 0;
        return fail_errno(e, STATUS_UNAVAILABLE, "image decoder: fork");
    }
    if (d->supervisor == 0) {
        image_worker_slot slots[IMAGE_DECODER_WORKERS_MAX];
        for (int i = 0; i < d->n_slots; i++) slots[i] = d->slots[i].child;
        image_supervisor_main(slots, d->n_slots, &d->limits, caller);
    }
    for (int i = 0; i < d->n_slots; i++) {
        close_fd(&d->slots[i].child.work_fd);
        close_fd(&d->slots[i].child.control_fd);
    }
    return STATUS_OK;
}

int image_decoder_default_workers(void) {
    int n = cores_available() - 1;
    return n < 1 ? 1 : n > DEFAULT_WORKERS_MAX ? DEFAULT_WORKERS_MAX : n;
}

status image_decoder_open(image_decoder **out, int n_workers, const image_decoder_limits *limits,
                          err *e) {
    *out = NULL;
    image_decoder_limits l = *limits;
    if (l.image.encoded_bytes_max == 0) l.image.encoded_bytes_max = IMAGE_ENCODED_BYTES_MAX;
    if (l.image.pixels_max == 0) l.image.pixels_max = IMAGE_PIXELS_MAX;
    if (l.size_max == 0) l.size_max = IMAGE_DECODER_SIZE_MAX;
    if (l.wall_ms == 0) l.wall_ms = IMAGE_DECODER_WALL_MS;
    if (n_workers < 1 || n_workers > IMAGE_DECODER_WORKERS_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "image decoder: %d workers, need 1..%d", n_workers,
                    IMAGE_DECODER_WORKERS_MAX);
    if (l.size_max < 1 || l.size_max > 4096 || l.wall_ms < 1 || l.wall_ms > WALL_MS_MAX ||
        l.image.encoded_bytes_max > UINT64_C(1) << 32 || l.image.pixels_max > UINT64_C(1) << 32)
        return fail(e, STATUS_BAD_ARGUMENT,
                    "image decoder: size %d, %d ms, %" PRIu64 " bytes or %" PRIu64
                    " pixels is out of range",
                    l.size_max, l.wall_ms, l.image.encoded_bytes_max, l.image.pixels_max);
    image_decoder *d = calloc(1, sizeof *d);
    if (!d) return fail(e, STATUS_NO_MEMORY, "image decoder: %zu bytes", sizeof *d);
    d->limits = l;
    d->n_slots = n_workers;
    (void)pthread_mutex_init(&d->mutex, NULL);
    (void)pthread_cond_init(&d->is_free, NULL);
    for (int i = 0; i < n_workers; i++) {
        d->slots[i].work_fd = d->slots[i].control_fd = -1;
        d->slots[i].child.work_fd = d->slots[i].child.control_fd = -1;
    }
    status st = STATUS_OK;
    for (int i = 0; st == STATUS_OK && i < n_workers; i++) st = slot_init(&d->slots[i], &l, e);
    if (st == STATUS_OK) st = fork_supervisor(d, e);
    if (st == STATUS_OK) st = wait_until_ready(d, e);
    if (st == STATUS_OK) *out = d;
    else image_decoder_close(&d);
    return st;
}

void image_decoder_close(image_decoder **out) {
    image_decoder *d = *out;
    if (!d) return;
    for (int i = 0; i < d->n_slots; i++) {
        CHECK(!d->slots[i].is_busy, "no image is being decoded while the decoder closes");
        slot_deinit(&d->slots[i]);
    }
    while (d->supervisor && waitpid(d->supervisor, NULL, 0) < 0 && errno == EINTR) continue;
    (void)pthread_cond_destroy(&d->is_free);
    (void)pthread_mutex_destroy(&d->mutex);
    free(d);
    *out = NULL;
}

int image_decoder_n_workers(const image_decoder *d) { return d->n_slots; }

uint64_t image_decoder_n_replaced(const image_decoder *d) { return atomic_load(&d->n_replaced); }

/* NULL when every worker is beyond repair. */
static decoder_slot *take_slot(image_decoder *d) {
    decoder_slot *found = NULL;
    (void)pthread_mutex_lock(&d->mutex);
    for (bool is_any_alive = true; !found && is_any_alive;) {
        is_any_alive = false;
        for (int i = 0; i < d->n_slots && !found; i++) {
            if (d->slots[i].has_failed) continue;
            is_any_alive = true;
            if (!d->slots[i].is_busy) found = &d->slots[i];
        }
        if (!found && is_any_alive) (void)pthread_cond_wait(&d->is_free, &d->mutex);
    }
    if (found) found->is_busy = true;
    (void)pthread_mutex_unlock(&d->mutex);
    return found;
}

static void give_slot_back(image_decoder *d, decoder_slot *slot, bool has_failed) {
    (void)pthread_mutex_lock(&d->mutex);
    slot->is_busy = false;
    slot->has_failed = has_failed;
    (void)(has_failed ? pthread_cond_broadcast(&d->is_free) : pthread_cond_signal(&d->is_free));
    (void)pthread_mutex_unlock(&d->mutex);
}

static const char *signal_meaning(int signo) {
    switch (signo) {
    case SIGSEGV: return "segmentation fault";
    case SIGBUS: return "bus error";
    case SIGABRT: return "abort";
    case SIGFPE: return "arithmetic error";
    case SIGILL: return "illegal instruction";
    case SIGSYS: return "forbidden system call";
    case SIGXCPU: return "processor time used up";
    case SIGKILL: return "killed";
    default: return "signal";
    }
}

static status explain_death(const image_death *death, err *e) {
    int s = death->wait_status;
    if (WIFSIGNALED(s))
        return fail(e, STATUS_IMAGE_UNDECODABLE, "the decoder died on this image: signal %d (%s)",
                    WTERMSIG(s), signal_meaning(WTERMSIG(s)));
    return fail(e, STATUS_IMAGE_UNDECODABLE, "the decoder left on this image with exit status %d",
                WEXITSTATUS(s));
}

static bool is_decoder_status(int32_t code) {
    return code == STATUS_OK || code == STATUS_IMAGE_UNDECODABLE || code == STATUS_IMAGE_TOO_LARGE ||
           code == STATUS_NO_MEMORY || code == STATUS_BAD_ARGUMENT || code == STATUS_INTERNAL;
}

static bool is_sane(const image_info *info) {
    return info->format >= IMAGE_FORMAT_UNKNOWN && info->format <= IMAGE_FORMAT_WEBP &&
           info->orientation >= 1 && info->orientation <= 8 && info->width >= 0 &&
           info->width <= IMAGE_SIDE_MAX && info->height >= 0 && info->height <= IMAGE_SIDE_MAX;
}

static status use_answer(const decoder_slot *slot, unsigned char *pixels, image_info *info,
                         image_answer *answer, const model_preprocess_config *config, err *e) {
    answer->text[sizeof answer->text - 1] = 0;
    if (!is_decoder_status(answer->code) || (answer->code == STATUS_OK && !is_sane(&answer->info)))
        return fail(e, STATUS_IMAGE_UNDECODABLE, "the decoder gave a senseless answer (status %d)",
                    answer->code);
    if (answer->code != STATUS_OK) return fail(e, (status)answer->code, "%s", answer->text);
    if (info) *info = answer->info;
    memcpy(pixels, slot->child.output, 3 * (size_t)config->size * (size_t)config->size);
    return STATUS_OK;
}

static status converse(image_decoder *d, decoder_slot *slot, unsigned char *pixels, image_info *info,
                       const image_request *request, bool *has_failed, err *e) {
    int64_t deadline_us = clock_now_us() + d->limits.wall_ms * CLOCK_MS_US;
    if (send(slot->work_fd, request, sizeof *request, MSG_NOSIGNAL) != (ssize_t)sizeof *request) {
        *has_failed = true;
        return fail_errno(e, STATUS_UNAVAILABLE, "image decoder: sending to a worker");
    }
    image_answer answer;
    image_death death;
    switch (listen_for(d, slot, request->seq, deadline_us, &answer, &death)) {
    case HEARD_ANSWER: return use_answer(slot, pixels, info, &answer, &request->config, e);
    case HEARD_DEATH: return explain_death(&death, e);
    case HEARD_NOTHING:
        *has_failed = !kill_worker(d, slot); /* an answer that comes now is too late */
        return fail(e, STATUS_IMAGE_UNDECODABLE, "decoding took longer than %d ms", d->limits.wall_ms);
    case HEARD_END: break;
    }
    *has_failed = true;
    return fail(e, STATUS_UNAVAILABLE, "image decoder: its worker cannot be started again");
}

status image_decoder_run(image_decoder *d, unsigned char *pixels, image_info *info, bytes encoded,
                         bool apply_exif, const model_preprocess_config *config, err *e) {
    if (encoded.len_bytes > d->limits.image.encoded_bytes_max)
        return fail(e, STATUS_IMAGE_TOO_LARGE, "image file of %zu bytes, the limit is %" PRIu64,
                    encoded.len_bytes, d->limits.image.encoded_bytes_max);
    if (config->size < 1 || config->size > d->limits.size_max)
        return fail(e, STATUS_BAD_ARGUMENT, "image size %d of the model, the decoder has room for %d",
                    config->size, d->limits.size_max);
    decoder_slot *slot = take_slot(d);
    if (!slot) return fail(e, STATUS_UNAVAILABLE, "image decoder: no worker can be started");
    image_request request = {.seq = ++slot->seq,
                             .encoded_bytes = encoded.len_bytes,
                             .apply_exif = apply_exif,
                             .config = *config};
    if (encoded.len_bytes) memcpy(slot->child.input, encoded.data, encoded.len_bytes);
    bool has_failed = false;
    status st = converse(d, slot, pixels, info, &request, &has_failed, e);
    if (encoded.len_bytes > KEEP_INPUT_BYTES)
        (void)madvise(slot->child.input, page_up(encoded.len_bytes), MADV_REMOVE);
    give_slot_back(d, slot, has_failed);
    return st;
}
