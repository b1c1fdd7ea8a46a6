/* The parts of a message the broker does not read: what is asked, what is answered, and reports. */
#include "proto/request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/decode_memory.h"
#include "proto/generated/inference.pb-c.h"

#define METRICS_MAX 256
#define NODES_MAX   4096

const char *answer_finish_name(answer_finish reason) {
    switch (reason) {
    case ANSWER_STOP: return "stop";
    case ANSWER_LENGTH: return "length";
    case ANSWER_ERROR: return "error";
    case ANSWER_CANCELLED: return "cancelled";
    }
    return "error";
}

/* ---- encoding: a tree of views in one block, packed into the buffer ------------------------- */

static char *text_view(const char *text) { return (char *)(uintptr_t)(text ? text : ""); }

static status pack(const ProtobufCMessage *m, buf *out) {
    size_t n = protobuf_c_message_get_packed_size(m);
    unsigned char *to = buf_reserve(out, n);
    if (!to) return n > out->max_bytes - out->len_bytes ? STATUS_TOO_LARGE : STATUS_NO_MEMORY;
    out->len_bytes += protobuf_c_message_pack(m, to);
    return STATUS_OK;
}

static void sampling_to_wire(Mipha__Sampling *w, const request_sampling *s, char **stop) {
    mipha__sampling__init(w);
    w->temperature = s->temperature;
    w->top_p = s->top_p;
    w->top_k = s->top_k;
    w->min_p = s->min_p;
    w->seed = s->seed;
    w->max_new_tokens = s->max_new_tokens;
    w->logprobs = s->n_logprobs;
    w->want_logprobs = s->want_logprobs;
    CHECK(s->n_stop <= MESSAGE_STOP_MAX, "at most MESSAGE_STOP_MAX stop strings");
    for (uint32_t i = 0; i < s->n_stop; i++) stop[i] = text_view(s->stop[i]);
    w->n_stop = s->n_stop;
    w->stop = stop;
}

static size_t turns_to_wire(Mipha__Turn *turns, Mipha__Turn **pointers, const request_question *q) {
    CHECK(q->n_turns <= MESSAGE_TURNS_MAX, "at most MESSAGE_TURNS_MAX turns");
    for (size_t i = 0; i < q->n_turns; i++) {
        mipha__turn__init(&turns[i]);
        turns[i].question = text_view(q->turns[i].question);
        turns[i].answer = text_view(q->turns[i].answer);
        pointers[i] = &turns[i];
    }
    return q->n_turns;
}

status request_encode(const request *r, buf *out) {
    CHECK(r->n_questions <= MESSAGE_QUESTIONS_MAX, "at most MESSAGE_QUESTIONS_MAX questions");
    Mipha__Question questions[MESSAGE_QUESTIONS_MAX];
    Mipha__Question *pointers[MESSAGE_QUESTIONS_MAX];
    size_t n_turns = 0, at = 0;
    for (size_t i = 0; i < r->n_questions; i++) n_turns += r->questions[i].n_turns;
    Mipha__Turn *turns = calloc(n_turns + 1, sizeof *turns);
    Mipha__Turn **turn_pointers = calloc(n_turns + 1, sizeof *turn_pointers);
    if (!turns || !turn_pointers) {
        free(turns), free(turn_pointers);
        return STATUS_NO_MEMORY;
    }
    char *stop[MESSAGE_STOP_MAX];
    Mipha__Sampling sampling;
    Mipha__Request w = MIPHA__REQUEST__INIT;

    for (size_t i = 0; i < r->n_questions; i++) {
        mipha__question__init(&questions[i]);
        questions[i].prompt = text_view(r->questions[i].prompt);
        questions[i].raw = r->questions[i].is_raw;
        questions[i].turns = turn_pointers + at;
        questions[i].n_turns = turns_to_wire(turns + at, turn_pointers + at, &r->questions[i]);
        at += questions[i].n_turns;
        pointers[i] = &questions[i];
    }
    sampling_to_wire(&sampling, &r->sampling, stop);
    w.n_questions = r->n_questions;
    w.questions = pointers;
    w.sampling = &sampling;
    w.template_ = text_view(r->template_name);
    w.adapter = text_view(r->adapter);
    ProtobufCBinaryData images[MESSAGE_IMAGES_MAX];
    CHECK(r->n_images <= MESSAGE_IMAGES_MAX, "at most MESSAGE_IMAGES_MAX images");
    for (size_t i = 0; i < r->n_images; i++)
        images[i] = (ProtobufCBinaryData){HASH_SHA256_BYTES, (uint8_t *)(uintptr_t)r->images[i]};
    w.n_images = r->n_images;
    w.images = images;
    status st = pack(&w.base, out);
    free(turns), free(turn_pointers);
    return st;
}

static void logprob_to_wire(Mipha__TokenLogprob *w, const answer_logprob *l) {
    mipha__token_logprob__init(w);
    w->token_id = l->token_id;
    w->logprob = l->logprob;
    w->n_top_ids = w->n_top_logprobs = l->n_top;
    w->top_ids = (int32_t *)(uintptr_t)l->top_ids;
    w->top_logprobs = (float *)(uintptr_t)l->top_logprobs;
}

static void answer_to_wire(Mipha__Answer *w, const answer *a, Mipha__TokenLogprob *logprobs,
                           Mipha__TokenLogprob **pointers) {
    mipha__answer__init(w);
    w->text = text_view(a->text);
    w->n_token_ids = a->n_tokens;
    w->token_ids = (int32_t *)(uintptr_t)a->token_ids;
    w->finish_reason = (uint32_t)a->finish_reason;
    w->code = (uint32_t)a->code;
    w->message = text_view(a->message);
    w->prompt_tokens = a->prompt_tokens;
    w->prefix_cached = a->prefix_cached;
    w->prefill_us = a->prefill_us;
    w->generate_us = a->generate_us;
    if (!a->logprobs) return;
    for (size_t i = 0; i < a->n_tokens; i++) {
        logprob_to_wire(&logprobs[i], &a->logprobs[i]);
        pointers[i] = &logprobs[i];
    }
    w->n_logprobs = a->n_tokens;
    w->logprobs = pointers;
}

status outcome_encode(const outcome *o, buf *out) {
    CHECK(o->n_answers <= MESSAGE_QUESTIONS_MAX, "at most one answer a question");
    size_t n_logprobs = 0;
    for (size_t i = 0; i < o->n_answers; i++)
        if (o->answers[i].logprobs) n_logprobs += o->answers[i].n_tokens;

    Mipha__Answer answers[MESSAGE_QUESTIONS_MAX];
    Mipha__Answer *pointers[MESSAGE_QUESTIONS_MAX];
    Mipha__TokenLogprob *logprobs = calloc(n_logprobs + 1, sizeof *logprobs);
    Mipha__TokenLogprob **logprob_pointers = calloc(n_logprobs + 1, sizeof *logprob_pointers);
    status st = STATUS_NO_MEMORY;
    if (!logprobs || !logprob_pointers) goto done;

    size_t at = 0;
    for (size_t i = 0; i < o->n_answers; i++) {
        answer_to_wire(&answers[i], &o->answers[i], logprobs + at, logprob_pointers + at);
        at += answers[i].n_logprobs;
        pointers[i] = &answers[i];
    }
    Mipha__Outcome w = MIPHA__OUTCOME__INIT;
    w.n_answers = o->n_answers;
    w.answers = pointers;
    w.model_name = text_view(o->model_name);
    w.image_tokens = o->image_tokens;
    w.wait_us = o->wait_us;
    st = pack(&w.base, out);
done:
    free(logprob_pointers);
    free(logprobs);
    return st;
}

status tokens_encode(const tokens_piece *t, buf *out) {
    Mipha__Tokens w = MIPHA__TOKENS__INIT;
    w.n_token_ids = t->n_tokens;
    w.token_ids = (int32_t *)(uintptr_t)t->token_ids;
    w.text = text_view(t->text);
    return pack(&w.base, out);
}

status vision_report_encode(const vision_report *v, buf *out) {
    Mipha__VisionReport w = MIPHA__VISION_REPORT__INIT;
    w.features_cached = v->features_cached;
    w.decode_us = v->decode_us;
    w.encode_us = v->encode_us;
    w.width = v->width;
    w.height = v->height;
    w.orientation = v->orientation;
    return pack(&w.base, out);
}

static void metrics_to_wire(Mipha__Metric *w, Mipha__Metric **pointers, const metric *m, size_t n) {
    for (size_t i = 0; i < n; i++) {
        mipha__metric__init(&w[i]);
        w[i].name = text_view(m[i].name);
        w[i].value = m[i].value;
        pointers[i] = &w[i];
    }
}

status status_report_encode(const status_report *s, buf *out) {
    size_t n_metrics = s->n_metrics;
    for (size_t i = 0; i < s->n_nodes; i++) n_metrics += s->nodes[i].n_metrics;

    Mipha__Metric *metrics = calloc(n_metrics + 1, sizeof *metrics);
    Mipha__Metric **metric_pointers = calloc(n_metrics + 1, sizeof *metric_pointers);
    Mipha__NodeStatus *nodes = calloc(s->n_nodes + 1, sizeof *nodes);
    Mipha__NodeStatus **node_pointers = calloc(s->n_nodes + 1, sizeof *node_pointers);
    status st = STATUS_NO_MEMORY;
    if (!metrics || !metric_pointers || !nodes || !node_pointers) goto done;

    metrics_to_wire(metrics, metric_pointers, s->metrics, s->n_metrics);
    size_t at = s->n_metrics;
    for (size_t i = 0; i < s->n_nodes; i++) {
        const node_status *from = &s->nodes[i];
        mipha__node_status__init(&nodes[i]);
        nodes[i].name = text_view(from->name);
        nodes[i].role = from->role;
        nodes[i].slots = from->slots;
        nodes[i].running = from->running;
        nodes[i].silent_ms = from->silent_ms;
        nodes[i].draining = from->is_draining;
        metrics_to_wire(metrics + at, metric_pointers + at, from->metrics, from->n_metrics);
        nodes[i].n_metrics = from->n_metrics;
        nodes[i].metrics = metric_pointers + at;
        at += from->n_metrics;
        node_pointers[i] = &nodes[i];
    }
    Mipha__StatusReport w = MIPHA__STATUS_REPORT__INIT;
    w.n_metrics = s->n_metrics;
    w.metrics = metric_pointers;
    w.n_nodes = s->n_nodes;
    w.nodes = node_pointers;
    st = pack(&w.base, out);
done:
    free(node_pointers);
    free(nodes);
    free(metric_pointers);
    free(metrics);
    return st;
}

/* ---- decoding -------------------------------------------------------------------------------- */

void request_memory_clear(request_memory *memory) {
    free(memory->memory);
    *memory = (request_memory){0};
}

/* Unpacks into a fresh block which *keep owns from then on; NULL with e filled on failure. */
static void *unpack(const ProtobufCMessageDescriptor *type, decode_memory *block, bytes body,
                    const char *what, err *e) {
    *block = (decode_memory){0};
    if (body.len_bytes > MESSAGE_ENVELOPE_BYTES_MAX) {
        (void)fail(e, STATUS_BAD_MESSAGE, "%s of %zu bytes, limit %u", what, body.len_bytes,
                   MESSAGE_ENVELOPE_BYTES_MAX);
        return NULL;
    }
    if (!decode_memory_open(block, body.len_bytes, 16 * (size_t)MESSAGE_ENVELOPE_BYTES_MAX)) {
        (void)fail(e, STATUS_NO_MEMORY, "%s: no memory to read %zu bytes", what, body.len_bytes);
        return NULL;
    }
    ProtobufCAllocator allocator = decode_memory_allocator(block);
    void *m = protobuf_c_message_unpack(type, &allocator, body.len_bytes, body.data);
    if (!m) {
        (void)fail(e, STATUS_BAD_MESSAGE, "%s: malformed", what);
        free(block->base);
        *block = (decode_memory){0};
    }
    return m;
}

static status keep_or_free(status st, request_memory *keep, const decode_memory *block) {
    if (st == STATUS_OK)
        *keep = (request_memory){block->base, block->used_bytes, block->size_bytes};
    else
        free(block->base);
    return st;
}

/* Prompts become token ids and answers become JSON: neither takes broken UTF-8. */
static bool is_utf8(const char *text) {
    const unsigned char *p = (const unsigned char *)text;
    while (*p) {
        int n = *p < 0x80 ? 0 : *p >= 0xc2 && *p < 0xe0 ? 1 : (*p & 0xf0) == 0xe0 ? 2
                : *p >= 0xf0 && *p < 0xf5 ? 3 : -1;
        if (n < 0) return false;
        unsigned first = *p++;
        for (int i = 0; i < n; i++, p++) {
            if ((*p & 0xc0) != 0x80) return false;
            if (i > 0) continue;
            if ((first == 0xe0 && *p < 0xa0) || (first == 0xed && *p > 0x9f) ||
                (first == 0xf0 && *p < 0x90) || (first == 0xf4 && *p > 0x8f))
                return false; /* overlong, surrogate, or beyond U+10FFFF */
        }
    }
    return true;
}

static status take_sampling(request_sampling *s, const Mipha__Sampling *w, err *e) {
    if (!w) return fail(e, STATUS_BAD_MESSAGE, "request: sampling is missing");
    if (!(w->temperature >= 0.0f && w->temperature <= 100.0f))
        return fail(e, STATUS_BAD_MESSAGE, "request: temperature %g, allowed are 0 to 100",
                    (double)w->temperature);
    if (!(w->top_p >= 0.0f && w->top_p <= 1.0f))
        return fail(e, STATUS_BAD_MESSAGE, "request: top_p %g, allowed are 0 to 1",
                    (double)w->top_p);
    if (!(w->min_p >= 0.0f && w->min_p <= 1.0f))
        return fail(e, STATUS_BAD_MESSAGE, "request: min_p %g, allowed are 0 to 1",
                    (double)w->min_p);
    if (w->max_new_tokens < 1 || w->max_new_tokens > MESSAGE_NEW_TOKENS_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "request: max_new_tokens %u, allowed are 1 to %d",
                    w->max_new_tokens, MESSAGE_NEW_TOKENS_MAX);
    if (w->logprobs > MESSAGE_LOGPROBS_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "request: logprobs %u, limit %d", w->logprobs,
                    MESSAGE_LOGPROBS_MAX);
    if (w->n_stop > MESSAGE_STOP_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "request: %zu stop strings, limit %d", w->n_stop,
                    MESSAGE_STOP_MAX);
    for (size_t i = 0; i < w->n_stop; i++) {
        size_t n = strlen(w->stop[i]);
        if (n < 1 || n > MESSAGE_STOP_BYTES_MAX || !is_utf8(w->stop[i]))
            return fail(e, STATUS_BAD_MESSAGE,
                        "request: stop string %zu has %zu bytes; needs 1 to %d of valid UTF-8", i, n,
                        MESSAGE_STOP_BYTES_MAX);
        s->stop[i] = w->stop[i];
    }
    s->n_stop = (uint32_t)w->n_stop;
    s->temperature = w->temperature;
    s->top_p = w->top_p;
    s->top_k = w->top_k;
    s->min_p = w->min_p;
    s->seed = w->seed;
    s->max_new_tokens = w->max_new_tokens;
    s->n_logprobs = w->logprobs;
    s->want_logprobs = w->want_logprobs;
    return STATUS_OK;
}

/* One text of question i, whose bytes so far are in *n_bytes. */
static status take_text(const char *text, size_t i, size_t *n_bytes, err *e) {
    *n_bytes += strlen(text);
    if (*n_bytes > MESSAGE_PROMPT_BYTES_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "request: question %zu has %zu bytes, limit %d", i, *n_bytes,
                    MESSAGE_PROMPT_BYTES_MAX);
    if (!is_utf8(text)) return fail(e, STATUS_BAD_MESSAGE, "request: question %zu is not valid UTF-8", i);
    return STATUS_OK;
}

static status take_question(request_question *q, const Mipha__Question *w, size_t i, decode_memory *block, err *e) {
    size_t n_bytes = 0;
    status st = take_text(w->prompt, i, &n_bytes, e);
    if (st != STATUS_OK) return st;
    *q = (request_question){.prompt = w->prompt, .is_raw = w->raw != 0, .n_turns = w->n_turns};
    if (w->n_turns == 0) return STATUS_OK;
    if (w->n_turns > MESSAGE_TURNS_MAX || w->raw)
        return fail(e, STATUS_BAD_MESSAGE, "request: question %zu has %zu turns before it, allowed are 0 to %d, none "
                    "before a raw one", i, w->n_turns, MESSAGE_TURNS_MAX);
    request_turn *turns = decode_memory_alloc(block, w->n_turns * sizeof *turns);
    if (!turns) return fail(e, STATUS_NO_MEMORY, "request: no memory for turns");
    for (size_t k = 0; k < w->n_turns && st == STATUS_OK; k++) {
        turns[k] = (request_turn){w->turns[k]->question, w->turns[k]->answer};
        st = take_text(turns[k].question, i, &n_bytes, e);
        if (st == STATUS_OK) st = take_text(turns[k].answer, i, &n_bytes, e);
    }
    q->turns = turns;
    return st;
}

static status take_name(const char **out, const char *name, const char *what, err *e) {
    *out = name;
    if (strlen(name) <= MESSAGE_NAME_BYTES_MAX && is_utf8(name)) return STATUS_OK;
    return fail(e, STATUS_BAD_MESSAGE, "request: the %s's name has %zu bytes; allowed are 0 to %d of valid UTF-8", what,
                strlen(name), MESSAGE_NAME_BYTES_MAX);
}

static status take_images(request *r, const Mipha__Request *w, decode_memory *block, err *e) {
    if (w->n_images == 0) return STATUS_OK;
    if (w->n_images < 2 || w->n_images > MESSAGE_IMAGES_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "request: %zu images, allowed are 2 to %d", w->n_images, MESSAGE_IMAGES_MAX);
    unsigned char(*images)[HASH_SHA256_BYTES] = decode_memory_alloc(block, w->n_images * sizeof *images);
    if (!images) return fail(e, STATUS_NO_MEMORY, "request: no memory for images");
    for (size_t i = 0; i < w->n_images; i++) {
        if (w->images[i].len != HASH_SHA256_BYTES)
            return fail(e, STATUS_BAD_MESSAGE, "request: image %zu has a hash of %zu bytes, needs %d", i,
                        w->images[i].len, HASH_SHA256_BYTES);
        memcpy(images[i], w->images[i].data, HASH_SHA256_BYTES);
    }
    r->images = (const unsigned char(*)[HASH_SHA256_BYTES])images;
    r->n_images = w->n_images;
    return STATUS_OK;
}

static status take_request(request *r, const Mipha__Request *w, decode_memory *block, err *e) {
    if (w->n_questions < 1 || w->n_questions > MESSAGE_QUESTIONS_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "request: %zu questions, allowed are 1 to %d",
                    w->n_questions, MESSAGE_QUESTIONS_MAX);
    request_question *questions = decode_memory_alloc(block, w->n_questions * sizeof *questions);
    if (!questions) return fail(e, STATUS_NO_MEMORY, "request: no memory for questions");
    for (size_t i = 0; i < w->n_questions; i++) {
        status st = take_question(&questions[i], w->questions[i], i, block, e);
        if (st != STATUS_OK) return st;
    }
    status st = take_name(&r->template_name, w->template_, "template", e);
    if (st == STATUS_OK) st = take_name(&r->adapter, w->adapter, "adapter", e);
    r->questions = questions;
    r->n_questions = w->n_questions;
    if (st == STATUS_OK) st = take_images(r, w, block, e);
    return st == STATUS_OK ? take_sampling(&r->sampling, w->sampling, e) : st;
}

status request_decode(request *r, request_memory *memory, bytes body, err *e) {
    *r = (request){0};
    decode_memory block;
    Mipha__Request *w = unpack(&mipha__request__descriptor, &block, body, "request", e);
    if (!w) return e->code;
    return keep_or_free(take_request(r, w, &block, e), memory, &block);
}

static status take_logprobs(answer *a, const Mipha__Answer *w, decode_memory *block, err *e) {
    if (w->n_logprobs == 0) return STATUS_OK;
    if (w->n_logprobs != w->n_token_ids)
        return fail(e, STATUS_BAD_MESSAGE, "answer: %zu log-probabilities for %zu tokens",
                    w->n_logprobs, w->n_token_ids);
    answer_logprob *logprobs = decode_memory_alloc(block, w->n_logprobs * sizeof *logprobs);
    if (!logprobs) return fail(e, STATUS_NO_MEMORY, "answer: no memory for log-probabilities");
    for (size_t i = 0; i < w->n_logprobs; i++) {
        const Mipha__TokenLogprob *l = w->logprobs[i];
        if (l->n_top_ids != l->n_top_logprobs || l->n_top_ids > MESSAGE_LOGPROBS_MAX)
            return fail(e, STATUS_BAD_MESSAGE, "answer: %zu ids and %zu values of alternatives",
                        l->n_top_ids, l->n_top_logprobs);
        logprobs[i] = (answer_logprob){l->token_id, l->logprob, l->top_ids, l->top_logprobs,
                                       l->n_top_ids};
    }
    a->logprobs = logprobs;
    return STATUS_OK;
}

static status take_outcome(outcome *o, const Mipha__Outcome *w, decode_memory *block, err *e) {
    if (w->n_answers > MESSAGE_QUESTIONS_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "outcome: %zu answers, limit %d", w->n_answers,
                    MESSAGE_QUESTIONS_MAX);
    answer *answers = decode_memory_alloc(block, (w->n_answers + 1) * sizeof *answers);
    if (!answers) return fail(e, STATUS_NO_MEMORY, "outcome: no memory for answers");
    for (size_t i = 0; i < w->n_answers; i++) {
        const Mipha__Answer *from = w->answers[i];
        if (from->finish_reason < ANSWER_STOP || from->finish_reason > ANSWER_CANCELLED)
            return fail(e, STATUS_BAD_MESSAGE, "outcome: finish reason %u", from->finish_reason);
        if (from->code >= STATUS_COUNT || !is_utf8(from->text) || !is_utf8(from->message))
            return fail(e, STATUS_BAD_MESSAGE, "outcome: answer %zu has a bad code or text", i);
        answers[i] = (answer){.text = from->text,
                              .token_ids = from->token_ids,
                              .n_tokens = from->n_token_ids,
                              .finish_reason = (answer_finish)from->finish_reason,
                              .code = (status)from->code,
                              .message = from->message,
                              .prompt_tokens = from->prompt_tokens,
                              .prefix_cached = from->prefix_cached != 0,
                              .prefill_us = from->prefill_us,
                              .generate_us = from->generate_us};
        status st = take_logprobs(&answers[i], from, block, e);
        if (st != STATUS_OK) return st;
    }
    *o = (outcome){answers, w->n_answers, w->model_name, w->image_tokens, w->wait_us};
    return STATUS_OK;
}

status outcome_decode(outcome *o, request_memory *memory, bytes body, err *e) {
    *o = (outcome){0};
    decode_memory block;
    Mipha__Outcome *w = unpack(&mipha__outcome__descriptor, &block, body, "outcome", e);
    if (!w) return e->code;
    return keep_or_free(take_outcome(o, w, &block, e), memory, &block);
}

status tokens_decode(tokens_piece *t, request_memory *memory, bytes body, err *e) {
    *t = (tokens_piece){0};
    decode_memory block;
    Mipha__Tokens *w = unpack(&mipha__tokens__descriptor, &block, body, "tokens", e);
    if (!w) return e->code;
    status st = is_utf8(w->text) ? STATUS_OK
                                 : fail(e, STATUS_BAD_MESSAGE, "tokens: text is not valid UTF-8");
    *t = (tokens_piece){w->token_ids, w->n_token_ids, w->text};
    return keep_or_free(st, memory, &block);
}

status vision_report_decode(vision_report *v, bytes body, err *e) {
    *v = (vision_report){0};
    decode_memory block;
    Mipha__VisionReport *w =
        unpack(&mipha__vision_report__descriptor, &block, body, "vision report", e);
    if (!w) return e->code;
    *v = (vision_report){w->features_cached != 0, w->decode_us, w->encode_us,
                         w->width,                w->height,    w->orientation};
    free(block.base);
    return STATUS_OK;
}

static status take_metrics(const metric **out, Mipha__Metric **from, size_t n, decode_memory *block,
                           err *e) {
    if (n > METRICS_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "status: %zu metrics, limit %d", n, METRICS_MAX);
    metric *metrics = decode_memory_alloc(block, (n + 1) * sizeof *metrics);
    if (!metrics) return fail(e, STATUS_NO_MEMORY, "status: no memory for metrics");
    for (size_t i = 0; i < n; i++) metrics[i] = (metric){from[i]->name, from[i]->value};
    *out = metrics;
    return STATUS_OK;
}

static status take_status_report(status_report *s, const Mipha__StatusReport *w,
                                 decode_memory *block, err *e) {
    if (w->n_nodes > NODES_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "status: %zu nodes, limit %d", w->n_nodes, NODES_MAX);
    s->n_metrics = w->n_metrics;
    status st = take_metrics(&s->metrics, w->metrics, w->n_metrics, block, e);
    if (st != STATUS_OK) return st;
    node_status *nodes = decode_memory_alloc(block, (w->n_nodes + 1) * sizeof *nodes);
    if (!nodes) return fail(e, STATUS_NO_MEMORY, "status: no memory for nodes");
    for (size_t i = 0; i < w->n_nodes; i++) {
        const Mipha__NodeStatus *from = w->nodes[i];
        nodes[i] = (node_status){.name = from->name,
                                 .role = from->role,
                                 .slots = from->slots,
                                 .running = from->running,
                                 .silent_ms = from->silent_ms,
                                 .is_draining = from->draining != 0,
                                 .n_metrics = from->n_metrics};
        st = take_metrics(&nodes[i].metrics, from->metrics, from->n_metrics, block, e);
        if (st != STATUS_OK) return st;
    }
    s->nodes = nodes;
    s->n_nodes = w->n_nodes;
    return STATUS_OK;
}

status status_report_decode(status_report *s, request_memory *memory, bytes body, err *e) {
    *s = (status_report){0};
    decode_memory block;
    Mipha__StatusReport *w = unpack(&mipha__status_report__descriptor, &block, body, "status", e);
    if (!w) return e->code;
    return keep_or_free(take_status_report(s, w, &block, e), memory, &block);
}

void request_digest(unsigned char out[MESSAGE_DIGEST_BYTES],
                    const unsigned char image_sha256[HASH_SHA256_BYTES], uint32_t flags,
                    bytes body) {
    unsigned char whole[HASH_SHA256_BYTES], flag_bytes[4];
    bytes_store_le(flag_bytes, flags, 4);
    hash_sha256_stream *s = hash_sha256_open();
    hash_sha256_add(s, image_sha256, HASH_SHA256_BYTES);
    hash_sha256_add(s, flag_bytes, sizeof flag_bytes);
    hash_sha256_add(s, body.data, body.len_bytes);
    hash_sha256_finish(s, whole);
    memcpy(out, whole, MESSAGE_DIGEST_BYTES);
}
