/* The language node's work: GENERATE in, tokens streamed while they come, GENERATED out.
 *
 *     lm_service *s;
 *     st = lm_service_open(&s, &parts, &settings, &e);
 *     worker_handler h = lm_service_handler(s);
 *     st = worker_open(&w, ..., &h, &e);
 *     lm_service_attach(s, w);
 *
 * One thread, the worker's computing thread; open and close from any one thread before and after. */
#ifndef LM_NODE_LM_SERVICE_H
#define LM_NODE_LM_SERVICE_H

#include "cache/cache.h"
#include "model/model.h"
#include "ops/ops.h"
#include "worker/worker.h"

typedef struct lm_service lm_service;

/* Borrowed; both outlive the service. */
typedef struct {
    const model *model; /* with MODEL_PART_DECODER */
    cache *cache;
} lm_service_parts;

typedef struct {
    ops_settings ops;
    uint64_t kv_bytes;  /* taken at open for keys and values */
    int max_questions;  /* generated at once */
    int chunk_rows;     /* rows of one step: prompts are computed in pieces of at most this many */
} lm_service_settings;

/* What suits a device of this name; ops.n_threads is left 0. */
lm_service_settings lm_service_defaults(const char *device);

MUST_USE status lm_service_open(lm_service **s, const lm_service_parts *parts,
                                const lm_service_settings *settings, err *e);
void lm_service_close(lm_service **s);

worker_handler lm_service_handler(lm_service *s);
void lm_service_attach(lm_service *s, worker *w);

#endif
