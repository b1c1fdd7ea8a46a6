/* out[r,c] = (x[r,c] - mean_r) / sqrt(var_r + eps) * w[c] + b[c]
 * and the same without mean and bias (RMS norm).
 *
 * A row has as many threads as its columns ask for, whatever the number of rows and how they lie: the fewest whole warps,
 * a power of two up to 8, of which each thread has at most HELD chunks of eight columns, those t, t + threads, ... of the
 * row. What has one warp needs no barrier, and a block takes four such rows. Memory: the row is read once, into
 * registers, and written once. Rows of more columns have 8 warps that read them again for each sum and for the result,
 * from cache.
 *
 * Numerics: sums in double for f32 rows, in f32 for halves; the mean is that of x[r,c] - x[r,0], so a large mean costs
 * no digits. The eight of a chunk are added as a tree, chunks in order, then the fixed tree of warp_sum, then warps in
 * order. A missing column of a last chunk counts as 0 in the same tree. */
#include "ops/cuda/cuda_internal.cuh"
#include "ops/cuda/ptx.cuh"

#define HELD      5 /* 1280 columns a warp: 20 registers of halves. 1152 and 2560 of the models fill 90 and 100 % */
#define WARPS_MAX 8
#define ROWS      4  /* of one warp each, in a block */
#define FEW_ROWS  64 /* up to so many, waiting for weights is what takes time: they are sent for at once */

template <typename T> struct sum_type { typedef float type; };
template <> struct sum_type<float> { typedef double type; };

typedef struct {
    const float *w, *b;
    int64_t rows, cols;
    int threads; /* of a row */
    float eps;
    bool is_aligned;
} norm_job;

/* Of the chunk's n columns that are there: (v - from)^power, added. */
template <int power, typename T, typename S>
static __device__ inline S chunk_sum(const chunk_of<T> *chunk, int64_t n, S from) {
    S d[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        d[i] = (S)to_f32(chunk->v[i]) - from;
        if (power == 2) d[i] *= d[i];
    }
    if (n < CHUNK)
#pragma unroll
        for (int i = 0; i < CHUNK; i++) d[i] = i < n ? d[i] : (S)0;
    return ((d[0] + d[1]) + (d[2] + d[3])) + ((d[4] + d[5]) + (d[6] + d[7]));
}

/* Over the threads of a row, each of which gets the result. shared: of this sum alone, one S a warp. */
template <typename S>
static __device__ inline S row_sum(S own, int threads, S *shared) {
    own = warp_sum(own);
    if (threads == WARP) return own;
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = own;
    __syncthreads();
    S sum = shared[0];
    for (int w = 1; w < threads / WARP; w++) sum += shared[w];
    return sum;
}

/* As they are, and whatever behind the last of n. */
template <typename T>
static __device__ inline void take_one_by_one(chunk_of<T> *chunk, const T *from, int64_t n) {
#pragma unroll
    for (int i = 0; i < CHUNK; i++) chunk->v[i] = from[i < n ? i : 0];
}

template <bool has_mean, typename T, typename S>
static __device__ inline void write_chunk(T *to, const chunk_of<T> *chunk, const norm_job *j, int64_t c, S mean, S scale) {
    float v[CHUNK], w[CHUNK], b[CHUNK];
    int64_t n = j->cols - c;
    load_chunk(w, j->w + c, n, j->is_aligned);
    if (has_mean) load_chunk(b, j->b + c, n, j->is_aligned);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        S y = ((S)to_f32(chunk->v[i]) - mean) * scale * (S)w[i];
        v[i] = (float)(has_mean ? y + (S)b[i] : y);
    }
    store_chunk(to, v, n, j->is_aligned);
}

/* out may be x: nobody writes before the last sum is there, which all of the row have read for. */
template <typename T, bool has_mean>
static __global__ void norm_row_in_registers(T *out, const T *x, norm_job j) {
    follow_last();
    typedef typename sum_type<T>::type S;
    SHARED_MEMORY(memory);
    S *shared = reinterpret_cast<S *>(memory);
    int64_t row = (int64_t)blockIdx.x * (blockDim.x / j.threads) + threadIdx.x / j.threads;
    if (row >= j.rows) return; /* whole warps: where a row has several it is the block's only one */
    const T *from = x + row * j.cols;
    const int cols = (int)j.cols, first = (int)threadIdx.x % j.threads * CHUNK, step = j.threads * CHUNK;
    chunk_of<T> held[HELD];
    S mean = 0, sum = 0;
    if (j.is_aligned) {
#pragma unroll
        for (int i = 0, c = first; i < HELD; i++, c += step)
            if (c < cols) copy_chunk(&held[i], reinterpret_cast<const chunk_of<T> *>(from + c));
    } else {
#pragma unroll
        for (int i = 0, c = first; i < HELD; i++, c += step)
            if (c < cols) take_one_by_one(&held[i], from + c, cols - c);
    }
    for (int c = first; j.rows <= FEW_ROWS && c < cols; c += step) {
        prefetch(j.w + c);
        if (has_mean) prefetch(j.b + c);
    }
    if (has_mean) {
        S zero = to_f32(from[0]);
#pragma unroll
        for (int i = 0, c = first; i < HELD; i++, c += step)
            if (c < cols) sum += chunk_sum<1>(&held[i], cols - c, zero);
        mean = zero + row_sum(sum, j.threads, shared) / (S)j.cols;
        sum = 0;
    }
#pragma unroll
    for (int i = 0, c = first; i < HELD; i++, c += step)
        if (c < cols) sum += chunk_sum<2>(&held[i], cols - c, mean);
    S variance = row_sum(sum, j.threads, shared + WARPS_MAX) / (S)j.cols;
    S scale = (S)1 / sqrt(variance + (S)j.eps);
#pragma unroll
    for (int i = 0, c = first; i < HELD; i++, c += step)
        if (c < cols) write_chunk<has_mean>(out + row * j.cols + c, &held[i], &j, c, mean, scale);
}

template <typename T>
static __device__ inline void take_chunk(chunk_of<T> *chunk, const T *from, int64_t n, bool is_aligned) {
    if (is_aligned) copy_chunk(chunk, reinterpret_cast<const chunk_of<T> *>(from));
    else take_one_by_one(chunk, from, n);
}

/* Sum over the row of (x - from)^power. */
template <int power, typename T, typename S>
static __device__ inline S sum_again(const T *x, const norm_job *j, S from, S *shared) {
    S sum = 0;
    for (int64_t c = threadIdx.x * CHUNK; c < j->cols; c += (int64_t)j->threads * CHUNK) {
        chunk_of<T> chunk;
        take_chunk(&chunk, x + c, j->cols - c, j->is_aligned);
        sum += chunk_sum<power>(&chunk, j->cols - c, from);
    }
    return row_sum(sum, j->threads, shared);
}

template <typename T, bool has_mean>
static __global__ void norm_block_per_long_row(T *out, const T *x, norm_job j) {
    follow_last();
    typedef typename sum_type<T>::type S;
    SHARED_MEMORY(memory);
    S *shared = reinterpret_cast<S *>(memory);
    const T *from = x + blockIdx.x * j.cols;
    S mean = 0;
    if (has_mean) {
        S zero = to_f32(from[0]);
        mean = zero + sum_again<1>(from, &j, zero, shared) / (S)j.cols;
    }
    S variance = sum_again<2>(from, &j, mean, shared + WARPS_MAX) / (S)j.cols;
    S scale = (S)1 / sqrt(variance + (S)j.eps);
    for (int64_t c = threadIdx.x * CHUNK; c < j.cols; c += (int64_t)j.threads * CHUNK) {
        chunk_of<T> chunk;
        take_chunk(&chunk, from + c, j.cols - c, j.is_aligned);
        write_chunk<has_mean>(out + blockIdx.x * j.cols + c, &chunk, &j, c, mean, scale);
    }
}

template <bool has_mean>
static status launch_norm(cuda_state *s, ops_tensor *out, const ops_tensor *x, const float *w, const float *b, float eps) {
    norm_job j = {w, b, x->dims[0], x->dims[1], WARP, eps, false};
    j.is_aligned = j.cols % CHUNK == 0 && is_aligned16(out->data) && is_aligned16(x->data) && is_aligned16(w) && is_aligned16(b);
    while (j.threads < WARPS_MAX * WARP && j.threads * HELD * CHUNK < j.cols) j.threads *= 2;
    bool is_held = j.threads * HELD * CHUNK >= j.cols;
    int rows = j.threads == WARP ? ROWS : 1;
    unsigned grid = (unsigned)ceil_div(j.rows, rows), block = (unsigned)(rows * j.threads);
    size_t shared_bytes = 2 * WARPS_MAX * sizeof(double);
    WITH_DTYPE(x->dtype, T, {
        T *to = static_cast<T *>(out->data);
        const T *from = static_cast<const T *>(x->data);
        if (is_held) LAUNCH((norm_row_in_registers<T, has_mean>), grid, block, shared_bytes, s, to, from, j);
        else LAUNCH((norm_block_per_long_row<T, has_mean>), grid, block, shared_bytes, s, to, from, j);
    });
    return cuda_launched("norm");
}

status cuda_layer_norm(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w, const ops_tensor *b,
                       float eps) {
    return launch_norm<true>(static_cast<cuda_state *>(state), out, x, static_cast<const float *>(w->data),
                             static_cast<const float *>(b->data), eps);
}

status cuda_rms_norm(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w, float eps) {
    return launch_norm<false>(static_cast<cuda_state *>(state), out, x, static_cast<const float *>(w->data), NULL, eps);
}
