/* Embedded mode: broker, vision node and language node on threads of this process, over inproc.
 * There is no second pipeline; a client connects to the endpoint as it would to a cluster.
 *
 *     embedded *em;
 *     st = embedded_open(&em, &settings, &e);      // before any thread or ZeroMQ context exists
 *     st = client_open(&c, embedded_context(em), embedded_endpoint(em), ...);
 *     ...
 *     client_close(&c);
 *     embedded_close(&em);                         // drains nothing: close the client first */
#ifndef CLI_EMBEDDED_H
#define CLI_EMBEDDED_H

#include <stdint.h>

#include "model/model.h"

typedef struct embedded embedded;

typedef struct {
    model_settings model;  /* all parts */
    const char *cache_url; /* NULL: bounded memory */
    const char *device;    /* "cpu", "cuda" or "cuda:N" */
    int n_threads;         /* 0: one per core */
    bool is_fast;          /* ops_settings */
    uint64_t kv_bytes;     /* memory for keys and values; 0: what suits the device */
    uint64_t cache_bytes;  /* of the memory cache */
    uint64_t max_pixels;   /* largest decoded image; 0: IMAGE_PIXELS_MAX */
    int decode_ms;         /* longest time for one image; 0: IMAGE_DECODER_WALL_MS */
} embedded_settings;

/* Defaults of everything but the model. */
embedded_settings embedded_defaults(void);

MUST_USE status embedded_open(embedded **em, const embedded_settings *settings, err *e);
void *embedded_context(const embedded *em);
const char *embedded_endpoint(const embedded *em);
void embedded_close(embedded **em);

#endif
