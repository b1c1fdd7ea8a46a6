/* The manifest: one JSON object a line, `id`, `image` or `images` (none: text alone), `prompt` or `prompts`, `turns`: what
 * was asked about the image and answered before, and `adapter`: the name of a served one. Other keys are left to whoever
 * wrote them.
 *
 * A broken line is reported by its number and left out; it costs no other line its answer. The file is
 * read once here to check it, and each line again when its item is due, at the offset noted now. Standard
 * input cannot be read twice, so it is first copied into a temporary file. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/plan_internal.h"

/* ---- one line -------------------------------------------------------------------------------- */

static status take_prompt(plan_line *line, const json_t *value, err *e) {
    if (!json_is_string(value)) return fail(e, STATUS_BAD_FORMAT, "a prompt is not text");
    size_t n = json_string_length(value);
    if (n < 1 || n > MESSAGE_PROMPT_BYTES_MAX)
        return fail(e, STATUS_BAD_FORMAT, "a prompt has %zu bytes, allowed are 1 to %d", n,
                    MESSAGE_PROMPT_BYTES_MAX);
    if (line->n_prompts == MESSAGE_QUESTIONS_MAX)
        return fail(e, STATUS_BAD_FORMAT, "more than %d prompts", MESSAGE_QUESTIONS_MAX);
    line->prompts[line->n_prompts++] = json_string_value(value);
    return STATUS_OK;
}

static status take_prompts(plan_line *line, const json_t *object, err *e) {
    const json_t *one = json_object_get(object, "prompt"), *many = json_object_get(object, "prompts");
    if (one && many) return fail(e, STATUS_BAD_FORMAT, "both prompt and prompts");
    if (one) return take_prompt(line, one, e);
    if (!many) return STATUS_OK;
    if (!json_is_array(many) || json_array_size(many) == 0)
        return fail(e, STATUS_BAD_FORMAT, "prompts is not a list of at least one text");
    status st = STATUS_OK;
    for (size_t i = 0; i < json_array_size(many) && st == STATUS_OK; i++)
        st = take_prompt(line, json_array_get(many, i), e);
    return st;
}

/* [{"question": "...", "answer": "..."}, ...] */
static status take_turns(plan_line *line, const json_t *object, err *e) {
    const json_t *turns = json_object_get(object, "turns");
    if (!turns) return STATUS_OK;
    if (!json_is_array(turns) || json_array_size(turns) > MESSAGE_TURNS_MAX)
        return fail(e, STATUS_BAD_FORMAT, "turns is not a list of at most %d", MESSAGE_TURNS_MAX);
    size_t n_bytes = 0;
    for (size_t i = 0; i < json_array_size(turns); i++) {
        const json_t *turn = json_array_get(turns, i);
        const json_t *question = json_object_get(turn, "question"), *text = json_object_get(turn, "answer");
        if (!json_is_string(question) || !json_is_string(text))
            return fail(e, STATUS_BAD_FORMAT, "turn %zu has not both question and answer", i + 1);
        n_bytes += json_string_length(question) + json_string_length(text);
        line->turns[line->n_turns++] = (request_turn){json_string_value(question), json_string_value(text)};
    }
    for (size_t i = 0; i < line->n_prompts; i++)
        if (n_bytes + strlen(line->prompts[i]) > MESSAGE_PROMPT_BYTES_MAX)
            return fail(e, STATUS_BAD_FORMAT, "turns and a prompt have %zu bytes together, limit %d",
                        n_bytes + strlen(line->prompts[i]), MESSAGE_PROMPT_BYTES_MAX);
    return STATUS_OK;
}

static status take_text(const char **out, const json_t *object, const char *key, size_t max, err *e) {
    const json_t *value = json_object_get(object, key);
    if (!value) return fail(e, STATUS_BAD_FORMAT, "no \"%s\"", key);
    if (!json_is_string(value)) return fail(e, STATUS_BAD_FORMAT, "\"%s\" is not text", key);
    size_t n = json_string_length(value);
    if (n < 1 || n > max)
        return fail(e, STATUS_BAD_FORMAT, "\"%s\" has %zu bytes, allowed are 1 to %zu", key, n, max);
    *out = json_string_value(value);
    return STATUS_OK;
}

static status take_image(const char **out, const json_t *value, err *e) {
    if (!json_is_string(value)) return fail(e, STATUS_BAD_FORMAT, "an image of \"images\" is not text");
    size_t n = json_string_length(value);
    if (n < 1 || n > PLAN_LINE_BYTES_MAX)
        return fail(e, STATUS_BAD_FORMAT, "an image of \"images\" has %zu bytes, allowed are 1 to %u", n, PLAN_LINE_BYTES_MAX);
    *out = json_string_value(value);
    return STATUS_OK;
}

/* A list of one image is that image. */
static status take_images(plan_line *line, const json_t *object, err *e) {
    const json_t *many = json_object_get(object, "images");
    if (json_object_get(object, "image")) {
        if (many) return fail(e, STATUS_BAD_FORMAT, "both image and images");
        return take_text(&line->image, object, "image", PLAN_LINE_BYTES_MAX, e);
    }
    if (!many) return STATUS_OK;
    size_t n = json_array_size(many);
    if (n < 1 || n > MESSAGE_IMAGES_MAX)
        return fail(e, STATUS_BAD_FORMAT, "images is not a list of 1 to %d texts", MESSAGE_IMAGES_MAX);
    if (n == 1) return take_image(&line->image, json_array_get(many, 0), e);
    status st = STATUS_OK;
    for (size_t i = 0; i < n && st == STATUS_OK; i++) st = take_image(&line->images[i], json_array_get(many, i), e);
    line->n_images = n;
    return st;
}

status plan_line_parse(json_t **object, plan_line *line, const char *text, size_t n_bytes, err *e) {
    json_error_t where;
    *line = (plan_line){0};
    *object = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &where);
    status st = STATUS_OK;
    if (!*object)
        st = fail(e, STATUS_BAD_FORMAT, "column %d: %s", where.column, where.text);
    else if (!json_is_object(*object))
        st = fail(e, STATUS_BAD_FORMAT, "not a JSON object");
    if (st == STATUS_OK) st = take_text(&line->id, *object, "id", PLAN_ID_BYTES_MAX, e);
    if (st == STATUS_OK) st = take_images(line, *object, e);
    if (st == STATUS_OK && json_object_get(*object, "adapter"))
        st = take_text(&line->adapter, *object, "adapter", MESSAGE_NAME_BYTES_MAX, e);
    if (st == STATUS_OK) st = take_prompts(line, *object, e);
    if (st == STATUS_OK) st = take_turns(line, *object, e);
    if (st != STATUS_OK) {
        json_decref(*object);
        *object = NULL;
    }
    return st;
}

/* ---- the file -------------------------------------------------------------------------------- */

static bool line_grow(plan *p, size_t need_bytes) {
    if (need_bytes <= p->line_cap) return true;
    size_t cap = p->line_cap ? p->line_cap : 4096;
    while (cap < need_bytes) cap *= 2;
    char *grown = realloc(p->line, cap);
    if (!grown) return false;
    p->line = grown;
    p->line_cap = cap;
    return true;
}

typedef struct {
    int64_t offset; /* of the line just read */
    size_t n_bytes; /* without its newline; of a line over the limit, only what is over 0 counts */
    bool is_too_long, is_end;
} line_reader;

/* The next line into p->line; of one that is too long nothing is kept. */
static status next_line(plan *p, line_reader *r, err *e) {
    r->offset = ftello(p->manifest);
    r->n_bytes = 0;
    r->is_too_long = r->is_end = false;
    for (int c; (c = getc_unlocked(p->manifest)) != '\n';) {
        if (c == EOF && ferror(p->manifest)) return fail_errno(e, STATUS_IO, "%.300s", p->manifest_name);
        if (c == EOF) {
            r->is_end = true;
            return STATUS_OK;
        }
        if (r->n_bytes == PLAN_LINE_BYTES_MAX) r->is_too_long = true;
        if (r->is_too_long) continue;
        if (!line_grow(p, r->n_bytes + 1)) return fail(e, STATUS_NO_MEMORY, "%.300s: out of memory", p->manifest_name);
        p->line[r->n_bytes++] = (char)c;
    }
    return STATUS_OK;
}

static bool is_blank(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!strchr(" \t\r", text[i])) return false;
    return true;
}

static status add_line(plan *p, const line_reader *r, size_t line_no, err *why, err *e) {
    plan_line line;
    json_t *object;
    if (r->is_too_long) return fail(why, STATUS_BAD_FORMAT, "longer than %u bytes", PLAN_LINE_BYTES_MAX);
    status st = plan_line_parse(&object, &line, p->line, r->n_bytes, why);
    if (st != STATUS_OK) return st;
    plan_entry entry = {.id = strdup(line.id), .offset = r->offset, .line_bytes = r->n_bytes,
                        .line_no = line_no, .n_prompts = (uint32_t)line.n_prompts};
    plan_hash_text(p, line.id);
    plan_hash_text(p, line.image ? line.image : "");
    char counts[96]; /* so that a prompt cannot pass for the next line's id */
    int n = snprintf(counts, sizeof counts, "%zu %zu %d", line.n_prompts, line.n_turns, line.adapter != NULL);
    if (line.n_images) (void)snprintf(counts + n, sizeof counts - (size_t)n, " %zu", line.n_images);
    plan_hash_text(p, counts);
    for (size_t i = 0; i < line.n_images; i++) plan_hash_text(p, line.images[i]);
    for (size_t i = 0; i < line.n_prompts; i++) plan_hash_text(p, line.prompts[i]);
    for (size_t i = 0; i < line.n_turns; i++) {
        plan_hash_text(p, line.turns[i].question);
        plan_hash_text(p, line.turns[i].answer);
    }
    if (line.adapter) plan_hash_text(p, line.adapter);
    json_decref(object);
    if (!entry.id) return fail(e, STATUS_NO_MEMORY, "%.300s: out of memory", p->manifest_name);
    return plan_add(p, &entry, e);
}

static status read_lines(plan *p, FILE *complaints, err *e) {
    line_reader r = {0};
    for (size_t line_no = 1; !r.is_end; line_no++) {
        status st = next_line(p, &r, e);
        if (st != STATUS_OK) return st;
        if (!r.is_too_long && is_blank(p->line, r.n_bytes)) continue;
        err why;
        st = add_line(p, &r, line_no, &why, e);
        if (st == STATUS_BAD_FORMAT) {
            p->n_broken++;
            if (complaints)
                (void)fprintf(complaints, "%s line %zu: %s\n", p->manifest_name, line_no, why.text);
        } else if (st != STATUS_OK) {
            return st;
        }
    }
    return STATUS_OK;
}

static FILE *copy_of_stdin(void) {
    FILE *copy = tmpfile();
    char block[65536];
    for (size_t n; copy && (n = fread(block, 1, sizeof block, stdin)) > 0;)
        if (fwrite(block, 1, n, copy) != n) {
            (void)fclose(copy);
            return NULL;
        }
    if (copy) rewind(copy);
    return copy;
}

status plan_add_manifest(plan *p, const char *name, FILE *complaints, err *e) {
    bool is_stdin = strcmp(name, "-") == 0;
    const char *slash = is_stdin ? NULL : strrchr(name, '/');
    p->manifest_name = strdup(is_stdin ? "standard input" : name);
    p->manifest_dir = slash ? strndup(name, slash == name ? 1 : (size_t)(slash - name)) : strdup(".");
    if (!p->manifest_name || !p->manifest_dir || !line_grow(p, 1))
        return fail(e, STATUS_NO_MEMORY, "%.300s: out of memory", name);
    p->manifest = is_stdin ? copy_of_stdin() : fopen(name, "rbe");
    if (!p->manifest) return fail_errno(e, STATUS_IO, "%.300s", name);
    return read_lines(p, complaints, e);
}

status plan_line_read(plan *p, const plan_entry *entry, err *e) {
    if (fseeko(p->manifest, entry->offset, SEEK_SET) != 0)
        return fail_errno(e, STATUS_IO, "%.300s", p->manifest_name);
    if (fread(p->line, 1, entry->line_bytes, p->manifest) != entry->line_bytes)
        return fail(e, STATUS_BAD_FORMAT, "it ends earlier now");
    return STATUS_OK;
}
