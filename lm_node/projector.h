/* Vision features to decoder rows: identity, one linear, or K linears with GELU between them.
 *
 *     st = projector_open(&p, ctx, m, 0, dtype, 256, &e);
 *     st = projector_upload(p, 0, features, n_rows);             // as often as they stand apart
 *     st = projector_run(p, &projected, n_rows);                 // projected is on the device
 *     projector_close(&p);
 *
 * Works row by row, so features can be projected in any pieces with the same result. One thread. */
#ifndef LM_NODE_PROJECTOR_H
#define LM_NODE_PROJECTOR_H

#include "model/model.h"
#include "ops/ops.h"

typedef struct projector projector;

/* served: the adapter whose projector it is, 0: none. activations: what the rows come out in. max_rows: the most rows of
 * one run. Errors: NO_MEMORY. */
MUST_USE status projector_open(projector **p, ops_ctx *ctx, const model *m, int served, ops_dtype activations, int max_rows,
                               err *e);
void projector_close(projector **p);

/* Rows `first` to first + n_rows - 1 of the next run. features: host [n_rows, tower hidden] in model_tower_dtype; in memory
 * of ops_host_open they are the projector's until the next ops_sync. Errors: DEVICE. */
MUST_USE status projector_upload(projector *p, int first, const void *features, int n_rows);

/* projected: device view [n_rows, decoder hidden], good until the next run. Errors: DEVICE. */
MUST_USE status projector_run(projector *p, ops_tensor *projected, int n_rows);

size_t projector_row_bytes(const projector *p);    /* of one row of features */
size_t projector_weight_bytes(const projector *p);
size_t projector_activation_bytes(const projector *p);

#endif
