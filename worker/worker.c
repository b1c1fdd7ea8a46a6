/* The two threads of a node and what passes between them.
 *
 *   network thread (worker_run)                      computing thread (compute_main)
 *     DEALER to the broker                             handler->start / cancel / step
 *     inbox  ── jobs, cancellations ──────────────►    pops between steps
 *     outbox ◄── answers, token pieces, metrics ───    worker_answer, worker_stream
 *
 * The network thread keeps a table of running leases and, in order, the answers the broker has not
 * confirmed. It is the only one that touches the socket; the computing thread is the only one that
 * touches the handler. The one shared word besides the mailboxes is the count of finished steps, from
 * which the leases' progress is told. */
#include "worker/worker.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/stop.h"

#define SILENT_HEARTBEATS 3   /* after this many without a word the broker is taken for gone */
#define HELLO_RETRY_US    (100 * CLOCK_MS_US) /* the first one fails while the connection is made */
#define HELLO_PATIENCE_US (3 * CLOCK_SECOND_US)  /* a broker that is starting may take this long */
#define RECEIVE_PER_TURN  64  /* messages read before anything else gets its turn */
#define REOFFER_BEATS     2   /* unconfirmed answers are offered again after this many heartbeats */

typedef enum { LETTER_JOB, LETTER_CANCEL, LETTER_OUT, LETTER_METRICS } letter_kind;

typedef struct letter {
    mailbox_letter letter;
    struct letter *next_unconfirmed;
    letter_kind kind;
    item_id item;
    uint32_t attempt;
    job *work;       /* LETTER_JOB */
    message m;       /* LETTER_OUT: views into the buffers below */
    wire_payload *payload; /* LETTER_OUT: behind m, or NULL */
    buf body, report;
    char text[MESSAGE_TEXT_BYTES_MAX + 1];
    bool is_final;   /* LETTER_OUT: ends the lease, kept until confirmed */
    int64_t sent_us; /* when it last went out */
    metric metrics[WORKER_METRICS_MAX];
    size_t n_metrics;
} letter;

typedef enum { LINK_DOWN, LINK_HELLO, LINK_REPORTING, LINK_UP } link_state;

struct worker {
    void *zmq_context;
    char endpoint[256];
    char name[MESSAGE_NAME_BYTES_MAX + 1];
    worker_settings settings;
    worker_handler handler;
    uint64_t incarnation;

    mailbox inbox, outbox;
    pthread_t compute_thread;
    _Atomic(bool) is_compute_stopping;
    _Atomic(bool) is_stopping;
    _Atomic(uint32_t) n_steps; /* rounds the computing thread has finished */

    /* The rest belongs to the network thread. */
    wire_socket *socket;
    link_state link;
    bool is_draining;
    uint32_t heartbeat_ms;
    int64_t heard_us, beat_us, hello_us, drain_until_us, dial_at_us;
    uint32_t n_dials;
    message_lease leases[MESSAGE_LEASES_MAX];
    size_t n_leases;
    letter *unconfirmed; /* singly linked, in order of answering */
    letter **unconfirmed_last;
    metric metrics[WORKER_METRICS_MAX];
    size_t n_metrics;
    status refused;
    char refused_text[MESSAGE_TEXT_BYTES_MAX + 1];
};

/* ---- letters --------------------------------------------------------------------------------- */

static letter *letter_new(letter_kind kind) {
    letter *l = calloc(1, sizeof *l);
    CHECK(l, "memory for a letter between two threads");
    l->kind = kind;
    buf_init(&l->body, MESSAGE_ENVELOPE_BYTES_MAX);
    buf_init(&l->report, MESSAGE_ENVELOPE_BYTES_MAX);
    return l;
}

void job_free(job **j) {
    wire_message_clear(&(*j)->wire);
    free(*j);
    *j = NULL;
}

static void letter_free(letter *l) {
    if (l->work) job_free(&l->work);
    wire_payload_close(&l->payload);
    buf_deinit(&l->body);
    buf_deinit(&l->report);
    free(l);
}

static letter *letter_pop(mailbox *m) { return (letter *)mailbox_pop(m); }

/* Copies what the caller's message points to, so that it may go out long after the call. */
static void letter_set_message(letter *l, const message *m) {
    l->m = *m;
    CHECK(buf_append(&l->body, m->body.data, m->body.len_bytes) == STATUS_OK &&
              buf_append(&l->report, m->report.data, m->report.len_bytes) == STATUS_OK,
          "an answer fits a message");
    (void)snprintf(l->text, sizeof l->text, "%s", m->text ? m->text : "");
    l->m.body = (bytes){l->body.data, l->body.len_bytes};
    l->m.report = (bytes){l->report.data, l->report.len_bytes};
    l->m.text = l->text;
    l->m.leases = NULL;
    l->m.n_leases = 0;
}

/* ---- computing thread ------------------------------------------------------------------------ */

static bool take_inbox(worker *w) {
    bool took = false;
    for (letter *l; (l = letter_pop(&w->inbox)); took = true) {
        if (l->kind == LETTER_JOB) {
            job *j = l->work;
            l->work = NULL;
            w->handler.start(w->handler.self, j);
        } else {
            w->handler.cancel(w->handler.self, &l->item, l->attempt);
        }
        letter_free(l);
    }
    return took;
}

static void send_metrics(worker *w) {
    letter *l = letter_new(LETTER_METRICS);
    l->n_metrics = w->handler.metrics(w->handler.self, l->metrics, WORKER_METRICS_MAX);
    mailbox_push(&w->outbox, &l->letter);
}

static void *compute_main(void *arg) {
    worker *w = arg;
    int64_t metrics_us = 0;
    while (!atomic_load(&w->is_compute_stopping)) {
        (void)take_inbox(w);
        bool has_more = w->handler.step(w->handler.self);
        atomic_fetch_add(&w->n_steps, 1);
        int64_t now_us = clock_now_us();
        if (now_us - metrics_us > CLOCK_SECOND_US / 2) {
            send_metrics(w);
            metrics_us = now_us;
        }
        mailbox_wait(&w->inbox, has_more ? 0 : 500);
    }
    return NULL;
}

void worker_forget(worker *w, job **moved) {
    if (w->settings.supervised && (*moved)->breadcrumb >= 0)
        supervisor_breadcrumb_clear(w->settings.supervised, (*moved)->breadcrumb);
    letter *l = letter_new(LETTER_OUT);
    l->item = (*moved)->wire.in.m.item;
    l->attempt = (*moved)->wire.in.m.attempt;
    l->m = (message){.kind = MESSAGE_RELEASE, .has_item = true, .item = l->item, .attempt = l->attempt};
    l->is_final = true;
    mailbox_push(&w->outbox, &l->letter);
    job_free(moved);
}

void worker_answer(worker *w, job **moved, message *m, wire_payload *payload) {
    if (w->settings.supervised && (*moved)->breadcrumb >= 0)
        supervisor_breadcrumb_clear(w->settings.supervised, (*moved)->breadcrumb);
    letter *l = letter_new(LETTER_OUT);
    m->has_item = true;
    m->item = l->item = (*moved)->wire.in.m.item;
    m->attempt = l->attempt = (*moved)->wire.in.m.attempt;
    letter_set_message(l, m);
    l->payload = payload;
    l->is_final = true;
    mailbox_push(&w->outbox, &l->letter);
    job_free(moved);
}

void worker_answer_failed(worker *w, job **moved, status code, const char *text) {
    CHECK(code != STATUS_OK, "a failure has a reason");
    if (code == STATUS_DEVICE && w->settings.supervised) {
        log_error("device_failed", "reason=\"%s\"", text);
        abort();
    }
    message m = {.kind = MESSAGE_FAILED,
                 .code = (uint32_t)code,
                 .flags = status_is_of_machine(code) ? MESSAGE_FLAG_RETRYABLE : 0,
                 .text = text};
    worker_answer(w, moved, &m, NULL);
}

void worker_made_progress(worker *w) { atomic_fetch_add(&w->n_steps, 1); }

void worker_wake(worker *w) { mailbox_wake(&w->inbox); }

void worker_stream(worker *w, const job *j, uint32_t question_idx, uint32_t token_idx, bytes body) {
    letter *l = letter_new(LETTER_OUT);
    message m = {.kind = MESSAGE_TOKENS,
                 .has_item = true,
                 .item = j->wire.in.m.item,
                 .attempt = j->wire.in.m.attempt,
                 .question_idx = question_idx,
                 .token_idx = token_idx,
                 .body = body};
    letter_set_message(l, &m);
    mailbox_push(&w->outbox, &l->letter);
}

/* ---- leases ---------------------------------------------------------------------------------- */

static message_lease *find_lease(worker *w, const item_id *item, uint32_t attempt) {
    for (size_t i = 0; i < w->n_leases; i++)
        if (w->leases[i].attempt == attempt &&
            memcmp(&w->leases[i].item, item, sizeof *item) == 0)
            return &w->leases[i];
    return NULL;
}

static void end_lease(worker *w, const item_id *item, uint32_t attempt) {
    message_lease *lease = find_lease(w, item, attempt);
    if (lease) *lease = w->leases[--w->n_leases];
}

/* ---- the link to the broker ------------------------------------------------------------------ */

/* A message that cannot be sent is not lost: what matters is offered again, and a broker that is
 * really gone is noticed by its silence. */
static void send_with_payload(worker *w, const message *m, const wire_payload *payload) {
    if (!w->socket) return;
    status st = wire_send(w->socket, NULL, m, payload);
    if (st != STATUS_OK && st != STATUS_BUSY)
        log_warn("send_failed", "kind=%s reason=\"%s\"", message_kind_name((int)m->kind),
                 status_text((int)st));
}

static void send_to_broker(worker *w, const message *m) { send_with_payload(w, m, NULL); }

static void send_credit(worker *w) {
    message m = {.kind = MESSAGE_CREDIT,
                 .slots = w->is_draining ? 0 : w->settings.slots,
                 .slot_bytes = w->is_draining ? 0 : w->settings.slot_bytes};
    send_to_broker(w, &m);
}

static void send_heartbeat(worker *w) {
    uint32_t n_steps = atomic_load(&w->n_steps);
    for (size_t i = 0; i < w->n_leases; i++) w->leases[i].progress = n_steps;

    buf body;
    buf_init(&body, MESSAGE_ENVELOPE_BYTES_MAX);
    status_report figures = {.metrics = w->metrics, .n_metrics = w->n_metrics};
    message m = {.kind = MESSAGE_HEARTBEAT, .leases = w->leases, .n_leases = w->n_leases};
    if (status_report_encode(&figures, &body) == STATUS_OK)
        m.body = (bytes){body.data, body.len_bytes};
    send_to_broker(w, &m);
    buf_deinit(&body);
}

static void send_hello(worker *w) {
    message m = {.kind = MESSAGE_NODE_HELLO,
                 .name = w->name,
                 .role = w->settings.role,
                 .incarnation = w->incarnation,
                 .has_fingerprints = true,
                 .leases = w->leases,
                 .n_leases = w->n_leases};
    memcpy(m.model_fingerprint, w->settings.model_fingerprint, HASH_SHA256_BYTES);
    memcpy(m.tower_fingerprint, w->settings.tower_fingerprint, HASH_SHA256_BYTES);
    send_to_broker(w, &m);
    w->hello_us = clock_now_us();
}

/* What a former engine of this node died on is told before any work is taken. */
static void report_crashes(worker *w) {
    size_t n = w->settings.supervised ? supervisor_n_reports(w->settings.supervised) : 0;
    if (n == 0) {
        w->link = LINK_UP;
        send_credit(w);
        return;
    }
    w->link = LINK_REPORTING;
    for (size_t i = 0; i < n; i++) {
        supervisor_report r = supervisor_get_report(w->settings.supervised, i);
        message m = {.kind = MESSAGE_CRASHED,
                     .has_item = true,
                     .attempt = r.attempt,
                     .incarnation = r.incarnation,
                     .signal = (uint32_t)r.signal};
        memcpy(m.item.bytes, r.item_id, sizeof m.item.bytes);
        send_to_broker(w, &m);
    }
    w->hello_us = clock_now_us();
}

static void offer_again(worker *w, bool all) {
    int64_t now_us = clock_now_us();
    int64_t wait_us = REOFFER_BEATS * (int64_t)w->heartbeat_ms * CLOCK_MS_US;
    for (letter *l = w->unconfirmed; l; l = l->next_unconfirmed) {
        if (!all && now_us - l->sent_us < wait_us) continue;
        send_with_payload(w, &l->m, l->payload);
        l->sent_us = now_us;
    }
}

static void hang_up(worker *w) {
    wire_close(&w->socket);
    w->link = LINK_DOWN;
    rng jitter = rng_make(rng_system());
    int64_t wait_ms = INT64_C(100) << (w->n_dials < 6 ? w->n_dials : 6);
    w->dial_at_us = clock_now_us() + (wait_ms / 2 + (int64_t)rng_below(&jitter, (uint64_t)wait_ms)) *
                                         CLOCK_MS_US;
}

static status dial(worker *w, err *e) {
    status st = wire_connect(&w->socket, w->zmq_context, w->endpoint, e);
    if (st != STATUS_OK) return st;
    w->n_dials++;
    w->link = LINK_HELLO;
    w->heard_us = clock_now_us();
    send_hello(w);
    return STATUS_OK;
}

/* ---- messages from the broker ----------------------------------------------------------------- */

static void take_work(worker *w, wire_message *in) {
    const message *m = &in->in.m;
    if (find_lease(w, &m->item, m->attempt)) return; /* sent twice: already on it */
    if (w->is_draining || w->n_leases == MESSAGE_LEASES_MAX) {
        message release = {.kind = MESSAGE_RELEASE,
                           .has_item = true,
                           .item = m->item,
                           .attempt = m->attempt};
        send_to_broker(w, &release);
        return;
    }
    w->leases[w->n_leases++] = (message_lease){m->item, m->attempt, 0};

    job *j = calloc(1, sizeof *j);
    CHECK(j, "memory for a job the broker had credit to send");
    j->wire = *in;
    *in = (wire_message){0}; /* moved */
    j->received_us = clock_now_us();
    j->breadcrumb = w->settings.supervised
                        ? supervisor_breadcrumb_set(w->settings.supervised, j->wire.in.m.item.bytes,
                                                    j->wire.in.m.attempt)
                        : -1;
    letter *l = letter_new(LETTER_JOB);
    l->work = j;
    mailbox_push(&w->inbox, &l->letter);
}

static void take_stop(worker *w, const message *m) {
    if (!find_lease(w, &m->item, m->attempt)) {
        /* Not here, or not any more: the broker waits to hear that nobody works on it. */
        message release = {.kind = MESSAGE_RELEASE,
                           .has_item = true,
                           .item = m->item,
                           .attempt = m->attempt};
        send_to_broker(w, &release);
        return;
    }
    letter *l = letter_new(LETTER_CANCEL);
    l->item = m->item;
    l->attempt = m->attempt;
    mailbox_push(&w->inbox, &l->letter);
}

static void take_committed(worker *w, const message *m) {
    for (letter **at = &w->unconfirmed; *at; at = &(*at)->next_unconfirmed) {
        letter *l = *at;
        if (l->attempt != m->attempt || memcmp(&l->item, &m->item, sizeof l->item) != 0) continue;
        *at = l->next_unconfirmed;
        if (!*at) w->unconfirmed_last = at;
        letter_free(l);
        return;
    }
}

static void take_crash_noted(worker *w, const message *m) {
    if (!w->settings.supervised || w->link != LINK_REPORTING) return;
    supervisor_report_done(w->settings.supervised, m->item.bytes, m->incarnation);
    if (supervisor_n_reports(w->settings.supervised) == 0) report_crashes(w);
}

static void take_message(worker *w, wire_message *in) {
    const message *m = &in->in.m;
    switch (m->kind) {
    case MESSAGE_WELCOME:
        if (w->link != LINK_HELLO) return;
        w->heartbeat_ms = m->heartbeat_ms;
        w->n_dials = 0;
        log_info("joined", "broker=%s heartbeat_ms=%u", w->endpoint, w->heartbeat_ms);
        report_crashes(w);
        offer_again(w, true);
        return;
    case MESSAGE_REFUSED:
        w->refused = m->code < STATUS_COUNT ? (status)m->code : STATUS_INTERNAL;
        (void)snprintf(w->refused_text, sizeof w->refused_text, "%s", m->text);
        return;
    case MESSAGE_WHO: /* a broker that does not know us: it was restarted */
        w->link = LINK_HELLO;
        send_hello(w);
        return;
    case MESSAGE_ENCODE:
    case MESSAGE_GENERATE: take_work(w, in); return;
    case MESSAGE_STOP: take_stop(w, m); return;
    case MESSAGE_COMMITTED: take_committed(w, m); return;
    case MESSAGE_CRASH_NOTED: take_crash_noted(w, m); return;
    default: return; /* PONG and kinds of later versions: hearing anything is what counts */
    }
}

static status read_socket(worker *w, err *e) {
    for (int i = 0; i < RECEIVE_PER_TURN; i++) {
        wire_message in;
        err bad;
        status st = wire_receive(w->socket, &in, &bad);
        if (st == STATUS_TIMEOUT) return STATUS_OK;
        if (st == STATUS_IO) {
            *e = bad;
            return st;
        }
        if (st != STATUS_OK) {
            log_warn("bad_message", "from=broker reason=\"%s\"", bad.text);
            continue;
        }
        w->heard_us = clock_now_us();
        take_message(w, &in);
        wire_message_clear(&in);
    }
    return STATUS_OK;
}

/* ---- letters from the computing thread -------------------------------------------------------- */

static void keep_unconfirmed(worker *w, letter *l) {
    l->next_unconfirmed = NULL;
    *w->unconfirmed_last = l;
    w->unconfirmed_last = &l->next_unconfirmed;
}

static void take_out(worker *w, letter *l) {
    if (l->is_final) end_lease(w, &l->item, l->attempt);
    if (w->link != LINK_DOWN) send_with_payload(w, &l->m, l->payload);
    if (l->is_final && l->m.kind != MESSAGE_RELEASE) {
        l->sent_us = clock_now_us();
        keep_unconfirmed(w, l);
    } else {
        letter_free(l);
    }
}

static void read_outbox(worker *w) {
    mailbox_wait(&w->outbox, 0);
    for (letter *l; (l = letter_pop(&w->outbox));) {
        if (l->kind == LETTER_METRICS) {
            memcpy(w->metrics, l->metrics, sizeof w->metrics);
            w->n_metrics = l->n_metrics;
            letter_free(l);
        } else {
            take_out(w, l);
        }
    }
}

/* ---- the turn --------------------------------------------------------------------------------- */

static bool stop_is_wanted(const worker *w) {
    return atomic_load(&w->is_stopping) || (w->settings.watch_signals && stop_requested());
}

static void start_drain(worker *w) {
    w->is_draining = true;
    w->drain_until_us = clock_now_us() + w->settings.drain_ms * CLOCK_MS_US;
    log_info("draining", "running=%zu unconfirmed=%d", w->n_leases, w->unconfirmed != NULL);
    if (w->link == LINK_UP) send_credit(w);
}

static bool is_drained(const worker *w) {
    if (!w->is_draining) return false;
    bool is_idle = w->n_leases == 0 && !w->unconfirmed;
    return is_idle || w->link == LINK_DOWN || clock_now_us() >= w->drain_until_us;
}

static void keep_time(worker *w) {
    int64_t now_us = clock_now_us();
    int64_t beat_us = w->heartbeat_ms * CLOCK_MS_US;
    if (w->link == LINK_DOWN) return;
    int64_t patience_us = SILENT_HEARTBEATS * beat_us;
    if (w->link == LINK_HELLO && patience_us < HELLO_PATIENCE_US) patience_us = HELLO_PATIENCE_US;
    if (now_us - w->heard_us > patience_us) {
        log_warn("broker_silent", "broker=%s ms=%lld", w->endpoint,
                 (long long)((now_us - w->heard_us) / CLOCK_MS_US));
        hang_up(w);
        return;
    }
    if (w->link == LINK_HELLO && now_us - w->hello_us > HELLO_RETRY_US) send_hello(w);
    if (w->link == LINK_REPORTING && now_us - w->hello_us > HELLO_RETRY_US) report_crashes(w);
    if (now_us - w->beat_us < beat_us) return;
    w->beat_us = now_us;
    if (w->link != LINK_UP && w->link != LINK_REPORTING) return;
    send_heartbeat(w);
    if (w->link == LINK_UP) send_credit(w);
    offer_again(w, false);
}

static void wait_for_something(worker *w) {
    zmq_pollitem_t items[3] = {
        {.fd = w->outbox.event_fd, .events = ZMQ_POLLIN},
        {.fd = w->settings.watch_signals ? stop_fd() : w->outbox.event_fd, .events = ZMQ_POLLIN},
        {.socket = w->socket ? wire_zmq(w->socket) : NULL, .fd = w->outbox.event_fd,
         .events = ZMQ_POLLIN}};
    /* Once a stop was seen its descriptor stays readable: it is left out, or this would spin. */
    if (w->is_draining) items[1] = items[0];
    long timeout_ms = w->heartbeat_ms / 4 + 1;
    if (zmq_poll(items, 3, timeout_ms) < 0)
        CHECK(zmq_errno() == EINTR, "the poll set is valid");
}

static status turn(worker *w, err *e) {
    status st = STATUS_OK;
    if (stop_is_wanted(w) && !w->is_draining) start_drain(w);
    if (w->link == LINK_DOWN && !w->is_draining && clock_now_us() >= w->dial_at_us) st = dial(w, e);
    if (st == STATUS_OK) wait_for_something(w);
    if (st == STATUS_OK && w->socket) st = read_socket(w, e);
    read_outbox(w);
    keep_time(w);
    if (st == STATUS_OK && w->refused != STATUS_OK)
        st = fail(e, w->refused, "broker %s refused this node: %s", w->endpoint, w->refused_text);
    return st;
}

/* What could not be finished in time goes back, so that it is handed out again at once. */
static void release_rest(worker *w) {
    for (size_t i = 0; i < w->n_leases; i++) {
        message m = {.kind = MESSAGE_RELEASE,
                     .has_item = true,
                     .item = w->leases[i].item,
                     .attempt = w->leases[i].attempt};
        send_to_broker(w, &m);
    }
    message bye = {.kind = MESSAGE_BYE};
    send_to_broker(w, &bye);
}

status worker_run(worker *w, err *e) {
    if (pthread_create(&w->compute_thread, NULL, compute_main, w) != 0)
        return fail(e, STATUS_NO_MEMORY, "starting the computing thread of %s", w->name);
    status st = STATUS_OK;
    while (st == STATUS_OK && !is_drained(w)) st = turn(w, e);

    atomic_store(&w->is_compute_stopping, true);
    mailbox_wake(&w->inbox);
    CHECK(pthread_join(w->compute_thread, NULL) == 0, "the computing thread ends");
    if (st == STATUS_OK) {
        read_outbox(w);
        release_rest(w);
    }
    wire_close(&w->socket);
    w->link = LINK_DOWN;
    return st;
}

void worker_stop(worker *w) {
    atomic_store(&w->is_stopping, true);
    mailbox_wake(&w->outbox);
}

status worker_open(worker **w, void *zmq_context, const char *endpoint,
                   const worker_settings *settings, const worker_handler *handler, err *e) {
    *w = NULL;
    worker *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "worker %s", settings->name);
    made->zmq_context = zmq_context;
    (void)snprintf(made->endpoint, sizeof made->endpoint, "%s", endpoint);
    (void)snprintf(made->name, sizeof made->name, "%s", settings->name);
    made->settings = *settings;
    made->handler = *handler;
    made->incarnation = rng_system() | 1; /* never 0: 0 means absent on the wire */
    if (settings->supervised) supervisor_set_incarnation(settings->supervised, made->incarnation);
    made->heartbeat_ms = 1000;            /* until the broker says otherwise */
    made->unconfirmed_last = &made->unconfirmed;
    status st = mailbox_open(&made->inbox, e);
    if (st == STATUS_OK) {
        st = mailbox_open(&made->outbox, e);
        if (st != STATUS_OK) mailbox_close(&made->inbox);
    }
    if (st != STATUS_OK) {
        free(made);
        return st;
    }
    *w = made;
    return STATUS_OK;
}

void worker_close(worker **w) {
    if (!*w) return;
    for (letter *l; (l = letter_pop(&(*w)->inbox));) letter_free(l);
    for (letter *l; (l = letter_pop(&(*w)->outbox));) letter_free(l);
    for (letter *l = (*w)->unconfirmed, *next; l; l = next) {
        next = l->next_unconfirmed;
        letter_free(l);
    }
    mailbox_close(&(*w)->inbox);
    mailbox_close(&(*w)->outbox);
    free(*w);
    *w = NULL;
}
