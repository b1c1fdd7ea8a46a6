/* Where items wait, who gets the next one, and what the passing of time does.
 *
 * Finishing comes before starting: language work is handed out first. Within a stage, items with a
 * crash on record ("suspects") travel alone to an idle node; one node at a time is emptied for them so
 * that a busy cluster cannot starve them. Then come items that were parked at the node which has their
 * image's prefix, then the queue. An item whose node is full goes elsewhere if somebody else is at
 * least half idle, and otherwise waits a bounded time for its node: computing the prefix again costs
 * more than a short wait, but less than a long one.
 *
 * Every function here does units of work while the caller's action list has room for one more; what is
 * left is found again by the next step. Nothing walks all items. */
#include <string.h>

#include "base/rng.h"
#include "broker/item_machine_internal.h"

#define UNPLACEABLE_WAIT_US INT64_C(1000000) /* an item larger than any node's byte credit */
#define VISION_COST_BYTES   4096             /* image bytes that count as one unit of cost */

/* --- actions --------------------------------------------------------------------------------- */

bool has_room_for_unit(const item_machine *m) { return m->out->n_max - m->out->n >= ACTIONS_PER_UNIT; }

action *emit(item_machine *m, action_kind kind, uint64_t peer) {
    CHECK(m->out->n < m->out->n_max, "room for actions was checked before");
    action *a = &m->out->rows[m->out->n++];
    *a = (action){.kind = kind, .peer = peer};
    return a;
}

void release(item_machine *m, uint64_t payload) {
    if (payload) emit(m, ACTION_RELEASE, 0)->payload = payload;
}

/* --- timers ---------------------------------------------------------------------------------- */

static void arm(item_machine *m, uint32_t thing, int64_t when_us) {
    if (when_us == INT64_MAX) heap_remove(&m->timers, thing);
    else heap_put(&m->timers, thing, (heap_key){(uint64_t)(when_us > 0 ? when_us : 0), 0, thing});
}

static uint32_t grant_timer(const item_machine *m) { return m->limits.n_items_max; }
static uint32_t node_timer(const item_machine *m) { return grant_timer(m) + m->limits.n_grants_max; }
static uint32_t client_timer(const item_machine *m) { return node_timer(m) + m->limits.n_nodes_max; }

void arm_item(item_machine *m, uint32_t item) {
    const item_row *it = &m->items[item];
    int64_t when = INT64_MAX;
    if (it->is_used && !item_state_is_final(it->state)) {
        if (it->deadline_us > 0 && !MUTANT(m, 14)) when = it->deadline_us;
        if ((it->place == PLACE_BACKOFF || it->place == PLACE_PARKED) && it->wake_us < when)
            when = it->wake_us;
    } else if (it->is_used && it->state != ITEM_DELIVERED) {
        when = it->finished_us + m->limits.retention_us;
    }
    arm(m, item, when);
}

void arm_grant(item_machine *m, uint32_t g) {
    const grant_row *row = &m->nodes.grants[g];
    int64_t when = INT64_MAX;
    if (row->state == GRANT_RUNNING) {
        int64_t cap = row->started_us + m->limits.attempt_us;
        when = row->renewed_us + m->limits.lease_us;
        if (cap < when) when = cap;
        if (MUTANT(m, 5)) when = INT64_MAX;
    } else if (row->state == GRANT_STOPPING) {
        when = row->renewed_us + m->limits.heartbeat_us;
    }
    arm(m, grant_timer(m) + g, when);
}

void arm_node(item_machine *m, uint32_t n) {
    const node_row *row = &m->nodes.nodes[n];
    int64_t when = INT64_MAX, h = m->limits.heartbeat_us;
    if (row->is_used && !row->is_lost)
        when = row->pinged_us > row->heard_us ? row->heard_us + 3 * h : row->heard_us + 3 * h / 2;
    arm(m, node_timer(m) + n, when);
}

void arm_client(item_machine *m, uint32_t c) {
    const client_row *row = &m->clients[c];
    arm(m, client_timer(m) + c,
        row->is_used ? row->heard_us + m->limits.client_silence_us : INT64_MAX);
}

/* Timers of peers are not moved with every message; when one rings too early it is set again. */
static void node_time(item_machine *m, uint32_t n) {
    node_row *row = &m->nodes.nodes[n];
    int64_t silent = m->now_us - row->heard_us, h = m->limits.heartbeat_us;
    if (silent >= 3 * h) {
        node_lose(m, n);
        return;
    }
    if (silent >= 3 * h / 2 && row->pinged_us <= row->heard_us) {
        emit(m, ACTION_SEND_PING, row->peer);
        row->pinged_us = m->now_us;
    }
    arm_node(m, n);
}

static void grant_time(item_machine *m, uint32_t g) {
    grant_row *row = &m->nodes.grants[g];
    if (row->state == GRANT_RUNNING) {
        if (m->now_us >= row->renewed_us + m->limits.lease_us ||
            m->now_us >= row->started_us + m->limits.attempt_us) {
            m->counts.lease_expiries++;
            lease_lose(m, g, false);
        } else {
            arm_grant(m, g);
        }
    } else if (row->state == GRANT_STOPPING) {
        action *a = emit(m, ACTION_SEND_STOP, m->nodes.nodes[row->node].peer);
        a->id = row->id;
        a->attempt = row->attempt;
        row->renewed_us = m->now_us;
        arm_grant(m, g);
    }
}

static void item_time(item_machine *m, uint32_t item) {
    item_row *it = &m->items[item];
    rule_facts none = {0};
    if (rule_allows(m, RULE_EXPIRE, it, &none)) {
        item_finish(m, RULE_EXPIRE, item, ITEM_EXPIRED, STATUS_DEADLINE_EXCEEDED,
                    held_for(m, HELD_FINAL, item));
    } else if (rule_allows(m, RULE_DROP, it, &none)) {
        m->counts.dropped++;
        rule_commit(m, RULE_DROP, item, ITEM_DELIVERED, held_for(m, HELD_LEAVE, item));
        arm_item(m, item);
    } else if ((it->place == PLACE_BACKOFF || it->place == PLACE_PARKED) &&
               m->now_us >= it->wake_us) {
        if (it->place == PLACE_PARKED) it->has_waited = true;
        item_unplace(m, item);
        item_place_somewhere(m, item, 0);
    } else {
        arm_item(m, item);
    }
}

void time_passes_some(item_machine *m) {
    while (has_room_for_unit(m) && m->timers.n > 0) {
        if (heap_first_key(&m->timers).major > (uint64_t)(m->now_us > 0 ? m->now_us : 0)) return;
        uint32_t thing = heap_first(&m->timers);
        heap_remove(&m->timers, thing);
        if (thing >= client_timer(m)) {
            uint32_t c = thing - client_timer(m);
            if (m->now_us - m->clients[c].heard_us >= m->limits.client_silence_us) client_lose(m, c);
            else arm_client(m, c);
        } else if (thing >= node_timer(m)) {
            node_time(m, thing - node_timer(m));
        } else if (thing >= grant_timer(m)) {
            grant_time(m, thing - grant_timer(m));
        } else {
            item_time(m, thing);
        }
    }
}

/* --- lists and places ------------------------------------------------------------------------ */

static void list_push(item_machine *m, item_list *list, uint32_t item) {
    item_row *it = &m->items[item];
    it->next = SLOT_NONE;
    it->prev = list->last;
    if (list->last != SLOT_NONE) m->items[list->last].next = item;
    else list->first = item;
    list->last = item;
    list->n++;
}

static void list_remove(item_machine *m, item_list *list, uint32_t item) {
    const item_row *it = &m->items[item];
    if (it->prev != SLOT_NONE) m->items[it->prev].next = it->next;
    else list->first = it->next;
    if (it->next != SLOT_NONE) m->items[it->next].prev = it->prev;
    else list->last = it->prev;
    list->n--;
}

static void push_queue(item_machine *m, uint32_t item, item_stage stage) {
    item_row *it = &m->items[item];
    if (!it->is_ranked[stage]) {
        uint64_t cost = stage == STAGE_LM ? it->cost : 1 + it->image_bytes / VISION_COST_BYTES;
        it->rank[stage] =
            item_queue_enter(&m->queue[stage], it->tenant, cost, it->priority, it->deadline_us);
        it->is_ranked[stage] = true;
    }
    bool alone = is_suspect(m, it);
    status st = item_queue_push(alone ? &m->suspects[stage] : &m->queue[stage], item, 0,
                                it->rank[stage]);
    CHECK(st == STATUS_OK, "every row has its place in a queue");
    it->place = alone ? PLACE_SUSPECT : PLACE_QUEUE;
    m->wants_dispatch = true;
}

static void place_for_vision(item_machine *m, uint32_t item) {
    item_row *it = &m->items[item];
    image_row *image = &m->images.rows[it->image];
    if (image_is_condemned(m, image)) { /* by what it did in the hands of an earlier item */
        m->counts.quarantined++;
        item_finish(m, RULE_CRASH, item, ITEM_FAILED, STATUS_QUARANTINED,
                    held_for(m, HELD_FINAL, item));
        return;
    }
    if (image->encoder == SLOT_NONE) image->encoder = item;
    if (image->encoder == item) {
        push_queue(m, item, STAGE_VISION);
        return;
    }
    uint32_t other = image->encoder;
    if (m->items[other].place == PLACE_QUEUE && !is_suspect(m, it) &&
        (it->priority < m->items[other].priority ||
         (it->priority == m->items[other].priority && it->deadline_us > 0 &&
          (m->items[other].deadline_us == 0 || it->deadline_us < m->items[other].deadline_us)))) {
        /* The more urgent one leads, or it would wait at the other's pace. */
        item_unplace(m, other);
        image->encoder = item;
        push_queue(m, item, STAGE_VISION);
        item = other;
    }
    list_push(m, &image->waiters, item);
    m->items[item].place = PLACE_WAITERS;
}

void item_place_somewhere(item_machine *m, uint32_t item, int64_t backoff_us) {
    item_row *it = &m->items[item];
    CHECK(it->place == PLACE_NONE && it->grant == SLOT_NONE && !item_state_is_final(it->state),
          "only an item that is nowhere is placed");
    image_row *image = it->image != SLOT_NONE ? &m->images.rows[it->image] : NULL;
    if (!image) {
        it->state = ITEM_READY;
    } else if (it->state != ITEM_READY) {
        it->state = image->is_encoded ? ITEM_READY : ITEM_WAITING_FEATURES;
        if (it->state == ITEM_READY) m->counts.shared++;
    }
    if (image && image->encoder == item && (it->state == ITEM_READY || backoff_us > 0))
        image_drop_encoder(m, item);
    it->placed_us = m->now_us;
    if (backoff_us > 0) {
        it->place = PLACE_BACKOFF;
        it->wake_us = m->now_us + backoff_us;
    } else if (it->state == ITEM_READY) {
        push_queue(m, item, STAGE_LM);
    } else {
        place_for_vision(m, item);
    }
    arm_item(m, item);
}

void item_unplace(item_machine *m, uint32_t item) {
    item_row *it = &m->items[item];
    item_stage stage = stage_of(it->state);
    switch (it->place) {
    case PLACE_NONE: return;
    case PLACE_QUEUE: item_queue_remove(&m->queue[stage], item); break;
    case PLACE_SUSPECT:
        item_queue_remove(&m->suspects[stage], item);
        m->wants_dispatch = true; /* a node may be kept free for it */
        break;
    case PLACE_WAITERS: list_remove(m, &m->images.rows[it->image].waiters, item); break;
    case PLACE_PARKED:
        list_remove(m, &m->nodes.nodes[it->parked_on].parked, item);
        m->n_parked--;
        break;
    case PLACE_BACKOFF: break;
    }
    it->place = PLACE_NONE;
    it->queue_us += m->now_us - it->placed_us;
}

/* --- single flight --------------------------------------------------------------------------- */

void image_wake(item_machine *m, uint32_t image) {
    image_row *row = &m->images.rows[image];
    if (row->is_waking || row->waiters.n == 0) return;
    row->is_waking = true;
    m->waking[m->n_waking++] = image;
}

void image_drop_encoder(item_machine *m, uint32_t item) {
    uint32_t image = m->items[item].image;
    CHECK(m->images.rows[image].encoder == item, "only the encoder gives the role up");
    m->images.rows[image].encoder = SLOT_NONE;
    if (!MUTANT(m, 9)) image_wake(m, image);
}

void wake_some(item_machine *m) {
    while (m->n_waking > 0 && has_room_for_unit(m)) {
        uint32_t i = m->waking[m->n_waking - 1];
        image_row *image = &m->images.rows[i];
        uint32_t item = image->waiters.first;
        bool all = image->is_encoded || image->doom != STATUS_OK;
        if (item == SLOT_NONE || (!all && image->encoder != SLOT_NONE)) {
            m->n_waking--;
            image->is_waking = false;
            image->doom = STATUS_OK;
            continue;
        }
        if (image->doom != STATUS_OK) {
            item_finish(m, RULE_FAIL, item, ITEM_FAILED, image->doom, held_for(m, HELD_FINAL, item));
        } else {
            item_unplace(m, item);
            item_place_somewhere(m, item, 0);
        }
    }
}

/* --- handing out ----------------------------------------------------------------------------- */

static uint32_t role_of(item_stage stage) { return stage == STAGE_LM ? ROLE_LM : ROLE_VISION; }

uint32_t work_bytes(const item_machine *m, const item_row *it, item_stage stage) {
    if (stage == STAGE_VISION) return it->image_bytes;
    return it->request_bytes + (it->image != SLOT_NONE ? m->images.rows[it->image].features_bytes : 0);
}

static bool has_room(const item_machine *m, uint32_t n, uint32_t bytes) {
    const node_row *row = &m->nodes.nodes[n];
    if (MUTANT(m, 6) && row->is_used && !row->is_lost && row->items == row->items_max) return true;
    return node_table_has_room(&m->nodes, n, bytes);
}

static void claim(item_machine *m, uint32_t item, item_stage stage, uint32_t n) {
    item_row *it = &m->items[item];
    rule_facts none = {0};
    CHECK(rule_allows(m, RULE_CLAIM, it, &none), "only a waiting item is handed out");
    it->attempt++;
    uint64_t bit = UINT64_C(1) << (it->attempt % 64);
    it->lm_attempts = stage == STAGE_LM ? it->lm_attempts | bit : it->lm_attempts & ~bit;
    grant_row grant = {.state = GRANT_CLAIMING, .id = it->id, .attempt = it->attempt, .stage = stage,
                       .item = item, .bytes = work_bytes(m, it, stage), .is_solo = is_suspect(m, it),
                       .started_us = m->now_us, .renewed_us = m->now_us};
    it->grant = grant_add(&m->nodes, n, &grant);
    CHECK(it->grant != SLOT_NONE, "a free grant was seen before");
    if (stage == STAGE_LM && it->image != SLOT_NONE) {
        m->images.rows[it->image].prefix_node = n;
        m->images.rows[it->image].prefix_generation = m->nodes.nodes[n].generation;
    }
    held then = held_for(m, HELD_CLAIM, item);
    then.grant = it->grant;
    then.grant_generation = m->nodes.grants[it->grant].generation;
    then.node = n;
    then.node_generation = m->nodes.nodes[n].generation;
    rule_commit(m, RULE_CLAIM, item, stage == STAGE_LM ? ITEM_GENERATING : ITEM_ENCODING, then);
    arm_item(m, item);
}

static void unreserve(item_machine *m, item_stage stage) {
    uint32_t n = m->reserved[stage];
    if (n != SLOT_NONE) m->nodes.nodes[n].reserved_for &= ~(1u << stage);
    m->reserved[stage] = SLOT_NONE;
}

static bool has_crashed(const item_row *it, uint64_t node) {
    for (uint32_t i = 0; i < it->n_crashes; i++)
        if (it->crashes[i].node == node) return true;
    return false;
}

/* The idle node for a suspect: rather one it has not crashed yet, so that blame needs several. */
static uint32_t find_idle(const item_machine *m, const item_row *it, item_stage stage) {
    uint32_t best = SLOT_NONE, bytes = work_bytes(m, it, stage);
    for (uint32_t n = 0; n < m->nodes.nodes_end; n++) {
        const node_row *row = &m->nodes.nodes[n];
        if (!(row->roles & role_of(stage)) || !node_table_is_idle_for(&m->nodes, n, bytes)) continue;
        if (!has_crashed(it, row->node)) return n;
        if (best == SLOT_NONE) best = n;
    }
    return best;
}

static bool may_be_emptied(const node_row *row, uint32_t role, uint32_t bytes) {
    return row->is_used && !row->is_lost && !row->is_draining && (row->roles & role) &&
           row->items_max > 0 && row->bytes_max >= bytes;
}

static bool dispatch_suspect(item_machine *m, item_stage stage) {
    uint32_t item = item_queue_first(&m->suspects[stage]);
    if (item == SLOT_NONE) {
        unreserve(m, stage);
        return false;
    }
    item_row *it = &m->items[item];
    uint32_t n = find_idle(m, it, stage);
    if (n != SLOT_NONE) {
        unreserve(m, stage);
        item_unplace(m, item);
        claim(m, item, stage, n);
        return true;
    }
    uint32_t bytes = work_bytes(m, it, stage), kept = m->reserved[stage];
    if (kept != SLOT_NONE && may_be_emptied(&m->nodes.nodes[kept], role_of(stage), bytes)) return false;
    unreserve(m, stage);
    uint32_t best = SLOT_NONE;
    for (n = 0; n < m->nodes.nodes_end; n++)
        if (may_be_emptied(&m->nodes.nodes[n], role_of(stage), bytes) &&
            (best == SLOT_NONE || m->nodes.nodes[n].items < m->nodes.nodes[best].items))
            best = n;
    if (best != SLOT_NONE) m->nodes.nodes[best].reserved_for |= 1u << stage;
    m->reserved[stage] = best;
    return false;
}

static bool dispatch_parked(item_machine *m) {
    for (uint32_t n = 0; m->n_parked > 0 && n < m->nodes.nodes_end; n++) {
        const node_row *row = &m->nodes.nodes[n];
        if (row->parked.n == 0 || row->reserved_for) continue;
        uint32_t item = row->parked.first;
        if (!has_room(m, n, work_bytes(m, &m->items[item], STAGE_LM))) continue;
        item_unplace(m, item);
        claim(m, item, STAGE_LM, n);
        return true;
    }
    return false;
}

/* The node that has the item's image prefix, SLOT_NONE when none is known or it takes no work. */
static uint32_t prefix_home(const item_machine *m, const item_row *it, item_stage stage) {
    if (stage != STAGE_LM || it->image == SLOT_NONE || it->has_waited) return SLOT_NONE;
    const image_row *image = &m->images.rows[it->image];
    if (image->prefix_node == SLOT_NONE) return SLOT_NONE;
    const node_row *row = &m->nodes.nodes[image->prefix_node];
    bool is_there = row->is_used && !row->is_lost && row->generation == image->prefix_generation;
    bool takes = !row->is_draining && !row->reserved_for && row->n_holds == 0 && row->items_max > 0;
    return is_there && takes ? image->prefix_node : SLOT_NONE;
}

static bool fits_nobody(const item_machine *m, uint32_t role, uint32_t bytes) {
    bool any = false;
    for (uint32_t n = 0; n < m->nodes.nodes_end; n++) {
        const node_row *row = &m->nodes.nodes[n];
        if (!row->is_used || row->is_lost || !(row->roles & role) || row->items_max == 0) continue;
        if (row->bytes_max >= bytes) return false;
        any = true;
    }
    return any;
}

/* One item from the queue to a node, or out of the way; false: nothing can move now. */
static bool dispatch_first(item_machine *m, item_stage stage) {
    item_queue *q = &m->queue[stage];
    uint32_t item = item_queue_first(q);
    if (item == SLOT_NONE) return false;
    item_row *it = &m->items[item];
    uint32_t bytes = work_bytes(m, it, stage), home = prefix_home(m, it, stage);
    uint32_t n = home != SLOT_NONE && has_room(m, home, bytes)
                     ? home
                     : node_table_pick(&m->nodes, role_of(stage), bytes);
    if (n == SLOT_NONE && MUTANT(m, 6))
        for (uint32_t k = 0; k < m->nodes.nodes_end && n == SLOT_NONE; k++)
            if ((m->nodes.nodes[k].roles & role_of(stage)) && has_room(m, k, bytes)) n = k;
    bool is_spill = n != SLOT_NONE && n != home &&
                    2 * m->nodes.nodes[n].items <= m->nodes.nodes[n].items_max;
    if (home != SLOT_NONE && n != home && !is_spill) {
        item_queue_served(q, item);
        it->place = PLACE_PARKED;
        it->parked_on = home;
        it->wake_us = m->now_us + m->limits.affinity_wait_us;
        list_push(m, &m->nodes.nodes[home].parked, item);
        m->n_parked++;
        arm_item(m, item);
        return true;
    }
    if (n == SLOT_NONE) {
        if (!fits_nobody(m, role_of(stage), bytes)) return false;
        item_unplace(m, item);
        item_place_somewhere(m, item, UNPLACEABLE_WAIT_US);
        return true;
    }
    item_queue_served(q, item);
    it->place = PLACE_NONE;
    it->queue_us += m->now_us - it->placed_us;
    claim(m, item, stage, n);
    return true;
}

void dispatch_some(item_machine *m) {
    if (!m->wants_dispatch) return;
    for (int s = STAGE_COUNT - 1; s >= 0; s--) {
        for (;;) {
            if (m->nodes.n_grants == m->limits.n_grants_max) break;
            if (!has_room_for_unit(m)) return; /* wants_dispatch stays */
            if (dispatch_suspect(m, (item_stage)s)) continue;
            if (s == STAGE_LM && dispatch_parked(m)) continue;
            if (!dispatch_first(m, (item_stage)s)) break;
        }
    }
    m->wants_dispatch = false;
}
