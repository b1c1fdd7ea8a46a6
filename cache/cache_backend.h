/* What a place that keeps blobs must offer. Private to this folder.
 *
 * Backends move bytes: they know neither what a blob is nor whether it is intact; cache.c does, for all of
 * them. Every slot may be called from any thread. */
#ifndef CACHE_CACHE_BACKEND_H
#define CACHE_CACHE_BACKEND_H

#include "cache/cache.h"

typedef struct {
    /* Appends the stored bytes to out. OK, NOT_FOUND, UNAVAILABLE, TOO_LARGE when they do not fit into
     * out's maximum, BAD_FORMAT when what lies there is no string of bytes. */
    status (*get)(void *self, buf *out, const cache_key *key);
    /* Stores head followed by body. OK, TOO_LARGE, UNAVAILABLE. */
    status (*put)(void *self, const cache_key *key, bytes head, bytes body);
    status (*has)(void *self, const cache_key *key);    /* OK, NOT_FOUND, UNAVAILABLE */
    status (*forget)(void *self, const cache_key *key); /* OK, UNAVAILABLE */
    status (*check)(void *self, err *e);                /* OK, UNAVAILABLE */
    void (*count)(void *self, cache_counters *counters); /* adds what only the backend knows */
    void (*close)(void *self);
} cache_backend;

MUST_USE status cache_memory_open(void **self, const cache_settings *settings, err *e);
extern const cache_backend cache_memory_backend;

MUST_USE status cache_redis_open(void **self, const char *url, const cache_settings *settings, err *e);
extern const cache_backend cache_redis_backend;

#endif
