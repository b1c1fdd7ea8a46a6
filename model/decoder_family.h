/* What tells decoders apart: the order of their parts, and what their tensors are called.
 *
 *     const decoder_family *f = c->decoder.family;
 *     w = model_weight(m, "%slayers.%d.%s.weight", c->decoder.prefix, layer, f->norm1);
 *
 * Names of matrices and norms are without ".weight" and ".bias", below the prefix and number of a layer.
 * NULL: the family has no such part. What else differs (widths, activation, rotary share, window) is read
 * from config.json. */
#ifndef MODEL_DECODER_FAMILY_H
#define MODEL_DECODER_FAMILY_H

#include <stdbool.h>

/* In the order in which their markers are looked for. */
typedef enum {
    MODEL_DECODER_PHI15,
    MODEL_DECODER_PHI3,
    MODEL_DECODER_GEMMA,
    MODEL_DECODER_PHI,
    MODEL_DECODER_LLAMA,
    MODEL_DECODER_KINDS
} model_decoder_kind;

/* The rows of a matrix that holds queries, keys and values together. */
typedef enum {
    MODEL_QKV_APART,    /* three matrices */
    MODEL_QKV_IN_BLOCKS, /* all queries, all keys, all values */
    MODEL_QKV_BY_HEAD   /* query, key and value of head 0, then of head 1 */
} model_qkv_layout;

typedef struct {
    const char *title;      /* for people */
    /* What config.json names first under architectures, and under model_type, in the formats there are. */
    const char *class_names[2], *model_types[2];
    const char *marker; /* a tensor of layer 0 that shows the family */
    bool is_parallel;   /* one norm feeds attention and MLP: x + (attention + MLP); else one after the other */
    bool is_rms;        /* RMS norms without bias; else layer norms */
    bool norm_adds_one; /* norms multiply by 1 + w */
    bool has_bias;      /* matrices and head */
    bool is_tied;       /* the head is the table of embeddings */
    bool scales_embeddings; /* by the square root of the width */
    bool is_gated;      /* the MLP is down(act(gate) * up) */
    model_qkv_layout qkv_layout;
    const char *norm1, *q, *k, *v, *qkv, *out;
    const char *norm2;     /* NULL when is_parallel */
    const char *gate, *up; /* gated and apart */
    const char *fc1, *fc2; /* fc1: gate above up where they are one matrix */
    const char *final_norm;
} decoder_family;

extern const decoder_family decoder_families[MODEL_DECODER_KINDS];

#endif
