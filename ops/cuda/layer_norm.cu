/* out[r,c] = (x[r,c] - mean_r) / sqrt(var_r + eps) * w[c] + b[c]
 * and the same without mean and bias (RMS norm).
 *
 * block -> a row; thread -> the chunks of eight columns t, t + 256, ... of it. Memory: the row is read from device
 * memory once and two more times from L1, written once.
 *
 * Numerics: sums in double for f32 rows, in f32 for halves; the mean is that of x[r,c] - x[r,0], so a large mean costs
 * no digits. Each thread adds its chunks in order, then the fixed tree of block_sum. */
#include "ops/cuda/cuda_internal.cuh"

#define THREADS 256
#define WARPS   (THREADS / WARP)

template <typename T> struct sum_type { typedef float type; };
template <> struct sum_type<float> { typedef double type; };

/* Sum over the row of (x - from)^power. */
template <typename T, typename S, int power>
static __device__ S row_sum(const T *x, int64_t cols, S from, bool is_aligned, S *shared) {
    S sum = 0;
    for (int64_t c = threadIdx.x * CHUNK; c < cols; c += THREADS * CHUNK) {
        float v[CHUNK];
        load_chunk(v, x + c, cols - c, is_aligned);
        for (int i = 0; i < CHUNK && c + i < cols; i++) {
            S d = (S)v[i] - from;
            sum += power == 1 ? d : d * d;
        }
    }
    return block_sum(sum, shared);
}

template <typename T, bool has_mean>
static __global__ void norm_block_per_row(T *out, const T *x, const float *w, const float *b, int64_t cols, float eps,
                                          bool is_aligned) {
    typedef typename sum_type<T>::type S;
    SHARED_MEMORY(memory);
    S *shared = reinterpret_cast<S *>(memory);
    const T *row = x + blockIdx.x * cols;
    S first = to_f32(row[0]), mean = 0;
    __syncthreads(); /* out may be x: all have read the first value */
    if (has_mean) mean = first + row_sum<T, S, 1>(row, cols, first, is_aligned, shared) / (S)cols;
    S variance = row_sum<T, S, 2>(row, cols, mean, is_aligned, shared) / (S)cols;
    S scale = (S)1 / sqrt(variance + (S)eps);
    for (int64_t c = threadIdx.x * CHUNK; c < cols; c += THREADS * CHUNK) {
        float v[CHUNK];
        load_chunk(v, row + c, cols - c, is_aligned);
        for (int i = 0; i < CHUNK && c + i < cols; i++) {
            S y = ((S)v[i] - mean) * scale * (S)w[c + i];
            v[i] = (float)(has_mean ? y + (S)b[c + i] : y);
        }
        store_chunk(out + blockIdx.x * cols + c, v, cols - c, is_aligned);
    }
}

template <bool has_mean>
static status launch_norm(cuda_state *s, ops_tensor *out, const ops_tensor *x, const float *w, const float *b, float eps) {
    int64_t cols = x->dims[1];
    bool is_aligned = cols % CHUNK == 0 && is_aligned16(out->data) && is_aligned16(x->data);
    WITH_DTYPE(x->dtype, T, {
        LAUNCH((norm_block_per_row<T, has_mean>), (unsigned)x->dims[0], THREADS, WARPS * sizeof(double), s->stream,
               static_cast<T *>(out->data), static_cast<const T *>(x->data), w, b, cols, eps, is_aligned);
    });
    return cuda_launched("norm_block_per_row");
}

status cuda_layer_norm(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w, const ops_tensor *b,
                       float eps) {
    return launch_norm<true>(static_cast<cuda_state *>(state), out, x, static_cast<const float *>(w->data),
                             static_cast<const float *>(b->data), eps);
}

status cuda_rms_norm(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w, float eps) {
    return launch_norm<false>(static_cast<cuda_state *>(state), out, x, static_cast<const float *>(w->data), NULL, eps);
}
