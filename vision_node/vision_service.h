/* The vision node's work: ENCODE of an image or a bundle of them in, features in the cache, ENCODED out.
 *
 *     vision_service *s;
 *     st = vision_service_open(&s, &parts, &settings, &e);
 *     worker_handler h = vision_service_handler(s);
 *     st = worker_open(&w, ..., &h, &e);
 *     vision_service_attach(s, w);
 *
 * The handler runs on one thread, the worker's computing thread, and has threads of its own behind it. Open and close
 * from any one thread, before worker_run and after it; close comes before worker_close, whom those threads wake. Close
 * waits for images that are being decoded, each at most the decoder's wall_ms. */
#ifndef VISION_NODE_VISION_SERVICE_H
#define VISION_NODE_VISION_SERVICE_H

#include "cache/cache.h"
#include "model/model.h"
#include "ops/ops.h"
#include "vision_node/image_decoder.h"
#include "worker/worker.h"

typedef struct vision_service vision_service;

/* Borrowed; all of them outlive the service. */
typedef struct {
    const model *model; /* with MODEL_PART_TOWER */
    cache *cache;       /* looked into */
    cache *store;       /* features are put there; another handle of it, so that looks pass by, or the same */
    image_decoder *decoder;
} vision_service_parts;

typedef struct {
    ops_settings ops;
    int max_images; /* encoded in one run, 1 .. VISION_ENCODER_IMAGES_MAX */
} vision_service_settings;

/* What suits a device of this name; ops.n_threads is left 0. */
vision_service_settings vision_service_defaults(const char *device);

MUST_USE status vision_service_open(vision_service **s, const vision_service_parts *parts,
                                    const vision_service_settings *settings, err *e);
void vision_service_close(vision_service **s);

/* How many jobs keep it busy: one batch of them read, one encoded, one stored; where runs overlap, one more encoded. */
uint32_t vision_service_slots(const vision_service *s);

worker_handler vision_service_handler(vision_service *s);
void vision_service_attach(vision_service *s, worker *w);

#endif
