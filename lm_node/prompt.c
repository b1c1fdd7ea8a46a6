#include "lm_node/prompt.h"

#include <string.h>

#include "base/buf.h"
#include "proto/message.h"

#define MARKER     "<image>"
#define TEXT_BYTES (4u * MESSAGE_PROMPT_BYTES_MAX)

/* The text of a chunk, and which bytes of it somebody typed. */
typedef struct {
    char text[TEXT_BYTES];
    bool is_typed[TEXT_BYTES];
    size_t n;
} chunk;

typedef struct {
    int32_t *ids;
    size_t n, max;
    const tokenizer *t;
    chunk chunk; /* what was put since the last image */
    err *e;
} builder;

static status too_long(const builder *b) {
    return fail(b->e, STATUS_PROMPT_TOO_LONG, "prompt: more than %zu tokens or %u bytes", b->max, TEXT_BYTES);
}

static status put(builder *b, const char *text, size_t n, bool is_typed) {
    chunk *c = &b->chunk;
    if (n > TEXT_BYTES - c->n) return too_long(b);
    memcpy(c->text + c->n, text, n);
    memset(c->is_typed + c->n, is_typed, n * sizeof *c->is_typed);
    c->n += n;
    return STATUS_OK;
}

static status put_own(builder *b, const char *text) { return put(b, text, strlen(text), false); }

static status put_typed(builder *b, const char *text) {
    if (strstr(text, MARKER))
        return fail(b->e, STATUS_BAD_PROMPT, "question holds %s, which is reserved for the image", MARKER);
    return put(b, text, strlen(text), true);
}

static status put_id(builder *b, int32_t id) {
    if (b->n == b->max) return too_long(b);
    b->ids[b->n++] = id;
    return STATUS_OK;
}

static status end_chunk(builder *b) {
    size_t n = 0;
    status st = tokenizer_encode_typed(b->t, b->chunk.text, b->chunk.n, b->chunk.is_typed, b->ids + b->n,
                                       b->max - b->n, &n, b->e);
    b->n += n;
    b->chunk.n = 0;
    return st == STATUS_TOO_LARGE ? too_long(b) : st;
}

static status put_image(builder *b) {
    status st = end_chunk(b);
    return st == STATUS_OK ? put_id(b, PROMPT_IMAGE_ID) : st;
}

/* Special tokens in it count, and it may hold the marker once. */
static status put_raw(builder *b, const char *prompt, bool has_image) {
    const char *marker = strstr(prompt, MARKER);
    if (!marker) return put_own(b, prompt);
    const char *rest = marker + strlen(MARKER);
    if (!has_image) return fail(b->e, STATUS_BAD_PROMPT, "raw prompt holds %s but there is no image", MARKER);
    if (strstr(rest, MARKER)) return fail(b->e, STATUS_BAD_PROMPT, "raw prompt holds %s twice", MARKER);
    if (*rest == '\0') return fail(b->e, STATUS_BAD_PROMPT, "raw prompt ends with %s", MARKER);
    status st = put(b, prompt, (size_t)(marker - prompt), false);
    if (st == STATUS_OK) st = put_image(b);
    return st == STATUS_OK ? put_own(b, rest) : st;
}

static status put_question(builder *b, const prompt_template *t, const char *question, bool has_image) {
    status st = put_own(b, t->before_question);
    if (st == STATUS_OK && has_image) st = put_image(b);
    if (st == STATUS_OK && has_image) st = put_own(b, "\n");
    if (st == STATUS_OK) st = put_typed(b, question);
    return st == STATUS_OK ? put_own(b, t->before_answer) : st;
}

static status put_answer(builder *b, const prompt_template *t, const char *text) {
    status st = put_own(b, t->answer_open);
    if (st == STATUS_OK) st = put_typed(b, text);
    return st == STATUS_OK ? put_own(b, t->answer_close) : st;
}

static status put_turns(builder *b, const prompt_template *t, const request_question *asked, bool has_image) {
    status st = put_own(b, t->system);
    for (size_t i = 0; i < asked->n_turns && st == STATUS_OK; i++) {
        st = put_question(b, t, asked->turns[i].question, has_image && i == 0);
        if (st == STATUS_OK) st = put_answer(b, t, asked->turns[i].answer);
    }
    return st == STATUS_OK ? put_question(b, t, asked->prompt, has_image && asked->n_turns == 0) : st;
}

status prompt_build(int32_t *ids, size_t *n_ids, size_t max_ids, const tokenizer *t, const prompt_template *form,
                    const request_question *asked, bool has_image, err *e) {
    builder b = {.ids = ids, .max = max_ids, .t = t, .e = e};
    status st = tokenizer_bos_id(t) < 0 ? STATUS_OK : put_id(&b, tokenizer_bos_id(t));
    size_t n_before = b.n;
    if (st == STATUS_OK) st = asked->is_raw ? put_raw(&b, asked->prompt, has_image) : put_turns(&b, form, asked, has_image);
    if (st == STATUS_OK) st = end_chunk(&b);
    if (st == STATUS_OK && b.n == n_before) st = fail(e, STATUS_BAD_PROMPT, "prompt is empty");
    *n_ids = b.n;
    return st;
}
