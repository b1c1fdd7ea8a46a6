/* libmipha: hand items to a broker and take their answers, exactly one each.
 *
 *     client *c;
 *     st = client_open(&c, zmq_context, "tcp://broker:7000", NULL, &e);
 *     client_item item = {.image = {data, n}, .request = &r, .flags = MESSAGE_FLAG_EXIF};
 *     client_random_id(&item.id);
 *     st = client_submit(c, &item, &e);                  // BUSY: the window is full, poll first
 *     while ((st = client_poll(c, 1000, &event, &e)) == STATUS_OK)
 *         if (event.kind == CLIENT_RESULT) { keep(&event); client_ack(c, &event.id); }
 *     client_close(&c);
 *
 * There is no thread inside: sending, heartbeats and reconnecting happen in client_submit and
 * client_poll, so call client_poll at least every second. An item stays with the client until the caller
 * acknowledges its result; whatever happens to the broker or the connection meanwhile, it is submitted
 * again under the same id, which the broker recognises. One thread per client. */
#ifndef CLIENT_CLIENT_H
#define CLIENT_CLIENT_H

#include "base/bytes.h"
#include "proto/request.h"

#define CLIENT_WINDOW_ITEMS 64
#define CLIENT_WINDOW_BYTES (256u << 20)
#define CLIENT_WATCHED_MAX  2

typedef struct client client;

typedef struct {
    const char *name;       /* of the tenant, for fair shares; NULL: "client" */
    uint32_t window_items;  /* unanswered items at once; 0: CLIENT_WINDOW_ITEMS */
    uint64_t window_bytes;  /* their images; 0: CLIENT_WINDOW_BYTES. One item always fits */
    int open_timeout_ms;    /* how long client_open waits for the broker; 0: 10,000 */
    int stop_fd;            /* ends client_open when it becomes readable; 0: none. See client_watch */
} client_settings;

typedef struct {
    item_id id;             /* chosen by the caller: same id and same content is the same item */
    void *tag;              /* handed back in every event of this item */
    bytes image;            /* source bytes of an image file, copied; empty: none, or those of images */
    const unsigned char *image_sha256; /* of image, when the caller has it already; else NULL */
    const bytes *images;    /* instead of image: n_images of them, in the order in which they are shown */
    size_t n_images;        /* 0 .. MESSAGE_IMAGES_MAX */
    const request *request; /* only read during the call; its hashes of images are left to the client */
    uint32_t flags;         /* MESSAGE_FLAG_EXIF, MESSAGE_FLAG_STREAM */
    int32_t priority;       /* lower first */
    uint64_t deadline_ms;   /* from now; 0: none */
} client_item;

typedef enum {
    CLIENT_TOKENS = 1,  /* some more text of one question of a streamed item, in order, none twice */
    CLIENT_RESULT,      /* the one answer of an item */
    CLIENT_UNAVAILABLE, /* the broker has been silent too long; the client keeps trying to reach it */
    CLIENT_AVAILABLE,   /* and has reached it again; unanswered items are being resubmitted */
    CLIENT_STATUS       /* what client_status_ask asked for */
} client_event_kind;

/* Views live until the next client_poll or client_close. */
typedef struct {
    client_event_kind kind;
    item_id id;
    void *tag;

    uint32_t question_idx; /* TOKENS */
    tokens_piece tokens;

    status code;           /* RESULT: OK, or why the whole item failed. UNAVAILABLE: why */
    const char *text;      /* one line for people, never NULL */
    outcome outcome;       /* RESULT with code OK: one answer a question; else no answers */
    vision_report vision;  /* zeros when there was no image, or it was not reached; features_cached also
                            * when the encoding of an equal image served this item too */
    bool has_image;
    unsigned char image_sha256[HASH_SHA256_BYTES]; /* of the file; of several, of their bundle */
    bool has_fingerprints; /* of the model that answered */
    unsigned char model_fingerprint[HASH_SHA256_BYTES];
    unsigned char tower_fingerprint[HASH_SHA256_BYTES];
    uint64_t queue_us, total_us; /* as the broker saw them */

    status_report report;  /* STATUS */
} client_event;

/* Connects and waits for the broker's welcome. settings may be NULL. zmq_context must outlive c.
 * Errors: UNAVAILABLE (no broker within open_timeout_ms), INTERRUPTED (a watched descriptor), IO,
 * BAD_ARGUMENT (endpoint), or the code with which the broker refused. */
MUST_USE status client_open(client **c, void *zmq_context, const char *endpoint,
                            const client_settings *settings, err *e);

/* Takes note of unsent acknowledgements, says BYE and forgets whatever is outstanding. NULL is fine. */
void client_close(client **c);

/* Errors: BUSY (the window is full, or the broker is away and the window is), BAD_ARGUMENT (the id is
 * outstanding already; a limit of proto/message.h), TOO_LARGE (the image, or all of them), NO_MEMORY. */
MUST_USE status client_submit(client *c, const client_item *item, err *e);

/* True when client_submit of an image of that size, or of several together, would not answer BUSY. */
bool client_has_room(const client *c, size_t image_bytes);

/* The next event. timeout_ms -1: wait for ever, 0: only look. TIMEOUT: none came; INTERRUPTED: a watched
 * descriptor is readable; other errors are final (the broker refuses this client). */
MUST_USE status client_poll(client *c, int timeout_ms, client_event *event, err *e);

/* The result of id is safe with the caller: the broker may forget it. Call it once for every RESULT. */
void client_ack(client *c, const item_id *id);

/* The item is not wanted any more; its RESULT still comes, CANCELLED unless it was finished already. */
void client_cancel(client *c, const item_id *id);
void client_cancel_all(client *c);

/* Items submitted and not yet answered. */
size_t client_unanswered(const client *c);

/* Asks for a report; it comes as a CLIENT_STATUS event. */
void client_status_ask(client *c);

/* Asks and waits; for a client with nothing outstanding. The report lives until the next call with c.
 * Errors: TIMEOUT, INTERRUPTED, as client_poll. */
MUST_USE status client_status(client *c, int timeout_ms, const status_report **report, err *e);

/* Descriptors that end client_poll early while they are readable: a stop flag, a terminal; -1: none.
 * They replace the ones watched so far, settings.stop_fd included. */
void client_watch(client *c, int fd0, int fd1);

/* An id nobody else has. One that an application makes itself can be asked for again after a restart, but once its result
 * is acknowledged it is spent: the broker refuses it (NOT_FOUND). */
void client_random_id(item_id *id);

#endif
