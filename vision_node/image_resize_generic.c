/* The inner loops of the resize in plain C: the specification of the others. */
#include "vision_node/image_resize_kernel.h"

static void across(unsigned char *to, const unsigned char *from, size_t from_bytes, const image_axis *axis,
                   const uint8_t background[3]) {
    (void)from_bytes;
    for (int i = 0; i < axis->n_out; i++, to += 3) {
        const unsigned char *pixel = from + 3 * (ptrdiff_t)axis->first[i];
        const int32_t *taps = axis->taps + (ptrdiff_t)i * axis->stride;
        int32_t sum[3];
        image_resize_start(sum, axis, i, background);
        for (int k = 0; k < axis->n[i]; k++, pixel += 3)
            for (int c = 0; c < 3; c++) sum[c] += pixel[c] * taps[k];
        for (int c = 0; c < 3; c++) to[c] = image_resize_clip(sum[c]);
    }
}

static void down(unsigned char *to, const unsigned char *from, size_t n, const image_axis *axis, int i,
                 const uint8_t background[3]) {
    enum { COLUMNS = 48 }; /* a multiple of three channels */
    const int32_t *taps = axis->taps + (ptrdiff_t)i * axis->stride;
    int32_t start[3], sum[COLUMNS];
    image_resize_start(start, axis, i, background);
    for (size_t x = 0; x < n; x += COLUMNS) {
        size_t n_columns = n - x < COLUMNS ? n - x : COLUMNS;
        for (size_t j = 0; j < n_columns; j++) sum[j] = start[j % 3];
        for (size_t k = 0; k < (size_t)axis->n[i]; k++)
            for (size_t j = 0; j < n_columns; j++) sum[j] += taps[k] * from[k * n + x + j];
        for (size_t j = 0; j < n_columns; j++) to[x + j] = image_resize_clip(sum[j]);
    }
}

const image_resize_kernel image_resize_generic = {1, across, down};
