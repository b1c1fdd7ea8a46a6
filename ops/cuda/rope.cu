/* For i < half, in every head of every row:
 *     new[i]        = x[i] cos[pos, i] - x[i + half] sin[pos, i]
 *     new[i + half] = x[i + half] cos[pos, i] + x[i] sin[pos, i]
 * thread -> one pair (row, head, i). Products are rounded before the sum, in every build. Memory: the rotated part of a
 * row is read and written once; the tables come from cache. */
#include "ops/cuda/cuda_internal.cuh"

#define THREADS 256

typedef struct {
    const float *cos, *sin;
    const int32_t *positions;
    int64_t n_pairs, n_positions, width, head_dim, half;
    int n_heads;
    int *fault;
} rope_job;

template <typename T>
static __global__ void rope_pair_per_thread(T *x, rope_job j) {
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= j.n_pairs) return;
    int64_t i = at % j.half, head = at / j.half % j.n_heads, row = at / j.half / j.n_heads;
    int32_t position = j.positions[row];
    if (position < 0 || position >= j.n_positions) {
        *j.fault = 1;
        return;
    }
    T *low = x + row * j.width + head * j.head_dim + i, *high = low + j.half;
    float a = to_f32(*low), b = to_f32(*high), c = j.cos[position * j.half + i], s = j.sin[position * j.half + i];
    from_f32(low, a * c - b * s);
    from_f32(high, b * c + a * s);
}

status cuda_rope(void *state, ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin, const ops_tensor *positions,
                 int n_heads) {
    cuda_state *s = static_cast<cuda_state *>(state);
    rope_job j = {static_cast<const float *>(cos->data), static_cast<const float *>(sin->data),
                  static_cast<const int32_t *>(positions->data), x->dims[0] * n_heads * cos->dims[1], cos->dims[0],
                  x->dims[1], x->dims[1] / n_heads, cos->dims[1], n_heads, s->fault};
    WITH_DTYPE(x->dtype, T, {
        LAUNCH((rope_pair_per_thread<T>), (unsigned)ceil_div(j.n_pairs, THREADS), THREADS, 0, s->stream,
               static_cast<T *>(x->data), j);
    });
    return cuda_launched("rope_pair_per_thread");
}
