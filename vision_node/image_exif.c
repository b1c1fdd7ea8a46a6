/* The one EXIF field we need, found without an EXIF library: orientation, tag 0x0112 of the first
 * directory of a small TIFF file that travels in a JPEG APP1 segment, a PNG eXIf chunk or a WebP
 * EXIF chunk. Every read is bounded; every loop moves forward by at least one byte.
 *
 * Not read: orientation written as XMP, or as hex text in a PNG ("Raw profile type exif"). */
#include <string.h>

#include "vision_node/image_formats.h"

#define TAG_ORIENTATION 0x0112
#define TYPE_BYTE       1
#define TYPE_SHORT      3
#define TYPE_LONG       4
#define ENTRY_BYTES     12

static bytes part_of(bytes b, size_t offset, size_t n) {
    if (!bytes_has(b, offset, n)) return (bytes){0};
    return (bytes){b.data + offset, n};
}

static uint32_t load_be(const unsigned char *p, int n) {
    uint32_t v = 0;
    for (int i = 0; i < n; i++) v = v << 8 | p[i];
    return v;
}

static uint32_t load(const unsigned char *p, int n, bool is_big) {
    return is_big ? load_be(p, n) : (uint32_t)bytes_load_le(p, n);
}

static int orientation_of_tiff(bytes tiff) {
    if (!bytes_has(tiff, 0, 8)) return 1;
    bool is_big = memcmp(tiff.data, "MM\0*", 4) == 0;
    if (!is_big && memcmp(tiff.data, "II*\0", 4) != 0) return 1;
    size_t directory = load(tiff.data + 4, 4, is_big);
    if (!bytes_has(tiff, directory, 2)) return 1;
    size_t n = load(tiff.data + directory, 2, is_big);
    int found = 1;
    for (size_t i = 0; i < n && bytes_has(tiff, directory + 2 + i * ENTRY_BYTES, ENTRY_BYTES); i++) {
        const unsigned char *entry = tiff.data + directory + 2 + i * ENTRY_BYTES;
        if (load(entry, 2, is_big) != TAG_ORIENTATION || load(entry + 4, 4, is_big) != 1) continue;
        uint32_t type = load(entry + 2, 2, is_big), v = 0;
        if (type == TYPE_BYTE) v = entry[8];
        if (type == TYPE_SHORT) v = load(entry + 8, 2, is_big);
        if (type == TYPE_LONG) v = load(entry + 8, 4, is_big);
        found = v >= 1 && v <= 8 ? (int)v : 1; /* the last entry counts, as in Pillow */
    }
    return found;
}

/* The payload with or without the six bytes "Exif\0\0" in front. */
static bytes tiff_in(bytes payload) {
    if (bytes_has(payload, 0, 6) && memcmp(payload.data, "Exif\0\0", 6) == 0)
        return part_of(payload, 6, payload.len_bytes - 6);
    return payload;
}

static bytes find_in_jpeg(bytes file) {
    size_t at = 2;
    while (bytes_has(file, at, 4)) {
        if (file.data[at] != 0xFF || file.data[at + 1] == 0xFF || file.data[at + 1] == 0) {
            at++;
            continue;
        }
        unsigned marker = file.data[at + 1];
        if (marker == 0xDA || marker == 0xD9) break; /* pixel data or the end */
        at += 2;
        if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) continue; /* no length */
        size_t n = load_be(file.data + at, 2);
        bytes payload = n >= 2 ? part_of(file, at + 2, n - 2) : (bytes){0};
        if (marker == 0xE1 && bytes_has(payload, 0, 6) && memcmp(payload.data, "Exif\0\0", 6) == 0)
            return payload;
        at += n >= 2 ? n : 2;
    }
    return (bytes){0};
}

static bytes find_in_png(bytes file) {
    bytes found = {0};
    for (size_t at = 8; bytes_has(file, at, 8);) {
        size_t n = load_be(file.data + at, 4);
        if (memcmp(file.data + at + 4, "eXIf", 4) == 0) found = part_of(file, at + 8, n);
        if (memcmp(file.data + at + 4, "IEND", 4) == 0) break;
        at += 12 + n;
    }
    return found;
}

static bytes find_in_webp(bytes file) {
    for (size_t at = 12; bytes_has(file, at, 8);) {
        size_t n = (size_t)bytes_load_le(file.data + at + 4, 4);
        if (memcmp(file.data + at, "EXIF", 4) == 0) return part_of(file, at + 8, n);
        at += 8 + n + (n & 1);
    }
    return (bytes){0};
}

int image_exif_orientation(image_format format, bytes encoded) {
    switch (format) {
    case IMAGE_FORMAT_JPEG: return orientation_of_tiff(tiff_in(find_in_jpeg(encoded)));
    case IMAGE_FORMAT_PNG: return orientation_of_tiff(tiff_in(find_in_png(encoded)));
    case IMAGE_FORMAT_WEBP: return orientation_of_tiff(tiff_in(find_in_webp(encoded)));
    case IMAGE_FORMAT_UNKNOWN: break;
    }
    return 1;
}
