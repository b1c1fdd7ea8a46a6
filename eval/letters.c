/* Benchmarks answered with the letter of a choice: ScienceQA and SEED-Bench. */
#include "eval/benchmark_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval/scores.h"

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

status read_science_qa(eval_items *items, const char *dir, err *e) {
    char path[EVAL_PATH_BYTES], image_path[EVAL_PATH_BYTES];
    json_t *root, *entry;
    eval_path(path, "%s/llava_test_CQM-A.json", dir);
    status st = eval_json_read(&root, path, e);
    if (st != STATUS_OK) return st;
    size_t i;
    json_array_foreach(root, i, entry) {
        const json_t *said = json_array_get(json_object_get(entry, "conversations"), 0);
        const char *image = json_string_value(json_object_get(entry, "image"));
        char *prompt = science_prompt(eval_text_at(said, "value"));
        eval_path(image_path, "%s/images/test/%s", dir, image ? image : "");
        st = prompt ? eval_items_add(items, entry, image ? image_path : NULL, prompt, e)
                    : fail(e, STATUS_NO_MEMORY, "no memory for a question");
        if (st == STATUS_OK && image) { /* by this the official scorer knows questions with an image */
            size_t room = strlen(prompt) + sizeof "<image>\n";
            char *shown = malloc(room);
            if (shown) (void)snprintf(shown, room, "<image>\n%s", prompt);
            items->items[items->n - 1].record = shown ? json_pack("{s:s}", "prompt", shown) : NULL;
            free(shown);
        }
        free(prompt);
        if (st != STATUS_OK) break;
    }
    json_decref(root);
    return st;
}

status finish_science_qa(const eval_items *items, const char *dir, const char *out_dir, eval_report *report,
                                err *e) {
    char path[EVAL_PATH_BYTES], id_of[EVAL_ID_BYTES];
    json_t *problems = NULL, *splits = NULL, *by_id = json_object(), *id;
    status st = eval_write_answers(items, out_dir, e);
    eval_path(path, "%s/problems.json", dir);
    if (st == STATUS_OK) st = eval_json_read(&problems, path, e);
    eval_path(path, "%s/pid_splits.json", dir);
    if (st == STATUS_OK) st = eval_json_read(&splits, path, e);
    for (size_t i = 0; i < items->n; i++) {
        const eval_item *item = &items->items[i];
        if (!item->answer) continue;
        (void)json_object_set_new(by_id, eval_id_text(id_of, json_object_get(item->source, "id")),
                                  json_pack("{s:s, s:b}", "text", item->answer, "image", item->image != NULL));
    }
    size_t i, n_all = 0, n_right = 0, n_images = 0, n_images_right = 0;
    json_array_foreach(json_object_get(splits, "test"), i, id) {
        const char *name = eval_id_text(id_of, id);
        const json_t *problem = json_object_get(problems, name), *said = json_object_get(by_id, name);
        n_all++; /* what was not answered is wrong */
        if (!said) continue;
        int n_choices = (int)json_array_size(json_object_get(problem, "choices"));
        int chosen = score_science_qa(eval_text_at(said, "text"), n_choices);
        bool is_right = chosen >= 0 && chosen == json_integer_value(json_object_get(problem, "answer"));
        bool has_image = json_is_true(json_object_get(said, "image"));
        n_right += is_right;
        n_images += has_image;
        n_images_right += is_right && has_image;
    }
    if (st == STATUS_OK) {
        eval_add_row(report, eval_percent((double)n_right, n_all), 2, "accuracy");
        eval_add_row(report, eval_percent((double)n_images_right, n_images), 2, "accuracy with an image");
    }
    json_decref(problems);
    json_decref(splits);
    json_decref(by_id);
    return st;
}

/* ---- SEED-Bench ---------------------------------------------------------------------------------- */

status read_seed(eval_items *items, const char *dir, err *e) {
    char questions[EVAL_PATH_BYTES];
    eval_path(questions, "%s/llava-seed-bench.jsonl", dir);
    return eval_read_lines(items, questions, dir, e);
}

typedef struct {
    size_t n, n_right;
} seed_counts;

static void add_seed_row(eval_report *report, const char *label, const seed_counts *c) {
    if (c->n) eval_add_row(report, eval_percent((double)c->n_right, c->n), 2, "%s", label);
}

static void count_seed(seed_counts *c, bool is_right) {
    c->n++;
    c->n_right += is_right;
}

status finish_seed(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    char path[EVAL_PATH_BYTES], id[EVAL_ID_BYTES];
    json_t *root = NULL, *by_id = json_object(), *entry, *number;
    status st = eval_write_answers(items, out_dir, e);
    eval_path(path, "%s/SEED-Bench.json", dir);
    if (st == STATUS_OK) st = eval_json_read(&root, path, e);
    eval_path(path, "%s/seed_upload.jsonl", out_dir);
    FILE *out = st == STATUS_OK ? fopen(path, "we") : NULL;
    if (st == STATUS_OK && !out) st = fail_errno(e, STATUS_IO, "%.300s", path);
    for (size_t i = 0; i < items->n && st == STATUS_OK; i++)
        (void)json_object_set_new(by_id, eval_id_text(id, json_object_get(items->items[i].source, "question_id")),
                                  json_string(eval_answer(&items->items[i])));
    seed_counts all = {0}, images = {0}, videos = {0};
    const char *type;
    size_t i;
    json_array_foreach(json_object_get(root, "questions"), i, entry) {
        const char *said = json_string_value(json_object_get(by_id, eval_id_text(id, json_object_get(entry, "question_id"))));
        bool is_right = said && strcmp(said, eval_text_at(entry, "answer")) == 0;
        bool is_video = strcmp(eval_text_at(entry, "data_type"), "video") == 0;
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
            const char *said = json_string_value(json_object_get(by_id, eval_id_text(id, json_object_get(entry, "question_id"))));
            count_seed(&c, said && strcmp(said, eval_text_at(entry, "answer")) == 0);
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
