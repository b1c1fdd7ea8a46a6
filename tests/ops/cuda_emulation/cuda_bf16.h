/* bf16 as CUDA's type, converted by ops/tensor.c. */
#ifndef TESTS_CUDA_EMULATION_CUDA_BF16_H
#define TESTS_CUDA_EMULATION_CUDA_BF16_H

#include "ops/tensor.h"

struct __nv_bfloat16 {
    uint16_t bits;
};

static inline float __bfloat162float(__nv_bfloat16 v) { return bf16_to_f32(v.bits); }
static inline __nv_bfloat16 __float2bfloat16_rn(float v) { return __nv_bfloat16{f32_to_bf16(v)}; }

#endif
