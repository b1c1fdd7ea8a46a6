/* Eight lanes: AVX2, FMA and F16C. A tile of 6 x 16 leaves four of sixteen registers for w and x. */
#ifdef __x86_64__
#include <immintrin.h>
#include <stdint.h>

#include "ops/tensor.h"

#define VARIANT   avx2
#define LANES     8
#define TILE_ROWS 6
#define TILE_VECS 2

typedef float vf __attribute__((vector_size(32)));
typedef int32_t vi __attribute__((vector_size(32)));
typedef uint32_t vu __attribute__((vector_size(32)));

static inline vf vload(const float *p) { return (vf)_mm256_loadu_ps(p); }
static inline void vstore(float *p, vf v) { _mm256_storeu_ps(p, (__m256)v); }
static inline vf vfma(vf a, vf b, vf c) {
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
static inline vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vf vmin(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
static inline vf vload_f16(const uint16_t *p) {
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}
static inline void vstore_f16(uint16_t *p, vf v) {
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
static inline vf vload_bf16(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
    return (vf)_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* As halves 256 times less: small codes would be subnormal in f32, which takes a processor long. */
static inline vf vload_e4m3(const uint8_t *p) {
    __m128i codes = _mm_cvtepu8_epi16(_mm_loadl_epi64((const void *)p)), most = _mm_set1_epi16(0x7f);
    __m128i magnitude = _mm_and_si128(codes, most), sign = _mm_slli_epi16(_mm_andnot_si128(most, codes), 8);
    __m128i nan = _mm_and_si128(_mm_cmpeq_epi16(magnitude, most), _mm_set1_epi16(0x7e00));
    __m128i halves = _mm_or_si128(_mm_or_si128(sign, _mm_slli_epi16(magnitude, 7)), nan);
    return (vf)_mm256_cvtph_ps(halves) * 256.0f;
}
static inline vf vload_i8(const int8_t *p) {
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
static inline vf vload_u4(const uint8_t *p, int shift) {
    __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p));
    wide = shift ? _mm256_srli_epi32(wide, 4) : _mm256_and_si256(wide, _mm256_set1_epi32(15));
    return (vf)_mm256_cvtepi32_ps(_mm256_sub_epi32(wide, _mm256_set1_epi32(8)));
}

#define INT8_ROWS 6

#include "ops/cpu/simd/transpose_avx.h"

#include "ops/cpu/simd/kernels.h"
#endif
