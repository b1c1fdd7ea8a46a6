/* A matrix of the decoder, with what each served adapter adds to the rows that ask for it.
 *
 *     adapter_room_init(&room, ctx, m, dtype, n_elements);
 *     st = adapted_matrix_open(&w, &room, m, &join, &e);            // every matrix: room learns the ranks
 *     st = adapter_room_ready(&room, max_rows, &e);
 *     st = adapted_linear(&room, &y, &x, &w, &(ops_linear_params){.act = OPS_ACT_SILU}, &kinds);
 *
 * All rows are multiplied by the matrix at once, whatever their adapters. Then, for each adapter, its rows are
 * gathered, go through the two factors, and are added: row += (x a') b', with alpha / r in b. So a row's bytes do
 * not depend on the adapters of the rows beside it, and weights are read once for all. One thread. */
#ifndef LM_NODE_ADAPTED_MATRIX_H
#define LM_NODE_ADAPTED_MATRIX_H

#include "model/device_weights.h"

/* NULL twice: the adapter does not touch the matrix. */
typedef struct {
    ops_matrix *a, *b; /* [rank, n_in], [n_out, rank] */
    int64_t rank;
} low_rank;

typedef struct {
    ops_matrix *base;
    low_rank *added; /* [model_n_served]; NULL: none is served */
} adapted_matrix;

/* What the rows of a call are: the first n_few are tokens being decoded, or rows whose logits are wanted
 * (ops_linear_params.is_few), the others belong to prompts; and those that have an adapter, in groups of one adapter and one of
 * the two ways. */
typedef struct {
    int64_t n_few;
    int n_groups;
    struct {
        int served; /* the adapter, from 1 */
        bool is_few;
        ops_tensor rows; /* i32 on the device */
    } groups[2 * MODEL_SERVED_MAX];
} row_kinds;

/* Where an adapter's rows are computed. */
typedef struct {
    ops_ctx *ctx;
    ops_dtype dtype; /* of activations, and so of the factors */
    int n_adapters;
    int64_t rank_max, n_elements;
    ops_block block;
    void *x, *t, *y, *sum;
} adapter_room;

/* n_elements: the most values of rows that go into one call or come out of it. */
void adapter_room_init(adapter_room *room, ops_ctx *ctx, const model *m, ops_dtype dtype, int64_t n_elements);

/* After the last matrix: memory for calls of at most max_rows rows. Errors: NO_MEMORY. */
MUST_USE status adapter_room_ready(adapter_room *room, int64_t max_rows, err *e);
void adapter_room_deinit(adapter_room *room);

/* Stored matrices, joined (device_matrix_join). Errors: NO_MEMORY. */
MUST_USE status adapted_matrix_open(adapted_matrix *w, adapter_room *room, const model *m, const device_join *join, err *e);
void adapted_matrix_close(adapted_matrix *w, const adapter_room *room);
size_t adapted_matrix_bytes(const adapted_matrix *w, const adapter_room *room);

/* out = act(x w' + b + what adapters add to their rows) + params->add; as ops_linear, but which rows are few is said by
 * kinds. */
MUST_USE status adapted_linear(adapter_room *room, ops_tensor *out, const ops_tensor *x, const adapted_matrix *w,
                               const ops_linear_params *params, const row_kinds *kinds);

#endif
