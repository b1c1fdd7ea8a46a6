/* A table as an Excel file, the form in which MMBench's server takes answers.
 *
 *     st = xlsx_write("upload.xlsx", columns, rows, &e);   // ["index", ...], [{"index": "1", ...}, ...]
 *
 * One sheet, texts in the cells and numbers where a text is a whole number; nothing is compressed. Source: ECMA-376
 * parts 1 and 2, and PKWARE's APPNOTE for the container. One thread. */
#ifndef EVAL_XLSX_H
#define EVAL_XLSX_H

#include <jansson.h>

#include "base/err.h"

/* A value that is no text leaves its cell empty. Errors: IO, TOO_LARGE, NO_MEMORY. */
MUST_USE status xlsx_write(const char *path, const json_t *columns, const json_t *rows, err *e);

#endif
