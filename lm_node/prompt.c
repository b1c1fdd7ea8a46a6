#include "lm_node/prompt.h"

#include <string.h>

#include "base/buf.h"

#define MARKER "<image>"

static const char head[] =
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: ";
static const char tail[] = " ASSISTANT:";

typedef struct {
    int32_t *ids;
    size_t n, max;
    const tokenizer *t;
} id_list;

static status add_text(id_list *l, const char *text, size_t len_bytes, tokenizer_mode mode, err *e) {
    size_t n = 0;
    status st = tokenizer_encode(l->t, text, len_bytes, mode, l->ids + l->n, l->max - l->n, &n, e);
    if (st == STATUS_TOO_LARGE)
        return fail(e, STATUS_PROMPT_TOO_LONG, "prompt: more than %zu tokens", l->max);
    l->n += n;
    return st;
}

static status add_marker(id_list *l, err *e) {
    if (l->n == l->max)
        return fail(e, STATUS_PROMPT_TOO_LONG, "prompt: more than %zu tokens", l->max);
    l->ids[l->n++] = PROMPT_IMAGE_ID;
    return STATUS_OK;
}

static status build_raw(id_list *l, const char *prompt, bool has_image, err *e) {
    const char *marker = strstr(prompt, MARKER);
    if (!marker) return add_text(l, prompt, strlen(prompt), TOKENIZER_WITH_ADDED, e);
    const char *rest = marker + strlen(MARKER);
    if (!has_image) return fail(e, STATUS_BAD_PROMPT, "raw prompt holds %s but there is no image", MARKER);
    if (strstr(rest, MARKER)) return fail(e, STATUS_BAD_PROMPT, "raw prompt holds %s twice", MARKER);
    if (*rest == '\0') return fail(e, STATUS_BAD_PROMPT, "raw prompt ends with %s", MARKER);
    status st = add_text(l, prompt, (size_t)(marker - prompt), TOKENIZER_WITH_ADDED, e);
    if (st == STATUS_OK) st = add_marker(l, e);
    if (st == STATUS_OK) st = add_text(l, rest, strlen(rest), TOKENIZER_WITH_ADDED, e);
    return st;
}

static status build_templated(id_list *l, const char *question, bool has_image, err *e) {
    if (strstr(question, MARKER))
        return fail(e, STATUS_BAD_PROMPT, "question holds %s, which is reserved for the image", MARKER);
    buf text;
    buf_init(&text, 1 << 20);
    status st = STATUS_OK;
    if (has_image) {
        st = add_text(l, head, strlen(head), TOKENIZER_PLAIN, e);
        if (st == STATUS_OK) st = add_marker(l, e);
    }
    if (st != STATUS_OK) return st;
    if (buf_append_text(&text, has_image ? "\n" : head) != STATUS_OK ||
        buf_append_text(&text, question) != STATUS_OK || buf_append_text(&text, tail) != STATUS_OK)
        st = fail(e, STATUS_NO_MEMORY, "prompt: no memory");
    if (st == STATUS_OK)
        st = add_text(l, (const char *)text.data, text.len_bytes, TOKENIZER_PLAIN, e);
    buf_deinit(&text);
    return st;
}

status prompt_build(int32_t *ids, size_t *n_ids, size_t max_ids, const tokenizer *t,
                    const char *question, bool is_raw, bool has_image, err *e) {
    id_list l = {ids, 0, max_ids, t};
    status st = is_raw ? build_raw(&l, question, has_image, e)
                       : build_templated(&l, question, has_image, e);
    if (st == STATUS_OK && l.n == 0) st = fail(e, STATUS_BAD_PROMPT, "prompt is empty");
    *n_ids = l.n;
    return st;
}
