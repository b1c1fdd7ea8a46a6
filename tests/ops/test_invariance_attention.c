/* Attention of a row gives the same bits however rows are cut into calls, whoever its neighbours are, however many threads
 * work, and however a cache is cut into blocks. Compared bit by bit, per variant. */
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

#include "tests/ops/invariance.h"

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
        cmocka_unit_test(paged_attention_rows_do_not_depend_on_cut_threads_or_blocks),
        cmocka_unit_test(long_rows_do_not_depend_on_how_their_keys_are_shared_out),
        cmocka_unit_test(rows_that_share_blocks_are_as_if_alone),
        cmocka_unit_test(paged_attention_never_touches_keys_after_the_row),
        cmocka_unit_test(one_value_that_is_no_number_reaches_only_rows_that_see_it),
        cmocka_unit_test(full_attention_groups_do_not_depend_on_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
