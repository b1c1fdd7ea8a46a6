/* Features in one or several Redis servers.
 *
 * Which server. Each key goes to the server with the highest hash of (server name, key), known as
 * rendezvous hashing: a server that is taken out of the list loses its keys to the others and no other
 * key moves. A server that is merely down keeps its keys: they are misses until it is back, because
 * writing them elsewhere would leave two copies and help only while it lasts.
 *
 * When to ask. A failure (no connection, no answer in time, nonsense) closes the link and sets the moment of
 * the next try: soon and at random after the first ones, one second (+-10 %) after CACHE_BREAKER_FAILURES
 * in a row. Before that moment calls return at once; at it, the next call is the probe, and since calls on
 * one server take turns there is never more than one. A link that had been idle may have been closed by
 * the other side: one fresh try is made before that counts as a failure; all our commands may be repeated.
 *
 * What an error answer means, by its first word:
 *   LOADING                            alive but not ready: asked again shortly, no failure
 *   OOM MISCONF READONLY NOREPLICAS    alive, refuses writes: puts pause for a second, reads go on
 *   WRONGTYPE                          somebody else's value under our key: as a corrupt blob
 *   NOAUTH WRONGPASS NOPERM and others a failure */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "cache/cache_backend.h"
#include "cache/redis_link.h"

#define BREAKER_PAUSE_US   CLOCK_SECOND_US
#define FIRST_PAUSE_US     (20 * CLOCK_MS_US) /* doubled with each failure below the breaker's limit */
#define LOADING_PAUSE_US   (100 * CLOCK_MS_US)
#define LOADING_PATIENCE_US (5 * CLOCK_SECOND_US)

typedef struct {
    redis_url url;
    pthread_mutex_t lock; /* guards what follows, and is held during a command */
    redis_link link;
    int n_failures;           /* in a row */
    int64_t next_try_us;      /* no call before */
    int64_t next_write_us;    /* no put before */
    rng random;
} server;

typedef struct {
    cache_settings settings;
    size_t n;
    server servers[CACHE_SERVERS_MAX];
} redis;

/* ---- which server ---- */

static server *server_of(redis *r, const cache_key *key) {
    server *best = &r->servers[0];
    uint64_t best_score = 0;
    for (size_t i = 0; i < r->n; i++) {
        unsigned char both[16];
        bytes_store_le(both, hash_xxh3(r->servers[i].url.name, strlen(r->servers[i].url.name)), 8);
        bytes_store_le(both + 8, hash_xxh3(key->text, CACHE_KEY_CHARS), 8);
        uint64_t score = hash_xxh3(both, sizeof both);
        if (i > 0 && score <= best_score) continue;
        best = &r->servers[i];
        best_score = score;
    }
    return best;
}

/* ---- when to ask; the server's lock is held ---- */

static int64_t jittered(server *s, int64_t around_us) {
    return (int64_t)((double)around_us * (0.9 + 0.2 * rng_unit(&s->random)));
}

static void note_failure(server *s, const err *why) {
    s->n_failures++;
    bool is_open = s->n_failures >= CACHE_BREAKER_FAILURES;
    int64_t pause_us = is_open ? jittered(s, BREAKER_PAUSE_US)
                               : (int64_t)(rng_unit(&s->random) *
                                           (double)(FIRST_PAUSE_US << s->n_failures));
    s->next_try_us = clock_now_us() + pause_us;
    redis_link_close(&s->link);
    if (s->n_failures == 1)
        log_warn("cache_server_failed", "server=%s why=\"%s\"", s->url.name, why->text);
    if (s->n_failures == CACHE_BREAKER_FAILURES)
        log_warn("cache_server_down", "server=%s why=\"%s\" until=back", s->url.name, why->text);
}

static void note_success(server *s) {
    if (s->n_failures >= CACHE_BREAKER_FAILURES)
        log_info("cache_server_back", "server=%s", s->url.name);
    s->n_failures = 0;
    s->next_try_us = 0;
}

static bool has_code(const redis_reply *r, const char *code) {
    size_t n = strlen(code);
    return strncmp(r->text, code, n) == 0 && (r->text[n] == ' ' || r->text[n] == '\0');
}

/* An error answer: OK is never among the results. */
static status judge_error(server *s, const redis_reply *r, err *e) {
    (void)fail(e, STATUS_UNAVAILABLE, "cache server %s: %s", s->url.name, r->text);
    if (has_code(r, "LOADING")) {
        s->next_try_us = clock_now_us() + jittered(s, LOADING_PAUSE_US);
    } else if (has_code(r, "OOM") || has_code(r, "MISCONF") || has_code(r, "READONLY") ||
               has_code(r, "NOREPLICAS")) {
        note_success(s);
        if (clock_now_us() >= s->next_write_us + BREAKER_PAUSE_US)
            log_warn("cache_server_refuses_writes", "server=%s why=\"%s\"", s->url.name, r->text);
        s->next_write_us = clock_now_us() + jittered(s, BREAKER_PAUSE_US);
    } else if (has_code(r, "WRONGTYPE")) {
        note_success(s);
        e->code = STATUS_BAD_FORMAT;
    } else {
        note_failure(s, e);
    }
    return e->code;
}

/* One command. OK: reply holds an answer that is no error. UNAVAILABLE, TOO_LARGE, BAD_FORMAT (WRONGTYPE);
 * BAD_ARGUMENT: the server refused password, user or database. */
static status exchange(redis *r, server *s, redis_reply *reply, buf *storage, const redis_word words[],
                       size_t n_words, err *e) {
    size_t len_before = storage ? storage->len_bytes : 0;
    status st = STATUS_UNAVAILABLE;
    for (int attempt = 0; attempt < 2; attempt++) {
        bool was_open = s->link.context != NULL;
        if (!was_open) {
            st = redis_link_open(&s->link, &s->url, r->settings.connect_timeout_ms, e);
            if (st != STATUS_OK) break;
        }
        err why;
        int64_t deadline_us = clock_now_us() + r->settings.command_timeout_ms * CLOCK_MS_US;
        st = redis_link_call(&s->link, reply, storage, words, n_words, deadline_us, &why);
        if (st != STATUS_OK)
            (void)fail(e, st, "cache server %s: %s", s->url.name, why.text);
        if (st != STATUS_UNAVAILABLE || !was_open) break; /* only a stale link gets a second try */
        if (storage) storage->len_bytes = len_before;
    }
    if (st == STATUS_OK && reply->kind == REDIS_ERROR) return judge_error(s, reply, e);
    if (st == STATUS_OK || st == STATUS_TOO_LARGE) {
        note_success(s); /* it answered, if with more than we take */
        return st;
    }
    note_failure(s, e);
    return st == STATUS_BAD_ARGUMENT ? st : STATUS_UNAVAILABLE;
}

typedef enum { CALL_READS, CALL_WRITES } call_kind;

static status call(redis *r, server *s, call_kind kind, redis_reply *reply, buf *storage,
                   const redis_word words[], size_t n_words) {
    err why;
    status st = STATUS_UNAVAILABLE;
    (void)pthread_mutex_lock(&s->lock);
    int64_t now_us = clock_now_us();
    bool may_call = now_us >= s->next_try_us && (kind == CALL_READS || now_us >= s->next_write_us);
    if (may_call) st = exchange(r, s, reply, storage, words, n_words, &why);
    (void)pthread_mutex_unlock(&s->lock);
    return st == STATUS_BAD_ARGUMENT ? STATUS_UNAVAILABLE : st;
}

/* ---- the slots ---- */

static status redis_get(void *self, buf *out, const cache_key *key) {
    redis_reply reply;
    redis_word words[] = {redis_word_of("GET"), redis_word_of(key->text)};
    status st = call(self, server_of(self, key), CALL_READS, &reply, out, words, 2);
    if (st != STATUS_OK) return st;
    return reply.kind == REDIS_TEXT  ? STATUS_OK
           : reply.kind == REDIS_NIL ? STATUS_NOT_FOUND
                                     : STATUS_UNAVAILABLE;
}

static status redis_put(void *self, const cache_key *key, bytes head, bytes body) {
    redis *r = self;
    server *s = server_of(r, key);
    (void)pthread_mutex_lock(&s->lock);
    int64_t ttl_ms = jittered(s, r->settings.ttl_ms);
    (void)pthread_mutex_unlock(&s->lock);
    char ttl[24];
    (void)snprintf(ttl, sizeof ttl, "%lld", (long long)ttl_ms);

    redis_reply reply;
    redis_word words[] = {redis_word_of("SET"), redis_word_of(key->text), {head, body},
                          redis_word_of("PX"), redis_word_of(ttl)};
    status st = call(r, s, CALL_WRITES, &reply, NULL, words, sizeof words / sizeof *words);
    if (st == STATUS_OK && (reply.kind != REDIS_LINE || strcmp(reply.text, "OK") != 0))
        st = STATUS_UNAVAILABLE;
    return st == STATUS_BAD_FORMAT || st == STATUS_TOO_LARGE ? STATUS_UNAVAILABLE : st;
}

/* EXISTS and UNLINK answer with how many there were. */
static status call_number(redis *r, call_kind kind, const char *command, const cache_key *key,
                          long long *number) {
    redis_reply reply;
    redis_word words[] = {redis_word_of(command), redis_word_of(key->text)};
    status st = call(r, server_of(r, key), kind, &reply, NULL, words, 2);
    if (st != STATUS_OK || reply.kind != REDIS_NUMBER) return STATUS_UNAVAILABLE;
    *number = reply.number;
    return STATUS_OK;
}

static status redis_has(void *self, const cache_key *key) {
    long long n = 0;
    status st = call_number(self, CALL_READS, "EXISTS", key, &n);
    return st != STATUS_OK ? st : n > 0 ? STATUS_OK : STATUS_NOT_FOUND;
}

static status redis_forget(void *self, const cache_key *key) {
    long long n = 0;
    return call_number(self, CALL_WRITES, "UNLINK", key, &n);
}

/* Asks now, whatever the pauses say. */
static status ping(redis *r, server *s, bool *is_loading, err *e) {
    redis_reply reply = {0};
    redis_word words[] = {redis_word_of("PING")};
    (void)pthread_mutex_lock(&s->lock);
    status st = exchange(r, s, &reply, NULL, words, 1, e);
    (void)pthread_mutex_unlock(&s->lock);
    *is_loading = reply.kind == REDIS_ERROR && has_code(&reply, "LOADING");
    bool is_shut = reply.kind == REDIS_ERROR && (has_code(&reply, "NOAUTH") || has_code(&reply, "NOPERM"));
    return is_shut ? STATUS_BAD_ARGUMENT : st;
}

static status redis_check(void *self, err *e) {
    redis *r = self;
    for (size_t i = 0; i < r->n; i++) {
        int64_t patient_until_us = clock_now_us() + LOADING_PATIENCE_US;
        for (;;) {
            bool is_loading = false;
            status st = ping(r, &r->servers[i], &is_loading, e);
            if (st == STATUS_OK) break;
            if (!is_loading || clock_now_us() >= patient_until_us) return STATUS_UNAVAILABLE;
            struct timespec pause = {.tv_nsec = LOADING_PAUSE_US * 1000};
            (void)nanosleep(&pause, NULL);
        }
    }
    return STATUS_OK;
}

static void redis_count(void *self, cache_counters *counters) { (void)self, (void)counters; }

static void redis_close(void *self) {
    redis *r = self;
    for (size_t i = 0; i < r->n; i++) {
        redis_link_close(&r->servers[i].link);
        (void)pthread_mutex_destroy(&r->servers[i].lock);
    }
    free(r);
}

status cache_redis_open(void **self, const char *url, const cache_settings *settings, err *e) {
    redis_url urls[CACHE_SERVERS_MAX];
    size_t n = 0;
    status st = redis_url_parse(urls, &n, url, e);
    if (st != STATUS_OK) return st;
    redis *r = calloc(1, sizeof *r);
    if (!r) return fail(e, STATUS_NO_MEMORY, "cache: out of memory");
    r->settings = *settings;
    r->n = n;
    for (size_t i = 0; i < n; i++) {
        r->servers[i].url = urls[i];
        r->servers[i].random = rng_make(rng_system());
        CHECK(pthread_mutex_init(&r->servers[i].lock, NULL) == 0, "a mutex can be made");
    }
    for (size_t i = 0; i < n && st == STATUS_OK; i++) {
        bool is_loading = false;
        if (ping(r, &r->servers[i], &is_loading, e) == STATUS_BAD_ARGUMENT) st = STATUS_UNAVAILABLE;
    }
    if (st != STATUS_OK) {
        e->code = st;
        redis_close(r);
        return st;
    }
    *self = r;
    return STATUS_OK;
}

const cache_backend cache_redis_backend = {redis_get,   redis_put,   redis_has, redis_forget,
                                           redis_check, redis_count, redis_close};
