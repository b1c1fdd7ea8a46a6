/* MMMU: choices and open questions of thirty subjects, from the lines that tools/export_mmmu.py makes of the published
 * Parquet files: the data set's fields, with `options` and a list of answers as JSON arrays and `image` as a path. */
#include "eval/benchmark_internal.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "eval/scores.h"

#define PROMPT_BYTES_MAX ((size_t)1 << 20)
#define CHOICES_MAX      26
#define SEED             42
#define NOT_ASKED        "INVALID GENERATION FOR MULTIPLE IMAGE INPUTS"

static const struct {
    const char *name;
    const char *subjects[8];
} DOMAINS[] = {
    {"Art and Design", {"Art", "Art_Theory", "Design", "Music"}},
    {"Business", {"Accounting", "Economics", "Finance", "Manage", "Marketing"}},
    {"Science", {"Biology", "Chemistry", "Geography", "Math", "Physics"}},
    {"Health and Medicine", {"Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine",
                             "Pharmacy", "Public_Health"}},
    {"Humanities and Social Science", {"History", "Literature", "Sociology", "Psychology"}},
    {"Tech and Engineering", {"Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics",
                              "Energy_and_Power", "Materials", "Mechanical_Engineering"}}};
#define N_DOMAINS (sizeof DOMAINS / sizeof *DOMAINS)

static bool is_open(const json_t *source) { return strcmp(eval_text_at(source, "question_type"), "open") == 0; }

/* ---- questions ----------------------------------------------------------------------------------- */

static size_t count_images(const json_t *options) {
    size_t n = 0, i;
    json_t *option;
    json_array_foreach(options, i, option) {
        const char *at = json_string_value(option);
        while (at && (at = strstr(at, "<img='")) != NULL) n++, at++;
    }
    return n;
}

static status build_prompt(buf *out, const json_t *line) {
    const json_t *options = json_object_get(line, "options");
    buf_clear(out);
    status st = buf_append_text(out, eval_text_at(line, "question"));
    if (is_open(line)) return st == STATUS_OK ? buf_append_text(out, "\nAnswer the question using a single word or phrase.") : st;
    if (st == STATUS_OK) st = buf_append_text(out, "\n");
    for (size_t i = 0; i < json_array_size(options) && st == STATUS_OK; i++) {
        char head[5] = {'(', (char)('A' + i), ')', ' ', '\0'};
        st = buf_append_text(out, head);
        if (st == STATUS_OK) st = buf_append_text(out, json_string_value(json_array_get(options, i)));
        if (st == STATUS_OK) st = buf_append_text(out, "\n");
    }
    return st == STATUS_OK ? buf_append_text(out, "\nAnswer with the option's letter from the given choices directly.") : st;
}

static status check_line(const json_t *line, err *e) {
    const json_t *options = json_object_get(line, "options");
    size_t n = json_array_size(options);
    if (!json_is_string(json_object_get(line, "id")) || !json_is_string(json_object_get(line, "question")) ||
        !json_is_string(json_object_get(line, "image")) || !json_is_string(json_object_get(line, "question_type")))
        return fail(e, STATUS_BAD_FORMAT, "has not all of id, question, question_type and image");
    if (is_open(line)) return STATUS_OK;
    if (n == 0 || n > CHOICES_MAX)
        return fail(e, STATUS_BAD_FORMAT, "has %zu options, expected 1 to %d", n, CHOICES_MAX);
    for (size_t i = 0; i < n; i++)
        if (!json_is_string(json_array_get(options, i))) return fail(e, STATUS_BAD_FORMAT, "option %zu is no text", i);
    return STATUS_OK;
}

typedef struct {
    eval_items *items;
    const char *dir;
} reader;

static status take_line(void *user, json_t *line, err *e) {
    reader *r = user;
    char image[EVAL_PATH_BYTES];
    status st = check_line(line, e);
    if (st != STATUS_OK) return st;
    buf prompt;
    buf_init(&prompt, PROMPT_BYTES_MAX);
    eval_path(image, "%s/%s", r->dir, eval_text_at(line, "image"));
    if (build_prompt(&prompt, line) != STATUS_OK)
        st = fail(e, STATUS_TOO_LARGE, "a question larger than %zu bytes", PROMPT_BYTES_MAX);
    if (st == STATUS_OK) st = eval_items_add(r->items, line, image, (const char *)prompt.data, e);
    if (st == STATUS_OK && count_images(json_object_get(line, "options")) > 1) {
        char **answer = &r->items->items[r->items->n - 1].answer; /* the authors do not ask these */
        *answer = strdup(is_open(line) ? NOT_ASKED : "");
        if (!*answer) st = fail(e, STATUS_NO_MEMORY, "no memory for an answer");
    }
    buf_deinit(&prompt);
    return st;
}

status read_mmmu(eval_items *items, const char *dir, err *e) {
    char path[EVAL_PATH_BYTES];
    reader r = {items, dir};
    eval_path(path, "%s/mmmu.jsonl", dir);
    return eval_lines_read(path, take_line, &r, e);
}

/* ---- scores -------------------------------------------------------------------------------------- */

/* The letter the answer names, or one drawn by lot, the same every time. */
static char choose(const eval_item *item, size_t number, size_t *n_drawn) {
    const json_t *options = json_object_get(item->source, "options");
    const char *texts[CHOICES_MAX];
    int n = (int)json_array_size(options);
    for (int i = 0; i < n; i++) texts[i] = json_string_value(json_array_get(options, (size_t)i));
    int choice = score_mmmu_choice(eval_answer(item), texts, n);
    if (choice < 0) {
        choice = (int)(rng_at(SEED, 0, number) % (uint64_t)n);
        (*n_drawn)++;
    }
    return (char)('A' + choice);
}

static status is_right_open(bool *is_right, const char *said, const json_t *gold, err *e) {
    const char *texts[64];
    size_t n = 0;
    if (json_is_string(gold)) texts[n++] = json_string_value(gold);
    for (size_t i = 0; i < json_array_size(gold) && n < sizeof texts / sizeof *texts; i++)
        if (json_is_string(json_array_get(gold, i))) texts[n++] = json_string_value(json_array_get(gold, i));
    status st = score_mmmu_open(is_right, said, texts, n);
    return st == STATUS_OK ? st : fail(e, st, "no memory to compare an answer");
}

static bool is_right_letter(char letter, const json_t *gold) {
    char text[2] = {letter, '\0'};
    if (json_is_string(gold)) return strcmp(json_string_value(gold), text) == 0;
    for (size_t i = 0; i < json_array_size(gold); i++) {
        const char *one = json_string_value(json_array_get(gold, i));
        if (one && strcmp(one, text) == 0) return true;
    }
    return false;
}

/* validation_Art_Theory_3 is of Art_Theory. */
static bool is_of(const char *id, const char *subject) {
    const char *first = strchr(id, '_'), *last = strrchr(id, '_');
    return first && last > first && (size_t)(last - first - 1) == strlen(subject) &&
           strncmp(first + 1, subject, strlen(subject)) == 0;
}

static void add_rows(const eval_items *items, const bool *is_right, eval_report *report) {
    size_t n_all_right = 0;
    for (size_t d = 0; d < N_DOMAINS; d++) {
        size_t n_domain = 0, n_domain_right = 0;
        for (size_t s = 0; s < 8 && DOMAINS[d].subjects[s]; s++) {
            size_t n = 0, n_right = 0;
            for (size_t i = 0; i < items->n; i++) {
                if (!is_of(eval_text_at(items->items[i].source, "id"), DOMAINS[d].subjects[s])) continue;
                n++;
                n_right += is_right[i];
            }
            if (n > 0) eval_add_row(report, eval_percent((double)n_right, n), 1, "  %s", DOMAINS[d].subjects[s]);
            n_domain += n;
            n_domain_right += n_right;
        }
        if (n_domain > 0) eval_add_row(report, eval_percent((double)n_domain_right, n_domain), 1, "%s", DOMAINS[d].name);
    }
    for (size_t i = 0; i < items->n; i++) n_all_right += is_right[i];
    eval_add_row(report, eval_percent((double)n_all_right, items->n), 1, "overall");
}

status finish_mmmu(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char path[EVAL_PATH_BYTES], text[128];
    json_t *output = json_object();
    bool *is_right = calloc(items->n ? items->n : 1, sizeof *is_right);
    size_t n_drawn = 0;
    (void)dir;
    status st = is_right ? eval_write_answers(items, out_dir, e) : fail(e, STATUS_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        const eval_item *item = &items->items[i];
        const json_t *gold = json_object_get(item->source, "answer");
        char letter[2] = {0};
        if (is_open(item->source)) {
            st = is_right_open(&is_right[i], eval_answer(item), gold, e);
        } else {
            letter[0] = choose(item, i, &n_drawn);
            is_right[i] = is_right_letter(letter[0], gold);
        }
        (void)json_object_set_new(output, eval_text_at(item->source, "id"),
                                  json_string(letter[0] ? letter : eval_answer(item)));
    }
    eval_path(path, "%s/mmmu_output.json", out_dir);
    if (st == STATUS_OK) st = eval_json_write(output, path, 2, e);
    if (st == STATUS_OK) add_rows(items, is_right, report);
    (void)snprintf(text, sizeof text, "%zu letter%s drawn by lot, for answers that name none", n_drawn,
                   n_drawn == 1 ? " was" : "s were");
    if (n_drawn > 0) eval_note(report, text);
    free(is_right);
    json_decref(output);
    return st;
}
