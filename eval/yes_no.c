/* Benchmarks answered with yes or no: POPE and MME. */
#include "eval/benchmark_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval/scores.h"

/* ---- POPE ---------------------------------------------------------------------------------------- */

status read_pope(eval_items *items, const char *dir, err *e) {
    char questions[EVAL_PATH_BYTES], images[EVAL_PATH_BYTES];
    eval_path(questions, "%s/llava_pope_test.jsonl", dir);
    eval_path(images, "%s/val2014", dir);
    return eval_read_lines(items, questions, images, e);
}

static status take_label(void *user, json_t *line, err *e) {
    json_t *label = json_object_get(line, "label");
    if (!json_is_string(label)) return fail(e, STATUS_BAD_FORMAT, "has no label");
    return json_array_append(user, label) == 0 ? STATUS_OK : fail(e, STATUS_NO_MEMORY, "no memory for a label");
}

/* Answers of a category and its labels are paired by their order. */
static status score_pope_category(const eval_items *items, const char *dir, const char *category, score_pope_rates *rates,
                                  err *e) {
    char path[EVAL_PATH_BYTES];
    json_t *labels = json_array();
    eval_path(path, "%s/coco/coco_pope_%s.json", dir, category);
    status st = eval_lines_read(path, take_label, labels, e);
    score_pope_counts c = {0};
    size_t n = 0;
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        if (strcmp(eval_text_at(items->items[i].source, "category"), category) != 0) continue;
        const char *label = json_string_value(json_array_get(labels, n++));
        if (!label) break;
        bool says_yes = score_pope_says_yes(eval_answer(&items->items[i])), is_yes = strcmp(label, "no") != 0;
        if (says_yes) is_yes ? c.true_yes++ : c.false_yes++;
        else is_yes ? c.false_no++ : c.true_no++;
    }
    if (st == STATUS_OK && n != json_array_size(labels))
        st = fail(e, STATUS_BAD_FORMAT, "%.300s has %zu labels, expected %zu, one for each question of %s", path,
                  json_array_size(labels), n, category);
    *rates = score_pope(&c);
    json_decref(labels);
    return st;
}

status finish_pope(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    static const char *const CATEGORIES[] = {"adversarial", "popular", "random"};
    double sum = 0.0;
    status st = eval_write_answers(items, out_dir, e);
    for (int i = 0; i < 3 && st == STATUS_OK; i++) {
        score_pope_rates r;
        st = score_pope_category(items, dir, CATEGORIES[i], &r, e);
        if (st != STATUS_OK) return st;
        eval_add_row(report, 100 * r.accuracy, 2, "%s accuracy", CATEGORIES[i]);
        eval_add_row(report, 100 * r.precision, 2, "%s precision", CATEGORIES[i]);
        eval_add_row(report, 100 * r.recall, 2, "%s recall", CATEGORIES[i]);
        eval_add_row(report, 100 * r.f1, 2, "%s F1", CATEGORIES[i]);
        eval_add_row(report, 100 * r.yes_ratio, 2, "%s says yes", CATEGORIES[i]);
        sum += 100 * r.f1;
    }
    if (st == STATUS_OK) eval_add_row(report, sum / 3, 2, "mean F1");
    return st;
}

/* ---- MME ----------------------------------------------------------------------------------------- */

#define MME_DIR    "MME_Benchmark_release_version"
#define MME_SUFFIX "Answer the question using a single word or phrase."

static const char *const MME_PERCEPTION[] = {"existence", "count", "position", "color", "posters", "celebrity",
                                             "scene", "landmark", "artwork", "OCR"};
static const char *const MME_COGNITION[] = {"commonsense_reasoning", "numerical_calculation", "text_translation",
                                            "code_reasoning"};

status read_mme(eval_items *items, const char *dir, err *e) {
    char questions[EVAL_PATH_BYTES], images[EVAL_PATH_BYTES];
    eval_path(questions, "%s/llava_mme.jsonl", dir);
    eval_path(images, "%s/" MME_DIR, dir);
    return eval_read_lines(items, questions, images, e);
}

/* The name of the text file that has the answers about an image: up to its first period. */
static void mme_file(char out[256], const char *question_id) {
    const char *slash = strrchr(question_id, '/'), *base = slash ? slash + 1 : question_id;
    (void)snprintf(out, 256, "%.*s.txt", (int)strcspn(base, "."), base);
}

/* The prompt as the benchmark's own files have it; n_spaces stand before what may be added. */
static void mme_question(char *out, size_t room, const char *prompt, int n_spaces) {
    const char *end = strstr(prompt, MME_SUFFIX);
    size_t n = end ? (size_t)(end - prompt) : strlen(prompt), start = 0;
    while (n > start && strchr(" \t\r\n", prompt[n - 1])) n--;
    while (start < n && strchr(" \t\r\n", prompt[start])) start++;
    int at = snprintf(out, room, "%.*s", (int)(n - start), prompt + start);
    if (!strstr(out, "Please answer yes or no.") && (size_t)at + 32 < room)
        (void)snprintf(out + at, room - (size_t)at, "%*sPlease answer yes or no.", n_spaces, "");
}

/* {question: answer} of one image */
static json_t *mme_gold(const char *dir, const char *category, const char *file) {
    char path[EVAL_PATH_BYTES], line[EVAL_TEXT_BYTES];
    eval_path(path, "%s/" MME_DIR "/%s/questions_answers_YN/%s", dir, category, file);
    FILE *f = fopen(path, "re");
    if (!f) eval_path(path, "%s/" MME_DIR "/%s/%s", dir, category, file);
    if (!f) f = fopen(path, "re");
    if (!f) return NULL;
    json_t *gold = json_object();
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\r\n")] = '\0';
        char *tab = strchr(line, '\t');
        if (!tab) continue;
        *tab = '\0';
        (void)json_object_set_new(gold, line, json_string(tab + 1));
    }
    (void)fclose(f);
    return gold;
}

typedef struct {
    size_t n, n_right, n_images, n_images_right;
    bool was_right; /* the first question about the image */
} mme_counts;

static void mme_count(mme_counts *c, const char *said, const char *gold) {
    score_mme_word want = gold[0] == 'Y' || gold[0] == 'y' ? SCORE_MME_YES : SCORE_MME_NO;
    bool is_right = score_mme(said) == want;
    c->n_right += is_right;
    if (++c->n % 2 == 1) {
        c->was_right = is_right;
        return;
    }
    c->n_images++;
    c->n_images_right += is_right && c->was_right;
}

/* One category: its file of answers, and what it scores; consecutive questions are about one image. */
static status finish_mme_category(const eval_items *items, const char *dir, const char *out_dir, const char *category,
                                  double *score, bool *is_there, err *e) {
    char path[EVAL_PATH_BYTES], file[256], question[8192];
    mme_counts c = {0};
    eval_path(path, "%s/%s.txt", out_dir, category);
    FILE *out = NULL;
    *is_there = false;
    status st = STATUS_OK;
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        const eval_item *item = &items->items[i];
        if (strcmp(eval_text_at(item->source, "category"), category) != 0) continue;
        if (!out && !(out = fopen(path, "we"))) return fail_errno(e, STATUS_IO, "%.300s", path);
        *is_there = true;
        mme_file(file, eval_text_at(item->source, "question_id"));
        json_t *gold = mme_gold(dir, category, file);
        mme_question(question, sizeof question, item->prompt, 1);
        if (!json_object_get(gold, question)) mme_question(question, sizeof question, item->prompt, 2);
        const char *want = json_string_value(json_object_get(gold, question));
        if (!want) {
            st = fail(e, STATUS_BAD_FORMAT, "%s/%s has no answer to \"%.150s\"", category, file, question);
        } else {
            (void)fprintf(out, "%s\t%s\t%s\t%s\n", file, question, want, eval_answer(item));
            mme_count(&c, eval_answer(item), want);
        }
        json_decref(gold);
    }
    if (out && fclose(out) != 0 && st == STATUS_OK) st = fail_errno(e, STATUS_IO, "%.300s", path);
    *score = eval_percent((double)c.n_right, c.n) + eval_percent((double)c.n_images_right, c.n_images);
    return st;
}

static status finish_mme_part(const eval_items *items, const char *dir, const char *out_dir, const char *title,
                              const char *const *categories, size_t n, eval_report *report, err *e) {
    double sum = 0.0;
    bool any = false;
    for (size_t i = 0; i < n; i++) {
        double score;
        bool is_there;
        status st = finish_mme_category(items, dir, out_dir, categories[i], &score, &is_there, e);
        if (st != STATUS_OK) return st;
        if (!is_there) continue;
        eval_add_row(report, score, 2, "%s", categories[i]);
        sum += score;
        any = true;
    }
    if (any) eval_add_row(report, sum, 2, "%s", title);
    return STATUS_OK;
}

status finish_mme(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    status st = eval_write_answers(items, out_dir, e);
    if (st == STATUS_OK) st = finish_mme_part(items, dir, out_dir, "perception", MME_PERCEPTION, 10, report, e);
    return st == STATUS_OK ? finish_mme_part(items, dir, out_dir, "cognition", MME_COGNITION, 4, report, e) : st;
}
