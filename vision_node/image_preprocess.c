/* The padded square is described to the resize, not built: a 65535 x 1 image would need 12 GB. */
#include "vision_node/image_preprocess.h"

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

void image_levels(float levels[3][256], const model_preprocess_config *config) {
    for (int v = 0; v < 256; v++) {
        float r = (float)((double)v * config->rescale_factor);
        for (int c = 0; c < 3; c++) levels[c][v] = (r - config->mean[c]) / config->std[c];
    }
}

status image_preprocess(unsigned char *pixels, const image_rgb *image,
                        const model_preprocess_config *config, err *e) {
    if (config->size < 1 || config->size > config->resize || config->resize > IMAGE_RESIZE_SIDE_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "image of %d cut from %d, need 1 to %d", config->size, config->resize,
                    IMAGE_RESIZE_SIDE_MAX);
    image_canvas canvas = {.width = image->width, .height = image->height};
    if (config->pad_to_square) canvas = square_around(image, config->pad_rgb);
    image_target target = middle_of(&canvas, config);
    return image_resize(pixels, &target, image, &canvas, e);
}
