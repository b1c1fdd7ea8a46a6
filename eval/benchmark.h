/* The benchmarks of the paper: which official files they are in, what is asked, what is uploaded, what is scored.
 *
 *     const benchmark *b = benchmark_find("pope");
 *     st = b->read(&items, "playground/data/eval/pope", &e);
 *     ...                                              // answers
 *     st = b->finish(&items, "playground/data/eval/pope", "out", &report, &e);
 *
 * Folders are laid out as LLaVA's evaluation has them, under playground/data/eval. Source of prompts and formats: the
 * authors' scripts. One thread. */
#ifndef EVAL_BENCHMARK_H
#define EVAL_BENCHMARK_H

#include "eval/items.h"

#define EVAL_ROWS_MAX 64

typedef struct {
    char label[64];
    double value;
    int n_decimals;
} eval_row;

typedef struct {
    eval_row rows[EVAL_ROWS_MAX];
    size_t n;
    char note[256]; /* what a person should know besides, as that the score is computed elsewhere */
} eval_report;

typedef struct {
    const char *name, *title;
    const char *needs; /* files of its folder, for people */
    int max_new_tokens;
    status (*read)(eval_items *items, const char *dir, err *e);
    status (*finish)(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e);
} benchmark;

extern const benchmark benchmarks[]; /* ends with one without a name */
const benchmark *benchmark_find(const char *name); /* NULL: there is none */

#endif
