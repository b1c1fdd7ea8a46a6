/* A batch at a time: jobs are taken in order until the batch is full or none is left; those whose
 * features are in the cache are answered at once, the others are decoded, encoded together, stored and
 * answered. Features that cannot be stored travel with the answer.
 *
 * The node checks the SHA-256 of what it was sent, whoever says it is right: a wrong entry in the cache
 * would be served to everybody who asks about that image. */
#include "vision_node/vision_service.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "vision_node/vision_encoder.h"

typedef struct {
    job *work;
    cache_key key;
    vision_report report;
} pending;

struct vision_service {
    vision_service_parts parts;
    vision_service_settings settings;
    worker *worker;
    ops_ctx *ctx;
    vision_encoder *encoder;
    size_t plane_floats;   /* of one picture */
    size_t feature_bytes;  /* of one picture */
    float *planes;         /* [max_images, 3, size, size] */
    unsigned char *features;
    pending *batch;
    int n_batch;
    buf image;             /* one job's bytes, gathered from their frames */
    mailbox_letter *first; /* jobs not yet looked at, in order */
    mailbox_letter **last;
    struct {
        uint64_t encoded, cached, handed_over, failed, encode_us, decode_us;
    } counts;
};

static job *pop_job(vision_service *s) {
    job *j = (job *)s->first;
    if (!j) return NULL;
    s->first = j->letter.next;
    if (!s->first) s->last = &s->first;
    return j;
}

static bool applies_exif(const job *j) { return (j->wire.in.m.flags & MESSAGE_FLAG_EXIF) != 0; }

/* handed: the features themselves, for when the cache is away; NULL: they are in the cache. */
static void answer_encoded(vision_service *s, pending *p, wire_payload *handed) {
    buf report;
    buf_init(&report, 4096);
    message m = {.kind = MESSAGE_ENCODED};
    CHECK(vision_report_encode(&p->report, &report) == STATUS_OK, "a vision report is small");
    m.report = (bytes){report.data, report.len_bytes};
    worker_answer(s->worker, &p->work, &m, handed);
    buf_deinit(&report);
}

static void answer_failed(vision_service *s, pending *p, const err *e) {
    /* The same bytes will fail the same way on any node, unless the machine was at fault. */
    bool is_retryable = e->code == STATUS_NO_MEMORY || e->code == STATUS_UNAVAILABLE ||
                        e->code == STATUS_DEVICE || e->code == STATUS_IO;
    s->counts.failed++;
    worker_answer_failed(s->worker, &p->work, e->code, e->text, is_retryable);
}

static status gather_image(vision_service *s, const job *j, err *e) {
    if (!j->wire.payload) return fail(e, STATUS_BAD_MESSAGE, "encode: no image bytes");
    size_t n = wire_payload_bytes(j->wire.payload);
    buf_clear(&s->image);
    unsigned char *to = buf_reserve(&s->image, n);
    if (!to) return fail(e, STATUS_NO_MEMORY, "image of %zu bytes: no memory", n);
    wire_payload_copy(j->wire.payload, to);
    s->image.len_bytes = n;

    unsigned char digest[HASH_SHA256_BYTES];
    hash_sha256(digest, to, n);
    if (memcmp(digest, j->wire.in.m.image_sha256, sizeof digest) != 0)
        return fail(e, STATUS_BAD_MESSAGE, "image bytes do not have the SHA-256 they came with");
    return STATUS_OK;
}

/* Fills the next place of the batch's planes. */
static status decode_image(vision_service *s, pending *p, err *e) {
    int64_t start_us = clock_now_us();
    image_info info;
    status st = gather_image(s, p->work, e);
    if (st == STATUS_OK)
        st = image_decoder_run(s->parts.decoder, s->planes + (size_t)s->n_batch * s->plane_floats,
                               &info, (bytes){s->image.data, s->image.len_bytes},
                               applies_exif(p->work), &model_get_config(s->parts.model)->preprocess,
                               e);
    if (st != STATUS_OK) return st;
    bool is_turned = applies_exif(p->work) && info.orientation >= 5;
    p->report.width = (uint32_t)(is_turned ? info.height : info.width);
    p->report.height = (uint32_t)(is_turned ? info.width : info.height);
    p->report.orientation = (uint32_t)info.orientation;
    p->report.decode_us = (uint64_t)(clock_now_us() - start_us);
    s->counts.decode_us += p->report.decode_us;
    return STATUS_OK;
}

/* Answers the job, or puts it into the batch. */
static void take_job(vision_service *s, job *j) {
    const message *m = &j->wire.in.m;
    pending p = {.work = j, .report.orientation = 1};
    err e;
    cache_key_make(&p.key, model_tower_fingerprint(s->parts.model),
                   (cache_preprocess){VISION_PREPROCESS_VERSION, applies_exif(j)}, m->image_sha256);
    bool trusts_cache = !(m->flags & MESSAGE_FLAG_REENCODE);
    if (trusts_cache && cache_has(s->parts.cache, &p.key) == STATUS_OK) {
        p.report.features_cached = true;
        s->counts.cached++;
        answer_encoded(s, &p, NULL);
        return;
    }
    if (decode_image(s, &p, &e) != STATUS_OK) {
        answer_failed(s, &p, &e);
        return;
    }
    s->batch[s->n_batch++] = p;
}

static blob_dtype blob_dtype_of(ops_dtype dtype) {
    switch (dtype) {
    case OPS_DTYPE_F16: return BLOB_F16;
    case OPS_DTYPE_BF16: return BLOB_BF16;
    default: return BLOB_F32;
    }
}

/* The cache is away, or has no room for them: the features travel with the report, as the cache would
 * have held them. */
static status wrap_features(wire_payload **handed, const cache_key *key, const blob *features, err *e) {
    size_t n = BLOB_HEADER_BYTES + features->values.len_bytes;
    unsigned char *whole = malloc(n);
    if (!whole) return fail(e, STATUS_NO_MEMORY, "features of %zu bytes: no memory", n);
    blob_header(whole, key, features);
    memcpy(whole + BLOB_HEADER_BYTES, features->values.data, features->values.len_bytes);
    status st = wire_payload_open(handed, whole, n, e);
    free(whole);
    return st;
}

static void encode_batch(vision_service *s) {
    const model_config *config = model_get_config(s->parts.model);
    int64_t start_us = clock_now_us();
    err e;
    status st = vision_encoder_run(s->encoder, s->planes, s->n_batch, s->features, &e);
    uint64_t each_us = (uint64_t)(clock_now_us() - start_us) / (uint64_t)s->n_batch;
    for (int i = 0; i < s->n_batch; i++) {
        pending *p = &s->batch[i];
        if (st != STATUS_OK) {
            answer_failed(s, p, &e);
            continue;
        }
        blob features = {.dtype = blob_dtype_of(model_tower_dtype(s->parts.model)),
                         .n_tokens = (uint32_t)config->tower.n_tokens,
                         .width = (uint32_t)config->tower.hidden,
                         .values = {s->features + (size_t)i * s->feature_bytes, s->feature_bytes}};
        wire_payload *handed = NULL;
        if (cache_put(s->parts.cache, &p->key, &features) != STATUS_OK &&
            wrap_features(&handed, &p->key, &features, &e) != STATUS_OK) {
            answer_failed(s, p, &e);
            continue;
        }
        p->report.encode_us = each_us;
        s->counts.encode_us += each_us;
        s->counts.encoded++;
        s->counts.handed_over += handed != NULL;
        answer_encoded(s, p, handed);
    }
    s->n_batch = 0;
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
}

static bool service_step(void *self) {
    vision_service *s = self;
    for (job *j; s->n_batch < s->settings.max_images && (j = pop_job(s));) {
        take_job(s, j);
        worker_made_progress(s->worker);
    }
    if (s->n_batch > 0) encode_batch(s);
    return s->first != NULL;
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

status vision_service_open(vision_service **s, const vision_service_parts *parts,
                           const vision_service_settings *settings, err *e) {
    *s = NULL;
    vision_service *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "vision service");
    made->parts = *parts;
    made->settings = *settings;
    made->last = &made->first;
    buf_init(&made->image, MESSAGE_IMAGE_BYTES_MAX);

    int size = model_get_config(parts->model)->preprocess.size;
    size_t n = (size_t)settings->max_images;
    status st = ops_open(&made->ctx, &settings->ops, e);
    if (st == STATUS_OK)
        st = vision_encoder_open(&made->encoder, made->ctx, parts->model, settings->max_images, e);
    if (st == STATUS_OK) {
        made->plane_floats = 3 * (size_t)size * (size_t)size;
        made->feature_bytes = vision_encoder_feature_bytes(made->encoder);
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
    for (job *j; (j = pop_job(*s));) job_free(&j);
    vision_encoder_close(&(*s)->encoder);
    ops_close(&(*s)->ctx);
    free((*s)->batch);
    free((*s)->features);
    free((*s)->planes);
    buf_deinit(&(*s)->image);
    free(*s);
    *s = NULL;
}
