/* Crossings between host and device, and the host memory they need no help with.
 *
 * The bus is fast for pinned memory only. What lies in memory of ops_host_open crosses in one copy, which the stream
 * does on its own. Anything else goes up in pieces of rows: a lane copies one (or makes it) in its pinned memory and sends it
 * while it copies the next. One thread copies a fraction of what the bus takes (and from a mapped file it meets the
 * page faults), so a large upload has several lanes, each with a thread that lives as long as the upload: starting one
 * costs a fraction of copying a piece. Whichever is free takes the next piece. A download has one lane. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cores.h"
#include "ops/cuda/cuda_internal.cuh"

#define PIECE_BYTES ((size_t)4 << 20) /* at 50 GB/s 80 us of the bus, at 10 GB/s 400 us of a thread that copies */

/* ---- host memory --------------------------------------------------------------------------- */

struct cuda_host {
    cuda_host *next;
    unsigned char *data;
    size_t bytes;
};

status cuda_host_open(void *state, void **host, size_t bytes, err *e) {
    cuda_state *s = static_cast<cuda_state *>(state);
    cuda_host *h = static_cast<cuda_host *>(calloc(1, sizeof *h));
    if (!h) return fail(e, STATUS_NO_MEMORY, "ops: no memory for host memory");
    cudaError_t error = cudaSetDevice(s->device);
    if (error == cudaSuccess) error = cudaHostAlloc(host, bytes, cudaHostAllocDefault);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        free(h);
        return fail(e, error == cudaErrorMemoryAllocation ? STATUS_NO_MEMORY : STATUS_DEVICE,
                    "ops: %zu bytes of host memory for device cuda:%d: %s", bytes, s->device,
                    cudaGetErrorString(error));
    }
    memset(*host, 0, bytes);
    *h = cuda_host{s->hosts, static_cast<unsigned char *>(*host), bytes};
    s->hosts = h;
    return STATUS_OK;
}

void cuda_host_close(void *state, void *host, size_t bytes) {
    cuda_state *s = static_cast<cuda_state *>(state);
    (void)bytes;
    for (cuda_host **at = &s->hosts; *at; at = &(*at)->next) {
        cuda_host *h = *at;
        if (h->data != host) continue;
        *at = h->next;
        (void)cudaFreeHost(h->data);
        free(h);
        return;
    }
}

static bool is_direct(const cuda_state *s, const void *host, size_t bytes) {
    for (const cuda_host *h = s->hosts; h; h = h->next) {
        uintptr_t first = (uintptr_t)h->data, from = (uintptr_t)host;
        if (from >= first && from - first <= h->bytes && bytes <= h->bytes - (from - first)) return true;
    }
    return false;
}

/* ---- lanes --------------------------------------------------------------------------------- */

cudaError_t cuda_lanes_open(cuda_state *s) {
    int n_cores = cores_available();
    s->n_lanes = n_cores < CUDA_LANES_MAX ? n_cores : CUDA_LANES_MAX;
    void *pinned;
    cudaError_t error = cudaHostAlloc(&pinned, 2 * PIECE_BYTES * (size_t)s->n_lanes, cudaHostAllocDefault);
    if (error != cudaSuccess) return error;
    for (int i = 0; i < s->n_lanes; i++) {
        cuda_lane *lane = &s->lanes[i];
        lane->halves = static_cast<unsigned char *>(pinned) + 2 * PIECE_BYTES * (size_t)i;
        for (int k = 0; k < 2 && error == cudaSuccess; k++) error = cudaEventCreateWithFlags(&lane->sent[k], cudaEventDisableTiming);
    }
    return error;
}

void cuda_lanes_close(cuda_state *s) {
    for (int i = 0; i < s->n_lanes; i++)
        for (int k = 0; k < 2; k++)
            if (s->lanes[i].sent[k]) (void)cudaEventDestroy(s->lanes[i].sent[k]);
    if (s->lanes[0].halves) (void)cudaFreeHost(s->lanes[0].halves);
}

/* The half of a lane that is free next. */
static status next_half(cuda_lane *lane, unsigned char **half) {
    lane->half = 1 - lane->half;
    CUDA_TRY(cudaEventSynchronize(lane->sent[lane->half]));
    *half = lane->halves + (size_t)lane->half * PIECE_BYTES;
    return STATUS_OK;
}

typedef struct {
    cuda_state *s;
    const cuda_rows_upload *u;
    int64_t rows_a_piece;
    int64_t taken; /* rows of pieces that a lane has, atomically */
} crossing;

static status send_pieces(crossing *c, cuda_lane *lane) {
    const cuda_rows_upload *u = c->u;
    TRY(cuda_use_device(c->s));
    for (;;) {
        int64_t first = __atomic_fetch_add(&c->taken, c->rows_a_piece, __ATOMIC_RELAXED);
        if (first >= u->n_rows) return STATUS_OK;
        int64_t n = u->n_rows - first < c->rows_a_piece ? u->n_rows - first : c->rows_a_piece;
        unsigned char *half;
        TRY(next_half(lane, &half));
        u->fill(u->user, half, first, n);
        for (int i = 0; i < 2 && u->row_bytes[i]; i++) {
            size_t bytes = (size_t)n * u->row_bytes[i];
            CUDA_TRY(cudaMemcpyAsync(u->to[i] + (size_t)first * u->row_bytes[i], half, bytes, cudaMemcpyHostToDevice, c->s->stream));
            half += bytes;
        }
        CUDA_TRY(cudaEventRecord(lane->sent[lane->half], c->s->stream));
    }
}

typedef struct {
    pthread_t thread;
    crossing *c;
    cuda_lane *lane;
    status sent;
} helper;

static void *help(void *arg) {
    helper *h = static_cast<helper *>(arg);
    h->sent = send_pieces(h->c, h->lane);
    return NULL;
}

/* ---- the crossings ------------------------------------------------------------------------- */

status cuda_upload_rows(cuda_state *s, const cuda_rows_upload *u) {
    TRY(cuda_use_device(s));
    crossing c = {s, u, (int64_t)((PIECE_BYTES - u->spare_bytes) / (u->row_bytes[0] + u->row_bytes[1])), 0};
    CHECK(u->spare_bytes < PIECE_BYTES && c.rows_a_piece > 0, "a row fits a piece");
    helper helpers[CUDA_LANES_MAX];
    int n = 0;
    for (; n + 1 < s->n_lanes && (n + 1) * c.rows_a_piece < u->n_rows; n++) {
        helpers[n] = helper{{}, &c, &s->lanes[n + 1], STATUS_OK};
        if (pthread_create(&helpers[n].thread, NULL, help, &helpers[n]) != 0) break; /* then with fewer */
    }
    status st = send_pieces(&c, &s->lanes[0]);
    for (int i = 0; i < n; i++) {
        (void)pthread_join(helpers[i].thread, NULL);
        if (st == STATUS_OK) st = helpers[i].sent;
    }
    return st;
}

/* Rows of a byte. */
static void copy_bytes(const void *user, unsigned char *pinned, int64_t first, int64_t n) {
    memcpy(pinned, static_cast<const unsigned char *>(user) + first, (size_t)n);
}

status cuda_upload(void *state, void *device, const void *host, size_t bytes) {
    cuda_state *s = static_cast<cuda_state *>(state);
    TRY(cuda_use_device(s));
    if (is_direct(s, host, bytes)) {
        CUDA_TRY(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, s->stream));
        return STATUS_OK;
    }
    const cuda_rows_upload u = {copy_bytes, host, (int64_t)bytes, {static_cast<unsigned char *>(device), NULL}, {1, 0}, 0};
    return cuda_upload_rows(s, &u);
}

status cuda_download(void *state, void *host, const void *device, size_t bytes) {
    cuda_state *s = static_cast<cuda_state *>(state);
    TRY(cuda_use_device(s));
    if (is_direct(s, host, bytes)) {
        CUDA_TRY(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, s->stream));
        return STATUS_OK;
    }
    for (size_t at = 0; at < bytes; at += PIECE_BYTES) {
        size_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        unsigned char *half;
        TRY(next_half(&s->lanes[0], &half));
        CUDA_TRY(cudaMemcpyAsync(half, static_cast<const unsigned char *>(device) + at, n, cudaMemcpyDeviceToHost,
                                 s->stream));
        CUDA_TRY(cudaStreamSynchronize(s->stream));
        memcpy(static_cast<unsigned char *>(host) + at, half, n);
    }
    return STATUS_OK;
}

/* ---- beside operators ---------------------------------------------------------------------- */

/* What `later` is given from now on comes behind what `earlier` was given. */
static status follow(const cuda_state *s, cudaStream_t later, cudaStream_t earlier) {
    CUDA_TRY(cudaEventRecord(s->turn, earlier));
    CUDA_TRY(cudaStreamWaitEvent(later, s->turn, 0));
    return STATUS_OK;
}

status cuda_upload_ahead(void *state, void *device, const void *host, size_t bytes) {
    cuda_state *s = static_cast<cuda_state *>(state);
    if (!is_direct(s, host, bytes)) return cuda_upload(state, device, host, bytes);
    TRY(cuda_use_device(s));
    CUDA_TRY(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, s->up));
    return follow(s, s->stream, s->up);
}

status cuda_download_behind(void *state, void *host, const void *device, size_t bytes) {
    cuda_state *s = static_cast<cuda_state *>(state);
    if (!is_direct(s, host, bytes)) return cuda_download(state, host, device, bytes);
    TRY(cuda_use_device(s));
    TRY(follow(s, s->down, s->stream));
    CUDA_TRY(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, s->down));
    return STATUS_OK;
}

/* Of the two streams on which something ends. */
struct ops_mark {
    cudaEvent_t computed, down;
};

void cuda_mark_close(void *state, ops_mark *mark) {
    (void)state;
    if (mark->computed) (void)cudaEventDestroy(mark->computed);
    if (mark->down) (void)cudaEventDestroy(mark->down);
    free(mark);
}

status cuda_mark_open(void *state, ops_mark **mark, err *e) {
    cuda_state *s = static_cast<cuda_state *>(state);
    ops_mark *m = static_cast<ops_mark *>(calloc(1, sizeof *m));
    if (!m) return fail(e, STATUS_NO_MEMORY, "ops: no memory for a mark");
    cudaError_t error = cudaSetDevice(s->device);
    const unsigned flags = cudaEventDisableTiming | cudaEventBlockingSync; /* whoever waits sleeps */
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&m->computed, flags);
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&m->down, flags);
    if (error != cudaSuccess) {
        (void)cudaGetLastError(); /* said here, not by the next launch */
        cuda_mark_close(state, m);
        return fail(e, STATUS_DEVICE, "ops: a mark on device cuda:%d: %s", s->device, cudaGetErrorString(error));
    }
    *mark = m;
    return STATUS_OK;
}

status cuda_mark_set(void *state, ops_mark *mark) {
    cuda_state *s = static_cast<cuda_state *>(state);
    TRY(cuda_use_device(s));
    CUDA_TRY(cudaEventRecord(mark->computed, s->stream));
    CUDA_TRY(cudaEventRecord(mark->down, s->down));
    return STATUS_OK;
}

status cuda_mark_wait(void *state, ops_mark *mark) {
    cuda_state *s = static_cast<cuda_state *>(state);
    TRY(cuda_use_device(s));
    CUDA_TRY(cudaEventSynchronize(mark->down));
    CUDA_TRY(cudaEventSynchronize(mark->computed));
    return cuda_tell_fault(s);
}
