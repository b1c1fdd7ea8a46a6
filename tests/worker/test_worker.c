/* A worker in a thread, and a broker played by the test over real sockets. */
#include "tests/support/support.h"

#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
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
    played_broker broker;
    fake_engine engine;
} stage;

static int set_up(void **state) {
    stage *s = calloc(1, sizeof *s);
    played_broker_open(&s->broker);
    worker_settings settings = {.name = "node", .role = MESSAGE_ROLE_LM, .slots = 4,
                                .slot_bytes = 1000, .drain_ms = 100};
    memset(settings.tower_fingerprint, 7, HASH_SHA256_BYTES);
    memset(settings.model_fingerprint, 8, HASH_SHA256_BYTES);
    worker_handler handler = {&s->engine, engine_start, engine_cancel, engine_step, engine_metrics};
    played_broker_employ(&s->broker, &settings, &handler);
    s->engine.w = s->broker.w;
    played_broker_run(&s->broker);
    *state = s;
    return 0;
}

static int tear_down(void **state) {
    stage *s = *state;
    atomic_store(&s->engine.is_stuck, false);
    played_broker_dismiss(&s->broker);
    for (int i = 0; i < s->engine.n_held; i++) job_free(&s->engine.held[i]);
    played_broker_close(&s->broker);
    free(s);
    return 0;
}

static bool next_of(stage *s, message_kind kind, wire_message *in, int timeout_ms) {
    return played_broker_next(&s->broker, kind, in, timeout_ms);
}

static void expect(stage *s, message_kind kind, wire_message *in) { played_broker_expect(&s->broker, kind, in); }

static void say(stage *s, message m) { played_broker_say(&s->broker, &m, NULL); }

static void welcome(stage *s) { played_broker_welcome(&s->broker, 100); }

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
    expect(s, MESSAGE_CREDIT, NULL);
    say(s, work(5, 1));
    atomic_store(&s->engine.n_to_answer, 1);
    expect(s, MESSAGE_GENERATED, NULL);
    wire_peer before = s->broker.node;
    /* Not a word for three heartbeats: the node hangs up and comes back over a new connection. */
    expect(s, MESSAGE_NODE_HELLO, &in);
    assert_true(in.in.m.incarnation == incarnation);
    assert_memory_not_equal(&before, &in.from, sizeof before);
    wire_message_clear(&in);
    say(s, (message){.kind = MESSAGE_WELCOME, .heartbeat_ms = 50});
    expect(s, MESSAGE_GENERATED, NULL);
}

static void start_on_failing_device(void *self, job *j) {
    fake_engine *f = self;
    worker_answer_failed(f->w, &j, STATUS_DEVICE, "an illegal address was encountered");
}

/* A node as a program: the engine dies in a process of its own. */
static int failing_node(supervisor_child *c, void *endpoint) {
    struct rlimit no_core = {0};
    (void)setrlimit(RLIMIT_CORE, &no_core);
    fake_engine engine = {0};
    worker_settings settings = {.name = "node", .role = MESSAGE_ROLE_LM, .slots = 1, .supervised = c};
    worker_handler handler = {&engine, start_on_failing_device, engine_cancel, engine_step, engine_metrics};
    void *context = wire_context_open();
    err e;
    if (worker_open(&engine.w, context, endpoint, &settings, &handler, &e) != STATUS_OK) return 9;
    return worker_run(engine.w, &e) == STATUS_OK ? 0 : 9;
}

static int run_failing_node(void *endpoint) { return supervisor_run(failing_node, endpoint); }

static void an_engine_whose_device_failed_is_replaced_and_its_work_reported(void **state) {
    (void)state;
    played_broker b;
    child node;
    wire_message in;
    char *dir = temp_dir_make(), endpoint[512];
    (void)snprintf(endpoint, sizeof endpoint, "ipc://%.400s/broker", dir);
    child_start_function(&node, run_failing_node, endpoint); /* it forks, so before there are threads */
    played_broker_open_at(&b, endpoint);
    played_broker_welcome(&b, 20000);
    message job_of_9 = work(9, 4);
    played_broker_say(&b, &job_of_9, NULL);
    played_broker_expect(&b, MESSAGE_NODE_HELLO, NULL); /* of the next engine, and no FAILED before it */
    message welcome_back = {.kind = MESSAGE_WELCOME, .heartbeat_ms = 20000};
    played_broker_say(&b, &welcome_back, NULL);
    played_broker_expect(&b, MESSAGE_CRASHED, &in);
    assert_int_equal(in.in.m.item.bytes[0], 9);
    assert_int_equal(in.in.m.attempt, 4);
    assert_int_equal(in.in.m.signal, SIGABRT);
    wire_message_clear(&in);
    child_close(&node);
    played_broker_close(&b);
    temp_dir_remove(dir);
}

static void a_refused_node_ends_with_the_brokers_words(void **state) {
    stage *s = *state;
    expect(s, MESSAGE_NODE_HELLO, NULL);
    say(s, (message){.kind = MESSAGE_REFUSED, .code = STATUS_MODEL_MISMATCH, .text = "other tower"});
    played_broker_wait(&s->broker);
    assert_int_equal(s->broker.result, STATUS_MODEL_MISMATCH);
    assert_non_null(strstr(s->broker.why.text, "other tower"));
}

static void a_drain_takes_no_new_work_releases_the_rest_and_says_goodbye(void **state) {
    stage *s = *state;
    welcome(s);
    say(s, work(6, 1));
    assert_true(wait_until(has_started, &s->engine, WAIT_MS));
    worker_stop(s->broker.w);
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
    expect(s, MESSAGE_BYE, NULL);
    played_broker_wait(&s->broker);
    assert_int_equal(s->broker.result, STATUS_OK);
    assert_int_equal(atomic_load(&s->engine.n_started), 1);
}

static void garbage_from_the_broker_is_dropped_and_work_goes_on(void **state) {
    stage *s = *state;
    welcome(s);
    void *raw = wire_zmq(s->broker.socket);
    assert_true(zmq_send(raw, s->broker.node.id, s->broker.node.id_bytes, ZMQ_SNDMORE) > 0);
    assert_true(zmq_send(raw, "garbage", 7, 0) > 0);
    say(s, work(8, 1));
    atomic_store(&s->engine.n_to_answer, 1);
    expect(s, MESSAGE_GENERATED, NULL);
}

#define STORY(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_engine_whose_device_failed_is_replaced_and_its_work_reported), /* first: no thread has been */
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
