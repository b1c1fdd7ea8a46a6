/* Jobs become questions of the scheduler; tokens become text; the answers of a job go out together.
 *
 * The features of images are only fetched when their prefix is not resident: from the cache, or from the
 * job itself when the cache was away. A miss is told to the broker, which has the image encoded again: it
 * is nobody's fault. Where the machine fails a question (memory, the device), its whole job is given back to the
 * broker for another node; any other failure of a question is its answer. */
#include "lm_node/lm_service.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "lm_node/prompt.h"
#include "lm_node/scheduler.h"

#define ANSWER_BYTES_MAX (1u << 20)

BUILD_CHECK(MODEL_SERVED_NAME_BYTES_MAX == MESSAGE_NAME_BYTES_MAX, "every adapter that is served can be asked for");

/* One question of a job, while it is answered. */
typedef struct {
    bool is_finished;
    int32_t *token_ids;
    size_t n_tokens;
    answer_logprob *logprobs; /* NULL unless wanted */
    int32_t *top_ids;         /* the alternatives that they name */
    float *top_logprobs;
    tokenizer_stream *stream; /* closed where a stop string ended the text */
    buf text;                 /* everything decoded so far */
    size_t n_streamed;        /* bytes of it that were sent */
    size_t n_tokens_streamed;
    uint32_t prompt_tokens;
    answer_finish finish;
    err why;
    bool prefix_cached;
    int64_t first_token_us, finished_us;
} question_state;

/* A job with its questions; the `user` of its questions in the scheduler. */
typedef struct service_job {
    struct service_job *next;
    lm_service *service;
    job *work;
    request request;
    request_memory memory;
    question_state *questions;
    const prompt_template *form;
    int adapter;
    int n_images;
    scheduler_image image; /* all of them, when there are any */
    int32_t stop_id; /* ends an answer besides the tokenizer's own end; -1: nothing does */
    size_t n_unfinished;
    err failure; /* of the machine, at any question: the whole job is another node's then; code OK: none */
    int64_t started_us;
} service_job;

struct lm_service {
    lm_service_parts parts;
    worker *worker;
    ops_ctx *ctx;
    scheduler *scheduler;
    service_job *jobs;
    buf blobs;    /* as they were fetched for the job being started */
    buf features; /* of several images, one after another */
    int32_t *ids; /* of the question being built */
};

/* ---- the life of a job -------------------------------------------------------------------------- */

static void free_service_job(lm_service *s, service_job *j) {
    for (service_job **at = &s->jobs; *at; at = &(*at)->next)
        if (*at == j) {
            *at = j->next;
            break;
        }
    for (size_t i = 0; j->questions && i < j->request.n_questions; i++) {
        question_state *q = &j->questions[i];
        free(q->top_ids);
        free(q->top_logprobs);
        free(q->logprobs);
        free(q->token_ids);
        tokenizer_stream_close(&q->stream);
        buf_deinit(&q->text);
    }
    free(j->questions);
    request_memory_clear(&j->memory);
    if (j->work) job_free(&j->work);
    free(j);
}

static void fail_job(lm_service *s, service_job *j, status code, const char *text) {
    scheduler_cancel(s->scheduler, j);
    worker_answer_failed(s->worker, &j->work, code, text);
    free_service_job(s, j);
}

static bool is_space(unsigned char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* The answer without white space at both ends, as the reference strips it. */
static const char *strip(buf *text) {
    if (!text->data) return "";
    while (text->len_bytes > 0 && is_space(text->data[text->len_bytes - 1]))
        text->data[--text->len_bytes] = 0;
    const char *start = (const char *)text->data;
    while (is_space((unsigned char)*start)) start++;
    return start;
}

static answer answer_of(question_state *q, int64_t started_us) {
    int64_t first_us = q->first_token_us ? q->first_token_us : q->finished_us;
    bool is_error = q->finish == ANSWER_ERROR;
    return (answer){.text = is_error ? "" : strip(&q->text),
                    .token_ids = q->token_ids,
                    .n_tokens = is_error ? 0 : q->n_tokens,
                    .finish_reason = q->finish,
                    .code = is_error ? q->why.code : STATUS_OK,
                    .message = is_error ? q->why.text : "",
                    .prompt_tokens = q->prompt_tokens,
                    .prefix_cached = q->prefix_cached,
                    .logprobs = is_error ? NULL : q->logprobs,
                    .prefill_us = (uint64_t)(first_us - started_us),
                    .generate_us = (uint64_t)(q->finished_us - first_us)};
}

static void finish_job(lm_service *s, service_job *j) {
    answer answers[MESSAGE_QUESTIONS_MAX];
    for (size_t i = 0; i < j->request.n_questions; i++)
        answers[i] = answer_of(&j->questions[i], j->started_us);
    const model_config *c = model_get_config(s->parts.model);
    outcome o = {.answers = answers,
                 .n_answers = j->request.n_questions,
                 .model_name = c->name,
                 .image_tokens = (uint32_t)j->n_images * (uint32_t)c->tower.n_tokens,
                 .wait_us = (uint64_t)(j->started_us - j->work->received_us)};
    buf body;
    buf_init(&body, MESSAGE_ENVELOPE_BYTES_MAX - 4096);
    if (outcome_encode(&o, &body) == STATUS_OK) {
        message m = {.kind = MESSAGE_GENERATED, .body = {body.data, body.len_bytes}};
        worker_answer(s->worker, &j->work, &m, NULL);
        free_service_job(s, j);
    } else {
        fail_job(s, j, STATUS_TOO_LARGE,
                 "the answers are too large for one message; ask for fewer log-probabilities");
    }
    buf_deinit(&body);
}

/* ---- tokens to text ----------------------------------------------------------------------------- */

static void stream_text(lm_service *s, service_job *j, int question_idx) {
    question_state *q = &j->questions[question_idx];
    if (!(j->work->wire.in.m.flags & MESSAGE_FLAG_STREAM)) return;
    /* Leading white space is stripped from the answer, so it is not streamed either. */
    if (q->n_streamed == 0)
        while (q->n_streamed < q->text.len_bytes && is_space(q->text.data[q->n_streamed])) q->n_streamed++;
    if (q->n_tokens == q->n_tokens_streamed) return;
    tokens_piece piece = {q->token_ids + q->n_tokens_streamed, q->n_tokens - q->n_tokens_streamed,
                          q->text.data ? (const char *)q->text.data + q->n_streamed : ""};
    buf body;
    buf_init(&body, MESSAGE_ENVELOPE_BYTES_MAX);
    if (tokens_encode(&piece, &body) == STATUS_OK)
        worker_stream(s->worker, j->work, (uint32_t)question_idx, (uint32_t)q->n_tokens_streamed,
                      (bytes){body.data, body.len_bytes});
    buf_deinit(&body);
    q->n_tokens_streamed = q->n_tokens;
    q->n_streamed = q->text.len_bytes;
}

/* room: alternatives that there is memory for at each token. */
static void keep_logprob(question_state *q, size_t room, const sampled_token *t) {
    size_t n = (size_t)t->n_top;
    CHECK(n <= room, "no more alternatives come than were asked for");
    int32_t *ids = q->top_ids + q->n_tokens * room;
    float *values = q->top_logprobs + q->n_tokens * room;
    for (size_t i = 0; i < n; i++) {
        ids[i] = t->top[i].id;
        values[i] = t->top[i].logprob;
    }
    q->logprobs[q->n_tokens] = (answer_logprob){t->id, t->logprob, ids, values, n};
}

/* Cuts the text before the earliest stop string; true when there was one. */
static bool cut_at_stop(const request_sampling *sampling, buf *text) {
    const char *first = NULL;
    for (uint32_t i = 0; text->data && i < sampling->n_stop; i++) {
        const char *at = strstr((const char *)text->data, sampling->stop[i]);
        if (at && (!first || at < first)) first = at;
    }
    if (!first) return false;
    text->len_bytes = (size_t)(first - (const char *)text->data);
    text->data[text->len_bytes] = 0;
    return true;
}

static bool on_token(void *user, int question_idx, const sampled_token *t) {
    service_job *j = user;
    lm_service *s = j->service;
    question_state *q = &j->questions[question_idx];
    if (q->n_tokens == 0) q->first_token_us = clock_now_us();
    if (q->logprobs) keep_logprob(q, j->request.sampling.n_logprobs, t);
    q->token_ids[q->n_tokens++] = t->id;
    if (t->id == j->stop_id) return true;
    if (tokenizer_stream_push(q->stream, t->id, &q->text) != STATUS_OK) return true;
    if (cut_at_stop(&j->request.sampling, &q->text)) {
        tokenizer_stream_close(&q->stream); /* what it holds back stands behind the cut */
        return true;
    }
    /* With stop strings the text may still be cut back, so it is held until the answer is finished. */
    if (j->request.sampling.n_stop == 0) stream_text(s, j, question_idx);
    return false;
}

static void on_finished(void *user, int question_idx, scheduler_finish reason, bool prefix_cached,
                        const err *why) {
    service_job *j = user;
    question_state *q = &j->questions[question_idx];
    q->is_finished = true;
    q->prefix_cached = prefix_cached;
    q->finished_us = clock_now_us();
    q->finish = reason == SCHEDULER_STOP     ? ANSWER_STOP
                : reason == SCHEDULER_LENGTH ? ANSWER_LENGTH
                                             : ANSWER_ERROR;
    j->n_unfinished--;
    if (why) q->why = *why;
    if (why && status_is_of_machine(why->code)) j->failure = *why;
    if (reason == SCHEDULER_ERROR) return;
    if (q->stream) IGNORE(tokenizer_stream_flush(q->stream, &q->text), "the text is at its limit");
    if (cut_at_stop(&j->request.sampling, &q->text)) q->finish = ANSWER_STOP;
    stream_text(j->service, j, question_idx);
}

/* ---- starting ------------------------------------------------------------------------------------ */

static void question_refused(service_job *j, size_t i, const err *e) {
    question_state *q = &j->questions[i];
    q->is_finished = true;
    q->finish = ANSWER_ERROR;
    q->why = *e;
    q->finished_us = clock_now_us();
    j->n_unfinished--;
}

static status open_question(service_job *j, size_t i, err *e) {
    const request_sampling *sampling = &j->request.sampling;
    question_state *q = &j->questions[i];
    buf_init(&q->text, ANSWER_BYTES_MAX);
    q->token_ids = calloc(sampling->max_new_tokens, sizeof *q->token_ids);
    bool has_memory = q->token_ids != NULL;
    if (sampling->want_logprobs) {
        size_t n = (size_t)sampling->max_new_tokens * sampling->n_logprobs + 1;
        q->logprobs = calloc(sampling->max_new_tokens, sizeof *q->logprobs);
        q->top_ids = calloc(n, sizeof *q->top_ids);
        q->top_logprobs = calloc(n, sizeof *q->top_logprobs);
        has_memory = has_memory && q->logprobs && q->top_ids && q->top_logprobs;
    }
    if (!has_memory || tokenizer_stream_open(&q->stream, model_get_tokenizer(j->service->parts.model)) != STATUS_OK)
        return fail(e, STATUS_NO_MEMORY, "question: no memory for an answer of %u tokens",
                    sampling->max_new_tokens);
    return STATUS_OK;
}

/* The random stream of a question depends on what is asked, so that a repeated item repeats its answer. */
static uint64_t stream_of(const service_job *j, size_t i) {
    const message *m = &j->work->wire.in.m;
    return hash_xxh3(m->item.bytes, sizeof m->item.bytes) + i;
}

static scheduler_question question_of(service_job *j, size_t i, const int32_t *ids, size_t n_ids,
                                      const void *features) {
    const request_sampling *p = &j->request.sampling;
    scheduler_question q = {.user = j,
                            .question_idx = (int)i,
                            .adapter = j->adapter,
                            .ids = ids,
                            .n_ids = (int)n_ids,
                            .image = j->image,
                            .features = features,
                            .max_new_tokens = (int)p->max_new_tokens,
                            .sampling = {.temperature = p->temperature,
                                         .top_k = (int)p->top_k,
                                         .top_p = p->top_p,
                                         .min_p = p->min_p,
                                         .wants_logprob = p->want_logprobs,
                                         .n_logprobs = (int)p->n_logprobs,
                                         .seed = p->seed,
                                         .stream = stream_of(j, i)}};
    return q;
}

/* The blobs that came with the job because the cache was away, one for each image and of equal sizes. */
static status gather_handed(lm_service *s, const service_job *j) {
    size_t n = wire_payload_bytes(j->work->wire.payload);
    buf_clear(&s->blobs);
    unsigned char *to = buf_reserve(&s->blobs, n);
    if (!to) return STATUS_NOT_FOUND;
    wire_payload_copy(j->work->wire.payload, to);
    s->blobs.len_bytes = n;
    return STATUS_OK;
}

/* The blob of the job's image i: it came with the job when the cache was away, else it is in the cache. */
static status find_blob(lm_service *s, const service_job *j, int i, blob *b) {
    const message *m = &j->work->wire.in.m;
    const unsigned char *sha256 = j->request.n_images ? j->request.images[i] : m->image_sha256;
    cache_key key;
    cache_key_make(&key, model_tower_fingerprint(s->parts.model),
                   (cache_preprocess){VISION_PREPROCESS_VERSION, (m->flags & MESSAGE_FLAG_EXIF) != 0}, sha256);
    if (!j->work->wire.payload) return cache_get(s->parts.cache, b, &s->blobs, &key);
    size_t each = s->blobs.len_bytes / (size_t)j->n_images;
    err e;
    status st = blob_decode(b, (bytes){s->blobs.data + (size_t)i * each, each}, &key, &e);
    if (st != STATUS_OK) log_warn("features_refused", "key=%s reason=\"%s\"", key.text, e.text);
    return st;
}

/* The features of the job's images, fetched once. NOT_FOUND: some are nowhere to be had, or not as they should
 * be. */
static status fetch_features(lm_service *s, const service_job *j, const void **features) {
    const model_config *c = model_get_config(s->parts.model);
    size_t want = (size_t)c->tower.n_tokens * (size_t)c->tower.hidden *
                  dtype_bytes(model_tower_dtype(s->parts.model));
    if (*features) return STATUS_OK;
    status st = j->work->wire.payload ? gather_handed(s, j) : STATUS_OK;
    buf_clear(&s->features);
    for (int i = 0; i < j->n_images && st == STATUS_OK; i++) {
        blob b;
        st = find_blob(s, j, i, &b);
        if (st == STATUS_OK && ((int)b.n_tokens != c->tower.n_tokens || (int)b.width != c->tower.hidden ||
                                b.values.len_bytes != want))
            st = STATUS_NOT_FOUND;
        if (st == STATUS_OK && j->n_images == 1) {
            *features = b.values.data; /* a single image's stay where the blob is */
            return STATUS_OK;
        }
        if (st == STATUS_OK) st = buf_append(&s->features, b.values.data, want);
    }
    if (st == STATUS_OK) *features = s->features.data;
    return st;
}

/* Submits one question. NOT_FOUND: the features are missing; any other failure is the question's own. */
static status start_question(lm_service *s, service_job *j, size_t i, const void **features, err *e) {
    const request_question *asked = &j->request.questions[i];
    size_t n_ids = 0;
    status st = open_question(j, i, e);
    if (st == STATUS_OK)
        st = prompt_build(s->ids, &n_ids, PROMPT_IDS_MAX, model_get_tokenizer(s->parts.model), j->form, asked,
                          (size_t)j->n_images, e);
    if (st != STATUS_OK) return st;
    size_t n_places = 0;
    for (size_t k = 0; k < n_ids; k++) n_places += s->ids[k] == PROMPT_IMAGE_ID;
    j->questions[i].prompt_tokens = (uint32_t)(n_ids - n_places);
    scheduler_question q = question_of(j, i, s->ids, n_ids, NULL);
    if (sampler_params_check(&q.sampling, e) != STATUS_OK) return e->code;
    if (n_places > 0 && !scheduler_has_prefix(s->scheduler, &q)) {
        if (fetch_features(s, j, features) != STATUS_OK) return STATUS_NOT_FOUND;
        q.features = *features;
    }
    return scheduler_submit(s->scheduler, &q, e);
}

static void start_job(lm_service *s, service_job *j) {
    const void *features = NULL;
    for (size_t i = 0; i < j->request.n_questions; i++) {
        err e = {0};
        status st = start_question(s, j, i, &features, &e);
        if (st == STATUS_NOT_FOUND) {
            scheduler_cancel(s->scheduler, j);
            message m = {.kind = MESSAGE_FEATURES_MISSING};
            worker_answer(s->worker, &j->work, &m, NULL);
            free_service_job(s, j);
            return;
        }
        if (status_is_of_machine(st)) {
            fail_job(s, j, st, e.text);
            return;
        }
        if (st != STATUS_OK) question_refused(j, i, &e);
    }
    wire_payload_close(&j->work->wire.payload); /* what was handed over is with the scheduler now */
    if (j->n_unfinished == 0) finish_job(s, j);
}

/* The template that the request names, or the checkpoint's own. */
static status choose_form(const lm_service *s, service_job *j, err *e) {
    const char *name = j->request.template_name;
    j->form = name && *name ? prompt_template_find(name)
                            : prompt_template_of(model_get_config(s->parts.model)->decoder.kind);
    if (!j->form)
        return fail(e, STATUS_BAD_ARGUMENT, "template \"%s\" is unknown, there are: %s", name, prompt_template_names());
    j->stop_id = j->form->stop ? tokenizer_special_id(model_get_tokenizer(s->parts.model), j->form->stop) : -1;
    return STATUS_OK;
}

static status choose_adapter(const lm_service *s, service_job *j, err *e) {
    const char *name = j->request.adapter;
    const model *m = s->parts.model;
    j->adapter = name && *name ? model_find_served(m, name) : 0;
    if (j->adapter || !name || !*name) return STATUS_OK;
    if (model_n_served(m) == 0)
        return fail(e, STATUS_BAD_ARGUMENT, "adapter \"%s\" is unknown, none is served", name);
    return fail(e, STATUS_BAD_ARGUMENT, "adapter \"%s\" is unknown, %d are served, the first is \"%s\"", name,
                model_n_served(m), model_served_name(m, 1));
}

/* Several images are known by their own hashes and not by that of the bundle: whoever names others than the
 * bundle holds shares a prefix with nobody who does not name the same. */
static status note_images(service_job *j, err *e) {
    const message *m = &j->work->wire.in.m;
    bool is_bundle = (m->flags & MESSAGE_FLAG_BUNDLE) != 0;
    if (is_bundle != (j->request.n_images > 0))
        return fail(e, STATUS_BAD_MESSAGE, "request: %zu hashes of images with %s", j->request.n_images,
                    is_bundle ? "a bundle" : "no bundle");
    j->n_images = is_bundle ? (int)j->request.n_images : (m->flags & MESSAGE_FLAG_IMAGE) != 0;
    j->image.flags = m->flags & MESSAGE_FLAGS_OF_IMAGE;
    if (is_bundle) hash_sha256(j->image.sha256, j->request.images, j->request.n_images * sizeof *j->request.images);
    else memcpy(j->image.sha256, m->image_sha256, sizeof j->image.sha256);
    return STATUS_OK;
}

static void service_start(void *self, job *work) {
    lm_service *s = self;
    service_job *j = calloc(1, sizeof *j);
    if (!j) {
        worker_answer_failed(s->worker, &work, STATUS_NO_MEMORY, "job: no memory");
        return;
    }
    j->service = s;
    j->work = work;
    j->started_us = clock_now_us();
    j->next = s->jobs;
    s->jobs = j;
    err e;
    status st = request_decode(&j->request, &j->memory, work->wire.in.m.body, &e);
    if (st == STATUS_OK) st = note_images(j, &e);
    if (st == STATUS_OK) st = choose_form(s, j, &e);
    if (st == STATUS_OK) st = choose_adapter(s, j, &e);
    if (st == STATUS_OK) {
        j->questions = calloc(j->request.n_questions, sizeof *j->questions);
        if (!j->questions) st = fail(&e, STATUS_NO_MEMORY, "job: no memory");
    }
    if (st != STATUS_OK) {
        fail_job(s, j, st, e.text);
        return;
    }
    j->n_unfinished = j->request.n_questions;
    start_job(s, j);
}

/* ---- the worker's handler ------------------------------------------------------------------------ */

static void service_cancel(void *self, const item_id *item, uint32_t attempt) {
    lm_service *s = self;
    for (service_job *j = s->jobs; j; j = j->next) {
        const message *m = &j->work->wire.in.m;
        if (m->attempt != attempt || memcmp(&m->item, item, sizeof *item) != 0) continue;
        scheduler_cancel(s->scheduler, j);
        worker_forget(s->worker, &j->work);
        free_service_job(s, j);
        return;
    }
}

static bool service_step(void *self) {
    lm_service *s = self;
    bool has_more = scheduler_step(s->scheduler);
    for (service_job *j = s->jobs, *next; j; j = next) {
        next = j->next;
        if (j->failure.code != STATUS_OK) fail_job(s, j, j->failure.code, j->failure.text);
        else if (j->n_unfinished == 0) finish_job(s, j);
    }
    return has_more;
}

static size_t service_metrics(void *self, metric *out, size_t max) {
    lm_service *s = self;
    scheduler_counters c = scheduler_read_counters(s->scheduler);
    cache_counters cached = cache_counters_read(s->parts.cache);
    const metric all[] = {
        {"questions_running", (double)c.n_running},
        {"questions_waiting", (double)c.n_waiting},
        {"kv_blocks", (double)c.kv_blocks},
        {"kv_blocks_in_use", (double)c.kv_blocks_in_use},
        {"prefill_tokens", (double)c.prefill_tokens},
        {"prefix_tokens_reused", (double)c.prefix_tokens_reused},
        {"decode_tokens", (double)c.decode_tokens},
        {"prefixes_computed", (double)c.prefixes},
        {"prefixes_evicted", (double)c.evictions},
        {"engine_steps", (double)c.steps},
        {"cache_hits", (double)cached.hits},
        {"cache_misses", (double)cached.misses},
        {"cache_corrupt", (double)cached.corrupt},
    };
    size_t n = sizeof all / sizeof *all;
    if (n > max) n = max;
    memcpy(out, all, n * sizeof *all);
    return n;
}

worker_handler lm_service_handler(lm_service *s) {
    return (worker_handler){.self = s,
                            .start = service_start,
                            .cancel = service_cancel,
                            .step = service_step,
                            .metrics = service_metrics};
}

static void operator_done(void *user) { worker_made_progress(user); }

void lm_service_attach(lm_service *s, worker *w) {
    s->worker = w;
    ops_set_progress(s->ctx, operator_done, w);
}

lm_service_settings lm_service_defaults(const char *device) {
    bool is_cpu = strncmp(device, "cpu", 3) == 0;
    return (lm_service_settings){.ops = {.device = device},
                                 .kv_bytes = is_cpu ? UINT64_C(512) << 20 : UINT64_C(16) << 30,
                                 .max_questions = is_cpu ? 64 : 128,
                                 .chunk_rows = is_cpu ? 256 : 2048};
}

status lm_service_open(lm_service **s, const lm_service_parts *parts,
                       const lm_service_settings *settings, err *e) {
    *s = NULL;
    lm_service *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "language service");
    made->parts = *parts;
    buf_init(&made->blobs, BLOB_BYTES_MAX);
    buf_init(&made->features, MESSAGE_IMAGES_MAX * BLOB_VALUES_MAX);
    made->ids = calloc(PROMPT_IDS_MAX, sizeof *made->ids);
    scheduler_settings wishes = {settings->kv_bytes, settings->max_questions, settings->chunk_rows};
    scheduler_callbacks callbacks = {on_token, on_finished};
    status st = made->ids ? STATUS_OK : fail(e, STATUS_NO_MEMORY, "language service");
    if (st == STATUS_OK) st = ops_open(&made->ctx, &settings->ops, e);
    if (st == STATUS_OK)
        st = scheduler_open(&made->scheduler, made->ctx, parts->model, &wishes, &callbacks, e);
    if (st != STATUS_OK) {
        lm_service_close(&made);
        return st;
    }
    *s = made;
    return STATUS_OK;
}

void lm_service_close(lm_service **s) {
    if (!*s) return;
    while ((*s)->jobs) {
        scheduler_cancel((*s)->scheduler, (*s)->jobs);
        free_service_job(*s, (*s)->jobs);
    }
    scheduler_close(&(*s)->scheduler);
    ops_close(&(*s)->ctx);
    buf_deinit(&(*s)->blobs);
    buf_deinit(&(*s)->features);
    free((*s)->ids);
    free(*s);
    *s = NULL;
}
