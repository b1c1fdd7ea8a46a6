/* The envelope: what is said is read, what is missing or too big is named, nothing crashes. Hostile bytes
 * are put together by hand, field by field, as protobuf lays them out. */
#include "tests/support/support.h"

#include <stdlib.h>
#include <string.h>

#include "proto/message.h"

#define HOSTILE_BYTES_MAX (8u << 20)

/* ---- making messages ------------------------------------------------------------------------- */

static message whole_message(message_kind kind) {
    static const message_lease leases[] = {{{{1, 2, 3}}, 4, 5}, {{{9}}, 1, 0}};
    message m = {.kind = kind, .has_item = true, .item = {{7, 8, 9}}, .has_digest = true,
                 .request_digest = {1, 1, 2}, .has_image = true, .image_sha256 = {4, 4},
                 .has_fingerprints = true, .model_fingerprint = {5}, .tower_fingerprint = {6},
                 .flags = MESSAGE_FLAG_EXIF | MESSAGE_FLAG_IMAGE, .attempt = 3, .code = 13,
                 .role = MESSAGE_ROLE_VISION | MESSAGE_ROLE_LM, .n_questions = 64, .cost = 4000000000u,
                 .retry_ms = 250, .slots = 16, .question_idx = 63, .token_idx = 4095, .signal = 11,
                 .heartbeat_ms = 1000, .priority = -5, .incarnation = UINT64_MAX, .deadline_ms = 1,
                 .slot_bytes = (uint64_t)1 << 40, .queue_us = 12, .total_us = 34, .text = "why not",
                 .name = "host:1", .leases = leases, .n_leases = 2,
                 .body = {(const unsigned char *)"body", 4}, .report = {(const unsigned char *)"report", 6}};
    return m;
}

static unsigned char *encode(const message *m, size_t *n) {
    unsigned char *data = malloc(message_encoded_bytes(m));
    assert_non_null(data);
    *n = message_encode(m, data);
    return data;
}

static status decode_message(const message *m, message_in *in, err *e) {
    size_t n;
    unsigned char *data = encode(m, &n);
    status st = message_decode(in, data, n, e);
    free(data);
    return st;
}

static void put_varint(buf *b, uint64_t v) {
    unsigned char byte;
    do {
        byte = (unsigned char)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        assert_int_equal(buf_append(b, &byte, 1), STATUS_OK);
        v >>= 7;
    } while (v);
}

static void put_number(buf *b, unsigned field, uint64_t v) {
    put_varint(b, field << 3);
    put_varint(b, v);
}

static void put_bytes(buf *b, unsigned field, const void *data, size_t n) {
    put_varint(b, field << 3 | 2);
    put_varint(b, n);
    assert_int_equal(buf_append(b, data, n), STATUS_OK);
}

/* Decodes what was put together; the text of the refusal must name what is wrong. */
static void assert_refused(const buf *b, const char *named) {
    message_in in;
    err e;
    assert_int_equal(message_decode(&in, b->data, b->len_bytes, &e), STATUS_BAD_MESSAGE);
    if (!strstr(e.text, named)) fail_msg("\"%s\" does not name %s", e.text, named);
    assert_null(in.memory);
}

/* ---- promises -------------------------------------------------------------------------------- */

static void every_kind_survives_the_wire_with_all_its_fields(void **state) {
    (void)state;
    for (int kind = MESSAGE_HELLO; strcmp(message_kind_name(kind), "unknown") != 0; kind++) {
        message m = whole_message((message_kind)kind);
        message_in in;
        err e;
        assert_int_equal(decode_message(&m, &in, &e), STATUS_OK);
        const message *r = &in.m;
        assert_int_equal(r->kind, kind);
        assert_memory_equal(&r->item, &m.item, sizeof m.item);
        assert_memory_equal(r->request_digest, m.request_digest, sizeof m.request_digest);
        assert_memory_equal(r->image_sha256, m.image_sha256, sizeof m.image_sha256);
        assert_memory_equal(r->model_fingerprint, m.model_fingerprint, sizeof m.model_fingerprint);
        assert_memory_equal(r->tower_fingerprint, m.tower_fingerprint, sizeof m.tower_fingerprint);
        assert_true(r->has_item && r->has_digest && r->has_image && r->has_fingerprints);
        const uint32_t want[] = {m.flags, m.attempt, m.code, m.role, m.n_questions, m.cost, m.retry_ms,
                                 m.slots, m.question_idx, m.token_idx, m.signal, m.heartbeat_ms};
        const uint32_t got[] = {r->flags, r->attempt, r->code, r->role, r->n_questions, r->cost,
                                r->retry_ms, r->slots, r->question_idx, r->token_idx, r->signal,
                                r->heartbeat_ms};
        assert_memory_equal(got, want, sizeof want);
        assert_int_equal(r->priority, m.priority);
        assert_true(r->incarnation == m.incarnation && r->deadline_ms == 1 && r->queue_us == 12 &&
                    r->total_us == 34 && r->slot_bytes == m.slot_bytes);
        assert_string_equal(r->text, "why not");
        assert_string_equal(r->name, "host:1");
        assert_int_equal(r->n_leases, 2);
        assert_memory_equal(&r->leases[0].item, &m.leases[0].item, sizeof m.leases[0].item);
        assert_int_equal(r->leases[0].attempt, 4);
        assert_int_equal(r->leases[0].progress, 5);
        assert_memory_equal(r->body.data, "body", 4);
        assert_memory_equal(r->report.data, "report", 6);
        message_in_clear(&in);
        message_in_clear(&in);
    }
}

static void an_empty_envelope_of_a_kind_without_needs_is_enough(void **state) {
    (void)state;
    message m = {.kind = MESSAGE_PING};
    message_in in;
    err e;
    assert_int_equal(decode_message(&m, &in, &e), STATUS_OK);
    assert_string_equal(in.m.text, "");
    assert_string_equal(in.m.name, "");
    assert_int_equal(in.m.n_leases, 0);
    message_in_clear(&in);
}

static void a_kind_that_lacks_a_needed_field_is_refused_by_its_name(void **state) {
    (void)state;
    static const struct {
        message_kind kind;
        const char *lacks;
    } cases[] = {{MESSAGE_HELLO, "name"},           {MESSAGE_WELCOME, "heartbeat_ms"},
                 {MESSAGE_REFUSED, "code"},         {MESSAGE_SUBMIT, "item_id"},
                 {MESSAGE_SUBMIT, "request_digest"}, {MESSAGE_SUBMIT, "n_questions"},
                 {MESSAGE_SUBMIT, "body"},          {MESSAGE_ENCODE, "image_sha256"},
                 {MESSAGE_ENCODE, "attempt"},       {MESSAGE_NODE_HELLO, "role"},
                 {MESSAGE_NODE_HELLO, "incarnation"}, {MESSAGE_STATUS, "body"},
                 {MESSAGE_RESULT_ACK, "item_id"},   {MESSAGE_FAILED, "code"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        message m = whole_message(cases[i].kind);
        const char *lacks = cases[i].lacks;
        m.flags = 0;
        if (strcmp(lacks, "name") == 0) m.name = NULL;
        if (strcmp(lacks, "heartbeat_ms") == 0) m.heartbeat_ms = 0;
        if (strcmp(lacks, "code") == 0) m.code = 0;
        if (strcmp(lacks, "item_id") == 0) m.has_item = false;
        if (strcmp(lacks, "request_digest") == 0) m.has_digest = false;
        if (strcmp(lacks, "n_questions") == 0) m.n_questions = 0;
        if (strcmp(lacks, "body") == 0) m.body = (bytes){0};
        if (strcmp(lacks, "image_sha256") == 0) m.has_image = false;
        if (strcmp(lacks, "attempt") == 0) m.attempt = 0;
        if (strcmp(lacks, "role") == 0) m.role = 0;
        if (strcmp(lacks, "incarnation") == 0) m.incarnation = 0;
        message_in in;
        err e;
        assert_int_equal(decode_message(&m, &in, &e), STATUS_BAD_MESSAGE);
        if (!strstr(e.text, lacks)) fail_msg("\"%s\" does not name %s", e.text, lacks);
        assert_non_null(strstr(e.text, message_kind_name((int)cases[i].kind)));
    }
}

static void fields_over_their_limits_are_refused_by_name(void **state) {
    (void)state;
    static char long_text[MESSAGE_TEXT_BYTES_MAX + 2];
    memset(long_text, 'x', sizeof long_text - 1);
    message_in in;
    err e;
    message m = {.kind = MESSAGE_PING, .text = long_text};
    assert_int_equal(decode_message(&m, &in, &e), STATUS_BAD_MESSAGE);
    m.text = long_text + 1;
    assert_int_equal(decode_message(&m, &in, &e), STATUS_OK);
    message_in_clear(&in);
    m = (message){.kind = MESSAGE_PING, .name = long_text + sizeof long_text - 2 - MESSAGE_NAME_BYTES_MAX};
    assert_int_equal(decode_message(&m, &in, &e), STATUS_BAD_MESSAGE);
    assert_non_null(strstr(e.text, "name"));
    m = (message){.kind = MESSAGE_PING, .n_questions = MESSAGE_QUESTIONS_MAX + 1};
    assert_int_equal(decode_message(&m, &in, &e), STATUS_BAD_MESSAGE);
    m = (message){.kind = MESSAGE_PING, .role = 4};
    assert_int_equal(decode_message(&m, &in, &e), STATUS_BAD_MESSAGE);
    assert_non_null(strstr(e.text, "role"));
    m = (message){.kind = MESSAGE_PING, .flags = MESSAGE_FLAG_IMAGE};
    assert_int_equal(decode_message(&m, &in, &e), STATUS_BAD_MESSAGE);
    assert_non_null(strstr(e.text, "image_sha256"));
    m = (message){.kind = MESSAGE_PING, .flags = MESSAGE_FLAG_BUNDLE};
    assert_int_equal(decode_message(&m, &in, &e), STATUS_BAD_MESSAGE);
    assert_non_null(strstr(e.text, "several images but no image"));
}

static void digests_of_another_length_are_refused(void **state) {
    (void)state;
    static const struct {
        unsigned field;
        size_t want;
        const char *name;
    } cases[] = {{2, 16, "item_id"}, {3, 16, "request_digest"}, {4, 32, "image_sha256"},
                 {12, 32, "model_fingerprint"}, {13, 32, "tower_fingerprint"}};
    unsigned char data[64] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t n = 1; n <= 64; n++) {
            if (n == cases[i].want) continue;
            buf b;
            buf_init(&b, 4096);
            put_number(&b, 1, MESSAGE_PING);
            put_bytes(&b, cases[i].field, data, n);
            assert_refused(&b, cases[i].name);
            buf_deinit(&b);
        }
    buf b;
    buf_init(&b, 4096);
    put_number(&b, 1, MESSAGE_PING);
    put_bytes(&b, 12, data, 32);
    assert_refused(&b, "fingerprint");
    buf_deinit(&b);
}

static void unknown_kinds_are_refused_and_unknown_fields_are_not(void **state) {
    (void)state;
    const uint64_t kinds[] = {0, 200, 4294967295u};
    for (size_t i = 0; i < 3; i++) {
        buf b;
        buf_init(&b, 64);
        if (kinds[i]) put_number(&b, 1, kinds[i]);
        put_number(&b, 9999, 1);
        assert_refused(&b, "kind");
        buf_deinit(&b);
    }
    buf b;
    buf_init(&b, 64);
    put_number(&b, 1, MESSAGE_PING);
    put_number(&b, 9999, 1);
    put_bytes(&b, 777, "later", 5);
    message_in in;
    err e;
    assert_int_equal(message_decode(&in, b.data, b.len_bytes, &e), STATUS_OK);
    message_in_clear(&in);
    buf_deinit(&b);
}

static void more_leases_than_the_limit_are_refused_whatever_their_form(void **state) {
    (void)state;
    message_in in;
    err e;
    message_lease leases[MESSAGE_LEASES_MAX] = {{{{1}}, 1, 1}};
    message m = {.kind = MESSAGE_HEARTBEAT, .leases = leases, .n_leases = MESSAGE_LEASES_MAX};
    assert_int_equal(decode_message(&m, &in, &e), STATUS_OK);
    message_in_clear(&in);

    unsigned char id[16] = {0};
    buf lease, b;
    buf_init(&lease, 64);
    put_bytes(&lease, 1, id, sizeof id);
    buf_init(&b, HOSTILE_BYTES_MAX);
    put_number(&b, 1, MESSAGE_HEARTBEAT);
    for (int i = 0; i <= MESSAGE_LEASES_MAX; i++) put_bytes(&b, 27, lease.data, lease.len_bytes);
    assert_refused(&b, "leases");
    buf_clear(&b);
    put_number(&b, 1, MESSAGE_HEARTBEAT);
    put_bytes(&b, 27, id, 0);
    assert_refused(&b, "lease");
    /* Two bytes each ask for a struct and a pointer: memory is bounded by the input, not by what it asks. */
    buf_clear(&b);
    put_number(&b, 1, MESSAGE_HEARTBEAT);
    while (b.len_bytes < MESSAGE_ENVELOPE_BYTES_MAX - 4) put_bytes(&b, 27, id, 0);
    assert_int_equal(message_decode(&in, b.data, b.len_bytes, &e), STATUS_BAD_MESSAGE);
    buf_deinit(&b);
    buf_deinit(&lease);
}

static void an_envelope_over_its_limit_is_refused_before_it_is_read(void **state) {
    (void)state;
    message_in in;
    err e;
    unsigned char *data = calloc(MESSAGE_ENVELOPE_BYTES_MAX + 1, 1);
    assert_non_null(data);
    assert_int_equal(message_decode(&in, data, MESSAGE_ENVELOPE_BYTES_MAX + 1, &e), STATUS_BAD_MESSAGE);
    assert_non_null(strstr(e.text, "limit"));
    free(data);
}

static void a_message_cut_or_changed_anywhere_is_read_or_refused_never_worse(void **state) {
    (void)state;
    message m = whole_message(MESSAGE_SUBMIT);
    size_t n;
    unsigned char *data = encode(&m, &n);
    for (size_t cut = 0; cut < n; cut++) {
        unsigned char *exact = malloc(cut ? cut : 1); /* a read past the end is seen by the sanitizer */
        assert_non_null(exact);
        memcpy(exact, data, cut);
        message_in in;
        err e;
        if (message_decode(&in, exact, cut, &e) == STATUS_OK) message_in_clear(&in);
        free(exact);
    }
    for (size_t at = 0; at < n; at++)
        for (int v = 0; v < 256; v++) {
            unsigned char before = data[at];
            data[at] = (unsigned char)v;
            message_in in;
            err e;
            if (message_decode(&in, data, n, &e) == STATUS_OK) message_in_clear(&in);
            data[at] = before;
        }
    free(data);
}

static void the_encoded_size_is_never_more_than_announced(void **state) {
    (void)state;
    message_lease leases[MESSAGE_LEASES_MAX];
    memset(leases, 0xff, sizeof leases);
    message m = whole_message(MESSAGE_SUBMIT);
    m.leases = leases;
    m.n_leases = MESSAGE_LEASES_MAX;
    m.flags = m.attempt = m.code = m.cost = m.retry_ms = m.slots = m.question_idx = m.token_idx = UINT32_MAX;
    m.priority = INT32_MIN;
    m.incarnation = m.deadline_ms = m.slot_bytes = m.queue_us = m.total_us = UINT64_MAX;
    size_t n;
    unsigned char *data = encode(&m, &n);
    assert_true(n <= message_encoded_bytes(&m));
    free(data);
}

static void an_item_id_is_shown_as_hex(void **state) {
    (void)state;
    item_id id = {{0x00, 0xff, 0x1a}};
    char text[ITEM_ID_TEXT_BYTES];
    assert_string_equal(item_id_text(text, &id), "00ff1a00000000000000000000000000");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_kind_survives_the_wire_with_all_its_fields),
        cmocka_unit_test(an_empty_envelope_of_a_kind_without_needs_is_enough),
        cmocka_unit_test(a_kind_that_lacks_a_needed_field_is_refused_by_its_name),
        cmocka_unit_test(fields_over_their_limits_are_refused_by_name),
        cmocka_unit_test(digests_of_another_length_are_refused),
        cmocka_unit_test(unknown_kinds_are_refused_and_unknown_fields_are_not),
        cmocka_unit_test(more_leases_than_the_limit_are_refused_whatever_their_form),
        cmocka_unit_test(an_envelope_over_its_limit_is_refused_before_it_is_read),
        cmocka_unit_test(a_message_cut_or_changed_anywhere_is_read_or_refused_never_worse),
        cmocka_unit_test(the_encoded_size_is_never_more_than_announced),
        cmocka_unit_test(an_item_id_is_shown_as_hex),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
