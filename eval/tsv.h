/* A table with tabs between its fields, as pandas' read_table takes it: a header, fields in double quotes (two of them
 * inside are one) that may hold tabs and line ends, and a dozen words that mean "nothing".
 *
 *     st = tsv_read("mmbench_dev.tsv", take_row, user, &e);   // each row {column: text or null}
 *
 * Source: pandas.read_table's documentation. One thread. */
#ifndef EVAL_TSV_H
#define EVAL_TSV_H

#include <jansson.h>

#include "base/err.h"

#define TSV_FIELD_BYTES_MAX ((size_t)64 << 20)

/* row is borrowed. Errors of a BAD_FORMAT row are given the file's name and the row's number. */
typedef status tsv_row(void *user, json_t *row, err *e);

/* Errors: IO, BAD_FORMAT (a row with more fields than columns, a quote that does not end, text that is not UTF-8),
 * TOO_LARGE, NO_MEMORY. */
MUST_USE status tsv_read(const char *path, tsv_row *take, void *user, err *e);

#endif
