#include "tests/ops/invariance.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Before cmocka.h, which has a macro of the name of our function fail(). */
#include "base/err.h"

#include <cmocka.h>

#include "base/check.h"

static const variant cpu_variants[] = {{"generic", OPS_DTYPE_F32}, {"avx2", OPS_DTYPE_F32}, {"avx512", OPS_DTYPE_F32},
                                       {"vnni", OPS_DTYPE_F32},    {"amx", OPS_DTYPE_F32}};
static const variant device_variants[] = {{NULL, OPS_DTYPE_F32}, {NULL, OPS_DTYPE_F16}, {NULL, OPS_DTYPE_BF16}};

const variant *variant_at(int i) { return test_device_is_cpu() ? &cpu_variants[i] : &device_variants[i]; }
const char *variant_name(int i) { return variant_at(i)->simd ? variant_at(i)->simd : dtype_name(variant_at(i)->dtype); }

ops_dtype dtype;

ops_ctx *open_variant(int i, int n_threads) {
    dtype = variant_at(i)->dtype;
    return case_context_open(variant_at(i)->simd, n_threads);
}

/* Copies on the device for one call, dropped behind it. */
static guarded copies[16];
static int n_copies;

ops_tensor copy_of(ops_ctx *ctx, ops_dtype of, int n_dims, const int64_t *dims, const void *values) {
    CHECK(n_copies < 16, "room for the tensors of a call");
    copies[n_copies] = of == OPS_DTYPE_I32 ? guarded_with(ctx, of, n_dims, dims, values)
                                           : guarded_floats(ctx, of, n_dims, dims, values);
    return copies[n_copies++].t;
}
ops_tensor activations(ops_ctx *ctx, const float *values, int64_t rows, int64_t cols) {
    return copy_of(ctx, dtype, 2, (int64_t[]){rows, cols}, values);
}
ops_tensor i32(ops_ctx *ctx, const int32_t *values, int64_t n) {
    return copy_of(ctx, OPS_DTYPE_I32, 1, &n, values);
}

void take(float *out) {
    float *values = guarded_values(&copies[0]);
    assert_true(guarded_intact(&copies[0]));
    memcpy(out, values, (size_t)tensor_elements(&copies[0].t) * sizeof *out);
    free(values);
    while (n_copies > 0) guarded_close(&copies[--n_copies]);
}

/* Cuts of ROWS rows into calls: all equal, single rows at the ends, primes. 0 ends a list. */
static const int64_t cuts[][12] = {
    {ROWS},
    {1, 1, 2, 3, 5, 7, 11, 13, 29, 101, 127},
    {150, 150},
    {299, 1},
    {12, 36, 37, 24, 25, 6, 5, 4, 146, 5},
};
#define N_CUTS ((int)(sizeof cuts / sizeof cuts[0]))

void expect_invariant(int v, const row_operator *op, const float *x, const char *name) {
    float *want = test_alloc((size_t)(ROWS * op->out_cols), sizeof *want);
    float *got = test_alloc((size_t)(ROWS * op->out_cols), sizeof *got);
    for (int n_threads = 1; n_threads <= (test_device_is_cpu() ? 4 : 1); n_threads++) {
        ops_ctx *ctx = open_variant(v, n_threads);
        if (n_threads == 1) op->call(ctx, op->arg, want, x, 0, ROWS);
        for (int c = 0; c <= N_CUTS; c++) {
            if (!test_device_is_cpu() && (c == 2 || c == 3)) continue;
            memset(got, 0xA5, (size_t)(ROWS * op->out_cols) * sizeof *got);
            for (int64_t first = 0, i = 0; first < ROWS; i++) {
                int64_t n = c < N_CUTS ? cuts[c][i] : 1;
                if (c == N_CUTS && first == 40 && !test_device_is_cpu()) n = ROWS - first; /* an emulated one takes its time */
                op->call(ctx, op->arg, got + first * op->out_cols, x + first * op->cols, first, n);
                first += n;
            }
            if (!same_bits(want, got, ROWS * op->out_cols))
                fail_msg("%s of %s on %s: cut %d differs", name, dtype_name(dtype), ops_device_text(ctx), c);
        }
        ops_close(&ctx);
    }
    free(want), free(got);
}
