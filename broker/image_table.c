/* Rows in use stand in no list; the others in one list from the oldest to the newest. */
#include "broker/image_table.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static uint64_t key_hash(const image_key *key) {
    uint64_t v;
    memcpy(&v, key->digest, sizeof v);
    return slot_hash(v + key->flags);
}

static bool is_key(const void *rows, uint32_t slot, const void *key) {
    const image_row *row = &((const image_row *)rows)[slot];
    const image_key *k = key;
    return row->key.flags == k->flags && memcmp(row->key.digest, k->digest, sizeof k->digest) == 0;
}

status image_table_init(image_table *t, uint32_t n_max) {
    *t = (image_table){.n_max = n_max, .oldest = SLOT_NONE, .newest = SLOT_NONE};
    t->rows = calloc(n_max, sizeof *t->rows);
    if (!t->rows || slot_index_init(&t->by_key, n_max) != STATUS_OK) {
        image_table_deinit(t);
        return STATUS_NO_MEMORY;
    }
    return STATUS_OK;
}

void image_table_deinit(image_table *t) {
    free(t->rows);
    slot_index_deinit(&t->by_key);
    *t = (image_table){0};
}

uint32_t image_table_find(const image_table *t, const image_key *key) {
    return slot_index_find(&t->by_key, key_hash(key), is_key, t->rows, key);
}

static void unlink_unused(image_table *t, uint32_t i) {
    image_row *row = &t->rows[i];
    if (row->older != SLOT_NONE) t->rows[row->older].newer = row->newer;
    else t->oldest = row->newer;
    if (row->newer != SLOT_NONE) t->rows[row->newer].older = row->older;
    else t->newest = row->older;
}

uint32_t image_table_use(image_table *t, const image_key *key) {
    uint32_t i = image_table_find(t, key);
    if (i != SLOT_NONE) {
        if (t->rows[i].n_items++ == 0) unlink_unused(t, i);
        return i;
    }
    if (t->end < t->n_max) {
        i = t->end++;
    } else {
        i = t->oldest;
        CHECK(i != SLOT_NONE, "there are as many image rows as items");
        unlink_unused(t, i);
        slot_index_remove(&t->by_key, key_hash(&t->rows[i].key), i);
        t->n--;
    }
    bool is_waking = t->rows[i].is_waking; /* the machine's stack may still name this row */
    t->rows[i] = (image_row){.key = *key, .is_used = true, .is_waking = is_waking, .n_items = 1, .encoder = SLOT_NONE,
                             .waiters = {SLOT_NONE, SLOT_NONE, 0}, .prefix_node = SLOT_NONE};
    slot_index_add(&t->by_key, key_hash(key), i);
    t->n++;
    return i;
}

bool image_table_let_go(image_table *t, uint32_t i) {
    image_row *row = &t->rows[i];
    CHECK(row->n_items > 0, "only users let go");
    if (--row->n_items > 0) return false;
    CHECK(row->encoder == SLOT_NONE && row->waiters.n == 0, "nobody waits for an unused image");
    row->newer = SLOT_NONE;
    row->older = t->newest;
    if (row->older != SLOT_NONE) t->rows[row->older].newer = i;
    else t->oldest = i;
    t->newest = i;
    return true;
}
