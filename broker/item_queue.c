/* One heap. Priority and deadline share the major key: the priority stands in the top byte, the
 * deadline in microseconds below it (2^56 us are two thousand years). */
#include "broker/item_queue.h"

#include <stdlib.h>

#include "base/check.h"
#include "broker/slot_index.h"

#define DEADLINE_NONE ((UINT64_C(1) << 56) - 1)

status item_queue_init(item_queue *q, uint32_t n_items_max, uint64_t bytes_max,
                       uint32_t n_tenants) {
    CHECK(n_tenants > 0, "there is at least one account");
    *q = (item_queue){.n_tenants = n_tenants, .bytes_max = bytes_max};
    q->bytes = calloc(n_items_max ? n_items_max : 1, sizeof *q->bytes);
    q->ends = calloc(n_tenants, sizeof *q->ends);
    if (!q->bytes || !q->ends || heap_init(&q->order, n_items_max) != STATUS_OK) {
        item_queue_deinit(q);
        return STATUS_NO_MEMORY;
    }
    return STATUS_OK;
}

void item_queue_deinit(item_queue *q) {
    heap_deinit(&q->order);
    free(q->bytes);
    free(q->ends);
    *q = (item_queue){0};
}

item_queue_rank item_queue_enter(item_queue *q, uint64_t tenant, uint64_t cost, uint8_t priority,
                                 int64_t deadline_us) {
    uint64_t *end = &q->ends[slot_hash(tenant) % q->n_tenants];
    uint64_t start = *end > q->virtual_time ? *end : q->virtual_time;
    *end = start + (cost ? cost : 1);
    uint64_t until = deadline_us > 0 ? (uint64_t)deadline_us : DEADLINE_NONE;
    if (until > DEADLINE_NONE) until = DEADLINE_NONE;
    return (item_queue_rank){{(uint64_t)priority << 56 | until, start, q->arrivals++}};
}

status item_queue_push(item_queue *q, uint32_t item, uint32_t bytes, item_queue_rank rank) {
    CHECK(!heap_has(&q->order, item), "an item waits once");
    if (q->order.n == q->order.n_things || bytes > q->bytes_max - q->bytes_now) return STATUS_BUSY;
    q->bytes[item] = bytes;
    q->bytes_now += bytes;
    heap_put(&q->order, item, rank.key);
    return STATUS_OK;
}

uint32_t item_queue_first(const item_queue *q) { return heap_first(&q->order); }

void item_queue_served(item_queue *q, uint32_t item) {
    CHECK(item == heap_first(&q->order), "the first one is served");
    uint64_t tag = heap_first_key(&q->order).minor;
    if (tag > q->virtual_time) q->virtual_time = tag;
    item_queue_remove(q, item);
}

void item_queue_remove(item_queue *q, uint32_t item) {
    if (!heap_has(&q->order, item)) return;
    heap_remove(&q->order, item);
    q->bytes_now -= q->bytes[item];
}

bool item_queue_has(const item_queue *q, uint32_t item) { return heap_has(&q->order, item); }

bool item_queue_before(item_queue_rank a, item_queue_rank b) {
    if (a.key.major != b.key.major) return a.key.major < b.key.major;
    if (a.key.minor != b.key.minor) return a.key.minor < b.key.minor;
    return a.key.order < b.key.order;
}

uint32_t item_queue_count(const item_queue *q) { return q->order.n; }
