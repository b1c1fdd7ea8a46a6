/* For i < half, in every head of every row:
 *     new[i]        = x[i] cos[pos, i] - x[i + half] sin[pos, i]
 *     new[i + half] = x[i + half] cos[pos, i] + x[i] sin[pos, i]
 * Products are rounded before the sum, in every build.
 *
 * blockIdx.x -> a row; thread of blockIdx.y's part -> eight dims beside each other: eight pairs of a head, or eight that
 * stay as they are. Memory: what a row has is read once and written once; the tables come from cache. A thread has so
 * little to move that finding out what takes as long: which head a chunk is of is a product with what the host
 * made of the divisor, and no index of a row needs 64 bits. */
#include "ops/cuda/cuda_internal.cuh"

#define THREADS 256

/* i / d for all i with i d < 2^32: the product is less than i / 2^32 too large, and i / d at least 1 / d below the next
 * whole number. */
typedef struct {
    unsigned d;
    uint64_t inverse; /* 2^32 / d, cut off, and 1 */
} divisor;

static divisor divisor_of(int d) { return divisor{(unsigned)d, d ? (UINT64_C(1) << 32) / (unsigned)d + 1 : 0}; }
static __device__ inline int divided(int i, divisor by) { return (int)((uint64_t)(unsigned)i * by.inverse >> 32); }

typedef struct {
    const float *cos, *sin;
    const int32_t *positions;
    int64_t n_positions;
    int head_dim, half;
    bool is_aligned; /* chunks of eight begin at multiples of 16 bytes, and there are no others */
    int *fault;
} turn_job;

static turn_job turn_of(const cuda_state *s, const ops_tensor *cos, const ops_tensor *sin, const ops_tensor *positions,
                        int64_t head_dim) {
    turn_job t = {};
    t.cos = static_cast<const float *>(cos->data);
    t.sin = static_cast<const float *>(sin->data);
    t.positions = static_cast<const int32_t *>(positions->data);
    t.n_positions = cos->dims[0];
    t.head_dim = (int)head_dim;
    t.half = (int)cos->dims[1];
    t.is_aligned = (t.head_dim | t.half) % CHUNK == 0 && is_aligned16(t.cos) && is_aligned16(t.sin);
    t.fault = s->fault;
    return t;
}

/* Where the angles of a row begin; -1, and the fault set, when it is nowhere. */
static __device__ inline int64_t angles_of(const turn_job *t, int64_t row) {
    int32_t position = t->positions[row];
    if (position >= 0 && position < t->n_positions) return position * t->half;
    *t->fault = 1;
    return -1;
}

/* Pairs c .. c + 7 of a head, from `from` to `to`. */
template <typename C, typename T>
static __device__ inline void turn_chunk(C *to, const T *from, const turn_job *t, int64_t angles, int c) {
    float a[CHUNK], b[CHUNK], cos[CHUNK], sin[CHUNK], low[CHUNK], high[CHUNK];
    int n = t->half - c;
    load_chunk(a, from + c, n, t->is_aligned);
    load_chunk(b, from + t->half + c, n, t->is_aligned);
    load_chunk(cos, t->cos + angles + c, n, t->is_aligned);
    load_chunk(sin, t->sin + angles + c, n, t->is_aligned);
    for (int i = 0; i < CHUNK; i++) {
        low[i] = a[i] * cos[i] - b[i] * sin[i];
        high[i] = b[i] * cos[i] + a[i] * sin[i];
    }
    store_chunk(to + c, low, n, t->is_aligned);
    store_chunk(to + t->half + c, high, n, t->is_aligned);
}

template <typename C, typename T>
static __device__ inline void keep_chunk(C *to, const T *from, int n, bool is_aligned) {
    float v[CHUNK];
    load_chunk(v, from, n, is_aligned);
    store_chunk(to, v, n, is_aligned);
}

template <typename T>
static __device__ inline void keep_chunk(T *to, const T *from, int n, bool is_aligned) {
    if (is_aligned) copy_chunk(reinterpret_cast<chunk_of<T> *>(to), reinterpret_cast<const chunk_of<T> *>(from));
    else
        for (int i = 0; i < CHUNK && i < n; i++) to[i] = from[i];
}

static __host__ __device__ inline int n_chunks(int n) { return (n + CHUNK - 1) / CHUNK; }

template <typename T>
static __global__ void turn_chunk_per_thread(T *x, turn_job t, int64_t stride, int n_heads) {
    follow_last();
    int64_t row = blockIdx.x, angles = angles_of(&t, row);
    int i = (int)(blockIdx.y * THREADS + threadIdx.x), a_head = n_chunks(t.half);
    if (angles < 0 || i >= n_heads * a_head) return;
    T *head = x + row * stride + i / a_head * t.head_dim;
    turn_chunk(head, head, &t, angles, i % a_head * CHUNK);
}

static dim3 grid_of(int64_t rows, int n) { return dim3((unsigned)rows, (unsigned)ceil_div(n, THREADS)); }

status cuda_rope(void *state, ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin, const ops_tensor *positions,
                 int n_heads) {
    cuda_state *s = static_cast<cuda_state *>(state);
    turn_job t = turn_of(s, cos, sin, positions, x->dims[1] / n_heads);
    int64_t stride = tensor_row_stride(x);
    t.is_aligned = t.is_aligned && stride % CHUNK == 0 && is_aligned16(x->data);
    if (t.half == 0) return STATUS_OK;
    WITH_DTYPE(x->dtype, T, {
        LAUNCH((turn_chunk_per_thread<T>), grid_of(x->dims[0], n_heads * n_chunks(t.half)), THREADS, 0, s,
               static_cast<T *>(x->data), t, stride, n_heads);
    });
    return cuda_launched("turn_chunk_per_thread");
}

typedef struct {
    turn_job t;
    void *k_cache, *v_cache, *q; /* q NULL: none */
    const void *k, *v;
    const int32_t *slots;
    int64_t n_slots, q_stride, k_stride, v_stride;
    int block_tokens, n_heads, n_kv_heads; /* n_heads: of q */
    divisor pairs, kept, whole; /* chunks of a head: turned, that stay, of all its dims */
} append_job;

/* Of a row: turned pairs of keys, dims of keys that stay, values, turned pairs of the query. */
static int row_chunks(const append_job *j) {
    return j->n_kv_heads * (int)(j->pairs.d + j->kept.d + j->whole.d) + j->n_heads * (int)j->pairs.d;
}

template <typename T, typename C>
static __global__ void append_chunk_per_thread(append_job j) {
    follow_last();
    const turn_job *t = &j.t;
    int64_t row = blockIdx.x, angles = angles_of(t, row), slot = j.slots[row];
    if (slot < 0 || slot >= j.n_slots) *t->fault = 1;
    if (angles < 0 || slot < 0 || slot >= j.n_slots) return;
    const T *k = static_cast<const T *>(j.k) + row * j.k_stride, *v = static_cast<const T *>(j.v) + row * j.v_stride;
    unsigned block = (unsigned)slot / (unsigned)j.block_tokens, in_block = (unsigned)slot - block * (unsigned)j.block_tokens;
    int64_t head_stride = (int64_t)j.block_tokens * t->head_dim; /* in the caches; of the first head: */
    int64_t first = (int64_t)block * j.n_kv_heads * head_stride + (int64_t)in_block * t->head_dim;
    C *key = static_cast<C *>(j.k_cache) + first, *value = static_cast<C *>(j.v_cache) + first;
    int i = (int)(blockIdx.y * THREADS + threadIdx.x), n = j.n_kv_heads * (int)j.pairs.d;
    if (i < n) {
        int head = divided(i, j.pairs), chunk = i - head * (int)j.pairs.d;
        turn_chunk(key + head * head_stride, k + head * t->head_dim, t, angles, chunk * CHUNK);
        return;
    }
    i -= n, n = j.n_kv_heads * (int)j.kept.d;
    if (i < n) {
        int head = divided(i, j.kept), in_head = 2 * t->half + (i - head * (int)j.kept.d) * CHUNK;
        keep_chunk(key + head * head_stride + in_head, k + head * t->head_dim + in_head, t->head_dim - in_head, t->is_aligned);
        return;
    }
    i -= n, n = j.n_kv_heads * (int)j.whole.d;
    if (i < n) {
        int head = divided(i, j.whole), in_head = (i - head * (int)j.whole.d) * CHUNK;
        keep_chunk(value + head * head_stride + in_head, v + head * t->head_dim + in_head, t->head_dim - in_head, t->is_aligned);
        return;
    }
    i -= n;
    if (i >= j.n_heads * (int)j.pairs.d) return;
    int head_idx = divided(i, j.pairs);
    T *head = static_cast<T *>(j.q) + row * j.q_stride + head_idx * t->head_dim;
    turn_chunk(head, head, t, angles, (i - head_idx * (int)j.pairs.d) * CHUNK);
}

status cuda_kv_append(void *state, ops_tensor *k_cache, ops_tensor *v_cache, const ops_tensor *k, const ops_tensor *v,
                      ops_tensor *q, const ops_kv_places *at, int n_heads, int n_kv_heads) {
    cuda_state *s = static_cast<cuda_state *>(state);
    append_job j = {};
    j.t = turn_of(s, at->cos, at->sin, at->positions, k->dims[1] / n_kv_heads);
    j.k_cache = k_cache->data;
    j.v_cache = v_cache->data;
    j.q = q ? q->data : NULL;
    j.k = k->data;
    j.v = v->data;
    j.slots = static_cast<const int32_t *>(at->slots->data);
    j.n_slots = k_cache->dims[0] * k_cache->dims[2];
    j.block_tokens = (int)k_cache->dims[2];
    j.q_stride = q ? tensor_row_stride(q) : 0;
    j.k_stride = tensor_row_stride(k);
    j.v_stride = tensor_row_stride(v);
    j.n_heads = q ? n_heads : 0;
    j.n_kv_heads = n_kv_heads;
    j.pairs = divisor_of(n_chunks(j.t.half));
    j.kept = divisor_of(n_chunks(j.t.head_dim - 2 * j.t.half));
    j.whole = divisor_of(n_chunks(j.t.head_dim));
    CHECK((uint64_t)row_chunks(&j) * j.whole.d < UINT64_C(1) << 32, "chunks of a row divide by a product");
    j.t.is_aligned = j.t.is_aligned && (j.q_stride | j.k_stride | j.v_stride) % CHUNK == 0 && is_aligned16(j.q) &&
                     is_aligned16(j.k) && is_aligned16(j.v) && is_aligned16(j.k_cache) && is_aligned16(j.v_cache);
    WITH_DTYPE(k->dtype, T, WITH_CACHE(k_cache->dtype, T, C, {
        LAUNCH((append_chunk_per_thread<T, C>), grid_of(k->dims[0], row_chunks(&j)), THREADS, 0, s, j);
    }));
    return cuda_launched("append_chunk_per_thread");
}
