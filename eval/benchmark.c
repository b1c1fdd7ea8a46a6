#include "eval/benchmark_internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "eval/answer_text.h"
#include "eval/scores.h"

void eval_path(char out[EVAL_PATH_BYTES], const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)vsnprintf(out, EVAL_PATH_BYTES, format, args);
    va_end(args);
}

void eval_find(char out[EVAL_PATH_BYTES], const char *dir, const char *const *names) {
    for (const char *const *name = names; *name; name++) {
        eval_path(out, "%s/%s", dir, *name);
        if (access(out, F_OK) == 0) return;
    }
    eval_path(out, "%s/%s", dir, names[0]);
}

const char *eval_text_at(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

const char *eval_answer(const eval_item *item) { return item->answer ? item->answer : ""; }

void eval_add_row(eval_report *r, double value, int n_decimals, const char *format, ...) {
    if (r->n == EVAL_ROWS_MAX) return;
    eval_row *row = &r->rows[r->n++];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(row->label, sizeof row->label, format, args);
    va_end(args);
    row->value = value;
    row->n_decimals = n_decimals;
}

void eval_note(eval_report *r, const char *text) { (void)snprintf(r->note, sizeof r->note, "%s", text); }

double eval_percent(double part, size_t whole) { return whole ? 100.0 * part / (double)whole : 0.0; }

const char *eval_id_text(char out[EVAL_ID_BYTES], const json_t *id) {
    if (json_is_string(id)) (void)snprintf(out, EVAL_ID_BYTES, "%s", json_string_value(id));
    else (void)snprintf(out, EVAL_ID_BYTES, "%" JSON_INTEGER_FORMAT, json_integer_value(id));
    return out;
}

status eval_write_answers(const eval_items *items, const char *out_dir, err *e) {
    char path[EVAL_PATH_BYTES];
    eval_path(path, "%s/answers.jsonl", out_dir);
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
                                 eval_answer(item), "answer_id", answer_id, "model_id",
                                 items->model ? items->model : "", "metadata");
        if (line && item->record) (void)json_object_update(line, item->record);
        failed = !line || json_dumpf(line, f, JSON_ENSURE_ASCII) != 0 || fputc('\n', f) == EOF;
        json_decref(line);
    }
    if (fclose(f) != 0 || failed) return fail(e, STATUS_IO, "%.300s: cannot be written", path);
    return STATUS_OK;
}

status eval_normalised(buf *out, const char *text, err *e) {
    status st = answer_text_normalise(out, text);
    return st == STATUS_OK ? st : fail(e, st, "an answer of %zu bytes cannot be normalised", strlen(text));
}

status eval_vqa_score(double *score, const char *said, const json_t *people, err *e) {
    char *words[EVAL_PEOPLE_MAX] = {0};
    const char *views[EVAL_PEOPLE_MAX];
    size_t n = json_array_size(people) < EVAL_PEOPLE_MAX ? json_array_size(people) : EVAL_PEOPLE_MAX;
    buf text;
    buf_init(&text, EVAL_TEXT_BYTES);
    status st = STATUS_OK;
    for (size_t i = 0; i < n && st == STATUS_OK; i++) {
        const json_t *entry = json_array_get(people, i);
        st = eval_normalised(&text, json_is_string(entry) ? json_string_value(entry) : eval_text_at(entry, "answer"), e);
        if (st != STATUS_OK) break;
        views[i] = words[i] = strdup((const char *)text.data);
        if (!words[i]) st = fail(e, STATUS_NO_MEMORY, "no memory for an answer");
    }
    if (st == STATUS_OK) *score = score_vqa(said, views, n);
    for (size_t i = 0; i < n; i++) free(words[i]);
    buf_deinit(&text);
    return st;
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
    char path[EVAL_PATH_BYTES];
    eval_path(path, "%s/%s", r->image_dir, image);
    return eval_items_add(r->items, line, path, text, e);
}

status eval_read_lines(eval_items *items, const char *path, const char *image_dir, err *e) {
    line_reader r = {items, image_dir};
    return eval_lines_read(path, take_line, &r, e);
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
    {"mme", "MME", "llava_mme.jsonl, MME_Benchmark_release_version/", 128, read_mme, finish_mme},
    {"seed", "SEED-Bench", "llava-seed-bench.jsonl, its images, SEED-Bench.json", 128, read_seed, finish_seed},
    {"mmvet", "MM-Vet", "llava-mm-vet.jsonl, images/", 1024, read_mmvet, finish_mmvet},
    {"mmbench", "MMBench", "mmbench_dev_20230712.tsv", 1024, read_mmbench, finish_mmbench},
    {"mmbench-cn", "MMBench-CN", "mmbench_dev_cn_20231003.tsv", 1024, read_mmbench_cn, finish_mmbench_cn},
    {"mmmu", "MMMU", "mmmu.jsonl and images/, which tools/export_mmmu.py makes of the published files", 128, read_mmmu,
     finish_mmmu},
    {NULL, NULL, NULL, 0, NULL, NULL}};

const benchmark *benchmark_find(const char *name) {
    for (const benchmark *b = benchmarks; b->name; b++)
        if (strcmp(b->name, name) == 0) return b;
    return NULL;
}
