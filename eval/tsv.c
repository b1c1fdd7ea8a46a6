#include "eval/tsv.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"

typedef enum { END_FIELD, END_ROW, END_FILE, END_OPEN_QUOTE, END_TOO_LARGE } field_end;

static bool put(buf *field, int c) {
    char byte = (char)c;
    return buf_append(field, &byte, 1) == STATUS_OK;
}

/* One field; line ends may be \n or \r\n. */
static field_end next_field(FILE *f, buf *field) {
    buf_clear(field);
    int c = getc(f);
    if (c == '"') {
        bool is_closed = false;
        while (!is_closed && (c = getc(f)) != EOF) {
            if (c == '"' && (c = getc(f)) != '"') is_closed = true; /* c is what follows */
            else if (!put(field, c)) return END_TOO_LARGE;
        }
        if (!is_closed) return END_OPEN_QUOTE;
    }
    for (; c != EOF && c != '\t' && c != '\n'; c = getc(f)) {
        if (c == '\r') {
            int next = getc(f);
            (void)ungetc(next, f);
            if (next == '\n' || next == EOF) continue;
        }
        if (!put(field, c)) return END_TOO_LARGE;
    }
    return c == '\t' ? END_FIELD : c == '\n' ? END_ROW : END_FILE;
}

/* What pandas takes for a missing value. */
static bool is_nothing(const char *text) {
    static const char *const words[] = {"",        "#N/A",    "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN",
                                        "-nan",    "1.#IND",  "1.#QNAN",  "<NA>", "N/A",    "NA",       "NULL",
                                        "NaN",     "None",    "n/a",      "nan", "null"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(text, words[i]) == 0) return true;
    return false;
}

/* A row of texts as an array; *is_last: the file ends with it. */
static status next_row(json_t *row, FILE *f, buf *field, bool *is_last, err *e) {
    field_end end;
    do {
        end = next_field(f, field);
        if (end == END_TOO_LARGE) return fail(e, STATUS_TOO_LARGE, "a field is larger than %zu bytes", TSV_FIELD_BYTES_MAX);
        if (end == END_OPEN_QUOTE) return fail(e, STATUS_BAD_FORMAT, "a quote does not end");
        const char *text = field->data ? (const char *)field->data : "";
        json_t *value = json_stringn(text, field->len_bytes);
        if (!value) return fail(e, STATUS_BAD_FORMAT, "column %zu is not UTF-8", json_array_size(row) + 1);
        (void)json_array_append_new(row, value);
    } while (end == END_FIELD);
    *is_last = end == END_FILE;
    return STATUS_OK;
}

static status take_fields(const json_t *columns, const json_t *fields, tsv_row *take, void *user, err *e) {
    size_t n = json_array_size(columns), i;
    if (json_array_size(fields) > n)
        return fail(e, STATUS_BAD_FORMAT, "has %zu fields, expected at most %zu as the header has",
                    json_array_size(fields), n);
    json_t *row = json_object(), *name;
    json_array_foreach(columns, i, name) {
        json_t *value = json_array_get(fields, i);
        bool is_empty = !value || is_nothing(json_string_value(value));
        (void)json_object_set_new(row, json_string_value(name), is_empty ? json_null() : json_incref(value));
    }
    status st = take(user, row, e);
    json_decref(row);
    return st;
}

status tsv_read(const char *path, tsv_row *take, void *user, err *e) {
    FILE *f = fopen(path, "re");
    if (!f) return fail_errno(e, STATUS_IO, "%.300s", path);
    buf field;
    buf_init(&field, TSV_FIELD_BYTES_MAX);
    json_t *columns = json_array(), *fields = json_array();
    bool is_last = false;
    status st = next_row(columns, f, &field, &is_last, e);
    size_t number = 1;
    while (st == STATUS_OK && !is_last) {
        number++;
        (void)json_array_clear(fields);
        st = next_row(fields, f, &field, &is_last, e);
        bool is_blank = json_array_size(fields) == 1 && json_string_length(json_array_get(fields, 0)) == 0;
        if (st == STATUS_OK && !is_blank) st = take_fields(columns, fields, take, user, e);
    }
    if (st == STATUS_BAD_FORMAT || st == STATUS_TOO_LARGE) {
        err why = *e;
        st = fail(e, st, "%.200s row %zu: %.200s", path, number, why.text);
    }
    if (st == STATUS_OK && ferror(f)) st = fail_errno(e, STATUS_IO, "%.300s", path);
    json_decref(columns);
    json_decref(fields);
    buf_deinit(&field);
    (void)fclose(f);
    return st;
}
