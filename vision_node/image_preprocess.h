/* RGB8 to what the vision tower reads: pad to a square, resize, cut out the middle, rescale, normalise,
 * planes first.
 *
 *     st = image_preprocess(planes, &image, &model->config.preprocess, &e);
 *
 * Equal to the reference's image processor on the same pixels, bit for bit. Any thread. */
#ifndef VISION_NODE_IMAGE_PREPROCESS_H
#define VISION_NODE_IMAGE_PREPROCESS_H

#include "model/model_config.h"
#include "vision_node/image_decode.h"

/*     r = f32(f64(pixel) * rescale_factor),   planes[c, y, x] = (r - mean[c]) / std[c]  in f32
 *
 * planes [3, size, size] f32, channel order R, G, B. size <= resize <= IMAGE_RESIZE_SIDE_MAX.
 * With pad_to_square the image lies in the middle of a square of pad_rgb; an odd rest goes below and
 * to the right. The middle is cut out at half the rest, rounded down. With keeps_aspect the longer side may
 * become very long; only what is cut out is computed.
 * Memory: as image_resize, plus size * size * 3 bytes; all given back before it returns.
 * Errors: BAD_ARGUMENT, NO_MEMORY. */
MUST_USE status image_preprocess(float *planes, const image_rgb *image,
                                 const model_preprocess_config *config, err *e);

#endif
