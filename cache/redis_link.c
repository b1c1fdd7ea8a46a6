/* hiredis parses and connects; sending, waiting and the length of an answer are ours, for three reasons.
 *
 * Deadline. hiredis' own time-out is per read: a server that sends a byte now and then holds a caller for
 * ever. Here the socket does not block and one deadline covers sending the command and the whole answer.
 *
 * Bound. The answer is parsed as it comes, and as soon as more bytes are announced or have come than the
 * caller's buffer may take, the connection ends. Arrays, which none of our commands is answered with and whose announced length
 * hiredis allocates at once, are refused by a createArray that always fails.
 *
 * Copies. A value of 1.7 MB is sent from where it lies and received where it shall lie: when the first bytes
 * of an answer are the whole line that announces a value, the rest goes straight into the caller's buffer.
 * Values whose first line comes in pieces, and everything else, go through hiredis.
 *
 * A half-read answer would be taken for the answer to the next command, so every failure closes the link. */
#include "cache/redis_link.h"

#include <errno.h>
#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/check.h"
#include "base/clock.h"

#define CHUNK_BYTES   ((size_t)256 << 10) /* about what a loopback socket holds */
#define REPLY_SLACK   1024                /* "$1679680\r\n", "-ERR ..." and the ends of lines */
#define HEAD_BYTES    1024

/* ---- answers, as hiredis finds them ---- */

static void keep_line(redis_reply *r, const char *text, size_t len) {
    if (len >= sizeof r->text) len = sizeof r->text - 1;
    memcpy(r->text, text, len);
    r->text[len] = '\0';
}

/* Each returns something that is not NULL for "understood"; the link itself will do. */
static void *take_string(const redisReadTask *task, char *text, size_t len) {
    redis_link *l = task->privdata;
    if (task->type == REDIS_REPLY_STRING) {
        l->reply->kind = REDIS_TEXT;
        l->is_too_large = !l->storage || buf_append(l->storage, text, len) != STATUS_OK;
        return l->is_too_large ? NULL : l;
    }
    l->reply->kind = task->type == REDIS_REPLY_ERROR ? REDIS_ERROR : REDIS_LINE;
    keep_line(l->reply, text, len);
    return l;
}

#if HIREDIS_MAJOR >= 1
typedef size_t array_length;
#else
typedef int array_length;
#endif

static void *take_array(const redisReadTask *task, array_length n) {
    (void)task, (void)n;
    return NULL;
}

static void *take_number(const redisReadTask *task, long long number) {
    redis_link *l = task->privdata;
    l->reply->kind = REDIS_NUMBER;
    l->reply->number = number;
    return l;
}

static void *take_nil(const redisReadTask *task) {
    redis_link *l = task->privdata;
    l->reply->kind = REDIS_NIL;
    return l;
}

static void free_nothing(void *object) { (void)object; }

#if HIREDIS_MAJOR >= 1
/* Of RESP3, which we never ask for: refused like an array. */
static void *take_double(const redisReadTask *task, double number, char *text, size_t len) {
    (void)task, (void)number, (void)text, (void)len;
    return NULL;
}

static void *take_bool(const redisReadTask *task, int value) {
    (void)task, (void)value;
    return NULL;
}
#endif

static const redisReplyObjectFunctions reply_functions = {.createString = take_string,
                                                          .createArray = take_array,
                                                          .createInteger = take_number,
#if HIREDIS_MAJOR >= 1
                                                          .createDouble = take_double,
                                                          .createBool = take_bool,
#endif
                                                          .createNil = take_nil,
                                                          .freeObject = free_nothing};

/* ---- bytes ---- */

static status wait_for(int fd, short events, int64_t deadline_us) {
    for (;;) {
        int64_t left_us = deadline_us - clock_now_us();
        if (left_us <= 0) return STATUS_TIMEOUT;
        struct pollfd p = {.fd = fd, .events = events};
        int n = poll(&p, 1, (int)((left_us + 999) / 1000));
        if (n > 0) return STATUS_OK;
        if (n < 0 && errno != EINTR) return STATUS_UNAVAILABLE;
    }
}

static status send_all(int fd, bytes b, bool is_last, int64_t deadline_us) {
    int flags = MSG_NOSIGNAL | (is_last ? 0 : MSG_MORE);
    while (b.len_bytes > 0) {
        ssize_t n = send(fd, b.data, b.len_bytes, flags);
        if (n > 0) {
            b.data += n;
            b.len_bytes -= (size_t)n;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            status st = wait_for(fd, POLLOUT, deadline_us);
            if (st != STATUS_OK) return st;
        } else if (errno != EINTR) {
            return STATUS_UNAVAILABLE;
        }
    }
    return STATUS_OK;
}

/* What is still to be sent: short pieces are gathered here, long ones go out from where they lie. */
typedef struct {
    int fd;
    int64_t deadline_us;
    size_t used;
    char head[HEAD_BYTES];
} sender;

static status flush(sender *s, bool is_last) {
    bytes gathered = {(unsigned char *)s->head, s->used};
    s->used = 0;
    return send_all(s->fd, gathered, is_last, s->deadline_us);
}

static status put(sender *s, bytes b) {
    status st = STATUS_OK;
    if (b.len_bytes > sizeof s->head - s->used) st = flush(s, false);
    if (st != STATUS_OK) return st;
    if (b.len_bytes > sizeof s->head) return send_all(s->fd, b, false, s->deadline_us);
    if (b.len_bytes) memcpy(s->head + s->used, b.data, b.len_bytes);
    s->used += b.len_bytes;
    return STATUS_OK;
}

/* "*2\r\n$3\r\nGET\r\n$108\r\nmc:1:...\r\n" */
static status send_words(int fd, const redis_word words[], size_t n_words, int64_t deadline_us) {
    static const bytes end_of_line = {(const unsigned char *)"\r\n", 2};
    sender s = {.fd = fd, .deadline_us = deadline_us};
    char text[32];
    int n = snprintf(text, sizeof text, "*%zu\r\n", n_words);
    status st = put(&s, (bytes){(unsigned char *)text, (size_t)n});
    for (size_t i = 0; i < n_words && st == STATUS_OK; i++) {
        n = snprintf(text, sizeof text, "$%zu\r\n",
                     words[i].first.len_bytes + words[i].second.len_bytes);
        st = put(&s, (bytes){(unsigned char *)text, (size_t)n});
        if (st == STATUS_OK) st = put(&s, words[i].first);
        if (st == STATUS_OK) st = put(&s, words[i].second);
        if (st == STATUS_OK) st = put(&s, end_of_line);
    }
    return st == STATUS_OK ? flush(&s, true) : st;
}

/* Receives into the pieces in order; n is what came, at least one byte. The deadline is looked at each time:
 * a server that sends without pause must not outrun it. */
static status receive(int fd, struct iovec *pieces, size_t n_pieces, size_t *n, int64_t deadline_us,
                      err *e) {
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = n_pieces};
    for (;;) {
        if (clock_now_us() >= deadline_us) return fail(e, STATUS_TIMEOUT, "no whole answer in time");
        ssize_t got = recvmsg(fd, &message, 0);
        if (got > 0) {
            *n = (size_t)got;
            return STATUS_OK;
        }
        if (got == 0) return fail(e, STATUS_UNAVAILABLE, "the server closed the connection");
        if (errno == EAGAIN || errno == EWOULDBLOCK) {
            status st = wait_for(fd, POLLIN, deadline_us);
            if (st != STATUS_OK) return fail(e, st, "no whole answer in time");
        } else if (errno != EINTR) {
            return fail_errno(e, STATUS_UNAVAILABLE, "receiving");
        }
    }
}

/* "$1679680\r\n": bytes of that line, and the length it announces (SIZE_MAX for anything enormous); 0 for an
 * answer that begins in another way or not with a whole line. */
static size_t bulk_header(size_t *len, const unsigned char *begin, size_t n) {
    size_t i = 1;
    if (n < 2 || begin[0] != '$') return 0;
    for (*len = 0; i < n && begin[i] >= '0' && begin[i] <= '9'; i++)
        *len = i > 15 ? SIZE_MAX : *len * 10 + (size_t)(begin[i] - '0');
    return i > 1 && i + 1 < n && begin[i] == '\r' && begin[i + 1] == '\n' ? i + 2 : 0;
}

/* A bulk string of len bytes, n of which (and of its end of line) are already in begin: the rest comes
 * straight into storage. */
static status read_value(redis_link *l, size_t len, const unsigned char *begin, size_t n,
                         int64_t deadline_us, err *e) {
    unsigned char *to = buf_reserve(l->storage, len);
    unsigned char tail[3] = {0}; /* "\r\n" and room for a byte too many */
    if (!to) return fail(e, STATUS_UNAVAILABLE, "no memory for a value of %zu bytes", len);
    size_t n_value = n < len ? n : len, n_tail = n - n_value;
    if (n_tail > 2) return fail(e, STATUS_BAD_FORMAT, "the server sent more than was asked for");
    memcpy(to, begin, n_value);
    memcpy(tail, begin + n_value, n_tail);
    while (n_value + n_tail < len + 2) {
        struct iovec pieces[] = {{to + n_value, len - n_value}, {tail + n_tail, sizeof tail - n_tail}};
        size_t got = 0;
        status st = receive(l->context->fd, pieces, 2, &got, deadline_us, e);
        if (st != STATUS_OK) return st;
        size_t into_value = got < len - n_value ? got : len - n_value;
        n_value += into_value;
        n_tail += got - into_value;
    }
    if (n_tail != 2 || memcmp(tail, "\r\n", 2) != 0)
        return fail(e, STATUS_BAD_FORMAT, "a value that does not end where it said");
    l->storage->len_bytes += len;
    l->storage->data[l->storage->len_bytes] = 0;
    l->reply->kind = REDIS_TEXT;
    return STATUS_OK;
}

/* Reads one whole answer. */
static status read_reply(redis_link *l, int64_t deadline_us, err *e) {
    redisReader *reader = l->context->reader;
    size_t room = l->storage ? l->storage->max_bytes - l->storage->len_bytes : 0;
    size_t n_read = 0;
    void *object = NULL;
    while (!object) {
        struct iovec piece = {l->chunk, CHUNK_BYTES};
        size_t n = 0, len = 0;
        status st = receive(l->context->fd, &piece, 1, &n, deadline_us, e);
        if (st != STATUS_OK) return st;
        size_t header = n_read == 0 ? bulk_header(&len, l->chunk, n) : 0;
        if (header && len > room) l->is_too_large = true;
        if (header && len <= room && l->storage)
            return read_value(l, len, l->chunk + header, n - header, deadline_us, e);
        n_read += n;
        bool is_understood = !l->is_too_large &&
                             redisReaderFeed(reader, (char *)l->chunk, n) == REDIS_OK &&
                             redisReaderGetReply(reader, &object) == REDIS_OK;
        if (!is_understood && !l->is_too_large)
            return fail(e, STATUS_BAD_FORMAT, "not an answer to our command: %s", reader->errstr);
        if (l->is_too_large || (!object && n_read > room + REPLY_SLACK))
            return fail(e, STATUS_TOO_LARGE, "a value longer than the %zu bytes accepted", room);
    }
    if (reader->pos != reader->len)
        return fail(e, STATUS_BAD_FORMAT, "the server sent more than was asked for");
    return STATUS_OK;
}

status redis_link_call(redis_link *l, redis_reply *reply, buf *storage, const redis_word words[],
                       size_t n_words, int64_t deadline_us, err *e) {
    CHECK(l->context, "a command goes over an open link");
    *reply = (redis_reply){0};
    l->reply = reply;
    l->storage = storage;
    l->is_too_large = false;
    status st = send_words(l->context->fd, words, n_words, deadline_us);
    if (st == STATUS_TIMEOUT) (void)fail(e, st, "the command could not be sent in time");
    if (st == STATUS_UNAVAILABLE) (void)fail_errno(e, st, "sending");
    if (st == STATUS_OK) st = read_reply(l, deadline_us, e);
    l->reply = NULL;
    l->storage = NULL;
    if (st != STATUS_OK) redis_link_close(l);
    return st;
}

/* ---- opening ---- */

/* A command that must be answered with a line that is no error. LOADING is let through: the first real
 * command will say it again. */
static status demand(redis_link *l, const redis_url *url, const char *what, const redis_word words[],
                     size_t n_words, int64_t deadline_us, err *e) {
    redis_reply reply;
    err why;
    status st = redis_link_call(l, &reply, NULL, words, n_words, deadline_us, &why);
    if (st != STATUS_OK)
        return fail(e, STATUS_UNAVAILABLE, "cache server %s: %s: %s", url->name, what, why.text);
    if (reply.kind == REDIS_LINE) return STATUS_OK;
    if (reply.kind == REDIS_ERROR && strncmp(reply.text, "LOADING", 7) == 0) return STATUS_OK;
    return fail(e, STATUS_BAD_ARGUMENT, "cache server %s refused the %s: %s", url->name, what,
                reply.kind == REDIS_ERROR ? reply.text : "not an answer to it");
}

static status log_in(redis_link *l, const redis_url *url, int64_t deadline_us, err *e) {
    status st = STATUS_OK;
    if (url->password[0]) {
        redis_word words[3] = {redis_word_of("AUTH")};
        size_t n = 1;
        if (url->user[0]) words[n++] = redis_word_of(url->user);
        words[n++] = redis_word_of(url->password);
        st = demand(l, url, "password", words, n, deadline_us, e);
    }
    if (st == STATUS_OK && url->db != 0) {
        char db[16];
        (void)snprintf(db, sizeof db, "%d", url->db);
        redis_word words[] = {redis_word_of("SELECT"), redis_word_of(db)};
        st = demand(l, url, "database number", words, 2, deadline_us, e);
    }
    return st;
}

status redis_link_open(redis_link *l, const redis_url *url, int timeout_ms, err *e) {
    int64_t deadline_us = clock_now_us() + timeout_ms * CLOCK_MS_US;
    struct timeval wait = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
    status st = STATUS_OK;

    CHECK(!l->context, "a link is opened once");
    if (!l->chunk) l->chunk = malloc(CHUNK_BYTES);
    redisContext *c = url->is_unix ? redisConnectUnixWithTimeout(url->host, wait)
                                   : redisConnectWithTimeout(url->host, url->port, wait);
    if (!l->chunk || !c || c->err) {
        st = fail(e, STATUS_UNAVAILABLE, "cache server %s: %s", url->name,
                  c && c->err ? c->errstr : "out of memory");
        if (c) redisFree(c);
        return st;
    }
    l->context = c;
    c->reader->fn = (redisReplyObjectFunctions *)&reply_functions; /* hiredis only reads it */
    c->reader->privdata = l;
    c->reader->maxbuf = 0; /* keep the buffer between large values */
    int flags = fcntl(c->fd, F_GETFL);
    if (flags < 0 || fcntl(c->fd, F_SETFL, flags | O_NONBLOCK) < 0)
        st = fail_errno(e, STATUS_UNAVAILABLE, "cache server %s", url->name);
    if (st == STATUS_OK) st = log_in(l, url, deadline_us, e);
    if (st != STATUS_OK) redis_link_close(l);
    return st;
}

void redis_link_close(redis_link *l) {
    if (l->context) redisFree(l->context);
    free(l->chunk);
    *l = (redis_link){0};
}
