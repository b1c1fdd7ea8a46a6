/* An open answer is read as a set of forms: the parts that follow a word of conclusion, the numbers in them, each
 * normalised. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eval/scores.h"

typedef struct {
    char *text; /* NULL: a number */
    double number;
} form;

typedef struct {
    form *forms;
    size_t n, room;
} form_list;

static const char *const CONCLUSIONS[] = {"could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ",
                                          "="};
#define N_CONCLUSIONS (sizeof CONCLUSIONS / sizeof *CONCLUSIONS) /* the last holds only in the last line */

static const char *const NUMBERS[] = {"-?\\b\\d{1,3}(?:,\\d{3})+\\b", "-?\\d+(?:\\.\\d+)?[eE][+-]?\\d+",
                                      "-?(?:\\d+\\.\\d+|\\.\\d+|\\d+\\b)(?![eE][+-]?\\d+)(?![,\\d])"};

/* ---- texts --------------------------------------------------------------------------------------- */

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* A part of a text, as a view. */
typedef struct {
    const char *at;
    size_t n;
} span;

static span stripped(span s) {
    while (s.n > 0 && is_space(s.at[s.n - 1])) s.n--;
    while (s.n > 0 && is_space(s.at[0])) s.at++, s.n--;
    return s;
}

static size_t count_characters(span s) {
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++) n += ((unsigned char)s.at[i] & 0xc0) != 0x80;
    return n;
}

/* Where the last `what` ends in s; NULL: it has none. */
static const char *after_last(span s, const char *what) {
    size_t n = strlen(what);
    for (size_t at = s.n + 1; at-- > 0;)
        if (at + n <= s.n && memcmp(s.at + at, what, n) == 0) return s.at + at + n;
    return NULL;
}

/* ---- forms --------------------------------------------------------------------------------------- */

static status add_form(form_list *list, form f) {
    if (list->n == list->room) {
        size_t room = list->room ? 2 * list->room : 16;
        form *grown = realloc(list->forms, room * sizeof *grown);
        if (!grown) return STATUS_NO_MEMORY;
        list->forms = grown;
        list->room = room;
    }
    list->forms[list->n++] = f;
    return STATUS_OK;
}

static status add_text(form_list *list, const char *before, const char *text, const char *after) {
    size_t room = strlen(before) + strlen(text) + strlen(after) + 1;
    form f = {.text = malloc(room)};
    if (!f.text) return STATUS_NO_MEMORY;
    (void)snprintf(f.text, room, "%s%s%s", before, text, after);
    status st = add_form(list, f);
    if (st != STATUS_OK) free(f.text);
    return st;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* A number as Python's float takes it once the commas are gone: space around it, an underscore between digits. Rounded
 * to two decimals as Python's round does. */
static bool read_number(double *value, const char *text) {
    char bare[256], digits[256], rounded[512], *end;
    size_t n = 0;
    for (const char *c = text; *c; c++) {
        if (*c == ',') continue;
        if (n + 1 == sizeof bare) return false;
        bare[n++] = *c;
    }
    span s = stripped((span){bare, n});
    n = 0;
    for (size_t i = 0; i < s.n; i++) {
        bool is_between = i > 0 && i + 1 < s.n && is_digit(s.at[i - 1]) && is_digit(s.at[i + 1]);
        if (s.at[i] == '_' && is_between) continue;
        if (!strchr("0123456789+-.eE", s.at[i])) return false;
        digits[n++] = s.at[i];
    }
    digits[n] = '\0';
    double exact = strtod(digits, &end);
    if (n == 0 || *end) return false;
    (void)snprintf(rounded, sizeof rounded, "%.2f", exact);
    *value = strtod(rounded, NULL);
    return true;
}

static status add_normalised(form_list *list, span s) {
    s = stripped(s);
    char *text = strndup(s.at, s.n);
    if (!text) return STATUS_NO_MEMORY;
    for (char *c = text; *c; c++)
        if (*c >= 'A' && *c <= 'Z') *c = (char)(*c + 32);
    double value;
    status st;
    if (read_number(&value, text)) st = add_form(list, (form){.number = value});
    else if (count_characters(s) != 1) st = add_text(list, "", text, "");
    else if ((st = add_text(list, " ", text, "")) == STATUS_OK) st = add_text(list, "", text, " ");
    free(text);
    return st;
}

static void free_forms(form_list *list) {
    for (size_t i = 0; i < list->n; i++) free(list->forms[i].text);
    free(list->forms);
}

/* ---- reading an answer --------------------------------------------------------------------------- */

static status add_numbers(form_list *list, span s) {
    status st = STATUS_OK;
    for (size_t p = 0; p < sizeof NUMBERS / sizeof *NUMBERS && st == STATUS_OK; p++) {
        int code;
        PCRE2_SIZE where;
        pcre2_code *re = pcre2_compile((PCRE2_SPTR)NUMBERS[p], PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code, &where,
                                       NULL);
        pcre2_match_data *match = re ? pcre2_match_data_create_from_pattern(re, NULL) : NULL;
        st = match ? STATUS_OK : STATUS_NO_MEMORY;
        for (size_t at = 0; st == STATUS_OK && pcre2_match(re, (PCRE2_SPTR)s.at, s.n, at, 0, match, NULL) > 0;) {
            const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(match);
            st = add_normalised(list, (span){s.at + ends[0], ends[1] - ends[0]});
            at = ends[1]; /* none of the patterns matches nothing */
        }
        pcre2_match_data_free(match);
        pcre2_code_free(re);
    }
    return st;
}

/* The shortest of what follows the words of conclusion in a line; nothing in it when there are none. */
static span conclusion_of(span line, bool is_last) {
    span shortest = {line.at, 0};
    for (size_t i = 0; i < N_CONCLUSIONS - !is_last; i++) {
        const char *from = after_last(line, CONCLUSIONS[i]);
        if (!from) continue;
        span rest = stripped((span){from, (size_t)(line.at + line.n - from)});
        if (shortest.n == 0 || count_characters(rest) < count_characters(shortest)) shortest = rest;
    }
    bool is_mark = shortest.n == 1 && strchr(":,.!?;'", shortest.at[0]);
    if (is_mark) shortest.n = 0;
    return shortest;
}

static status read_answer(form_list *list, const char *lower) {
    span whole = stripped((span){lower, strlen(lower)});
    while (whole.n > 0 && whole.at[whole.n - 1] == '.') whole.n--;
    while (whole.n > 0 && whole.at[0] == '.') whole.at++, whole.n--;
    status st = STATUS_OK;
    const char *end = whole.at + whole.n, *at = whole.at;
    while (st == STATUS_OK) {
        const char *line_end = memchr(at, '\n', (size_t)(end - at));
        span part = conclusion_of((span){at, (size_t)((line_end ? line_end : end) - at)}, !line_end);
        if (part.n > 0) {
            st = add_normalised(list, part);
            if (st == STATUS_OK) st = add_numbers(list, part);
        }
        if (!line_end) break;
        at = line_end + 1;
    }
    if (st == STATUS_OK && list->n == 0) {
        st = add_normalised(list, whole);
        if (st == STATUS_OK) st = add_numbers(list, whole);
    }
    return st;
}

static bool agree(const form *said, const form *gold) {
    if (said->text && gold->text) return strstr(said->text, gold->text) != NULL;
    return !said->text && !gold->text && said->number == gold->number;
}

status score_mmmu_open(bool *is_right, const char *said, const char *const *gold, size_t n_gold) {
    form_list said_forms = {0}, gold_forms = {0};
    char *lower = strdup(said);
    status st = lower ? STATUS_OK : STATUS_NO_MEMORY;
    for (char *c = lower; c && *c; c++)
        if (*c >= 'A' && *c <= 'Z') *c = (char)(*c + 32);
    if (st == STATUS_OK) st = read_answer(&said_forms, lower);
    for (size_t i = 0; i < n_gold && st == STATUS_OK; i++)
        st = add_normalised(&gold_forms, (span){gold[i], strlen(gold[i])});
    *is_right = false;
    for (size_t i = 0; i < said_forms.n && st == STATUS_OK; i++)
        for (size_t k = 0; k < gold_forms.n; k++)
            if (agree(&said_forms.forms[i], &gold_forms.forms[k])) *is_right = true;
    free_forms(&said_forms);
    free_forms(&gold_forms);
    free(lower);
    return st;
}
