/* A matrix is made of rows that are asked for: all of them, each to its place, whatever pieces and threads they come in. The
 * weights are small powers of two, so that every sum is exact in every order. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Before cmocka.h, which has a macro of the name of our function fail(). */
#include "base/err.h"

#include <cmocka.h>

#include "tests/ops/ops_cases.h"

/* 1, 2 or 4, and its sign: by an arithmetic of its own for each place. */
static int weight_of(int64_t o, int64_t k) {
    uint64_t h = ((uint64_t)o * 1000003u + (uint64_t)k) * UINT64_C(0x9e3779b97f4a7c15);
    return (1 << (h >> 40) % 3) * (h >> 50 & 1 ? -1 : 1);
}

static int x_of(int64_t k) { return k % 3 == 0 ? 0 : (int)(k % 7 % 2) * 2 - 1; }

typedef struct {
    ops_rows rows;
    int64_t *n_read; /* of each row, atomically */
} source;

static void put_row(unsigned char *out, const ops_rows *rows, int64_t o) {
    ops_tensor row = tensor_make(out, OPS_PLACE_HOST, rows->dtype, 2, (int64_t[]){1, rows->n_in});
    if (!dtype_is_quantized(rows->dtype)) {
        for (int64_t k = 0; k < rows->n_in; k++) tensor_set_value(&row, k, (float)weight_of(o, k));
        return;
    }
    for (int64_t k0 = 0; k0 < rows->n_in; k0 += QUANT_BLOCK) {
        int codes[QUANT_BLOCK] = {0};
        for (int64_t k = k0; k < k0 + QUANT_BLOCK && k < rows->n_in; k++) codes[k - k0] = weight_of(o, k);
        out[0] = 0x80, out[1] = 0x3f; /* 1.0 in bf16 */
        out += 2;
        if (rows->dtype == OPS_DTYPE_Q8)
            for (int i = 0; i < QUANT_BLOCK; i++) *out++ = (unsigned char)codes[i];
        else
            for (int i = 0; i < QUANT_BLOCK / 2; i++)
                *out++ = (unsigned char)((codes[i] + 8) | (codes[i + QUANT_BLOCK / 2] + 8) << 4);
    }
}

static void read_rows(const void *user, unsigned char *out, size_t stride, int64_t first, int64_t n) {
    const source *s = user;
    for (int64_t r = 0; r < n; r++) {
        put_row(out + (size_t)r * stride, &s->rows, first + r);
        (void)__atomic_fetch_add(&s->n_read[first + r], 1, __ATOMIC_RELAXED);
    }
}

static void expect_products(ops_ctx *ctx, ops_dtype dtype, ops_product product, int64_t n_out, int64_t n_in) {
    source s = {{dtype, n_out, n_in, read_rows, &s}, test_alloc((size_t)n_out, sizeof *s.n_read)};
    memset(s.n_read, 0, (size_t)n_out * sizeof *s.n_read);
    float *x = test_alloc((size_t)n_in, sizeof *x);
    for (int64_t k = 0; k < n_in; k++) x[k] = (float)x_of(k);
    ops_matrix *m;
    err e;
    assert_int_equal(ops_matrix_open_rows(ctx, &m, &s.rows, NULL, product, &e), STATUS_OK);
    guarded from = guarded_floats(ctx, OPS_DTYPE_F32, 2, (int64_t[]){1, n_in}, x);
    guarded to = guarded_open(ctx, OPS_DTYPE_F32, 2, (int64_t[]){1, n_out});
    assert_int_equal(ops_linear(ctx, &to.t, &from.t, m, NULL), STATUS_OK);
    float *got = guarded_values(&to);
    for (int64_t o = 0; o < n_out; o++) {
        int64_t want = 0, size = 0;
        for (int64_t k = 0; k < n_in; k++) {
            want += weight_of(o, k) * x_of(k);
            size += abs(weight_of(o, k) * x_of(k));
        }
        /* scales are quotients, so rounded; and int8 codes all but q4 anew, to half a step of 4 / 127 a weight */
        double part = product == OPS_PRODUCT_INT8 && dtype != OPS_DTYPE_Q4 ? 0.02 : product >= OPS_PRODUCT_INT8 ? 0x1p-20 : 0;
        double bound = part * (double)size;
        if (!(fabs((double)got[o] - (double)want) <= bound))
            fail_msg("%s in %s, %lld x %lld: output %lld is %.9g, want %lld", dtype_name(dtype), ops_product_name(product),
                     (long long)n_out, (long long)n_in, (long long)o, (double)got[o], (long long)want);
        assert_true(s.n_read[o] >= 1);
    }
    guarded_close(&from), guarded_close(&to);
    ops_matrix_close(ctx, &m);
    free(got), free(x), free(s.n_read);
}

static void expect_all_products(ops_ctx *ctx) {
    static const ops_dtype dtypes[] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16, OPS_DTYPE_Q8, OPS_DTYPE_Q4};
    /* not whole panels, chunks or blocks */
    static const int64_t sizes[][2] = {{1, 1}, {33, 70}, {100, 256}, {1100, 130}};
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        for (int p = 0; p < OPS_PRODUCT_COUNT; p++)
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
                if (p != OPS_PRODUCT_INT8 || test_device_is_cpu())
                    expect_products(ctx, dtypes[d], (ops_product)p, sizes[i][0], sizes[i][1]);
    /* of every type more than crosses to a device at once */
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++) expect_products(ctx, dtypes[d], OPS_PRODUCT_F32, 2300, 4012);
}

static void matrices_are_made_of_the_rows_asked_for(void **state) {
    (void)state;
    static const char *const variants[] = {NULL, "generic", "avx2", "avx512", "vnni", "amx"};
    for (size_t v = 0; v < (test_device_is_cpu() ? sizeof variants / sizeof *variants : 1); v++) {
        ops_ctx *ctx = case_context_open(variants[v], 2);
        if (ctx) expect_all_products(ctx);
        ops_close(&ctx);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(matrices_are_made_of_the_rows_asked_for)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
