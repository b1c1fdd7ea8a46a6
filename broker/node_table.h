/* Who can work and who has what: one row for each connected node process, one *grant* for each attempt
 * in a node's hands.
 *
 *     st = node_table_init(&t, n_nodes_max, n_grants_max);
 *     uint32_t n = node_table_add(&t, peer, node, incarnation);      // SLOT_NONE: table full
 *     if (node_table_has_room(&t, n, bytes)) g = grant_add(&t, n, &grant);
 *     grant_free(&t, g);                                             // the node has let go of it
 *     node_table_remove(&t, n);                                      // needs all grants freed
 *     node_table_deinit(&t);
 *
 * Credits are capacities the node announced; items and bytes count the grants against them. A grant
 * outlives its lease: an attempt the machine has given up on still fills the node until the node says
 * that it let go. That is what keeps "never more than the credit" true from the node's side.
 *
 * generation rises when a slot changes hands: slot and generation together name a row for ever.
 * O(1), but node_table_pick, which looks at every node. One thread. */
#ifndef BROKER_NODE_TABLE_H
#define BROKER_NODE_TABLE_H

#include "broker/item_machine.h"
#include "broker/slot_index.h"

typedef struct {
    uint32_t first, last, n; /* of items, linked through their rows */
} item_list;

typedef struct {
    bool is_used;
    bool is_lost; /* its grants are being taken back */
    bool is_draining;
    uint32_t generation;
    uint64_t peer, node, incarnation, session;
    uint32_t roles;
    uint32_t items, items_max; /* granted, capacity */
    uint64_t bytes, bytes_max;
    uint32_t n_holds;          /* crash reports that are not yet durable: no new work */
    uint32_t n_solo;           /* grants that tolerate no company */
    uint32_t reserved_for;     /* bits of stages: it is being emptied for an item that travels alone */
    uint32_t first_grant;
    item_list parked;          /* items that wait for this node's image prefix */
    int64_t heard_us, pinged_us;
    uint64_t n_done;
} node_row;

typedef enum { GRANT_FREE, GRANT_CLAIMING, GRANT_RUNNING, GRANT_STOPPING } grant_state;

typedef struct {
    grant_state state;
    uint32_t generation;
    item_ident id;
    uint32_t attempt;
    item_stage stage;
    uint32_t node;
    uint32_t item; /* SLOT_NONE once the machine has given up on it */
    uint32_t bytes;
    bool is_solo;
    uint32_t progress;
    int64_t started_us, renewed_us; /* STOPPING: renewed_us is when STOP was last sent */
    uint32_t next, prev;            /* in the node's list; next links free ones */
} grant_row;

typedef struct {
    node_row *nodes;
    grant_row *grants;
    uint32_t n_nodes_max, n_nodes, nodes_end; /* rows at and above nodes_end were never used */
    uint32_t n_grants_max, n_grants, grants_end, free_grant;
    slot_index by_peer, by_process, by_attempt;
} node_table;

MUST_USE status node_table_init(node_table *t, uint32_t n_nodes_max, uint32_t n_grants_max);
void node_table_deinit(node_table *t);

uint32_t node_table_find_peer(const node_table *t, uint64_t peer);
uint32_t node_table_find_process(const node_table *t, uint64_t node, uint64_t incarnation);
uint32_t node_table_add(node_table *t, uint64_t peer, uint64_t node, uint64_t incarnation);
void node_table_set_peer(node_table *t, uint32_t n, uint64_t peer); /* it connected anew */
void node_table_lose(node_table *t, uint32_t n);   /* nobody finds it any more */
void node_table_remove(node_table *t, uint32_t n); /* after lose, without grants */

/* Can this node take one more item of so many bytes, given its credit and what else holds it back? */
bool node_table_has_room(const node_table *t, uint32_t n, uint32_t bytes);
bool node_table_is_idle_for(const node_table *t, uint32_t n, uint32_t bytes); /* and has nothing else */

/* The least loaded node of that role with room and not reserved, SLOT_NONE when there is none. */
uint32_t node_table_pick(const node_table *t, uint32_t role, uint32_t bytes);

/* Takes id, attempt, stage, item, bytes, is_solo, state from *grant. SLOT_NONE: no grant is free. */
uint32_t grant_add(node_table *t, uint32_t n, const grant_row *grant);
uint32_t grant_find(const node_table *t, const item_ident *id, uint32_t attempt);
void grant_free(node_table *t, uint32_t g);

#endif
