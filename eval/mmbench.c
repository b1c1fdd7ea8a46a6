/* MMBench: a table whose rows hold the picture in base64, a question and up to four options. */
#include "eval/benchmark_internal.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

#include "eval/tsv.h"
#include "eval/xlsx.h"

#define PROMPT_BYTES_MAX     ((size_t)1 << 20)
#define PREDICTION_COLUMN    6
#define LETTERS              "ABCD"

typedef struct {
    eval_items *items;
    const char *suffix; /* the instruction */
    buf prompt, image;
} reader;

/* NULL: nothing. pandas has taken the empty ones; the authors take "nan" and "none" in any case too. */
static const char *value_of(const json_t *row, const char *column) {
    const char *text = json_string_value(json_object_get(row, column));
    return text && strcasecmp(text, "nan") != 0 && strcasecmp(text, "none") != 0 ? text : NULL;
}

/* The hint, the question and the options, of which *n there are. */
static status build_prompt(buf *out, const json_t *row, json_t *options, json_t *letters) {
    const char *hint = value_of(row, "hint");
    status st = STATUS_OK;
    buf_clear(out);
    if (hint) st = buf_append_text(out, hint);
    if (hint && st == STATUS_OK) st = buf_append_text(out, "\n");
    if (st == STATUS_OK) st = buf_append_text(out, eval_text_at(row, "question"));
    for (const char *letter = LETTERS; *letter && st == STATUS_OK; letter++) {
        char name[2] = {*letter, '\0'}, head[5] = {'\n', *letter, '.', ' ', '\0'};
        const char *option = value_of(row, name);
        if (!option) break;
        (void)json_array_append_new(options, json_string(option));
        (void)json_array_append_new(letters, json_string(name));
        st = buf_append_text(out, head);
        if (st == STATUS_OK) st = buf_append_text(out, option);
    }
    return st;
}

static status add_row(reader *r, json_t *row, err *e) {
    const char *index = json_string_value(json_object_get(row, "index"));
    const char *image = json_string_value(json_object_get(row, "image"));
    if (!index || !image || !json_string_value(json_object_get(row, "question")))
        return fail(e, STATUS_BAD_FORMAT, "has not all of index, question and image");
    json_t *options = json_array(), *letters = json_array();
    status st = build_prompt(&r->prompt, row, options, letters);
    json_t *record = st == STATUS_OK ? json_pack("{s:s, s:s, s:i, s:O, s:O}", "question_id", index, "prompt",
                                                 (const char *)r->prompt.data, "round_id", 0, "options", options,
                                                 "option_char", letters)
                                     : NULL;
    json_decref(options);
    json_decref(letters);
    buf_clear(&r->image);
    if (st == STATUS_OK) st = buf_append_text(&r->image, "data:image/jpeg;base64,");
    if (st == STATUS_OK) st = buf_append_text(&r->image, image);
    if (st == STATUS_OK) st = buf_append_text(&r->prompt, r->suffix);
    if (st != STATUS_OK) {
        json_decref(record);
        return fail(e, st, "index %.40s: larger than %zu bytes", index, PROMPT_BYTES_MAX);
    }
    (void)json_object_del(row, "image"); /* it goes on in the item */
    st = eval_items_add(r->items, row, (const char *)r->image.data, (const char *)r->prompt.data, e);
    if (st == STATUS_OK) r->items->items[r->items->n - 1].record = record;
    else json_decref(record);
    return st;
}

static status take_row(void *user, json_t *row, err *e) { return add_row(user, row, e); }

static status read_table(eval_items *items, const char *path, const char *suffix, err *e) {
    reader r = {.items = items, .suffix = suffix};
    buf_init(&r.prompt, PROMPT_BYTES_MAX);
    buf_init(&r.image, TSV_FIELD_BYTES_MAX + 64);
    status st = tsv_read(path, take_row, &r, e);
    buf_deinit(&r.prompt);
    buf_deinit(&r.image);
    return st;
}

status read_mmbench(eval_items *items, const char *dir, err *e) {
    char path[EVAL_PATH_BYTES];
    EVAL_FIND(path, dir, "mmbench_dev_20230712.tsv", "mmbench_test_20230712.tsv", "mmbench_dev_en_20231003.tsv",
              "mmbench_test_en_20231003.tsv");
    return read_table(items, path, "\nAnswer with the option's letter from the given choices directly.", e);
}

status read_mmbench_cn(eval_items *items, const char *dir, err *e) {
    char path[EVAL_PATH_BYTES];
    EVAL_FIND(path, dir, "mmbench_dev_cn_20231003.tsv", "mmbench_test_cn_20231003.tsv");
    return read_table(items, path, "\n请直接回答选项字母。", e);
}

static bool is_left_out(const char *column) {
    static const char *const names[] = {"hint", "category", "source", "image", "comment", "l2-category"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(column, names[i]) == 0) return true;
    return false;
}

static status write_upload(const eval_items *items, const char *out_dir, err *e) {
    char path[EVAL_PATH_BYTES];
    json_t *columns = json_array(), *rows = json_array(), *value;
    const char *column;
    json_object_foreach(items->items[0].source, column, value) {
        if (is_left_out(column)) continue;
        if (json_array_size(columns) == PREDICTION_COLUMN) (void)json_array_append_new(columns, json_string("prediction"));
        (void)json_array_append_new(columns, json_string(column));
    }
    if (json_array_size(columns) <= PREDICTION_COLUMN) (void)json_array_append_new(columns, json_string("prediction"));
    for (size_t i = 0; i < items->n; i++) {
        json_t *row = json_copy(items->items[i].source);
        (void)json_object_set_new(row, "prediction", json_string(eval_answer(&items->items[i])));
        (void)json_array_append_new(rows, row);
    }
    eval_path(path, "%s/mmbench_upload.xlsx", out_dir);
    status st = xlsx_write(path, columns, rows, e);
    json_decref(columns);
    json_decref(rows);
    return st;
}

status finish_mmbench(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    (void)dir;
    status st = eval_write_answers(items, out_dir, e);
    if (st == STATUS_OK) st = write_upload(items, out_dir, e);
    size_t n = 0, n_right = 0;
    for (size_t i = 0; i < items->n; i++) {
        const char *gold = eval_text_at(items->items[i].source, "answer");
        n += gold[0] != '\0';
        n_right += gold[0] && eval_answer(&items->items[i])[0] == gold[0];
    }
    if (n > 0) eval_add_row(report, eval_percent((double)n_right, n), 2, "right first letters");
    eval_note(report, "mmbench_upload.xlsx is for the MMBench server, whose circular score is the published one");
    return st;
}

status finish_mmbench_cn(const eval_items *items, const char *dir, const char *out_dir, eval_report *report, err *e) {
    return finish_mmbench(items, dir, out_dir, report, e);
}
