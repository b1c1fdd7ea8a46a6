/* Textbook binary heap plus the inverse permutation `place`, kept right by one function: set(). */
#include "broker/heap.h"

#include <stdlib.h>

#include "base/check.h"

struct heap_entry {
    heap_key key;
    uint32_t thing;
};

static bool key_less(heap_key a, heap_key b) {
    if (a.major != b.major) return a.major < b.major;
    if (a.minor != b.minor) return a.minor < b.minor;
    return a.order < b.order;
}

status heap_init(heap *h, uint32_t n_things) {
    *h = (heap){.n_things = n_things};
    h->entries = calloc(n_things ? n_things : 1, sizeof *h->entries);
    h->place = calloc(n_things ? n_things : 1, sizeof *h->place);
    if (!h->entries || !h->place) {
        heap_deinit(h);
        return STATUS_NO_MEMORY;
    }
    for (uint32_t i = 0; i < n_things; i++) h->place[i] = HEAP_NONE;
    return STATUS_OK;
}

void heap_deinit(heap *h) {
    free(h->entries);
    free(h->place);
    *h = (heap){0};
}

static void set(heap *h, uint32_t at, struct heap_entry e) {
    h->entries[at] = e;
    h->place[e.thing] = at;
}

static void rise(heap *h, uint32_t at, struct heap_entry e) {
    while (at > 0) {
        uint32_t parent = (at - 1) / 2;
        if (!key_less(e.key, h->entries[parent].key)) break;
        set(h, at, h->entries[parent]);
        at = parent;
    }
    set(h, at, e);
}

static void sink(heap *h, uint32_t at, struct heap_entry e) {
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= h->n) break;
        if (child + 1 < h->n && key_less(h->entries[child + 1].key, h->entries[child].key)) child++;
        if (!key_less(h->entries[child].key, e.key)) break;
        set(h, at, h->entries[child]);
        at = child;
    }
    set(h, at, e);
}

static void settle(heap *h, uint32_t at, struct heap_entry e) {
    if (at > 0 && key_less(e.key, h->entries[(at - 1) / 2].key)) rise(h, at, e);
    else sink(h, at, e);
}

void heap_put(heap *h, uint32_t thing, heap_key key) {
    CHECK(thing < h->n_things, "a heap only holds the things it was made for");
    struct heap_entry e = {key, thing};
    if (h->place[thing] == HEAP_NONE) rise(h, h->n++, e);
    else settle(h, h->place[thing], e);
}

void heap_remove(heap *h, uint32_t thing) {
    CHECK(thing < h->n_things, "a heap only holds the things it was made for");
    uint32_t at = h->place[thing];
    if (at == HEAP_NONE) return;
    h->place[thing] = HEAP_NONE;
    h->n--;
    if (at < h->n) settle(h, at, h->entries[h->n]);
}

bool heap_has(const heap *h, uint32_t thing) { return h->place[thing] != HEAP_NONE; }

uint32_t heap_first(const heap *h) { return h->n ? h->entries[0].thing : HEAP_NONE; }

heap_key heap_first_key(const heap *h) {
    CHECK(h->n > 0, "an empty heap has no first key");
    return h->entries[0].key;
}
