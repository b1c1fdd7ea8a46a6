/* Any sequence of events, from anybody, about anything: six bytes an event. The machine's audit holds
 * after each step, and every payload is let go once. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "broker/item_machine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { EVENT_BYTES = 6, EVENTS_MAX = 400, PAYLOADS_MAX = 4 * EVENTS_MAX };

typedef struct {
    item_machine *m;
    int64_t now_us;
    uint64_t token, n_payloads;
    bool is_live[PAYLOADS_MAX];
} run;

static uint64_t payload_new(run *r) {
    r->is_live[++r->n_payloads] = true;
    return r->n_payloads;
}

static void perform(run *r, const actions *out) {
    for (size_t i = 0; i < out->n; i++) {
        const action *a = &out->rows[i];
        if (a->kind == ACTION_COMMIT) r->token = a->commit.token;
        if (a->kind != ACTION_RELEASE && a->kind != ACTION_SEND_TOKENS) continue;
        CHECK(a->payload && a->payload <= r->n_payloads && r->is_live[a->payload],
              "a payload is let go once");
        r->is_live[a->payload] = false;
    }
}

static event event_from(run *r, const uint8_t *p) {
    event e = {.kind = (event_kind)(p[0] % EVENT_KIND_COUNT), .peer = 1 + p[1] % 6,
               .attempt = p[3] % 8};
    uint8_t arg = p[4];
    e.id.bytes[0] = p[2] % 8;
    switch (e.kind) {
    case EVENT_COMMITTED: e.committed = arg & 1 ? r->token : r->token / 2 + arg; break;
    case EVENT_CLIENT_HELLO: e.client_hello.tenant = arg % 2; break;
    case EVENT_SUBMIT:
        e.submit.digest.bytes[0] = arg % 8 == 0;
        e.submit.has_image = arg & 16;
        e.submit.image.digest[0] = p[3] % 3;
        e.submit.image_payload = e.submit.has_image ? payload_new(r) : 0;
        e.submit.image_bytes = e.submit.has_image ? 100 : 0;
        e.submit.request_payload = payload_new(r);
        e.submit.request_bytes = arg;
        e.submit.n_questions = arg % 66;
        e.submit.priority = arg / 64;
        e.submit.deadline_us = arg & 32 ? r->now_us + 5000 * p[3] : 0;
        e.submit.features_known = arg % 5 == 0;
        break;
    case EVENT_NODE_HELLO:
        e.node_hello.node = p[2] % 4;
        e.node_hello.incarnation = p[3] % 2;
        e.node_hello.roles = arg;
        e.node_hello.tower.bytes[0] = 1 + (arg == 255);
        e.node_hello.model.bytes[0] = 1 + (arg == 254);
        e.node_hello.credit_items = arg / 16;
        e.node_hello.credit_bytes = 16u * arg;
        break;
    case EVENT_NODE_CREDIT:
        e.credit.items = arg / 32;
        e.credit.bytes = 16u * arg;
        break;
    case EVENT_PROGRESS: e.progress = arg; break;
    case EVENT_ENCODED:
        e.payload = payload_new(r);
        e.payload_bytes = arg;
        e.encoded.features = arg & 1 ? payload_new(r) : 0;
        e.encoded.features_bytes = arg & 1 ? 2u * arg : 0;
        break;
    case EVENT_TOKENS:
    case EVENT_RESULT:
        e.payload = payload_new(r);
        e.payload_bytes = arg;
        break;
    case EVENT_FAILED:
        e.failed.code = (status)(arg % STATUS_COUNT);
        e.failed.is_permanent = arg & 128;
        break;
    case EVENT_CRASH:
        e.crash.incarnation = arg % 4;
        e.crash.is_strong = arg & 128;
        break;
    default: break;
    }
    return e;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    machine_limits limits = machine_limits_default();
    limits.n_items_max = limits.n_images_max = 6;
    limits.n_clients_max = limits.n_nodes_max = 4;
    limits.n_grants_max = 5;
    limits.n_tombstones_max = 3;
    limits.client_items_max = 5;
    limits.bytes_max = 1000;
    limits.features_bytes_max = 400;
    limits.n_tenants = 2;
    limits.retention_us = 3000000;
    limits.lease_us = 8 * limits.heartbeat_us;
    err e;
    run *r = calloc(1, sizeof *r);
    if (!r || machine_open(&r->m, &limits, &e) != STATUS_OK) abort();
    for (size_t at = 0; at + EVENT_BYTES <= size && at / EVENT_BYTES < EVENTS_MAX; at += EVENT_BYTES) {
        action rows[ACTIONS_MIN + 4];
        actions out = {rows, sizeof rows / sizeof *rows, 0};
        event next = event_from(r, data + at);
        r->now_us += (int64_t)data[at + 5] * data[at + 5] * 40;
        bool commits = data[at + 5] & 1;
        for (int turn = 0;; turn++) {
            CHECK(turn < 2000, "the machine comes to rest");
            uint64_t before = r->token;
            machine_step(r->m, &next, r->now_us, &out);
            perform(r, &out);
            machine_audit(r->m);
            next = (event){.kind = EVENT_TICK};
            if (commits && r->token > before)
                next = (event){.kind = EVENT_COMMITTED, .committed = r->token};
            else if (!machine_has_more(r->m)) break;
        }
    }
    machine_close(r->m);
    free(r);
    return 0;
}
