/* Where a Redis server is and how to be let in, from a URL as cache.h describes it.
 *
 *     redis_url list[CACHE_SERVERS_MAX];
 *     size_t n;
 *     st = redis_url_parse(list, &n, text, &e);
 *
 * Texts of errors never hold the password. Any thread. */
#ifndef CACHE_REDIS_URL_H
#define CACHE_REDIS_URL_H

#include <stdbool.h>

#include "cache/cache.h"

typedef struct {
    bool is_unix;
    char host[256]; /* or the path of the socket */
    int port;
    int db;
    char user[128];     /* empty: none */
    char password[256]; /* empty: none */
    char name[320];     /* what logs and rendezvous hashing use: the URL without user and password */
} redis_url;

MUST_USE status redis_url_parse(redis_url list[CACHE_SERVERS_MAX], size_t *n, const char *text, err *e);

#endif
