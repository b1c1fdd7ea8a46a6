/* What the tests of ops share: contexts of every variant, filled tensors, guard words. */
#ifndef TESTS_OPS_OPS_CASES_H
#define TESTS_OPS_OPS_CASES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/rng.h"
#include "ops/ops.h"

#define GUARD_FLOATS 32

/* The device a test program is for: its tests are built once for each there is. */
#ifndef TEST_DEVICE
#define TEST_DEVICE "cpu"
#endif
bool test_device_is_cpu(void);

/* CPU: contexts with every variant this machine has and 1 thread, then the best one with 2, 3, 4; activations are f32.
 * CUDA: one for each dtype of activations. Where there is no device the program ends as skipped. */
#define CONTEXTS_MAX 8
typedef struct {
    ops_ctx *ctx[CONTEXTS_MAX];
    ops_dtype dtype[CONTEXTS_MAX]; /* of activations */
    int n;
} case_contexts;

/* One context of the device; variant: of simd, NULL the best. NULL when this machine has no such variant. */
ops_ctx *case_context_open(const char *variant, int n_threads);

void case_contexts_open(case_contexts *c);

/* What keys and values may be kept in, where ops_takes_cache allows it. */
#define N_CACHE_DTYPES 4
extern const ops_dtype cache_dtypes[N_CACHE_DTYPES];
void case_contexts_close(case_contexts *c);

/* A device tensor with its own block, GUARD_FLOATS words of 0xA5 before and after, filled with 0xA5. */
typedef struct {
    ops_block block;
    ops_tensor t;
} guarded;

guarded guarded_open(ops_ctx *ctx, ops_dtype dtype, int n_dims, const int64_t *dims);
guarded guarded_with(ops_ctx *ctx, ops_dtype dtype, int n_dims, const int64_t *dims,
                     const void *values);
guarded guarded_floats(ops_ctx *ctx, ops_dtype dtype, int n_dims, const int64_t *dims,
                       const float *values); /* stored in dtype; NULL: as guarded_open */
/* A view of columns of rows that are `before` columns longer on the left and `after` on the right, all guards. */
guarded guarded_columns(ops_ctx *ctx, ops_dtype dtype, int64_t rows, int64_t cols, int64_t before, int64_t after,
                        const float *values);
bool guarded_intact(const guarded *g); /* the guard words are as they were */
void *guarded_bytes(const guarded *g); /* a copy of what the tensor holds, to be freed */
float *guarded_values(const guarded *g); /* the same as f32 */
void guarded_close(guarded *g);

/* n values in [-1, 1) times size; as held by dtype (rounded to it, returned as f32). */
float *random_floats(rng *r, int64_t n, float size);
float *rounded_floats(const float *x, int64_t n, ops_dtype dtype);
void round_floats(float *x, int64_t n, ops_dtype dtype); /* in place */
float rounded(float x, ops_dtype dtype);
void *stored_as(const float *x, int64_t n, ops_dtype dtype);

/* How far one rounding to dtype moves a value of this size: half a step, 0 for f32, whose roundings the bounds of the
 * tests count themselves. */
double storage_error(ops_dtype dtype, double value);

/* Equal when every bit is; NaN equals the same NaN. */
bool same_bits(const void *a, const void *b, int64_t n_floats);

void *test_alloc(size_t n, size_t size); /* zeroed; CHECKs */

#endif
