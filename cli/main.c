/* `mipha`: finds the sub-command, parses its flags, runs it, and turns its status into an exit status. */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/standard_files.h"
#include "base/stop.h"
#include "cli/commands.h"

static bool is_help_flag(const char *word) { return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0; }

static const char *words_of(const command *c) { return c->table->program + strlen("mipha "); }

static void print_help(FILE *to) {
    (void)fputs("mipha: ask questions about images, many at once\n\n"
                "Usage: mipha COMMAND [OPTIONS] [ARGUMENTS]\n\nCommands:\n",
                to);
    for (const command *c = commands; c->table; c++)
        (void)fprintf(to, "  %-15s %s\n", words_of(c), c->table->purpose);
    (void)fputs("\n`mipha COMMAND --help` shows a command's options and an example. Every option has an\n"
                "environment twin: --max-new-tokens is MIPHA_MAX_NEW_TOKENS.\n\n"
                "Exit status: 0 all is done, 1 something of it failed, 2 the command line is wrong,\n"
                "3 it could not begin (model, device, broker), 130 interrupted, 141 nobody reads\n"
                "the output any more.\n\n"
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

/* The next command from c on whose first word of two this is; NULL: there is none. */
static const command *next_with_first(const command *c, const char *word) {
    size_t len = strlen(word);
    while (c->table && (strncmp(words_of(c), word, len) != 0 || words_of(c)[len] != ' ')) c++;
    return c->table ? c : NULL;
}

static void print_second_words(const char *first, FILE *to) {
    for (const command *c = commands; (c = next_with_first(c, first)) != NULL; c++)
        (void)fprintf(to, "  mipha %-15s %s\n", words_of(c), c->table->purpose);
}

/* "mipha model" alone or with an unknown second word. */
static int unknown_command(int argc, char **argv, bool asks_help) {
    if (!next_with_first(commands, argv[1])) {
        (void)fprintf(stderr, "mipha: no command \"%s\"; mipha --help lists all\n", argv[1]);
        return EXIT_USAGE;
    }
    if (asks_help || (argc == 3 && is_help_flag(argv[2]))) {
        (void)printf("mipha %s: the commands are:\n", argv[1]);
        print_second_words(argv[1], stdout);
        return EXIT_ALL_ANSWERED;
    }
    (void)fprintf(stderr, "mipha %s: %s%s; the commands are:\n", argv[1],
                  argc > 2 ? "no command " : "a second word is needed", argc > 2 ? argv[2] : "");
    print_second_words(argv[1], stderr);
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
        if (st != STATUS_OK && exit_code != EXIT_READER_GONE)
            (void)fprintf(stderr, "%s: %s\n", c->table->program, e.text);
        exit_code = exit_code_of(st, exit_code);
    }
    options_deinit(&o);
    return exit_code;
}

static int run(int argc, char **argv) {
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    if (is_help_flag(argv[1]) || (strcmp(argv[1], "help") == 0 && argc == 2)) {
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
    if (!c) return unknown_command(argc, argv, asks_help);
    if (asks_help) {
        options_print_help(c->table, stdout);
        return 0;
    }
    return run_command(c, argc - n_words, argv + n_words);
}

/* `| head` has seen enough: no reason for a message. */
static bool has_lost_its_reader(void) {
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
    return poll(&out, 1, 0) == 1 && (out.revents & POLLERR);
}

int main(int argc, char **argv) {
    err e;
    status st = standard_files_open(&e);
    if (st == STATUS_OK) st = stop_open(&e);
    if (st != STATUS_OK) {
        (void)fprintf(stderr, "mipha: %s\n", e.text);
        return EXIT_NOT_STARTED;
    }
    int exit_code = run(argc, argv);
    bool is_written = fflush(stdout) == 0 && !ferror(stdout);
    if (is_written || exit_code != EXIT_ALL_ANSWERED) return exit_code;
    if (has_lost_its_reader()) return EXIT_READER_GONE;
    (void)fputs("mipha: standard output cannot be written\n", stderr);
    return EXIT_SOME_FAILED;
}
