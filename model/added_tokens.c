/* Contents are sorted bytewise, and a match walks down: the range of contents that begin with the bytes
 * seen so far only shrinks, and the last content that was complete on the way is the longest match. That
 * costs one binary search per byte of a possible match and nothing for a byte no content begins with.
 *
 * What happens with a match follows Hugging Face tokenizers (AddedVocabulary::find_matches), including its
 * corners: a special token that is not wanted still consumes its text, so nothing is found inside it; and
 * text swallowed on the right does not move the search, which goes on after the match itself. */
#include "model/added_tokens.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

struct added_tokens {
    added_token *tokens; /* after finish: pass 0 first, each pass in byte order */
    size_t n, room;
    size_t n_first_pass;
    bool can_begin[2][256];
};

status added_tokens_open(added_tokens **out, err *e) {
    *out = calloc(1, sizeof **out);
    return *out ? STATUS_OK : fail(e, STATUS_NO_MEMORY, "no memory for added tokens");
}

void added_tokens_close(added_tokens **a) {
    if (!*a) return;
    for (size_t i = 0; i < (*a)->n; i++) free((*a)->tokens[i].content);
    free((*a)->tokens);
    free(*a);
    *a = NULL;
}

status added_tokens_add(added_tokens *a, const added_token *token, err *e) {
    size_t n_bytes = strlen(token->content);
    CHECK(n_bytes > 0, "an added token has a content");
    if (n_bytes > ADDED_TOKEN_BYTES_MAX)
        return fail(e, STATUS_TOO_LARGE, "added token %.40s...: %zu bytes, at most %d", token->content,
                    n_bytes, ADDED_TOKEN_BYTES_MAX);
    if (a->n == ADDED_TOKENS_MAX)
        return fail(e, STATUS_TOO_LARGE, "more than %d added tokens", ADDED_TOKENS_MAX);
    if (a->n == a->room) {
        size_t room = a->room ? 2 * a->room : 64;
        added_token *grown = realloc(a->tokens, room * sizeof *grown);
        if (!grown) return fail(e, STATUS_NO_MEMORY, "no memory for %zu added tokens", room);
        a->tokens = grown;
        a->room = room;
    }
    added_token copy = *token;
    copy.n_bytes = n_bytes;
    copy.content = strdup(token->content);
    if (!copy.content) return fail(e, STATUS_NO_MEMORY, "no memory for an added token");
    a->tokens[a->n++] = copy;
    return STATUS_OK;
}

static int by_pass_and_content(const void *a, const void *b) {
    const added_token *x = a, *y = b;
    if (x->is_normalized != y->is_normalized) return x->is_normalized ? 1 : -1;
    return strcmp(x->content, y->content);
}

status added_tokens_finish(added_tokens *a, const char *label, err *e) {
    if (a->n) qsort(a->tokens, a->n, sizeof *a->tokens, by_pass_and_content);
    for (size_t i = 0; i < a->n; i++) {
        const added_token *token = &a->tokens[i];
        if (!token->is_normalized) a->n_first_pass++;
        a->can_begin[token->is_normalized][(unsigned char)token->content[0]] = true;
        if (i > 0 && strcmp(token->content, a->tokens[i - 1].content) == 0)
            return fail(e, STATUS_BAD_MODEL, "%s: added token \"%.60s\" is there twice", label,
                        token->content);
    }
    return STATUS_OK;
}

const added_token *added_tokens_find(const added_tokens *a, const char *content) {
    for (size_t i = 0; i < a->n; i++)
        if (strcmp(a->tokens[i].content, content) == 0) return &a->tokens[i];
    return NULL;
}

size_t added_tokens_count(const added_tokens *a) { return a->n; }
const added_token *added_tokens_at(const added_tokens *a, size_t idx) { return &a->tokens[idx]; }

/* First token in [low, high) whose byte at depth is >= byte. All of them have depth bytes or more. */
static size_t lower_bound(const added_tokens *a, size_t low, size_t high, size_t depth, int byte) {
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((unsigned char)a->tokens[middle].content[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token of this pass that begins at byte `at`; NULL when none does. */
static const added_token *longest_match(const added_cutter *c, size_t at) {
    const added_tokens *a = c->a;
    const added_token *best = NULL;
    size_t low = c->first, high = c->end;
    for (size_t depth = 0; low < high; depth++) {
        /* The shortest of the range sorts first: its end is a match. */
        if (a->tokens[low].n_bytes == depth) best = &a->tokens[low++];
        if (at + depth == c->text.len_bytes) break;
        int byte = c->text.data[at + depth];
        low = lower_bound(a, low, high, depth, byte);
        high = lower_bound(a, low, high, depth, byte + 1);
    }
    return best;
}

added_cutter added_cutter_make(const added_tokens *a, int pass, const pretokenizer *words, bytes text,
                               tokenizer_mode mode) {
    return (added_cutter){.a = a,
                          .words = words,
                          .text = text,
                          .mode = mode,
                          .pass = pass,
                          .first = pass == 0 ? 0 : a->n_first_pass,
                          .end = pass == 0 ? a->n_first_pass : a->n};
}

static bool is_wanted(const added_cutter *c, const added_token *token, size_t start, size_t stop) {
    if (c->mode == TOKENIZER_PLAIN && token->is_special) return false;
    for (size_t i = start; c->is_typed && token->is_special && i < stop; i++)
        if (c->is_typed[i]) return false;
    if (!token->is_single_word) return true;
    bytes before = {c->text.data, start};
    bytes after = {c->text.data + stop, c->text.len_bytes - stop};
    return !text_ends_with_word(c->words, before) && !text_begins_with_word(c->words, after);
}

/* Gives the token in [start, stop), after the ordinary text before it when there is some. */
static void give_token(added_cutter *c, const added_token *token, size_t start, size_t stop,
                       added_span *span) {
    if (token->strips_left) {
        size_t n = text_trailing_space(c->words, (bytes){c->text.data, start});
        start = start - n > c->cut ? start - n : c->cut;
    }
    if (token->strips_right)
        stop += text_leading_space(c->words,
                                   (bytes){c->text.data + stop, c->text.len_bytes - stop});
    added_span found = {{c->text.data + start, stop > start ? stop - start : 0}, token->id};
    if (c->cut < start) {
        *span = (added_span){{c->text.data + c->cut, start - c->cut}, -1};
        c->waiting = found;
        c->has_waiting = true;
    } else {
        *span = found;
    }
    c->cut = stop;
}

bool added_cutter_next(added_cutter *c, added_span *span) {
    if (c->has_waiting) {
        *span = c->waiting;
        c->has_waiting = false;
        return true;
    }
    const bool *can_begin = c->a->can_begin[c->pass];
    while (c->first < c->end && c->at < c->text.len_bytes) {
        const added_token *token =
            can_begin[c->text.data[c->at]] ? longest_match(c, c->at) : NULL;
        if (!token) {
            c->at++;
            continue;
        }
        size_t start = c->at, stop = start + token->n_bytes;
        c->at = stop;
        if (!is_wanted(c, token, start, stop)) continue;
        give_token(c, token, start, stop, span);
        return true;
    }
    if (c->is_done || c->cut >= c->text.len_bytes) return false;
    c->is_done = true;
    *span = (added_span){{c->text.data + c->cut, c->text.len_bytes - c->cut}, -1};
    return true;
}
