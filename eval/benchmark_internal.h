/* What the benchmarks share. */
#ifndef EVAL_BENCHMARK_INTERNAL_H
#define EVAL_BENCHMARK_INTERNAL_H

#include "base/buf.h"
#include "eval/benchmark.h"

#define EVAL_PATH_BYTES   4096
#define EVAL_TEXT_BYTES   65536
#define EVAL_ID_BYTES     64
#define EVAL_PEOPLE_MAX   32

__attribute__((format(printf, 2, 3))) void eval_path(char out[EVAL_PATH_BYTES], const char *format, ...);

/* The first of the names that is there below dir, or else the first. */
void eval_find(char out[EVAL_PATH_BYTES], const char *dir, const char *const *names);
#define EVAL_FIND(out, dir, ...) eval_find(out, dir, (const char *const[]){__VA_ARGS__, NULL})

/* "" where there is none. */
const char *eval_text_at(const json_t *object, const char *key);
const char *eval_answer(const eval_item *item);

/* An id as text, whether it is written as a number or a string. */
const char *eval_id_text(char out[EVAL_ID_BYTES], const json_t *id);

double eval_percent(double part, size_t whole);
__attribute__((format(printf, 4, 5)))
void eval_add_row(eval_report *r, double value, int n_decimals, const char *format, ...);
void eval_note(eval_report *r, const char *text);

/* Most benchmarks are a file of lines {question_id, image, text, category}, of which text is the whole question.
 * Errors: IO, BAD_FORMAT, NO_MEMORY. */
MUST_USE status eval_read_lines(eval_items *items, const char *path, const char *image_dir, err *e);

/* OUT/answers.jsonl: the authors' own lines of answers, from which all their conversions start. Errors: IO. */
MUST_USE status eval_write_answers(const eval_items *items, const char *out_dir, err *e);

/* Replaces out. Errors: NO_MEMORY, TOO_LARGE. */
MUST_USE status eval_normalised(buf *out, const char *text, err *e);

/* VQA accuracy of an answer already normalised, against a JSON array of people's answers: texts, or objects with
 * `answer`. Errors: NO_MEMORY, TOO_LARGE. */
MUST_USE status eval_vqa_score(double *score, const char *said, const json_t *people, err *e);

/* One pair for each benchmark; benchmark.h says what they do. */
#define EVAL_DECLARE(name)                                                                                             \
    status read_##name(eval_items *items, const char *dir, err *e);                                                    \
    status finish_##name(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e)
EVAL_DECLARE(vqav2);
EVAL_DECLARE(vizwiz);
EVAL_DECLARE(gqa);
EVAL_DECLARE(textvqa);
EVAL_DECLARE(pope);
EVAL_DECLARE(mme);
EVAL_DECLARE(science_qa);
EVAL_DECLARE(seed);
EVAL_DECLARE(mmvet);
EVAL_DECLARE(mmbench);
EVAL_DECLARE(mmbench_cn);
EVAL_DECLARE(mmmu);

#endif
