/* A broker played by a test: what a node says to it. One thread. */
#ifndef TESTS_WORKER_PLAYED_BROKER_H
#define TESTS_WORKER_PLAYED_BROKER_H

#include "proto/socket.h"

/* The next message, and who sent it. False when none comes before until_us. */
bool played_broker_receive(wire_socket *s, wire_peer *node, wire_message *in, int64_t until_us);

#endif
