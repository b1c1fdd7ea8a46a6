/* `mipha bench`: what it can be asked, how it counts work, and that it runs. The expected counts are those of the paper's
 * arithmetic for Mipha-3B, worked out by hand. */
#include "tests/support/support.h"

#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/bench_case.h"

#define MIPHA   PROGRAM_DIR "/mipha"
#define WAIT_MS 600000 /* under a sanitizer the ceilings alone take minutes */

static bench_case parsed(const char *text) {
    bench_case c;
    err e;
    if (bench_case_parse(&c, text, &e) != STATUS_OK) fail_msg("%s", e.text);
    return c;
}

static void cases_are_words_and_numbers(void **state) {
    (void)state;
    bench_case c = parsed("decode 64 800");
    assert_true(c.kind == BENCH_DECODE && c.n == 64 && c.tokens == 800);
    assert_string_equal(bench_case_unit(&c), "tokens/s");
    assert_true(bench_case_units(&c) == 64);
    c = parsed("questions 3");
    assert_true(c.kind == BENCH_JOBS && c.n == 3 && c.questions == 10 && c.tokens == 3 && bench_case_units(&c) == 30);
    c = parsed("prefill 8 789");
    assert_true(bench_case_units(&c) == 8 * 789);
    static const char *const bad[] = {"", "encode", "encode 0", "encode -1", "encode 1 2", "encode x", "decode 1", "decode 1 0",
                                      "decode 1 2 3", "enc 1", "encode 1x", "encode 99999999999", "decode 1 99999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err e;
        assert_int_equal(bench_case_parse(&c, bad[i], &e), STATUS_BAD_ARGUMENT);
        assert_non_null(strstr(e.text, "expected one of: encode N"));
    }
}

static model_config mipha_3b(void) {
    return (model_config){
        .tower = {.family = &tower_families[MODEL_TOWER_SIGLIP], .hidden = 1152, .intermediate = 4304, .n_layers_run = 26,
                  .n_heads = 16, .image_size = 384, .patch_size = 14, .n_patches = 729, .n_rows = 729, .n_tokens = 729},
        .projector = {.kind = MODEL_PROJECTOR_MLP, .n_linear = 2},
        .decoder = {.family = &decoder_families[MODEL_DECODER_PHI], .hidden = 2560, .intermediate = 10240, .n_layers = 32,
                    .n_heads = 32, .n_kv_heads = 32, .head_size = 80, .n_vocab_in = 51200, .n_vocab_out = 51200}};
}

/* In units of 1e9, within half of the last digit that is written. */
static void counts(const char *text, double flops, double bytes) {
    model_config m = mipha_3b();
    bench_case c = parsed(text);
    bench_work w = bench_case_work(&c, &m, &(bench_sizes){2, 2, 2, 2});
    if (fabs(w.flops / 1e9 - flops) > 0.006 * flops || fabs(w.bytes / 1e9 - bytes) > 0.006 * bytes)
        fail_msg("%s: %.2f GFLOP and %.3f GB, expected %.2f and %.3f", text, w.flops / 1e9, w.bytes / 1e9, flops, bytes);
}

static void a_weight_counts_as_the_product_reads_it(void **state) {
    (void)state;
    assert_true(bench_weight_bytes(OPS_DTYPE_BF16, OPS_PRODUCT_F32) == 2 && bench_weight_bytes(OPS_DTYPE_F32, OPS_PRODUCT_F32) == 4);
    assert_true(bench_weight_bytes(OPS_DTYPE_Q4, OPS_PRODUCT_F32) == 18.0 / 32 && bench_weight_bytes(OPS_DTYPE_Q4, OPS_PRODUCT_INT8) == 18.0 / 32);
    assert_true(bench_weight_bytes(OPS_DTYPE_BF16, OPS_PRODUCT_INT8) == 34.0 / 32 && bench_weight_bytes(OPS_DTYPE_Q8, OPS_PRODUCT_BF16) == 2);
    assert_true(bench_weight_bytes(OPS_DTYPE_BF16, OPS_PRODUCT_FP8) == 1);
}

static void work_is_what_the_network_needs(void **state) {
    (void)state;
    /* 26 layers of 22.198 linear and 2.449 attention, 0.988 of patches; 795 MB of weights, 1.68 MB of features. */
    counts("encode 1", 641.8, 0.797);
    counts("encode 32", 32 * 641.8, 0.795 + 32 * 0.00168);
    /* 5.033 a token and 102.1 of attention, the head once, 13.85 of projector, less what the last layer leaves out for all
     * rows but one: 788 of 65.54 million weights, and 3.2 of attention. */
    counts("prefill 1 789", 789 * 5.033 + 102.1 + 0.26 + 13.85 - 103.3 - 3.2, 5.297 + 0.019 + 0.2585);
    /* 5.56 and 5.297 GB and 262 MB of keys and values. */
    counts("decode 1 800", 5.56, 5.297 + 0.2621);
    counts("decode 64 800", 64 * 5.56, 5.297 + 64 * 0.2621);
    /* Seven pictures: 57 sequences do without 759 positions of 327,680 bytes. */
    counts("shared 64 800", 64 * 5.56, 5.297 + 64 * 0.2621 - 57 * 0.2487);
    /* 3,914 of prefix less the whole last layer but keys and values, 158.9 of question, two more tokens. */
    counts("cached 1", 3914 + 13.85 - 99.5 - 3.0 + 158.9 - 3.8 + 2 * 5.56, 0);
    counts("answer 2", 2 * (641.8 + 3914 + 13.85 - 99.5 - 3.0 + 158.9 - 3.8 + 2 * 5.56), 0);
    counts("resident 1", 158.9 - 3.8 + 2 * 5.56, 0);
}

static void every_kind_of_case_runs_and_says_how_long_it_took(void **state) {
    (void)state;
    ended_run r = ended_run_of((const char *const[]){MIPHA, "bench", "--model", SOURCE_DIR "/models/mipha-demo", "--rounds", "1",
                                                     "--threads", "1", "--kv-bytes", "64M", "--json", "encode 2", "prefill 2 300",
                                                     "decode 2 300", "shared 3 300", "caption 1", "answer 5", "questions 1", "cached 2",
                                                     "resident 2", NULL},
                               WAIT_MS);
    if (r.exit_code != 0) fail_msg("exit %d: %s", r.exit_code, ended_run_errors(&r));
    char *rest = NULL;
    int n_cases = 0;
    for (char *line = strtok_r((char *)r.out.data, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        json_t *value = json_loads(line, 0, NULL);
        assert_non_null(value);
        if (json_object_get(value, "case")) {
            n_cases++;
            assert_true(json_real_value(json_object_get(value, "ms")) > 0);
            assert_true(json_real_value(json_object_get(value, "rate")) > 0);
            assert_true(json_real_value(json_object_get(value, "flops")) > 0);
        }
        json_decref(value);
    }
    assert_int_equal(n_cases, 9);
    ended_run_free(&r);
}

static void refuses(const char *text, int exit_code, const char *why) {
    ended_run r = ended_run_of((const char *const[]){MIPHA, "bench", "--model", SOURCE_DIR "/models/mipha-demo", "--rounds", "1",
                                                     "--threads", "1", "--kv-bytes", "16M", text, NULL}, WAIT_MS);
    if (r.exit_code != exit_code || !strstr(ended_run_errors(&r), why))
        fail_msg("%s: exit %d: %s", text, r.exit_code, ended_run_errors(&r));
    ended_run_free(&r);
}

static void what_does_not_fit_is_refused_with_the_number(void **state) {
    (void)state;
    refuses("encode 5", 2, "at most 4 pictures at once (--batch)");
    refuses("decode 17 300", 2, "at most 16 run at once (--max-questions)");
    refuses("prefill 1 20", 2, "a prompt with a picture has at least");
    refuses("sing 1", 2, "expected one of: encode N");
    refuses("resident 16", 2, "need more --kv-bytes");
    refuses("decode 12 300", 2, "more --kv-bytes or --chunk-rows are needed"); /* not all of them in every step that was timed */
}

static bool has_begun(void *dir) { return files_in(dir) > 0; }

/* While it writes random weights, and while it measures. */
static void an_interrupted_bench_ends_at_once_and_leaves_nothing(void **state) {
    (void)state;
    char *dir = temp_dir_make();
    char variable[512];
    (void)snprintf(variable, sizeof variable, "TMPDIR=%.400s", dir);
    const char *const environment[] = {variable, NULL};
    for (int is_measuring = 0; is_measuring < 2; is_measuring++) {
        child c;
        child_start(&c, is_measuring ? (const char *const[]){MIPHA, "bench", "--model", SOURCE_DIR "/models/mipha-demo", "--threads", "1",
                                                             "--rounds", "1000", "caption 16", NULL}
                                     : (const char *const[]){MIPHA, "bench", NULL},
                    environment);
        if (is_measuring) assert_true(child_wait_for_output(&c, "of peak", WAIT_MS));
        else assert_true(wait_until(has_begun, dir, WAIT_MS));
        assert_int_equal(child_stop(&c, SIGINT, WAIT_MS), 130);
        child_close(&c);
        assert_int_equal(files_in(dir), 0);
    }
    temp_dir_remove(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cases_are_words_and_numbers),
        cmocka_unit_test(a_weight_counts_as_the_product_reads_it),
        cmocka_unit_test(work_is_what_the_network_needs),
        cmocka_unit_test(every_kind_of_case_runs_and_says_how_long_it_took),
        cmocka_unit_test(an_interrupted_bench_ends_at_once_and_leaves_nothing),
        cmocka_unit_test(what_does_not_fit_is_refused_with_the_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
