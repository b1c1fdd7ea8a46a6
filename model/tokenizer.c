/* Encoding is three cuts and a merge, in the order of Hugging Face tokenizers:
 *
 *     text -> added tokens that are not normalized are cut out      (<|endoftext|>)
 *          -> in each piece left, those that are normalized         (runs of spaces and tabs)
 *          -> each piece left is split into words                   (pretokenize.c)
 *          -> the bytes of each word are merged                     (bpe.c)
 *
 * SentencePiece's kind puts U+2581 for spaces between the first two, does not split, and merges characters.
 *
 * The digest covers what decides ids and texts, and not the layout of files: two folders that encode and
 * decode alike have the same one. */
#include "model/tokenizer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/tokenizer_internal.h"
#include "model/utf8.h"

/* --- opening ---------------------------------------------------------------------------------- */

static int compare_words(const tokenizer *t, bytes word, int32_t id) {
    const token_piece *piece = &t->pieces[id];
    size_t n = word.len_bytes < piece->n_bytes ? word.len_bytes : piece->n_bytes;
    int order = n ? memcmp(word.data, t->texts.data + piece->begin, n) : 0;
    if (order != 0) return order;
    return (word.len_bytes > piece->n_bytes) - (word.len_bytes < piece->n_bytes);
}

static void sift_down(const tokenizer *t, int32_t *ids, size_t at, size_t n) {
    for (size_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        const token_piece *a = &t->pieces[ids[child]];
        bytes text = {t->texts.data + a->begin, a->n_bytes};
        if (child + 1 < n && compare_words(t, text, ids[child + 1]) < 0) child++;
        a = &t->pieces[ids[child]];
        text = (bytes){t->texts.data + a->begin, a->n_bytes};
        if (compare_words(t, text, ids[at]) <= 0) return;
        int32_t held = ids[at];
        ids[at] = ids[child];
        ids[child] = held;
        at = child;
    }
}

/* Heap sort: qsort has no argument to hand the tokenizer through. */
static status sort_words(tokenizer *t, err *e) {
    t->sorted_words = malloc(((size_t)t->n_ids + 1) * sizeof *t->sorted_words);
    if (!t->sorted_words) return fail(e, STATUS_NO_MEMORY, "no memory for the list of words");
    size_t n = 0;
    for (int32_t id = 0; id < t->n_ids; id++)
        if (t->pieces[id].is_there && t->pieces[id].is_word) t->sorted_words[n++] = id;
    for (size_t i = n / 2; i-- > 0;) sift_down(t, t->sorted_words, i, n);
    for (size_t end = n; end > 1; end--) {
        int32_t held = t->sorted_words[0];
        t->sorted_words[0] = t->sorted_words[end - 1];
        t->sorted_words[end - 1] = held;
        sift_down(t, t->sorted_words, 0, end - 1);
    }
    t->n_sorted_words = n;
    return STATUS_OK;
}

static void hash_number(hash_sha256_stream *s, uint64_t number) {
    unsigned char le[8];
    bytes_store_le(le, number, 8);
    hash_sha256_add(s, le, sizeof le);
}

static void make_digest(tokenizer *t) {
    hash_sha256_stream *s = hash_sha256_open();
    unsigned char merges[HASH_SHA256_BYTES];
    bpe_digest(t->merges, merges);
    hash_sha256_add(s, merges, sizeof merges);
    hash_number(s, (uint64_t)t->n_ids);
    for (int32_t id = 0; id < t->n_ids; id++) {
        const token_piece *piece = &t->pieces[id];
        hash_number(s, (uint64_t)piece->n_bytes << 2 | (uint64_t)piece->is_there << 1 |
                           (uint64_t)piece->is_special);
        if (piece->n_bytes) hash_sha256_add(s, t->texts.data + piece->begin, piece->n_bytes);
    }
    for (size_t i = 0; i < added_tokens_count(t->added); i++) {
        const added_token *a = added_tokens_at(t->added, i);
        hash_number(s, (uint64_t)a->id << 8 | (uint64_t)a->is_special << 4 |
                           (uint64_t)a->is_normalized << 3 | (uint64_t)a->is_single_word << 2 |
                           (uint64_t)a->strips_left << 1 | (uint64_t)a->strips_right);
    }
    hash_number(s, (uint64_t)t->adds_prefix_space << 3 | (uint64_t)t->splits_words << 2 |
                       (uint64_t)t->ignores_merges << 1 | (uint64_t)t->cleans_up);
    hash_number(s, (uint64_t)t->eos_id);
    hash_number(s, (uint64_t)(t->bos_id + 1));
    hash_number(s, (uint64_t)t->is_sentencepiece << 4 | (uint64_t)t->strips_space << 3 | (uint64_t)t->prefix);
    for (int i = 0; i < 256; i++) hash_number(s, (uint64_t)(t->byte_ids[i] + 1));
    hash_sha256_finish(s, t->digest);
}

/* Unused ids above the last one go back. */
static void trim_pieces(tokenizer *t) {
    size_t n = t->n_ids ? (size_t)t->n_ids : 1;
    token_piece *smaller = realloc(t->pieces, n * sizeof *smaller);
    if (smaller) t->pieces = smaller;
}

status tokenizer_open(tokenizer **out, const char *dir, err *e) {
    *out = NULL;
    tokenizer *t = calloc(1, sizeof *t);
    if (!t) return fail(e, STATUS_NO_MEMORY, "%s: no memory for a tokenizer", dir);
    status st = tokenizer_load(t, dir, e);
    if (st == STATUS_OK) st = pretokenizer_open(&t->words, e);
    if (st == STATUS_OK && t->ignores_merges) st = sort_words(t, e);
    if (st != STATUS_OK) {
        tokenizer_close(&t);
        return st;
    }
    trim_pieces(t);
    make_digest(t);
    *out = t;
    return STATUS_OK;
}

void tokenizer_close(tokenizer **t) {
    if (!*t) return;
    free((*t)->pieces);
    free((*t)->sorted_words);
    free((*t)->characters);
    free((*t)->eos_text);
    buf_deinit(&(*t)->texts);
    bpe_close(&(*t)->merges);
    added_tokens_close(&(*t)->added);
    pretokenizer_close(&(*t)->words);
    free(*t);
    *t = NULL;
}

int32_t tokenizer_n_ids(const tokenizer *t) { return t->n_ids; }
int32_t tokenizer_eos_id(const tokenizer *t) { return t->eos_id; }
int32_t tokenizer_bos_id(const tokenizer *t) { return t->bos_id; }
const char *tokenizer_eos_text(const tokenizer *t) { return t->eos_text; }
int32_t tokenizer_special_id(const tokenizer *t, const char *text) {
    const added_token *token = added_tokens_find(t->added, text);
    return token && token->is_special ? token->id : -1;
}

const unsigned char *tokenizer_digest(const tokenizer *t) { return t->digest; }

/* --- encoding --------------------------------------------------------------------------------- */

typedef struct {
    const tokenizer *t;
    tokenizer_mode mode;
    const bool *is_typed;       /* of each byte from begin on, or NULL */
    int32_t *ids;
    size_t n, max;
    word_cutter words;
    bpe_scratch scratch;
    buf prefixed; /* a piece with the space that adds_prefix_space puts before it, or normalized */
    const unsigned char *begin; /* of the whole text */
    err *e;
} encoder;

static status put_ids(encoder *c, const int32_t *ids, size_t n) {
    if (n > c->max - c->n)
        return fail(c->e, STATUS_TOO_LARGE, "the text has more than %zu tokens", c->max);
    if (n) memcpy(c->ids + c->n, ids, n * sizeof *ids);
    c->n += n;
    return STATUS_OK;
}

static int32_t find_word(const tokenizer *t, bytes word) {
    size_t low = 0, high = t->n_sorted_words;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = compare_words(t, word, t->sorted_words[middle]);
        if (order == 0) return t->sorted_words[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return -1;
}

static int32_t find_character(const tokenizer *t, uint32_t code_point) {
    size_t low = 0, high = t->n_characters;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (t->characters[middle].code_point == code_point) return t->characters[middle].id;
        if (t->characters[middle].code_point < code_point)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

/* What a word begins as; returns how many. There are never more than its bytes. */
static size_t first_symbols(const tokenizer *t, int32_t *symbols, bytes word) {
    size_t n = 0;
    if (!t->is_sentencepiece) {
        for (; n < word.len_bytes; n++) symbols[n] = t->byte_ids[word.data[n]];
        return n;
    }
    for (size_t at = 0, len; at < word.len_bytes; at += len) {
        uint32_t c = 0;
        CHECK(utf8_next(word.data + at, word.len_bytes - at, &c, &len) == UTF8_CHARACTER, "words are UTF-8");
        int32_t id = find_character(t, c);
        if (id >= 0)
            symbols[n++] = id;
        else
            for (size_t i = 0; i < len; i++) symbols[n++] = t->byte_ids[word.data[at + i]];
    }
    return n;
}

status tokenizer_normalize(const tokenizer *t, buf *out, bytes piece, bool is_first) {
    buf_clear(out);
    status st = STATUS_OK;
    if (piece.len_bytes == 0) return st;
    if (t->prefix == TOKENIZER_PREFIX_EACH_PIECE || (t->prefix == TOKENIZER_PREFIX_FIRST_PIECE && is_first))
        st = buf_append_text(out, TOKENIZER_SPACE);
    for (size_t at = 0; at < piece.len_bytes && st == STATUS_OK;) {
        const unsigned char *space = memchr(piece.data + at, ' ', piece.len_bytes - at);
        size_t n = space ? (size_t)(space - piece.data) - at : piece.len_bytes - at;
        st = buf_append(out, piece.data + at, n);
        if (st == STATUS_OK && space) st = buf_append_text(out, TOKENIZER_SPACE);
        at += n + (space != NULL);
    }
    return st;
}

static status encode_word(encoder *c, bytes word) {
    const int32_t *ids;
    size_t n;
    int32_t whole = c->t->ignores_merges ? find_word(c->t, word) : -1;
    if (whole >= 0) return put_ids(c, &whole, 1);
    int32_t *symbols = bpe_symbols(&c->scratch, word.len_bytes);
    if (!symbols) return fail(c->e, STATUS_NO_MEMORY, "no memory to encode a word of %zu bytes", word.len_bytes);
    bpe_merge(c->t->merges, &c->scratch, first_symbols(c->t, symbols, word), &ids, &n);
    return put_ids(c, ids, n);
}

static status encode_piece(encoder *c, bytes piece) {
    status st = STATUS_OK;
    if (piece.len_bytes == 0) return STATUS_OK;
    if (c->t->adds_prefix_space && piece.data[0] != ' ') {
        buf_clear(&c->prefixed);
        st = buf_append(&c->prefixed, " ", 1);
        if (st == STATUS_OK) st = buf_append(&c->prefixed, piece.data, piece.len_bytes);
        if (st != STATUS_OK) return fail(c->e, st, "no memory to encode %zu bytes", piece.len_bytes);
        piece = (bytes){c->prefixed.data, c->prefixed.len_bytes};
    }
    if (c->t->is_sentencepiece || !c->t->splits_words) return encode_word(c, piece);
    word_cutter_restart(&c->words, piece);
    for (bytes word; st == STATUS_OK && word_cutter_next(&c->words, &word);)
        st = encode_word(c, word);
    return st;
}

static status encode_pass(encoder *c, bytes text, int pass);

/* What stands between tokens of the first pass. */
static status encode_between(encoder *c, bytes text) {
    if (!c->t->is_sentencepiece) return encode_pass(c, text, 1);
    status st = tokenizer_normalize(c->t, &c->prefixed, text, text.data == c->begin);
    if (st != STATUS_OK) return fail(c->e, st, "no memory to encode %zu bytes", text.len_bytes);
    return encode_pass(c, (bytes){c->prefixed.data, c->prefixed.len_bytes}, 1);
}

static status encode_pass(encoder *c, bytes text, int pass) {
    status st = STATUS_OK;
    added_cutter cutter = added_cutter_make(c->t->added, pass, c->t->words, text, c->mode);
    /* In the second pass the text may be a normalized one, whose bytes are others: no special token then. */
    if (c->is_typed && pass == 0) cutter.is_typed = c->is_typed + (text.data - c->begin);
    if (c->is_typed && pass == 1) cutter.mode = TOKENIZER_PLAIN;
    for (added_span s; st == STATUS_OK && added_cutter_next(&cutter, &s);) {
        if (s.id >= 0)
            st = put_ids(c, &s.id, 1);
        else
            st = pass == 0 ? encode_between(c, s.text) : encode_piece(c, s.text);
    }
    return st;
}

static status encode_text(encoder *c, const char *text, size_t text_bytes, size_t *n_ids) {
    const tokenizer *t = c->t;
    *n_ids = 0;
    if (text_bytes == 0) return STATUS_OK;
    if (text_bytes > TOKENIZER_TEXT_BYTES_MAX)
        return fail(c->e, STATUS_TOO_LARGE, "the text has %zu bytes, at most %zu", text_bytes,
                    TOKENIZER_TEXT_BYTES_MAX);
    size_t n_valid = utf8_valid_bytes((const unsigned char *)text, text_bytes);
    if (n_valid < text_bytes)
        return fail(c->e, STATUS_BAD_FORMAT, "the text is not valid UTF-8 at byte %zu of %zu", n_valid,
                    text_bytes);
    c->begin = (const unsigned char *)text;
    buf_init(&c->prefixed, 3 * TOKENIZER_TEXT_BYTES_MAX + 3);
    status st = word_cutter_init(&c->words, t->words, c->e);
    if (st == STATUS_OK) st = encode_pass(c, (bytes){c->begin, text_bytes}, 0);
    if (st == STATUS_OK) *n_ids = c->n;
    word_cutter_deinit(&c->words);
    bpe_scratch_deinit(&c->scratch);
    buf_deinit(&c->prefixed);
    return st;
}

status tokenizer_encode(const tokenizer *t, const char *text, size_t text_bytes, tokenizer_mode mode,
                        int32_t *ids, size_t max_ids, size_t *n_ids, err *e) {
    encoder c = {.t = t, .mode = mode, .ids = ids, .max = max_ids, .e = e};
    return encode_text(&c, text, text_bytes, n_ids);
}

status tokenizer_encode_typed(const tokenizer *t, const char *text, size_t text_bytes, const bool *is_typed,
                              int32_t *ids, size_t max_ids, size_t *n_ids, err *e) {
    encoder c = {.t = t, .mode = TOKENIZER_WITH_ADDED, .is_typed = is_typed, .ids = ids, .max = max_ids, .e = e};
    return encode_text(&c, text, text_bytes, n_ids);
}
