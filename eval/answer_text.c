#include "eval/answer_text.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define PERIODS_MAX 32 /* a flag of the regular expression, passed in the place of a count */

/* Those with a capital letter are left out: the text is lower case by then. */
static const char *const CONTRACTIONS[][2] = {
    {"aint", "ain't"}, {"arent", "aren't"}, {"cant", "can't"}, {"couldve", "could've"},
    {"couldnt", "couldn't"}, {"couldn'tve", "couldn't've"}, {"couldnt've", "couldn't've"},
    {"didnt", "didn't"}, {"doesnt", "doesn't"}, {"dont", "don't"}, {"hadnt", "hadn't"},
    {"hadnt've", "hadn't've"}, {"hadn'tve", "hadn't've"}, {"hasnt", "hasn't"}, {"havent", "haven't"},
    {"hed", "he'd"}, {"hed've", "he'd've"}, {"he'dve", "he'd've"}, {"hes", "he's"}, {"howd", "how'd"},
    {"howll", "how'll"}, {"hows", "how's"}, {"isnt", "isn't"}, {"itd", "it'd"}, {"itd've", "it'd've"},
    {"it'dve", "it'd've"}, {"itll", "it'll"}, {"let's", "let's"}, {"maam", "ma'am"},
    {"mightnt", "mightn't"}, {"mightnt've", "mightn't've"}, {"mightn'tve", "mightn't've"},
    {"mightve", "might've"}, {"mustnt", "mustn't"}, {"mustve", "must've"}, {"neednt", "needn't"},
    {"notve", "not've"}, {"oclock", "o'clock"}, {"oughtnt", "oughtn't"}, {"ow's'at", "'ow's'at"},
    {"'ows'at", "'ow's'at"}, {"'ow'sat", "'ow's'at"}, {"shant", "shan't"}, {"shed've", "she'd've"},
    {"she'dve", "she'd've"}, {"she's", "she's"}, {"shouldve", "should've"}, {"shouldnt", "shouldn't"},
    {"shouldnt've", "shouldn't've"}, {"shouldn'tve", "shouldn't've"}, {"somebody'd", "somebodyd"},
    {"somebodyd've", "somebody'd've"}, {"somebody'dve", "somebody'd've"},
    {"somebodyll", "somebody'll"}, {"somebodys", "somebody's"}, {"someoned", "someone'd"},
    {"someoned've", "someone'd've"}, {"someone'dve", "someone'd've"}, {"someonell", "someone'll"},
    {"someones", "someone's"}, {"somethingd", "something'd"}, {"somethingd've", "something'd've"},
    {"something'dve", "something'd've"}, {"somethingll", "something'll"}, {"thats", "that's"},
    {"thered", "there'd"}, {"thered've", "there'd've"}, {"there'dve", "there'd've"},
    {"therere", "there're"}, {"theres", "there's"}, {"theyd", "they'd"}, {"theyd've", "they'd've"},
    {"they'dve", "they'd've"}, {"theyll", "they'll"}, {"theyre", "they're"}, {"theyve", "they've"},
    {"twas", "'twas"}, {"wasnt", "wasn't"}, {"wed've", "we'd've"}, {"we'dve", "we'd've"},
    {"weve", "we've"}, {"werent", "weren't"}, {"whatll", "what'll"}, {"whatre", "what're"},
    {"whats", "what's"}, {"whatve", "what've"}, {"whens", "when's"}, {"whered", "where'd"},
    {"wheres", "where's"}, {"whereve", "where've"}, {"whod", "who'd"}, {"whod've", "who'd've"},
    {"who'dve", "who'd've"}, {"wholl", "who'll"}, {"whos", "who's"}, {"whove", "who've"},
    {"whyll", "why'll"}, {"whyre", "why're"}, {"whys", "why's"}, {"wont", "won't"},
    {"wouldve", "would've"}, {"wouldnt", "wouldn't"}, {"wouldnt've", "wouldn't've"},
    {"wouldn'tve", "wouldn't've"}, {"yall", "y'all"}, {"yall'll", "y'all'll"}, {"y'allll", "y'all'll"},
    {"yall'd've", "y'all'd've"}, {"y'alld've", "y'all'd've"}, {"y'all'dve", "y'all'd've"},
    {"youd", "you'd"}, {"youd've", "you'd've"}, {"you'dve", "you'd've"}, {"youll", "you'll"},
    {"youre", "you're"}, {"youve", "you've"},
};

/* In the order in which they are looked for. */
static const char PUNCTUATION[] = ";/[]\"{}()=+\\_-><@`,?!";

static bool is_space(unsigned char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static bool is_digit(unsigned char c) { return c >= '0' && c <= '9'; }

static void strip(char *text) {
    size_t n = strlen(text), start = 0;
    while (n > 0 && is_space((unsigned char)text[n - 1])) n--;
    while (start < n && is_space((unsigned char)text[start])) start++;
    memmove(text, text + start, n - start);
    text[n - start] = '\0';
}

/* Lower case of ASCII; no commas, no question marks; "'s" stands apart. */
static char *first_form(const char *text) {
    size_t n = strlen(text);
    char *out = malloc(2 * n + 1);
    if (!out) return NULL;
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        char c = text[i] >= 'A' && text[i] <= 'Z' ? (char)(text[i] + 32) : text[i];
        if (c != ',' && c != '?') out[at++] = c;
    }
    out[at] = '\0';
    char *apart = malloc(2 * at + 1);
    size_t k = 0;
    for (size_t i = 0; apart && i < at; i++) {
        if (out[i] == '\'' && out[i + 1] == 's') apart[k++] = ' ';
        apart[k++] = out[i];
    }
    free(out);
    if (!apart) return NULL;
    apart[k] = '\0';
    strip(apart);
    for (char *c = apart; *c; c++)
        if (*c == '\n' || *c == '\t') *c = ' ';
    strip(apart);
    return apart;
}

static bool stands_at_a_space(const char *text, char p) {
    for (const char *at = text; (at = strchr(at, p)); at++)
        if (at[1] == ' ' || (at > text && at[-1] == ' ')) return true;
    return false;
}

/* Each mark is deleted when one of its kind stands at a space in the text as it was, and else becomes a space. */
static void drop_punctuation(char *text, const char *as_it_was) {
    for (const char *p = PUNCTUATION; *p; p++) {
        bool deletes = stands_at_a_space(as_it_was, *p);
        char *to = text;
        for (const char *from = text; *from; from++) {
            if (*from != *p) *to++ = *from;
            else if (!deletes) *to++ = ' ';
        }
        *to = '\0';
    }
    int n_periods = 0;
    char *to = text;
    for (const char *from = text; *from; from++) {
        bool goes = *from == '.' && !is_digit((unsigned char)from[1]) && n_periods < PERIODS_MAX;
        n_periods += goes;
        if (!goes) *to++ = *from;
    }
    *to = '\0';
}

static const char *word_of(const char *word) {
    static const char *const NUMBERS[] = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight",
                                          "nine", "ten"};
    static const char *const DIGITS[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"};
    if (strcmp(word, "none") == 0) return "0";
    for (int i = 0; i <= 10; i++)
        if (strcmp(word, NUMBERS[i]) == 0) return DIGITS[i];
    if (strcmp(word, "a") == 0 || strcmp(word, "an") == 0 || strcmp(word, "the") == 0) return NULL;
    for (size_t i = 0; i < sizeof CONTRACTIONS / sizeof *CONTRACTIONS; i++)
        if (strcmp(word, CONTRACTIONS[i][0]) == 0) return CONTRACTIONS[i][1];
    return word;
}

status answer_text_normalise(buf *out, const char *text) {
    buf_clear(out);
    char *as_it_was = first_form(text), *form = as_it_was ? strdup(as_it_was) : NULL, *rest = NULL;
    status st = form ? STATUS_OK : STATUS_NO_MEMORY;
    if (form) drop_punctuation(form, as_it_was);
    for (char *word = form ? strtok_r(form, " \t\n\v\f\r", &rest) : NULL; word && st == STATUS_OK;
         word = strtok_r(NULL, " \t\n\v\f\r", &rest)) {
        const char *kept = word_of(word);
        if (!kept) continue;
        if (out->len_bytes > 0) st = buf_append(out, " ", 1);
        if (st == STATUS_OK) st = buf_append_text(out, kept);
    }
    if (st == STATUS_OK && out->len_bytes == 0) st = buf_append(out, "", 0);
    free(form);
    free(as_it_was);
    return st;
}
