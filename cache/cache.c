/* The front of both backends: what is true of every cache is decided here once. A blob is checked on the
 * way out whatever kept it, a broken one is deleted, and every call is counted. */
#include "cache/cache.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "cache/cache_backend.h"

struct cache {
    const cache_backend *backend;
    void *self;
    _Atomic(uint64_t) hits, misses, corrupt, errors, puts, bytes_read, bytes_written;
};

cache_settings cache_settings_default(void) {
    return (cache_settings){.memory_bytes = UINT64_C(256) << 20,
                            .ttl_ms = INT64_C(7) * 24 * 3600 * 1000,
                            .connect_timeout_ms = 1000,
                            .command_timeout_ms = 250};
}

status cache_open(cache **c, const char *url, const cache_settings *settings, err *e) {
    *c = NULL;
    if (settings->ttl_ms < 1000 || settings->ttl_ms > INT64_C(3650) * 24 * 3600 * 1000)
        return fail(e, STATUS_BAD_ARGUMENT, "cache: a life of %lld ms, need 1 s to 10 years",
                    (long long)settings->ttl_ms);
    if (settings->connect_timeout_ms < 1 || settings->command_timeout_ms < 1)
        return fail(e, STATUS_BAD_ARGUMENT, "cache: time-outs of %d and %d ms, need at least 1",
                    settings->connect_timeout_ms, settings->command_timeout_ms);
    cache *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "cache: out of memory");
    status st;
    if (strcmp(url, "memory:") == 0) {
        made->backend = &cache_memory_backend;
        st = cache_memory_open(&made->self, settings, e);
    } else {
        made->backend = &cache_redis_backend;
        st = cache_redis_open(&made->self, url, settings, e);
    }
    if (st != STATUS_OK) {
        free(made);
        return st;
    }
    *c = made;
    return STATUS_OK;
}

void cache_close(cache **c) {
    if (!*c) return;
    (*c)->backend->close((*c)->self);
    free(*c);
    *c = NULL;
}

status cache_check(cache *c, err *e) { return c->backend->check(c->self, e); }

static status counted(cache *c, status st) {
    if (st == STATUS_UNAVAILABLE) atomic_fetch_add(&c->errors, 1);
    return st;
}

static status refuse(cache *c, const cache_key *key, const char *why) {
    log_warn("cache_entry_corrupt", "key=%s why=\"%s\"", key->text, why);
    atomic_fetch_add(&c->corrupt, 1);
    atomic_fetch_add(&c->misses, 1);
    IGNORE(c->backend->forget(c->self, key), "it will be written over or end by itself");
    return STATUS_NOT_FOUND;
}

status cache_get(cache *c, blob *b, buf *storage, const cache_key *key) {
    err why;
    buf_clear(storage);
    status st = c->backend->get(c->self, storage, key);
    /* A reader with a small buffer must not delete what others can read. */
    if (st == STATUS_TOO_LARGE && storage->max_bytes < BLOB_BYTES_MAX) st = STATUS_NOT_FOUND;
    if (st == STATUS_TOO_LARGE) return refuse(c, key, "larger than any blob");
    if (st == STATUS_BAD_FORMAT) return refuse(c, key, "not a text value");
    if (st == STATUS_NOT_FOUND) atomic_fetch_add(&c->misses, 1);
    if (st != STATUS_OK) return counted(c, st);
    if (blob_decode(b, (bytes){storage->data, storage->len_bytes}, key, &why) != STATUS_OK)
        return refuse(c, key, why.text);
    atomic_fetch_add(&c->hits, 1);
    atomic_fetch_add(&c->bytes_read, storage->len_bytes);
    return STATUS_OK;
}

status cache_put(cache *c, const cache_key *key, const blob *b) {
    if (b->values.len_bytes > BLOB_VALUES_MAX) return STATUS_TOO_LARGE;
    unsigned char header[BLOB_HEADER_BYTES];
    blob_header(header, key, b);
    status st = c->backend->put(c->self, key, (bytes){header, sizeof header}, b->values);
    if (st == STATUS_OK) {
        atomic_fetch_add(&c->puts, 1);
        atomic_fetch_add(&c->bytes_written, sizeof header + b->values.len_bytes);
    }
    return counted(c, st);
}

status cache_has(cache *c, const cache_key *key) {
    return counted(c, c->backend->has(c->self, key));
}

status cache_delete(cache *c, const cache_key *key) {
    return counted(c, c->backend->forget(c->self, key));
}

cache_counters cache_counters_read(cache *c) {
    cache_counters n = {.hits = atomic_load(&c->hits),
                        .misses = atomic_load(&c->misses),
                        .corrupt = atomic_load(&c->corrupt),
                        .errors = atomic_load(&c->errors),
                        .puts = atomic_load(&c->puts),
                        .bytes_read = atomic_load(&c->bytes_read),
                        .bytes_written = atomic_load(&c->bytes_written)};
    c->backend->count(c->self, &n);
    return n;
}
