/* Private to the image library: one decoder a format, and what they share.
 *
 * Each decoder reads the header, hands width and height to image_rgb_open (which enforces the
 * limits), and only then lets its library allocate. On failure out stays empty. Any thread. */
#ifndef VISION_NODE_IMAGE_FORMATS_H
#define VISION_NODE_IMAGE_FORMATS_H

#include "vision_node/image_decode.h"

MUST_USE status image_jpeg_decode(image_rgb *out, bytes encoded, const image_limits *limits, err *e);
MUST_USE status image_png_decode(image_rgb *out, bytes encoded, const image_limits *limits, err *e);
MUST_USE status image_webp_decode(image_rgb *out, bytes encoded, const image_limits *limits, err *e);

/* Checks the limits, then allocates [height, width, 3], not cleared.
 * Errors: IMAGE_TOO_LARGE, IMAGE_UNDECODABLE (a side of zero), NO_MEMORY. */
MUST_USE status image_rgb_open(image_rgb *out, uint64_t width, uint64_t height,
                               const image_limits *limits, err *e);

/* EXIF orientation of a whole file, 1..8; 1 when there is none. Never reads outside encoded and
 * never fails: nonsense counts as absent. */
int image_exif_orientation(image_format format, bytes encoded);

static inline unsigned char *image_rgb_row(const image_rgb *image, int y) {
    return image->pixels + (size_t)y * (size_t)image->width * 3;
}

/* One byte a pixel at the end of a row becomes three in place, each times scale: sample x lies at byte 2w + x, its three
 * bytes go to 3x, and 3x + 2 <= 2w + x for every x < w. */
static inline void image_spread_grey(unsigned char *row, size_t width, unsigned scale) {
    const unsigned char *grey = row + 2 * width;
    for (size_t x = 0; x < width; x++) {
        unsigned char v = (unsigned char)(grey[x] * scale);
        row[3 * x] = row[3 * x + 1] = row[3 * x + 2] = v;
    }
}

#endif
