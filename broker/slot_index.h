/* Finds the slot of a row by its key: a hash table of slot numbers; the rows stay where they are.
 *
 *     st = slot_index_init(&x, 1000);
 *     uint32_t slot = slot_index_find(&x, hash, is_row, rows, key);   // SLOT_NONE
 *     slot_index_add(&x, hash, slot);
 *     slot_index_remove(&x, hash, slot);
 *     slot_index_deinit(&x);
 *
 * Linear probing at no more than half full, deletion by shifting back: no tombstones, so it never
 * gets slower with age. No allocation after init. One thread. */
#ifndef BROKER_SLOT_INDEX_H
#define BROKER_SLOT_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define SLOT_NONE UINT32_MAX

typedef struct {
    struct slot_entry *entries;
    uint32_t n, n_max, mask;
} slot_index;

/* Is the row in this slot the one with this key? */
typedef bool slot_matches(const void *rows, uint32_t slot, const void *key);

MUST_USE status slot_index_init(slot_index *x, uint32_t n_max);
void slot_index_deinit(slot_index *x);

uint32_t slot_index_find(const slot_index *x, uint64_t hash, slot_matches *matches, const void *rows,
                         const void *key);
void slot_index_add(slot_index *x, uint64_t hash, uint32_t slot); /* its key must not be there */
void slot_index_remove(slot_index *x, uint64_t hash, uint32_t slot);

/* Spreads the bits of a number that is not random itself. */
static inline uint64_t slot_hash(uint64_t v) {
    v = (v ^ (v >> 32)) * UINT64_C(0x9e3779b97f4a7c15);
    return v ^ (v >> 29);
}

#endif
