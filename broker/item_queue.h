/* Items that wait for a node, in the order they are served: priority, then deadline, then fair share
 * between tenants in estimated cost.
 *
 *     st = item_queue_init(&q, n_items_max, bytes_max, n_tenants);
 *     item_queue_rank rank = item_queue_enter(&q, tenant, cost, priority, deadline_us);  // charged here
 *     st = item_queue_push(&q, item, bytes, rank);     // BUSY: full in items or bytes
 *     uint32_t first = item_queue_first(&q);           // SLOT_NONE when empty
 *     item_queue_remove(&q, item);                     // handed out, or cancelled
 *     item_queue_push(&q, item, bytes, rank);          // came back: same place, not charged again
 *
 * Fair share is start-time fair queueing: an item's tag is the later of the queue's virtual time and
 * the end of its tenant's previous item, its cost later ends the next one. A tenant with a thousand
 * items queued delays a newcomer by one item, not by a thousand. Source: Goyal, Vin, Cheng 1996.
 * Tenants are accounts by hash: more tenants than accounts share some. O(log n). One thread. */
#ifndef BROKER_ITEM_QUEUE_H
#define BROKER_ITEM_QUEUE_H

#include "broker/heap.h"

typedef struct {
    heap_key key;
} item_queue_rank;

typedef struct {
    heap order;
    uint32_t *bytes; /* of each item, for the sum */
    uint64_t *ends;  /* of each account, in virtual time */
    uint32_t n_tenants;
    uint64_t virtual_time; /* tag of the last item handed out */
    uint64_t arrivals;
    uint64_t bytes_now, bytes_max;
} item_queue;

MUST_USE status item_queue_init(item_queue *q, uint32_t n_items_max, uint64_t bytes_max,
                                uint32_t n_tenants);
void item_queue_deinit(item_queue *q);

/* deadline_us 0: none, served after all that have one. Lower priority numbers are served first. */
item_queue_rank item_queue_enter(item_queue *q, uint64_t tenant, uint64_t cost, uint8_t priority,
                                 int64_t deadline_us);
MUST_USE status item_queue_push(item_queue *q, uint32_t item, uint32_t bytes, item_queue_rank rank);
uint32_t item_queue_first(const item_queue *q);
void item_queue_served(item_queue *q, uint32_t item); /* removes it and moves virtual time on */
void item_queue_remove(item_queue *q, uint32_t item);
bool item_queue_has(const item_queue *q, uint32_t item);
bool item_queue_before(item_queue_rank a, item_queue_rank b);
uint32_t item_queue_count(const item_queue *q);

#endif
