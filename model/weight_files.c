/* Shards are opened in name order and their tensors merged into one sorted list. The index must say
 * exactly what the shards hold: a tensor in a shard it is not listed for, or listed for a shard it is not
 * in, means that files of two checkpoints were mixed, and the folder is refused. Shard names come from
 * the index, so from outside: anything that could leave the folder is refused. */
#include "model/weight_files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "model/json_file.h"

#define INDEX_NAME      "model.safetensors.index.json"
#define SINGLE_NAME     "model.safetensors"
#define INDEX_LIMITS    ((json_file_limits){16u << 20, 4 * SAFETENSORS_TENSORS_MAX})
#define PATH_BYTES      4096
#define SHARD_NAME_BYTES 256

typedef struct {
    char name[SHARD_NAME_BYTES];
    safetensors *file;
} shard;

struct weight_files {
    shard *shards;
    size_t n_shards;
    weight_entry *entries;
    size_t n_entries;
    const char *list_name;
};

static const char *without_wrappers(const char *name) {
    static const char *const WRAPPERS[] = {"base_model.model.", "module."};
    for (size_t i = 0; i < sizeof WRAPPERS / sizeof WRAPPERS[0];) {
        size_t n = strlen(WRAPPERS[i]);
        bool found = strncmp(name, WRAPPERS[i], n) == 0;
        if (found) name += n;
        i = found ? 0 : i + 1;
    }
    return name;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const weight_entry *)a)->name, ((const weight_entry *)b)->name);
}

static int by_shard_name(const void *a, const void *b) {
    return strcmp(((const shard *)a)->name, ((const shard *)b)->name);
}

static status open_shards(weight_files *w, const char *dir, err *e) {
    char path[PATH_BYTES];
    for (size_t i = 0; i < w->n_shards; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", dir, w->shards[i].name);
        status st = safetensors_open(&w->shards[i].file, path, e);
        if (st != STATUS_OK) return st;
    }
    return STATUS_OK;
}

static status merge_entries(weight_files *w, const char *dir, err *e) {
    size_t n = 0;
    for (size_t i = 0; i < w->n_shards; i++) n += safetensors_count(w->shards[i].file);
    if (n > SAFETENSORS_TENSORS_MAX)
        return fail(e, STATUS_BAD_FORMAT, "%s: %zu tensors in all shards, at most %d", dir, n,
                    SAFETENSORS_TENSORS_MAX);
    w->entries = calloc(n ? n : 1, sizeof *w->entries);
    if (!w->entries) return fail(e, STATUS_NO_MEMORY, "%s: no memory for %zu tensors", dir, n);
    for (size_t i = 0; i < w->n_shards; i++) {
        for (size_t t = 0; t < safetensors_count(w->shards[i].file); t++) {
            const safetensors_tensor *tensor = safetensors_at(w->shards[i].file, t);
            w->entries[w->n_entries++] =
                (weight_entry){without_wrappers(tensor->name), w->shards[i].name, tensor};
        }
    }
    if (n) qsort(w->entries, n, sizeof *w->entries, by_name);
    for (size_t i = 1; i < n; i++)
        if (strcmp(w->entries[i - 1].name, w->entries[i].name) == 0)
            return fail(e, STATUS_BAD_MODEL, "%s: tensor %s is there twice, in %s and in %s", dir,
                        w->entries[i].name, w->entries[i - 1].file, w->entries[i].file);
    return STATUS_OK;
}

static bool stays_in_folder(const char *name) {
    return *name && !strchr(name, '/') && !strchr(name, '\\') && !strstr(name, "..") &&
           strlen(name) < SHARD_NAME_BYTES;
}

/* The distinct file names of the index, sorted. */
static status list_shards(weight_files *w, const json_t *map, const char *path, err *e) {
    w->shards = calloc(WEIGHT_FILES_SHARDS_MAX, sizeof *w->shards);
    if (!w->shards) return fail(e, STATUS_NO_MEMORY, "%s: no memory for its shards", path);
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, value) {
        const char *name = json_string_value(value);
        if (!name || !stays_in_folder(name))
            return fail(e, STATUS_BAD_FORMAT,
                        "%s: tensor %.100s is said to be in %.100s, expected the name of a file in "
                        "this folder",
                        path, tensor, name ? name : "something that is no string");
        size_t i = 0;
        while (i < w->n_shards && strcmp(w->shards[i].name, name) != 0) i++;
        if (i < w->n_shards) continue;
        if (i == WEIGHT_FILES_SHARDS_MAX)
            return fail(e, STATUS_BAD_FORMAT, "%s: more than %d shards", path,
                        WEIGHT_FILES_SHARDS_MAX);
        (void)snprintf(w->shards[w->n_shards++].name, SHARD_NAME_BYTES, "%s", name);
    }
    if (w->n_shards == 0) return fail(e, STATUS_BAD_FORMAT, "%s: weight_map names no file", path);
    qsort(w->shards, w->n_shards, sizeof *w->shards, by_shard_name);
    return STATUS_OK;
}

static status check_index(const weight_files *w, const json_t *map, const char *path, err *e) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)map, name, value) {
        const weight_entry *entry = weight_files_find(w, without_wrappers(name));
        if (!entry || strcmp(entry->file, json_string_value(value)) != 0)
            return fail(e, STATUS_BAD_MODEL, "%s: tensor %s is not in %s, where the index says it is%s%s",
                        path, name, json_string_value(value), entry ? "; it is in " : "",
                        entry ? entry->file : "");
    }
    for (size_t i = 0; i < w->n_entries; i++)
        if (!json_object_get(map, w->entries[i].tensor->name))
            return fail(e, STATUS_BAD_MODEL, "%s: tensor %s in %s is not listed in the index", path,
                        w->entries[i].tensor->name, w->entries[i].file);
    return STATUS_OK;
}

static status open_sharded(weight_files *w, const char *dir, const char *path, err *e) {
    json_t *index = NULL;
    w->list_name = INDEX_NAME;
    status st = json_file_load(&index, path, INDEX_LIMITS, e);
    if (st != STATUS_OK) return st;
    const json_t *map = json_object_get(index, "weight_map");
    if (!json_is_object(map))
        st = fail(e, STATUS_BAD_FORMAT, "%s: has no object weight_map", path);
    if (st == STATUS_OK) st = list_shards(w, map, path, e);
    if (st == STATUS_OK) st = open_shards(w, dir, e);
    if (st == STATUS_OK) st = merge_entries(w, dir, e);
    if (st == STATUS_OK) st = check_index(w, map, path, e);
    json_decref(index);
    return st;
}

static status open_single(weight_files *w, const char *dir, const char *file, err *e) {
    w->shards = calloc(1, sizeof *w->shards);
    if (!w->shards) return fail(e, STATUS_NO_MEMORY, "%s: no memory to open it", dir);
    w->n_shards = 1;
    (void)snprintf(w->shards[0].name, SHARD_NAME_BYTES, "%s", file);
    w->list_name = w->shards[0].name;
    status st = open_shards(w, dir, e);
    return st == STATUS_OK ? merge_entries(w, dir, e) : st;
}

status weight_files_open(weight_files **out, const char *dir, err *e) {
    char path[PATH_BYTES];
    status st;
    *out = NULL;
    weight_files *w = calloc(1, sizeof *w);
    if (!w) return fail(e, STATUS_NO_MEMORY, "%s: no memory to open it", dir);

    (void)snprintf(path, sizeof path, "%s/" SINGLE_NAME, dir);
    if (access(path, F_OK) == 0) {
        st = open_single(w, dir, SINGLE_NAME, e);
    } else {
        (void)snprintf(path, sizeof path, "%s/" INDEX_NAME, dir);
        if (access(path, F_OK) == 0)
            st = open_sharded(w, dir, path, e);
        else
            st = fail(e, STATUS_IO, "%s: holds neither %s nor %s", dir, SINGLE_NAME, INDEX_NAME);
    }
    if (st != STATUS_OK) {
        weight_files_close(&w);
        return st;
    }
    *out = w;
    return STATUS_OK;
}

status weight_files_open_one(weight_files **out, const char *dir, const char *file, err *e) {
    *out = NULL;
    weight_files *w = calloc(1, sizeof *w);
    if (!w) return fail(e, STATUS_NO_MEMORY, "%s: no memory to open it", dir);
    status st = open_single(w, dir, file, e);
    if (st != STATUS_OK) {
        weight_files_close(&w);
        return st;
    }
    *out = w;
    return STATUS_OK;
}

void weight_files_close(weight_files **w) {
    if (!*w) return;
    for (size_t i = 0; i < (*w)->n_shards; i++) safetensors_close(&(*w)->shards[i].file);
    free((*w)->shards);
    free((*w)->entries);
    free(*w);
    *w = NULL;
}

size_t weight_files_count(const weight_files *w) { return w->n_entries; }
size_t weight_files_shards(const weight_files *w) { return w->n_shards; }
const char *weight_files_list_name(const weight_files *w) { return w->list_name; }

const weight_entry *weight_files_at(const weight_files *w, size_t idx) {
    CHECK(idx < w->n_entries, "a tensor is asked for by an index below the count");
    return &w->entries[idx];
}

const weight_entry *weight_files_find(const weight_files *w, const char *name) {
    weight_entry key = {.name = name};
    if (w->n_entries == 0) return NULL;
    return bsearch(&key, w->entries, w->n_entries, sizeof key, by_name);
}
