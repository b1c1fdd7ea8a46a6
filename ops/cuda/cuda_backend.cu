/* CUDA's table, and what all its operators share: memory, scratch, errors.
 *
 * Operators have one stream of a context; what crosses beside them has one up and one down. Memory comes from cudaMalloc when a block, a matrix or larger scratch is opened, never between.
 *
 * An index outside its table cannot be refused before the kernel that reads it runs. The kernel leaves the row alone
 * and sets a word in host memory; the next sync answers BAD_ARGUMENT once. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "ops/cuda/linear.cuh"

#define CAPABILITY_E4M3 89 /* compute capability 8.9 */

/* ---- errors -------------------------------------------------------------------------------- */

status cuda_status(cudaError_t error, const char *call) {
    if (error == cudaSuccess) return STATUS_OK;
    (void)cudaGetLastError(); /* said here, not by the next launch */
    log_error("cuda_failed", "call=\"%s\" error=\"%s\"", call, cudaGetErrorString(error));
    return error == cudaErrorMemoryAllocation ? STATUS_NO_MEMORY : STATUS_DEVICE;
}

status cuda_launched(const char *kernel) { return cuda_status(cudaGetLastError(), kernel); }

/* A context may be opened on one thread and used on another, and CUDA keeps the device by thread: whatever a network
 * begins with (memory, a crossing, a wait) names it, and its launches follow on the same thread. */
status cuda_use_device(const cuda_state *s) {
    CUDA_TRY(cudaSetDevice(s->device));
    return STATUS_OK;
}

/* ---- memory -------------------------------------------------------------------------------- */

static status memory_open(void *state, void **data, size_t bytes, err *e) {
    cuda_state *s = static_cast<cuda_state *>(state);
    cudaError_t error = cudaSetDevice(s->device);
    if (error == cudaSuccess) error = cudaMalloc(data, bytes);
    if (error != cudaSuccess) {
        (void)cudaGetLastError(); /* said here, not by the next launch */
        return fail(e, error == cudaErrorMemoryAllocation ? STATUS_NO_MEMORY : STATUS_DEVICE,
                    "ops: %zu bytes on device cuda:%d: %s", bytes, s->device, cudaGetErrorString(error));
    }
    error = cudaMemsetAsync(*data, 0, bytes, s->stream);
    if (error == cudaSuccess) return STATUS_OK;
    (void)cudaFree(*data);
    *data = NULL;
    return fail(e, STATUS_DEVICE, "ops: zeroing %zu bytes: %s", bytes, cudaGetErrorString(error));
}

static void memory_close(void *state, void *data, size_t bytes) {
    (void)state;
    (void)bytes;
    (void)cudaFree(data); /* waits for what still uses it */
}

static status grow(cuda_state *s, cuda_space *space, void **data, size_t bytes) {
    if (bytes > space->bytes) {
        if (s->is_recording) return STATUS_UNSUPPORTED;
        CUDA_TRY(cudaStreamSynchronize(s->stream)); /* the last operator may still use it */
        CUDA_TRY(cudaFree(space->data));
        space->data = NULL;
        space->bytes = 0;
        s->n_scratch_moves++;
        void *grown;
        CUDA_TRY(cudaMalloc(&grown, bytes + bytes / 4));
        space->data = static_cast<unsigned char *>(grown);
        space->bytes = bytes + bytes / 4;
    }
    *data = space->data;
    return STATUS_OK;
}

status cuda_scratch(cuda_state *s, void **data, size_t bytes) { return grow(s, &s->scratch, data, bytes); }
status cuda_codes(cuda_state *s, void **data, size_t bytes) { return grow(s, &s->codes, data, bytes); }

status cuda_tell_fault(cuda_state *s) {
    if (!*s->fault) return STATUS_OK;
    *s->fault = 0;
    return STATUS_BAD_ARGUMENT;
}

static status sync_stream(void *state) {
    cuda_state *s = static_cast<cuda_state *>(state);
    TRY(cuda_use_device(s));
    CUDA_TRY(cudaStreamSynchronize(s->stream)); /* behind what goes up */
    CUDA_TRY(cudaStreamSynchronize(s->down));
    return cuda_tell_fault(s);
}

/* ---- opening ------------------------------------------------------------------------------- */

static void backend_close(void *state) {
    cuda_state *s = static_cast<cuda_state *>(state);
    if (s->stream) (void)cudaStreamSynchronize(s->stream);
    if (s->down) (void)cudaStreamSynchronize(s->down);
    cuda_products_close(s);
    if (s->blas) (void)cublasLtDestroy(s->blas);
    cuda_lanes_close(s);
    if (s->fault) (void)cudaFreeHost(s->fault);
    (void)cudaFree(s->workspace);
    (void)cudaFree(s->scratch.data);
    (void)cudaFree(s->codes.data);
    if (s->turn) (void)cudaEventDestroy(s->turn);
    if (s->down) (void)cudaStreamDestroy(s->down);
    if (s->up) (void)cudaStreamDestroy(s->up);
    if (s->stream) (void)cudaStreamDestroy(s->stream);
    free(s);
}

static cudaError_t open_parts(cuda_state *s) {
    cudaError_t error = cudaSetDevice(s->device);
    if (error == cudaSuccess) error = cudaStreamCreate(&s->stream);
    if (error == cudaSuccess) error = cudaStreamCreate(&s->up);
    if (error == cudaSuccess) error = cudaStreamCreate(&s->down);
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&s->turn, cudaEventDisableTiming);
    void *host;
    if (error == cudaSuccess && (error = cudaHostAlloc(&host, sizeof *s->fault, cudaHostAllocMapped)) == cudaSuccess) {
        s->fault = static_cast<int *>(host);
        *s->fault = 0;
    }
    if (error == cudaSuccess) error = cuda_lanes_open(s);
    if (error == cudaSuccess) error = cudaMalloc(&s->workspace, WORKSPACE_BYTES);
    return error;
}

/* The code that runs on a device is the newest that was compiled and is not newer than the device. */
static bool overlaps_kernels(int capability) {
    static const int compiled[] = {__CUDA_ARCH_LIST__};
    int runs = 0;
    for (int arch : compiled)
        if (arch / 10 <= capability && arch / 10 > runs) runs = arch / 10;
    return runs >= OVERLAP_CAPABILITY && CUDART_VERSION >= OVERLAP_CUDART;
}

static int backend_count(void) {
    int n = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

static status backend_open(void **state, const ops_settings *settings, int device_index, char *text, size_t text_bytes,
                           err *e) {
    int n_devices = 0;
    cudaError_t error = cudaGetDeviceCount(&n_devices);
    if (error != cudaSuccess || n_devices == 0) {
        (void)cudaGetLastError();
        return fail(e, STATUS_UNSUPPORTED, "ops: device cuda:%d: no CUDA device here (%s)", device_index,
                    cudaGetErrorString(error));
    }
    if (device_index >= n_devices)
        return fail(e, STATUS_UNSUPPORTED, "ops: device cuda:%d, the CUDA devices here are 0 to %d", device_index,
                    n_devices - 1);
    cuda_state *s = static_cast<cuda_state *>(calloc(1, sizeof *s));
    if (!s) return fail(e, STATUS_NO_MEMORY, "ops: no memory for a context");
    s->device = device_index;
    s->is_fast = settings->is_fast;
    cudaDeviceProp properties;
    error = cudaGetDeviceProperties(&properties, device_index);
    if (error == cudaSuccess) error = open_parts(s);
    int capability = error == cudaSuccess ? properties.major * 10 + properties.minor : 0;
    s->multiplies_e4m3 = capability >= CAPABILITY_E4M3;
    s->has_overlap = overlaps_kernels(capability);
    cublasStatus_t blas = error == cudaSuccess ? cublasLtCreate(&s->blas) : CUBLAS_STATUS_SUCCESS;
    if (error != cudaSuccess || blas != CUBLAS_STATUS_SUCCESS) {
        status st = fail(e, STATUS_DEVICE, "ops: device cuda:%d: %s", device_index,
                         error != cudaSuccess ? cudaGetErrorString(error) : cublasLtGetStatusString(blas));
        backend_close(s);
        return st;
    }
    (void)snprintf(text, text_bytes, "cuda:%d %.64s", device_index, properties.name);
    *state = s;
    return STATUS_OK;
}

/* ---- the table ----------------------------------------------------------------------------- */

extern "C" const ops_backend cuda_backend = {
    .name = "cuda",
    .tells_few = true,
    .activations = OPS_DTYPE_BIT(OPS_DTYPE_F32) | OPS_DTYPE_BIT(OPS_DTYPE_F16) | OPS_DTYPE_BIT(OPS_DTYPE_BF16),
    .caches = OPS_DTYPE_BIT(OPS_DTYPE_E4M3),
    .count = backend_count,
    .open = backend_open,
    .close = backend_close,
    .memory_open = memory_open,
    .memory_close = memory_close,
    .host_open = cuda_host_open,
    .host_close = cuda_host_close,
    .upload = cuda_upload,
    .download = cuda_download,
    .sync = sync_stream,
    .upload_ahead = cuda_upload_ahead,
    .download_behind = cuda_download_behind,
    .mark_open = cuda_mark_open,
    .mark_set = cuda_mark_set,
    .mark_wait = cuda_mark_wait,
    .mark_close = cuda_mark_close,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_is_current = cuda_graph_is_current,
    .graph_run = cuda_graph_run,
    .graph_close = cuda_graph_close,
    .matrix_open = cuda_matrix_open,
    .matrix_close = cuda_matrix_close,
    .linear = cuda_linear,
    .layer_norm = cuda_layer_norm,
    .rms_norm = cuda_rms_norm,
    .activate = cuda_activate,
    .gate = cuda_gate,
    .scale_columns = cuda_scale_columns,
    .add_table = cuda_add_table,
    .gather_rows = cuda_gather_rows,
    .scatter_rows = cuda_scatter_rows,
    .cast = cuda_cast,
    .candidates_rows = cuda_candidates_rows,
    .patch_rows = cuda_patch_rows,
    .attention = cuda_attention,
    .rope = cuda_rope,
    .kv_append = cuda_kv_append,
    .kv_copy_block = cuda_kv_copy_block,
    .attention_paged = cuda_attention_paged,
};
