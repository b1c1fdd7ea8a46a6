/* Each row of the state table in proto/PROTOCOL.md, driven by hand: one client, two nodes, a journal
 * that commits at once unless a test holds it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "broker/item_machine.h"

#include <cmocka.h> /* after ours: it has a macro called fail */

enum { CLIENT = 1, STRANGER = 2, VISION = 10, LM = 20, LM2 = 21, SAID_MAX = 256 };

typedef struct {
    item_machine *m;
    machine_limits limits;
    int64_t now_us;
    uint64_t token, payloads, sessions;
    bool holds_commits;
    action said[SAID_MAX]; /* since the last forget() */
    size_t n_said;
} world;

static void take(world *w, const action *a) {
    if (a->kind == ACTION_COMMIT) w->token = a->commit.token;
    assert_true(w->n_said < SAID_MAX);
    w->said[w->n_said++] = *a;
}

static void send(world *w, event e) {
    action rows[32];
    actions out = {rows, 32, 0};
    uint64_t committed = w->token;
    do {
        machine_step(w->m, &e, w->now_us, &out);
        for (size_t i = 0; i < out.n; i++) take(w, &rows[i]);
        e = (event){.kind = EVENT_TICK};
        if (!w->holds_commits && w->token > committed) {
            committed = w->token;
            e = (event){.kind = EVENT_COMMITTED, .committed = w->token};
        } else if (!machine_has_more(w->m)) {
            break;
        }
    } while (true);
    machine_audit(w->m);
}

static void forget(world *w) { w->n_said = 0; }

static const action *said(const world *w, action_kind kind, unsigned char id) {
    for (size_t i = 0; i < w->n_said; i++)
        if (w->said[i].kind == kind && w->said[i].id.bytes[0] == id) return &w->said[i];
    return NULL;
}

static void wait_us(world *w, int64_t us) {
    w->now_us += us;
    send(w, (event){.kind = EVENT_TICK});
}

static item_ident ident(unsigned char id) {
    item_ident i = {{0}};
    i.bytes[0] = id;
    return i;
}

static void commit(world *w) {
    send(w, (event){.kind = EVENT_COMMITTED, .committed = w->token});
}

static void hello_client(world *w, uint64_t peer) {
    send(w, (event){.kind = EVENT_CLIENT_HELLO, .peer = peer, .client_hello = {7}});
}

static void hello_node(world *w, uint64_t peer, uint32_t roles, uint32_t items) {
    event e = {.kind = EVENT_NODE_HELLO, .peer = peer};
    e.node_hello.node = peer;
    e.node_hello.incarnation = 1;
    e.node_hello.roles = roles;
    e.node_hello.tower.bytes[0] = 1;
    e.node_hello.model.bytes[0] = 2;
    e.node_hello.credit_items = items;
    e.node_hello.credit_bytes = 1 << 20;
    send(w, e);
}

static event submission(world *w, unsigned char id, unsigned char image) {
    event e = {.kind = EVENT_SUBMIT, .peer = CLIENT, .id = ident(id)};
    e.submit.digest.bytes[0] = id;
    e.submit.has_image = image > 0;
    e.submit.image.digest[0] = image;
    e.submit.image_payload = image ? ++w->payloads : 0;
    e.submit.image_bytes = image ? 1000 : 0;
    e.submit.request_payload = ++w->payloads;
    e.submit.request_bytes = 10;
    e.submit.n_questions = 1;
    e.submit.cost = 1;
    return e;
}

static void submit(world *w, unsigned char id, unsigned char image) { send(w, submission(w, id, image)); }

static event report_of(uint64_t peer, event_kind kind, unsigned char id, uint32_t attempt) {
    return (event){.kind = kind, .peer = peer, .id = ident(id), .attempt = attempt};
}

static void report(world *w, uint64_t peer, event_kind kind, unsigned char id, uint32_t attempt) {
    event e = report_of(peer, kind, id, attempt);
    if (kind == EVENT_RESULT || kind == EVENT_TOKENS) e.payload = ++w->payloads, e.payload_bytes = 5;
    send(w, e);
}

static void report_failed(world *w, uint64_t peer, unsigned char id, uint32_t attempt, status code,
                          bool is_permanent) {
    event e = report_of(peer, EVENT_FAILED, id, attempt);
    e.failed.code = code;
    e.failed.is_permanent = is_permanent;
    send(w, e);
}

static void report_crash(world *w, uint64_t peer, unsigned char id, uint32_t attempt,
                         uint64_t incarnation) {
    event e = report_of(peer, EVENT_CRASH, id, attempt);
    e.crash.incarnation = incarnation;
    e.crash.is_strong = true;
    send(w, e);
}

static int set_up(void **state) {
    world *w = calloc(1, sizeof *w);
    err e;
    w->limits = machine_limits_default();
    w->limits.n_items_max = w->limits.n_images_max = 16;
    w->limits.client_items_max = 12;
    w->limits.n_grants_max = 16;
    w->limits.bytes_max = 100000;
    w->limits.features_bytes_max = 1000;
    w->limits.lease_us = 8 * w->limits.heartbeat_us;
    w->now_us = 1000;
    assert_int_equal(machine_open(&w->m, &w->limits, &e), STATUS_OK);
    hello_client(w, CLIENT);
    *state = w;
    return 0;
}

static int tear_down(void **state) {
    world *w = *state;
    machine_close(w->m);
    free(w);
    return 0;
}

static void both_nodes(world *w) {
    hello_node(w, VISION, ROLE_VISION, 4);
    hello_node(w, LM, ROLE_LM, 4);
    forget(w);
}

/* --- row 1 ----------------------------------------------------------------------------------- */

static void an_item_travels_from_submit_to_delivered(void **state) {
    world *w = *state;
    both_nodes(w);
    submit(w, 1, 1);
    assert_non_null(said(w, ACTION_SEND_ACCEPTED, 1));
    const action *work = said(w, ACTION_SEND_WORK, 1);
    assert_int_equal(work->peer, VISION);
    assert_int_equal(work->work.stage, STAGE_VISION);
    assert_int_equal(work->work.image_payload, 1);
    forget(w);
    report(w, VISION, EVENT_ENCODED, 1, 1);
    assert_int_equal(said(w, ACTION_SEND_TAKEN, 1)->peer, VISION);
    work = said(w, ACTION_SEND_WORK, 1);
    assert_int_equal(work->peer, LM);
    assert_int_equal(work->attempt, 2);
    forget(w);
    report(w, LM, EVENT_RESULT, 1, 2);
    const action *result = said(w, ACTION_SEND_RESULT, 1);
    assert_int_equal(result->peer, CLIENT);
    assert_int_equal(result->state, ITEM_DONE);
    assert_int_equal(result->payload, 3);
    forget(w);
    send(w, report_of(CLIENT, EVENT_DELIVERED, 1, 0));
    const machine_counts *k = machine_numbers(w->m);
    assert_int_equal(k->accepted, 1);
    assert_int_equal(k->done, 1);
    assert_int_equal(k->n_rows, 0);
    assert_int_equal(k->bytes, 0);
    forget(w);
    submit(w, 1, 1); /* a late duplicate: the tombstone answers, nothing runs */
    assert_int_equal(said(w, ACTION_SEND_STATE, 1)->state, ITEM_DELIVERED);
    assert_null(said(w, ACTION_SEND_WORK, 1));
}

static void nothing_is_said_before_it_is_durable(void **state) {
    world *w = *state;
    both_nodes(w);
    w->holds_commits = true;
    submit(w, 1, 1);
    assert_null(said(w, ACTION_SEND_ACCEPTED, 1));
    commit(w);
    assert_non_null(said(w, ACTION_SEND_ACCEPTED, 1));
    assert_null(said(w, ACTION_SEND_WORK, 1)); /* the claim is on its way */
    commit(w);
    assert_non_null(said(w, ACTION_SEND_WORK, 1));
    report(w, VISION, EVENT_ENCODED, 1, 1);
    assert_null(said(w, ACTION_SEND_TAKEN, 1));
    commit(w);
    assert_non_null(said(w, ACTION_SEND_TAKEN, 1));
    commit(w);
    forget(w);
    report(w, LM, EVENT_RESULT, 1, 2);
    assert_null(said(w, ACTION_SEND_RESULT, 1));
    commit(w);
    assert_non_null(said(w, ACTION_SEND_RESULT, 1));
}

static void a_full_broker_says_busy_and_when_to_come_again(void **state) {
    world *w = *state;
    for (unsigned char i = 1; i <= 12; i++) submit(w, i, 0);
    forget(w);
    submit(w, 13, 0); /* over the client's window */
    assert_true(said(w, ACTION_SEND_BUSY, 13)->retry_ms > 0);
    assert_non_null(said(w, ACTION_RELEASE, 0)); /* and its bytes are let go */
    assert_int_equal(machine_numbers(w->m)->accepted, 12);
}

static void bytes_are_bounded_and_equal_images_count_once(void **state) {
    world *w = *state;
    event e = submission(w, 1, 1);
    e.submit.image_bytes = 90000;
    send(w, e);
    e = submission(w, 2, 2);
    e.submit.image_bytes = 20000;
    send(w, e);
    assert_non_null(said(w, ACTION_SEND_BUSY, 2));
    submit(w, 3, 1); /* 1000 bytes it says, but they are here already */
    assert_int_equal(machine_numbers(w->m)->bytes, 90020);
}

static void the_same_id_is_the_same_item_and_another_digest_a_conflict(void **state) {
    world *w = *state;
    both_nodes(w);
    submit(w, 1, 1);
    forget(w);
    submit(w, 1, 1);
    assert_int_equal(said(w, ACTION_SEND_STATE, 1)->state, ITEM_ENCODING);
    event e = submission(w, 1, 1);
    e.submit.digest.bytes[0] = 99;
    send(w, e);
    assert_int_equal(said(w, ACTION_SEND_REFUSED, 1)->code, STATUS_CONFLICT);
    assert_int_equal(machine_numbers(w->m)->accepted, 1);
}

static void a_client_that_came_back_gets_the_answer(void **state) {
    world *w = *state;
    both_nodes(w);
    submit(w, 1, 0);
    send(w, (event){.kind = EVENT_CLIENT_GONE, .peer = CLIENT});
    hello_client(w, 3);
    event e = submission(w, 1, 0);
    e.peer = 3;
    send(w, e);
    forget(w);
    report(w, LM, EVENT_RESULT, 1, 1);
    assert_int_equal(said(w, ACTION_SEND_RESULT, 1)->peer, 3);
}

static void malformed_submissions_are_refused(void **state) {
    world *w = *state;
    event e = submission(w, 1, 1);
    e.submit.n_questions = 0;
    send(w, e);
    assert_int_equal(said(w, ACTION_SEND_REFUSED, 1)->code, STATUS_BAD_ARGUMENT);
    e = submission(w, 2, 1);
    e.submit.n_questions = ITEM_QUESTIONS_MAX + 1;
    send(w, e);
    assert_int_equal(said(w, ACTION_SEND_REFUSED, 2)->code, STATUS_BAD_ARGUMENT);
}

/* --- rows 2 to 5 ------------------------------------------------------------------------------ */

static void known_features_and_plain_text_skip_the_vision_stage(void **state) {
    world *w = *state;
    both_nodes(w);
    submit(w, 1, 0);
    event e = submission(w, 2, 2);
    e.submit.features_known = true;
    send(w, e);
    assert_int_equal(said(w, ACTION_SEND_WORK, 1)->peer, LM);
    assert_int_equal(said(w, ACTION_SEND_WORK, 2)->peer, LM);
}

static void equal_images_are_encoded_once(void **state) {
    world *w = *state;
    both_nodes(w);
    for (unsigned char i = 1; i <= 5; i++) submit(w, i, 1);
    assert_int_equal(machine_numbers(w->m)->encodes, 1);
    report(w, VISION, EVENT_ENCODED, 1, 1);
    assert_int_equal(machine_numbers(w->m)->encodes, 1);
    assert_int_equal(machine_numbers(w->m)->generates, 4); /* the lm node's credit */
}

static void credit_is_never_exceeded(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 2);
    for (unsigned char i = 1; i <= 6; i++) submit(w, i, 0);
    assert_int_equal(machine_numbers(w->m)->generates, 2);
    report(w, LM, EVENT_RESULT, 1, 1);
    assert_int_equal(machine_numbers(w->m)->generates, 3);
    event e = {.kind = EVENT_NODE_CREDIT, .peer = LM, .credit = {0, 1 << 20}};
    send(w, e);
    report(w, LM, EVENT_RESULT, 2, 1);
    assert_int_equal(machine_numbers(w->m)->generates, 3);
}

static void questions_about_one_image_go_to_the_node_that_has_its_prefix(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 4);
    hello_node(w, LM2, ROLE_LM, 4);
    event e = submission(w, 1, 1);
    e.submit.features_known = true;
    send(w, e);
    uint64_t home = said(w, ACTION_SEND_WORK, 1)->peer;
    for (unsigned char i = 2; i <= 4; i++) {
        submit(w, i, 1);
        assert_int_equal(said(w, ACTION_SEND_WORK, i)->peer, home);
    }
    submit(w, 5, 1); /* home is full, the other one idle: it spills */
    assert_int_not_equal(said(w, ACTION_SEND_WORK, 5)->peer, home);
}

static void a_result_of_an_old_attempt_is_welcome(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 1);
    submit(w, 1, 0);
    hello_node(w, LM2, ROLE_LM, 1);
    for (int i = 0; i < 9; i++) { /* both live, nobody works */
        wait_us(w, w->limits.heartbeat_us);
        send(w, (event){.kind = EVENT_NODE_BEAT, .peer = LM});
        send(w, (event){.kind = EVENT_NODE_BEAT, .peer = LM2});
    }
    assert_int_equal(said(w, ACTION_SEND_STOP, 1)->peer, LM);
    forget(w);
    report(w, LM, EVENT_RESULT, 1, 1); /* the lease is gone, the answer is as good */
    assert_int_equal(said(w, ACTION_SEND_RESULT, 1)->state, ITEM_DONE);
    assert_int_equal(said(w, ACTION_SEND_STOP, 1)->peer, LM2);
    forget(w);
    report(w, LM2, EVENT_RESULT, 1, 2);
    assert_null(said(w, ACTION_SEND_RESULT, 1));
    assert_non_null(said(w, ACTION_SEND_TAKEN, 1));
}

/* --- rows 3 and 9 ----------------------------------------------------------------------------- */

static void progress_renews_a_lease_and_heartbeats_do_not(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 1);
    submit(w, 1, 0);
    forget(w);
    for (uint32_t i = 1; i <= 30; i++) {
        wait_us(w, w->limits.heartbeat_us);
        event e = report_of(LM, EVENT_PROGRESS, 1, 1);
        e.progress = i;
        send(w, e);
    }
    assert_null(said(w, ACTION_SEND_STOP, 1));
    for (int i = 0; i < 9; i++) {
        wait_us(w, w->limits.heartbeat_us);
        event e = report_of(LM, EVENT_PROGRESS, 1, 1);
        e.progress = 30; /* stuck, but talking */
        send(w, e);
    }
    assert_non_null(said(w, ACTION_SEND_STOP, 1));
    assert_int_equal(machine_numbers(w->m)->lease_expiries, 1);
    assert_int_equal(machine_numbers(w->m)->failed, 0);
}

static void a_silent_node_loses_its_work_without_blame(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 1);
    submit(w, 1, 0);
    forget(w);
    wait_us(w, 2 * w->limits.heartbeat_us);
    assert_true(w->n_said > 0 && w->said[0].kind == ACTION_SEND_PING);
    wait_us(w, 2 * w->limits.heartbeat_us);
    assert_int_equal(machine_numbers(w->m)->n_nodes, 0);
    hello_node(w, LM2, ROLE_LM, 1);
    assert_int_equal(said(w, ACTION_SEND_WORK, 1)->attempt, 2);
    forget(w);
    send(w, (event){.kind = EVENT_NODE_BEAT, .peer = LM});
    assert_int_equal(w->said[0].kind, ACTION_SEND_WHO);
}

static void a_reconnected_process_keeps_its_leases(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 1);
    submit(w, 1, 0);
    forget(w);
    event e = {.kind = EVENT_NODE_HELLO, .peer = 55};
    e.node_hello.node = LM;
    e.node_hello.incarnation = 1;
    e.node_hello.roles = ROLE_LM;
    e.node_hello.credit_items = 1;
    e.node_hello.credit_bytes = 1000;
    send(w, e);
    assert_true(w->said[0].welcome.is_resumed);
    report(w, 55, EVENT_RESULT, 1, 1);
    assert_int_equal(said(w, ACTION_SEND_RESULT, 1)->state, ITEM_DONE);
}

/* --- rows 6 to 8 ------------------------------------------------------------------------------ */

static void work_handed_back_goes_out_again(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 1);
    submit(w, 1, 0);
    forget(w);
    report(w, LM, EVENT_RELEASED, 1, 1);
    assert_int_equal(said(w, ACTION_SEND_WORK, 1)->attempt, 2);
    forget(w);
    report(w, LM, EVENT_RELEASED, 1, 1); /* an old one changes nothing */
    assert_null(said(w, ACTION_SEND_WORK, 1));
    assert_non_null(said(w, ACTION_SEND_TAKEN, 1));
}

static void five_retryable_failures_end_an_item(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 1);
    submit(w, 1, 0);
    for (uint32_t n = 1; n <= 5; n++) {
        assert_int_equal(machine_numbers(w->m)->failed, 0);
        report_failed(w, LM, 1, n, STATUS_DEVICE, false);
        report_failed(w, LM, 1, n, STATUS_DEVICE, false); /* said twice, counted once */
        for (int i = 0; i < 20; i++) {
            wait_us(w, w->limits.heartbeat_us);
            send(w, (event){.kind = EVENT_NODE_BEAT, .peer = LM});
            if (machine_numbers(w->m)->leased[STAGE_LM]) break;
        }
    }
    assert_int_equal(said(w, ACTION_SEND_RESULT, 1)->code, STATUS_DEVICE);
    assert_int_equal(machine_numbers(w->m)->retries, 4);
}

static void nobody_can_fail_an_attempt_of_another_node(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 1);
    submit(w, 1, 0);
    hello_node(w, LM2, ROLE_LM, 1);
    report_failed(w, LM2, 1, 1, STATUS_DEVICE, true);
    report(w, LM2, EVENT_RELEASED, 1, 1);
    assert_int_equal(machine_numbers(w->m)->failed, 0);
    assert_int_equal(machine_numbers(w->m)->leased[STAGE_LM], 1);
}

static void an_undecodable_image_fails_all_who_wait_for_it(void **state) {
    world *w = *state;
    both_nodes(w);
    for (unsigned char i = 1; i <= 3; i++) submit(w, i, 1);
    report_failed(w, VISION, 1, 1, STATUS_IMAGE_UNDECODABLE, true);
    for (unsigned char i = 1; i <= 3; i++)
        assert_int_equal(said(w, ACTION_SEND_RESULT, i)->code, STATUS_IMAGE_UNDECODABLE);
}

static void when_an_encoder_backs_off_the_next_one_leads(void **state) {
    world *w = *state;
    both_nodes(w);
    for (unsigned char i = 1; i <= 3; i++) submit(w, i, 1);
    report_failed(w, VISION, 1, 1, STATUS_DEVICE, false);
    assert_int_equal(said(w, ACTION_SEND_WORK, 2)->work.stage, STAGE_VISION);
    assert_null(said(w, ACTION_SEND_WORK, 3));
}

/* --- row 10 ----------------------------------------------------------------------------------- */

static void an_item_that_kills_three_nodes_is_quarantined(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 4);
    submit(w, 1, 0);
    for (uint32_t n = 1; n <= 3; n++) {
        report_crash(w, LM, 1, n, 100 + n);
        report_crash(w, LM, 1, n, 100 + n); /* a repeated report counts once */
        assert_int_equal(said(w, ACTION_SEND_CRASH_TAKEN, 1)->incarnation, 100 + n);
        if (n < 3) assert_null(said(w, ACTION_SEND_RESULT, 1));
        if (n < 3) forget(w);
    }
    assert_int_equal(said(w, ACTION_SEND_RESULT, 1)->code, STATUS_QUARANTINED);
}

static void an_item_with_a_crash_on_record_travels_alone(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 4);
    submit(w, 1, 0);
    submit(w, 2, 0);
    report_crash(w, LM, 1, 1, 100);
    forget(w);
    submit(w, 3, 0); /* the node is being emptied for item 1 */
    assert_null(said(w, ACTION_SEND_WORK, 3));
    report(w, LM, EVENT_RESULT, 2, 1);
    assert_int_equal(said(w, ACTION_SEND_WORK, 1)->attempt, 2);
    assert_null(said(w, ACTION_SEND_WORK, 3));
    report(w, LM, EVENT_RESULT, 1, 2);
    assert_non_null(said(w, ACTION_SEND_WORK, 3));
}

static void a_node_gets_no_work_before_its_crash_is_recorded(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 4);
    submit(w, 1, 0);
    w->holds_commits = true;
    report_crash(w, LM, 1, 1, 100);
    submit(w, 2, 0);
    forget(w);
    send(w, (event){.kind = EVENT_NODE_BEAT, .peer = LM});
    assert_null(said(w, ACTION_SEND_WORK, 2));
    commit(w);
    assert_non_null(said(w, ACTION_SEND_CRASH_TAKEN, 1));
    commit(w);
    assert_true(said(w, ACTION_SEND_WORK, 1) || said(w, ACTION_SEND_WORK, 2));
}

static void an_image_that_killed_three_takes_its_waiters_along(void **state) {
    world *w = *state;
    hello_node(w, VISION, ROLE_VISION, 4);
    submit(w, 1, 1);
    submit(w, 2, 1);
    for (uint32_t n = 1; n <= 3; n++) report_crash(w, VISION, 1, n, 100 + n);
    assert_int_equal(said(w, ACTION_SEND_RESULT, 1)->code, STATUS_QUARANTINED);
    assert_int_equal(said(w, ACTION_SEND_RESULT, 2)->code, STATUS_QUARANTINED);
    submit(w, 3, 1); /* and whoever brings the same bytes later */
    assert_int_equal(said(w, ACTION_SEND_RESULT, 3)->code, STATUS_QUARANTINED);
    assert_null(said(w, ACTION_SEND_WORK, 3));
}

/* --- rows 11 to 16 ---------------------------------------------------------------------------- */

static void missing_features_are_made_again_and_given_up_after_five(void **state) {
    world *w = *state;
    both_nodes(w);
    submit(w, 1, 1);
    for (uint32_t n = 1; n <= 9; n += 2) {
        assert_int_equal(machine_numbers(w->m)->failed, 0);
        const action *work = said(w, ACTION_SEND_WORK, 1);
        assert_int_equal(work->work.stage, STAGE_VISION);
        assert_int_equal(work->work.is_again, n > 1);
        report(w, VISION, EVENT_ENCODED, 1, n);
        forget(w);
        report(w, LM, EVENT_FEATURES_MISSING, 1, n + 1);
    }
    assert_int_equal(said(w, ACTION_SEND_RESULT, 1)->code, STATUS_UNAVAILABLE);
}

static uint64_t report_encoded_with_features(world *w, unsigned char id, uint32_t n, uint32_t bytes) {
    event e = report_of(VISION, EVENT_ENCODED, id, n);
    e.encoded.features = ++w->payloads;
    e.encoded.features_bytes = bytes;
    send(w, e);
    return e.encoded.features;
}

static bool was_released(const world *w, uint64_t payload) {
    for (size_t i = 0; i < w->n_said; i++)
        if (w->said[i].kind == ACTION_RELEASE && w->said[i].payload == payload) return true;
    return false;
}

static void features_handed_over_go_to_every_item_of_the_image_and_leave_with_the_last(void **state) {
    world *w = *state;
    both_nodes(w);
    submit(w, 1, 1);
    submit(w, 2, 1);
    uint64_t features = report_encoded_with_features(w, 1, 1, 500);
    assert_int_equal(said(w, ACTION_SEND_WORK, 1)->work.image_payload, 1);
    forget(w);
    report(w, LM, EVENT_RELEASED, 1, 2); /* handed out again: they go along again */
    assert_int_equal(said(w, ACTION_SEND_WORK, 1)->work.features_payload, features);
    report(w, LM, EVENT_RESULT, 1, 3);
    report(w, LM, EVENT_RELEASED, 2, 1);
    assert_int_equal(said(w, ACTION_SEND_WORK, 2)->work.features_payload, features);
    assert_int_equal(machine_numbers(w->m)->features_bytes, 500);
    assert_false(was_released(w, features));
    report(w, LM, EVENT_RESULT, 2, 2);
    assert_true(was_released(w, features));
    assert_int_equal(machine_numbers(w->m)->features_bytes, 0);
}

static void features_without_room_send_the_work_back_without_blame(void **state) {
    world *w = *state;
    both_nodes(w);
    submit(w, 1, 1);
    submit(w, 2, 2);
    uint64_t first = report_encoded_with_features(w, 1, 1, 2000); /* one always fits */
    assert_false(was_released(w, first));
    uint64_t second = report_encoded_with_features(w, 2, 1, 1);
    assert_true(was_released(w, second));
    const machine_counts *k = machine_numbers(w->m);
    assert_int_equal(k->releases, 1);
    assert_int_equal(k->handed_over, 1);
    report(w, LM, EVENT_RESULT, 1, 2);
    forget(w);
    second = report_encoded_with_features(w, 2, 2, 1);
    assert_int_equal(said(w, ACTION_SEND_WORK, 2)->work.features_payload, second);
}

static void features_nobody_can_use_are_let_go_and_made_again(void **state) {
    world *w = *state;
    both_nodes(w);
    submit(w, 1, 1);
    uint64_t features = report_encoded_with_features(w, 1, 1, 500);
    forget(w);
    report(w, LM, EVENT_FEATURES_MISSING, 1, 2);
    assert_true(was_released(w, features));
    assert_int_equal(said(w, ACTION_SEND_WORK, 1)->work.stage, STAGE_VISION);
    forget(w);
    event stranger = report_of(99, EVENT_ENCODED, 1, 3);
    stranger.encoded.features = features = ++w->payloads;
    send(w, stranger);
    assert_true(was_released(w, features));
}

static void cancel_is_recorded_first_then_told(void **state) {
    world *w = *state;
    both_nodes(w);
    submit(w, 1, 0);
    w->holds_commits = true;
    forget(w);
    send(w, report_of(CLIENT, EVENT_CANCEL, 1, 0));
    assert_null(said(w, ACTION_SEND_RESULT, 1));
    assert_null(said(w, ACTION_SEND_STOP, 1));
    commit(w);
    assert_int_equal(said(w, ACTION_SEND_RESULT, 1)->state, ITEM_CANCELLED);
    assert_int_equal(said(w, ACTION_SEND_STOP, 1)->peer, LM);
    forget(w);
    report(w, LM, EVENT_RESULT, 1, 1); /* too late */
    assert_non_null(said(w, ACTION_SEND_TAKEN, 1));
    assert_null(said(w, ACTION_SEND_RESULT, 1));
}

static void a_passed_deadline_expires_an_item(void **state) {
    world *w = *state;
    event e = submission(w, 1, 0);
    e.submit.deadline_us = w->now_us + 5000;
    send(w, e);
    wait_us(w, 4999);
    assert_null(said(w, ACTION_SEND_RESULT, 1));
    wait_us(w, 1);
    assert_int_equal(said(w, ACTION_SEND_RESULT, 1)->state, ITEM_EXPIRED);
    assert_int_equal(machine_numbers(w->m)->expired, 1);
}

static void results_nobody_fetches_are_dropped_after_their_time(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 1);
    submit(w, 1, 0);
    report(w, LM, EVENT_RESULT, 1, 1);
    wait_us(w, w->limits.retention_us);
    assert_int_equal(machine_numbers(w->m)->n_rows, 0);
    assert_int_equal(machine_numbers(w->m)->bytes, 0);
}

static void only_tokens_of_the_attempt_in_force_reach_the_client(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 1);
    submit(w, 1, 0);
    forget(w);
    report(w, LM, EVENT_TOKENS, 1, 1);
    assert_int_equal(said(w, ACTION_SEND_TOKENS, 1)->peer, CLIENT);
    report(w, LM, EVENT_RELEASED, 1, 1);
    forget(w);
    report(w, LM, EVENT_TOKENS, 1, 1);
    assert_null(said(w, ACTION_SEND_TOKENS, 1));
    assert_non_null(said(w, ACTION_RELEASE, 0));
}

/* --- the rest --------------------------------------------------------------------------------- */

static void nodes_must_serve_the_same_model(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 1);
    event e = {.kind = EVENT_NODE_HELLO, .peer = LM2};
    e.node_hello.node = 5;
    e.node_hello.roles = ROLE_LM;
    e.node_hello.tower.bytes[0] = 1;
    e.node_hello.model.bytes[0] = 3;
    forget(w);
    send(w, e);
    assert_int_equal(w->said[0].code, STATUS_MODEL_MISMATCH);
    e.node_hello.roles = ROLE_VISION; /* whose model does not matter, but its tower does */
    forget(w);
    send(w, e);
    assert_int_equal(w->said[0].kind, ACTION_SEND_WELCOME);
    e.node_hello.tower.bytes[0] = 9;
    e.peer = 99;
    e.node_hello.node = 6;
    forget(w);
    send(w, e);
    assert_int_equal(w->said[0].code, STATUS_MODEL_MISMATCH);
}

static void a_draining_broker_finishes_and_takes_nothing_new(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 1);
    submit(w, 1, 0);
    send(w, (event){.kind = EVENT_DRAIN});
    submit(w, 2, 0);
    assert_non_null(said(w, ACTION_SEND_BUSY, 2));
    assert_null(said(w, ACTION_DRAINED, 0));
    report(w, LM, EVENT_RESULT, 1, 1);
    assert_null(said(w, ACTION_DRAINED, 0));
    send(w, report_of(CLIENT, EVENT_DELIVERED, 1, 0));
    assert_non_null(said(w, ACTION_DRAINED, 0));
}

static void a_draining_node_gets_no_new_work(void **state) {
    world *w = *state;
    hello_node(w, LM, ROLE_LM, 4);
    send(w, (event){.kind = EVENT_NODE_DRAIN, .peer = LM});
    submit(w, 1, 0);
    assert_null(said(w, ACTION_SEND_WORK, 1));
    hello_node(w, LM2, ROLE_LM, 4);
    assert_int_equal(said(w, ACTION_SEND_WORK, 1)->peer, LM2);
}

static void strangers_are_asked_who_they_are(void **state) {
    world *w = *state;
    forget(w);
    event e = submission(w, 1, 1);
    e.peer = STRANGER;
    send(w, e);
    assert_int_equal(w->n_said, 3); /* both payloads are let go, and WHO */
    assert_int_equal(w->said[2].kind, ACTION_SEND_WHO);
}

/* Anything else: every event, about a known and an unknown item, from everybody, changes no count. */
static void anything_else_is_ignored(void **state) {
    world *w = *state;
    both_nodes(w);
    submit(w, 1, 1);
    report(w, VISION, EVENT_ENCODED, 1, 1);
    report(w, LM, EVENT_RESULT, 1, 2);
    machine_counts before = *machine_numbers(w->m);
    const uint64_t peers[] = {CLIENT, STRANGER, VISION, LM};
    for (int kind = 0; kind <= EVENT_KIND_COUNT; kind++)
        for (size_t p = 0; p < 4; p++)
            for (unsigned char id = 1; id <= 2; id++)
                for (uint32_t attempt = 0; attempt <= 3; attempt++) {
                    if (kind == EVENT_SUBMIT || kind == EVENT_DELIVERED || kind == EVENT_DRAIN ||
                        kind == EVENT_CLIENT_GONE || kind == EVENT_NODE_BYE ||
                        kind == EVENT_NODE_GONE)
                        continue;
                    forget(w);
                    event e = report_of(peers[p], (event_kind)kind, id, attempt);
                    send(w, e);
                }
    const machine_counts *k = machine_numbers(w->m);
    assert_int_equal(k->accepted, before.accepted);
    assert_int_equal(k->done, before.done);
    assert_int_equal(k->in_flight, 0);
    assert_int_equal(k->n_rows, 1);
}

static void limits_that_make_no_sense_are_refused_by_name(void **state) {
    (void)state;
    machine_limits limits = machine_limits_default();
    limits.n_images_max = 1;
    item_machine *m;
    err e;
    assert_int_equal(machine_open(&m, &limits, &e), STATUS_BAD_ARGUMENT);
    assert_non_null(strstr(e.text, "n_images_max"));
    assert_null(m);
    machine_close(m);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(an_item_travels_from_submit_to_delivered),
        TEST(nothing_is_said_before_it_is_durable),
        TEST(a_full_broker_says_busy_and_when_to_come_again),
        TEST(bytes_are_bounded_and_equal_images_count_once),
        TEST(the_same_id_is_the_same_item_and_another_digest_a_conflict),
        TEST(a_client_that_came_back_gets_the_answer),
        TEST(malformed_submissions_are_refused),
        TEST(known_features_and_plain_text_skip_the_vision_stage),
        TEST(equal_images_are_encoded_once),
        TEST(credit_is_never_exceeded),
        TEST(questions_about_one_image_go_to_the_node_that_has_its_prefix),
        TEST(a_result_of_an_old_attempt_is_welcome),
        TEST(progress_renews_a_lease_and_heartbeats_do_not),
        TEST(a_silent_node_loses_its_work_without_blame),
        TEST(a_reconnected_process_keeps_its_leases),
        TEST(work_handed_back_goes_out_again),
        TEST(five_retryable_failures_end_an_item),
        TEST(nobody_can_fail_an_attempt_of_another_node),
        TEST(an_undecodable_image_fails_all_who_wait_for_it),
        TEST(when_an_encoder_backs_off_the_next_one_leads),
        TEST(an_item_that_kills_three_nodes_is_quarantined),
        TEST(an_item_with_a_crash_on_record_travels_alone),
        TEST(a_node_gets_no_work_before_its_crash_is_recorded),
        TEST(an_image_that_killed_three_takes_its_waiters_along),
        TEST(missing_features_are_made_again_and_given_up_after_five),
        TEST(features_handed_over_go_to_every_item_of_the_image_and_leave_with_the_last),
        TEST(features_without_room_send_the_work_back_without_blame),
        TEST(features_nobody_can_use_are_let_go_and_made_again),
        TEST(cancel_is_recorded_first_then_told),
        TEST(a_passed_deadline_expires_an_item),
        TEST(results_nobody_fetches_are_dropped_after_their_time),
        TEST(only_tokens_of_the_attempt_in_force_reach_the_client),
        TEST(nodes_must_serve_the_same_model),
        TEST(a_draining_broker_finishes_and_takes_nothing_new),
        TEST(a_draining_node_gets_no_new_work),
        TEST(strangers_are_asked_who_they_are),
        TEST(anything_else_is_ignored),
        cmocka_unit_test(limits_that_make_no_sense_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
