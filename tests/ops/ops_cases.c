#include "tests/ops/ops_cases.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define GUARD_BYTES ((size_t)GUARD_FLOATS * sizeof(float))

void case_contexts_open(case_contexts *c) {
    static const struct {
        const char *simd;
        int n_threads;
    } wanted[] = {{"generic", 1}, {"avx2", 1}, {"avx512", 1}, {"vnni", 1}, {"amx", 1}, {NULL, 2}, {NULL, 3}, {NULL, 4}};
    c->n = 0;
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        err e;
        ops_settings settings = {
            .device = "cpu", .n_threads = wanted[i].n_threads, .simd = wanted[i].simd};
        status st = ops_open(&c->ctx[c->n], &settings, &e);
        if (st == STATUS_UNSUPPORTED) continue; /* not on this processor */
        CHECK(st == STATUS_OK, "a context opens");
        c->n++;
    }
}

void case_contexts_close(case_contexts *c) {
    for (int i = 0; i < c->n; i++) ops_close(&c->ctx[i]);
}

guarded guarded_open(ops_ctx *ctx, ops_dtype dtype, int n_dims, const int64_t *dims) {
    guarded g;
    err e;
    ops_tensor shape = tensor_make(NULL, OPS_PLACE_DEVICE, dtype, n_dims, dims);
    size_t bytes = tensor_bytes(&shape) + 2 * GUARD_BYTES;
    CHECK(ops_block_open(ctx, &g.block, bytes, &e) == STATUS_OK, "a test's block opens");
    memset(g.block.data, 0xA5, bytes);
    g.t = shape;
    g.t.data = (unsigned char *)g.block.data + GUARD_BYTES;
    return g;
}

guarded guarded_with(ops_ctx *ctx, ops_dtype dtype, int n_dims, const int64_t *dims,
                     const void *values) {
    guarded g = guarded_open(ctx, dtype, n_dims, dims);
    CHECK(ops_upload(ctx, &g.t, values) == STATUS_OK, "an upload works");
    return g;
}

bool guarded_intact(const guarded *g) {
    const unsigned char *before = g->block.data;
    const unsigned char *after = (const unsigned char *)g->t.data + tensor_bytes(&g->t);
    for (size_t i = 0; i < GUARD_BYTES; i++)
        if (before[i] != 0xA5 || after[i] != 0xA5) return false;
    return true;
}

void guarded_close(guarded *g) { ops_block_close(&g->block); }

void *test_alloc(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    CHECK(p, "memory for a test");
    return p;
}

float *random_floats(rng *r, int64_t n, float size) {
    float *x = test_alloc((size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (float)(2.0 * rng_unit(r) - 1.0) * size;
    return x;
}

void *stored_as(const float *x, int64_t n, ops_dtype dtype) {
    unsigned char *stored = test_alloc((size_t)n, dtype_bytes(dtype));
    for (int64_t i = 0; i < n; i++) {
        uint16_t half = dtype == OPS_DTYPE_F16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
        if (dtype == OPS_DTYPE_F32)
            memcpy(stored + 4 * i, &x[i], 4);
        else
            memcpy(stored + 2 * i, &half, 2);
    }
    return stored;
}

float *rounded_floats(const float *x, int64_t n, ops_dtype dtype) {
    float *rounded = test_alloc((size_t)n, sizeof *rounded);
    for (int64_t i = 0; i < n; i++)
        rounded[i] = dtype == OPS_DTYPE_F16    ? f16_to_f32(f32_to_f16(x[i]))
                     : dtype == OPS_DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(x[i]))
                                               : x[i];
    return rounded;
}

bool same_bits(const void *a, const void *b, int64_t n_floats) {
    return memcmp(a, b, (size_t)n_floats * sizeof(float)) == 0;
}
