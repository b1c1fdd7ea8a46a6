/* The items a client has promised its caller an answer for: found by id, walked in order of submission.
 *
 *     outstanding *o;
 *     st = outstanding_open(&o, 1024);
 *     outstanding_item *i = outstanding_add(o, &id);     // NULL: full or out of memory
 *     i = outstanding_find(o, &id);
 *     for (i = outstanding_first(o); i; i = i->next) ...
 *     outstanding_remove(o, i);
 *
 * One thread. */
#ifndef CLIENT_OUTSTANDING_H
#define CLIENT_OUTSTANDING_H

#include "base/buf.h"
#include "proto/message.h"
#include "proto/socket.h"

typedef enum {
    ITEM_QUEUED,   /* to be sent once not_before_us has come */
    ITEM_SENT,     /* the broker has not said ACCEPTED yet */
    ITEM_ACCEPTED, /* the broker will answer */
    ITEM_GIVEN_UP, /* answered here: code says why; the event is still to be handed over */
    ITEM_ANSWERED, /* the caller has the result and has not acknowledged it */
    ITEM_TO_ACK    /* acknowledged; RESULT_ACK is still to be sent */
} outstanding_state;

typedef struct outstanding_item {
    struct outstanding_item *next, *previous; /* in order of submission */
    struct outstanding_item *chain;           /* same bucket */
    item_id id;
    void *tag;
    outstanding_state state;
    bool is_cancelled;     /* the caller does not want it any more */
    bool needs_cancel;     /* and CANCEL is still to be sent */
    status code;           /* of ITEM_GIVEN_UP */
    int64_t not_before_us; /* ITEM_QUEUED: earliest time to send */
    int64_t sent_us;       /* ITEM_SENT: when */
    int64_t deadline_us;   /* 0: none */
    unsigned char digest[MESSAGE_DIGEST_BYTES];
    unsigned char image_sha256[HASH_SHA256_BYTES];
    uint32_t flags, n_questions, cost;
    int32_t priority;
    buf body;
    wire_payload *image;   /* NULL without an image, and from the answer on */
    size_t image_bytes;
    uint32_t *tokens_seen; /* n_questions of them when streaming, else NULL */
} outstanding_item;

typedef struct outstanding outstanding;

MUST_USE status outstanding_open(outstanding **o, size_t n_max);
void outstanding_close(outstanding **o);

size_t outstanding_count(const outstanding *o);
outstanding_item *outstanding_first(const outstanding *o);
outstanding_item *outstanding_find(const outstanding *o, const item_id *id);

/* A zeroed item at the end of the order. The id must not be there yet. */
outstanding_item *outstanding_add(outstanding *o, const item_id *id);
void outstanding_remove(outstanding *o, outstanding_item *i);

/* Releases what only an unanswered item needs: body and image. */
void outstanding_forget_request(outstanding_item *i);

#endif
