/* Private to the resize: the inner loops, in plain C and for AVX2. Both give the same bytes because
 * all sums are exact. Any thread. */
#ifndef VISION_NODE_IMAGE_RESIZE_KERNEL_H
#define VISION_NODE_IMAGE_RESIZE_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMAGE_RESIZE_BITS 22 /* fraction of a coefficient */
#define IMAGE_RESIZE_HALF (1 << (IMAGE_RESIZE_BITS - 1))

/* One axis: out sample i = clip((HALF + sum over k < n[i] of in[first[i] + k] * taps[i * stride + k]
 * + background * background_sum[i]) >> BITS). */
typedef struct {
    int n_out;
    int stride;              /* taps reserved for each output sample; a multiple of 4, rest zero */
    int *first, *n;          /* [n_out], inside the image; n may be 0 on a canvas */
    int32_t *taps;           /* [n_out, stride] */
    int32_t *background_sum; /* [n_out] taps that fell on the canvas */
} image_axis;

typedef struct {
    /* One row: to [axis.n_out, 3], from [.., 3]. readable_bytes: how much may be read at from; any
     * byte beyond what the taps need has no influence. */
    void (*across)(unsigned char *to, const unsigned char *from, size_t readable_bytes,
                   const image_axis *axis, const uint8_t background[3]);
    /* One row down a column: to [n], from n_taps rows of n, stride n. start [3]: initial sum of each
     * channel. scratch [n]. */
    void (*down)(unsigned char *to, const unsigned char *from, size_t n, const int32_t *taps,
                 int n_taps, const int32_t start[3], int32_t *scratch);
} image_resize_kernel;

extern const image_resize_kernel image_resize_generic;
extern const image_resize_kernel image_resize_avx2; /* only where IMAGE_RESIZE_HAS_AVX2 */

bool image_resize_avx2_works(void); /* on this machine */

static inline unsigned char image_resize_clip(int32_t sum) {
    int32_t v = sum >> IMAGE_RESIZE_BITS; /* arithmetic in every compiler we build with */
    return (unsigned char)(v < 0 ? 0 : v > 255 ? 255 : v);
}

#endif
