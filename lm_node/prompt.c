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

/* A text with an image wherever it holds the marker. */
static status put_text(builder *b, const char *text, bool is_typed) {
    status st = STATUS_OK;
    for (const char *at; st == STATUS_OK && (at = strstr(text, MARKER)); text = at + strlen(MARKER)) {
        st = put(b, text, (size_t)(at - text), is_typed);
        if (st == STATUS_OK) st = put_image(b);
    }
    return st == STATUS_OK ? put(b, text, strlen(text), is_typed) : st;
}

static size_t count_markers(const char *text) {
    size_t n = 0;
    for (; (text = strstr(text, MARKER)); text += strlen(MARKER)) n++;
    return n;
}

static status wrong_number(const builder *b, const char *what, size_t n_markers, size_t n_images) {
    return fail(b->e, STATUS_BAD_PROMPT, "%s holds %s %zu time%s, there %s %zu image%s", what, MARKER, n_markers,
                n_markers == 1 ? "" : "s", n_images == 1 ? "is" : "are", n_images, n_images == 1 ? "" : "s");
}

/* Special tokens in it count. One image may stay without a place in it, as for a comparison. */
static status put_raw(builder *b, const char *prompt, size_t n_images) {
    size_t n = count_markers(prompt), n_bytes = strlen(prompt);
    if (n != n_images && !(n == 0 && n_images == 1)) return wrong_number(b, "raw prompt", n, n_images);
    if (n > 0 && strcmp(prompt + n_bytes - strlen(MARKER), MARKER) == 0)
        return fail(b->e, STATUS_BAD_PROMPT, "raw prompt ends with %s", MARKER);
    return put_text(b, prompt, false);
}

/* n_images: those without a place of their own in any text; they stand before it, each on a line. */
static status put_question(builder *b, const prompt_template *t, const char *question, size_t n_images) {
    status st = put_own(b, t->before_question);
    for (size_t i = 0; i < n_images && st == STATUS_OK; i++) {
        st = put_image(b);
        if (st == STATUS_OK) st = put_own(b, "\n");
    }
    if (st == STATUS_OK) st = put_text(b, question, true);
    return st == STATUS_OK ? put_own(b, t->before_answer) : st;
}

static status put_answer(builder *b, const prompt_template *t, const char *text) {
    status st = put_own(b, t->answer_open);
    if (st == STATUS_OK) st = put_text(b, text, true);
    return st == STATUS_OK ? put_own(b, t->answer_close) : st;
}

static size_t count_all_markers(const request_question *asked) {
    size_t n = count_markers(asked->prompt);
    for (size_t i = 0; i < asked->n_turns; i++)
        n += count_markers(asked->turns[i].question) + count_markers(asked->turns[i].answer);
    return n;
}

static status put_turns(builder *b, const prompt_template *t, const request_question *asked, size_t n_images) {
    size_t n = count_all_markers(asked);
    if (n > 0 && n != n_images) return wrong_number(b, "question", n, n_images);
    size_t n_before = n > 0 ? 0 : n_images;
    status st = put_own(b, t->system);
    for (size_t i = 0; i < asked->n_turns && st == STATUS_OK; i++) {
        st = put_question(b, t, asked->turns[i].question, i == 0 ? n_before : 0);
        if (st == STATUS_OK) st = put_answer(b, t, asked->turns[i].answer);
    }
    return st == STATUS_OK ? put_question(b, t, asked->prompt, asked->n_turns == 0 ? n_before : 0) : st;
}

status prompt_build(int32_t *ids, size_t *n_ids, size_t max_ids, const tokenizer *t, const prompt_template *form,
                    const request_question *asked, size_t n_images, err *e) {
    builder b = {.ids = ids, .max = max_ids, .t = t, .e = e};
    status st = tokenizer_bos_id(t) < 0 ? STATUS_OK : put_id(&b, tokenizer_bos_id(t));
    size_t n_before = b.n;
    if (st == STATUS_OK) st = asked->is_raw ? put_raw(&b, asked->prompt, n_images) : put_turns(&b, form, asked, n_images);
    if (st == STATUS_OK) st = end_chunk(&b);
    if (st == STATUS_OK && b.n == n_before) st = fail(e, STATUS_BAD_PROMPT, "prompt is empty");
    *n_ids = b.n;
    return st;
}
