/* Built with jansson, which keeps the order of keys and escapes what has to be escaped. Numbers are
 * written with nine digits, enough to read a float back exactly. */
#include "cli/result_line.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#define REAL_DIGITS 9

client_event result_event_failed(status code, const char *text) {
    return (client_event){.kind = CLIENT_RESULT, .code = code, .text = text};
}

bool result_event_has_failed(const client_event *event) {
    if (event->code != STATUS_OK) return true;
    for (size_t i = 0; i < event->outcome.n_answers; i++)
        if (event->outcome.answers[i].finish_reason == ANSWER_ERROR) return true;
    return false;
}

static json_t *real_or_null(double v) { return isfinite(v) ? json_real(v) : json_null(); }

/* Milliseconds with three digits after the point. */
static json_t *ms_of(uint64_t us) { return json_real((double)us / 1000.0); }

static json_t *text_or_empty(const char *text) {
    json_t *made = json_string(text ? text : "");
    return made ? made : json_string("(not valid UTF-8)");
}

static json_t *error_of(status code, const char *text) {
    if (code == STATUS_OK) return json_null();
    return json_pack("{s:s, s:o}", "code", status_code((int)code), "message",
                     text_or_empty(text && *text ? text : status_text((int)code)));
}

static json_t *ids_of(const int32_t *ids, size_t n) {
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) (void)json_array_append_new(list, json_integer(ids[i]));
    return list;
}

static json_t *texts_of(const char *const *texts, size_t n) {
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) (void)json_array_append_new(list, text_or_empty(texts[i]));
    return list;
}

static json_t *logprobs_of(const answer *a) {
    json_t *list = json_array();
    for (size_t i = 0; i < a->n_tokens; i++) {
        const answer_logprob *l = &a->logprobs[i];
        json_t *top = json_array();
        for (size_t k = 0; k < l->n_top; k++)
            (void)json_array_append_new(top, json_pack("[i, o]", l->top_ids[k],
                                                       real_or_null((double)l->top_logprobs[k])));
        (void)json_array_append_new(list, json_pack("{s:i, s:o, s:o}", "token_id", l->token_id, "logprob",
                                                    real_or_null((double)l->logprob), "top", top));
    }
    return list;
}

static json_t *model_of(const client_event *event) {
    if (!event->has_fingerprints && !event->outcome.model_name) return json_null();
    json_t *fingerprint = json_null();
    if (event->has_fingerprints) {
        char text[sizeof "sha256:" + HASH_HEX_BYTES] = "sha256:";
        hash_hex(text + strlen(text), event->model_fingerprint, sizeof event->model_fingerprint);
        fingerprint = json_string(text);
    }
    const char *name = event->outcome.model_name;
    return json_pack("{s:o, s:o}", "name", name && *name ? text_or_empty(name) : json_null(),
                     "fingerprint", fingerprint);
}

static json_t *sha256_of(const client_event *event) {
    if (!event->has_image) return json_null();
    char text[HASH_HEX_BYTES];
    hash_hex(text, event->image_sha256, sizeof event->image_sha256);
    return json_string(text);
}

static json_t *line_of(const result_subject *subject, const client_event *event, size_t idx) {
    answer failed = {.text = "", .finish_reason = event->code == STATUS_CANCELLED ? ANSWER_CANCELLED
                                                                                  : ANSWER_ERROR,
                     .code = event->code, .message = event->text};
    bool is_answered = event->code == STATUS_OK && idx < event->outcome.n_answers;
    const answer *a = is_answered ? &event->outcome.answers[idx] : &failed;
    const vision_report *v = &event->vision;

    json_t *line = json_pack("{s:s, s:o, s:o*, s:o, s:I, s:o, s:o, s:o, s:s, s:o, s:b}",
                             "id", subject->id,
                             "image", subject->image ? text_or_empty(subject->image) : json_null(),
                             "images", subject->n_images ? texts_of(subject->images, subject->n_images) : NULL,
                             "image_sha256", sha256_of(event),
                             "prompt_index", (json_int_t)idx,
                             "prompt", text_or_empty(subject->prompts[idx]),
                             "text", text_or_empty(a->text),
                             "token_ids", ids_of(a->token_ids, a->n_tokens),
                             "finish_reason", answer_finish_name(a->finish_reason),
                             "error", error_of(a->code, a->message),
                             "exif", subject->exif);
    if (!line) return NULL;
    if (a->logprobs) (void)json_object_set_new(line, "logprobs", logprobs_of(a));
    (void)json_object_set_new(line, "usage",
                              json_pack("{s:I, s:I, s:I}",
                                        "image_tokens", (json_int_t)event->outcome.image_tokens,
                                        "prompt_tokens", (json_int_t)a->prompt_tokens,
                                        "completion_tokens", (json_int_t)a->n_tokens));
    (void)json_object_set_new(line, "cached",
                              json_pack("{s:b, s:b}", "features", v->features_cached, "prefix",
                                        a->prefix_cached));
    (void)json_object_set_new(line, "model", model_of(event));
    (void)json_object_set_new(line, "timing_ms",
                              json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}",
                                        "queue", ms_of(event->queue_us + event->outcome.wait_us),
                                        "decode", ms_of(v->decode_us), "encode", ms_of(v->encode_us),
                                        "prefill", ms_of(a->prefill_us), "generate", ms_of(a->generate_us),
                                        "total", ms_of(event->total_us)));
    return line;
}

static int append_piece(const char *text, size_t n, void *lines) {
    return buf_append(lines, text, n) == STATUS_OK ? 0 : -1;
}

status result_lines_append(buf *lines, const result_subject *subject, const client_event *event, err *e) {
    size_t start = lines->len_bytes;
    for (size_t i = 0; i < subject->n_prompts; i++) {
        json_t *line = line_of(subject, event, i);
        bool ok = line && json_dump_callback(line, append_piece, lines,
                                             JSON_COMPACT | JSON_REAL_PRECISION(REAL_DIGITS)) == 0 &&
                  buf_append(lines, "\n", 1) == STATUS_OK;
        json_decref(line);
        if (ok) continue;
        lines->len_bytes = start;
        return fail(e, STATUS_NO_MEMORY, "result of \"%.200s\": out of memory or over %u bytes",
                    subject->id, RESULT_LINES_BYTES_MAX);
    }
    return STATUS_OK;
}
