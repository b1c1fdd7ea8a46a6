/* What nodes say: hello, credit, and reports about the attempts in their hands.
 *
 * Every report about an attempt means first that the node has let go of it, whatever becomes of the
 * item: that is where credit comes back. Then the guard decides whether it changes the item. A report
 * that changes nothing is answered TAKEN at once, so that the node may forget it; one that does is
 * answered when the change is durable. */
#include <string.h>

#include "base/rng.h"
#include "broker/item_machine_internal.h"

#define FREE_RELEASES 3 /* handed back more often than this: wait before the next try */

/* As held_for, and the node hears that what it said about this attempt is recorded. */
static held held_for_node(const item_machine *m, held_kind kind, uint32_t item, uint32_t n,
                          uint32_t attempt) {
    held h = held_for(m, kind, item);
    h.attempt = attempt;
    h.node = n;
    h.node_generation = m->nodes.nodes[n].generation;
    return h;
}

/* --- hello ----------------------------------------------------------------------------------- */

static bool is_zero(const fingerprint *f) {
    static const fingerprint zero;
    return memcmp(f, &zero, sizeof zero) == 0;
}

/* The first to know decides for the life of the broker; all zero neither decides nor disagrees. */
static bool agrees(bool has, const fingerprint *ours, const fingerprint *theirs) {
    return !has || is_zero(theirs) || memcmp(ours, theirs, sizeof *ours) == 0;
}

static void settle_fingerprint(bool *has, fingerprint *ours, const fingerprint *theirs) {
    if (*has || is_zero(theirs)) return;
    *ours = *theirs;
    *has = true;
}

static void node_hello(item_machine *m, const event *e) {
    uint32_t roles = e->node_hello.roles & (ROLE_VISION | ROLE_LM);
    status refusal = STATUS_OK;
    if (roles == 0)
        refusal = STATUS_BAD_ARGUMENT;
    else if (!agrees(m->has_tower, &m->tower, &e->node_hello.tower) ||
             ((roles & ROLE_LM) && !agrees(m->has_model, &m->model, &e->node_hello.model)))
        refusal = STATUS_MODEL_MISMATCH;
    uint32_t n = node_table_find_process(&m->nodes, e->node_hello.node, e->node_hello.incarnation);
    uint32_t other = node_table_find_peer(&m->nodes, e->peer);
    bool is_resumed = n != SLOT_NONE;
    if (refusal == STATUS_OK && other != SLOT_NONE && other != n) node_lose(m, other);
    if (refusal == STATUS_OK && !is_resumed) {
        n = node_table_add(&m->nodes, e->peer, e->node_hello.node, e->node_hello.incarnation);
        if (n == SLOT_NONE) refusal = STATUS_BUSY;
        else m->nodes.nodes[n].session = ++m->sessions;
    }
    if (refusal != STATUS_OK) {
        send_refused(m, e->peer, &e->id, refusal);
        return;
    }
    settle_fingerprint(&m->has_tower, &m->tower, &e->node_hello.tower);
    if (roles & ROLE_LM) settle_fingerprint(&m->has_model, &m->model, &e->node_hello.model);
    node_row *row = &m->nodes.nodes[n];
    if (row->peer != e->peer) node_table_set_peer(&m->nodes, n, e->peer);
    row->roles = roles;
    row->items_max = e->node_hello.credit_items;
    row->bytes_max = e->node_hello.credit_bytes;
    row->is_draining = false;
    row->heard_us = m->now_us;
    arm_node(m, n);
    m->wants_dispatch = true;
    action *a = emit(m, ACTION_SEND_WELCOME, e->peer);
    a->welcome.session = row->session;
    a->welcome.is_resumed = is_resumed;
}

/* --- reports --------------------------------------------------------------------------------- */

static void node_lets_go(item_machine *m, uint32_t n, const item_ident *id, uint32_t attempt) {
    uint32_t g = grant_find(&m->nodes, id, attempt);
    if (g != SLOT_NONE && m->nodes.grants[g].node == n &&
        m->nodes.grants[g].state != GRANT_CLAIMING)
        grant_done(m, g);
}

/* Another attempt still runs for an item that no longer needs it. */
static void stop_other(item_machine *m, const item_row *it) {
    if (it->grant != SLOT_NONE) grant_orphan(m, it->grant);
}

/* For reports that change nothing: the node may forget them, unless a change is on its way to the
 * journal; then it will say it again, or hear TAKEN when that is durable. */
static void acknowledge(item_machine *m, const event *e, uint32_t item) {
    m->counts.ignored++;
    if (item != SLOT_NONE && m->items[item].token > m->settled) return;
    send_about(m, ACTION_SEND_TAKEN, e->peer, &e->id, e->attempt);
}

static void released(item_machine *m, const event *e, uint32_t n, uint32_t item) {
    item_row *it = item != SLOT_NONE ? &m->items[item] : NULL;
    rule_facts facts = {.attempt = e->attempt};
    if (!it || !rule_allows(m, RULE_RELEASE, it, &facts)) {
        acknowledge(m, e, item);
        return;
    }
    stop_other(m, it);
    m->counts.releases++;
    held then = held_for_node(m, HELD_PLACE, item, n, e->attempt);
    if (++it->releases > FREE_RELEASES) then.backoff_us = m->limits.backoff_us;
    rule_commit(m, RULE_RELEASE, item, waiting_state(it), then);
    arm_item(m, item);
}

/* Features that came with the report because the cache is away stay with the image until its last item
 * has gone. False: there is no room for them now. */
static bool keep_features(item_machine *m, image_row *image, const event *e) {
    uint64_t others = m->counts.features_bytes - image->features_bytes;
    bool fits = others == 0 || (others <= m->limits.features_bytes_max &&
                                e->encoded.features_bytes <= m->limits.features_bytes_max - others);
    if (!fits) return false;
    image_drop_features(m, image);
    image->features = e->encoded.features;
    image->features_bytes = e->encoded.features_bytes;
    m->counts.features_bytes += image->features_bytes;
    m->counts.handed_over++;
    return true;
}

static void encoded(item_machine *m, const event *e, uint32_t n, uint32_t item) {
    item_row *it = item != SLOT_NONE ? &m->items[item] : NULL;
    rule_facts facts = {.attempt = e->attempt};
    image_row *image = NULL;
    bool is_true = it && it->image != SLOT_NONE && was_for_stage(it, e->attempt, STAGE_VISION);
    if (is_true && e->encoded.features && !keep_features(m, &m->images.rows[it->image], e)) is_true = false;
    if (!is_true) release(m, e->encoded.features);
    if (is_true) {
        image = &m->images.rows[it->image]; /* encoded, whatever became of the item */
        image->is_encoded = true;
        image->n_strong = image->n_crashes = 0;
        image_wake(m, it->image);
    }
    if (!image || !rule_allows(m, RULE_ENCODED, it, &facts)) {
        release(m, e->payload);
        released(m, e, n, item); /* not a report this attempt could make */
        return;
    }
    stop_other(m, it);
    item_keep_payload(m, &it->report_payload, &it->report_bytes, e);
    item_unplace(m, item);
    if (image->encoder == item) image->encoder = SLOT_NONE;
    m->nodes.nodes[n].n_done++;
    rule_commit(m, RULE_ENCODED, item, ITEM_READY,
                held_for_node(m, HELD_PLACE, item, n, e->attempt));
    arm_item(m, item);
}

static void result(item_machine *m, const event *e, uint32_t n, uint32_t item) {
    item_row *it = item != SLOT_NONE ? &m->items[item] : NULL;
    rule_facts facts = {.attempt = e->attempt};
    if (!it || !rule_allows(m, RULE_DONE, it, &facts)) {
        m->counts.late_results++;
        release(m, e->payload);
        released(m, e, n, item);
        return;
    }
    stop_other(m, it);
    item_keep_payload(m, &it->result_payload, &it->result_bytes, e);
    m->nodes.nodes[n].n_done++;
    item_finish(m, RULE_DONE, item, ITEM_DONE, STATUS_OK,
                held_for_node(m, HELD_FINAL, item, n, e->attempt));
}

/* Full jitter, as a function of the item and the try: the machine has no dice. */
static int64_t backoff_us(const item_machine *m, const item_row *it) {
    int64_t longest = m->limits.backoff_us;
    for (uint32_t i = 1; i < it->tries && longest < m->limits.backoff_max_us; i++) longest *= 2;
    if (longest > m->limits.backoff_max_us) longest = m->limits.backoff_max_us;
    return 1 + (int64_t)(rng_at(id_hash(&it->id), 0, it->tries) % (uint64_t)longest);
}

/* All who wait for an image have the same bytes: what is true of them is true for all. */
static void doom_waiters(item_machine *m, uint32_t item, status code) {
    const item_row *it = &m->items[item];
    if (it->image == SLOT_NONE || stage_of(it->state) != STAGE_VISION) return;
    image_row *image = &m->images.rows[it->image];
    if (image->waiters.n == 0) return;
    image->doom = code;
    image_wake(m, it->image);
}

static void failed(item_machine *m, const event *e, uint32_t n, uint32_t item) {
    item_row *it = item != SLOT_NONE ? &m->items[item] : NULL;
    rule_facts facts = {.attempt = e->attempt};
    if (!it || !rule_allows(m, RULE_RETRY, it, &facts)) {
        release(m, e->payload);
        acknowledge(m, e, item);
        return;
    }
    stop_other(m, it);
    item_keep_payload(m, &it->result_payload, &it->result_bytes, e);
    status code = e->failed.code == STATUS_OK ? STATUS_INTERNAL : e->failed.code;
    if (e->failed.is_permanent) doom_waiters(m, item, code);
    if (e->failed.is_permanent || ++it->tries >= m->limits.tries_max) {
        item_finish(m, RULE_FAIL, item, ITEM_FAILED, code,
                    held_for_node(m, HELD_FINAL, item, n, e->attempt));
        return;
    }
    m->counts.retries++;
    held then = held_for_node(m, HELD_PLACE, item, n, e->attempt);
    then.backoff_us = backoff_us(m, it);
    rule_commit(m, RULE_RETRY, item, waiting_state(it), then);
    arm_item(m, item);
}

static void features_missing(item_machine *m, const event *e, uint32_t n, uint32_t item) {
    item_row *it = item != SLOT_NONE ? &m->items[item] : NULL;
    rule_facts facts = {.attempt = e->attempt};
    if (!it || !rule_allows(m, RULE_REGRESS, it, &facts)) {
        released(m, e, n, item);
        return;
    }
    stop_other(m, it);
    m->counts.regressions++;
    m->images.rows[it->image].is_encoded = false;
    image_drop_features(m, &m->images.rows[it->image]);
    if (!MUTANT(m, 10)) it->regressions++;
    if (it->regressions >= m->limits.regressions_max) {
        item_finish(m, RULE_FAIL, item, ITEM_FAILED, STATUS_UNAVAILABLE,
                    held_for_node(m, HELD_FINAL, item, n, e->attempt));
        return;
    }
    rule_commit(m, RULE_REGRESS, item, ITEM_WAITING_FEATURES,
                held_for_node(m, HELD_PLACE, item, n, e->attempt));
    arm_item(m, item);
}

static void tokens(item_machine *m, const event *e, uint32_t n, uint32_t item) {
    const item_row *it = item != SLOT_NONE ? &m->items[item] : NULL;
    client_row *c = it ? client_of(m, it) : NULL;
    bool in_force = it && it->state == ITEM_GENERATING && it->grant != SLOT_NONE &&
                    it->attempt == e->attempt && m->nodes.grants[it->grant].node == n &&
                    m->nodes.grants[it->grant].state == GRANT_RUNNING;
    if (MUTANT(m, 16)) in_force = it;
    if (!in_force) m->counts.tokens_stale++;
    if (!in_force || !c) {
        release(m, e->payload);
        return;
    }
    send_about(m, ACTION_SEND_TOKENS, c->peer, &e->id, e->attempt);
    m->out->rows[m->out->n - 1].payload = e->payload;
}

static void progress(item_machine *m, const event *e, uint32_t n, uint32_t item) {
    uint32_t g = grant_find(&m->nodes, &e->id, e->attempt);
    if (g == SLOT_NONE || m->nodes.grants[g].node != n) {
        m->counts.ignored++;
        send_about(m, ACTION_SEND_STOP, e->peer, &e->id, e->attempt);
        return;
    }
    rule_facts facts = {.attempt = e->attempt, .progress = e->progress};
    if (item == SLOT_NONE || !rule_allows(m, RULE_RENEW, &m->items[item], &facts)) return;
    m->nodes.grants[g].progress = e->progress;
    m->nodes.grants[g].renewed_us = m->now_us; /* its timer looks again when it rings */
}

/* --- crashes --------------------------------------------------------------------------------- */

static void send_crash_taken(item_machine *m, const event *e) {
    send_about(m, ACTION_SEND_CRASH_TAKEN, e->peer, &e->id, e->attempt);
    m->out->rows[m->out->n - 1].incarnation = e->crash.incarnation;
}

/* The attempt the dead engine had, SLOT_NONE when we know of none at that node. */
static uint32_t crashed_grant(const item_machine *m, const event *e, uint32_t n, uint32_t item) {
    uint32_t g = e->attempt          ? grant_find(&m->nodes, &e->id, e->attempt)
                 : item != SLOT_NONE ? m->items[item].grant
                                     : SLOT_NONE;
    if (g == SLOT_NONE || m->nodes.grants[g].state == GRANT_CLAIMING) return SLOT_NONE;
    uint32_t holder = m->nodes.grants[g].node;
    return m->nodes.nodes[holder].node == m->nodes.nodes[n].node ? g : SLOT_NONE;
}

/* From the queue to the queue of suspects, or to its end, now that there is something on record. */
static void travel_alone(item_machine *m, uint32_t item) {
    item_place place = m->items[item].place;
    if (place != PLACE_QUEUE && place != PLACE_PARKED && place != PLACE_SUSPECT) return;
    item_unplace(m, item);
    item_place_somewhere(m, item, 0);
}

static void crash(item_machine *m, const event *e, uint32_t n, uint32_t item) {
    node_row *node = &m->nodes.nodes[n];
    item_row *it = item != SLOT_NONE ? &m->items[item] : NULL;
    uint32_t g = crashed_grant(m, e, n, item);
    rule_facts facts = {.attempt = e->attempt, .node = node->node,
                        .incarnation = e->crash.incarnation};
    if (!it || !rule_allows(m, RULE_CRASH, it, &facts)) {
        m->counts.ignored++;
        if (it && it->token > m->settled) return; /* the node says it again */
        if (g != SLOT_NONE && (!it || it->grant != g)) grant_done(m, g);
        send_crash_taken(m, e);
        return;
    }
    bool in_force = g != SLOT_NONE && it->grant == g;
    bool was_lm = g != SLOT_NONE ? m->nodes.grants[g].stage == STAGE_LM
                  : e->attempt   ? it->lm_attempts >> (e->attempt % 64) & 1
                                 : node->roles == ROLE_LM;
    if (g != SLOT_NONE) grant_done(m, g);
    it->crashes[it->n_crashes++] =
        (crash_note){node->node, e->crash.incarnation, e->attempt, e->crash.is_strong};
    it->n_strong += e->crash.is_strong;
    image_row *image = !was_lm && it->image != SLOT_NONE ? &m->images.rows[it->image] : NULL;
    if (image) { /* the bytes did it: whoever brings them next starts from here */
        image->n_strong += e->crash.is_strong;
        image->n_crashes++;
    }
    m->counts.crashes++;
    node->n_holds++;
    held then = held_for_node(m, in_force ? HELD_PLACE : HELD_NOTHING, item, n, e->attempt);
    then.is_crash = true;
    then.incarnation = e->crash.incarnation;
    bool is_condemned = image && image_is_condemned(m, image);
    bool enough = is_condemned || it->n_strong >= m->limits.crashes_strong_max ||
                  it->n_crashes >= m->limits.crashes_max;
    if (enough && !MUTANT(m, 12)) {
        m->counts.quarantined++;
        if (is_condemned) doom_waiters(m, item, STATUS_QUARANTINED);
        then.kind = HELD_FINAL;
        item_finish(m, RULE_CRASH, item, ITEM_FAILED, STATUS_QUARANTINED, then);
        if (image && image->encoder != SLOT_NONE) travel_alone(m, image->encoder);
        return;
    }
    rule_commit(m, RULE_CRASH, item, in_force ? waiting_state(it) : it->state, then);
    travel_alone(m, item);
    if (image && image->encoder != SLOT_NONE) travel_alone(m, image->encoder);
    arm_item(m, item);
}

void node_event(item_machine *m, const event *e) {
    if (e->kind == EVENT_NODE_HELLO) {
        node_hello(m, e);
        return;
    }
    uint32_t n = node_table_find_peer(&m->nodes, e->peer);
    if (n == SLOT_NONE) {
        m->counts.ignored++;
        release(m, e->payload);
        if (e->kind == EVENT_ENCODED) release(m, e->encoded.features);
        if (e->kind != EVENT_NODE_GONE && e->kind != EVENT_NODE_BYE)
            emit(m, ACTION_SEND_WHO, e->peer);
        return;
    }
    node_row *row = &m->nodes.nodes[n];
    row->heard_us = m->now_us;
    uint32_t item = e->kind >= EVENT_PROGRESS ? find_item(m, &e->id) : SLOT_NONE;
    if (e->kind == EVENT_ENCODED || e->kind == EVENT_RESULT || e->kind == EVENT_FAILED ||
        e->kind == EVENT_FEATURES_MISSING || e->kind == EVENT_RELEASED)
        node_lets_go(m, n, &e->id, e->attempt);
    switch (e->kind) {
    case EVENT_NODE_CREDIT:
        row->items_max = e->credit.items;
        row->bytes_max = e->credit.bytes;
        m->wants_dispatch = true;
        break;
    case EVENT_NODE_DRAIN:
        row->is_draining = true;
        m->wants_dispatch = true;
        break;
    case EVENT_NODE_BYE: node_lose(m, n); break;
    case EVENT_NODE_GONE:
        m->counts.nodes_lost++;
        node_lose(m, n);
        break;
    case EVENT_PROGRESS: progress(m, e, n, item); break;
    case EVENT_ENCODED: encoded(m, e, n, item); break;
    case EVENT_TOKENS: tokens(m, e, n, item); break;
    case EVENT_RESULT: result(m, e, n, item); break;
    case EVENT_FAILED: failed(m, e, n, item); break;
    case EVENT_FEATURES_MISSING: features_missing(m, e, n, item); break;
    case EVENT_RELEASED: released(m, e, n, item); break;
    case EVENT_CRASH: crash(m, e, n, item); break;
    default: break; /* NODE_BEAT: being heard is all */
    }
}
