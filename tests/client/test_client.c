/* The client against a broker played by the test: a real ROUTER socket, moved by hand from the same
 * thread, so that every order of messages can be produced. Only client_open, which waits for its
 * WELCOME, needs a second thread for a moment. */
#include "tests/support/support.h"

#include <pthread.h>
#include <string.h>
#include <zmq.h>

#include "base/clock.h"
#include "client/client.h"
#include "proto/bundle.h"
#include "proto/socket.h"

#define HEARTBEAT_MS 150 /* a busy machine may stop us for a while */
#define WAIT_MS      20000
#define EVENTS_MAX   64

typedef struct {
    client_event_kind kind;
    item_id id;
    void *tag;
    status code;
    char text[128];
    size_t n_answers;
    uint64_t total_us;
} seen_event;

typedef struct {
    void *zmq;
    wire_socket *broker;
    client *c;
    wire_peer peer; /* the client, as last heard */
    bool is_mute;   /* no PONG, no WELCOME */
    uint64_t incarnation;
    int n_hellos, n_pings;
    seen_event events[EVENTS_MAX];
    size_t n_events;
    char dir[64];
} fixture;

static void broker_say(fixture *f, message m) {
    assert_int_equal(wire_send(f->broker, &f->peer, &m, NULL), STATUS_OK);
}

static void welcome(fixture *f) {
    broker_say(f, (message){.kind = MESSAGE_WELCOME, .heartbeat_ms = HEARTBEAT_MS,
                            .incarnation = f->incarnation, .slots = 8, .slot_bytes = 1 << 20});
}

/* Answers what a broker answers without thinking; true when the message is left for the test. */
static bool broker_take(fixture *f, wire_message *in) {
    err e;
    status st = wire_receive(f->broker, in, &e);
    if (st == STATUS_TIMEOUT) return false;
    assert_int_equal(st, STATUS_OK);
    f->peer = in->from;
    if (in->in.m.kind == MESSAGE_HELLO) f->n_hellos++;
    if (in->in.m.kind == MESSAGE_PING) f->n_pings++;
    if (!f->is_mute && in->in.m.kind == MESSAGE_HELLO) welcome(f);
    if (!f->is_mute && in->in.m.kind == MESSAGE_PING)
        broker_say(f, (message){.kind = MESSAGE_PONG, .incarnation = f->incarnation});
    return true;
}

static void note_event(fixture *f, const client_event *event) {
    assert_true(f->n_events < EVENTS_MAX);
    seen_event *seen = &f->events[f->n_events++];
    *seen = (seen_event){.kind = event->kind, .id = event->id, .tag = event->tag,
                         .code = event->code, .n_answers = event->outcome.n_answers,
                         .total_us = event->total_us};
    const char *text = event->kind == CLIENT_TOKENS ? event->tokens.text
                       : event->outcome.n_answers   ? event->outcome.answers[0].text
                                                    : event->text;
    (void)snprintf(seen->text, sizeof seen->text, "%s", text ? text : "");
}

static void client_turn(fixture *f, int timeout_ms) {
    client_event event;
    err e;
    status st = client_poll(f->c, timeout_ms, &event, &e);
    if (st == STATUS_OK)
        note_event(f, &event);
    else
        assert_int_equal(st, STATUS_TIMEOUT);
}

/* Both sides move until the client has said a message of the kind; the caller clears it. */
static void expect_message(fixture *f, message_kind kind, wire_message *in) {
    int64_t end_us = clock_now_us() + WAIT_MS * CLOCK_MS_US;
    while (clock_now_us() < end_us) {
        client_turn(f, 1);
        while (broker_take(f, in)) {
            if (in->in.m.kind == kind) return;
            wire_message_clear(in);
        }
    }
    fail_msg("the client never said %s", message_kind_name((int)kind));
}

static void expect_plain(fixture *f, message_kind kind) {
    wire_message in;
    expect_message(f, kind, &in);
    wire_message_clear(&in);
}

/* Both sides move until the client has handed over n events. */
static void expect_events(fixture *f, size_t n) {
    int64_t end_us = clock_now_us() + WAIT_MS * CLOCK_MS_US;
    while (f->n_events < n && clock_now_us() < end_us) {
        wire_message in;
        client_turn(f, 1);
        while (broker_take(f, &in)) wire_message_clear(&in);
    }
    assert_int_equal(f->n_events, n);
}

/* Both sides move for so long; for what must not happen. */
static void run_for(fixture *f, int ms) {
    int64_t end_us = clock_now_us() + ms * CLOCK_MS_US;
    while (clock_now_us() < end_us) {
        wire_message in;
        client_turn(f, 1);
        while (broker_take(f, &in)) {
            assert_int_not_equal(in.in.m.kind, MESSAGE_SUBMIT);
            assert_int_not_equal(in.in.m.kind, MESSAGE_RESULT_ACK);
            wire_message_clear(&in);
        }
    }
}

static void *greet(void *arg) {
    fixture *f = arg;
    zmq_pollitem_t item = {.socket = wire_zmq(f->broker), .events = ZMQ_POLLIN};
    wire_message in;
    while (f->n_hellos == 0 && zmq_poll(&item, 1, WAIT_MS) > 0)
        while (broker_take(f, &in)) wire_message_clear(&in);
    return NULL;
}

static void fixture_open(fixture *f, const char *endpoint, const client_settings *settings) {
    err e;
    *f = (fixture){.zmq = wire_context_open(), .incarnation = 1};
    assert_int_equal(wire_bind(&f->broker, f->zmq, endpoint, &e), STATUS_OK);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, greet, f), 0);
    status st = client_open(&f->c, f->zmq, wire_endpoint(f->broker), settings, &e);
    assert_int_equal(pthread_join(thread, NULL), 0);
    if (st != STATUS_OK) fail_msg("client_open: %s", e.text);
}

static void fixture_close(fixture *f) {
    client_close(&f->c);
    wire_close(&f->broker);
    wire_context_close(&f->zmq);
}

static const request_question one_question[] = {{.prompt = "What is this?"}};
static const request simple_request = {.questions = one_question, .n_questions = 1,
                                       .sampling = {.max_new_tokens = 8}};
static const unsigned char picture[] = "not really a picture";

static client_item make_item(int number) {
    client_item item = {.request = &simple_request, .image = {picture, sizeof picture},
                        .flags = MESSAGE_FLAG_EXIF | MESSAGE_FLAG_STREAM};
    item.id.bytes[0] = (unsigned char)number;
    item.tag = (void *)(uintptr_t)(number + 100);
    return item;
}

static void submit(fixture *f, int number) {
    err e;
    client_item item = make_item(number);
    assert_int_equal(client_submit(f->c, &item, &e), STATUS_OK);
}

static void say_about(fixture *f, message_kind kind, int number, message m) {
    m.kind = kind;
    m.has_item = true;
    m.item = make_item(number).id;
    broker_say(f, m);
}

static void say_result(fixture *f, int number, const char *text) {
    static const int32_t ids[] = {5, 6};
    answer a = {.text = text, .token_ids = ids, .n_tokens = 2, .finish_reason = ANSWER_STOP};
    outcome o = {.answers = &a, .n_answers = 1, .model_name = "test", .image_tokens = 4};
    buf body;
    buf_init(&body, 1 << 16);
    assert_int_equal(outcome_encode(&o, &body), STATUS_OK);
    say_about(f, MESSAGE_RESULT, number,
              (message){.total_us = 77, .body = {body.data, body.len_bytes}});
    buf_deinit(&body);
}

static void say_tokens(fixture *f, int number, uint32_t token_idx, const char *text) {
    int32_t id = 7;
    tokens_piece piece = {.token_ids = &id, .n_tokens = 1, .text = text};
    buf body;
    buf_init(&body, 1 << 16);
    assert_int_equal(tokens_encode(&piece, &body), STATUS_OK);
    say_about(f, MESSAGE_TOKENS, number, (message){.attempt = 1, .token_idx = token_idx,
                                                   .body = {body.data, body.len_bytes}});
    buf_deinit(&body);
}

/* ---- the ordinary course --------------------------------------------------------------------- */

/* Once with the list of one that callers with any number of images have. */
static void several_images_travel_as_a_bundle_with_their_hashes(void **state) {
    (void)state;
    static const bytes files[] = {{picture, sizeof picture}, {picture, 3}, {picture, sizeof picture}};
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    client_item item = make_item(1);
    err e;
    item.image = (bytes){0};
    item.images = files;
    item.n_images = 3;
    assert_int_equal(client_submit(f.c, &item, &e), STATUS_OK);
    wire_message in;
    expect_message(&f, MESSAGE_SUBMIT, &in);
    uint32_t flags = MESSAGE_FLAG_EXIF | MESSAGE_FLAG_IMAGE | MESSAGE_FLAG_BUNDLE;
    assert_int_equal(in.in.m.flags, flags | MESSAGE_FLAG_STREAM);
    assert_int_equal(in.in.m.cost, 3 * 729 + 8 + sizeof "What is this?" / 4 + 1);
    unsigned char sent[256], sha[HASH_SHA256_BYTES], digest[MESSAGE_DIGEST_BYTES];
    size_t n = wire_payload_bytes(in.payload);
    assert_true(n <= sizeof sent);
    wire_payload_copy(in.payload, sent);
    hash_sha256(sha, sent, n);
    assert_memory_equal(in.in.m.image_sha256, sha, sizeof sha);
    request_digest(digest, sha, flags, in.in.m.body);
    assert_memory_equal(in.in.m.request_digest, digest, sizeof digest);
    bundle b;
    request r;
    request_memory memory = {0};
    assert_int_equal(bundle_decode(&b, (bytes){sent, n}, &e), STATUS_OK);
    assert_int_equal(request_decode(&r, &memory, in.in.m.body, &e), STATUS_OK);
    assert_int_equal(b.n, 3);
    assert_int_equal(r.n_images, 3);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(b.files[i].len_bytes, files[i].len_bytes);
        assert_memory_equal(b.files[i].data, files[i].data, files[i].len_bytes);
        hash_sha256(sha, files[i].data, files[i].len_bytes);
        assert_memory_equal(r.images[i], sha, sizeof sha);
    }
    request_memory_clear(&memory);
    wire_message_clear(&in);

    item.id.bytes[0] = 2;
    item.n_images = 1;
    assert_int_equal(client_submit(f.c, &item, &e), STATUS_OK);
    expect_message(&f, MESSAGE_SUBMIT, &in);
    assert_int_equal(in.in.m.flags, MESSAGE_FLAG_EXIF | MESSAGE_FLAG_IMAGE | MESSAGE_FLAG_STREAM);
    hash_sha256(sha, picture, sizeof picture);
    assert_memory_equal(in.in.m.image_sha256, sha, sizeof sha);
    assert_int_equal(wire_payload_bytes(in.payload), sizeof picture);
    wire_message_clear(&in);
    fixture_close(&f);
}

static void travel(const char *endpoint) {
    fixture f;
    fixture_open(&f, endpoint, NULL);
    submit(&f, 1);
    wire_message in;
    expect_message(&f, MESSAGE_SUBMIT, &in);
    unsigned char sha[HASH_SHA256_BYTES], sent[sizeof picture];
    hash_sha256(sha, picture, sizeof picture);
    assert_memory_equal(in.in.m.image_sha256, sha, sizeof sha);
    assert_int_equal(wire_payload_bytes(in.payload), sizeof picture);
    wire_payload_copy(in.payload, sent);
    assert_memory_equal(sent, picture, sizeof picture);
    unsigned char digest[MESSAGE_DIGEST_BYTES];
    request_digest(digest, sha, MESSAGE_FLAG_EXIF | MESSAGE_FLAG_IMAGE, in.in.m.body);
    assert_memory_equal(in.in.m.request_digest, digest, sizeof digest);
    request r;
    request_memory memory = {0};
    err e;
    assert_int_equal(request_decode(&r, &memory, in.in.m.body, &e), STATUS_OK);
    assert_string_equal(r.questions[0].prompt, "What is this?");
    request_memory_clear(&memory);
    wire_message_clear(&in);

    say_about(&f, MESSAGE_ACCEPTED, 1, (message){0});
    say_result(&f, 1, "a dog");
    expect_events(&f, 1);
    assert_int_equal(f.events[0].kind, CLIENT_RESULT);
    assert_int_equal(f.events[0].code, STATUS_OK);
    assert_ptr_equal(f.events[0].tag, (void *)101);
    assert_string_equal(f.events[0].text, "a dog");
    assert_int_equal(f.events[0].total_us, 77);
    assert_int_equal(client_unanswered(f.c), 0);
    item_id id = make_item(1).id;
    client_ack(f.c, &id);
    expect_plain(&f, MESSAGE_RESULT_ACK);
    client_close(&f.c);
    bool said_bye = false;
    zmq_pollitem_t item = {.socket = wire_zmq(f.broker), .events = ZMQ_POLLIN};
    while (!said_bye && zmq_poll(&item, 1, WAIT_MS) > 0)
        while (broker_take(&f, &in)) {
            said_bye |= in.in.m.kind == MESSAGE_BYE;
            wire_message_clear(&in);
        }
    assert_true(said_bye);
    fixture_close(&f);
}

static void an_item_travels_whole_and_its_result_comes_back_over_inproc(void **state) {
    (void)state;
    travel("inproc://broker");
}

static void an_item_travels_whole_and_its_result_comes_back_over_tcp(void **state) {
    (void)state;
    travel("tcp://127.0.0.1:*");
}

static void an_item_travels_whole_and_its_result_comes_back_over_ipc(void **state) {
    (void)state;
    char *dir = temp_dir_make();
    char endpoint[200];
    (void)snprintf(endpoint, sizeof endpoint, "ipc://%s/broker", dir);
    travel(endpoint);
    temp_dir_remove(dir);
}

static void a_result_is_acknowledged_only_when_the_caller_says_it_is_safe(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    expect_plain(&f, MESSAGE_SUBMIT);
    say_result(&f, 1, "a dog");
    say_result(&f, 1, "a dog"); /* the broker may repeat itself */
    expect_events(&f, 1);
    run_for(&f, 3 * HEARTBEAT_MS);
    assert_int_equal(f.n_events, 1);
    item_id id = make_item(1).id;
    client_ack(f.c, &id);
    expect_plain(&f, MESSAGE_RESULT_ACK);
    say_result(&f, 1, "a dog"); /* the acknowledgement was lost */
    expect_plain(&f, MESSAGE_RESULT_ACK);
    assert_int_equal(f.n_events, 1);
    fixture_close(&f);
}

static void a_full_window_answers_busy_until_something_is_answered(void **state) {
    (void)state;
    fixture f;
    client_settings settings = {.window_items = 2};
    fixture_open(&f, "inproc://broker", &settings);
    submit(&f, 1);
    submit(&f, 2);
    err e;
    client_item third = make_item(3);
    assert_false(client_has_room(f.c, sizeof picture));
    assert_int_equal(client_submit(f.c, &third, &e), STATUS_BUSY);
    expect_plain(&f, MESSAGE_SUBMIT);
    say_result(&f, 1, "x");
    expect_events(&f, 1);
    assert_int_equal(client_submit(f.c, &third, &e), STATUS_OK);
    fixture_close(&f);
}

static void a_window_in_bytes_holds_at_least_one_item(void **state) {
    (void)state;
    fixture f;
    client_settings settings = {.window_bytes = 8};
    fixture_open(&f, "inproc://broker", &settings);
    submit(&f, 1);
    err e;
    client_item second = make_item(2);
    assert_int_equal(client_submit(f.c, &second, &e), STATUS_BUSY);
    fixture_close(&f);
}

static void an_id_is_outstanding_once(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    err e;
    client_item again = make_item(1);
    assert_int_equal(client_submit(f.c, &again, &e), STATUS_BAD_ARGUMENT);
    fixture_close(&f);
}

static void an_idle_client_pings(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    expect_plain(&f, MESSAGE_PING);
    expect_plain(&f, MESSAGE_PING);
    assert_int_equal(f.n_hellos, 1);
    fixture_close(&f);
}

static void a_status_report_can_be_asked_for(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    client_status_ask(f.c);
    expect_plain(&f, MESSAGE_STATUS_ASK);
    metric m = {"items_waiting", 3};
    status_report report = {.metrics = &m, .n_metrics = 1};
    buf body;
    buf_init(&body, 1 << 16);
    assert_int_equal(status_report_encode(&report, &body), STATUS_OK);
    broker_say(&f, (message){.kind = MESSAGE_STATUS, .body = {body.data, body.len_bytes}});
    buf_deinit(&body);
    expect_events(&f, 1);
    assert_int_equal(f.events[0].kind, CLIENT_STATUS);
    fixture_close(&f);
}

/* ---- bad days -------------------------------------------------------------------------------- */

static void busy_is_obeyed_and_the_item_sent_again(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    expect_plain(&f, MESSAGE_SUBMIT);
    int64_t before_us = clock_now_us();
    say_about(&f, MESSAGE_BUSY, 1, (message){.retry_ms = 150});
    expect_plain(&f, MESSAGE_SUBMIT);
    assert_true(clock_now_us() - before_us >= 150 * CLOCK_MS_US);
    fixture_close(&f);
}

static void a_submission_that_is_not_accepted_is_sent_again(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    expect_plain(&f, MESSAGE_SUBMIT);
    expect_plain(&f, MESSAGE_SUBMIT);
    say_about(&f, MESSAGE_ACCEPTED, 1, (message){0});
    run_for(&f, 8 * HEARTBEAT_MS);
    assert_int_equal(f.n_hellos, 1);
    fixture_close(&f);
}

static void a_silent_broker_is_left_and_unanswered_items_go_to_the_next_one(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "tcp://127.0.0.1:*", NULL);
    submit(&f, 1);
    submit(&f, 2);
    wire_message in;
    unsigned char digest[MESSAGE_DIGEST_BYTES] = {0};
    for (int n = 0; n < 2; n++) {
        expect_message(&f, MESSAGE_SUBMIT, &in);
        if (in.in.m.item.bytes[0] == 2) memcpy(digest, in.in.m.request_digest, sizeof digest);
        wire_message_clear(&in);
    }
    say_about(&f, MESSAGE_ACCEPTED, 2, (message){0});
    say_result(&f, 1, "x");
    expect_events(&f, 1);
    wire_peer first_peer = f.peer;

    f.is_mute = true;
    expect_events(&f, 2);
    assert_int_equal(f.events[1].kind, CLIENT_UNAVAILABLE);
    expect_plain(&f, MESSAGE_HELLO);
    f.is_mute = false; /* this HELLO stays without an answer; the next one is welcomed */
    expect_message(&f, MESSAGE_SUBMIT, &in);
    assert_int_equal(in.in.m.item.bytes[0], 2);
    assert_memory_equal(in.in.m.request_digest, digest, sizeof digest);
    assert_int_equal(wire_payload_bytes(in.payload), sizeof picture);
    wire_message_clear(&in);
    assert_memory_not_equal(f.peer.id, first_peer.id, first_peer.id_bytes);
    assert_int_equal(f.events[2].kind, CLIENT_AVAILABLE);

    say_result(&f, 2, "y");
    expect_events(&f, 4);
    assert_int_equal(f.events[3].kind, CLIENT_RESULT);
    assert_string_equal(f.events[3].text, "y");
    item_id id = make_item(1).id; /* its result came before the silence */
    client_ack(f.c, &id);
    expect_message(&f, MESSAGE_RESULT_ACK, &in);
    assert_int_equal(in.in.m.item.bytes[0], 1);
    wire_message_clear(&in);
    fixture_close(&f);
}

static void a_broker_started_again_is_noticed_by_its_pong(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    expect_plain(&f, MESSAGE_SUBMIT);
    say_about(&f, MESSAGE_ACCEPTED, 1, (message){0});
    f.incarnation = 2;
    expect_plain(&f, MESSAGE_HELLO);
    expect_plain(&f, MESSAGE_SUBMIT);
    fixture_close(&f);
}

static void a_broker_that_does_not_know_us_is_greeted_again(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    expect_plain(&f, MESSAGE_SUBMIT);
    broker_say(&f, (message){.kind = MESSAGE_REFUSED, .code = STATUS_BAD_MESSAGE, .text = "who?"});
    expect_plain(&f, MESSAGE_HELLO);
    expect_plain(&f, MESSAGE_SUBMIT);
    fixture_close(&f);
}

static void a_refused_item_is_answered_with_the_reason(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    expect_plain(&f, MESSAGE_SUBMIT);
    say_about(&f, MESSAGE_REFUSED, 1, (message){.code = STATUS_CONFLICT, .text = "differs"});
    expect_events(&f, 1);
    assert_int_equal(f.events[0].kind, CLIENT_RESULT);
    assert_int_equal(f.events[0].code, STATUS_CONFLICT);
    assert_string_equal(f.events[0].text, "differs");
    fixture_close(&f);
}

static void a_result_that_cannot_be_read_is_a_failed_item(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    submit(&f, 2);
    expect_plain(&f, MESSAGE_SUBMIT);
    expect_plain(&f, MESSAGE_SUBMIT);
    say_about(&f, MESSAGE_RESULT, 1, (message){.body = {(const unsigned char *)"\xff\xff", 2}});
    say_about(&f, MESSAGE_RESULT, 2, (message){0}); /* readable, but no answer in it */
    expect_events(&f, 2);
    assert_int_equal(f.events[0].code, STATUS_BAD_MESSAGE);
    assert_int_equal(f.events[1].code, STATUS_BAD_MESSAGE);
    assert_int_equal(f.events[1].n_answers, 0);
    fixture_close(&f);
}

static void tokens_of_a_second_attempt_are_not_shown_twice(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    expect_plain(&f, MESSAGE_SUBMIT);
    say_tokens(&f, 1, 0, "a");
    say_tokens(&f, 1, 1, " red");
    say_tokens(&f, 1, 0, "a");
    say_tokens(&f, 1, 1, " red");
    say_tokens(&f, 1, 2, " dog");
    say_tokens(&f, 1, 4, " gap");
    say_result(&f, 1, "a red dog with a gap");
    say_tokens(&f, 1, 3, " late");
    expect_events(&f, 4);
    run_for(&f, HEARTBEAT_MS);
    assert_int_equal(f.n_events, 4);
    assert_string_equal(f.events[0].text, "a");
    assert_string_equal(f.events[1].text, " red");
    assert_string_equal(f.events[2].text, " dog");
    assert_int_equal(f.events[3].kind, CLIENT_RESULT);
    fixture_close(&f);
}

static void a_cancelled_item_still_has_its_one_result(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    expect_plain(&f, MESSAGE_SUBMIT);
    item_id id = make_item(1).id;
    client_cancel(f.c, &id);
    expect_plain(&f, MESSAGE_CANCEL);
    say_about(&f, MESSAGE_RESULT, 1, (message){.code = STATUS_CANCELLED});
    expect_events(&f, 1);
    assert_int_equal(f.events[0].code, STATUS_CANCELLED);
    fixture_close(&f);
}

static void cancelling_does_not_wait_for_a_broker_that_is_gone(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    expect_plain(&f, MESSAGE_SUBMIT);
    client_cancel_all(f.c);
    f.is_mute = true;
    expect_events(&f, 2);
    assert_int_equal(f.events[0].kind, CLIENT_UNAVAILABLE);
    assert_int_equal(f.events[1].kind, CLIENT_RESULT);
    assert_int_equal(f.events[1].code, STATUS_CANCELLED);
    fixture_close(&f);
}

static void a_deadline_ends_an_item_even_without_a_broker(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    client_item item = make_item(1);
    item.deadline_ms = 50;
    err e;
    assert_int_equal(client_submit(f.c, &item, &e), STATUS_OK);
    wire_message in;
    expect_message(&f, MESSAGE_SUBMIT, &in);
    assert_in_range(in.in.m.deadline_ms, 1, 50);
    wire_message_clear(&in);
    f.is_mute = true;
    expect_events(&f, 2);
    assert_int_equal(f.events[1].code, STATUS_DEADLINE_EXCEEDED);
    fixture_close(&f);
}

static void hostile_messages_are_survived(void **state) {
    (void)state;
    fixture f;
    fixture_open(&f, "inproc://broker", NULL);
    submit(&f, 1);
    expect_plain(&f, MESSAGE_SUBMIT);
    void *raw = wire_zmq(f.broker);
    assert_true(zmq_send(raw, f.peer.id, f.peer.id_bytes, ZMQ_SNDMORE) >= 0);
    assert_true(zmq_send(raw, "garbage", 7, 0) >= 0);
    broker_say(&f, (message){.kind = MESSAGE_NODE_HELLO, .name = "x", .role = 1, .incarnation = 1});
    say_about(&f, MESSAGE_TOKENS, 9, (message){.attempt = 1, .body = {(const unsigned char *)"z", 1}});
    say_about(&f, MESSAGE_TOKENS, 1, (message){.attempt = 1, .question_idx = 4000000000u,
                                               .body = {(const unsigned char *)"z", 1}});
    say_result(&f, 1, "still fine");
    expect_events(&f, 1);
    assert_string_equal(f.events[0].text, "still fine");
    fixture_close(&f);
}

/* ---- opening --------------------------------------------------------------------------------- */

static void opening_without_a_broker_is_unavailable_and_says_where(void **state) {
    (void)state;
    void *zmq = wire_context_open();
    client *c;
    err e;
    client_settings settings = {.open_timeout_ms = 200};
    char endpoint[64];
    (void)snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", free_port());
    assert_int_equal(client_open(&c, zmq, endpoint, &settings, &e), STATUS_UNAVAILABLE);
    assert_non_null(strstr(e.text, endpoint));
    assert_null(c);
    assert_int_equal(client_open(&c, zmq, "nonsense", &settings, &e), STATUS_BAD_ARGUMENT);
    wire_context_close(&zmq);
}

static void *refuse(void *arg) {
    fixture *f = arg;
    zmq_pollitem_t item = {.socket = wire_zmq(f->broker), .events = ZMQ_POLLIN};
    wire_message in;
    f->is_mute = true;
    while (f->n_hellos == 0 && zmq_poll(&item, 1, WAIT_MS) > 0)
        while (broker_take(f, &in)) wire_message_clear(&in);
    broker_say(f, (message){.kind = MESSAGE_REFUSED, .code = STATUS_BAD_VERSION, .text = "too old"});
    return NULL;
}

static void a_refused_greeting_is_final_and_says_why(void **state) {
    (void)state;
    fixture f = {.zmq = wire_context_open()};
    err e;
    assert_int_equal(wire_bind(&f.broker, f.zmq, "inproc://broker", &e), STATUS_OK);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, refuse, &f), 0);
    assert_int_equal(client_open(&f.c, f.zmq, "inproc://broker", NULL, &e), STATUS_BAD_VERSION);
    assert_non_null(strstr(e.text, "too old"));
    assert_int_equal(pthread_join(thread, NULL), 0);
    fixture_close(&f);
}

static void random_ids_differ(void **state) {
    (void)state;
    item_id x, y;
    client_random_id(&x);
    client_random_id(&y);
    assert_memory_not_equal(&x, &y, sizeof x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(several_images_travel_as_a_bundle_with_their_hashes),
        cmocka_unit_test(an_item_travels_whole_and_its_result_comes_back_over_inproc),
        cmocka_unit_test(an_item_travels_whole_and_its_result_comes_back_over_tcp),
        cmocka_unit_test(an_item_travels_whole_and_its_result_comes_back_over_ipc),
        cmocka_unit_test(a_result_is_acknowledged_only_when_the_caller_says_it_is_safe),
        cmocka_unit_test(a_full_window_answers_busy_until_something_is_answered),
        cmocka_unit_test(a_window_in_bytes_holds_at_least_one_item),
        cmocka_unit_test(an_id_is_outstanding_once),
        cmocka_unit_test(an_idle_client_pings),
        cmocka_unit_test(a_status_report_can_be_asked_for),
        cmocka_unit_test(busy_is_obeyed_and_the_item_sent_again),
        cmocka_unit_test(a_submission_that_is_not_accepted_is_sent_again),
        cmocka_unit_test(a_silent_broker_is_left_and_unanswered_items_go_to_the_next_one),
        cmocka_unit_test(a_broker_started_again_is_noticed_by_its_pong),
        cmocka_unit_test(a_broker_that_does_not_know_us_is_greeted_again),
        cmocka_unit_test(a_refused_item_is_answered_with_the_reason),
        cmocka_unit_test(a_result_that_cannot_be_read_is_a_failed_item),
        cmocka_unit_test(tokens_of_a_second_attempt_are_not_shown_twice),
        cmocka_unit_test(a_cancelled_item_still_has_its_one_result),
        cmocka_unit_test(cancelling_does_not_wait_for_a_broker_that_is_gone),
        cmocka_unit_test(a_deadline_ends_an_item_even_without_a_broker),
        cmocka_unit_test(hostile_messages_are_survived),
        cmocka_unit_test(opening_without_a_broker_is_unavailable_and_says_where),
        cmocka_unit_test(a_refused_greeting_is_final_and_says_why),
        cmocka_unit_test(random_ids_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
