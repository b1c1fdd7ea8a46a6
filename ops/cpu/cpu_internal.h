/* Private to ops/cpu: the state of a context and the operators of the table. */
#ifndef OPS_CPU_CPU_INTERNAL_H
#define OPS_CPU_CPU_INTERNAL_H

#include "ops/cpu/pool.h"
#include "ops/cpu/simd/simd.h"
#include "ops/ops_backend.h"

typedef struct {
    const simd_kernels *simd;
    pool *pool;
    void *scratch; /* grows to the largest need and is kept; valid during one call */
    size_t scratch_bytes;
} cpu_state;

/* A packed matrix (matrix.c). Outputs past n_out are zero. */
typedef struct {
    ops_matrix head; /* first, so that the two pointers are one */
    const simd_product *kernels;
    int64_t n_panels;
    int64_t block_k;                 /* of a block: QUANT_BLOCK, or OPS_INT8_RUN */
    size_t block_bytes, panel_bytes; /* of a block; of all */
    unsigned char *panels;           /* n_panels of panel_bytes */
    float *bias;                     /* n_panels * PANEL_COLS, zero where there is none */
    float *scales;                   /* as many, of OPS_PRODUCT_FP8; otherwise NULL */
} cpu_matrix;

/* Zeroed pages, in large ones where the system has them. */
MUST_USE status cpu_memory_open(void **data, size_t bytes, err *e);
void cpu_memory_close(void *data, size_t bytes);

/* At least this much, 64-aligned, contents undefined; NULL when there is no memory. */
void *cpu_scratch(cpu_state *s, size_t bytes);

/* Runs do_rows(job, first, n, thread) over pieces of [0, n_rows), on several threads only when each
 * gets a few microseconds of work; row_cost is about the nanoseconds of one row. */
typedef void cpu_rows_fn(void *job, int64_t first, int64_t n, int thread);
void cpu_split_rows(cpu_state *s, int64_t n_rows, int64_t row_cost, cpu_rows_fn *do_rows,
                    void *job);

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline size_t align_up(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* True when every one of the n indices is in [0, limit). */
bool cpu_indices_fit(const int32_t *index, int64_t n, int64_t limit);

status cpu_matrix_open(void *state, ops_matrix **matrix, const ops_rows *rows,
                       const ops_tensor *bias, ops_product product, err *e);
void cpu_matrix_close(void *state, ops_matrix *matrix);
status cpu_linear(void *state, ops_tensor *out, const ops_tensor *x, const ops_matrix *matrix,
                  const ops_linear_params *params);
status cpu_layer_norm(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w,
                      const ops_tensor *b, float eps);
status cpu_rms_norm(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w, float eps);
status cpu_activate(void *state, ops_tensor *out, const ops_tensor *x, ops_act act);
status cpu_gate(void *state, ops_tensor *out, const ops_tensor *x, ops_act act);
status cpu_scale_columns(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w);
status cpu_add_table(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *table);
status cpu_gather_rows(void *state, ops_tensor *out, const ops_tensor *table,
                       const ops_tensor *ids);
status cpu_scatter_rows(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *to);
status cpu_cast(void *state, ops_tensor *out, const ops_tensor *x);
status cpu_candidates_rows(void *state, ops_tensor *out, const ops_tensor *x, int64_t n,
                           const ops_candidates_wanted *wanted);
status cpu_patch_rows(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *levels, int patch);
status cpu_attention(void *state, ops_tensor *out, const ops_tensor *q, const ops_tensor *k,
                     const ops_tensor *v, int64_t length, const ops_attention_params *params);
status cpu_rope(void *state, ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin,
                const ops_tensor *positions, int n_heads);
status cpu_kv_append(void *state, ops_tensor *k_cache, ops_tensor *v_cache, const ops_tensor *k, const ops_tensor *v,
                     ops_tensor *q, const ops_kv_places *at, int n_heads, int n_kv_heads);
status cpu_kv_copy_block(void *state, ops_tensor *cache, int64_t to, int64_t from);
status cpu_attention_paged(void *state, ops_tensor *out, const ops_tensor *q,
                           const ops_tensor *k_cache, const ops_tensor *v_cache,
                           const ops_tensor *tables, const ops_tensor *row_seq,
                           const ops_tensor *row_pos, const ops_attention_params *params);

#endif
