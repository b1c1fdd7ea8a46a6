/* jansson parses; this file puts limits in front of it and sentences behind it.
 *
 * jansson bounds its recursion (2048 levels) but not its memory: 64 MiB of "[],[],[]" would become
 * gigabytes. Every value is preceded by one of [ { , : or is the root, so counting those bytes first
 * gives an upper bound on the number of values without parsing. Bytes inside strings are counted too,
 * which only makes the bound stricter; the limits leave room for it. */
#include "model/json_file.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

status file_load(buf *b, const char *path, size_t max_bytes, err *e) {
    status st = STATUS_OK;
    buf_init(b, max_bytes);
    FILE *f = fopen(path, "rbe");
    if (!f) return fail_errno(e, STATUS_IO, "%s: open", path);
    for (;;) {
        unsigned char chunk[65536];
        size_t n = fread(chunk, 1, sizeof chunk, f);
        if (n == 0) break;
        st = buf_append(b, chunk, n);
        if (st == STATUS_TOO_LARGE)
            st = fail(e, st, "%s: more than %zu bytes, the limit for this file", path, max_bytes);
        else if (st != STATUS_OK)
            st = fail(e, st, "%s: no memory for its bytes", path);
        if (st != STATUS_OK) goto done;
    }
    if (ferror(f)) st = fail_errno(e, STATUS_IO, "%s: read", path);
done:
    (void)fclose(f);
    if (st != STATUS_OK) buf_deinit(b);
    return st;
}

static size_t count_values(bytes text) {
    size_t n = 1;
    for (size_t i = 0; i < text.len_bytes; i++) {
        unsigned char c = text.data[i];
        if (c == '[' || c == '{' || c == ',' || c == ':') n++;
    }
    return n;
}

status json_text_parse(json_t **root, bytes text, const char *label, json_file_limits limits,
                       err *e) {
    *root = NULL;
    if (text.len_bytes > limits.max_bytes)
        return fail(e, STATUS_TOO_LARGE, "%s: %zu bytes, at most %zu", label, text.len_bytes,
                    limits.max_bytes);
    size_t n_values = count_values(text);
    if (n_values > limits.max_values)
        return fail(e, STATUS_TOO_LARGE, "%s: about %zu JSON values, at most %zu", label, n_values,
                    limits.max_values);
    json_error_t reason;
    const char *start = text.len_bytes ? (const char *)text.data : "";
    json_t *value = json_loadb(start, text.len_bytes, JSON_REJECT_DUPLICATES, &reason);
    if (!value)
        return fail(e, STATUS_BAD_FORMAT, "%s: not valid JSON, line %d column %d: %s", label,
                    reason.line, reason.column, reason.text);
    if (!json_is_object(value)) {
        char found[64];
        json_describe(found, sizeof found, value);
        json_decref(value);
        return fail(e, STATUS_BAD_FORMAT, "%s: found %s, expected an object", label, found);
    }
    *root = value;
    return STATUS_OK;
}

status json_file_load(json_t **root, const char *path, json_file_limits limits, err *e) {
    buf text;
    *root = NULL;
    status st = file_load(&text, path, limits.max_bytes, e);
    if (st != STATUS_OK) return st;
    st = json_text_parse(root, (bytes){text.data, text.len_bytes}, path, limits, e);
    buf_deinit(&text);
    return st;
}

void json_describe(char *out, size_t out_bytes, const json_t *value) {
    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT: (void)snprintf(out, out_bytes, "an object"); break;
    case JSON_ARRAY:
        (void)snprintf(out, out_bytes, "an array of %zu", json_array_size(value));
        break;
    case JSON_STRING:
        (void)snprintf(out, out_bytes, "\"%.60s\"", json_string_value(value));
        break;
    case JSON_INTEGER:
        (void)snprintf(out, out_bytes, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL: (void)snprintf(out, out_bytes, "%.9g", json_real_value(value)); break;
    case JSON_TRUE: (void)snprintf(out, out_bytes, "true"); break;
    case JSON_FALSE: (void)snprintf(out, out_bytes, "false"); break;
    case JSON_NULL: (void)snprintf(out, out_bytes, value ? "null" : "nothing"); break;
    }
}

json_view json_view_make(const json_t *object, const char *where, err *e) {
    json_view v = {.object = object, .st = STATUS_OK, .e = e};
    (void)snprintf(v.where, sizeof v.where, "%s", where);
    return v;
}

/* The value under key, or NULL when it is missing or null. */
static const json_t *value_of(const json_view *v, const char *key) {
    const json_t *value = v->object ? json_object_get(v->object, key) : NULL;
    return json_is_null(value) ? NULL : value;
}

bool json_view_has(const json_view *v, const char *key) { return value_of(v, key) != NULL; }

void json_view_refuse(json_view *v, const char *key, const char *expected) {
    if (v->st != STATUS_OK) return;
    char found[80];
    json_describe(found, sizeof found, value_of(v, key));
    v->st = fail(v->e, STATUS_BAD_MODEL, "%s: %s is %s, expected %s", v->where, key, found, expected);
}

json_view json_view_child(json_view *v, const char *key) {
    const json_t *value = v->st == STATUS_OK ? value_of(v, key) : NULL;
    if (value && !json_is_object(value)) json_view_refuse(v, key, "an object");
    json_view child = {.object = json_is_object(value) ? value : NULL, .st = v->st, .e = v->e};
    (void)snprintf(child.where, sizeof child.where, "%.90s%s%.40s", v->where,
                   strchr(v->where, ':') ? "." : ": ", key);
    return child;
}

int64_t json_view_int(json_view *v, const char *key, int64_t fallback, int64_t min, int64_t max) {
    const json_t *value = v->st == STATUS_OK ? value_of(v, key) : NULL;
    if (!value) return fallback;
    if (json_is_integer(value) && json_integer_value(value) >= min &&
        json_integer_value(value) <= max)
        return json_integer_value(value);
    char expected[80];
    (void)snprintf(expected, sizeof expected, "a whole number from %lld to %lld", (long long)min,
                   (long long)max);
    json_view_refuse(v, key, expected);
    return fallback;
}

double json_view_real(json_view *v, const char *key, double fallback, double min, double max) {
    const json_t *value = v->st == STATUS_OK ? value_of(v, key) : NULL;
    if (!value) return fallback;
    double number = json_number_value(value);
    if (json_is_number(value) && number >= min && number <= max) return number;
    char expected[80];
    (void)snprintf(expected, sizeof expected, "a number from %g to %g", min, max);
    json_view_refuse(v, key, expected);
    return fallback;
}

bool json_view_bool(json_view *v, const char *key, bool fallback) {
    const json_t *value = v->st == STATUS_OK ? value_of(v, key) : NULL;
    if (!value) return fallback;
    if (!json_is_boolean(value)) json_view_refuse(v, key, "true or false");
    return json_is_boolean(value) ? json_is_true(value) : fallback;
}

const char *json_view_text(json_view *v, const char *key, const char *fallback) {
    const json_t *value = v->st == STATUS_OK ? value_of(v, key) : NULL;
    if (!value) return fallback;
    if (!json_is_string(value)) json_view_refuse(v, key, "a string");
    return json_is_string(value) ? json_string_value(value) : fallback;
}
