/* JSON from a checkpoint folder: loaded under limits, read key by key with ranges.
 *
 *     json_t *root;
 *     st = json_file_load(&root, "m/config.json", JSON_FILE_CONFIG_LIMITS, &e);
 *     json_view v = json_view_make(root, "config.json", &e);
 *     int width = (int)json_view_int(&v, "hidden_size", 2048, 1, 65536);
 *     if (v.st != STATUS_OK) ...          // the first bad key, named, is in e
 *
 * A view keeps its first error, and every later call on it returns the default, so a table of keys reads
 * as a table. One thread. */
#ifndef MODEL_JSON_FILE_H
#define MODEL_JSON_FILE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/bytes.h"
#include "base/err.h"

typedef struct {
    size_t max_bytes;  /* of the text */
    size_t max_values; /* numbers, strings, arrays and so on; what bounds the memory of the tree */
} json_file_limits;

#define JSON_FILE_CONFIG_LIMITS ((json_file_limits){4u << 20, 100000})

/* The whole file into b (initialised here, at most max_bytes). Errors: IO, TOO_LARGE, NO_MEMORY. */
MUST_USE status file_load(buf *b, const char *path, size_t max_bytes, err *e);

/* The root is an object and no object has a key twice. label names the text in errors. The caller
 * releases with json_decref. Errors: BAD_FORMAT, TOO_LARGE. */
MUST_USE status json_text_parse(json_t **root, bytes text, const char *label,
                                json_file_limits limits, err *e);

/* Both in one. */
MUST_USE status json_file_load(json_t **root, const char *path, json_file_limits limits, err *e);

typedef struct {
    const json_t *object; /* NULL reads as an object without keys */
    char where[160];      /* "config.json: vision_config" */
    status st;            /* of the first bad key */
    err *e;
} json_view;

json_view json_view_make(const json_t *object, const char *where, err *e);

/* The object under key; a missing or null key gives a view without keys. */
json_view json_view_child(json_view *v, const char *key);

/* Missing and null both mean the default. Errors: BAD_MODEL with key, found and expected. */
int64_t json_view_int(json_view *v, const char *key, int64_t fallback, int64_t min, int64_t max);
double json_view_real(json_view *v, const char *key, double fallback, double min, double max);
bool json_view_bool(json_view *v, const char *key, bool fallback);
const char *json_view_text(json_view *v, const char *key, const char *fallback);
bool json_view_has(const json_view *v, const char *key); /* present and not null */

/* Refuses a key for a reason only the caller knows: "KEY is FOUND, expected EXPECTED". */
void json_view_refuse(json_view *v, const char *key, const char *expected);

/* A short rendering of any value for error texts: 1152, "clip", an object. */
void json_describe(char *out, size_t out_bytes, const json_t *value);

#endif
