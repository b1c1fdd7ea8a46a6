/* The inner loops of the resize in plain C: the specification of image_resize_avx2.c. */
#include "vision_node/image_resize_kernel.h"

static void across(unsigned char *to, const unsigned char *from, size_t readable_bytes,
                   const image_axis *axis, const uint8_t background[3]) {
    (void)readable_bytes;
    for (int i = 0; i < axis->n_out; i++, to += 3) {
        const unsigned char *pixel = from + 3 * (ptrdiff_t)axis->first[i];
        const int32_t *taps = axis->taps + (ptrdiff_t)i * axis->stride;
        int32_t red = IMAGE_RESIZE_HALF + background[0] * axis->background_sum[i];
        int32_t green = IMAGE_RESIZE_HALF + background[1] * axis->background_sum[i];
        int32_t blue = IMAGE_RESIZE_HALF + background[2] * axis->background_sum[i];
        for (int k = 0; k < axis->n[i]; k++, pixel += 3) {
            red += pixel[0] * taps[k];
            green += pixel[1] * taps[k];
            blue += pixel[2] * taps[k];
        }
        to[0] = image_resize_clip(red);
        to[1] = image_resize_clip(green);
        to[2] = image_resize_clip(blue);
    }
}

static void down(unsigned char *to, const unsigned char *from, size_t n, const int32_t *taps,
                 int n_taps, const int32_t start[3], int32_t *scratch) {
    for (size_t i = 0; i < n; i++) scratch[i] = start[i % 3];
    for (int k = 0; k < n_taps; k++, from += n) {
        int32_t tap = taps[k];
        for (size_t i = 0; i < n; i++) scratch[i] += tap * from[i];
    }
    for (size_t i = 0; i < n; i++) to[i] = image_resize_clip(scratch[i]);
}

const image_resize_kernel image_resize_generic = {across, down};
