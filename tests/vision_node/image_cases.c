#include "tests/vision_node/image_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "vision_node/image_preprocess.h"

unsigned char *image_case_load(const char *name, size_t *len_bytes) {
    char *path = path_join(TEST_DATA_DIR "/images", name);
    buf file;
    buf_init(&file, 1 << 20);
    if (!file_read(&file, path)) fail_msg("%s cannot be read", path);
    unsigned char *copy = malloc(file.len_bytes ? file.len_bytes : 1);
    assert_non_null(copy);
    memcpy(copy, file.data, file.len_bytes);
    *len_bytes = file.len_bytes;
    buf_deinit(&file);
    free(path);
    return copy;
}

int image_case_each(const char *table, image_case_row *row, void *arg) {
    size_t len_bytes;
    unsigned char *raw = image_case_load(table, &len_bytes);
    char *text = malloc(len_bytes + 1);
    assert_non_null(text);
    memcpy(text, raw, len_bytes);
    text[len_bytes] = 0;
    free(raw);
    int n_rows = 0;
    char *rest_of_text = NULL;
    for (char *line = strtok_r(text, "\n", &rest_of_text); line;
         line = strtok_r(NULL, "\n", &rest_of_text)) {
        if (line[0] == '#') continue;
        char *fields[IMAGE_FIELDS_MAX], *rest_of_line = NULL;
        int n = 0;
        for (char *f = strtok_r(line, "\t", &rest_of_line); f && n < IMAGE_FIELDS_MAX;
             f = strtok_r(NULL, "\t", &rest_of_line))
            fields[n++] = f;
        row(fields, n, arg);
        n_rows++;
    }
    free(text);
    return n_rows;
}

uint32_t image_case_mix(uint32_t i, uint32_t seed) {
    uint32_t x = i + seed * UINT32_C(0x9E3779B9);
    x ^= x >> 16;
    x *= UINT32_C(0x7FEB352D);
    x ^= x >> 15;
    x *= UINT32_C(0x846CA68B);
    return x ^ (x >> 16);
}

image_rgb image_case_pixels(uint32_t seed, int width, int height) {
    size_t n = (size_t)width * (size_t)height * 3;
    image_rgb image = {.width = width, .height = height, .pixels = malloc(n)};
    assert_non_null(image.pixels);
    for (size_t i = 0; i < n; i++) {
        unsigned char v = (unsigned char)(image_case_mix((uint32_t)i, seed) >> 24);
        image.pixels[i] = seed % 2 ? v : v > 127 ? 255 : 0;
    }
    return image;
}

unsigned char *image_case_damage(const unsigned char *data, size_t *len_bytes, const char *kind,
                                 uint32_t seed) {
    size_t n = *len_bytes;
    bool is_cut = strcmp(kind, "cut") == 0;
    if (is_cut) n = n * seed / 16;
    unsigned char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, data, n);
    for (uint32_t j = 0; !is_cut && j < 1 + seed % 4; j++)
        copy[image_case_mix(2 * j, seed) % n] = (unsigned char)image_case_mix(2 * j + 1, seed);
    *len_bytes = n;
    return copy;
}

void image_case_digest(char out[IMAGE_DIGEST_BYTES], const void *data, size_t len_bytes) {
    unsigned char digest[HASH_SHA256_BYTES];
    hash_sha256(digest, data, len_bytes);
    hash_hex(out, digest, (IMAGE_DIGEST_BYTES - 1) / 2);
}

void image_case_digest_rgb(char out[IMAGE_DIGEST_BYTES], const image_rgb *image) {
    image_case_digest(out, image->pixels, (size_t)image->width * (size_t)image->height * 3);
}

status image_case_planes(float *planes, const image_rgb *image, const model_preprocess_config *config, err *e) {
    size_t n = config->size > 0 ? (size_t)config->size * (size_t)config->size : 0;
    unsigned char *pixels = malloc(3 * n + 1);
    assert_non_null(pixels);
    pixels[3 * n] = 77;
    status st = image_preprocess(pixels, image, config, e);
    assert_int_equal(pixels[3 * n], 77);
    float levels[3][256];
    image_levels(levels, config);
    for (size_t i = 0; st == STATUS_OK && i < 3 * n; i++) planes[i] = levels[i / n][pixels[i % n * 3 + i / n]];
    free(pixels);
    return st;
}

model_preprocess_config image_case_config(int size, bool pad_to_square) {
    return (model_preprocess_config){.pad_to_square = pad_to_square,
                                     .pad_rgb = {127, 127, 127},
                                     .resize = size,
                                     .size = size,
                                     .rescale_factor = 0.00392156862745098,
                                     .mean = {0.5F, 0.5F, 0.5F},
                                     .std = {0.5F, 0.5F, 0.5F}};
}

static unsigned char *put_be(unsigned char *at, uint32_t v) {
    for (int i = 0; i < 4; i++) *at++ = (unsigned char)(v >> (24 - 8 * i));
    return at;
}

static uint32_t crc_of(const unsigned char *data, size_t n) {
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0xEDB88320) : 0);
    }
    return ~crc;
}

static unsigned char *put_chunk(unsigned char *at, const char *name, const void *data, size_t n) {
    at = put_be(at, (uint32_t)n);
    memcpy(at, name, 4);
    if (n) memcpy(at + 4, data, n);
    return put_be(at + 4 + n, crc_of(at, 4 + n));
}

size_t image_case_png(unsigned char out[256], uint32_t width, uint32_t height, int depth, int colour,
                      const unsigned char *zlib_bytes, size_t n_zlib_bytes) {
    assert_true(n_zlib_bytes <= 128);
    static const unsigned char magic[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
    unsigned char header[13] = {0};
    (void)put_be(put_be(header, width), height);
    header[8] = (unsigned char)depth;
    header[9] = (unsigned char)colour;
    memcpy(out, magic, sizeof magic);
    unsigned char *at = put_chunk(out + sizeof magic, "IHDR", header, sizeof header);
    at = put_chunk(at, "IDAT", zlib_bytes, n_zlib_bytes);
    at = put_chunk(at, "IEND", NULL, 0);
    return (size_t)(at - out);
}
