/* Text to token ids and back: tokenizer.json of byte-level BPE (CodeGen, GPT-2), and of SentencePiece's BPE with
 * byte fallback (Gemma, Llama, Phi-3).
 *
 *     int32_t ids[64];
 *     size_t n;
 *     st = tokenizer_encode(t, text, n_bytes, TOKENIZER_PLAIN, ids, 64, &n, &e);
 *
 * Equal to Hugging Face tokenizers on every valid UTF-8 string. Read-only after open: any thread. */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

typedef struct tokenizer tokenizer;

typedef enum {
    TOKENIZER_WITH_ADDED, /* added and special tokens in the text are cut out first, as Hugging Face does */
    TOKENIZER_PLAIN       /* special tokens in the text are ordinary text (for what users type) */
} tokenizer_mode;

/* From dir/tokenizer.json, or vocab.json + merges.txt + added_tokens.json when it is absent.
 * Errors: IO, BAD_FORMAT, BAD_MODEL. */
MUST_USE status tokenizer_open(tokenizer **t, const char *dir, err *e);
void tokenizer_close(tokenizer **t);

int32_t tokenizer_n_ids(const tokenizer *t);   /* largest id + 1 */
int32_t tokenizer_eos_id(const tokenizer *t);
/* The token that Hugging Face puts in front of every text, -1: none. tokenizer_encode does not. */
int32_t tokenizer_bos_id(const tokenizer *t);
const char *tokenizer_eos_text(const tokenizer *t); /* "<|endoftext|>" */

/* The id of a special token by its text, -1 when there is none. */
int32_t tokenizer_special_id(const tokenizer *t, const char *text);

/* SHA-256 (32 bytes) over everything that decides ids and texts, whatever files it came from. */
const unsigned char *tokenizer_digest(const tokenizer *t);

/* ids needs room for max_ids; TOO_LARGE when the text needs more, BAD_FORMAT for invalid UTF-8.
 * Cost: n log n in the longest word. */
MUST_USE status tokenizer_encode(const tokenizer *t, const char *text, size_t text_bytes,
                                 tokenizer_mode mode, int32_t *ids, size_t max_ids, size_t *n_ids,
                                 err *e);

/* The same of a text of which somebody typed a part: is_typed has a value for each of its bytes. Special tokens
 * are cut out where none of their bytes was typed. */
MUST_USE status tokenizer_encode_typed(const tokenizer *t, const char *text, size_t text_bytes,
                                       const bool *is_typed, int32_t *ids, size_t max_ids, size_t *n_ids, err *e);

/* Appends the text of ids, special tokens left out when skip_special; invalid UTF-8 becomes U+FFFD by
 * the maximal-subpart rule; the clean-up of tokenization spaces is applied when tokenizer_config.json
 * asks for it. Equal to Hugging Face decode of the same ids. */
MUST_USE status tokenizer_decode(const tokenizer *t, const int32_t *ids, size_t n_ids,
                                 bool skip_special, buf *text);

/* Streaming: the concatenation of all pieces and of the final flush equals tokenizer_decode of all
 * ids with skip_special. A piece may be empty: bytes that could still change are held back. */
typedef struct tokenizer_stream tokenizer_stream;
MUST_USE status tokenizer_stream_open(tokenizer_stream **s, const tokenizer *t);
MUST_USE status tokenizer_stream_push(tokenizer_stream *s, int32_t id, buf *piece);
MUST_USE status tokenizer_stream_flush(tokenizer_stream *s, buf *piece);
void tokenizer_stream_close(tokenizer_stream **s);

#endif
