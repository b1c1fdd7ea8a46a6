/* Text into words, as GPT-2 and CodeGen cut it before merging.
 *
 *     pretokenizer *p;
 *     st = pretokenizer_open(&p, &e);
 *     word_cutter c;
 *     st = word_cutter_init(&c, p, text, text_bytes, &e);
 *     for (bytes word; word_cutter_next(&c, &word);) use(word);
 *     word_cutter_deinit(&c);
 *
 * The words in order are the text: nothing is dropped. A pretokenizer may be used by any thread, a cutter by
 * one. */
#ifndef MODEL_PRETOKENIZE_H
#define MODEL_PRETOKENIZE_H

#include <stdbool.h>

#include "base/bytes.h"
#include "base/err.h"

typedef struct pretokenizer pretokenizer;

/* Errors: NO_MEMORY. */
MUST_USE status pretokenizer_open(pretokenizer **p, err *e);
void pretokenizer_close(pretokenizer **p);

typedef struct {
    const pretokenizer *p;
    bytes text;
    size_t at;
    void *match; /* pcre2_match_data */
} word_cutter;

/* text is valid UTF-8 and outlives the cutter. word_cutter_restart goes on with another text without
 * allocating. Errors: NO_MEMORY. */
MUST_USE status word_cutter_init(word_cutter *c, const pretokenizer *p, err *e);
void word_cutter_restart(word_cutter *c, bytes text);
bool word_cutter_next(word_cutter *c, bytes *word);
void word_cutter_deinit(word_cutter *c);

/* Unicode White_Space, and what regular expressions call a word character (Alphabetic, M, Nd, Pc, joiners):
 * bytes of whitespace at the ends of a text, and whether it begins or ends inside a word. */
size_t text_leading_space(const pretokenizer *p, bytes text);
size_t text_trailing_space(const pretokenizer *p, bytes text);
bool text_begins_with_word(const pretokenizer *p, bytes text);
bool text_ends_with_word(const pretokenizer *p, bytes text);

#endif
