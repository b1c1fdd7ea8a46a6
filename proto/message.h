/* The envelope every message travels in, as a checked C struct.
 *
 *     message m = {.kind = MESSAGE_CANCEL, .item_id = id};
 *     st = wire_send(socket, NULL, &m, NULL);
 *
 *     message_in in;
 *     st = message_decode(&in, data, n, &e);       // BAD_MESSAGE names the field
 *     use(in.m.item_id);  message_in_clear(&in);
 *
 * One flat struct for all kinds: a table in message.c says which fields each kind must carry, and
 * message_decode refuses a message that lacks one or breaks a limit. Views in a decoded message live
 * until message_in_clear. Any thread. */
#ifndef PROTO_MESSAGE_H
#define PROTO_MESSAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/hash.h"

#define MESSAGE_VERSION         1
#define MESSAGE_ENVELOPE_BYTES_MAX (4u << 20)
#define MESSAGE_IMAGE_BYTES_MAX    (64u << 20)
#define MESSAGE_IMAGES_MAX      16 /* of one item, MESSAGE_IMAGE_BYTES_MAX together */
#define MESSAGE_QUESTIONS_MAX   64
#define MESSAGE_TURNS_MAX       64 /* before a question */
#define MESSAGE_PROMPT_BYTES_MAX   8192
#define MESSAGE_STOP_MAX        4
#define MESSAGE_STOP_BYTES_MAX  256
#define MESSAGE_LOGPROBS_MAX    20
#define MESSAGE_NEW_TOKENS_MAX  4096
#define MESSAGE_NAME_BYTES_MAX  64
#define MESSAGE_TEXT_BYTES_MAX  512
#define MESSAGE_LEASES_MAX      1024
#define MESSAGE_ITEM_ID_BYTES   16
#define MESSAGE_DIGEST_BYTES    16

/*    name               number direction            fields that must be there (MESSAGE_NEEDS_*) */
#define MESSAGE_KINDS(X)                                                                           \
    X(HELLO,             1, "client to broker",      NAME)                                         \
    X(WELCOME,           2, "broker to anyone",      HEARTBEAT)                                    \
    X(REFUSED,           3, "broker to anyone",      CODE)                                         \
    X(SUBMIT,            4, "client to broker",      ITEM | DIGEST | QUESTIONS | BODY)             \
    X(ACCEPTED,          5, "broker to client",      ITEM)                                         \
    X(BUSY,              6, "broker to client",      ITEM)                                         \
    X(TOKENS,            7, "lm node to client",     ITEM | ATTEMPT | BODY)                        \
    X(RESULT,            8, "broker to client",      ITEM)                                         \
    X(RESULT_ACK,        9, "client to broker",      ITEM)                                         \
    X(CANCEL,           10, "client to broker",      ITEM)                                         \
    X(STATUS_ASK,       11, "client to broker",      NOTHING)                                      \
    X(STATUS,           12, "broker to client",      BODY)                                         \
    X(PING,             13, "anyone to broker",      NOTHING)                                      \
    X(PONG,             14, "broker to anyone",      NOTHING)                                      \
    X(BYE,              15, "anyone to broker",      NOTHING)                                      \
    X(NODE_HELLO,       16, "node to broker",        NAME | ROLE | INCARNATION)                    \
    X(CREDIT,           17, "node to broker",        NOTHING)                                      \
    X(ENCODE,           18, "broker to vision node", ITEM | ATTEMPT | IMAGE)                       \
    X(ENCODED,          19, "vision node to broker", ITEM | ATTEMPT)                               \
    X(GENERATE,         20, "broker to lm node",     ITEM | ATTEMPT | BODY)                        \
    X(GENERATED,        21, "lm node to broker",     ITEM | ATTEMPT | BODY)                        \
    X(FEATURES_MISSING, 22, "lm node to broker",     ITEM | ATTEMPT)                               \
    X(FAILED,           23, "node to broker",        ITEM | ATTEMPT | CODE)                        \
    X(RELEASE,          24, "node to broker",        ITEM | ATTEMPT)                               \
    X(COMMITTED,        25, "broker to node",        ITEM | ATTEMPT)                               \
    X(STOP,             26, "broker to node",        ITEM | ATTEMPT)                               \
    X(HEARTBEAT,        27, "node to broker",        NOTHING)                                      \
    X(CRASHED,          28, "node to broker",        ITEM | INCARNATION)                           \
    X(CRASH_NOTED,      29, "broker to node",        ITEM | INCARNATION)                           \
    X(WHO,              30, "broker to anyone",      NOTHING)

typedef enum {
#define X(name, number, direction, needs) MESSAGE_##name = number,
    MESSAGE_KINDS(X)
#undef X
} message_kind;

const char *message_kind_name(int kind); /* "SUBMIT"; "unknown" for any other number */

enum {
    MESSAGE_FLAG_EXIF = 1,      /* apply the EXIF orientation; part of the image's identity */
    MESSAGE_FLAG_STREAM = 2,    /* send TOKENS while generating */
    MESSAGE_FLAG_IMAGE = 4,     /* the item has an image */
    MESSAGE_FLAG_REENCODE = 8,  /* ENCODE: the features were missing or broken, do not trust the cache */
    MESSAGE_FLAG_RETRYABLE = 16, /* FAILED: another attempt may do better */
    MESSAGE_FLAG_BUNDLE = 32    /* the item has several images, and its payload is a bundle (proto/bundle.h) of
                                 * them; part of the image's identity */
};

/* What tells images of equal bytes apart. */
#define MESSAGE_FLAGS_OF_IMAGE (MESSAGE_FLAG_EXIF | MESSAGE_FLAG_BUNDLE)

enum { MESSAGE_ROLE_VISION = 1, MESSAGE_ROLE_LM = 2 };

typedef struct {
    unsigned char bytes[MESSAGE_ITEM_ID_BYTES];
} item_id;

typedef struct {
    item_id item;
    uint32_t attempt;
    uint32_t progress; /* grows while the node works on it */
} message_lease;

typedef struct {
    message_kind kind;
    bool has_item;
    item_id item;
    bool has_digest;
    unsigned char request_digest[MESSAGE_DIGEST_BYTES];
    bool has_image; /* image_sha256 is set */
    unsigned char image_sha256[HASH_SHA256_BYTES];
    bool has_fingerprints;
    unsigned char model_fingerprint[HASH_SHA256_BYTES];
    unsigned char tower_fingerprint[HASH_SHA256_BYTES];
    uint32_t flags, attempt, code, role, n_questions, cost, retry_ms, slots, question_idx, token_idx,
        signal, heartbeat_ms;
    int32_t priority;
    uint64_t incarnation, deadline_ms, slot_bytes, queue_us, total_us;
    const char *text; /* never NULL after decode; NULL is sent as empty */
    const char *name;
    const message_lease *leases;
    size_t n_leases;
    bytes body;
    bytes report;
} message;

/* A decoded message and the memory its views point into. */
typedef struct {
    message m;
    void *memory;
    size_t used_bytes, size_bytes;
} message_in;

/* Upper bound of the encoded size; message_encode writes at most this and returns the bytes written. */
size_t message_encoded_bytes(const message *m);
size_t message_encode(const message *m, unsigned char *out);

/* Errors: BAD_MESSAGE naming the field, NO_MEMORY. On failure in holds nothing. */
MUST_USE status message_decode(message_in *in, const unsigned char *data, size_t len_bytes, err *e);
void message_in_clear(message_in *in); /* zeroed and repeated calls are fine */

/* 32 hex digits and a zero byte, for logs. */
#define ITEM_ID_TEXT_BYTES (2 * MESSAGE_ITEM_ID_BYTES + 1)
const char *item_id_text(char out[ITEM_ID_TEXT_BYTES], const item_id *id);

#endif
