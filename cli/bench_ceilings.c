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
} arena;

static status run_sum(arena *r) { return ops_add(r->ctx, &r->out, &r->a, &r->b); }
static status run_product(arena *r) { return ops_linear(r->ctx, &r->out, &r->a, r->matrix, OPS_ACT_NONE); }

static status time_best(arena *r, double *best_s, status (*run)(arena *)) {
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

static float *random_values(int64_t n) {
    float *x = malloc((size_t)n * sizeof *x);
    rng r = rng_make(3);
    for (int64_t i = 0; x && i < n; i++) x[i] = (float)(rng_next(&r) >> 40) * 0x1p-24f - 0.5f;
    return x;
}

/* Two arrays of dims and a third, the first two filled. */
static status open_arrays(arena *r, const int64_t dims[2], const float *values, err *e) {
    status st = ops_block_open(r->ctx, &r->block, 3 * ops_cut_bytes(OPS_DTYPE_F32, dims[0] * dims[1]), e);
    if (st != STATUS_OK) return st;
    r->a = ops_block_cut(&r->block, OPS_DTYPE_F32, 2, dims);
    r->b = ops_block_cut(&r->block, OPS_DTYPE_F32, 2, dims);
    r->out = ops_block_cut(&r->block, OPS_DTYPE_F32, 2, dims);
    st = ops_upload(r->ctx, &r->a, values);
    if (st == STATUS_OK) st = ops_upload(r->ctx, &r->b, values);
    return st == STATUS_OK ? ops_sync(r->ctx) : st;
}

static void close_arena(arena *r) {
    ops_matrix_close(r->ctx, &r->matrix);
    ops_block_close(&r->block);
}

static status measure(double *best_s, ops_ctx *ctx, const int64_t dims[2], ops_dtype weights, status (*run)(arena *), err *e) {
    arena r = {.ctx = ctx};
    float *values = random_values(dims[0] * dims[1]);
    status st = values ? open_arrays(&r, dims, values, e) : fail(e, STATUS_NO_MEMORY, "bench: no memory");
    if (st == STATUS_OK && run == run_product) {
        unsigned char *stored = malloc((size_t)dims[0] * dtype_row_bytes(weights, dims[1]));
        ops_tensor w = tensor_make(stored, OPS_PLACE_HOST, weights, 2, dims);
        st = stored ? STATUS_OK : fail(e, STATUS_NO_MEMORY, "bench: no memory");
        if (st == STATUS_OK) {
            for (int64_t i = 0; i < dims[0] * dims[1]; i++) tensor_set_value(&w, i, values[i]);
            st = ops_matrix_open(ctx, &r.matrix, &w, NULL, e);
        }
        free(stored);
    }
    if (st == STATUS_OK) st = time_best(&r, best_s, run);
    free(values);
    close_arena(&r);
    return st;
}

status bench_ceilings_measure(bench_ceilings *top, ops_ctx *ctx, ops_dtype weights, err *e) {
    bool is_cpu = strncmp(ops_device_text(ctx), "cpu", 3) == 0;
    const int64_t side = is_cpu ? 1024 : 8192, square[2] = {side, side};
    const int64_t flat[2] = {is_cpu ? 8192 : 65536, 4096};
    double sum_s = 1, product_s = 1;
    status st = measure(&sum_s, ctx, flat, weights, run_sum, e);
    if (st == STATUS_OK) st = measure(&product_s, ctx, square, weights, run_product, e);
    top->bytes = 3.0 * (double)(flat[0] * flat[1]) * sizeof(float) / sum_s;
    top->flops = 2.0 * (double)side * (double)side * (double)side / product_s;
    return st;
}
