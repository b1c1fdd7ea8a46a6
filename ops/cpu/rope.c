/* For i < half, in every head of every row:
 *     new[i]        = x[i] cos[pos, i] - x[i + half] sin[pos, i]
 *     new[i + half] = x[i + half] cos[pos, i] + x[i] sin[pos, i]
 * Products are rounded before the sum, in every build. What is kept of a row, its key turned and its value, goes to its
 * slot of the caches. */
#include <string.h>

#include "ops/cpu/cpu_internal.h"

typedef struct {
    const float *cos, *sin;
    const int32_t *positions;
    int64_t head_dim, half;
} turn;

static turn turn_of(const ops_tensor *cos, const ops_tensor *sin, const ops_tensor *positions, int64_t head_dim) {
    return (turn){cos->data, sin->data, positions->data, head_dim, cos->dims[1]};
}

static void rotate_head(float *restrict low, float *restrict high, const float *restrict cos,
                        const float *restrict sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float a = low[i], b = high[i];
        low[i] = a * cos[i] - b * sin[i];
        high[i] = b * cos[i] + a * sin[i];
    }
}

static void rotate_row(float *x, const turn *t, int64_t row, int n_heads) {
    int64_t at = t->positions[row] * t->half;
    for (int h = 0; h < n_heads; h++, x += t->head_dim) rotate_head(x, x + t->half, t->cos + at, t->sin + at, t->half);
}

typedef struct {
    turn turn;
    float *x;
    int64_t stride;
    int n_heads;
} rope_job;

static void rotate_rows(void *arg, int64_t first, int64_t n, int thread) {
    const rope_job *j = arg;
    (void)thread;
    for (int64_t r = first; r < first + n; r++) rotate_row(j->x + r * j->stride, &j->turn, r, j->n_heads);
}

status cpu_rope(void *state, ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin,
                const ops_tensor *positions, int n_heads) {
    if (!cpu_indices_fit(positions->data, x->dims[0], cos->dims[0])) return STATUS_BAD_ARGUMENT;
    rope_job j = {turn_of(cos, sin, positions, x->dims[1] / n_heads), x->data, tensor_row_stride(x), n_heads};
    cpu_split_rows(state, x->dims[0], cos->dims[1] * n_heads, rotate_rows, &j);
    return STATUS_OK;
}

typedef struct {
    rope_job q; /* x NULL: none */
    const simd_kernels *simd;
    unsigned char *k_cache, *v_cache; /* of dtype, which has element_bytes */
    ops_dtype dtype;
    size_t element_bytes;
    float *turned; /* [threads, width]: a key before it is rounded */
    const float *k, *v;
    const int32_t *slots;
    int64_t k_stride, v_stride, width, block_tokens;
    int n_kv_heads;
} append_job;

/* One row's heads to their places in the block that has its slot. */
static void put_heads(const append_job *j, unsigned char *cache, int64_t slot, const float *row) {
    const int64_t head_dim = j->width / j->n_kv_heads, in_block = slot % j->block_tokens;
    for (int64_t h = 0; h < j->n_kv_heads; h++) {
        int64_t key = (slot / j->block_tokens * j->n_kv_heads + h) * j->block_tokens + in_block;
        j->simd->narrow(cache + (size_t)(key * head_dim) * j->element_bytes, row + h * head_dim, j->dtype, head_dim);
    }
}

static void append_rows(void *arg, int64_t first, int64_t n, int thread) {
    const append_job *j = arg;
    float *key = j->turned + thread * j->width;
    for (int64_t r = first; r < first + n; r++) {
        memcpy(key, j->k + r * j->k_stride, (size_t)j->width * sizeof *key);
        rotate_row(key, &j->q.turn, r, j->n_kv_heads);
        put_heads(j, j->k_cache, j->slots[r], key);
        put_heads(j, j->v_cache, j->slots[r], j->v + r * j->v_stride);
    }
    if (j->q.x) rotate_rows((void *)&j->q, first, n, thread);
}

status cpu_kv_append(void *state, ops_tensor *k_cache, ops_tensor *v_cache, const ops_tensor *k, const ops_tensor *v,
                     ops_tensor *q, const ops_kv_places *at, int n_heads, int n_kv_heads) {
    cpu_state *s = state;
    int64_t rows = k->dims[0];
    if (!cpu_indices_fit(at->positions->data, rows, at->cos->dims[0]) ||
        !cpu_indices_fit(at->slots->data, rows, k_cache->dims[0] * k_cache->dims[2]))
        return STATUS_BAD_ARGUMENT;
    float *turned = cpu_scratch(s, (size_t)(k->dims[1] * pool_threads(s->pool)) * sizeof *turned);
    if (!turned) return STATUS_NO_MEMORY;
    append_job j = {
        .q = {turn_of(at->cos, at->sin, at->positions, k->dims[1] / n_kv_heads), q ? q->data : NULL,
              q ? tensor_row_stride(q) : 0, n_heads},
        .simd = s->simd, .k_cache = k_cache->data, .v_cache = v_cache->data, .dtype = k_cache->dtype,
        .element_bytes = dtype_bytes(k_cache->dtype), .turned = turned, .k = k->data, .v = v->data, .slots = at->slots->data,
        .k_stride = tensor_row_stride(k), .v_stride = tensor_row_stride(v), .width = k->dims[1], .block_tokens = k_cache->dims[2],
        .n_kv_heads = n_kv_heads,
    };
    cpu_split_rows(state, rows, k->dims[1] + at->cos->dims[1] * n_heads, append_rows, &j);
    return STATUS_OK;
}
