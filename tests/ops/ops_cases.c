#include "tests/ops/ops_cases.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define SKIPPED     77 /* the exit status that ctest counts as skipped */
#define GUARD_BYTES ((size_t)GUARD_FLOATS * sizeof(float))

bool test_device_is_cpu(void) { return strcmp(TEST_DEVICE, "cpu") == 0; }

ops_ctx *case_context_open(const char *variant, int n_threads) {
    err e;
    ops_ctx *ctx;
    ops_settings settings = {.device = TEST_DEVICE, .n_threads = n_threads, .simd = variant};
    status st = ops_open(&ctx, &settings, &e);
    if (st == STATUS_OK) return ctx;
    if (ops_device_count(TEST_DEVICE) == 0) {
        (void)fprintf(stderr, "skipped: %s\n", e.text);
        exit(SKIPPED);
    }
    CHECK(test_device_is_cpu() && st == STATUS_UNSUPPORTED, "a context opens, or this processor does not have the variant");
    return NULL;
}

static void open_device(case_contexts *c) {
    static const ops_dtype dtypes[] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16};
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        c->ctx[c->n] = case_context_open(NULL, 1);
        c->dtype[c->n++] = dtypes[i];
    }
}

const ops_dtype cache_dtypes[N_CACHE_DTYPES] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16, OPS_DTYPE_E4M3};

void case_contexts_open(case_contexts *c) {
    static const struct {
        const char *simd;
        int n_threads;
    } wanted[] = {{"generic", 1}, {"avx2", 1}, {"avx512", 1}, {"vnni", 1}, {"amx", 1}, {NULL, 2}, {NULL, 3}, {NULL, 4}};
    c->n = 0;
    if (!test_device_is_cpu()) {
        open_device(c);
        return;
    }
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        c->ctx[c->n] = case_context_open(wanted[i].simd, wanted[i].n_threads);
        c->dtype[c->n] = OPS_DTYPE_F32;
        if (c->ctx[c->n]) c->n++;
    }
}

void case_contexts_close(case_contexts *c) {
    for (int i = 0; i < c->n; i++) ops_close(&c->ctx[i]);
}

/* All of a block as bytes. */
static ops_tensor whole(const ops_block *block) {
    return tensor_make(block->data, OPS_PLACE_DEVICE, OPS_DTYPE_U8, 1, (int64_t[]){(int64_t)block->size_bytes});
}

guarded guarded_open(ops_ctx *ctx, ops_dtype dtype, int n_dims, const int64_t *dims) {
    guarded g;
    err e;
    ops_tensor shape = tensor_make(NULL, OPS_PLACE_DEVICE, dtype, n_dims, dims);
    size_t bytes = tensor_bytes(&shape) + 2 * GUARD_BYTES;
    CHECK(ops_block_open(ctx, &g.block, bytes, &e) == STATUS_OK, "a test's block opens");
    unsigned char *fill = test_alloc(bytes, 1);
    memset(fill, 0xA5, bytes);
    ops_tensor all = whole(&g.block);
    CHECK(ops_upload(ctx, &all, fill) == STATUS_OK && ops_sync(ctx) == STATUS_OK, "an upload works");
    free(fill);
    g.t = shape;
    g.t.data = (unsigned char *)g.block.data + GUARD_BYTES;
    return g;
}

guarded guarded_with(ops_ctx *ctx, ops_dtype dtype, int n_dims, const int64_t *dims,
                     const void *values) {
    guarded g = guarded_open(ctx, dtype, n_dims, dims);
    CHECK(ops_upload(ctx, &g.t, values) == STATUS_OK && ops_sync(ctx) == STATUS_OK, "an upload works");
    return g;
}

guarded guarded_floats(ops_ctx *ctx, ops_dtype dtype, int n_dims, const int64_t *dims, const float *values) {
    if (!values) return guarded_open(ctx, dtype, n_dims, dims);
    ops_tensor shape = tensor_make(NULL, OPS_PLACE_DEVICE, dtype, n_dims, dims);
    void *stored = stored_as(values, tensor_elements(&shape), dtype);
    guarded g = guarded_with(ctx, dtype, n_dims, dims, stored);
    free(stored);
    return g;
}

guarded guarded_columns(ops_ctx *ctx, ops_dtype dtype, int64_t rows, int64_t cols, int64_t before, int64_t after,
                        const float *values) {
    int64_t wide = before + cols + after;
    guarded g = guarded_open(ctx, dtype, 2, (int64_t[]){rows, wide});
    size_t size = dtype_bytes(dtype), bytes = (size_t)(rows * wide) * size;
    unsigned char *fill = test_alloc(bytes, 1);
    memset(fill, 0xA5, bytes);
    void *stored = values ? stored_as(values, rows * cols, dtype) : NULL;
    for (int64_t r = 0; values && r < rows; r++)
        memcpy(fill + (size_t)(r * wide + before) * size, (unsigned char *)stored + (size_t)(r * cols) * size, (size_t)cols * size);
    CHECK(ops_upload(ctx, &g.t, fill) == STATUS_OK && ops_sync(ctx) == STATUS_OK, "an upload works");
    free(fill), free(stored);
    g.t = tensor_columns(&g.t, before, cols);
    return g;
}

static unsigned char *download_all(const guarded *g) {
    unsigned char *copy = test_alloc(g->block.size_bytes, 1);
    ops_tensor all = whole(&g->block);
    CHECK(ops_download(g->block.ctx, copy, &all) == STATUS_OK && ops_sync(g->block.ctx) == STATUS_OK,
          "a download works and nothing failed before it");
    return copy;
}

bool guarded_intact(const guarded *g) {
    unsigned char *copy = download_all(g);
    const unsigned char *after = copy + g->block.size_bytes - GUARD_BYTES;
    bool is_intact = true;
    for (size_t i = 0; i < GUARD_BYTES; i++) is_intact = is_intact && copy[i] == 0xA5 && after[i] == 0xA5;
    size_t stride = (size_t)g->t.row_stride * dtype_bytes(g->t.dtype), width = (size_t)g->t.dims[1] * dtype_bytes(g->t.dtype);
    size_t first = (size_t)((unsigned char *)g->t.data - (unsigned char *)g->block.data) - GUARD_BYTES;
    for (size_t i = 0; stride && i < (size_t)g->t.dims[0] * stride; i++)
        if (i % stride < first || i % stride >= first + width) is_intact = is_intact && copy[GUARD_BYTES + i] == 0xA5;
    free(copy);
    return is_intact;
}

void *guarded_bytes(const guarded *g) {
    unsigned char *copy = download_all(g);
    memmove(copy, copy + GUARD_BYTES, g->block.size_bytes - 2 * GUARD_BYTES);
    return copy;
}

float *guarded_values(const guarded *g) {
    unsigned char *copy = guarded_bytes(g);
    ops_tensor host = g->t;
    host.data = copy + ((size_t)((unsigned char *)g->t.data - (unsigned char *)g->block.data) - GUARD_BYTES);
    int64_t n = tensor_elements(&host), width = host.dims[1];
    float *values = test_alloc((size_t)n, sizeof *values);
    for (int64_t i = 0; i < n; i++)
        values[i] = tensor_value(&host, host.row_stride ? i / width * host.row_stride + i % width : i);
    free(copy);
    return values;
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
    ops_tensor stored = tensor_make(test_alloc((size_t)n, dtype_bytes(dtype)), OPS_PLACE_HOST, dtype, 1, &n);
    for (int64_t i = 0; i < n; i++) tensor_set_value(&stored, i, x[i]);
    return stored.data;
}

float rounded(float x, ops_dtype dtype) {
    uint32_t room;
    ops_tensor one = tensor_make(&room, OPS_PLACE_HOST, dtype, 1, (int64_t[]){1});
    tensor_set_value(&one, 0, x);
    return tensor_value(&one, 0);
}

void round_floats(float *x, int64_t n, ops_dtype dtype) {
    for (int64_t i = 0; i < n; i++) x[i] = rounded(x[i], dtype);
}

float *rounded_floats(const float *x, int64_t n, ops_dtype dtype) {
    float *copy = test_alloc((size_t)n, sizeof *copy);
    for (int64_t i = 0; i < n; i++) copy[i] = rounded(x[i], dtype);
    return copy;
}

double storage_error(ops_dtype dtype, double value) {
    if (dtype == OPS_DTYPE_F16) return 0x1p-11 * fabs(value) + 0x1p-25; /* 11 bits; subnormal steps of 2^-24 */
    if (dtype == OPS_DTYPE_BF16) return 0x1p-8 * fabs(value) + 0x1p-134;
    if (dtype == OPS_DTYPE_E4M3) return 0x1p-4 * fabs(value) + 0x1p-10; /* 4 bits; subnormal steps of 2^-9 */
    return 0.0;
}

bool same_bits(const void *a, const void *b, int64_t n_floats) {
    return memcmp(a, b, (size_t)n_floats * sizeof(float)) == 0;
}
