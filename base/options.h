/* One table per program or sub-command; parsing, `--help`, environment twins, shell completion and man
 * pages all come from it.
 *
 *     static const option_row rows[] = {
 *         {"model", 0, OPTION_STRING, "DIR", NULL, 0, 0, "checkpoint folder"},
 *         {"max-new-tokens", 0, OPTION_INT, "N", "64", 1, 4096, "longest answer, in tokens"},
 *         {"prompt", 'p', OPTION_LIST, "TEXT", NULL, 0, 0, "a question; may be repeated"},
 *         {0}};
 *     static const option_table table = {"mipha annotate", "PATH...", "annotate images", example, rows};
 *     options o;
 *     st = options_parse(&o, &table, argc, argv, &e);  // BAD_ARGUMENT: usage error, text in e
 *     int64_t n = options_int(&o, "max-new-tokens");
 *     options_deinit(&o);
 *
 * Order of precedence: flag, then environment MIPHA_<NAME> (upper case, '-' becomes '_'), then default.
 * `--name VALUE`, `--name=VALUE`, `-p VALUE` and `-pVALUE` are understood, `--` ends options, flags may
 * stand between positional words. `--no-name` or `--name=no` turns a flag off; of a scalar given twice
 * the last counts; an empty environment variable counts as not set. Out of range or unknown is an error that names the row and the limit.
 * Every program has `--help` and `--version`: rows are added by the parser. */
#ifndef BASE_OPTIONS_H
#define BASE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

typedef enum {
    OPTION_FLAG,   /* present or not; the environment twin takes 1/0, true/false, yes/no */
    OPTION_STRING, /* any text */
    OPTION_INT,    /* whole number in min..max */
    OPTION_REAL,   /* number in min..max */
    OPTION_BYTES,  /* whole number of bytes in min..max, with K, M, G (powers of 1024) */
    OPTION_LIST    /* any text, may be repeated; the environment twin gives one value per line */
} option_type;

typedef struct {
    const char *name; /* long name without dashes; a row with NULL ends the table */
    char short_name;  /* one letter, or 0 */
    option_type type;
    const char *value_name;   /* what help shows for the value, "N"; NULL for flags */
    const char *default_text; /* parsed like a value; NULL: unset (flags: off, numbers: 0) */
    double min, max;          /* INT, REAL, BYTES only */
    const char *help;         /* one sentence, lower case, no full stop */
} option_row;

typedef struct {
    const char *program;    /* as typed: "mipha annotate" */
    const char *positional; /* shown after the flags: "PATH...", or NULL when there are none */
    const char *purpose;    /* one sentence */
    const char *example;    /* one or more lines that work, each indented by two spaces */
    const option_row *rows;
    int positional_min, positional_max; /* how many are allowed; max -1: any number */
} option_table;

typedef struct options {
    const option_table *table;
    struct option_value *values; /* one per row */
    char **positional;           /* borrowed from argv */
    int n_positional;
    bool wants_help, wants_version; /* --help, --version: the caller prints and exits 0 */
} options;

/* argv[0] is skipped. On failure o needs no deinit. */
MUST_USE status options_parse(options *o, const option_table *table, int argc, char **argv, err *e);
void options_deinit(options *o);

/* Asking for a name that is not in the table, or of another type, is our own mistake (CHECK). */
bool options_flag(const options *o, const char *name);
const char *options_string(const options *o, const char *name); /* NULL when unset */
int64_t options_int(const options *o, const char *name);
double options_real(const options *o, const char *name);
uint64_t options_bytes(const options *o, const char *name);
size_t options_list(const options *o, const char *name, const char *const **items);
bool options_is_set(const options *o, const char *name);   /* by flag or environment */
bool options_is_typed(const options *o, const char *name); /* by flag: the environment is for every command */

void options_print_help(const option_table *table, FILE *to);

/* Shell completion and manual pages for several tables of one program ("mipha" with its sub-commands,
 * or a daemon with one). */
void options_print_bash(const char *program, const option_table *const *tables, size_t n, FILE *to);
void options_print_zsh(const char *program, const option_table *const *tables, size_t n, FILE *to);
void options_print_man(const option_table *table, FILE *to);

#endif
