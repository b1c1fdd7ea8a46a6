/* Every sub-command, once: main looks commands up here, completion and man pages are made from it. */
#include "cli/commands.h"

#include <string.h>

const command commands[] = {
    {&annotate_table, annotate_run},
    {&ask_table, ask_run},
    {&generate_table, generate_run},
    {&embed_table, embed_run},
    {&tokenize_table, tokenize_run},
    {&eval_table, eval_run},
    {&model_inspect_table, model_inspect_run},
    {&model_verify_table, model_verify_run},
    {&model_quantize_table, model_quantize_run},
    {&model_compare_table, model_compare_run},
    {&model_random_table, model_random_run},
    {&bench_table, bench_run},
    {&status_table, status_run},
    {&up_table, up_run},
    {&table_table, table_run},
    {&completion_table, completion_run},
    {&man_table, man_run},
    {NULL, NULL}};

int exit_code_not_started(status st) {
    return st == STATUS_BAD_ARGUMENT ? EXIT_USAGE : st == STATUS_INTERRUPTED ? EXIT_INTERRUPTED : EXIT_NOT_STARTED;
}

#define COMMANDS_MAX 32

static size_t all_tables(const option_table *tables[COMMANDS_MAX]) {
    size_t n = 0;
    for (const command *c = commands; c->table && n < COMMANDS_MAX; c++) tables[n++] = c->table;
    return n;
}

static const option_row completion_rows[] = {{0}};

const option_table completion_table = {
    .program = "mipha completion",
    .positional = "bash|zsh",
    .purpose = "print a completion script for a shell",
    .example = "  mipha completion bash > ~/.local/share/bash-completion/completions/mipha\n"
               "  mipha completion zsh > ~/.zfunc/_mipha\n",
    .rows = completion_rows,
    .positional_min = 1,
    .positional_max = 1};

status completion_run(const options *o, int *exit_code, err *e) {
    const option_table *tables[COMMANDS_MAX];
    size_t n = all_tables(tables);
    const char *shell = o->positional[0];
    *exit_code = EXIT_ALL_ANSWERED;
    if (strcmp(shell, "bash") == 0)
        options_print_bash("mipha", tables, n, stdout);
    else if (strcmp(shell, "zsh") == 0)
        options_print_zsh("mipha", tables, n, stdout);
    else {
        *exit_code = EXIT_USAGE;
        return fail(e, STATUS_BAD_ARGUMENT, "shell \"%s\" is not known; write bash or zsh", shell);
    }
    return STATUS_OK;
}

static const option_row man_rows[] = {{0}};

const option_table man_table = {
    .program = "mipha man",
    .positional = "COMMAND",
    .purpose = "print the manual page of a command",
    .example = "  mipha man annotate | man -l -\n  mipha man model inspect > mipha-model-inspect.1\n",
    .rows = man_rows,
    .positional_min = 1,
    .positional_max = 2};

status man_run(const options *o, int *exit_code, err *e) {
    char name[64];
    (void)snprintf(name, sizeof name, "mipha %.20s%s%.20s", o->positional[0],
                   o->n_positional > 1 ? " " : "", o->n_positional > 1 ? o->positional[1] : "");
    for (const command *c = commands; c->table; c++) {
        if (strcmp(c->table->program, name) != 0) continue;
        options_print_man(c->table, stdout);
        *exit_code = EXIT_ALL_ANSWERED;
        return STATUS_OK;
    }
    return fail(e, STATUS_BAD_ARGUMENT, "no command \"%s\"; mipha --help lists all", name + 6);
}
