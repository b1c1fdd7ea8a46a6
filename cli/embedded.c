/* Three threads and one process: the broker, a vision worker and a language worker, each with the
 * threads it brings itself. They share the opened model and one cache handle, and talk over inproc
 * exactly as they would over tcp. */
#include "cli/embedded.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "broker/broker.h"
#include "lm_node/lm_service.h"
#include "vision_node/vision_service.h"

#define FRONT        "inproc://front"
#define BACK         "inproc://back"
#define SLOT_BYTES   (UINT64_C(256) << 20)

/* One of the three: what runs, and how it ended. */
typedef struct {
    pthread_t thread;
    bool is_started;
    worker *worker; /* NULL for the broker */
    broker *broker;
    const char *name;
} role;

struct embedded {
    void *zmq_context;
    image_decoder *decoder;
    model *model;
    cache *cache;
    vision_service *vision;
    lm_service *lm;
    uint32_t lm_slots; /* items it takes at once */
    role roles[3];
};

embedded_settings embedded_defaults(void) {
    return (embedded_settings){.device = "cpu", .cache_bytes = UINT64_C(256) << 20};
}

static void *role_main(void *arg) {
    role *r = arg;
    err e;
    status st = r->broker ? broker_run(r->broker, &e) : worker_run(r->worker, &e);
    if (st != STATUS_OK) log_error("role_ended", "role=%s reason=\"%s\"", r->name, e.text);
    return NULL;
}

static status start_role(role *r, const char *name, err *e) {
    r->name = name;
    if (pthread_create(&r->thread, NULL, role_main, r) != 0)
        return fail(e, STATUS_NO_MEMORY, "starting the thread of the %s", name);
    r->is_started = true;
    return STATUS_OK;
}

static status start_worker(embedded *em, role *r, const char *name, uint32_t kind, uint32_t slots,
                           const worker_handler *handler, err *e) {
    worker_settings settings = {.name = name, .role = kind, .slots = slots, .slot_bytes = SLOT_BYTES};
    memcpy(settings.model_fingerprint, model_fingerprint(em->model), HASH_SHA256_BYTES);
    memcpy(settings.tower_fingerprint, model_tower_fingerprint(em->model), HASH_SHA256_BYTES);
    return worker_open(&r->worker, em->zmq_context, BACK, &settings, handler, e);
}

static status open_shared(embedded *em, const embedded_settings *settings, err *e) {
    image_decoder_limits limits = {.image.pixels_max = settings->max_pixels, .wall_ms = settings->decode_ms};
    cache_settings cache_wishes = cache_settings_default();
    cache_wishes.memory_bytes = settings->cache_bytes;
    /* The decoder forks, so it comes before everything that has threads or weighs anything. */
    status st = image_decoder_open(&em->decoder, image_decoder_default_workers(), &limits, e);
    if (st == STATUS_OK) st = model_open(&em->model, &settings->model, e);
    if (st == STATUS_OK)
        st = cache_open(&em->cache, settings->cache_url ? settings->cache_url : "memory:",
                        &cache_wishes, e);
    return st;
}

static status open_services(embedded *em, const embedded_settings *settings, err *e) {
    vision_service_parts vision = {em->model, em->cache, em->cache, em->decoder};
    lm_service_parts lm = {em->model, em->cache};
    vision_service_settings vision_wishes = vision_service_defaults(settings->device);
    lm_service_settings lm_wishes = lm_service_defaults(settings->device);
    vision_wishes.ops.n_threads = lm_wishes.ops.n_threads = settings->n_threads;
    vision_wishes.ops.is_fast = lm_wishes.ops.is_fast = settings->is_fast;
    if (settings->kv_bytes) lm_wishes.kv_bytes = settings->kv_bytes;
    em->lm_slots = (uint32_t)lm_wishes.max_questions;
    status st = vision_service_open(&em->vision, &vision, &vision_wishes, e);
    if (st == STATUS_OK) st = lm_service_open(&em->lm, &lm, &lm_wishes, e);
    return st;
}

static status start_roles(embedded *em, err *e) {
    broker_settings wishes = broker_settings_default();
    wishes.front = FRONT;
    wishes.back = BACK;
    wishes.drain_ms = 0; /* the client has what it wants by now, or was interrupted */
    em->zmq_context = wire_context_open();
    worker_handler vision = vision_service_handler(em->vision), lm = lm_service_handler(em->lm);
    role *r = em->roles;
    status st = broker_open(&r[0].broker, em->zmq_context, &wishes, e);
    if (st == STATUS_OK)
        st = start_worker(em, &r[1], "embedded vision", MESSAGE_ROLE_VISION, vision_service_slots(em->vision),
                          &vision, e);
    if (st == STATUS_OK)
        st = start_worker(em, &r[2], "embedded lm", MESSAGE_ROLE_LM, em->lm_slots,
                          &lm, e);
    if (st != STATUS_OK) return st;
    vision_service_attach(em->vision, r[1].worker);
    lm_service_attach(em->lm, r[2].worker);
    st = start_role(&r[0], "broker", e);
    if (st == STATUS_OK) st = start_role(&r[1], "vision node", e);
    if (st == STATUS_OK) st = start_role(&r[2], "language node", e);
    return st;
}

status embedded_open(embedded **em, const embedded_settings *settings, err *e) {
    *em = NULL;
    embedded *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "embedded mode");
    status st = open_shared(made, settings, e);
    if (st == STATUS_OK) st = open_services(made, settings, e);
    if (st == STATUS_OK) st = start_roles(made, e);
    if (st != STATUS_OK) {
        embedded_close(&made);
        return st;
    }
    *em = made;
    return STATUS_OK;
}

void *embedded_context(const embedded *em) { return em->zmq_context; }

const char *embedded_endpoint(const embedded *em) {
    (void)em;
    return FRONT;
}

void embedded_close(embedded **em) {
    if (!*em) return;
    embedded *m = *em;
    /* The workers first: they say goodbye to a broker that still listens. */
    for (int i = 2; i >= 0; i--) {
        role *r = &m->roles[i];
        if (r->worker) worker_stop(r->worker);
        if (r->broker) broker_stop(r->broker);
        if (r->is_started) CHECK(pthread_join(r->thread, NULL) == 0, "a role's thread ends");
    }
    vision_service_close(&m->vision);
    for (int i = 2; i >= 0; i--) {
        worker_close(&m->roles[i].worker);
        broker_close(&m->roles[i].broker);
    }
    wire_context_close(&m->zmq_context);
    lm_service_close(&m->lm);
    cache_close(&m->cache);
    model_close(&m->model);
    image_decoder_close(&m->decoder);
    free(m);
    *em = NULL;
}
