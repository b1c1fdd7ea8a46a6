/* One step: the event, then whatever became due through it, as long as the caller's list has room.
 *
 *     event ── handler ──► transitions (item_rules.c) ──► COMMIT ─ ─ ─► COMMITTED(token)
 *                                                                            │
 *        settle: what was held back for that token is said or done   ◄───────┘
 *        time: timers      lose: grants of lost nodes      wake: items that waited for an image
 *        dispatch: items to nodes
 *
 * A transition changes the row at once and is journaled; the world hears of it when it is durable. So
 * a later event always sees the newest state, and a crash of the broker can only forget what nobody
 * was told. Everything held back for a token stands in a ring at token % size; one item has at most a
 * handful of transitions under way (it is not handed out again before the last one is durable), which
 * bounds the ring.
 *
 * Handlers add at most ACTIONS_PER_UNIT actions; everything that may be many (waiters, grants of a
 * lost node, due timers) is kept in a stack or heap and done in units. Events of nodes are in
 * item_reports.c, the tables and their opening in item_rows.c. */
#include "broker/item_machine.h"

#include <string.h>

#include "broker/item_machine_internal.h"

#define RETRY_MS_MIN     20
#define RETRY_MS_MAX     10000
#define RETRY_MS_UNKNOWN 200

/* --- what the world hears -------------------------------------------------------------------- */

void send_about(item_machine *m, action_kind kind, uint64_t peer, const item_ident *id,
                uint32_t attempt) {
    action *a = emit(m, kind, peer);
    a->id = *id;
    a->attempt = attempt;
}

void send_refused(item_machine *m, uint64_t peer, const item_ident *id, status code) {
    action *a = emit(m, ACTION_SEND_REFUSED, peer);
    a->id = *id;
    a->code = code;
}

static void send_state(item_machine *m, uint64_t peer, const item_ident *id, item_state state,
                       status code) {
    action *a = emit(m, ACTION_SEND_STATE, peer);
    a->id = *id;
    a->state = state;
    a->code = code;
}

static void send_result(item_machine *m, uint64_t peer, const item_row *it) {
    action *a = emit(m, ACTION_SEND_RESULT, peer);
    a->id = it->id;
    a->attempt = it->attempt;
    a->state = it->state;
    a->code = it->code;
    a->payload = it->result_payload;
    a->result.report_payload = it->report_payload;
    a->result.queue_us = it->queue_us;
    a->result.total_us = it->finished_us - it->accepted_us;
}

/* What to say about an item that is here already. What is not durable yet is said when it is. */
static void send_whereabouts(item_machine *m, uint64_t peer, const item_row *it) {
    if (it->state == ITEM_DELIVERED) send_state(m, peer, &it->id, ITEM_DELIVERED, it->code);
    else if (item_state_is_final(it->state) && it->token <= m->settled) send_result(m, peer, it);
    else if (!item_state_is_final(it->state) && it->state != ITEM_ACCEPTED)
        send_state(m, peer, &it->id, it->state, STATUS_OK);
}

/* --- leases ---------------------------------------------------------------------------------- */

void grant_done(item_machine *m, uint32_t g) {
    grant_row *row = &m->nodes.grants[g];
    if (row->item != SLOT_NONE && m->items[row->item].grant == g)
        m->items[row->item].grant = SLOT_NONE;
    grant_free(&m->nodes, g);
    arm_grant(m, g);
    m->wants_dispatch = true;
}

/* Given up by us, still in the node's hands: its place there stays taken until the node says so. */
void grant_orphan(item_machine *m, uint32_t g) {
    grant_row *row = &m->nodes.grants[g];
    if (row->state == GRANT_CLAIMING || MUTANT(m, 11)) { /* it never left, or so the mutant thinks */
        grant_done(m, g);
        return;
    }
    m->items[row->item].grant = SLOT_NONE;
    row->item = SLOT_NONE;
    row->state = GRANT_STOPPING;
    row->renewed_us = m->now_us;
    send_about(m, ACTION_SEND_STOP, m->nodes.nodes[row->node].peer, &row->id, row->attempt);
    arm_grant(m, g);
}

void lease_lose(item_machine *m, uint32_t g, bool node_is_gone) {
    uint32_t item = m->nodes.grants[g].item;
    rule_facts facts = {.attempt = m->nodes.grants[g].attempt};
    bool stays = node_is_gone && MUTANT(m, 18) && item != SLOT_NONE;
    if (stays) m->items[item].grant = SLOT_NONE;
    if (node_is_gone) grant_done(m, g);
    else if (item != SLOT_NONE) grant_orphan(m, g);
    if (stays || item == SLOT_NONE || !rule_allows(m, RULE_LEASE_LOST, &m->items[item], &facts))
        return;
    item_row *it = &m->items[item];
    if (++it->expiries > m->limits.expiries_max) {
        item_finish(m, RULE_LEASE_LOST, item, ITEM_FAILED, STATUS_TIMEOUT,
                    held_for(m, HELD_FINAL, item));
    } else {
        rule_commit(m, RULE_LEASE_LOST, item, waiting_state(it), held_for(m, HELD_PLACE, item));
        arm_item(m, item);
    }
}

void node_lose(item_machine *m, uint32_t n) {
    node_table_lose(&m->nodes, n);
    arm_node(m, n);
    for (int s = 0; s < STAGE_COUNT; s++)
        if (m->reserved[s] == n) m->reserved[s] = SLOT_NONE;
    m->nodes.nodes[n].reserved_for = 0;
    m->losing[m->n_losing++] = n;
    m->wants_dispatch = true;
}

static void lose_some(item_machine *m) {
    while (m->n_losing > 0) {
        uint32_t n = m->losing[m->n_losing - 1];
        node_row *row = &m->nodes.nodes[n];
        while (row->parked.n > 0) {
            uint32_t item = row->parked.first;
            item_unplace(m, item);
            item_place_somewhere(m, item, 0);
        }
        while (row->first_grant != SLOT_NONE) {
            if (!has_room_for_unit(m)) return;
            lease_lose(m, row->first_grant, true);
        }
        node_table_remove(&m->nodes, n);
        m->n_losing--;
    }
}

/* --- the end of an item ---------------------------------------------------------------------- */

void item_finish(item_machine *m, machine_rule rule, uint32_t item, item_state to, status code,
                 held then) {
    item_row *it = &m->items[item];
    bool again = item_state_is_final(it->state); /* only a mutant gets here twice */
    item_unplace(m, item);
    if (it->image != SLOT_NONE && m->images.rows[it->image].encoder == item)
        image_drop_encoder(m, item);
    it->code = code;
    it->finished_us = m->now_us;
    if (!again) {
        m->counts.in_flight--;
        if (to == ITEM_DONE) m->counts.done++;
        else if (to == ITEM_FAILED) m->counts.failed++;
        else if (to == ITEM_CANCELLED) m->counts.cancelled++;
        else m->counts.expired++;
    }
    int64_t gap = m->now_us - m->last_finish_us;
    m->finish_gap_us = m->finish_gap_us == 0 ? gap : (7 * m->finish_gap_us + gap) / 8;
    m->last_finish_us = m->now_us;
    rule_commit(m, rule, item, to, then);
    arm_item(m, item);
}

/* --- settling: a token is durable ------------------------------------------------------------- */

static void hand_over(item_machine *m, const held *h) {
    item_row *it = &m->items[h->item];
    grant_row *grant = &m->nodes.grants[h->grant];
    if (grant->generation != h->grant_generation || grant->state != GRANT_CLAIMING) return;
    node_row *node = &m->nodes.nodes[grant->node];
    node->bytes -= grant->bytes;
    grant->bytes = work_bytes(m, it, grant->stage); /* features may have come or gone since the claim */
    node->bytes += grant->bytes;
    bool may_work = !node->is_draining && (node->n_holds == 0 || MUTANT(m, 8)) &&
                    (grant->is_solo || !is_suspect(m, it)) &&
                    (MUTANT(m, 6) ||
                     (node->items <= node->items_max && node->bytes <= node->bytes_max));
    if (item_state_is_final(it->state) || !may_work) {
        bool was_final = item_state_is_final(it->state);
        grant_done(m, h->grant);
        if (was_final) return;
        m->counts.releases++;
        rule_commit(m, RULE_RELEASE, h->item, waiting_state(it), held_for(m, HELD_PLACE, h->item));
        return;
    }
    grant->state = GRANT_RUNNING;
    grant->started_us = grant->renewed_us = m->now_us;
    arm_grant(m, h->grant);
    if (grant->stage == STAGE_LM) m->counts.generates++;
    else m->counts.encodes++;
    action *a = emit(m, ACTION_SEND_WORK, node->peer);
    a->id = it->id;
    a->attempt = grant->attempt;
    a->payload = it->request_payload;
    a->work.session = node->session;
    a->work.stage = grant->stage;
    a->work.lease_us = m->limits.lease_us;
    a->work.n_questions = it->n_questions;
    a->work.has_image = it->image != SLOT_NONE;
    if (!a->work.has_image) return;
    a->work.image = m->images.rows[it->image].key;
    a->work.is_again = it->regressions > 0;
    if (grant->stage == STAGE_VISION) a->work.image_payload = m->images.rows[it->image].payload;
    else a->work.features_payload = m->images.rows[it->image].features;
}

static void tell_node(item_machine *m, const held *h) {
    node_row *node = &m->nodes.nodes[h->node];
    if (!node->is_used || node->is_lost || node->generation != h->node_generation) return;
    send_about(m, h->is_crash ? ACTION_SEND_CRASH_TAKEN : ACTION_SEND_TAKEN, node->peer, &h->id,
               h->attempt);
    if (!h->is_crash) return;
    m->out->rows[m->out->n - 1].incarnation = h->incarnation;
    node->n_holds--;
    m->wants_dispatch = true;
}

static void settle(item_machine *m, const held *h) {
    item_row *it = &m->items[h->item];
    bool is_same = it->is_used && it->generation == h->item_generation;
    CHECK(is_same || MUTANT(m, 2), "a row stays until its last transition is durable");
    if (!is_same) return;
    if (h->kind == HELD_CLAIM) {
        hand_over(m, h);
        return;
    }
    if (h->node != SLOT_NONE) tell_node(m, h);
    client_row *c = client_of(m, it);
    switch (h->kind) {
    case HELD_ACCEPT:
        if (c && !MUTANT(m, 1)) send_about(m, ACTION_SEND_ACCEPTED, c->peer, &it->id, 0);
        if (it->state == ITEM_ACCEPTED) item_place_somewhere(m, h->item, 0);
        break;
    case HELD_PLACE:
        if (!item_state_is_final(it->state) && it->grant == SLOT_NONE && it->place == PLACE_NONE)
            item_place_somewhere(m, h->item, h->backoff_us);
        break;
    case HELD_FINAL:
        if (it->grant != SLOT_NONE) grant_orphan(m, it->grant);
        item_drop_inputs(m, it);
        if (c && it->state != ITEM_DELIVERED) send_result(m, c->peer, it);
        break;
    case HELD_LEAVE: item_remove(m, h->item); break;
    case HELD_NOTHING:
    case HELD_CLAIM: break;
    }
}

static void settle_some(item_machine *m) {
    while (m->settled < m->committed && has_room_for_unit(m)) {
        uint64_t token = ++m->settled;
        held h = m->ring[token % m->n_ring]; /* settling may put the next one there */
        settle(m, &h);
    }
}

/* --- events from clients ---------------------------------------------------------------------- */

static void client_hello(item_machine *m, const event *e) {
    uint32_t c = find_client(m, e->peer);
    if (c == SLOT_NONE) {
        c = client_add(m, e->peer, e->client_hello.tenant);
        if (c == SLOT_NONE) {
            send_refused(m, e->peer, &e->id, STATUS_BUSY);
            return;
        }
    }
    m->clients[c].heard_us = m->now_us;
    arm_client(m, c);
    action *a = emit(m, ACTION_SEND_WELCOME, e->peer);
    a->welcome.session = m->clients[c].generation;
}

/* A client that connected anew, or asks again, is where the answer goes from now on. */
static void adopt(item_machine *m, uint32_t item, uint32_t c) {
    item_row *it = &m->items[item];
    client_row *old = client_of(m, it), *now = &m->clients[c];
    uint64_t bytes = (uint64_t)it->image_bytes + it->request_bytes;
    if (old == now) return;
    if (old) {
        old->n_items--;
        old->bytes -= bytes;
        m->n_owed--;
    }
    now->n_items++;
    now->bytes += bytes;
    m->n_owed++;
    it->client = c;
    it->client_generation = now->generation;
}

/* About the time in which an eighth of what is here will have gone. */
static uint32_t retry_ms(const item_machine *m) {
    if (m->finish_gap_us <= 0) return RETRY_MS_UNKNOWN;
    int64_t gap_ms = m->finish_gap_us / 1000 + 1;
    if (gap_ms > RETRY_MS_MAX) return RETRY_MS_MAX;
    int64_t ms = gap_ms * (m->counts.n_rows / 8 + 1);
    return (uint32_t)(ms < RETRY_MS_MIN ? RETRY_MS_MIN : ms > RETRY_MS_MAX ? RETRY_MS_MAX : ms);
}

static bool has_capacity(const item_machine *m, const client_row *c, const event *e) {
    uint64_t bytes = (uint64_t)e->submit.image_bytes + e->submit.request_bytes;
    return !m->is_draining && m->counts.n_rows < m->limits.n_items_max &&
           m->counts.bytes <= m->limits.bytes_max &&
           bytes <= m->limits.bytes_max - m->counts.bytes &&
           c->n_items < m->limits.client_items_max && c->bytes <= m->limits.client_bytes_max &&
           bytes <= m->limits.client_bytes_max - c->bytes;
}

/* Answers for an id that is known; false when it is new. */
static bool answer_known(item_machine *m, const event *e, const item_digest *digest, uint32_t c) {
    uint32_t item = find_item(m, &e->id);
    const tombstone *tomb = item == SLOT_NONE ? find_tomb(m, &e->id) : NULL;
    if (item == SLOT_NONE && !tomb) return false;
    const item_digest *known = tomb ? &tomb->digest : &m->items[item].digest;
    uint64_t tenant = tomb ? tomb->tenant : m->items[item].tenant;
    bool is_same = memcmp(known, digest, sizeof *known) == 0 || MUTANT(m, 15);
    if (!is_same || tenant != m->clients[c].tenant) {
        m->counts.conflicts++;
        send_refused(m, e->peer, &e->id, STATUS_CONFLICT);
        return true;
    }
    m->counts.duplicates++;
    if (tomb) {
        send_state(m, e->peer, &e->id, ITEM_DELIVERED, tomb->code);
    } else {
        adopt(m, item, c);
        send_whereabouts(m, e->peer, &m->items[item]);
    }
    return true;
}

static bool submit_is_sound(const event *e) {
    return e->submit.n_questions >= 1 && e->submit.n_questions <= ITEM_QUESTIONS_MAX &&
           e->submit.request_payload != 0 &&
           (e->submit.has_image ? e->submit.image_payload != 0
                                : e->submit.image_payload == 0 && e->submit.image_bytes == 0);
}

static void release_submitted(item_machine *m, const event *e) {
    release(m, e->submit.request_payload);
    release(m, e->submit.image_payload);
}

static void submit(item_machine *m, const event *e, uint32_t c) {
    if (answer_known(m, e, &e->submit.digest, c)) {
        release_submitted(m, e);
        return;
    }
    if (!submit_is_sound(e)) {
        release_submitted(m, e);
        send_refused(m, e->peer, &e->id, STATUS_BAD_ARGUMENT);
        return;
    }
    if (!has_capacity(m, &m->clients[c], e)) {
        release_submitted(m, e);
        m->counts.busy++;
        action *a = emit(m, ACTION_SEND_BUSY, e->peer);
        a->id = e->id;
        a->retry_ms = retry_ms(m);
        return;
    }
    uint32_t item = item_add(m, e, c);
    m->counts.accepted++;
    m->counts.in_flight++;
    rule_facts none = {0};
    CHECK(rule_allows(m, RULE_ACCEPT, &m->items[item], &none), "a new row is nothing yet");
    rule_commit(m, RULE_ACCEPT, item, ITEM_ACCEPTED, held_for(m, HELD_ACCEPT, item));
    if (MUTANT(m, 1)) send_about(m, ACTION_SEND_ACCEPTED, e->peer, &e->id, 0);
    arm_item(m, item);
}

static void cancel(item_machine *m, const event *e, uint32_t c) {
    uint32_t item = find_item(m, &e->id);
    const tombstone *tomb = item == SLOT_NONE ? find_tomb(m, &e->id) : NULL;
    rule_facts facts = {.tenant = m->clients[c].tenant};
    if (tomb && tomb->tenant == facts.tenant) {
        send_state(m, e->peer, &e->id, ITEM_DELIVERED, tomb->code);
    } else if (item == SLOT_NONE || m->items[item].tenant != facts.tenant) {
        send_state(m, e->peer, &e->id, ITEM_NONE, STATUS_NOT_FOUND);
    } else if (rule_allows(m, RULE_CANCEL, &m->items[item], &facts)) {
        item_finish(m, RULE_CANCEL, item, ITEM_CANCELLED, STATUS_CANCELLED,
                    held_for(m, HELD_FINAL, item));
        if (MUTANT(m, 13)) send_result(m, e->peer, &m->items[item]);
    } else {
        send_whereabouts(m, e->peer, &m->items[item]);
    }
}

static void delivered(item_machine *m, const event *e, uint32_t c) {
    uint32_t item = find_item(m, &e->id);
    rule_facts facts = {.tenant = m->clients[c].tenant};
    if (item == SLOT_NONE || m->items[item].token > m->settled ||
        !rule_allows(m, RULE_DELIVER, &m->items[item], &facts)) {
        m->counts.ignored++;
        return;
    }
    m->counts.delivered++;
    rule_commit(m, RULE_DELIVER, item, ITEM_DELIVERED, held_for(m, HELD_LEAVE, item));
    arm_item(m, item);
}

static void client_event(item_machine *m, const event *e) {
    uint32_t c = find_client(m, e->peer);
    if (c == SLOT_NONE) {
        m->counts.ignored++;
        if (e->kind == EVENT_SUBMIT) release_submitted(m, e);
        if (e->kind != EVENT_CLIENT_GONE) emit(m, ACTION_SEND_WHO, e->peer);
        return;
    }
    m->clients[c].heard_us = m->now_us;
    switch (e->kind) {
    case EVENT_CLIENT_GONE: client_lose(m, c); break;
    case EVENT_SUBMIT: submit(m, e, c); break;
    case EVENT_QUERY:
        if (!answer_known(m, e, &e->query.digest, c))
            send_state(m, e->peer, &e->id, ITEM_NONE, STATUS_NOT_FOUND);
        break;
    case EVENT_CANCEL: cancel(m, e, c); break;
    case EVENT_DELIVERED: delivered(m, e, c); break;
    default: break; /* CLIENT_BEAT: being heard is all */
    }
}

/* --- the step -------------------------------------------------------------------------------- */

static bool timer_is_due(const item_machine *m) {
    return m->timers.n > 0 && (int64_t)heap_first_key(&m->timers).major <= m->now_us;
}

void machine_step(item_machine *m, const event *e, int64_t now_us, actions *out) {
    CHECK(out->n_max >= ACTIONS_MIN, "a step has room for its actions");
    CHECK(now_us >= m->now_us, "time does not go back");
    out->n = 0;
    m->out = out;
    m->now_us = now_us;
    if (e->kind == EVENT_COMMITTED) {
        if (e->committed > m->committed && e->committed <= m->token) m->committed = e->committed;
        else m->counts.ignored++;
    } else if (e->kind == EVENT_DRAIN) {
        m->is_draining = true;
    } else if (e->kind == EVENT_CLIENT_HELLO) {
        client_hello(m, e);
    } else if (e->kind >= EVENT_CLIENT_BEAT && e->kind <= EVENT_DELIVERED) {
        client_event(m, e);
    } else if (e->kind >= EVENT_NODE_HELLO && e->kind < EVENT_KIND_COUNT) {
        node_event(m, e);
    }
    settle_some(m);
    time_passes_some(m);
    lose_some(m);
    wake_some(m);
    dispatch_some(m);
    m->has_more = m->settled < m->committed || m->n_losing > 0 || m->n_waking > 0 ||
                  m->wants_dispatch || timer_is_due(m);
    if (m->is_draining && !m->has_drained && m->counts.in_flight == 0 && m->n_owed == 0 &&
        m->settled == m->token && out->n < out->n_max) {
        m->has_drained = true;
        emit(m, ACTION_DRAINED, 0);
    }
    m->out = NULL;
}

bool machine_has_more(const item_machine *m) { return m->has_more; }

int64_t machine_next_us(const item_machine *m) {
    return m->timers.n ? (int64_t)heap_first_key(&m->timers).major : INT64_MAX;
}

#ifdef MIPHA_MUTANTS
void machine_set_mutant(item_machine *m, int mutant) { m->mutant = mutant; }

const char *machine_mutant_name(int mutant) {
    static const char *const names[MACHINE_MUTANTS + 1] = {
        "none",
        "ACCEPTED is sent before its commit",
        "a second RESULT replaces the first",
        "failures of an old attempt are blamed on the current one",
        "no tombstone after delivery",
        "leases never expire",
        "one item more than the credit is sent",
        "a crash report counts again when repeated",
        "a node with an unrecorded crash gets work",
        "an encoder that gives up wakes nobody",
        "missing features are not counted",
        "credit comes back when the lease expires, not when the node lets go",
        "crashes never quarantine",
        "CANCELLED is sent before its commit",
        "deadlines never expire",
        "the request digest is not compared",
        "tokens of an old attempt are forwarded",
        "an item with a crash on record travels in company",
        "a lost node keeps its items",
        "features that were let go are still handed out"};
    return mutant >= 0 && mutant <= MACHINE_MUTANTS ? names[mutant] : "unknown";
}
#endif
