/* The inner loops of the resize for AVX2, chosen at run time.
 *
 * vpmaddwd multiplies 16-bit numbers and adds two neighbours, here two taps of a channel, into 32 bits. A coefficient
 * has 24 bits, so it is split: tap = high * 2^12 + low with 0 <= low < 4096. Both sums are exact (255 * 4096 * n < 2^31
 * for the n <= 4 * 65535 / size of any real use, and the total wraps the same way as one 32-bit sum would), hence the
 * bytes are those of image_resize_generic.c.
 *
 * across: four taps and four rows at a time, a vector for two rows. 16 bytes of a row are loaded, 12 of them are pixels
 * p0..p3; one shuffle lays p0 and p1 out as 16-bit pairs (r0 r1)(g0 g1)(b0 b1)(0 0), another p2 and p3.
 * down: two taps and 32 columns at a time; the bytes of two rows are interleaved. */
#include "vision_node/image_resize_kernel.h"

#include <immintrin.h>
#include <string.h>

#define LOW_BITS 12
#define ROWS     4  /* of across at a time */
#define COLUMNS  32 /* of down */

bool image_resize_avx2_works(void) { return __builtin_cpu_supports("avx2"); }

typedef struct {
    __m256i high, low;
} halves;

static inline halves no_sum(void) { return (halves){_mm256_setzero_si256(), _mm256_setzero_si256()}; }

static inline void add_products(halves *sum, __m256i pairs, halves taps) {
    sum->high = _mm256_add_epi32(sum->high, _mm256_madd_epi16(pairs, taps.high));
    sum->low = _mm256_add_epi32(sum->low, _mm256_madd_epi16(pairs, taps.low));
}

/* Before it is clipped to a byte. */
static inline __m256i total(halves sum, __m256i start) {
    __m256i both = _mm256_add_epi32(_mm256_slli_epi32(sum.high, LOW_BITS), sum.low);
    return _mm256_srai_epi32(_mm256_add_epi32(both, start), IMAGE_RESIZE_BITS);
}

static inline __m128i load(const unsigned char *p) { return _mm_loadu_si128((const __m128i *)p); }

/* out[0]: (t0 t1) everywhere, out[1]: (t2 t3). */
static inline void split_four(halves out[2], const int32_t *taps) {
    __m128i four = _mm_loadu_si128((const __m128i *)taps);
    __m128i low = _mm_and_si128(four, _mm_set1_epi32((1 << LOW_BITS) - 1));
    __m256i packed = _mm256_broadcastsi128_si256(_mm_packs_epi32(_mm_srai_epi32(four, LOW_BITS), low));
    out[0] = (halves){_mm256_shuffle_epi32(packed, 0x00), _mm256_shuffle_epi32(packed, 0xAA)};
    out[1] = (halves){_mm256_shuffle_epi32(packed, 0x55), _mm256_shuffle_epi32(packed, 0xFF)};
}

static inline void add_four(halves *sum, const unsigned char *from, const unsigned char *other, const halves taps[2]) {
    const __m256i first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i second = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    __m256i pixels = _mm256_inserti128_si256(_mm256_castsi128_si256(load(from)), load(other), 1);
    add_products(sum, _mm256_shuffle_epi8(pixels, first), taps[0]);
    add_products(sum, _mm256_shuffle_epi8(pixels, second), taps[1]);
}

/* One pixel in each of four rows. The byte behind it is written as well where the row goes on. */
static inline void across_pixel(unsigned char *to, size_t to_bytes, const unsigned char *from, size_t from_bytes,
                                const image_axis *axis, int i, __m256i canvas, bool is_last) {
    const unsigned char *pixel = from + 3 * (ptrdiff_t)axis->first[i];
    const int32_t *taps = axis->taps + (ptrdiff_t)i * axis->stride;
    halves even = no_sum(), odd = no_sum(); /* rows 0 and 2, 1 and 3 */
    for (int k = 0; k < axis->n[i]; k += 4, pixel += 12) {
        halves four[2];
        split_four(four, taps + k);
        add_four(&even, pixel, pixel + 2 * from_bytes, four);
        add_four(&odd, pixel + from_bytes, pixel + 3 * from_bytes, four);
    }
    __m256i start = _mm256_mullo_epi32(canvas, _mm256_set1_epi32(axis->background_sum[i]));
    start = _mm256_add_epi32(start, _mm256_set1_epi32(IMAGE_RESIZE_HALF));
    __m256i words = _mm256_packs_epi32(total(even, start), total(odd, start));
    __m256i bytes = _mm256_packus_epi16(words, words);
    uint32_t rgb[ROWS];
    _mm_storel_epi64((__m128i *)rgb, _mm256_castsi256_si128(bytes));
    _mm_storel_epi64((__m128i *)(rgb + 2), _mm256_extracti128_si256(bytes, 1));
    for (size_t y = 0; y < ROWS; y++, to += to_bytes) {
        if (is_last) memcpy(to, &rgb[y], 3);
        else memcpy(to, &rgb[y], 4);
    }
}

static void across(unsigned char *to, const unsigned char *from, size_t from_bytes, const image_axis *axis,
                        const uint8_t background[3]) {
    __m256i canvas = _mm256_broadcastsi128_si256(_mm_setr_epi32(background[0], background[1], background[2], 0));
    size_t to_bytes = 3 * (size_t)axis->n_out;
    int last = axis->n_out - 1;
    for (int i = 0; i < last; i++) across_pixel(to + 3 * i, to_bytes, from, from_bytes, axis, i, canvas, false);
    across_pixel(to + 3 * last, to_bytes, from, from_bytes, axis, last, canvas, true);
}

static inline halves split_two(int32_t first, int32_t second) {
    int32_t mask = (1 << LOW_BITS) - 1;
    return (halves){_mm256_set1_epi32(((first >> LOW_BITS) & 0xFFFF) | (int32_t)((uint32_t)(second >> LOW_BITS) << 16)),
                    _mm256_set1_epi32((first & mask) | (second & mask) << 16)};
}

/* Columns x .. x + 31. Taps behind the last are zero, rows are not there. starts[r]: of eight columns of which the first is of channel r. */
static inline void down_columns(unsigned char *to, const unsigned char *from, size_t n, const int32_t *taps, int n_taps,
                                size_t x, const __m256i starts[3]) {
    halves sum[4] = {no_sum(), no_sum(), no_sum(), no_sum()};
    for (int k = 0; k < n_taps; k += 2) {
        bool has_second = k + 1 < n_taps;
        halves two = split_two(taps[k], taps[k + 1]);
        const unsigned char *row = from + (size_t)k * n + x;
        for (size_t half = 0; half < 2; half++, row += 16) {
            __m128i first = load(row), second = has_second ? load(row + n) : _mm_setzero_si128();
            add_products(&sum[2 * half], _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(first, second)), two);
            add_products(&sum[2 * half + 1], _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(first, second)), two);
        }
    }
    __m256i of[4];
    for (size_t j = 0; j < 4; j++) of[j] = total(sum[j], starts[(x + 8 * j) % 3]);
    __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(of[0], of[1]), _mm256_packs_epi32(of[2], of[3]));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); /* packs stay in their half */
    _mm256_storeu_si256((__m256i *)(to + x), bytes);
}

/* The last columns are done twice in part when they are no whole block. */
static void down(unsigned char *to, const unsigned char *from, size_t n, const image_axis *axis, int i,
                 const uint8_t background[3]) {
    if (n < COLUMNS) {
        image_resize_generic.down(to, from, n, axis, i, background);
        return;
    }
    int32_t start[3];
    image_resize_start(start, axis, i, background);
    __m256i starts[3];
    for (int r = 0; r < 3; r++) {
        int32_t a = start[r], b = start[(r + 1) % 3], c = start[(r + 2) % 3];
        starts[r] = _mm256_setr_epi32(a, b, c, a, b, c, a, b);
    }
    const int32_t *taps = axis->taps + (ptrdiff_t)i * axis->stride;
    for (size_t x = 0; x < n; x += COLUMNS) {
        if (n - x < COLUMNS) x = n - COLUMNS;
        down_columns(to, from, n, taps, axis->n[i], x, starts);
    }
}

const image_resize_kernel image_resize_avx2 = {ROWS, across, down};
