/* The scheduler's first promise: a question has the same answer, to the byte, in any company. Answers of the case with five
 * heads of 80 can also be compared with those of transformers. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "tests/lm_node/scheduler_world.h"
#include "tests/support/support.h"

/* Each question in an engine of its own: what all others are compared with. */
static record *alone;

static int ask_all_alone(void) {
    alone = new_records();
    for (int i = 0; i < ASKS; i++) {
        engine_settings one = usual;
        one.n_threads = 1;
        one.max_questions = 1;
        engine en = open_engine(one);
        submit(&en, &world.asks[i], alone, i);
        run_to_end(&en);
        assert_true(alone[i].is_finished);
        assert_int_not_equal(alone[i].reason, SCHEDULER_ERROR);
        close_engine(&en);
    }
    return 0;
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
    for (int i = 0; i < ASKS; i++) submit(&en, &world.asks[order[i]], records, order[i]);
    run_to_end(&en);
    for (int i = 0; i < ASKS; i++) assert_same(&records[i], &alone[i], i);
    close_engine(&en);
    free(records);
}

static void a_question_is_answered_as_by_transformers(void **state) {
    (void)state;
    const int prompts[] = {0, 1, 2, 3, 4, 5, 6}; /* 4 has three images */
    engine en = open_engine(usual);
    for (size_t k = 0; k < sizeof prompts / sizeof prompts[0]; k++) {
        golden_tensor ids = golden_get(world.g, "prompt.%d.ids", prompts[k]);
        golden_tensor want = golden_get(world.g, "prompt.%d.greedy", prompts[k]);
        ask a = {.n_ids = (int)ids.dims[0], .image = 0, .max_new = (int)want.dims[0]};
        memcpy(a.ids, ids.i32, (size_t)a.n_ids * sizeof *a.ids);
        record r = {0};
        submit(&en, &a, &r, 0);
        run_to_end(&en);
        int n = 0;
        int32_t eos = tokenizer_eos_id(model_get_tokenizer(world.m));
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
    for (int i = 0; i <= model_n_served(world.m); i++) {
        ask a = world.asks[0];
        a.adapter = i;
        a.sampling.wants_logprob = true;
        submit(&en, &a, records, i);
    }
    run_to_end(&en);
    for (int i = 0; i <= model_n_served(world.m); i++) {
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
        scheduler_question q = question_of(&world.asks[i], records, i);
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
        for (int i = 0; i < ASKS; i++) submit(&en, &world.asks[i], records, i);
        run_to_end(&en);
        for (int i = 0; i < ASKS; i++) {
            assert_same(&records[i], &alone[i], i);
            if (round == 1) assert_int_equal(records[i].prefix_cached, world.asks[i].image >= 0);
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
            submit(&en, &world.asks[i], dropped, i);
            submit(&en, &world.asks[ASKS - 1 - i], records, ASKS - 1 - i);
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
    float *broken = malloc(world.image_values * sizeof *broken);
    assert_non_null(broken);
    for (size_t i = 0; i < world.image_values; i++) broken[i] = NAN;
    engine_settings s = usual;
    s.kv_blocks = 40; /* so that blocks full of NaN are used again */
    engine en = open_engine(s);
    record *records = new_records();
    record bad[(ASKS + 4) / 5] = {{0}};
    for (int i = 0; i < ASKS; i++) {
        if (i % 5 == 0) {
            err e;
            scheduler_question q = question_of(&world.asks[1], bad, i / 5);
            q.features = broken;
            q.image.sha256[0] = 200;
            assert_int_equal(scheduler_submit(en.s, &q, &e), STATUS_OK);
        }
        submit(&en, &world.asks[i], records, i);
    }
    run_to_end(&en);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_true(bad[i].is_finished);
        assert_int_equal(bad[i].reason, SCHEDULER_ERROR);
        assert_int_equal(bad[i].why.code, STATUS_INTERNAL);
    }
    for (int i = 0; i < ASKS; i++) assert_same(&records[i], &alone[i], i);
    scheduler_question q = question_of(&world.asks[1], bad, 0);
    q.image.sha256[0] = 200;
    assert_false(scheduler_has_prefix(en.s, &q)); /* nobody shares it again */
    close_engine(&en);
    free(records);
    free(broken);
}

/* ---- groups -------------------------------------------------------------------------------- */

static int open_plain(void **state) { return world_open(state) + ask_all_alone(); }
static int open_coded(void **state) { return world_open_coded(state) + ask_all_alone(); }
static int open_rounded(void **state) { return world_open_rounded(state) + ask_all_alone(); }
static int open_adapters(void **state) { return world_open_adapters(state) + ask_all_alone(); }
static int open_long(void **state) { return world_open_long(state) + ask_all_alone(); }

static int tear_down(void **state) {
    free(alone);
    return world_close(state);
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
    };
    const struct CMUnitTest long_contexts[] = {
        cmocka_unit_test(a_question_is_answered_as_by_transformers),
        cmocka_unit_test(the_company_of_others_changes_no_byte),
        cmocka_unit_test(the_size_of_prefill_chunks_changes_no_byte),
        cmocka_unit_test(scarce_memory_and_evictions_change_no_byte),
        cmocka_unit_test(a_prefix_shared_or_not_changes_no_byte),
    };
    const struct CMUnitTest rounded[] = {
        cmocka_unit_test(the_company_of_others_changes_no_byte),
        cmocka_unit_test(the_size_of_prefill_chunks_changes_no_byte),
        cmocka_unit_test(the_number_of_threads_changes_no_byte),
        cmocka_unit_test(scarce_memory_and_evictions_change_no_byte),
        cmocka_unit_test(a_prefix_shared_or_not_changes_no_byte),
    };
    const struct CMUnitTest adapters[] = {
        cmocka_unit_test(each_adapter_gives_answers_of_its_own),
        cmocka_unit_test(the_company_of_others_changes_no_byte),
        cmocka_unit_test(the_order_of_submission_changes_no_byte),
        cmocka_unit_test(the_size_of_prefill_chunks_changes_no_byte),
        cmocka_unit_test(the_number_of_threads_changes_no_byte),
        cmocka_unit_test(scarce_memory_and_evictions_change_no_byte),
        cmocka_unit_test(a_prefix_shared_or_not_changes_no_byte),
    };
    const struct CMUnitTest device[] = {
        cmocka_unit_test(a_question_is_answered_as_by_transformers),
        cmocka_unit_test(the_company_of_others_changes_no_byte),
        cmocka_unit_test(a_prefix_shared_or_not_changes_no_byte),
    };
    const struct CMUnitTest coded[] = {
        cmocka_unit_test(the_company_of_others_changes_no_byte),
        cmocka_unit_test(a_prefix_shared_or_not_changes_no_byte),
        cmocka_unit_test(features_that_are_no_numbers_fail_their_own_questions_only),
    };
    if (ops_device_count(TEST_DEVICE) == 0) return TEST_SKIPPED;
    int n_failed = cmocka_run_group_tests_name("keys and values in e4m3", coded, open_coded, tear_down);
    if (strcmp(TEST_DEVICE, "cpu") != 0)
        return n_failed + cmocka_run_group_tests_name("adapters", device, open_adapters, tear_down);
    n_failed += cmocka_run_group_tests_name("Phi-2", tests, open_plain, tear_down);
    n_failed += cmocka_run_group_tests_name("adapters", adapters, open_adapters, tear_down);
    n_failed += cmocka_run_group_tests_name("rounded", rounded, open_rounded, tear_down);
    return n_failed + cmocka_run_group_tests_name("long contexts", long_contexts, open_long, tear_down);
}
