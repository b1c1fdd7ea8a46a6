/* The inner loops of the resize for AVX2, chosen at run time.
 *
 * Four taps at a time: 16 bytes are loaded, 12 of them are pixels p0..p3. One shuffle lays them out
 * as 16-bit pairs (r0 r1)(g0 g1)(b0 b1)(0 0) in the lower half and the same of p2, p3 in the upper,
 * so that vpmaddwd sums two taps of a channel into 32 bits. A coefficient has 24 bits and vpmaddwd
 * takes 16, so it is split: tap = high * 2^12 + low with 0 <= low < 4096. Both sums are exact
 * (255 * 4096 * n < 2^31 for the n <= 4 * 65535 / size of any real use, and the total wraps the same
 * way as one 32-bit sum would), hence the bytes are those of image_resize_generic.c. */
#include "vision_node/image_resize_kernel.h"

#include <immintrin.h>

#define LOW_BITS 12

bool image_resize_avx2_works(void) { return __builtin_cpu_supports("avx2"); }

/* Sixteen bytes are read for every four taps, so the last pixels of a buffer go the plain way. */
static size_t bytes_read(const image_axis *axis, int i) {
    return 3 * (size_t)axis->first[i] + 12 * (((size_t)axis->n[i] + 3) / 4) + 4;
}

static __m256i pairs_of(const int32_t *taps, __m256i *low) {
    __m128i four = _mm_loadu_si128((const __m128i *)taps);
    __m128i high = _mm_srai_epi32(four, LOW_BITS);
    __m128i rest = _mm_and_si128(four, _mm_set1_epi32((1 << LOW_BITS) - 1));
    /* high0 high1 high2 high3 low0 low1 low2 low3, 16 bits each */
    __m256i packed = _mm256_castsi128_si256(_mm_packs_epi32(high, rest));
    *low = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3));
    return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}

static void across(unsigned char *to, const unsigned char *from, size_t readable_bytes,
                   const image_axis *axis, const uint8_t background[3]) {
    const __m256i spread = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
                                            6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m128i half = _mm_set1_epi32(IMAGE_RESIZE_HALF);
    const __m128i canvas = _mm_setr_epi32(background[0], background[1], background[2], 0);
    int i = 0;
    for (; i < axis->n_out && bytes_read(axis, i) <= readable_bytes; i++, to += 3) {
        const unsigned char *pixel = from + 3 * (ptrdiff_t)axis->first[i];
        const int32_t *taps = axis->taps + (ptrdiff_t)i * axis->stride;
        __m256i high_sum = _mm256_setzero_si256(), low_sum = _mm256_setzero_si256();
        for (int k = 0; k < axis->n[i]; k += 4, pixel += 12) {
            __m256i low, high = pairs_of(taps + k, &low);
            __m256i four =
                _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)pixel));
            four = _mm256_shuffle_epi8(four, spread);
            high_sum = _mm256_add_epi32(high_sum, _mm256_madd_epi16(four, high));
            low_sum = _mm256_add_epi32(low_sum, _mm256_madd_epi16(four, low));
        }
        __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high_sum, LOW_BITS), low_sum);
        __m128i total = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        __m128i outside = _mm_mullo_epi32(canvas, _mm_set1_epi32(axis->background_sum[i]));
        total = _mm_add_epi32(total, _mm_add_epi32(outside, half));
        total = _mm_srai_epi32(total, IMAGE_RESIZE_BITS);
        total = _mm_packus_epi16(_mm_packs_epi32(total, total), total); /* clips to 0..255 */
        uint32_t rgb = (uint32_t)_mm_cvtsi128_si32(total);
        to[0] = (unsigned char)rgb;
        to[1] = (unsigned char)(rgb >> 8);
        to[2] = (unsigned char)(rgb >> 16);
    }
    if (i == axis->n_out) return;
    image_axis rest = *axis;
    rest.n_out -= i;
    rest.first += i;
    rest.n += i;
    rest.taps += (ptrdiff_t)i * axis->stride;
    rest.background_sum += i;
    image_resize_generic.across(to, from, readable_bytes, &rest, background);
}

/* Plain C: the compiler's own vectors are as good here, once it may use 256 bits. */
static void down(unsigned char *to, const unsigned char *from, size_t n, const int32_t *taps,
                 int n_taps, const int32_t start[3], int32_t *scratch) {
    for (size_t i = 0; i < n; i++) scratch[i] = start[i % 3];
    for (int k = 0; k < n_taps; k++, from += n) {
        int32_t tap = taps[k];
        for (size_t i = 0; i < n; i++) scratch[i] += tap * from[i];
    }
    for (size_t i = 0; i < n; i++) to[i] = image_resize_clip(scratch[i]);
}

const image_resize_kernel image_resize_avx2 = {across, down};
