/* Private to the files of ops/cuda that attend: what keys a row sees, and where they lie. */
#ifndef OPS_CUDA_ATTENTION_CUH
#define OPS_CUDA_ATTENTION_CUH

#include "ops/cuda/cuda_internal.cuh"

/* Full attention is without tables: sequence r / length, keys 0 .. length - 1, one behind the other. */
typedef struct {
    void *out;
    const void *q, *k, *v;
    const int32_t *tables, *row_seq, *row_pos; /* NULL: full */
    int64_t rows, length;                      /* length: of a group, full only */
    int64_t out_stride, q_stride;              /* from row to row */
    int64_t block_stride, head_stride, key_stride; /* of k and v, in elements; block_stride: paged only */
    int64_t max_blocks, block_tokens, n_seqs, n_cache_blocks;
    int n_heads, heads_a_kv, head_dim, window;
    float scale;
    int *fault;
    ops_dtype dtype, kv_dtype;
} attention_job;

/* The sequence of a row, and the keys first .. last that it sees. */
static __device__ inline int seq_of(const attention_job *j, int64_t row) {
    return j->tables ? j->row_seq[row] : (int)(row / j->length);
}

static __device__ inline int last_key(const attention_job *j, int64_t row) {
    return j->tables ? j->row_pos[row] : (int)j->length - 1;
}

static __device__ inline int first_key(const attention_job *j, int64_t row) {
    int first = j->window ? last_key(j, row) + 1 - j->window : 0;
    return first < 0 ? 0 : first;
}

/* Where what the first head has of a sequence's key at a position begins; -1 when its table leads outside. */
static __device__ inline int64_t key_at(const attention_job *j, int seq, int position) {
    if (!j->tables) return (seq * j->length + position) * j->key_stride;
    int32_t size = (int32_t)j->block_tokens, block = j->tables[seq * j->max_blocks + position / size];
    return block < 0 || block >= j->n_cache_blocks ? -1 : block * j->block_stride + position % size * j->key_stride;
}

/* False where the row names no sequence, or a position its table cannot reach. */
static __device__ inline bool row_fits(const attention_job *j, int64_t row) {
    if (!j->tables) return true;
    int seq = j->row_seq[row], position = j->row_pos[row];
    return seq >= 0 && seq < j->n_seqs && position >= 0 && position / j->block_tokens < j->max_blocks;
}

/* As row_fits, and every block of its keys exists; a thread block asks together, and one fault is told. */
static __device__ inline bool keys_fit(const attention_job *j, int64_t row, float *shared) {
    float n_bad = row_fits(j, row) ? 0.0f : 1.0f;
    int64_t step = j->tables ? j->block_tokens : 1;
    if (n_bad == 0.0f && j->tables)
        for (int64_t at = threadIdx.x * step; at <= last_key(j, row); at += blockDim.x * step)
            if (key_at(j, seq_of(j, row), (int)at) < 0) n_bad = 1.0f;
    n_bad = block_max(n_bad, shared);
    if (n_bad != 0.0f) *j->fault = 1;
    return n_bad == 0.0f;
}

#endif
