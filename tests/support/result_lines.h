/* The lines `mipha annotate` writes, made comparable.
 *
 *     result_lines a = result_lines_of("a.jsonl"), b = result_lines_of("b.jsonl");
 *     result_lines_assert_same(&a, &b);
 *     result_lines_free(&a);
 *
 * Sorted, and without what may differ between two runs: times, and what was cached. Whatever is not a
 * complete JSON line fails the test. */
#ifndef TESTS_SUPPORT_RESULT_LINES_H
#define TESTS_SUPPORT_RESULT_LINES_H

#include <stddef.h>

#include "base/buf.h"

#define RESULT_LINES_MAX 32768

typedef struct {
    char **lines;
    size_t n;
    size_t n_features_cached; /* lines that said so */
} result_lines;

result_lines result_lines_read(const buf *text);
result_lines result_lines_of(const char *path);
void result_lines_free(result_lines *set);
void result_lines_assert_same(const result_lines *a, const result_lines *b);
size_t result_lines_with(const result_lines *set, const char *text); /* how many hold it */

#endif
