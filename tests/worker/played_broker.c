#include "tests/worker/played_broker.h"

#include "tests/support/support.h"

#include <zmq.h>

#include "base/clock.h"

#define WAIT_MS 60000

void played_broker_open_at(played_broker *b, const char *endpoint) {
    err e;
    *b = (played_broker){.context = wire_context_open()};
    if (wire_bind(&b->socket, b->context, endpoint, &e) != STATUS_OK) fail_msg("%s", e.text);
}

void played_broker_open(played_broker *b) { played_broker_open_at(b, "tcp://127.0.0.1:*"); }

void played_broker_close(played_broker *b) {
    if (b->w) played_broker_dismiss(b);
    if (b->w) worker_close(&b->w);
    wire_close(&b->socket);
    wire_context_close(&b->context);
}

static void *node_main(void *arg) {
    played_broker *b = arg;
    b->result = worker_run(b->w, &b->why);
    return NULL;
}

void played_broker_run(played_broker *b) {
    assert_int_equal(pthread_create(&b->thread, NULL, node_main, b), 0);
    b->is_running = true;
}

void played_broker_employ(played_broker *b, const worker_settings *settings, const worker_handler *handler) {
    err e;
    if (worker_open(&b->w, b->context, wire_endpoint(b->socket), settings, handler, &e) != STATUS_OK)
        fail_msg("%s", e.text);
}

void played_broker_wait(played_broker *b) {
    if (b->is_running) assert_int_equal(pthread_join(b->thread, NULL), 0);
    b->is_running = false;
}

void played_broker_dismiss(played_broker *b) {
    worker_stop(b->w);
    played_broker_wait(b);
}

bool played_broker_hear(played_broker *b, wire_message *in, int64_t until_us) {
    while (clock_now_us() < until_us) {
        err e;
        status st = wire_receive(b->socket, in, &e);
        if (st == STATUS_TIMEOUT) {
            zmq_pollitem_t item = {.socket = wire_zmq(b->socket), .events = ZMQ_POLLIN};
            (void)zmq_poll(&item, 1, 20);
            continue;
        }
        assert_int_equal(st, STATUS_OK);
        b->node = in->from;
        return true;
    }
    return false;
}

bool played_broker_next(played_broker *b, message_kind kind, wire_message *in, int timeout_ms) {
    int64_t until_us = clock_now_us() + timeout_ms * CLOCK_MS_US;
    while (played_broker_hear(b, in, until_us)) {
        if (in->in.m.kind == kind) return true;
        wire_message_clear(in);
    }
    return false;
}

void played_broker_expect(played_broker *b, message_kind kind, wire_message *in) {
    wire_message dropped, *out = in ? in : &dropped;
    int64_t until_us = clock_now_us() + WAIT_MS * CLOCK_MS_US;
    while (played_broker_hear(b, out, until_us)) {
        if (out->in.m.kind == kind) {
            if (!in) wire_message_clear(out);
            return;
        }
        if (out->in.m.kind == MESSAGE_FAILED)
            fail_msg("item %d failed: %s", out->in.m.item.bytes[0], out->in.m.text);
        wire_message_clear(out);
    }
    fail_msg("no %s came", message_kind_name((int)kind));
}

void played_broker_say(played_broker *b, const message *m, const wire_payload *payload) {
    assert_int_equal(wire_send(b->socket, &b->node, m, payload), STATUS_OK);
}

void played_broker_welcome(played_broker *b, uint32_t heartbeat_ms) {
    played_broker_expect(b, MESSAGE_NODE_HELLO, NULL);
    message welcome = {.kind = MESSAGE_WELCOME, .heartbeat_ms = heartbeat_ms};
    played_broker_say(b, &welcome, NULL);
    played_broker_expect(b, MESSAGE_CREDIT, NULL);
}
