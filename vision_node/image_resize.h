/* Bicubic resize of RGB8, bit for bit Pillow's Image.resize(size, BICUBIC), optionally of the image
 * laid on a larger canvas of one colour that is never built, and optionally only a part of the result.
 *
 *     image_canvas canvas = {.width = side, .height = side, .x = 0, .y = 80, .rgb = {127, 127, 127}};
 *     image_target target = {.width = 384, .height = 384, .out_width = 384, .out_height = 384};
 *     st = image_resize(out, &target, &image, &canvas, &e);      // NULL: no canvas
 *
 * Any thread. */
#ifndef VISION_NODE_IMAGE_RESIZE_H
#define VISION_NODE_IMAGE_RESIZE_H

#include "vision_node/image_decode.h"

#define IMAGE_RESIZE_SIDE_MAX 4096 /* pixels that are made; towers use 224 to 512 */

typedef struct {
    int width, height; /* at least the image's */
    int x, y;          /* where the image's first pixel lies */
    uint8_t rgb[3];    /* everywhere else */
} image_canvas;

/* The canvas becomes width x height, of which out_width x out_height from (x, y) are made. */
typedef struct {
    int width, height;
    int x, y, out_width, out_height;
} image_target;

/* out [out_height, out_width, 3]. Two passes, horizontal then vertical, each rounded to 8 bits;
 * coefficients have 22 fractional bits, sums are exact 32-bit integers, so every variant of the
 * inner loops gives the same bytes.
 *
 * Takes from the heap, and gives back before it returns: source rows * out_width * 3 bytes (at most
 * 65535 * 4096 * 3) and about 12 * out + 28 * in bytes of coefficients an axis.
 * Errors: BAD_ARGUMENT (empty image, sizes out of range, image not inside its canvas, the part not inside
 * the result), NO_MEMORY.
 * Source: Pillow's Resample.c. */
MUST_USE status image_resize(unsigned char *out, const image_target *target, const image_rgb *image,
                             const image_canvas *canvas, err *e);

#endif
