/* For i < half, in every head of every row:
 *     new[i]        = x[i] cos[pos, i] - x[i + half] sin[pos, i]
 *     new[i + half] = x[i + half] cos[pos, i] + x[i] sin[pos, i]
 * Products are rounded before the sum, in every build.
 *
 * rope: thread -> one pair (row, head, i). Memory: the rotated part of a row is read and written once; the tables come
 * from cache.
 * append: thread -> one dim of a row's key or value, or one pair of its query; a pair of a key is written by the thread of
 * its lower dim. Memory: key and value are read once and written once, the query's rotated part likewise. */
#include "ops/cuda/cuda_internal.cuh"

#define THREADS 256

typedef struct {
    const float *cos, *sin;
    const int32_t *positions;
    int64_t n_positions, head_dim, half;
    int *fault;
} turn_job;

static turn_job turn_of(const cuda_state *s, const ops_tensor *cos, const ops_tensor *sin, const ops_tensor *positions,
                        int64_t head_dim) {
    turn_job t = {static_cast<const float *>(cos->data), static_cast<const float *>(sin->data),
                  static_cast<const int32_t *>(positions->data), cos->dims[0], head_dim, cos->dims[1], s->fault};
    return t;
}

/* Where the angles of a row begin; -1, and the fault set, when it is nowhere. */
static __device__ inline int64_t angles_of(const turn_job *t, int64_t row) {
    int32_t position = t->positions[row];
    if (position >= 0 && position < t->n_positions) return position * t->half;
    *t->fault = 1;
    return -1;
}

/* Pair i from `from` to `to`. */
template <typename T>
static __device__ inline void turn_pair(T *to, const T *from, const turn_job *t, int64_t angles, int64_t i) {
    float a = to_f32(from[i]), b = to_f32(from[i + t->half]), c = t->cos[angles + i], s = t->sin[angles + i];
    from_f32(&to[i], a * c - b * s);
    from_f32(&to[i + t->half], b * c + a * s);
}

template <typename T>
static __global__ void rope_pair_per_thread(T *x, turn_job t, int64_t n_pairs, int64_t stride, int n_heads) {
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= n_pairs) return;
    int64_t row = at / t.half / n_heads, angles = angles_of(&t, row);
    T *head = x + row * stride + at / t.half % n_heads * t.head_dim;
    if (angles >= 0) turn_pair(head, head, &t, angles, at % t.half);
}

status cuda_rope(void *state, ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin, const ops_tensor *positions,
                 int n_heads) {
    cuda_state *s = static_cast<cuda_state *>(state);
    turn_job t = turn_of(s, cos, sin, positions, x->dims[1] / n_heads);
    int64_t n_pairs = x->dims[0] * n_heads * t.half;
    WITH_DTYPE(x->dtype, T, {
        LAUNCH((rope_pair_per_thread<T>), (unsigned)ceil_div(n_pairs, THREADS), THREADS, 0, s->stream,
               static_cast<T *>(x->data), t, n_pairs, tensor_row_stride(x), n_heads);
    });
    return cuda_launched("rope_pair_per_thread");
}

typedef struct {
    turn_job t;
    void *k_cache, *v_cache, *q; /* q NULL: none */
    const void *k, *v;
    const int32_t *slots;
    int64_t rows, n_slots, q_stride, k_stride, v_stride;
    int n_heads, n_kv_heads;
} append_job;

/* Dim d of a key head: pairs are written by the thread of their lower half. */
template <typename T>
static __device__ inline void append_key(T *to, const T *from, const turn_job *t, int64_t angles, int64_t d) {
    if (d < t->half) turn_pair(to, from, t, angles, d);
    else if (d >= 2 * t->half) to[d] = from[d];
}

template <typename T>
static __global__ void append_element_per_thread(append_job j) {
    int64_t kv_width = j.n_kv_heads * j.t.head_dim, n_turned = j.q ? j.n_heads * j.t.half : 0;
    int64_t a_row = 2 * kv_width + n_turned, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t row = at / a_row, i = at % a_row;
    if (row >= j.rows) return;
    int64_t angles = angles_of(&j.t, row), slot = j.slots[row];
    if (slot < 0 || slot >= j.n_slots) *j.t.fault = 1;
    if (angles < 0 || slot < 0 || slot >= j.n_slots) return;
    const T *k = static_cast<const T *>(j.k) + row * j.k_stride, *v = static_cast<const T *>(j.v) + row * j.v_stride;
    if (i < kv_width) {
        int64_t head = i - i % j.t.head_dim;
        append_key(static_cast<T *>(j.k_cache) + slot * kv_width + head, k + head, &j.t, angles, i % j.t.head_dim);
    } else if (i < 2 * kv_width) {
        static_cast<T *>(j.v_cache)[slot * kv_width + i - kv_width] = v[i - kv_width];
    } else {
        int64_t pair = i - 2 * kv_width;
        T *head = static_cast<T *>(j.q) + row * j.q_stride + pair / j.t.half * j.t.head_dim;
        turn_pair(head, head, &j.t, angles, pair % j.t.half);
    }
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
    j.rows = k->dims[0];
    j.n_slots = k_cache->dims[0] * k_cache->dims[1];
    j.q_stride = q ? tensor_row_stride(q) : 0;
    j.k_stride = tensor_row_stride(k);
    j.v_stride = tensor_row_stride(v);
    j.n_heads = n_heads;
    j.n_kv_heads = n_kv_heads;
    int64_t n = j.rows * (2 * k->dims[1] + (q ? n_heads * j.t.half : 0));
    WITH_DTYPE(k->dtype, T, {
        LAUNCH((append_element_per_thread<T>), (unsigned)ceil_div(n, THREADS), THREADS, 0, s->stream, j);
    });
    return cuda_launched("append_element_per_thread");
}
