#include "cli/bench_ceilings.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/rng.h"

#define RUNS 5

typedef struct {
    ops_ctx *ctx;
    ops_block block;
    ops_tensor a, b, out;
    ops_matrix *matrix;
} rig;

static status run_sum(rig *r) { return ops_add(r->ctx, &r->out, &r->a, &r->b); }
static status run_product(rig *r) { return ops_linear(r->ctx, &r->out, &r->a, r->matrix, NULL); }

static status time_best(rig *r, double *best_s, status (*run)(rig *)) {
    *best_s = INFINITY;
    for (int i = 0; i <= RUNS; i++) { /* the first warms up */
        int64_t start_us = clock_now_us();
        status st = run(r);
        if (st == STATUS_OK) st = ops_sync(r->ctx);
        if (st != STATUS_OK) return st;
        double s = (double)(clock_now_us() - start_us) / 1e6;
        if (i > 0 && s < *best_s) *best_s = s;
    }
    return STATUS_OK;
}

/* A host tensor of random numbers; the caller frees its data. */
static ops_tensor random_tensor(ops_dtype dtype, const int64_t dims[2]) {
    ops_tensor t = tensor_make(malloc((size_t)dims[0] * dtype_row_bytes(dtype, dims[1])), OPS_PLACE_HOST, dtype, 2, dims);
    rng r = rng_make(3);
    for (int64_t i = 0; t.data && i < dims[0] * dims[1]; i++)
        tensor_set_value(&t, i, (float)(rng_next(&r) >> 40) * 0x1p-24f - 0.5f);
    return t;
}

/* Two arrays like values, which they are filled with, and a third. */
static status open_arrays(rig *r, const ops_tensor *values, err *e) {
    status st = ops_block_open(r->ctx, &r->block, 3 * ops_cut_bytes(values->dtype, tensor_elements(values)), e);
    if (st != STATUS_OK) return st;
    ops_tensor *all[] = {&r->a, &r->b, &r->out};
    for (int i = 0; i < 3; i++) *all[i] = ops_block_cut(&r->block, values->dtype, 2, values->dims);
    st = ops_upload(r->ctx, &r->a, values->data);
    if (st == STATUS_OK) st = ops_upload(r->ctx, &r->b, values->data);
    return st == STATUS_OK ? ops_sync(r->ctx) : st;
}

static void close_rig(rig *r) {
    ops_matrix_close(r->ctx, &r->matrix);
    ops_block_close(&r->block);
}

static status measure(double *best_s, ops_ctx *ctx, const int64_t dims[2], ops_dtype weights, status (*run)(rig *), err *e) {
    rig r = {.ctx = ctx};
    ops_tensor values = random_tensor(ops_activation_dtype(ctx, weights), dims), w = random_tensor(weights, dims);
    status st = values.data && w.data ? open_arrays(&r, &values, e) : fail(e, STATUS_NO_MEMORY, "bench: no memory");
    if (st == STATUS_OK && run == run_product) st = ops_matrix_open(ctx, &r.matrix, &w, NULL, e);
    if (st == STATUS_OK) st = time_best(&r, best_s, run);
    free(values.data);
    free(w.data);
    close_rig(&r);
    return st;
}

status bench_ceilings_measure(bench_ceilings *top, ops_ctx *ctx, ops_dtype weights, err *e) {
    bool is_cpu = strncmp(ops_device_text(ctx), "cpu", 3) == 0;
    const int64_t side = is_cpu ? 1024 : 8192, square[2] = {side, side};
    const int64_t flat[2] = {is_cpu ? 8192 : 65536, 4096};
    double sum_s = 1, product_s = 1;
    status st = measure(&sum_s, ctx, flat, weights, run_sum, e);
    if (st == STATUS_OK) st = measure(&product_s, ctx, square, weights, run_product, e);
    double moved = 3.0 * (double)(flat[0] * flat[1]) * (double)dtype_bytes(ops_activation_dtype(ctx, weights));
    top->bytes = moved / sum_s;
    top->flops = 2.0 * (double)side * (double)side * (double)side / product_s;
    return st;
}
