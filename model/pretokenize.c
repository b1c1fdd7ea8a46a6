/* PCRE2 with its JIT and Unicode classes runs the published expression. White space is written out as the
 * Unicode property White_Space instead of \s, because engines disagree about U+0085 and U+180E.
 *
 * Every character is white space, a letter, a number or something else, so some alternative matches at
 * every place: the match is anchored and the words cover the text. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/pretokenize.h"

#include <pcre2.h>
#include <stdlib.h>

#include "base/check.h"
#include "model/utf8.h"

#define SPACE "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
              "\\x{205f}\\x{3000}"
#define WORDS "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+|[" SPACE           \
              "]+(?![^" SPACE "])|[" SPACE "]+"
/* Alphabetic is L, Nl, most of M and some enclosed letters; the rest of M counts as well. */
#define WORD_CHARACTER "[\\p{L}\\p{Nl}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}\\x{24b6}-\\x{24e9}"          \
                       "\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}]"

struct pretokenizer {
    pcre2_code *words;
    pcre2_code *word_character;
};

static pcre2_code *compile(const char *pattern) {
    int code;
    PCRE2_SIZE place;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                   &code, &place, NULL);
    /* Without JIT support the interpreter gives the same matches, more slowly. */
    if (re) (void)pcre2_jit_compile(re, PCRE2_JIT_COMPLETE);
    return re;
}

status pretokenizer_open(pretokenizer **out, err *e) {
    *out = NULL;
    pretokenizer *p = calloc(1, sizeof *p);
    if (!p) return fail(e, STATUS_NO_MEMORY, "no memory for the pre-tokenizer");
    p->words = compile(WORDS);
    p->word_character = compile(WORD_CHARACTER);
    if (!p->words || !p->word_character) {
        pretokenizer_close(&p);
        return fail(e, STATUS_NO_MEMORY, "the pre-tokenizer's expressions cannot be compiled");
    }
    *out = p;
    return STATUS_OK;
}

void pretokenizer_close(pretokenizer **p) {
    if (!*p) return;
    pcre2_code_free((*p)->words);
    pcre2_code_free((*p)->word_character);
    free(*p);
    *p = NULL;
}

status word_cutter_init(word_cutter *c, const pretokenizer *p, err *e) {
    *c = (word_cutter){.p = p, .match = pcre2_match_data_create(1, NULL)};
    return c->match ? STATUS_OK : fail(e, STATUS_NO_MEMORY, "no memory to cut text into words");
}

void word_cutter_restart(word_cutter *c, bytes text) {
    c->text = text;
    c->at = 0;
}

bool word_cutter_next(word_cutter *c, bytes *word) {
    if (c->at >= c->text.len_bytes) return false;
    int n = pcre2_match(c->p->words, c->text.data, c->text.len_bytes, c->at,
                        PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK, c->match, NULL);
    /* A resource limit of the library is the only way not to match; the rest is then one word. */
    size_t end = c->text.len_bytes;
    if (n > 0) end = pcre2_get_ovector_pointer(c->match)[1];
    CHECK(end > c->at && end <= c->text.len_bytes, "every word has a character");
    *word = (bytes){c->text.data + c->at, end - c->at};
    c->at = end;
    return true;
}

void word_cutter_deinit(word_cutter *c) {
    pcre2_match_data_free(c->match);
    *c = (word_cutter){0};
}

static bool is_space(uint32_t c) {
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}

size_t text_leading_space(const pretokenizer *p, bytes text) {
    (void)p;
    size_t at = 0, n;
    uint32_t c;
    while (at < text.len_bytes &&
           utf8_next(text.data + at, text.len_bytes - at, &c, &n) == UTF8_CHARACTER && is_space(c))
        at += n;
    return at;
}

/* The last character of a text of whole characters. */
static bytes last_character(bytes text) {
    size_t n = 1;
    while (n < 4 && n < text.len_bytes && (text.data[text.len_bytes - n] & 0xC0) == 0x80) n++;
    return (bytes){text.data + text.len_bytes - n, n};
}

size_t text_trailing_space(const pretokenizer *p, bytes text) {
    size_t n_space = 0;
    while (n_space < text.len_bytes) {
        bytes last = last_character((bytes){text.data, text.len_bytes - n_space});
        if (text_leading_space(p, last) == 0) break;
        n_space += last.len_bytes;
    }
    return n_space;
}

bool text_begins_with_word(const pretokenizer *p, bytes text) {
    if (text.len_bytes == 0) return false;
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    if (!match) return false;
    int n = pcre2_match(p->word_character, text.data, text.len_bytes, 0,
                        PCRE2_ANCHORED | PCRE2_NO_UTF_CHECK, match, NULL);
    pcre2_match_data_free(match);
    return n > 0;
}

bool text_ends_with_word(const pretokenizer *p, bytes text) {
    return text.len_bytes > 0 && text_begins_with_word(p, last_character(text));
}
