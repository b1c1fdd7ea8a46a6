/* The instructions that CUDA C++ has no name for, each behind one function: copies to shared memory that go on while
 * the thread does (sm_80), the tensor cores' m16n8k16 with halves in and f32 sums, the load that transposes for it, and a power of two.
 *
 * Fragments of one warp, lane = 4 g + t:
 *     a[0..3]: rows g, g + 8, g, g + 8; columns 2t, 2t + 1 (a[0], a[1]) and 2t + 8, 2t + 9 (a[2], a[3])
 *     b[0..1]: rows 2t, 2t + 1 and 2t + 8, 2t + 9 of column g
 *     d[0..3]: row g, columns 2t, 2t + 1; row g + 8, the same columns */
#ifndef OPS_CUDA_PTX_CUH
#define OPS_CUDA_PTX_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "ops/cuda/launch.cuh"

#ifdef __CUDACC__

static __device__ inline unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

/* 16 or 4 bytes; where is_there is false nothing is read and zeros arrive. */
static __device__ inline void copy16_async(void *shared, const void *global, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(is_there ? 16 : 0) : "memory");
}
static __device__ inline void copy4_async(void *shared, const void *global, bool is_there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(is_there ? 4 : 0) : "memory");
}

/* Ends a group of copies; waits until at most n groups are still on their way. */
static __device__ inline void copies_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
static __device__ inline void copies_wait(void) { asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory"); }

/* Sends for a line of memory without waiting for it. */
static __device__ inline void prefetch(const void *global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

template <typename T>
static __device__ inline void mma(float d[4], const unsigned a[4], const unsigned b[2]);
template <>
__device__ inline void mma<__half>(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ inline void mma<__nv_bfloat16>(float d[4], const unsigned a[4], const unsigned b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8x8 tiles of halves in shared memory, lane l with the address of row l % 8 of tile l / 8; tile i arrives
 * transposed in r[i]: rows 2t, 2t + 1 of column g. */
static __device__ inline void load_transposed(unsigned r[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

/* 2^x with a relative error of 2^-22; what is below 2^-126 is 0. */
static __device__ inline float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#else
#include <emulated_ptx.h>
#endif

/* Two values as halves of one word, the first in its low half. */
static __device__ inline unsigned pack_halves(float a, float b, __half) {
    __half v[2] = {__float2half_rn(a), __float2half_rn(b)};
    unsigned word;
    memcpy(&word, v, sizeof word);
    return word;
}
static __device__ inline unsigned pack_halves(float a, float b, __nv_bfloat16) {
    __nv_bfloat16 v[2] = {__float2bfloat16_rn(a), __float2bfloat16_rn(b)};
    unsigned word;
    memcpy(&word, v, sizeof word);
    return word;
}

/* Two codes of e4m3, the first in the low byte, as such a word; NaN stays NaN. */
static __device__ inline unsigned open_codes(unsigned short codes, __half) {
    __half2_raw both = __nv_cvt_fp8x2_to_halfraw2(codes, __NV_E4M3);
    return both.x | (unsigned)both.y << 16;
}
static __device__ inline unsigned open_codes(unsigned short codes, __nv_bfloat16) {
    __half2_raw both = __nv_cvt_fp8x2_to_halfraw2(codes, __NV_E4M3);
    __half from[2];
    memcpy(from, &both, sizeof from);
    return pack_halves(__half2float(from[0]), __half2float(from[1]), __nv_bfloat16());
}

#endif
