/* Messages over real sockets: whole ones of every size, malformed ones from a peer that uses libzmq, and
 * bytes of a peer that does not. */
#include "tests/support/support.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "base/clock.h"
#include "base/rng.h"
#include "proto/socket.h"

#define WAIT_MS 5000

typedef struct {
    void *zmq;
    wire_socket *broker, *client;
    void *stranger; /* a plain DEALER of libzmq */
} fixture;

static void fixture_open(fixture *f, const char *endpoint) {
    err e;
    *f = (fixture){.zmq = wire_context_open()};
    assert_int_equal(wire_bind(&f->broker, f->zmq, endpoint, &e), STATUS_OK);
    assert_int_equal(wire_connect(&f->client, f->zmq, wire_endpoint(f->broker), &e), STATUS_OK);
}

static void stranger_open(fixture *f, size_t id_bytes) {
    int linger = 0;
    char id[255];
    memset(id, 'z', sizeof id);
    f->stranger = zmq_socket(f->zmq, ZMQ_DEALER);
    assert_non_null(f->stranger);
    (void)zmq_setsockopt(f->stranger, ZMQ_LINGER, &linger, sizeof linger);
    if (id_bytes) assert_int_equal(zmq_setsockopt(f->stranger, ZMQ_ROUTING_ID, id, id_bytes), 0);
    assert_int_equal(zmq_connect(f->stranger, wire_endpoint(f->broker)), 0);
}

static void fixture_close(fixture *f) {
    if (f->stranger) (void)zmq_close(f->stranger);
    wire_close(&f->client);
    wire_close(&f->broker);
    wire_context_close(&f->zmq);
}

static status receive_within(wire_socket *s, wire_message *in, err *e, int timeout_ms) {
    zmq_pollitem_t item = {.socket = wire_zmq(s), .events = ZMQ_POLLIN};
    if (zmq_poll(&item, 1, timeout_ms) <= 0) return fail(e, STATUS_TIMEOUT, "nothing came");
    return wire_receive(s, in, e);
}

/* A connecting socket refuses until the other side is there. */
static void send_soon(wire_socket *s, const message *m, const wire_payload *payload) {
    int64_t end_us = clock_now_us() + WAIT_MS * CLOCK_MS_US;
    status st;
    while ((st = wire_send(s, NULL, m, payload)) == STATUS_BUSY && clock_now_us() < end_us) {
        zmq_pollitem_t item = {.socket = wire_zmq(s), .events = ZMQ_POLLOUT};
        (void)zmq_poll(&item, 1, 10);
    }
    assert_int_equal(st, STATUS_OK);
}

static void messages_of_every_size_arrive_whole(const char *endpoint) {
    static const size_t payload_sizes[] = {0, 1, WIRE_FRAME_BYTES - 1, WIRE_FRAME_BYTES,
                                           WIRE_FRAME_BYTES + 1, 3 * WIRE_FRAME_BYTES + 17};
    static const size_t body_sizes[] = {1, WIRE_FRAME_BYTES - 16, WIRE_FRAME_BYTES, 1 << 20};
    fixture f;
    err e;
    fixture_open(&f, endpoint);
    rng r = rng_make(test_seed());
    unsigned char *data = malloc(1 << 20);
    assert_non_null(data);
    for (size_t i = 0; i < 1 << 20; i++) data[i] = (unsigned char)rng_next(&r);
    for (size_t p = 0; p < sizeof payload_sizes / sizeof *payload_sizes; p++)
        for (size_t b = 0; b < sizeof body_sizes / sizeof *body_sizes; b++) {
            wire_payload *payload = NULL;
            if (payload_sizes[p])
                assert_int_equal(wire_payload_open(&payload, data, payload_sizes[p], &e), STATUS_OK);
            message m = {.kind = MESSAGE_STATUS, .body = {data, body_sizes[b]}};
            send_soon(f.client, &m, payload);
            wire_payload_close(&payload); /* what was sent stays sent */
            wire_message in;
            assert_int_equal(receive_within(f.broker, &in, &e, WAIT_MS), STATUS_OK);
            assert_int_equal(in.in.m.body.len_bytes, body_sizes[b]);
            assert_memory_equal(in.in.m.body.data, data, body_sizes[b]);
            assert_int_equal(wire_payload_bytes(in.payload), payload_sizes[p]);
            if (payload_sizes[p]) {
                unsigned char *copy = malloc(payload_sizes[p]);
                assert_non_null(copy);
                wire_payload_copy(in.payload, copy);
                assert_memory_equal(copy, data, payload_sizes[p]);
                free(copy);
            }
            /* And back to whom it came from. */
            message pong = {.kind = MESSAGE_PONG};
            assert_int_equal(wire_send(f.broker, &in.from, &pong, NULL), STATUS_OK);
            wire_message_clear(&in);
            assert_int_equal(receive_within(f.client, &in, &e, WAIT_MS), STATUS_OK);
            wire_message_clear(&in);
        }
    free(data);
    fixture_close(&f);
}

static void messages_of_every_size_arrive_whole_over_inproc(void **state) {
    (void)state;
    messages_of_every_size_arrive_whole("inproc://broker");
}

static void messages_of_every_size_arrive_whole_over_tcp(void **state) {
    (void)state;
    messages_of_every_size_arrive_whole("tcp://127.0.0.1:*");
}

static void a_payload_is_shared_not_copied_and_outlives_its_first_owner(void **state) {
    (void)state;
    err e;
    unsigned char data[] = "pixels", copy[sizeof data];
    wire_payload *first, *second;
    assert_int_equal(wire_payload_open(&first, data, sizeof data, &e), STATUS_OK);
    second = wire_payload_share(first);
    assert_non_null(second);
    wire_payload_close(&first);
    assert_null(first);
    wire_payload_close(&first);
    assert_int_equal(wire_payload_bytes(second), sizeof data);
    wire_payload_copy(second, copy);
    assert_memory_equal(copy, data, sizeof data);
    wire_payload_close(&second);
    assert_int_equal(wire_payload_bytes(NULL), 0);
    assert_int_equal(wire_payload_open(&first, data, (size_t)MESSAGE_IMAGE_BYTES_MAX + 1, &e), STATUS_TOO_LARGE);
}

static void a_payload_of_pieces_is_that_of_their_bytes_in_a_row(void **state) {
    (void)state;
    err e;
    rng r = rng_make(test_seed());
    size_t n = 3 * WIRE_FRAME_BYTES;
    unsigned char *data = malloc(n), *copy = malloc(n), whole[HASH_SHA256_BYTES], pieces[HASH_SHA256_BYTES];
    assert_true(data && copy);
    for (size_t i = 0; i < n; i++) data[i] = (unsigned char)rng_next(&r);
    for (int round = 0; round < 200; round++) {
        bytes parts[17];
        size_t n_parts = rng_below(&r, 18), at = 0;
        for (size_t i = 0; i < n_parts; i++) {
            size_t len = rng_below(&r, 4) == 0 ? 0 : rng_below(&r, round % 2 ? 20 : n / 17);
            if (round % 5 == 0 && i == 0) len = WIRE_FRAME_BYTES;
            if (len > n - at) len = n - at;
            parts[i] = (bytes){data + at, len};
            at += len;
        }
        wire_payload *p;
        assert_int_equal(wire_payload_open_parts(&p, parts, n_parts, &e), STATUS_OK);
        assert_int_equal(wire_payload_bytes(p), at);
        wire_payload_copy(p, copy);
        assert_memory_equal(copy, data, at);
        wire_payload_sha256(p, pieces);
        hash_sha256(whole, data, at);
        assert_memory_equal(pieces, whole, sizeof whole);
        wire_payload_close(&p);
    }
    wire_payload *p;
    const bytes too_much[] = {{data, MESSAGE_IMAGE_BYTES_MAX}, {data, 1}}, wraps[] = {{data, SIZE_MAX}, {data, 2}};
    assert_int_equal(wire_payload_open_parts(&p, too_much, 2, &e), STATUS_TOO_LARGE);
    assert_int_equal(wire_payload_open_parts(&p, wraps, 2, &e), STATUS_TOO_LARGE);
    assert_null(p);
    free(data);
    free(copy);
}

static void a_received_payload_can_be_kept_and_sent_on(void **state) {
    (void)state;
    fixture f;
    err e;
    fixture_open(&f, "inproc://broker");
    size_t n = 2 * WIRE_FRAME_BYTES + 5;
    unsigned char *data = calloc(n, 1), *copy = calloc(n, 1);
    assert_true(data && copy);
    data[n - 1] = 42;
    wire_payload *payload;
    assert_int_equal(wire_payload_open(&payload, data, n, &e), STATUS_OK);
    message m = {.kind = MESSAGE_PING};
    send_soon(f.client, &m, payload);
    wire_payload_close(&payload);
    wire_message in;
    assert_int_equal(receive_within(f.broker, &in, &e, WAIT_MS), STATUS_OK);
    wire_payload *kept = in.payload;
    wire_peer from = in.from;
    in.payload = NULL;
    wire_message_clear(&in);
    assert_int_equal(wire_send(f.broker, &from, &m, kept), STATUS_OK);
    wire_payload_close(&kept);
    assert_int_equal(receive_within(f.client, &in, &e, WAIT_MS), STATUS_OK);
    wire_payload_copy(in.payload, copy);
    assert_memory_equal(copy, data, n);
    wire_message_clear(&in);
    free(copy);
    free(data);
    fixture_close(&f);
}

static void nobody_there_is_busy_and_a_peer_that_left_is_not_found(void **state) {
    (void)state;
    void *zmq = wire_context_open();
    wire_socket *s;
    err e;
    char endpoint[64];
    message m = {.kind = MESSAGE_PING};
    (void)snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", free_port());
    assert_int_equal(wire_connect(&s, zmq, endpoint, &e), STATUS_OK);
    assert_int_equal(wire_send(s, NULL, &m, NULL), STATUS_BUSY);
    wire_message in;
    assert_int_equal(wire_receive(s, &in, &e), STATUS_TIMEOUT);
    wire_close(&s);
    assert_int_equal(wire_bind(&s, zmq, "tcp://127.0.0.1:*", &e), STATUS_OK);
    wire_peer nobody = {.id = {1, 2, 3, 4, 5}, .id_bytes = 5}, no_id = {.id_bytes = 0};
    assert_int_equal(wire_send(s, &nobody, &m, NULL), STATUS_NOT_FOUND);
    assert_int_equal(wire_send(s, &no_id, &m, NULL), STATUS_NOT_FOUND);
    wire_close(&s);
    assert_int_equal(wire_bind(&s, zmq, "nonsense://x", &e), STATUS_BAD_ARGUMENT);
    assert_int_equal(wire_bind(&s, zmq, "tcp://192.0.2.1:*", &e), STATUS_IO); /* nobody's address */
    wire_context_close(&zmq);
}

/* ---- a peer that speaks ZeroMQ and nothing else ----------------------------------------------- */

static void say_frames(void *socket, const void *const frames[], const size_t sizes[], size_t n) {
    for (size_t i = 0; i < n; i++)
        assert_int_equal(zmq_send(socket, frames[i], sizes[i], i + 1 < n ? ZMQ_SNDMORE : 0), (int)sizes[i]);
}

static void header(unsigned char out[16], uint16_t version, uint32_t envelope, uint32_t payload) {
    memcpy(out, "MIPH", 4);
    bytes_store_le(out + 4, version, 2);
    bytes_store_le(out + 6, 0, 2);
    bytes_store_le(out + 8, envelope, 4);
    bytes_store_le(out + 12, payload, 4);
}

/* A PING of two envelope bytes. */
static const unsigned char ping_envelope[] = {0x08, MESSAGE_PING};

static void assert_malformed(fixture *f, status want, bool knows_peer) {
    wire_message in;
    err e;
    status st = receive_within(f->broker, &in, &e, WAIT_MS);
    if (st != want) fail_msg("got %s, not %s: %s", status_code((int)st), status_code((int)want), e.text);
    assert_int_equal(in.from.id_bytes != 0, knows_peer);
    assert_null(in.payload);
    assert_null(in.in.memory);
    /* The next message starts at its beginning, and the peer can be answered. */
    message m = {.kind = MESSAGE_PING};
    send_soon(f->client, &m, NULL);
    assert_int_equal(receive_within(f->broker, &in, &e, WAIT_MS), STATUS_OK);
    assert_int_equal(in.in.m.kind, MESSAGE_PING);
    wire_message_clear(&in);
}

static void malformed_messages_are_taken_whole_and_named_by_sender(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker");
    stranger_open(&f, 0);
    static unsigned char big[WIRE_FRAME_BYTES + 16];
    struct {
        uint16_t version;
        uint32_t envelope, payload;
        size_t first_bytes, second_bytes, third_bytes; /* of frames; 0: not sent */
        status want;
    } cases[] = {
        {1, 0, 0, 15, 0, 0, STATUS_BAD_MESSAGE},                        /* no whole header */
        {2, 2, 0, 18, 0, 0, STATUS_BAD_VERSION},
        {0, 2, 0, 18, 0, 0, STATUS_BAD_VERSION},
        {1, MESSAGE_ENVELOPE_BYTES_MAX + 1, 0, 18, 0, 0, STATUS_TOO_LARGE},
        {1, 2, MESSAGE_IMAGE_BYTES_MAX + 1, 18, 0, 0, STATUS_TOO_LARGE},
        {1, UINT32_MAX, UINT32_MAX, 18, 0, 0, STATUS_TOO_LARGE},
        {1, 1, 0, 18, 0, 0, STATUS_BAD_MESSAGE},                        /* more than announced */
        {1, 3, 0, 18, 0, 0, STATUS_BAD_MESSAGE},                        /* less, in a short frame */
        {1, WIRE_FRAME_BYTES, 0, WIRE_FRAME_BYTES, 0, 0, STATUS_BAD_MESSAGE}, /* the rest is missing */
        {1, WIRE_FRAME_BYTES, 0, WIRE_FRAME_BYTES, 17, 0, STATUS_BAD_MESSAGE}, /* the rest is too long */
        {1, 2, 10, 18, 0, 0, STATUS_BAD_MESSAGE},                       /* payload missing */
        {1, 2, 10, 18, 9, 0, STATUS_BAD_MESSAGE},                       /* payload short */
        {1, 2, 10, 18, 11, 0, STATUS_BAD_MESSAGE},                      /* payload long */
        {1, 2, 10, 18, 10, 1, STATUS_BAD_MESSAGE},                      /* a frame too many */
        {1, 2, 0, 18, 1, 1, STATUS_BAD_MESSAGE},
        {1, 0, 0, 16, 0, 0, STATUS_BAD_MESSAGE},                        /* an empty envelope has no kind */
        {1, 2, 64u << 20, 18, WIRE_FRAME_BYTES, 5, STATUS_BAD_MESSAGE}, /* big words, few bytes */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memset(big, 0, sizeof big);
        header(big, cases[i].version, cases[i].envelope, cases[i].payload);
        memcpy(big + 16, ping_envelope, sizeof ping_envelope);
        const void *frames[] = {big, big, big};
        const size_t sizes[] = {cases[i].first_bytes, cases[i].second_bytes, cases[i].third_bytes};
        say_frames(f.stranger, frames, sizes, cases[i].third_bytes ? 3 : cases[i].second_bytes ? 2 : 1);
        assert_malformed(&f, cases[i].want, true);
    }
    const void *nothing[] = {"", ""};
    const size_t zero[] = {0, 0};
    say_frames(f.stranger, nothing, zero, 1);
    assert_malformed(&f, STATUS_BAD_MESSAGE, true);
    say_frames(f.stranger, nothing, zero, 2);
    assert_malformed(&f, STATUS_BAD_MESSAGE, true);
    fixture_close(&f);
}

static void a_thousand_frames_of_one_message_cost_the_next_one_nothing(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker");
    stranger_open(&f, 0);
    for (int i = 0; i < 1000; i++) assert_int_equal(zmq_send(f.stranger, "x", 1, i < 999 ? ZMQ_SNDMORE : 0), 1);
    assert_malformed(&f, STATUS_BAD_MESSAGE, true);
    fixture_close(&f);
}

static void a_routing_id_somebody_chose_is_refused_when_it_is_long(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker");
    stranger_open(&f, 255);
    unsigned char frame[18];
    header(frame, 1, 2, 0);
    memcpy(frame + 16, ping_envelope, 2);
    assert_int_equal(zmq_send(f.stranger, frame, sizeof frame, 0), 18);
    assert_malformed(&f, STATUS_BAD_MESSAGE, false);
    fixture_close(&f);
}

/* ---- a peer that does not even speak ZeroMQ properly ------------------------------------------- */

static int raw_connect(const char *endpoint) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    address.sin_port = htons((uint16_t)atoi(strrchr(endpoint, ':') + 1));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

/* The greeting of ZMTP 3.0 without security, and READY as a DEALER (rfc.zeromq.org/spec/23). libzmq 4.3.4
 * gives up on a peer whose READY comes before its own has left, so the other side's is awaited. */
static void raw_greet(int fd) {
    unsigned char greeting[64] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0, 'N', 'U', 'L', 'L'};
    static const unsigned char ready[] = "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06" "DEALER";
    assert_int_equal(send(fd, greeting, sizeof greeting, MSG_NOSIGNAL), sizeof greeting);
    unsigned char theirs[sizeof greeting + 2 + 0x29]; /* a greeting, and READY as a ROUTER */
    assert_int_equal(recv(fd, theirs, sizeof theirs, MSG_WAITALL), sizeof theirs);
    assert_int_equal(send(fd, ready, sizeof ready - 1, MSG_NOSIGNAL), sizeof ready - 1);
}

static void assert_still_served(fixture *f) {
    message m = {.kind = MESSAGE_PING};
    wire_message in;
    err e;
    send_soon(f->client, &m, NULL);
    assert_int_equal(receive_within(f->broker, &in, &e, WAIT_MS), STATUS_OK);
    assert_int_equal(in.in.m.kind, MESSAGE_PING);
    wire_message_clear(&in);
}

static void a_message_that_never_ends_is_never_delivered_and_stops_nobody(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "tcp://127.0.0.1:*");
    int fd = raw_connect(wire_endpoint(f.broker));
    raw_greet(fd);
    /* First a whole message, so that it is known that the handshake worked. */
    unsigned char whole[2 + 18] = {0x00, 18};
    header(whole + 2, 1, 2, 0);
    memcpy(whole + 18, ping_envelope, 2);
    assert_int_equal(send(fd, whole, sizeof whole, MSG_NOSIGNAL), sizeof whole);
    wire_message in;
    err e;
    assert_int_equal(receive_within(f.broker, &in, &e, WAIT_MS), STATUS_OK);
    wire_message_clear(&in);
    static const unsigned char more[] = {0x01, 4, 'M', 'I', 'P', 'H'}; /* a frame, and more to come */
    for (int i = 0; i < 1000; i++) assert_int_equal(send(fd, more, sizeof more, MSG_NOSIGNAL), sizeof more);
    assert_still_served(&f);
    (void)close(fd); /* and half a message at the end */
    assert_still_served(&f);
    assert_int_equal(wire_receive(f.broker, &in, &e), STATUS_TIMEOUT);
    fixture_close(&f);
}

static void hostile_bytes_before_and_after_the_handshake_stop_nobody(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "tcp://127.0.0.1:*");
    rng r = rng_make(test_seed());
    for (int i = 0; i < 50; i++) {
        int fd = raw_connect(wire_endpoint(f.broker));
        unsigned char noise[512];
        for (size_t k = 0; k < sizeof noise; k++) noise[k] = (unsigned char)rng_next(&r);
        if (i % 2) raw_greet(fd);
        if (i % 5 == 1) memcpy(noise, "\x02\x40\0\0\0\0\0\0\0", 9); /* a frame of 2^62 bytes */
        if (i % 5 == 3) memcpy(noise, "\x02\0\0\0\0\0\x06\0\0", 9);  /* one byte over the frame limit */
        (void)send(fd, noise, sizeof noise, MSG_NOSIGNAL);
        (void)close(fd);
    }
    /* What got through as a message is refused; the honest client's is found among it. */
    message m = {.kind = MESSAGE_PING};
    send_soon(f.client, &m, NULL);
    bool found = false;
    for (int i = 0; i < 1000 && !found; i++) {
        wire_message in;
        err e;
        if (receive_within(f.broker, &in, &e, WAIT_MS) != STATUS_OK) continue;
        found = in.in.m.kind == MESSAGE_PING;
        wire_message_clear(&in);
    }
    assert_true(found);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_of_every_size_arrive_whole_over_inproc),
        cmocka_unit_test(messages_of_every_size_arrive_whole_over_tcp),
        cmocka_unit_test(a_payload_is_shared_not_copied_and_outlives_its_first_owner),
        cmocka_unit_test(a_payload_of_pieces_is_that_of_their_bytes_in_a_row),
        cmocka_unit_test(a_received_payload_can_be_kept_and_sent_on),
        cmocka_unit_test(nobody_there_is_busy_and_a_peer_that_left_is_not_found),
        cmocka_unit_test(malformed_messages_are_taken_whole_and_named_by_sender),
        cmocka_unit_test(a_thousand_frames_of_one_message_cost_the_next_one_nothing),
        cmocka_unit_test(a_routing_id_somebody_chose_is_refused_when_it_is_long),
        cmocka_unit_test(a_message_that_never_ends_is_never_delivered_and_stops_nobody),
        cmocka_unit_test(hostile_bytes_before_and_after_the_handshake_stop_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
