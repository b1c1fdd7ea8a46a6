#include "proto/socket.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/check.h"
#include "base/rng.h"

#define HEADER_BYTES        16
#define FRAME_BYTES_LIMIT   (320 * 1024) /* what libzmq lets through; ours are at most WIRE_FRAME_BYTES */
#define BOUND_QUEUE         4096         /* messages from one peer; credits keep honest ones far below */
#define LINGER_MS           500
#define HEARTBEAT_IVL_MS    1000
#define HEARTBEAT_TMO_MS    5000
#define HEARTBEAT_TTL_MS    10000
#define HANDSHAKE_IVL_MS    3000
#define PAYLOAD_FRAMES_MAX  (MESSAGE_IMAGE_BYTES_MAX / WIRE_FRAME_BYTES + 1)

/* Between threads of one process libzmq hands the bytes of a frame over without copying them. It is not
 * built with the thread sanitizer, which has to be told that sending comes before receiving. */
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define FRAME_IS_SENT(frame)     __tsan_release(zmq_msg_data(frame))
#define FRAME_IS_RECEIVED(frame) __tsan_acquire(zmq_msg_data(frame))
#else
#define FRAME_IS_SENT(frame)     ((void)0)
#define FRAME_IS_RECEIVED(frame) ((void)0)
#endif

static const unsigned char magic[4] = {'M', 'I', 'P', 'H'};

struct wire_socket {
    void *zmq;
    bool is_bound;
    char endpoint[256];
    unsigned char *envelope; /* MESSAGE_ENVELOPE_BYTES_MAX would be wasteful: grown when needed */
    size_t envelope_bytes;
};

/* ---- payloads -------------------------------------------------------------------------------- */

struct wire_payload {
    size_t n_frames;
    size_t len_bytes;
    zmq_msg_t frames[];
};

static wire_payload *payload_new(size_t n_frames) {
    wire_payload *p = malloc(sizeof *p + n_frames * sizeof p->frames[0]);
    if (p) *p = (wire_payload){0};
    return p;
}

static size_t frames_for(size_t len_bytes) {
    return (len_bytes + WIRE_FRAME_BYTES - 1) / WIRE_FRAME_BYTES;
}

/* Copies the next n bytes of the parts; *part and *offset say where they go on. */
static void copy_parts(unsigned char *to, size_t n, const bytes *parts, size_t *part, size_t *offset) {
    while (n > 0) {
        size_t left = parts[*part].len_bytes - *offset, some = left < n ? left : n;
        if (some) memcpy(to, parts[*part].data + *offset, some);
        to += some;
        n -= some;
        *offset += some;
        if (*offset == parts[*part].len_bytes) ++*part, *offset = 0;
    }
}

status wire_payload_open_parts(wire_payload **p, const bytes *parts, size_t n_parts, err *e) {
    *p = NULL;
    size_t len_bytes = 0, part = 0, offset = 0;
    for (size_t i = 0; i < n_parts && len_bytes <= MESSAGE_IMAGE_BYTES_MAX; i++)
        if (__builtin_add_overflow(len_bytes, parts[i].len_bytes, &len_bytes)) len_bytes = SIZE_MAX;
    if (len_bytes > MESSAGE_IMAGE_BYTES_MAX)
        return fail(e, STATUS_TOO_LARGE, "payload of %zu bytes, limit %u", len_bytes,
                    MESSAGE_IMAGE_BYTES_MAX);
    wire_payload *made = payload_new(frames_for(len_bytes));
    if (!made) return fail(e, STATUS_NO_MEMORY, "payload of %zu bytes", len_bytes);
    while (made->len_bytes < len_bytes) {
        size_t n = len_bytes - made->len_bytes;
        if (n > WIRE_FRAME_BYTES) n = WIRE_FRAME_BYTES;
        zmq_msg_t *frame = &made->frames[made->n_frames];
        if (zmq_msg_init_size(frame, n) != 0) {
            wire_payload_close(&made);
            return fail(e, STATUS_NO_MEMORY, "payload of %zu bytes", len_bytes);
        }
        copy_parts(zmq_msg_data(frame), n, parts, &part, &offset);
        made->n_frames++;
        made->len_bytes += n;
    }
    *p = made;
    return STATUS_OK;
}

status wire_payload_open(wire_payload **p, const void *data, size_t len_bytes, err *e) {
    return wire_payload_open_parts(p, &(bytes){data, len_bytes}, 1, e);
}

wire_payload *wire_payload_share(const wire_payload *p) {
    wire_payload *made = payload_new(p->n_frames);
    if (!made) return NULL;
    for (size_t i = 0; i < p->n_frames; i++) {
        (void)zmq_msg_init(&made->frames[i]);
        /* zmq_msg_copy only raises a reference count; its source is const in all but name. */
        CHECK(zmq_msg_copy(&made->frames[i], (zmq_msg_t *)(uintptr_t)&p->frames[i]) == 0,
              "a valid frame can be shared");
        made->n_frames++;
    }
    made->len_bytes = p->len_bytes;
    return made;
}

void wire_payload_close(wire_payload **p) {
    if (!*p) return;
    for (size_t i = 0; i < (*p)->n_frames; i++) (void)zmq_msg_close(&(*p)->frames[i]);
    free(*p);
    *p = NULL;
}

size_t wire_payload_bytes(const wire_payload *p) { return p ? p->len_bytes : 0; }

void wire_payload_copy(const wire_payload *p, void *out) {
    unsigned char *to = out;
    for (size_t i = 0; i < p->n_frames; i++) {
        zmq_msg_t *frame = (zmq_msg_t *)(uintptr_t)&p->frames[i];
        memcpy(to, zmq_msg_data(frame), zmq_msg_size(frame));
        to += zmq_msg_size(frame);
    }
}

void wire_payload_sha256(const wire_payload *p, unsigned char out[HASH_SHA256_BYTES]) {
    hash_sha256_stream *s = hash_sha256_open();
    for (size_t i = 0; i < p->n_frames; i++) {
        zmq_msg_t *frame = (zmq_msg_t *)(uintptr_t)&p->frames[i];
        hash_sha256_add(s, zmq_msg_data(frame), zmq_msg_size(frame));
    }
    hash_sha256_finish(s, out);
}

/* ---- sockets --------------------------------------------------------------------------------- */

static bool set_int(void *zmq, int option, int value) {
    return zmq_setsockopt(zmq, option, &value, sizeof value) == 0;
}

/* One table of options for both ends; the reasons are in docs/DECISIONS.md. */
static bool set_options(void *zmq, bool is_bound) {
    int64_t frame_limit = FRAME_BYTES_LIMIT;
    rng jitter = rng_make(rng_system());
    bool ok = set_int(zmq, ZMQ_LINGER, LINGER_MS) && set_int(zmq, ZMQ_HEARTBEAT_IVL, HEARTBEAT_IVL_MS) &&
              set_int(zmq, ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_TMO_MS) &&
              set_int(zmq, ZMQ_HEARTBEAT_TTL, HEARTBEAT_TTL_MS) &&
              set_int(zmq, ZMQ_HANDSHAKE_IVL, HANDSHAKE_IVL_MS) &&
              set_int(zmq, ZMQ_TCP_KEEPALIVE, 1) &&
              zmq_setsockopt(zmq, ZMQ_MAXMSGSIZE, &frame_limit, sizeof frame_limit) == 0;
    if (is_bound)
        return ok && set_int(zmq, ZMQ_ROUTER_MANDATORY, 1) && set_int(zmq, ZMQ_SNDHWM, BOUND_QUEUE) &&
               set_int(zmq, ZMQ_RCVHWM, BOUND_QUEUE) && set_int(zmq, ZMQ_BACKLOG, 1024);
    return ok && set_int(zmq, ZMQ_RCVHWM, 0) && set_int(zmq, ZMQ_SNDHWM, BOUND_QUEUE) &&
           set_int(zmq, ZMQ_IMMEDIATE, 1) &&
           set_int(zmq, ZMQ_RECONNECT_IVL, 100 + (int)rng_below(&jitter, 400)) &&
           set_int(zmq, ZMQ_RECONNECT_IVL_MAX, 10000);
}

static status socket_open(wire_socket **s, void *zmq_context, const char *endpoint, bool is_bound,
                          err *e) {
    *s = NULL;
    wire_socket *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "socket %s", endpoint);
    made->is_bound = is_bound;
    made->zmq = zmq_socket(zmq_context, is_bound ? ZMQ_ROUTER : ZMQ_DEALER);
    status st = STATUS_OK;
    if (!made->zmq)
        st = fail(e, STATUS_IO, "socket %s: %s", endpoint, zmq_strerror(zmq_errno()));
    else if (!set_options(made->zmq, is_bound))
        st = fail(e, STATUS_INTERNAL, "socket %s: option: %s", endpoint, zmq_strerror(zmq_errno()));
    else if ((is_bound ? zmq_bind : zmq_connect)(made->zmq, endpoint) != 0)
        st = zmq_errno() == EINVAL || zmq_errno() == EPROTONOSUPPORT
                 ? fail(e, STATUS_BAD_ARGUMENT, "\"%s\" is not an endpoint: they are written as in tcp://host:7000", endpoint)
                 : fail(e, STATUS_IO, "%s %s: %s", is_bound ? "binding" : "connecting to", endpoint,
                        zmq_strerror(zmq_errno()));
    if (st != STATUS_OK) {
        wire_close(&made);
        return st;
    }
    size_t n = sizeof made->endpoint;
    if (zmq_getsockopt(made->zmq, ZMQ_LAST_ENDPOINT, made->endpoint, &n) != 0)
        made->endpoint[0] = '\0';
    *s = made;
    return STATUS_OK;
}

status wire_bind(wire_socket **s, void *zmq_context, const char *endpoint, err *e) {
    return socket_open(s, zmq_context, endpoint, true, e);
}

status wire_connect(wire_socket **s, void *zmq_context, const char *endpoint, err *e) {
    return socket_open(s, zmq_context, endpoint, false, e);
}

void wire_close(wire_socket **s) {
    if (!*s) return;
    if ((*s)->zmq) (void)zmq_close((*s)->zmq);
    free((*s)->envelope);
    free(*s);
    *s = NULL;
}

const char *wire_endpoint(const wire_socket *s) { return s->endpoint; }
void *wire_zmq(const wire_socket *s) { return s->zmq; }

void *wire_context_open(void) {
    void *context = zmq_ctx_new();
    CHECK(context, "a ZeroMQ context can be had");
    CHECK(zmq_ctx_set(context, ZMQ_MAX_MSGSZ, FRAME_BYTES_LIMIT) == 0, "a frame limit can be set");
    CHECK(zmq_ctx_set(context, ZMQ_BLOCKY, 0) == 0, "sockets do not linger by default");
    return context;
}

void wire_context_close(void **zmq_context) {
    if (!*zmq_context) return;
    while (zmq_ctx_term(*zmq_context) != 0 && zmq_errno() == EINTR) {}
    *zmq_context = NULL;
}

/* ---- sending --------------------------------------------------------------------------------- */

static bool grow_envelope(wire_socket *s, size_t need_bytes) {
    if (need_bytes <= s->envelope_bytes) return true;
    unsigned char *grown = realloc(s->envelope, need_bytes);
    if (!grown) return false;
    s->envelope = grown;
    s->envelope_bytes = need_bytes;
    return true;
}

static int send_part(void *zmq, const void *data, size_t n, bool more) {
    int rc;
    do {
        rc = zmq_send(zmq, data, n, ZMQ_DONTWAIT | (more ? ZMQ_SNDMORE : 0));
    } while (rc < 0 && zmq_errno() == EINTR);
    return rc;
}

static status send_failed(void) {
    switch (zmq_errno()) {
    case EHOSTUNREACH: return STATUS_NOT_FOUND;
    case EAGAIN: return STATUS_BUSY;
    default: return STATUS_IO;
    }
}

status wire_send(wire_socket *s, const wire_peer *to, const message *m,
                 const wire_payload *payload) {
    CHECK(s->is_bound == (to != NULL), "bound sockets send to a peer, connected ones to their broker");
    if (to && to->id_bytes == 0) return STATUS_NOT_FOUND;
    if (!grow_envelope(s, HEADER_BYTES + message_encoded_bytes(m))) return STATUS_NO_MEMORY;
    size_t envelope_bytes = message_encode(m, s->envelope + HEADER_BYTES);
    if (envelope_bytes > MESSAGE_ENVELOPE_BYTES_MAX) return STATUS_TOO_LARGE;
    memcpy(s->envelope, magic, sizeof magic);
    bytes_store_le(s->envelope + 4, MESSAGE_VERSION, 2);
    bytes_store_le(s->envelope + 6, 0, 2);
    bytes_store_le(s->envelope + 8, envelope_bytes, 4);
    bytes_store_le(s->envelope + 12, wire_payload_bytes(payload), 4);

    /* The routing id decides: once libzmq has taken it, it takes the rest of the message too. */
    if (to && send_part(s->zmq, to->id, to->id_bytes, true) < 0) return send_failed();
    size_t total = HEADER_BYTES + envelope_bytes;
    size_t n_payload = payload ? payload->n_frames : 0;
    for (size_t at = 0; at < total; at += WIRE_FRAME_BYTES) {
        size_t n = total - at < WIRE_FRAME_BYTES ? total - at : WIRE_FRAME_BYTES;
        bool more = at + n < total || n_payload > 0;
        if (send_part(s->zmq, s->envelope + at, n, more) < 0) {
            return send_failed();
        }
    }
    for (size_t i = 0; i < n_payload; i++) {
        zmq_msg_t frame;
        (void)zmq_msg_init(&frame);
        CHECK(zmq_msg_copy(&frame, (zmq_msg_t *)(uintptr_t)&payload->frames[i]) == 0,
              "a valid frame can be shared");
        FRAME_IS_SENT(&frame);
        int flags = ZMQ_DONTWAIT | (i + 1 < n_payload ? ZMQ_SNDMORE : 0);
        int rc;
        do {
            rc = zmq_msg_send(&frame, s->zmq, flags);
        } while (rc < 0 && zmq_errno() == EINTR);
        if (rc < 0) {
            (void)zmq_msg_close(&frame);
            return send_failed();
        }
    }
    return STATUS_OK;
}

/* ---- receiving ------------------------------------------------------------------------------- */

/* Reads the message's frames one by one. However malformed it is, all its frames are taken, so that
 * the next message starts at its beginning. */
typedef struct {
    void *zmq;
    bool has_more; /* frames of this message are still to come */
} frame_reader;

static bool next_frame(frame_reader *r, zmq_msg_t *frame) {
    if (!r->has_more) return false;
    int rc;
    do {
        rc = zmq_msg_recv(frame, r->zmq, ZMQ_DONTWAIT);
    } while (rc < 0 && zmq_errno() == EINTR);
    r->has_more = rc >= 0 && zmq_msg_more(frame);
    return rc >= 0;
}

static void skip_rest(frame_reader *r) {
    zmq_msg_t frame;
    (void)zmq_msg_init(&frame);
    while (next_frame(r, &frame)) {}
    (void)zmq_msg_close(&frame);
}

static status check_header(const zmq_msg_t *first, size_t *envelope_bytes, size_t *payload_bytes,
                           err *e) {
    zmq_msg_t *frame = (zmq_msg_t *)(uintptr_t)first;
    bytes head = {zmq_msg_data(frame), zmq_msg_size(frame)};
    uint16_t version;
    uint32_t n_envelope, n_payload;
    if (head.len_bytes < HEADER_BYTES || memcmp(head.data, magic, sizeof magic) != 0)
        return fail(e, STATUS_BAD_MESSAGE, "frame of %zu bytes is not the start of a message",
                    head.len_bytes);
    if (!bytes_get_u16(head, 4, &version) || version != MESSAGE_VERSION)
        return fail(e, STATUS_BAD_VERSION, "message version %u, this program speaks %d", version,
                    MESSAGE_VERSION);
    (void)bytes_get_u32(head, 8, &n_envelope);
    (void)bytes_get_u32(head, 12, &n_payload);
    if (n_envelope > MESSAGE_ENVELOPE_BYTES_MAX || n_payload > MESSAGE_IMAGE_BYTES_MAX)
        return fail(e, STATUS_TOO_LARGE, "message of %u + %u bytes, limits %u + %u", n_envelope,
                    n_payload, MESSAGE_ENVELOPE_BYTES_MAX, MESSAGE_IMAGE_BYTES_MAX);
    *envelope_bytes = n_envelope;
    *payload_bytes = n_payload;
    return STATUS_OK;
}

/* The envelope's bytes: usually a view of the first frame, gathered in s->envelope when longer. */
static status read_envelope(wire_socket *s, frame_reader *r, zmq_msg_t *frame, size_t envelope_bytes,
                            bytes *out, err *e) {
    size_t have = zmq_msg_size(frame) - HEADER_BYTES;
    const unsigned char *data = (const unsigned char *)zmq_msg_data(frame) + HEADER_BYTES;
    *out = (bytes){data, envelope_bytes};
    if (have == envelope_bytes) return STATUS_OK;
    if (have > envelope_bytes || zmq_msg_size(frame) != WIRE_FRAME_BYTES)
        return fail(e, STATUS_BAD_MESSAGE, "first frame holds %zu envelope bytes, announced %zu",
                    have, envelope_bytes);
    if (!grow_envelope(s, envelope_bytes))
        return fail(e, STATUS_NO_MEMORY, "envelope of %zu bytes", envelope_bytes);
    memcpy(s->envelope, data, have);
    while (have < envelope_bytes) {
        if (!next_frame(r, frame) || zmq_msg_size(frame) == 0 ||
            zmq_msg_size(frame) > envelope_bytes - have)
            return fail(e, STATUS_BAD_MESSAGE, "envelope ends after %zu of %zu bytes", have,
                        envelope_bytes);
        memcpy(s->envelope + have, zmq_msg_data(frame), zmq_msg_size(frame));
        have += zmq_msg_size(frame);
    }
    *out = (bytes){s->envelope, envelope_bytes};
    return STATUS_OK;
}

static status read_payload(frame_reader *r, size_t payload_bytes, wire_payload **out, err *e) {
    if (payload_bytes == 0) {
        if (r->has_more) return fail(e, STATUS_BAD_MESSAGE, "more frames than announced");
        return STATUS_OK;
    }
    size_t n_frames = frames_for(payload_bytes);
    wire_payload *p = payload_new(n_frames);
    if (!p) return fail(e, STATUS_NO_MEMORY, "payload of %zu bytes", payload_bytes);
    while (p->n_frames < n_frames) {
        zmq_msg_t *frame = &p->frames[p->n_frames];
        (void)zmq_msg_init(frame);
        bool got = next_frame(r, frame);
        p->n_frames++;
        size_t want = payload_bytes - p->len_bytes;
        if (want > WIRE_FRAME_BYTES) want = WIRE_FRAME_BYTES;
        if (!got || zmq_msg_size(frame) != want) {
            wire_payload_close(&p);
            return fail(e, STATUS_BAD_MESSAGE, "payload differs from the announced %zu bytes",
                        payload_bytes);
        }
        FRAME_IS_RECEIVED(frame);
        p->len_bytes += want;
    }
    if (r->has_more) {
        wire_payload_close(&p);
        return fail(e, STATUS_BAD_MESSAGE, "more frames than announced");
    }
    *out = p;
    return STATUS_OK;
}

static status read_message(wire_socket *s, frame_reader *r, zmq_msg_t *frame, wire_message *in,
                           err *e) {
    size_t envelope_bytes = 0, payload_bytes = 0;
    bytes envelope = {0};
    status st = check_header(frame, &envelope_bytes, &payload_bytes, e);
    if (st == STATUS_OK) st = read_envelope(s, r, frame, envelope_bytes, &envelope, e);
    if (st == STATUS_OK) st = message_decode(&in->in, envelope.data, envelope.len_bytes, e);
    if (st == STATUS_OK) st = read_payload(r, payload_bytes, &in->payload, e);
    return st;
}

status wire_receive(wire_socket *s, wire_message *in, err *e) {
    *in = (wire_message){0};
    frame_reader r = {.zmq = s->zmq, .has_more = true};
    zmq_msg_t frame;
    (void)zmq_msg_init(&frame);
    status st = STATUS_OK;
    if (!next_frame(&r, &frame)) {
        st = zmq_errno() == EAGAIN ? STATUS_TIMEOUT
                                   : fail(e, STATUS_IO, "receive: %s", zmq_strerror(zmq_errno()));
        goto done;
    }
    if (s->is_bound) {
        size_t n = zmq_msg_size(&frame);
        if (n > WIRE_ROUTING_BYTES) { /* libzmq's own have five bytes; a peer chose this one itself */
            st = fail(e, STATUS_BAD_MESSAGE, "routing id of %zu bytes, limit %d", n,
                      WIRE_ROUTING_BYTES);
            goto done;
        }
        memcpy(in->from.id, zmq_msg_data(&frame), n);
        in->from.id_bytes = (uint8_t)n;
        if (!next_frame(&r, &frame)) {
            st = fail(e, STATUS_BAD_MESSAGE, "a message of no frames");
            goto done;
        }
    }
    st = read_message(s, &r, &frame, in, e);
    if (st != STATUS_OK) {
        message_in_clear(&in->in);
        wire_payload_close(&in->payload);
    }
done:
    skip_rest(&r);
    (void)zmq_msg_close(&frame);
    return st;
}

void wire_message_clear(wire_message *in) {
    message_in_clear(&in->in);
    wire_payload_close(&in->payload);
    in->from = (wire_peer){0};
}
