/* The CPU's table, and what all its operators share: memory, scratch, the split of rows. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cores.h"
#include "ops/cpu/cpu_internal.h"

#define HUGE_PAGE_BYTES ((size_t)2 << 20)
#define TASK_MIN_NS     4000 /* less than this on another thread does not pay for waking it */
#define TASKS_A_THREAD  4    /* pieces per thread, so that a late one does not hold up the rest */

/* ---- memory -------------------------------------------------------------------------------- */

status cpu_memory_open(void **data, size_t bytes, err *e) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return fail_errno(e, STATUS_NO_MEMORY, "ops: %zu bytes", bytes);
    if (bytes >= HUGE_PAGE_BYTES) (void)madvise(p, bytes, MADV_HUGEPAGE); /* advice may be refused */
    *data = p;
    return STATUS_OK;
}

void cpu_memory_close(void *data, size_t bytes) {
    if (data) (void)munmap(data, bytes);
}

void *cpu_scratch(cpu_state *s, size_t bytes) {
    if (bytes > s->scratch_bytes) {
        err ignored;
        void *grown;
        bytes += bytes / 4;
        if (cpu_memory_open(&grown, bytes, &ignored) != STATUS_OK) return NULL;
        cpu_memory_close(s->scratch, s->scratch_bytes);
        s->scratch = grown;
        s->scratch_bytes = bytes;
    }
    return s->scratch;
}

/* ---- rows ---------------------------------------------------------------------------------- */

typedef struct {
    cpu_rows_fn *do_rows;
    void *job;
    int64_t n_rows, n_pieces;
} rows_job;

static void run_piece(void *arg, int64_t piece, int thread) {
    const rows_job *j = arg;
    int64_t first = j->n_rows * piece / j->n_pieces;
    int64_t end = j->n_rows * (piece + 1) / j->n_pieces;
    j->do_rows(j->job, first, end - first, thread);
}

void cpu_split_rows(cpu_state *s, int64_t n_rows, int64_t row_cost, cpu_rows_fn *do_rows,
                    void *job) {
    int64_t n_pieces = min_i64(n_rows, (int64_t)pool_threads(s->pool) * TASKS_A_THREAD);
    n_pieces = min_i64(n_pieces, n_rows * row_cost / TASK_MIN_NS);
    if (n_pieces < 1 || pool_threads(s->pool) == 1) n_pieces = 1;
    rows_job j = {.do_rows = do_rows, .job = job, .n_rows = n_rows, .n_pieces = n_pieces};
    pool_run(s->pool, n_pieces, run_piece, &j);
}

bool cpu_indices_fit(const int32_t *index, int64_t n, int64_t limit) {
    for (int64_t i = 0; i < n; i++)
        if (index[i] < 0 || index[i] >= limit) return false;
    return true;
}

/* ---- the table ----------------------------------------------------------------------------- */

static int backend_count(void) { return 1; }

static status backend_open(void **state, const ops_settings *settings, int device_index, char *text,
                           size_t text_bytes, err *e) {
    if (device_index != 0)
        return fail(e, STATUS_BAD_ARGUMENT, "ops: device cpu:%d, there is only \"cpu\"",
                    device_index);
    const simd_kernels *simd = simd_choose(settings->simd);
    if (!simd) {
        const char *name = settings->simd;
        if (simd_is_known(name))
            return fail(e, STATUS_UNSUPPORTED, "ops: simd \"%s\": this processor does not have it",
                        name);
        return fail(e, STATUS_BAD_ARGUMENT,
                    "ops: simd \"%s\", need \"generic\", \"avx2\", \"avx512\", \"vnni\" or \"amx\"", name);
    }
    cpu_state *s = calloc(1, sizeof *s);
    if (!s) return fail(e, STATUS_NO_MEMORY, "ops: no memory for a context");
    s->simd = simd;
    int n_threads = settings->n_threads;
    if (n_threads == 0) n_threads = (int)min_i64(cores_available(), OPS_THREADS_MAX);
    status st = pool_open(&s->pool, n_threads, e);
    if (st != STATUS_OK) {
        free(s);
        return st;
    }
    (void)snprintf(text, text_bytes, "cpu %s, %d thread%s", simd->name, n_threads,
                   n_threads == 1 ? "" : "s");
    *state = s;
    return STATUS_OK;
}

static void backend_close(void *state) {
    cpu_state *s = state;
    pool_close(&s->pool);
    cpu_memory_close(s->scratch, s->scratch_bytes);
    free(s);
}

static status memory_open(void *state, void **data, size_t bytes, err *e) {
    (void)state;
    return cpu_memory_open(data, bytes, e);
}

static void memory_close(void *state, void *data, size_t bytes) {
    (void)state;
    cpu_memory_close(data, bytes);
}

static status upload(void *state, void *device, const void *host, size_t bytes) {
    (void)state;
    memcpy(device, host, bytes);
    return STATUS_OK;
}

static status download(void *state, void *host, const void *device, size_t bytes) {
    (void)state;
    memcpy(host, device, bytes);
    return STATUS_OK;
}

static status do_nothing(void *state) { /* every call here is done when it returns */
    (void)state;
    return STATUS_OK;
}

const ops_backend cpu_backend = {
    .name = "cpu",
    .activations = OPS_DTYPE_BIT(OPS_DTYPE_F32),
    .caches = OPS_DTYPE_BIT(OPS_DTYPE_F16) | OPS_DTYPE_BIT(OPS_DTYPE_BF16) | OPS_DTYPE_BIT(OPS_DTYPE_E4M3),
    .count = backend_count,
    .open = backend_open,
    .close = backend_close,
    .memory_open = memory_open,
    .memory_close = memory_close,
    .host_open = memory_open,
    .host_close = memory_close,
    .upload = upload,
    .download = download,
    .sync = do_nothing,
    .matrix_open = cpu_matrix_open,
    .matrix_close = cpu_matrix_close,
    .linear = cpu_linear,
    .layer_norm = cpu_layer_norm,
    .rms_norm = cpu_rms_norm,
    .activate = cpu_activate,
    .gate = cpu_gate,
    .scale_columns = cpu_scale_columns,
    .add_table = cpu_add_table,
    .gather_rows = cpu_gather_rows,
    .scatter_rows = cpu_scatter_rows,
    .cast = cpu_cast,
    .candidates_rows = cpu_candidates_rows,
    .patch_rows = cpu_patch_rows,
    .attention = cpu_attention,
    .rope = cpu_rope,
    .kv_append = cpu_kv_append,
    .kv_copy_block = cpu_kv_copy_block,
    .attention_paged = cpu_attention_paged,
};
