/* P(x) = W_K gelu(... gelu(W_1 x + b_1) ...) + b_K with the exact (erf) GELU. The result of each linear
 * goes to the other one of two buffers. */
#include "lm_node/projector.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "model/device_weights.h"

struct projector {
    ops_ctx *ctx;
    int n_linear, max_rows;
    int64_t n_in, n_out;
    ops_dtype dtype, activations; /* of features, of all that is made of them */
    ops_matrix **linear; /* [n_linear] */
    ops_block block;
    ops_tensor raw, wide, buffers[2]; /* wide: raw as activations, where those are something else */
};

static status open_memory(projector *p, err *e) {
    const bool is_wider = p->activations != p->dtype;
    size_t bytes = ops_cut_bytes(p->dtype, p->max_rows * p->n_in) +
                   (is_wider ? ops_cut_bytes(p->activations, p->max_rows * p->n_in) : 0) +
                   2 * ops_cut_bytes(p->activations, p->max_rows * p->n_out);
    status st = ops_block_open(p->ctx, &p->block, bytes, e);
    if (st != STATUS_OK) return st;
    const int64_t in[2] = {p->max_rows, p->n_in}, out[2] = {p->max_rows, p->n_out};
    p->raw = ops_block_cut(&p->block, p->dtype, 2, in);
    if (is_wider) p->wide = ops_block_cut(&p->block, p->activations, 2, in);
    for (int i = 0; i < 2; i++) p->buffers[i] = ops_block_cut(&p->block, p->activations, 2, out);
    return STATUS_OK;
}

status projector_open(projector **out, ops_ctx *ctx, const model *m, int served, ops_dtype activations, int max_rows,
                      err *e) {
    const model_config *c = model_get_config(m);
    CHECK(max_rows > 0, "a projector has rows");
    *out = NULL;
    projector *p = calloc(1, sizeof *p);
    if (!p) return fail(e, STATUS_NO_MEMORY, "projector: no memory");
    p->ctx = ctx;
    p->max_rows = max_rows;
    p->n_in = c->tower.hidden;
    p->n_out = c->decoder.hidden;
    p->dtype = model_tower_dtype(m);
    p->activations = activations;
    p->n_linear = c->projector.n_linear;
    p->linear = calloc((size_t)p->n_linear + 1, sizeof *p->linear);
    status st = p->linear ? open_memory(p, e) : fail(e, STATUS_NO_MEMORY, "projector: no memory");
    for (int i = 0; i < p->n_linear && st == STATUS_OK; i++) {
        char name[96] = "model.mm_projector";
        if (c->projector.kind == MODEL_PROJECTOR_MLP)
            (void)snprintf(name, sizeof name, "%s%d", c->format->projector,
                           c->format->projector_first + i * c->format->projector_step);
        st = device_projector_open(ctx, &p->linear[i], m, served, name, e);
    }
    if (st != STATUS_OK) {
        projector_close(&p);
        return st;
    }
    *out = p;
    return STATUS_OK;
}

void projector_close(projector **out) {
    projector *p = *out;
    if (!p) return;
    for (int i = 0; p->linear && i < p->n_linear; i++) ops_matrix_close(p->ctx, &p->linear[i]);
    ops_block_close(&p->block);
    free(p->linear);
    free(p);
    *out = NULL;
}

size_t projector_row_bytes(const projector *p) {
    return (size_t)p->n_in * dtype_bytes(p->dtype);
}

size_t projector_activation_bytes(const projector *p) { return p->block.size_bytes; }

size_t projector_weight_bytes(const projector *p) {
    size_t bytes = 0;
    for (int i = 0; i < p->n_linear; i++) bytes += ops_matrix_bytes(p->linear[i]);
    return bytes;
}

status projector_upload(projector *p, int first, const void *features, int n_rows) {
    CHECK(first >= 0 && n_rows > 0 && first + n_rows <= p->max_rows, "rows of a run fit in the buffers of open");
    ops_tensor rows = tensor_rows(&p->raw, first, n_rows);
    return ops_upload(p->ctx, &rows, features);
}

status projector_run(projector *p, ops_tensor *projected, int n_rows) {
    CHECK(n_rows > 0 && n_rows <= p->max_rows, "a run fits in the buffers of open");
    ops_tensor raw = tensor_rows(&p->raw, 0, n_rows), x = raw;
    if (p->dtype != p->activations) {
        x = tensor_rows(&p->wide, 0, n_rows);
        TRY(ops_cast(p->ctx, &x, &raw));
    }
    for (int i = 0; i < p->n_linear; i++) {
        ops_tensor y = tensor_rows(&p->buffers[i % 2], 0, n_rows);
        const ops_linear_params params = {.act = i + 1 < p->n_linear ? OPS_ACT_GELU_ERF : OPS_ACT_NONE};
        TRY(ops_linear(p->ctx, &y, &x, p->linear[i], &params));
        x = y;
    }
    *projected = x;
    return STATUS_OK;
}
