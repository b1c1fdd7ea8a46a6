/* What the files behind cli/plan.h share. Not for others. */
#ifndef CLI_PLAN_INTERNAL_H
#define CLI_PLAN_INTERNAL_H

#include <jansson.h>

#include "cli/plan.h"

typedef struct {
    char *id;
    char *path;       /* from the command line; NULL: a line of the manifest */
    int64_t offset;   /* of the line */
    size_t line_bytes, line_no;
    uint32_t n_prompts;
} plan_entry;

struct plan {
    plan_entry *entries;
    size_t n, n_max;
    uint32_t *index;  /* open addressing over ids: entry number + 1, 0 is free */
    size_t index_mask;

    const char *const *prompts; /* the defaults, borrowed */
    size_t n_prompts;
    size_t n_broken;
    hash_sha256_stream *hash;   /* until plan_open returns */
    unsigned char digest[HASH_SHA256_BYTES];

    FILE *manifest;
    char *manifest_name, *manifest_dir;
    char *line;       /* PLAN_LINE_BYTES_MAX at most, grown as needed */
    size_t line_cap;

    /* of the item loaded last */
    json_t *object;
    const char *line_prompts[MESSAGE_QUESTIONS_MAX];
    request_turn line_turns[MESSAGE_TURNS_MAX];
    buf data;
};

/* Takes id (and path) over in any case. Errors: BAD_ARGUMENT (the id is there), TOO_LARGE, NO_MEMORY. */
MUST_USE status plan_add(plan *p, const plan_entry *entry, err *e);

/* Text goes into the digest with its length, so that pieces cannot run into each other. */
void plan_hash_text(plan *p, const char *text);

/* Adds a named file, or every image below a folder in sorted order. Errors: as plan_add, IO. */
MUST_USE status plan_add_path(plan *p, const char *path, err *e);

/* Reads all lines of the manifest. */
MUST_USE status plan_add_manifest(plan *p, const char *name, FILE *complaints, err *e);

/* What a line says; views of object. The parts of a broken line are named in e (BAD_FORMAT). */
typedef struct {
    const char *id, *image; /* image NULL: none, or several */
    const char *images[MESSAGE_IMAGES_MAX];
    size_t n_images; /* 0, or 2 .. MESSAGE_IMAGES_MAX */
    const char *prompts[MESSAGE_QUESTIONS_MAX];
    size_t n_prompts; /* 0: none of its own */
    request_turn turns[MESSAGE_TURNS_MAX];
    size_t n_turns;
    const char *adapter; /* NULL: none named */
} plan_line;
MUST_USE status plan_line_parse(json_t **object, plan_line *line, const char *text, size_t n_bytes,
                                err *e);

/* Errors: IO. BAD_FORMAT when the file ends too early. */
MUST_USE status plan_line_read(plan *p, const plan_entry *entry, err *e);

#endif
