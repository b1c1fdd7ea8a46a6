/* The padded square is described to the resize, not built: a 65535 x 1 image would need 12 GB.
 *
 * A pixel has 256 values, so rescaling and normalising is a table of 256 x 3 floats computed with
 * the reference's operations in the reference's precision. */
#include "vision_node/image_preprocess.h"

#include <stdlib.h>

#include "vision_node/image_resize.h"

static image_canvas square_around(const image_rgb *image, const uint8_t rgb[3]) {
    int side = image->width > image->height ? image->width : image->height;
    return (image_canvas){.width = side,
                          .height = side,
                          .x = (side - image->width) / 2,
                          .y = (side - image->height) / 2,
                          .rgb = {rgb[0], rgb[1], rgb[2]}};
}

/* The longer side is truncated as the reference does, with the product before the division. */
static image_target middle_of(const image_canvas *canvas, const model_preprocess_config *config) {
    image_target t = {.width = config->resize, .height = config->resize,
                      .out_width = config->size, .out_height = config->size};
    int shorter = canvas->width < canvas->height ? canvas->width : canvas->height;
    if (config->keeps_aspect) {
        t.width = (int)((double)config->resize * canvas->width / shorter);
        t.height = (int)((double)config->resize * canvas->height / shorter);
    }
    t.x = (t.width - config->size) / 2;
    t.y = (t.height - config->size) / 2;
    return t;
}

static void normalise(float *planes, const unsigned char *pixels, size_t n_pixels,
                      const model_preprocess_config *config) {
    float table[3][256];
    for (int v = 0; v < 256; v++) {
        float r = (float)((double)v * config->rescale_factor);
        for (int c = 0; c < 3; c++) table[c][v] = (r - config->mean[c]) / config->std[c];
    }
    for (int c = 0; c < 3; c++) {
        float *plane = planes + (size_t)c * n_pixels;
        for (size_t i = 0; i < n_pixels; i++) plane[i] = table[c][pixels[3 * i + (size_t)c]];
    }
}

status image_preprocess(float *planes, const image_rgb *image,
                        const model_preprocess_config *config, err *e) {
    if (config->size < 1 || config->size > config->resize || config->resize > IMAGE_RESIZE_SIDE_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "image of %d cut from %d, need 1 to %d", config->size, config->resize,
                    IMAGE_RESIZE_SIDE_MAX);
    size_t n_pixels = (size_t)config->size * (size_t)config->size;
    unsigned char *resized = malloc(n_pixels * 3);
    if (!resized) return fail(e, STATUS_NO_MEMORY, "%zu bytes to resize an image", n_pixels * 3);
    image_canvas canvas = {.width = image->width, .height = image->height};
    if (config->pad_to_square) canvas = square_around(image, config->pad_rgb);
    image_target target = middle_of(&canvas, config);
    status st = image_resize(resized, &target, image, &canvas, e);
    if (st == STATUS_OK) normalise(planes, resized, n_pixels, config);
    free(resized);
    return st;
}
