/* Numbers in memory as f32 in registers: one at a time, or a chunk of eight with 16-byte accesses.
 *
 * Rows are walked in chunks of eight elements counted from their first. Whether a chunk is read at once (is_aligned:
 * every pointer is a multiple of 16 bytes and a row a multiple of eight elements) or one by one changes the traffic,
 * never which thread has which elements, so it changes no sum. */
#ifndef OPS_CUDA_VEC_CUH
#define OPS_CUDA_VEC_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <math.h>
#include <stdint.h>

#include "ops/cuda/launch.cuh"

#define CHUNK 8

/* A code: of OPS_PRODUCT_FP8, or a key's or a value's. */
typedef struct {
    unsigned char bits;
} e4m3;

static __device__ inline float to_f32(float v) { return v; }
static __device__ inline float to_f32(__half v) { return __half2float(v); }
static __device__ inline float to_f32(__nv_bfloat16 v) { return __bfloat162float(v); }

/* The exponent moves to its place in f32, where it means 2^120 times less. NaN becomes 480: for products, where what has such
 * a code has a scale that is NaN. */
static __device__ inline float code_to_f32(unsigned bits) {
    return __uint_as_float((bits & 0x80u) << 24 | (bits & 0x7fu) << 20) * 0x1p120f;
}
static __device__ inline float to_f32(e4m3 v) { return (v.bits & 0x7f) == 0x7f ? NAN : code_to_f32(v.bits); }

static __device__ inline void from_f32(float *out, float v) { *out = v; }
static __device__ inline void from_f32(__half *out, float v) { *out = __float2half_rn(v); }
static __device__ inline void from_f32(__nv_bfloat16 *out, float v) { *out = __float2bfloat16_rn(v); }
static __device__ inline void from_f32(e4m3 *out, float v) { out->bits = __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3); }

template <typename T>
struct alignas(sizeof(T) == 1 ? CHUNK : 16) chunk_of {
    T v[CHUNK];
};

/* 16 bytes at a time: one access for halves, two for f32. */
template <typename T>
static __device__ inline void copy_chunk(chunk_of<T> *to, const chunk_of<T> *from) {
    for (unsigned i = 0; i < sizeof *to / sizeof(uint4); i++)
        reinterpret_cast<uint4 *>(to)[i] = reinterpret_cast<const uint4 *>(from)[i];
}

static __device__ inline void copy_chunk(chunk_of<e4m3> *to, const chunk_of<e4m3> *from) {
    *reinterpret_cast<uint2 *>(to) = *reinterpret_cast<const uint2 *>(from);
}

/* n elements, the rest of the eight 0. */
template <typename T>
static __device__ inline void load_chunk(float v[CHUNK], const T *from, int64_t n, bool is_aligned) {
    if (is_aligned) {
        chunk_of<T> chunk;
        copy_chunk(&chunk, reinterpret_cast<const chunk_of<T> *>(from));
#pragma unroll
        for (int i = 0; i < CHUNK; i++) v[i] = to_f32(chunk.v[i]);
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK; i++) v[i] = i < n ? to_f32(from[i]) : 0.0f;
    }
}

template <typename T>
static __device__ inline void store_chunk(T *to, const float v[CHUNK], int64_t n, bool is_aligned) {
    if (is_aligned) {
        chunk_of<T> chunk;
#pragma unroll
        for (int i = 0; i < CHUNK; i++) from_f32(&chunk.v[i], v[i]);
        copy_chunk(reinterpret_cast<chunk_of<T> *>(to), &chunk);
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK; i++)
            if (i < n) from_f32(&to[i], v[i]);
    }
}

#endif
