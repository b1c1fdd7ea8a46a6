/* The list is cut at commas, then each piece at "://", the last '@', and the rest by kind. Percent codes
 * are decoded in user and password only. */
#include "cache/redis_url.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

static bool decode_percent(char *out, size_t out_bytes, const char *text, size_t len) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '%') {
            if (len - i < 3) return false;
            char digits[3] = {text[i + 1], text[i + 2], '\0'};
            if (!hash_from_hex(&c, 1, digits) || c == 0) return false;
            i += 2;
        }
        if (n + 1 >= out_bytes) return false;
        out[n++] = (char)c;
    }
    out[n] = '\0';
    return true;
}

/* Digits only, at most max; false for anything else. */
static bool parse_number(int *out, const char *text, size_t len, int max) {
    long v = 0;
    if (len == 0 || len > 9) return false;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        v = v * 10 + (text[i] - '0');
    }
    *out = (int)v;
    return v <= max;
}

static bool copy_text(char *out, size_t out_bytes, const char *text, size_t len) {
    if (len == 0 || len >= out_bytes) return false;
    memcpy(out, text, len);
    out[len] = '\0';
    return true;
}

static bool parse_login(redis_url *u, const char *text, size_t len) {
    const char *colon = memchr(text, ':', len);
    if (!colon) return false;
    size_t user_len = (size_t)(colon - text);
    return decode_percent(u->user, sizeof u->user, text, user_len) &&
           decode_percent(u->password, sizeof u->password, colon + 1, len - user_len - 1) &&
           u->password[0] != '\0';
}

/* host[:port][/db] */
static bool parse_tcp(redis_url *u, const char *text, size_t len) {
    const char *end = text + len;
    const char *slash = memchr(text, '/', len);
    if (slash && end > slash + 1 && !parse_number(&u->db, slash + 1, (size_t)(end - slash) - 1, 65535))
        return false;
    if (slash) end = slash;
    const char *host = text, *host_end = end, *port = NULL;
    if (len > 0 && text[0] == '[') {
        const char *bracket = memchr(text, ']', (size_t)(end - text));
        if (!bracket) return false;
        host = text + 1;
        host_end = bracket;
        if (bracket + 1 < end && bracket[1] != ':') return false;
        if (bracket + 1 < end) port = bracket + 2;
    } else {
        const char *colon = memchr(text, ':', (size_t)(end - text));
        if (colon) host_end = colon;
        if (colon) port = colon + 1;
    }
    u->port = 6379;
    if (port && !parse_number(&u->port, port, (size_t)(end - port), 65535)) return false;
    if (u->port == 0 || !copy_text(u->host, sizeof u->host, host, (size_t)(host_end - host)))
        return false;
    bool is_v6 = strchr(u->host, ':') != NULL;
    (void)snprintf(u->name, sizeof u->name, "redis://%s%s%s:%d/%d", is_v6 ? "[" : "", u->host,
                   is_v6 ? "]" : "", u->port, u->db);
    return true;
}

/* /path[?db=N] */
static bool parse_unix(redis_url *u, const char *text, size_t len) {
    const char *question = memchr(text, '?', len);
    size_t path_len = question ? (size_t)(question - text) : len;
    if (question) {
        const char *value = question + 4;
        size_t rest = len - path_len;
        if (rest < 5 || memcmp(question, "?db=", 4) != 0 ||
            !parse_number(&u->db, value, rest - 4, 65535))
            return false;
    }
    /* 108 bytes is what an address of a unix socket holds, its zero byte included. */
    if (path_len == 0 || text[0] != '/' || path_len > 107) return false;
    u->is_unix = true;
    if (!copy_text(u->host, sizeof u->host, text, path_len)) return false;
    (void)snprintf(u->name, sizeof u->name, "redis+unix://%s?db=%d", u->host, u->db);
    return true;
}

static bool parse_one(redis_url *u, const char *text, size_t len) {
    static const char tcp[] = "redis://", local[] = "redis+unix://";
    *u = (redis_url){0};
    bool is_tcp = len > sizeof tcp - 1 && memcmp(text, tcp, sizeof tcp - 1) == 0;
    bool is_local = len > sizeof local - 1 && memcmp(text, local, sizeof local - 1) == 0;
    if (!is_tcp && !is_local) return false;
    size_t scheme = is_tcp ? sizeof tcp - 1 : sizeof local - 1;
    text += scheme;
    len -= scheme;
    const char *at = NULL;
    for (size_t i = 0; i < len; i++)
        if (text[i] == '@') at = text + i;
    if (at) {
        size_t login_len = (size_t)(at - text);
        if (!parse_login(u, text, login_len)) return false;
        text = at + 1;
        len -= login_len + 1;
    }
    return is_tcp ? parse_tcp(u, text, len) : parse_unix(u, text, len);
}

static bool is_repeated(const redis_url list[], size_t n) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(list[i].name, list[n].name) == 0) return true;
    return false;
}

status redis_url_parse(redis_url list[CACHE_SERVERS_MAX], size_t *n, const char *text, err *e) {
    *n = 0;
    for (;;) {
        size_t len = strcspn(text, ",");
        if (*n == CACHE_SERVERS_MAX)
            return fail(e, STATUS_BAD_ARGUMENT, "cache URL: more than %d servers", CACHE_SERVERS_MAX);
        if (!parse_one(&list[*n], text, len)) {
            /* With a login anywhere in it nothing is quoted: a stray comma may have cut a password. */
            int shown = strchr(text, '@') ? 0 : len > 100 ? 100 : (int)len;
            return fail(e, STATUS_BAD_ARGUMENT,
                        "cache URL: entry %zu %.*s%sis not memory:, redis://[[user]:password@]host"
                        "[:port][/db] or redis+unix://[[user]:password@]/path[?db=N]",
                        *n + 1, shown, text, shown ? " " : "");
        }
        if (is_repeated(list, *n))
            return fail(e, STATUS_BAD_ARGUMENT, "cache URL: %s stands there twice", list[*n].name);
        (*n)++;
        if (text[len] == '\0') return STATUS_OK;
        text += len + 1;
    }
}
