/* A broker played by a test: what a node says to it. One thread. */
#ifndef TESTS_WORKER_PLAYED_BROKER_H
#define TESTS_WORKER_PLAYED_BROKER_H

#include "proto/socket.h"

/* The next message of that kind, and who sent it; others are skipped. False when none comes in time. */
bool played_broker_next(wire_socket *s, wire_peer *node, message_kind kind, wire_message *in, int timeout_ms);

#endif
