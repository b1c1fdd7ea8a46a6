/* The sub-commands of `mipha`: each is a table of flags and a function.
 *
 *     static status run(const options *o, int *exit_code, err *e);
 *
 * A function that fails has its text printed by main. Its exit status is *exit_code if it set one
 * (exit_code_not_started for what could not be opened), else 2 for BAD_ARGUMENT, 130 for INTERRUPTED, and 1; with
 * EXIT_READER_GONE nothing is printed. */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

#include "base/options.h"

enum {
    EXIT_ALL_ANSWERED = 0,
    EXIT_SOME_FAILED = 1,
    EXIT_USAGE = 2,
    EXIT_NOT_STARTED = 3,
    EXIT_INTERRUPTED = 130,
    EXIT_READER_GONE = 141 /* as shells show a program that a closed pipe has ended: 128 + SIGPIPE */
};

/* Of a command that could not begin: 2 for BAD_ARGUMENT, 130 for INTERRUPTED, else EXIT_NOT_STARTED. */
int exit_code_not_started(status st);

typedef struct {
    const option_table *table; /* its program is "mipha " and the command's words */
    status (*run)(const options *o, int *exit_code, err *e);
} command;

/* In the order help shows them; ends with a row without a table. */
extern const command commands[];

extern const option_table annotate_table, ask_table, generate_table, embed_table, tokenize_table, eval_table,
    model_inspect_table, model_verify_table, model_quantize_table, model_compare_table, model_random_table, bench_table, status_table, up_table,
    table_table, completion_table, man_table;

MUST_USE status annotate_run(const options *o, int *exit_code, err *e);
MUST_USE status ask_run(const options *o, int *exit_code, err *e);
MUST_USE status generate_run(const options *o, int *exit_code, err *e);
MUST_USE status embed_run(const options *o, int *exit_code, err *e);
MUST_USE status tokenize_run(const options *o, int *exit_code, err *e);
MUST_USE status eval_run(const options *o, int *exit_code, err *e);
MUST_USE status model_inspect_run(const options *o, int *exit_code, err *e);
MUST_USE status model_verify_run(const options *o, int *exit_code, err *e);
MUST_USE status model_quantize_run(const options *o, int *exit_code, err *e);
MUST_USE status model_compare_run(const options *o, int *exit_code, err *e);
MUST_USE status model_random_run(const options *o, int *exit_code, err *e);
MUST_USE status bench_run(const options *o, int *exit_code, err *e);
MUST_USE status status_run(const options *o, int *exit_code, err *e);
MUST_USE status up_run(const options *o, int *exit_code, err *e);
MUST_USE status table_run(const options *o, int *exit_code, err *e);
MUST_USE status completion_run(const options *o, int *exit_code, err *e);
MUST_USE status man_run(const options *o, int *exit_code, err *e);

#endif
