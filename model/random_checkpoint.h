/* A checkpoint with the sizes of Mipha-3B and random weights: for measuring, where nothing can be downloaded.
 *
 *     st = random_checkpoint_write(&(random_checkpoint){.out_dir = dir, .dtype = "bf16"}, &e);
 *
 * SigLIP so400m/14 at 384 pixels, two-layer projector, Phi-2, and a tokenizer of bytes in which every id has a text. All
 * tensors that are computed with, in one model.safetensors; matrices have a standard deviation of 0.02, so that
 * activations stay as small as in a trained network. The same settings give the same bytes. */
#ifndef MODEL_RANDOM_CHECKPOINT_H
#define MODEL_RANDOM_CHECKPOINT_H

#include <stdint.h>

#include "base/err.h"

#define RANDOM_CHECKPOINT_TOWER_LAYERS   27 /* of which 26 are run */
#define RANDOM_CHECKPOINT_DECODER_LAYERS 32

typedef struct {
    const char *out_dir; /* made; may hold no model.safetensors */
    const char *dtype;   /* "f32", "f16" or "bf16" */
    int tower_layers, decoder_layers; /* 0: as Mipha-3B has them */
    uint64_t seed;
} random_checkpoint;

/* Errors: BAD_ARGUMENT, IO, CONFLICT (there is a model.safetensors), NO_MEMORY. */
MUST_USE status random_checkpoint_write(const random_checkpoint *s, err *e);

#endif
