/* The same row gives the same bits however rows are cut into calls, whoever its neighbours are, however
 * many threads work, and however a cache is cut into blocks. Compared bit by bit, per variant. */
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

enum { ROWS = 300 };

/* What the same row must agree over: on the CPU any number of threads of one instruction set; on a device the context,
 * for each dtype of activations. */
typedef struct {
    const char *simd;
    ops_dtype dtype;
} variant;
static const variant cpu_variants[] = {{"generic", OPS_DTYPE_F32}, {"avx2", OPS_DTYPE_F32}, {"avx512", OPS_DTYPE_F32},
                                       {"vnni", OPS_DTYPE_F32},    {"amx", OPS_DTYPE_F32}};
static const variant device_variants[] = {{NULL, OPS_DTYPE_F32}, {NULL, OPS_DTYPE_F16}, {NULL, OPS_DTYPE_BF16}};
#define N_VARIANTS (test_device_is_cpu() ? 5 : 3)

static const variant *variant_at(int i) { return test_device_is_cpu() ? &cpu_variants[i] : &device_variants[i]; }
static const char *variant_name(int i) { return variant_at(i)->simd ? variant_at(i)->simd : dtype_name(variant_at(i)->dtype); }

static ops_dtype dtype; /* of the activations of the variant that was opened last */

/* NULL when this machine has no such variant. */
static ops_ctx *open_variant(int i, int n_threads) {
    dtype = variant_at(i)->dtype;
    return case_context_open(variant_at(i)->simd, n_threads);
}

/* Copies on the device for one call, dropped behind it. */
static guarded copies[16];
static int n_copies;

static ops_tensor copy_of(ops_ctx *ctx, ops_dtype of, int n_dims, const int64_t *dims, const void *values) {
    CHECK(n_copies < 16, "room for the tensors of a call");
    copies[n_copies] = of == OPS_DTYPE_I32 ? guarded_with(ctx, of, n_dims, dims, values)
                                           : guarded_floats(ctx, of, n_dims, dims, values);
    return copies[n_copies++].t;
}
static ops_tensor activations(ops_ctx *ctx, const float *values, int64_t rows, int64_t cols) {
    return copy_of(ctx, dtype, 2, (int64_t[]){rows, cols}, values);
}
static ops_tensor f32(ops_ctx *ctx, const float *values, int64_t rows, int64_t cols) {
    return copy_of(ctx, OPS_DTYPE_F32, 2, (int64_t[]){rows, cols}, values);
}
static ops_tensor f32_vector(ops_ctx *ctx, const float *values, int64_t n) {
    return copy_of(ctx, OPS_DTYPE_F32, 1, &n, values);
}
static ops_tensor i32(ops_ctx *ctx, const int32_t *values, int64_t n) {
    return copy_of(ctx, OPS_DTYPE_I32, 1, &n, values);
}

/* What a call made, as f32, out of its first copy; then all are dropped. */
static void take(float *out) {
    float *values = guarded_values(&copies[0]);
    assert_true(guarded_intact(&copies[0]));
    memcpy(out, values, (size_t)tensor_elements(&copies[0].t) * sizeof *out);
    free(values);
    while (n_copies > 0) guarded_close(&copies[--n_copies]);
}

/* Cuts of ROWS rows into calls: all equal, single rows at the ends, primes. 0 ends a list. */
static const int64_t cuts[][12] = {
    {ROWS},
    {1, 1, 2, 3, 5, 7, 11, 13, 29, 101, 127},
    {150, 150},
    {299, 1},
    {12, 36, 37, 24, 25, 6, 5, 4, 146, 5},
};
#define N_CUTS ((int)(sizeof cuts / sizeof cuts[0]))

typedef struct {
    int64_t cols, out_cols;
    void (*call)(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first, int64_t n);
    void *arg;
} row_operator;

/* Runs op over every cut and then over each single row, on 1 to 4 threads, against one call. */
static void expect_invariant(int v, const row_operator *op, const float *x, const char *name) {
    float *want = test_alloc((size_t)(ROWS * op->out_cols), sizeof *want);
    float *got = test_alloc((size_t)(ROWS * op->out_cols), sizeof *got);
    for (int n_threads = 1; n_threads <= (test_device_is_cpu() ? 4 : 1); n_threads++) {
        ops_ctx *ctx = open_variant(v, n_threads);
        if (n_threads == 1) op->call(ctx, op->arg, want, x, 0, ROWS);
        for (int c = 0; c <= N_CUTS; c++) {
            if (!test_device_is_cpu() && (c == 2 || c == 3)) continue;
            memset(got, 0xA5, (size_t)(ROWS * op->out_cols) * sizeof *got);
            for (int64_t first = 0, i = 0; first < ROWS; i++) {
                int64_t n = c < N_CUTS ? cuts[c][i] : 1;
                if (c == N_CUTS && first == 40 && !test_device_is_cpu()) n = ROWS - first; /* an emulated one takes its time */
                op->call(ctx, op->arg, got + first * op->out_cols, x + first * op->cols, first, n);
                first += n;
            }
            if (!same_bits(want, got, ROWS * op->out_cols))
                fail_msg("%s of %s on %s: cut %d differs", name, dtype_name(dtype), ops_device_text(ctx), c);
        }
        ops_close(&ctx);
    }
    free(want), free(got);
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

/* ---- attention ----------------------------------------------------------------------------- */

/* Three sequences over one pool of keys: 0 and 1 share their first 128 positions. The rows of the call
 * are all positions of sequence 1 from 40, then single questions of 0 and 2, shuffled by `order`. */
enum { HEADS = 3, KV_HEADS = 1, HD = 40, LENGTH = 340, SEQS = 3 };

typedef struct {
    int64_t block_tokens, max_blocks;
    float *k, *v; /* the cache in blocks of block_tokens */
    int32_t *tables;
    const int32_t *row_seq, *row_pos;
    int window;
    bool is_few, may_round;
} paged_arg;

/* Key number of (sequence, position): what the model wrote there, whatever the blocks are. */
static int64_t key_of(int64_t seq, int64_t pos) {
    return (seq == 1 && pos < 128 ? 0 : seq) * LENGTH + pos;
}

static paged_arg page(const float *k, const float *v, int64_t block_tokens) {
    paged_arg a = {.block_tokens = block_tokens,
                   .max_blocks = (LENGTH + block_tokens - 1) / block_tokens};
    int64_t n_blocks = SEQS * a.max_blocks, kw = KV_HEADS * HD;
    a.k = test_alloc((size_t)(n_blocks * block_tokens * kw), sizeof *a.k);
    a.v = test_alloc((size_t)(n_blocks * block_tokens * kw), sizeof *a.v);
    a.tables = test_alloc((size_t)n_blocks, sizeof *a.tables);
    for (int64_t s = 0; s < SEQS; s++)
        for (int64_t b = 0; b < a.max_blocks; b++) {
            bool shared = s == 1 && (b + 1) * block_tokens <= 128;
            a.tables[s * a.max_blocks + b] =
                (int32_t)(n_blocks - 1 - ((shared ? 0 : s) * a.max_blocks + b));
        }
    for (int64_t s = 0; s < SEQS; s++)
        for (int64_t pos = 0; pos < LENGTH; pos++) {
            int64_t block = a.tables[s * a.max_blocks + pos / block_tokens];
            int64_t slot = block * block_tokens + pos % block_tokens;
            memcpy(a.k + slot * kw, k + key_of(s, pos) * kw, (size_t)kw * sizeof *k); /* of one head, a slot is a key */
            memcpy(a.v + slot * kw, v + key_of(s, pos) * kw, (size_t)kw * sizeof *v);
        }
    return a;
}

static void unpage(paged_arg *a) { free(a->k), free(a->v), free(a->tables); }

static void call_paged(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first,
                       int64_t n) {
    const paged_arg *a = arg;
    int64_t dims[4] = {SEQS * a->max_blocks, KV_HEADS, a->block_tokens, HD};
    ops_tensor to = activations(ctx, NULL, n, HEADS * HD), tq = activations(ctx, x, n, HEADS * HD);
    ops_tensor k = copy_of(ctx, dtype, 4, dims, a->k), v = copy_of(ctx, dtype, 4, dims, a->v);
    ops_tensor tables = copy_of(ctx, OPS_DTYPE_I32, 2, (int64_t[]){SEQS, a->max_blocks}, a->tables);
    ops_tensor seq = i32(ctx, a->row_seq + first, n), pos = i32(ctx, a->row_pos + first, n);
    ops_attention_params p = {.n_heads = HEADS, .n_kv_heads = KV_HEADS, .scale = 0.5f, .window = a->window, .is_few = a->is_few,
                              .may_round = a->may_round};
    assert_int_equal(ops_attention_paged(ctx, &to, &tq, &k, &v, &tables, &seq, &pos, &p),
                     STATUS_OK);
    take(out);
}

typedef struct {
    float *q, *k, *v;
    int32_t row_seq[ROWS], row_pos[ROWS];
} paged_input;

static paged_input paged_input_make(void) {
    paged_input in;
    rng r = rng_make(11);
    in.q = random_floats(&r, ROWS * HEADS * HD, 2.0f);
    in.k = random_floats(&r, SEQS * LENGTH * KV_HEADS * HD, 1.0f);
    in.v = random_floats(&r, SEQS * LENGTH * KV_HEADS * HD, 1.0f);
    for (int i = 0; i < ROWS; i++) { /* a run of sequence 1 with strangers between */
        in.row_seq[i] = i % 10 == 3 ? 0 : i % 10 == 7 ? 2 : 1;
        in.row_pos[i] = in.row_seq[i] == 1 ? 40 + i : (int32_t)rng_below(&r, LENGTH);
    }
    return in;
}

static void paged_input_free(paged_input *in) { free(in->q), free(in->k), free(in->v); }

static void paged_attention_rows_do_not_depend_on_cut_threads_or_blocks(void **state) {
    (void)state;
    static const int64_t blocks[] = {1, 7, 16, 64, 128, 340};
    const size_t n_blocks = sizeof blocks / sizeof blocks[0];
    paged_input in = paged_input_make();
    int64_t n = ROWS * HEADS * HD;
    float *want = test_alloc((size_t)n, sizeof *want), *got = test_alloc((size_t)n, sizeof *got);
    for (int v = 0; v < N_VARIANTS; v++) {
        ops_ctx *ctx = open_variant(v, 1);
        if (!ctx) continue;
        for (size_t b = 0; b < (test_device_is_cpu() ? 6 : 2) * n_blocks; b++) {
            if (!test_device_is_cpu() && b % n_blocks % 3 == 1) continue; /* an emulated device takes its time */
            paged_arg a = page(in.k, in.v, blocks[b % n_blocks]);
            a.row_seq = in.row_seq;
            a.row_pos = in.row_pos;
            a.window = b / n_blocks % 2 ? 70 : 0;
            a.is_few = b / n_blocks / 2 == 1;
            a.may_round = b / n_blocks / 2 == 2;
            call_paged(ctx, &a, b % n_blocks == 0 ? want : got, in.q, 0, ROWS);
            if (b % n_blocks > 0 && !same_bits(want, got, n))
                fail_msg("%s: window %d: few %d: rounded %d: blocks of %lld differ", variant_name(v), a.window, a.is_few, a.may_round,
                         (long long)a.block_tokens);
            if (a.block_tokens == 16)
                expect_invariant(v,
                                 &(row_operator){HEADS * HD, HEADS * HD, call_paged, &a}, in.q,
                                 "attention_paged");
            unpage(&a);
        }
        ops_close(&ctx);
    }
    free(want), free(got);
    paged_input_free(&in);
}

/* Many heads and rows, and five of the rows alone, with keys beyond 128: however a device shares them out, the bits are the
 * same. */
static void long_rows_do_not_depend_on_how_their_keys_are_shared_out(void **state) {
    (void)state;
    enum { N = 300, N_HEADS = 90, WIDTH = N_HEADS * 8, N_BLOCKS = (N + 15) / 16, FEW = 5 };
    rng r = rng_make(13);
    float *q = random_floats(&r, N * WIDTH, 2.0f), *k = random_floats(&r, N_BLOCKS * 16 * WIDTH, 1.0f);
    float *v = random_floats(&r, N_BLOCKS * 16 * WIDTH, 1.0f);
    float *all = test_alloc(N * WIDTH, sizeof *all), *few = test_alloc(FEW * WIDTH, sizeof *few);
    int32_t table[N_BLOCKS], seqs[N] = {0}, positions[N];
    for (int i = 0; i < N_BLOCKS; i++) table[i] = N_BLOCKS - 1 - i;
    for (int i = 0; i < N; i++) positions[i] = i;
    const int64_t cache[4] = {N_BLOCKS, N_HEADS, 16, WIDTH / N_HEADS};
    const ops_attention_params p = {.n_heads = N_HEADS, .n_kv_heads = N_HEADS, .scale = 0.5f};
    for (int i = 0; i < N_VARIANTS; i++) {
        ops_ctx *ctx = open_variant(i, 1);
        if (!ctx) continue;
        for (int pass = 0; pass < 2; pass++) {
            int first = pass == 0 ? 0 : N - 20, n = pass == 0 ? N : FEW;
            ops_tensor to = activations(ctx, NULL, n, WIDTH), tq = activations(ctx, q + first * WIDTH, n, WIDTH);
            ops_tensor tk = copy_of(ctx, dtype, 4, cache, k), tv = copy_of(ctx, dtype, 4, cache, v);
            ops_tensor tables = copy_of(ctx, OPS_DTYPE_I32, 2, (int64_t[]){1, N_BLOCKS}, table);
            ops_tensor seq = i32(ctx, seqs, n), pos = i32(ctx, positions + first, n);
            assert_int_equal(ops_attention_paged(ctx, &to, &tq, &tk, &tv, &tables, &seq, &pos, &p), STATUS_OK);
            take(pass == 0 ? all : few);
        }
        assert_true(same_bits(all + (N - 20) * WIDTH, few, FEW * WIDTH));
        ops_close(&ctx);
    }
    free(q), free(k), free(v), free(all), free(few);
}

/* Rows beside each other whose sequences have blocks in common in all the ways they can, from the front, in the middle,
 * everywhere, nowhere, and rows between them that see less: each gives the bits that it gives alone. */
static void rows_that_share_blocks_are_as_if_alone(void **state) {
    (void)state;
    enum { N_SEQS = 6, BLOCK = 16, N_BLOCKS = 27, N = 14, N_HEADS = 4, N_KV_HEADS = 2, HEAD = 8 };
    enum { WIDTH = N_HEADS * HEAD, KV_WIDTH = N_KV_HEADS * HEAD, N_CACHE = N_SEQS * N_BLOCKS };
    /* Whose blocks a table has in front, from block 15 and from block 17 on. Devices go by eight blocks: 15 and 16 are the last of
     * one piece of keys and the first of another. */
    static const int owner[N_SEQS][3] = {{0, 0, 0}, {0, 0, 1}, {0, 0, 0}, {3, 0, 3}, {3, 0, 0}, {0, 5, 0}};
    static const int32_t seqs[N] = {0, 1, 2, 2, 1, 1, 0, 3, 4, 4, 5, 0, 1, 5};
    static const int32_t positions[N] = {420, 5, 130, 431, 400, 401, 255, 256, 3, 300, 300, 290, 128, 0};
    rng r = rng_make(17);
    float *q = random_floats(&r, N * WIDTH, 2.0f), *k = random_floats(&r, N_CACHE * BLOCK * KV_WIDTH, 1.0f);
    float *v = random_floats(&r, N_CACHE * BLOCK * KV_WIDTH, 1.0f);
    float together[N * WIDTH], alone[WIDTH];
    int32_t tables[N_SEQS * N_BLOCKS];
    for (int i = 0; i < N_SEQS * N_BLOCKS; i++)
        tables[i] = owner[i / N_BLOCKS][(i % N_BLOCKS >= 15) + (i % N_BLOCKS >= 17)] * N_BLOCKS + i % N_BLOCKS * 7 % N_BLOCKS;
    const int64_t cache[4] = {N_CACHE, N_KV_HEADS, BLOCK, HEAD};
    for (int i = 0; i < 4 * N_CACHE_DTYPES * N_VARIANTS; i++) {
        ops_ctx *ctx = open_variant(i / 4 % N_VARIANTS, 1);
        ops_dtype kept = cache_dtypes[i / 4 / N_VARIANTS];
        for (int row = -1; row < N && ctx && ops_takes_cache(ctx, dtype, kept); row++) {
            int64_t first = row < 0 ? 0 : row, n = row < 0 ? N : 1;
            ops_attention_params p = {.n_heads = N_HEADS, .n_kv_heads = N_KV_HEADS, .scale = 0.5f, .window = i % 4 / 2 * 150, .is_few = i % 2 == 0};
            ops_tensor to = activations(ctx, NULL, n, WIDTH), tq = activations(ctx, q + first * WIDTH, n, WIDTH);
            ops_tensor tk = copy_of(ctx, kept, 4, cache, k), tv = copy_of(ctx, kept, 4, cache, v);
            ops_tensor table = copy_of(ctx, OPS_DTYPE_I32, 2, (int64_t[]){N_SEQS, N_BLOCKS}, tables);
            ops_tensor seq = i32(ctx, seqs + first, n), pos = i32(ctx, positions + first, n);
            assert_int_equal(ops_attention_paged(ctx, &to, &tq, &tk, &tv, &table, &seq, &pos, &p), STATUS_OK);
            take(row < 0 ? together : alone);
            if (row >= 0 && !same_bits(together + row * WIDTH, alone, WIDTH))
                fail_msg("%s of %s: window %d: few %d: row %d differs", variant_name(i / 4 % N_VARIANTS), dtype_name(kept),
                         p.window, p.is_few, row);
        }
        ops_close(&ctx);
    }
    free(q), free(k), free(v);
}

/* NaN in a key or value that a row does not see must not reach it, even in the same chunk. */
static void paged_attention_never_touches_keys_after_the_row(void **state) {
    (void)state;
    paged_input in = paged_input_make();
    int64_t n = ROWS * HEADS * HD;
    float *want = test_alloc((size_t)n, sizeof *want), *got = test_alloc((size_t)n, sizeof *got);
    for (int i = 0; i < 4 * N_VARIANTS; i++) {
        ops_ctx *ctx = open_variant(i / 4, 1);
        if (!ctx) continue;
        paged_arg a = page(in.k, in.v, 16);
        a.row_seq = in.row_seq;
        a.row_pos = in.row_pos;
        a.may_round = i % 2 == 1;
        call_paged(ctx, &a, want, in.q, 0, ROWS);
        for (int64_t d = 0; d < KV_HEADS * HD; d++) { /* position 200 of sequence 1, its value, or both */
            int64_t at = (a.tables[a.max_blocks + 200 / 16] * 16 + 200 % 16) * KV_HEADS * HD + d;
            a.v[at] = NAN;
            if (i % 4 < 2) a.k[at] = NAN;
        }
        call_paged(ctx, &a, got, in.q, 0, ROWS);
        for (int64_t r = 0; r < ROWS; r++) {
            bool sees = in.row_seq[r] == 1 && in.row_pos[r] >= 200;
            const float *row = got + r * HEADS * HD;
            if (sees)
                assert_true(isnan(row[0]) && isnan(row[HEADS * HD - 1]));
            else
                assert_true(same_bits(want + r * HEADS * HD, row, HEADS * HD));
        }
        unpage(&a);
        ops_close(&ctx);
    }
    free(want), free(got);
    paged_input_free(&in);
}

/* And so in one dim alone, of keys and values in any dtype, for both kinds of rows; the row that sees it has it there. */
static void one_value_that_is_no_number_reaches_only_rows_that_see_it(void **state) {
    (void)state;
    enum { HEAD = 64, BLOCK = 16, N_BLOCKS = 14, BAD = 204, N = 2, N_POISONED = 5 }; /* in a later piece of keys */
    static const int dims[N_POISONED] = {0, 9, 20, 47, 63};
    static const int32_t table[N_BLOCKS] = {5, 3, 11, 0, 7, 1, 10, 13, 4, 2, 9, 12, 6, 8}, seqs[N] = {0, 0}, positions[N] = {BAD - 1, BAD};
    rng r = rng_make(23);
    float *q = random_floats(&r, N * HEAD, 1.0f), *k = random_floats(&r, N_BLOCKS * BLOCK * HEAD, 1.0f);
    float *v = random_floats(&r, N_BLOCKS * BLOCK * HEAD, 1.0f), clean[N * HEAD], got[N * HEAD];
    float *bad = v + (table[BAD / BLOCK] * BLOCK + BAD % BLOCK) * HEAD;
    const int64_t cache[4] = {N_BLOCKS, 1, BLOCK, HEAD};
    for (int i = 0; i < 2 * N_CACHE_DTYPES * N_VARIANTS; i++) {
        ops_ctx *ctx = open_variant(i / 2 % N_VARIANTS, 1);
        ops_dtype kept = cache_dtypes[i / 2 / N_VARIANTS];
        for (int p = -1; p < N_POISONED && ctx && ops_takes_cache(ctx, dtype, kept); p++) {
            float was = p < 0 ? 0.0f : bad[dims[p]];
            if (p >= 0) bad[dims[p]] = NAN;
            const ops_attention_params params = {.n_heads = 1, .n_kv_heads = 1, .scale = 0.5f, .is_few = i % 2 == 0};
            ops_tensor to = activations(ctx, NULL, N, HEAD), tq = activations(ctx, q, N, HEAD);
            ops_tensor tk = copy_of(ctx, kept, 4, cache, k), tv = copy_of(ctx, kept, 4, cache, v);
            ops_tensor tables = copy_of(ctx, OPS_DTYPE_I32, 2, (int64_t[]){1, N_BLOCKS}, table);
            ops_tensor seq = i32(ctx, seqs, N), pos = i32(ctx, positions, N);
            assert_int_equal(ops_attention_paged(ctx, &to, &tq, &tk, &tv, &tables, &seq, &pos, &params), STATUS_OK);
            take(p < 0 ? clean : got);
            if (p < 0) continue;
            bad[dims[p]] = was;
            if (!same_bits(clean, got, HEAD))
                fail_msg("%s of %s: few %d: dim %d", variant_name(i / 2 % N_VARIANTS), dtype_name(kept), params.is_few, dims[p]);
            for (int d = 0; d < HEAD; d++) assert_int_equal(isnan(got[HEAD + d]) != 0, d == dims[p]);
        }
        ops_close(&ctx);
    }
    free(q), free(k), free(v);
}

/* Full attention of one picture gives the same bits alone and among others, on any threads. */
static void full_attention_groups_do_not_depend_on_each_other(void **state) {
    (void)state;
    enum { GROUPS = 5, TOKENS = 100, WIDTH = 2 * 72 };
    rng r = rng_make(12);
    int64_t n = GROUPS * TOKENS * WIDTH;
    float *q = random_floats(&r, n, 2.0f), *k = random_floats(&r, n, 1.0f);
    float *v = random_floats(&r, n, 1.0f);
    float *want = test_alloc((size_t)n, sizeof *want), *got = test_alloc((size_t)n, sizeof *got);
    for (int i = 0; i < 2 * N_VARIANTS; i++)
        for (int n_threads = 1; n_threads <= (test_device_is_cpu() ? 4 : 1); n_threads++) {
            const ops_attention_params p = {.n_heads = 2, .n_kv_heads = 2, .scale = 0.3f, .may_round = i % 2 == 1};
            ops_ctx *ctx = open_variant(i / 2, n_threads);
            if (!ctx) continue;
            for (int64_t g = 0; g < GROUPS && n_threads == 1; g++) {
                int64_t at = g * TOKENS * WIDTH;
                ops_tensor to = activations(ctx, NULL, TOKENS, WIDTH), tq = activations(ctx, q + at, TOKENS, WIDTH);
                ops_tensor tk = activations(ctx, k + at, TOKENS, WIDTH), tv = activations(ctx, v + at, TOKENS, WIDTH);
                assert_int_equal(ops_attention(ctx, &to, &tq, &tk, &tv, TOKENS, &p), STATUS_OK);
                take(want + at);
            }
            ops_tensor to = activations(ctx, NULL, GROUPS * TOKENS, WIDTH), tq = activations(ctx, q, GROUPS * TOKENS, WIDTH);
            ops_tensor tk = activations(ctx, k, GROUPS * TOKENS, WIDTH), tv = activations(ctx, v, GROUPS * TOKENS, WIDTH);
            assert_int_equal(ops_attention(ctx, &to, &tq, &tk, &tv, TOKENS, &p), STATUS_OK);
            take(got);
            assert_true(same_bits(want, got, n));
            ops_close(&ctx);
        }
    free(q), free(k), free(v), free(want), free(got);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_rows_do_not_depend_on_cut_threads_or_neighbours),
        cmocka_unit_test(few_rows_are_the_same_in_calls_of_every_size),
        cmocka_unit_test(linear_columns_do_not_depend_on_their_place),
        cmocka_unit_test(a_fast_device_goes_by_the_number_of_rows),
        cmocka_unit_test(avx2_and_avx512_give_the_same_linear_bits),
        cmocka_unit_test(norm_gate_and_rope_rows_do_not_depend_on_cut_or_threads),
        cmocka_unit_test(paged_attention_rows_do_not_depend_on_cut_threads_or_blocks),
        cmocka_unit_test(long_rows_do_not_depend_on_how_their_keys_are_shared_out),
        cmocka_unit_test(rows_that_share_blocks_are_as_if_alone),
        cmocka_unit_test(paged_attention_never_touches_keys_after_the_row),
        cmocka_unit_test(one_value_that_is_no_number_reaches_only_rows_that_see_it),
        cmocka_unit_test(full_attention_groups_do_not_depend_on_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
