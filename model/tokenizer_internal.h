/* The parts of an opened tokenizer, for tokenizer*.c. */
#ifndef MODEL_TOKENIZER_INTERNAL_H
#define MODEL_TOKENIZER_INTERNAL_H

#include "base/hash.h"
#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/json_file.h"

#define TOKENIZER_FILE_BYTES_MAX ((size_t)64 << 20)
#define TOKENIZER_IDS_MAX        ((int32_t)1 << 20)
#define TOKENIZER_TEXT_BYTES_MAX ((size_t)8 << 20) /* of one text to encode; bounds merging memory */

typedef struct {
    size_t begin;   /* into texts */
    uint32_t n_bytes;
    bool is_there;  /* ids without a text exist */
    bool is_special;
    bool is_word;   /* made of mapped bytes: what ignore_merges may take whole */
    bool is_byte;   /* "<0x0A>" of a SentencePiece vocabulary: its text is that byte */
} token_piece;

/* Where a SentencePiece tokenizer puts a space that the text does not have. */
typedef enum { TOKENIZER_PREFIX_NONE, TOKENIZER_PREFIX_EACH_PIECE, TOKENIZER_PREFIX_FIRST_PIECE } tokenizer_prefix;

/* A vocabulary entry of one character. */
typedef struct {
    uint32_t code_point;
    int32_t id;
} token_character;

struct tokenizer {
    token_piece *pieces; /* n_ids */
    int32_t n_ids;
    buf texts;           /* what each id decodes to, one after the other */
    bpe *merges;
    int32_t byte_ids[256]; /* -1: that byte has no entry (SentencePiece only) */
    bool is_sentencepiece; /* words begin as characters, those without an entry as bytes; else as bytes */
    tokenizer_prefix prefix;
    bool strips_space;     /* decoding drops one leading space */
    token_character *characters; /* by code point, SentencePiece only */
    size_t n_characters;
    int32_t bos_id;        /* what post-processing puts in front of a text, -1: nothing */
    added_tokens *added;
    pretokenizer *words;
    int32_t *sorted_words; /* ids in order of their bytes, only with ignore_merges */
    size_t n_sorted_words;
    bool adds_prefix_space, splits_words, ignores_merges, cleans_up;
    int32_t eos_id;
    char *eos_text;
    unsigned char digest[HASH_SHA256_BYTES];
};

/* U+2581, which stands for a space in SentencePiece vocabularies. */
#define TOKENIZER_SPACE "\xE2\x96\x81"

/* The parts of tokenizer.json around the model: normalizer, pre_tokenizer, post_processor, decoder. They decide
 * is_sentencepiece, prefix, strips_space, bos_id, adds_prefix_space and splits_words; what would give other ids
 * is refused by name. label: the file's name in errors. */
MUST_USE status tokenizer_load_pipeline(tokenizer *t, const json_t *root, const char *label, err *e);

/* Fills t from the folder's files; on failure t holds what was made so far and tokenizer_close releases
 * it. */
MUST_USE status tokenizer_load(tokenizer *t, const char *dir, err *e);

/* A piece as a SentencePiece tokenizer reads it: U+2581 for spaces, and one in front where it puts one. is_first:
 * nothing stands before the piece. */
MUST_USE status tokenizer_normalize(const tokenizer *t, buf *out, bytes piece, bool is_first);

/* The replacements of clean_up_tokenization_spaces, in place; returns the new length. */
size_t tokenizer_clean_up(unsigned char *text, size_t len_bytes);

#endif
