/* A checkpoint, opened and verified: config, mapped weights, tokenizer, fingerprints.
 *
 *     model *m;
 *     st = model_open(&m, &(model_settings){.dir = dir, .parts = MODEL_PART_ALL}, &e);
 *     ops_tensor w = model_weight(m, "model.layers.%d.mlp.fc1.weight", layer);
 *     model_close(&m);
 *
 * After model_open every tensor of the opened parts is present with the shape the config promises, so
 * model_weight cannot fail (asking for an unknown name is our own mistake, CHECK).
 * Read-only after open: any thread. */
#ifndef MODEL_MODEL_H
#define MODEL_MODEL_H

#include <stdio.h>

#include "base/hash.h"
#include "model/adapter_factors.h"
#include "model/model_config.h"
#include "model/tokenizer.h"
#include "ops/ops.h"

typedef struct model model;

enum {
    MODEL_PART_TOWER = 1,   /* vision tower and preprocessing */
    MODEL_PART_DECODER = 2, /* projector, decoder, tokenizer */
    MODEL_PART_ALL = 3
};

#define MODEL_SERVED_MAX            256
#define MODEL_SERVED_NAME_BYTES_MAX 64

typedef struct {
    const char *dir;     /* the checkpoint */
    const char *dtype;   /* "f32", "f16", "bf16": weights that are not in blocks are converted to it. With "bf16" matrices
                            are multiplied in bf16 too, with "int8" and "fp8", which convert nothing, in 8 bits; else exactly.
                            NULL or "auto": nothing is converted, products are exact */
    const char *kv_dtype; /* "f32", "f16", "bf16", "fp8" (e4m3): keys and values are kept in it; NULL or "auto": in what
                             suits the device and the products */
    const char *adapter; /* the folder of a PEFT adapter that is merged into the weights; NULL: none */
    const char *const *served; /* n_served adapters more, "NAME=DIR": not merged, but added to the rows of those who ask
                                  for one by name. They may change matrices of the decoder, and the projector in any way */
    size_t n_served;
    int parts;           /* MODEL_PART_*; with an adapter or served ones MODEL_PART_DECODER is among them */
} model_settings;

/* The fingerprints are those of the converted and merged weights, and of the served adapters with their names. Errors:
 * IO, BAD_FORMAT, BAD_MODEL; the text names file, tensor or key, found and expected. BAD_ARGUMENT: a setting. */
MUST_USE status model_open(model **m, const model_settings *settings, err *e);
void model_close(model **m);

/* Served adapters are numbered from 1 in the order of the settings; 0 is none. */
int model_n_served(const model *m);
const char *model_served_name(const model *m, int served); /* 1 .. model_n_served */
int model_find_served(const model *m, const char *name);    /* 0: none has this name */

/* What the adapter adds to a weight of the decoder; false: nothing. */
bool model_served_factors(const model *m, int served, const char *weight_name, adapter_factors *f);

/* A weight of the projector as the adapter (0: none) has it. */
ops_tensor model_served_weight(const model *m, int served, const char *name);

const model_config *model_get_config(const model *m);
const tokenizer *model_get_tokenizer(const model *m); /* NULL without MODEL_PART_DECODER */

/* How matrices of the networks are multiplied; what an adapter adds is multiplied exactly whatever this is. */
ops_product model_product(const model *m);

/* What keys and values are to be kept in; false: nothing was asked for. */
bool model_kv_dtype(const model *m, ops_dtype *kept);

/* A weight as a host view into the mapped file, possibly unaligned: f32, f16 or bf16; a matrix perhaps q8 or q4. */
ops_tensor model_weight(const model *m, const char *name_format, ...)
    __attribute__((format(printf, 2, 3)));

/* Whether the architecture has a weight of this name. */
bool model_has_weight(const model *m, const char *name_format, ...) __attribute__((format(printf, 2, 3)));

/* The dtype the tower's weights are stored in: features are cached in it. */
ops_dtype model_tower_dtype(const model *m);

/* SHA-256 over exactly the weights and config values that decide the features (tower: weights of the
 * layers that run, tower config, preprocessing, the product when it is not the exact one), and over everything (whole checkpoint: all used
 * tensors, configs, tokenizer). Computed at open of the parts that exist; the whole one is computed
 * from both parts and is only there with MODEL_PART_ALL or MODEL_PART_DECODER (decoder nodes do not
 * run the tower but do hash it, so that both kinds of node name the same model). */
const unsigned char *model_tower_fingerprint(const model *m);
const unsigned char *model_fingerprint(const model *m);

/* `mipha model inspect` and `mipha model verify`: everything about the folder, to a stream. verify
 * checks every expected tensor, names every extra one, and returns BAD_MODEL when something is wrong,
 * after printing all findings, not just the first. */
MUST_USE status model_inspect(const char *dir, FILE *to, err *e);
MUST_USE status model_verify(const char *dir, FILE *to, err *e);

#endif
