/* Sizes and switches of a checkpoint, read from config.json and preprocessor_config.json and
 * range-checked: after model_config_load every number below is safe to allocate by.
 *
 *     model_config c;
 *     st = model_config_load(&c, "models/mipha-demo", (model_signs){&model_format_mipha, MODEL_DECODER_PHI}, &e);
 *
 * Source of the keys: the published Mipha checkpoints. Any thread. */
#ifndef MODEL_MODEL_CONFIG_H
#define MODEL_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "model/model_format.h"
#include "model/tower_family.h"
#include "ops/ops.h"

typedef enum { MODEL_PROJECTOR_LINEAR, MODEL_PROJECTOR_MLP, MODEL_PROJECTOR_IDENTITY } model_projector_kind;

typedef struct {
    model_tower_kind kind;
    const tower_family *family;
    char prefix[64];      /* of its tensors' names */
    int hidden;           /* width of a token */
    int intermediate;     /* width inside the MLP */
    int n_layers;         /* layers in the file */
    int n_layers_run;     /* layers up to the selected hidden state */
    int n_heads;          /* divides hidden */
    bool keeps_class_token; /* "cls_patch" */
    int image_size;       /* pixels a side, as the preprocessing makes them */
    int patch_size;       /* pixels a side */
    int n_patches;        /* (image_size / patch_size) squared */
    int table_grid;       /* patches a side of the stored table of positions */
    int n_rows;           /* tokens computed of a picture: the patches, and the class token before them */
    int n_tokens;         /* tokens of a picture's features: n_rows, or n_patches without the class token */
    ops_act act;
    float layer_norm_eps;
} model_tower_config;

/* Part of every cached feature's key: raised whenever the same image bytes would give other pixels. */
#define VISION_PREPROCESS_VERSION 1

typedef struct {
    bool pad_to_square;   /* image_aspect_ratio "pad" */
    uint8_t pad_rgb[3];   /* int(mean * 255) */
    bool keeps_aspect;    /* the shorter side becomes resize, the longer int(resize * long / short) */
    int resize;           /* pixels; without keeps_aspect, of both sides */
    int size;             /* then the middle, size x size, at most resize: what the tower sees */
    double rescale_factor; /* multiplies the byte; the product is then rounded to f32 */
    float mean[3], std[3];
} model_preprocess_config;

#define MODEL_ROTARY_DIMS_MAX 512

typedef struct {
    model_projector_kind kind;
    int n_linear;         /* 1 for linear, K for mlpKx_gelu, 0 for identity */
} model_projector_config;

typedef struct {
    model_decoder_kind kind;
    const decoder_family *family;
    char prefix[64];      /* of its tensors' names */
    char head[64];        /* the output matrix, without ".weight" */
    int hidden, intermediate, n_layers, n_heads, n_kv_heads;
    int head_size;        /* heads need not fill hidden */
    int window;           /* a position sees itself and the window - 1 before it; 0: all */
    bool is_tied;         /* the output matrix is the table of embeddings */
    ops_act act;
    float norm_eps;
    int rotary_dims;      /* even, <= head_size */
    float rope_theta;
    float rope_factor;    /* multiplies cosines and sines; 1 without long contexts */
    bool has_long_rope;   /* frequencies are divided by rope_short, by rope_long in a call that is longer than */
    int original_positions; /* this many positions */
    float rope_short[MODEL_ROTARY_DIMS_MAX / 2], rope_long[MODEL_ROTARY_DIMS_MAX / 2];
    int n_vocab_in;       /* rows of embed_tokens, from the tensor */
    int n_vocab_out;      /* rows of lm_head, from the tensor */
    int max_positions;
} model_decoder_config;

typedef struct {
    const model_format *format;
    char name[128];       /* last part of the folder's path */
    model_tower_config tower;
    model_preprocess_config preprocess;
    model_projector_config projector;
    model_decoder_config decoder;
} model_config;

/* dir is a Hugging Face folder; signs: what its tensors' names show. n_vocab_in and n_vocab_out are left 0: model_open fills them from the
 * tensors. Errors: IO, BAD_FORMAT (not JSON), BAD_MODEL (key, what was found, what was expected). */
MUST_USE status model_config_load(model_config *c, const char *dir, model_signs signs, err *e);

#endif
