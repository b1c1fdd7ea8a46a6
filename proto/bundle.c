#include "proto/bundle.h"

#include "base/check.h"

#define FIXED_BYTES 8

static const unsigned char magic[4] = {'M', 'I', 'P', 'B'};

size_t bundle_header(unsigned char out[BUNDLE_HEADER_BYTES_MAX], const bytes *files, size_t n) {
    CHECK(n >= 2 && n <= MESSAGE_IMAGES_MAX, "a bundle has 2 to MESSAGE_IMAGES_MAX files");
    memcpy(out, magic, sizeof magic);
    bytes_store_le(out + 4, BUNDLE_VERSION, 2);
    bytes_store_le(out + 6, n, 2);
    for (size_t i = 0; i < n; i++) {
        CHECK(files[i].len_bytes > 0 && files[i].len_bytes <= MESSAGE_IMAGE_BYTES_MAX, "a file fits and is not empty");
        bytes_store_le(out + FIXED_BYTES + 4 * i, files[i].len_bytes, 4);
    }
    return FIXED_BYTES + 4 * n;
}

status bundle_decode(bundle *b, bytes payload, err *e) {
    uint16_t version = 0, n = 0;
    *b = (bundle){0};
    if (!bytes_get_u16(payload, 6, &n) || memcmp(payload.data, magic, sizeof magic) != 0)
        return fail(e, STATUS_BAD_MESSAGE, "bundle: %zu bytes that do not start as one", payload.len_bytes);
    (void)bytes_get_u16(payload, 4, &version);
    if (version != BUNDLE_VERSION)
        return fail(e, STATUS_BAD_MESSAGE, "bundle: version %u, this program reads %d", version, BUNDLE_VERSION);
    if (n < 2 || n > MESSAGE_IMAGES_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "bundle: %u images, allowed are 2 to %d", n, MESSAGE_IMAGES_MAX);
    size_t at = FIXED_BYTES + 4 * (size_t)n;
    for (size_t i = 0; i < n; i++) {
        uint32_t size = 0;
        if (!bytes_get_u32(payload, FIXED_BYTES + 4 * i, &size) || size == 0 || !bytes_has(payload, at, size))
            return fail(e, STATUS_BAD_MESSAGE, "bundle: image %zu of %u has %u bytes from %zu on, there are %zu in all",
                        i + 1, n, size, at, payload.len_bytes);
        b->files[i] = (bytes){payload.data + at, size};
        at += size;
    }
    if (at != payload.len_bytes)
        return fail(e, STATUS_BAD_MESSAGE, "bundle: ends at %zu of %zu bytes", at, payload.len_bytes);
    b->n = n;
    return STATUS_OK;
}
