/* A batch at a time: jobs are taken in order, and their images in order, until the batch is full or none is left;
 * images whose features are in the cache need nothing more, the others are decoded, encoded together and stored. A
 * job is answered when all its images are through. Features that cannot be stored travel with the answer, and so
 * do those of several images once they were not found together: the cache may be too small for them.
 *
 * Most jobs have one image. One with several is a bundle, and each of its images has the cache key it would have
 * alone, so features are shared whatever company an image comes in. An image that is in the batch already is not put
 * there twice. A bundle of more images than a batch has room for stays between batches; it is the only kind of job
 * that does, and no image of it is in the batch then.
 *
 * The node checks the SHA-256 of what it was sent, whoever says it is right: a wrong entry in the cache
 * would be served to everybody who asks about that image. */
#include "vision_node/vision_service.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "proto/bundle.h"
#include "vision_node/vision_encoder.h"

#define NO_PLACE (-1)

/* One image of a task. */
typedef struct {
    cache_key key;
    int place;       /* in the batch, or NO_PLACE */
    bool is_through; /* its features are in the cache or in the task's blobs */
    bool was_here;   /* nobody encoded them for this task */
    bool has_blob;
} task_image;

/* A job whose images are being looked at. */
typedef struct task {
    struct task *next;
    job *work;
    int n_images;
    bool trusts_cache;
    bool has_unstored; /* the cache did not take some features */
    bool travels;      /* so all of them go with the answer */
    unsigned char *blobs; /* [n_images, blob_bytes], as the cache would hold them; NULL until one is kept */
    vision_report report;
    task_image images[MESSAGE_IMAGES_MAX];
} task;

/* One image of the batch. */
typedef struct {
    cache_key key;
    image_info info;
} place;

struct vision_service {
    vision_service_parts parts;
    vision_service_settings settings;
    worker *worker;
    ops_ctx *ctx;
    vision_encoder *encoder;
    size_t plane_floats;   /* of one picture */
    size_t feature_bytes;  /* of one picture */
    size_t blob_bytes;     /* the same with its header */
    float *planes;         /* [max_images, 3, size, size] */
    unsigned char *features;
    place *batch;
    int n_batch;
    buf payload;           /* of the task `gathered`, joined from its frames */
    const task *gathered;
    bundle files;          /* of it, views of payload; n is 1 for a single image */
    buf stored;            /* a blob that was read back */
    task *tasks, **last_task; /* begun and not answered, in order */
    mailbox_letter *first; /* jobs not yet looked at, in order */
    mailbox_letter **last;
    struct {
        uint64_t encoded, cached, handed_over, failed, encode_us, decode_us;
    } counts;
};

/* ---- tasks ------------------------------------------------------------------------------------ */

static job *pop_job(vision_service *s) {
    job *j = (job *)s->first;
    if (!j) return NULL;
    s->first = j->letter.next;
    if (!s->first) s->last = &s->first;
    return j;
}

static bool applies_exif(const job *j) { return (j->wire.in.m.flags & MESSAGE_FLAG_EXIF) != 0; }

static void free_task(vision_service *s, task *t) {
    for (task **at = &s->tasks; *at; at = &(*at)->next) {
        if (*at != t) continue;
        *at = t->next;
        if (!*at) s->last_task = at;
        break;
    }
    if (s->gathered == t) s->gathered = NULL;
    free(t->blobs);
    if (t->work) job_free(&t->work);
    free(t);
}

static void fail_task(vision_service *s, task *t, const err *e) {
    /* The same bytes will fail the same way on any node, unless the machine was at fault. */
    bool is_retryable = e->code == STATUS_NO_MEMORY || e->code == STATUS_UNAVAILABLE ||
                        e->code == STATUS_DEVICE || e->code == STATUS_IO;
    s->counts.failed++;
    worker_answer_failed(s->worker, &t->work, e->code, e->text, is_retryable);
    free_task(s, t);
}

static void make_key(const vision_service *s, task *t, int i, const unsigned char sha256[HASH_SHA256_BYTES]) {
    cache_key_make(&t->images[i].key, model_tower_fingerprint(s->parts.model),
                   (cache_preprocess){VISION_PREPROCESS_VERSION, applies_exif(t->work)}, sha256);
}

/* The files of a task, each a view of s->payload. */
static status gather_files(vision_service *s, const task *t, err *e) {
    const message *m = &t->work->wire.in.m;
    const wire_payload *payload = t->work->wire.payload;
    if (s->gathered == t) return STATUS_OK;
    s->gathered = NULL;
    if (!payload) return fail(e, STATUS_BAD_MESSAGE, "encode: no image bytes");
    size_t n = wire_payload_bytes(payload);
    buf_clear(&s->payload);
    unsigned char *to = buf_reserve(&s->payload, n);
    if (!to) return fail(e, STATUS_NO_MEMORY, "image of %zu bytes: no memory", n);
    wire_payload_copy(payload, to);
    s->payload.len_bytes = n;

    unsigned char digest[HASH_SHA256_BYTES];
    hash_sha256(digest, to, n);
    if (memcmp(digest, m->image_sha256, sizeof digest) != 0)
        return fail(e, STATUS_BAD_MESSAGE, "image bytes do not have the SHA-256 they came with");
    s->files = (bundle){.files = {{to, n}}, .n = 1};
    status st = m->flags & MESSAGE_FLAG_BUNDLE ? bundle_decode(&s->files, (bytes){to, n}, e) : STATUS_OK;
    if (st == STATUS_OK) s->gathered = t;
    return st;
}

static status find_images(vision_service *s, task *t, err *e) {
    const message *m = &t->work->wire.in.m;
    t->n_images = 1;
    make_key(s, t, 0, m->image_sha256);
    if (!(m->flags & MESSAGE_FLAG_BUNDLE)) return STATUS_OK;
    status st = gather_files(s, t, e);
    if (st != STATUS_OK) return st;
    t->n_images = (int)s->files.n;
    for (int i = 0; i < t->n_images; i++) {
        unsigned char digest[HASH_SHA256_BYTES];
        hash_sha256(digest, s->files.files[i].data, s->files.files[i].len_bytes);
        make_key(s, t, i, digest);
    }
    return STATUS_OK;
}

/* NULL: the job was answered, since it is not one. */
static task *begin_task(vision_service *s, job *j) {
    task *t = calloc(1, sizeof *t);
    if (!t) {
        worker_answer_failed(s->worker, &j, STATUS_NO_MEMORY, "encode: no memory", true);
        return NULL;
    }
    t->work = j;
    t->trusts_cache = !(j->wire.in.m.flags & MESSAGE_FLAG_REENCODE);
    t->travels = !t->trusts_cache && (j->wire.in.m.flags & MESSAGE_FLAG_BUNDLE);
    t->report.orientation = 1;
    for (int i = 0; i < MESSAGE_IMAGES_MAX; i++) t->images[i].place = NO_PLACE;
    *s->last_task = t;
    s->last_task = &t->next;
    err e;
    if (find_images(s, t, &e) == STATUS_OK) return t;
    fail_task(s, t, &e);
    return NULL;
}

/* ---- looking at images ------------------------------------------------------------------------ */

static int find_place(const vision_service *s, const cache_key *key) {
    for (int i = 0; i < s->n_batch; i++)
        if (strcmp(s->batch[i].key.text, key->text) == 0) return i;
    return NO_PLACE;
}

static void report_picture(task *t, const image_info *info) {
    bool is_turned = applies_exif(t->work) && info->orientation >= 5;
    t->report.width = (uint32_t)(is_turned ? info->height : info->width);
    t->report.height = (uint32_t)(is_turned ? info->width : info->height);
    t->report.orientation = (uint32_t)info->orientation;
}

/* Fills the next place of the batch's planes. */
static status decode_image(vision_service *s, task *t, int i, err *e) {
    int64_t start_us = clock_now_us();
    place *p = &s->batch[s->n_batch];
    status st = gather_files(s, t, e);
    if (st == STATUS_OK)
        st = image_decoder_run(s->parts.decoder, s->planes + (size_t)s->n_batch * s->plane_floats, &p->info,
                               s->files.files[i], applies_exif(t->work), &model_get_config(s->parts.model)->preprocess, e);
    if (st != STATUS_OK && t->n_images > 1) {
        err why = *e;
        return fail(e, st, "image %d of %d: %.400s", i + 1, t->n_images, why.text);
    }
    if (st != STATUS_OK) return st;
    p->key = t->images[i].key;
    uint64_t decode_us = (uint64_t)(clock_now_us() - start_us);
    t->report.decode_us += decode_us;
    s->counts.decode_us += decode_us;
    return STATUS_OK;
}

/* Finds out that image i needs nothing more, or puts it into the batch, which has room. */
static status look_at(vision_service *s, task *t, int i, err *e) {
    task_image *image = &t->images[i];
    image->place = find_place(s, &image->key);
    if (image->place == NO_PLACE && t->trusts_cache && cache_has(s->parts.cache, &image->key) == STATUS_OK) {
        image->is_through = image->was_here = true;
        s->counts.cached++;
        return STATUS_OK;
    }
    if (image->place == NO_PLACE) {
        status st = decode_image(s, t, i, e);
        if (st != STATUS_OK) return st;
        image->place = s->n_batch++;
    } else {
        image->was_here = true;
        s->counts.cached++;
    }
    if (i == 0) report_picture(t, &s->batch[image->place].info);
    return STATUS_OK;
}

/* Looks at what is left of a task as far as the batch has room. False: the task failed, and is gone. */
static bool look_at_task(vision_service *s, task *t) {
    for (int i = 0; i < t->n_images && s->n_batch < s->settings.max_images; i++) {
        if (t->images[i].is_through || t->images[i].place != NO_PLACE) continue;
        err e;
        status st = look_at(s, t, i, &e);
        worker_made_progress(s->worker);
        if (st == STATUS_OK) continue;
        fail_task(s, t, &e);
        return false;
    }
    return true;
}

/* ---- features --------------------------------------------------------------------------------- */

static blob_dtype blob_dtype_of(ops_dtype dtype) {
    switch (dtype) {
    case OPS_DTYPE_F16: return BLOB_F16;
    case OPS_DTYPE_BF16: return BLOB_BF16;
    default: return BLOB_F32;
    }
}

static blob features_of(const vision_service *s, const unsigned char *values) {
    const model_config *config = model_get_config(s->parts.model);
    return (blob){.dtype = blob_dtype_of(model_tower_dtype(s->parts.model)),
                  .n_tokens = (uint32_t)config->tower.n_tokens,
                  .width = (uint32_t)config->tower.hidden,
                  .values = {values, s->feature_bytes}};
}

/* As the cache would have held them. */
static status keep_blob(const vision_service *s, task *t, int i, const blob *features, err *e) {
    size_t n = (size_t)t->n_images * s->blob_bytes;
    if (!t->blobs) t->blobs = malloc(n);
    if (!t->blobs) return fail(e, STATUS_NO_MEMORY, "features of %zu bytes: no memory", n);
    unsigned char *to = t->blobs + (size_t)i * s->blob_bytes;
    blob_header(to, &t->images[i].key, features);
    memcpy(to + BLOB_HEADER_BYTES, features->values.data, s->feature_bytes);
    t->images[i].has_blob = true;
    return STATUS_OK;
}

/* The batch has been encoded: what it means for one task. is_stored: for each place, whether the cache took it. */
static status take_features(const vision_service *s, task *t, const bool *is_stored, uint64_t each_us, err *e) {
    for (int i = 0; i < t->n_images; i++) {
        task_image *image = &t->images[i];
        int at = image->place;
        image->place = NO_PLACE;
        if (at == NO_PLACE) continue;
        image->is_through = true;
        if (!is_stored[at]) t->has_unstored = t->travels = true;
        if (t->travels) {
            blob features = features_of(s, s->features + (size_t)at * s->feature_bytes);
            status st = keep_blob(s, t, i, &features, e);
            if (st != STATUS_OK) return st;
        }
        if (!image->was_here) t->report.encode_us += each_us;
    }
    return STATUS_OK;
}

static void encode_batch(vision_service *s) {
    int64_t start_us = clock_now_us();
    bool is_stored[VISION_ENCODER_IMAGES_MAX] = {false};
    err e;
    status ran = vision_encoder_run(s->encoder, s->planes, s->n_batch, s->features, &e);
    uint64_t each_us = (uint64_t)(clock_now_us() - start_us) / (uint64_t)s->n_batch;
    for (int i = 0; i < s->n_batch && ran == STATUS_OK; i++) {
        blob features = features_of(s, s->features + (size_t)i * s->feature_bytes);
        is_stored[i] = cache_put(s->parts.cache, &s->batch[i].key, &features) == STATUS_OK;
        s->counts.encode_us += each_us;
        s->counts.encoded++;
    }
    for (task *t = s->tasks, *next; t; t = next) {
        next = t->next;
        bool is_concerned = false;
        for (int i = 0; i < t->n_images; i++) is_concerned |= t->images[i].place != NO_PLACE;
        if (!is_concerned) continue;
        err why = e;
        status st = ran == STATUS_OK ? take_features(s, t, is_stored, each_us, &why) : ran;
        if (st != STATUS_OK) fail_task(s, t, &why);
    }
    s->n_batch = 0;
}

/* ---- answering -------------------------------------------------------------------------------- */

/* The blobs that this task does not have are read back. False: some cannot be, and are encoded again. */
static bool read_back(vision_service *s, task *t, err *e) {
    bool has_all = true;
    for (int i = 0; i < t->n_images; i++) {
        task_image *image = &t->images[i];
        blob b;
        if (image->has_blob) continue;
        if (cache_get(s->parts.cache, &b, &s->stored, &image->key) == STATUS_OK &&
            b.values.len_bytes == s->feature_bytes && keep_blob(s, t, i, &b, e) == STATUS_OK)
            continue;
        image->is_through = image->was_here = has_all = false;
    }
    t->trusts_cache = has_all;
    return has_all;
}

static void answer_task(vision_service *s, task *t, wire_payload *handed) {
    buf report;
    buf_init(&report, 4096);
    message m = {.kind = MESSAGE_ENCODED};
    t->report.features_cached = true;
    for (int i = 0; i < t->n_images; i++) t->report.features_cached &= t->images[i].was_here;
    CHECK(vision_report_encode(&t->report, &report) == STATUS_OK, "a vision report is small");
    m.report = (bytes){report.data, report.len_bytes};
    s->counts.handed_over += handed ? (uint64_t)t->n_images : 0;
    worker_answer(s->worker, &t->work, &m, handed);
    buf_deinit(&report);
    free_task(s, t);
}

/* Answers a task all of whose images are through. Otherwise it stays. */
static void finish_task(vision_service *s, task *t) {
    err e;
    for (int i = 0; i < t->n_images; i++)
        if (!t->images[i].is_through) return;
    wire_payload *handed = NULL;
    size_t n = (size_t)t->n_images * s->blob_bytes;
    if (t->travels && (t->has_unstored || n <= MESSAGE_IMAGE_BYTES_MAX)) {
        if (!read_back(s, t, &e)) return;
        status st = n > MESSAGE_IMAGE_BYTES_MAX
                        ? fail(&e, STATUS_UNAVAILABLE, "the cache is away, and features of %zu bytes cannot travel", n)
                        : wire_payload_open(&handed, t->blobs, n, &e);
        if (st != STATUS_OK) {
            fail_task(s, t, &e);
            return;
        }
    }
    answer_task(s, t, handed);
}

/* The first task of which something is still to be looked at, or a new one. */
static task *next_task(vision_service *s) {
    for (task *t = s->tasks; t; t = t->next)
        for (int i = 0; i < t->n_images; i++)
            if (!t->images[i].is_through && t->images[i].place == NO_PLACE) return t;
    for (job *j; (j = pop_job(s));) {
        task *t = begin_task(s, j);
        if (t) return t;
    }
    return NULL;
}

/* ---- the worker's handler --------------------------------------------------------------------- */

static void service_start(void *self, job *j) {
    vision_service *s = self;
    j->letter.next = NULL;
    *s->last = &j->letter;
    s->last = &j->letter.next;
}

static void service_cancel(void *self, const item_id *item, uint32_t attempt) {
    vision_service *s = self;
    for (mailbox_letter **at = &s->first; *at; at = &(*at)->next) {
        job *j = (job *)*at;
        const message *m = &j->wire.in.m;
        if (m->attempt != attempt || memcmp(&m->item, item, sizeof *item) != 0) continue;
        *at = j->letter.next;
        if (!*at) s->last = at;
        worker_forget(s->worker, &j);
        return;
    }
    for (task *t = s->tasks; t; t = t->next) {
        const message *m = &t->work->wire.in.m;
        if (m->attempt != attempt || memcmp(&m->item, item, sizeof *item) != 0) continue;
        worker_forget(s->worker, &t->work);
        free_task(s, t);
        return;
    }
}

static bool service_step(void *self) {
    vision_service *s = self;
    for (task *t; s->n_batch < s->settings.max_images && (t = next_task(s));)
        if (look_at_task(s, t)) finish_task(s, t);
    if (s->n_batch > 0) encode_batch(s);
    for (task *t = s->tasks, *next; t; t = next) {
        next = t->next;
        finish_task(s, t);
    }
    return s->first != NULL || s->tasks != NULL;
}

static size_t service_metrics(void *self, metric *out, size_t max) {
    vision_service *s = self;
    cache_counters c = cache_counters_read(s->parts.cache);
    const metric all[] = {
        {"images_encoded", (double)s->counts.encoded},
        {"images_cached", (double)s->counts.cached},
        {"images_handed_over", (double)s->counts.handed_over},
        {"images_failed", (double)s->counts.failed},
        {"decode_seconds", (double)s->counts.decode_us * 1e-6},
        {"encode_seconds", (double)s->counts.encode_us * 1e-6},
        {"cache_puts", (double)c.puts},
        {"cache_errors", (double)c.errors},
    };
    size_t n = sizeof all / sizeof *all;
    if (n > max) n = max;
    memcpy(out, all, n * sizeof *all);
    return n;
}

worker_handler vision_service_handler(vision_service *s) {
    return (worker_handler){.self = s,
                            .start = service_start,
                            .cancel = service_cancel,
                            .step = service_step,
                            .metrics = service_metrics};
}

/* An operator is the longest that nothing is heard of a batch; decoding a picture has its own limit. */
static void operator_done(void *user) { worker_made_progress(user); }

void vision_service_attach(vision_service *s, worker *w) {
    s->worker = w;
    ops_set_progress(s->ctx, operator_done, w);
}

/* ---- opening and closing ---------------------------------------------------------------------- */

vision_service_settings vision_service_defaults(const char *device) {
    return (vision_service_settings){.ops = {.device = device}, .max_images = strncmp(device, "cpu", 3) == 0 ? 8 : 32};
}

status vision_service_open(vision_service **s, const vision_service_parts *parts,
                           const vision_service_settings *settings, err *e) {
    *s = NULL;
    vision_service *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "vision service");
    made->parts = *parts;
    made->settings = *settings;
    made->last = &made->first;
    made->last_task = &made->tasks;
    buf_init(&made->payload, MESSAGE_IMAGE_BYTES_MAX);
    buf_init(&made->stored, BLOB_BYTES_MAX);

    int size = model_get_config(parts->model)->preprocess.size;
    size_t n = (size_t)settings->max_images;
    status st = ops_open(&made->ctx, &settings->ops, e);
    if (st == STATUS_OK)
        st = vision_encoder_open(&made->encoder, made->ctx, parts->model, settings->max_images, e);
    if (st == STATUS_OK) {
        made->plane_floats = 3 * (size_t)size * (size_t)size;
        made->feature_bytes = vision_encoder_feature_bytes(made->encoder);
        made->blob_bytes = BLOB_HEADER_BYTES + made->feature_bytes;
        made->planes = calloc(n * made->plane_floats, sizeof *made->planes);
        made->features = calloc(n, made->feature_bytes);
        made->batch = calloc(n, sizeof *made->batch);
        if (!made->planes || !made->features || !made->batch)
            st = fail(e, STATUS_NO_MEMORY, "vision service: a batch of %zu images", n);
    }
    if (st != STATUS_OK) {
        vision_service_close(&made);
        return st;
    }
    log_info("vision_ready", "device=\"%s\" batch=%d bytes=%zu", ops_device_text(made->ctx),
             settings->max_images, vision_encoder_device_bytes(made->encoder));
    *s = made;
    return STATUS_OK;
}

void vision_service_close(vision_service **s) {
    if (!*s) return;
    while ((*s)->tasks) free_task(*s, (*s)->tasks);
    for (job *j; (j = pop_job(*s));) job_free(&j);
    vision_encoder_close(&(*s)->encoder);
    ops_close(&(*s)->ctx);
    free((*s)->batch);
    free((*s)->features);
    free((*s)->planes);
    buf_deinit(&(*s)->payload);
    buf_deinit(&(*s)->stored);
    free(*s);
    *s = NULL;
}
