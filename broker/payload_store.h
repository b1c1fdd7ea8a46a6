/* The bytes the machine knows by number: images as shared frames, everything else as plain bytes.
 *
 *     uint64_t h = payload_add_bytes(&store, m->body);    // 0: out of memory
 *     payload *p = payload_find(&store, h);
 *     payload_release(&store, h);
 *
 * Handles are never reused for other bytes: a slot's generation is part of its number. One thread. */
#ifndef BROKER_PAYLOAD_STORE_H
#define BROKER_PAYLOAD_STORE_H

#include "proto/socket.h"

typedef struct {
    wire_payload *frames; /* an image, or NULL */
    unsigned char *data;  /* anything else, or NULL */
    size_t len_bytes;
    uint32_t flags;       /* of a request: MESSAGE_FLAG_* it came with */
    uint32_t question_idx, token_idx; /* of streamed tokens */
    uint32_t generation;
    uint32_t next_free;
    bool is_used;
} payload;

typedef struct {
    payload *slots;
    uint32_t n_slots, n_used, free_slot;
} payload_store;

void payload_store_init(payload_store *s);
void payload_store_deinit(payload_store *s);
uint64_t payload_add_bytes(payload_store *s, bytes data);
uint64_t payload_add_frames(payload_store *s, wire_payload **moved);
payload *payload_find(const payload_store *s, uint64_t handle); /* NULL for 0; CHECK for a stale one */
void payload_release(payload_store *s, uint64_t handle);        /* 0 is fine */

#endif
