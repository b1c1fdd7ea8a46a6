/* The scheduler's promises: the same bytes in any company, one prefill of a shared image, waiting instead
 * of dying. The network is the golden case with five heads of 80, so answers can also be compared with
 * those of transformers. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "lm_node/kv_cache.h"
#include "lm_node/lm_decoder.h"
#include "lm_node/prompt.h"
#include "lm_node/scheduler.h"
#include "model/model.h"
#include "tests/lm_node/golden.h"
#include "tests/support/support.h"

/* The device this program tests the scheduler on: its tests are built once for each there is. */
#ifndef TEST_DEVICE
#define TEST_DEVICE "cpu"
#endif

#define ADAPTERS   TEST_DATA_DIR "/adapters"
#define ASKS       21
#define TOKENS_MAX 64
#define STEPS_MAX  20000

/* ---- the world of a test ------------------------------------------------------------------- */

static golden *g;
static model *m;
static float *features; /* [GOLDEN_IMAGES, n_tokens, hidden] */
static size_t image_values;

/* What came out of one question. */
typedef struct {
    int n;
    sampled_token tokens[TOKENS_MAX];
    bool is_finished, prefix_cached;
    scheduler_finish reason;
    err why;
    int stop_after; /* the callback asks to stop after so many tokens; 0: never */
    int turn;       /* of its last token, among those of all questions */
} record;

typedef struct {
    int32_t ids[400];
    int n_ids;
    int image; /* of several the first, the others follow it; -1: none */
    int adapter;
    sampler_params sampling;
    int max_new;
} ask;

typedef struct {
    ops_ctx *ctx;
    scheduler *s;
} engine;

typedef struct {
    int n_threads, chunk_rows, max_questions;
    int kv_blocks;
} engine_settings;

static const engine_settings usual = {
    .n_threads = 2, .chunk_rows = 256, .max_questions = 16, .kv_blocks = 600};

static int n_turns;

static bool on_token(void *user, int question_idx, const sampled_token *t) {
    record *r = (record *)user + question_idx;
    assert_false(r->is_finished);
    assert_true(r->n < TOKENS_MAX);
    r->tokens[r->n++] = *t;
    r->turn = n_turns++;
    return r->n == r->stop_after;
}

static void on_finished(void *user, int question_idx, scheduler_finish reason, bool prefix_cached,
                        const err *why) {
    record *r = (record *)user + question_idx;
    assert_false(r->is_finished);
    r->is_finished = true;
    r->reason = reason;
    r->prefix_cached = prefix_cached;
    if (why) r->why = *why;
}

static engine open_engine(engine_settings wanted) {
    engine en;
    err e;
    ops_settings o = {.device = TEST_DEVICE, .n_threads = wanted.n_threads};
    if (ops_open(&en.ctx, &o, &e) != STATUS_OK) fail_msg("%s", e.text);
    scheduler_settings settings = {
        .kv_bytes = (uint64_t)wanted.kv_blocks * lm_decoder_block_bytes(en.ctx, m),
        .max_questions = wanted.max_questions,
        .chunk_rows = wanted.chunk_rows};
    const scheduler_callbacks callbacks = {on_token, on_finished};
    if (scheduler_open(&en.s, en.ctx, m, &settings, &callbacks, &e) != STATUS_OK) fail_msg("%s", e.text);
    return en;
}

static void close_engine(engine *en) {
    scheduler_close(&en->s);
    ops_close(&en->ctx);
}

static scheduler_question question_of(const ask *a, record *records, int idx) {
    scheduler_question q = {.user = records,
                            .question_idx = idx,
                            .adapter = a->adapter,
                            .ids = a->ids,
                            .n_ids = a->n_ids,
                            .sampling = a->sampling,
                            .max_new_tokens = a->max_new};
    if (a->image < 0) return q;
    q.image.sha256[0] = (unsigned char)(a->image + 1);
    for (int i = 0; i < a->n_ids; i++)
        if (a->ids[i] == PROMPT_IMAGE_ID) q.image.sha256[1]++;
    q.features = features + (size_t)a->image * image_values;
    return q;
}

static status try_submit(engine *en, const ask *a, record *records, int idx, err *e) {
    scheduler_question q = question_of(a, records, idx);
    return scheduler_submit(en->s, &q, e);
}

static void submit(engine *en, const ask *a, record *records, int idx) {
    err e;
    if (try_submit(en, a, records, idx, &e) != STATUS_OK) fail_msg("%s", e.text);
}

static void run_to_end(engine *en) {
    for (int i = 0; i < STEPS_MAX; i++)
        if (!scheduler_step(en->s)) return;
    fail_msg("the scheduler did not finish in %d steps", STEPS_MAX);
}

/* ---- what is asked ------------------------------------------------------------------------- */

static void add_words(ask *a, rng *r, int n) {
    int n_vocab = model_get_config(m)->decoder.n_vocab_in;
    for (int i = 0; i < n; i++) a->ids[a->n_ids++] = (int32_t)rng_below(r, (uint64_t)n_vocab);
}

/* Images, prefixes, lengths and ways of sampling in every mixture; the same list every time. */
static void make_asks(ask asks[ASKS]) {
    rng r = rng_make(7);
    for (int i = 0; i < ASKS; i++) {
        ask *a = &asks[i];
        *a = (ask){.image = i % 5 == 4 ? -1 : i % 3,
                   .adapter = i % (1 + model_n_served(m)),
                   .max_new = 1 + (int)rng_below(&r, 24)};
        if (i >= ASKS - 4) { /* three images in one prefix, and two in another */
            rng same = rng_make((uint64_t)(i % 2));
            a->image = i % 2;
            add_words(a, &same, i % 2 ? 0 : 5);
            for (int k = a->image; k < 3; k++) {
                a->ids[a->n_ids++] = PROMPT_IMAGE_ID;
                if (k == 0) add_words(a, &same, 3);
            }
        } else if (a->image >= 0) {
            rng same = rng_make((uint64_t)(i % 2)); /* two prefixes in use */
            add_words(a, &same, i % 2 ? 13 : 7);    /* 13 + 9 rows: a partial block; 7 + 9: a full one */
            a->ids[a->n_ids++] = PROMPT_IMAGE_ID;
        }
        add_words(a, &r, 1 + (int)rng_below(&r, i == 8 ? 300 : 40));
        a->sampling.n_logprobs = i % 4;
        a->sampling.wants_logprob = i % 3 == 0;
        if (i % 2) continue;
        a->sampling.temperature = 1.5f;
        a->sampling.top_p = i % 3 ? 0.9f : 0.0f;
        a->sampling.top_k = i % 5 ? 0 : 20;
        a->sampling.seed = 11;
        a->sampling.stream = (uint64_t)i;
    }
}

static void assert_same(const record *got, const record *want, int i) {
    assert_true(got->is_finished);
    if (got->reason != want->reason || got->n != want->n ||
        memcmp(got->tokens, want->tokens, (size_t)want->n * sizeof *want->tokens) != 0)
        fail_msg("question %d: %d tokens and reason %d, alone %d and %d, or other bytes", i, got->n,
                 (int)got->reason, want->n, (int)want->reason);
}

/* Each question in an engine of its own: what all others are compared with. */
static record *alone;
static ask asks[ASKS];

static void ask_all_alone(void) {
    for (int i = 0; i < ASKS; i++) {
        engine_settings one = usual;
        one.n_threads = 1;
        one.max_questions = 1;
        engine en = open_engine(one);
        submit(&en, &asks[i], alone, i);
        run_to_end(&en);
        assert_true(alone[i].is_finished);
        assert_int_not_equal(alone[i].reason, SCHEDULER_ERROR);
        close_engine(&en);
    }
}

static record *new_records(void) {
    record *records = calloc(ASKS, sizeof *records);
    assert_non_null(records);
    return records;
}

static void check_together(engine_settings settings, uint64_t shuffle_seed) {
    int order[ASKS];
    rng r = rng_make(shuffle_seed);
    for (int i = 0; i < ASKS; i++) order[i] = i;
    for (int i = ASKS - 1; i > 0 && shuffle_seed; i--) {
        int k = (int)rng_below(&r, (uint64_t)i + 1), kept = order[i];
        order[i] = order[k];
        order[k] = kept;
    }
    record *records = new_records();
    engine en = open_engine(settings);
    for (int i = 0; i < ASKS; i++) submit(&en, &asks[order[i]], records, order[i]);
    run_to_end(&en);
    for (int i = 0; i < ASKS; i++) assert_same(&records[i], &alone[i], i);
    close_engine(&en);
    free(records);
}

/* ---- the same bytes ------------------------------------------------------------------------ */

static void a_question_is_answered_as_by_transformers(void **state) {
    (void)state;
    const int prompts[] = {0, 1, 2, 3, 4, 5, 6}; /* 4 has three images */
    engine en = open_engine(usual);
    for (size_t k = 0; k < sizeof prompts / sizeof prompts[0]; k++) {
        golden_tensor ids = golden_get(g, "prompt.%d.ids", prompts[k]);
        golden_tensor want = golden_get(g, "prompt.%d.greedy", prompts[k]);
        ask a = {.n_ids = (int)ids.dims[0], .image = 0, .max_new = (int)want.dims[0]};
        memcpy(a.ids, ids.i32, (size_t)a.n_ids * sizeof *a.ids);
        record r = {0};
        submit(&en, &a, &r, 0);
        run_to_end(&en);
        int n = 0;
        int32_t eos = tokenizer_eos_id(model_get_tokenizer(m));
        while (n < a.max_new && (n == 0 || want.i32[n - 1] != eos)) n++;
        assert_int_equal(r.n, n);
        for (int i = 0; i < n; i++) assert_int_equal(r.tokens[i].id, want.i32[i]);
    }
    close_engine(&en);
}

/* The same ids and image, with each adapter and with none: a prefix is shared with none of the others. */
static void each_adapter_gives_answers_of_its_own(void **state) {
    (void)state;
    engine en = open_engine(usual);
    record *records = new_records();
    for (int i = 0; i <= model_n_served(m); i++) {
        ask a = asks[0];
        a.adapter = i;
        a.sampling.wants_logprob = true;
        submit(&en, &a, records, i);
    }
    run_to_end(&en);
    for (int i = 0; i <= model_n_served(m); i++) {
        assert_true(records[i].is_finished && !records[i].prefix_cached && records[i].n > 0);
        for (int k = 0; k < i; k++)
            assert_true(records[i].tokens[0].logprob != records[k].tokens[0].logprob);
    }
    close_engine(&en);
    free(records);
}

static void the_company_of_others_changes_no_byte(void **state) {
    (void)state;
    check_together(usual, 0);
}

static void the_order_of_submission_changes_no_byte(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++) check_together(usual, seed);
}

static void the_size_of_prefill_chunks_changes_no_byte(void **state) {
    (void)state;
    const int sizes[] = {1, 7, 64};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        engine_settings s = usual;
        s.chunk_rows = sizes[i];
        check_together(s, i);
    }
}

static void the_number_of_threads_changes_no_byte(void **state) {
    (void)state;
    for (int n = 1; n <= 4; n++) {
        engine_settings s = usual;
        s.n_threads = n;
        check_together(s, 0);
    }
}

static void scarce_memory_and_evictions_change_no_byte(void **state) {
    (void)state;
    for (int n_blocks = 24; n_blocks <= 40; n_blocks += 4) {
        engine_settings s = usual;
        s.kv_blocks = n_blocks;
        check_together(s, (uint64_t)n_blocks);
    }
}

static void a_prefix_shared_or_not_changes_no_byte(void **state) {
    (void)state;
    record *records = new_records();
    engine en = open_engine(usual);
    for (int i = 0; i < ASKS; i++) {
        err e;
        scheduler_question q = question_of(&asks[i], records, i);
        q.image.flags = (uint32_t)i; /* another image to the scheduler, the same features */
        assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_OK);
    }
    run_to_end(&en);
    assert_int_equal(scheduler_read_counters(en.s).prefix_tokens_reused, 0);
    for (int i = 0; i < ASKS; i++) assert_same(&records[i], &alone[i], i);
    close_engine(&en);
    free(records);
}

static void a_warm_engine_changes_no_byte(void **state) {
    (void)state;
    engine en = open_engine(usual);
    for (int round = 0; round < 2; round++) {
        record *records = new_records();
        for (int i = 0; i < ASKS; i++) submit(&en, &asks[i], records, i);
        run_to_end(&en);
        for (int i = 0; i < ASKS; i++) {
            assert_same(&records[i], &alone[i], i);
            if (round == 1) assert_int_equal(records[i].prefix_cached, asks[i].image >= 0);
        }
        free(records);
    }
    close_engine(&en);
}

static void cancelled_neighbours_change_no_byte(void **state) {
    (void)state;
    for (int n_steps = 0; n_steps < 12; n_steps++) {
        record *records = new_records(), *dropped = new_records();
        engine_settings s = usual;
        s.chunk_rows = 32;
        s.max_questions = 8;
        engine en = open_engine(s);
        for (int i = 0; i < ASKS; i++) {
            submit(&en, &asks[i], dropped, i);
            submit(&en, &asks[ASKS - 1 - i], records, ASKS - 1 - i);
        }
        for (int k = 0; k < n_steps; k++) assert_true(scheduler_step(en.s));
        scheduler_cancel(en.s, dropped);
        record *kept = new_records();
        memcpy(kept, dropped, ASKS * sizeof *kept);
        run_to_end(&en);
        assert_memory_equal(kept, dropped, ASKS * sizeof *kept); /* not a word after cancelling */
        for (int i = 0; i < ASKS; i++) assert_same(&records[i], &alone[i], i);
        close_engine(&en);
        free(records);
        free(dropped);
        free(kept);
    }
}

static void features_that_are_no_numbers_fail_their_own_questions_only(void **state) {
    (void)state;
    float *broken = malloc(image_values * sizeof *broken);
    assert_non_null(broken);
    for (size_t i = 0; i < image_values; i++) broken[i] = NAN;
    engine_settings s = usual;
    s.kv_blocks = 40; /* so that blocks full of NaN are used again */
    engine en = open_engine(s);
    record *records = new_records();
    record bad[(ASKS + 4) / 5] = {{0}};
    for (int i = 0; i < ASKS; i++) {
        if (i % 5 == 0) {
            err e;
            scheduler_question q = question_of(&asks[1], bad, i / 5);
            q.features = broken;
            q.image.sha256[0] = 200;
            assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_OK);
        }
        submit(&en, &asks[i], records, i);
    }
    run_to_end(&en);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_true(bad[i].is_finished);
        assert_int_equal(bad[i].reason, SCHEDULER_ERROR);
        assert_int_equal(bad[i].why.code, STATUS_INTERNAL);
    }
    for (int i = 0; i < ASKS; i++) assert_same(&records[i], &alone[i], i);
    scheduler_question q = question_of(&asks[1], bad, 0);
    q.image.sha256[0] = 200;
    assert_false(scheduler_has_prefix(en.s, &q)); /* nobody shares it again */
    close_engine(&en);
    free(records);
    free(broken);
}

/* ---- work done once ------------------------------------------------------------------------ */

static ask question_on(int image, uint64_t seed, int n_own, int max_new) {
    ask a = {.image = image, .max_new = max_new};
    rng same = rng_make(3), own = rng_make(seed);
    add_words(&a, &same, 13);
    a.ids[a.n_ids++] = PROMPT_IMAGE_ID;
    add_words(&a, &own, n_own);
    return a;
}

static int prefix_rows(void) { return 13 + model_get_config(m)->tower.n_tokens; }

static void ten_questions_about_one_image_compute_its_prefix_once(void **state) {
    (void)state;
    engine en = open_engine(usual);
    record *records = new_records();
    for (int i = 0; i < 10; i++) {
        ask a = question_on(0, 100 + (uint64_t)i, 5, 3);
        submit(&en, &a, records, i);
    }
    run_to_end(&en);
    scheduler_counters c = scheduler_read_counters(en.s);
    assert_int_equal(c.prefill_tokens, prefix_rows() + 10 * 5);
    assert_int_equal(c.prefix_tokens_reused, 9 * prefix_rows());
    assert_int_equal(c.prefixes, 1);
    int n_cached = 0;
    for (int i = 0; i < 10; i++) n_cached += records[i].prefix_cached;
    assert_int_equal(n_cached, 9);
    /* What stays is the prefix, and nothing else. */
    assert_int_equal(c.kv_blocks_in_use, kv_blocks_for(prefix_rows()));
    assert_int_equal(c.n_running + c.n_waiting, 0);
    close_engine(&en);
    free(records);
}

static void questions_on_one_image_decode_beside_each_other(void **state) {
    (void)state;
    engine en = open_engine(usual);
    record r[4] = {{0}};
    for (int i = 0; i < 4; i++) {
        ask a = question_on(i % 2, 30 + (uint64_t)i, 5, 20);
        submit(&en, &a, r, i);
    }
    for (int step = 0; step < STEPS_MAX && !(r[0].n && r[1].n && r[2].n && r[3].n); step++)
        assert_true(scheduler_step(en.s));
    assert_true(scheduler_step(en.s));
    for (int i = 0; i < 4; i++) assert_true(!r[i].is_finished && r[i].turn >= n_turns - 4);
    assert_int_equal(abs(r[0].turn - r[2].turn), 1);
    assert_int_equal(abs(r[1].turn - r[3].turn), 1);
    close_engine(&en);
}

static void a_resident_prefix_needs_no_features(void **state) {
    (void)state;
    engine en = open_engine(usual);
    record r[2] = {{0}};
    err e;
    ask a = question_on(1, 5, 4, 3);
    scheduler_question q = question_of(&a, r, 0);
    q.features = NULL;
    assert_false(scheduler_has_prefix(en.s, &q));
    assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_NOT_FOUND);
    submit(&en, &a, r, 0);
    run_to_end(&en);
    assert_true(scheduler_has_prefix(en.s, &q));
    q.question_idx = 1;
    assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_OK);
    run_to_end(&en);
    assert_false(r[0].prefix_cached);
    assert_true(r[1].prefix_cached);
    assert_memory_equal(r[0].tokens, r[1].tokens, sizeof r[0].tokens);
    close_engine(&en);
}

/* A question whose prefix has n_before words before its image, and all that is known about its tokens. */
static ask question_behind(int n_before, int image, uint64_t seed, int n_own) {
    ask a = {.image = image, .max_new = 6, .sampling.n_logprobs = 3};
    rng same = rng_make(3), own = rng_make(seed);
    add_words(&a, &same, n_before);
    a.ids[a.n_ids++] = PROMPT_IMAGE_ID;
    add_words(&a, &own, n_own);
    return a;
}

/* How many steps it takes until somebody has a token. */
static int steps_until_token(engine *en, const record *r) {
    for (int n = 1; n < STEPS_MAX; n++) {
        assert_true(scheduler_step(en->s));
        if (r->n > 0) return n;
    }
    fail_msg("no token in %d steps", STEPS_MAX);
    return 0;
}

/* Wherever in a block the prefix ends, and with not a block more than promised. In steps no longer than the prefix the
 * question comes behind it as it always does, with a copy of its last block. */
static void the_first_question_on_an_image_has_its_token_after_one_step(void **state) {
    (void)state;
    const int n_own[] = {1, 5, 40}, n_image = model_get_config(m)->tower.n_tokens;
    for (int n_before = 0; n_before < KV_BLOCK_TOKENS; n_before++)
        for (size_t k = 0; k < sizeof n_own / sizeof n_own[0]; k++) {
            const int n_prefix = n_before + n_image;
            ask a = question_behind(n_before, 0, k, n_own[k]);
            engine_settings s = usual;
            s.kv_blocks = kv_blocks_for(n_prefix + n_own[k] + a.max_new) + 1;
            engine one = open_engine(s);
            s.chunk_rows = n_prefix;
            engine two = open_engine(s);
            record r[2] = {{0}};
            submit(&one, &a, r, 0);
            submit(&two, &a, r, 1);
            assert_int_equal(steps_until_token(&one, &r[0]), 1);
            assert_int_equal(steps_until_token(&two, &r[1]), 1 + (n_own[k] + n_prefix - 1) / n_prefix);
            run_to_end(&one);
            run_to_end(&two);
            assert_same(&r[0], &r[1], n_before);
            assert_false(r[0].prefix_cached);
            assert_int_equal(scheduler_read_counters(one.s).prefill_tokens, n_prefix + n_own[k]);
            close_engine(&one);
            close_engine(&two);
        }
}

/* Some on one image, some on another, one on none; the prefix that stays is as good as one that was computed by itself. */
static void questions_that_wait_together_start_in_the_step_of_their_prefix(void **state) {
    (void)state;
    engine_settings s = usual;
    engine one = open_engine(s);
    s.chunk_rows = prefix_rows();
    engine many = open_engine(s);
    record r[2][9] = {{{0}}}, dropped = {0};
    ask q[9];
    for (int i = 0; i < 9; i++) q[i] = question_behind(13, i % 2, 50 + (uint64_t)i, 3 + i);
    q[6] = (ask){.image = -1, .max_new = 6};
    memcpy(q[6].ids, q[5].ids, 5 * sizeof *q[6].ids);
    q[6].n_ids = 5;
    for (int i = 0; i < 7; i++) submit(&one, &q[i], r[0], i);
    submit(&one, &q[0], &dropped, 0);
    assert_true(scheduler_step(one.s));
    for (int i = 0; i < 7; i++) assert_int_equal(r[0][i].n, 1);
    scheduler_counters c = scheduler_read_counters(one.s);
    assert_int_equal(c.prefill_tokens, 2 * prefix_rows() + 3 + 4 + 5 + 6 + 7 + 8 + 5 + 3);
    assert_int_equal(c.prefix_tokens_reused, 5 * prefix_rows());
    scheduler_cancel(one.s, &dropped);
    for (int i = 7; i < 9; i++) submit(&one, &q[i], r[0], i); /* while the others decode */
    assert_true(scheduler_step(one.s));
    for (int i = 7; i < 9; i++) assert_int_equal(r[0][i].n, 1);
    run_to_end(&one);
    for (int i = 0; i < 9; i++) {
        submit(&many, &q[i], r[1], i);
        run_to_end(&many);
        assert_same(&r[0][i], &r[1][i], i);
        assert_int_equal(r[0][i].prefix_cached, i >= 2 && i != 6);
    }
    assert_int_equal(dropped.n, 1);
    assert_int_equal(scheduler_read_counters(one.s).kv_blocks_in_use, 2 * kv_blocks_for(prefix_rows()));
    close_engine(&one);
    close_engine(&many);
}

/* In pieces of every size: the question's rows fill the step that ends the prefix, unless a step before has begun with the
 * prefix's last block. */
static void a_prompt_in_pieces_takes_no_step_more_than_its_rows_need(void **state) {
    (void)state;
    const int n_image = model_get_config(m)->tower.n_tokens, n_own = 7, n_full = (n_image / KV_BLOCK_TOKENS + 1) * KV_BLOCK_TOKENS;
    const int n_prefix = n_full + 6;
    ask a = question_behind(n_prefix - n_image, 0, 77, n_own);
    record want = {0};
    for (int rows = 1; rows <= n_prefix + n_own; rows++) {
        engine_settings s = usual;
        s.chunk_rows = rows;
        engine en = open_engine(s);
        record r[2] = {{0}};
        submit(&en, &a, r, 0);
        const int last_piece = (n_prefix - 1) / rows * rows;
        const int apart = (n_prefix + rows - 1) / rows + (n_own + rows - 1) / rows;
        const int together = (n_prefix + n_own + rows - 1) / rows;
        assert_int_equal(steps_until_token(&en, &r[0]), last_piece <= n_full ? together : apart);
        run_to_end(&en);
        submit(&en, &a, r, 1);
        run_to_end(&en);
        if (rows == 1) want = r[0];
        assert_same(&r[0], &want, rows);
        assert_same(&r[1], &want, rows);
        close_engine(&en);
    }
}

/* Who is dropped, the one that had the prefix computed or one behind it, after any number of steps. */
static void a_question_that_is_cancelled_leaves_its_prefix_to_the_others(void **state) {
    (void)state;
    ask a = question_behind(13, 0, 78, 9), b = question_behind(13, 0, 79, 9);
    for (int n_steps = 0; n_steps < 6; n_steps++)
        for (int first = 0; first < 2; first++) {
            engine_settings s = usual;
            s.chunk_rows = n_steps % 2 ? 19 : 16; /* ends inside the last block, or before it */
            engine en = open_engine(s), calm = open_engine(usual);
            record dropped = {0}, r = {0}, want = {0};
            submit(&calm, &a, &want, 0);
            run_to_end(&calm);
            if (first) submit(&en, &b, &dropped, 0);
            submit(&en, &a, &r, 0);
            if (!first) submit(&en, &b, &dropped, 0);
            for (int k = 0; k < n_steps; k++) assert_true(scheduler_step(en.s));
            scheduler_cancel(en.s, &dropped);
            run_to_end(&en);
            assert_same(&r, &want, n_steps);
            assert_false(dropped.is_finished);
            /* Who computes the rest of a prefix has not found it there. */
            assert_int_equal(r.prefix_cached, first && n_steps * s.chunk_rows >= prefix_rows());
            scheduler_counters c = scheduler_read_counters(en.s);
            if (first) assert_int_equal(c.prefix_tokens_reused, r.prefix_cached ? prefix_rows() : 0);
            assert_int_equal(c.kv_blocks_in_use, kv_blocks_for(prefix_rows()));
            close_engine(&en);
            close_engine(&calm);
        }
}

/* Three images, with words before, between and behind them. */
static ask question_on_three(uint64_t between, uint64_t behind) {
    ask a = {.image = 0, .max_new = 4};
    rng before = rng_make(3), middle = rng_make(between), own = rng_make(behind);
    add_words(&a, &before, 4);
    a.ids[a.n_ids++] = PROMPT_IMAGE_ID;
    add_words(&a, &middle, 6);
    a.ids[a.n_ids++] = PROMPT_IMAGE_ID;
    a.ids[a.n_ids++] = PROMPT_IMAGE_ID;
    add_words(&a, &own, 5);
    return a;
}

static void questions_share_all_that_stands_before_and_between_their_images(void **state) {
    (void)state;
    engine en = open_engine(usual);
    record *records = new_records();
    int rows = 4 + 6 + 3 * model_get_config(m)->tower.n_tokens;
    for (int i = 0; i < 3; i++) {
        ask a = question_on_three(7, 100 + (uint64_t)i);
        submit(&en, &a, records, i);
    }
    run_to_end(&en);
    scheduler_counters c = scheduler_read_counters(en.s);
    assert_int_equal(c.prefixes, 1);
    assert_int_equal(c.prefill_tokens, rows + 3 * 5);
    assert_int_equal(c.prefix_tokens_reused, 2 * rows);
    assert_int_equal(c.kv_blocks_in_use, kv_blocks_for(rows));

    /* Needs no features now; other words between the images, or other images there, are another prefix. */
    err e;
    ask same = question_on_three(7, 1), other = question_on_three(8, 1), fewer = same;
    scheduler_question q = question_of(&same, records, 3), p = q;
    q.features = NULL;
    assert_true(scheduler_has_prefix(en.s, &q));
    assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_OK);
    p.ids = other.ids;
    assert_false(scheduler_has_prefix(en.s, &p));
    fewer.ids[11] = 1; /* where the second image was */
    p.ids = fewer.ids;
    assert_false(scheduler_has_prefix(en.s, &p));
    q.image.sha256[31] = 1;
    assert_false(scheduler_has_prefix(en.s, &q));
    assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_NOT_FOUND);
    run_to_end(&en);
    assert_true(records[3].prefix_cached);
    close_engine(&en);
    free(records);
}

static void images_are_told_apart_by_their_place(void **state) {
    (void)state;
    engine en = open_engine(usual);
    record r[2] = {{0}};
    err e;
    ask a = question_on_three(7, 1);
    a.sampling.n_logprobs = 1;
    scheduler_question q = question_of(&a, r, 0);
    assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_OK);
    float *swapped = malloc(3 * image_values * sizeof *swapped);
    assert_non_null(swapped);
    for (size_t i = 0; i < 3; i++)
        memcpy(swapped + i * image_values, features + (2 - i) * image_values, image_values * sizeof *swapped);
    q.features = swapped;
    q.image.sha256[2] = 1;
    q.question_idx = 1;
    assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_OK);
    run_to_end(&en);
    assert_true(r[0].tokens[0].logprob != r[1].tokens[0].logprob);
    free(swapped);
    close_engine(&en);
}

/* ---- waiting and refusing ------------------------------------------------------------------- */

static void a_prefix_only_waiting_questions_want_cannot_block_the_first_in_line(void **state) {
    (void)state;
    engine_settings s = usual;
    ask a = question_on(0, 1, 30, 20), b = question_on(1, 2, 30, 20), again = question_on(0, 3, 30, 20);
    s.kv_blocks = kv_blocks_for(prefix_rows() + 50) + 1; /* room for one image and its question */
    engine en = open_engine(s);
    record r[3] = {{0}};
    submit(&en, &a, r, 0);
    run_to_end(&en);
    submit(&en, &b, r, 1);
    err e;
    scheduler_question q = question_of(&again, r, 2);
    q.features = NULL; /* its prefix is resident, and pinned by it */
    assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_OK);
    run_to_end(&en);
    for (int i = 0; i < 3; i++) assert_true(r[i].is_finished && r[i].reason != SCHEDULER_ERROR);
    close_engine(&en);
}

static void questions_wait_in_order_when_keys_and_values_are_full(void **state) {
    (void)state;
    engine_settings s = usual;
    s.kv_blocks = 8; /* two text questions of 3 blocks at a time */
    engine en = open_engine(s);
    record *records = new_records();
    ask a = {.image = -1, .max_new = 8};
    rng r = rng_make(1);
    add_words(&a, &r, 40);
    for (int i = 0; i < 6; i++) submit(&en, &a, records, i);
    int first_unfinished = 0;
    for (int step = 0; step < STEPS_MAX && scheduler_step(en.s); step++) {
        scheduler_counters c = scheduler_read_counters(en.s);
        assert_true(c.n_running <= 2);
        assert_true(c.kv_blocks_in_use <= c.kv_blocks);
        while (first_unfinished < 6 && records[first_unfinished].is_finished) first_unfinished++;
        for (int i = first_unfinished + 2; i < 6; i++) assert_false(records[i].n > 0);
    }
    for (int i = 0; i < 6; i++) assert_true(records[i].is_finished);
    assert_int_equal(scheduler_read_counters(en.s).kv_blocks_in_use, 0);
    close_engine(&en);
    free(records);
}

static void a_long_prompt_does_not_stall_who_is_decoding(void **state) {
    (void)state;
    engine_settings s = usual;
    s.chunk_rows = 10;
    engine en = open_engine(s);
    record r[2] = {{0}};
    ask quick = {.image = -1, .max_new = 40}, slow = {.image = -1, .max_new = 1};
    rng random = rng_make(2);
    add_words(&quick, &random, 3);
    add_words(&slow, &random, 300);
    submit(&en, &quick, r, 0);
    assert_true(scheduler_step(en.s));
    assert_int_equal(r[0].n, 1);
    submit(&en, &slow, r, 1);
    for (int k = 2; k <= 30 && !r[0].is_finished; k++) {
        assert_true(scheduler_step(en.s));
        assert_int_equal(r[0].n, k); /* one token each step, whatever is prefilled beside */
    }
    assert_int_equal(r[1].n, 0);
    run_to_end(&en);
    assert_int_equal(r[1].n, 1);
    close_engine(&en);
}

static void what_can_never_fit_is_refused_with_both_numbers(void **state) {
    (void)state;
    engine_settings s = usual;
    s.kv_blocks = 4;
    engine en = open_engine(s);
    record r = {0};
    err e;
    ask a = {.image = -1, .max_new = 30};
    rng random = rng_make(2);
    add_words(&a, &random, 40);
    assert_int_equal(try_submit(&en, &a, &r, 0, &e), STATUS_PROMPT_TOO_LONG);
    assert_non_null(strstr(e.text, "need 6 blocks"));
    assert_non_null(strstr(e.text, "there are 4"));
    close_engine(&en);

    en = open_engine(usual);
    int32_t *ids = calloc(2000, sizeof *ids);
    scheduler_question q = {.user = &r, .ids = ids, .n_ids = 512, .max_new_tokens = 1};
    assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_PROMPT_TOO_LONG);
    assert_non_null(strstr(e.text, "512"));
    q.n_ids = 2000;
    assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_PROMPT_TOO_LONG);
    assert_non_null(strstr(e.text, "2000"));
    int per_image = model_get_config(m)->tower.n_tokens, n_images = 511 / per_image + 1; /* alone they fill the context */
    for (int i = 0; i < n_images; i++) ids[i] = PROMPT_IMAGE_ID;
    q.n_ids = n_images + 2;
    q.features = features;
    char number[32];
    (void)snprintf(number, sizeof number, "of %d tokens", n_images * per_image + 2);
    assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_PROMPT_TOO_LONG);
    if (!strstr(e.text, number)) fail_msg("\"%s\" does not say \"%s\"", e.text, number);
    free(ids);
    close_engine(&en);
}

static void an_answer_is_cut_to_what_the_context_leaves(void **state) {
    (void)state;
    engine en = open_engine(usual);
    record r = {0};
    err e;
    int32_t *ids = calloc(500, sizeof *ids);
    scheduler_question q = {.user = &r, .ids = ids, .n_ids = 500, .max_new_tokens = INT_MAX};
    assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_OK);
    run_to_end(&en);
    assert_true(r.is_finished);
    assert_true(r.n <= 12);
    if (r.reason == SCHEDULER_LENGTH) assert_int_equal(r.n, 12);
    free(ids);
    close_engine(&en);
}

static void a_question_without_memory_for_its_image_is_refused_alone(void **state) {
    (void)state;
    enum { PLACES = 4 }; /* for features of images, opened together */
    err e = {0};
    engine_settings s = usual;
    s.kv_blocks = PLACES * kv_blocks_for(model_get_config(m)->tower.n_tokens);
    engine en = open_engine(s);
    record *records = new_records();
    ask a = question_on(0, 1, 4, 3);
    for (int i = 0; i <= PLACES; i++) {
        scheduler_question q = question_of(&a, records, i);
        q.image.sha256[2] = (unsigned char)i; /* an image of its own */
        if (i == PLACES && strstr(ops_device_text(en.ctx), "emulated")) {
            assert_int_equal(setenv("EMULATED_CUDA_NO_HOST_MEMORY", "1", 1), 0);
            assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_NO_MEMORY);
            assert_int_equal(unsetenv("EMULATED_CUDA_NO_HOST_MEMORY"), 0);
            assert_non_null(strstr(e.text, "host memory"));
        }
        assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_OK);
    }
    run_to_end(&en);
    for (int i = 0; i <= PLACES; i++) assert_true(records[i].is_finished && records[i].reason != SCHEDULER_ERROR);
    close_engine(&en);
    free(records);
}

static void hostile_prompts_are_refused_and_named(void **state) {
    (void)state;
    engine en = open_engine(usual);
    record r = {0};
    err e;
    const int32_t too_large[] = {3, 277}, negative[] = {-1}, only_image[] = {3, PROMPT_IMAGE_ID};
    const int32_t image_last[] = {PROMPT_IMAGE_ID, 1, PROMPT_IMAGE_ID}, fine[] = {1};
    const int32_t below_image[] = {PROMPT_IMAGE_ID, PROMPT_IMAGE_ID - 1, 1};
    const struct {
        const int32_t *ids;
        int n_ids, max_new;
        status want;
        const char *text;
    } cases[] = {
        {too_large, 2, 4, STATUS_BAD_PROMPT, "token 277 at place 1"},
        {negative, 1, 4, STATUS_BAD_PROMPT, "token -1 at place 0"},
        {only_image, 2, 4, STATUS_BAD_PROMPT, "behind the image"},
        {image_last, 3, 4, STATUS_BAD_PROMPT, "behind the image"},
        {below_image, 3, 4, STATUS_BAD_PROMPT, "token -201 at place 1"},
        {fine, 0, 4, STATUS_BAD_PROMPT, "no token at all"},
        {fine, 1, 0, STATUS_BAD_ARGUMENT, "max_new_tokens 0"},
        {fine, 1, INT_MIN, STATUS_BAD_ARGUMENT, "max_new_tokens"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        scheduler_question q = {.user = &r,
                                .ids = cases[i].ids,
                                .n_ids = cases[i].n_ids,
                                .features = features,
                                .max_new_tokens = cases[i].max_new};
        assert_int_equal(scheduler_submit(en.s, &q, &e), cases[i].want);
        if (!strstr(e.text, cases[i].text)) fail_msg("\"%s\" does not say \"%s\"", e.text, cases[i].text);
    }
    assert_false(scheduler_step(en.s));
    close_engine(&en);
}

static void a_callback_that_has_seen_enough_ends_the_answer(void **state) {
    (void)state;
    engine en = open_engine(usual);
    record r = {.stop_after = 2};
    ask a = {.image = -1, .max_new = 30};
    rng random = rng_make(2);
    add_words(&a, &random, 5);
    submit(&en, &a, &r, 0);
    run_to_end(&en);
    assert_int_equal(r.n, 2);
    assert_int_equal(r.reason, SCHEDULER_STOP);
    close_engine(&en);
}

static void closing_in_the_middle_of_work_releases_everything(void **state) {
    (void)state;
    for (int n_steps = 0; n_steps < 4; n_steps++) {
        engine_settings s = usual;
        s.max_questions = 3;
        engine en = open_engine(s);
        record *records = new_records();
        for (int i = 0; i < ASKS; i++) submit(&en, &asks[i], records, i);
        for (int k = 0; k < n_steps; k++) assert_true(scheduler_step(en.s));
        close_engine(&en); /* the sanitizers and kv_cache_close look for what is left */
        free(records);
    }
}

/* ---- group --------------------------------------------------------------------------------- */

static int set_up_case(const char *case_name, model_settings settings) {
    err e;
    g = golden_open(case_name);
    settings.dir = golden_dir(g);
    settings.parts = MODEL_PART_ALL;
    if (model_open(&m, &settings, &e) != STATUS_OK) fail_msg("%s", e.text);
    golden_tensor t = golden_get(g, "features");
    image_values = (size_t)(t.dims[1] * t.dims[2]);
    features = malloc(GOLDEN_IMAGES * image_values * sizeof *features);
    assert_non_null(features);
    memcpy(features, t.f32, GOLDEN_IMAGES * image_values * sizeof *features);
    make_asks(asks);
    alone = new_records();
    ask_all_alone();
    return 0;
}

static int set_up(void **state) {
    (void)state;
    return set_up_case("odd_heads", (model_settings){0});
}

/* Questions with three adapters and with none, which one changes the projector. */
static int set_up_adapters(void **state) {
    (void)state;
    static const char *const served[] = {"plain=" ADAPTERS "/clip.plain", "all=" ADAPTERS "/clip.all",
                                         "projector=" ADAPTERS "/clip.projector"};
    return set_up_case("clip", (model_settings){.served = served, .n_served = 3});
}

/* Prompts and answers shorter and longer than the 40 positions from which keys are turned otherwise. */
static int set_up_long(void **state) {
    (void)state;
    return set_up_case("phi3_long", (model_settings){0});
}

static int set_up_coded(void **state) {
    (void)state;
    return set_up_case("odd_heads", (model_settings){.kv_dtype = "fp8"});
}

/* Products in 8 bits, and with them keys and values in halves. */
static int set_up_rounded(void **state) {
    (void)state;
    return set_up_case("odd_heads", (model_settings){.dtype = "int8"});
}

static int tear_down(void **state) {
    (void)state;
    free(alone);
    free(features);
    model_close(&m);
    golden_close(&g);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_question_is_answered_as_by_transformers),
        cmocka_unit_test(the_company_of_others_changes_no_byte),
        cmocka_unit_test(the_order_of_submission_changes_no_byte),
        cmocka_unit_test(the_size_of_prefill_chunks_changes_no_byte),
        cmocka_unit_test(the_number_of_threads_changes_no_byte),
        cmocka_unit_test(scarce_memory_and_evictions_change_no_byte),
        cmocka_unit_test(a_prefix_shared_or_not_changes_no_byte),
        cmocka_unit_test(a_warm_engine_changes_no_byte),
        cmocka_unit_test(cancelled_neighbours_change_no_byte),
        cmocka_unit_test(features_that_are_no_numbers_fail_their_own_questions_only),
        cmocka_unit_test(ten_questions_about_one_image_compute_its_prefix_once),
        cmocka_unit_test(the_first_question_on_an_image_has_its_token_after_one_step),
        cmocka_unit_test(questions_that_wait_together_start_in_the_step_of_their_prefix),
        cmocka_unit_test(a_prompt_in_pieces_takes_no_step_more_than_its_rows_need),
        cmocka_unit_test(a_question_that_is_cancelled_leaves_its_prefix_to_the_others),
        cmocka_unit_test(questions_on_one_image_decode_beside_each_other),
        cmocka_unit_test(a_resident_prefix_needs_no_features),
        cmocka_unit_test(questions_share_all_that_stands_before_and_between_their_images),
        cmocka_unit_test(images_are_told_apart_by_their_place),
        cmocka_unit_test(a_prefix_only_waiting_questions_want_cannot_block_the_first_in_line),
        cmocka_unit_test(questions_wait_in_order_when_keys_and_values_are_full),
        cmocka_unit_test(a_long_prompt_does_not_stall_who_is_decoding),
        cmocka_unit_test(what_can_never_fit_is_refused_with_both_numbers),
        cmocka_unit_test(an_answer_is_cut_to_what_the_context_leaves),
        cmocka_unit_test(hostile_prompts_are_refused_and_named),
        cmocka_unit_test(a_callback_that_has_seen_enough_ends_the_answer),
        cmocka_unit_test(closing_in_the_middle_of_work_releases_everything),
    };
    const struct CMUnitTest long_contexts[] = {
        cmocka_unit_test(a_question_is_answered_as_by_transformers),
        cmocka_unit_test(the_company_of_others_changes_no_byte),
        cmocka_unit_test(the_size_of_prefill_chunks_changes_no_byte),
        cmocka_unit_test(scarce_memory_and_evictions_change_no_byte),
        cmocka_unit_test(a_prefix_shared_or_not_changes_no_byte),
        cmocka_unit_test(the_first_question_on_an_image_has_its_token_after_one_step),
        cmocka_unit_test(questions_that_wait_together_start_in_the_step_of_their_prefix),
        cmocka_unit_test(a_prompt_in_pieces_takes_no_step_more_than_its_rows_need),
    };
    const struct CMUnitTest rounded[] = {
        cmocka_unit_test(the_company_of_others_changes_no_byte),
        cmocka_unit_test(the_size_of_prefill_chunks_changes_no_byte),
        cmocka_unit_test(the_number_of_threads_changes_no_byte),
        cmocka_unit_test(scarce_memory_and_evictions_change_no_byte),
        cmocka_unit_test(a_prefix_shared_or_not_changes_no_byte),
        cmocka_unit_test(questions_that_wait_together_start_in_the_step_of_their_prefix),
    };
    const struct CMUnitTest adapters[] = {
        cmocka_unit_test(each_adapter_gives_answers_of_its_own),
        cmocka_unit_test(the_company_of_others_changes_no_byte),
        cmocka_unit_test(the_order_of_submission_changes_no_byte),
        cmocka_unit_test(the_size_of_prefill_chunks_changes_no_byte),
        cmocka_unit_test(the_number_of_threads_changes_no_byte),
        cmocka_unit_test(scarce_memory_and_evictions_change_no_byte),
        cmocka_unit_test(a_prefix_shared_or_not_changes_no_byte),
        cmocka_unit_test(a_prompt_in_pieces_takes_no_step_more_than_its_rows_need),
    };
    const struct CMUnitTest device[] = {
        cmocka_unit_test(a_question_without_memory_for_its_image_is_refused_alone),
        cmocka_unit_test(a_question_is_answered_as_by_transformers),
        cmocka_unit_test(the_company_of_others_changes_no_byte),
        cmocka_unit_test(a_prefix_shared_or_not_changes_no_byte),
        cmocka_unit_test(questions_that_wait_together_start_in_the_step_of_their_prefix),
    };
    const struct CMUnitTest coded[] = {
        cmocka_unit_test(the_company_of_others_changes_no_byte),
        cmocka_unit_test(a_prefix_shared_or_not_changes_no_byte),
        cmocka_unit_test(features_that_are_no_numbers_fail_their_own_questions_only),
        cmocka_unit_test(questions_that_wait_together_start_in_the_step_of_their_prefix),
    };
    if (ops_device_count(TEST_DEVICE) == 0) return TEST_SKIPPED;
    int n_failed = cmocka_run_group_tests_name("keys and values in e4m3", coded, set_up_coded, tear_down);
    if (strcmp(TEST_DEVICE, "cpu") != 0)
        return n_failed + cmocka_run_group_tests_name("adapters", device, set_up_adapters, tear_down);
    n_failed += cmocka_run_group_tests_name("Phi-2", tests, set_up, tear_down);
    n_failed += cmocka_run_group_tests_name("adapters", adapters, set_up_adapters, tear_down);
    n_failed += cmocka_run_group_tests_name("rounded", rounded, set_up_rounded, tear_down);
    return n_failed + cmocka_run_group_tests_name("long contexts", long_contexts, set_up_long, tear_down);
}
