#include "lm_node/adapted_matrix.h"

#include <stdlib.h>

#define TRY(call)                                                                                  \
    do {                                                                                           \
        status try_status = (call);                                                                \
        if (try_status != STATUS_OK) return try_status;                                            \
    } while (0)

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

static status open_base(adapted_matrix *w, adapter_room *room, const model *m, const device_rows *parts, size_t n_parts,
                        err *e) {
    bool is_whole = n_parts == 1 && parts->n == model_weight(m, "%s.weight", parts->name).dims[0];
    if (is_whole && parts->run == parts->n) return device_matrix_open(room->ctx, &w->base, m, e, "%s", parts->name);
    return device_matrix_join(room->ctx, &w->base, m, parts, n_parts, e);
}

status adapted_matrix_open(adapted_matrix *w, adapter_room *room, const model *m, const device_rows *parts, size_t n_parts,
                           err *e) {
    TRY(open_base(w, room, m, parts, n_parts, e));
    if (room->n_adapters == 0) return STATUS_OK;
    w->added = calloc((size_t)room->n_adapters, sizeof *w->added);
    if (!w->added) return fail(e, STATUS_NO_MEMORY, "%s: no memory for its adapters", parts->name);
    for (int i = 0; i < room->n_adapters; i++) {
        low_rank *l = &w->added[i];
        TRY(device_low_rank_open(room->ctx, room->dtype, &l->a, &l->b, &l->rank, m, i + 1, parts, n_parts, e));
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
    size_t sum = ops_matrix_bytes(w->base);
    for (int i = 0; w->added && i < room->n_adapters; i++)
        if (w->added[i].a) sum += ops_matrix_bytes(w->added[i].a) + ops_matrix_bytes(w->added[i].b);
    return sum;
}

/* ---- running ------------------------------------------------------------------------------------- */

static status run_kind(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_matrix *w, ops_act act, bool is_few) {
    return is_few ? ops_linear_few(ctx, out, x, w, act) : ops_linear(ctx, out, x, w, act);
}

/* All rows at once where the device has one way for both kinds. */
static status run_base(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_matrix *w, ops_act act, int64_t n_few) {
    const int64_t n_many = x->dims[0] - n_few;
    if (n_few == 0 || !ops_tells_few(ctx)) return ops_linear(ctx, out, x, w, act);
    ops_tensor few_out = tensor_rows(out, 0, n_few), few_x = tensor_rows(x, 0, n_few);
    TRY(ops_linear_few(ctx, &few_out, &few_x, w, act));
    ops_tensor many_out = tensor_rows(out, n_few, n_many), many_x = tensor_rows(x, n_few, n_many);
    return ops_linear(ctx, &many_out, &many_x, w, act);
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
    TRY(run_kind(room->ctx, &t, &own_x, l->a, OPS_ACT_NONE, is_few));
    TRY(run_kind(room->ctx, &y, &t, l->b, OPS_ACT_NONE, is_few));
    TRY(ops_gather_rows(room->ctx, &sum, out, rows));
    TRY(ops_add(room->ctx, &sum, &sum, &y));
    return ops_scatter_rows(room->ctx, out, &sum, rows);
}

status adapted_linear(adapter_room *room, ops_tensor *out, const ops_tensor *x, const adapted_matrix *w, ops_act act,
                      const row_kinds *kinds) {
    bool is_changed = false;
    for (int i = 0; i < kinds->n_groups && w->added; i++) is_changed |= w->added[kinds->groups[i].served - 1].a != NULL;
    if (!is_changed) return run_base(room->ctx, out, x, w->base, act, kinds->n_few);
    TRY(run_base(room->ctx, out, x, w->base, OPS_ACT_NONE, kinds->n_few));
    for (int i = 0; i < kinds->n_groups; i++) {
        const low_rank *l = &w->added[kinds->groups[i].served - 1];
        if (l->a) TRY(add_low_rank(room, out, x, l, &kinds->groups[i].rows, kinds->groups[i].is_few));
    }
    return act == OPS_ACT_NONE ? STATUS_OK : ops_activate(room->ctx, out, out, act);
}
