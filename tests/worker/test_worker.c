/* A worker in a thread, and a broker played by the test over real sockets. */
#include "tests/support/support.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/clock.h"
#include "tests/worker/played_broker.h"
#include "worker/worker.h"

#define WAIT_MS 5000

/* A handler that answers a job when the test allows it. */
typedef struct {
    worker *w;
    job *held[8];
    int n_held;
    _Atomic(int) n_started, n_cancelled, n_to_answer;
    _Atomic(bool) is_stuck;
} fake_engine;

static void engine_start(void *self, job *j) {
    fake_engine *f = self;
    f->held[f->n_held++] = j;
    atomic_fetch_add(&f->n_started, 1);
}

static void engine_cancel(void *self, const item_id *item, uint32_t attempt) {
    fake_engine *f = self;
    (void)item;
    (void)attempt;
    atomic_fetch_add(&f->n_cancelled, 1);
    if (f->n_held > 0) worker_forget(f->w, &f->held[--f->n_held]);
}

static bool engine_step(void *self) {
    fake_engine *f = self;
    while (atomic_load(&f->is_stuck)) (void)poll(NULL, 0, 1);
    while (f->n_held > 0 && atomic_load(&f->n_to_answer) > 0) {
        atomic_fetch_sub(&f->n_to_answer, 1);
        message m = {.kind = MESSAGE_GENERATED, .body = {(const unsigned char *)"answer", 6}};
        worker_answer(f->w, &f->held[--f->n_held], &m, NULL);
    }
    return atomic_load(&f->n_to_answer) == 0 && f->n_held > 0;
}

static size_t engine_metrics(void *self, metric *out, size_t max) {
    (void)self;
    if (max == 0) return 0;
    out[0] = (metric){"figure", 42.0};
    return 1;
}

typedef struct {
    void *context;
    wire_socket *socket; /* the broker's */
    wire_peer node;
    fake_engine engine;
    worker *w;
    pthread_t thread;
    status result;
    err why;
} stage;

static void *worker_main(void *arg) {
    stage *s = arg;
    s->result = worker_run(s->w, &s->why);
    return NULL;
}

static int set_up(void **state) {
    stage *s = calloc(1, sizeof *s);
    err e;
    s->context = wire_context_open();
    assert_int_equal(wire_bind(&s->socket, s->context, "tcp://127.0.0.1:*", &e), STATUS_OK);
    worker_settings settings = {.name = "node", .role = MESSAGE_ROLE_LM, .slots = 4,
                                .slot_bytes = 1000, .drain_ms = 100};
    memset(settings.tower_fingerprint, 7, HASH_SHA256_BYTES);
    memset(settings.model_fingerprint, 8, HASH_SHA256_BYTES);
    worker_handler handler = {&s->engine, engine_start, engine_cancel, engine_step, engine_metrics};
    assert_int_equal(
        worker_open(&s->w, s->context, wire_endpoint(s->socket), &settings, &handler, &e),
        STATUS_OK);
    s->engine.w = s->w;
    assert_int_equal(pthread_create(&s->thread, NULL, worker_main, s), 0);
    *state = s;
    return 0;
}

static int tear_down(void **state) {
    stage *s = *state;
    atomic_store(&s->engine.is_stuck, false);
    worker_stop(s->w);
    (void)pthread_join(s->thread, NULL);
    for (int i = 0; i < s->engine.n_held; i++) job_free(&s->engine.held[i]);
    worker_close(&s->w);
    wire_close(&s->socket);
    wire_context_close(&s->context);
    free(s);
    return 0;
}

static bool next_of(stage *s, message_kind kind, wire_message *in, int timeout_ms) {
    int64_t until_us = clock_now_us() + timeout_ms * CLOCK_MS_US;
    while (played_broker_receive(s->socket, &s->node, in, until_us)) {
        if (in->in.m.kind == kind) return true;
        wire_message_clear(in);
    }
    return false;
}

static void expect(stage *s, message_kind kind, wire_message *in) {
    if (!next_of(s, kind, in, WAIT_MS)) fail_msg("no %s came", message_kind_name((int)kind));
}

static void expect_and_drop(stage *s, message_kind kind) {
    wire_message in;
    expect(s, kind, &in);
    wire_message_clear(&in);
}

static void say(stage *s, message m) {
    assert_int_equal(wire_send(s->socket, &s->node, &m, NULL), STATUS_OK);
}

static void welcome(stage *s) {
    expect_and_drop(s, MESSAGE_NODE_HELLO);
    say(s, (message){.kind = MESSAGE_WELCOME, .heartbeat_ms = 100});
    expect_and_drop(s, MESSAGE_CREDIT);
}

static message work(uint8_t id, uint32_t attempt) {
    message m = {.kind = MESSAGE_GENERATE, .has_item = true, .attempt = attempt,
                 .body = {(const unsigned char *)"question", 8}};
    memset(m.item.bytes, id, sizeof m.item.bytes);
    return m;
}

static bool has_started(void *arg) { return atomic_load(&((fake_engine *)arg)->n_started) > 0; }
static bool has_started_two(void *arg) { return atomic_load(&((fake_engine *)arg)->n_started) > 1; }
static bool has_cancelled(void *arg) { return atomic_load(&((fake_engine *)arg)->n_cancelled) > 0; }

static void a_node_says_who_it_is_and_gives_credit_only_after_the_welcome(void **state) {
    stage *s = *state;
    wire_message in;
    expect(s, MESSAGE_NODE_HELLO, &in);
    assert_string_equal(in.in.m.name, "node");
    assert_int_equal(in.in.m.role, MESSAGE_ROLE_LM);
    assert_int_equal(in.in.m.tower_fingerprint[0], 7);
    assert_int_equal(in.in.m.model_fingerprint[31], 8);
    wire_message_clear(&in);
    assert_false(next_of(s, MESSAGE_CREDIT, &in, 300));
    say(s, (message){.kind = MESSAGE_WELCOME, .heartbeat_ms = 100});
    expect(s, MESSAGE_CREDIT, &in);
    assert_int_equal(in.in.m.slots, 4);
    assert_int_equal(in.in.m.slot_bytes, 1000);
    wire_message_clear(&in);
}

static void an_answer_is_offered_until_it_is_confirmed(void **state) {
    stage *s = *state;
    welcome(s);
    say(s, work(1, 1));
    atomic_store(&s->engine.n_to_answer, 1);
    for (int i = 0; i < 3; i++) {
        wire_message in;
        expect(s, MESSAGE_GENERATED, &in);
        assert_int_equal(in.in.m.attempt, 1);
        assert_int_equal(in.in.m.item.bytes[0], 1);
        assert_memory_equal(in.in.m.body.data, "answer", 6);
        wire_message_clear(&in);
        say(s, (message){.kind = MESSAGE_PONG});
    }
    message committed = work(1, 1);
    committed.kind = MESSAGE_COMMITTED;
    say(s, committed);
    /* What was already on its way may still come; after a heartbeat without one it has stopped. */
    wire_message in;
    while (next_of(s, MESSAGE_GENERATED, &in, 150)) wire_message_clear(&in);
    say(s, (message){.kind = MESSAGE_PONG});
    assert_false(next_of(s, MESSAGE_GENERATED, &in, 250));
}

static void work_sent_twice_is_done_once(void **state) {
    stage *s = *state;
    welcome(s);
    say(s, work(1, 1));
    say(s, work(1, 1));
    say(s, work(2, 1));
    assert_true(wait_until(has_started_two, &s->engine, WAIT_MS));
    assert_int_equal(atomic_load(&s->engine.n_started), 2);
}

static void heartbeats_name_the_leases_and_progress_stands_still_when_the_engine_is_stuck(
    void **state) {
    stage *s = *state;
    welcome(s);
    say(s, work(3, 9));
    assert_true(wait_until(has_started, &s->engine, WAIT_MS));
    uint32_t seen[2] = {0, 0};
    for (int i = 0; i < 2;) {
        wire_message in;
        expect(s, MESSAGE_HEARTBEAT, &in);
        say(s, (message){.kind = MESSAGE_PONG});
        if (in.in.m.n_leases == 1) {
            assert_int_equal(in.in.m.leases[0].attempt, 9);
            seen[i++] = in.in.m.leases[0].progress;
        }
        wire_message_clear(&in);
    }
    assert_true(seen[1] > seen[0]);

    atomic_store(&s->engine.is_stuck, true);
    uint32_t last = 0, same = 0;
    while (same < 3) {
        wire_message in;
        expect(s, MESSAGE_HEARTBEAT, &in);
        say(s, (message){.kind = MESSAGE_PONG});
        assert_int_equal(in.in.m.n_leases, 1);
        same = in.in.m.leases[0].progress == last ? same + 1 : 0;
        last = in.in.m.leases[0].progress;
        wire_message_clear(&in);
    }
}

static void a_stop_reaches_the_engine_and_ends_the_lease(void **state) {
    stage *s = *state;
    welcome(s);
    say(s, work(4, 2));
    assert_true(wait_until(has_started, &s->engine, WAIT_MS));
    message stop = work(4, 2);
    stop.kind = MESSAGE_STOP;
    say(s, stop);
    assert_true(wait_until(has_cancelled, &s->engine, WAIT_MS));
    wire_message in;
    uint32_t n_leases = 1;
    while (n_leases > 0) {
        expect(s, MESSAGE_HEARTBEAT, &in);
        say(s, (message){.kind = MESSAGE_PONG});
        n_leases = (uint32_t)in.in.m.n_leases;
        wire_message_clear(&in);
    }
}

static void a_silent_broker_is_dialled_again_with_the_same_incarnation_and_unconfirmed_answers(
    void **state) {
    stage *s = *state;
    wire_message in;
    expect(s, MESSAGE_NODE_HELLO, &in);
    uint64_t incarnation = in.in.m.incarnation;
    wire_message_clear(&in);
    say(s, (message){.kind = MESSAGE_WELCOME, .heartbeat_ms = 50});
    expect_and_drop(s, MESSAGE_CREDIT);
    say(s, work(5, 1));
    atomic_store(&s->engine.n_to_answer, 1);
    expect_and_drop(s, MESSAGE_GENERATED);
    wire_peer before = s->node;
    /* Not a word for three heartbeats: the node hangs up and comes back over a new connection. */
    expect(s, MESSAGE_NODE_HELLO, &in);
    assert_true(in.in.m.incarnation == incarnation);
    assert_memory_not_equal(&before, &in.from, sizeof before);
    wire_message_clear(&in);
    say(s, (message){.kind = MESSAGE_WELCOME, .heartbeat_ms = 50});
    expect_and_drop(s, MESSAGE_GENERATED);
}

static void a_refused_node_ends_with_the_brokers_words(void **state) {
    stage *s = *state;
    expect_and_drop(s, MESSAGE_NODE_HELLO);
    say(s, (message){.kind = MESSAGE_REFUSED, .code = STATUS_MODEL_MISMATCH, .text = "other tower"});
    (void)pthread_join(s->thread, NULL);
    assert_int_equal(s->result, STATUS_MODEL_MISMATCH);
    assert_non_null(strstr(s->why.text, "other tower"));
    assert_int_equal(pthread_create(&s->thread, NULL, worker_main, s), 0); /* for tear_down */
}

static void a_drain_takes_no_new_work_releases_the_rest_and_says_goodbye(void **state) {
    stage *s = *state;
    welcome(s);
    say(s, work(6, 1));
    assert_true(wait_until(has_started, &s->engine, WAIT_MS));
    worker_stop(s->w);
    wire_message in;
    uint32_t slots = 1;
    while (slots > 0) {
        expect(s, MESSAGE_CREDIT, &in);
        slots = in.in.m.slots;
        wire_message_clear(&in);
    }
    say(s, work(7, 1));
    bool released[2] = {false, false};
    while (!released[0] || !released[1]) {
        expect(s, MESSAGE_RELEASE, &in);
        released[in.in.m.item.bytes[0] - 6] = true;
        wire_message_clear(&in);
    }
    expect_and_drop(s, MESSAGE_BYE);
    (void)pthread_join(s->thread, NULL);
    assert_int_equal(s->result, STATUS_OK);
    assert_int_equal(atomic_load(&s->engine.n_started), 1);
    assert_int_equal(pthread_create(&s->thread, NULL, worker_main, s), 0); /* for tear_down */
}

static void garbage_from_the_broker_is_dropped_and_work_goes_on(void **state) {
    stage *s = *state;
    welcome(s);
    void *raw = wire_zmq(s->socket);
    assert_true(zmq_send(raw, s->node.id, s->node.id_bytes, ZMQ_SNDMORE) > 0);
    assert_true(zmq_send(raw, "garbage", 7, 0) > 0);
    say(s, work(8, 1));
    atomic_store(&s->engine.n_to_answer, 1);
    expect_and_drop(s, MESSAGE_GENERATED);
}

#define STORY(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        STORY(a_node_says_who_it_is_and_gives_credit_only_after_the_welcome),
        STORY(an_answer_is_offered_until_it_is_confirmed),
        STORY(work_sent_twice_is_done_once),
        STORY(heartbeats_name_the_leases_and_progress_stands_still_when_the_engine_is_stuck),
        STORY(a_stop_reaches_the_engine_and_ends_the_lease),
        STORY(a_silent_broker_is_dialled_again_with_the_same_incarnation_and_unconfirmed_answers),
        STORY(a_refused_node_ends_with_the_brokers_words),
        STORY(a_drain_takes_no_new_work_releases_the_rest_and_says_goodbye),
        STORY(garbage_from_the_broker_is_dropped_and_work_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
