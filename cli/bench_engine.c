/* Everything goes through the parts a node uses: the vision encoder and scheduler_step, on memory like a node's, which
 * crosses to a device without a stop. The scheduler works until nothing is left, or, for a decoding step, until every
 * question has its first token; then steps are timed. */
#include "cli/bench_engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/stop.h"
#include "base/rng.h"
#include "lm_node/kv_cache.h"
#include "lm_node/prompt.h"
#include "lm_node/scheduler.h"
#include "vision_node/vision_encoder.h"

#define QUESTIONS_MAX 65536
#define ENCODE_BATCHES 8 /* timed together where one follows the other without a stop */
#define DECODE_STEPS 8 /* timed together: one step of a small network is shorter than the clock is good for */

struct bench_engine {
    bench_settings s;
    model *m;
    ops_ctx *ctx;
    vision_encoder *encoder;
    scheduler *scheduler;
    void *memory;            /* of ops_host_open: pixels and features */
    size_t memory_bytes;
    unsigned char *pixels;   /* [batch] pictures */
    unsigned char *features; /* [batch]; behind them as many for each further run that is under way */
    size_t feature_bytes;
    int32_t *ids;            /* of one prompt, PROMPT_IDS_MAX */
    rng random;
    uint64_t next_image;     /* no two runs share one */
    int n_asked, n_unfinished; /* questions of this run */
    int n_answering;           /* of them with a first token */
    int64_t n_tokens;          /* of all of them */
    bool is_answering[QUESTIONS_MAX];
    status failed;
    err why;
};

/* ---- opening ------------------------------------------------------------------------------------- */

static bool on_token(void *user, int question_idx, const sampled_token *t) {
    bench_engine *b = user;
    bool *is_answering = &b->is_answering[question_idx];
    (void)t;
    b->n_tokens++;
    if (!*is_answering) b->n_answering++;
    *is_answering = true;
    return false;
}

static void on_finished(void *user, int question_idx, scheduler_finish reason, bool prefix_cached, const err *why) {
    bench_engine *b = user;
    (void)question_idx, (void)prefix_cached;
    b->n_unfinished--;
    if (reason != SCHEDULER_ERROR) return;
    b->failed = why->code;
    b->why = *why;
}

/* Features of the stored type, each a number like those of a tower. */
static void fill_features(bench_engine *b) {
    ops_dtype dtype = model_tower_dtype(b->m);
    int64_t n = (int64_t)((size_t)b->s.batch * b->feature_bytes / dtype_bytes(dtype));
    ops_tensor all = tensor_make(b->features, OPS_PLACE_HOST, dtype, 1, &n);
    for (int64_t i = 0; i < n; i++) tensor_set_value(&all, i, (float)(rng_unit(&b->random) - 0.5));
}

static status open_buffers(bench_engine *b, err *e) {
    size_t side = (size_t)model_get_config(b->m)->preprocess.size, n_bytes = (size_t)b->s.batch * 3 * side * side;
    b->feature_bytes = vision_encoder_feature_bytes(b->encoder);
    size_t pixel_bytes = ops_cut_bytes(OPS_DTYPE_U8, (int64_t)n_bytes); /* rounded up, so that features are aligned too */
    b->memory_bytes = pixel_bytes + VISION_ENCODER_RUNS_MAX * (size_t)b->s.batch * b->feature_bytes;
    status st = ops_host_open(b->ctx, &b->memory, b->memory_bytes, e);
    if (st != STATUS_OK) return st;
    b->pixels = b->memory;
    b->features = (unsigned char *)b->memory + pixel_bytes;
    b->ids = calloc(PROMPT_IDS_MAX, sizeof *b->ids);
    if (!b->ids) return fail(e, STATUS_NO_MEMORY, "bench: no memory for a prompt");
    for (size_t i = 0; i < n_bytes; i++) b->pixels[i] = (unsigned char)rng_next(&b->random);
    fill_features(b);
    return STATUS_OK;
}

status bench_engine_open(bench_engine **out, const bench_settings *s, err *e) {
    *out = NULL;
    bench_engine *b = calloc(1, sizeof *b);
    if (!b) return fail(e, STATUS_NO_MEMORY, "bench: no memory");
    b->s = *s;
    b->random = rng_make(1);
    scheduler_settings wishes = {s->kv_bytes, s->max_questions, s->chunk_rows};
    scheduler_callbacks callbacks = {on_token, on_finished};
    status st = model_open(&b->m, &s->model, e);
    if (st == STATUS_OK) st = ops_open(&b->ctx, &(ops_settings){.device = s->device, .n_threads = s->n_threads, .is_fast = s->is_fast}, e);
    if (st == STATUS_OK) st = vision_encoder_open(&b->encoder, b->ctx, b->m, s->batch, e);
    if (st == STATUS_OK) st = scheduler_open(&b->scheduler, b->ctx, b->m, &wishes, &callbacks, e);
    if (st == STATUS_OK) st = open_buffers(b, e);
    if (st != STATUS_OK) {
        bench_engine_close(&b);
        return st;
    }
    *out = b;
    return STATUS_OK;
}

void bench_engine_close(bench_engine **out) {
    bench_engine *b = *out;
    if (!b) return;
    scheduler_close(&b->scheduler);
    vision_encoder_close(&b->encoder);
    if (b->ctx) ops_host_close(b->ctx, &b->memory, b->memory_bytes);
    ops_close(&b->ctx);
    model_close(&b->m);
    free(b->ids);
    free(b);
    *out = NULL;
}

const char *bench_engine_device(const bench_engine *b) { return ops_device_text(b->ctx); }
const model *bench_engine_model(const bench_engine *b) { return b->m; }

size_t bench_engine_kv_element_bytes(const bench_engine *b) {
    const model_decoder_config *d = &model_get_config(b->m)->decoder;
    size_t values = (size_t)2 * KV_BLOCK_TOKENS * (size_t)d->n_layers * (size_t)d->n_kv_heads * (size_t)d->head_size;
    return scheduler_get_memory(b->scheduler).kv / (size_t)scheduler_read_counters(b->scheduler).kv_blocks / values;
}

bench_memory bench_engine_memory(const bench_engine *b) {
    lm_decoder_memory d = scheduler_get_memory(b->scheduler);
    return (bench_memory){vision_encoder_device_bytes(b->encoder), d.weights, d.activations, d.kv};
}

/* ---- runs ---------------------------------------------------------------------------------------- */

/* A question of n_text ids behind picture `image`, which has features of its own. */
static status ask(bench_engine *b, uint64_t image, int n_text, int new_tokens, err *e) {
    int n_vocab = model_get_config(b->m)->decoder.n_vocab_in, n = 0;
    CHECK(BENCH_TEXT_BEFORE + 1 + n_text <= PROMPT_IDS_MAX, "a prompt of the bench fits");
    for (int i = 0; i < BENCH_TEXT_BEFORE; i++) b->ids[n++] = i % n_vocab;
    b->ids[n++] = PROMPT_IMAGE_ID;
    for (int i = 0; i < n_text; i++) b->ids[n++] = (int32_t)rng_below(&b->random, (uint64_t)n_vocab);
    scheduler_question q = {.user = b,
                            .question_idx = b->n_asked++ % QUESTIONS_MAX,
                            .ignores_end = true,
                            .ids = b->ids,
                            .n_ids = n,
                            .features = b->features + (size_t)(image % (uint64_t)b->s.batch) * b->feature_bytes,
                            .max_new_tokens = new_tokens};
    memcpy(q.image.sha256, &image, sizeof image);
    status st = scheduler_submit(b->scheduler, &q, e);
    if (st == STATUS_OK) b->n_unfinished++;
    return st;
}

static status step(bench_engine *b, err *e) {
    TRY(stop_check(e));
    (void)scheduler_step(b->scheduler);
    if (b->failed != STATUS_OK) *e = b->why;
    return b->failed;
}

static status run_to_end(bench_engine *b, err *e) {
    status st = STATUS_OK;
    while (b->n_unfinished > 0 && st == STATUS_OK) st = step(b, e);
    return st;
}

static int n_busy(const bench_engine *b) {
    scheduler_counters c = scheduler_read_counters(b->scheduler);
    return c.n_running + c.n_waiting;
}

static status encode(bench_engine *b, int n, err *e) {
    TRY(stop_check(e));
    return vision_encoder_run(b->encoder, b->pixels, n, b->features, e);
}

/* One picture alone, or batches that follow each other as a node with enough to do lets them. */
static status run_encode(bench_engine *b, const bench_case *c, double *ms, err *e) {
    int n_runs = c->n == 1 ? 1 : vision_encoder_n_runs(b->encoder), n_batches = n_runs == 1 ? 1 : ENCODE_BATCHES;
    int64_t start_us = clock_now_us();
    status st = STATUS_OK;
    for (int begun = 0, ended = 0; ended < n_batches && st == STATUS_OK;) {
        bool begins = begun < n_batches && begun - ended < n_runs;
        unsigned char *features = b->features + (size_t)(begun % n_runs * b->s.batch) * b->feature_bytes;
        st = begins ? vision_encoder_start_dense(b->encoder, b->pixels, c->n, features, e) : vision_encoder_finish(b->encoder, e);
        if (begins) begun++;
        else ended++;
    }
    *ms = (double)(clock_now_us() - start_us) / 1e3 / n_batches;
    return st;
}

static status prompt_fits(const bench_engine *b, const bench_case *c, err *e) {
    int least = BENCH_TEXT_BEFORE + model_get_config(b->m)->tower.n_tokens + 1;
    if (c->tokens >= least) return STATUS_OK;
    return fail(e, STATUS_BAD_ARGUMENT, "case \"%s\": a prompt with a picture has at least %d tokens", c->text, least);
}

static status run_prefill(bench_engine *b, const bench_case *c, err *e) {
    int n_text = c->tokens - BENCH_TEXT_BEFORE - model_get_config(b->m)->tower.n_tokens;
    status st = prompt_fits(b, c, e);
    for (int i = 0; i < c->n && st == STATUS_OK; i++) st = ask(b, b->next_image++, n_text, 1, e);
    return st == STATUS_OK ? run_to_end(b, e) : st;
}

/* Contexts grow while steps are timed: they are `tokens` in the middle. */
static status run_decode(bench_engine *b, const bench_case *c, double *ms, err *e) {
    int n_text = c->tokens - DECODE_STEPS / 2 - BENCH_TEXT_BEFORE - model_get_config(b->m)->tower.n_tokens;
    status st = prompt_fits(b, c, e);
    if (st == STATUS_OK && c->n > b->s.max_questions)
        st = fail(e, STATUS_BAD_ARGUMENT, "case \"%s\": at most %d run at once (--max-questions)", c->text, b->s.max_questions);
    /* Tokens for all steps until the last question has its first one: keys and values of more would be reserved for nothing. */
    int n_steps = c->n * (c->tokens / b->s.chunk_rows + 2) + DECODE_STEPS;
    for (int i = 0; i < c->n && st == STATUS_OK; i++)
        st = ask(b, b->next_image + (uint64_t)(i / c->questions), n_text, n_steps, e);
    b->next_image += (uint64_t)c->n;
    if (st == STATUS_OK && c->tokens + DECODE_STEPS > model_get_config(b->m)->decoder.max_positions)
        st = fail(e, STATUS_BAD_ARGUMENT, "case \"%s\": the model has %d positions", c->text,
                  model_get_config(b->m)->decoder.max_positions);
    while (st == STATUS_OK && b->n_answering < c->n) st = step(b, e);
    int64_t start_us = clock_now_us(), n_before = b->n_tokens;
    for (int i = 0; i < DECODE_STEPS && st == STATUS_OK; i++) st = step(b, e);
    *ms = (double)(clock_now_us() - start_us) / 1e3 / DECODE_STEPS;
    scheduler_cancel(b->scheduler, b);
    b->n_unfinished = 0;
    if (st == STATUS_OK && b->n_tokens - n_before != (int64_t)c->n * DECODE_STEPS)
        return fail(e, STATUS_BAD_ARGUMENT, "case \"%s\": of %d tokens %d steps made %lld: more --kv-bytes or --chunk-rows are needed", c->text,
                    c->n * DECODE_STEPS, DECODE_STEPS, (long long)(b->n_tokens - n_before));
    return st;
}

/* Pictures are encoded as soon as there is room for their questions to run. */
static status run_jobs(bench_engine *b, const bench_case *c, err *e) {
    status st = STATUS_OK;
    for (int done = 0; done < c->n && st == STATUS_OK;) {
        int n = c->n - done < b->s.batch ? c->n - done : b->s.batch;
        if (n_busy(b) >= b->s.max_questions) {
            st = step(b, e);
            continue;
        }
        if (!c->has_features) st = encode(b, n, e);
        for (int i = 0; i < n && st == STATUS_OK; i++)
            for (int q = 0; q < c->questions && st == STATUS_OK; q++)
                st = ask(b, b->next_image + (uint64_t)(done + i), BENCH_TEXT_BEHIND, c->tokens, e);
        done += n;
    }
    if (st == STATUS_OK) st = run_to_end(b, e);
    if (!c->has_prefix) b->next_image += (uint64_t)c->n;
    return st;
}

/* One question about each picture first, which leaves its keys and values. */
static status run_resident(bench_engine *b, const bench_case *c, double *ms, err *e) {
    b->next_image += (uint64_t)c->n;
    bench_case first = *c;
    first.tokens = 1;
    status st = run_jobs(b, &first, e);
    uint64_t evicted = scheduler_read_counters(b->scheduler).evictions;
    int64_t start_us = clock_now_us();
    if (st == STATUS_OK) st = run_jobs(b, c, e);
    *ms = (double)(clock_now_us() - start_us) / 1e3;
    b->next_image += (uint64_t)c->n;
    if (st == STATUS_OK && scheduler_read_counters(b->scheduler).evictions != evicted)
        return fail(e, STATUS_BAD_ARGUMENT, "case \"%s\": keys and values of %d pictures need more --kv-bytes", c->text, c->n);
    return st;
}

status bench_engine_run(bench_engine *b, const bench_case *c, double *ms, err *e) {
    if (c->kind == BENCH_ENCODE && c->n > b->s.batch)
        return fail(e, STATUS_BAD_ARGUMENT, "case \"%s\": at most %d pictures at once (--batch)", c->text, b->s.batch);
    b->failed = STATUS_OK;
    b->n_asked = b->n_answering = 0;
    memset(b->is_answering, 0, sizeof b->is_answering);
    int64_t start_us = clock_now_us();
    status st = STATUS_OK;
    if (c->kind == BENCH_ENCODE) return run_encode(b, c, ms, e);
    if (c->kind == BENCH_DECODE) return run_decode(b, c, ms, e);
    if (c->has_prefix) return run_resident(b, c, ms, e);
    if (c->kind == BENCH_PREFILL) st = run_prefill(b, c, e);
    if (c->kind == BENCH_JOBS) st = run_jobs(b, c, e);
    *ms = (double)(clock_now_us() - start_us) / 1e3;
    return st;
}

ops_ctx *bench_engine_context(bench_engine *b) { return b->ctx; }
