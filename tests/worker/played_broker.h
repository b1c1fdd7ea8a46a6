/* A broker played by a test over a real socket, and a node in a thread that works for it.
 *
 *     played_broker b;
 *     played_broker_open(&b);
 *     played_broker_employ(&b, &settings, &handler);
 *     played_broker_run(&b);
 *     played_broker_welcome(&b, 20000);
 *     played_broker_say(&b, &work, NULL);
 *     played_broker_expect(&b, MESSAGE_GENERATED, &in);
 *     played_broker_close(&b);
 *
 * What does not go as it should fails the test. One thread. */
#ifndef TESTS_WORKER_PLAYED_BROKER_H
#define TESTS_WORKER_PLAYED_BROKER_H

#include <pthread.h>
#include <stdbool.h>

#include "proto/socket.h"
#include "worker/worker.h"

typedef struct {
    void *context;       /* of ZeroMQ, the node's, too */
    wire_socket *socket;
    wire_peer node;      /* who spoke last */
    worker *w;           /* NULL until employ */
    bool is_running;
    pthread_t thread;
    status result;       /* of worker_run, after dismiss */
    err why;
} played_broker;

void played_broker_open(played_broker *b);
void played_broker_open_at(played_broker *b, const char *endpoint); /* for a node that was started before */
void played_broker_close(played_broker *b); /* and dismisses */

void played_broker_employ(played_broker *b, const worker_settings *settings, const worker_handler *handler); /* b->w */
void played_broker_run(played_broker *b); /* the worker, in a thread */
void played_broker_wait(played_broker *b);    /* until the worker has ended by itself */
void played_broker_dismiss(played_broker *b); /* stops it and waits; may be repeated */

/* The next message. False when none comes until then (of clock_now_us). */
bool played_broker_hear(played_broker *b, wire_message *in, int64_t until_us);
/* The next message of a kind; others are dropped. False when none comes in time. */
bool played_broker_next(played_broker *b, message_kind kind, wire_message *in, int timeout_ms);
/* It comes, within a minute, and before any FAILED. in may be NULL. */
void played_broker_expect(played_broker *b, message_kind kind, wire_message *in);
void played_broker_say(played_broker *b, const message *m, const wire_payload *payload);
/* Hears HELLO and CREDIT and says WELCOME between them. */
void played_broker_welcome(played_broker *b, uint32_t heartbeat_ms);

#endif
