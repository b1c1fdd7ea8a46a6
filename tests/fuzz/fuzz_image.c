/* An image file from outside, decoded as the sandboxed process does it: pixels only where they were
 * allocated, within the limits, however damaged the file is. */
#include <string.h>

#include "base/check.h"
#include "vision_node/image_decode.h"
#include "vision_node/image_formats.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    image_limits limits = {.pixels_max = 1u << 20};
    image_rgb image = {0};
    image_info info;
    err e;
    bytes encoded = {data, size};
    int orientation = image_exif_orientation(image_format_of(encoded), encoded);
    CHECK(orientation >= 1 && orientation <= 8, "an orientation is one of eight");
    if (image_decode(&image, &info, encoded, &limits, &e) != STATUS_OK) {
        CHECK(!image.pixels && e.text[0], "a refusal says why and leaves nothing");
        return 0;
    }
    size_t n = (size_t)image.width * (size_t)image.height;
    CHECK(n > 0 && n <= limits.pixels_max, "an image keeps within the limit");
    CHECK(info.width == image.width && info.height == image.height, "the size is that of the file");
    uint64_t sum = 0;
    for (size_t i = 0; i < 3 * n; i++) sum += image.pixels[i];
    CHECK(sum <= 3 * 255 * (uint64_t)n, "every pixel can be read");
    int width = image.width;
    if (image_rgb_orient(&image, info.orientation, &e) == STATUS_OK)
        CHECK(image.width == (info.orientation >= 5 ? info.height : width), "turning swaps the sides");
    image_rgb_deinit(&image);
    return 0;
}
