/* OPS_PRODUCT_FP8: its codes one by one, and what a product does at its edges: rows and outputs that are not finite, tiny
 * or large, and weights in blocks. ops.conformance has its products over sizes, views and ends, ops.invariance its bits. */
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
#include "tests/ops/ref.h"

static case_contexts contexts;

/* ---- codes --------------------------------------------------------------------------------- */

static void every_code_is_its_value_and_comes_back(void **state) {
    (void)state;
    for (int code = 0; code < 256; code++) {
        float v = e4m3_to_f32((uint8_t)code);
        if ((code & 127) == 127) {
            assert_true(isnan(v));
            continue;
        }
        assert_true((double)v == ref_e4m3_value(code) && !signbit(v) == (code < 128));
        assert_int_equal(f32_to_e4m3(v), code);
    }
    /* written out, and not by the formula of the reference */
    assert_true(e4m3_to_f32(0x01) == 0x1p-9f && e4m3_to_f32(0x07) == 0x1.cp-7f && e4m3_to_f32(0x08) == 0x1p-6f);
    assert_true(e4m3_to_f32(0x38) == 1.0f && e4m3_to_f32(0xb9) == -1.125f && e4m3_to_f32(0x7e) == 448.0f);
}

static void between_two_codes_the_nearer_is_taken_and_then_the_even_one(void **state) {
    (void)state;
    for (int code = 0; code < 126; code++) {
        float middle = (e4m3_to_f32((uint8_t)code) + e4m3_to_f32((uint8_t)(code + 1))) / 2; /* exact */
        int even = code % 2 ? code + 1 : code;
        assert_int_equal(f32_to_e4m3(middle), even);
        assert_int_equal(f32_to_e4m3(-middle), even | 128);
        assert_int_equal(f32_to_e4m3(nextafterf(middle, 0.0f)), code);
        assert_int_equal(f32_to_e4m3(nextafterf(middle, 1e9f)), code + 1);
    }
    static const float large[] = {449.0f, 464.0f, 480.0f, 1e30f, INFINITY};
    for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
        assert_int_equal(f32_to_e4m3(large[i]), 0x7e);
        assert_int_equal(f32_to_e4m3(-large[i]), 0xfe);
    }
    assert_int_equal(f32_to_e4m3(NAN), 0x7f);
    assert_int_equal(f32_to_e4m3(0x1p-149f), 0);
    rng r = rng_make(31);
    for (int i = 0; i < 200000; i++) {
        float v = ldexpf((float)(2.0 * rng_unit(&r) - 1.0), (int)rng_below(&r, 24) - 13);
        assert_int_equal(f32_to_e4m3(v), ref_e4m3_code((double)v));
    }
}

/* Values of every exponent and sign, with each fraction's first eleven bits and what surrounds them. */
static void a_rounded_row_is_what_its_codes_stand_for(void **state) {
    (void)state;
    for (uint32_t high = 0; high < 1u << 20; high++)
        for (uint32_t low = 0; low < 4; low++) {
            uint32_t bits = high << 12 | (low == 3 ? 0xfffu : low);
            float v, rounded;
            memcpy(&v, &bits, sizeof v);
            e4m3_round(&rounded, &v, 1, 1.0f);
            float want = isnan(v) ? NAN : copysignf((float)ref_e4m3_value(ref_e4m3_code(fabs((double)v))), v);
            if (!same_bits(&want, &rounded, 1)) fail_msg("%a became %a, want %a", (double)v, (double)rounded, (double)want);
        }
}

static void a_scale_makes_the_largest_of_a_row_448(void **state) {
    (void)state;
    float row[] = {0.5f, -3.5f, 1.0f, 0x1p-30f}, factor;
    assert_true(e4m3_scale(row, 4, &factor) == 0x1p-7f && factor == 128.0f);
    e4m3_round(row, row, 4, factor);
    assert_true(row[0] == 64.0f && row[1] == -448.0f && row[2] == 128.0f && row[3] == 0.0f);
    float tiny[] = {0x1p-101f, -0x1p-140f}, bad[] = {1.0f, -INFINITY}, worse[] = {NAN, 1.0f};
    assert_true(e4m3_scale(tiny, 2, &factor) == 0.0f && factor == 0.0f);
    assert_true(isnan(e4m3_scale(bad, 2, &factor)) && factor == 0.0f);
    assert_true(isnan(e4m3_scale(worse, 2, &factor)) && factor == 0.0f);
}

/* ---- products ------------------------------------------------------------------------------ */

enum { ROWS = 21, K = 200, N = 48 };

static ops_matrix *open_matrix(ops_ctx *ctx, const ops_tensor *w) {
    err e;
    ops_matrix *m;
    assert_int_equal(ops_matrix_open_as(ctx, &m, w, NULL, OPS_PRODUCT_FP8, &e), STATUS_OK);
    return m;
}

static ops_matrix *open_floats(ops_ctx *ctx, float *w) {
    ops_tensor t = tensor_make(w, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){N, K});
    return open_matrix(ctx, &t);
}

/* The product of ROWS rows of K in f32; x is rounded to the context's dtype. */
static float *multiply(int i, const ops_matrix *m, int64_t n_out, const float *x, bool is_few) {
    guarded to = guarded_open(contexts.ctx[i], OPS_DTYPE_F32, 2, (int64_t[]){ROWS, n_out});
    guarded from = guarded_floats(contexts.ctx[i], contexts.dtype[i], 2, (int64_t[]){ROWS, K}, x);
    assert_int_equal(ops_linear(contexts.ctx[i], &to.t, &from.t, m, &(ops_linear_params){.is_few = is_few}), STATUS_OK);
    assert_true(guarded_intact(&to));
    float *got = guarded_values(&to);
    guarded_close(&to), guarded_close(&from);
    return got;
}

static void what_is_not_finite_spoils_its_own_row_or_output_only(void **state) {
    (void)state;
    rng r = rng_make(5);
    float *x = random_floats(&r, ROWS * K, 1.0f), *w = random_floats(&r, N * K, 1.0f);
    float *bad_x = test_alloc(ROWS * K, sizeof *x), *bad_w = test_alloc(N * K, sizeof *w);
    memcpy(bad_x, x, ROWS * K * sizeof *x), memcpy(bad_w, w, N * K * sizeof *w);
    bad_x[1 * K + 5] = NAN, bad_x[4 * K + 99] = INFINITY, bad_x[20 * K + 199] = -INFINITY;
    bad_w[2 * K + 7] = NAN, bad_w[47 * K + 0] = -INFINITY;
    for (int i = 0; i < contexts.n; i++)
        for (int few = 0; few < 2; few++) {
            ops_matrix *m = open_floats(contexts.ctx[i], w);
            ops_matrix *bad = open_floats(contexts.ctx[i], bad_w);
            float *clean = multiply(i, m, N, x, few), *got = multiply(i, bad, N, bad_x, few);
            for (int at = 0; at < ROWS * N; at++) {
                int row = at / N, o = at % N;
                bool is_bad = row == 1 || row == 4 || row == 20 || o == 2 || o == 47;
                if (is_bad ? !isnan(got[at]) : !same_bits(&got[at], &clean[at], 1))
                    fail_msg("%s, few %d: row %d, output %d is %g, was %g", ops_device_text(contexts.ctx[i]), few, row, o,
                             (double)got[at], (double)clean[at]);
            }
            free(clean), free(got);
            ops_matrix_close(contexts.ctx[i], &m);
            ops_matrix_close(contexts.ctx[i], &bad);
        }
    free(x), free(w), free(bad_x), free(bad_w);
}

/* Of a row with one value and an output with one weight the product is left, as far as codes hold it: exactly, but for
 * the roundings of two scales. */
static void tiny_rows_are_zeros_and_large_ones_are_not(void **state) {
    (void)state;
    static const float sizes[] = {0.0f, 0x1p-140f, 0x1p-101f, 0x1p-99f, 0x1p-14f, 60000.0f, 0x1p100f, 3e38f};
    float *x = test_alloc(ROWS * K, sizeof *x), *w = test_alloc(N * K, sizeof *w);
    for (int o = 0; o < N; o++) w[o * K + 3] = o % 2 ? 0.25f : 0x1p-110f; /* every second one counts as zeros */
    for (int i = 0; i < contexts.n; i++)
        for (int few = 0; few < 2; few++) {
            ops_matrix *m = open_floats(contexts.ctx[i], w);
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
                float size = rounded(sizes[s], contexts.dtype[i]);
                if (!isfinite(size)) continue;
                x[2 * K + 3] = size;
                float *got = multiply(i, m, N, x, few);
                for (int at = 0; at < ROWS * N; at++) {
                    float want = at / N == 2 && at % 2 && size >= OPS_TINY ? size * 0.25f : 0.0f;
                    if (!(fabsf(got[at] - want) <= want * 0x1p-21f))
                        fail_msg("%s, few %d, %g: [%d] is %g", ops_device_text(contexts.ctx[i]), few, (double)size, at,
                                 (double)got[at]);
                }
                free(got);
            }
            ops_matrix_close(contexts.ctx[i], &m);
        }
    free(x), free(w);
}

static void weights_in_blocks_are_coded_again_from_their_values(void **state) {
    (void)state;
    enum { MANY = 1040 }; /* more than a device codes at once */
    static const ops_dtype dtypes[] = {OPS_DTYPE_Q8, OPS_DTYPE_Q4};
    rng r = rng_make(6);
    float *any = random_floats(&r, ROWS * K, 2.0f), *w = random_floats(&r, MANY * K, 0.7f), *values = test_alloc(MANY * K, sizeof *w);
    double *want = test_alloc(ROWS * MANY, sizeof *want), *size = test_alloc(ROWS * MANY, sizeof *size);
    for (size_t d = 0; d < 2; d++) {
        size_t row_bytes = dtype_row_bytes(dtypes[d], K);
        unsigned char *blocks = test_alloc(MANY, row_bytes);
        for (int o = 0; o < MANY; o++) quantize_row(blocks + (size_t)o * row_bytes, dtypes[d], w + o * K, K);
        ops_tensor stored = tensor_make(blocks, OPS_PLACE_HOST, dtypes[d], 2, (int64_t[]){MANY, K});
        for (int k = 0; k < MANY * K; k++) values[k] = tensor_value(&stored, k);
        for (int i = 0; i < contexts.n; i++) {
            float *x = rounded_floats(any, ROWS * K, contexts.dtype[i]);
            ref_fp8(want, size, x, values, NULL, ROWS, K, MANY);
            for (int few = 0; few < 2; few++) {
                ops_matrix *m = open_matrix(contexts.ctx[i], &stored);
                float *got = multiply(i, m, MANY, x, few);
                for (int at = 0; at < ROWS * MANY; at++)
                    if (!(fabs((double)got[at] - want[at]) <= ref_fp8_bound(K) * size[at]))
                        fail_msg("%s, %s, few %d: [%d] got %.9g want %.9g", ops_device_text(contexts.ctx[i]),
                                 dtype_name(dtypes[d]), few, at, (double)got[at], want[at]);
                free(got);
                ops_matrix_close(contexts.ctx[i], &m);
            }
            free(x);
        }
        free(blocks);
    }
    free(any), free(w), free(values), free(want), free(size);
}

/* So many outputs that sums in f32 are finished a few rows at a time on a device. */
static void rows_of_very_many_outputs_are_those_of_single_calls(void **state) {
    (void)state;
    enum { MANY_ROWS = 131, SHORT_K = 16, WIDE_N = 65536 };
    static const int rows[] = {0, 127, 128, 130};
    err e;
    rng r = rng_make(8);
    float *x = random_floats(&r, MANY_ROWS * SHORT_K, 1.0f), *w = random_floats(&r, WIDE_N * SHORT_K, 1.0f);
    ops_tensor tw = tensor_make(w, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){WIDE_N, SHORT_K});
    ops_ctx *ctx = contexts.ctx[0];
    ops_matrix *m;
    assert_int_equal(ops_matrix_open_as(ctx, &m, &tw, NULL, OPS_PRODUCT_FP8, &e), STATUS_OK);
    guarded from = guarded_floats(ctx, OPS_DTYPE_F32, 2, (int64_t[]){MANY_ROWS, SHORT_K}, x);
    guarded to = guarded_open(ctx, OPS_DTYPE_F32, 2, (int64_t[]){MANY_ROWS, WIDE_N});
    assert_int_equal(ops_linear(ctx, &to.t, &from.t, m, NULL), STATUS_OK);
    assert_true(guarded_intact(&to));
    float *all = guarded_values(&to);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        guarded one = guarded_open(ctx, OPS_DTYPE_F32, 2, (int64_t[]){1, WIDE_N});
        ops_tensor row = tensor_rows(&from.t, rows[i], 1);
        assert_int_equal(ops_linear(ctx, &one.t, &row, m, NULL), STATUS_OK);
        float *got = guarded_values(&one);
        assert_true(same_bits(got, all + (int64_t)rows[i] * WIDE_N, WIDE_N));
        free(got);
        guarded_close(&one);
    }
    guarded_close(&from), guarded_close(&to);
    ops_matrix_close(ctx, &m);
    free(all), free(x), free(w);
}

static int open_all(void **state) {
    (void)state;
    case_contexts_open(&contexts);
    for (int i = 0; i < contexts.n; i++) print_message("%s\n", ops_device_text(contexts.ctx[i]));
    return 0;
}

static int close_all(void **state) {
    (void)state;
    case_contexts_close(&contexts);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_is_its_value_and_comes_back),
        cmocka_unit_test(between_two_codes_the_nearer_is_taken_and_then_the_even_one),
        cmocka_unit_test(a_rounded_row_is_what_its_codes_stand_for),
        cmocka_unit_test(a_scale_makes_the_largest_of_a_row_448),
        cmocka_unit_test(what_is_not_finite_spoils_its_own_row_or_output_only),
        cmocka_unit_test(tiny_rows_are_zeros_and_large_ones_are_not),
        cmocka_unit_test(weights_in_blocks_are_coded_again_from_their_values),
        cmocka_unit_test(rows_of_very_many_outputs_are_those_of_single_calls),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
