/* One layer of a decoder: its norms, matrices, keys and values, as its family stores them (model/decoder_family.h).
 *
 *     const layer_source from = {m, &c, &weights, &kv, kv_blocks, dtype, &adapters};
 *     st = decoder_layer_open(&layer, &from, i, &e);
 *
 * What is multiplied by the same rows is one matrix; how a layer runs is lm_decoder.c's business. */
#ifndef LM_NODE_DECODER_LAYER_H
#define LM_NODE_DECODER_LAYER_H

#include "lm_node/adapted_matrix.h"

typedef struct {
    ops_tensor w, b; /* b only of layer norms */
} decoder_norm;

typedef struct {
    decoder_norm norm1, norm2;
    adapted_matrix in;       /* k, v, q and, of a parallel layer, fc1; without k and v in the last layer */
    adapted_matrix kv;       /* k, v: of the last layer only */
    adapted_matrix out;      /* out, and beside it, of a parallel layer, fc2 */
    adapted_matrix fc1, fc2; /* where they are not in those; fc1 of a gated MLP: gate above up */
    ops_tensor keys, values; /* [kv_blocks, n_kv_heads, KV_BLOCK_TOKENS, head_size] */
} decoder_layer;

/* Where layers come from, and the memory they are put into. */
typedef struct {
    const model *m;
    const model_decoder_config *c;
    ops_block *weights, *kv;
    int64_t kv_blocks;
    ops_dtype dtype; /* of keys and values */
    adapter_room *adapters;
} layer_source;

/* Columns of keys, of values; of queries; what fc1 makes: the MLP, or gate and value of it; queries, and of a parallel layer
 * the MLP's part beside them. */
int64_t decoder_kv_width(const model_decoder_config *c);
int64_t decoder_q_width(const model_decoder_config *c);
int64_t decoder_fc1_width(const model_decoder_config *c);
int64_t decoder_q_mlp_width(const model_decoder_config *c);

/* Named prefix.name; a matrix stored whole. Errors: NO_MEMORY. */
MUST_USE status decoder_norm_open(decoder_norm *norm, const layer_source *from, const char *prefix, const char *name, err *e);
MUST_USE status decoder_matrix_open(adapted_matrix *w, const layer_source *from, const char *prefix, const char *name, err *e);

MUST_USE status decoder_layer_open(decoder_layer *l, const layer_source *from, int layer, err *e);
void decoder_layer_close(decoder_layer *l, const adapter_room *adapters);
size_t decoder_layer_matrix_bytes(const decoder_layer *l, const adapter_room *adapters);

#endif
