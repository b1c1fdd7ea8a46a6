/* Three things go on at once, and the worker's thread, which encodes, waits for none of the others:
 *
 *     readers (a crew)                  worker's thread              storers (a crew)
 *     open a task: join, check, split
 *     read a picture: cache, decode  ─► encode a batch of pictures ─► put features into the cache
 *                                       answer tasks               ◄─
 *
 * The worker's thread gives work out and takes it back; tasks and the state of pictures are its alone. A device works
 * on its own between the start and the finish of a batch, so giving out and answering are done in between, and a whole
 * batch that is ready begins behind the one that is computed, so that its pixels cross meanwhile.
 *
 * There are three batches of pictures: one is read ahead while one is encoded and one stored; four where one waits
 * behind the one that is encoded. That bounds everything:
 * a reader or storer who is slow leaves no free picture, and images of tasks wait for one, in order. An image that is
 * on its way already is not begun a second time. What is ready when the encoder is free makes the next batch, so a
 * lone image waits for nobody. */
#include "vision_node/vision_service.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "vision_node/crew.h"
#include "vision_node/picture.h"
#include "vision_node/vision_encoder.h"
#include "vision_node/vision_task.h"

#define READERS_AHEAD   2 /* have a file at hand when a process falls free */
#define STORERS         4 /* more than one for several servers: a server takes one put at a time */
#define READ_AND_STORED 2 /* batches, beside those that are encoded */

typedef struct {
    picture **pictures; /* [max_images] */
    int n;
    int64_t start_us;
} batch;

struct vision_service {
    vision_service_settings settings;
    worker *worker;
    ops_ctx *ctx;
    vision_encoder *encoder;
    picture_kit kit;
    crew *readers, *storers;
    void *memory;          /* of all pixels and features */
    size_t memory_bytes;
    picture *pictures;     /* [n_pictures] */
    int n_pictures;
    picture **ready;       /* [n_pictures], read and not encoded, in order */
    int n_ready;
    batch batches[VISION_ENCODER_RUNS_MAX]; /* under way, the oldest first, then round */
    int n_runs, n_running, oldest;
    int64_t last_end_us; /* of a batch: what began before it waited for it */
    task *tasks, **last_task; /* that are not gone, in order */
    struct {
        uint64_t encoded, cached, handed_over, failed, encode_us, decode_us;
    } counts;
};

/* ---- the end of tasks ------------------------------------------------------------------------- */

static void let_task_go(vision_service *s, task *t) {
    if (t->work || t->n_lent > 0) return;
    for (task **at = &s->tasks; *at; at = &(*at)->next) {
        if (*at != t) continue;
        *at = t->next;
        if (!*at) s->last_task = at;
        break;
    }
    task_close(&t);
}

static void fail_task(vision_service *s, task *t, status code, const char *text) {
    s->counts.failed++;
    worker_answer_failed(s->worker, &t->work, code, text);
    let_task_go(s, t);
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
    let_task_go(s, t);
}

/* Answers a task all of whose images are through. Otherwise it stays. */
static void finish_task(vision_service *s, task *t) {
    if (!task_is_through(t)) return;
    wire_payload *handed = NULL;
    err e;
    size_t n = (size_t)t->n_images * s->kit.blob_bytes;
    status st = t->travels ? wire_payload_open(&handed, t->blobs, n, &e) : STATUS_OK;
    if (st == STATUS_OK) answer_task(s, t, handed);
    else fail_task(s, t, st, e.text);
}

/* ---- what comes of a picture ------------------------------------------------------------------ */

static void through(vision_service *s, task_image *image, bool was_here) {
    if (was_here && !image->was_here) s->counts.cached++;
    image->is_through = true;
    image->was_here = was_here;
}

static void report_picture(task *t, const image_info *info) {
    bool is_turned = t->applies_exif && info->orientation >= 5;
    t->report.width = (uint32_t)(is_turned ? info->height : info->width);
    t->report.height = (uint32_t)(is_turned ? info->width : info->height);
    t->report.orientation = (uint32_t)info->orientation;
}

/* The cache did not take features of the task: all of them go with the answer, and those that were left to the cache
 * are asked for again. */
static status make_travel(const vision_service *s, task *t, err *e) {
    size_t n = (size_t)t->n_images * s->kit.blob_bytes;
    if (n > MESSAGE_IMAGE_BYTES_MAX)
        return fail(e, STATUS_UNAVAILABLE, "the cache is away, and features of %zu bytes cannot travel", n);
    t->travels = true;
    for (int i = 0; i < t->n_images; i++) t->images[i].is_through = t->images[i].has_blob;
    return STATUS_OK;
}

/* Image i was found in the cache. It stays as it was, and is asked for again, if its task may not take that or needs
 * the features themselves. */
static status take_found(vision_service *s, task *t, int i, picture *p, err *e) {
    blob features = picture_features(p);
    if (!t->trusts_cache || (t->travels && !p->wants_features)) return STATUS_OK;
    status st = t->travels ? task_keep(t, i, &features, e) : STATUS_OK;
    if (st == STATUS_OK) through(s, &t->images[i], true);
    return st;
}

/* Image i was encoded, and the cache took it or not. */
static status take_encoded(vision_service *s, task *t, int i, picture *p, err *e) {
    task_image *image = &t->images[i];
    blob features = picture_features(p);
    status st = p->is_stored || t->travels ? STATUS_OK : make_travel(s, t, e);
    if (st == STATUS_OK && t->travels) st = task_keep(t, i, &features, e);
    if (st != STATUS_OK) return st;
    through(s, image, !image->asked_first);
    if (i == 0) report_picture(t, &p->info);
    if (image->asked_first) {
        t->report.decode_us += p->decode_us;
        t->report.encode_us += p->encode_us;
    }
    return STATUS_OK;
}

static status take_failed(vision_service *s, task *t, int i, picture *p, err *e) {
    (void)s;
    if (t->n_images == 1) *e = p->why;
    else (void)fail(e, p->read, "image %d of %d: %.400s", i + 1, t->n_images, p->why.text);
    return p->read;
}

/* The way of a picture ends: each image that waits for it takes what came of it, and the picture is free. */
static void end_picture(vision_service *s, picture *p,
                        status (*take)(vision_service *s, task *t, int i, picture *p, err *e)) {
    for (task *t = s->tasks, *next; t; t = next) {
        next = t->next;
        bool is_concerned = false;
        status st = STATUS_OK;
        err e;
        for (int i = 0; t->work && i < t->n_images && st == STATUS_OK; i++) {
            if (t->images[i].picture != p) continue;
            t->images[i].picture = NULL;
            is_concerned = true;
            st = take(s, t, i, p, &e);
        }
        if (st != STATUS_OK) fail_task(s, t, st, e.text);
        else if (is_concerned) finish_task(s, t);
    }
    p->stage = PICTURE_FREE;
}

static bool is_wanted(const vision_service *s, const picture *p) {
    for (const task *t = s->tasks; t; t = t->next)
        for (int i = 0; t->work && i < t->n_images; i++)
            if (t->images[i].picture == p) return true;
    return false;
}

/* ---- reading ---------------------------------------------------------------------------------- */

static void open_task(crew_work *work) {
    task *t = (task *)work;
    vision_service *s = t->owner;
    task_open_files(t, model_tower_fingerprint(s->kit.parts.model));
}

static void task_is_open(crew_work *work) {
    task *t = (task *)work;
    vision_service *s = t->owner;
    t->n_lent--;
    t->n_images = (int)t->files.n; /* until now nobody looks at its images */
    /* Several images once they were not found together: the cache may be too small for them. */
    t->travels = t->is_bundle && !t->trusts_cache && (size_t)t->n_images * s->kit.blob_bytes <= MESSAGE_IMAGE_BYTES_MAX;
    if (t->work && t->opened != STATUS_OK) fail_task(s, t, t->opened, t->why.text);
    else let_task_go(s, t);
}

static void picture_is_read(crew_work *work) {
    picture *p = (picture *)work;
    vision_service *s = p->owner;
    task *lender = p->lender;
    s->counts.decode_us += p->decode_us;
    if (p->read != STATUS_OK) end_picture(s, p, take_failed);
    else if (p->was_found) end_picture(s, p, take_found);
    else {
        p->stage = PICTURE_READY;
        s->ready[s->n_ready++] = p;
    }
    lender->n_lent--;
    let_task_go(s, lender);
}

static picture *find_picture(const vision_service *s, const cache_key *key) {
    for (int i = 0; i < s->n_pictures; i++) {
        picture *p = &s->pictures[i];
        if (p->stage != PICTURE_FREE && strcmp(p->key.text, key->text) == 0) return p;
    }
    return NULL;
}

static picture *free_picture(const vision_service *s) {
    for (int i = 0; i < s->n_pictures; i++)
        if (s->pictures[i].stage == PICTURE_FREE) return &s->pictures[i];
    return NULL;
}

static void read_picture(vision_service *s, picture *p, task *t, int i) {
    p->stage = PICTURE_READING;
    p->key = t->images[i].key;
    p->lender = t;
    p->file = t->files.files[i];
    p->applies_exif = t->applies_exif;
    p->trusts_cache = t->trusts_cache;
    p->wants_features = t->travels;
    p->work.run = picture_read;
    p->work.done = picture_is_read;
    t->n_lent++;
    crew_give(s->readers, &p->work);
}

/* Lets images of tasks be read, in order, as long as there is a free picture. */
static void read_more(vision_service *s) {
    picture *unused = free_picture(s);
    for (task *t = s->tasks; t && unused; t = t->next)
        for (int i = 0; t->work && i < t->n_images && unused; i++) {
            task_image *image = &t->images[i];
            if (image->is_through || image->picture) continue;
            image->picture = find_picture(s, &image->key);
            image->asked_first = !image->picture;
            if (image->picture) continue;
            image->picture = unused;
            read_picture(s, unused, t, i);
            unused = free_picture(s);
        }
}

/* ---- encoding and storing --------------------------------------------------------------------- */

static void picture_is_stored(crew_work *work) {
    picture *p = (picture *)work;
    end_picture(p->owner, p, take_encoded);
}

/* What nobody waits for any more is not encoded. */
static void fill_batch(vision_service *s, batch *b) {
    int n_left = 0;
    for (int i = 0; i < s->n_ready; i++) {
        picture *p = s->ready[i];
        if (b->n == s->settings.max_images) s->ready[n_left++] = p;
        else if (is_wanted(s, p)) b->pictures[b->n++] = p;
        else p->stage = PICTURE_FREE;
    }
    s->n_ready = n_left;
}

static void end_batch(vision_service *s, batch *b, status ran, const err *why) {
    int64_t now_us = clock_now_us(), start_us = b->start_us > s->last_end_us ? b->start_us : s->last_end_us;
    int n = b->n;
    uint64_t each_us = (uint64_t)(now_us - start_us) / (uint64_t)n;
    s->last_end_us = now_us;
    b->n = 0;
    for (int i = 0; i < n; i++) {
        picture *p = b->pictures[i];
        if (ran != STATUS_OK) {
            p->read = ran;
            p->why = *why;
            end_picture(s, p, take_failed);
            continue;
        }
        p->encode_us = each_us;
        s->counts.encode_us += each_us;
        s->counts.encoded++;
        p->stage = PICTURE_STORING;
        p->work.run = picture_store;
        p->work.done = picture_is_stored;
        crew_give(s->storers, &p->work);
    }
}

/* Begins with what is ready, if anything is. */
static void start_batch(vision_service *s) {
    batch *b = &s->batches[(s->oldest + s->n_running) % s->n_runs];
    const unsigned char *pixels[VISION_ENCODER_IMAGES_MAX];
    void *features[VISION_ENCODER_IMAGES_MAX];
    err e;
    fill_batch(s, b);
    if (b->n == 0) return;
    for (int i = 0; i < b->n; i++) {
        b->pictures[i]->stage = PICTURE_ENCODING;
        pixels[i] = b->pictures[i]->pixels;
        features[i] = b->pictures[i]->features;
    }
    b->start_us = clock_now_us();
    status st = vision_encoder_start(s->encoder, pixels, b->n, features, &e);
    if (st == STATUS_OK) s->n_running++;
    else end_batch(s, b, st, &e);
}

static void finish_batch(vision_service *s) {
    err e;
    batch *b = &s->batches[s->oldest];
    s->oldest = (s->oldest + 1) % s->n_runs;
    s->n_running--;
    status st = vision_encoder_finish(s->encoder, &e);
    end_batch(s, b, st, &e);
}

/* ---- the worker's handler --------------------------------------------------------------------- */

static void service_start(void *self, job *j) {
    vision_service *s = self;
    task *t = task_open(j);
    if (!t) {
        worker_answer_failed(s->worker, &j, STATUS_NO_MEMORY, "encode: no memory");
        return;
    }
    t->owner = s;
    *s->last_task = t;
    s->last_task = &t->next;
    t->opening = (crew_work){.run = open_task, .done = task_is_open};
    t->n_lent = 1;
    crew_give(s->readers, &t->opening);
}

static void service_cancel(void *self, const item_id *item, uint32_t attempt) {
    vision_service *s = self;
    for (task *t = s->tasks; t; t = t->next) {
        if (!task_is(t, item, attempt)) continue;
        worker_forget(s->worker, &t->work);
        let_task_go(s, t);
        return;
    }
}

static bool service_step(void *self) {
    vision_service *s = self;
    crew_collect(s->readers);
    if (s->n_running == 0) start_batch(s);
    crew_collect(s->storers);
    read_more(s);
    if (s->n_running > 0 && s->n_running < s->n_runs && s->n_ready >= s->settings.max_images) start_batch(s);
    if (s->n_running == 0) return false;
    finish_batch(s);
    return true;
}

static size_t service_metrics(void *self, metric *out, size_t max) {
    vision_service *s = self;
    const vision_service_parts *parts = &s->kit.parts;
    cache_counters looked = cache_counters_read(parts->cache), stored = cache_counters_read(parts->store);
    const metric all[] = {
        {"images_encoded", (double)s->counts.encoded},
        {"images_cached", (double)s->counts.cached},
        {"images_handed_over", (double)s->counts.handed_over},
        {"images_failed", (double)s->counts.failed},
        {"decode_seconds", (double)s->counts.decode_us * 1e-6},
        {"encode_seconds", (double)s->counts.encode_us * 1e-6},
        {"cache_puts", (double)stored.puts},
        {"cache_errors", (double)(stored.errors + (parts->cache == parts->store ? 0 : looked.errors))},
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

/* An operator is the longest that nothing is heard of a batch. */
static void operator_done(void *user) { worker_made_progress(user); }

void vision_service_attach(vision_service *s, worker *w) {
    s->worker = w;
    ops_set_progress(s->ctx, operator_done, w);
}

/* ---- opening and closing ---------------------------------------------------------------------- */

vision_service_settings vision_service_defaults(const char *device) {
    return (vision_service_settings){.ops = {.device = device}, .max_images = strncmp(device, "cpu", 3) == 0 ? 8 : 32};
}

uint32_t vision_service_slots(const vision_service *s) { return (uint32_t)s->n_pictures; }

static void work_is_done(void *user) { worker_wake(((vision_service *)user)->worker); }

static size_t round_up(size_t n_bytes) { return (n_bytes + 63) / 64 * 64; }

static status open_pictures(vision_service *s, err *e) {
    size_t each = round_up(s->kit.pixel_bytes) + round_up(s->kit.feature_bytes);
    s->n_runs = vision_encoder_n_runs(s->encoder);
    s->n_pictures = (READ_AND_STORED + s->n_runs) * s->settings.max_images;
    s->pictures = calloc((size_t)s->n_pictures, sizeof *s->pictures);
    s->ready = calloc((size_t)s->n_pictures, sizeof *s->ready);
    bool has_all = s->pictures && s->ready;
    for (int i = 0; i < s->n_runs; i++) {
        s->batches[i].pictures = calloc((size_t)s->settings.max_images, sizeof *s->batches[i].pictures);
        has_all &= s->batches[i].pictures != NULL;
    }
    if (!has_all)
        return fail(e, STATUS_NO_MEMORY, "vision service: %d images", s->n_pictures);
    s->memory_bytes = (size_t)s->n_pictures * each;
    status st = ops_host_open(s->ctx, &s->memory, s->memory_bytes, e);
    if (st != STATUS_OK) return st;
    for (int i = 0; i < s->n_pictures; i++) {
        unsigned char *memory = (unsigned char *)s->memory + (size_t)i * each;
        s->pictures[i] = (picture){.kit = &s->kit, .owner = s, .pixels = memory,
                                   .features = memory + round_up(s->kit.pixel_bytes)};
    }
    return STATUS_OK;
}

static status open_parts(vision_service *s, err *e) {
    const model *m = s->kit.parts.model;
    size_t size = (size_t)model_get_config(m)->preprocess.size;
    status st = ops_open(&s->ctx, &s->settings.ops, e);
    if (st == STATUS_OK) st = vision_encoder_open(&s->encoder, s->ctx, m, s->settings.max_images, e);
    if (st != STATUS_OK) return st;
    s->kit.pixel_bytes = 3 * size * size;
    s->kit.feature_bytes = vision_encoder_feature_bytes(s->encoder);
    s->kit.blob_bytes = BLOB_HEADER_BYTES + s->kit.feature_bytes;
    st = open_pictures(s, e);
    int n_readers = image_decoder_n_workers(s->kit.parts.decoder) + READERS_AHEAD;
    if (st == STATUS_OK) st = crew_open(&s->readers, n_readers, work_is_done, s, e);
    if (st == STATUS_OK) st = crew_open(&s->storers, STORERS, work_is_done, s, e);
    return st;
}

status vision_service_open(vision_service **s, const vision_service_parts *parts,
                           const vision_service_settings *settings, err *e) {
    *s = NULL;
    vision_service *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "vision service");
    made->kit.parts = *parts;
    made->settings = *settings;
    made->last_task = &made->tasks;
    status st = open_parts(made, e);
    if (st != STATUS_OK) {
        vision_service_close(&made);
        return st;
    }
    log_info("vision_ready", "device=\"%s\" batch=%d bytes=%zu decoders=%d", ops_device_text(made->ctx),
             settings->max_images, vision_encoder_device_bytes(made->encoder), image_decoder_n_workers(parts->decoder));
    *s = made;
    return STATUS_OK;
}

void vision_service_close(vision_service **out) {
    vision_service *s = *out;
    if (!s) return;
    crew_close(&s->readers);
    crew_close(&s->storers);
    for (task *t = s->tasks, *next; t; t = next) {
        next = t->next;
        task_close(&t);
    }
    for (; s->n_running > 0; s->n_running--) {
        err e;
        IGNORE(vision_encoder_finish(s->encoder, &e), "nobody waits for it any more; its memory is free now");
    }
    ops_host_close(s->ctx, &s->memory, s->memory_bytes);
    vision_encoder_close(&s->encoder);
    ops_close(&s->ctx);
    for (int i = 0; i < s->n_runs; i++) free(s->batches[i].pictures);
    free(s->ready);
    free(s->pictures);
    free(s);
    *out = NULL;
}
