/* The front of image decoding: size limit, magic bytes, the right decoder, orientation.
 *
 * The order is fixed: bytes cap, magic, header, pixel cap, decode. Nothing is allocated by a number
 * from the file before that number has passed its limit. */
#include "vision_node/image_decode.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "vision_node/image_formats.h"

const char *image_format_name(image_format format) {
    switch (format) {
    case IMAGE_FORMAT_JPEG: return "JPEG";
    case IMAGE_FORMAT_PNG: return "PNG";
    case IMAGE_FORMAT_WEBP: return "WebP";
    case IMAGE_FORMAT_UNKNOWN: break;
    }
    return "unknown";
}

image_format image_format_of(bytes encoded) {
    static const unsigned char png[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
    const unsigned char *d = encoded.data;
    if (bytes_has(encoded, 0, 3) && d[0] == 0xFF && d[1] == 0xD8 && d[2] == 0xFF)
        return IMAGE_FORMAT_JPEG;
    if (bytes_has(encoded, 0, sizeof png) && memcmp(d, png, sizeof png) == 0)
        return IMAGE_FORMAT_PNG;
    if (bytes_has(encoded, 0, 16) && memcmp(d, "RIFF", 4) == 0 && memcmp(d + 8, "WEBPVP8", 7) == 0)
        return IMAGE_FORMAT_WEBP;
    return IMAGE_FORMAT_UNKNOWN;
}

status image_rgb_open(image_rgb *out, uint64_t width, uint64_t height, const image_limits *limits,
                      err *e) {
    uint64_t pixels_max = limits->pixels_max ? limits->pixels_max : IMAGE_PIXELS_MAX;
    if (width == 0 || height == 0)
        return fail(e, STATUS_IMAGE_UNDECODABLE, "image of %" PRIu64 " x %" PRIu64 " has no pixels",
                    width, height);
    if (width > IMAGE_SIDE_MAX || height > IMAGE_SIDE_MAX)
        return fail(e, STATUS_IMAGE_TOO_LARGE,
                    "image of %" PRIu64 " x %" PRIu64 ", the longest side allowed is %d", width,
                    height, IMAGE_SIDE_MAX);
    if (width * height > pixels_max)
        return fail(e, STATUS_IMAGE_TOO_LARGE,
                    "image of %" PRIu64 " x %" PRIu64 " is %" PRIu64 " pixels, the limit is %" PRIu64,
                    width, height, width * height, pixels_max);
    unsigned char *pixels = malloc((size_t)(width * height * 3));
    if (!pixels)
        return fail(e, STATUS_NO_MEMORY, "%" PRIu64 " bytes for the pixels of an image",
                    width * height * 3);
    *out = (image_rgb){.width = (int)width, .height = (int)height, .pixels = pixels};
    return STATUS_OK;
}

void image_rgb_deinit(image_rgb *image) {
    free(image->pixels);
    *image = (image_rgb){0};
}

status image_decode(image_rgb *out, image_info *info, bytes encoded, const image_limits *limits,
                    err *e) {
    CHECK(out->pixels == NULL, "decoding fills an empty image");
    *info = (image_info){.orientation = 1};
    uint64_t bytes_max = limits->encoded_bytes_max ? limits->encoded_bytes_max
                                                   : IMAGE_ENCODED_BYTES_MAX;
    if (encoded.len_bytes == 0) return fail(e, STATUS_IMAGE_UNDECODABLE, "image is empty");
    if (encoded.len_bytes > bytes_max)
        return fail(e, STATUS_IMAGE_TOO_LARGE, "image file of %zu bytes, the limit is %" PRIu64,
                    encoded.len_bytes, bytes_max);
    info->format = image_format_of(encoded);
    status st = STATUS_OK;
    switch (info->format) {
    case IMAGE_FORMAT_JPEG: st = image_jpeg_decode(out, encoded, limits, e); break;
    case IMAGE_FORMAT_PNG: st = image_png_decode(out, encoded, limits, e); break;
    case IMAGE_FORMAT_WEBP: st = image_webp_decode(out, encoded, limits, e); break;
    case IMAGE_FORMAT_UNKNOWN:
        return fail(e, STATUS_IMAGE_UNDECODABLE,
                    "not a JPEG, PNG or WebP image (%zu bytes starting with 0x%02x)",
                    encoded.len_bytes, encoded.data[0]);
    }
    if (st != STATUS_OK) return st;
    info->width = out->width;
    info->height = out->height;
    info->orientation = image_exif_orientation(info->format, encoded);
    return STATUS_OK;
}

/* Orientation o of the stored picture, as steps from the upright picture's pixel (x, y) to the
 * stored one: where (0, 0) is found, and how far one step right and one step down go.
 *
 *     2 mirrored   3 turned by half   4 upside-down mirror
 *     5 transposed 6 needs a quarter turn clockwise   7 anti-transposed   8 counter-clockwise */
status image_rgb_orient(image_rgb *image, int orientation, err *e) {
    if (orientation < 1 || orientation > 8)
        return fail(e, STATUS_BAD_ARGUMENT, "EXIF orientation %d, need 1..8", orientation);
    if (orientation == 1) return STATUS_OK;
    ptrdiff_t w = image->width, h = image->height;
    bool is_transposed = orientation >= 5;
    bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    ptrdiff_t origin = (from_bottom ? (h - 1) * w : 0) + (from_right ? w - 1 : 0);
    ptrdiff_t along_x = from_right ? -1 : 1, along_y = from_bottom ? -w : w;
    ptrdiff_t step_right = is_transposed ? along_y : along_x;
    ptrdiff_t step_down = is_transposed ? along_x : along_y;

    image_rgb turned = {.width = is_transposed ? image->height : image->width,
                        .height = is_transposed ? image->width : image->height};
    turned.pixels = malloc((size_t)w * (size_t)h * 3);
    if (!turned.pixels)
        return fail(e, STATUS_NO_MEMORY, "%zu bytes to turn an image", (size_t)w * (size_t)h * 3);
    for (int y = 0; y < turned.height; y++) {
        const unsigned char *from = image->pixels + 3 * (origin + y * step_down);
        unsigned char *to = image_rgb_row(&turned, y);
        for (int x = 0; x < turned.width; x++) {
            to[0] = from[0];
            to[1] = from[1];
            to[2] = from[2];
            to += 3;
            /* The step after the last pixel would point outside the image: it is never taken. */
            if (x + 1 < turned.width) from += 3 * step_right;
        }
    }
    image_rgb_deinit(image);
    *image = turned;
    return STATUS_OK;
}
