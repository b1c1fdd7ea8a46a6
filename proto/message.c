/* The envelope: one flat message, one table of what each kind must carry.
 *
 * A struct per kind was the alternative. It would have made twenty-nine encoders and decoders that
 * differ in which of the same thirty fields they copy; the table says the same in twenty-nine lines. */
#include "proto/message.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/decode_memory.h"
#include "proto/generated/inference.pb-c.h"

enum {
    NEEDS_NOTHING = 0,
    NEEDS_ITEM = 1 << 0,
    NEEDS_DIGEST = 1 << 1,
    NEEDS_IMAGE = 1 << 2,
    NEEDS_ATTEMPT = 1 << 3,
    NEEDS_INCARNATION = 1 << 4,
    NEEDS_CODE = 1 << 5,
    NEEDS_NAME = 1 << 6,
    NEEDS_ROLE = 1 << 7,
    NEEDS_QUESTIONS = 1 << 8,
    NEEDS_BODY = 1 << 9,
    NEEDS_HEARTBEAT = 1 << 10
};

#define NOTHING     NEEDS_NOTHING
#define ITEM        NEEDS_ITEM
#define DIGEST      NEEDS_DIGEST
#define IMAGE       NEEDS_IMAGE
#define ATTEMPT     NEEDS_ATTEMPT
#define INCARNATION NEEDS_INCARNATION
#define CODE        NEEDS_CODE
#define NAME        NEEDS_NAME
#define ROLE        NEEDS_ROLE
#define QUESTIONS   NEEDS_QUESTIONS
#define BODY        NEEDS_BODY
#define HEARTBEAT   NEEDS_HEARTBEAT

static const struct {
    const char *name;
    unsigned needs;
} kinds[] = {
#define X(name, number, direction, needs) [number] = {#name, needs},
    MESSAGE_KINDS(X)
#undef X
};

#define N_KINDS (sizeof kinds / sizeof *kinds)

const char *message_kind_name(int kind) {
    if (kind <= 0 || (size_t)kind >= N_KINDS) return "unknown";
    return kinds[kind].name;
}

const char *item_id_text(char out[ITEM_ID_TEXT_BYTES], const item_id *id) {
    hash_hex(out, id->bytes, sizeof id->bytes);
    return out;
}

/* ---- encoding ------------------------------------------------------------------------------- */

static ProtobufCBinaryData view(const void *data, size_t len_bytes) {
    /* protobuf-c only reads through this pointer while packing. */
    return (ProtobufCBinaryData){.len = len_bytes, .data = (uint8_t *)(uintptr_t)data};
}

static char *text_or_empty(const char *text) { return (char *)(uintptr_t)(text ? text : ""); }

/* Fills e with views of m; the leases need arrays of their own, given by the caller. */
static void envelope_of(Mipha__Envelope *e, const message *m, Mipha__Lease *leases,
                        Mipha__Lease **lease_pointers) {
    mipha__envelope__init(e);
    e->kind = (uint32_t)m->kind;
    if (m->has_item) e->item_id = view(m->item.bytes, sizeof m->item.bytes);
    if (m->has_digest) e->request_digest = view(m->request_digest, sizeof m->request_digest);
    if (m->has_image) e->image_sha256 = view(m->image_sha256, sizeof m->image_sha256);
    if (m->has_fingerprints) {
        e->model_fingerprint = view(m->model_fingerprint, sizeof m->model_fingerprint);
        e->tower_fingerprint = view(m->tower_fingerprint, sizeof m->tower_fingerprint);
    }
    e->flags = m->flags;
    e->attempt = m->attempt;
    e->incarnation = m->incarnation;
    e->code = m->code;
    e->text = text_or_empty(m->text);
    e->name = text_or_empty(m->name);
    e->role = m->role;
    e->n_questions = m->n_questions;
    e->cost = m->cost;
    e->priority = m->priority;
    e->deadline_ms = m->deadline_ms;
    e->retry_ms = m->retry_ms;
    e->slots = m->slots;
    e->slot_bytes = m->slot_bytes;
    e->question_idx = m->question_idx;
    e->token_idx = m->token_idx;
    e->signal = m->signal;
    e->queue_us = m->queue_us;
    e->total_us = m->total_us;
    e->heartbeat_ms = m->heartbeat_ms;
    e->body = view(m->body.data, m->body.len_bytes);
    e->report = view(m->report.data, m->report.len_bytes);

    CHECK(m->n_leases <= MESSAGE_LEASES_MAX, "a message names at most MESSAGE_LEASES_MAX leases");
    for (size_t i = 0; i < m->n_leases; i++) {
        mipha__lease__init(&leases[i]);
        leases[i].item_id = view(m->leases[i].item.bytes, MESSAGE_ITEM_ID_BYTES);
        leases[i].attempt = m->leases[i].attempt;
        leases[i].progress = m->leases[i].progress;
        lease_pointers[i] = &leases[i];
    }
    e->n_leases = m->n_leases;
    e->leases = lease_pointers;
}

size_t message_encoded_bytes(const message *m) {
    size_t text_bytes = (m->text ? strlen(m->text) : 0) + (m->name ? strlen(m->name) : 0);
    /* 29 fields of at most 12 bytes of tag and number, the fixed digests, the leases (id, numbers and
     * their tags are under 40 bytes each) and the two bodies. */
    return 29 * 12 + 160 + text_bytes + 40 * m->n_leases + m->body.len_bytes + m->report.len_bytes;
}

size_t message_encode(const message *m, unsigned char *out) {
    Mipha__Envelope e;
    Mipha__Lease leases[MESSAGE_LEASES_MAX];
    Mipha__Lease *lease_pointers[MESSAGE_LEASES_MAX];
    envelope_of(&e, m, leases, lease_pointers);
    size_t written = mipha__envelope__pack(&e, out);
    CHECK(written <= message_encoded_bytes(m), "message_encoded_bytes is an upper bound");
    return written;
}

/* ---- decoding ------------------------------------------------------------------------------- */

/* Copies a digest of exactly want bytes; an absent one is not an error here. */
static status take_digest(unsigned char *out, bool *has, ProtobufCBinaryData from, size_t want,
                          const char *field, err *e) {
    *has = from.len != 0;
    if (!*has) return STATUS_OK;
    if (from.len != want)
        return fail(e, STATUS_BAD_MESSAGE, "message: %s has %zu bytes, needs %zu", field, from.len,
                    want);
    memcpy(out, from.data, want);
    return STATUS_OK;
}

static status take_text(const char **out, const char *from, size_t max, const char *field, err *e) {
    size_t n = strlen(from);
    if (n > max)
        return fail(e, STATUS_BAD_MESSAGE, "message: %s has %zu bytes, limit %zu", field, n, max);
    *out = from;
    return STATUS_OK;
}

static status take_leases(message *m, const Mipha__Envelope *p, decode_memory *memory, err *e) {
    if (p->n_leases == 0) return STATUS_OK;
    if (p->n_leases > MESSAGE_LEASES_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "message: %zu leases, limit %d", p->n_leases,
                    MESSAGE_LEASES_MAX);
    message_lease *leases = decode_memory_alloc(memory, p->n_leases * sizeof *leases);
    if (!leases) return fail(e, STATUS_NO_MEMORY, "message: no memory for leases");
    for (size_t i = 0; i < p->n_leases; i++) {
        if (p->leases[i]->item_id.len != MESSAGE_ITEM_ID_BYTES)
            return fail(e, STATUS_BAD_MESSAGE, "message: lease %zu has an item id of %zu bytes", i,
                        p->leases[i]->item_id.len);
        memcpy(leases[i].item.bytes, p->leases[i]->item_id.data, MESSAGE_ITEM_ID_BYTES);
        leases[i].attempt = p->leases[i]->attempt;
        leases[i].progress = p->leases[i]->progress;
    }
    m->leases = leases;
    m->n_leases = p->n_leases;
    return STATUS_OK;
}

static status check_needs(const message *m, err *e) {
    unsigned needs = kinds[m->kind].needs;
    const char *lacks = NULL;
    if ((needs & ITEM) && !m->has_item) lacks = "item_id";
    if ((needs & DIGEST) && !m->has_digest) lacks = "request_digest";
    if ((needs & IMAGE) && !m->has_image) lacks = "image_sha256";
    if ((needs & ATTEMPT) && m->attempt == 0) lacks = "attempt";
    if ((needs & INCARNATION) && m->incarnation == 0) lacks = "incarnation";
    if ((needs & CODE) && m->code == 0) lacks = "code";
    if ((needs & NAME) && m->name[0] == '\0') lacks = "name";
    if ((needs & ROLE) && m->role == 0) lacks = "role";
    if ((needs & QUESTIONS) && m->n_questions == 0) lacks = "n_questions";
    if ((needs & BODY) && m->body.len_bytes == 0) lacks = "body";
    if ((needs & HEARTBEAT) && m->heartbeat_ms == 0) lacks = "heartbeat_ms";
    if (lacks)
        return fail(e, STATUS_BAD_MESSAGE, "message %s: %s is missing",
                    message_kind_name((int)m->kind), lacks);
    if (m->n_questions > MESSAGE_QUESTIONS_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "message %s: %u questions, limit %d",
                    message_kind_name((int)m->kind), m->n_questions, MESSAGE_QUESTIONS_MAX);
    if (m->role & ~(uint32_t)(MESSAGE_ROLE_VISION | MESSAGE_ROLE_LM))
        return fail(e, STATUS_BAD_MESSAGE, "message: role %u, known are 1, 2 and 3", m->role);
    if ((m->flags & MESSAGE_FLAG_IMAGE) && !m->has_image)
        return fail(e, STATUS_BAD_MESSAGE, "message %s: has an image but no image_sha256",
                    message_kind_name((int)m->kind));
    if ((m->flags & MESSAGE_FLAG_BUNDLE) && !(m->flags & MESSAGE_FLAG_IMAGE))
        return fail(e, STATUS_BAD_MESSAGE, "message %s: has several images but no image",
                    message_kind_name((int)m->kind));
    return STATUS_OK;
}

static status take_envelope(message *m, const Mipha__Envelope *p, decode_memory *memory, err *e) {
    if (p->kind == 0 || p->kind >= N_KINDS)
        return fail(e, STATUS_BAD_MESSAGE, "message: kind %u is not known", p->kind);
    m->kind = (message_kind)p->kind;

    bool has_tower;
    status st = take_digest(m->item.bytes, &m->has_item, p->item_id, MESSAGE_ITEM_ID_BYTES,
                            "item_id", e);
    if (st == STATUS_OK)
        st = take_digest(m->request_digest, &m->has_digest, p->request_digest, MESSAGE_DIGEST_BYTES,
                         "request_digest", e);
    if (st == STATUS_OK)
        st = take_digest(m->image_sha256, &m->has_image, p->image_sha256, HASH_SHA256_BYTES,
                         "image_sha256", e);
    if (st == STATUS_OK)
        st = take_digest(m->model_fingerprint, &m->has_fingerprints, p->model_fingerprint,
                         HASH_SHA256_BYTES, "model_fingerprint", e);
    if (st == STATUS_OK)
        st = take_digest(m->tower_fingerprint, &has_tower, p->tower_fingerprint, HASH_SHA256_BYTES,
                         "tower_fingerprint", e);
    if (st == STATUS_OK && has_tower != m->has_fingerprints)
        st = fail(e, STATUS_BAD_MESSAGE, "message: one fingerprint without the other");
    if (st == STATUS_OK) st = take_text(&m->text, p->text, MESSAGE_TEXT_BYTES_MAX, "text", e);
    if (st == STATUS_OK) st = take_text(&m->name, p->name, MESSAGE_NAME_BYTES_MAX, "name", e);
    if (st == STATUS_OK) st = take_leases(m, p, memory, e);
    if (st != STATUS_OK) return st;

    m->flags = p->flags;
    m->attempt = p->attempt;
    m->incarnation = p->incarnation;
    m->code = p->code;
    m->role = p->role;
    m->n_questions = p->n_questions;
    m->cost = p->cost;
    m->priority = p->priority;
    m->deadline_ms = p->deadline_ms;
    m->retry_ms = p->retry_ms;
    m->slots = p->slots;
    m->slot_bytes = p->slot_bytes;
    m->question_idx = p->question_idx;
    m->token_idx = p->token_idx;
    m->signal = p->signal;
    m->queue_us = p->queue_us;
    m->total_us = p->total_us;
    m->heartbeat_ms = p->heartbeat_ms;
    m->body = (bytes){p->body.data, p->body.len};
    m->report = (bytes){p->report.data, p->report.len};
    return check_needs(m, e);
}

status message_decode(message_in *in, const unsigned char *data, size_t len_bytes, err *e) {
    *in = (message_in){0};
    if (len_bytes > MESSAGE_ENVELOPE_BYTES_MAX)
        return fail(e, STATUS_BAD_MESSAGE, "message: envelope of %zu bytes, limit %u", len_bytes,
                    MESSAGE_ENVELOPE_BYTES_MAX);
    decode_memory memory;
    if (!decode_memory_open(&memory, len_bytes, 4 * (size_t)MESSAGE_ENVELOPE_BYTES_MAX))
        return fail(e, STATUS_NO_MEMORY, "message: no memory to read %zu bytes", len_bytes);
    ProtobufCAllocator allocator = decode_memory_allocator(&memory);
    Mipha__Envelope *p = mipha__envelope__unpack(&allocator, len_bytes, data);
    status st = p ? take_envelope(&in->m, p, &memory, e)
                  : fail(e, STATUS_BAD_MESSAGE, "message: not a valid envelope");
    if (st != STATUS_OK) {
        free(memory.base);
        *in = (message_in){0};
        return st;
    }
    in->memory = memory.base;
    in->used_bytes = memory.used_bytes;
    in->size_bytes = memory.size_bytes;
    return STATUS_OK;
}

void message_in_clear(message_in *in) {
    free(in->memory);
    *in = (message_in){0};
}
