/* What the image tests share: the files and tables of tests/data/images, and the formulas by which
 * tools/make_golden_images.py makes source pixels and damage. */
#ifndef TESTS_VISION_NODE_IMAGE_CASES_H
#define TESTS_VISION_NODE_IMAGE_CASES_H

#include "tests/support/support.h"

#include "model/model_config.h"
#include "vision_node/image_decode.h"

#define IMAGE_DIGEST_BYTES  17 /* 16 hex digits and a zero */
#define IMAGE_FIELDS_MAX    12

/* A file of tests/data/images in an exact-size heap block, so that a sanitizer sees any read past
 * its end; the caller frees data. */
unsigned char *image_case_load(const char *name, size_t *len_bytes);

/* Calls row for each line of a table with its tab-separated fields; returns the number of lines. */
typedef void image_case_row(char *fields[], int n_fields, void *arg);
int image_case_each(const char *table, image_case_row *row, void *arg);

uint32_t image_case_mix(uint32_t i, uint32_t seed);
image_rgb image_case_pixels(uint32_t seed, int width, int height);

/* An exact-size copy with the damage of damage.tsv; the caller frees it. */
unsigned char *image_case_damage(const unsigned char *data, size_t *len_bytes, const char *kind,
                                 uint32_t seed);

void image_case_digest(char out[IMAGE_DIGEST_BYTES], const void *data, size_t len_bytes);

/* Of what the tables hold: [height, width, 3] bytes. */
void image_case_digest_rgb(char out[IMAGE_DIGEST_BYTES], const image_rgb *image);

/* SigLIP: 1/255, 0.5, 0.5, pad colour 127. */
model_preprocess_config image_case_config(int size, bool pad_to_square);

/* image_preprocess, and then the f32 planes [3, size, size] that its pixels stand for: what the reference makes. */
status image_case_planes(float *planes, const image_rgb *image, const model_preprocess_config *config, err *e);

/* Writes a PNG of one IHDR and one IDAT (zlib bytes given), for hostile sizes. Returns its length. */
size_t image_case_png(unsigned char out[256], uint32_t width, uint32_t height, int depth, int colour,
                      const unsigned char *zlib_bytes, size_t n_zlib_bytes);

#endif
