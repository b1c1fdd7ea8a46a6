/* The indices of a step: what a batch says about its rows, checked, and on the device in one upload.
 *
 *     step_room room = {.ctx = ctx, .c = &config, .s = &settings, .n_adapters = n, .device = tensor, .host = memory};
 *     step_check(&room, &batch);
 *     st = step_indices_upload(&at, &room, &batch);
 *
 * Both places have step_indices_max(&settings) elements, those on the host in memory of ops_host_open. The arrays are views
 * into the device's, good until the next upload; where they lie depends on the sizes alone of a batch without adapters. */
#ifndef LM_NODE_STEP_INDICES_H
#define LM_NODE_STEP_INDICES_H

#include "lm_node/adapted_matrix.h"
#include "lm_node/lm_decoder.h"

typedef struct {
    ops_ctx *ctx;
    const model_decoder_config *c;
    const lm_decoder_settings *s;
    int n_adapters;
    ops_tensor device; /* i32 */
    int32_t *host;
    int64_t used;
} step_room;

/* Where rows stand: all of a step, or those whose logits are wanted. */
typedef struct {
    ops_tensor positions, turns, seqs, tables;
    row_kinds kinds;
} row_places;

typedef struct {
    ops_tensor ids, slots, image_rows, out_rows;
    row_places all, wanted;
    int n_twice;
    const lm_kv_twice *twice; /* on the host */
    ops_tensor twice_slots;   /* of all their rows, one after another */
} step_indices;

int64_t step_indices_max(const lm_decoder_settings *s);

/* CHECKs that every index is in its range. */
void step_check(const step_room *room, const lm_batch *b);

/* Errors: DEVICE. */
MUST_USE status step_indices_upload(step_indices *at, step_room *room, const lm_batch *b);

static inline int batch_adapter(const lm_batch *b, int32_t row) { return b->adapters ? b->adapters[row] : 0; }

#endif
