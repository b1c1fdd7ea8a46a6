/* Four lanes in portable vector code: SSE2 or NEON, whatever the compiler's base has. */
#include <stdint.h>
#include <string.h>

#include "ops/tensor.h"

#define VARIANT   generic
#define LANES     4
#define TILE_ROWS 4
#define TILE_VECS 2

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));

static inline vf vload(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void vstore(float *p, vf v) { memcpy(p, &v, sizeof v); }
static inline vf vfma(vf a, vf b, vf c) { return a * b + c; }
static inline vf vmax(vf a, vf b) {
    vi a_wins = a > b;
    return (vf)((a_wins & (vi)a) | (~a_wins & (vi)b));
}
static inline vf vmin(vf a, vf b) {
    vi a_wins = a < b;
    return (vf)((a_wins & (vi)a) | (~a_wins & (vi)b));
}
static inline vf vload_f16(const uint16_t *p) {
    return (vf){f16_to_f32(p[0]), f16_to_f32(p[1]), f16_to_f32(p[2]), f16_to_f32(p[3])};
}
static inline void vstore_f16(uint16_t *p, vf v) {
    for (int i = 0; i < LANES; i++) p[i] = f32_to_f16(v[i]);
}
static inline vf vload_bf16(const uint16_t *p) {
    vu bits = {p[0], p[1], p[2], p[3]};
    return (vf)(bits << 16);
}

static inline vf vload_e4m3(const uint8_t *p) {
    return (vf){e4m3_to_f32(p[0]), e4m3_to_f32(p[1]), e4m3_to_f32(p[2]), e4m3_to_f32(p[3])};
}
static inline vf vload_i8(const int8_t *p) { return (vf){(float)p[0], (float)p[1], (float)p[2], (float)p[3]}; }
static inline vf vload_u4(const uint8_t *p, int shift) {
    vf v;
    for (int i = 0; i < LANES; i++) v[i] = (float)((p[i] >> shift & 15) - 8);
    return v;
}

#define INT8_ROWS 3

#define TRANSPOSE_EDGE 4
static inline void transpose_square(float *out, int64_t out_stride, const float *const *rows,
                                    int64_t at) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) out[i * out_stride + j] = rows[j][at + i];
}

#include "ops/cpu/simd/kernels.h"
