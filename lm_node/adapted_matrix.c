#include "lm_node/adapted_matrix.h"

#include <stdlib.h>

#define TRY(call)                                                                                  \
    do {                                                                                           \
        status try_status = (call);                                                                \
        if (try_status != STATUS_OK) return try_status;                                            \
    } while (0)

/* ---- room ---------------------------------------------------------------------------------------- */

void adapter_room_init(adapter_room *room, ops_ctx *ctx, const model *m, int64_t n_elements) {
    *room = (adapter_room){.ctx = ctx, .n_adapters = model_n_served(m), .n_elements = n_elements};
}

status adapter_room_ready(adapter_room *room, int64_t max_rows, err *e) {
    if (room->rank_max == 0) return STATUS_OK;
    const int64_t n = room->n_elements, n_low = max_rows * room->rank_max;
    TRY(ops_block_open(room->ctx, &room->block,
                       3 * ops_cut_bytes(OPS_DTYPE_F32, n) + ops_cut_bytes(OPS_DTYPE_F32, n_low), e));
    room->x = ops_block_cut(&room->block, OPS_DTYPE_F32, 1, &n);
    room->y = ops_block_cut(&room->block, OPS_DTYPE_F32, 1, &n);
    room->sum = ops_block_cut(&room->block, OPS_DTYPE_F32, 1, &n);
    room->t = ops_block_cut(&room->block, OPS_DTYPE_F32, 1, &n_low);
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
        TRY(device_low_rank_open(room->ctx, &l->a, &l->b, &l->rank, m, i + 1, parts, n_parts, e));
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

static ops_tensor flat_rows(const ops_tensor *flat, int64_t rows, int64_t width) {
    ops_tensor view = tensor_rows(flat, 0, rows * width);
    return tensor_reshape(&view, 2, (int64_t[]){rows, width});
}

static status add_low_rank(adapter_room *room, ops_tensor *out, const ops_tensor *x, const low_rank *l,
                           const ops_tensor *rows) {
    const int64_t n = rows->dims[0];
    ops_tensor own_x = flat_rows(&room->x, n, x->dims[1]), t = flat_rows(&room->t, n, l->rank);
    ops_tensor y = flat_rows(&room->y, n, out->dims[1]), sum = flat_rows(&room->sum, n, out->dims[1]);
    TRY(ops_gather_rows(room->ctx, &own_x, x, rows));
    TRY(ops_linear(room->ctx, &t, &own_x, l->a, OPS_ACT_NONE));
    TRY(ops_linear(room->ctx, &y, &t, l->b, OPS_ACT_NONE));
    TRY(ops_gather_rows(room->ctx, &sum, out, rows));
    TRY(ops_add(room->ctx, &sum, &sum, &y));
    return ops_scatter_rows(room->ctx, out, &sum, rows);
}

status adapted_linear(adapter_room *room, ops_tensor *out, const ops_tensor *x, const adapted_matrix *w, ops_act act,
                      const adapter_rows *rows) {
    bool is_changed = false;
    for (int i = 0; i < rows->n && w->added; i++) is_changed |= w->added[rows->each[i].served - 1].a != NULL;
    if (!is_changed) return ops_linear(room->ctx, out, x, w->base, act);
    TRY(ops_linear(room->ctx, out, x, w->base, OPS_ACT_NONE));
    for (int i = 0; i < rows->n; i++) {
        const low_rank *l = &w->added[rows->each[i].served - 1];
        if (l->a) TRY(add_low_rank(room, out, x, l, &rows->each[i].rows));
    }
    return act == OPS_ACT_NONE ? STATUS_OK : ops_activate(room->ctx, out, out, act);
}
