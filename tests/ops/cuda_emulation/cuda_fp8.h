/* CUDA's conversion to e4m3, by ops/tensor.c. */
#ifndef TESTS_CUDA_EMULATION_CUDA_FP8_H
#define TESTS_CUDA_EMULATION_CUDA_FP8_H

#include "ops/tensor.h"

typedef unsigned char __nv_fp8_storage_t;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

static inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float v, __nv_saturation_t, __nv_fp8_interpretation_t) {
    return f32_to_e4m3(v);
}

struct __half2_raw {
    unsigned short x, y;
};

static inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(unsigned short codes, __nv_fp8_interpretation_t) {
    return __half2_raw{f32_to_f16(e4m3_to_f32((uint8_t)codes)), f32_to_f16(e4m3_to_f32((uint8_t)(codes >> 8)))};
}

#endif
