/* Outside bytes as an envelope and as every body, and once more after encoding what was read.
 *
 * The first byte chooses the decoder; 0 is the envelope, whose body and report are then read as whatever
 * they could be. What decodes must encode, and decode again to the same bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BODY_BYTES_MAX (8u << 20)

typedef status encode_again(const void *decoded, buf *out);

static status again_request(const void *d, buf *out) { return request_encode(d, out); }
static status again_outcome(const void *d, buf *out) { return outcome_encode(d, out); }
static status again_tokens(const void *d, buf *out) { return tokens_encode(d, out); }
static status again_report(const void *d, buf *out) { return vision_report_encode(d, out); }
static status again_status(const void *d, buf *out) { return status_report_encode(d, out); }

static buf encoded(encode_again *encode, const void *decoded) {
    buf out;
    buf_init(&out, BODY_BYTES_MAX);
    CHECK(encode(decoded, &out) == STATUS_OK, "what was decoded can be encoded");
    return out;
}

/* Reads every byte a view promises, so that a sanitizer sees a view that lies. */
static uint64_t read_text(const char *text) { return text ? hash_xxh3(text, strlen(text)) : 0; }

static void try_request(bytes body) {
    err e;
    request r, second;
    request_memory memory = {0}, more = {0};
    if (request_decode(&r, &memory, body, &e) != STATUS_OK) return;
    CHECK(r.n_questions >= 1 && r.n_questions <= MESSAGE_QUESTIONS_MAX, "questions are bounded");
    for (size_t i = 0; i < r.n_questions; i++)
        CHECK(strlen(r.questions[i].prompt) <= MESSAGE_PROMPT_BYTES_MAX, "prompts are bounded");
    buf first = encoded(again_request, &r);
    CHECK(request_decode(&second, &more, (bytes){first.data, first.len_bytes}, &e) == STATUS_OK,
          "what was encoded can be decoded");
    buf last = encoded(again_request, &second);
    CHECK(first.len_bytes == last.len_bytes && memcmp(first.data, last.data, last.len_bytes) == 0,
          "a request survives the wire");
    buf_deinit(&last);
    buf_deinit(&first);
    request_memory_clear(&more);
    request_memory_clear(&memory);
}

static void try_outcome(bytes body) {
    err e;
    outcome o;
    request_memory memory = {0};
    uint64_t sum = 0;
    if (outcome_decode(&o, &memory, body, &e) != STATUS_OK) return;
    for (size_t i = 0; i < o.n_answers; i++) {
        const answer *a = &o.answers[i];
        sum += read_text(a->text) + read_text(a->message);
        for (size_t t = 0; t < a->n_tokens; t++) {
            sum += (uint64_t)a->token_ids[t];
            if (!a->logprobs) continue;
            CHECK(a->logprobs[t].n_top <= MESSAGE_LOGPROBS_MAX, "alternatives are bounded");
            for (size_t k = 0; k < a->logprobs[t].n_top; k++) sum += (uint64_t)a->logprobs[t].top_ids[k];
        }
    }
    buf again = encoded(again_outcome, &o);
    CHECK(again.len_bytes > 0 || sum == 0 || o.n_answers == 0, "answers take bytes");
    buf_deinit(&again);
    request_memory_clear(&memory);
}

static void try_tokens(bytes body) {
    err e;
    tokens_piece t;
    request_memory memory = {0};
    if (tokens_decode(&t, &memory, body, &e) != STATUS_OK) return;
    buf again = encoded(again_tokens, &t);
    buf_deinit(&again);
    request_memory_clear(&memory);
}

static void try_vision_report(bytes body) {
    err e;
    vision_report v;
    if (vision_report_decode(&v, body, &e) != STATUS_OK) return;
    buf again = encoded(again_report, &v);
    buf_deinit(&again);
}

static void try_status_report(bytes body) {
    err e;
    status_report s;
    request_memory memory = {0};
    if (status_report_decode(&s, &memory, body, &e) != STATUS_OK) return;
    buf again = encoded(again_status, &s);
    buf_deinit(&again);
    request_memory_clear(&memory);
}

static void try_envelope(bytes data) {
    err e;
    message_in in;
    if (message_decode(&in, data.data, data.len_bytes, &e) != STATUS_OK) return;
    const message *m = &in.m;
    CHECK(m->n_leases <= MESSAGE_LEASES_MAX, "leases are bounded");
    CHECK(m->text && m->name, "texts are never NULL after decoding");
    try_request(m->body);
    try_outcome(m->body);
    try_vision_report(m->report);

    unsigned char *first = malloc(message_encoded_bytes(m));
    CHECK(first, "there is memory");
    size_t n = message_encode(m, first);
    message_in second;
    CHECK(message_decode(&second, first, n, &e) == STATUS_OK, "what was encoded can be decoded");
    unsigned char *last = malloc(message_encoded_bytes(&second.m));
    CHECK(last, "there is memory");
    CHECK(message_encode(&second.m, last) == n && memcmp(first, last, n) == 0,
          "an envelope survives the wire");
    free(last);
    free(first);
    message_in_clear(&second);
    message_in_clear(&in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static void (*const readers[])(bytes) = {try_envelope, try_request,       try_outcome,
                                             try_tokens,   try_vision_report, try_status_report};
    if (size == 0) return 0;
    readers[data[0] % (sizeof readers / sizeof *readers)]((bytes){data + 1, size - 1});
    return 0;
}
