/* Small checkpoints written by the test, in the published format: configs and tensor lists come from
 * tests/data/golden (what transformers saved), values from a formula exact in f32, f16 and bf16.
 *
 *     checkpoint c = checkpoint_load("one_head");
 *     json_object_del(c.tensors, "lm_head.bias");     // damage it
 *     checkpoint_write(&c, 1);                        // into c.dir, as so many files
 *     checkpoint_close(&c);
 */
#ifndef TESTS_MODEL_CHECKPOINT_H
#define TESTS_MODEL_CHECKPOINT_H

#include <jansson.h>

#include "tests/support/support.h"

typedef struct {
    char *dir;
    json_t *config, *preprocess, *tokenizer;
    json_t *tensors; /* name -> {dtype, shape}; data_offsets are written anew */
    json_t *index;   /* after checkpoint_write in several files: tensor -> file */
} checkpoint;

checkpoint checkpoint_load(const char *golden_case);
void checkpoint_close(checkpoint *c);

/* Writes every file, the weights as n_files of them (1: model.safetensors, no index). */
void checkpoint_write(checkpoint *c, int n_files);
void checkpoint_write_json(const checkpoint *c, const char *name, const json_t *value);

void checkpoint_set_dtype(checkpoint *c, const char *dtype); /* of all tensors */
void checkpoint_rename(checkpoint *c, const char *from, const char *to);
json_t *checkpoint_shape(const checkpoint *c, const char *tensor);

/* Value i of a tensor: a multiple of 1/64 between -127/64 and 127/64. */
float checkpoint_value(const char *tensor, size_t i);

#endif
