/* The same row gives the same bits however rows are cut into calls, whoever its neighbours are, and however
 * many threads work. Compared bit by bit, per variant. Attention is in test_invariance_attention.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Before cmocka.h, which has a macro of the name of our function fail(). */
#include "base/err.h"

#include <cmocka.h>

#include "tests/ops/invariance.h"

static ops_tensor f32(ops_ctx *ctx, const float *values, int64_t rows, int64_t cols) {
    return copy_of(ctx, OPS_DTYPE_F32, 2, (int64_t[]){rows, cols}, values);
}
static ops_tensor f32_vector(ops_ctx *ctx, const float *values, int64_t n) {
    return copy_of(ctx, OPS_DTYPE_F32, 1, &n, values);
}

/* ---- linear -------------------------------------------------------------------------------- */

typedef struct {
    ops_matrix *m; /* packed the same way by every context of a variant */
    ops_act act;
    int64_t n_in, n_out;
    bool is_few;
} linear_arg;

static void call_linear(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first,
                        int64_t n) {
    const linear_arg *a = arg;
    (void)first;
    ops_tensor to = activations(ctx, NULL, n, a->n_out), tx = activations(ctx, x, n, a->n_in);
    const ops_linear_params params = {.act = a->act, .is_few = a->is_few};
    assert_int_equal(ops_linear(ctx, &to, &tx, a->m, &params), STATUS_OK);
    take(out);
}

static void linear_rows_do_not_depend_on_cut_threads_or_neighbours(void **state) {
    (void)state;
    /* the CPU has one way for all; a device has its own for sizes of whole chunks of eight, and one for the rest */
    static const struct {
        int64_t n_in, n_out;
        bool is_few, is_own; /* own: weights of the activations' dtype */
        ops_dtype stored;
        ops_product product;
        bool on_cpu, on_device;
    } cases[] = {{700, 130, false, false, OPS_DTYPE_F32, OPS_PRODUCT_F32, true, false},
                 {700, 130, true, false, OPS_DTYPE_F16, OPS_PRODUCT_F32, true, false},
                 {700, 130, false, false, OPS_DTYPE_BF16, OPS_PRODUCT_F32, true, false},
                 {76, 20, false, false, OPS_DTYPE_F16, OPS_PRODUCT_F32, false, true},
                 {704, 72, false, true, OPS_DTYPE_F32, OPS_PRODUCT_F32, false, true},
                 {704, 72, true, true, OPS_DTYPE_F32, OPS_PRODUCT_F32, false, true},
                 {64, 8, true, true, OPS_DTYPE_F32, OPS_PRODUCT_F32, false, true},
                 {83, 16, false, true, OPS_DTYPE_F32, OPS_PRODUCT_F32, false, true},
                 {700, 128, false, true, OPS_DTYPE_F32, OPS_PRODUCT_FP8, true, true},
                 {300, 72, true, true, OPS_DTYPE_F32, OPS_PRODUCT_FP8, false, true},
                 {76, 20, false, true, OPS_DTYPE_F32, OPS_PRODUCT_FP8, false, true}};
    rng r = rng_make(5);
    float *x = random_floats(&r, ROWS * 704, 1.0f), *w = random_floats(&r, 130 * 704, 1.0f);
    float *bias = random_floats(&r, 130, 1.0f);
    for (int v = 0; v < N_VARIANTS; v++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            if (!(test_device_is_cpu() ? cases[i].on_cpu : cases[i].on_device)) continue;
            linear_arg arg = {.act = (ops_act)(i % 3), .n_in = cases[i].n_in, .n_out = cases[i].n_out, .is_few = cases[i].is_few};
            ops_dtype stored_in = cases[i].is_own ? variant_at(v)->dtype : cases[i].stored;
            ops_ctx *ctx = open_variant(v, 1);
            if (!ctx) continue;
            err e;
            void *stored = stored_as(w, arg.n_out * arg.n_in, stored_in);
            ops_tensor tw = tensor_make(stored, OPS_PLACE_HOST, stored_in, 2, (int64_t[]){arg.n_out, arg.n_in});
            ops_tensor tb = tensor_make(bias, OPS_PLACE_HOST, OPS_DTYPE_F32, 1, &arg.n_out);
            assert_int_equal(ops_matrix_open_as(ctx, &arg.m, &tw, &tb, cases[i].product, &e), STATUS_OK);
            assert_int_equal(ops_sync(ctx), STATUS_OK);
            row_operator op = {arg.n_in, arg.n_out, call_linear, &arg};
            expect_invariant(v, &op, x, arg.is_few ? "linear_few" : "linear");
            ops_matrix_close(ctx, &arg.m);
            ops_close(&ctx);
            free(stored);
        }
    free(x), free(w), free(bias);
}

/* The first rows of a call of any number, on the edges of where a device goes from one way of sharing out its work to the
 * next, are those of the longest. The second matrix is one that a device does not cut, so that what it has on its way goes
 * round and round. */
static void few_rows_are_the_same_in_calls_of_every_size(void **state) {
    (void)state;
    enum { MOST = 65, K = 648, N = 76, WIDE_N = 8456 };
    static const int64_t rows[] = {1, 4, 5, 7, 8, 9, 16, 17, 31, 32, 33, 64};
    static const struct {
        ops_dtype stored; /* I32: as activations */
        ops_product product;
        int64_t n_out;
    } cases[] = {{OPS_DTYPE_I32, OPS_PRODUCT_F32, N}, {OPS_DTYPE_Q8, OPS_PRODUCT_F32, N}, {OPS_DTYPE_Q4, OPS_PRODUCT_F32, N},
                 {OPS_DTYPE_I32, OPS_PRODUCT_FP8, N}, {OPS_DTYPE_I32, OPS_PRODUCT_F32, WIDE_N}, {OPS_DTYPE_Q8, OPS_PRODUCT_F32, WIDE_N}};
    if (test_device_is_cpu()) skip();
    rng r = rng_make(7);
    float *x = random_floats(&r, MOST * K, 1.0f), *w = random_floats(&r, WIDE_N * K, 1.0f);
    float *want = test_alloc(MOST * WIDE_N, sizeof *want), *got = test_alloc(MOST * WIDE_N, sizeof *got);
    for (int v = 0; v < N_VARIANTS; v++)
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            ops_ctx *ctx = open_variant(v, 1);
            bool is_block = cases[c].stored != OPS_DTYPE_I32, is_wide = cases[c].n_out == WIDE_N;
            ops_dtype stored_in = is_block ? cases[c].stored : dtype;
            if (!ctx || (is_wide && (dtype == OPS_DTYPE_F32 || is_block != (dtype == OPS_DTYPE_F16)))) { /* it takes its time */
                ops_close(&ctx);
                continue;
            }
            linear_arg arg = {.n_in = K, .n_out = cases[c].n_out, .is_few = true};
            size_t row_bytes = dtype_row_bytes(stored_in, K);
            unsigned char *stored = is_block ? test_alloc((size_t)arg.n_out, row_bytes) : stored_as(w, arg.n_out * K, stored_in);
            for (int64_t o = 0; is_block && o < arg.n_out; o++) quantize_row(stored + (size_t)o * row_bytes, stored_in, w + o * K, K);
            ops_tensor tw = tensor_make(stored, OPS_PLACE_HOST, stored_in, 2, (int64_t[]){arg.n_out, K});
            err e;
            assert_int_equal(ops_matrix_open_as(ctx, &arg.m, &tw, NULL, cases[c].product, &e), STATUS_OK);
            assert_int_equal(ops_sync(ctx), STATUS_OK);
            call_linear(ctx, &arg, want, x, 0, MOST);
            for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
                if (is_wide && i % 3 != 0) continue; /* 1, 7, 16, 32 */
                call_linear(ctx, &arg, got, x, 0, rows[i]);
                if (!same_bits(want, got, rows[i] * arg.n_out))
                    fail_msg("%s weights of %s, case %d: %lld rows differ", dtype_name(stored_in), variant_name(v), (int)c,
                             (long long)rows[i]);
            }
            ops_matrix_close(ctx, &arg.m);
            ops_close(&ctx);
            free(stored);
        }
    free(x), free(w), free(want), free(got);
}

/* An output's value may not depend on where in a panel or vector its column lies. */
static void linear_columns_do_not_depend_on_their_place(void **state) {
    (void)state;
    enum { K = 333, N = 97 };
    static const ops_act acts[] = {OPS_ACT_NONE, OPS_ACT_GELU_TANH, OPS_ACT_GELU_ERF};
    rng r = rng_make(6);
    float *x = random_floats(&r, 9 * K, 1.0f), *row = random_floats(&r, K, 1.0f);
    float *w = test_alloc(N * K, sizeof *w), *out = test_alloc(9 * N, sizeof *out);
    for (int c = 0; c < N; c++) memcpy(w + c * K, row, K * sizeof *w);
    ops_tensor tw = tensor_make(w, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){N, K});
    for (int v = 0; v < N_VARIANTS; v++) {
        err e;
        ops_matrix *m;
        ops_ctx *ctx = open_variant(v, 1);
        if (!ctx) continue;
        assert_int_equal(ops_matrix_open(ctx, &m, &tw, NULL, &e), STATUS_OK);
        for (int a = 0; a < 3; a++)
            for (int64_t rows = 1; rows <= 9; rows++) {
                ops_tensor to = activations(ctx, NULL, rows, N), tx = activations(ctx, x, rows, K);
                assert_int_equal(ops_linear(ctx, &to, &tx, m, &(ops_linear_params){.act = acts[a], .is_few = true}), STATUS_OK);
                take(out);
                for (int64_t i = 0; i < rows * N; i++)
                    assert_true(same_bits(&out[i], &out[i / N * N], 1));
            }
        ops_matrix_close(ctx, &m);
        ops_close(&ctx);
    }
    free(x), free(row), free(w), free(out);
}

static void avx2_and_avx512_give_the_same_linear_bits(void **state) {
    (void)state;
    enum { R = 41, K = 600, N = 75 };
    if (!test_device_is_cpu()) skip();
    rng r = rng_make(8);
    float *x = random_floats(&r, R * K, 1.0f), *w = random_floats(&r, N * K, 1.0f);
    float *out[2];
    ops_tensor tw = tensor_make(w, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){N, K});
    for (int v = 0; v < 2; v++) {
        err e;
        ops_matrix *m;
        ops_ctx *ctx = open_variant(1 + v, 1);
        if (!ctx) skip();
        out[v] = test_alloc(R * N, sizeof **out);
        assert_int_equal(ops_matrix_open(ctx, &m, &tw, NULL, &e), STATUS_OK);
        ops_tensor to = activations(ctx, NULL, R, N), tx = activations(ctx, x, R, K);
        assert_int_equal(ops_linear(ctx, &to, &tx, m, &(ops_linear_params){.act = OPS_ACT_GELU_TANH}), STATUS_OK);
        take(out[v]);
        ops_matrix_close(ctx, &m);
        ops_close(&ctx);
    }
    assert_true(same_bits(out[0], out[1], R * N));
    free(x), free(w), free(out[0]), free(out[1]);
}

/* ---- layer norm, rope ---------------------------------------------------------------------- */

typedef struct {
    const float *w, *b;
    const int32_t *positions;
    int64_t cols; /* of a norm */
} rows_arg;

static void call_norm(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first,
                      int64_t n) {
    const rows_arg *a = arg;
    (void)first;
    int64_t cols = a->cols;
    ops_tensor to = activations(ctx, NULL, n, cols), tx = activations(ctx, x, n, cols);
    ops_tensor w = f32_vector(ctx, a->w, cols);
    ops_tensor b = f32_vector(ctx, a->b, cols);
    assert_int_equal(ops_layer_norm(ctx, &to, &tx, &w, &b, 1e-5f), STATUS_OK);
    take(out);
}

static void call_rms_norm(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first, int64_t n) {
    const rows_arg *a = arg;
    (void)first;
    int64_t cols = a->cols;
    ops_tensor to = activations(ctx, NULL, n, cols), tx = activations(ctx, x, n, cols);
    ops_tensor w = f32_vector(ctx, a->w, cols);
    assert_int_equal(ops_rms_norm(ctx, &to, &tx, &w, 1e-5f), STATUS_OK);
    take(out);
}

static void call_gate(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first, int64_t n) {
    (void)arg;
    (void)first;
    ops_tensor to = activations(ctx, NULL, n, 45), tx = activations(ctx, x, n, 90);
    assert_int_equal(ops_gate(ctx, &to, &tx, OPS_ACT_SILU), STATUS_OK);
    take(out);
}

static void call_activate(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first, int64_t n) {
    (void)arg;
    (void)first;
    ops_tensor to = activations(ctx, NULL, n, 91), tx = activations(ctx, x, n, 91);
    assert_int_equal(ops_activate(ctx, &to, &tx, OPS_ACT_GELU_TANH), STATUS_OK);
    take(out);
}

static void call_rope(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first,
                      int64_t n) {
    const rows_arg *a = arg;
    ops_tensor to = activations(ctx, x, n, 91), cos = f32(ctx, a->w, 50, 5), sin = f32(ctx, a->b, 50, 5);
    ops_tensor positions = i32(ctx, a->positions + first, n);
    assert_int_equal(ops_rope(ctx, &to, &cos, &sin, &positions, 7), STATUS_OK);
    take(out);
}

static void norm_gate_and_rope_rows_do_not_depend_on_cut_or_threads(void **state) {
    (void)state;
    rng r = rng_make(9);
    static const int64_t norm_cols[] = {91, 1400}; /* of one warp of a device, of several */
    float *x = random_floats(&r, ROWS * 1400, 1.0f), *w = random_floats(&r, 1400, 1.0f);
    float *b = random_floats(&r, 1400, 1.0f);
    int32_t positions[ROWS];
    for (int i = 0; i < ROWS; i++) positions[i] = (int32_t)rng_below(&r, 50);
    rows_arg arg = {w, b, positions, 0};
    for (int v = 0; v < N_VARIANTS; v++) {
        ops_ctx *ctx = open_variant(v, 1);
        if (!ctx) continue;
        ops_close(&ctx);
        for (size_t k = 0; k < sizeof norm_cols / sizeof *norm_cols; k++) {
            arg.cols = norm_cols[k];
            expect_invariant(v, &(row_operator){arg.cols, arg.cols, call_norm, &arg}, x, "layer_norm");
            expect_invariant(v, &(row_operator){arg.cols, arg.cols, call_rms_norm, &arg}, x, "rms_norm");
        }
        expect_invariant(v, &(row_operator){90, 45, call_gate, &arg}, x, "gate");
        expect_invariant(v, &(row_operator){91, 91, call_activate, &arg}, x, "activate");
        expect_invariant(v, &(row_operator){91, 91, call_rope, &arg}, x, "rope");
    }
    free(x), free(w), free(b);
}

/* Given up, a row goes the way of how many there are, whatever kind it is said to be: few, and more than any few. */
static void a_fast_device_goes_by_the_number_of_rows(void **state) {
    (void)state;
    enum { N_IN = 1024, N_OUT = 64 };
    if (test_device_is_cpu()) skip();
    rng r = rng_make(19);
    float *x = random_floats(&r, ROWS * N_IN, 1.0f), *w = random_floats(&r, N_OUT * N_IN, 0.1f);
    float *out[3];
    for (int i = 0; i < 3; i++) out[i] = test_alloc(ROWS * N_OUT, sizeof **out);
    dtype = OPS_DTYPE_BF16;
    void *stored = stored_as(w, N_OUT * N_IN, dtype);
    ops_tensor weights = tensor_make(stored, OPS_PLACE_HOST, dtype, 2, (int64_t[]){N_OUT, N_IN});
    static const int64_t rows[] = {1, 32, 33, ROWS};
    bool has_differed = false; /* the two ways do give different bits */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int k = 0; k < 3; k++) { /* told many, told few; the same kind of a device that is not fast */
            err e;
            ops_ctx *ctx;
            if (ops_open(&ctx, &(ops_settings){.device = "cuda", .is_fast = k < 2}, &e) != STATUS_OK) fail_msg("%s", e.text);
            assert_int_equal(ops_tells_few(ctx), k == 2);
            linear_arg a = {.n_in = N_IN, .n_out = N_OUT, .is_few = k < 2 ? k == 1 : rows[i] <= 32};
            assert_int_equal(ops_matrix_open(ctx, &a.m, &weights, NULL, &e), STATUS_OK);
            call_linear(ctx, &a, out[k], x, 0, rows[i]);
            if (k == 2) {
                float *other = test_alloc(ROWS * N_OUT, sizeof *other);
                a.is_few = !a.is_few;
                call_linear(ctx, &a, other, x, 0, rows[i]);
                has_differed |= !same_bits(other, out[2], rows[i] * N_OUT);
                free(other);
            }
            ops_matrix_close(ctx, &a.m);
            ops_close(&ctx);
        }
        bool is_few = rows[i] <= 32; /* many may be summed by an algorithm that others are not offered */
        if (!same_bits(out[0], out[1], rows[i] * N_OUT) || (is_few && !same_bits(out[0], out[2], rows[i] * N_OUT)))
            fail_msg("%lld rows differ", (long long)rows[i]);
    }
    assert_true(has_differed);
    for (int i = 0; i < 3; i++) free(out[i]);
    free(x), free(w), free(stored);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_rows_do_not_depend_on_cut_threads_or_neighbours),
        cmocka_unit_test(few_rows_are_the_same_in_calls_of_every_size),
        cmocka_unit_test(linear_columns_do_not_depend_on_their_place),
        cmocka_unit_test(a_fast_device_goes_by_the_number_of_rows),
        cmocka_unit_test(avx2_and_avx512_give_the_same_linear_bits),
        cmocka_unit_test(norm_gate_and_rope_rows_do_not_depend_on_cut_or_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
