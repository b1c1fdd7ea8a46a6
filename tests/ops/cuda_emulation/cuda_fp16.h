/* f16 as CUDA's type, converted by ops/tensor.c. */
#ifndef TESTS_CUDA_EMULATION_CUDA_FP16_H
#define TESTS_CUDA_EMULATION_CUDA_FP16_H

#include "ops/tensor.h"

struct __half {
    uint16_t bits;
};

static inline float __half2float(__half v) { return f16_to_f32(v.bits); }
static inline __half __float2half_rn(float v) { return __half{f32_to_f16(v)}; }

#endif
