/* The list of items and the index of their ids; loading of one item.
 *
 * An item costs its id, its path and some sixty bytes, so that millions fit; everything else is read when
 * its turn comes. */
#include "cli/plan.h"

#include <stdlib.h>
#include <string.h>

#include "cli/base64.h"
#include "cli/one_image.h"
#include "cli/plan_internal.h"

/* ---- ids ------------------------------------------------------------------------------------- */

static uint32_t *index_place(const plan *p, const char *id) {
    size_t at = (size_t)hash_xxh3(id, strlen(id)) & p->index_mask;
    while (p->index[at] && strcmp(p->entries[p->index[at] - 1].id, id) != 0)
        at = (at + 1) & p->index_mask;
    return &p->index[at];
}

static bool index_grow(plan *p) {
    size_t n_places = p->index ? 2 * (p->index_mask + 1) : 1024;
    uint32_t *grown = calloc(n_places, sizeof *grown);
    if (!grown) return false;
    free(p->index);
    p->index = grown;
    p->index_mask = n_places - 1;
    for (size_t i = 0; i < p->n; i++) *index_place(p, p->entries[i].id) = (uint32_t)i + 1;
    return true;
}

size_t plan_find(const plan *p, const char *id) {
    uint32_t found = p->index ? *index_place(p, id) : 0;
    return found ? found - 1 : p->n;
}

static status twice(const plan *p, const plan_entry *first, const plan_entry *second, err *e) {
    if (first->path && second->path)
        return fail(e, STATUS_BAD_ARGUMENT, "item \"%.200s\" is named twice", second->id);
    if (!first->path && !second->path)
        return fail(e, STATUS_BAD_ARGUMENT, "%.200s: id \"%.200s\" is in line %zu and again in line %zu",
                    p->manifest_name, second->id, first->line_no, second->line_no);
    size_t line_no = first->path ? second->line_no : first->line_no;
    return fail(e, STATUS_BAD_ARGUMENT, "id \"%.200s\" of %.200s line %zu is also a path of the command line",
                second->id, p->manifest_name, line_no);
}

static bool entries_grow(plan *p) {
    size_t n_max = p->n_max ? 2 * p->n_max : 256;
    plan_entry *grown = realloc(p->entries, n_max * sizeof *grown);
    if (!grown) return false;
    p->entries = grown;
    p->n_max = n_max;
    return true;
}

status plan_add(plan *p, const plan_entry *entry, err *e) {
    status st = STATUS_OK;
    bool has_room = (p->n < p->n_max || entries_grow(p)) &&
                    (p->index && 2 * (p->n + 1) < p->index_mask ? true : index_grow(p));
    uint32_t *place = has_room ? index_place(p, entry->id) : NULL;
    if (!has_room)
        st = fail(e, STATUS_NO_MEMORY, "no memory for %zu items", p->n + 1);
    else if (p->n >= PLAN_ITEMS_MAX)
        st = fail(e, STATUS_TOO_LARGE, "more than %u items", PLAN_ITEMS_MAX);
    else if (*place)
        st = twice(p, &p->entries[*place - 1], entry, e);
    if (st != STATUS_OK) {
        free(entry->id);
        free(entry->path);
        return st;
    }
    p->entries[p->n++] = *entry;
    *place = (uint32_t)p->n;
    return STATUS_OK;
}

void plan_hash_text(plan *p, const char *text) {
    unsigned char len[8];
    bytes_store_le(len, strlen(text), sizeof len);
    hash_sha256_add(p->hash, len, sizeof len);
    hash_sha256_add(p->hash, text, strlen(text));
}

/* ---- opening --------------------------------------------------------------------------------- */

static status check_prompts(const plan_settings *s, err *e) {
    if (s->n_prompts < 1 || s->n_prompts > MESSAGE_QUESTIONS_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "%zu prompts, allowed are 1 to %d", s->n_prompts,
                    MESSAGE_QUESTIONS_MAX);
    for (size_t i = 0; i < s->n_prompts; i++) {
        size_t n = strlen(s->prompts[i]);
        if (n < 1 || n > MESSAGE_PROMPT_BYTES_MAX)
            return fail(e, STATUS_BAD_ARGUMENT, "prompt %zu has %zu bytes, allowed are 1 to %d", i + 1, n,
                        MESSAGE_PROMPT_BYTES_MAX);
        json_t *text = json_stringn(s->prompts[i], n);
        if (!text) return fail(e, STATUS_BAD_ARGUMENT, "prompt %zu is not valid UTF-8", i + 1);
        json_decref(text);
    }
    return STATUS_OK;
}

static status fill(plan *p, const plan_settings *s, err *e) {
    status st = check_prompts(s, e);
    for (size_t i = 0; i < s->n_prompts && st == STATUS_OK; i++) plan_hash_text(p, s->prompts[i]);
    for (size_t i = 0; i < s->n_paths && st == STATUS_OK; i++) st = plan_add_path(p, s->paths[i], e);
    if (st == STATUS_OK && s->manifest) st = plan_add_manifest(p, s->manifest, s->complaints, e);
    if (st != STATUS_OK || p->n > 0 || p->n_broken > 0) return st;
    if (s->manifest) return fail(e, STATUS_BAD_ARGUMENT, "%.300s: no items", s->manifest);
    if (s->n_paths == 0)
        return fail(e, STATUS_BAD_ARGUMENT, "nothing to do: name images, folders, or --input ITEMS.jsonl");
    return fail(e, STATUS_BAD_ARGUMENT, "no images in %.300s%s (looked for .jpg .jpeg .png .webp)",
                s->paths[0], s->n_paths > 1 ? " and the other folders" : "");
}

status plan_open(plan **p, const plan_settings *settings, err *e) {
    *p = NULL;
    plan *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "plan: out of memory");
    made->prompts = settings->prompts;
    made->n_prompts = settings->n_prompts;
    buf_init(&made->data, MESSAGE_IMAGE_BYTES_MAX);
    made->hash = hash_sha256_open();
    status st = fill(made, settings, e);
    hash_sha256_finish(made->hash, made->digest);
    if (st != STATUS_OK) {
        plan_close(&made);
        return st;
    }
    *p = made;
    return STATUS_OK;
}

void plan_close(plan **p) {
    if (!*p) return;
    for (size_t i = 0; i < (*p)->n; i++) {
        free((*p)->entries[i].id);
        free((*p)->entries[i].path);
    }
    if ((*p)->manifest && (*p)->manifest != stdin) (void)fclose((*p)->manifest);
    json_decref((*p)->object);
    buf_deinit(&(*p)->data);
    free((*p)->line);
    free((*p)->manifest_name);
    free((*p)->manifest_dir);
    free((*p)->index);
    free((*p)->entries);
    free(*p);
    *p = NULL;
}

size_t plan_count(const plan *p) { return p->n; }
size_t plan_broken_lines(const plan *p) { return p->n_broken; }
const char *plan_id(const plan *p, size_t idx) { return p->entries[idx].id; }

size_t plan_n_prompts(const plan *p, size_t idx) {
    return p->entries[idx].n_prompts ? p->entries[idx].n_prompts : p->n_prompts;
}

void plan_digest(const plan *p, unsigned char out[HASH_SHA256_BYTES]) {
    memcpy(out, p->digest, HASH_SHA256_BYTES);
}

/* ---- loading --------------------------------------------------------------------------------- */

static void item_fails(plan_item *item, status code, const char *text) {
    item->code = code;
    (void)snprintf(item->why, sizeof item->why, "%s", text);
}

static status read_image(plan *p, const char *path, plan_item *item, err *e) {
    status st = one_image_read_into(&p->data, path, e);
    if (st == STATUS_OK || st == STATUS_NO_MEMORY) return st;
    item_fails(item, st, e->text);
    return STATUS_OK;
}

static status read_data_url(plan *p, const char *url, plan_item *item, err *e) {
    const char *comma = strchr(url, ',');
    static const char marker[] = ";base64";
    size_t n_marker = sizeof marker - 1;
    if (!comma || (size_t)(comma - url) < n_marker || memcmp(comma - n_marker, marker, n_marker) != 0) {
        item_fails(item, STATUS_IMAGE_UNREADABLE, "data URL without \";base64,\"");
        return STATUS_OK;
    }
    status st = base64_decode(&p->data, comma + 1, strlen(comma + 1));
    if (st == STATUS_NO_MEMORY) return fail(e, st, "image: out of memory");
    if (st == STATUS_TOO_LARGE) item_fails(item, STATUS_IMAGE_TOO_LARGE, "data URL: image over the size limit");
    if (st == STATUS_BAD_FORMAT)
        item_fails(item, STATUS_IMAGE_UNREADABLE, "data URL: not valid base64");
    return STATUS_OK;
}

static char *below(const char *dir, const char *path) {
    size_t n = strlen(dir) + strlen(path) + 2;
    char *whole = malloc(n);
    if (whole) (void)snprintf(whole, n, "%s%s%s", path[0] == '/' ? "" : dir, path[0] == '/' ? "" : "/", path);
    return whole;
}

static bool is_data_url(const char *image) { return strncmp(image, "data:", 5) == 0; }

static const char *shown_as(const char *image) { return is_data_url(image) ? "data:" : image; }

static status load_image(plan *p, const char *image, plan_item *item, err *e) {
    size_t n_before = p->data.len_bytes;
    status st;
    if (is_data_url(image)) {
        st = read_data_url(p, image, item, e);
    } else {
        char *path = below(p->manifest_dir, image);
        if (!path) return fail(e, STATUS_NO_MEMORY, "image: out of memory");
        st = read_image(p, path, item, e);
        free(path);
    }
    if (st == STATUS_OK && item->code == STATUS_OK && p->data.len_bytes == n_before)
        item_fails(item, STATUS_IMAGE_UNDECODABLE, "data URL: no bytes");
    return st;
}

/* One after another into the same buffer, which may move while it grows. All of them are named to people even when
 * one cannot be read. */
static status load_images(plan *p, const plan_line *line, plan_item *item, err *e) {
    size_t ends[MESSAGE_IMAGES_MAX];
    for (size_t i = 0; i < line->n_images; i++) item->images[i] = shown_as(line->images[i]);
    for (size_t i = 0; i < line->n_images && item->code == STATUS_OK; i++) {
        status st = load_image(p, line->images[i], item, e);
        if (st != STATUS_OK) return st;
        ends[i] = p->data.len_bytes;
        if (item->code == STATUS_OK) continue;
        err why;
        IGNORE(fail(&why, item->code, "image %zu of %zu: %.400s", i + 1, line->n_images, item->why), "it is said below");
        item_fails(item, why.code, why.text);
    }
    for (size_t i = 0, at = 0; i < line->n_images && item->code == STATUS_OK; at = ends[i++])
        item->all_data[i] = (bytes){p->data.data + at, ends[i] - at};
    return STATUS_OK;
}

static status load_line(plan *p, const plan_entry *entry, plan_item *item, err *e) {
    plan_line line;
    json_decref(p->object);
    p->object = NULL;
    status st = plan_line_read(p, entry, e);
    if (st == STATUS_OK) st = plan_line_parse(&p->object, &line, p->line, entry->line_bytes, e);
    if (st == STATUS_OK && strcmp(line.id, entry->id) != 0)
        st = fail(e, STATUS_BAD_FORMAT, "its id is now \"%.100s\"", line.id);
    if (st == STATUS_BAD_FORMAT) {
        err why = *e;
        return fail(e, st, "%.200s line %zu changed while it was used: %.200s", p->manifest_name,
                    entry->line_no, why.text);
    }
    if (st != STATUS_OK) return st;
    if (line.n_prompts) {
        memcpy(p->line_prompts, line.prompts, sizeof p->line_prompts);
        item->prompts = p->line_prompts;
        item->n_prompts = line.n_prompts;
    }
    memcpy(p->line_turns, line.turns, sizeof p->line_turns);
    item->turns = p->line_turns;
    item->n_turns = line.n_turns;
    item->adapter = line.adapter;
    item->n_images = line.n_images;
    if (!line.image) return load_images(p, &line, item, e);
    item->image = shown_as(line.image);
    return load_image(p, line.image, item, e);
}

status plan_load(plan *p, size_t idx, plan_item *item, err *e) {
    const plan_entry *entry = &p->entries[idx];
    *item = (plan_item){.id = entry->id, .prompts = p->prompts, .n_prompts = p->n_prompts};
    buf_clear(&p->data);
    status st;
    if (entry->path) {
        item->image = entry->id; /* the path as valid UTF-8 */
        st = read_image(p, entry->path, item, e);
    } else {
        st = load_line(p, entry, item, e);
    }
    if (st != STATUS_OK || item->code != STATUS_OK) return st;
    if (item->image) item->data = (bytes){p->data.data, p->data.len_bytes};
    item->n_bytes = p->data.len_bytes;
    return STATUS_OK;
}
