/* What a device can do, measured by its own operators: a product of two square matrices, and a sum of two arrays that no
 * cache holds. Random numbers, the best of five runs. One thread, that of the context. */
#ifndef CLI_BENCH_CEILINGS_H
#define CLI_BENCH_CEILINGS_H

#include "ops/ops.h"

typedef struct {
    double flops, bytes; /* a second; bytes read and written */
} bench_ceilings;

/* weights: the type of the matrix, f32, f16 or bf16. Errors: NO_MEMORY, DEVICE. */
MUST_USE status bench_ceilings_measure(bench_ceilings *top, ops_ctx *ctx, ops_dtype weights, err *e);

#endif
