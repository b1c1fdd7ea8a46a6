/* Parts, from the bottom: the network (a heap of things to happen), the journal, clients, nodes, the
 * loop that performs actions, the checker. Payload numbers are issued when an event reaches the
 * machine and must be released exactly once.
 *
 * A node here obeys PROTOCOL.md: it offers reports again until TAKEN, refuses work while a crash report
 * is unrecorded, refuses attempts it was told to stop, and drops unfinished work when its session was
 * not resumed. Clients submit again until answered. What is promised under those rules:
 *
 *   1  nothing is said before it is durable            (ACCEPTED, RESULT, WORK against the journal)
 *   2  an accepted item gets one outcome, always the same, with the right content
 *   3  nothing is run again after delivery, after its deadline, or under another digest
 *   4  a node never has more than its credit, and nothing next to an item with a crash on record
 *   5  poison kills at most K + W - 1 nodes and is quarantined; nothing healthy ever is (one node
 *      more for each that breaks the rule "no credit before the crash is recorded")
 *   6  blame needs a report from the attempt in force
 *   7  when faults end, everything finishes
 *   8  every payload is released once; the counters agree
 *   9  features that were handed over because the cache was away reach the language node of that image */
#include "tests/broker/sim.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/rng.h"

enum {
    ITEMS_MAX = 20,
    IMAGES_MAX = 5,
    CLIENTS_MAX = 4, /* the last one is the spoofer: known ids, other digests */
    NODES_MAX = 4,
    HELD_MAX = 12,
    CRUMBS_MAX = 32,
    UNTAKEN_MAX = 48,
    THINGS_MAX = 6000,
    PAYLOADS_MAX = 16384,
    FEATURES_BYTES = 50,
    TOKENS_MAX = 8192,
    K = 3
};

static const int64_t MS = 1000, H = 100000;

typedef enum { TO_BROKER, TO_CLIENT, TO_NODE, CLIENT_TICK, NODE_TICK, NODE_WORKS, NODE_STARTS,
               COMMITS, FEATURES_LOST } thing_kind;

typedef struct {
    thing_kind kind;
    int64_t at_us;
    uint64_t order;
    uint32_t who; /* client or node */
    uint64_t peer;
    item_ident id; /* NODE_WORKS */
    uint32_t attempt;
    uint64_t incarnation;
    union {
        event in;
        action out;
    };
    uint32_t next_free;
} thing;

typedef struct {
    item_ident id;
    item_digest digest;
    int image; /* -1: text only */
    uint32_t client;
    uint64_t content;
    int64_t submit_us, deadline_us;
    bool is_poison, is_flaky, wants_cancel;
    item_stage poison_stage;
    uint32_t image_bytes, request_bytes;
    /* as the client sees it */
    bool was_accepted, has_result, cancel_sent, was_submitted;
    item_state state;
    status code;
    uint64_t result;
    /* as the journal sees it */
    bool accept_durable, final_durable, delivered_durable;
    item_state final_state;
    status final_code;
    uint32_t claimed, n_crash_records;
    /* as the nodes see it */
    uint32_t kills, n_missing, n_permanent;
    uint64_t failed_attempts; /* bits */
    uint32_t spoofed;
} sim_item;

typedef struct {
    uint64_t peer;
    uint64_t tenant;
    bool is_there, is_welcome, is_gone_for_good;
} sim_client;

typedef struct {
    item_ident id;
    uint32_t attempt;
    item_stage stage;
    int item;
    uint32_t progress, bytes;
    bool is_stuck, has_features;
} sim_held;

typedef struct {
    item_ident id;
    uint32_t attempt;
    uint64_t incarnation;
    bool is_strong;
} sim_crumb;

typedef struct {
    item_ident id;
    uint32_t attempt;
    bool is_alone;
} sim_sent;

typedef struct {
    uint64_t node, incarnation, peer, session;
    uint32_t roles, items_max;
    uint64_t bytes_max;
    bool is_up, is_welcome, is_hostile, grants_early;
    int64_t hung_until_us, service_us;
    sim_held held[HELD_MAX];
    uint32_t n_held;
    sim_crumb crumbs[CRUMBS_MAX];
    uint32_t n_crumbs;
    event untaken[UNTAKEN_MAX];
    uint32_t n_untaken;
    uint32_t seen[ITEMS_MAX]; /* the highest attempt taken or stopped: lower ones are not taken */
    uint32_t ticks;
    /* as the network sees it: work sent to this peer and not yet answered */
    sim_sent sent[HELD_MAX * 2];
    uint32_t n_sent, known_items_max, n_unrecorded;
    uint64_t credit_version, known_version;
} sim_node;

typedef struct {
    uint8_t kind; /* 0 free, 1 input, 2 result, 3 other, 4 features */
    uint64_t content;
} sim_payload;

struct sim {
    rng dice;
    int64_t now_us, heal_us;
    item_machine *m;
    FILE *trace;
    int mutant;
    thing things[THINGS_MAX];
    uint32_t heap[THINGS_MAX];
    uint32_t n_heap, n_things, free_thing;
    uint64_t orders, peers, incarnations;
    sim_item items[ITEMS_MAX];
    sim_client clients[CLIENTS_MAX];
    sim_node nodes[NODES_MAX];
    uint32_t n_items, n_clients, n_nodes, n_images;
    bool features[IMAGES_MAX], is_black_hole[IMAGES_MAX], is_undecodable[IMAGES_MAX];
    uint32_t image_kills[IMAGES_MAX];
    bool image_is_poison[IMAGES_MAX];
    sim_payload payloads[PAYLOADS_MAX];
    uint64_t n_payloads, n_live_payloads;
    machine_record records[TOKENS_MAX];
    uint64_t token, durable;
    int64_t last_commit_us;
    /* intensities in per mille */
    uint32_t drop, repeat, late, kill, hang, stuck, flaky, lose_features, cache_away, slow_commit, vanish,
        hostile, gone_told;
    int64_t late_us;
    sim_verdict verdict;
};

/* --- dice and verdict ------------------------------------------------------------------------- */

static uint64_t below(sim *s, uint64_t n) { return rng_below(&s->dice, n); }

static bool chance(sim *s, uint32_t per_mille) { return per_mille && below(s, 1000) < per_mille; }

static bool faulty(const sim *s) { return s->now_us < s->heal_us; }

static bool fault(sim *s, uint32_t per_mille) {
    if (!faulty(s) || !chance(s, per_mille)) return false;
    s->verdict.n_faults++;
    return true;
}

__attribute__((format(printf, 2, 3))) static void violation(sim *s, const char *format, ...) {
    if (!s->verdict.is_fine) return;
    s->verdict.is_fine = false;
    va_list args;
    va_start(args, format);
    vsnprintf(s->verdict.text, sizeof s->verdict.text, format, args);
    va_end(args);
    if (s->trace) fprintf(s->trace, "%9lld VIOLATION %s\n", (long long)s->now_us, s->verdict.text);
}

static int item_of(const sim *s, const item_ident *id) {
    return id->bytes[0] < s->n_items && id->bytes[1] == 0x5a ? id->bytes[0] : -1;
}

/* --- things to happen ------------------------------------------------------------------------- */

static bool thing_before(const sim *s, uint32_t a, uint32_t b) {
    const thing *x = &s->things[a], *y = &s->things[b];
    return x->at_us != y->at_us ? x->at_us < y->at_us : x->order < y->order;
}

static thing *later(sim *s, thing_kind kind, int64_t after_us) {
    uint32_t t = s->free_thing;
    if (t != UINT32_MAX) s->free_thing = s->things[t].next_free;
    else if (s->n_things < THINGS_MAX) t = s->n_things++;
    else {
        violation(s, "more than %d messages under way", THINGS_MAX);
        return &s->things[0];
    }
    thing *made = &s->things[t];
    made->kind = kind;
    made->at_us = s->now_us + (after_us > 0 ? after_us : 0);
    made->order = s->orders++;
    uint32_t at = s->n_heap++;
    while (at > 0 && thing_before(s, t, s->heap[(at - 1) / 2])) {
        s->heap[at] = s->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    s->heap[at] = t;
    return made;
}

static uint32_t take_first(sim *s) {
    uint32_t first = s->heap[0], last = s->heap[--s->n_heap], at = 0;
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= s->n_heap) break;
        if (child + 1 < s->n_heap && thing_before(s, s->heap[child + 1], s->heap[child])) child++;
        if (!thing_before(s, s->heap[child], last)) break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    if (s->n_heap) s->heap[at] = last;
    return first;
}

static int64_t travel_us(sim *s) {
    int64_t us = 1 * MS + (int64_t)below(s, 2000);
    if (fault(s, s->late)) us += (int64_t)below(s, (uint64_t)s->late_us);
    return us;
}

static uint32_t copies(sim *s) {
    if (fault(s, s->drop)) return 0;
    return fault(s, s->repeat) ? 2 : 1;
}

static void to_broker(sim *s, const event *e) {
    for (uint32_t i = copies(s); i > 0; i--) {
        thing *t = later(s, TO_BROKER, travel_us(s));
        t->peer = e->peer;
        t->in = *e;
    }
}

/* --- payloads --------------------------------------------------------------------------------- */

static uint64_t payload_new(sim *s, uint8_t kind, uint64_t content) {
    if (s->n_payloads + 1 >= PAYLOADS_MAX) {
        violation(s, "out of payload numbers");
        return 1;
    }
    uint64_t h = ++s->n_payloads;
    s->payloads[h] = (sim_payload){kind, content};
    s->n_live_payloads++;
    return h;
}

static void payload_gone(sim *s, uint64_t h) {
    if (h == 0 || h > s->n_payloads || s->payloads[h].kind == 0) {
        violation(s, "payload %llu released twice", (unsigned long long)h);
        return;
    }
    s->payloads[h].kind = 0;
    s->n_live_payloads--;
}

static bool payload_is(const sim *s, uint64_t h, uint8_t kind) {
    return h && h <= s->n_payloads && s->payloads[h].kind == kind;
}

/* --- clients ---------------------------------------------------------------------------------- */

static event client_event_of(const sim *s, uint32_t c, event_kind kind, int item) {
    event e = {.kind = kind, .peer = s->clients[c].peer};
    if (item >= 0) e.id = s->items[item].id;
    return e;
}

static void client_submits(sim *s, uint32_t c, int i, bool is_spoof) {
    const sim_item *it = &s->items[i];
    event e = client_event_of(s, c, EVENT_SUBMIT, i);
    e.submit.digest = it->digest;
    if (is_spoof) e.submit.digest.bytes[15] ^= 1;
    e.submit.has_image = it->image >= 0;
    if (it->image >= 0) {
        e.submit.image.digest[0] = (unsigned char)(it->image + 1);
        e.submit.image_bytes = it->image_bytes;
    }
    e.submit.request_bytes = it->request_bytes;
    e.submit.n_questions = 1 + (uint32_t)i % 4;
    e.submit.priority = (uint8_t)(i % 2);
    e.submit.deadline_us = it->deadline_us;
    e.submit.cost = 1 + (uint64_t)i;
    to_broker(s, &e);
}

static void client_tick(sim *s, uint32_t c) {
    sim_client *me = &s->clients[c];
    if (me->is_gone_for_good && faulty(s)) me->is_there = false;
    if (me->is_gone_for_good && !me->is_there) return;
    later(s, CLIENT_TICK, 2 * H + (int64_t)below(s, 100000))->who = c;
    if (fault(s, s->vanish)) { /* and comes back under another number */
        if (chance(s, 500)) {
            event gone = {.kind = EVENT_CLIENT_GONE, .peer = me->peer};
            to_broker(s, &gone);
        }
        me->peer = ++s->peers;
        me->is_welcome = false;
    }
    if (!me->is_welcome) {
        event e = {.kind = EVENT_CLIENT_HELLO, .peer = me->peer, .client_hello = {me->tenant}};
        to_broker(s, &e);
        return;
    }
    event beat = {.kind = EVENT_CLIENT_BEAT, .peer = me->peer};
    to_broker(s, &beat);
    for (uint32_t i = 0; i < s->n_items; i++) {
        sim_item *it = &s->items[i];
        if (c == CLIENTS_MAX - 1) { /* the spoofer */
            if (faulty(s) && it->was_accepted && it->spoofed < 3 && chance(s, 200)) {
                it->spoofed++;
                client_submits(s, c, (int)i, true);
            }
            continue;
        }
        if (it->client != c || s->now_us < it->submit_us) continue;
        if (!it->has_result && (!it->was_accepted || chance(s, 300))) {
            client_submits(s, c, (int)i, false);
            it->was_submitted = true;
        } else if (it->has_result && faulty(s) && chance(s, 60)) {
            client_submits(s, c, (int)i, false); /* late, and against its own knowledge */
        }
        if (it->wants_cancel && it->was_submitted && !it->has_result && chance(s, 200)) {
            it->cancel_sent = true;
            event e = client_event_of(s, c, EVENT_CANCEL, (int)i);
            to_broker(s, &e);
        }
        if (it->has_result && !it->delivered_durable && chance(s, 500)) {
            event e = client_event_of(s, c, EVENT_DELIVERED, (int)i);
            to_broker(s, &e);
        }
    }
}

static void client_gets(sim *s, uint32_t c, const action *a) {
    sim_client *me = &s->clients[c];
    if (a->kind == ACTION_SEND_WELCOME) me->is_welcome = true;
    if (a->kind == ACTION_SEND_WHO) me->is_welcome = false;
    int i = item_of(s, &a->id);
    if (i < 0) return;
    sim_item *it = &s->items[i];
    if (c == CLIENTS_MAX - 1) {
        if (a->kind != ACTION_SEND_BUSY && a->kind != ACTION_SEND_WHO &&
            !(a->kind == ACTION_SEND_REFUSED && a->code == STATUS_CONFLICT))
            violation(s, "item %d: another digest was not refused (action %d)", i, a->kind);
        return;
    }
    switch (a->kind) {
    case ACTION_SEND_ACCEPTED: it->was_accepted = true; break;
    case ACTION_SEND_REFUSED: violation(s, "item %d refused: %s", i, status_code((int)a->code)); break;
    case ACTION_SEND_STATE:
        if (a->state == ITEM_DELIVERED && !it->has_result)
            violation(s, "item %d: delivered to nobody", i);
        if (a->state == ITEM_DELIVERED && a->code != it->code)
            violation(s, "item %d: its tombstone says %s, its result said %s", i,
                      status_code((int)a->code), status_code((int)it->code));
        if (!item_state_is_final(a->state) && a->state != ITEM_NONE) it->was_accepted = true;
        break;
    case ACTION_SEND_RESULT:
        if (it->has_result && (it->state != a->state || it->code != a->code || it->result != a->payload))
            violation(s, "item %d answered twice: %s/%llu, then %s/%llu", i, item_state_name(it->state),
                      (unsigned long long)it->result, item_state_name(a->state),
                      (unsigned long long)a->payload);
        it->has_result = true;
        it->state = a->state;
        it->code = a->code;
        it->result = a->payload; /* the loop put the content here */
        if (a->state == ITEM_DONE && it->result / 1000 != it->content)
            violation(s, "item %d: the answer to another question", i);
        break;
    default: break;
    }
}

/* --- nodes ------------------------------------------------------------------------------------ */

static event node_event_of(const sim_node *n, event_kind kind, const item_ident *id, uint32_t attempt) {
    event e = {.kind = kind, .peer = n->peer, .attempt = attempt};
    if (id) e.id = *id;
    return e;
}

/* Said again until TAKEN. */
static void node_reports(sim *s, sim_node *n, const event *e) {
    to_broker(s, e);
    if (n->n_untaken == UNTAKEN_MAX) {
        memmove(n->untaken, n->untaken + 1, (UNTAKEN_MAX - 1) * sizeof *n->untaken);
        n->n_untaken--;
    }
    n->untaken[n->n_untaken++] = *e;
}

static int node_find_held(const sim_node *n, const item_ident *id, uint32_t attempt) {
    for (uint32_t i = 0; i < n->n_held; i++)
        if (n->held[i].attempt == attempt && memcmp(&n->held[i].id, id, sizeof *id) == 0) return (int)i;
    return -1;
}

static void node_drop_held(sim_node *n, int at) { n->held[at] = n->held[--n->n_held]; }

static void node_hello(sim *s, sim_node *n) {
    event e = {.kind = EVENT_NODE_HELLO, .peer = n->peer};
    e.node_hello.node = n->node;
    e.node_hello.incarnation = n->incarnation;
    e.node_hello.roles = n->roles;
    e.node_hello.tower.bytes[0] = 7;
    e.node_hello.model.bytes[0] = 9;
    bool may = n->n_crumbs == 0 || n->grants_early;
    e.node_hello.credit_items = may ? n->items_max : 0;
    e.node_hello.credit_bytes = n->bytes_max;
    to_broker(s, &e);
}

static void node_dies(sim *s, uint32_t who, bool is_strong) {
    sim_node *n = &s->nodes[who];
    bool keeps_crumbs = is_strong || chance(s, 700);
    for (uint32_t i = 0; i < n->n_held && keeps_crumbs; i++)
        if (n->n_crumbs < CRUMBS_MAX)
            n->crumbs[n->n_crumbs++] =
                (sim_crumb){n->held[i].id, n->held[i].attempt, n->incarnation, is_strong};
    n->n_held = n->n_untaken = n->n_sent = 0;
    memset(n->seen, 0, sizeof n->seen);
    n->is_up = n->is_welcome = false;
    n->peer = 0;
    thing *t = later(s, NODE_STARTS, (int64_t)(faulty(s) ? below(s, 2000000) : below(s, 300000)));
    t->who = who;
}

static void node_starts(sim *s, uint32_t who) {
    sim_node *n = &s->nodes[who];
    if (n->is_up) return;
    n->is_up = true;
    n->peer = ++s->peers;
    n->incarnation = ++s->incarnations;
    n->hung_until_us = 0;
    n->n_unrecorded = 0;
    n->known_items_max = 0;
    node_hello(s, n);
    thing *t = later(s, NODE_TICK, H);
    t->who = who;
    t->incarnation = n->incarnation;
}

static void node_is_hostile(sim *s, sim_node *n) {
    int i = (int)below(s, s->n_items);
    event e = node_event_of(n, EVENT_RELEASED, &s->items[i].id,
                            (uint32_t)below(s, s->items[i].claimed + 1));
    for (uint32_t k = 0; k < n->n_sent; k++) /* its own attempts it may report as it likes */
        if (n->sent[k].attempt == e.attempt && memcmp(&n->sent[k].id, &e.id, sizeof e.id) == 0) return;
    switch (below(s, 4)) {
    case 0: e.kind = EVENT_FAILED; e.failed.is_permanent = true; e.failed.code = STATUS_INTERNAL; break;
    case 1: e.kind = EVENT_PROGRESS; e.progress = 1000; break;
    case 2: e.kind = EVENT_FEATURES_MISSING; break;
    default: break;
    }
    if (node_find_held(n, &e.id, e.attempt) < 0) to_broker(s, &e);
}

static void node_tick(sim *s, uint32_t who) {
    sim_node *n = &s->nodes[who];
    thing *t = later(s, NODE_TICK, H);
    t->who = who;
    t->incarnation = n->incarnation;
    if (fault(s, s->kill)) {
        node_dies(s, who, false);
        return;
    }
    if (fault(s, s->hang)) n->hung_until_us = s->now_us + (int64_t)below(s, 2500000);
    n->ticks++;
    if (!n->is_welcome) {
        node_hello(s, n);
        return;
    }
    event beat = node_event_of(n, EVENT_NODE_BEAT, NULL, 0);
    to_broker(s, &beat);
    for (uint32_t i = 0; i < n->n_held; i++) {
        if (!n->held[i].is_stuck) n->held[i].progress++;
        event e = node_event_of(n, EVENT_PROGRESS, &n->held[i].id, n->held[i].attempt);
        e.progress = n->held[i].progress;
        to_broker(s, &e);
        if (n->held[i].stage == STAGE_LM && chance(s, 300)) {
            event words = node_event_of(n, EVENT_TOKENS, &n->held[i].id, n->held[i].attempt);
            to_broker(s, &words);
        }
    }
    if (n->is_hostile && faulty(s)) node_is_hostile(s, n);
    if (n->ticks % 2) return;
    for (uint32_t i = 0; i < n->n_untaken; i++) {
        n->untaken[i].peer = n->peer;
        to_broker(s, &n->untaken[i]);
    }
    for (uint32_t i = 0; i < n->n_crumbs; i++) {
        event e = node_event_of(n, EVENT_CRASH, &n->crumbs[i].id, n->crumbs[i].attempt);
        e.crash.incarnation = n->crumbs[i].incarnation;
        e.crash.is_strong = n->crumbs[i].is_strong;
        to_broker(s, &e);
    }
    if (n->n_crumbs == 0) {
        event e = node_event_of(n, EVENT_NODE_CREDIT, NULL, 0);
        e.credit.items = n->items_max;
        e.credit.bytes = n->bytes_max;
        to_broker(s, &e);
    }
}

static void node_finishes(sim *s, uint32_t who, const item_ident *id, uint32_t attempt) {
    sim_node *n = &s->nodes[who];
    int at = node_find_held(n, id, attempt);
    if (at < 0) return;
    sim_held h = n->held[at];
    sim_item *it = &s->items[h.item];
    bool is_poison = (it->is_poison && it->poison_stage == h.stage && h.stage == STAGE_LM) ||
                     (h.stage == STAGE_VISION && s->image_is_poison[it->image]);
    if (is_poison) {
        if (h.stage == STAGE_LM) it->kills++;
        else if (!it->wants_cancel && !it->deadline_us) /* or the evidence ends with the item */
            s->image_kills[it->image]++;
        uint32_t kills = h.stage == STAGE_LM ? it->kills : s->image_kills[it->image];
        uint32_t n_hasty = 0; /* grants credit before its crash is recorded: may die once more */
        for (uint32_t k = 0; k < s->n_nodes; k++) n_hasty += s->nodes[k].grants_early;
        if (kills > K + s->n_nodes - 1 + n_hasty)
            violation(s, "item %d killed %u nodes of %u", h.item, kills, s->n_nodes);
        node_dies(s, who, true);
        return;
    }
    node_drop_held(n, at);
    event e = node_event_of(n, EVENT_RESULT, id, attempt);
    if (h.stage == STAGE_VISION && s->is_undecodable[it->image]) {
        e.kind = EVENT_FAILED;
        e.failed.code = STATUS_IMAGE_UNDECODABLE;
        e.failed.is_permanent = true;
        it->n_permanent++;
    } else if (fault(s, it->is_flaky ? s->flaky : 0)) {
        e.kind = EVENT_FAILED;
        e.failed.code = STATUS_DEVICE;
        it->failed_attempts |= UINT64_C(1) << (attempt % 64);
    } else if (h.stage == STAGE_VISION) {
        e.kind = EVENT_ENCODED;
        if (fault(s, s->cache_away)) e.encoded.features_bytes = FEATURES_BYTES;
        else s->features[it->image] = !s->is_black_hole[it->image];
    } else if (it->image >= 0 && !s->features[it->image] && !h.has_features) {
        e.kind = EVENT_FEATURES_MISSING;
        it->n_missing++;
    }
    node_reports(s, n, &e);
}

static void node_gets_work(sim *s, uint32_t who, const action *a) {
    sim_node *n = &s->nodes[who];
    int i = item_of(s, &a->id);
    if (i < 0 || !n->is_welcome || a->work.session != n->session) return;
    if (node_find_held(n, &a->id, a->attempt) >= 0) return; /* repeated */
    bool refuses = n->n_crumbs > 0;
    if (a->attempt <= n->seen[i]) return; /* repeated, or overtaken by its STOP */
    n->seen[i] = a->attempt;
    if (refuses) {
        event e = node_event_of(n, EVENT_RELEASED, &a->id, a->attempt);
        to_broker(s, &e);
        return;
    }
    if (n->n_held >= n->items_max) {
        violation(s, "node %u has %u items and credit for %u", who, n->n_held + 1, n->items_max);
        return;
    }
    const sim_item *it = &s->items[i];
    sim_held h = {.id = a->id, .attempt = a->attempt, .stage = a->work.stage, .item = i,
                  .has_features = a->work.features_payload != 0,
                  .bytes = a->work.stage == STAGE_VISION ? it->image_bytes
                           : it->request_bytes + (a->work.features_payload ? FEATURES_BYTES : 0)};
    uint64_t bytes = h.bytes;
    for (uint32_t k = 0; k < n->n_held; k++) bytes += n->held[k].bytes;
    if (bytes > n->bytes_max) violation(s, "node %u has %llu bytes, over its credit", who,
                                        (unsigned long long)bytes);
    h.is_stuck = fault(s, s->stuck);
    n->held[n->n_held++] = h;
    if (h.is_stuck) return;
    thing *t = later(s, NODE_WORKS, n->service_us / 2 + (int64_t)below(s, (uint64_t)n->service_us));
    t->who = who;
    t->incarnation = n->incarnation;
    t->id = a->id;
    t->attempt = a->attempt;
}

static void node_gets(sim *s, uint32_t who, const action *a) {
    sim_node *n = &s->nodes[who];
    switch (a->kind) {
    case ACTION_SEND_WHO: n->is_welcome = false; break;
    case ACTION_SEND_WELCOME:
        if (a->welcome.session < n->session) break; /* overtaken by a newer one */
        if (n->session != a->welcome.session) n->n_held = 0;
        n->session = a->welcome.session;
        n->is_welcome = true;
        break;
    case ACTION_SEND_WORK: node_gets_work(s, who, a); break;
    case ACTION_SEND_STOP: {
        int at = node_find_held(n, &a->id, a->attempt);
        if (at >= 0) node_drop_held(n, at);
        int i = item_of(s, &a->id);
        if (i >= 0 && a->attempt > n->seen[i]) n->seen[i] = a->attempt;
        event e = node_event_of(n, EVENT_RELEASED, &a->id, a->attempt);
        to_broker(s, &e);
        break;
    }
    case ACTION_SEND_TAKEN:
        for (uint32_t i = 0; i < n->n_untaken; i++)
            if (n->untaken[i].attempt == a->attempt &&
                memcmp(&n->untaken[i].id, &a->id, sizeof a->id) == 0)
                n->untaken[i--] = n->untaken[--n->n_untaken];
        break;
    case ACTION_SEND_CRASH_TAKEN:
        for (uint32_t i = 0; i < n->n_crumbs; i++)
            if (n->crumbs[i].attempt == a->attempt && n->crumbs[i].incarnation == a->incarnation &&
                memcmp(&n->crumbs[i].id, &a->id, sizeof a->id) == 0)
                n->crumbs[i--] = n->crumbs[--n->n_crumbs];
        break;
    case ACTION_SEND_PING: {
        event e = node_event_of(n, EVENT_NODE_BEAT, NULL, 0);
        to_broker(s, &e);
        break;
    }
    default: break;
    }
}

/* --- the journal and the loop ------------------------------------------------------------------ */

static void journal_writes(sim *s, const action *a) {
    if (a->commit.token != s->token + 1 || s->token + 1 >= TOKENS_MAX) {
        violation(s, "token %llu after %llu", (unsigned long long)a->commit.token,
                  (unsigned long long)s->token);
        return;
    }
    s->records[++s->token] = a->commit.record;
    if (a->commit.record.from != a->commit.record.to && item_state_is_final(a->commit.record.from) &&
        a->commit.record.to != ITEM_DELIVERED)
        violation(s, "a final state changes from %s to %s", item_state_name(a->commit.record.from),
                  item_state_name(a->commit.record.to));
    if (fault(s, s->slow_commit)) s->last_commit_us = s->now_us + (int64_t)below(s, 300000);
    if (s->last_commit_us > s->now_us) {
        thing *t = later(s, COMMITS, s->last_commit_us - s->now_us);
        t->peer = s->token;
    }
}

static void journal_has(sim *s, uint64_t token) {
    for (; s->durable < token; s->durable++) {
        const machine_record *r = &s->records[s->durable + 1];
        int i = item_of(s, &r->id);
        if (i < 0) continue;
        sim_item *it = &s->items[i];
        if (r->from == ITEM_NONE) it->accept_durable = true;
        if (r->to == ITEM_ENCODING || r->to == ITEM_GENERATING) {
            if (r->from != r->to) it->claimed = r->attempt;
            else it->n_crash_records++;
        } else if (r->from == r->to) {
            it->n_crash_records++;
        }
        if (r->to == ITEM_DELIVERED) it->delivered_durable = true;
        else if (item_state_is_final(r->to)) {
            it->final_durable = true;
            it->final_state = r->to;
            it->final_code = r->code;
        }
    }
}

static int node_of_peer(const sim *s, uint64_t peer) {
    for (uint32_t n = 0; n < s->n_nodes; n++)
        if (s->nodes[n].peer == peer) return (int)n;
    return -1;
}

static int client_of_peer(const sim *s, uint64_t peer) {
    for (uint32_t c = 0; c < CLIENTS_MAX; c++)
        if (s->clients[c].peer == peer && s->clients[c].is_there) return (int)c;
    return -1;
}

static void sent_forget(sim_node *n, const item_ident *id, uint32_t attempt) {
    for (uint32_t i = 0; i < n->n_sent; i++)
        if (n->sent[i].attempt == attempt && memcmp(&n->sent[i].id, id, sizeof *id) == 0)
            n->sent[i--] = n->sent[--n->n_sent];
}

static void check_work(sim *s, const action *a) {
    int i = item_of(s, &a->id), who = node_of_peer(s, a->peer);
    if (i < 0) {
        violation(s, "work on an unknown item");
        return;
    }
    const sim_item *it = &s->items[i];
    if (it->claimed < a->attempt) violation(s, "item %d: work before its claim is durable", i);
    if (it->final_durable) violation(s, "item %d: work after its end", i);
    if (it->deadline_us && s->now_us > it->deadline_us + MS)
        violation(s, "item %d: work after its deadline", i);
    if (!payload_is(s, a->payload, 1)) violation(s, "item %d: work without its request", i);
    if (a->work.stage == STAGE_VISION && !payload_is(s, a->work.image_payload, 1))
        violation(s, "item %d: work without its image", i);
    if (a->work.stage == STAGE_LM && a->work.features_payload &&
        (!payload_is(s, a->work.features_payload, 4) ||
         s->payloads[a->work.features_payload].content != (uint64_t)it->image))
        violation(s, "item %d: work with freed or foreign features", i);
    if (who < 0) return;
    sim_node *n = &s->nodes[who];
    if (n->n_unrecorded) violation(s, "node %d: work before its crash is recorded", who);
    bool alone = it->n_crash_records > 0;
    for (uint32_t k = 0; k < n->n_sent; k++)
        if (alone || n->sent[k].is_alone)
            violation(s, "item %d: company for an item with a crash on record", i);
    if (n->n_sent >= HELD_MAX * 2) return;
    n->sent[n->n_sent++] = (sim_sent){a->id, a->attempt, alone};
    if (n->n_sent > n->items_max)
        violation(s, "node %d was sent %u items with credit for %u", who, n->n_sent, n->items_max);
}

static void check_said(sim *s, action *a) {
    int i = item_of(s, &a->id);
    if (i < 0) return;
    const sim_item *it = &s->items[i];
    if (a->kind == ACTION_SEND_ACCEPTED && !it->accept_durable)
        violation(s, "item %d: ACCEPTED before it is durable", i);
    if (a->kind == ACTION_SEND_TOKENS && a->attempt != it->claimed)
        violation(s, "item %d: tokens of attempt %u, %u is in force", i, a->attempt, it->claimed);
    if (a->kind == ACTION_SEND_STATE && a->state == ITEM_NONE && it->accept_durable)
        violation(s, "item %d: accepted, then lost", i);
    if (a->kind != ACTION_SEND_RESULT) return;
    if (!it->final_durable || it->final_state != a->state || it->final_code != a->code)
        violation(s, "item %d: RESULT %s is not what is durable", i, item_state_name(a->state));
    if (a->state == ITEM_DONE && !payload_is(s, a->payload, 2))
        violation(s, "item %d: RESULT without its bytes", i);
    if (a->payload && !payload_is(s, a->payload, 2)) violation(s, "item %d: RESULT with freed bytes", i);
    a->payload = a->state == ITEM_DONE && a->payload <= s->n_payloads ? s->payloads[a->payload].content : 0;
}

static void step(sim *s, const event *e);

static void perform(sim *s, action *a) {
    if (s->trace)
        fprintf(s->trace, "%9lld   -> %d peer %llu item %02x attempt %u state %d code %d\n",
                (long long)s->now_us, a->kind, (unsigned long long)a->peer, a->id.bytes[0], a->attempt,
                a->state, a->code);
    switch (a->kind) {
    case ACTION_COMMIT: journal_writes(s, a); return;
    case ACTION_RELEASE: payload_gone(s, a->payload); return;
    case ACTION_DRAINED: return;
    case ACTION_SEND_WORK: check_work(s, a); break;
    case ACTION_SEND_TOKENS:
        payload_gone(s, a->payload);
        check_said(s, a);
        break;
    default: check_said(s, a); break;
    }
    int who = node_of_peer(s, a->peer), c = who < 0 ? client_of_peer(s, a->peer) : -1;
    if (a->kind == ACTION_SEND_CRASH_TAKEN && who >= 0 && s->nodes[who].n_unrecorded)
        s->nodes[who].n_unrecorded--;
    if (a->kind == ACTION_SEND_WELCOME && who >= 0 && !a->welcome.is_resumed) s->nodes[who].n_sent = 0;
    if (who < 0 && c < 0) return; /* nobody there any more */
    for (uint32_t k = copies(s); k > 0; k--) {
        thing *t = later(s, who >= 0 ? TO_NODE : TO_CLIENT, travel_us(s));
        t->who = (uint32_t)(who >= 0 ? who : c);
        t->peer = a->peer;
        t->out = *a;
    }
}

static void step(sim *s, const event *e) {
    action rows[48];
    actions out = {rows, sizeof rows / sizeof *rows, 0};
    event next = *e;
    for (int turn = 0; turn < 1000; turn++) {
        if (s->trace && (next.kind != EVENT_TICK || turn == 0))
            fprintf(s->trace, "%9lld event %d peer %llu item %02x attempt %u\n", (long long)s->now_us,
                    next.kind, (unsigned long long)next.peer, next.id.bytes[0], next.attempt);
        machine_step(s->m, &next, s->now_us, &out);
        s->verdict.n_steps++;
        int who = next.kind == EVENT_CRASH ? node_of_peer(s, next.peer) : -1;
        if (who >= 0 && out.n && rows[0].kind == ACTION_COMMIT &&
            memcmp(&rows[0].id, &next.id, sizeof next.id) == 0)
            s->nodes[who].n_unrecorded++;
        for (size_t i = 0; i < out.n; i++) perform(s, &rows[i]);
        next = (event){.kind = EVENT_TICK};
        if (s->last_commit_us <= s->now_us && s->durable < s->token) {
            journal_has(s, s->token);
            next = (event){.kind = EVENT_COMMITTED, .committed = s->token};
        } else if (!machine_has_more(s->m)) {
            const machine_counts *k = machine_numbers(s->m);
            if (k->accepted != k->done + k->failed + k->cancelled + k->expired + k->in_flight)
                violation(s, "the counters do not add up");
            if (s->mutant == 0 && s->verdict.n_steps % 16 == 0) machine_audit(s->m);
            return;
        }
    }
    violation(s, "the machine never comes to rest");
}

static void broker_gets(sim *s, event *e) {
    if (e->kind == EVENT_SUBMIT) {
        int i = item_of(s, &e->id);
        e->submit.request_payload = payload_new(s, 1, 0);
        if (e->submit.has_image) e->submit.image_payload = payload_new(s, 1, (uint64_t)i);
    } else if (e->kind == EVENT_RESULT) {
        int i = item_of(s, &e->id);
        /* attempts differ here, so that a second outcome would be seen */
        e->payload = payload_new(s, 2, i >= 0 ? s->items[i].content * 1000 + e->attempt : 0);
        e->payload_bytes = 10;
    } else if (e->kind == EVENT_TOKENS) {
        e->payload = payload_new(s, 3, 0);
        e->payload_bytes = 1;
    }
    if (e->kind == EVENT_ENCODED && e->encoded.features_bytes) {
        int i = item_of(s, &e->id);
        e->encoded.features = payload_new(s, 4, i >= 0 ? (uint64_t)s->items[i].image : 0);
    }
    int who = node_of_peer(s, e->peer);
    if (who >= 0 && (e->kind == EVENT_ENCODED || e->kind == EVENT_RESULT || e->kind == EVENT_FAILED ||
                     e->kind == EVENT_FEATURES_MISSING || e->kind == EVENT_RELEASED))
        sent_forget(&s->nodes[who], &e->id, e->attempt);
    step(s, e);
}

/* --- one schedule ------------------------------------------------------------------------------ */

static uint32_t intensity(sim *s, uint32_t most) {
    return below(s, 2) ? 0 : 1 + (uint32_t)below(s, most);
}

static void draw_world(sim *s) {
    s->drop = intensity(s, 150);
    s->repeat = intensity(s, 150);
    s->late = intensity(s, 300);
    s->late_us = 1 + (int64_t)below(s, below(s, 2) ? 50000 : 1000000);
    s->kill = intensity(s, 30);
    s->hang = intensity(s, 30);
    s->stuck = intensity(s, 200);
    s->flaky = intensity(s, 700);
    s->lose_features = intensity(s, 300);
    s->cache_away = intensity(s, 900);
    s->slow_commit = intensity(s, 300);
    s->vanish = intensity(s, 100);
    s->hostile = intensity(s, 400);
    s->gone_told = intensity(s, 500);
    s->heal_us = 1000000 + (int64_t)below(s, 4000000);
    s->n_images = 1 + (uint32_t)below(s, IMAGES_MAX);
    for (uint32_t i = 0; i < s->n_images; i++) {
        s->is_undecodable[i] = chance(s, 120);
        s->is_black_hole[i] = chance(s, 80);
        s->image_is_poison[i] = chance(s, 60);
    }
    s->n_nodes = 1 + (uint32_t)below(s, NODES_MAX);
    for (uint32_t i = 0; i < s->n_nodes; i++) {
        sim_node *n = &s->nodes[i];
        n->node = 100 + i;
        n->roles = i == 0 && s->n_nodes < 3 ? 3 : 1 + (i + 1) % 2 + (chance(s, 200) ? 0 : 0);
        if (chance(s, 200)) n->roles = 3;
        n->items_max = 1 + (uint32_t)below(s, 6);
        n->bytes_max = 300 + below(s, 2000);
        n->service_us = 2 * MS + (int64_t)below(s, chance(s, 200) ? 1500000 : 80000);
        n->is_hostile = chance(s, s->hostile);
        n->grants_early = chance(s, 500);
        later(s, NODE_STARTS, (int64_t)below(s, 500000))->who = i;
    }
    s->n_clients = 1 + (uint32_t)below(s, CLIENTS_MAX - 1);
    for (uint32_t c = 0; c < CLIENTS_MAX; c++) {
        sim_client *me = &s->clients[c];
        *me = (sim_client){.peer = ++s->peers, .tenant = 1 + c % 2, .is_there = true};
        if (c == CLIENTS_MAX - 1) me->tenant = 1;
        else if (c > 0 && c < s->n_clients) me->is_gone_for_good = chance(s, 100);
        if (c < s->n_clients || c == CLIENTS_MAX - 1)
            later(s, CLIENT_TICK, (int64_t)below(s, 300000))->who = c;
    }
    s->n_items = 1 + (uint32_t)below(s, ITEMS_MAX);
    for (uint32_t i = 0; i < s->n_items; i++) {
        sim_item *it = &s->items[i];
        *it = (sim_item){.image = chance(s, 100) ? -1 : (int)below(s, s->n_images),
                         .client = (uint32_t)below(s, s->n_clients), .content = 1000 + i,
                         .submit_us = (int64_t)below(s, 1000000)};
        it->id.bytes[0] = (unsigned char)i;
        it->id.bytes[1] = 0x5a;
        it->digest.bytes[0] = (unsigned char)(i + 1);
        it->is_poison = chance(s, 60);
        it->poison_stage = STAGE_LM;
        it->is_flaky = chance(s, 300);
        it->wants_cancel = chance(s, 100);
        it->request_bytes = 1 + (uint32_t)below(s, 100);
        if (it->image >= 0) it->image_bytes = 100 + 40 * (uint32_t)it->image;
        if (chance(s, 100)) it->deadline_us = 500000 + (int64_t)below(s, 6000000);
    }
    later(s, FEATURES_LOST, H)->who = 0;
}

static machine_limits small_limits(void) {
    machine_limits l = machine_limits_default();
    l.n_items_max = 24;
    l.bytes_max = 4000;
    l.features_bytes_max = 120;
    l.n_clients_max = 64;
    l.client_items_max = 16;
    l.client_bytes_max = 3000;
    l.n_nodes_max = 16;
    l.n_grants_max = 64;
    l.n_images_max = 24;
    l.n_tombstones_max = 64;
    l.n_tenants = 4;
    l.heartbeat_us = H;
    l.lease_us = 4 * H;
    l.attempt_us = 50 * H;
    l.client_silence_us = 20 * H;
    l.retention_us = INT64_C(3600000000);
    l.backoff_us = H / 2;
    l.backoff_max_us = 10 * H;
    l.affinity_wait_us = H / 2;
    return l;
}

static void happen(sim *s, thing *t) {
    sim_node *n = t->who < NODES_MAX ? &s->nodes[t->who] : NULL;
    bool is_for_node = t->kind == TO_NODE || t->kind == NODE_TICK || t->kind == NODE_WORKS;
    if (is_for_node && n->is_up && s->now_us < n->hung_until_us && faulty(s)) {
        thing *again = later(s, t->kind, n->hung_until_us - s->now_us);
        uint64_t order = again->order;
        int64_t at_us = again->at_us;
        *again = *t;
        again->order = order;
        again->at_us = at_us;
        return;
    }
    switch (t->kind) {
    case TO_BROKER: broker_gets(s, &t->in); break;
    case TO_CLIENT:
        if (s->clients[t->who].is_there && s->clients[t->who].peer == t->peer)
            client_gets(s, t->who, &t->out);
        break;
    case TO_NODE:
        if (n->is_up && n->peer == t->peer) node_gets(s, t->who, &t->out);
        else if (fault(s, s->gone_told)) {
            event e = {.kind = EVENT_NODE_GONE, .peer = t->peer};
            step(s, &e);
        }
        break;
    case CLIENT_TICK: client_tick(s, t->who); break;
    case NODE_TICK:
        if (n->is_up && n->incarnation == t->incarnation) node_tick(s, t->who);
        break;
    case NODE_WORKS:
        if (n->is_up && n->incarnation == t->incarnation) node_finishes(s, t->who, &t->id, t->attempt);
        break;
    case NODE_STARTS: node_starts(s, t->who); break;
    case COMMITS:
        if (t->peer > s->durable) {
            journal_has(s, t->peer);
            event e = {.kind = EVENT_COMMITTED, .committed = t->peer};
            step(s, &e);
        }
        break;
    case FEATURES_LOST:
        if (fault(s, s->lose_features)) s->features[below(s, s->n_images)] = false;
        if (faulty(s)) later(s, FEATURES_LOST, H);
        break;
    }
}

static bool all_finished(const sim *s) {
    for (uint32_t i = 0; i < s->n_items; i++) {
        const sim_item *it = &s->items[i];
        if (!s->clients[it->client].is_there) {
            if (it->accept_durable && !it->final_durable) return false;
        } else if (!it->has_result || !it->delivered_durable) {
            return false;
        }
    }
    return true;
}

static void check_outcomes(sim *s) {
    for (uint32_t i = 0; i < s->n_items; i++) {
        const sim_item *it = &s->items[i];
        if (!it->final_durable || it->final_state == ITEM_DONE) continue;
        bool is_bad_image = it->image >= 0 && s->is_undecodable[it->image];
        bool is_poison = it->is_poison || (it->image >= 0 && s->image_is_poison[it->image]);
        bool fair;
        switch (it->final_code) {
        case STATUS_CANCELLED: fair = it->cancel_sent; break;
        case STATUS_DEADLINE_EXCEEDED: fair = it->deadline_us > 0; break;
        case STATUS_QUARANTINED: fair = is_poison; break;
        case STATUS_IMAGE_UNDECODABLE: fair = is_bad_image; break;
        case STATUS_UNAVAILABLE: fair = it->n_missing >= 5; break;
        case STATUS_DEVICE: fair = __builtin_popcountll(it->failed_attempts) >= 5; break;
        case STATUS_TIMEOUT: fair = it->claimed > 20; break;
        default: fair = false; break;
        }
        if (!fair) violation(s, "item %u failed with %s for no reason", i, status_code((int)it->final_code));
    }
    if (s->n_live_payloads) {
        uint64_t kept = 0;
        for (uint32_t i = 0; i < s->n_items; i++)
            kept += s->items[i].final_durable && !s->items[i].delivered_durable;
        if (kept == 0) violation(s, "%llu payloads are never released",
                                 (unsigned long long)s->n_live_payloads);
    }
}

sim *sim_open(void) { return calloc(1, sizeof(sim)); }
void sim_close(sim *s) { free(s); }

sim_verdict sim_run(sim *s, uint64_t seed, int mutant, FILE *trace) {
    uint64_t n_payloads = s->n_payloads;
    memset(s->payloads, 0, (n_payloads + 1) * sizeof *s->payloads);
    s->dice = rng_make(rng_at(seed, 1, 0)); /* neighbouring seeds are strangers */
    s->now_us = s->last_commit_us = 0;
    s->trace = trace;
    s->mutant = mutant;
    s->n_heap = s->n_things = 0;
    s->free_thing = UINT32_MAX;
    s->orders = s->peers = s->incarnations = s->token = s->durable = 0;
    s->n_payloads = s->n_live_payloads = 0;
    memset(s->nodes, 0, sizeof s->nodes);
    memset(s->features, 0, sizeof s->features);
    memset(s->image_kills, 0, sizeof s->image_kills);
    s->verdict = (sim_verdict){.is_fine = true};
    machine_limits limits = small_limits();
    err e;
    CHECK(machine_open(&s->m, &limits, &e) == STATUS_OK, "the machine opens");
#ifdef MIPHA_MUTANTS
    machine_set_mutant(s->m, mutant);
#endif
    draw_world(s);
    int64_t end_us = s->heal_us + SIM_HEAL_US;
    while (s->verdict.is_fine && !all_finished(s)) {
        int64_t due_us = machine_next_us(s->m);
        int64_t first_us = s->n_heap ? s->things[s->heap[0]].at_us : INT64_MAX;
        s->now_us = due_us < first_us && due_us > s->now_us ? due_us
                    : due_us < first_us                     ? s->now_us
                                                            : first_us;
        if (s->now_us > end_us) {
            violation(s, "not finished %lld s after the last fault",
                      (long long)(SIM_HEAL_US / 1000000));
            break;
        }
        if (due_us < first_us) {
            event tick = {.kind = EVENT_TICK};
            step(s, &tick);
            continue;
        }
        uint32_t t = take_first(s);
        thing now = s->things[t];
        s->things[t].next_free = s->free_thing;
        s->free_thing = t;
        happen(s, &now);
    }
    if (s->verdict.is_fine) check_outcomes(s);
    if (s->verdict.is_fine && mutant == 0) machine_audit(s->m);
    s->verdict.virtual_us = s->now_us;
    machine_close(s->m);
    s->m = NULL;
    return s->verdict;
}
