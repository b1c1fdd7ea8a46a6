/* Encoded image bytes to RGB, byte for byte what Pillow's Image.open(...).convert("RGB") gives.
 *
 *     image_limits limits = {0};                    // all defaults
 *     image_rgb image = {0};
 *     image_info info;
 *     st = image_decode(&image, &info, encoded, &limits, &e);
 *     if (st == STATUS_OK && wants_exif) st = image_rgb_orient(&image, info.orientation, &e);
 *     image_rgb_deinit(&image);
 *
 * JPEG, PNG and WebP, told apart by their first bytes. Alpha is dropped without compositing, 16-bit
 * grey saturates at 255, other 16-bit samples keep their high byte, CMYK follows Pillow's inversion,
 * colour profiles and gamma are ignored, of an animation the first frame counts.
 *
 * This runs third-party decoders on bytes from outside: programs call it through image_decoder.h,
 * which puts it into a process of its own. Any thread; no state is kept. */
#ifndef VISION_NODE_IMAGE_DECODE_H
#define VISION_NODE_IMAGE_DECODE_H

#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"

#define IMAGE_ENCODED_BYTES_MAX (UINT64_C(64) << 20)
#define IMAGE_PIXELS_MAX        UINT64_C(64000000)
#define IMAGE_SIDE_MAX          65535 /* pixels; the largest a JPEG can say */
#define IMAGE_JPEG_SCANS_MAX    64    /* ordinary progressive files have 10 */

typedef enum { IMAGE_FORMAT_UNKNOWN, IMAGE_FORMAT_JPEG, IMAGE_FORMAT_PNG, IMAGE_FORMAT_WEBP } image_format;

typedef struct {
    uint64_t encoded_bytes_max; /* 0: IMAGE_ENCODED_BYTES_MAX */
    uint64_t pixels_max;        /* width * height; 0: IMAGE_PIXELS_MAX */
} image_limits;

typedef struct {
    int width, height;
    unsigned char *pixels; /* [height, width, 3], owned; NULL when empty */
} image_rgb;

typedef struct {
    image_format format;
    int width, height; /* as stored in the file, before any orientation */
    int orientation;   /* EXIF tag 0x0112, 1..8; 1 when absent or nonsense */
} image_info;

/* Static: "JPEG", "PNG", "WebP" or "unknown". */
const char *image_format_name(image_format format);

/* By the first bytes only; never by a name. */
image_format image_format_of(bytes encoded);

/* out must be empty; it is filled on success only. Every limit is checked before the memory it
 * bounds is taken: 3 bytes a pixel for out, and inside the libraries at most 8 more a pixel.
 * Errors: IMAGE_TOO_LARGE (with what was found and the limit), IMAGE_UNDECODABLE (with the
 * library's reason), NO_MEMORY. Truncated files are errors, as in Pillow. Damage that the decoder
 * can step over without running out of data is not, as in Pillow. */
MUST_USE status image_decode(image_rgb *out, image_info *info, bytes encoded,
                             const image_limits *limits, err *e);

void image_rgb_deinit(image_rgb *image); /* zeroed images and repeated calls are fine */

/* Turns and mirrors the pixels so that an image with this EXIF orientation stands upright, as
 * PIL.ImageOps.exif_transpose does. 1 does nothing. Errors: BAD_ARGUMENT (not 1..8), NO_MEMORY. */
MUST_USE status image_rgb_orient(image_rgb *image, int orientation, err *e);

#endif
