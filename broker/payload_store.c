#include "broker/payload_store.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define NO_SLOT UINT32_MAX

void payload_store_init(payload_store *s) { *s = (payload_store){.free_slot = NO_SLOT}; }

static void slot_clear(payload *p) {
    wire_payload_close(&p->frames);
    free(p->data);
    p->data = NULL;
    p->is_used = false;
}

void payload_store_deinit(payload_store *s) {
    for (uint32_t i = 0; i < s->n_slots; i++)
        if (s->slots[i].is_used) slot_clear(&s->slots[i]);
    free(s->slots);
    *s = (payload_store){.free_slot = NO_SLOT};
}

static bool grow(payload_store *s) {
    uint32_t n = s->n_slots ? 2 * s->n_slots : 64;
    payload *grown = realloc(s->slots, n * sizeof *grown);
    if (!grown) return false;
    memset(grown + s->n_slots, 0, (n - s->n_slots) * sizeof *grown);
    for (uint32_t i = n; i-- > s->n_slots;) {
        grown[i].next_free = s->free_slot;
        s->free_slot = i;
    }
    s->slots = grown;
    s->n_slots = n;
    return true;
}

static payload *take_slot(payload_store *s, uint64_t *handle) {
    if (s->free_slot == NO_SLOT && !grow(s)) return NULL;
    uint32_t i = s->free_slot;
    payload *p = &s->slots[i];
    s->free_slot = p->next_free;
    uint32_t generation = p->generation + 1;
    *p = (payload){.generation = generation, .is_used = true};
    s->n_used++;
    *handle = (uint64_t)generation << 32 | (i + 1);
    return p;
}

uint64_t payload_add_bytes(payload_store *s, bytes data) {
    uint64_t handle = 0;
    unsigned char *copy = malloc(data.len_bytes + 1);
    payload *p = copy ? take_slot(s, &handle) : NULL;
    if (!p) {
        free(copy);
        return 0;
    }
    if (data.len_bytes) memcpy(copy, data.data, data.len_bytes);
    copy[data.len_bytes] = 0;
    p->data = copy;
    p->len_bytes = data.len_bytes;
    return handle;
}

uint64_t payload_add_frames(payload_store *s, wire_payload **moved) {
    uint64_t handle = 0;
    payload *p = take_slot(s, &handle);
    if (!p) return 0;
    p->frames = *moved;
    p->len_bytes = wire_payload_bytes(*moved);
    *moved = NULL;
    return handle;
}

payload *payload_find(const payload_store *s, uint64_t handle) {
    if (handle == 0) return NULL;
    uint32_t i = (uint32_t)handle - 1;
    CHECK(i < s->n_slots && s->slots[i].is_used && s->slots[i].generation == handle >> 32,
          "a payload is used before it is released");
    return &s->slots[i];
}

void payload_release(payload_store *s, uint64_t handle) {
    payload *p = payload_find(s, handle);
    if (!p) return;
    slot_clear(p);
    p->next_free = s->free_slot;
    s->free_slot = (uint32_t)handle - 1;
    s->n_used--;
}
