#include "cli/prompts.h"

#include <stdlib.h>
#include <string.h>

#include "proto/message.h"

#define FILE_BYTES_MAX (MESSAGE_QUESTIONS_MAX * (MESSAGE_PROMPT_BYTES_MAX + 2))

static status read_file(prompt_list *list, const char *path, err *e) {
    FILE *in = fopen(path, "rbe");
    if (!in) return fail_errno(e, STATUS_IO, "--prompts %.300s", path);
    list->file = malloc(FILE_BYTES_MAX + 2);
    size_t n = list->file ? fread(list->file, 1, FILE_BYTES_MAX + 1, in) : 0;
    status st = STATUS_OK;
    if (!list->file)
        st = fail(e, STATUS_NO_MEMORY, "--prompts: out of memory");
    else if (ferror(in))
        st = fail_errno(e, STATUS_IO, "--prompts %.300s", path);
    else if (n > FILE_BYTES_MAX)
        st = fail(e, STATUS_TOO_LARGE, "--prompts %.300s: more than %d bytes", path, FILE_BYTES_MAX);
    else
        list->file[n] = '\0';
    if (st == STATUS_OK && strlen(list->file) != n)
        st = fail(e, STATUS_BAD_ARGUMENT, "--prompts %.300s: has a zero byte", path);
    (void)fclose(in);
    return st;
}

static bool add(prompt_list *list, const char *text) {
    const char **grown = realloc(list->texts, (list->n + 1) * sizeof *grown);
    if (!grown) return false;
    list->texts = grown;
    list->texts[list->n++] = text;
    return true;
}

static bool add_lines(prompt_list *list) {
    for (char *at = list->file; at && *at;) {
        size_t len = strcspn(at, "\n");
        bool is_last = at[len] == '\0';
        size_t shown = len > 0 && at[len - 1] == '\r' ? len - 1 : len;
        at[shown] = '\0';
        if (shown > 0 && !add(list, at)) return false;
        at += len + !is_last;
    }
    return true;
}

status prompt_list_open(prompt_list *list, const options *o, const char *fallback, err *e) {
    *list = (prompt_list){0};
    const char *const *given;
    size_t n = options_list(o, "prompt", &given);
    const char *path = options_string(o, "prompts");
    status st = path ? read_file(list, path, e) : STATUS_OK;
    bool has_memory = true;
    for (size_t i = 0; i < n && has_memory; i++) has_memory = add(list, given[i]);
    if (st == STATUS_OK) has_memory = has_memory && add_lines(list);
    if (st == STATUS_OK && has_memory && list->n == 0) has_memory = add(list, fallback);
    if (st == STATUS_OK && !has_memory) st = fail(e, STATUS_NO_MEMORY, "prompts: out of memory");
    if (st != STATUS_OK) prompt_list_close(list);
    return st;
}

void prompt_list_close(prompt_list *list) {
    free(list->texts);
    free(list->file);
    *list = (prompt_list){0};
}
