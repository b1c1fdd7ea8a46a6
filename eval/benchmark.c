/* Most benchmarks are a file of lines {question_id, image, text, category}, of which text is the whole question. What
 * differs is where the files are and what is done with the answers. */
#include "eval/benchmark.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval/answer_text.h"
#include "eval/scores.h"

#define PATH_BYTES 4096
#define TEXT_BYTES 65536

/* ---- helpers ------------------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void path_of(char out[PATH_BYTES], const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)vsnprintf(out, PATH_BYTES, format, args);
    va_end(args);
}

/* The first of names (ended by NULL) that is there below dir, or else the first. */
static void find_path(char out[PATH_BYTES], const char *dir, const char *const *names) {
    for (const char *const *name = names; *name; name++) {
        path_of(out, "%s/%s", dir, *name);
        if (access(out, F_OK) == 0) return;
    }
    path_of(out, "%s/%s", dir, names[0]);
}
#define FIND(out, dir, ...) find_path(out, dir, (const char *const[]){__VA_ARGS__, NULL})

static const char *text_at(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static const char *answer_of(const eval_item *item) { return item->answer ? item->answer : ""; }

__attribute__((format(printf, 4, 5)))
static void add_row(eval_report *r, double value, int n_decimals, const char *format, ...) {
    if (r->n == EVAL_ROWS_MAX) return;
    eval_row *row = &r->rows[r->n++];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(row->label, sizeof row->label, format, args);
    va_end(args);
    row->value = value;
    row->n_decimals = n_decimals;
}

static void note(eval_report *r, const char *text) { (void)snprintf(r->note, sizeof r->note, "%s", text); }

static double percent(double part, size_t whole) { return whole ? 100.0 * part / (double)whole : 0.0; }

/* An id as text, whether it is written as a number or a string. */
static const char *id_text(char out[64], const json_t *id) {
    if (json_is_string(id)) (void)snprintf(out, 64, "%s", json_string_value(id));
    else (void)snprintf(out, 64, "%" JSON_INTEGER_FORMAT, json_integer_value(id));
    return out;
}

/* The authors' own lines of answers, from which all their conversions start. */
static status write_answers(const eval_items *items, const char *out_dir, err *e) {
    char path[PATH_BYTES];
    path_of(path, "%s/answers.jsonl", out_dir);
    FILE *f = fopen(path, "we");
    if (!f) return fail_errno(e, STATUS_IO, "%.300s", path);
    int failed = 0;
    for (size_t i = 0; i < items->n && !failed; i++) {
        const eval_item *item = &items->items[i];
        json_t *id = json_object_get(item->source, "question_id");
        if (!id) id = json_object_get(item->source, "id");
        char answer_id[24];
        (void)snprintf(answer_id, sizeof answer_id, "%zu", i);
        json_t *line = json_pack("{s:O?, s:s, s:s, s:s, s:s, s:{}}", "question_id", id, "prompt", item->prompt, "text",
                                 answer_of(item), "answer_id", answer_id, "model_id",
                                 items->model ? items->model : "", "metadata");
        failed = !line || json_dumpf(line, f, JSON_ENSURE_ASCII) != 0 || fputc('\n', f) == EOF;
        json_decref(line);
    }
    if (fclose(f) != 0 || failed) return fail(e, STATUS_IO, "%.300s: cannot be written", path);
    return STATUS_OK;
}

static status normalised(buf *out, const char *text, err *e) {
    status st = answer_text_normalise(out, text);
    return st == STATUS_OK ? st : fail(e, st, "an answer of %zu bytes cannot be normalised", strlen(text));
}

typedef struct {
    eval_items *items;
    const char *image_dir;
} line_reader;

static status take_line(void *user, json_t *line, err *e) {
    line_reader *r = user;
    const char *image = json_string_value(json_object_get(line, "image"));
    const char *text = json_string_value(json_object_get(line, "text"));
    if (!image || !text) return fail(e, STATUS_BAD_FORMAT, "has not both image and text");
    char path[PATH_BYTES];
    path_of(path, "%s/%s", r->image_dir, image);
    return eval_items_add(r->items, line, path, text, e);
}

static status read_lines(eval_items *items, const char *path, const char *image_dir, err *e) {
    line_reader r = {items, image_dir};
    return eval_lines_read(path, take_line, &r, e);
}

/* ---- VQAv2 and VizWiz ---------------------------------------------------------------------------- */

static status read_vqav2(eval_items *items, const char *dir, err *e) {
    char questions[PATH_BYTES], images[PATH_BYTES];
    FIND(questions, dir, "llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_val2014.jsonl");
    FIND(images, dir, "test2015", "val2014");
    return read_lines(items, questions, images, e);
}

/* {question_id: normalised answer} */
static status answers_by_id(json_t *by_id, const eval_items *items, err *e) {
    buf text;
    buf_init(&text, TEXT_BYTES);
    status st = STATUS_OK;
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        char id[64];
        st = normalised(&text, answer_of(&items->items[i]), e);
        if (st == STATUS_OK)
            (void)json_object_set_new(by_id, id_text(id, json_object_get(items->items[i].source, "question_id")),
                                      json_string((const char *)text.data));
    }
    buf_deinit(&text);
    return st;
}

typedef struct {
    json_t *list, *by_id;
} upload;

static status take_upload(void *user, json_t *line, err *e) {
    upload *u = user;
    char text[64];
    json_t *id = json_object_get(line, "question_id");
    if (!id) return fail(e, STATUS_BAD_FORMAT, "has no question_id");
    json_t *said = json_object_get(u->by_id, id_text(text, id));
    (void)json_array_append_new(u->list, json_pack("{s:O, s:s}", "question_id", id, "answer",
                                                   said ? json_string_value(said) : ""));
    return STATUS_OK;
}

static status score_vqav2(const json_t *by_id, const char *path, eval_report *report, err *e) {
    json_t *root, *entry;
    status st = eval_json_read(&root, path, e);
    if (st != STATUS_OK) return st;
    double sum = 0.0;
    size_t i, n = 0;
    buf text;
    buf_init(&text, TEXT_BYTES);
    json_array_foreach(json_object_get(root, "annotations"), i, entry) {
        char id[64];
        const json_t *said = json_object_get(by_id, id_text(id, json_object_get(entry, "question_id")));
        const json_t *people = json_object_get(entry, "answers");
        char *words[16] = {0};
        const char *views[16];
        size_t n_people = json_array_size(people) < 16 ? json_array_size(people) : 16;
        if (!said) continue;
        for (size_t k = 0; k < n_people && st == STATUS_OK; k++) {
            st = normalised(&text, text_at(json_array_get(people, k), "answer"), e);
            if (st == STATUS_OK) views[k] = words[k] = strdup((const char *)text.data);
        }
        if (st == STATUS_OK) sum += score_vqa(json_string_value(said), views, n_people);
        for (size_t k = 0; k < n_people; k++) free(words[k]);
        n++;
    }
    buf_deinit(&text);
    json_decref(root);
    add_row(report, percent(sum, n), 2, "accuracy");
    return st;
}

static status finish_vqav2(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char path[PATH_BYTES], annotations[PATH_BYTES], out[PATH_BYTES];
    upload u = {json_array(), json_object()};
    status st = write_answers(items, out_dir, e);
    if (st == STATUS_OK) st = answers_by_id(u.by_id, items, e);
    path_of(path, "%s/llava_vqav2_mscoco_test2015.jsonl", dir);
    if (st == STATUS_OK && access(path, F_OK) == 0) {
        st = eval_lines_read(path, take_upload, &u, e);
    } else {
        for (size_t i = 0; i < items->n && st == STATUS_OK; i++) st = take_upload(&u, items->items[i].source, e);
    }
    path_of(out, "%s/vqav2_upload.json", out_dir);
    if (st == STATUS_OK) st = eval_json_write(u.list, out, 0, e);
    path_of(annotations, "%s/v2_mscoco_val2014_annotations.json", dir);
    if (st == STATUS_OK && access(annotations, F_OK) == 0) st = score_vqav2(u.by_id, annotations, report, e);
    else note(report, "vqav2_upload.json is for the EvalAI server; beside v2_mscoco_val2014_annotations.json it is scored here");
    json_decref(u.list);
    json_decref(u.by_id);
    return st;
}

static status read_vizwiz(eval_items *items, const char *dir, err *e) {
    char questions[PATH_BYTES], images[PATH_BYTES];
    path_of(questions, "%s/llava_test.jsonl", dir);
    path_of(images, "%s/test", dir);
    return read_lines(items, questions, images, e);
}

static status finish_vizwiz(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char out[PATH_BYTES];
    (void)dir;
    status st = write_answers(items, out_dir, e);
    json_t *list = json_array();
    buf text;
    buf_init(&text, TEXT_BYTES);
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        st = normalised(&text, answer_of(&items->items[i]), e);
        if (st == STATUS_OK)
            (void)json_array_append_new(list, json_pack("{s:s, s:s}", "image", text_at(items->items[i].source, "image"),
                                                        "answer", (const char *)text.data));
    }
    path_of(out, "%s/vizwiz_upload.json", out_dir);
    if (st == STATUS_OK) st = eval_json_write(list, out, 0, e);
    note(report, "vizwiz_upload.json is for the EvalAI server, which has the answers");
    buf_deinit(&text);
    json_decref(list);
    return st;
}

/* ---- GQA ----------------------------------------------------------------------------------------- */

static status read_gqa(eval_items *items, const char *dir, err *e) {
    char questions[PATH_BYTES], images[PATH_BYTES];
    path_of(questions, "%s/llava_gqa_testdev_balanced.jsonl", dir);
    FIND(images, dir, "data/images", "images");
    return read_lines(items, questions, images, e);
}

/* What the official script compares: lower case, without periods at the end. */
static char *gqa_form(const char *said) {
    char *form = strdup(said);
    size_t n = form ? strlen(form) : 0;
    while (n > 0 && form[n - 1] == '.') form[--n] = '\0';
    for (size_t i = 0; i < n; i++)
        if (form[i] >= 'A' && form[i] <= 'Z') form[i] = (char)(form[i] + 32);
    return form;
}

static status finish_gqa(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char path[PATH_BYTES], out[PATH_BYTES], id[64];
    json_t *gold = NULL, *list = json_array();
    status st = write_answers(items, out_dir, e);
    FIND(path, dir, "data/testdev_balanced_questions.json", "data/questions1.2/testdev_balanced_questions.json",
         "testdev_balanced_questions.json");
    if (st == STATUS_OK && access(path, F_OK) == 0) st = eval_json_read(&gold, path, e);
    else note(report, "testdev_balanced_questions.json is not there: not scored");
    size_t n_right = 0;
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        const eval_item *item = &items->items[i];
        json_t *question = json_object_get(item->source, "question_id");
        char *form = gqa_form(answer_of(item));
        (void)json_array_append_new(list, json_pack("{s:O, s:s}", "questionId", question, "prediction", form ? form : ""));
        free(form);
        const json_t *entry = json_object_get(gold, id_text(id, question));
        n_right += entry && score_gqa(answer_of(item), text_at(entry, "answer"));
    }
    path_of(out, "%s/testdev_balanced_predictions.json", out_dir);
    if (st == STATUS_OK) st = eval_json_write(list, out, 0, e);
    /* The official script counts over the balanced questions, not over those that were asked. */
    if (gold) add_row(report, percent((double)n_right, json_object_size(gold)), 2, "accuracy");
    json_decref(gold);
    json_decref(list);
    return st;
}

/* ---- TextVQA ------------------------------------------------------------------------------------- */

static status read_textvqa(eval_items *items, const char *dir, err *e) {
    char questions[PATH_BYTES], images[PATH_BYTES];
    path_of(questions, "%s/llava_textvqa_val_v051_ocr.jsonl", dir);
    path_of(images, "%s/train_images", dir);
    return read_lines(items, questions, images, e);
}

/* The question in a prompt: its first of two or three lines, as the authors find it, in lower case. */
static bool textvqa_question(char *out, size_t room, const char *prompt) {
    int n_lines = 1;
    for (const char *c = prompt; *c; c++) n_lines += *c == '\n';
    const char *start = prompt;
    size_t n = strcspn(prompt, "\n");
    if (strncmp(prompt, "OCR tokens: ", 12) == 0) {
        const char *from = strstr(prompt, "Question: "), *to = from ? strstr(from, " Short answer:") : NULL;
        if (!to) return false;
        start = from + 10;
        n = (size_t)(to - start);
    } else if (strstr(prompt, "Reference OCR token: ") && n_lines == 3) {
        if (strncmp(prompt, "Reference OCR token:", 20) == 0) {
            start = prompt + n + 1;
            n = strcspn(start, "\n");
        }
    } else if (n_lines != 2) {
        return false;
    }
    if (n >= room) return false;
    for (size_t i = 0; i < n; i++) out[i] = start[i] >= 'A' && start[i] <= 'Z' ? (char)(start[i] + 32) : start[i];
    out[n] = '\0';
    return true;
}

/* {"image_id question": [answers]} */
static json_t *textvqa_people(const json_t *root) {
    json_t *people = json_object(), *entry;
    size_t i;
    json_array_foreach(json_object_get(root, "data"), i, entry) {
        char key[TEXT_BYTES];
        int n = snprintf(key, sizeof key, "%s ", text_at(entry, "image_id"));
        (void)snprintf(key + n, sizeof key - (size_t)n, "%s", text_at(entry, "question"));
        for (char *c = key + n; *c; c++)
            if (*c >= 'A' && *c <= 'Z') *c = (char)(*c + 32);
        (void)json_object_set(people, key, json_object_get(entry, "answers"));
    }
    return people;
}

static status score_textvqa_item(double *score, const eval_item *item, const json_t *people, err *e) {
    char question[8192], key[TEXT_BYTES], id[64];
    if (!textvqa_question(question, sizeof question, item->prompt))
        return fail(e, STATUS_BAD_FORMAT, "no question can be found in \"%.100s\"", item->prompt);
    (void)snprintf(key, sizeof key, "%s %s", id_text(id, json_object_get(item->source, "question_id")), question);
    const json_t *answers = json_object_get(people, key);
    if (!answers) return fail(e, STATUS_BAD_FORMAT, "the annotations have no image %s with \"%.100s\"", id, question);
    char *words[32] = {0};
    const char *views[32];
    size_t n = json_array_size(answers) < 32 ? json_array_size(answers) : 32;
    buf text;
    buf_init(&text, TEXT_BYTES);
    status st = STATUS_OK;
    for (size_t i = 0; i < n && st == STATUS_OK; i++) {
        const char *said = json_string_value(json_array_get(answers, i));
        st = normalised(&text, said ? said : "", e);
        if (st == STATUS_OK) views[i] = words[i] = strdup((const char *)text.data);
    }
    if (st == STATUS_OK) st = normalised(&text, answer_of(item), e);
    if (st == STATUS_OK) *score = score_vqa((const char *)text.data, views, n);
    for (size_t i = 0; i < n; i++) free(words[i]);
    buf_deinit(&text);
    return st;
}

static status finish_textvqa(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char path[PATH_BYTES];
    json_t *root = NULL, *people;
    double sum = 0.0;
    status st = write_answers(items, out_dir, e);
    path_of(path, "%s/TextVQA_0.5.1_val.json", dir);
    if (st == STATUS_OK) st = eval_json_read(&root, path, e);
    people = textvqa_people(root);
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        double score = 0.0;
        st = score_textvqa_item(&score, &items->items[i], people, e);
        sum += score;
    }
    if (st == STATUS_OK) add_row(report, percent(sum, items->n), 2, "accuracy");
    json_decref(people);
    json_decref(root);
    return st;
}

/* ---- POPE ---------------------------------------------------------------------------------------- */

static status read_pope(eval_items *items, const char *dir, err *e) {
    char questions[PATH_BYTES], images[PATH_BYTES];
    path_of(questions, "%s/llava_pope_test.jsonl", dir);
    path_of(images, "%s/val2014", dir);
    return read_lines(items, questions, images, e);
}

static status take_label(void *user, json_t *line, err *e) {
    (void)e;
    return json_array_append(user, json_object_get(line, "label")) == 0 ? STATUS_OK : STATUS_NO_MEMORY;
}

/* Answers of a category and its labels are paired by their order. */
static status score_pope_category(const eval_items *items, const char *dir, const char *category, score_pope_rates *rates,
                                  err *e) {
    char path[PATH_BYTES];
    json_t *labels = json_array();
    path_of(path, "%s/coco/coco_pope_%s.json", dir, category);
    status st = eval_lines_read(path, take_label, labels, e);
    score_pope_counts c = {0};
    size_t n = 0;
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        if (strcmp(text_at(items->items[i].source, "category"), category) != 0) continue;
        const char *label = json_string_value(json_array_get(labels, n++));
        if (!label) break;
        bool says_yes = score_pope_says_yes(answer_of(&items->items[i])), is_yes = strcmp(label, "no") != 0;
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

static status finish_pope(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    static const char *const CATEGORIES[] = {"adversarial", "popular", "random"};
    double sum = 0.0;
    status st = write_answers(items, out_dir, e);
    for (int i = 0; i < 3 && st == STATUS_OK; i++) {
        score_pope_rates r;
        st = score_pope_category(items, dir, CATEGORIES[i], &r, e);
        if (st != STATUS_OK) return st;
        add_row(report, 100 * r.accuracy, 2, "%s accuracy", CATEGORIES[i]);
        add_row(report, 100 * r.precision, 2, "%s precision", CATEGORIES[i]);
        add_row(report, 100 * r.recall, 2, "%s recall", CATEGORIES[i]);
        add_row(report, 100 * r.f1, 2, "%s F1", CATEGORIES[i]);
        add_row(report, 100 * r.yes_ratio, 2, "%s says yes", CATEGORIES[i]);
        sum += 100 * r.f1;
    }
    if (st == STATUS_OK) add_row(report, sum / 3, 2, "mean F1");
    return st;
}

/* ---- MME ----------------------------------------------------------------------------------------- */

#define MME_DIR    "MME_Benchmark_release_version"
#define MME_SUFFIX "Answer the question using a single word or phrase."

static const char *const MME_PERCEPTION[] = {"existence", "count", "position", "color", "posters", "celebrity",
                                             "scene", "landmark", "artwork", "OCR"};
static const char *const MME_COGNITION[] = {"commonsense_reasoning", "numerical_calculation", "text_translation",
                                            "code_reasoning"};

static status read_mme(eval_items *items, const char *dir, err *e) {
    char questions[PATH_BYTES], images[PATH_BYTES];
    path_of(questions, "%s/llava_mme.jsonl", dir);
    path_of(images, "%s/" MME_DIR, dir);
    return read_lines(items, questions, images, e);
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
    char path[PATH_BYTES], line[TEXT_BYTES];
    path_of(path, "%s/" MME_DIR "/%s/questions_answers_YN/%s", dir, category, file);
    FILE *f = fopen(path, "re");
    if (!f) path_of(path, "%s/" MME_DIR "/%s/%s", dir, category, file);
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
    char path[PATH_BYTES], file[256], question[8192];
    mme_counts c = {0};
    path_of(path, "%s/%s.txt", out_dir, category);
    FILE *out = NULL;
    *is_there = false;
    status st = STATUS_OK;
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        const eval_item *item = &items->items[i];
        if (strcmp(text_at(item->source, "category"), category) != 0) continue;
        if (!out && !(out = fopen(path, "we"))) return fail_errno(e, STATUS_IO, "%.300s", path);
        *is_there = true;
        mme_file(file, text_at(item->source, "question_id"));
        json_t *gold = mme_gold(dir, category, file);
        mme_question(question, sizeof question, item->prompt, 1);
        if (!json_object_get(gold, question)) mme_question(question, sizeof question, item->prompt, 2);
        const char *want = json_string_value(json_object_get(gold, question));
        if (!want) {
            st = fail(e, STATUS_BAD_FORMAT, "%s/%s has no answer to \"%.150s\"", category, file, question);
        } else {
            (void)fprintf(out, "%s\t%s\t%s\t%s\n", file, question, want, answer_of(item));
            mme_count(&c, answer_of(item), want);
        }
        json_decref(gold);
    }
    if (out && fclose(out) != 0 && st == STATUS_OK) st = fail_errno(e, STATUS_IO, "%.300s", path);
    *score = percent((double)c.n_right, c.n) + percent((double)c.n_images_right, c.n_images);
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
        add_row(report, score, 2, "%s", categories[i]);
        sum += score;
        any = true;
    }
    if (any) add_row(report, sum, 2, "%s", title);
    return STATUS_OK;
}

static status finish_mme(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    status st = write_answers(items, out_dir, e);
    if (st == STATUS_OK) st = finish_mme_part(items, dir, out_dir, "perception", MME_PERCEPTION, 10, report, e);
    return st == STATUS_OK ? finish_mme_part(items, dir, out_dir, "cognition", MME_COGNITION, 4, report, e) : st;
}

/* ---- ScienceQA ----------------------------------------------------------------------------------- */

#define LETTER_SUFFIX "\nAnswer with the option's letter from the given choices directly."

/* The human's words without the marker, stripped, and the suffix. */
static char *science_prompt(const char *value) {
    static const char MARKER[] = "<image>";
    char *out = malloc(strlen(value) + sizeof LETTER_SUFFIX);
    if (!out) return NULL;
    size_t n = 0, start = 0;
    for (const char *c = value; *c;) {
        if (strncmp(c, MARKER, sizeof MARKER - 1) == 0) c += sizeof MARKER - 1;
        else out[n++] = *c++;
    }
    while (n > 0 && strchr(" \t\r\n", out[n - 1])) n--;
    while (start < n && strchr(" \t\r\n", out[start])) start++;
    memmove(out, out + start, n - start);
    memcpy(out + (n - start), LETTER_SUFFIX, sizeof LETTER_SUFFIX);
    return out;
}

static status read_science_qa(eval_items *items, const char *dir, err *e) {
    char path[PATH_BYTES], image_path[PATH_BYTES];
    json_t *root, *entry;
    path_of(path, "%s/llava_test_CQM-A.json", dir);
    status st = eval_json_read(&root, path, e);
    if (st != STATUS_OK) return st;
    size_t i;
    json_array_foreach(root, i, entry) {
        const json_t *said = json_array_get(json_object_get(entry, "conversations"), 0);
        const char *image = json_string_value(json_object_get(entry, "image"));
        char *prompt = science_prompt(text_at(said, "value"));
        path_of(image_path, "%s/images/test/%s", dir, image ? image : "");
        st = prompt ? eval_items_add(items, entry, image ? image_path : NULL, prompt, e) : STATUS_NO_MEMORY;
        free(prompt);
        if (st != STATUS_OK) break;
    }
    json_decref(root);
    return st;
}

static status finish_science_qa(const eval_items *items, const char *dir, const char *out_dir, eval_report *report,
                                err *e) {
    char path[PATH_BYTES], id_of[64];
    json_t *problems = NULL, *splits = NULL, *by_id = json_object(), *id;
    status st = write_answers(items, out_dir, e);
    path_of(path, "%s/problems.json", dir);
    if (st == STATUS_OK) st = eval_json_read(&problems, path, e);
    path_of(path, "%s/pid_splits.json", dir);
    if (st == STATUS_OK) st = eval_json_read(&splits, path, e);
    for (size_t i = 0; i < items->n; i++) {
        const eval_item *item = &items->items[i];
        if (!item->answer) continue;
        (void)json_object_set_new(by_id, id_text(id_of, json_object_get(item->source, "id")),
                                  json_pack("{s:s, s:b}", "text", item->answer, "image", item->image != NULL));
    }
    size_t i, n_all = 0, n_right = 0, n_images = 0, n_images_right = 0;
    json_array_foreach(json_object_get(splits, "test"), i, id) {
        const char *name = id_text(id_of, id);
        const json_t *problem = json_object_get(problems, name), *said = json_object_get(by_id, name);
        n_all++; /* what was not answered is wrong */
        if (!said) continue;
        int n_choices = (int)json_array_size(json_object_get(problem, "choices"));
        int chosen = score_science_qa(text_at(said, "text"), n_choices);
        bool is_right = chosen >= 0 && chosen == json_integer_value(json_object_get(problem, "answer"));
        bool has_image = json_is_true(json_object_get(said, "image"));
        n_right += is_right;
        n_images += has_image;
        n_images_right += is_right && has_image;
    }
    if (st == STATUS_OK) {
        add_row(report, percent((double)n_right, n_all), 2, "accuracy");
        add_row(report, percent((double)n_images_right, n_images), 2, "accuracy with an image");
    }
    json_decref(problems);
    json_decref(splits);
    json_decref(by_id);
    return st;
}

/* ---- SEED-Bench ---------------------------------------------------------------------------------- */

static status read_seed(eval_items *items, const char *dir, err *e) {
    char questions[PATH_BYTES];
    path_of(questions, "%s/llava-seed-bench.jsonl", dir);
    return read_lines(items, questions, dir, e);
}

typedef struct {
    size_t n, n_right;
} seed_counts;

static void add_seed_row(eval_report *report, const char *label, const seed_counts *c) {
    if (c->n) add_row(report, percent((double)c->n_right, c->n), 2, "%s", label);
}

static void count_seed(seed_counts *c, bool is_right) {
    c->n++;
    c->n_right += is_right;
}

static status finish_seed(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char path[PATH_BYTES], id[64];
    json_t *root = NULL, *by_id = json_object(), *entry, *number;
    status st = write_answers(items, out_dir, e);
    path_of(path, "%s/SEED-Bench.json", dir);
    if (st == STATUS_OK) st = eval_json_read(&root, path, e);
    path_of(path, "%s/seed_upload.jsonl", out_dir);
    FILE *out = st == STATUS_OK ? fopen(path, "we") : NULL;
    if (st == STATUS_OK && !out) st = fail_errno(e, STATUS_IO, "%.300s", path);
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++)
        (void)json_object_set_new(by_id, id_text(id, json_object_get(items->items[i].source, "question_id")),
                                  json_string(answer_of(&items->items[i])));
    seed_counts all = {0}, images = {0}, videos = {0};
    const char *type;
    size_t i;
    json_array_foreach(json_object_get(root, "questions"), i, entry) {
        const char *said = json_string_value(json_object_get(by_id, id_text(id, json_object_get(entry, "question_id"))));
        bool is_right = said && strcmp(said, text_at(entry, "answer")) == 0;
        bool is_video = strcmp(text_at(entry, "data_type"), "video") == 0;
        count_seed(&all, is_right);
        count_seed(is_video ? &videos : &images, is_right);
        if (said && out) {
            json_t *line = json_pack("{s:O, s:s}", "question_id", json_object_get(entry, "question_id"), "prediction", said);
            (void)json_dumpf(line, out, JSON_ENSURE_ASCII);
            (void)fputc('\n', out);
            json_decref(line);
        }
    }
    json_object_foreach(json_object_get(root, "question_type"), type, number) {
        seed_counts c = {0};
        json_array_foreach(json_object_get(root, "questions"), i, entry) {
            if (json_integer_value(json_object_get(entry, "question_type_id")) != json_integer_value(number)) continue;
            const char *said = json_string_value(json_object_get(by_id, id_text(id, json_object_get(entry, "question_id"))));
            count_seed(&c, said && strcmp(said, text_at(entry, "answer")) == 0);
        }
        add_seed_row(report, type, &c);
    }
    if (st == STATUS_OK) {
        add_seed_row(report, "total", &all);
        add_seed_row(report, "images", &images);
        add_seed_row(report, "videos", &videos);
    }
    if (out && fclose(out) != 0 && st == STATUS_OK) st = fail_errno(e, STATUS_IO, "%.300s", path);
    json_decref(root);
    json_decref(by_id);
    return st;
}

/* ---- MM-Vet -------------------------------------------------------------------------------------- */

static status read_mmvet(eval_items *items, const char *dir, err *e) {
    char questions[PATH_BYTES], images[PATH_BYTES];
    path_of(questions, "%s/llava-mm-vet.jsonl", dir);
    path_of(images, "%s/images", dir);
    return read_lines(items, questions, images, e);
}

static status finish_mmvet(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char out[PATH_BYTES], id[64], key[80];
    (void)dir;
    status st = write_answers(items, out_dir, e);
    json_t *all = json_object();
    for (size_t i = 0; i < items->n; i++) {
        (void)snprintf(key, sizeof key, "v1_%s", id_text(id, json_object_get(items->items[i].source, "question_id")));
        (void)json_object_set_new(all, key, json_string(answer_of(&items->items[i])));
    }
    path_of(out, "%s/mmvet_upload.json", out_dir);
    if (st == STATUS_OK) st = eval_json_write(all, out, 2, e);
    note(report, "mmvet_upload.json is for the official notebook, in which GPT-4 judges");
    json_decref(all);
    return st;
}

/* ---- the table ----------------------------------------------------------------------------------- */

const benchmark benchmarks[] = {
    {"vqav2", "VQAv2", "llava_vqav2_mscoco_test-dev2015.jsonl and test2015/, or ..._val2014.jsonl, val2014/ and "
     "v2_mscoco_val2014_annotations.json", 128, read_vqav2, finish_vqav2},
    {"gqa", "GQA", "llava_gqa_testdev_balanced.jsonl, data/images/, data/testdev_balanced_questions.json", 128, read_gqa,
     finish_gqa},
    {"vizwiz", "VizWiz", "llava_test.jsonl, test/", 128, read_vizwiz, finish_vizwiz},
    {"scienceqa", "ScienceQA", "llava_test_CQM-A.json, images/test/, problems.json, pid_splits.json", 1024,
     read_science_qa, finish_science_qa},
    {"textvqa", "TextVQA", "llava_textvqa_val_v051_ocr.jsonl, train_images/, TextVQA_0.5.1_val.json", 128, read_textvqa,
     finish_textvqa},
    {"pope", "POPE", "llava_pope_test.jsonl, val2014/, coco/coco_pope_{adversarial,popular,random}.json", 128, read_pope,
     finish_pope},
    {"mme", "MME", "llava_mme.jsonl, " MME_DIR "/", 128, read_mme, finish_mme},
    {"seed", "SEED-Bench", "llava-seed-bench.jsonl, its images, SEED-Bench.json", 128, read_seed, finish_seed},
    {"mmvet", "MM-Vet", "llava-mm-vet.jsonl, images/", 1024, read_mmvet, finish_mmvet},
    {NULL, NULL, NULL, 0, NULL, NULL}};

const benchmark *benchmark_find(const char *name) {
    for (const benchmark *b = benchmarks; b->name; b++)
        if (strcmp(b->name, name) == 0) return b;
    return NULL;
}
