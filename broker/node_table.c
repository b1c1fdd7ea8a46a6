/* Rows in arrays, free grants in a list, three indexes. A row that is being taken apart (is_lost) has
 * already left the indexes, so that a restarted process can register while its past is cleaned up. */
#include "broker/node_table.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

typedef struct {
    uint64_t node, incarnation;
} process_key;

typedef struct {
    const item_ident *id;
    uint32_t attempt;
} attempt_key;

static uint64_t process_hash(uint64_t node, uint64_t incarnation) {
    return slot_hash(node ^ slot_hash(incarnation));
}

static uint64_t attempt_hash(const item_ident *id, uint32_t attempt) {
    uint64_t low, high;
    memcpy(&low, id->bytes, 8);
    memcpy(&high, id->bytes + 8, 8);
    return slot_hash(low ^ slot_hash(high + attempt));
}

static bool is_peer(const void *rows, uint32_t slot, const void *key) {
    return ((const node_row *)rows)[slot].peer == *(const uint64_t *)key;
}

static bool is_process(const void *rows, uint32_t slot, const void *key) {
    const node_row *row = &((const node_row *)rows)[slot];
    const process_key *k = key;
    return row->node == k->node && row->incarnation == k->incarnation;
}

static bool is_attempt(const void *rows, uint32_t slot, const void *key) {
    const grant_row *row = &((const grant_row *)rows)[slot];
    const attempt_key *k = key;
    return row->attempt == k->attempt && memcmp(&row->id, k->id, sizeof row->id) == 0;
}

status node_table_init(node_table *t, uint32_t n_nodes_max, uint32_t n_grants_max) {
    *t = (node_table){.n_nodes_max = n_nodes_max, .n_grants_max = n_grants_max,
                      .free_grant = SLOT_NONE};
    t->nodes = calloc(n_nodes_max, sizeof *t->nodes);
    t->grants = calloc(n_grants_max, sizeof *t->grants);
    if (!t->nodes || !t->grants || slot_index_init(&t->by_peer, n_nodes_max) != STATUS_OK ||
        slot_index_init(&t->by_process, n_nodes_max) != STATUS_OK ||
        slot_index_init(&t->by_attempt, n_grants_max) != STATUS_OK) {
        node_table_deinit(t);
        return STATUS_NO_MEMORY;
    }
    return STATUS_OK;
}

void node_table_deinit(node_table *t) {
    free(t->nodes);
    free(t->grants);
    slot_index_deinit(&t->by_peer);
    slot_index_deinit(&t->by_process);
    slot_index_deinit(&t->by_attempt);
    *t = (node_table){0};
}

uint32_t node_table_find_peer(const node_table *t, uint64_t peer) {
    return slot_index_find(&t->by_peer, slot_hash(peer), is_peer, t->nodes, &peer);
}

uint32_t node_table_find_process(const node_table *t, uint64_t node, uint64_t incarnation) {
    process_key key = {node, incarnation};
    return slot_index_find(&t->by_process, process_hash(node, incarnation), is_process, t->nodes, &key);
}

uint32_t node_table_add(node_table *t, uint64_t peer, uint64_t node, uint64_t incarnation) {
    uint32_t n = 0;
    while (n < t->n_nodes_max && t->nodes[n].is_used) n++;
    if (n == t->n_nodes_max) return SLOT_NONE;
    if (n >= t->nodes_end) t->nodes_end = n + 1;
    t->nodes[n] = (node_row){.is_used = true, .generation = t->nodes[n].generation + 1, .peer = peer,
                             .node = node, .incarnation = incarnation, .first_grant = SLOT_NONE,
                             .parked = {SLOT_NONE, SLOT_NONE, 0}};
    slot_index_add(&t->by_peer, slot_hash(peer), n);
    slot_index_add(&t->by_process, process_hash(node, incarnation), n);
    t->n_nodes++;
    return n;
}

void node_table_set_peer(node_table *t, uint32_t n, uint64_t peer) {
    slot_index_remove(&t->by_peer, slot_hash(t->nodes[n].peer), n);
    t->nodes[n].peer = peer;
    slot_index_add(&t->by_peer, slot_hash(peer), n);
}

void node_table_lose(node_table *t, uint32_t n) {
    node_row *row = &t->nodes[n];
    CHECK(row->is_used && !row->is_lost, "a node is lost once");
    slot_index_remove(&t->by_peer, slot_hash(row->peer), n);
    slot_index_remove(&t->by_process, process_hash(row->node, row->incarnation), n);
    row->is_lost = true;
    t->n_nodes--;
}

void node_table_remove(node_table *t, uint32_t n) {
    node_row *row = &t->nodes[n];
    CHECK(row->is_lost && row->first_grant == SLOT_NONE, "a node leaves with empty hands");
    row->is_used = row->is_lost = false;
}

bool node_table_has_room(const node_table *t, uint32_t n, uint32_t bytes) {
    const node_row *row = &t->nodes[n];
    return row->is_used && !row->is_lost && !row->is_draining && row->n_holds == 0 &&
           row->n_solo == 0 && row->items < row->items_max && row->bytes <= row->bytes_max &&
           bytes <= row->bytes_max - row->bytes;
}

bool node_table_is_idle_for(const node_table *t, uint32_t n, uint32_t bytes) {
    return t->nodes[n].items == 0 && node_table_has_room(t, n, bytes);
}

uint32_t node_table_pick(const node_table *t, uint32_t role, uint32_t bytes) {
    uint32_t best = SLOT_NONE;
    for (uint32_t n = 0; n < t->nodes_end; n++) {
        const node_row *row = &t->nodes[n];
        if (row->reserved_for || !(row->roles & role) || !node_table_has_room(t, n, bytes)) continue;
        if (best == SLOT_NONE || (uint64_t)row->items * t->nodes[best].items_max <
                                     (uint64_t)t->nodes[best].items * row->items_max)
            best = n;
    }
    return best;
}

uint32_t grant_add(node_table *t, uint32_t n, const grant_row *grant) {
    uint32_t g = t->free_grant;
    if (g != SLOT_NONE) t->free_grant = t->grants[g].next;
    else if (t->grants_end < t->n_grants_max) g = t->grants_end++;
    else return SLOT_NONE;
    node_row *node = &t->nodes[n];
    grant_row *row = &t->grants[g];
    uint32_t generation = row->generation + 1;
    *row = *grant;
    row->generation = generation;
    row->node = n;
    row->prev = SLOT_NONE;
    row->next = node->first_grant;
    if (row->next != SLOT_NONE) t->grants[row->next].prev = g;
    node->first_grant = g;
    node->items++;
    node->bytes += row->bytes;
    node->n_solo += row->is_solo;
    t->n_grants++;
    slot_index_add(&t->by_attempt, attempt_hash(&row->id, row->attempt), g);
    return g;
}

uint32_t grant_find(const node_table *t, const item_ident *id, uint32_t attempt) {
    attempt_key key = {id, attempt};
    return slot_index_find(&t->by_attempt, attempt_hash(id, attempt), is_attempt, t->grants, &key);
}

void grant_free(node_table *t, uint32_t g) {
    grant_row *row = &t->grants[g];
    CHECK(row->state != GRANT_FREE, "a grant is freed once");
    node_row *node = &t->nodes[row->node];
    slot_index_remove(&t->by_attempt, attempt_hash(&row->id, row->attempt), g);
    if (row->prev != SLOT_NONE) t->grants[row->prev].next = row->next;
    else node->first_grant = row->next;
    if (row->next != SLOT_NONE) t->grants[row->next].prev = row->prev;
    node->items--;
    node->bytes -= row->bytes;
    node->n_solo -= row->is_solo;
    t->n_grants--;
    row->state = GRANT_FREE;
    row->item = SLOT_NONE;
    row->next = t->free_grant;
    t->free_grant = g;
}
