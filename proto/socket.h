/* Messages over ZeroMQ: a thin layer that sets every option once and cuts payloads into frames.
 *
 *     wire_socket *s;
 *     st = wire_connect(&s, zmq_context, "tcp://broker:7000", &e);
 *     st = wire_send(s, NULL, &m, NULL);                       // never blocks
 *     wire_message in;
 *     while (wire_receive(s, &in, &e) == STATUS_OK) { ...; wire_message_clear(&in); }
 *
 * On the wire (after ZeroMQ's routing id on bound sockets) a message is:
 *
 *   frame 0   offset size  field
 *                  0    4  magic "MIPH"
 *                  4    2  version, little endian; a reader refuses any other
 *                  6    2  zero
 *                  8    4  envelope_bytes, at most MESSAGE_ENVELOPE_BYTES_MAX
 *                 12    4  payload_bytes, at most MESSAGE_IMAGE_BYTES_MAX
 *                 16    -  the envelope, or its first WIRE_FRAME_BYTES - 16 bytes
 *   more      the rest of the envelope, then the payload in frames of its own, each WIRE_FRAME_BYTES
 *             but the last of either
 *
 * Frames stay small so that heartbeats of the transport are never stuck behind a big one. Receive
 * queues of connecting sockets are unbounded in messages (a full one can abort libzmq 4.3.4) and
 * bounded by credits instead. A socket belongs to one thread. */
#ifndef PROTO_SOCKET_H
#define PROTO_SOCKET_H

#include "proto/message.h"

#define WIRE_FRAME_BYTES   (256u << 10)
#define WIRE_ROUTING_BYTES 16 /* libzmq makes 5; more than 16 is not one of ours */

typedef struct wire_socket wire_socket;

/* Who a message on a bound socket came from or goes to. Equal bytes, equal peer. */
typedef struct {
    unsigned char id[WIRE_ROUTING_BYTES];
    uint8_t id_bytes;
} wire_peer;

/* Image bytes as reference-counted frames: shared, forwarded and kept without copying. */
typedef struct wire_payload wire_payload;
MUST_USE status wire_payload_open(wire_payload **p, const void *data, size_t len_bytes, err *e);
/* The same of pieces, as if they were one after another in memory. */
MUST_USE status wire_payload_open_parts(wire_payload **p, const bytes *parts, size_t n_parts, err *e);
wire_payload *wire_payload_share(const wire_payload *p); /* NULL when out of memory */
void wire_payload_close(wire_payload **p);
size_t wire_payload_bytes(const wire_payload *p);
void wire_payload_copy(const wire_payload *p, void *out); /* wire_payload_bytes of them */
void wire_payload_sha256(const wire_payload *p, unsigned char out[HASH_SHA256_BYTES]);

typedef struct {
    wire_peer from; /* bound sockets only */
    message_in in;
    wire_payload *payload; /* NULL when there is none; set it to NULL to keep it */
} wire_message;

/* Binds a ROUTER; `tcp://127.0.0.1:*` takes a free port, wire_endpoint tells which. Errors of both: BAD_ARGUMENT (no
 * endpoint), IO, NO_MEMORY. */
MUST_USE status wire_bind(wire_socket **s, void *zmq_context, const char *endpoint, err *e);
/* Connects a DEALER. Succeeds before the other side exists; messages sent meanwhile are refused. */
MUST_USE status wire_connect(wire_socket **s, void *zmq_context, const char *endpoint, err *e);
void wire_close(wire_socket **s); /* waits at most 500 ms for what was sent to leave */
const char *wire_endpoint(const wire_socket *s);
void *wire_zmq(const wire_socket *s); /* for zmq_poll */

/* Sends without blocking and takes nothing over: payload is shared, m may be reused at once.
 * BUSY: the peer's queue is full or nobody is connected; NOT_FOUND: the peer is gone. Either way
 * nothing was sent. to is NULL on connected sockets. */
MUST_USE status wire_send(wire_socket *s, const wire_peer *to, const message *m,
                          const wire_payload *payload);

/* One message if there is one; TIMEOUT when there is none. BAD_MESSAGE, BAD_VERSION, TOO_LARGE: a
 * malformed one was taken off the queue and in->from says whose (no bytes when even that cannot be
 * answered); nothing else is in it. */
MUST_USE status wire_receive(wire_socket *s, wire_message *in, err *e);
void wire_message_clear(wire_message *in);

/* An io context with the options the project needs; n_io_threads 1 is enough below 1 GB/s. */
void *wire_context_open(void);
void wire_context_close(void **zmq_context);

#endif
