/* Sums and maxima over a warp and over a block: the only place where lanes talk through shuffles. The order is that of
 * a fixed tree over lanes, then over warps one after the other, whatever the data. */
#ifndef OPS_CUDA_REDUCE_CUH
#define OPS_CUDA_REDUCE_CUH

#include "ops/cuda/launch.cuh"

#define ALL_LANES 0xffffffffu

template <typename V>
static __device__ inline V larger(V a, V b) { return a > b ? a : b; }

template <typename V>
static __device__ inline V warp_sum(V v) {
    for (int step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

/* Over each n neighbouring lanes, a power of two. */
template <typename V>
static __device__ inline V lanes_max(V v, int n) {
    for (int step = n / 2; step > 0; step /= 2) v = larger(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}

template <typename V>
static __device__ inline V warp_max(V v) { return lanes_max(v, WARP); }

/* Over the four lanes that share a row of an mma tile. */
template <typename V>
static __device__ inline V quad_sum(V v) {
    for (int step = 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

template <typename V>
static __device__ inline V quad_max(V v) { return lanes_max(v, 4); }

/* Every thread gets the result. shared: one V a warp; blocks are whole warps. */
template <typename V>
static __device__ inline V block_sum(V v, V *shared) {
    v = warp_sum(v);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = v;
    __syncthreads();
    V sum = shared[0];
    for (unsigned w = 1; w < blockDim.x / WARP; w++) sum += shared[w];
    __syncthreads(); /* before the next one writes */
    return sum;
}

template <typename V>
static __device__ inline V block_max(V v, V *shared) {
    v = warp_max(v);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = v;
    __syncthreads();
    V best = shared[0];
    for (unsigned w = 1; w < blockDim.x / WARP; w++) best = larger(best, shared[w]);
    __syncthreads();
    return best;
}

#endif
