#include "tests/lm_node/scheduler_world.h"

#include <stdlib.h>
#include <string.h>

#include "lm_node/lm_decoder.h"
#include "lm_node/prompt.h"
#include "model/model.h"
#include "tests/support/support.h"

#define ADAPTERS TEST_DATA_DIR "/adapters"

scheduler_world world;

/* ---- engines and questions ------------------------------------------------------------------ */

const engine_settings usual = {
    .n_threads = 2, .chunk_rows = 256, .max_questions = 16, .kv_blocks = 600};

static bool on_token(void *user, int question_idx, const sampled_token *t) {
    record *r = (record *)user + question_idx;
    assert_false(r->is_finished);
    assert_true(r->n < TOKENS_MAX);
    r->tokens[r->n++] = *t;
    r->turn = world.n_turns++;
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

engine open_engine(engine_settings wanted) {
    engine en;
    err e;
    ops_settings o = {.device = TEST_DEVICE, .n_threads = wanted.n_threads};
    if (ops_open(&en.ctx, &o, &e) != STATUS_OK) fail_msg("%s", e.text);
    scheduler_settings settings = {
        .kv_bytes = (uint64_t)wanted.kv_blocks * lm_decoder_block_bytes(en.ctx, world.m),
        .max_questions = wanted.max_questions,
        .chunk_rows = wanted.chunk_rows};
    const scheduler_callbacks callbacks = {on_token, on_finished};
    if (scheduler_open(&en.s, en.ctx, world.m, &settings, &callbacks, &e) != STATUS_OK) fail_msg("%s", e.text);
    return en;
}

void close_engine(engine *en) {
    scheduler_close(&en->s);
    ops_close(&en->ctx);
}

scheduler_question question_of(const ask *a, record *records, int idx) {
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
    q.features = world.features + (size_t)a->image * world.image_values;
    return q;
}

status try_submit(engine *en, const ask *a, record *records, int idx, err *e) {
    scheduler_question q = question_of(a, records, idx);
    return scheduler_submit(en->s, &q, e);
}

void submit(engine *en, const ask *a, record *records, int idx) {
    err e;
    if (try_submit(en, a, records, idx, &e) != STATUS_OK) fail_msg("%s", e.text);
}

void run_to_end(engine *en) {
    for (int i = 0; i < STEPS_MAX; i++)
        if (!scheduler_step(en->s)) return;
    fail_msg("the scheduler did not finish in %d steps", STEPS_MAX);
}

record *new_records(void) {
    record *records = calloc(ASKS, sizeof *records);
    assert_non_null(records);
    return records;
}

void assert_same(const record *got, const record *want, int i) {
    assert_true(got->is_finished);
    if (got->reason != want->reason || got->n != want->n ||
        memcmp(got->tokens, want->tokens, (size_t)want->n * sizeof *want->tokens) != 0)
        fail_msg("question %d: %d tokens and reason %d, alone %d and %d, or other bytes", i, got->n,
                 (int)got->reason, want->n, (int)want->reason);
}

/* ---- what is asked ------------------------------------------------------------------------- */

void add_words(ask *a, rng *r, int n) {
    int n_vocab = model_get_config(world.m)->decoder.n_vocab_in;
    for (int i = 0; i < n; i++) a->ids[a->n_ids++] = (int32_t)rng_below(r, (uint64_t)n_vocab);
}

static void make_asks(ask asks[ASKS]) {
    rng r = rng_make(7);
    for (int i = 0; i < ASKS; i++) {
        ask *a = &asks[i];
        *a = (ask){.image = i % 5 == 4 ? -1 : i % 3,
                   .adapter = i % (1 + model_n_served(world.m)),
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

/* ---- groups -------------------------------------------------------------------------------- */

static int open_case(const char *case_name, model_settings settings) {
    err e;
    world.g = golden_open(case_name);
    settings.dir = golden_dir(world.g);
    settings.parts = MODEL_PART_ALL;
    if (model_open(&world.m, &settings, &e) != STATUS_OK) fail_msg("%s", e.text);
    golden_tensor t = golden_get(world.g, "features");
    world.image_values = (size_t)(t.dims[1] * t.dims[2]);
    world.features = malloc(GOLDEN_IMAGES * world.image_values * sizeof *world.features);
    assert_non_null(world.features);
    memcpy(world.features, t.f32, GOLDEN_IMAGES * world.image_values * sizeof *world.features);
    make_asks(world.asks);
    return 0;
}

int world_open(void **state) {
    (void)state;
    return open_case("odd_heads", (model_settings){0});
}

int world_open_coded(void **state) {
    (void)state;
    return open_case("odd_heads", (model_settings){.kv_dtype = "fp8"});
}

int world_open_rounded(void **state) {
    (void)state;
    return open_case("odd_heads", (model_settings){.dtype = "int8"});
}

int world_open_adapters(void **state) {
    (void)state;
    static const char *const served[] = {"plain=" ADAPTERS "/clip.plain", "all=" ADAPTERS "/clip.all",
                                         "projector=" ADAPTERS "/clip.projector"};
    return open_case("clip", (model_settings){.served = served, .n_served = 3});
}

int world_open_long(void **state) {
    (void)state;
    return open_case("phi3_long", (model_settings){0});
}

int world_close(void **state) {
    (void)state;
    free(world.features);
    model_close(&world.m);
    golden_close(&world.g);
    return 0;
}
