/* Entries hold a piece of the hash next to the slot, so that most misses cost no look at the row. */
#include "broker/slot_index.h"

#include <stdlib.h>

#include "base/check.h"

struct slot_entry {
    uint32_t hash;
    uint32_t slot; /* SLOT_NONE: free */
};

static uint32_t fold(uint64_t hash) { return (uint32_t)(hash ^ (hash >> 32)); }

status slot_index_init(slot_index *x, uint32_t n_max) {
    *x = (slot_index){.n_max = n_max};
    if (n_max > (UINT32_C(1) << 29)) return STATUS_NO_MEMORY;
    uint32_t n_entries = 4;
    while (n_entries < 2 * n_max) n_entries *= 2;
    x->mask = n_entries - 1;
    x->entries = malloc(n_entries * sizeof *x->entries);
    if (!x->entries) return STATUS_NO_MEMORY;
    for (uint32_t i = 0; i < n_entries; i++) x->entries[i] = (struct slot_entry){0, SLOT_NONE};
    return STATUS_OK;
}

void slot_index_deinit(slot_index *x) {
    free(x->entries);
    *x = (slot_index){0};
}

uint32_t slot_index_find(const slot_index *x, uint64_t hash, slot_matches *matches, const void *rows,
                         const void *key) {
    uint32_t h = fold(hash);
    for (uint32_t at = h & x->mask;; at = (at + 1) & x->mask) {
        const struct slot_entry *e = &x->entries[at];
        if (e->slot == SLOT_NONE) return SLOT_NONE;
        if (e->hash == h && matches(rows, e->slot, key)) return e->slot;
    }
}

void slot_index_add(slot_index *x, uint64_t hash, uint32_t slot) {
    CHECK(x->n < x->n_max, "an index never holds more rows than it was made for");
    uint32_t h = fold(hash), at = h & x->mask;
    while (x->entries[at].slot != SLOT_NONE) at = (at + 1) & x->mask;
    x->entries[at] = (struct slot_entry){h, slot};
    x->n++;
}

void slot_index_remove(slot_index *x, uint64_t hash, uint32_t slot) {
    uint32_t at = fold(hash) & x->mask;
    while (x->entries[at].slot != slot) {
        CHECK(x->entries[at].slot != SLOT_NONE, "only what was added is removed");
        at = (at + 1) & x->mask;
    }
    x->n--;
    /* Whatever stands behind the hole and could have stood in it moves up. */
    for (uint32_t next = (at + 1) & x->mask;; next = (next + 1) & x->mask) {
        struct slot_entry e = x->entries[next];
        if (e.slot == SLOT_NONE) break;
        uint32_t home = e.hash & x->mask;
        if (((next - home) & x->mask) >= ((next - at) & x->mask)) {
            x->entries[at] = e;
            at = next;
        }
    }
    x->entries[at].slot = SLOT_NONE;
}
