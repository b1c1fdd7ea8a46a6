#include "eval/scores.h"

#include <stdlib.h>
#include <string.h>

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c; }

double score_vqa(const char *said, const char *const *people, size_t n_people) {
    double sum = 0.0;
    size_t n_same = 0;
    for (size_t i = 0; i < n_people; i++) n_same += strcmp(people[i], said) == 0;
    for (size_t i = 0; i < n_people; i++) {
        size_t others = n_same - (strcmp(people[i], said) == 0);
        sum += others >= 3 ? 1.0 : (double)others / 3.0;
    }
    return n_same && n_people ? sum / (double)n_people : 0.0;
}

bool score_gqa(const char *said, const char *gold) {
    size_t n = strlen(said), i = 0;
    while (n > 0 && said[n - 1] == '.') n--;
    for (; i < n && gold[i]; i++)
        if (lower(said[i]) != gold[i]) return false;
    return i == n && !gold[i];
}

bool score_pope_says_yes(const char *said) {
    static const char *const NOES[] = {"No", "not", "no"};
    size_t n_all = strcspn(said, ".");
    char word[8];
    size_t n = 0; /* of the word, commas not counted */
    for (size_t i = 0; i <= n_all; i++) {
        if (i < n_all && said[i] == ',') continue;
        if (i < n_all && said[i] != ' ') {
            if (n < sizeof word) word[n] = said[i];
            n++;
            continue;
        }
        for (int k = 0; k < 3; k++)
            if (n == strlen(NOES[k]) && memcmp(word, NOES[k], n) == 0) return false;
        n = 0;
    }
    return true;
}

static double share(size_t part, size_t whole) { return whole ? (double)part / (double)whole : 0.0; }

score_pope_rates score_pope(const score_pope_counts *c) {
    size_t n_yes = c->true_yes + c->false_yes, n = n_yes + c->true_no + c->false_no;
    score_pope_rates r = {.accuracy = share(c->true_yes + c->true_no, n),
                          .precision = share(c->true_yes, n_yes),
                          .recall = share(c->true_yes, c->true_yes + c->false_no),
                          .yes_ratio = share(n_yes, n)};
    if (r.precision + r.recall > 0.0) r.f1 = 2.0 * r.precision * r.recall / (r.precision + r.recall);
    return r;
}

score_mme_word score_mme(const char *said) {
    char word[5] = "";
    size_t n = strlen(said);
    for (size_t i = 0; i < 4 && i < n; i++) word[i] = lower(said[i]);
    if (strstr(word, "yes")) return SCORE_MME_YES;
    return strstr(word, "no") ? SCORE_MME_NO : SCORE_MME_OTHER;
}

/* The letter of "The answer is X." when exactly one is there; the last character may be any but a newline. */
static int letter_in_a_sentence(const char *said) {
    static const char START[] = "The answer is ";
    int letter = -1;
    for (const char *at = said; (at = strstr(at, START));) {
        const char *x = at + sizeof START - 1;
        bool is_match = *x >= 'A' && *x <= 'Z' && x[1] && x[1] != '\n';
        if (is_match && letter >= 0) return -1;
        if (is_match) letter = *x - 'A';
        at = is_match ? x + 2 : at + 1;
    }
    return letter;
}

int score_science_qa(const char *said, int n_choices) {
    bool is_letter = said[0] >= 'A' && said[0] <= 'E';
    int choice = -1;
    if (is_letter && (!said[1] || (said[1] == '.' && said[2] == ' '))) choice = said[0] - 'A';
    else choice = letter_in_a_sentence(said);
    return choice < n_choices ? choice : -1;
}

/* --- MMMU ------------------------------------------------------------------------------------------ */

/* Each of these is taken off both ends, one after the other; spaces stay. */
static char *without_marks(const char *said) {
    static const char MARKS[] = ",.!?;:'";
    size_t start = 0, n = strlen(said);
    for (const char *mark = MARKS; *mark; mark++) {
        while (n > start && said[start] == *mark) start++;
        while (n > start && said[n - 1] == *mark) n--;
    }
    char *out = malloc(n - start + 3);
    if (!out) return NULL;
    out[0] = ' ';
    memcpy(out + 1, said + start, n - start);
    memcpy(out + 1 + (n - start), " ", 2);
    return out;
}

/* Where the last one begins, or -1. */
static long last_of(const char *text, const char *what, bool ignores_case) {
    long last = -1;
    size_t n = strlen(what);
    for (size_t at = 0; text[at] && strlen(text + at) >= n; at++) {
        size_t i = 0;
        while (i < n && (ignores_case ? lower(text[at + i]) == lower(what[i]) : text[at + i] == what[i])) i++;
        if (i == n) last = (long)at;
    }
    return last;
}

static int count_words(const char *text) {
    int n = 0;
    for (const char *c = text; *c; c++) n += *c > ' ' && (c == text || c[-1] <= ' ');
    return n;
}

/* The choice whose sign stands furthest right, the first of equals; -1 without one. */
static int furthest(const char *text, const char *before, const char *after, int n) {
    int best = -1;
    long at = -1;
    for (int i = 0; i < n; i++) {
        char sign[4] = {before[0], (char)('A' + i), after[0], '\0'};
        long here = last_of(text, sign, false);
        if (here > at) {
            at = here;
            best = i;
        }
    }
    return best;
}

int score_mmmu_choice(const char *said, const char *const *options, int n) {
    char *text = without_marks(said);
    if (!text) return -1;
    int choice = furthest(text, "(", ")", n);
    if (choice < 0) choice = furthest(text, " ", " ", n);
    if (choice < 0 && count_words(text) > 5) {
        long at = -1;
        for (int i = 0; i < n; i++) {
            long here = last_of(text, options[i], true);
            if (here > at) {
                at = here;
                choice = i;
            }
        }
    }
    free(text);
    return choice;
}
