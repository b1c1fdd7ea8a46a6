/* Private to the resize: the inner loops, in plain C, for AVX2 and for AVX-512 with VNNI. All give the same bytes
 * because all sums are exact. Any thread. */
#ifndef VISION_NODE_IMAGE_RESIZE_KERNEL_H
#define VISION_NODE_IMAGE_RESIZE_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMAGE_RESIZE_BITS 22 /* fraction of a coefficient */
#define IMAGE_RESIZE_HALF (1 << (IMAGE_RESIZE_BITS - 1))

/* Four taps side by side in base 256, for machines that multiply bytes:
 *     tap[k] = digit[0][k] + 256 * digit[1][k] + 65536 * digit[2][k],   every digit -128 to 127. */
typedef struct {
    int8_t digit[3][4];
} image_tap_digits;

static inline void image_tap_split(image_tap_digits *digits, size_t k, int32_t tap) {
    for (int d = 0; d < 3; d++) {
        int32_t digit = ((tap + 128) & 255) - 128;
        digits->digit[d][k] = (int8_t)digit;
        tap = (tap - digit) / 256;
    }
}

/* One axis: out sample i = clip((start + sum over k < n[i] of in[first[i] + k] * taps[i * stride + k]) >> BITS),
 * start = HALF + background * background_sum[i]. */
typedef struct {
    int n_out;
    int stride;               /* taps reserved for each output sample; a multiple of 4, rest zero */
    int *first, *n;           /* [n_out], inside the image; n may be 0 on a canvas */
    int32_t *taps;            /* [n_out, stride] */
    image_tap_digits *digits; /* [n_out, stride / 4] the same */
    int32_t *background_sum;  /* [n_out] taps that fell on the canvas */
} image_axis;

typedef struct {
    size_t n_rows; /* of across; where there are several, it loads sixteen bytes for every four pixels */
    /* to [n_rows, axis.n_out, 3], from rows of from_bytes. */
    void (*across)(unsigned char *to, const unsigned char *from, size_t from_bytes, const image_axis *axis,
                   const uint8_t background[3]);
    /* Output row i: to [n], from [axis.n[i], n], rows first[i] and on. n a multiple of 3. */
    void (*down)(unsigned char *to, const unsigned char *from, size_t n, const image_axis *axis, int i,
                 const uint8_t background[3]);
} image_resize_kernel;

extern const image_resize_kernel image_resize_generic;
extern const image_resize_kernel image_resize_avx2; /* the other two only where IMAGE_RESIZE_HAS_X86 */
extern const image_resize_kernel image_resize_vnni;

bool image_resize_avx2_works(void); /* on this machine */
bool image_resize_vnni_works(void);

/* All rows of across: to [n_rows, axis.n_out, 3], from [n_rows, width, 3]. Rows where the kernel would read beyond the last
 * are left to plain C; the last blocks of rows may overlap. */
void image_resize_across(const image_resize_kernel *kernel, unsigned char *to, const unsigned char *from, size_t n_rows,
                         size_t width, const image_axis *axis, const uint8_t background[3]);

static inline void image_resize_start(int32_t start[3], const image_axis *axis, int i, const uint8_t background[3]) {
    for (int c = 0; c < 3; c++) start[c] = IMAGE_RESIZE_HALF + background[c] * axis->background_sum[i];
}

static inline unsigned char image_resize_clip(int32_t sum) {
    int32_t v = sum >> IMAGE_RESIZE_BITS; /* arithmetic in every compiler we build with */
    return (unsigned char)(v < 0 ? 0 : v > 255 ? 255 : v);
}

#endif
