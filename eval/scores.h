/* What the benchmarks count, one answer at a time: pure functions. Sources: the authors' eval scripts and the official
 * scorers of each benchmark. */
#ifndef EVAL_SCORES_H
#define EVAL_SCORES_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

/* VQA accuracy: the mean, over the people asked, of min(1, how many of the others said the same / 3). All texts are
 * normalised. */
double score_vqa(const char *said, const char *const *people, size_t n_people);

/* GQA: equal to the gold answer after lower case and without periods at the end. */
bool score_gqa(const char *said, const char *gold);

/* POPE: "no" only when the words before the first period, split at single spaces and without commas, hold exactly
 * "No", "not" or "no". */
bool score_pope_says_yes(const char *said);

typedef struct {
    size_t true_yes, false_yes, true_no, false_no;
} score_pope_counts;
typedef struct {
    double accuracy, precision, recall, f1, yes_ratio; /* 0 to 1; 0 where nothing is divided by */
} score_pope_rates;
score_pope_rates score_pope(const score_pope_counts *counts);

/* MME: yes, no, or neither, by the whole word or else the first four letters. */
typedef enum { SCORE_MME_YES, SCORE_MME_NO, SCORE_MME_OTHER } score_mme_word;
score_mme_word score_mme(const char *said);

/* ScienceQA: the place of the letter that was chosen, 0 for A; -1: none could be read, or there is no such choice. */
int score_science_qa(const char *said, int n_choices);

/* MMMU, multiple choice: the place of the chosen letter, or -1 when the reference would draw lots. options: the texts
 * of the n choices. */
int score_mmmu_choice(const char *said, const char *const *options, int n);

/* MMMU, open questions: whether one of the golden answers is in a part of what was said that looks like its answer, or
 * equals a number in one. Errors: NO_MEMORY. */
MUST_USE status score_mmmu_open(bool *is_right, const char *said, const char *const *gold, size_t n_gold);

#endif
