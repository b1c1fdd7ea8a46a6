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

static const char *const variants[] = {"generic", "avx2", "avx512", "vnni", "amx"};
#define N_VARIANTS 5

/* NULL when this machine has no such variant. */
static ops_ctx *open_variant(const char *simd, int n_threads) {
    err e;
    ops_ctx *ctx;
    ops_settings settings = {.device = "cpu", .n_threads = n_threads, .simd = simd};
    return ops_open(&ctx, &settings, &e) == STATUS_OK ? ctx : NULL;
}

static ops_tensor f32(const void *data, int64_t rows, int64_t cols) {
    return tensor_make((void *)(uintptr_t)data, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 2,
                       (int64_t[]){rows, cols});
}

static ops_tensor i32(const void *data, int64_t n) {
    return tensor_make((void *)(uintptr_t)data, OPS_PLACE_DEVICE, OPS_DTYPE_I32, 1, &n);
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
static void expect_invariant(const char *simd, const row_operator *op, const float *x,
                             const char *name) {
    float *want = test_alloc((size_t)(ROWS * op->out_cols), sizeof *want);
    float *got = test_alloc((size_t)(ROWS * op->out_cols), sizeof *got);
    for (int n_threads = 1; n_threads <= 4; n_threads++) {
        ops_ctx *ctx = open_variant(simd, n_threads);
        if (n_threads == 1) op->call(ctx, op->arg, want, x, 0, ROWS);
        for (int c = 0; c <= N_CUTS; c++) {
            memset(got, 0xA5, (size_t)(ROWS * op->out_cols) * sizeof *got);
            for (int64_t first = 0, i = 0; first < ROWS; i++) {
                int64_t n = c < N_CUTS ? cuts[c][i] : 1;
                op->call(ctx, op->arg, got + first * op->out_cols, x + first * op->cols, first, n);
                first += n;
            }
            if (!same_bits(want, got, ROWS * op->out_cols))
                fail_msg("%s on %s: cut %d differs", name, ops_device_text(ctx), c);
        }
        ops_close(&ctx);
    }
    free(want), free(got);
}

/* ---- linear -------------------------------------------------------------------------------- */

typedef struct {
    ops_matrix *m; /* packed the same way by every context of a variant */
    ops_act act;
} linear_arg;

static void call_linear(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first,
                        int64_t n) {
    const linear_arg *a = arg;
    (void)first;
    ops_tensor to = f32(out, n, 130), tx = f32(x, n, 700);
    assert_int_equal(ops_linear(ctx, &to, &tx, a->m, a->act), STATUS_OK);
}

static void linear_rows_do_not_depend_on_cut_threads_or_neighbours(void **state) {
    (void)state;
    rng r = rng_make(5);
    float *x = random_floats(&r, ROWS * 700, 1.0f), *w = random_floats(&r, 130 * 700, 1.0f);
    float *bias = random_floats(&r, 130, 1.0f);
    ops_tensor tb = tensor_make(bias, OPS_PLACE_HOST, OPS_DTYPE_F32, 1, (int64_t[]){130});
    for (int v = 0; v < N_VARIANTS; v++)
        for (int d = 0; d < 3; d++) {
            static const ops_dtype dtypes[] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16};
            ops_ctx *ctx = open_variant(variants[v], 1);
            if (!ctx) continue;
            err e;
            void *stored = stored_as(w, 130 * 700, dtypes[d]);
            ops_tensor tw = tensor_make(stored, OPS_PLACE_HOST, dtypes[d], 2, (int64_t[]){130, 700});
            linear_arg arg = {.act = (ops_act)d};
            assert_int_equal(ops_matrix_open(ctx, &arg.m, &tw, &tb, &e), STATUS_OK);
            row_operator op = {700, 130, call_linear, &arg};
            expect_invariant(variants[v], &op, x, "linear");
            ops_matrix_close(ctx, &arg.m);
            ops_close(&ctx);
            free(stored);
        }
    free(x), free(w), free(bias);
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
        ops_ctx *ctx = open_variant(variants[v], 1);
        if (!ctx) continue;
        assert_int_equal(ops_matrix_open(ctx, &m, &tw, NULL, &e), STATUS_OK);
        for (int a = 0; a < 3; a++)
            for (int64_t rows = 1; rows <= 9; rows++) {
                ops_tensor to = f32(out, rows, N), tx = f32(x, rows, K);
                assert_int_equal(ops_linear(ctx, &to, &tx, m, acts[a]), STATUS_OK);
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
    rng r = rng_make(8);
    float *x = random_floats(&r, R * K, 1.0f), *w = random_floats(&r, N * K, 1.0f);
    float *out[2];
    ops_tensor tw = tensor_make(w, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){N, K});
    for (int v = 0; v < 2; v++) {
        err e;
        ops_matrix *m;
        ops_ctx *ctx = open_variant(variants[1 + v], 1);
        if (!ctx) skip();
        out[v] = test_alloc(R * N, sizeof **out);
        assert_int_equal(ops_matrix_open(ctx, &m, &tw, NULL, &e), STATUS_OK);
        ops_tensor to = f32(out[v], R, N), tx = f32(x, R, K);
        assert_int_equal(ops_linear(ctx, &to, &tx, m, OPS_ACT_GELU_TANH), STATUS_OK);
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
} rows_arg;

static void call_norm(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first,
                      int64_t n) {
    const rows_arg *a = arg;
    (void)first;
    int64_t cols = 91;
    ops_tensor to = f32(out, n, cols), tx = f32(x, n, cols);
    ops_tensor w = tensor_make((void *)(uintptr_t)a->w, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 1, &cols);
    ops_tensor b = tensor_make((void *)(uintptr_t)a->b, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 1, &cols);
    assert_int_equal(ops_layer_norm(ctx, &to, &tx, &w, &b, 1e-5f), STATUS_OK);
}

static void call_rms_norm(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first, int64_t n) {
    const rows_arg *a = arg;
    (void)first;
    int64_t cols = 91;
    ops_tensor to = f32(out, n, cols), tx = f32(x, n, cols);
    ops_tensor w = tensor_make((void *)(uintptr_t)a->w, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 1, &cols);
    assert_int_equal(ops_rms_norm(ctx, &to, &tx, &w, 1e-5f), STATUS_OK);
}

static void call_gate(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first, int64_t n) {
    (void)arg;
    (void)first;
    ops_tensor to = f32(out, n, 45), tx = f32(x, n, 90);
    assert_int_equal(ops_gate(ctx, &to, &tx, OPS_ACT_SILU), STATUS_OK);
}

static void call_activate(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first, int64_t n) {
    (void)arg;
    (void)first;
    ops_tensor to = f32(out, n, 91), tx = f32(x, n, 91);
    assert_int_equal(ops_activate(ctx, &to, &tx, OPS_ACT_GELU_TANH), STATUS_OK);
}

static void call_rope(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first,
                      int64_t n) {
    const rows_arg *a = arg;
    memcpy(out, x, (size_t)(n * 91) * sizeof *out);
    ops_tensor to = f32(out, n, 91), cos = f32(a->w, 50, 5), sin = f32(a->b, 50, 5);
    ops_tensor positions = i32(a->positions + first, n);
    assert_int_equal(ops_rope(ctx, &to, &cos, &sin, &positions, 7), STATUS_OK);
}

static void norm_gate_and_rope_rows_do_not_depend_on_cut_or_threads(void **state) {
    (void)state;
    rng r = rng_make(9);
    float *x = random_floats(&r, ROWS * 91, 1.0f), *w = random_floats(&r, 250, 1.0f);
    float *b = random_floats(&r, 250, 1.0f);
    int32_t positions[ROWS];
    for (int i = 0; i < ROWS; i++) positions[i] = (int32_t)rng_below(&r, 50);
    rows_arg arg = {w, b, positions};
    for (int v = 0; v < N_VARIANTS; v++) {
        ops_ctx *ctx = open_variant(variants[v], 1);
        if (!ctx) continue;
        ops_close(&ctx);
        expect_invariant(variants[v], &(row_operator){91, 91, call_norm, &arg}, x, "layer_norm");
        expect_invariant(variants[v], &(row_operator){91, 91, call_rms_norm, &arg}, x, "rms_norm");
        expect_invariant(variants[v], &(row_operator){90, 45, call_gate, &arg}, x, "gate");
        expect_invariant(variants[v], &(row_operator){91, 91, call_activate, &arg}, x, "activate");
        expect_invariant(variants[v], &(row_operator){91, 91, call_rope, &arg}, x, "rope");
    }
    free(x), free(w), free(b);
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
            memcpy(a.k + slot * kw, k + key_of(s, pos) * kw, (size_t)kw * sizeof *k);
            memcpy(a.v + slot * kw, v + key_of(s, pos) * kw, (size_t)kw * sizeof *v);
        }
    return a;
}

static void unpage(paged_arg *a) { free(a->k), free(a->v), free(a->tables); }

static void call_paged(ops_ctx *ctx, void *arg, float *out, const float *x, int64_t first,
                       int64_t n) {
    const paged_arg *a = arg;
    int64_t dims[3] = {SEQS * a->max_blocks, a->block_tokens, KV_HEADS * HD};
    ops_tensor to = f32(out, n, HEADS * HD), tq = f32(x, n, HEADS * HD);
    ops_tensor k = tensor_make(a->k, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 3, dims);
    ops_tensor v = tensor_make(a->v, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 3, dims);
    ops_tensor tables = tensor_make(a->tables, OPS_PLACE_DEVICE, OPS_DTYPE_I32, 2,
                                    (int64_t[]){SEQS, a->max_blocks});
    ops_tensor seq = i32(a->row_seq + first, n), pos = i32(a->row_pos + first, n);
    ops_attention_params p = {.n_heads = HEADS, .n_kv_heads = KV_HEADS, .scale = 0.5f, .window = a->window};
    assert_int_equal(ops_attention_paged(ctx, &to, &tq, &k, &v, &tables, &seq, &pos, &p),
                     STATUS_OK);
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
        ops_ctx *ctx = open_variant(variants[v], 1);
        if (!ctx) continue;
        for (size_t b = 0; b < 2 * n_blocks; b++) {
            paged_arg a = page(in.k, in.v, blocks[b % n_blocks]);
            a.row_seq = in.row_seq;
            a.row_pos = in.row_pos;
            a.window = b < n_blocks ? 0 : 70;
            call_paged(ctx, &a, b % n_blocks == 0 ? want : got, in.q, 0, ROWS);
            if (b % n_blocks > 0 && !same_bits(want, got, n))
                fail_msg("%s: window %d: blocks of %lld differ", variants[v], a.window, (long long)a.block_tokens);
            if (a.block_tokens == 16)
                expect_invariant(variants[v],
                                 &(row_operator){HEADS * HD, HEADS * HD, call_paged, &a}, in.q,
                                 "attention_paged");
            unpage(&a);
        }
        ops_close(&ctx);
    }
    free(want), free(got);
    paged_input_free(&in);
}

/* NaN in a key or value that a row does not see must not reach it, even in the same chunk. */
static void paged_attention_never_touches_keys_after_the_row(void **state) {
    (void)state;
    paged_input in = paged_input_make();
    int64_t n = ROWS * HEADS * HD;
    float *want = test_alloc((size_t)n, sizeof *want), *got = test_alloc((size_t)n, sizeof *got);
    for (int v = 0; v < N_VARIANTS; v++) {
        ops_ctx *ctx = open_variant(variants[v], 1);
        if (!ctx) continue;
        paged_arg a = page(in.k, in.v, 16);
        a.row_seq = in.row_seq;
        a.row_pos = in.row_pos;
        call_paged(ctx, &a, want, in.q, 0, ROWS);
        for (int64_t i = 0; i < KV_HEADS * HD; i++) { /* position 200 of sequence 1 */
            int64_t at = (a.tables[a.max_blocks + 200 / 16] * 16 + 200 % 16) * KV_HEADS * HD + i;
            a.k[at] = a.v[at] = NAN;
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

/* Full attention of one picture gives the same bits alone and among others, on any threads. */
static void full_attention_groups_do_not_depend_on_each_other(void **state) {
    (void)state;
    enum { GROUPS = 5, TOKENS = 100, WIDTH = 2 * 72 };
    rng r = rng_make(12);
    int64_t n = GROUPS * TOKENS * WIDTH;
    float *q = random_floats(&r, n, 2.0f), *k = random_floats(&r, n, 1.0f);
    float *v = random_floats(&r, n, 1.0f);
    float *want = test_alloc((size_t)n, sizeof *want), *got = test_alloc((size_t)n, sizeof *got);
    ops_attention_params p = {.n_heads = 2, .n_kv_heads = 2, .scale = 0.3f};
    for (int i = 0; i < N_VARIANTS; i++)
        for (int n_threads = 1; n_threads <= 4; n_threads++) {
            ops_ctx *ctx = open_variant(variants[i], n_threads);
            if (!ctx) continue;
            for (int64_t g = 0; g < GROUPS && n_threads == 1; g++) {
                int64_t at = g * TOKENS * WIDTH;
                ops_tensor to = f32(want + at, TOKENS, WIDTH), tq = f32(q + at, TOKENS, WIDTH);
                ops_tensor tk = f32(k + at, TOKENS, WIDTH), tv = f32(v + at, TOKENS, WIDTH);
                assert_int_equal(ops_attention(ctx, &to, &tq, &tk, &tv, TOKENS, &p), STATUS_OK);
            }
            ops_tensor to = f32(got, GROUPS * TOKENS, WIDTH), tq = f32(q, GROUPS * TOKENS, WIDTH);
            ops_tensor tk = f32(k, GROUPS * TOKENS, WIDTH), tv = f32(v, GROUPS * TOKENS, WIDTH);
            assert_int_equal(ops_attention(ctx, &to, &tq, &tk, &tv, TOKENS, &p), STATUS_OK);
            assert_true(same_bits(want, got, n));
            ops_close(&ctx);
        }
    free(q), free(k), free(v), free(want), free(got);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_rows_do_not_depend_on_cut_threads_or_neighbours),
        cmocka_unit_test(linear_columns_do_not_depend_on_their_place),
        cmocka_unit_test(avx2_and_avx512_give_the_same_linear_bits),
        cmocka_unit_test(norm_gate_and_rope_rows_do_not_depend_on_cut_or_threads),
        cmocka_unit_test(paged_attention_rows_do_not_depend_on_cut_threads_or_blocks),
        cmocka_unit_test(paged_attention_never_touches_keys_after_the_row),
        cmocka_unit_test(full_attention_groups_do_not_depend_on_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
