/* The questions of a benchmark, and what was answered.
 *
 *     eval_items items = {0};
 *     st = eval_items_add(&items, entry, "images/1.jpg", "Is there a dog?\nAnswer ...", &e);
 *     st = eval_items_write(&items, "out/items.jsonl", &e);          // a manifest for `mipha annotate`
 *     st = eval_items_take_answers(&items, "out/results.jsonl", &e); // its result lines
 *     eval_items_deinit(&items);
 *
 * One thread. */
#ifndef EVAL_ITEMS_H
#define EVAL_ITEMS_H

#include <jansson.h>
#include <stddef.h>

#include "base/err.h"

typedef struct {
    json_t *source; /* the entry of the official file */
    json_t *record; /* what the file of answers says of it besides or instead of the usual; NULL: nothing */
    char *image;    /* path, NULL: a question without one */
    char *prompt;   /* complete but for the template */
    char *answer;   /* stripped; NULL: none came. A reader that sets it has the question not asked */
} eval_item;

typedef struct {
    eval_item *items;
    size_t n, room;
    char *model; /* the name the results give */
} eval_items;

/* Copies texts, takes a reference of source. image may be NULL. Errors: NO_MEMORY. */
MUST_USE status eval_items_add(eval_items *all, json_t *source, const char *image, const char *prompt, err *e);
void eval_items_deinit(eval_items *all);

/* Items are named by their number, since the ids of some benchmarks are there twice. Errors: IO, NO_MEMORY. */
MUST_USE status eval_items_write(const eval_items *all, const char *path, err *e);
MUST_USE status eval_items_take_answers(eval_items *all, const char *path, err *e);

/* A JSON file, and one of lines. Errors: IO, BAD_FORMAT (with the line). */
MUST_USE status eval_json_read(json_t **root, const char *path, err *e);
typedef status eval_line(void *user, json_t *line, err *e);
MUST_USE status eval_lines_read(const char *path, eval_line *take, void *user, err *e);

/* As Python writes it: characters beyond ASCII escaped. indent 0: one line. Errors: IO. */
MUST_USE status eval_json_write(const json_t *root, const char *path, int indent, err *e);

#endif
