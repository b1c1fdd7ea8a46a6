#include "vision_node/vision_task.h"

#include <stdlib.h>
#include <string.h>

#include "model/model_config.h"

task *task_open(job *j) {
    task *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    unsigned flags = j->wire.in.m.flags;
    t->work = j;
    t->frames = j->wire.payload;
    j->wire.payload = NULL;
    memcpy(t->sha256, j->wire.in.m.image_sha256, sizeof t->sha256);
    t->is_bundle = (flags & MESSAGE_FLAG_BUNDLE) != 0;
    t->trusts_cache = !(flags & MESSAGE_FLAG_REENCODE);
    t->applies_exif = (flags & MESSAGE_FLAG_EXIF) != 0;
    t->report.orientation = 1;
    buf_init(&t->payload, MESSAGE_IMAGE_BYTES_MAX);
    return t;
}

void task_close(task **t) {
    if (!*t) return;
    if ((*t)->work) job_free(&(*t)->work);
    wire_payload_close(&(*t)->frames);
    buf_deinit(&(*t)->payload);
    free((*t)->blobs);
    free(*t);
    *t = NULL;
}

/* ---- files ------------------------------------------------------------------------------------ */

static status join(task *t, err *e) {
    if (!t->frames) return fail(e, STATUS_BAD_MESSAGE, "encode: no image bytes");
    size_t n = wire_payload_bytes(t->frames);
    unsigned char *to = buf_reserve(&t->payload, n);
    if (!to) return fail(e, STATUS_NO_MEMORY, "image of %zu bytes: no memory", n);
    wire_payload_copy(t->frames, to);
    t->payload.len_bytes = n;
    return STATUS_OK;
}

static status take_apart(task *t, err *e) {
    bytes all = {t->payload.data, t->payload.len_bytes};
    unsigned char digest[HASH_SHA256_BYTES];
    hash_sha256(digest, all.data, all.len_bytes);
    if (memcmp(digest, t->sha256, sizeof digest) != 0)
        return fail(e, STATUS_BAD_MESSAGE, "image bytes do not have the SHA-256 they came with");
    bundle files = {.files = {all}, .n = 1};
    status st = t->is_bundle ? bundle_decode(&files, all, e) : STATUS_OK;
    if (st == STATUS_OK) t->files = files;
    return st;
}

void task_open_files(task *t, const unsigned char *tower_fingerprint) {
    t->opened = join(t, &t->why);
    wire_payload_close(&t->frames);
    if (t->opened == STATUS_OK) t->opened = take_apart(t, &t->why);
    for (size_t i = 0; i < t->files.n; i++) {
        unsigned char digest[HASH_SHA256_BYTES];
        if (t->is_bundle) hash_sha256(digest, t->files.files[i].data, t->files.files[i].len_bytes);
        cache_key_make(&t->images[i].key, tower_fingerprint,
                       (cache_preprocess){VISION_PREPROCESS_VERSION, t->applies_exif},
                       t->is_bundle ? digest : t->sha256);
    }
}

/* ---- images ----------------------------------------------------------------------------------- */

bool task_is(const task *t, const item_id *item, uint32_t attempt) {
    if (!t->work) return false;
    const message *m = &t->work->wire.in.m;
    return m->attempt == attempt && memcmp(&m->item, item, sizeof *item) == 0;
}

bool task_is_through(const task *t) {
    for (int i = 0; i < t->n_images; i++)
        if (!t->images[i].is_through) return false;
    return t->n_images > 0;
}

status task_keep(task *t, int i, const blob *features, err *e) {
    size_t one = BLOB_HEADER_BYTES + features->values.len_bytes, n = (size_t)t->n_images * one;
    if (!t->blobs) t->blobs = malloc(n);
    if (!t->blobs) return fail(e, STATUS_NO_MEMORY, "features of %zu bytes: no memory", n);
    unsigned char *to = t->blobs + (size_t)i * one;
    blob_header(to, &t->images[i].key, features);
    memcpy(to + BLOB_HEADER_BYTES, features->values.data, features->values.len_bytes);
    t->images[i].has_blob = true;
    return STATUS_OK;
}
