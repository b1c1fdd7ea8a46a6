/* Where vision nodes leave features and language-model nodes find them: memory of this process, or Redis.
 *
 *     cache_settings settings = cache_settings_default();
 *     cache *c = NULL;
 *     st = cache_open(&c, "redis://:secret@10.0.0.5:6379/2,redis://10.0.0.6:6379", &settings, &e);
 *     st = cache_get(c, &b, &storage, &key);   // NOT_FOUND and UNAVAILABLE both mean: encode it
 *     if (st != STATUS_OK) st = cache_put(c, &key, &b);
 *     cache_close(&c);
 *
 * URLs
 *   memory:                                     bounded, of this process, least recently used goes first
 *   redis://[[user]:password@]host[:port][/db]  port 6379, db 0 unless said; IPv6 hosts in brackets
 *   redis+unix://[[user]:password@]/path[?db=N] over a unix socket
 * Several Redis servers stand in one text, apart by commas; each key lives on one of them, chosen by
 * rendezvous hashing, so that adding or removing one moves only its share of the keys. The name of a
 * server is its URL without user and password: written the same way on every node. In user and password
 * the characters @ : / , ? % are written as %40 and so on.
 *
 * A cache can make work faster, never wrong and never fail. What comes back was checked against its key
 * and checksum; anything else is deleted, counted and reported as a miss. A Redis that does not answer is
 * asked again with growing, jittered pauses and after CACHE_BREAKER_FAILURES failures in a row only once a
 * second; in between every call on its keys returns UNAVAILABLE at once.
 *
 * Threads: a handle may be used by any number of threads. Calls block: at most the connect time-out plus
 * the command time-out of one server, plus waiting for other threads of the same handle, because a handle
 * has one connection per server. Threads that want to read side by side open a handle each. Never call
 * from a poll loop. */
#ifndef CACHE_CACHE_H
#define CACHE_CACHE_H

#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "cache/blob.h"
#include "cache/cache_key.h"

#define CACHE_SERVERS_MAX       16
#define CACHE_BREAKER_FAILURES  5

typedef struct {
    uint64_t memory_bytes; /* memory backend: most bytes held, entries' book-keeping included */
    int64_t ttl_ms;        /* Redis: how long an entry lives, +-10 % so that they do not end together */
    int connect_timeout_ms;
    int command_timeout_ms; /* for a whole command and its answer, also when it comes in small pieces */
} cache_settings;

/* 256 MB, 7 days, 1000 ms, 250 ms. */
cache_settings cache_settings_default(void);

typedef struct {
    uint64_t hits, misses;
    uint64_t corrupt;     /* values that were not intact blobs; each also counts as a miss */
    uint64_t errors;      /* calls that ended with UNAVAILABLE */
    uint64_t puts;        /* that succeeded */
    uint64_t evictions;   /* memory: entries given up for room */
    uint64_t bytes_read, bytes_written; /* of blobs */
    uint64_t bytes_held, n_held;        /* memory: now */
} cache_counters;

typedef struct cache cache;

/* BAD_ARGUMENT: the URL or a setting is wrong. UNAVAILABLE: a server refused the password or user, or the
 * database number; the text names it, without the password. A server that is not there is a warning in
 * the log and no error: its keys count as misses until it comes. */
MUST_USE status cache_open(cache **c, const char *url, const cache_settings *settings, err *e);
void cache_close(cache **c); /* NULL is fine */

/* Whether every server answers now; UNAVAILABLE with the first that does not and why. For programs that
 * want to tell their user at start. Waits up to five seconds for a server that is loading its data. */
MUST_USE status cache_check(cache *c, err *e);

/* b's values point into storage, which is cleared first and must allow BLOB_BYTES_MAX or as much as the
 * caller accepts. NOT_FOUND: no such entry, or not an intact one. UNAVAILABLE: could not be asked. */
MUST_USE status cache_get(cache *c, blob *b, buf *storage, const cache_key *key);

/* Stores or replaces. TOO_LARGE: over BLOB_VALUES_MAX or the whole memory. UNAVAILABLE: not stored, as far
 * as we know. A blob whose shape and bytes do not belong together is our own mistake (CHECK). */
MUST_USE status cache_put(cache *c, const cache_key *key, const blob *b);

/* OK, NOT_FOUND or UNAVAILABLE. Says nothing about the entry being intact. Not counted as hit or miss. */
MUST_USE status cache_has(cache *c, const cache_key *key);

/* OK also when there was nothing. */
MUST_USE status cache_delete(cache *c, const cache_key *key);

cache_counters cache_counters_read(cache *c);

#endif
