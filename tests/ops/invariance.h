/* What the tests of invariance share: every variant of an operator, copies on its device, and a row operator that is cut into
 * calls in every way. */
#ifndef TESTS_OPS_INVARIANCE_H
#define TESTS_OPS_INVARIANCE_H

#include "tests/ops/ops_cases.h"

enum { ROWS = 300 };

/* What the same row must agree over: on the CPU any number of threads of one instruction set; on a device the context,
 * for each dtype of activations. */
typedef struct {
    const char *simd;
    ops_dtype dtype;
} variant;
const variant *variant_at(int i); /* 0 .. N_VARIANTS - 1 */
const char *variant_name(int i);
#define N_VARIANTS (test_device_is_cpu() ? 5 : 3)

extern ops_dtype dtype; /* of the activations of the variant that was opened last */

/* NULL when this machine has no such variant. */
ops_ctx *open_variant(int i, int n_threads);

/* Copies on the device for one call; values NULL: to be written. */
ops_tensor copy_of(ops_ctx *ctx, ops_dtype of, int n_dims, const int64_t *dims, const void *values);
ops_tensor activations(ops_ctx *ctx, const float *values, int64_t rows, int64_t cols);
ops_tensor i32(ops_ctx *ctx, const int32_t *values, int64_t n);

/* What a call made, as f32, out of its first copy; then all are dropped. */
void take(float *out);

typedef struct {
    int64_t cols, out_cols;
    void (*call)(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first, int64_t n);
    void *arg;
} row_operator;

/* Runs op over every cut of ROWS rows and then over each single row, on 1 to 4 threads, against one call. */
void expect_invariant(int v, const row_operator *op, const float *x, const char *name);

#endif
