/* Weights of a checkpoint on a device: what every network does with model_weight before it can run. Matrices multiply as
 * model_product says, but for the two factors of an adapter.
 *
 *     device_rows all = device_rows_all(m, "model.layers.0.mlp.fc1");
 *     st = device_matrix_join(ctx, &layer->fc1, m, &(device_join){&all, 1, false}, &e);
 *     st = device_vector_cut(&block, &layer->norm_w, 0, m, &e, "model.layers.%d.input_layernorm.weight", i);
 *
 * One context, one thread. */
#ifndef MODEL_DEVICE_WEIGHTS_H
#define MODEL_DEVICE_WEIGHTS_H

#include "model/model.h"
#include "ops/ops.h"

/* Rows of a stored matrix, seen as [rows, everything else]: n of them, in runs of `run`, one run beginning every `stride` rows from `first`. */
typedef struct {
    const char *name; /* without ".weight" */
    int64_t first, n, run, stride;
} device_rows;

/* All rows of a matrix, and n rows that stand together. */
device_rows device_rows_all(const model *m, const char *name);
device_rows device_rows_from(const char *name, int64_t first, int64_t n);

/* Several matrices that are multiplied as one. Below each other: each makes its own outputs of the same x. Beside each
 * other: each has its own part of x, and what they make is added up. */
typedef struct {
    const device_rows *parts;
    size_t n_parts;
    bool is_beside;
} device_join;

/* Packs them, with their biases (`name`.bias) if the model has them. Parts of different types, and blocks that would not begin where a
 * block begins, are widened to f32. The sum of biases is rounded to the dtype of activations. Close with
 * ops_matrix_close. Errors: NO_MEMORY. */
MUST_USE status device_matrix_join(ops_ctx *ctx, ops_matrix **matrix, const model *m, const device_join *join, err *e);

/* What a served adapter adds to that matrix: x w' becomes x w' + (x a') b', with a [rank, n_in] and b [n_out, rank], the
 * scale in b, both rounded to dtype. NULL twice and rank 0: it adds nothing. Each part has its own rows of a and columns of
 * b. Errors: NO_MEMORY. */
MUST_USE status device_low_rank_open(ops_ctx *ctx, ops_dtype dtype, ops_matrix **a, ops_matrix **b, int64_t *rank, const model *m,
                                     int served, const device_join *join, err *e);

/* A linear of the projector, as a served adapter (0: none) has it. */
MUST_USE status device_projector_open(ops_ctx *ctx, ops_matrix **matrix, const model *m, int served, const char *name,
                                      err *e);

/* Cuts a tensor of the weight's dims from block, as f32, and fills it with what the checkpoint has, each
 * value raised by `plus`: ops_cut_bytes(OPS_DTYPE_F32, n). */
MUST_USE status device_vector_cut(ops_block *block, ops_tensor *out, float plus, const model *m, err *e,
                                  const char *name_format, ...)
    __attribute__((format(printf, 6, 7)));

/* Cuts and fills in the dtype of the checkpoint: for tables rows are gathered from. */
MUST_USE status device_table_cut(ops_block *block, ops_tensor *out, const model *m, err *e,
                                 const char *name);

#endif
