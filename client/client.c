/* One DEALER and a list of items.
 *
 * The conversation has three states: nothing is connected (waiting out a back-off), HELLO is to be sent or
 * has been and WELCOME has not come, welcomed. Only in the last are items sent. Whatever ends a
 * conversation (silence for three heartbeats, a broker that says it does not know us, a PONG from another
 * incarnation) has one answer: close the socket, wait a little longer than last time, open a new one, say
 * HELLO, and submit everything unanswered again. That is harmless because the id and the digest of a
 * request make it the same item, and it means that no message of ours needs to be known to have arrived:
 * a SUBMIT that is not accepted in time is simply sent again as well.
 *
 * An item answers in one of two ways: by the broker's RESULT, or here (a cancelled item whose broker is
 * gone, a deadline that passed while it was). Both hand over one event and leave the item in the list
 * until the caller acknowledges it, so a second RESULT is recognised. */
#include "client/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "client/outstanding.h"
#include "proto/bundle.h"
#include "proto/socket.h"

#define OPEN_TIMEOUT_MS    10000
#define HEARTBEAT_MS       1000 /* until WELCOME says otherwise */
#define HEARTBEAT_MS_MIN   20
#define HEARTBEAT_MS_MAX   60000
#define SILENT_HEARTBEATS  3
#define GREETING_MS_MIN    3000 /* HELLO without WELCOME */
#define RESEND_HEARTBEATS  5    /* SUBMIT without ACCEPTED */
#define BACKOFF_MS_FIRST   100
#define BACKOFF_MS_MAX     10000
#define RETRY_MS_MIN       10
#define RETRY_MS_MAX       30000
#define UNACKED_EXTRA      256  /* answered and not acknowledged, above the window */
#define IMAGE_COST         729  /* tokens of work an image stands for; only relative sizes matter */
#define MESSAGES_PER_TURN  256

typedef enum { LINK_DOWN, LINK_GREETING, LINK_UP } link_state;

struct client {
    void *zmq_context;
    char endpoint[256];
    char name[MESSAGE_NAME_BYTES_MAX + 1];
    wire_socket *socket;
    link_state link;
    bool hello_sent, was_up, told_unavailable;
    uint64_t broker_incarnation;
    int heartbeat_ms;
    int64_t reopen_us;      /* LINK_DOWN: when to try again */
    int64_t heard_us, said_us, turn_us;
    int n_failures;         /* openings in a row without WELCOME */
    status refused;         /* final: the broker does not want us */
    char refused_text[MESSAGE_TEXT_BYTES_MAX + 1];

    outstanding *items;
    size_t n_unanswered, n_due; /* n_due: items something is to be sent or told about */
    uint64_t unanswered_bytes;
    uint32_t window_items, broker_window_items;
    uint64_t window_bytes;
    int64_t next_walk_us;   /* when an item's own timer may be due */
    bool is_send_blocked;   /* the socket took no more: wait until it is writable */
    bool status_wanted;
    client_event status_event; /* what client_status lends out */

    int watched_fds[CLIENT_WATCHED_MAX];
    wire_message in;        /* what the last event's views point into */
    request_memory memory;
    char event_text[MESSAGE_TEXT_BYTES_MAX + 1];
    rng jitter;
};

/* ---- the link -------------------------------------------------------------------------------- */

/* How long the other side may say nothing. A connection that is being made takes its time whatever the
 * heartbeat is. */
static int silence_ms(const client *c) {
    int ms = SILENT_HEARTBEATS * c->heartbeat_ms;
    return c->link == LINK_GREETING && ms < GREETING_MS_MIN ? GREETING_MS_MIN : ms;
}

/* Everything the broker may not know any more is to be sent again. */
static void requeue_all(client *c) {
    for (outstanding_item *i = outstanding_first(c->items); i; i = i->next) {
        if (i->state != ITEM_SENT && i->state != ITEM_ACCEPTED && i->state != ITEM_QUEUED) continue;
        if (i->state != ITEM_QUEUED) c->n_due++;
        i->state = ITEM_QUEUED;
        i->not_before_us = 0;
        if (i->is_cancelled) {
            i->state = ITEM_GIVEN_UP;
            i->code = STATUS_CANCELLED;
        }
    }
}

static void link_lost(client *c, const char *why, int64_t now_us) {
    log_warn("broker_lost", "endpoint=%s why=%s", c->endpoint, why);
    wire_close(&c->socket);
    c->link = LINK_DOWN;
    (void)snprintf(c->refused_text, sizeof c->refused_text, "broker %.200s: %.200s", c->endpoint, why);
    c->n_failures++;
    int shift = c->n_failures < 8 ? c->n_failures - 1 : 7;
    int64_t ceiling_ms = (int64_t)BACKOFF_MS_FIRST << shift;
    if (ceiling_ms > BACKOFF_MS_MAX) ceiling_ms = BACKOFF_MS_MAX;
    c->reopen_us = now_us + CLOCK_MS_US * (int64_t)(1 + rng_below(&c->jitter, (uint64_t)ceiling_ms));
    if (c->was_up) requeue_all(c);
}

static status link_open(client *c, int64_t now_us, err *e) {
    status st = wire_connect(&c->socket, c->zmq_context, c->endpoint, e);
    if (st != STATUS_OK) return st;
    c->link = LINK_GREETING;
    c->hello_sent = false;
    c->is_send_blocked = false;
    c->heard_us = now_us;
    return STATUS_OK;
}

/* Sends when the socket takes it. BUSY (connecting, or a full queue) is remembered, so that the poll
 * waits for the socket to become writable. */
static bool send_now(client *c, const message *m, const wire_payload *payload, int64_t now_us) {
    status st = wire_send(c->socket, NULL, m, payload);
    c->is_send_blocked = st != STATUS_OK;
    if (st == STATUS_OK) c->said_us = now_us;
    return st == STATUS_OK;
}

static void say_hello(client *c, int64_t now_us) {
    message hello = {.kind = MESSAGE_HELLO, .name = c->name};
    hello.slots = c->window_items;
    hello.slot_bytes = c->window_bytes;
    if (send_now(c, &hello, NULL, now_us)) {
        c->hello_sent = true;
        c->heard_us = now_us; /* its time to answer begins now */
    }
}

static void welcomed(client *c, const message *m) {
    c->heartbeat_ms = m->heartbeat_ms < HEARTBEAT_MS_MIN   ? HEARTBEAT_MS_MIN
                      : m->heartbeat_ms > HEARTBEAT_MS_MAX ? HEARTBEAT_MS_MAX
                                                           : (int)m->heartbeat_ms;
    c->broker_incarnation = m->incarnation;
    c->broker_window_items = m->slots;
    c->link = LINK_UP;
    c->next_walk_us = 0;
    log_info("broker_found", "endpoint=%s heartbeat_ms=%d", c->endpoint, c->heartbeat_ms);
}

/* ---- items going out ------------------------------------------------------------------------- */

static bool is_due(const outstanding_item *i) {
    return i->needs_cancel || i->state == ITEM_QUEUED || i->state == ITEM_GIVEN_UP ||
           i->state == ITEM_TO_ACK;
}

static bool submit_now(client *c, outstanding_item *i, int64_t now_us) {
    message m = {.kind = MESSAGE_SUBMIT, .has_item = true, .item = i->id, .has_digest = true,
                 .flags = i->flags, .n_questions = i->n_questions, .cost = i->cost,
                 .priority = i->priority, .body = {i->body.data, i->body.len_bytes}};
    memcpy(m.request_digest, i->digest, sizeof m.request_digest);
    m.has_image = i->image != NULL;
    memcpy(m.image_sha256, i->image_sha256, sizeof m.image_sha256);
    if (i->deadline_us) {
        int64_t left_us = i->deadline_us - now_us;
        m.deadline_ms = left_us < CLOCK_MS_US ? 1 : (uint64_t)(left_us / CLOCK_MS_US);
    }
    if (!send_now(c, &m, i->image, now_us)) return false;
    i->state = ITEM_SENT;
    i->sent_us = now_us;
    return true;
}

static bool send_plain(client *c, message_kind kind, const item_id *id, int64_t now_us) {
    message m = {.kind = kind, .has_item = id != NULL};
    if (id) m.item = *id;
    return send_now(c, &m, NULL, now_us);
}

/* An item's own clock: late ACCEPTED, and a deadline the broker did not enforce. */
static void check_item_time(client *c, outstanding_item *i, int64_t now_us) {
    if (i->state == ITEM_SENT &&
        now_us - i->sent_us > RESEND_HEARTBEATS * c->heartbeat_ms * CLOCK_MS_US) {
        i->state = ITEM_QUEUED;
        i->not_before_us = 0;
    }
    bool is_open = i->state == ITEM_QUEUED || i->state == ITEM_SENT || i->state == ITEM_ACCEPTED;
    if (is_open && i->deadline_us && now_us > i->deadline_us + silence_ms(c) * CLOCK_MS_US) {
        i->state = ITEM_GIVEN_UP;
        i->code = STATUS_DEADLINE_EXCEEDED;
    }
}

static void note_time(client *c, int64_t at_us) {
    if (at_us < c->next_walk_us) c->next_walk_us = at_us;
}

/* Sends what is due, oldest first, as far as the socket takes it. */
static void walk_items(client *c, int64_t now_us) {
    c->next_walk_us = now_us + 100 * CLOCK_MS_US;
    c->n_due = 0;
    bool can_send = c->link == LINK_UP;
    for (outstanding_item *i = outstanding_first(c->items), *next; i; i = next) {
        next = i->next;
        check_item_time(c, i, now_us);
        if (can_send && i->state == ITEM_QUEUED) {
            if (i->not_before_us <= now_us)
                can_send = submit_now(c, i, now_us);
            else
                note_time(c, i->not_before_us);
        }
        if (can_send && i->needs_cancel && i->state != ITEM_QUEUED)
            can_send = !(i->needs_cancel = !send_plain(c, MESSAGE_CANCEL, &i->id, now_us));
        if (can_send && i->state == ITEM_TO_ACK) {
            can_send = send_plain(c, MESSAGE_RESULT_ACK, &i->id, now_us);
            if (can_send) {
                outstanding_remove(c->items, i);
                continue;
            }
        }
        if (is_due(i)) c->n_due++;
    }
}

/* ---- what comes in --------------------------------------------------------------------------- */

static void answered(client *c, outstanding_item *i) {
    CHECK(c->n_unanswered > 0, "an answer belongs to an unanswered item");
    c->n_unanswered--;
    c->unanswered_bytes -= i->image_bytes;
    outstanding_forget_request(i);
    i->needs_cancel = false;
    i->state = ITEM_ANSWERED;
}

static bool is_unanswered(const outstanding_item *i) {
    return i->state != ITEM_ANSWERED && i->state != ITEM_TO_ACK;
}

static void event_of_item(client_event *event, client_event_kind kind, const outstanding_item *i) {
    *event = (client_event){.kind = kind, .id = i->id, .tag = i->tag, .text = ""};
    event->has_image = (i->flags & MESSAGE_FLAG_IMAGE) != 0;
    memcpy(event->image_sha256, i->image_sha256, sizeof event->image_sha256);
}

static bool give_up_event(client *c, client_event *event) {
    for (outstanding_item *i = outstanding_first(c->items); i; i = i->next) {
        if (i->state != ITEM_GIVEN_UP) continue;
        event_of_item(event, CLIENT_RESULT, i);
        event->code = i->code;
        event->text = status_text((int)i->code);
        answered(c, i);
        return true;
    }
    return false;
}

static const char *keep_text(client *c, const char *text) {
    (void)snprintf(c->event_text, sizeof c->event_text, "%s", text);
    return c->event_text;
}

/* Decodes outcome and report; what cannot be read is a failed item, not a lost one. */
static void read_result(client *c, client_event *event, const outstanding_item *i,
                        const message *m) {
    err e = {0};
    event->code = m->code < STATUS_COUNT ? (status)m->code : STATUS_INTERNAL;
    event->text = m->text;
    event->queue_us = m->queue_us;
    event->total_us = m->total_us;
    event->has_fingerprints = m->has_fingerprints;
    memcpy(event->model_fingerprint, m->model_fingerprint, sizeof event->model_fingerprint);
    memcpy(event->tower_fingerprint, m->tower_fingerprint, sizeof event->tower_fingerprint);
    if (m->report.len_bytes && vision_report_decode(&event->vision, m->report, &e) != STATUS_OK)
        log_warn("vision_report_unreadable", "why=%s", e.text);
    if (event->code != STATUS_OK) {
        if (!*event->text) event->text = status_text((int)event->code);
        return;
    }
    /* Nobody encoded anything for it: the encoding of an equal image was there. */
    if (event->has_image && m->report.len_bytes == 0) event->vision.features_cached = true;
    status st = outcome_decode(&event->outcome, &c->memory, m->body, &e);
    if (st == STATUS_OK && event->outcome.n_answers != i->n_questions)
        st = fail(&e, STATUS_BAD_MESSAGE, "%zu answers to %u questions", event->outcome.n_answers,
                  i->n_questions);
    if (st == STATUS_OK) return;
    event->code = st;
    event->text = keep_text(c, e.text);
    event->outcome = (outcome){0};
}

static bool take_result(client *c, const message *m, client_event *event, int64_t now_us) {
    outstanding_item *i = outstanding_find(c->items, &m->item);
    if (!i) { /* acknowledged before; the acknowledgement was lost */
        (void)send_plain(c, MESSAGE_RESULT_ACK, &m->item, now_us);
        return false;
    }
    if (!is_unanswered(i)) return false;
    event_of_item(event, CLIENT_RESULT, i);
    read_result(c, event, i, m);
    answered(c, i);
    return true;
}

/* Tokens are handed on only where they continue what was handed on before: a second attempt starts at
 * the beginning again, and the RESULT is complete in any case. */
static bool take_tokens(client *c, const message *m, client_event *event) {
    outstanding_item *i = outstanding_find(c->items, &m->item);
    if (!i || !is_unanswered(i) || !i->tokens_seen || m->question_idx >= i->n_questions) return false;
    event_of_item(event, CLIENT_TOKENS, i);
    event->question_idx = m->question_idx;
    err e = {0};
    if (tokens_decode(&event->tokens, &c->memory, m->body, &e) != STATUS_OK) {
        log_warn("tokens_unreadable", "why=%s", e.text);
        return false;
    }
    uint32_t *seen = &i->tokens_seen[m->question_idx];
    if (m->token_idx != *seen || event->tokens.n_tokens == 0) return false;
    *seen += (uint32_t)event->tokens.n_tokens;
    return true;
}

static void take_busy(client *c, const message *m, int64_t now_us) {
    outstanding_item *i = outstanding_find(c->items, &m->item);
    if (!i || (i->state != ITEM_SENT && i->state != ITEM_ACCEPTED)) return;
    uint64_t retry_ms = m->retry_ms < RETRY_MS_MIN   ? RETRY_MS_MIN
                        : m->retry_ms > RETRY_MS_MAX ? RETRY_MS_MAX
                                                     : m->retry_ms;
    retry_ms += rng_below(&c->jitter, retry_ms / 4 + 1);
    i->state = ITEM_QUEUED;
    i->not_before_us = now_us + (int64_t)retry_ms * CLOCK_MS_US;
    c->n_due++;
    note_time(c, i->not_before_us);
}

/* REFUSED with an item is that item's answer. Without one it ends the conversation: for good when it
 * answers a HELLO with a reason that time does not change. */
static bool take_refused(client *c, const message *m, client_event *event, int64_t now_us) {
    outstanding_item *i = m->has_item ? outstanding_find(c->items, &m->item) : NULL;
    if (m->has_item) {
        if (!i || !is_unanswered(i)) return false;
        event_of_item(event, CLIENT_RESULT, i);
        read_result(c, event, i, m);
        answered(c, i);
        return true;
    }
    bool passes = m->code == STATUS_BUSY || m->code == STATUS_UNAVAILABLE ||
                  m->code == STATUS_TIMEOUT || m->code == STATUS_NOT_FOUND;
    char why[MESSAGE_TEXT_BYTES_MAX + 1];
    (void)snprintf(why, sizeof why, "%s", *m->text ? m->text : status_text((int)m->code));
    bool is_final = c->link == LINK_GREETING && !passes;
    link_lost(c, why, now_us);
    if (is_final) c->refused = m->code < STATUS_COUNT ? (status)m->code : STATUS_INTERNAL;
    return false;
}

static bool take_status(client *c, const message *m, client_event *event) {
    err e = {0};
    *event = (client_event){.kind = CLIENT_STATUS, .text = ""};
    if (status_report_decode(&event->report, &c->memory, m->body, &e) == STATUS_OK) return true;
    log_warn("status_unreadable", "why=%s", e.text);
    return false;
}

/* True when event was filled. */
static bool take_message(client *c, const message *m, client_event *event, int64_t now_us) {
    if (m->kind == MESSAGE_REFUSED) return take_refused(c, m, event, now_us);
    if (m->kind == MESSAGE_WELCOME) {
        if (c->link != LINK_GREETING) return false;
        welcomed(c, m);
        bool is_news = c->told_unavailable;
        c->told_unavailable = false;
        c->was_up = true;
        *event = (client_event){.kind = CLIENT_AVAILABLE, .text = ""};
        return is_news;
    }
    if (c->link != LINK_UP) return false;
    c->n_failures = 0; /* not earlier: a broker that welcomes and then refuses is not well */
    outstanding_item *i;
    switch (m->kind) {
    case MESSAGE_RESULT: return take_result(c, m, event, now_us);
    case MESSAGE_TOKENS: return take_tokens(c, m, event);
    case MESSAGE_STATUS: return take_status(c, m, event);
    case MESSAGE_BUSY: take_busy(c, m, now_us); return false;
    case MESSAGE_ACCEPTED:
        i = outstanding_find(c->items, &m->item);
        if (i && i->state == ITEM_SENT) i->state = ITEM_ACCEPTED;
        return false;
    case MESSAGE_PONG:
        if (m->incarnation && c->broker_incarnation && m->incarnation != c->broker_incarnation)
            link_lost(c, "it was started again", now_us);
        return false;
    case MESSAGE_BYE: link_lost(c, "it is shutting down", now_us); return false;
    case MESSAGE_WHO: link_lost(c, "it was started again", now_us); return false;
    default: log_warn("message_unexpected", "kind=%s", message_kind_name((int)m->kind)); return false;
    }
}

static void clear_event(client *c) {
    request_memory_clear(&c->memory);
    wire_message_clear(&c->in);
}

static bool receive_event(client *c, client_event *event, int64_t now_us) {
    for (int n = 0; c->socket && n < MESSAGES_PER_TURN; n++) {
        err e = {0};
        clear_event(c);
        status st = wire_receive(c->socket, &c->in, &e);
        if (st == STATUS_TIMEOUT) return false;
        c->heard_us = now_us;
        if (st != STATUS_OK)
            log_warn("message_malformed", "why=%s", e.text);
        else if (take_message(c, &c->in.in.m, event, now_us))
            return true;
    }
    return false;
}

/* ---- one turn -------------------------------------------------------------------------------- */

/* Opens, greets, notices silence. True when event was filled. */
static status keep_link(client *c, client_event *event, bool *has_event, int64_t now_us, err *e) {
    if (c->refused != STATUS_OK) return fail(e, c->refused, "%s", c->refused_text);
    if (c->link == LINK_DOWN && now_us >= c->reopen_us) {
        status st = link_open(c, now_us, e);
        if (st != STATUS_OK) return st;
    }
    if (c->link == LINK_GREETING && !c->hello_sent) say_hello(c, now_us);
    if (c->link != LINK_DOWN && now_us - c->heard_us > silence_ms(c) * CLOCK_MS_US)
        link_lost(c, c->link == LINK_UP ? "silent for three heartbeats" : "no answer", now_us);
    if (c->link == LINK_DOWN && c->was_up && !c->told_unavailable) {
        c->told_unavailable = true;
        *event = (client_event){.kind = CLIENT_UNAVAILABLE, .code = STATUS_UNAVAILABLE,
                                .text = c->refused_text};
        *has_event = true;
        return STATUS_OK;
    }
    if (c->link != LINK_UP) return STATUS_OK;
    if (c->status_wanted) c->status_wanted = !send_plain(c, MESSAGE_STATUS_ASK, NULL, now_us);
    if (now_us - c->said_us >= c->heartbeat_ms * CLOCK_MS_US)
        (void)send_plain(c, MESSAGE_PING, NULL, now_us);
    return STATUS_OK;
}

/* A caller that was busy elsewhere must not take its own silence for the broker's. */
static int64_t begin_turn(client *c) {
    int64_t now_us = clock_now_us(), gap_us = now_us - c->turn_us;
    if (c->turn_us && gap_us > c->heartbeat_ms * CLOCK_MS_US) c->heard_us += gap_us;
    if (c->heard_us > now_us) c->heard_us = now_us;
    c->turn_us = now_us;
    c->is_send_blocked = false; /* set again by whatever cannot be sent in this turn */
    return now_us;
}

static int64_t earlier(int64_t a, int64_t b) { return a < b ? a : b; }

/* How long the poll may sleep before something of ours is due. */
static int64_t wake_us(const client *c, int64_t now_us, int64_t end_us) {
    int64_t at = end_us;
    if (c->link == LINK_DOWN) return earlier(at, c->reopen_us);
    at = earlier(at, c->heard_us + (silence_ms(c) + 1) * CLOCK_MS_US);
    if (c->link == LINK_UP) {
        if (!c->is_send_blocked) at = earlier(at, c->said_us + c->heartbeat_ms * CLOCK_MS_US);
        if (outstanding_count(c->items)) at = earlier(at, c->next_walk_us);
    }
    return at < now_us ? now_us : at;
}

/* Waits for the socket, a watched descriptor or the time. */
static status wait_for_more(client *c, int64_t until_us, err *e) {
    zmq_pollitem_t polled[1 + CLIENT_WATCHED_MAX];
    int n = 0;
    for (int i = 0; i < CLIENT_WATCHED_MAX; i++)
        if (c->watched_fds[i] >= 0)
            polled[n++] = (zmq_pollitem_t){.fd = c->watched_fds[i], .events = ZMQ_POLLIN};
    int n_watched = n;
    if (c->socket) {
        bool wants_out = c->is_send_blocked || (c->link == LINK_GREETING && !c->hello_sent);
        polled[n++] = (zmq_pollitem_t){.socket = wire_zmq(c->socket),
                                       .events = (short)(ZMQ_POLLIN | (wants_out ? ZMQ_POLLOUT : 0))};
    }
    int64_t left_us = until_us - clock_now_us();
    long left_ms = left_us <= 0 ? 0 : (long)((left_us + CLOCK_MS_US - 1) / CLOCK_MS_US);
    if (zmq_poll(polled, n, left_ms) < 0 && zmq_errno() != EINTR)
        return fail(e, STATUS_IO, "waiting for messages: %s", zmq_strerror(zmq_errno()));
    for (int i = 0; i < n_watched; i++)
        if (polled[i].revents) return fail(e, STATUS_INTERRUPTED, "interrupted");
    return STATUS_OK;
}

status client_poll(client *c, int timeout_ms, client_event *event, err *e) {
    int64_t end_us = timeout_ms < 0 ? INT64_MAX : clock_now_us() + timeout_ms * CLOCK_MS_US;
    clear_event(c);
    for (bool is_last_look = false;;) {
        int64_t now_us = begin_turn(c);
        if (receive_event(c, event, now_us)) return STATUS_OK;
        bool has_event = false;
        status st = keep_link(c, event, &has_event, now_us, e);
        if (st != STATUS_OK || has_event) return st;
        bool sendable = c->link == LINK_UP && c->n_due > 0;
        if (sendable || now_us >= c->next_walk_us) walk_items(c, now_us);
        if (c->n_due > 0 && give_up_event(c, event)) return STATUS_OK;
        if (is_last_look) return fail(e, STATUS_TIMEOUT, "no answer within %d ms", timeout_ms);
        st = wait_for_more(c, wake_us(c, now_us, end_us), e);
        if (st != STATUS_OK) return st;
        is_last_look = clock_now_us() >= end_us;
    }
}

/* ---- submitting ------------------------------------------------------------------------------ */

bool client_has_room(const client *c, size_t image_bytes) {
    uint32_t n_max = c->window_items;
    if (c->broker_window_items && c->broker_window_items < n_max) n_max = c->broker_window_items;
    if (outstanding_count(c->items) >= (size_t)c->window_items + UNACKED_EXTRA) return false;
    if (c->n_unanswered == 0) return true;
    return c->n_unanswered < n_max && c->unanswered_bytes + image_bytes <= c->window_bytes;
}

/* One image may be given in either way. */
static size_t n_images_of(const client_item *item) { return item->n_images ? item->n_images : item->image.len_bytes > 0; }

static const bytes *images_of(const client_item *item) { return item->n_images ? item->images : &item->image; }

static size_t image_bytes_of(const client_item *item) {
    size_t n_bytes = 0;
    for (size_t i = 0; i < n_images_of(item); i++) n_bytes += images_of(item)[i].len_bytes;
    return n_bytes;
}

static status check_images(const client_item *item, err *e) {
    size_t n = n_images_of(item), n_bytes = 0;
    if (n > MESSAGE_IMAGES_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "item of %zu images, limit %d", n, MESSAGE_IMAGES_MAX);
    for (size_t i = 0; i < n; i++) {
        size_t len_bytes = images_of(item)[i].len_bytes;
        if (len_bytes == 0) return fail(e, STATUS_BAD_ARGUMENT, "image %zu of %zu is empty", i + 1, n);
        if (len_bytes > MESSAGE_IMAGE_BYTES_MAX)
            return fail(e, STATUS_TOO_LARGE, "image of %zu bytes, limit %u", len_bytes, MESSAGE_IMAGE_BYTES_MAX);
        n_bytes += len_bytes;
    }
    if (n > 1 && n_bytes > MESSAGE_IMAGE_BYTES_MAX - BUNDLE_HEADER_BYTES_MAX)
        return fail(e, STATUS_TOO_LARGE, "%zu images of %zu bytes together, limit %u", n, n_bytes,
                    MESSAGE_IMAGE_BYTES_MAX - BUNDLE_HEADER_BYTES_MAX);
    return STATUS_OK;
}

static status check_item(const client *c, const client_item *item, err *e) {
    const request *r = item->request;
    if (r->n_questions < 1 || r->n_questions > MESSAGE_QUESTIONS_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "item of %zu questions, allowed are 1 to %d",
                    r->n_questions, MESSAGE_QUESTIONS_MAX);
    for (size_t q = 0; q < r->n_questions; q++)
        if (strlen(r->questions[q].prompt) > MESSAGE_PROMPT_BYTES_MAX)
            return fail(e, STATUS_PROMPT_TOO_LONG, "question %zu has %zu bytes, limit %d", q,
                        strlen(r->questions[q].prompt), MESSAGE_PROMPT_BYTES_MAX);
    status st = check_images(item, e);
    if (st != STATUS_OK) return st;
    if (outstanding_find(c->items, &item->id)) {
        char id[ITEM_ID_TEXT_BYTES];
        return fail(e, STATUS_BAD_ARGUMENT, "item %s is outstanding already",
                    item_id_text(id, &item->id));
    }
    return STATUS_OK;
}

static uint32_t cost_of(const request *r, size_t n_images) {
    uint64_t cost = IMAGE_COST * (uint64_t)n_images;
    for (size_t q = 0; q < r->n_questions; q++)
        cost += strlen(r->questions[q].prompt) / 4 + 1 + r->sampling.max_new_tokens;
    return cost > UINT32_MAX ? UINT32_MAX : (uint32_t)cost;
}

/* Also says in the request which images they are, by their hashes. */
static status fill_bundle(outstanding_item *i, request *r, unsigned char (*hashes)[HASH_SHA256_BYTES],
                          const client_item *item, err *e) {
    unsigned char head[BUNDLE_HEADER_BYTES_MAX];
    bytes parts[1 + MESSAGE_IMAGES_MAX] = {{head, bundle_header(head, item->images, item->n_images)}};
    for (size_t k = 0; k < item->n_images; k++) {
        parts[1 + k] = item->images[k];
        hash_sha256(hashes[k], item->images[k].data, item->images[k].len_bytes);
    }
    r->images = (const unsigned char(*)[HASH_SHA256_BYTES])hashes;
    r->n_images = item->n_images;
    i->flags |= MESSAGE_FLAG_BUNDLE;
    status st = wire_payload_open_parts(&i->image, parts, 1 + item->n_images, e);
    if (st == STATUS_OK) wire_payload_sha256(i->image, i->image_sha256);
    return st;
}

static status fill_image(outstanding_item *i, const client_item *item, err *e) {
    const bytes *image = images_of(item);
    if (item->image_sha256)
        memcpy(i->image_sha256, item->image_sha256, sizeof i->image_sha256);
    else
        hash_sha256(i->image_sha256, image->data, image->len_bytes);
    return wire_payload_open(&i->image, image->data, image->len_bytes, e);
}

static status fill_item(outstanding_item *i, const client_item *item, err *e) {
    i->tag = item->tag;
    i->state = ITEM_QUEUED;
    i->n_questions = (uint32_t)item->request->n_questions;
    size_t n_images = n_images_of(item);
    i->flags = item->flags & (MESSAGE_FLAG_EXIF | MESSAGE_FLAG_STREAM);
    if (n_images > 0) i->flags |= MESSAGE_FLAG_IMAGE;
    i->cost = cost_of(item->request, n_images);
    i->priority = item->priority;
    request asked = *item->request;
    asked.images = NULL;
    asked.n_images = 0;
    unsigned char hashes[MESSAGE_IMAGES_MAX][HASH_SHA256_BYTES];
    status st = n_images > 1    ? fill_bundle(i, &asked, hashes, item, e)
                : n_images == 1 ? fill_image(i, item, e)
                                : STATUS_OK;
    if (st != STATUS_OK) return st;
    i->image_bytes = image_bytes_of(item);
    buf_init(&i->body, MESSAGE_ENVELOPE_BYTES_MAX - 64 * 1024);
    st = request_encode(&asked, &i->body);
    if (st != STATUS_OK) return fail(e, st, "request: %s", status_text((int)st));
    if (item->flags & MESSAGE_FLAG_STREAM) {
        i->tokens_seen = calloc(i->n_questions, sizeof *i->tokens_seen);
        if (!i->tokens_seen) return fail(e, STATUS_NO_MEMORY, "item: out of memory");
    }
    /* Streaming changes who is told, not what is asked: it is not part of the identity. */
    request_digest(i->digest, i->image_sha256, i->flags & ~(uint32_t)MESSAGE_FLAG_STREAM,
                   (bytes){i->body.data, i->body.len_bytes});
    return STATUS_OK;
}

status client_submit(client *c, const client_item *item, err *e) {
    status st = check_item(c, item, e);
    if (st != STATUS_OK) return st;
    if (!client_has_room(c, image_bytes_of(item)))
        return fail(e, STATUS_BUSY, "%zu items are unanswered; the window is full",
                    c->n_unanswered);
    outstanding_item *i = outstanding_add(c->items, &item->id);
    if (!i) return fail(e, STATUS_NO_MEMORY, "item: out of memory");
    st = fill_item(i, item, e);
    if (st != STATUS_OK) {
        outstanding_remove(c->items, i);
        return st;
    }
    int64_t now_us = clock_now_us();
    if (item->deadline_ms)
        i->deadline_us = now_us + (int64_t)(item->deadline_ms < (1u << 31) ? item->deadline_ms
                                                                            : 1u << 31) * CLOCK_MS_US;
    c->n_unanswered++;
    c->unanswered_bytes += i->image_bytes;
    c->n_due++;
    /* Sent at once when nothing older waits, so that callers need not poll between submissions. */
    if (c->link == LINK_UP && !c->is_send_blocked && submit_now(c, i, now_us)) c->n_due--;
    return STATUS_OK;
}

void client_ack(client *c, const item_id *id) {
    outstanding_item *i = outstanding_find(c->items, id);
    if (!i || i->state != ITEM_ANSWERED) return;
    if (c->link == LINK_UP && send_plain(c, MESSAGE_RESULT_ACK, id, clock_now_us())) {
        outstanding_remove(c->items, i);
        return;
    }
    i->state = ITEM_TO_ACK;
    c->n_due++;
}

static void cancel_item(client *c, outstanding_item *i) {
    if (!is_unanswered(i) || i->state == ITEM_GIVEN_UP || i->is_cancelled) return;
    i->is_cancelled = true;
    if (i->state == ITEM_QUEUED) {
        i->state = ITEM_GIVEN_UP;
        i->code = STATUS_CANCELLED;
    }
    i->needs_cancel = true; /* even if it is not with this broker now, it may have been before */
    c->n_due++;
}

void client_cancel(client *c, const item_id *id) {
    outstanding_item *i = outstanding_find(c->items, id);
    if (i) cancel_item(c, i);
}

void client_cancel_all(client *c) {
    for (outstanding_item *i = outstanding_first(c->items); i; i = i->next) cancel_item(c, i);
}

size_t client_unanswered(const client *c) { return c->n_unanswered; }

void client_status_ask(client *c) { c->status_wanted = true; }

status client_status(client *c, int timeout_ms, const status_report **report, err *e) {
    CHECK(c->n_unanswered == 0, "client_status is for a client with nothing outstanding");
    int64_t end_us = clock_now_us() + timeout_ms * CLOCK_MS_US;
    client_status_ask(c);
    for (;;) {
        int64_t left_ms = (end_us - clock_now_us()) / CLOCK_MS_US;
        status st = client_poll(c, left_ms < 0 ? 0 : (int)left_ms, &c->status_event, e);
        if (st != STATUS_OK) return st;
        if (c->status_event.kind != CLIENT_STATUS) continue;
        *report = &c->status_event.report;
        return STATUS_OK;
    }
}

/* ---- opening and closing --------------------------------------------------------------------- */

void client_watch(client *c, int fd0, int fd1) {
    c->watched_fds[0] = fd0;
    c->watched_fds[1] = fd1;
}

static void take_settings(client *c, const client_settings *s) {
    (void)snprintf(c->name, sizeof c->name, "%s", s->name ? s->name : "client");
    c->window_items = s->window_items ? s->window_items : CLIENT_WINDOW_ITEMS;
    c->window_bytes = s->window_bytes ? s->window_bytes : CLIENT_WINDOW_BYTES;
    client_watch(c, s->stop_fd > 0 ? s->stop_fd : -1, -1);
}

/* Runs the link until WELCOME or the end of the time. */
static status wait_for_welcome(client *c, int timeout_ms, err *e) {
    int64_t end_us = clock_now_us() + timeout_ms * CLOCK_MS_US;
    while (!c->was_up) {
        client_event event;
        bool has_event = false;
        int64_t now_us = begin_turn(c);
        if (now_us >= end_us)
            return fail(e, STATUS_UNAVAILABLE, "no broker answers at %s within %d ms", c->endpoint,
                        timeout_ms);
        (void)receive_event(c, &event, now_us);
        if (c->was_up) break;
        status st = keep_link(c, &event, &has_event, now_us, e);
        if (st == STATUS_OK) st = wait_for_more(c, wake_us(c, now_us, end_us), e);
        if (st != STATUS_OK) return st;
    }
    return STATUS_OK;
}

status client_open(client **c, void *zmq_context, const char *endpoint,
                   const client_settings *settings, err *e) {
    client_settings defaults = {0};
    if (!settings) settings = &defaults;
    *c = NULL;
    if (strlen(endpoint) >= sizeof (*c)->endpoint)
        return fail(e, STATUS_BAD_ARGUMENT, "endpoint of %zu bytes, limit %zu", strlen(endpoint),
                    sizeof (*c)->endpoint - 1);
    client *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "client: out of memory");
    made->zmq_context = zmq_context;
    (void)snprintf(made->endpoint, sizeof made->endpoint, "%s", endpoint);
    take_settings(made, settings);
    made->heartbeat_ms = HEARTBEAT_MS;
    made->jitter = rng_make(rng_system());

    status st = outstanding_open(&made->items, (size_t)made->window_items + UNACKED_EXTRA);
    if (st != STATUS_OK)
        (void)fail(e, st, "client: out of memory");
    else
        st = link_open(made, clock_now_us(), e);
    int timeout_ms = settings->open_timeout_ms > 0 ? settings->open_timeout_ms : OPEN_TIMEOUT_MS;
    if (st == STATUS_OK) st = wait_for_welcome(made, timeout_ms, e);
    if (st != STATUS_OK) {
        client_close(&made);
        return st;
    }
    *c = made;
    return STATUS_OK;
}

void client_close(client **c) {
    if (!*c) return;
    if ((*c)->link == LINK_UP) {
        walk_items(*c, clock_now_us());
        (void)send_plain(*c, MESSAGE_BYE, NULL, clock_now_us());
    }
    clear_event(*c);
    wire_close(&(*c)->socket);
    outstanding_close(&(*c)->items);
    free(*c);
    *c = NULL;
}

/* ---- ids ------------------------------------------------------------------------------------- */

void client_random_id(item_id *id) {
    bytes_store_le(id->bytes, rng_system(), 8);
    bytes_store_le(id->bytes + 8, rng_system(), 8);
}
