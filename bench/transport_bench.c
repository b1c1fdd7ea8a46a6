/* Messages between two sockets of proto/ over TCP on this machine, and plain libzmq in turns.
 *
 *     transport_bench [ROUNDS]
 *
 *     transport bytes=200000 ours_per_s=7000 ours_mbs=1400.0 zmq_per_s=8000 zmq_mbs=1600.0 ratio=0.88
 *
 * A burst of messages goes from a DEALER to a ROUTER on another thread, which answers the last one; a
 * burst of one is a round trip. bytes is the payload: ours adds an envelope that is encoded, sent,
 * decoded and checked, and cuts the payload into frames; plain libzmq sends the same payload, and the
 * size of a heartbeat where there is none, as one frame without looking inside. Neither side copies the
 * payload to send it. A number is the median of
 * the rounds; ratio is ours divided by plain libzmq, above 1 we are faster. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/check.h"
#include "base/clock.h"
#include "bench/median.h"
#include "proto/socket.h"

#define ROUNDS_MAX      99
#define HEARTBEAT_BYTES 22 /* 16 of framing and an envelope with nothing but its kind */
#define PAYLOAD_MAX     2000000

typedef struct {
    void *context;
    wire_socket *bound, *connected;
    void *zmq_bound, *zmq_connected;
    int burst; /* messages until an answer */
} pair;

static unsigned char payload_bytes[PAYLOAD_MAX];

static void wait_readable(void *zmq) {
    zmq_pollitem_t item = {.socket = zmq, .events = ZMQ_POLLIN};
    CHECK(zmq_poll(&item, 1, -1) >= 0, "polling works");
}

/* ---- ours ---------------------------------------------------------------------------------- */

static void receive_ours(wire_socket *s, wire_message *in) {
    err e;
    for (;;) {
        status st = wire_receive(s, in, &e);
        if (st == STATUS_OK) return;
        CHECK(st == STATUS_TIMEOUT, "messages arrive whole");
        wait_readable(wire_zmq(s));
    }
}

static void send_ours(wire_socket *s, const wire_peer *to, const message *m, wire_payload *payload) {
    status st;
    while ((st = wire_send(s, to, m, payload)) == STATUS_BUSY) {
        zmq_pollitem_t item = {.socket = wire_zmq(s), .events = ZMQ_POLLOUT};
        CHECK(zmq_poll(&item, 1, 1) >= 0, "polling works"); /* queue full, or not yet connected */
    }
    CHECK(st == STATUS_OK, "messages leave");
}

static void *answer_ours(void *arg) {
    pair *p = arg;
    const message answer = {.kind = MESSAGE_HEARTBEAT};
    for (int n = 1;; n++) {
        wire_message in = {0};
        receive_ours(p->bound, &in);
        bool is_end = in.in.m.kind == MESSAGE_BYE;
        wire_peer from = in.from;
        wire_message_clear(&in);
        if (is_end) return NULL;
        if (n % p->burst == 0) send_ours(p->bound, &from, &answer, NULL);
    }
}

static void burst_ours(pair *p, wire_payload *payload) {
    message m = {.kind = MESSAGE_HEARTBEAT};
    if (payload)
        m = (message){.kind = MESSAGE_ENCODE, .has_item = true, .attempt = 1, .has_image = true};
    for (int i = 0; i < p->burst; i++) send_ours(p->connected, NULL, &m, payload);
    wire_message in = {0};
    receive_ours(p->connected, &in);
    wire_message_clear(&in);
}

/* ---- plain libzmq -------------------------------------------------------------------------- */

/* Receives one message: its first frame, which names the sender, and its last. */
static void receive_plain(void *zmq, zmq_msg_t *id, zmq_msg_t *last) {
    CHECK(zmq_msg_recv(id, zmq, 0) >= 0, "plain messages arrive");
    for (bool more = zmq_msg_more(id); more; more = zmq_msg_more(last))
        CHECK(zmq_msg_recv(last, zmq, 0) >= 0, "plain messages arrive");
}

static void *answer_plain(void *arg) {
    pair *p = arg;
    for (int n = 1;; n++) {
        zmq_msg_t id, body;
        (void)zmq_msg_init(&id);
        (void)zmq_msg_init(&body);
        receive_plain(p->zmq_bound, &id, &body);
        bool is_end = zmq_msg_size(&body) == 1;
        if (!is_end && n % p->burst == 0) {
            CHECK(zmq_msg_send(&id, p->zmq_bound, ZMQ_SNDMORE) >= 0, "plain messages leave");
            CHECK(zmq_send(p->zmq_bound, "", 0, 0) == 0, "plain messages leave");
        }
        (void)zmq_msg_close(&id);
        (void)zmq_msg_close(&body);
        if (is_end) return NULL;
    }
}

static void keep(void *data, void *hint) {
    (void)data;
    (void)hint;
}

static void burst_plain(pair *p, size_t n_bytes) {
    for (int i = 0; i < p->burst; i++) {
        zmq_msg_t m;
        CHECK(zmq_msg_init_data(&m, payload_bytes, n_bytes, keep, NULL) == 0 &&
                  zmq_msg_send(&m, p->zmq_connected, 0) == (int)n_bytes, "plain messages leave");
    }
    char answer[1];
    CHECK(zmq_recv(p->zmq_connected, answer, sizeof answer, 0) == 0, "plain messages arrive");
}

/* ---- a case -------------------------------------------------------------------------------- */

static void open_pair(pair *p) {
    err e;
    char endpoint[256];
    size_t n = sizeof endpoint;
    int none = 0;
    p->context = wire_context_open();
    CHECK(p->context && wire_bind(&p->bound, p->context, "tcp://127.0.0.1:*", &e) == STATUS_OK &&
              wire_connect(&p->connected, p->context, wire_endpoint(p->bound), &e) == STATUS_OK,
          "sockets open");
    p->zmq_bound = zmq_socket(p->context, ZMQ_ROUTER);
    p->zmq_connected = zmq_socket(p->context, ZMQ_DEALER);
    CHECK(p->zmq_bound && p->zmq_connected &&
              zmq_setsockopt(p->zmq_bound, ZMQ_LINGER, &none, sizeof none) == 0 &&
              zmq_setsockopt(p->zmq_connected, ZMQ_LINGER, &none, sizeof none) == 0 &&
              zmq_bind(p->zmq_bound, "tcp://127.0.0.1:*") == 0 &&
              zmq_getsockopt(p->zmq_bound, ZMQ_LAST_ENDPOINT, endpoint, &n) == 0 &&
              zmq_connect(p->zmq_connected, endpoint) == 0,
          "plain sockets open");
}

static void run_case(size_t n_bytes, int burst, int n_rounds) {
    pair p = {.burst = burst};
    pthread_t ours, plain;
    double ours_s[ROUNDS_MAX], plain_s[ROUNDS_MAX];
    wire_payload *payload = NULL;
    err e;
    open_pair(&p);
    CHECK(n_bytes == 0 || wire_payload_open(&payload, payload_bytes, n_bytes, &e) == STATUS_OK, "a payload");
    CHECK(pthread_create(&ours, NULL, answer_ours, &p) == 0 &&
              pthread_create(&plain, NULL, answer_plain, &p) == 0, "threads start");
    for (int round = -1; round < n_rounds; round++) { /* the first one connects and warms up */
        int64_t start = clock_now_us();
        burst_ours(&p, payload);
        int64_t middle = clock_now_us();
        burst_plain(&p, n_bytes ? n_bytes : HEARTBEAT_BYTES);
        int64_t end = clock_now_us();
        if (round < 0) continue;
        ours_s[round] = (double)(middle - start) / 1e6;
        plain_s[round] = (double)(end - middle) / 1e6;
    }
    double a = median(ours_s, n_rounds), b = median(plain_s, n_rounds);
    printf("transport bytes=%zu burst=%d ours_per_s=%.0f ours_mbs=%.1f zmq_per_s=%.0f zmq_mbs=%.1f ratio=%.2f\n",
           n_bytes, burst, burst / a, (double)n_bytes * burst / a / 1e6, burst / b,
           (double)n_bytes * burst / b / 1e6, b / a);
    send_ours(p.connected, NULL, &(message){.kind = MESSAGE_BYE}, NULL);
    CHECK(zmq_send(p.zmq_connected, "", 1, 0) == 1, "plain messages leave");
    (void)pthread_join(ours, NULL);
    (void)pthread_join(plain, NULL);
    wire_payload_close(&payload);
    wire_close(&p.bound);
    wire_close(&p.connected);
    (void)zmq_close(p.zmq_bound);
    (void)zmq_close(p.zmq_connected);
    wire_context_close(&p.context);
}

int main(int argc, char **argv) {
    int n_rounds = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 15;
    if (n_rounds < 1 || n_rounds > ROUNDS_MAX) {
        (void)fprintf(stderr, "usage: transport_bench [ROUNDS]   1 to %d\n", ROUNDS_MAX);
        return 2;
    }
    run_case(0, 1, n_rounds);
    run_case(0, 10000, n_rounds);
    run_case(200000, 200, n_rounds);
    run_case(1700000, 40, n_rounds);
    return 0;
}
