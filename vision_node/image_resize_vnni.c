/* The inner loops of the resize for AVX-512 with VNNI, chosen at run time.
 *
 * vpdpbusd adds to a 32-bit sum the products of four bytes without sign, here four pixels of a channel, and four with,
 * here a digit of four taps; a tap has three digits (image_tap_digits), so three sums are kept and put together at the
 * end. Each is exact (255 * 128 * n < 2^31 for the n <= 65535 there can be) and the total wraps the way one 32-bit sum
 * would, hence the bytes are those of image_resize_generic.c.
 *
 * across: a vector is four rows; of each, sixteen bytes are loaded, of which twelve are four pixels, and one shuffle
 * lays them out as (r0 r1 r2 r3)(g0 g1 g2 g3)(b0 b1 b2 b3)(0 0 0 0). Two vectors share the digits.
 * down: 64 columns; the bytes of four rows are interleaved. */
#include "vision_node/image_resize_kernel.h"

#include <immintrin.h>
#include <string.h>

#define ROWS 8 /* of across at a time */

bool image_resize_vnni_works(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
}

/* Sums of one vector by digit. */
typedef struct {
    __m512i digit[3];
} sums;

static inline sums no_sums(void) {
    return (sums){{_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()}};
}

static inline __m512i digit_of(const image_tap_digits *taps, int d) {
    int32_t four;
    memcpy(&four, taps->digit[d], sizeof four);
    return _mm512_set1_epi32(four);
}

static inline void add_products(sums *s, __m512i pixels, const image_tap_digits *taps) {
    for (int d = 0; d < 3; d++) s->digit[d] = _mm512_dpbusd_epi32(s->digit[d], pixels, digit_of(taps, d));
}

/* Before it is clipped to a byte. */
static inline __m512i total(sums s, __m512i start) {
    __m512i high = _mm512_add_epi32(_mm512_slli_epi32(s.digit[2], 8), s.digit[1]);
    __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high, 8), s.digit[0]);
    return _mm512_srai_epi32(_mm512_add_epi32(sum, start), IMAGE_RESIZE_BITS);
}

static inline __m128i load(const unsigned char *p) { return _mm_loadu_si128((const __m128i *)p); }

static inline __m512i four_rows(const unsigned char *from, size_t row_bytes) {
    const __m512i by_channel = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    __m512i four = _mm512_castsi128_si512(load(from));
    four = _mm512_inserti32x4(four, load(from + row_bytes), 1);
    four = _mm512_inserti32x4(four, load(from + 2 * row_bytes), 2);
    four = _mm512_inserti32x4(four, load(from + 3 * row_bytes), 3);
    return _mm512_shuffle_epi8(four, by_channel);
}

/* One pixel in each of four rows. The byte behind it is written as well where the row goes on. */
static inline void store_pixels(unsigned char *to, size_t row_bytes, __m512i pixels, bool is_last) {
    __m512i positive = _mm512_max_epi32(pixels, _mm512_setzero_si512());
    uint32_t rgb[4];
    _mm_storeu_si128((__m128i *)rgb, _mm512_cvtusepi32_epi8(positive));
    for (size_t y = 0; y < 4; y++, to += row_bytes) {
        if (is_last) memcpy(to, &rgb[y], 3);
        else memcpy(to, &rgb[y], 4);
    }
}

static inline void across_pixel(unsigned char *to, size_t to_bytes, const unsigned char *from, size_t from_bytes,
                                const image_axis *axis, int i, __m512i canvas, bool is_last) {
    const unsigned char *pixel = from + 3 * (ptrdiff_t)axis->first[i];
    const image_tap_digits *taps = axis->digits + (ptrdiff_t)i * (axis->stride / 4);
    sums upper = no_sums(), lower = no_sums();
    for (int k = 0; k < axis->n[i]; k += 4, pixel += 12, taps++) {
        add_products(&upper, four_rows(pixel, from_bytes), taps);
        add_products(&lower, four_rows(pixel + 4 * from_bytes, from_bytes), taps);
    }
    __m512i start = _mm512_mullo_epi32(canvas, _mm512_set1_epi32(axis->background_sum[i]));
    start = _mm512_add_epi32(start, _mm512_set1_epi32(IMAGE_RESIZE_HALF));
    store_pixels(to, to_bytes, total(upper, start), is_last);
    store_pixels(to + 4 * to_bytes, to_bytes, total(lower, start), is_last);
}

static void across(unsigned char *to, const unsigned char *from, size_t from_bytes, const image_axis *axis,
                        const uint8_t background[3]) {
    __m512i canvas = _mm512_broadcast_i32x4(_mm_setr_epi32(background[0], background[1], background[2], 0));
    size_t to_bytes = 3 * (size_t)axis->n_out;
    int last = axis->n_out - 1;
    for (int i = 0; i < last; i++) across_pixel(to + 3 * i, to_bytes, from, from_bytes, axis, i, canvas, false);
    across_pixel(to + 3 * last, to_bytes, from, from_bytes, axis, last, canvas, true);
}

/* Rows past the last tap are not read. */
static inline void interleave(__m512i out[4], const unsigned char *from, size_t n, int n_rows, __mmask64 columns) {
    __m512i row[4];
    for (int k = 0; k < 4; k++)
        row[k] = k < n_rows ? _mm512_maskz_loadu_epi8(columns, from + (size_t)k * n) : _mm512_setzero_si512();
    __m512i low = _mm512_unpacklo_epi8(row[0], row[1]), high = _mm512_unpackhi_epi8(row[0], row[1]);
    __m512i low2 = _mm512_unpacklo_epi8(row[2], row[3]), high2 = _mm512_unpackhi_epi8(row[2], row[3]);
    out[0] = _mm512_unpacklo_epi16(low, low2);
    out[1] = _mm512_unpackhi_epi16(low, low2);
    out[2] = _mm512_unpacklo_epi16(high, high2);
    out[3] = _mm512_unpackhi_epi16(high, high2);
}

/* Vector j of 64 columns has columns 16 * lane + 4 * j + element. starts[r] is for the one whose first column is of
 * channel r. */
static void down(unsigned char *to, const unsigned char *from, size_t n, const image_axis *axis, int i,
                 const uint8_t background[3]) {
    int32_t start[3];
    image_resize_start(start, axis, i, background);
    __m512i starts[3];
    for (int r = 0; r < 3; r++) {
        int32_t of[16];
        for (int e = 0; e < 16; e++) of[e] = start[(16 * (e / 4) + e % 4 + r) % 3];
        starts[r] = _mm512_loadu_si512(of);
    }
    for (size_t x = 0; x < n; x += 64) {
        __mmask64 columns = n - x < 64 ? (UINT64_C(1) << (n - x)) - 1 : ~UINT64_C(0);
        const image_tap_digits *taps = axis->digits + (ptrdiff_t)i * (axis->stride / 4);
        sums s[4] = {no_sums(), no_sums(), no_sums(), no_sums()};
        for (int k = 0; k < axis->n[i]; k += 4, taps++) {
            __m512i pixels[4];
            interleave(pixels, from + (size_t)k * n + x, n, axis->n[i] - k, columns);
            for (int j = 0; j < 4; j++) add_products(&s[j], pixels[j], taps);
        }
        __m512i of[4];
        for (size_t j = 0; j < 4; j++) of[j] = total(s[j], starts[(x + 4 * j) % 3]);
        __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(of[0], of[1]), _mm512_packs_epi32(of[2], of[3]));
        _mm512_mask_storeu_epi8(to + x, columns, bytes);
    }
}

const image_resize_kernel image_resize_vnni = {ROWS, across, down};
