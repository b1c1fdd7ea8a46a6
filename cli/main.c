/* `mipha`: finds the sub-command, parses its flags, runs it, and turns its status into an exit status. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/stop.h"
#include "cli/commands.h"

static const char *words_of(const command *c) { return c->table->program + strlen("mipha "); }

static void print_help(FILE *to) {
    (void)fputs("mipha: ask questions about images, many at once\n\n"
                "Usage: mipha COMMAND [OPTIONS] [ARGUMENTS]\n\nCommands:\n",
                to);
    for (const command *c = commands; c->table; c++)
        (void)fprintf(to, "  %-15s %s\n", words_of(c), c->table->purpose);
    (void)fputs("\n`mipha COMMAND --help` shows a command's options and an example. Every option has an\n"
                "environment twin: --max-new-tokens is MIPHA_MAX_NEW_TOKENS.\n\n"
                "Example:\n"
                "  mipha annotate -p \"What is in the picture?\" photos/ > answers.jsonl\n",
                to);
}

/* The command whose words argv starts with; *n_words is how many there are. */
static const command *find_command(int argc, char **argv, int *n_words) {
    for (const command *c = commands; c->table; c++) {
        const char *words = words_of(c), *space = strchr(words, ' ');
        size_t first = space ? (size_t)(space - words) : strlen(words);
        if (strlen(argv[1]) != first || memcmp(argv[1], words, first) != 0) continue;
        *n_words = space ? 2 : 1;
        if (!space || (argc > 2 && strcmp(argv[2], space + 1) == 0)) return c;
    }
    return NULL;
}

/* "mipha model" alone or with an unknown second word. */
static int unknown_command(int argc, char **argv) {
    bool is_first_known = false;
    size_t len = strlen(argv[1]);
    for (const command *c = commands; c->table; c++) {
        if (strncmp(words_of(c), argv[1], len) != 0 || words_of(c)[len] != ' ') continue;
        if (!is_first_known)
            (void)fprintf(stderr, "mipha %s: %s%s; the commands are:\n", argv[1],
                          argc > 2 ? "no command " : "a second word is needed",
                          argc > 2 ? argv[2] : "");
        is_first_known = true;
        (void)fprintf(stderr, "  mipha %-15s %s\n", words_of(c), c->table->purpose);
    }
    if (!is_first_known)
        (void)fprintf(stderr, "mipha: no command \"%s\"; mipha --help lists all\n", argv[1]);
    return EXIT_USAGE;
}

static int exit_code_of(status st, int chosen) {
    if (st == STATUS_OK || chosen >= 0) return chosen < 0 ? EXIT_ALL_ANSWERED : chosen;
    if (st == STATUS_BAD_ARGUMENT) return EXIT_USAGE;
    if (st == STATUS_INTERRUPTED) return EXIT_INTERRUPTED;
    return EXIT_SOME_FAILED;
}

static int run_command(const command *c, int argc, char **argv) {
    err e = {0};
    options o;
    status st = options_parse(&o, c->table, argc, argv, &e);
    if (st != STATUS_OK) {
        (void)fprintf(stderr, "%s: %s\n", c->table->program, e.text);
        return EXIT_USAGE;
    }
    int exit_code = -1;
    if (o.wants_help) {
        options_print_help(c->table, stdout);
        exit_code = 0;
    } else if (o.wants_version) {
        (void)printf("mipha %s\n", MIPHA_VERSION);
        exit_code = 0;
    } else {
        st = c->run(&o, &exit_code, &e);
        if (st != STATUS_OK) (void)fprintf(stderr, "%s: %s\n", c->table->program, e.text);
        exit_code = exit_code_of(st, exit_code);
    }
    options_deinit(&o);
    if (fflush(stdout) != 0 && exit_code == 0) {
        (void)fprintf(stderr, "%s: standard output cannot be written\n", c->table->program);
        exit_code = EXIT_SOME_FAILED;
    }
    return exit_code;
}

int main(int argc, char **argv) {
    err e;
    if (stop_open(&e) != STATUS_OK) {
        (void)fprintf(stderr, "mipha: %s\n", e.text);
        return EXIT_NOT_STARTED;
    }
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        (strcmp(argv[1], "help") == 0 && argc == 2)) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        (void)printf("mipha %s\n", MIPHA_VERSION);
        return 0;
    }
    bool asks_help = strcmp(argv[1], "help") == 0;
    if (asks_help) {
        argc--;
        argv++;
    }
    int n_words = 0;
    const command *c = find_command(argc, argv, &n_words);
    if (!c) return unknown_command(argc, argv);
    if (asks_help) {
        options_print_help(c->table, stdout);
        return 0;
    }
    return run_command(c, argc - n_words, argv + n_words);
}
