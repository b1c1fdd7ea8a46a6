/* The language network: rows of many sequences in, logits of the wanted rows out.
 *
 *     st = lm_decoder_open(&d, ctx, m, &settings, &e);
 *     st = lm_decoder_step(d, &out, &batch, &e);                  // out.candidates[0].column[0]
 *     lm_decoder_close(&d);
 *
 * A step takes rows of any sequences in any mixture: pieces of prompts, image rows, single rows of
 * decoding. What a row computes depends on its own sequence only, never on the other rows of the step or
 * on how a prompt was cut into steps. Rows of different served adapters stand in one step beside each other: each
 * matrix is multiplied once for all of them, and what an adapter adds is computed for its own rows. Who owns which block of
 * keys and values is the caller's business (kv_cache.h); the arrays live here, and where the device has graphs one block
 * more, for rows of nobody (step_graphs.h). All memory is taken at open. One thread, that of the context. */
#ifndef LM_NODE_LM_DECODER_H
#define LM_NODE_LM_DECODER_H

#include "model/model.h"
#include "ops/ops.h"

typedef struct lm_decoder lm_decoder;

typedef struct {
    int max_rows;    /* rows of one step */
    int max_seqs;    /* sequences of one step */
    int max_out;     /* rows of one step whose logits are wanted */
    int max_context; /* positions of one sequence, 1 .. decoder.max_positions */
    int kv_blocks;   /* blocks of KV_BLOCK_TOKENS positions */
} lm_decoder_settings;

/* Keys and values of rows first_row .. first_row + n_rows - 1 are written a second time, at first_slot and behind it, all in
 * one block: for a sequence that begins with another one's rows while these are computed. */
typedef struct {
    int32_t first_row, n_rows, first_slot;
} lm_kv_twice;

/* One step. All arrays are the caller's and on the host. Indices out of their range are our own mistake
 * (CHECK). Keys and values of every row are written at its slot, and where `twice` says so, before any row looks at them. */
typedef struct {
    int n_rows;               /* 1 .. max_rows */
    int n_decode_rows;        /* the first of them are tokens being decoded, the others belong to prompts */
    const int32_t *ids;       /* [n_rows] token, 0 .. n_vocab_in - 1; of an image row: 0 */
    const int32_t *positions; /* [n_rows] 0 .. max_context - 1 */
    const int32_t *spans;     /* [n_rows] positions of the call a row belongs to: of its whole prompt, or up to itself when
                                 it is decoded; only long contexts ask. NULL: up to itself */
    const int32_t *slots;     /* [n_rows] where key and value go: block * KV_BLOCK_TOKENS + offset */
    const int32_t *seqs;      /* [n_rows] index into tables */
    const int32_t *adapters;  /* [n_rows] the served adapter of a row, 0: none; NULL: none for all */
    int n_image_rows;
    const int32_t *image_rows; /* [n_image_rows] the rows that are features instead of tokens */
    const unsigned char *const *feature_rows; /* [n_image_rows] where each of them stands, [tower hidden] in
                                                 model_tower_dtype, not yet projected; rows beside each other cross at once */
    int n_seqs;                /* 1 .. max_seqs */
    int n_table_blocks;        /* columns of tables, enough for the longest sequence */
    const int32_t *tables;     /* [n_seqs, n_table_blocks] blocks in order; unused entries 0 */
    int n_out;                 /* 0 .. max_out */
    const int32_t *out_rows;   /* [n_out] rows whose next token is wanted */
    const ops_candidates_wanted *wanted; /* [n_out] of their logits; NULL: the largest of each */
    int n_twice;                         /* 0 .. max_seqs */
    const lm_kv_twice *twice;            /* [n_twice] */
} lm_batch;

/* What came out, on the host, good until the next step. */
typedef struct {
    const ops_candidates *candidates; /* [n_out] columns are tokens: among those that have an embedding */
    bool is_replayed;                 /* launched as a recorded graph */
} lm_step;

/* m was opened with MODEL_PART_DECODER. Errors: BAD_ARGUMENT, NO_MEMORY, DEVICE. */
MUST_USE status lm_decoder_open(lm_decoder **d, ops_ctx *ctx, const model *m,
                                const lm_decoder_settings *settings, err *e);
void lm_decoder_close(lm_decoder **d);

/* Errors: DEVICE. */
MUST_USE status lm_decoder_step(lm_decoder *d, lm_step *out, const lm_batch *batch, err *e);

/* All logits [n_vocab_out] of one of the last step's n_out rows, on the host, good until the next call of this. They stay on
 * the device until somebody asks. Errors: DEVICE. */
MUST_USE status lm_decoder_logits(lm_decoder *d, const float **logits, int row, err *e);

/* Copies keys and values of one block in all layers: a question takes over a partial block that earlier steps have written. */
MUST_USE status lm_decoder_copy_block(lm_decoder *d, int32_t to, int32_t from, err *e);

/* Device memory by purpose, in bytes; logged at open. */
typedef struct {
    size_t weights, activations, kv;
} lm_decoder_memory;
lm_decoder_memory lm_decoder_get_memory(const lm_decoder *d);

/* What activations are computed in: what the device makes of the weights' dtype. */
ops_dtype lm_decoder_dtype(const ops_ctx *ctx, const model *m);

/* What keys and values are kept in. */
ops_dtype lm_decoder_kv_dtype(const ops_ctx *ctx, const model *m);

/* What one block of keys and values costs over all layers: kv_bytes / this = kv_blocks. */
size_t lm_decoder_block_bytes(const ops_ctx *ctx, const model *m);

size_t lm_decoder_feature_row_bytes(const lm_decoder *d);
int lm_decoder_n_vocab(const lm_decoder *d);  /* logits of a row */
int lm_decoder_n_offered(const lm_decoder *d); /* tokens that have an embedding, of these */

/* For tests: called with the embeddings [n_rows, hidden] as layer 0, then after every layer; on the device, good during the
 * call. In the last layer only the wanted rows exist, in the order of out_rows. NULL turns it off. */
typedef void lm_decoder_tap(void *user, int layer, const ops_tensor *x);
void lm_decoder_set_tap(lm_decoder *d, lm_decoder_tap *tap, void *user);

#endif
