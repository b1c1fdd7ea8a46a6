/* What the tests of ops share: contexts of every variant, filled tensors, guard words. */
#ifndef TESTS_OPS_OPS_CASES_H
#define TESTS_OPS_OPS_CASES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/rng.h"
#include "ops/ops.h"

#define GUARD_FLOATS 32

/* Contexts with every variant this machine has and 1 thread, then the best one with 2, 3, 4. */
#define CONTEXTS_MAX 8
typedef struct {
    ops_ctx *ctx[CONTEXTS_MAX];
    int n;
} case_contexts;

void case_contexts_open(case_contexts *c);
void case_contexts_close(case_contexts *c);

/* A device tensor with its own block, GUARD_FLOATS words of 0xA5 before and after, filled with 0xA5.
 * The backend under test keeps device memory readable by the host, which the guards rely on. */
typedef struct {
    ops_block block;
    ops_tensor t;
} guarded;

guarded guarded_open(ops_ctx *ctx, ops_dtype dtype, int n_dims, const int64_t *dims);
guarded guarded_with(ops_ctx *ctx, ops_dtype dtype, int n_dims, const int64_t *dims,
                     const void *values);
bool guarded_intact(const guarded *g); /* the guard words are as they were */
void guarded_close(guarded *g);

/* n values in [-1, 1) times size; as held by dtype (rounded to it, returned as f32). */
float *random_floats(rng *r, int64_t n, float size);
float *rounded_floats(const float *x, int64_t n, ops_dtype dtype);
void *stored_as(const float *x, int64_t n, ops_dtype dtype);

/* Equal when every bit is; NaN equals the same NaN. */
bool same_bits(const void *a, const void *b, int64_t n_floats);

void *test_alloc(size_t n, size_t size); /* zeroed; CHECKs */

#endif
