/* The parts of an opened tokenizer, for tokenizer*.c. */
#ifndef MODEL_TOKENIZER_INTERNAL_H
#define MODEL_TOKENIZER_INTERNAL_H

#include "base/hash.h"
#include "model/added_tokens.h"
#include "model/bpe.h"

#define TOKENIZER_FILE_BYTES_MAX ((size_t)64 << 20)
#define TOKENIZER_IDS_MAX        ((int32_t)1 << 20)
#define TOKENIZER_TEXT_BYTES_MAX ((size_t)8 << 20) /* of one text to encode; bounds merging memory */

typedef struct {
    size_t begin;   /* into texts */
    uint32_t n_bytes;
    bool is_there;  /* ids without a text exist */
    bool is_special;
    bool is_word;   /* made of mapped bytes: what ignore_merges may take whole */
} token_piece;

struct tokenizer {
    token_piece *pieces; /* n_ids */
    int32_t n_ids;
    buf texts;           /* what each id decodes to, one after the other */
    bpe *merges;
    added_tokens *added;
    pretokenizer *words;
    int32_t *sorted_words; /* ids in order of their bytes, only with ignore_merges */
    size_t n_sorted_words;
    bool adds_prefix_space, splits_words, ignores_merges, cleans_up;
    int32_t eos_id;
    char *eos_text;
    unsigned char digest[HASH_SHA256_BYTES];
};

/* Fills t from the folder's files; on failure t holds what was made so far and tokenizer_close releases
 * it. */
MUST_USE status tokenizer_load(tokenizer *t, const char *dir, err *e);

/* The replacements of clean_up_tokenization_spaces, in place; returns the new length. */
size_t tokenizer_clean_up(unsigned char *text, size_t len_bytes);

#endif
