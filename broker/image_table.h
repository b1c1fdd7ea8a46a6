/* Image keys: which items share one, who encodes it, and which are believed to be encoded.
 *
 *     st = image_table_init(&t, n_images_max);
 *     uint32_t i = image_table_use(&t, &key);      // one more item refers to it; made if unknown
 *     if (image_table_let_go(&t, i)) release(t.rows[i].payload)  // the last item has gone
 *     image_table_deinit(&t);
 *
 * A row nobody refers to stays as a hint ("believed encoded", "prefix at that node") until its place
 * is needed; the one unused longest goes first. Hints may be wrong: a node that misses the features
 * says so. There are at least as many rows as items, so use() always finds one. O(1). One thread. */
#ifndef BROKER_IMAGE_TABLE_H
#define BROKER_IMAGE_TABLE_H

#include "broker/node_table.h"

typedef struct {
    image_key key;
    bool is_used;
    bool is_encoded;   /* believed */
    bool is_waking;    /* all waiters are to be looked at again */
    status doom;       /* not OK: all waiters fail with it */
    uint32_t n_strong, n_crashes; /* of engines that died encoding it, until one succeeds */
    uint64_t payload;  /* of one of its items, kept for all of them */
    uint32_t bytes;
    uint64_t features; /* payload, handed over while the cache was away, 0: in the cache */
    uint32_t features_bytes;
    uint32_t n_items;
    uint32_t encoder;  /* item that wants or has the vision stage, SLOT_NONE */
    item_list waiters; /* items that wait for the encoder */
    uint32_t prefix_node, prefix_generation; /* lm node that last had it, SLOT_NONE */
    uint32_t older, newer; /* among the rows without items */
} image_row;

typedef struct {
    image_row *rows;
    uint32_t n_max, n, end;
    uint32_t oldest, newest;
    slot_index by_key;
} image_table;

MUST_USE status image_table_init(image_table *t, uint32_t n_max);
void image_table_deinit(image_table *t);
uint32_t image_table_find(const image_table *t, const image_key *key);
uint32_t image_table_use(image_table *t, const image_key *key);
bool image_table_let_go(image_table *t, uint32_t i); /* true: nobody refers to it now */

#endif
