/* The life of every item, as a pure function: events and the time go in, actions come out.
 *
 *     st = machine_open(&m, &limits, &e);
 *     action rows[64];
 *     actions out = {rows, 64, 0};
 *     machine_step(m, &ev, now_us, &out);               // perform out.rows[0 .. out.n-1], in order
 *     while (machine_has_more(m)) { ev.kind = EVENT_TICK; machine_step(...); }
 *     poll until machine_next_us(m), or the next message
 *     machine_close(m);
 *
 * No socket, clock, thread, randomness or allocation inside: the same object code runs in the broker,
 * in the tests, in the simulator and in the fuzzer. One thread.
 *
 * Words. An *item* is one image (or none) and 1..64 questions. A *peer* is a number the loop gives to
 * one connection and never uses again. A *payload* is a number for bytes the loop keeps (image,
 * request, result, tokens); 0 means none. A payload that came with an event belongs to the machine
 * until one action names it: RELEASE, or SEND_TOKENS which is also its release.
 *
 * Durability. A transition that must survive is announced by COMMIT(token, record). What may only be
 * said afterwards (ACCEPTED, WORK, RESULT, ...) is held back until EVENT_COMMITTED(token) comes in.
 * Tokens rise by one; committing a token commits every earlier one. */
#ifndef BROKER_ITEM_MACHINE_H
#define BROKER_ITEM_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define ITEM_ID_BYTES      16
#define ITEM_DIGEST_BYTES  16
#define IMAGE_DIGEST_BYTES 32
#define FINGERPRINT_BYTES  32
#define ITEM_QUESTIONS_MAX 64
#define ITEM_CRASHES_MAX   10 /* as many as a row remembers; the limits may not ask for more */
#define ACTIONS_MIN        16 /* room a caller must offer */

typedef struct {
    unsigned char bytes[ITEM_ID_BYTES];
} item_ident;

typedef struct {
    unsigned char bytes[ITEM_DIGEST_BYTES];
} item_digest;

/* What decides an image's features: its bytes and how they are to be read. The loop has checked that
 * the payload really has this digest; items with equal keys share one payload and one encoding. */
typedef struct {
    unsigned char digest[IMAGE_DIGEST_BYTES];
    unsigned char flags;
} image_key;

typedef struct {
    unsigned char bytes[FINGERPRINT_BYTES]; /* all zero: does not know or does not care */
} fingerprint;

typedef enum {
    ITEM_NONE,             /* unknown */
    ITEM_ACCEPTED,         /* taken, its acceptance is not yet durable */
    ITEM_WAITING_FEATURES, /* wants a vision node, or waits for another item's encoding */
    ITEM_ENCODING,         /* leased to a vision node */
    ITEM_READY,            /* wants an lm node */
    ITEM_GENERATING,       /* leased to an lm node */
    ITEM_DONE,
    ITEM_FAILED, /* code QUARANTINED among others */
    ITEM_CANCELLED,
    ITEM_EXPIRED,
    ITEM_DELIVERED, /* the client has it; only a tombstone is left */
    ITEM_STATE_COUNT
} item_state;

const char *item_state_name(item_state state); /* static, lower case */
static inline bool item_state_is_final(item_state s) { return s >= ITEM_DONE; }

typedef enum { STAGE_VISION, STAGE_LM, STAGE_COUNT } item_stage;

enum { ROLE_VISION = 1, ROLE_LM = 2 }; /* a node may have both */

/* --- what comes in --------------------------------------------------------------------------- */

typedef enum {
    EVENT_TICK,      /* only the time */
    EVENT_COMMITTED, /* committed: the journal has everything up to this token */
    EVENT_DRAIN,     /* stop accepting; ACTION_DRAINED when nothing is left */
    /* from clients */
    EVENT_CLIENT_HELLO, /* client_hello */
    EVENT_CLIENT_BEAT,  /* still there */
    EVENT_CLIENT_GONE,  /* the connection is gone */
    EVENT_SUBMIT,       /* id, submit */
    EVENT_QUERY,        /* id, query: what has become of it? */
    EVENT_CANCEL,       /* id */
    EVENT_DELIVERED,    /* id: the client has the result where it wants it */
    /* from nodes */
    EVENT_NODE_HELLO,       /* node_hello */
    EVENT_NODE_BEAT,        /* still there */
    EVENT_NODE_CREDIT,      /* credit */
    EVENT_NODE_DRAIN,       /* no new work, finishes what it has */
    EVENT_NODE_BYE,         /* leaves; gives back what it has */
    EVENT_NODE_GONE,        /* the connection is gone */
    EVENT_PROGRESS,         /* id, attempt, progress: renews the lease when progress has grown */
    EVENT_ENCODED,          /* id, attempt, encoded, payload (a report, kept for the result, or 0) */
    EVENT_TOKENS,           /* id, attempt, payload */
    EVENT_RESULT,           /* id, attempt, payload */
    EVENT_FAILED,           /* id, attempt, failed, payload (a text for the result, or 0) */
    EVENT_FEATURES_MISSING, /* id, attempt: the cache did not have them, or not intact */
    EVENT_RELEASED,         /* id, attempt: handed back unfinished (busy, draining, stopped, unknown) */
    EVENT_CRASH,            /* id, attempt (0: not known), crash: an engine died with it in hand */
    EVENT_KIND_COUNT
} event_kind;

typedef struct {
    event_kind kind;
    uint64_t peer;
    item_ident id;
    uint32_t attempt;
    uint32_t payload_bytes; /* of payload */
    uint64_t payload;       /* ENCODED, TOKENS, RESULT, FAILED */
    union {
        uint64_t committed;
        uint32_t progress;
        struct {
            uint64_t tenant;
        } client_hello;
        struct {
            item_digest digest; /* of everything that decides the answer */
            bool has_image;
            bool features_known; /* the loop has seen them in the cache: skip the vision stage */
            image_key image;
            uint64_t image_payload;
            uint32_t image_bytes;
            uint64_t request_payload;
            uint32_t request_bytes;
            uint32_t n_questions;
            uint8_t priority;    /* lower first */
            int64_t deadline_us; /* same clock as now_us; 0: none */
            uint64_t cost;       /* estimated language work, any unit, at least 1 */
        } submit;
        struct {
            item_digest digest;
        } query;
        struct {
            uint64_t node;        /* who it is, the same after a restart */
            uint64_t incarnation; /* random at process start */
            uint32_t roles;
            fingerprint tower, model; /* model is ignored for nodes without ROLE_LM */
            uint32_t credit_items;    /* capacity, not what is left */
            uint64_t credit_bytes;
        } node_hello;
        struct {
            uint32_t items; /* capacity, not what is left; 0 pauses */
            uint64_t bytes;
        } credit;
        struct {
            uint64_t features; /* a payload handed over because the cache is away, 0: in the cache */
            uint32_t features_bytes;
        } encoded;
        struct {
            status code;
            bool is_permanent; /* trying again cannot help */
        } failed;
        struct {
            uint64_t incarnation; /* of the engine that died */
            bool is_strong;       /* a signal that points at the work, not at the machine */
        } crash;
    };
} event;

/* --- what goes out --------------------------------------------------------------------------- */

/* One durable transition, complete enough for a journal shared by several brokers: the writer states
 * what it believed (from, attempt) and what shall be (to). */
typedef struct {
    uint64_t nonce; /* one for each call; equal to the token here */
    item_ident id;
    item_digest digest;
    item_state from, to;
    uint32_t attempt;
    status code;          /* of a final state */
    uint64_t node;        /* CLAIM and CRASH: who */
    uint64_t incarnation; /* CLAIM and CRASH: of what */
    uint8_t rule;         /* which row of the table in PROTOCOL.md, a machine_rule */
} machine_record;

typedef enum {
    ACTION_COMMIT,         /* token, record */
    ACTION_RELEASE,        /* payload is no longer needed */
    ACTION_DRAINED,        /* nothing is left to wait for */
    ACTION_SEND_WHO,       /* peer: say hello first (both sides) */
    ACTION_SEND_WELCOME,   /* peer, session, is_resumed (both sides) */
    ACTION_SEND_REFUSED,   /* peer, id, code: CONFLICT, BAD_ARGUMENT, MODEL_MISMATCH, BUSY (no room) */
    /* to clients */
    ACTION_SEND_ACCEPTED, /* peer, id */
    ACTION_SEND_BUSY,     /* peer, id, retry_ms: not taken */
    ACTION_SEND_STATE,    /* peer, id, state, code: answer to QUERY, CANCEL and repeated SUBMIT */
    ACTION_SEND_RESULT,   /* peer, id, attempt, state, code, payload, result (payloads stay here) */
    ACTION_SEND_TOKENS,   /* peer, id, attempt, payload (released by being sent) */
    /* to nodes */
    ACTION_SEND_WORK,      /* peer, session, id, attempt, stage, lease_us, image, payloads */
    ACTION_SEND_STOP,      /* peer, id, attempt: not wanted any more; answer RELEASED */
    ACTION_SEND_TAKEN,     /* peer, id, attempt: what you said about it is recorded; forget it */
    ACTION_SEND_CRASH_TAKEN, /* peer, id, attempt, incarnation: your crash report is recorded */
    ACTION_SEND_PING,      /* peer: silent for a while; any answer will do */
    ACTION_KIND_COUNT
} action_kind;

typedef struct {
    action_kind kind;
    uint64_t peer;
    item_ident id;
    uint32_t attempt;
    item_state state;
    status code;
    uint64_t payload; /* RELEASE, RESULT, TOKENS; WORK: the request */
    union {
        struct {
            uint64_t token;
            machine_record record;
        } commit;
        uint32_t retry_ms;
        uint64_t incarnation;
        struct {
            uint64_t report_payload; /* what ENCODED brought, or 0 */
            int64_t queue_us;        /* spent waiting for nodes */
            int64_t total_us;        /* accepted to finished */
        } result;
        struct {
            uint64_t session; /* WORK repeats it; a node ignores work of another session */
            bool is_resumed;  /* the node's leases live on; otherwise it drops unfinished work */
        } welcome;
        struct {
            uint64_t session;
            item_stage stage;
            int64_t lease_us; /* report progress more often than this */
            bool has_image;
            image_key image;
            uint64_t image_payload; /* vision stage only */
            uint64_t features_payload; /* lm stage: the features themselves, 0: in the cache */
            bool is_again;          /* features were missing or broken: do not trust the cache */
            uint32_t n_questions;
        } work;
    };
} action;

typedef struct {
    action *rows;
    size_t n_max; /* at least ACTIONS_MIN */
    size_t n;
} actions;

/* --- limits and numbers ---------------------------------------------------------------------- */

typedef struct {
    uint32_t n_items_max;      /* rows, finished ones included until they are delivered */
    uint64_t bytes_max;        /* image, request and result bytes kept */
    uint64_t features_bytes_max; /* of features handed over while the cache is away; one always fits */
    uint32_t n_clients_max;
    uint32_t client_items_max; /* one client's undelivered rows */
    uint64_t client_bytes_max;
    uint32_t n_nodes_max;
    uint32_t n_grants_max;     /* attempts in the hands of nodes, all together */
    uint32_t n_images_max;     /* image keys remembered, in use or believed encoded; >= n_items_max */
    uint32_t n_tombstones_max;
    uint32_t n_tenants;        /* fair-share accounts; tenants beyond it share one by hash */
    int64_t heartbeat_us;      /* H: silence of 3 H is the end of a node */
    int64_t lease_us;          /* T >= 4 H: without progress that long, the work goes elsewhere */
    int64_t attempt_us;        /* longest attempt, progress or not */
    int64_t client_silence_us;
    int64_t retention_us;      /* undelivered results are kept this long */
    int64_t backoff_us, backoff_max_us;
    int64_t affinity_wait_us;  /* how long an item waits for the node that has its image's prefix */
    uint32_t tries_max;        /* retryable failures; 5 */
    uint32_t regressions_max;  /* features missing; 5 */
    uint32_t expiries_max;     /* leases lost without blame, then TIMEOUT; 20 */
    uint32_t crashes_strong_max; /* K; 3 */
    uint32_t crashes_max;        /* strong and weak; 10, at most ITEM_CRASHES_MAX */
} machine_limits;

/* Room for 16,384 items and 1 GiB, H = 1 s. */
machine_limits machine_limits_default(void);

/* accepted == done + failed + cancelled + expired + in_flight, after every step. */
typedef struct {
    uint64_t accepted, done, failed, cancelled, expired, in_flight;
    uint64_t delivered, dropped;            /* rows gone: acknowledged, or past retention */
    uint64_t duplicates, conflicts, busy;   /* answers to SUBMIT other than ACCEPTED */
    uint64_t encodes, generates;            /* WORK handed out */
    uint64_t shared;                        /* items that did not need an encoding of their own */
    uint64_t handed_over;                   /* ENCODED that brought the features along */
    uint64_t retries, releases, lease_expiries, regressions;
    uint64_t crashes, quarantined, nodes_lost, tokens_stale, late_results;
    uint64_t ignored;                       /* "anything else" */
    uint64_t bytes;                         /* kept now, without features */
    uint64_t features_bytes;                /* handed over and kept now */
    uint32_t queued[STAGE_COUNT], leased[STAGE_COUNT], waiting; /* now; waiting: for others' encoding */
    uint32_t n_rows, n_clients, n_nodes, n_images;
} machine_counts;

/* One node as `mipha status` shows it. */
typedef struct {
    uint64_t peer, node, incarnation;
    uint32_t roles, items, items_max;
    uint64_t bytes, bytes_max, n_done;
    int64_t heard_us;
    bool is_draining;
} machine_node_view;

typedef struct item_machine item_machine;

/* All memory is taken here. Errors: BAD_ARGUMENT (a limit, by name), NO_MEMORY. */
MUST_USE status machine_open(item_machine **m, const machine_limits *limits, err *e);
void machine_close(item_machine *m); /* NULL is fine; payloads are the loop's to free */

/* One event. now_us never goes back. out is emptied first. Cost: O(log n) for the event, and for
 * each follow-up that fits into out; what does not fit waits for the next call (machine_has_more). */
void machine_step(item_machine *m, const event *e, int64_t now_us, actions *out);
bool machine_has_more(const item_machine *m);
int64_t machine_next_us(const item_machine *m); /* INT64_MAX: nothing is due */

const machine_counts *machine_numbers(item_machine *m);
bool machine_node_at(const item_machine *m, uint32_t idx, machine_node_view *view); /* false: no such */
const fingerprint *machine_model(const item_machine *m); /* all zero before the first lm node */
const fingerprint *machine_tower(const item_machine *m);

/* Conservation and the agreement of every list with every counter; walks everything, for tests and
 * simulator. CHECK fails when something is off. */
void machine_audit(const item_machine *m);

#ifdef MIPHA_MUTANTS
#define MACHINE_MUTANTS 19
/* Switches one seeded mistake on (1 .. MACHINE_MUTANTS), 0: none. Exists only in the library the
 * mutants test is linked with. */
void machine_set_mutant(item_machine *m, int mutant);
const char *machine_mutant_name(int mutant);
#endif

#endif
