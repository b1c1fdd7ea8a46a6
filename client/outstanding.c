/* A chained hash table with a list through it. Ids are hashes or random, so their first bytes are the
 * bucket; a caller that chooses bad ids only makes its own client slower. */
#include "client/outstanding.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

struct outstanding {
    outstanding_item *first, *last;
    size_t n, n_max;
    size_t bucket_mask;
    outstanding_item *buckets[];
};

status outstanding_open(outstanding **o, size_t n_max) {
    size_t n_buckets = 64;
    while (n_buckets < n_max && n_buckets < (1u << 20)) n_buckets *= 2;
    *o = calloc(1, sizeof **o + n_buckets * sizeof (*o)->buckets[0]);
    if (!*o) return STATUS_NO_MEMORY;
    (*o)->n_max = n_max;
    (*o)->bucket_mask = n_buckets - 1;
    return STATUS_OK;
}

void outstanding_close(outstanding **o) {
    if (!*o) return;
    while ((*o)->first) outstanding_remove(*o, (*o)->first);
    free(*o);
    *o = NULL;
}

size_t outstanding_count(const outstanding *o) { return o->n; }
outstanding_item *outstanding_first(const outstanding *o) { return o->first; }

static size_t bucket_of(const outstanding *o, const item_id *id) {
    return (size_t)bytes_load_le(id->bytes, 8) & o->bucket_mask;
}

outstanding_item *outstanding_find(const outstanding *o, const item_id *id) {
    outstanding_item *i = o->buckets[bucket_of(o, id)];
    while (i && memcmp(i->id.bytes, id->bytes, sizeof id->bytes) != 0) i = i->chain;
    return i;
}

outstanding_item *outstanding_add(outstanding *o, const item_id *id) {
    CHECK(!outstanding_find(o, id), "an id is outstanding once");
    if (o->n == o->n_max) return NULL;
    outstanding_item *i = calloc(1, sizeof *i);
    if (!i) return NULL;
    i->id = *id;
    i->chain = o->buckets[bucket_of(o, id)];
    o->buckets[bucket_of(o, id)] = i;
    i->previous = o->last;
    *(o->last ? &o->last->next : &o->first) = i;
    o->last = i;
    o->n++;
    return i;
}

void outstanding_forget_request(outstanding_item *i) {
    buf_deinit(&i->body);
    wire_payload_close(&i->image);
}

void outstanding_remove(outstanding *o, outstanding_item *i) {
    outstanding_item **link = &o->buckets[bucket_of(o, &i->id)];
    while (*link != i) link = &(*link)->chain;
    *link = i->chain;
    *(i->previous ? &i->previous->next : &o->first) = i->next;
    *(i->next ? &i->next->previous : &o->last) = i->previous;
    o->n--;
    outstanding_forget_request(i);
    free(i->tokens_seen);
    free(i);
}
