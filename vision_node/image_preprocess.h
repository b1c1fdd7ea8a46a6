/* RGB8 to what the vision tower reads: pad to a square, resize, cut out the middle; and what the tower takes a byte for,
 * rescaled and normalised.
 *
 *     st = image_preprocess(pixels, &image, &model->config.preprocess, &e);
 *     image_levels(levels, &model->config.preprocess);
 *
 * levels[c][pixels[y, x, c]] is element [c, y, x] of what the reference's image processor makes of the image, bit for
 * bit. Any thread. */
#ifndef VISION_NODE_IMAGE_PREPROCESS_H
#define VISION_NODE_IMAGE_PREPROCESS_H

#include "model/model_config.h"
#include "vision_node/image_decode.h"

/* pixels [size, size, 3], channel order R, G, B. size <= resize <= IMAGE_RESIZE_SIDE_MAX.
 * With pad_to_square the image lies in the middle of a square of pad_rgb; an odd rest goes below and
 * to the right. The middle is cut out at half the rest, rounded down. With keeps_aspect the longer side may
 * become very long; only what is cut out is computed.
 * Memory: as image_resize. Errors: BAD_ARGUMENT, NO_MEMORY. */
MUST_USE status image_preprocess(unsigned char *pixels, const image_rgb *image,
                                 const model_preprocess_config *config, err *e);

/*     r = f32(f64(byte) * rescale_factor),   levels[c][byte] = (r - mean[c]) / std[c]  in f32 */
void image_levels(float levels[3][256], const model_preprocess_config *config);

#endif
