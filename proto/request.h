/* What is asked of a language node, what it answers, and the reports that go with it.
 *
 *     request r;                                      // as a client fills it
 *     buf_init(&body, MESSAGE_ENVELOPE_BYTES_MAX);
 *     st = request_encode(&r, &body);
 *
 *     request r; request_memory memory = {0};         // as a node reads it
 *     st = request_decode(&r, &memory, m.body, &e);   // BAD_MESSAGE names the field and the limit
 *     use(r.questions[0].prompt);
 *     request_memory_clear(&memory);
 *
 * Decoded views live until request_memory_clear. Any thread. */
#ifndef PROTO_REQUEST_H
#define PROTO_REQUEST_H

#include "base/buf.h"
#include "proto/message.h"

typedef struct {
    float temperature;  /* 0: greedy; at most 100 */
    float top_p;        /* 0 < p < 1 keeps the most likely mass p; 0 and 1: off */
    uint32_t top_k;     /* 0: off */
    float min_p;        /* keeps tokens at least this share of the most likely one; 0: off */
    uint64_t seed;
    uint32_t max_new_tokens; /* 1 .. MESSAGE_NEW_TOKENS_MAX */
    bool want_logprobs;
    uint32_t n_logprobs; /* alternatives per token, 0 .. MESSAGE_LOGPROBS_MAX */
    const char *stop[MESSAGE_STOP_MAX];
    uint32_t n_stop;
} request_sampling;

typedef struct {
    const char *question, *answer;
} request_turn;

/* Texts are valid UTF-8; those of one question together have at most MESSAGE_PROMPT_BYTES_MAX bytes. */
typedef struct {
    const char *prompt;
    bool is_raw;               /* complete as it is: no template is added */
    const request_turn *turns; /* n_turns of them were before, oldest first; none with is_raw */
    size_t n_turns;            /* 0 .. MESSAGE_TURNS_MAX */
} request_question;

typedef struct {
    const request_question *questions;
    size_t n_questions; /* 1 .. MESSAGE_QUESTIONS_MAX */
    request_sampling sampling;
    const char *template_name; /* of the prompt; NULL or empty: the checkpoint's own */
    const char *adapter;       /* served by the language nodes under this name; NULL or empty: none */
    const unsigned char (*images)[HASH_SHA256_BYTES]; /* of a bundle: the hash of each image, in order */
    size_t n_images; /* 2 .. MESSAGE_IMAGES_MAX of a bundle; 0: one image, or none */
} request;

typedef enum { ANSWER_STOP = 1, ANSWER_LENGTH, ANSWER_ERROR, ANSWER_CANCELLED } answer_finish;
const char *answer_finish_name(answer_finish reason); /* "stop", "length", "error", "cancelled" */

typedef struct {
    int32_t token_id;
    float logprob;
    const int32_t *top_ids; /* n_top of each, most likely first */
    const float *top_logprobs;
    size_t n_top;
} answer_logprob;

typedef struct {
    const char *text;
    const int32_t *token_ids;
    size_t n_tokens;
    answer_finish finish_reason;
    status code;         /* OK unless finish_reason is ANSWER_ERROR */
    const char *message;
    uint32_t prompt_tokens; /* without image tokens */
    bool prefix_cached;     /* the image prefix was already in this node's KV */
    const answer_logprob *logprobs; /* n_tokens of them, or NULL */
    uint64_t prefill_us, generate_us;
} answer;

typedef struct {
    const answer *answers; /* in the order of the questions */
    size_t n_answers;
    const char *model_name;
    uint32_t image_tokens; /* of all images */
    uint64_t wait_us; /* at the node, before its first token was computed */
} outcome;

typedef struct {
    const int32_t *token_ids;
    size_t n_tokens;
    const char *text; /* what these tokens add to the answer's text */
} tokens_piece;

typedef struct {
    bool features_cached;          /* of every picture */
    uint64_t decode_us, encode_us; /* all of them together */
    uint32_t width, height; /* of the first picture as used, after rotation; 0 when it was not decoded */
    uint32_t orientation;   /* EXIF value found, 1 when there is none */
} vision_report;

typedef struct {
    const char *name;
    double value;
} metric;

typedef struct {
    const char *name;
    uint32_t role, slots, running;
    uint64_t silent_ms;
    bool is_draining;
    const metric *metrics;
    size_t n_metrics;
} node_status;

typedef struct {
    const metric *metrics;
    size_t n_metrics;
    const node_status *nodes;
    size_t n_nodes;
} status_report;

/* Each encode appends to out; TOO_LARGE or NO_MEMORY when it does not fit. */
MUST_USE status request_encode(const request *r, buf *out);
MUST_USE status outcome_encode(const outcome *o, buf *out);
MUST_USE status tokens_encode(const tokens_piece *t, buf *out);
MUST_USE status vision_report_encode(const vision_report *v, buf *out);
MUST_USE status status_report_encode(const status_report *s, buf *out);

/* A decoded part and the memory its views point into. */
typedef struct {
    void *memory;
    size_t used_bytes, size_bytes;
} request_memory;

MUST_USE status request_decode(request *r, request_memory *memory, bytes body, err *e);
MUST_USE status outcome_decode(outcome *o, request_memory *memory, bytes body, err *e);
MUST_USE status tokens_decode(tokens_piece *t, request_memory *memory, bytes body, err *e);
MUST_USE status vision_report_decode(vision_report *v, bytes body, err *e);
MUST_USE status status_report_decode(status_report *s, request_memory *memory, bytes body, err *e);
void request_memory_clear(request_memory *memory); /* zeroed and repeated calls are fine */

/* The 16-byte digest that makes two submissions the same item: over the image hash, flags and body. */
void request_digest(unsigned char out[MESSAGE_DIGEST_BYTES],
                    const unsigned char image_sha256[HASH_SHA256_BYTES], uint32_t flags, bytes body);

#endif
