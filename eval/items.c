#include "eval/items.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_BYTES_MAX ((size_t)64 << 20)

status eval_items_add(eval_items *all, json_t *source, const char *image, const char *prompt, err *e) {
    if (all->n == all->room) {
        size_t room = all->room ? 2 * all->room : 256;
        eval_item *grown = realloc(all->items, room * sizeof *grown);
        if (!grown) return fail(e, STATUS_NO_MEMORY, "no memory for %zu questions", room);
        all->items = grown;
        all->room = room;
    }
    eval_item *item = &all->items[all->n];
    *item = (eval_item){.image = image ? strdup(image) : NULL, .prompt = strdup(prompt)};
    if (!item->prompt || (image && !item->image)) {
        free(item->prompt), free(item->image);
        return fail(e, STATUS_NO_MEMORY, "no memory for a question");
    }
    item->source = json_incref(source);
    all->n++;
    return STATUS_OK;
}

void eval_items_deinit(eval_items *all) {
    for (size_t i = 0; i < all->n; i++) {
        json_decref(all->items[i].source);
        json_decref(all->items[i].record);
        free(all->items[i].image), free(all->items[i].prompt), free(all->items[i].answer);
    }
    free(all->items);
    free(all->model);
    *all = (eval_items){0};
}

status eval_items_write(const eval_items *all, const char *path, err *e) {
    FILE *f = fopen(path, "we");
    if (!f) return fail_errno(e, STATUS_IO, "%.300s", path);
    int failed = 0;
    for (size_t i = 0; i < all->n && !failed; i++) {
        if (all->items[i].answer) continue;
        char id[24];
        (void)snprintf(id, sizeof id, "%zu", i);
        json_t *line = json_pack("{s:s, s:s}", "id", id, "prompt", all->items[i].prompt);
        if (line && all->items[i].image) failed = json_object_set_new(line, "image", json_string(all->items[i].image));
        if (!line || failed || json_dumpf(line, f, JSON_COMPACT) != 0 || fputc('\n', f) == EOF) failed = 1;
        json_decref(line);
    }
    if (fclose(f) != 0) failed = 1;
    return failed ? fail(e, STATUS_IO, "%.300s: cannot be written, or a question is not UTF-8", path) : STATUS_OK;
}

/* ---- files --------------------------------------------------------------------------------------- */

status eval_json_read(json_t **root, const char *path, err *e) {
    json_error_t where;
    *root = json_load_file(path, 0, &where);
    if (*root) return STATUS_OK;
    FILE *f = fopen(path, "re");
    if (!f) return fail_errno(e, STATUS_IO, "%.300s", path);
    (void)fclose(f);
    return fail(e, STATUS_BAD_FORMAT, "%.300s line %d: %.150s", path, where.line, where.text);
}

status eval_lines_read(const char *path, eval_line *take, void *user, err *e) {
    FILE *f = fopen(path, "re");
    if (!f) return fail_errno(e, STATUS_IO, "%.300s", path);
    char *text = NULL;
    size_t room = 0;
    status st = STATUS_OK;
    ssize_t n;
    for (size_t number = 1; st == STATUS_OK && (n = getline(&text, &room, f)) >= 0; number++) {
        if (strspn(text, " \t\r\n") == (size_t)n) continue;
        json_error_t where;
        json_t *line = (size_t)n <= LINE_BYTES_MAX ? json_loadb(text, (size_t)n, 0, &where) : NULL;
        st = line ? take(user, line, e) : fail(e, STATUS_BAD_FORMAT, "not a line of JSON");
        json_decref(line);
        if (st == STATUS_BAD_FORMAT) {
            err why = *e;
            st = fail(e, st, "%.200s line %zu: %.200s", path, number, why.text);
        }
    }
    if (st == STATUS_OK && ferror(f)) st = fail_errno(e, STATUS_IO, "%.300s", path);
    free(text);
    (void)fclose(f);
    return st;
}

status eval_json_write(const json_t *root, const char *path, int indent, err *e) {
    FILE *f = fopen(path, "we");
    if (!f) return fail_errno(e, STATUS_IO, "%.300s", path);
    int failed = json_dumpf(root, f, JSON_ENSURE_ASCII | JSON_ENCODE_ANY | JSON_INDENT((size_t)indent));
    if (indent > 0 && fputc('\n', f) == EOF) failed = 1;
    if (fclose(f) != 0 || failed) return fail(e, STATUS_IO, "%.300s: cannot be written", path);
    return STATUS_OK;
}

/* ---- answers ------------------------------------------------------------------------------------- */

static status take_answer(void *user, json_t *line, err *e) {
    eval_items *all = user;
    const char *id = json_string_value(json_object_get(line, "id"));
    const char *text = json_string_value(json_object_get(line, "text"));
    const char *model = json_string_value(json_object_get(json_object_get(line, "model"), "name"));
    char *end;
    unsigned long long number = id ? strtoull(id, &end, 10) : 0;
    if (!id || *end || number >= all->n || !text)
        return fail(e, STATUS_BAD_FORMAT, "not a result of one of these %zu questions", all->n);
    if (model && !all->model) all->model = strdup(model);
    if (!json_is_null(json_object_get(line, "error"))) return STATUS_OK;
    free(all->items[number].answer);
    all->items[number].answer = strdup(text);
    return all->items[number].answer ? STATUS_OK : fail(e, STATUS_NO_MEMORY, "no memory for an answer");
}

status eval_items_take_answers(eval_items *all, const char *path, err *e) {
    return eval_lines_read(path, take_answer, all, e);
}
