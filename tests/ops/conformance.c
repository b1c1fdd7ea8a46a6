/* Every operator against its double-precision reference, over a table of sizes, on every variant this
 * machine has and on several threads. Bounds are derived beside each check; u = 2^-24 is the rounding
 * of one f32 operation. Outputs lie between guard words. */
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

/* Fails with everything needed to see the case again. */
#define EXPECT_NEAR(got, want, bound, ...)                                                         \
    do {                                                                                           \
        double got_ = (got), want_ = (want), bound_ = (bound);                                     \
        if (!(fabs(got_ - want_) <= bound_)) {                                                     \
            print_error(__VA_ARGS__);                                                              \
            fail_msg(": got %.9g want %.9g off by %.3g, allowed %.3g", got_, want_,                \
                     fabs(got_ - want_), bound_);                                                  \
        }                                                                                          \
    } while (0)

/* ---- linear -------------------------------------------------------------------------------- */

typedef struct {
    int64_t rows, n_in, n_out;
    ops_dtype dtype, bias_dtype;
    bool has_bias, is_few, is_f32_out;
    ops_act act;
    ops_dtype activations;
    int64_t act_from, before, after; /* before, after: columns beside those of x */
    bool adds;
    ops_product product;
} linear_case;

/* Beside the sums of check_linear: rows of halves may have been rounded before the activation, and again before a bias
 * that the weights' dtype does not hold; the result is rounded once more. */
static double linear_storage_bound(const linear_case *c, double sum) {
    ops_dtype out = c->is_f32_out ? OPS_DTYPE_F32 : c->activations;
    return 1.13 * 2 * storage_error(out, fabs(sum) + 3.0) + storage_error(out, sum) + (c->adds ? storage_error(out, 2.0) : 0.0);
}

static void check_linear(ops_ctx *ctx, const linear_case *c, uint64_t seed) {
    rng r = rng_make(seed);
    err e;
    float *x = random_floats(&r, c->rows * c->n_in, 2.0f);
    round_floats(x, c->rows * c->n_in, c->activations);
    float *w_any = random_floats(&r, c->n_out * c->n_in, 1.0f);
    float *b_any = random_floats(&r, c->n_out, 3.0f);
    float *w = rounded_floats(w_any, c->n_out * c->n_in, c->dtype);
    float *b = rounded_floats(b_any, c->n_out, c->bias_dtype);
    void *stored_w = stored_as(w, c->n_out * c->n_in, c->dtype);
    void *stored_b = stored_as(b, c->n_out, c->bias_dtype);
    ops_tensor tw = tensor_make(stored_w, OPS_PLACE_HOST, c->dtype, 2, (int64_t[]){c->n_out, c->n_in});
    ops_tensor tb = tensor_make(stored_b, OPS_PLACE_HOST, c->bias_dtype, 1, (int64_t[]){c->n_out});
    ops_matrix *m;
    assert_int_equal(ops_matrix_open_as(ctx, &m, &tw, c->has_bias ? &tb : NULL, c->product, &e), STATUS_OK);
    memset(stored_w, 0xA5, (size_t)(c->n_out * c->n_in) * dtype_bytes(c->dtype)); /* not used again */
    guarded gx = c->before + c->after > 0 ? guarded_columns(ctx, c->activations, c->rows, c->n_in, c->before, c->after, x)
                                          : guarded_floats(ctx, c->activations, 2, (int64_t[]){c->rows, c->n_in}, x);
    ops_dtype out_dtype = c->is_f32_out ? OPS_DTYPE_F32 : c->activations;
    float *add = random_floats(&r, c->rows * c->n_out, 2.0f);
    round_floats(add, c->rows * c->n_out, out_dtype);
    guarded ga = guarded_floats(ctx, out_dtype, 2, (int64_t[]){c->rows, c->n_out}, add);
    guarded go = guarded_open(ctx, out_dtype, 2, (int64_t[]){c->rows, c->n_out});
    const ops_linear_params params = {c->act, c->act_from, c->adds ? &ga.t : NULL, c->is_few};
    assert_int_equal(ops_linear(ctx, &go.t, &gx.t, m, &params), STATUS_OK);
    assert_true(guarded_intact(&go));
    assert_true(guarded_intact(&gx));

    int64_t n = c->rows * c->n_out;
    double *want = test_alloc((size_t)n, sizeof *want), *size = test_alloc((size_t)n, sizeof *size);
    bool is_fp8 = c->product == OPS_PRODUCT_FP8;
    (is_fp8 ? ref_fp8 : ref_linear)(want, size, x, w, c->has_bias ? b : NULL, c->rows, c->n_in, c->n_out);
    float *got = guarded_values(&go);
    for (int64_t i = 0; i < n; i++) {
        /* each of n_in steps rounds once or (generic) twice, relative to a partial sum <= size; the
         * bias once more. The activation has slope at most 1.13 and is within 2e-7 |x|. */
        double bound = (is_fp8 ? ref_fp8_bound(c->n_in) : ((double)(2 * c->n_in) + 2) * U) * size[i];
        ops_act act = i % c->n_out >= c->act_from ? c->act : OPS_ACT_NONE;
        double result = ref_act(want[i], act) + (c->adds ? (double)add[i] : 0.0);
        if (act != OPS_ACT_NONE) bound = 1.13 * bound + 2e-7 * fabs(want[i]);
        if (c->adds) bound += U * fabs(result);
        bound += linear_storage_bound(c, want[i]);
        EXPECT_NEAR((double)got[i], result, bound, "linear%s %s %s seed %llu %lldx%lldx%lld %s of %s act %d [%lld]", c->is_few ? "_few" : "",
                    ops_product_name(c->product), ops_device_text(ctx), (unsigned long long)seed, (long long)c->rows, (long long)c->n_in,
                    (long long)c->n_out, dtype_name(c->dtype), dtype_name(c->activations), (int)c->act, (long long)i);
    }
    ops_matrix_close(ctx, &m);
    guarded_close(&gx), guarded_close(&go), guarded_close(&ga);
    free(add), free(x), free(w_any), free(b_any), free(w), free(b), free(stored_w), free(stored_b);
    free(want), free(size), free(got);
}

static void linear_equals_the_double_sum(void **state) {
    (void)state;
    static const int64_t sizes[][3] = {
        {1, 1, 1},    {1, 7, 31},    {1, 257, 33},  {1, 300, 290}, {2, 256, 32},  {3, 15, 65},
        {5, 17, 16},  {6, 513, 47},  {7, 96, 97},   {12, 64, 64},  {13, 31, 129}, {25, 255, 48},
        {37, 259, 15}, {73, 72, 100}, {389, 33, 70}, {800, 40, 35}, {1, 1152, 5200}, {4, 2560, 300},
        {9, 200, 72}, {20, 64, 64}, {40, 128, 8}, {70, 328, 136}, {2, 648, 8456},
    };
    static const ops_dtype dtypes[] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16};
    for (int i = 0; i < contexts.n; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
            for (int d = 0; d < 3; d++) {
                linear_case c = {.rows = sizes[s][0], .n_in = sizes[s][1], .n_out = sizes[s][2], .dtype = dtypes[d],
                                 .bias_dtype = dtypes[(s + (size_t)d) % 3], .has_bias = (s + (size_t)d) % 4 != 3,
                                 .act = (ops_act)((s + (size_t)d) % OPS_ACT_COUNT), .activations = contexts.dtype[i]};
                bool is_large = c.n_in * c.n_out > 100000;
                if (!test_device_is_cpu() && is_large && dtypes[d] != contexts.dtype[i]) continue; /* it takes its time */
                check_linear(contexts.ctx[i], &c, 1000 + s);
                c.is_few = true;
                c.is_f32_out = d == 1;
                check_linear(contexts.ctx[i], &c, 2000 + s);
                if (test_device_is_cpu()) continue; /* the others are in ops.products */
                c.product = OPS_PRODUCT_FP8;
                check_linear(contexts.ctx[i], &c, 5000 + s);
                c.is_few = false;
                check_linear(contexts.ctx[i], &c, 6000 + s);
            }
}

/* Columns of wider rows in, an activation for the outputs from some on, something added: alone and together. */
static void linear_takes_views_and_ends_as_told(void **state) {
    (void)state;
    static const int64_t sizes[][3] = {{1, 40, 100}, {3, 64, 96}, {9, 257, 47}, {30, 96, 200}, {70, 328, 136}, {400, 24, 33}};
    static const int64_t margins[][2] = {{0, 0}, {8, 0}, {0, 16}, {24, 8}, {3, 1}};
    static const ops_dtype dtypes[] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16};
    for (int i = 0; i < contexts.n; i++)
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++)
            for (size_t k = 0; k < sizeof margins / sizeof margins[0]; k++) {
                linear_case c = {.rows = sizes[s][0], .n_in = sizes[s][1], .n_out = sizes[s][2], .dtype = contexts.dtype[i],
                                 .bias_dtype = OPS_DTYPE_F16, .has_bias = k != 3, .activations = contexts.dtype[i],
                                 .before = margins[k][0], .after = margins[k][1], .is_few = (s + k) % 2 == 1};
                if (test_device_is_cpu()) c.dtype = dtypes[(s + k) % 3];
                int64_t from[] = {8, 31, 32, 40, c.n_out, (s + k) % 2 ? 0 : 16};
                int64_t act_from = from[(s + 2 * k) % (sizeof from / sizeof *from)];
                if (act_from > c.n_out) act_from = c.n_out;
                for (int fp8 = 0; fp8 < 2; fp8++) {
                    c.product = fp8 ? OPS_PRODUCT_FP8 : OPS_PRODUCT_F32;
                    c.adds = true;
                    c.act = OPS_ACT_NONE;
                    c.act_from = 0;
                    check_linear(contexts.ctx[i], &c, 3000 + s);
                    c.adds = false;
                    c.act = k % 2 ? OPS_ACT_GELU_TANH : OPS_ACT_SILU;
                    c.act_from = act_from;
                    check_linear(contexts.ctx[i], &c, 4000 + s);
                }
            }
}

/* ---- attention ----------------------------------------------------------------------------- */

/* Rounding of q.k reaches the weights through exp: |ds| <= (hd + 2) 2u sum|q k| scale, and moves each
 * output by at most twice that times sum p |v|. The sums over keys add (n + 20) 2u of the same. */
static double attention_bound(int64_t n_keys, int64_t head_dim, double scale, double size, ops_dtype dtype, bool may_round) {
    double ds = (double)(head_dim + 2) * 2 * U * (double)head_dim * scale; /* |q|, |k| <= 1 */
    /* halves: each weight may be rounded before it meets its value, and the result is */
    double rounded = may_round ? 0x1p-8 * size : 0; /* weights, to bf16; all else is in bf16 already */
    return (2 * ds + ((double)n_keys + 30) * 2 * U) * size + 2 * storage_error(dtype, size) + rounded + 1e-30;
}

/* Some cases go through views: with rows that begin at multiples of 16 bytes, and without. */
static int64_t margin_of(int64_t i) { return i % 3 == 0 ? 0 : i % 3 == 1 ? 8 : 5; }

/* spread: how many times as far apart as in a network the scores are; with 60, most weights vanish in f32. */
static void check_attention(ops_ctx *ctx, int64_t groups, int64_t length, int heads, int kv_heads,
                            int64_t hd, bool in_place, ops_dtype dtype, bool may_round, float spread) {
    rng r = rng_make(77);
    int64_t rows = groups * length, qw = heads * hd, kw = kv_heads * hd;
    float *q = random_floats(&r, rows * qw, 1.0f), *k = random_floats(&r, rows * kw, 1.0f);
    float *v = random_floats(&r, rows * kw, 5.0f);
    ops_dtype kept = may_round ? OPS_DTYPE_BF16 : dtype;
    round_floats(q, rows * qw, kept), round_floats(k, rows * kw, kept), round_floats(v, rows * kw, kept);
    const int64_t margin = margin_of(length); /* 0: no views */
    guarded gq = guarded_columns(ctx, dtype, rows, qw, margin, 2 * margin, q);
    guarded gk = guarded_columns(ctx, dtype, rows, kw, 0, margin, k);
    guarded gv = guarded_columns(ctx, dtype, rows, kw, margin, 0, v);
    guarded go = guarded_columns(ctx, dtype, rows, qw, 0, margin, NULL);
    ops_tensor *out = in_place ? &gq.t : &go.t;
    ops_attention_params p = {.n_heads = heads, .n_kv_heads = kv_heads,
                              .scale = spread * (float)(1.0 / sqrt((double)hd)), .may_round = may_round};
    assert_int_equal(ops_attention(ctx, out, &gq.t, &gk.t, &gv.t, length, &p), STATUS_OK);
    assert_true(guarded_intact(&go) && guarded_intact(&gq));
    float *got = guarded_values(in_place ? &gq : &go);
    int64_t *at = test_alloc((size_t)length, sizeof *at);
    double *want = test_alloc((size_t)hd, sizeof *want), *size = test_alloc((size_t)hd, sizeof *size);
    for (int64_t row = 0; row < rows; row += 1 + row / 40) /* later rows thinned out: it is slow */
        for (int h = 0; h < heads; h++) {
            for (int64_t j = 0; j < length; j++)
                at[j] = (row / length * length + j) * kw + h / (heads / kv_heads) * hd;
            ref_attention_row(want, size, q + row * qw + h * hd, k, v, at, length, hd,
                              (double)p.scale);
            for (int64_t d = 0; d < hd; d++)
                EXPECT_NEAR((double)got[row * qw + h * hd + d], want[d],
                            attention_bound(length, hd, (double)p.scale, size[d], dtype, may_round),
                            "attention%s %s %s %lldx%lld heads %d/%d hd %lld spread %g row %lld head %d dim %lld",
                            may_round ? " rounded" : "", ops_device_text(ctx), dtype_name(dtype), (long long)groups, (long long)length, heads,
                            kv_heads, (long long)hd, (double)spread, (long long)row, h, (long long)d);
        }
    guarded_close(&gq), guarded_close(&gk), guarded_close(&gv), guarded_close(&go);
    free(q), free(k), free(v), free(at), free(want), free(size), free(got);
}

static void check_attentions(ops_ctx *ctx, ops_dtype dtype, bool may_round) {
    check_attention(ctx, 1, 1, 1, 1, 1, false, dtype, may_round, 1.0f);
    check_attention(ctx, 2, 5, 3, 3, 7, false, dtype, may_round, 1.0f);
    check_attention(ctx, 3, 64, 2, 1, 16, true, dtype, may_round, 1.0f);
    check_attention(ctx, 2, 65, 3, 1, 24, false, dtype, may_round, 1.0f);
    check_attention(ctx, 1, 130, 2, 2, 72, true, dtype, may_round, 1.0f);
    check_attention(ctx, 2, 200, 4, 2, 80, false, dtype, may_round, 1.0f);
    check_attention(ctx, 1, 63, 5, 5, 48, false, dtype, may_round, 1.0f);
    check_attention(ctx, 1, 33, 1, 1, 300, false, dtype, may_round, 1.0f);
    check_attention(ctx, 1, 70, 2, 1, 128, false, dtype, may_round, 1.0f);
    check_attention(ctx, 2, 257, 1, 1, 64, true, dtype, may_round, 1.0f);
    check_attention(ctx, 1, 140, 2, 1, 256, false, dtype, may_round, 1.0f);
    check_attention(ctx, 1, 150, 2, 2, 72, false, dtype, may_round, 60.0f);
    check_attention(ctx, 2, 400, 1, 1, 8, false, dtype, may_round, 1.0f); /* more rows than one task has, on the CPU */
    check_attention(ctx, 1, 390, 8, 2, 8, true, dtype, may_round, 1.0f);
}

static void attention_equals_the_double_softmax(void **state) {
    (void)state;
    for (int i = 0; i < contexts.n; i++) {
        check_attentions(contexts.ctx[i], contexts.dtype[i], false);
        if (contexts.dtype[i] != OPS_DTYPE_F16) check_attentions(contexts.ctx[i], contexts.dtype[i], true);
    }
}

static void check_paged_in(ops_ctx *ctx, int64_t block_tokens, int heads, int kv_heads, int64_t hd, int window,
                           ops_dtype dtype, ops_dtype cache, bool is_few, bool may_round) {
    enum { SEQS = 4, LENGTH = 150 };
    rng r = rng_make(78);
    int64_t qw = heads * hd, kw = kv_heads * hd;
    int64_t max_blocks = (LENGTH + block_tokens - 1) / block_tokens + 1;
    int64_t n_blocks = SEQS * max_blocks, n_slots = n_blocks * block_tokens;
    float *k = random_floats(&r, n_slots * kw, 1.0f), *v = random_floats(&r, n_slots * kw, 4.0f);
    round_floats(k, n_slots * kw, cache), round_floats(v, n_slots * kw, cache);
    if (may_round) round_floats(k, n_slots * kw, OPS_DTYPE_BF16), round_floats(v, n_slots * kw, OPS_DTYPE_BF16);
    int32_t *tables = test_alloc((size_t)(SEQS * max_blocks), sizeof *tables);
    for (int64_t i = 0; i < n_blocks; i++) tables[i] = (int32_t)((i * 7 + 3) % n_blocks);
    if (n_blocks % 7 == 0)
        for (int64_t i = 0; i < n_blocks; i++) tables[i] = (int32_t)(n_blocks - 1 - i);
    for (int64_t b = 0; b < (LENGTH / 2) / block_tokens; b++) /* sequence 2 shares 1's beginning */
        tables[2 * max_blocks + b] = tables[max_blocks + b];
    tables[3 * max_blocks + max_blocks - 1] = -1; /* not used, not looked at */
    static const int32_t row_seq[] = {1, 0, 0, 0, 2, 3, 1, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3};
    static const int32_t row_pos[] = {149, 0,  1,  2,  120, 64, 63, 100, 74, 127,
                                      128, 60, 61, 62, 63,  64, 65, 66,  67};
    enum { ROWS = sizeof row_seq / sizeof row_seq[0] };
    float *q = random_floats(&r, ROWS * qw, 1.0f);
    round_floats(q, ROWS * qw, dtype);
    if (may_round) round_floats(q, ROWS * qw, OPS_DTYPE_BF16);
    guarded gq = guarded_columns(ctx, dtype, ROWS, qw, margin_of(block_tokens), 0, q);
    guarded go = guarded_columns(ctx, dtype, ROWS, qw, 0, margin_of(block_tokens + 1), NULL);
    guarded gk = guarded_floats(ctx, cache, 4, (int64_t[]){n_blocks, kv_heads, block_tokens, hd}, k);
    guarded gv = guarded_floats(ctx, cache, 4, (int64_t[]){n_blocks, kv_heads, block_tokens, hd}, v);
    guarded gt = guarded_with(ctx, OPS_DTYPE_I32, 2, (int64_t[]){SEQS, max_blocks}, tables);
    guarded gs = guarded_with(ctx, OPS_DTYPE_I32, 1, (int64_t[]){ROWS}, row_seq);
    guarded gp = guarded_with(ctx, OPS_DTYPE_I32, 1, (int64_t[]){ROWS}, row_pos);
    ops_attention_params p = {.n_heads = heads, .n_kv_heads = kv_heads, .scale = 0.21f, .window = window, .is_few = is_few,
                              .may_round = may_round};
    assert_int_equal(
        ops_attention_paged(ctx, &go.t, &gq.t, &gk.t, &gv.t, &gt.t, &gs.t, &gp.t, &p), STATUS_OK);
    assert_true(guarded_intact(&go));
    float *got = guarded_values(&go);
    int64_t at[LENGTH];
    double *want = test_alloc((size_t)hd, sizeof *want), *size = test_alloc((size_t)hd, sizeof *size);
    for (int row = 0; row < ROWS; row++)
        for (int h = 0; h < heads; h++) {
            int64_t first = window && row_pos[row] >= window ? row_pos[row] + 1 - window : 0;
            int64_t n_keys = row_pos[row] + 1 - first;
            for (int64_t j = 0; j <= row_pos[row]; j++)
                at[j] = ((tables[row_seq[row] * max_blocks + j / block_tokens] * kv_heads + h / (heads / kv_heads)) *
                         block_tokens + j % block_tokens) * hd;
            ref_attention_row(want, size, q + row * qw + h * hd, k, v, at + first, n_keys, hd, (double)p.scale);
            for (int64_t d = 0; d < hd; d++)
                EXPECT_NEAR((double)got[row * qw + h * hd + d], want[d],
                            attention_bound(n_keys, hd, (double)p.scale, size[d], dtype, may_round),
                            "paged%s %s %s of %s, %s, block %lld heads %d/%d hd %lld window %d row %d head %d dim %lld",
                            may_round ? " rounded" : "", ops_device_text(ctx), dtype_name(dtype), dtype_name(cache), is_few ? "few" : "many", (long long)block_tokens, heads,
                            kv_heads, (long long)hd, window, row, h, (long long)d);
        }
    guarded_close(&gq), guarded_close(&go), guarded_close(&gk), guarded_close(&gv);
    guarded_close(&gt), guarded_close(&gs), guarded_close(&gp);
    free(k), free(v), free(tables), free(q), free(want), free(size), free(got);
}

static void check_paged(ops_ctx *ctx, int64_t block_tokens, int heads, int kv_heads, int64_t hd, int window,
                        ops_dtype dtype) {
    for (size_t i = 0; i < 2 * N_CACHE_DTYPES; i++)
        if (ops_takes_cache(ctx, dtype, cache_dtypes[i / 2]))
            check_paged_in(ctx, block_tokens, heads, kv_heads, hd, window, dtype, cache_dtypes[i / 2], i % 2 == 0, false);
    if (test_device_is_cpu()) /* of every width; rounding is for many rows, and says nothing of others */
        for (int is_few = 0; is_few < 2; is_few++)
            check_paged_in(ctx, block_tokens, heads, kv_heads, hd, window, dtype, OPS_DTYPE_F32, is_few, true);
}

static void paged_attention_equals_the_double_softmax(void **state) {
    (void)state;
    static const int64_t blocks[] = {1, 5, 16, 32, 64, 100, 256};
    for (int i = 0; i < contexts.n; i++)
        for (size_t b = 0; b < sizeof blocks / sizeof blocks[0]; b++) {
            check_paged(contexts.ctx[i], blocks[b], 2, 2, 80, 0, contexts.dtype[i]);
            check_paged(contexts.ctx[i], blocks[b], 3, 1, 17, 0, contexts.dtype[i]);
            static const int64_t heads[] = {64, 72, 96, 128, 256}; /* a device has a kernel for each */
            for (size_t h = 0; blocks[b] == 16 && h < sizeof heads / sizeof heads[0]; h++)
                check_paged(contexts.ctx[i], blocks[b], 4, 1, heads[h], 0, contexts.dtype[i]);
            if (blocks[b] == 16) check_paged(contexts.ctx[i], blocks[b], 20, 1, 64, 0, contexts.dtype[i]); /* more than a warp takes */
        }
}

static void a_window_hides_the_keys_before_it(void **state) {
    (void)state;
    static const int windows[] = {1, 2, 63, 64, 65, 75, 128, 149, 150, 151, 100000};
    for (int i = 0; i < contexts.n; i++)
        for (size_t k = 0; k < sizeof windows / sizeof windows[0]; k++) {
            check_paged(contexts.ctx[i], 16, 2, 1, 80, windows[k], contexts.dtype[i]);
            check_paged(contexts.ctx[i], 100, 1, 1, 17, windows[k], contexts.dtype[i]);
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
        cmocka_unit_test(linear_equals_the_double_sum),
        cmocka_unit_test(linear_takes_views_and_ends_as_told),
        cmocka_unit_test(attention_equals_the_double_softmax),
        cmocka_unit_test(paged_attention_equals_the_double_softmax),
        cmocka_unit_test(a_window_hides_the_keys_before_it),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
