/* One connection to one Redis: commands with a deadline for the whole exchange and a bound on the answer.
 *
 *     redis_link l = {0};
 *     if (redis_link_open(&l, &url, 1000, &e) != STATUS_OK) ...
 *     redis_word words[] = {redis_word_of("GET"), {.first = key}};
 *     redis_reply r;
 *     st = redis_link_call(&l, &r, storage, words, 2, clock_now_us() + 250000, &e);
 *     redis_link_close(&l);
 *
 * One thread at a time. */
#ifndef CACHE_REDIS_LINK_H
#define CACHE_REDIS_LINK_H

#include "base/buf.h"
#include "cache/redis_url.h"

typedef enum {
    REDIS_NIL,
    REDIS_TEXT,   /* bulk string: in the caller's buf */
    REDIS_NUMBER, /* number */
    REDIS_LINE,   /* "+OK": text */
    REDIS_ERROR   /* "-CODE words": text */
} redis_reply_kind;

typedef struct {
    redis_reply_kind kind;
    long long number;
    char text[160];
} redis_reply;

/* One argument of a command; second follows first without a gap, so that a value can lie in two places. */
typedef struct {
    bytes first, second;
} redis_word;

static inline redis_word redis_word_of(const char *text) {
    return (redis_word){.first = {(const unsigned char *)text, strlen(text)}};
}

typedef struct {
    struct redisContext *context; /* NULL: not connected */
    unsigned char *chunk;         /* what recv fills */
    /* While a call is on its way: where its answer goes. */
    redis_reply *reply;
    buf *storage;
    bool is_too_large; /* the text did not fit into storage */
} redis_link;

/* Connects, logs in, selects the database. UNAVAILABLE: nobody there or no answer in time; BAD_ARGUMENT:
 * the server refused user, password or database. The text names the server. */
MUST_USE status redis_link_open(redis_link *l, const redis_url *url, int timeout_ms, err *e);
void redis_link_close(redis_link *l); /* zeroed and closed links are fine */

/* storage may be NULL where no bulk string is expected; it is appended to, up to its maximum.
 *
 * OK: reply holds what the server said, which may be an error. Anything else (UNAVAILABLE; TIMEOUT;
 * TOO_LARGE: longer than storage allows; BAD_FORMAT: not the protocol, or more than was asked for): the
 * stream can no longer be trusted and the link is closed. */
MUST_USE status redis_link_call(redis_link *l, redis_reply *reply, buf *storage, const redis_word words[],
                                size_t n_words, int64_t deadline_us, err *e);

#endif
