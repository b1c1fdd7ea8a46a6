/* Sixteen lanes: AVX-512 F, DQ, BW and VL; with VNNI where the file is compiled with it. A tile of 12 x 32 uses 24 of 32
 * registers to sum. */
#include <immintrin.h>
#include <stdint.h>

#include "ops/tensor.h"

#define LANES     16
#define TILE_ROWS 12
#define TILE_VECS 2

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));

static inline vf vload(const float *p) { return (vf)_mm512_loadu_ps(p); }
static inline void vstore(float *p, vf v) { _mm512_storeu_ps(p, (__m512)v); }
#ifdef AMX_KERNELS
#define HAS_STREAM
static inline void vstream(float *p, vf v) { _mm512_stream_ps(p, (__m512)v); }
#endif
static inline vf vfma(vf a, vf b, vf c) {
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
static inline vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vf vmin(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#define HAS_TIMES_POWER /* x * 2^n, rounded once; 0 where of < least */
static inline vf vtimes_power(vf x, vf n, vf of, vf least) {
    return (vf)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)of, (__m512)least, _CMP_NLT_UQ), (__m512)x, (__m512)n);
}
#define HAS_FOLD
static inline float vfold(vf v) {
    __m512 all = (__m512)v;
    __m256 of8 = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    __m128 of4 = _mm_add_ps(_mm256_castps256_ps128(of8), _mm256_extractf128_ps(of8, 1));
    __m128 of2 = _mm_add_ps(of4, _mm_movehl_ps(of4, of4));
    return _mm_cvtss_f32(_mm_add_ss(of2, _mm_movehdup_ps(of2)));
}
#define HAS_LARGEST
static inline float vlargest(vf v) { return _mm512_reduce_max_ps((__m512)v); }
static inline vf vload_f16(const uint16_t *p) {
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
static inline void vstore_f16(uint16_t *p, vf v) {
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
static inline vf vload_bf16(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
    return (vf)_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* As halves 256 times less: small codes would be subnormal in f32, which takes a processor long. */
static inline vf vload_e4m3(const uint8_t *p) {
    __m256i codes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)p)), most = _mm256_set1_epi16(0x7f);
    __m256i magnitude = _mm256_and_si256(codes, most), sign = _mm256_slli_epi16(_mm256_andnot_si256(most, codes), 8);
    __m256i nan = _mm256_and_si256(_mm256_cmpeq_epi16(magnitude, most), _mm256_set1_epi16(0x7e00));
    __m256i halves = _mm256_or_si256(_mm256_or_si256(sign, _mm256_slli_epi16(magnitude, 7)), nan);
    return (vf)_mm512_cvtph_ps(halves) * 256.0f;
}
static inline vf vload_i8(const int8_t *p) {
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
#define HAS_STORE_I8
static inline void vstore_i8(int8_t *p, vi v) { _mm_storeu_si128((void *)p, _mm512_cvtepi32_epi8((__m512i)v)); }
static inline vf vload_u4(const uint8_t *p, int shift) {
    __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p));
    wide = shift ? _mm512_srli_epi32(wide, 4) : _mm512_and_si512(wide, _mm512_set1_epi32(15));
    return (vf)_mm512_cvtepi32_ps(_mm512_sub_epi32(wide, _mm512_set1_epi32(8)));
}

#ifdef __AVX512VNNI__
#define INT8_ROWS 8
/* Unsigned bytes of weights times signed ones of x: four k, sixteen columns. */
#define HAS_BYTE_DOT
static inline vi vload_bytes(const unsigned char *p) { return (vi)_mm512_loadu_si512((const void *)p); }
static inline vi vload_halves(const unsigned char *p, int shift) {
    __m512i both = _mm512_loadu_si512((const void *)p);
    if (shift) both = _mm512_srli_epi16(both, 4);
    return (vi)_mm512_and_si512(both, _mm512_set1_epi8(15));
}
static inline vi vbyte_dot(vi sum, vi w, vi x) { return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x); }
#else
#define INT8_ROWS 12
#endif

#include "ops/cpu/simd/transpose_avx.h"

#include "ops/cpu/simd/kernels.h"
