#include "tests/support/redis_server.h"

#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

bool redis_server_exists(void) { return program_exists("redis-server"); }

static bool answers(void *arg) {
    redis_server *r = arg;
    if (!child_is_running(&r->process)) return true; /* looked at by the caller */
    return redis_server_command(r, NULL, "PING") >= 0;
}

static bool launch(redis_server *r) {
    char port[16];
    (void)snprintf(port, sizeof port, "%d", r->port);
    const char *argv[REDIS_SERVER_ARGS_MAX + 20];
    int n = 0;
    const char *const fixed[] = {"redis-server", "--port", port,   "--bind",       "127.0.0.1",
                                 "--save",       "",       "--appendonly", "no", "--unixsocket",
                                 r->socket_path, "--dir",  r->dir};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) argv[n++] = fixed[i];
    for (int i = 0; i < r->n_arguments; i++) argv[n++] = r->arguments[i];
    argv[n] = NULL;
    child_start(&r->process, argv, NULL);
    bool is_up = wait_until(answers, r, 10000) && child_is_running(&r->process);
    if (!is_up) child_close(&r->process);
    return is_up;
}

void redis_server_start(redis_server *r, const char *const arguments[]) {
    *r = (redis_server){.dir = temp_dir_make()};
    for (int i = 0; arguments && arguments[i]; i++) {
        assert_true(r->n_arguments < REDIS_SERVER_ARGS_MAX);
        r->arguments[r->n_arguments++] = arguments[i];
        if (i > 0 && strcmp(arguments[i - 1], "--requirepass") == 0)
            (void)snprintf(r->password, sizeof r->password, "%s", arguments[i]);
    }
    (void)snprintf(r->socket_path, sizeof r->socket_path, "%s/s", r->dir);
    for (int attempt = 0; attempt < 5; attempt++) { /* the port may be taken between asking and using */
        r->port = free_port();
        (void)snprintf(r->url, sizeof r->url, "redis://127.0.0.1:%d", r->port);
        if (launch(r)) return;
    }
    fail_msg("redis-server does not start in %s", r->dir);
}

void redis_server_kill(redis_server *r) { (void)child_stop(&r->process, SIGKILL, 5000); }

void redis_server_restart(redis_server *r) {
    child_close(&r->process);
    if (!launch(r)) fail_msg("redis-server does not start again on port %d", r->port);
}

void redis_server_stop(redis_server *r) {
    child_close(&r->process);
    temp_dir_remove(r->dir);
    *r = (redis_server){0};
}

static long long number_of(const redisReply *reply, buf *text) {
    if (text && reply->str) {
        buf_clear(text);
        if (buf_append(text, reply->str, reply->len) != STATUS_OK) return -1;
    }
    switch (reply->type) {
    case REDIS_REPLY_INTEGER:
        return reply->integer;
    case REDIS_REPLY_STRING:
        return (long long)reply->len;
    case REDIS_REPLY_STATUS:
        return 0;
    default:
        return -1;
    }
}

long long redis_server_command(redis_server *r, buf *text, const char *command) {
    char copy[512], *rest = NULL;
    const char *words[16];
    int n = 0;
    (void)snprintf(copy, sizeof copy, "%s", command);
    for (char *w = strtok_r(copy, " ", &rest); w && n < 16; w = strtok_r(NULL, " ", &rest))
        words[n++] = w;

    long long result = -1;
    redisContext *c = redisConnectWithTimeout("127.0.0.1", r->port, (struct timeval){.tv_sec = 2});
    redisReply *reply = NULL;
    if (!c || c->err) goto done;
    (void)redisSetTimeout(c, (struct timeval){.tv_sec = 10});
    if (r->password[0]) {
        redisReply *auth = redisCommand(c, "AUTH %s", r->password);
        if (!auth) goto done;
        freeReplyObject(auth);
    }
    reply = redisCommandArgv(c, n, words, NULL);
    if (reply) result = number_of(reply, text);
done:
    if (reply) freeReplyObject(reply);
    if (c) redisFree(c);
    return result;
}
