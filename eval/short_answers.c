/* Benchmarks answered with a word or a phrase: VQAv2, VizWiz, GQA, TextVQA; and MM-Vet, answered freely. */
#include "eval/benchmark_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval/scores.h"

/* ---- VQAv2 and VizWiz ---------------------------------------------------------------------------- */

status read_vqav2(eval_items *items, const char *dir, err *e) {
    char questions[EVAL_PATH_BYTES], images[EVAL_PATH_BYTES];
    EVAL_FIND(questions, dir, "llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_mscoco_val2014.jsonl");
    EVAL_FIND(images, dir, "test2015", "val2014");
    return eval_read_lines(items, questions, images, e);
}

/* {question_id: eval_normalised answer} */
static status answers_by_id(json_t *by_id, const eval_items *items, err *e) {
    buf text;
    buf_init(&text, EVAL_TEXT_BYTES);
    status st = STATUS_OK;
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        char id[EVAL_ID_BYTES];
        st = eval_normalised(&text, eval_answer(&items->items[i]), e);
        if (st == STATUS_OK)
            (void)json_object_set_new(by_id, eval_id_text(id, json_object_get(items->items[i].source, "question_id")),
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
    json_t *said = json_object_get(u->by_id, eval_id_text(text, id));
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
    json_array_foreach(json_object_get(root, "annotations"), i, entry) {
        char id[EVAL_ID_BYTES];
        double score = 0.0;
        const json_t *said = json_object_get(by_id, eval_id_text(id, json_object_get(entry, "question_id")));
        if (!said) continue;
        st = eval_vqa_score(&score, json_string_value(said), json_object_get(entry, "answers"), e);
        if (st != STATUS_OK) break;
        sum += score;
        n++;
    }
    json_decref(root);
    eval_add_row(report, eval_percent(sum, n), 2, "accuracy");
    return st;
}

status finish_vqav2(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char path[EVAL_PATH_BYTES], annotations[EVAL_PATH_BYTES], out[EVAL_PATH_BYTES];
    upload u = {json_array(), json_object()};
    status st = eval_write_answers(items, out_dir, e);
    if (st == STATUS_OK) st = answers_by_id(u.by_id, items, e);
    eval_path(path, "%s/llava_vqav2_mscoco_test2015.jsonl", dir);
    if (st == STATUS_OK && access(path, F_OK) == 0) {
        st = eval_lines_read(path, take_upload, &u, e);
    } else {
        for (size_t i = 0; i < items->n && st == STATUS_OK; i++) st = take_upload(&u, items->items[i].source, e);
    }
    eval_path(out, "%s/vqav2_upload.json", out_dir);
    if (st == STATUS_OK) st = eval_json_write(u.list, out, 0, e);
    eval_path(annotations, "%s/v2_mscoco_val2014_annotations.json", dir);
    if (st == STATUS_OK && access(annotations, F_OK) == 0) st = score_vqav2(u.by_id, annotations, report, e);
    else eval_note(report, "vqav2_upload.json is for the EvalAI server; beside v2_mscoco_val2014_annotations.json it is scored here");
    json_decref(u.list);
    json_decref(u.by_id);
    return st;
}

status read_vizwiz(eval_items *items, const char *dir, err *e) {
    char questions[EVAL_PATH_BYTES], images[EVAL_PATH_BYTES];
    eval_path(questions, "%s/llava_test.jsonl", dir);
    eval_path(images, "%s/test", dir);
    return eval_read_lines(items, questions, images, e);
}

status finish_vizwiz(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char out[EVAL_PATH_BYTES];
    (void)dir;
    status st = eval_write_answers(items, out_dir, e);
    json_t *list = json_array();
    buf text;
    buf_init(&text, EVAL_TEXT_BYTES);
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        st = eval_normalised(&text, eval_answer(&items->items[i]), e);
        if (st == STATUS_OK)
            (void)json_array_append_new(list, json_pack("{s:s, s:s}", "image", eval_text_at(items->items[i].source, "image"),
                                                        "answer", (const char *)text.data));
    }
    eval_path(out, "%s/vizwiz_upload.json", out_dir);
    if (st == STATUS_OK) st = eval_json_write(list, out, 0, e);
    eval_note(report, "vizwiz_upload.json is for the EvalAI server, which has the answers");
    buf_deinit(&text);
    json_decref(list);
    return st;
}

/* ---- GQA ----------------------------------------------------------------------------------------- */

status read_gqa(eval_items *items, const char *dir, err *e) {
    char questions[EVAL_PATH_BYTES], images[EVAL_PATH_BYTES];
    eval_path(questions, "%s/llava_gqa_testdev_balanced.jsonl", dir);
    EVAL_FIND(images, dir, "data/images", "images");
    return eval_read_lines(items, questions, images, e);
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

status finish_gqa(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char path[EVAL_PATH_BYTES], out[EVAL_PATH_BYTES], id[EVAL_ID_BYTES];
    json_t *gold = NULL, *list = json_array();
    status st = eval_write_answers(items, out_dir, e);
    EVAL_FIND(path, dir, "data/testdev_balanced_questions.json", "data/questions1.2/testdev_balanced_questions.json",
         "testdev_balanced_questions.json");
    if (st == STATUS_OK && access(path, F_OK) == 0) st = eval_json_read(&gold, path, e);
    else eval_note(report, "testdev_balanced_questions.json is not there: not scored");
    size_t n_right = 0;
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        const eval_item *item = &items->items[i];
        json_t *question = json_object_get(item->source, "question_id");
        char *form = gqa_form(eval_answer(item));
        (void)json_array_append_new(list, json_pack("{s:O, s:s}", "questionId", question, "prediction", form ? form : ""));
        free(form);
        const json_t *entry = json_object_get(gold, eval_id_text(id, question));
        n_right += entry && score_gqa(eval_answer(item), eval_text_at(entry, "answer"));
    }
    eval_path(out, "%s/testdev_balanced_predictions.json", out_dir);
    if (st == STATUS_OK) st = eval_json_write(list, out, 0, e);
    /* The official script counts over the balanced questions, not over those that were asked. */
    if (gold) eval_add_row(report, eval_percent((double)n_right, json_object_size(gold)), 2, "accuracy");
    json_decref(gold);
    json_decref(list);
    return st;
}

/* ---- TextVQA ------------------------------------------------------------------------------------- */

status read_textvqa(eval_items *items, const char *dir, err *e) {
    char questions[EVAL_PATH_BYTES], images[EVAL_PATH_BYTES];
    eval_path(questions, "%s/llava_textvqa_val_v051_ocr.jsonl", dir);
    eval_path(images, "%s/train_images", dir);
    return eval_read_lines(items, questions, images, e);
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
        char key[EVAL_TEXT_BYTES];
        int n = snprintf(key, sizeof key, "%.256s ", eval_text_at(entry, "image_id"));
        (void)snprintf(key + n, sizeof key - (size_t)n, "%s", eval_text_at(entry, "question"));
        for (char *c = key + n; *c; c++)
            if (*c >= 'A' && *c <= 'Z') *c = (char)(*c + 32);
        (void)json_object_set(people, key, json_object_get(entry, "answers"));
    }
    return people;
}

static status score_textvqa_item(double *score, const eval_item *item, const json_t *people, err *e) {
    char question[8192], key[EVAL_TEXT_BYTES], id[EVAL_ID_BYTES];
    if (!textvqa_question(question, sizeof question, item->prompt))
        return fail(e, STATUS_BAD_FORMAT, "no question can be found in \"%.100s\"", item->prompt);
    (void)snprintf(key, sizeof key, "%s %s", eval_id_text(id, json_object_get(item->source, "question_id")), question);
    const json_t *answers = json_object_get(people, key);
    if (!answers) return fail(e, STATUS_BAD_FORMAT, "the annotations have no image %s with \"%.100s\"", id, question);
    buf text;
    buf_init(&text, EVAL_TEXT_BYTES);
    status st = eval_normalised(&text, eval_answer(item), e);
    if (st == STATUS_OK) st = eval_vqa_score(score, (const char *)text.data, answers, e);
    buf_deinit(&text);
    return st;
}

status finish_textvqa(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char path[EVAL_PATH_BYTES];
    json_t *root = NULL, *people;
    double sum = 0.0;
    status st = eval_write_answers(items, out_dir, e);
    eval_path(path, "%s/TextVQA_0.5.1_val.json", dir);
    if (st == STATUS_OK) st = eval_json_read(&root, path, e);
    people = textvqa_people(root);
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++) {
        double score = 0.0;
        st = score_textvqa_item(&score, &items->items[i], people, e);
        sum += score;
    }
    if (st == STATUS_OK) eval_add_row(report, eval_percent(sum, items->n), 2, "accuracy");
    json_decref(people);
    json_decref(root);
    return st;
}

/* ---- MM-Vet -------------------------------------------------------------------------------------- */

status read_mmvet(eval_items *items, const char *dir, err *e) {
    char questions[EVAL_PATH_BYTES], images[EVAL_PATH_BYTES];
    eval_path(questions, "%s/llava-mm-vet.jsonl", dir);
    eval_path(images, "%s/images", dir);
    return eval_read_lines(items, questions, images, e);
}

status finish_mmvet(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char out[EVAL_PATH_BYTES], id[EVAL_ID_BYTES], key[80];
    (void)dir;
    status st = eval_write_answers(items, out_dir, e);
    json_t *all = json_object();
    for (size_t i = 0; i < items->n; i++) {
        (void)snprintf(key, sizeof key, "v1_%s", eval_id_text(id, json_object_get(items->items[i].source, "question_id")));
        (void)json_object_set_new(all, key, json_string(eval_answer(&items->items[i])));
    }
    eval_path(out, "%s/mmvet_upload.json", out_dir);
    if (st == STATUS_OK) st = eval_json_write(all, out, 2, e);
    eval_note(report, "mmvet_upload.json is for the official notebook, in which GPT-4 judges");
    json_decref(all);
    return st;
}
