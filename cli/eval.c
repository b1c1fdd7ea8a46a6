/* `mipha eval`: a benchmark of the paper, from its official files to its table.
 *
 * The questions become a manifest and `mipha annotate` answers it, so that a benchmark runs on whatever annotate runs
 * on, and goes on where it was stopped. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/commands.h"
#include "cli/service.h"
#include "eval/benchmark.h"

#define PATH_BYTES 4096
#define WORDS_MAX  (96 + 2 * MODEL_SERVED_MAX)
#define WORD_BYTES 512

static const option_row rows[] = {
    {"data", 'd', OPTION_STRING, "DIR", NULL, 0, 0, "the benchmark's folder, laid out as --list says"},
    {"output", 'o', OPTION_STRING, "DIR", NULL, 0, 0,
     "questions, answers, what the official server takes, and scores.json go here; without it, eval-BENCHMARK"},
    {"list", 0, OPTION_FLAG, NULL, NULL, 0, 0, "name the benchmarks and the files each needs"},
    {"retry-failed", 0, OPTION_FLAG, NULL, NULL, 0, 0, "ask again what has failed"},
    {"max-new-tokens", 'n', OPTION_INT, "N", NULL, 1, MESSAGE_NEW_TOKENS_MAX,
     "longest answer, in tokens; without it, what the authors allow"},
    TEMPLATE_ROW,
    USE_ADAPTER_ROW,
    {"concurrency", 'c', OPTION_INT, "N", "64", 1, 4096, "questions under way at once"},
    SERVICE_ROWS,
    {"quiet", 'q', OPTION_FLAG, NULL, NULL, 0, 0, "no progress on stderr"},
    {0}};

const option_table eval_table = {
    .program = "mipha eval",
    .positional = "BENCHMARK",
    .purpose = "score a model on a benchmark, as the authors do",
    .example = "  mipha eval --list\n"
               "  mipha eval pope --data playground/data/eval/pope --model Mipha-3B\n"
               "  mipha eval gqa --data playground/data/eval/gqa --broker tcp://gpu-box:7000 -o gqa-scores\n",
    .rows = rows,
    .positional_max = 1};

/* ---- asking -------------------------------------------------------------------------------------- */

typedef struct {
    char *argv[WORDS_MAX];
    char text[WORDS_MAX][WORD_BYTES];
    int argc;
} words;

static void add(words *w, const char *text) {
    if (w->argc == WORDS_MAX) return;
    w->argv[w->argc++] = (char *)(uintptr_t)text;
}

static void add_number(words *w, const char *flag, unsigned long long n) {
    if (w->argc + 2 > WORDS_MAX) return;
    char *text = w->text[w->argc + 1];
    (void)snprintf(text, WORD_BYTES, "%llu", n);
    add(w, flag), add(w, text);
}

/* One too many is handed on for annotate to refuse, no more. */
static void add_list(words *w, const char *flag, const options *o, const char *name) {
    const char *const *items;
    size_t n = options_list(o, name, &items);
    for (size_t i = 0; i < n && i <= MODEL_SERVED_MAX; i++) add(w, flag), add(w, items[i]);
}

/* Every option that both commands have, as it was typed; the environment speaks to annotate itself. */
static void add_shared(words *w, const options *o) {
    for (const option_row *row = rows; row->name; row++) {
        if (!options_is_typed(o, row->name) || strcmp(row->name, "data") == 0 || strcmp(row->name, "output") == 0 ||
            strcmp(row->name, "list") == 0 || strcmp(row->name, "max-new-tokens") == 0)
            continue;
        bool is_off = row->type == OPTION_FLAG && !options_flag(o, row->name);
        char *kept = w->text[w->argc];
        (void)snprintf(kept, WORD_BYTES, "--%s%s", is_off ? "no-" : "", row->name);
        switch (row->type) {
        case OPTION_FLAG: add(w, kept); break;
        case OPTION_INT: add_number(w, kept, (unsigned long long)options_int(o, row->name)); break;
        case OPTION_BYTES: add_number(w, kept, options_bytes(o, row->name)); break;
        case OPTION_STRING: add(w, kept), add(w, options_string(o, row->name)); break;
        case OPTION_LIST: add_list(w, kept, o, row->name); break;
        case OPTION_REAL: break; /* rows has none */
        }
    }
}

typedef struct {
    const benchmark *bench;
    char dir[PATH_BYTES], out[PATH_BYTES], questions[PATH_BYTES + 32], results[PATH_BYTES + 32];
    eval_items items;
} run;

static status ask(const run *r, const options *o, int *exit_code, err *e) {
    words *w = calloc(1, sizeof *w);
    if (!w) return fail(e, STATUS_NO_MEMORY, "out of memory");
    add(w, "mipha annotate");
    add(w, "--input"), add(w, r->questions);
    add(w, "--output"), add(w, r->results);
    add(w, "--resume");
    add(w, "--no-exif"); /* as Pillow opens a file */
    add_number(w, "--max-new-tokens", options_is_set(o, "max-new-tokens") ? (unsigned long long)options_int(o, "max-new-tokens")
                                                                         : (unsigned long long)r->bench->max_new_tokens);
    add_shared(w, o);
    add(w, NULL);
    options asked;
    status st = options_parse(&asked, &annotate_table, w->argc - 1, w->argv, e);
    if (st == STATUS_OK) {
        st = annotate_run(&asked, exit_code, e);
        options_deinit(&asked);
    }
    free(w);
    return st;
}

/* ---- reporting ----------------------------------------------------------------------------------- */

static void print_report(const run *r, const eval_report *report, size_t n_answered) {
    int width = 10;
    for (size_t i = 0; i < report->n; i++)
        if ((int)strlen(report->rows[i].label) > width) width = (int)strlen(report->rows[i].label);
    (void)printf("%s, %s\n", r->bench->title, r->items.model ? r->items.model : "no model");
    (void)printf("  %-*s  %10zu\n", width, "questions", r->items.n);
    if (n_answered < r->items.n) (void)printf("  %-*s  %10zu\n", width, "unanswered", r->items.n - n_answered);
    for (size_t i = 0; i < report->n; i++)
        (void)printf("  %-*s  %10.*f\n", width, report->rows[i].label, report->rows[i].n_decimals, report->rows[i].value);
    if (report->note[0]) (void)printf("%s\n", report->note);
    (void)printf("all files are in %s\n", r->out);
}

static status write_scores(const run *r, const eval_report *report, size_t n_answered, err *e) {
    char path[PATH_BYTES + 32];
    json_t *scores = json_object();
    for (size_t i = 0; i < report->n; i++)
        (void)json_object_set_new(scores, report->rows[i].label, json_real(report->rows[i].value));
    json_t *root = json_pack("{s:s, s:s?, s:I, s:I, s:o, s:s}", "benchmark", r->bench->name, "model", r->items.model,
                             "questions", (json_int_t)r->items.n, "answered", (json_int_t)n_answered, "scores", scores,
                             "note", report->note);
    (void)snprintf(path, sizeof path, "%s/scores.json", r->out);
    status st = root ? eval_json_write(root, path, 2, e) : fail(e, STATUS_NO_MEMORY, "%.300s: no memory", path);
    json_decref(root);
    return st;
}

static status report_scores(run *r, err *e) {
    eval_report report = {0};
    status st = eval_items_take_answers(&r->items, r->results, e);
    size_t n_answered = 0;
    for (size_t i = 0; i < r->items.n; i++) n_answered += r->items.items[i].answer != NULL;
    if (st == STATUS_OK) st = r->bench->finish(&r->items, r->dir, r->out, &report, e);
    if (st == STATUS_OK) st = write_scores(r, &report, n_answered, e);
    if (st == STATUS_OK) print_report(r, &report, n_answered);
    return st;
}

/* ---- the command --------------------------------------------------------------------------------- */

static void print_list(void) {
    for (const benchmark *b = benchmarks; b->name; b++) (void)printf("%-10s %-11s needs %s\n", b->name, b->title, b->needs);
}

static status find_benchmark(const benchmark **b, const options *o, err *e) {
    const char *name = o->n_positional ? o->positional[0] : NULL;
    *b = name ? benchmark_find(name) : NULL;
    if (*b) return STATUS_OK;
    if (name) return fail(e, STATUS_BAD_ARGUMENT, "no benchmark \"%.100s\"; mipha eval --list names them", name);
    return fail(e, STATUS_BAD_ARGUMENT, "which benchmark? mipha eval --list names them");
}

static status read_questions(run *r, const options *o, err *e) {
    const char *data = options_string(o, "data"), *out = options_string(o, "output");
    if (!data) return fail(e, STATUS_BAD_ARGUMENT, "--data DIR is missing; %s needs %s", r->bench->name, r->bench->needs);
    if (!realpath(data, r->dir)) return fail_errno(e, STATUS_IO, "--data %.300s", data);
    if (out) (void)snprintf(r->out, sizeof r->out, "%s", out);
    else (void)snprintf(r->out, sizeof r->out, "eval-%s", r->bench->name);
    (void)snprintf(r->questions, sizeof r->questions, "%s/questions.jsonl", r->out);
    (void)snprintf(r->results, sizeof r->results, "%s/results.jsonl", r->out);
    status st = r->bench->read(&r->items, r->dir, e);
    if (st != STATUS_OK) {
        err why = *e;
        return fail(e, st, "%.300s (%s needs %s)", why.text, r->bench->name, r->bench->needs);
    }
    if (r->items.n == 0) return fail(e, STATUS_BAD_FORMAT, "%.300s has no questions", r->dir);
    if (mkdir(r->out, 0777) != 0 && errno != EEXIST) return fail_errno(e, STATUS_IO, "%.300s", r->out);
    return eval_items_write(&r->items, r->questions, e);
}

status eval_run(const options *o, int *exit_code, err *e) {
    if (options_flag(o, "list")) {
        print_list();
        *exit_code = EXIT_ALL_ANSWERED;
        return STATUS_OK;
    }
    run *r = calloc(1, sizeof *r);
    if (!r) return fail(e, STATUS_NO_MEMORY, "out of memory");
    status st = find_benchmark(&r->bench, o, e);
    if (st == STATUS_OK) st = read_questions(r, o, e);
    if (st != STATUS_OK) *exit_code = exit_code_not_started(st);
    if (st == STATUS_OK) st = ask(r, o, exit_code, e);
    if (st == STATUS_OK && *exit_code == EXIT_INTERRUPTED)
        (void)fprintf(stderr, "the same command goes on from here\n");
    else if (st == STATUS_OK)
        st = report_scores(r, e);
    eval_items_deinit(&r->items);
    free(r);
    return st;
}
