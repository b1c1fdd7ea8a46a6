/* A real redis-server for one test, in a temporary folder, on a free port and a unix socket.
 *
 *     if (!redis_server_exists()) return TEST_SKIPPED;   // from main, after saying so
 *     redis_server r;
 *     redis_server_start(&r, (const char *const[]){"--requirepass", "secret", NULL});
 *     cache_open(&c, r.url, ...);
 *     redis_server_kill(&r);                  // SIGKILL, as a machine would fail
 *     redis_server_restart(&r);               // same port, same socket, empty
 *     redis_server_stop(&r);
 *
 * One thread. */
#ifndef TESTS_SUPPORT_REDIS_SERVER_H
#define TESTS_SUPPORT_REDIS_SERVER_H

#include "tests/support/support.h"

#define REDIS_SERVER_ARGS_MAX 24

typedef struct {
    child process;
    char *dir;
    int port;
    char url[64];          /* redis://127.0.0.1:PORT */
    char socket_path[108]; /* a unix socket to the same server */
    char password[64];     /* from --requirepass, used by redis_server_command */
    const char *arguments[REDIS_SERVER_ARGS_MAX];
    int n_arguments;
} redis_server;

bool redis_server_exists(void);

/* No persistence; arguments (NULL-ended, or NULL) are added to the command line and must outlive the
 * server. Returns when it answers. */
void redis_server_start(redis_server *r, const char *const arguments[]);
void redis_server_kill(redis_server *r);
void redis_server_restart(redis_server *r);
void redis_server_stop(redis_server *r); /* and removes the folder; zeroed servers are fine */

/* Sends one command, words apart by one space, over a connection of its own. Integers are returned,
 * "OK" is 0, a text's length; -1 for an error or nil. text (or NULL) receives the answer. */
long long redis_server_command(redis_server *r, buf *text, const char *command);

#endif
