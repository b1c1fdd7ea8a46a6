/* The operators on rows and single numbers against their definitions, on every variant and several
 * threads: norms, activations, sums, moves, casts, patches, rotation, cache blocks. */
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

#include "base/check.h"
#include "tests/ops/ops_cases.h"
#include "tests/ops/ref.h"

#define U 0x1p-24

static case_contexts contexts;

/* With `dtype`, that of the context's activations. */
static ops_dtype dtype;
#define EACH_CONTEXT(c)                                                                            \
    for (int c##_i = 0; c##_i < contexts.n; c##_i++)                                               \
        for (ops_ctx *c = (dtype = contexts.dtype[c##_i], contexts.ctx[c##_i]); c; c = NULL)

static const int64_t widths[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 127, 1152, 2560, 4304, 5128, 10247, 10264};
#define N_NORM_WIDTHS (sizeof widths / sizeof widths[0])
#define N_WIDTHS      (N_NORM_WIDTHS - 3) /* without those that only norms do otherwise */

/* Activations, and what stays f32. */
static guarded floats(ops_ctx *ctx, int64_t rows, int64_t cols, const float *values) {
    return guarded_floats(ctx, dtype, 2, (int64_t[]){rows, cols}, values);
}
static guarded wide_floats(ops_ctx *ctx, int64_t rows, int64_t cols, const float *values) {
    return guarded_floats(ctx, OPS_DTYPE_F32, 2, (int64_t[]){rows, cols}, values);
}

/* What norms of halves may be off by beside the rounding of the result: sums of up to 150 f32 steps over differences of
 * at most 8 give a mean within 150 * 2^-24 * 8, and weights are at most 2. */
static double norm_slack(void) { return dtype == OPS_DTYPE_F32 ? 1e-9 : 2e-4; }

static guarded integers(ops_ctx *ctx, int64_t n, const int32_t *values) {
    return guarded_with(ctx, OPS_DTYPE_I32, 1, &n, values);
}

/* Large mean, small spread: what makes one-pass variances and f32 means fail. */
static void layer_norm_keeps_the_spread_of_rows_with_a_large_mean(void **state) {
    (void)state;
    enum { R = 9 };
    EACH_CONTEXT(ctx)
    for (size_t i = 0; i < N_NORM_WIDTHS; i++) {
        int64_t n = widths[i];
        rng r = rng_make(20 + i);
        float *x = random_floats(&r, R * n, 1.0f), *w = random_floats(&r, n, 2.0f);
        float *b = random_floats(&r, n, 1.0f);
        for (int64_t k = 0; k < R * n; k++)
            if (k / n % 2) x[k] += 1000.0f;
        round_floats(x, R * n, dtype);
        double *want = test_alloc((size_t)(R * n), sizeof *want);
        ref_layer_norm(want, x, w, b, R, n, (double)1e-6f);
        guarded gx = floats(ctx, R, n, x), go = floats(ctx, R, n, NULL);
        guarded gw = guarded_with(ctx, OPS_DTYPE_F32, 1, &n, w);
        guarded gb = guarded_with(ctx, OPS_DTYPE_F32, 1, &n, b);
        assert_int_equal(ops_layer_norm(ctx, &go.t, &gx.t, &gw.t, &gb.t, 1e-6f), STATUS_OK);
        assert_int_equal(ops_layer_norm(ctx, &gx.t, &gx.t, &gw.t, &gb.t, 1e-6f), STATUS_OK);
        assert_true(guarded_intact(&go) && guarded_intact(&gx));
        float *got = guarded_values(&go), *in_place = guarded_values(&gx);
        assert_true(same_bits(got, in_place, R * n)); /* in place is the same */
        for (int64_t k = 0; k < R * n; k++) /* double inside: one rounding, plus doubles' own */
            if (!(fabs((double)got[k] - want[k]) <= U * fabs(want[k]) + storage_error(dtype, want[k]) + norm_slack()))
                fail_msg("layer_norm %s width %lld [%lld] got %.9g want %.9g", ops_device_text(ctx),
                         (long long)n, (long long)k, (double)got[k], want[k]);
        guarded_close(&gx), guarded_close(&go), guarded_close(&gw), guarded_close(&gb);
        free(x), free(w), free(b), free(want), free(got), free(in_place);
    }
}

static void layer_norm_of_equal_values_is_the_bias_and_nan_stays_in_its_row(void **state) {
    (void)state;
    EACH_CONTEXT(ctx) {
        int64_t n = 50;
        float x[150], w[50], b[50];
        for (int i = 0; i < 150; i++) x[i] = i < 50 ? 3.0f : i < 100 ? NAN : (float)i;
        for (int i = 0; i < 50; i++) w[i] = 2.0f, b[i] = (float)i;
        guarded gx = floats(ctx, 3, n, x), gw = guarded_with(ctx, OPS_DTYPE_F32, 1, &n, w);
        guarded gb = guarded_with(ctx, OPS_DTYPE_F32, 1, &n, b);
        assert_int_equal(ops_layer_norm(ctx, &gx.t, &gx.t, &gw.t, &gb.t, 1e-5f), STATUS_OK);
        float *got = guarded_values(&gx);
        for (int i = 0; i < 50; i++) {
            assert_true(got[i] == b[i]);
            assert_true(isnan(got[50 + i]));
            assert_true(isfinite(got[100 + i]));
        }
        guarded_close(&gx), guarded_close(&gw), guarded_close(&gb);
        free(got);
    }
}

/* The reference values of RMSNorm in the models' documentation, and every width against doubles. */
static void rms_norm_equals_the_double_formula(void **state) {
    (void)state;
    enum { R = 9 };
    EACH_CONTEXT(ctx) {
        float x4[4] = {1, 2, 3, 5}, ones[4] = {1, 1, 1, 1};
        static const double want4[4] = {0.320256143, 0.640512287, 0.960768430, 1.601280717};
        int64_t four = 4;
        guarded g4 = floats(ctx, 1, 4, x4), w4 = guarded_with(ctx, OPS_DTYPE_F32, 1, &four, ones);
        assert_int_equal(ops_rms_norm(ctx, &g4.t, &g4.t, &w4.t, 1e-5f), STATUS_OK);
        float *got4 = guarded_values(&g4);
        for (int i = 0; i < 4; i++) assert_true(fabs((double)got4[i] - want4[i]) < 1e-7 + storage_error(dtype, want4[i]));
        free(got4);
        guarded_close(&g4), guarded_close(&w4);
        for (size_t i = 0; i < N_NORM_WIDTHS; i++) {
            int64_t n = widths[i];
            rng r = rng_make(31);
            float *x = random_floats(&r, R * n, 3.0f), *w = random_floats(&r, n, 2.0f);
            for (int64_t c = 0; c < n; c++) x[4 * n + c] = 0.0f; /* eps alone is under the root */
            round_floats(x, R * n, dtype);
            double *want = test_alloc((size_t)(R * n), sizeof *want);
            ref_rms_norm(want, x, w, R, n, (double)1e-6f);
            guarded gx = floats(ctx, R, n, x), go = floats(ctx, R, n, NULL);
            guarded gw = guarded_with(ctx, OPS_DTYPE_F32, 1, &n, w);
            assert_int_equal(ops_rms_norm(ctx, &go.t, &gx.t, &gw.t, 1e-6f), STATUS_OK);
            assert_int_equal(ops_rms_norm(ctx, &gx.t, &gx.t, &gw.t, 1e-6f), STATUS_OK);
            assert_true(guarded_intact(&go) && guarded_intact(&gx));
            float *got = guarded_values(&go), *in_place = guarded_values(&gx);
            assert_true(same_bits(got, in_place, R * n));
            for (int64_t k = 0; k < R * n; k++)
                if (!(fabs((double)got[k] - want[k]) <= U * fabs(want[k]) + storage_error(dtype, want[k]) + norm_slack()))
                    fail_msg("rms_norm %s width %lld [%lld] got %.9g want %.9g", ops_device_text(ctx),
                             (long long)n, (long long)k, (double)got[k], want[k]);
            guarded_close(&gx), guarded_close(&go), guarded_close(&gw);
            free(x), free(w), free(want), free(got), free(in_place);
        }
    }
}

/* One activation within 2e-7 |x|, one product rounded. */
static void gates_and_column_scales_equal_the_double_products(void **state) {
    (void)state;
    EACH_CONTEXT(ctx)
    for (size_t i = 0; i < N_WIDTHS; i++) {
        int64_t n = widths[i], rows = 41;
        rng r = rng_make(32);
        float *x = random_floats(&r, rows * 2 * n, 6.0f), *w = random_floats(&r, 2 * n, 2.0f);
        round_floats(x, rows * 2 * n, dtype);
        guarded gx = floats(ctx, rows, 2 * n, x), go = floats(ctx, rows, n, NULL);
        int64_t cols = 2 * n;
        guarded gw = guarded_with(ctx, OPS_DTYPE_F32, 1, &cols, w);
        for (ops_act act = OPS_ACT_NONE; act < OPS_ACT_COUNT; act++) {
            assert_int_equal(ops_gate(ctx, &go.t, &gx.t, act), STATUS_OK);
            assert_true(guarded_intact(&go));
            float *got = guarded_values(&go);
            for (int64_t k = 0; k < rows * n; k++) {
                double gate = (double)x[k / n * cols + k % n], up = (double)x[k / n * cols + n + k % n];
                double want = ref_act(gate, act) * up;
                if (!(fabs((double)got[k] - want) <= (2e-7 * fabs(gate) + U * fabs(ref_act(gate, act))) * fabs(up) +
                                                            storage_error(dtype, want) + 1e-30))
                    fail_msg("gate %d %s width %lld [%lld] got %.9g want %.9g", (int)act, ops_device_text(ctx),
                             (long long)n, (long long)k, (double)got[k], want);
            }
            free(got);
        }
        assert_int_equal(ops_scale_columns(ctx, &gx.t, &gx.t, &gw.t), STATUS_OK);
        assert_true(guarded_intact(&gx));
        float *scaled = guarded_values(&gx);
        for (int64_t k = 0; k < rows * cols; k++) assert_true(scaled[k] == rounded(x[k] * w[k % cols], dtype));
        free(scaled);
        guarded_close(&gx), guarded_close(&go), guarded_close(&gw);
        free(x), free(w);
    }
}

/* act through ops_linear with the matrix 1: x reaches the activation unchanged. */
static void activations_are_within_2e_7_of_x_everywhere(void **state) {
    (void)state;
    enum { N_MAX = 200000 };
    const int N = test_device_is_cpu() ? N_MAX : 24000; /* an emulated device takes its time */
    static const float edges[] = {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-40f, -1e-40f, 88.0f, -88.0f,
                                  1e10f, -1e10f, 1e30f, -1e30f, 3e38f, -3e38f, 1.41421354f,
                                  -1.41421354f, 1.4142137f, 7.07106781f, -7.07106781f};
    float *x = test_alloc(N_MAX, sizeof *x);
    for (int i = 0; i < N; i++) x[i] = (float)(i - N / 2) * (20.0f / (float)N);
    memcpy(x, edges, sizeof edges);
    EACH_CONTEXT(ctx)
    for (ops_act act = OPS_ACT_GELU_TANH; act < OPS_ACT_COUNT; act++) {
        err e;
        float one = 1.0f;
        ops_matrix *m;
        ops_tensor w = tensor_make(&one, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){1, 1});
        assert_int_equal(ops_matrix_open(ctx, &m, &w, NULL, &e), STATUS_OK);
        round_floats(x, N, dtype);
        guarded gx = floats(ctx, N, 1, x), go = floats(ctx, N, 1, NULL);
        assert_int_equal(ops_linear(ctx, &go.t, &gx.t, m, &(ops_linear_params){.act = act}), STATUS_OK);
        float *got = guarded_values(&go);
        for (int i = 0; i < N; i++) {
            if (!isfinite(x[i])) continue; /* too large for f16 */
            double want = ref_act((double)x[i], act);
            if (!(fabs((double)got[i] - want) <= 2e-7 * fabs((double)x[i]) + storage_error(dtype, want) + 1e-44))
                fail_msg("activation %d %s: x %.9g got %.9g want %.9g", (int)act, ops_device_text(ctx),
                         (double)x[i], (double)got[i], want);
        }
        /* Of f32 the same bits when the activation comes later, in place; of halves the sum was rounded before it. */
        guarded later = floats(ctx, N / 8, 8, NULL);
        ops_tensor column = tensor_reshape(&later.t, 2, (int64_t[]){N, 1});
        assert_int_equal(ops_linear(ctx, &column, &gx.t, m, NULL), STATUS_OK);
        assert_int_equal(ops_activate(ctx, &later.t, &later.t, act), STATUS_OK);
        float *got_later = guarded_values(&later);
        assert_true(guarded_intact(&later) && (dtype != OPS_DTYPE_F32 || same_bits(got_later, got, N)));
        free(got_later), free(got);
        ops_matrix_close(ctx, &m);
        guarded_close(&gx), guarded_close(&go), guarded_close(&later);
    }
    free(x);
}

static void activations_pass_infinity_and_nan_as_the_formulas_do(void **state) {
    (void)state;
    EACH_CONTEXT(ctx)
    for (ops_act act = OPS_ACT_GELU_TANH; act < OPS_ACT_COUNT; act++) {
        err e;
        float one = 1.0f, x[3] = {INFINITY, -INFINITY, NAN};
        ops_matrix *m;
        ops_tensor w = tensor_make(&one, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){1, 1});
        assert_int_equal(ops_matrix_open(ctx, &m, &w, NULL, &e), STATUS_OK);
        guarded gx = floats(ctx, 3, 1, x), go = floats(ctx, 3, 1, NULL);
        assert_int_equal(ops_linear(ctx, &go.t, &gx.t, m, &(ops_linear_params){.act = act}), STATUS_OK);
        float *got = guarded_values(&go);
        assert_true(got[0] == INFINITY);
        assert_true(isnan(got[1])); /* -infinity times 0, as in PyTorch */
        assert_true(isnan(got[2]));
        free(got);
        ops_matrix_close(ctx, &m);
        guarded_close(&gx), guarded_close(&go);
    }
}

static void sums_with_rows_and_tables_are_exact(void **state) {
    (void)state;
    EACH_CONTEXT(ctx)
    for (size_t i = 0; i < N_WIDTHS; i++) {
        int64_t n = widths[i], rows = 130;
        rng r = rng_make(30);
        float *x = random_floats(&r, rows * n, 1.0f), *t = random_floats(&r, 7 * n, 1.0f);
        round_floats(x, rows * n, dtype);
        guarded gx = floats(ctx, rows, n, x), gt = wide_floats(ctx, 7, n, t), go = floats(ctx, rows, n, NULL);
        assert_int_equal(ops_add_table(ctx, &go.t, &gx.t, &gt.t), STATUS_OK);
        float *got = guarded_values(&go);
        for (int64_t k = 0; k < rows * n; k++)
            assert_true(got[k] == rounded(x[k] + t[k / n % 7 * n + k % n], dtype));
        assert_int_equal(ops_add(ctx, &gx.t, &gx.t, &go.t), STATUS_OK);
        float *sum = guarded_values(&gx);
        for (int64_t k = 0; k < rows * n; k++) assert_true(sum[k] == rounded(x[k] + got[k], dtype));
        free(got), free(sum);
        assert_true(guarded_intact(&gx) && guarded_intact(&go));
        guarded_close(&gx), guarded_close(&gt), guarded_close(&go);
        free(x), free(t);
    }
}

static void gather_and_scatter_move_whole_rows(void **state) {
    (void)state;
    static const ops_dtype dtypes[] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16};
    static const int32_t which[] = {4, 0, 4, 2}, where[] = {1, 5, 3, 0};
    EACH_CONTEXT(ctx)
    for (size_t i = 0; i < N_WIDTHS; i++)
        for (int d = 0; d < 3; d++) {
            int64_t n = widths[i];
            rng r = rng_make(40);
            float *any = random_floats(&r, 5 * n, 1.0f), *t = rounded_floats(any, 5 * n, dtypes[d]);
            void *stored = stored_as(t, 5 * n, dtypes[d]);
            guarded gt = guarded_with(ctx, dtypes[d], 2, (int64_t[]){5, n}, stored);
            guarded gi = integers(ctx, 4, which), gw = integers(ctx, 4, where);
            guarded go = floats(ctx, 4, n, NULL), gs = floats(ctx, 6, n, NULL);
            assert_int_equal(ops_gather_rows(ctx, &go.t, &gt.t, &gi.t), STATUS_OK);
            assert_int_equal(ops_scatter_rows(ctx, &gs.t, &go.t, &gw.t), STATUS_OK);
            float *gathered = guarded_values(&go), *scattered = guarded_values(&gs);
            round_floats(t, 5 * n, dtype);
            for (int k = 0; k < 4; k++) {
                assert_true(same_bits(gathered + k * n, t + which[k] * n, n));
                assert_true(same_bits(scattered + where[k] * n, t + which[k] * n, n));
            }
            size_t row_bytes = (size_t)n * dtype_bytes(dtype);
            unsigned char *bytes = guarded_bytes(&gs);
            for (size_t k = 2 * row_bytes; k < 3 * row_bytes; k++) assert_int_equal(bytes[k], 0xA5);
            free(gathered), free(scattered), free(bytes);
            assert_true(guarded_intact(&go) && guarded_intact(&gs));
            guarded_close(&gt), guarded_close(&gi), guarded_close(&gw);
            guarded_close(&go), guarded_close(&gs);
            free(any), free(t), free(stored);
        }
}

static void blocks_of_a_cache_copy(void **state) {
    (void)state;
    EACH_CONTEXT(ctx) {
        rng r = rng_make(41);
        float *x = random_floats(&r, 36, 1.0f);
        guarded gc = guarded_floats(ctx, dtype, 4, (int64_t[]){3, 2, 2, 3}, x);
        assert_int_equal(ops_kv_copy_block(ctx, &gc.t, 2, 1), STATUS_OK);
        float *cache = guarded_values(&gc);
        round_floats(x, 36, dtype);
        assert_true(same_bits(cache, x, 24) && same_bits(cache + 24, x + 12, 12));
        assert_true(guarded_intact(&gc));
        guarded_close(&gc);
        free(cache), free(x);
    }
}

/* Every one of the 65536 values comes back from f32; f32 in between goes to the nearer neighbour, the
 * even one when halfway. The definition is applied to the neighbours in double, not to the bits. */
static void storage_types_round_to_nearest_even(void **state) {
    (void)state;
    for (uint32_t v = 0; v < 0x10000; v++) {
        float f = f16_to_f32((uint16_t)v), g = bf16_to_f32((uint16_t)v);
        if (isnan(f))
            assert_true(isnan(f16_to_f32(f32_to_f16(f))));
        else
            assert_int_equal(f32_to_f16(f), v);
        if (isnan(g))
            assert_true(isnan(bf16_to_f32(f32_to_bf16(g))));
        else
            assert_int_equal(f32_to_bf16(g), v);
    }
    /* independent of our own: value = fraction * 2^exponent, written out */
    assert_true(f16_to_f32(0x0001) == 0x1p-24f && f16_to_f32(0x03ff) == 0x1.ff8p-15f);
    assert_true(f16_to_f32(0x0400) == 0x1p-14f && f16_to_f32(0x7bff) == 65504.0f);
    assert_true(f16_to_f32(0xc000) == -2.0f && f16_to_f32(0xfc00) == -INFINITY);
    assert_true(bf16_to_f32(0x3f80) == 1.0f && bf16_to_f32(0xc0a0) == -5.0f);
    for (uint32_t v = 0; v < 0x7bff; v++) {
        float a = f16_to_f32((uint16_t)v), b = f16_to_f32((uint16_t)(v + 1));
        float middle = (float)(((double)a + (double)b) / 2); /* exact: one bit more than f16 */
        uint32_t even = v % 2 ? v + 1 : v;
        assert_int_equal(f32_to_f16(middle), even);
        assert_int_equal(f32_to_f16(nextafterf(middle, 0)), v);
        assert_int_equal(f32_to_f16(nextafterf(middle, 1e9f)), v + 1);
        assert_int_equal(f32_to_f16(-middle), even | 0x8000u);
    }
    assert_int_equal(f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(f32_to_f16(nextafterf(65520.0f, 0)), 0x7bff);
    for (uint32_t v = 0; v < 0x7f7f; v++) {
        float a = bf16_to_f32((uint16_t)v), b = bf16_to_f32((uint16_t)(v + 1));
        float middle = (float)(((double)a + (double)b) / 2);
        assert_int_equal(f32_to_bf16(middle), v % 2 ? v + 1 : v);
        assert_int_equal(f32_to_bf16(nextafterf(middle, 0)), v);
        assert_int_equal(f32_to_bf16(nextafterf(middle, INFINITY)), v + 1);
    }
}

static void cast_rounds_every_element_and_nothing_else(void **state) {
    (void)state;
    static const ops_dtype dtypes[] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16};
    EACH_CONTEXT(ctx)
    for (int from = 0; from < 3; from++)
        for (int to = 0; to < 3; to++) {
            int64_t n = 20011;
            rng r = rng_make(50);
            float *any = random_floats(&r, n, 10.0f), *x = rounded_floats(any, n, dtypes[from]);
            void *in = stored_as(x, n, dtypes[from]), *want = stored_as(x, n, dtypes[to]);
            guarded gx = guarded_with(ctx, dtypes[from], 1, &n, in);
            guarded go = guarded_open(ctx, dtypes[to], 1, &n);
            assert_int_equal(ops_cast(ctx, &go.t, &gx.t), STATUS_OK);
            void *got = guarded_bytes(&go);
            assert_memory_equal(got, want, (size_t)n * dtype_bytes(dtypes[to]));
            free(got);
            assert_true(guarded_intact(&go));
            guarded_close(&gx), guarded_close(&go);
            free(any), free(x), free(in), free(want);
        }
}

static void patches_are_cut_channel_by_channel_and_the_rest_left_unread(void **state) {
    (void)state;
    enum { N = 2, H = 31, W = 45, P = 7 };
    rng r = rng_make(60);
    float *levels = random_floats(&r, 3 * 256, 1.0f);
    unsigned char x[N * H * W * 3];
    for (size_t i = 0; i < sizeof x; i++) x[i] = (unsigned char)rng_next(&r);
    EACH_CONTEXT(ctx) {
        int64_t rows = H / P, cols = W / P;
        guarded gx = guarded_with(ctx, OPS_DTYPE_U8, 4, (int64_t[]){N, H, W, 3}, x);
        guarded gl = guarded_with(ctx, OPS_DTYPE_F32, 2, (int64_t[]){3, 256}, levels);
        guarded go = floats(ctx, N * rows * cols, 3 * P * P, NULL);
        assert_int_equal(ops_patch_rows(ctx, &go.t, &gx.t, &gl.t, P), STATUS_OK);
        float *got = guarded_values(&go);
        for (int64_t n = 0; n < N; n++)
            for (int64_t y = 0; y < rows; y++)
                for (int64_t c = 0; c < cols; c++)
                    for (int64_t ch = 0; ch < 3; ch++)
                        for (int64_t i = 0; i < P; i++)
                            for (int64_t k = 0; k < P; k++) {
                                int64_t row = (n * rows + y) * cols + c;
                                unsigned char pixel = x[((n * H + y * P + i) * W + c * P + k) * 3 + ch];
                                assert_true(got[row * 3 * P * P + (ch * P + i) * P + k] ==
                                            rounded(levels[ch * 256 + pixel], dtype));
                            }
        assert_true(guarded_intact(&go));
        guarded_close(&gx), guarded_close(&gl), guarded_close(&go);
        free(got);
    }
    free(levels);
}

static void rope_rotates_pairs_and_leaves_the_rest(void **state) {
    (void)state;
    enum { R = 70, POSITIONS = 40 };
    static const int shapes[][3] = {{1, 2, 1}, {3, 80, 16}, {5, 17, 8}, {32, 80, 16}, {2, 7, 1}};
    for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
        int heads = shapes[s][0];
        int64_t hd = shapes[s][1], half = shapes[s][2], n = R * heads * hd;
        rng r = rng_make(70);
        float *x = random_floats(&r, n, 3.0f), *c = random_floats(&r, POSITIONS * half, 1.0f);
        float *sn = random_floats(&r, POSITIONS * half, 1.0f);
        int32_t positions[R];
        for (int i = 0; i < R; i++) positions[i] = (int32_t)rng_below(&r, POSITIONS);
        double *want = test_alloc((size_t)n, sizeof *want);
        EACH_CONTEXT(ctx) {
            round_floats(x, n, dtype);
            ref_rope(want, x, c, sn, positions, R, heads, hd, half);
            guarded gx = floats(ctx, R, heads * hd, x), gc = wide_floats(ctx, POSITIONS, half, c);
            guarded gs = wide_floats(ctx, POSITIONS, half, sn), gp = integers(ctx, R, positions);
            assert_int_equal(ops_rope(ctx, &gx.t, &gc.t, &gs.t, &gp.t, heads), STATUS_OK);
            float *got = guarded_values(&gx);
            for (int64_t i = 0; i < n; i++) {
                if (i % hd >= 2 * half)
                    assert_true(got[i] == x[i]);
                else /* two products and a sum, each of size at most 3 + 3 */
                    assert_true(fabs((double)got[i] - want[i]) <= 2 * 6 * U + storage_error(dtype, want[i]));
            }
            free(got);
            assert_true(guarded_intact(&gx));
            guarded_close(&gx), guarded_close(&gc), guarded_close(&gs), guarded_close(&gp);
        }
        free(x), free(c), free(sn), free(want);
    }
}

/* Keys turned, values as they are, each in its slot and nowhere else; the query turned where it stands. All of them are
 * columns of the same rows, as one product leaves them. */
static void append_turns_keys_and_query_and_fills_the_slots(void **state) {
    (void)state;
    enum { R = 37, POSITIONS = 40, BLOCKS = 7, TOKENS = 8, SLOTS = BLOCKS * TOKENS };
    static const int shapes[][4] = {{1, 1, 2, 1}, {6, 3, 80, 16}, {5, 5, 17, 8}, {8, 2, 64, 32}, {4, 1, 7, 0}};
    for (size_t s = 0; s < 2 * sizeof shapes / sizeof shapes[0]; s++) {
        const int *shape = shapes[s / 2];
        bool has_q = s % 2 == 0;
        int64_t heads = shape[0], kv_heads = shape[1], hd = shape[2], half = shape[3], kw = kv_heads * hd, qw = heads * hd;
        int64_t wide = 2 * kw + qw;
        rng r = rng_make(90 + s);
        float *x = random_floats(&r, R * wide, 3.0f), *c = random_floats(&r, POSITIONS * half, 1.0f);
        float *sn = random_floats(&r, POSITIONS * half, 1.0f);
        int32_t positions[R], slots[R];
        for (int i = 0; i < R; i++) positions[i] = (int32_t)rng_below(&r, POSITIONS), slots[i] = (i * 11 + 5) % SLOTS;
        float *k = test_alloc((size_t)(R * kw), sizeof *k), *q = test_alloc((size_t)(R * qw), sizeof *q);
        double *want_k = test_alloc((size_t)(R * kw), sizeof *want_k), *want_q = test_alloc((size_t)(R * qw), sizeof *want_q);
        float *held = test_alloc((size_t)kw, sizeof *held);
        EACH_CONTEXT(ctx)
        for (size_t n = 0; n < N_CACHE_DTYPES; n++) {
            ops_dtype cache = cache_dtypes[n];
            if (!ops_takes_cache(ctx, dtype, cache)) continue;
            round_floats(x, R * wide, dtype);
            for (int64_t row = 0; row < R; row++) {
                memcpy(k + row * kw, x + row * wide, (size_t)kw * sizeof *k);
                memcpy(q + row * qw, x + row * wide + 2 * kw, (size_t)qw * sizeof *q);
            }
            ref_rope(want_k, k, c, sn, positions, R, (int)kv_heads, hd, half);
            ref_rope(want_q, q, c, sn, positions, R, (int)heads, hd, half);
            guarded gx = floats(ctx, R, wide, x), gc = wide_floats(ctx, POSITIONS, half, c);
            guarded gs = wide_floats(ctx, POSITIONS, half, sn), gp = integers(ctx, R, positions), gt = integers(ctx, R, slots);
            guarded gk = guarded_open(ctx, cache, 4, (int64_t[]){BLOCKS, kv_heads, TOKENS, hd});
            guarded gv = guarded_open(ctx, cache, 4, (int64_t[]){BLOCKS, kv_heads, TOKENS, hd});
            ops_tensor tk = tensor_columns(&gx.t, 0, kw), tv = tensor_columns(&gx.t, kw, kw), tq = tensor_columns(&gx.t, 2 * kw, qw);
            const ops_kv_places at = {&gc.t, &gs.t, &gp.t, &gt.t};
            assert_int_equal(ops_kv_append(ctx, &gk.t, &gv.t, &tk, &tv, has_q ? &tq : NULL, &at, (int)heads, (int)kv_heads),
                             STATUS_OK);
            assert_true(guarded_intact(&gx) && guarded_intact(&gk) && guarded_intact(&gv));
            float *got = guarded_values(&gx), *keys = guarded_values(&gk), *values = guarded_values(&gv);
            unsigned char *key_bytes = guarded_bytes(&gk), *value_bytes = guarded_bytes(&gv);
            bool is_taken[SLOTS] = {false};
            for (int64_t row = 0; row < R; row++) {
                const float *in = x + row * wide, *out = got + row * wide;
                const int64_t block = slots[row] / TOKENS, token = slots[row] % TOKENS;
                is_taken[slots[row]] = true;
                assert_true(same_bits(out, in, 2 * kw)); /* keys and values stand as they did */
                memcpy(held, in + kw, (size_t)kw * sizeof *held);
                round_floats(held, kw, cache);
                for (int64_t i = 0; i < kw; i++) {
                    int64_t place = ((block * kv_heads + i / hd) * TOKENS + token) * hd + i % hd;
                    double want = want_k[row * kw + i];
                    assert_true(same_bits(values + place, held + i, 1));
                    double slack = (i % hd < 2 * half ? 2 * 6 * U + storage_error(dtype, want) : 0.0) + storage_error(cache, want);
                    assert_true(fabs((double)keys[place] - want) <= slack);
                }
                for (int64_t i = 0; i < qw; i++) {
                    double want = has_q ? want_q[row * qw + i] : (double)q[row * qw + i];
                    double slack = has_q && i % hd < 2 * half ? 2 * 6 * U + storage_error(dtype, want) : 0.0;
                    assert_true(fabs((double)out[2 * kw + i] - want) <= slack);
                }
            }
            size_t key_size = (size_t)hd * dtype_bytes(cache), block_size = (size_t)kv_heads * TOKENS * key_size;
            for (size_t i = 0; i < BLOCKS * block_size; i++)
                if (!is_taken[i / block_size * TOKENS + i / key_size % TOKENS]) assert_true(key_bytes[i] == 0xA5 && value_bytes[i] == 0xA5);
            free(got), free(keys), free(values), free(key_bytes), free(value_bytes);
            guarded_close(&gx), guarded_close(&gc), guarded_close(&gs), guarded_close(&gp), guarded_close(&gt);
            guarded_close(&gk), guarded_close(&gv);
        }
        free(x), free(c), free(sn), free(k), free(q), free(want_k), free(want_q), free(held);
    }
}

/* Views: the same bits as from rows of their own. */
static void views_activate_gather_and_turn_as_rows_of_their_own_do(void **state) {
    (void)state;
    enum { R = 9 };
    static const int64_t sizes[][3] = {{16, 8, 24}, {40, 5, 0}, {7, 0, 1}, {33, 3, 4}}; /* columns, before, after */
    static const int32_t which[] = {8, 0, 4}, positions[R] = {0, 1, 2, 0, 1, 2, 2, 1, 0};
    EACH_CONTEXT(ctx)
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        int64_t n = sizes[s][0], half = n / 2;
        rng r = rng_make(60 + s);
        float *x = random_floats(&r, R * n, 3.0f), *angles = random_floats(&r, 2 * 3 * half, 1.0f);
        guarded own = floats(ctx, R, n, x), view = guarded_columns(ctx, dtype, R, n, sizes[s][1], sizes[s][2], x);
        guarded a = floats(ctx, 3, n, NULL), b = floats(ctx, 3, n, NULL), gi = integers(ctx, 3, which), gp = integers(ctx, R, positions);
        guarded gc = wide_floats(ctx, 3, half, angles), gs = wide_floats(ctx, 3, half, angles + 3 * half);
        for (int pass = 0; pass < 2; pass++) {
            guarded *g = pass ? &view : &own, *rows = pass ? &b : &a;
            assert_int_equal(ops_activate(ctx, &g->t, &g->t, OPS_ACT_GELU_TANH), STATUS_OK);
            assert_int_equal(ops_rope(ctx, &g->t, &gc.t, &gs.t, &gp.t, 1), STATUS_OK);
            assert_int_equal(ops_gather_rows(ctx, &rows->t, &g->t, &gi.t), STATUS_OK);
        }
        float *got = guarded_values(&view), *want = guarded_values(&own);
        assert_true(same_bits(got, want, R * n));
        assert_false(same_bits(want, x, R * n));
        float *got_rows = guarded_values(&b), *want_rows = guarded_values(&a);
        assert_true(same_bits(got_rows, want_rows, 3 * n) && same_bits(want_rows, want + 8 * n, n));
        assert_true(guarded_intact(&view) && guarded_intact(&b));
        guarded_close(&own), guarded_close(&view), guarded_close(&a), guarded_close(&b), guarded_close(&gi), guarded_close(&gp);
        guarded_close(&gc), guarded_close(&gs);
        free(x), free(angles), free(got), free(want), free(got_rows), free(want_rows);
    }
}

static int open_all(void **state) {
    (void)state;
    case_contexts_open(&contexts);
    return 0;
}

static int close_all(void **state) {
    (void)state;
    case_contexts_close(&contexts);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layer_norm_keeps_the_spread_of_rows_with_a_large_mean),
        cmocka_unit_test(layer_norm_of_equal_values_is_the_bias_and_nan_stays_in_its_row),
        cmocka_unit_test(rms_norm_equals_the_double_formula),
        cmocka_unit_test(gates_and_column_scales_equal_the_double_products),
        cmocka_unit_test(activations_are_within_2e_7_of_x_everywhere),
        cmocka_unit_test(activations_pass_infinity_and_nan_as_the_formulas_do),
        cmocka_unit_test(sums_with_rows_and_tables_are_exact),
        cmocka_unit_test(gather_and_scatter_move_whole_rows),
        cmocka_unit_test(blocks_of_a_cache_copy),
        cmocka_unit_test(storage_types_round_to_nearest_even),
        cmocka_unit_test(cast_rounds_every_element_and_nothing_else),
        cmocka_unit_test(patches_are_cut_channel_by_channel_and_the_rest_left_unread),
        cmocka_unit_test(rope_rotates_pairs_and_leaves_the_rest),
        cmocka_unit_test(append_turns_keys_and_query_and_fills_the_slots),
        cmocka_unit_test(views_activate_gather_and_turn_as_rows_of_their_own_do),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
