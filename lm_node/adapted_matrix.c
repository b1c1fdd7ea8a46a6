#include "lm_node/adapted_matrix.h"

#include <stdlib.h>

/* ---- room ---------------------------------------------------------------------------------------- */

void adapter_room_init(adapter_room *room, ops_ctx *ctx, const model *m, ops_dtype dtype, int64_t n_elements) {
    *room = (adapter_room){.ctx = ctx, .dtype = dtype, .n_adapters = model_n_served(m), .n_elements = n_elements};
}

/* As large as f32 needs: what comes out may be that. */
status adapter_room_ready(adapter_room *room, int64_t max_rows, err *e) {
    if (room->rank_max == 0) return STATUS_OK;
    const int64_t n = room->n_elements, n_low = max_rows * room->rank_max;
    TRY(ops_block_open(room->ctx, &room->block,
                       3 * ops_cut_bytes(OPS_DTYPE_F32, n) + ops_cut_bytes(OPS_DTYPE_F32, n_low), e));
    room->x = ops_block_cut(&room->block, OPS_DTYPE_F32, 1, &n).data;
    room->y = ops_block_cut(&room->block, OPS_DTYPE_F32, 1, &n).data;
    room->sum = ops_block_cut(&room->block, OPS_DTYPE_F32, 1, &n).data;
    room->t = ops_block_cut(&room->block, OPS_DTYPE_F32, 1, &n_low).data;
    return STATUS_OK;
}

void adapter_room_deinit(adapter_room *room) { ops_block_close(&room->block); }

/* ---- matrices ------------------------------------------------------------------------------------ */

status adapted_matrix_open(adapted_matrix *w, adapter_room *room, const model *m, const device_join *join, err *e) {
    TRY(device_matrix_join(room->ctx, &w->base, m, join, e));
    if (room->n_adapters == 0) return STATUS_OK;
    w->added = calloc((size_t)room->n_adapters, sizeof *w->added);
    if (!w->added) return fail(e, STATUS_NO_MEMORY, "%s: no memory for its adapters", join->parts->name);
    for (int i = 0; i < room->n_adapters; i++) {
        low_rank *l = &w->added[i];
        TRY(device_low_rank_open(room->ctx, room->dtype, &l->a, &l->b, &l->rank, m, i + 1, join, e));
        if (l->rank > room->rank_max) room->rank_max = l->rank;
    }
    return STATUS_OK;
}

void adapted_matrix_close(adapted_matrix *w, const adapter_room *room) {
    ops_matrix_close(room->ctx, &w->base);
    for (int i = 0; w->added && i < room->n_adapters; i++) {
        ops_matrix_close(room->ctx, &w->added[i].a);
        ops_matrix_close(room->ctx, &w->added[i].b);
    }
    free(w->added);
    w->added = NULL;
}

size_t adapted_matrix_bytes(const adapted_matrix *w, const adapter_room *room) {
    size_t sum = w->base ? ops_matrix_bytes(w->base) : 0;
    for (int i = 0; w->added && i < room->n_adapters; i++)
        if (w->added[i].a) sum += ops_matrix_bytes(w->added[i].a) + ops_matrix_bytes(w->added[i].b);
    return sum;
}

/* ---- running ------------------------------------------------------------------------------------- */

/* Rows from `first` of a call, as params say and of this kind. */
static status run_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_matrix *w, const ops_linear_params *params,
                       int64_t first, int64_t n, bool is_few) {
    ops_tensor some_out = tensor_rows(out, first, n), some_x = tensor_rows(x, first, n), add;
    ops_linear_params some = *params;
    some.is_few = is_few;
    if (params->add) {
        add = tensor_rows(params->add, first, n);
        some.add = &add;
    }
    return ops_linear(ctx, &some_out, &some_x, w, &some);
}

/* All rows at once where the device has one way for both kinds. */
static status run_base(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_matrix *w, const ops_linear_params *params,
                       int64_t n_few) {
    if (!ops_tells_few(ctx)) n_few = 0;
    TRY(run_rows(ctx, out, x, w, params, 0, n_few, true));
    return run_rows(ctx, out, x, w, params, n_few, x->dims[0] - n_few, false);
}

static ops_tensor room_rows(void *data, ops_dtype dtype, int64_t rows, int64_t width) {
    return tensor_make(data, OPS_PLACE_DEVICE, dtype, 2, (int64_t[]){rows, width});
}

static status add_low_rank(adapter_room *room, ops_tensor *out, const ops_tensor *x, const low_rank *l,
                           const ops_tensor *rows, bool is_few) {
    const int64_t n = rows->dims[0];
    ops_tensor own_x = room_rows(room->x, x->dtype, n, x->dims[1]), t = room_rows(room->t, x->dtype, n, l->rank);
    ops_tensor y = room_rows(room->y, out->dtype, n, out->dims[1]), sum = room_rows(room->sum, out->dtype, n, out->dims[1]);
    TRY(ops_gather_rows(room->ctx, &own_x, x, rows));
    const ops_linear_params kind = {.is_few = is_few};
    TRY(ops_linear(room->ctx, &t, &own_x, l->a, &kind));
    TRY(ops_linear(room->ctx, &y, &t, l->b, &kind));
    TRY(ops_gather_rows(room->ctx, &sum, out, rows));
    TRY(ops_add(room->ctx, &sum, &sum, &y));
    return ops_scatter_rows(room->ctx, out, &sum, rows);
}

status adapted_linear(adapter_room *room, ops_tensor *out, const ops_tensor *x, const adapted_matrix *w,
                      const ops_linear_params *params, const row_kinds *kinds) {
    bool is_changed = false;
    for (int i = 0; i < kinds->n_groups && w->added; i++) is_changed |= w->added[kinds->groups[i].served - 1].a != NULL;
    if (!is_changed) return run_base(room->ctx, out, x, w->base, params, kinds->n_few);
    TRY(run_base(room->ctx, out, x, w->base, &(ops_linear_params){.add = params->add}, kinds->n_few));
    for (int i = 0; i < kinds->n_groups; i++) {
        const low_rank *l = &w->added[kinds->groups[i].served - 1];
        if (l->a) TRY(add_low_rank(room, out, x, l, &kinds->groups[i].rows, kinds->groups[i].is_few));
    }
    if (params->act == OPS_ACT_NONE) return STATUS_OK;
    ops_tensor acted = tensor_columns(out, params->act_from, out->dims[1] - params->act_from);
    return ops_activate(room->ctx, &acted, &acted, params->act);
}
