/* What `mipha annotate` is to do: every item with its id, where its image comes from, and its questions.
 *
 *     plan *p;
 *     st = plan_open(&p, &settings, &e);              // walks folders, reads the manifest once
 *     for (size_t i = 0; i < plan_count(p); i++) {
 *         st = plan_load(p, i, &item, &e);            // reads this image, and only this one
 *     }
 *     plan_close(&p);
 *
 * Images are not read before plan_load. A manifest's lines are checked at plan_open and read a second time
 * when their turn comes, so that images inside the manifest (`data:` URLs) need no memory either.
 * One thread. */
#ifndef CLI_PLAN_H
#define CLI_PLAN_H

#include <stdbool.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/hash.h"
#include "proto/request.h"

#define PLAN_LINE_BYTES_MAX (100u << 20) /* images of MESSAGE_IMAGE_BYTES_MAX in base64, and the rest */
#define PLAN_ID_BYTES_MAX   4096
#define PLAN_ITEMS_MAX      50000000u

typedef struct plan plan;

typedef struct {
    const char *const *paths; /* image files and folders */
    size_t n_paths;
    const char *manifest;     /* a JSONL file, "-" for standard input, or NULL */
    const char *const *prompts; /* for items that bring none; at least 1, at most MESSAGE_QUESTIONS_MAX */
    size_t n_prompts;
    FILE *complaints;         /* gets one line for each broken line of the manifest; NULL: nobody */
} plan_settings;

/* One item, loaded. Views live until the next plan_load or plan_close. */
typedef struct {
    const char *id;        /* valid UTF-8, unique in the plan */
    const char *image;     /* for people and the result line: the path, or "data:"; NULL: none, or several */
    const char *images[MESSAGE_IMAGES_MAX]; /* of an item with several: n_images of them, likewise */
    size_t n_images;       /* 0, or 2 .. MESSAGE_IMAGES_MAX */
    const char *const *prompts;
    size_t n_prompts;
    const request_turn *turns; /* what was said about the image before, n_turns of them */
    size_t n_turns;
    const char *adapter;   /* served under this name; NULL: the item names none */
    bytes data;            /* the image file's bytes; empty when code is not OK */
    bytes all_data[MESSAGE_IMAGES_MAX]; /* those of images */
    size_t n_bytes;        /* of one or all */
    status code;           /* OK, IMAGE_UNREADABLE, IMAGE_TOO_LARGE: this item's failure */
    char why[ERR_TEXT_BYTES];
} plan_item;

/* Errors: BAD_ARGUMENT (two items with one id, naming both places; no items in what was named; a prompt
 * over its limit), IO (a folder or manifest cannot be read), NO_MEMORY. */
MUST_USE status plan_open(plan **p, const plan_settings *settings, err *e);
void plan_close(plan **p);

size_t plan_count(const plan *p);
size_t plan_broken_lines(const plan *p);
const char *plan_id(const plan *p, size_t idx);
size_t plan_n_prompts(const plan *p, size_t idx);

/* Index of an id, or plan_count. */
size_t plan_find(const plan *p, const char *id);

/* Over everything that decides what is asked: ids, where images come from, prompts, in order. */
void plan_digest(const plan *p, unsigned char out[HASH_SHA256_BYTES]);

/* What is wrong with the image is in item->code; an error of this function ends the run: IO, NO_MEMORY,
 * BAD_FORMAT (the manifest changed since plan_open). */
MUST_USE status plan_load(plan *p, size_t idx, plan_item *item, err *e);

#endif
