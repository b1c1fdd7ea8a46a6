/* The reduced products: each against a double sum over the same rounded values, so that a bound has to cover only sums
 * in f32; equal bits for any cut of rows, any threads, and for INT8 on every variant that has a fused multiply-add. */
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

#define U 0x1p-24

static case_contexts contexts;

/* ---- weights ------------------------------------------------------------------------------- */

/* A matrix in a dtype, and the values it stands for when multiplied in a product: of INT8 codes, which times the scale of
 * their output and run (q4: that of each block is in them already, and scales are 1) are the values. */
typedef struct {
    ops_tensor stored, values;
    float *scales; /* [n_out, runs] */
} weights;

static int64_t n_runs_of(int64_t n_in) { return (n_in + OPS_INT8_RUN - 1) / OPS_INT8_RUN; }

static void quantize_x(float *codes, float *scales, const float *x, int64_t n);

static void *as_blocks(const float *x, ops_dtype dtype, int64_t n_out, int64_t n_in) {
    size_t row_bytes = dtype_row_bytes(dtype, n_in);
    unsigned char *blocks = test_alloc((size_t)n_out, row_bytes);
    for (int64_t o = 0; o < n_out; o++) quantize_row(blocks + (size_t)o * row_bytes, dtype, x + o * n_in, n_in);
    return blocks;
}

static weights make_weights(rng *r, ops_dtype dtype, ops_product product, int64_t n_out, int64_t n_in) {
    float *x = random_floats(r, n_out * n_in, 0.7f);
    int64_t dims[2] = {n_out, n_in};
    void *data = dtype_is_quantized(dtype) ? as_blocks(x, dtype, n_out, n_in) : stored_as(x, n_out * n_in, dtype);
    weights w = {.stored = tensor_make(data, OPS_PLACE_HOST, dtype, 2, dims)};
    for (int64_t i = 0; i < n_out * n_in; i++) x[i] = tensor_value(&w.stored, i);
    w.values = tensor_make(x, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, dims);
    for (int64_t i = 0; product == OPS_PRODUCT_BF16 && i < n_out * n_in; i++) x[i] = bf16_to_f32(f32_to_bf16(x[i]));
    if (product != OPS_PRODUCT_INT8) return w;
    w.scales = test_alloc((size_t)(n_out * n_runs_of(n_in)), sizeof *w.scales);
    for (int64_t o = 0; o < n_out; o++) {
        float *scales = w.scales + o * n_runs_of(n_in), *row = x + o * n_in;
        if (dtype != OPS_DTYPE_Q4) quantize_x(row, scales, row, n_in);
        for (int64_t i = 0; dtype == OPS_DTYPE_Q4 && i < n_runs_of(n_in); i++) scales[i] = 1.0f;
    }
    return w;
}

static void free_weights(weights *w) {
    free(w->scales);
    free(w->stored.data);
    free(w->values.data);
}

/* ---- the INT8 product, in double, as ops.h says it ----------------------------------------- */

static float run_scale(const float *x, int64_t n) {
    float top = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) return NAN;
        top = fmaxf(top, fabsf(x[i]));
    }
    return top < OPS_TINY ? 0.0f : top / 127.0f;
}

/* Codes of a row times its runs' scales apart: codes [n], scales [runs]. */
static void quantize_x(float *codes, float *scales, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += OPS_INT8_RUN) {
        int64_t m = n - i < OPS_INT8_RUN ? n - i : OPS_INT8_RUN;
        float scale = run_scale(x + i, m), top = 0.0f;
        for (int64_t k = 0; k < m; k++) top = fmaxf(top, fabsf(x[i + k]));
        scales[i / OPS_INT8_RUN] = scale;
        for (int64_t k = 0; k < m; k++) codes[i + k] = scale > 0.0f ? rintf(x[i + k] * (127.0f / top)) : 0.0f;
    }
}

/* size: the sum of magnitudes of what is added up in f32, one term a block. */
static void ref_int8(double *out, double *size, const float *x, const weights *weights_of, const float *bias, int64_t rows) {
    const ops_tensor *values = &weights_of->values;
    int64_t n_out = values->dims[0], n_in = values->dims[1], n_runs = n_runs_of(n_in);
    float *codes = test_alloc((size_t)n_in, sizeof *codes), *scales = test_alloc((size_t)n_runs, sizeof *scales);
    const float *w = values->data;
    for (int64_t r = 0; r < rows; r++) {
        quantize_x(codes, scales, x + r * n_in, n_in);
        for (int64_t o = 0; o < n_out; o++) {
            double sum = bias ? (double)bias[o] : 0.0, magnitude = fabs(sum);
            for (int64_t b = 0; b < n_in; b += QUANT_BLOCK) {
                double dot = 0.0;
                for (int64_t i = b; i < b + QUANT_BLOCK && i < n_in; i++) dot += (double)codes[i] * (double)w[o * n_in + i];
                int64_t run = b / OPS_INT8_RUN;
                double term = dot * (double)weights_of->scales[o * n_runs + run] * (double)scales[run];
                sum += term;
                magnitude += fabs(term);
            }
            out[r * n_out + o] = sum;
            size[r * n_out + o] = magnitude;
        }
    }
    free(codes);
    free(scales);
}

/* ---- against the reference ----------------------------------------------------------------- */

typedef struct {
    int64_t rows, n_in, n_out;
    ops_dtype dtype;
    ops_product product;
    bool has_bias;
    ops_act act;
} product_case;

static void check_product(ops_ctx *ctx, const product_case *c, uint64_t seed) {
    rng r = rng_make(seed);
    err e;
    float *x = random_floats(&r, c->rows * c->n_in, 2.0f), *bias = random_floats(&r, c->n_out, 3.0f);
    for (int64_t i = 0; i < c->rows * c->n_in; i += 97) x[i] *= 20.0f; /* some stand out */
    weights w = make_weights(&r, c->dtype, c->product, c->n_out, c->n_in);
    ops_tensor tb = tensor_make(bias, OPS_PLACE_HOST, OPS_DTYPE_F32, 1, (int64_t[]){c->n_out});
    ops_matrix *m;
    assert_int_equal(ops_matrix_open_as(ctx, &m, &w.stored, c->has_bias ? &tb : NULL, c->product, &e), STATUS_OK);
    const int64_t margin = c->rows % 2 * 3; /* odd numbers of rows are columns of wider ones */
    guarded gx = guarded_columns(ctx, OPS_DTYPE_F32, c->rows, c->n_in, margin, 2 * margin, x);
    guarded go = guarded_open(ctx, OPS_DTYPE_F32, 2, (int64_t[]){c->rows, c->n_out});
    assert_int_equal(ops_linear(ctx, &go.t, &gx.t, m, &(ops_linear_params){.act = c->act}), STATUS_OK);
    assert_true(guarded_intact(&go) && guarded_intact(&gx));
    float *kept = guarded_values(&gx);
    assert_true(same_bits(kept, x, c->rows * c->n_in));
    free(kept);

    int64_t n = c->rows * c->n_out;
    double *want = test_alloc((size_t)n, sizeof *want), *size = test_alloc((size_t)n, sizeof *size), n_roundings;
    if (c->product == OPS_PRODUCT_INT8) {
        ref_int8(want, size, x, &w, c->has_bias ? bias : NULL, c->rows);
        /* of q4 a block rounds twice (generic) or once, its run likewise, the bias once; of q8 there are runs only */
        n_roundings = (double)(2 * ((c->n_in + 31) / QUANT_BLOCK + (c->n_in + OPS_INT8_RUN - 1) / OPS_INT8_RUN) + 2);
    } else if (c->product == OPS_PRODUCT_FP8) {
        ref_fp8(want, size, x, w.values.data, c->has_bias ? bias : NULL, c->rows, c->n_in, c->n_out);
        n_roundings = ref_fp8_bound(c->n_in) / U;
    } else {
        float *rounded = rounded_floats(x, c->rows * c->n_in, OPS_DTYPE_BF16);
        ref_linear(want, size, rounded, w.values.data, c->has_bias ? bias : NULL, c->rows, c->n_in, c->n_out);
        n_roundings = (double)(2 * c->n_in + 2);
        free(rounded);
    }
    const float *got = go.t.data;
    for (int64_t i = 0; i < n; i++) {
        double bound = n_roundings * U * size[i];
        if (c->act != OPS_ACT_NONE) bound = 1.13 * bound + 2e-7 * fabs(want[i]);
        if (!(fabs((double)got[i] - ref_act(want[i], c->act)) <= bound))
            fail_msg("%s %s %s seed %llu %lldx%lldx%lld act %d [%lld]: got %.9g want %.9g, allowed %.3g off",
                     ops_device_text(ctx), dtype_name(c->dtype), ops_product_name(c->product), (unsigned long long)seed,
                     (long long)c->rows, (long long)c->n_in, (long long)c->n_out, (int)c->act, (long long)i,
                     (double)got[i], ref_act(want[i], c->act), bound);
    }
    ops_matrix_close(ctx, &m);
    guarded_close(&gx);
    guarded_close(&go);
    free_weights(&w);
    free(x), free(bias), free(want), free(size);
}

static const ops_dtype dtypes[] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16, OPS_DTYPE_Q8, OPS_DTYPE_Q4};
#define N_DTYPES 5

static void products_equal_the_double_sum_of_rounded_values(void **state) {
    (void)state;
    static const int64_t sizes[][3] = {
        {1, 1, 1},    {1, 7, 17},    {1, 257, 33},  {1, 300, 290},  {2, 256, 32},  {3, 15, 65},  {5, 17, 16},
        {6, 513, 47}, {7, 96, 97},   {8, 1100, 64}, {13, 31, 129},  {17, 64, 33},  {25, 255, 48}, {32, 270, 34},
        {33, 70, 31}, {37, 259, 15}, {73, 72, 100}, {389, 33, 70},  {800, 40, 35}, {1, 1152, 430}, {16, 640, 96},
    };
    for (int i = 0; i < contexts.n; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
            for (size_t d = 0; d < N_DTYPES; d++)
                for (int p = OPS_PRODUCT_BF16; p < OPS_PRODUCT_COUNT; p++) {
                    product_case c = {sizes[s][0], sizes[s][1], sizes[s][2], dtypes[d], (ops_product)p,
                                      (s + d) % 4 != 3, (ops_act)((s + d) % OPS_ACT_COUNT)};
                    check_product(contexts.ctx[i], &c, 2000 + s);
                }
}

/* ---- the same bits ------------------------------------------------------------------------- */

enum { ROWS = 430, K = 600, N = 75 };

static void multiply(ops_ctx *ctx, const ops_matrix *m, float *out, const float *x, int64_t rows) {
    ops_tensor to = tensor_make(out, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 2, (int64_t[]){rows, N});
    ops_tensor from = tensor_make((void *)(uintptr_t)x, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 2, (int64_t[]){rows, K});
    assert_int_equal(ops_linear(ctx, &to, &from, m, &(ops_linear_params){.act = OPS_ACT_GELU_TANH}), STATUS_OK);
}

/* Rows in cuts that meet every way of tiling: one at a time, few, a block and its rest. */
static void rows_do_not_depend_on_cut_or_threads(void **state) {
    (void)state;
    static const int64_t cuts[][8] = {{ROWS}, {1, 429}, {2, 3, 4, 5, 6, 7, 8, 395}, {9, 11, 12, 13, 385}, {16, 17, 31, 32, 33, 301}};
    rng r = rng_make(3);
    float *x = random_floats(&r, ROWS * K, 1.0f), *want = test_alloc(ROWS * N, sizeof *want), *got = test_alloc(ROWS * N, sizeof *got);
    for (int i = 0; i < contexts.n; i++)
        for (size_t d = 2; d < N_DTYPES; d++)
            for (int p = OPS_PRODUCT_BF16; p < OPS_PRODUCT_COUNT; p++) {
                err e;
                ops_matrix *m;
                ops_ctx *ctx = contexts.ctx[i];
                weights w = make_weights(&r, dtypes[d], (ops_product)p, N, K);
                assert_int_equal(ops_matrix_open_as(ctx, &m, &w.stored, NULL, (ops_product)p, &e), STATUS_OK);
                for (int64_t row = 0; row < ROWS; row++) multiply(ctx, m, want + row * N, x + row * K, 1);
                for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
                    memset(got, 0xA5, (size_t)(ROWS * N) * sizeof *got);
                    for (int64_t first = 0, k = 0; first < ROWS; first += cuts[c][k++])
                        multiply(ctx, m, got + first * N, x + first * K, cuts[c][k]);
                    if (!same_bits(want, got, ROWS * N))
                        fail_msg("%s %s %s: cut %zu differs", ops_device_text(ctx), dtype_name(dtypes[d]),
                                 ops_product_name((ops_product)p), c);
                }
                ops_matrix_close(ctx, &m);
                free_weights(&w);
            }
    free(x), free(want), free(got);
}

/* Contexts of one variant differ in threads only; INT8 is equal on all that fuse, whatever their vectors. */
static void contexts_agree(void **state) {
    (void)state;
    rng r = rng_make(4);
    float *x = random_floats(&r, ROWS * K, 1.0f), *got = test_alloc(ROWS * N, sizeof *got);
    for (size_t d = 2; d < N_DTYPES; d++)
        for (int p = OPS_PRODUCT_BF16; p < OPS_PRODUCT_COUNT; p++) {
            weights w = make_weights(&r, dtypes[d], (ops_product)p, N, K);
            float *want[CONTEXTS_MAX] = {0};
            for (int i = 0; i < contexts.n; i++) {
                err e;
                ops_matrix *m;
                const char *text = ops_device_text(contexts.ctx[i]);
                if (strncmp(text, "cpu generic", 11) == 0) continue;
                assert_int_equal(ops_matrix_open_as(contexts.ctx[i], &m, &w.stored, NULL, (ops_product)p, &e), STATUS_OK);
                want[i] = test_alloc(ROWS * N, sizeof **want);
                multiply(contexts.ctx[i], m, want[i], x, ROWS);
                for (int k = 0; k < i; k++) {
                    size_t name = strcspn(text, ",");
                    bool is_one_variant = strncmp(text, ops_device_text(contexts.ctx[k]), name) == 0;
                    if (want[k] && (p == OPS_PRODUCT_INT8 || is_one_variant) && !same_bits(want[k], want[i], ROWS * N))
                        fail_msg("%s %s: %s and %s differ", dtype_name(dtypes[d]), ops_product_name((ops_product)p), text,
                                 ops_device_text(contexts.ctx[k]));
                }
                ops_matrix_close(contexts.ctx[i], &m);
            }
            for (int i = 0; i < contexts.n; i++) free(want[i]);
            free_weights(&w);
        }
    free(x), free(got);
}

/* ---- edges --------------------------------------------------------------------------------- */

static void what_is_not_finite_spoils_its_own_row_only(void **state) {
    (void)state;
    enum { EDGE_ROWS = 8 };
    rng r = rng_make(5);
    float *x = random_floats(&r, EDGE_ROWS * K, 1.0f), *clean = test_alloc(EDGE_ROWS * N, sizeof *clean);
    float *got = test_alloc(EDGE_ROWS * N, sizeof *got);
    for (int i = 0; i < contexts.n; i++) {
        err e;
        ops_matrix *m;
        weights w = make_weights(&r, OPS_DTYPE_Q8, OPS_PRODUCT_INT8, N, K);
        assert_int_equal(ops_matrix_open_as(contexts.ctx[i], &m, &w.stored, NULL, OPS_PRODUCT_INT8, &e), STATUS_OK);
        multiply(contexts.ctx[i], m, clean, x, EDGE_ROWS);
        float kept[3] = {x[1 * K + 5], x[4 * K + 99], x[7 * K + 599]};
        x[1 * K + 5] = NAN, x[4 * K + 99] = INFINITY, x[7 * K + 599] = -INFINITY;
        multiply(contexts.ctx[i], m, got, x, EDGE_ROWS);
        x[1 * K + 5] = kept[0], x[4 * K + 99] = kept[1], x[7 * K + 599] = kept[2];
        for (int row = 0; row < EDGE_ROWS; row++)
            for (int c = 0; c < N; c++) {
                if (row == 1 || row == 4 || row == 7) assert_true(isnan(got[row * N + c]));
                else assert_true(same_bits(&got[row * N + c], &clean[row * N + c], 1));
            }
        ops_matrix_close(contexts.ctx[i], &m);
        free_weights(&w);
    }
    free(x), free(clean), free(got);
}

static void tiny_runs_are_zeros_and_large_ones_are_not(void **state) {
    (void)state;
    static const float sizes[] = {0.0f, 0x1p-140f, 0x1p-101f, 0x1p-99f, 0x1p100f, 3e38f};
    for (int i = 0; i < contexts.n; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            err e;
            ops_matrix *m;
            float w[64], x[64], got;
            for (int k = 0; k < 64; k++) w[k] = k == 3 ? 0.25f : 0.0f, x[k] = k == 3 ? sizes[s] : 0.0f;
            ops_tensor tw = tensor_make(w, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){1, 64});
            ops_tensor tx = tensor_make(x, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 2, (int64_t[]){1, 64});
            ops_tensor to = tensor_make(&got, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 2, (int64_t[]){1, 1});
            assert_int_equal(ops_matrix_open_as(contexts.ctx[i], &m, &tw, NULL, OPS_PRODUCT_INT8, &e), STATUS_OK);
            assert_int_equal(ops_linear(contexts.ctx[i], &to, &tx, m, NULL), STATUS_OK);
            float want = sizes[s] < OPS_TINY ? 0.0f : sizes[s] * 0.25f;
            assert_true(fabsf(got - want) <= want * 0.005f);
            ops_matrix_close(contexts.ctx[i], &m);
        }
}

static void an_unknown_product_is_refused(void **state) {
    (void)state;
    float w[4] = {1, 2, 3, 4};
    err e;
    ops_matrix *m;
    ops_tensor tw = tensor_make(w, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){2, 2});
    assert_int_equal(ops_matrix_open_as(contexts.ctx[0], &m, &tw, NULL, OPS_PRODUCT_COUNT, &e), STATUS_BAD_ARGUMENT);
    assert_null(m);
    assert_string_equal(ops_product_name(OPS_PRODUCT_INT8), "int8");
    assert_string_equal(ops_product_name(OPS_PRODUCT_FP8), "fp8");
    assert_string_equal(ops_product_name(OPS_PRODUCT_COUNT), "unknown");
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
        cmocka_unit_test(products_equal_the_double_sum_of_rounded_values),
        cmocka_unit_test(rows_do_not_depend_on_cut_or_threads),
        cmocka_unit_test(contexts_agree),
        cmocka_unit_test(what_is_not_finite_spoils_its_own_row_only),
        cmocka_unit_test(tiny_runs_are_zeros_and_large_ones_are_not),
        cmocka_unit_test(an_unknown_product_is_refused),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
