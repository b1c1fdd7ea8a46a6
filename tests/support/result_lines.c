#include "tests/support/result_lines.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/support.h"

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

result_lines result_lines_read(const buf *text) {
    result_lines set = {.lines = calloc(RESULT_LINES_MAX, sizeof *set.lines)};
    const char *at = (const char *)text->data, *end = at + text->len_bytes;
    while (at && at < end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        assert_non_null(newline); /* no torn line */
        json_error_t where;
        json_t *line = json_loadb(at, (size_t)(newline - at), JSON_REJECT_DUPLICATES, &where);
        if (!line) fail_msg("%.*s: %s", (int)(newline - at), at, where.text);
        set.n_features_cached += json_is_true(json_object_get(json_object_get(line, "cached"), "features"));
        (void)json_object_del(line, "timing_ms");
        (void)json_object_del(line, "cached");
        assert_true(set.n < RESULT_LINES_MAX);
        set.lines[set.n++] = json_dumps(line, JSON_COMPACT | JSON_SORT_KEYS);
        json_decref(line);
        at = newline + 1;
    }
    qsort(set.lines, set.n, sizeof *set.lines, by_text);
    return set;
}

void result_lines_free(result_lines *set) {
    for (size_t i = 0; i < set->n; i++) free(set->lines[i]);
    free(set->lines);
    *set = (result_lines){0};
}

result_lines result_lines_of(const char *path) {
    buf text;
    buf_init(&text, 256 << 20);
    if (!file_read(&text, path)) fail_msg("%s cannot be read", path);
    result_lines set = result_lines_read(&text);
    buf_deinit(&text);
    return set;
}

void result_lines_assert_same(const result_lines *a, const result_lines *b) {
    assert_int_equal(a->n, b->n);
    for (size_t i = 0; i < a->n; i++) assert_string_equal(a->lines[i], b->lines[i]);
}

size_t result_lines_with(const result_lines *set, const char *text) {
    size_t n = 0;
    for (size_t i = 0; i < set->n; i++) n += strstr(set->lines[i], text) != NULL;
    return n;
}
