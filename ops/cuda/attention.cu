/* For row r with query q and the keys k[first .. last], values v[first .. last] it sees, of one head:
 *
 *     s[j] = scale * sum over d of q[d] k[j][d]
 *     out[d] = sum over j of exp(s[j] - max s) v[j][d]  /  sum over j of exp(s[j] - max s)
 *
 * Halves with the head sizes that networks have go through attention_many.cu and attention_few.cu. attend_block_per_row, below, is the plain
 * version, for any head size, dtype and alignment, and the one that f32 is attended with. block -> one row and head. Keys go in chunks of 128 counted from absolute position 0, with a running
 * maximum and sum: thread -> one key of a chunk, for its score; then thread -> the dims t, t + 128, ... of the sum of
 * values, one key after the other in f32. Keys the row does not see are never read. All of a row's arithmetic follows
 * from its own query and keys, so it depends on nothing else. Memory: keys and values once a head and row.
 *
 * Full attention is the paged one without tables. */
#include "ops/cuda/attention_tiles.cuh"

#define THREADS 128
#define WARPS   (THREADS / WARP)

static size_t shared_bytes(int head_dim) { return (size_t)(2 * head_dim + THREADS + WARPS) * sizeof(float); }

template <typename C>
static __device__ float score(const attention_job *j, const float *q, int64_t at) {
    const C *k = static_cast<const C *>(j->k) + at;
    float sum = 0.0f;
    for (int d = 0; d < j->head_dim; d++) sum = fmaf(q[d], to_f32(k[d]), sum);
    return sum * j->scale;
}

template <typename T, typename C>
static __global__ void attend_block_per_row(attention_job j) {
    follow_last();
    SHARED_MEMORY(memory);
    float *q = reinterpret_cast<float *>(memory), *acc = q + j.head_dim; /* [head_dim] each */
    float *weights = acc + j.head_dim, *partial = weights + THREADS;     /* [THREADS], [WARPS] */
    int64_t row = blockIdx.x;
    const T *q_head = static_cast<const T *>(j.q) + row * j.q_stride + blockIdx.y * j.head_dim;
    T *out_head = static_cast<T *>(j.out) + row * j.out_stride + blockIdx.y * j.head_dim;
    if (!keys_fit(&j, row, partial)) return;
    int seq = seq_of(&j, row), first = first_key(&j, row), last = last_key(&j, row), thread = (int)threadIdx.x;
    int64_t kv_offset = (int)blockIdx.y / j.heads_a_kv * j.head_stride;
    for (int d = thread; d < j.head_dim; d += THREADS) {
        q[d] = to_f32(q_head[d]);
        acc[d] = 0.0f;
    }
    __syncthreads();
    float top = -INFINITY, sum = 0.0f;
    for (int start = first / THREADS * THREADS; start <= last; start += THREADS) {
        int from = first > start ? first - start : 0, to = last - start < THREADS - 1 ? last - start : THREADS - 1;
        float s = -INFINITY;
        if (thread >= from && thread <= to) s = score<C>(&j, q, key_at(&j, seq, start + thread) + kv_offset);
        float new_top = larger(block_max(s, partial), top), shrink = expf(top - new_top);
        weights[thread] = expf(s - new_top);
        sum = sum * shrink + block_sum(weights[thread], partial); /* and all weights are written */
        for (int d = thread; d < j.head_dim; d += THREADS) {
            float a = acc[d] * shrink;
            for (int i = from; i <= to; i++) {
                int64_t at = key_at(&j, seq, start + i) + kv_offset;
                a = fmaf(weights[i], to_f32(static_cast<const C *>(j.v)[at + d]), a);
            }
            acc[d] = a;
        }
        top = new_top;
        __syncthreads();
    }
    for (int d = thread; d < j.head_dim; d += THREADS) from_f32(&out_head[d], acc[d] / sum);
}

static status attend(cuda_state *s, const attention_job *j, bool is_few) {
    if (cuda_tiles_take(j)) return is_few ? cuda_attention_few(s, j) : cuda_attention_many(s, j);
    dim3 grid((unsigned)j->rows, (unsigned)j->n_heads);
    size_t bytes = shared_bytes(j->head_dim);
    WITH_DTYPE(j->dtype, T, WITH_CACHE(j->kv_dtype, T, C, {
        TRY(cuda_allow_shared(attend_block_per_row<T, C>, bytes));
        LAUNCH((attend_block_per_row<T, C>), grid, THREADS, bytes, s, *j);
    }));
    return cuda_launched("attend_block_per_row");
}

static attention_job job_of(const cuda_state *s, ops_tensor *out, const ops_tensor *q, const ops_tensor *k,
                            const ops_tensor *v, const ops_attention_params *params) {
    attention_job j = {};
    j.out = out->data;
    j.q = q->data;
    j.k = k->data;
    j.v = v->data;
    j.rows = q->dims[0];
    j.out_stride = tensor_row_stride(out);
    j.q_stride = tensor_row_stride(q);
    j.n_heads = params->n_heads;
    j.heads_a_kv = params->n_heads / params->n_kv_heads;
    j.head_dim = (int)(q->dims[1] / params->n_heads);
    j.window = params->window;
    j.scale = params->scale;
    j.fault = s->fault;
    j.dtype = q->dtype;
    j.kv_dtype = k->dtype;
    return j;
}

status cuda_attention(void *state, ops_tensor *out, const ops_tensor *q, const ops_tensor *k, const ops_tensor *v,
                      int64_t length, const ops_attention_params *params) {
    cuda_state *s = static_cast<cuda_state *>(state);
    attention_job j = job_of(s, out, q, k, v, params);
    j.length = length;
    j.key_stride = tensor_row_stride(k);
    j.head_stride = j.head_dim;
    return attend(s, &j, false);
}

status cuda_attention_paged(void *state, ops_tensor *out, const ops_tensor *q, const ops_tensor *k_cache,
                            const ops_tensor *v_cache, const ops_tensor *tables, const ops_tensor *row_seq,
                            const ops_tensor *row_pos, const ops_attention_params *params) {
    cuda_state *s = static_cast<cuda_state *>(state);
    attention_job j = job_of(s, out, q, k_cache, v_cache, params);
    j.tables = static_cast<const int32_t *>(tables->data);
    j.row_seq = static_cast<const int32_t *>(row_seq->data);
    j.row_pos = static_cast<const int32_t *>(row_pos->data);
    j.n_seqs = tables->dims[0];
    j.max_blocks = tables->dims[1];
    j.n_cache_blocks = k_cache->dims[0];
    j.block_tokens = k_cache->dims[2];
    j.key_stride = k_cache->dims[3];
    j.head_stride = j.block_tokens * j.key_stride;
    j.block_stride = k_cache->dims[1] * j.head_stride;
    if (j.block_tokens < 1 || j.block_tokens > INT32_MAX) return STATUS_BAD_ARGUMENT;
    return attend(s, &j, params->is_few);
}
