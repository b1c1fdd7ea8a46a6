/* What the files of the machine share. Read in this order:
 *
 *   item_machine.c    one step; what clients say; what is done when a transition is durable
 *   item_reports.c    what nodes say
 *   item_rules.c      the guards: which transition is allowed when, and how it is recorded
 *   item_dispatch.c   where an item waits, which node gets it, what happens when time passes
 *   item_rows.c       the tables
 *   item_audit.c      every promise that can be checked by looking */
#ifndef BROKER_ITEM_MACHINE_INTERNAL_H
#define BROKER_ITEM_MACHINE_INTERNAL_H

#include "base/check.h"
#include "broker/image_table.h"
#include "broker/item_machine.h"
#include "broker/item_queue.h"
#include "broker/node_table.h"

#define ACTIONS_PER_UNIT 8 /* no single follow-up adds more actions than this */

#ifdef MIPHA_MUTANTS
#define MUTANT(m, n) ((m)->mutant == (n))
#else
#define MUTANT(m, n) ((void)(m), false)
#endif

/* Where an item waits. Exactly one place at a time; a leased item has a grant and no place. */
typedef enum {
    PLACE_NONE,    /* leased, final, or its last transition is not yet durable */
    PLACE_QUEUE,   /* in its stage's queue */
    PLACE_SUSPECT, /* in its stage's queue of items that travel alone */
    PLACE_WAITERS, /* in its image's list: another item encodes */
    PLACE_PARKED,  /* in a node's list: that node has the image's prefix */
    PLACE_BACKOFF  /* only its timer knows */
} item_place;

typedef struct {
    uint64_t node, incarnation;
    uint32_t attempt;
    bool is_strong;
} crash_note;

typedef struct {
    bool is_used;
    uint32_t generation;
    item_ident id;
    item_digest digest;
    uint64_t tenant;
    uint32_t client, client_generation; /* who gets the answer; the client row may be gone */
    item_state state;
    status code;      /* of a final state */
    uint64_t token;   /* of its last transition */
    uint32_t attempt; /* the last one handed out; 0: none */
    uint64_t lm_attempts; /* bit attempt % 64: that attempt was language work */
    uint32_t grant;       /* in force, SLOT_NONE */
    item_place place;
    uint32_t next, prev;  /* in waiters or parked */
    uint32_t parked_on;   /* node */
    int64_t wake_us;      /* BACKOFF and PARKED: until then */
    int64_t deadline_us;  /* 0: none */
    int64_t accepted_us, placed_us, queue_us, finished_us;
    uint32_t image;       /* SLOT_NONE: text only */
    uint8_t priority;
    uint32_t n_questions;
    uint64_t cost;
    item_queue_rank rank[STAGE_COUNT];
    bool is_ranked[STAGE_COUNT];
    bool has_waited;      /* for its image's node; now any will do */
    uint64_t request_payload, result_payload, report_payload;
    uint32_t request_bytes, result_bytes, report_bytes, image_bytes;
    uint32_t tries, expiries, releases, regressions, n_strong, n_crashes;
    crash_note crashes[ITEM_CRASHES_MAX];
} item_row;

typedef struct {
    bool is_used;
    uint32_t generation;
    uint64_t peer, tenant;
    uint32_t n_items; /* undelivered rows that answer to it */
    uint64_t bytes;
    int64_t heard_us;
} client_row;

typedef struct {
    item_ident id;
    item_digest digest;
    uint64_t tenant;
    status code;
} tombstone;

/* What is done when a token is durable. */
typedef enum {
    HELD_NOTHING, /* only what is common: tell the node */
    HELD_ACCEPT,
    HELD_CLAIM,
    HELD_PLACE, /* it waits for a node again */
    HELD_FINAL,
    HELD_LEAVE
} held_kind;

typedef struct {
    held_kind kind;
    uint32_t item, item_generation;
    uint32_t grant, grant_generation; /* CLAIM */
    item_ident id;
    uint32_t attempt;
    uint32_t node, node_generation; /* who waits for TAKEN or CRASH_TAKEN, SLOT_NONE: nobody */
    bool is_crash;
    uint64_t incarnation; /* of a crash report */
    int64_t backoff_us;   /* PLACE */
} held;

/* The rows of the table in PROTOCOL.md. */
typedef enum {
    RULE_ACCEPT,
    RULE_CLAIM,
    RULE_RENEW,
    RULE_ENCODED,
    RULE_DONE,
    RULE_RELEASE,
    RULE_RETRY,
    RULE_FAIL,
    RULE_LEASE_LOST,
    RULE_CRASH,
    RULE_REGRESS,
    RULE_CANCEL,
    RULE_EXPIRE,
    RULE_DELIVER,
    RULE_DROP,
    RULE_COUNT
} machine_rule;

/* What a guard may look at besides the row. */
typedef struct {
    uint32_t attempt;
    uint32_t progress;
    uint64_t node, incarnation, tenant;
} rule_facts;

struct item_machine {
    machine_limits limits;
    int64_t now_us;
    actions *out; /* during a step */

    item_row *items;
    uint32_t items_end, free_item;
    slot_index items_by_id;

    client_row *clients;
    slot_index clients_by_peer;

    tombstone *tombs; /* a ring */
    uint64_t n_tombs_ever;
    slot_index tombs_by_id;

    node_table nodes;
    image_table images;
    item_queue queue[STAGE_COUNT], suspects[STAGE_COUNT];
    uint32_t reserved[STAGE_COUNT]; /* node kept free for a suspect */

    uint32_t *waking; /* images whose waiters are looked at; a stack */
    uint32_t n_waking;
    uint32_t *losing; /* nodes whose grants are taken back; a stack */
    uint32_t n_losing;

    held *ring; /* of token t at t % n_ring */
    uint32_t n_ring;
    uint64_t token, committed, settled; /* last given out, last durable, last acted upon */

    heap timers; /* items, then grants, nodes, clients */
    uint64_t sessions;
    fingerprint tower, model;
    bool has_tower, has_model;
    bool is_draining, has_drained, wants_dispatch, has_more;
    uint32_t n_parked;
    uint32_t n_owed;      /* undelivered rows whose client is connected */
    int64_t finish_gap_us; /* smoothed time between two finished items */
    int64_t last_finish_us;
    machine_counts counts;
#ifdef MIPHA_MUTANTS
    int mutant;
#endif
};

/* --- item_rules.c --- */
bool rule_allows(const item_machine *m, machine_rule rule, const item_row *it,
                 const rule_facts *facts);
/* Moves it to state `to`, emits COMMIT and holds `then` back until it is durable. */
void rule_commit(item_machine *m, machine_rule rule, uint32_t item, item_state to, held then);
/* Was this attempt handed out for that stage, not more than 63 attempts ago? */
bool was_for_stage(const item_row *it, uint32_t attempt, item_stage stage);
bool crash_is_known(const item_row *it, uint64_t node, uint64_t incarnation, uint32_t attempt);

/* --- item_dispatch.c --- */
bool has_room_for_unit(const item_machine *m);
action *emit(item_machine *m, action_kind kind, uint64_t peer);
void release(item_machine *m, uint64_t payload); /* 0 is fine */
void arm_item(item_machine *m, uint32_t item);
void arm_grant(item_machine *m, uint32_t g);
void arm_node(item_machine *m, uint32_t n);
void arm_client(item_machine *m, uint32_t c);
uint32_t work_bytes(const item_machine *m, const item_row *it, item_stage stage); /* of payload */
void item_place_somewhere(item_machine *m, uint32_t item, int64_t backoff_us);
void item_unplace(item_machine *m, uint32_t item);
void image_wake(item_machine *m, uint32_t image);
void image_drop_encoder(item_machine *m, uint32_t item);
void time_passes_some(item_machine *m);
void wake_some(item_machine *m);
void dispatch_some(item_machine *m);

/* --- item_rows.c --- */
item_stage stage_of(item_state state);
item_state waiting_state(const item_row *it); /* the one that asks for its stage */
bool is_suspect(const item_machine *m, const item_row *it); /* travels alone */
bool image_is_condemned(const item_machine *m, const image_row *image); /* has killed enough */
uint64_t id_hash(const item_ident *id);
uint32_t find_item(const item_machine *m, const item_ident *id);
const tombstone *find_tomb(const item_machine *m, const item_ident *id);
uint32_t find_client(const item_machine *m, uint64_t peer);
client_row *client_of(const item_machine *m, const item_row *it); /* NULL: it has gone */
held held_for(const item_machine *m, held_kind kind, uint32_t item);
uint32_t client_add(item_machine *m, uint64_t peer, uint64_t tenant); /* SLOT_NONE: full */
void client_lose(item_machine *m, uint32_t c);
uint32_t item_add(item_machine *m, const event *e, uint32_t c);
void item_drop_inputs(item_machine *m, item_row *it); /* the bytes only nodes needed */
void image_drop_features(item_machine *m, image_row *image);
void item_keep_payload(item_machine *m, uint64_t *payload, uint32_t *bytes, const event *e);
void item_remove(item_machine *m, uint32_t item); /* leaves a tombstone */

/* --- item_reports.c --- */
void node_event(item_machine *m, const event *e);

/* --- item_machine.c --- */
void send_about(item_machine *m, action_kind kind, uint64_t peer, const item_ident *id,
                uint32_t attempt);
void send_refused(item_machine *m, uint64_t peer, const item_ident *id, status code);
void grant_done(item_machine *m, uint32_t g); /* the node has let go */
void grant_orphan(item_machine *m, uint32_t g);
void lease_lose(item_machine *m, uint32_t g, bool node_is_gone);
void node_lose(item_machine *m, uint32_t n);
void item_finish(item_machine *m, machine_rule rule, uint32_t item, item_state to, status code,
                 held then);

#endif
