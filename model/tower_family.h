/* What tells vision towers apart: which parts a family has, and what its tensors are called.
 *
 *     const tower_family *f = c->tower.family;
 *     w = model_weight(m, "%s%s%d.%s.weight", c->tower.prefix, f->layers, layer, f->q);
 *
 * All of them are one network: patches and a table of positions, then layers of norm, attention, norm
 * and MLP, each added to what came in. Names stand below the prefix of the checkpoint's format; those of
 * matrices and norms are without ".weight" and ".bias". NULL: the family has no such part. */
#ifndef MODEL_TOWER_FAMILY_H
#define MODEL_TOWER_FAMILY_H

#include <stdbool.h>

typedef enum {
    MODEL_TOWER_SIGLIP,
    MODEL_TOWER_CLIP,
    MODEL_TOWER_DINOV2,
    MODEL_TOWER_DINOV2_SWIGLU,
    MODEL_TOWER_KINDS
} model_tower_kind;

typedef struct {
    const char *title;       /* for people */
    const char *patch;       /* convolution of kernel = stride = patch size */
    bool has_patch_bias;
    const char *class_token; /* [width], put in front of the patches */
    const char *positions;   /* [tokens, width] */
    bool is_batched;         /* these two are stored as [1, tokens, width] */
    bool interpolates;       /* the table is resampled when the image has another grid */
    const char *pre_norm;    /* between positions and the first layer */
    const char *layers;      /* what stands before a layer's number */
    const char *norm1, *q, *k, *v, *out, *scale1; /* scale: a vector that multiplies what a branch adds */
    const char *norm2, *fc1, *fc2, *scale2;
    bool is_gated;           /* fc1 makes gate and value, twice the MLP's width; the gate is SiLU */
} tower_family;

extern const tower_family tower_families[MODEL_TOWER_KINDS];

#endif
