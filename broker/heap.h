/* A binary heap of numbered things that knows where each one is, so that any can be taken out.
 *
 *     st = heap_init(&h, 1000);
 *     heap_put(&h, 17, (heap_key){when, 0, 0});   // again with another key: moves it
 *     uint32_t first = heap_first(&h);            // HEAP_NONE when empty
 *     heap_remove(&h, 17);                        // fine when it is not there
 *     heap_deinit(&h);
 *
 * The smallest key is first, compared part by part. O(log n), no allocation after init. One thread. */
#ifndef BROKER_HEAP_H
#define BROKER_HEAP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define HEAP_NONE UINT32_MAX

typedef struct {
    uint64_t major, minor, order;
} heap_key;

typedef struct {
    struct heap_entry *entries; /* n used, children of i at 2i+1 and 2i+2 */
    uint32_t *place;            /* of each thing in entries, HEAP_NONE when it is not there */
    uint32_t n, n_things;
} heap;

MUST_USE status heap_init(heap *h, uint32_t n_things);
void heap_deinit(heap *h);

void heap_put(heap *h, uint32_t thing, heap_key key);
void heap_remove(heap *h, uint32_t thing);
bool heap_has(const heap *h, uint32_t thing);
uint32_t heap_first(const heap *h);
heap_key heap_first_key(const heap *h); /* not of an empty one */

#endif
