/* The cases of tools/make_golden.py: a checkpoint folder to open, and what transformers makes of it.
 *
 *     golden *g = golden_open("odd_heads");
 *     model_open(&m, &(model_settings){.dir = golden_dir(g), .parts = MODEL_PART_ALL}, &e);
 *     golden_tensor want = golden_get(g, "prompt.%d.logits", 3);
 *     golden_close(&g);
 *
 * The folder is made new, under /tmp, from the formula for the weights; its files are compared with the
 * SHA-256 of those that transformers read. Whatever does not fit aborts the test with a message. */
#ifndef TESTS_LM_NODE_GOLDEN_H
#define TESTS_LM_NODE_GOLDEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ops/ops.h"

#define GOLDEN_IMAGES  3
#define GOLDEN_PROMPTS 7

typedef struct golden golden;

typedef struct {
    int n_dims;
    int64_t dims[4];
    const float *f32; /* one of the two */
    const int32_t *i32;
} golden_tensor;

/* The cases there are, by number; NULL behind the last. In the folder MIPHA_GOLDEN_DIR names, if it does: what
 * tools/make_golden.py --matrix made. */
const char *golden_case_name(size_t idx);
bool golden_is_matrix(void);

golden *golden_open(const char *case_name);
void golden_close(golden **g);
const char *golden_dir(const golden *g);

golden_tensor golden_get(const golden *g, const char *name_format, ...)
    __attribute__((format(printf, 2, 3)));

bool golden_has(const golden *g, const char *name);

/* The 2-norm of got - want over that of want: how far a result is from the reference's. */
double golden_distance(const float *got, const golden_tensor *want);

/* An f32 tensor of a device, in memory the caller frees. */
float *golden_download(ops_ctx *ctx, const ops_tensor *x);

/* Picture i as [size, size, 3], n_bytes of them, in memory the caller frees. */
unsigned char *golden_pixels(int image, int n_bytes);

/* Rows of got against rows of want: every element and the 2-norm of every row within bound[row]. Returns
 * the largest error as a share of its bound; fails the test above 1. what names the place. */
double golden_compare(const float *got, const golden_tensor *want, const float *bound,
                      const char *what);

#endif
