/* Tokens that are cut out of a text as a whole, before it is split into words: <|endoftext|>, runs of
 * spaces.
 *
 *     added_tokens *a;
 *     st = added_tokens_open(&a, &e);
 *     st = added_tokens_add(a, &(added_token){.content = "  ", .id = 50286, .is_normalized = true}, &e);
 *     st = added_tokens_finish(a, "tokenizer.json", &e);         // sorts; a content twice is refused
 *     added_cutter c = added_cutter_make(a, 0, words, text, mode);
 *     for (added_span s; added_cutter_next(&c, &s);) use(s);
 *
 * Read-only after finish: any thread, each with its own cutter. */
#ifndef MODEL_ADDED_TOKENS_H
#define MODEL_ADDED_TOKENS_H

#include "model/pretokenize.h"
#include "model/tokenizer.h"

#define ADDED_TOKENS_MAX       65536
#define ADDED_TOKEN_BYTES_MAX  1024

typedef struct {
    char *content; /* copied by add; not empty, valid UTF-8 */
    size_t n_bytes;
    int32_t id;
    bool is_special;    /* left alone in TOKENIZER_PLAIN, left out by decode on request */
    bool is_normalized; /* looked for in the second pass instead of the first */
    bool is_single_word, strips_left, strips_right;
} added_token;

typedef struct added_tokens added_tokens;

MUST_USE status added_tokens_open(added_tokens **a, err *e);
void added_tokens_close(added_tokens **a);

/* n_bytes is set from content. Errors: NO_MEMORY, TOO_LARGE. */
MUST_USE status added_tokens_add(added_tokens *a, const added_token *token, err *e);
MUST_USE status added_tokens_finish(added_tokens *a, const char *label, err *e);

const added_token *added_tokens_find(const added_tokens *a, const char *content);
size_t added_tokens_count(const added_tokens *a);
const added_token *added_tokens_at(const added_tokens *a, size_t idx); /* pass, then content order */

typedef struct {
    bytes text;
    int32_t id; /* -1: ordinary text between tokens */
} added_span;

typedef struct {
    const added_tokens *a;
    const pretokenizer *words;
    bytes text;
    tokenizer_mode mode;
    const bool *is_typed; /* of each byte of text: no special token may hold one; NULL: none is */
    int pass;
    size_t first, end;   /* the tokens of this pass */
    size_t at;           /* where matching goes on */
    size_t cut;          /* where ordinary text not yet given begins */
    added_span waiting;  /* a token whose text before it was given first */
    bool has_waiting, is_done;
} added_cutter;

/* pass 0: tokens that are not normalized, 1: those that are. text outlives the cutter. */
added_cutter added_cutter_make(const added_tokens *a, int pass, const pretokenizer *words, bytes text,
                               tokenizer_mode mode);
bool added_cutter_next(added_cutter *c, added_span *span);

#endif
