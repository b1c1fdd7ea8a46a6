/* The scheduler's other promises: what questions share is computed once, in no more steps than it needs; waiting instead of
 * dying; refusals by name. That a question has the same answer in any company is in test_scheduler_bytes.c. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "lm_node/kv_cache.h"
#include "lm_node/prompt.h"
#include "model/model.h"
#include "tests/lm_node/scheduler_world.h"
#include "tests/support/support.h"

/* ---- work done once ------------------------------------------------------------------------ */

static ask question_on(int image, uint64_t seed, int n_own, int max_new) {
    ask a = {.image = image, .max_new = max_new};
    rng same = rng_make(3), own = rng_make(seed);
    add_words(&a, &same, 13);
    a.ids[a.n_ids++] = PROMPT_IMAGE_ID;
    add_words(&a, &own, n_own);
    return a;
}

static int prefix_rows(void) { return 13 + model_get_config(world.m)->tower.n_tokens; }

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
    for (int i = 0; i < 4; i++) assert_true(!r[i].is_finished && r[i].turn >= world.n_turns - 4);
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
    const int n_own[] = {1, 5, 40}, n_image = model_get_config(world.m)->tower.n_tokens;
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
    const int n_image = model_get_config(world.m)->tower.n_tokens, n_own = 7, n_full = (n_image / KV_BLOCK_TOKENS + 1) * KV_BLOCK_TOKENS;
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
    int rows = 4 + 6 + 3 * model_get_config(world.m)->tower.n_tokens;
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
    float *swapped = malloc(3 * world.image_values * sizeof *swapped);
    assert_non_null(swapped);
    for (size_t i = 0; i < 3; i++)
        memcpy(swapped + i * world.image_values, world.features + (2 - i) * world.image_values, world.image_values * sizeof *swapped);
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
    int per_image = model_get_config(world.m)->tower.n_tokens, n_images = 511 / per_image + 1; /* alone they fill the context */
    for (int i = 0; i < n_images; i++) ids[i] = PROMPT_IMAGE_ID;
    q.n_ids = n_images + 2;
    q.features = world.features;
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
    s.kv_blocks = PLACES * kv_blocks_for(model_get_config(world.m)->tower.n_tokens);
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
                                .features = world.features,
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
        for (int i = 0; i < ASKS; i++) submit(&en, &world.asks[i], records, i);
        for (int k = 0; k < n_steps; k++) assert_true(scheduler_step(en.s));
        close_engine(&en); /* the sanitizers and kv_cache_close look for what is left */
        free(records);
    }
}

/* ---- groups -------------------------------------------------------------------------------- */

int main(void) {
    const struct CMUnitTest tests[] = {
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
        cmocka_unit_test(the_first_question_on_an_image_has_its_token_after_one_step),
        cmocka_unit_test(questions_that_wait_together_start_in_the_step_of_their_prefix),
        cmocka_unit_test(a_prompt_in_pieces_takes_no_step_more_than_its_rows_need),
    };
    const struct CMUnitTest rounded[] = {
        cmocka_unit_test(questions_that_wait_together_start_in_the_step_of_their_prefix),
    };
    const struct CMUnitTest adapters[] = {
        cmocka_unit_test(a_prompt_in_pieces_takes_no_step_more_than_its_rows_need),
    };
    const struct CMUnitTest device[] = {
        cmocka_unit_test(a_question_without_memory_for_its_image_is_refused_alone),
        cmocka_unit_test(questions_that_wait_together_start_in_the_step_of_their_prefix),
    };
    const struct CMUnitTest coded[] = {
        cmocka_unit_test(questions_that_wait_together_start_in_the_step_of_their_prefix),
    };
    if (ops_device_count(TEST_DEVICE) == 0) return TEST_SKIPPED;
    int n_failed = cmocka_run_group_tests_name("keys and values in e4m3", coded, world_open_coded, world_close);
    if (strcmp(TEST_DEVICE, "cpu") != 0)
        return n_failed + cmocka_run_group_tests_name("adapters", device, world_open_adapters, world_close);
    n_failed += cmocka_run_group_tests_name("Phi-2", tests, world_open, world_close);
    n_failed += cmocka_run_group_tests_name("adapters", adapters, world_open_adapters, world_close);
    n_failed += cmocka_run_group_tests_name("rounded", rounded, world_open_rounded, world_close);
    return n_failed + cmocka_run_group_tests_name("long contexts", long_contexts, world_open_long, world_close);
}
