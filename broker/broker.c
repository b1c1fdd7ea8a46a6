/* Messages become events, actions become messages; everything that is decided is decided in
 * item_machine.c.
 *
 * A peer's number is made from the routing id libzmq gave its connection (a zero byte and a 32-bit
 * count that is never used again) and the side it came from, so no table of peers is needed. The
 * journal of this version is the machine's own memory: a COMMIT is committed as soon as the actions of
 * its step are done. */
#include "broker/broker.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/stop.h"
#include "broker/payload_store.h"
#include "proto/request.h"

#define ACTIONS_PER_STEP   256
#define MESSAGES_PER_TURN  128 /* read from one socket before the other gets its turn */
#define POLL_MS_MAX        250
#define NODES_SHOWN_MAX    1024
#define PEER_BACK          (UINT64_C(1) << 33)
#define PEER_KNOWN         (UINT64_C(1) << 34) /* so that no peer is number 0 */
#define ROUTING_AUTO_BYTES 5

/* What `mipha status` shows about a node beyond what the machine knows. */
typedef struct {
    uint64_t peer; /* 0: free */
    char name[MESSAGE_NAME_BYTES_MAX + 1];
    buf figures; /* the StatusReport of its last heartbeat */
} node_note;

struct broker {
    broker_settings settings;
    wire_socket *front, *back;
    item_machine *machine;
    payload_store payloads;
    node_note *notes;
    int wake_fd;
    _Atomic(bool) is_stopping;
    bool is_draining, has_drained;
    int64_t drain_until_us, started_us;
    uint64_t to_commit; /* highest token seen in COMMIT, 0: none open */
    uint64_t bad_messages;
};

/* ---- peers ------------------------------------------------------------------------------------ */

static uint64_t peer_number(const wire_peer *p, bool is_back) {
    if (p->id_bytes != ROUTING_AUTO_BYTES || p->id[0] != 0) return 0; /* chose its own id: not ours */
    return PEER_KNOWN | (is_back ? PEER_BACK : 0) | bytes_load_le(p->id + 1, 4);
}

static wire_peer peer_address(uint64_t peer) {
    wire_peer p = {.id_bytes = ROUTING_AUTO_BYTES};
    bytes_store_le(p.id + 1, peer & UINT32_MAX, 4);
    return p;
}

static wire_socket *peer_socket(const broker *b, uint64_t peer) {
    return peer & PEER_BACK ? b->back : b->front;
}

static node_note *find_note(broker *b, uint64_t peer) {
    for (int i = 0; i < NODES_SHOWN_MAX; i++)
        if (b->notes[i].peer == peer) return &b->notes[i];
    return NULL;
}

static void forget_note(broker *b, uint64_t peer) {
    node_note *note = find_note(b, peer);
    if (!note) return;
    buf_deinit(&note->figures);
    note->peer = 0;
}

/* ---- actions to messages ---------------------------------------------------------------------- */

static void step(broker *b, const event *ev);

/* A peer that cannot be reached is gone for the machine too; a full queue means that it has stopped
 * reading, which is the same. */
static void send_to(broker *b, uint64_t peer, const message *m, const wire_payload *frames) {
    wire_peer to = peer_address(peer);
    status st = wire_send(peer_socket(b, peer), &to, m, frames);
    if (st == STATUS_OK) return;
    if (st == STATUS_NOT_FOUND) /* it has left, and what it said last is answered late: no news */
        log_debug("peer_gone", "kind=%s", message_kind_name((int)m->kind));
    else
        log_warn("send_failed", "kind=%s reason=\"%s\"", message_kind_name((int)m->kind), status_text((int)st));
    event gone = {.kind = peer & PEER_BACK ? EVENT_NODE_GONE : EVENT_CLIENT_GONE, .peer = peer};
    step(b, &gone);
}

static bytes payload_view(const payload *p) {
    return p ? (bytes){p->data, p->len_bytes} : (bytes){0};
}

static message about_item(message_kind kind, const action *a) {
    message m = {.kind = kind, .has_item = true, .attempt = a->attempt};
    memcpy(m.item.bytes, a->id.bytes, sizeof m.item.bytes);
    return m;
}

static void send_welcome(broker *b, const action *a) {
    message m = {.kind = MESSAGE_WELCOME,
                 .heartbeat_ms = (uint32_t)(b->settings.limits.heartbeat_us / CLOCK_MS_US),
                 .slots = b->settings.limits.client_items_max,
                 .slot_bytes = b->settings.limits.client_bytes_max};
    send_to(b, a->peer, &m, NULL);
}

static void send_refused(broker *b, uint64_t peer, const item_ident *id, status code,
                         const char *text) {
    message m = {.kind = MESSAGE_REFUSED, .code = (uint32_t)code, .text = text};
    if (id) {
        m.has_item = true;
        memcpy(m.item.bytes, id->bytes, sizeof m.item.bytes);
    }
    send_to(b, peer, &m, NULL);
}

static bool is_zero(const unsigned char *data, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (data[i]) return false;
    return true;
}

static void send_result(broker *b, const action *a) {
    const payload *body = payload_find(&b->payloads, a->payload);
    const payload *report = payload_find(&b->payloads, a->result.report_payload);
    message m = about_item(MESSAGE_RESULT, a);
    m.code = (uint32_t)a->code;
    if (a->state == ITEM_DONE) m.body = payload_view(body);
    else m.text = body && body->data ? (const char *)body->data : status_text((int)a->code);
    m.report = payload_view(report);
    m.queue_us = (uint64_t)a->result.queue_us;
    m.total_us = (uint64_t)a->result.total_us;
    const fingerprint *model = machine_model(b->machine), *tower = machine_tower(b->machine);
    m.has_fingerprints = !is_zero(model->bytes, sizeof model->bytes);
    memcpy(m.model_fingerprint, model->bytes, sizeof m.model_fingerprint);
    memcpy(m.tower_fingerprint, tower->bytes, sizeof m.tower_fingerprint);
    send_to(b, a->peer, &m, NULL);
}

/* What the client hears when it asks about, cancels or repeats an item that is already known. A final
 * item's result follows by itself. */
static void send_state(broker *b, const action *a) {
    if (a->state == ITEM_NONE || a->state == ITEM_DELIVERED) {
        send_refused(b, a->peer, &a->id, STATUS_NOT_FOUND, "no such item, or it was delivered before");
        return;
    }
    message m = about_item(MESSAGE_ACCEPTED, a);
    send_to(b, a->peer, &m, NULL);
}

static void send_tokens(broker *b, const action *a) {
    const payload *p = payload_find(&b->payloads, a->payload);
    message m = about_item(MESSAGE_TOKENS, a);
    m.question_idx = p->question_idx;
    m.token_idx = p->token_idx;
    m.body = payload_view(p);
    send_to(b, a->peer, &m, NULL);
    payload_release(&b->payloads, a->payload);
}

static void send_work(broker *b, const action *a) {
    bool is_vision = a->work.stage == STAGE_VISION;
    message m = about_item(is_vision ? MESSAGE_ENCODE : MESSAGE_GENERATE, a);
    if (a->work.has_image) {
        m.has_image = true;
        m.flags = MESSAGE_FLAG_IMAGE | (a->work.image.flags & MESSAGE_FLAGS_OF_IMAGE);
        memcpy(m.image_sha256, a->work.image.digest, sizeof m.image_sha256);
    }
    if (is_vision) {
        if (a->work.is_again) m.flags |= MESSAGE_FLAG_REENCODE;
        send_to(b, a->peer, &m, payload_find(&b->payloads, a->work.image_payload)->frames);
        return;
    }
    const payload *asked = payload_find(&b->payloads, a->payload);
    m.flags |= asked->flags & MESSAGE_FLAG_STREAM;
    m.n_questions = a->work.n_questions;
    m.body = payload_view(asked);
    const payload *features = payload_find(&b->payloads, a->work.features_payload);
    send_to(b, a->peer, &m, features ? features->frames : NULL);
}

static void send_plain(broker *b, const action *a, message_kind kind) {
    message m = about_item(kind, a);
    if (a->kind == ACTION_SEND_BUSY) m.retry_ms = a->retry_ms;
    if (a->kind == ACTION_SEND_CRASH_TAKEN) m.incarnation = a->incarnation;
    send_to(b, a->peer, &m, NULL);
}

static void say(broker *b, uint64_t peer, message_kind kind) {
    message m = {.kind = kind};
    send_to(b, peer, &m, NULL);
}

static void perform(broker *b, const action *a) {
    switch (a->kind) {
    case ACTION_COMMIT: b->to_commit = a->commit.token; return;
    case ACTION_RELEASE: payload_release(&b->payloads, a->payload); return;
    case ACTION_DRAINED: b->has_drained = true; return;
    case ACTION_SEND_WHO: say(b, a->peer, MESSAGE_WHO); return;
    case ACTION_SEND_WELCOME: send_welcome(b, a); return;
    case ACTION_SEND_REFUSED:
        send_refused(b, a->peer, is_zero(a->id.bytes, sizeof a->id.bytes) ? NULL : &a->id, a->code,
                     status_text((int)a->code));
        return;
    case ACTION_SEND_ACCEPTED: send_plain(b, a, MESSAGE_ACCEPTED); return;
    case ACTION_SEND_BUSY: send_plain(b, a, MESSAGE_BUSY); return;
    case ACTION_SEND_STATE: send_state(b, a); return;
    case ACTION_SEND_RESULT: send_result(b, a); return;
    case ACTION_SEND_TOKENS: send_tokens(b, a); return;
    case ACTION_SEND_WORK: send_work(b, a); return;
    case ACTION_SEND_STOP: send_plain(b, a, MESSAGE_STOP); return;
    case ACTION_SEND_TAKEN: send_plain(b, a, MESSAGE_COMMITTED); return;
    case ACTION_SEND_CRASH_TAKEN: send_plain(b, a, MESSAGE_CRASH_NOTED); return;
    case ACTION_SEND_PING: say(b, a->peer, MESSAGE_PING); return;
    case ACTION_KIND_COUNT: break;
    }
    CHECK(false, "every action has its message");
}

static void step_once(broker *b, const event *ev) {
    action rows[ACTIONS_PER_STEP];
    actions out = {rows, ACTIONS_PER_STEP, 0};
    machine_step(b->machine, ev, clock_now_us(), &out);
    for (size_t i = 0; i < out.n; i++) perform(b, &out.rows[i]);
}

static void step(broker *b, const event *ev) {
    step_once(b, ev);
    while (b->to_commit || machine_has_more(b->machine)) {
        event next = {.kind = b->to_commit ? EVENT_COMMITTED : EVENT_TICK, .committed = b->to_commit};
        b->to_commit = 0;
        step_once(b, &next);
    }
}

/* ---- messages of clients ---------------------------------------------------------------------- */

static item_ident ident_of(const message *m) {
    item_ident id;
    memcpy(id.bytes, m->item.bytes, sizeof id.bytes);
    return id;
}

static void take_submit(broker *b, uint64_t peer, wire_message *in) {
    const message *m = &in->in.m;
    bool has_image = (m->flags & MESSAGE_FLAG_IMAGE) != 0;
    event ev = {.kind = EVENT_SUBMIT, .peer = peer, .id = ident_of(m)};
    if (has_image != (in->payload != NULL)) {
        send_refused(b, peer, &ev.id, STATUS_BAD_MESSAGE, "image bytes and the image flag disagree");
        return;
    }
    if (has_image) {
        unsigned char digest[HASH_SHA256_BYTES];
        wire_payload_sha256(in->payload, digest);
        if (memcmp(digest, m->image_sha256, sizeof digest) != 0) {
            send_refused(b, peer, &ev.id, STATUS_BAD_MESSAGE, "image bytes do not have that SHA-256");
            return;
        }
        memcpy(ev.submit.image.digest, digest, sizeof digest);
        ev.submit.image.flags = (unsigned char)(m->flags & MESSAGE_FLAGS_OF_IMAGE);
        ev.submit.image_bytes = (uint32_t)wire_payload_bytes(in->payload);
        ev.submit.image_payload = payload_add_frames(&b->payloads, &in->payload);
    }
    ev.submit.request_payload = payload_add_bytes(&b->payloads, m->body);
    if (!ev.submit.request_payload || (has_image && !ev.submit.image_payload)) {
        payload_release(&b->payloads, ev.submit.request_payload);
        payload_release(&b->payloads, ev.submit.image_payload);
        message busy = {.kind = MESSAGE_BUSY, .has_item = true, .item = m->item, .retry_ms = 1000};
        send_to(b, peer, &busy, NULL);
        return;
    }
    payload_find(&b->payloads, ev.submit.request_payload)->flags = m->flags;
    memcpy(ev.submit.digest.bytes, m->request_digest, sizeof ev.submit.digest.bytes);
    ev.submit.has_image = has_image;
    ev.submit.request_bytes = (uint32_t)m->body.len_bytes;
    ev.submit.n_questions = m->n_questions;
    ev.submit.priority = (uint8_t)(m->priority < -128 ? 0 : m->priority > 127 ? 255 : m->priority + 128);
    ev.submit.cost = m->cost ? m->cost : 1;
    if (m->deadline_ms > 0 && m->deadline_ms < INT64_MAX / 2 / CLOCK_MS_US)
        ev.submit.deadline_us = clock_now_us() + (int64_t)m->deadline_ms * CLOCK_MS_US;
    step(b, &ev);
}

static void send_status(broker *b, uint64_t peer);

static void take_from_client(broker *b, uint64_t peer, wire_message *in) {
    const message *m = &in->in.m;
    event ev = {.peer = peer};
    if (m->has_item) ev.id = ident_of(m);
    switch (m->kind) {
    case MESSAGE_HELLO:
        ev.kind = EVENT_CLIENT_HELLO;
        ev.client_hello.tenant = hash_xxh3(m->name, strlen(m->name));
        break;
    case MESSAGE_SUBMIT: take_submit(b, peer, in); return;
    case MESSAGE_CANCEL: ev.kind = EVENT_CANCEL; break;
    case MESSAGE_RESULT_ACK: ev.kind = EVENT_DELIVERED; break;
    case MESSAGE_STATUS_ASK: send_status(b, peer); return;
    case MESSAGE_PING:
        say(b, peer, MESSAGE_PONG);
        ev.kind = EVENT_CLIENT_BEAT;
        break;
    case MESSAGE_BYE: ev.kind = EVENT_CLIENT_GONE; break;
    default:
        send_refused(b, peer, NULL, STATUS_BAD_MESSAGE, "not a message of clients");
        return;
    }
    step(b, &ev);
}

/* ---- messages of nodes ------------------------------------------------------------------------ */

static void tell_progress(broker *b, uint64_t peer, const message *m) {
    for (size_t i = 0; i < m->n_leases; i++) {
        event ev = {.kind = EVENT_PROGRESS, .peer = peer, .attempt = m->leases[i].attempt,
                    .progress = m->leases[i].progress};
        memcpy(ev.id.bytes, m->leases[i].item.bytes, sizeof ev.id.bytes);
        step(b, &ev);
    }
}

static void note_node(broker *b, uint64_t peer, const message *m) {
    node_note *note = find_note(b, peer);
    if (!note && m->kind == MESSAGE_NODE_HELLO) {
        note = find_note(b, 0);
        if (note) *note = (node_note){.peer = peer};
        if (note) buf_init(&note->figures, MESSAGE_ENVELOPE_BYTES_MAX);
    }
    if (!note) return;
    if (m->kind == MESSAGE_NODE_HELLO) {
        (void)snprintf(note->name, sizeof note->name, "%s", m->name);
        log_info("node_joined", "name=\"%s\" role=%u", note->name, m->role);
    } else {
        buf_clear(&note->figures);
        IGNORE(buf_append(&note->figures, m->body.data, m->body.len_bytes),
               "figures that do not fit are not shown");
    }
}

static void take_node_hello(broker *b, uint64_t peer, const message *m) {
    event ev = {.kind = EVENT_NODE_HELLO, .peer = peer};
    ev.node_hello.node = hash_xxh3(m->name, strlen(m->name));
    ev.node_hello.incarnation = m->incarnation;
    ev.node_hello.roles = m->role;
    memcpy(ev.node_hello.tower.bytes, m->tower_fingerprint, FINGERPRINT_BYTES);
    memcpy(ev.node_hello.model.bytes, m->model_fingerprint, FINGERPRINT_BYTES);
    note_node(b, peer, m);
    step(b, &ev);
    tell_progress(b, peer, m);
}

static bool is_strong_signal(uint32_t signo) {
    return signo == SIGSEGV || signo == SIGBUS || signo == SIGILL || signo == SIGFPE ||
           signo == SIGABRT || signo == SIGSYS;
}

static void take_from_node(broker *b, uint64_t peer, wire_message *in) {
    const message *m = &in->in.m;
    event ev = {.peer = peer, .attempt = m->attempt};
    if (m->has_item) ev.id = ident_of(m);
    switch (m->kind) {
    case MESSAGE_NODE_HELLO: take_node_hello(b, peer, m); return;
    case MESSAGE_HEARTBEAT:
        say(b, peer, MESSAGE_PONG);
        note_node(b, peer, m);
        ev.kind = EVENT_NODE_BEAT;
        step(b, &ev);
        tell_progress(b, peer, m);
        return;
    case MESSAGE_CREDIT:
        ev.kind = EVENT_NODE_CREDIT;
        ev.credit.items = m->slots;
        ev.credit.bytes = m->slot_bytes;
        break;
    case MESSAGE_ENCODED:
        ev.kind = EVENT_ENCODED;
        ev.payload = payload_add_bytes(&b->payloads, m->report);
        ev.payload_bytes = (uint32_t)m->report.len_bytes;
        if (!in->payload) break;
        ev.encoded.features_bytes = (uint32_t)wire_payload_bytes(in->payload);
        ev.encoded.features = payload_add_frames(&b->payloads, &in->payload);
        if (!ev.encoded.features) { /* out of memory: offered again */
            payload_release(&b->payloads, ev.payload);
            return;
        }
        break;
    case MESSAGE_GENERATED:
    case MESSAGE_TOKENS:
        ev.kind = m->kind == MESSAGE_TOKENS ? EVENT_TOKENS : EVENT_RESULT;
        ev.payload = payload_add_bytes(&b->payloads, m->body);
        ev.payload_bytes = (uint32_t)m->body.len_bytes;
        if (!ev.payload) return; /* out of memory: offered again, or only streamed */
        payload_find(&b->payloads, ev.payload)->question_idx = m->question_idx;
        payload_find(&b->payloads, ev.payload)->token_idx = m->token_idx;
        break;
    case MESSAGE_FEATURES_MISSING: ev.kind = EVENT_FEATURES_MISSING; break;
    case MESSAGE_FAILED:
        ev.kind = EVENT_FAILED;
        ev.failed.code = m->code < STATUS_COUNT ? (status)m->code : STATUS_INTERNAL;
        ev.failed.is_permanent = !(m->flags & MESSAGE_FLAG_RETRYABLE);
        ev.payload_bytes = (uint32_t)strlen(m->text);
        ev.payload =
            payload_add_bytes(&b->payloads, (bytes){(const unsigned char *)m->text, ev.payload_bytes});
        break;
    case MESSAGE_RELEASE: ev.kind = EVENT_RELEASED; break;
    case MESSAGE_CRASHED:
        ev.kind = EVENT_CRASH;
        ev.crash.incarnation = m->incarnation;
        ev.crash.is_strong = is_strong_signal(m->signal);
        break;
    case MESSAGE_PING:
        say(b, peer, MESSAGE_PONG);
        ev.kind = EVENT_NODE_BEAT;
        break;
    case MESSAGE_BYE:
        forget_note(b, peer);
        ev.kind = EVENT_NODE_BYE;
        break;
    default: send_refused(b, peer, NULL, STATUS_BAD_MESSAGE, "not a message of nodes"); return;
    }
    step(b, &ev);
}

/* ---- status ------------------------------------------------------------------------------------ */

static size_t machine_metrics(const broker *b, metric *out) {
    const machine_counts *c = machine_numbers(b->machine);
    const metric all[] = {
        {"accepted", (double)c->accepted},
        {"done", (double)c->done},
        {"failed", (double)c->failed},
        {"cancelled", (double)c->cancelled},
        {"expired", (double)c->expired},
        {"in_flight", (double)c->in_flight},
        {"waiting_vision", (double)c->queued[STAGE_VISION]},
        {"waiting_lm", (double)c->queued[STAGE_LM]},
        {"waiting_same_image", (double)c->waiting},
        {"encoding", (double)c->leased[STAGE_VISION]},
        {"generating", (double)c->leased[STAGE_LM]},
        {"encodes", (double)c->encodes},
        {"generates", (double)c->generates},
        {"shared_encodings", (double)c->shared},
        {"features_missing", (double)c->regressions},
        {"features_handed_over", (double)c->handed_over},
        {"retries", (double)c->retries},
        {"leases_expired", (double)c->lease_expiries},
        {"crashes", (double)c->crashes},
        {"quarantined", (double)c->quarantined},
        {"nodes_lost", (double)c->nodes_lost},
        {"busy_answers", (double)c->busy},
        {"kept_bytes", (double)(c->bytes + c->features_bytes)},
        {"clients", (double)c->n_clients},
        {"nodes", (double)c->n_nodes},
        {"bad_messages", (double)b->bad_messages},
        {"uptime_seconds", (double)(clock_now_us() - b->started_us) * 1e-6},
    };
    memcpy(out, all, sizeof all);
    return sizeof all / sizeof *all;
}

static void send_status(broker *b, uint64_t peer) {
    metric metrics[64];
    node_status nodes[NODES_SHOWN_MAX];
    status_report figures[NODES_SHOWN_MAX];
    request_memory memory[NODES_SHOWN_MAX];
    size_t n = 0;
    machine_node_view view;
    for (uint32_t i = 0; n < NODES_SHOWN_MAX && i < b->settings.limits.n_nodes_max; i++) {
        if (!machine_node_at(b->machine, i, &view)) continue;
        const node_note *note = find_note(b, view.peer);
        err ignored;
        figures[n] = (status_report){0};
        memory[n] = (request_memory){0};
        if (note && note->figures.len_bytes > 0)
            IGNORE(status_report_decode(&figures[n], &memory[n],
                                        (bytes){note->figures.data, note->figures.len_bytes}, &ignored),
                   "a node that sends nonsense is shown without figures");
        nodes[n] = (node_status){.name = note ? note->name : "?",
                                 .role = view.roles,
                                 .slots = view.items_max,
                                 .running = view.items,
                                 .silent_ms = (uint64_t)((clock_now_us() - view.heard_us) / CLOCK_MS_US),
                                 .is_draining = view.is_draining,
                                 .metrics = figures[n].metrics,
                                 .n_metrics = figures[n].n_metrics};
        n++;
    }
    status_report report = {metrics, machine_metrics(b, metrics), nodes, n};
    buf body;
    buf_init(&body, MESSAGE_ENVELOPE_BYTES_MAX - 4096);
    if (status_report_encode(&report, &body) == STATUS_OK) {
        message m = {.kind = MESSAGE_STATUS, .body = {body.data, body.len_bytes}};
        send_to(b, peer, &m, NULL);
    }
    buf_deinit(&body);
    for (size_t i = 0; i < n; i++) request_memory_clear(&memory[i]);
}

/* ---- the turn ---------------------------------------------------------------------------------- */

static status read_socket(broker *b, wire_socket *s, bool is_back, err *e) {
    for (int i = 0; i < MESSAGES_PER_TURN; i++) {
        wire_message in;
        err bad;
        status st = wire_receive(s, &in, &bad);
        if (st == STATUS_TIMEOUT) return STATUS_OK;
        if (st == STATUS_IO) {
            *e = bad;
            return st;
        }
        uint64_t peer = peer_number(&in.from, is_back);
        if (st != STATUS_OK) {
            b->bad_messages++;
            if (peer) send_refused(b, peer, NULL, st, bad.text);
        } else if (peer) {
            if (is_back) take_from_node(b, peer, &in);
            else take_from_client(b, peer, &in);
        }
        wire_message_clear(&in);
    }
    return STATUS_OK;
}

static void wait_for_something(broker *b) {
    int64_t due_us = machine_next_us(b->machine), now_us = clock_now_us();
    long timeout_ms = POLL_MS_MAX;
    if (due_us <= now_us) timeout_ms = 0;
    else if (due_us - now_us < POLL_MS_MAX * CLOCK_MS_US)
        timeout_ms = (long)((due_us - now_us) / CLOCK_MS_US) + 1;
    zmq_pollitem_t items[4] = {{.socket = wire_zmq(b->front), .events = ZMQ_POLLIN},
                               {.socket = wire_zmq(b->back), .events = ZMQ_POLLIN},
                               {.fd = b->wake_fd, .events = ZMQ_POLLIN},
                               {.fd = stop_fd(), .events = ZMQ_POLLIN}};
    /* Once draining, the descriptors that asked for it stay readable and are left out. */
    int n = b->is_draining ? 2 : b->settings.watch_signals ? 4 : 3;
    if (zmq_poll(items, n, timeout_ms) < 0) CHECK(zmq_errno() == EINTR, "the poll set is valid");
}

static bool stop_is_wanted(const broker *b) {
    return atomic_load(&b->is_stopping) || (b->settings.watch_signals && stop_requested());
}

static void start_drain(broker *b) {
    b->is_draining = true;
    b->drain_until_us = clock_now_us() + b->settings.drain_ms * CLOCK_MS_US;
    log_info("draining", "in_flight=%llu",
             (unsigned long long)machine_numbers(b->machine)->in_flight);
    event ev = {.kind = EVENT_DRAIN};
    step(b, &ev);
}

status broker_run(broker *b, err *e) {
    status st = STATUS_OK;
    while (st == STATUS_OK) {
        if (stop_is_wanted(b) && !b->is_draining) start_drain(b);
        if (b->is_draining && (b->has_drained || clock_now_us() >= b->drain_until_us)) break;
        wait_for_something(b);
        st = read_socket(b, b->back, true, e);
        if (st == STATUS_OK) st = read_socket(b, b->front, false, e);
        event tick = {.kind = EVENT_TICK};
        step(b, &tick);
    }
    return st;
}

void broker_stop(broker *b) {
    atomic_store(&b->is_stopping, true);
    uint64_t one = 1;
    ssize_t n = write(b->wake_fd, &one, sizeof one);
    (void)n; /* a full counter is readable already */
}

broker_settings broker_settings_default(void) {
    return (broker_settings){.front = "tcp://127.0.0.1:7000",
                             .back = "tcp://127.0.0.1:7001",
                             .limits = machine_limits_default(),
                             .drain_ms = 30000};
}

const char *broker_front(const broker *b) { return wire_endpoint(b->front); }
const char *broker_back(const broker *b) { return wire_endpoint(b->back); }

status broker_open(broker **b, void *zmq_context, const broker_settings *settings, err *e) {
    *b = NULL;
    broker *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "broker");
    made->settings = *settings;
    made->started_us = clock_now_us();
    payload_store_init(&made->payloads);
    made->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    made->notes = calloc(NODES_SHOWN_MAX, sizeof *made->notes);
    status st = made->wake_fd < 0 || !made->notes ? fail_errno(e, STATUS_NO_MEMORY, "broker")
                                                  : STATUS_OK;
    if (st == STATUS_OK) st = machine_open(&made->machine, &settings->limits, e);
    if (st == STATUS_OK) st = wire_bind(&made->front, zmq_context, settings->front, e);
    if (st == STATUS_OK) st = wire_bind(&made->back, zmq_context, settings->back, e);
    if (st != STATUS_OK) {
        broker_close(&made);
        return st;
    }
    *b = made;
    return STATUS_OK;
}

void broker_close(broker **b) {
    if (!*b) return;
    wire_close(&(*b)->front);
    wire_close(&(*b)->back);
    machine_close((*b)->machine);
    payload_store_deinit(&(*b)->payloads);
    for (int i = 0; (*b)->notes && i < NODES_SHOWN_MAX; i++) buf_deinit(&(*b)->notes[i].figures);
    free((*b)->notes);
    if ((*b)->wake_fd >= 0) (void)close((*b)->wake_fd);
    free(*b);
    *b = NULL;
}
