/* Decoding joins the bytes of all ids, repairs UTF-8, and then takes out spaces as
 * clean_up_tokenization_spaces does: ten replacements, one after the other over the whole text.
 *
 * A stream must give the same text in pieces, although a replacement may still happen across the end of
 * what is known. Every pattern begins with a space, and the characters a pattern has before its last are
 * only: space n ' v r. A replacement only takes out spaces, so a character b that is none of these five
 * stays where it is through all ten passes and can only be the last of a match. No match ever reaches from
 * b to what follows it: the text up to b is final, whatever comes. So a stream holds back what follows the
 * last such character, usually a few bytes, and besides it the beginning of a UTF-8 sequence.
 *
 * SentencePiece's single bytes are repaired otherwise: a run of them is text when all of it is UTF-8, else
 * every one of its bytes is U+FFFD. So a stream holds a run back until something else ends it. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/tokenizer_internal.h"
#include "model/utf8.h"

#define STREAM_BYTES_MAX ((size_t)64 << 20)

/* --- the parts -------------------------------------------------------------------------------- */

static size_t replace(unsigned char *text, size_t n, const char *from, const char *to) {
    size_t from_bytes = strlen(from), to_bytes = strlen(to), out = 0;
    for (size_t at = 0; at < n;) {
        if (n - at >= from_bytes && memcmp(text + at, from, from_bytes) == 0) {
            memcpy(text + out, to, to_bytes);
            out += to_bytes;
            at += from_bytes;
        } else {
            text[out++] = text[at++];
        }
    }
    return out;
}

size_t tokenizer_clean_up(unsigned char *text, size_t len_bytes) {
    static const char *const PAIRS[][2] = {
        {" .", "."},   {" ?", "?"},     {" !", "!"},   {" ,", ","},     {" ' ", "'"},
        {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"},
    };
    for (size_t i = 0; i < sizeof PAIRS / sizeof PAIRS[0]; i++)
        len_bytes = replace(text, len_bytes, PAIRS[i][0], PAIRS[i][1]);
    return len_bytes;
}

/* Bytes of a text that no later text can change. */
static size_t settled_bytes(const unsigned char *text, size_t n) {
    while (n > 0 && memchr(" n'vr", text[n - 1], 5)) n--;
    return n;
}

/* What is known of a text, from the left: settled characters, then bytes that what follows may change. */
typedef struct {
    const tokenizer *t;
    buf raw;          /* the beginning of a character, or a run of single bytes */
    bool is_started;  /* there was a text, so a space in front is no more */
} decoding;

/* A run of single bytes is over. */
static status end_run(decoding *d, buf *text) {
    buf *run = &d->raw;
    bool is_text = utf8_valid_bytes(run->data, run->len_bytes) == run->len_bytes;
    status st = is_text ? buf_append(text, run->data, run->len_bytes) : STATUS_OK;
    for (size_t i = 0; !is_text && i < run->len_bytes && st == STATUS_OK; i++)
        st = buf_append_text(text, UTF8_REPLACEMENT);
    buf_clear(run);
    return st;
}

/* Moves the whole characters of raw to the end of text, broken ones as U+FFFD. A sequence that is cut off at
 * the end stays in raw, unless this is the end of everything. */
static status move_characters(buf *raw, bool is_end, buf *text) {
    size_t at = 0;
    status st = STATUS_OK;
    while (at < raw->len_bytes && st == STATUS_OK) {
        uint32_t c;
        size_t n;
        utf8_kind kind = utf8_next(raw->data + at, raw->len_bytes - at, &c, &n);
        if (kind == UTF8_CUT_OFF && !is_end) break;
        st = kind == UTF8_CHARACTER ? buf_append(text, raw->data + at, n)
                                    : buf_append_text(text, UTF8_REPLACEMENT);
        if (st == STATUS_OK) at += n;
    }
    if (at > 0) {
        memmove(raw->data, raw->data + at, raw->len_bytes - at);
        raw->len_bytes -= at;
    }
    return st;
}

/* One more id; what it settles goes to the end of text. */
static status decode_id(decoding *d, int32_t id, bool skip_special, buf *text) {
    const tokenizer *t = d->t;
    if (id < 0 || id >= t->n_ids) return STATUS_OK;
    const token_piece *piece = &t->pieces[id];
    if (!piece->is_there || (skip_special && piece->is_special)) return STATUS_OK;
    bytes own = {t->texts.data + piece->begin, piece->n_bytes};
    if (!t->is_sentencepiece) {
        status st = buf_append(&d->raw, own.data, own.len_bytes);
        return st == STATUS_OK ? move_characters(&d->raw, false, text) : st;
    }
    if (piece->is_byte) return buf_append(&d->raw, own.data, own.len_bytes);
    status st = d->raw.len_bytes ? end_run(d, text) : STATUS_OK;
    return st == STATUS_OK ? buf_append(text, own.data, own.len_bytes) : st;
}

static status decode_end(decoding *d, buf *text) {
    if (!d->t->is_sentencepiece) return move_characters(&d->raw, true, text);
    return d->raw.len_bytes ? end_run(d, text) : STATUS_OK;
}

/* Drops the one space that a text begins with, where it was added in encoding. text: all there is of it from
 * `start` on. */
static void strip_space(decoding *d, buf *text, size_t start) {
    if (!d->t->strips_space || d->is_started || text->len_bytes == start) return;
    d->is_started = true;
    if (text->data[start] != ' ') return;
    memmove(text->data + start, text->data + start + 1, text->len_bytes - start - 1);
    text->len_bytes--;
}

/* --- in one piece ----------------------------------------------------------------------------- */

status tokenizer_decode(const tokenizer *t, const int32_t *ids, size_t n_ids, bool skip_special,
                        buf *text) {
    decoding d = {.t = t};
    size_t start = text->len_bytes;
    status st = STATUS_OK;
    buf_init(&d.raw, STREAM_BYTES_MAX);
    for (size_t i = 0; st == STATUS_OK && i < n_ids; i++) st = decode_id(&d, ids[i], skip_special, text);
    if (st == STATUS_OK) st = decode_end(&d, text);
    if (st == STATUS_OK) strip_space(&d, text, start);
    buf_deinit(&d.raw);
    if (st != STATUS_OK) {
        text->len_bytes = start;
    } else if (t->cleans_up && text->len_bytes > start) {
        text->len_bytes = start + tokenizer_clean_up(text->data + start, text->len_bytes - start);
    }
    if (text->data) text->data[text->len_bytes] = 0;
    return st;
}

/* --- as a stream ------------------------------------------------------------------------------ */

struct tokenizer_stream {
    decoding d;
    buf held; /* whole characters that the clean-up may still change */
};

status tokenizer_stream_open(tokenizer_stream **out, const tokenizer *t) {
    tokenizer_stream *s = calloc(1, sizeof *s);
    *out = s;
    if (!s) return STATUS_NO_MEMORY;
    s->d.t = t;
    buf_init(&s->d.raw, STREAM_BYTES_MAX);
    buf_init(&s->held, STREAM_BYTES_MAX);
    return STATUS_OK;
}

void tokenizer_stream_close(tokenizer_stream **s) {
    if (!*s) return;
    buf_deinit(&(*s)->d.raw);
    buf_deinit(&(*s)->held);
    free(*s);
    *s = NULL;
}

/* Gives the first n bytes of what is held, cleaned up. */
static status give(tokenizer_stream *s, size_t n, buf *piece) {
    if (n == 0) return STATUS_OK;
    size_t n_clean = n;
    unsigned char *to = buf_reserve(piece, n);
    if (!to) return STATUS_TOO_LARGE;
    memcpy(to, s->held.data, n);
    if (s->d.t->cleans_up) n_clean = tokenizer_clean_up(to, n);
    to[n_clean] = 0;
    piece->len_bytes += n_clean;
    memmove(s->held.data, s->held.data + n, s->held.len_bytes - n);
    s->held.len_bytes -= n;
    return STATUS_OK;
}

/* held has grown: gives what is settled of it. */
static status advance(tokenizer_stream *s, bool is_end, buf *piece) {
    strip_space(&s->d, &s->held, 0);
    size_t n = s->held.len_bytes;
    if (!is_end && s->d.t->cleans_up && n > 0) n = settled_bytes(s->held.data, n);
    return give(s, n, piece);
}

status tokenizer_stream_push(tokenizer_stream *s, int32_t id, buf *piece) {
    status st = decode_id(&s->d, id, true, &s->held);
    return st == STATUS_OK ? advance(s, false, piece) : st;
}

status tokenizer_stream_flush(tokenizer_stream *s, buf *piece) {
    status st = decode_end(&s->d, &s->held);
    return st == STATUS_OK ? advance(s, true, piece) : st;
}
