/* Q8 and Q4: what a block means, how well weights survive, and that a product with blocks is, bit by bit, the product
 * with the f32 values they stand for. */
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

#include "base/rng.h"
#include "tests/ops/ops_cases.h"

static const ops_dtype types[] = {OPS_DTYPE_Q8, OPS_DTYPE_Q4};
static const char *const variants[] = {"generic", "avx2", "avx512", "vnni", "amx"};

static void fill(float *x, int64_t n, rng *r, float size) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)(rng_unit(r) * 2 - 1) * size;
}

/* A matrix of blocks and the f32 values it stands for. */
typedef struct {
    ops_tensor blocks, values;
} pair;

static pair make_pair(ops_dtype dtype, int64_t n_out, int64_t n_in, rng *r) {
    float *x = test_alloc((size_t)(n_out * n_in), sizeof *x);
    fill(x, n_out * n_in, r, 0.1f);
    unsigned char *blocks = test_alloc((size_t)n_out * dtype_row_bytes(dtype, n_in), 1);
    for (int64_t o = 0; o < n_out; o++) quantize_row(blocks + (size_t)o * dtype_row_bytes(dtype, n_in), dtype, x + o * n_in, n_in);
    pair p = {tensor_make(blocks, OPS_PLACE_HOST, dtype, 2, (int64_t[]){n_out, n_in}),
              tensor_make(x, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){n_out, n_in})};
    for (int64_t i = 0; i < n_out * n_in; i++) x[i] = tensor_value(&p.blocks, i);
    return p;
}

/* ---- promises ------------------------------------------------------------------------------------ */

static void a_block_is_a_scale_and_codes(void **state) {
    (void)state;
    unsigned char q8[2 * 34] = {0x00, 0x3f}, q4[18] = {0x80, 0xbf}; /* 0.5 and -1 in bf16 */
    q8[2] = 127, q8[3] = 0x80, q8[2 + 31] = 0xff;
    q8[34 + 1] = 0x40, q8[34 + 2] = 3; /* the second block: 2.0 times 3 */
    q4[2] = 0xf0, q4[2 + 15] = 0x19;
    ops_tensor a = tensor_make(q8, OPS_PLACE_HOST, OPS_DTYPE_Q8, 2, (int64_t[]){1, 33});
    assert_true(tensor_bytes(&a) == 68);
    assert_true(tensor_value(&a, 0) == 63.5f && tensor_value(&a, 1) == -64.0f && tensor_value(&a, 2) == 0.0f);
    assert_true(tensor_value(&a, 31) == -0.5f && tensor_value(&a, 32) == 6.0f);
    ops_tensor b = tensor_make(q4, OPS_PLACE_HOST, OPS_DTYPE_Q4, 2, (int64_t[]){1, 32});
    assert_true(tensor_bytes(&b) == 18);
    assert_true(tensor_value(&b, 0) == 8.0f && tensor_value(&b, 16) == -7.0f);
    assert_true(tensor_value(&b, 15) == -1.0f && tensor_value(&b, 31) == 7.0f && tensor_value(&b, 1) == 8.0f);
}

static void weights_survive_within_a_step(void **state) {
    (void)state;
    rng r = rng_make(7);
    for (int t = 0; t < 2; t++)
        for (int64_t n = 1; n <= 100; n++) {
            float x[100], size = ldexpf(1.0f, (int)rng_below(&r, 60) - 40);
            unsigned char row[4 * 34];
            fill(x, n, &r, size);
            quantize_row(row, types[t], x, n);
            ops_tensor q = tensor_make(row, OPS_PLACE_HOST, types[t], 2, (int64_t[]){1, n});
            for (int64_t i = 0; i < n; i++) {
                float top = 0.0f;
                for (int64_t j = i / QUANT_BLOCK * QUANT_BLOCK; j < n && j / QUANT_BLOCK == i / QUANT_BLOCK; j++)
                    top = fmaxf(top, fabsf(x[j]));
                /* half a step; or what the largest code cuts off: of Q8 what the scale's rounding takes, of Q4 up to a
                 * fifth of the range below the top and one step and a half at the other end */
                float bound = t == 0 ? top / 127 * 0.5f + top * 0x1p-8f : top * 0.22f;
                if (!(fabsf(tensor_value(&q, i) - x[i]) <= bound))
                    fail_msg("%s of %lld: %g became %g, top %g", dtype_name(types[t]), (long long)n, (double)x[i],
                             (double)tensor_value(&q, i), (double)top);
            }
        }
}

static void zeros_and_what_is_not_finite_become_zero(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        float x[QUANT_BLOCK] = {[3] = NAN, [4] = INFINITY, [5] = -INFINITY};
        unsigned char row[34];
        quantize_row(row, types[t], x, QUANT_BLOCK);
        ops_tensor q = tensor_make(row, OPS_PLACE_HOST, types[t], 2, (int64_t[]){1, QUANT_BLOCK});
        for (int i = 0; i < QUANT_BLOCK; i++) assert_true(tensor_value(&q, i) == 0.0f);
    }
}

/* The product on the device, as f32. */
static void multiply(ops_ctx *ctx, const ops_matrix *m, ops_dtype dtype, bool is_few, float *out, const float *x, int64_t rows,
                     int64_t n_out, int64_t n_in) {
    guarded to = guarded_open(ctx, dtype, 2, (int64_t[]){rows, n_out});
    guarded from = guarded_floats(ctx, dtype, 2, (int64_t[]){rows, n_in}, x);
    assert_int_equal(ops_linear(ctx, &to.t, &from.t, m, &(ops_linear_params){.is_few = is_few}), STATUS_OK);
    assert_true(guarded_intact(&to));
    float *got = guarded_values(&to);
    memcpy(out, got, (size_t)(rows * n_out) * sizeof *out);
    free(got);
    guarded_close(&to), guarded_close(&from);
}

static void expect_equal_products(ops_ctx *ctx, ops_dtype dtype, int64_t n_out, int64_t n_in, rng *r) {
    static const int64_t rows[] = {1, 2, 5, 13, 40};
    pair p = make_pair(dtype, n_out, n_in, r);
    ops_matrix *blocks, *values;
    err e;
    assert_int_equal(ops_matrix_open(ctx, &blocks, &p.blocks, NULL, &e), STATUS_OK);
    assert_int_equal(ops_matrix_open(ctx, &values, &p.values, NULL, &e), STATUS_OK);
    float *x = test_alloc((size_t)(40 * n_in), sizeof *x), *got = test_alloc((size_t)(40 * n_out), sizeof *got);
    float *want = test_alloc((size_t)(40 * n_out), sizeof *want);
    fill(x, 40 * n_in, r, 1.0f);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        multiply(ctx, blocks, OPS_DTYPE_F32, i % 2 == 0, got, x, rows[i], n_out, n_in);
        multiply(ctx, values, OPS_DTYPE_F32, i % 2 == 0, want, x, rows[i], n_out, n_in);
        if (!same_bits(want, got, rows[i] * n_out))
            fail_msg("%s, %s: %lld rows of %lld x %lld differ", ops_device_text(ctx), dtype_name(dtype),
                     (long long)rows[i], (long long)n_out, (long long)n_in);
    }
    ops_matrix_close(ctx, &blocks);
    ops_matrix_close(ctx, &values);
    free(x), free(got), free(want), free(p.blocks.data), free(p.values.data);
}

static void products_are_those_of_the_values_bit_by_bit(void **state) {
    (void)state;
    static const int64_t sizes[][2] = {{1, 1}, {32, 32}, {33, 31}, {160, 256}, {97, 300}, {256, 512}, {300, 270}, {512, 1000}};
    if (!test_device_is_cpu()) return; /* the next one */
    rng r = rng_make(11);
    for (size_t v = 0; v < sizeof variants / sizeof *variants; v++)
        for (int n_threads = 1; n_threads <= 3; n_threads += 2) {
            ops_ctx *ctx;
            err e;
            ops_settings settings = {.device = "cpu", .n_threads = n_threads, .simd = variants[v]};
            if (ops_open(&ctx, &settings, &e) != STATUS_OK) continue; /* this machine has no such variant */
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
                for (int t = 0; t < 2; t++) expect_equal_products(ctx, types[t], sizes[s][0], sizes[s][1], &r);
            ops_close(&ctx);
        }
}

/* Rows of a kind that comes in small numbers meet exact weights; others meet weights that may be rounded to halves. */
static void expect_near_products(ops_ctx *ctx, ops_dtype dtype, ops_dtype rows_dtype, bool is_few, int64_t n_out, int64_t n_in,
                                 rng *r) {
    const int64_t rows = n_out * n_in < 1000000 ? 40 : 9;
    pair p = make_pair(dtype, n_out, n_in, r);
    const float *w = p.values.data;
    ops_matrix *m;
    err e;
    assert_int_equal(ops_matrix_open(ctx, &m, &p.blocks, NULL, &e), STATUS_OK);
    float *x = random_floats(r, rows * n_in, 1.0f), *got = test_alloc((size_t)(rows * n_out), sizeof *got);
    round_floats(x, rows * n_in, rows_dtype);
    multiply(ctx, m, rows_dtype, is_few, got, x, rows, n_out, n_in);
    for (int64_t i = 0; i < rows * n_out; i++) {
        double sum = 0.0, size = 0.0;
        for (int64_t k = 0; k < n_in; k++) {
            double product = (double)x[i / n_out * n_in + k] * (double)w[i % n_out * n_in + k];
            sum += product;
            size += fabs(product);
        }
        double bound = (double)(2 * n_in + 2) * 0x1p-24 * size + storage_error(rows_dtype, sum);
        if (!is_few) bound += storage_error(rows_dtype, 1.0) * size;
        if (!(fabs((double)got[i] - sum) <= bound))
            fail_msg("%s of %s rows, few %d, %lld x %lld [%lld]: got %.9g want %.9g", dtype_name(dtype),
                     dtype_name(rows_dtype), (int)is_few, (long long)n_out, (long long)n_in, (long long)i, (double)got[i], sum);
    }
    ops_matrix_close(ctx, &m);
    free(x), free(got), free(p.blocks.data), free(p.values.data);
}

static void products_are_near_those_of_the_values(void **state) {
    (void)state;
    static const int64_t sizes[][2] = {{1, 1}, {33, 31}, {8, 8}, {160, 256}, {97, 304}, {1032, 520}, {64, 1000}, {1032, 5184}};
    case_contexts c;
    case_contexts_open(&c);
    rng r = rng_make(12);
    for (int i = 0; i < c.n; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (int t = 0; t < 4; t++)
                expect_near_products(c.ctx[i], types[t % 2], c.dtype[i], t / 2 == 0, sizes[s][0], sizes[s][1], &r);
    case_contexts_close(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_block_is_a_scale_and_codes),
                                       cmocka_unit_test(weights_survive_within_a_step),
                                       cmocka_unit_test(zeros_and_what_is_not_finite_become_zero),
                                       cmocka_unit_test(products_are_those_of_the_values_bit_by_bit),
                                       cmocka_unit_test(products_are_near_those_of_the_values)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
