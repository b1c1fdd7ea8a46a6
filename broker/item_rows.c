/* The machine's tables: their size, and the rows of items, clients and tombstones. Everything is
 * allocated in machine_open; free rows stand in a list or are found from the front. */
#include <stdlib.h>
#include <string.h>

#include "broker/item_machine_internal.h"

#define SOLO_EXPIRIES 2 /* lost this often without a report: travels alone, to spare its company */

const char *item_state_name(item_state state) {
    static const char *const names[ITEM_STATE_COUNT] = {
        "none", "accepted", "waiting_features", "encoding", "ready", "generating",
        "done", "failed", "cancelled", "expired", "delivered"};
    return state < ITEM_STATE_COUNT ? names[state] : "unknown";
}

item_stage stage_of(item_state state) {
    return state == ITEM_READY || state == ITEM_GENERATING ? STAGE_LM : STAGE_VISION;
}

item_state waiting_state(const item_row *it) {
    return stage_of(it->state) == STAGE_LM ? ITEM_READY : ITEM_WAITING_FEATURES;
}

bool is_suspect(const item_machine *m, const item_row *it) {
    if (MUTANT(m, 17)) return false;
    bool is_for_vision = it->image != SLOT_NONE && stage_of(it->state) == STAGE_VISION;
    return it->n_crashes > 0 || it->expiries >= SOLO_EXPIRIES ||
           (is_for_vision && m->images.rows[it->image].n_crashes > 0);
}

bool image_is_condemned(const item_machine *m, const image_row *image) {
    return !MUTANT(m, 12) && (image->n_strong >= m->limits.crashes_strong_max ||
                              image->n_crashes >= m->limits.crashes_max);
}

uint64_t id_hash(const item_ident *id) {
    uint64_t low, high;
    memcpy(&low, id->bytes, 8);
    memcpy(&high, id->bytes + 8, 8);
    return slot_hash(low ^ slot_hash(high));
}

static bool is_item(const void *rows, uint32_t slot, const void *key) {
    return memcmp(&((const item_row *)rows)[slot].id, key, sizeof(item_ident)) == 0;
}

static bool is_tomb(const void *rows, uint32_t slot, const void *key) {
    return memcmp(&((const tombstone *)rows)[slot].id, key, sizeof(item_ident)) == 0;
}

static bool is_client(const void *rows, uint32_t slot, const void *key) {
    return ((const client_row *)rows)[slot].peer == *(const uint64_t *)key;
}

uint32_t find_item(const item_machine *m, const item_ident *id) {
    return slot_index_find(&m->items_by_id, id_hash(id), is_item, m->items, id);
}

const tombstone *find_tomb(const item_machine *m, const item_ident *id) {
    uint32_t slot = slot_index_find(&m->tombs_by_id, id_hash(id), is_tomb, m->tombs, id);
    return slot != SLOT_NONE ? &m->tombs[slot] : NULL;
}

uint32_t find_client(const item_machine *m, uint64_t peer) {
    return slot_index_find(&m->clients_by_peer, slot_hash(peer), is_client, m->clients, &peer);
}

client_row *client_of(const item_machine *m, const item_row *it) {
    client_row *c = &m->clients[it->client];
    return c->is_used && c->generation == it->client_generation ? c : NULL;
}

held held_for(const item_machine *m, held_kind kind, uint32_t item) {
    const item_row *it = &m->items[item];
    return (held){.kind = kind, .item = item, .item_generation = it->generation, .id = it->id,
                  .attempt = it->attempt, .grant = SLOT_NONE, .node = SLOT_NONE};
}

/* --- open and close -------------------------------------------------------------------------- */

machine_limits machine_limits_default(void) {
    const int64_t s = 1000000;
    return (machine_limits){
        .n_items_max = 16384, .bytes_max = UINT64_C(1) << 30,
        .features_bytes_max = UINT64_C(1) << 28,
        .n_clients_max = 1024, .client_items_max = 4096, .client_bytes_max = UINT64_C(1) << 29,
        .n_nodes_max = 256, .n_grants_max = 16384, .n_images_max = 65536,
        .n_tombstones_max = 65536, .n_tenants = 1024,
        .heartbeat_us = s, .lease_us = 30 * s, .attempt_us = 600 * s, .client_silence_us = 30 * s,
        .retention_us = 600 * s, .backoff_us = s / 2, .backoff_max_us = 60 * s,
        .affinity_wait_us = s / 4, .tries_max = 5, .regressions_max = 5, .expiries_max = 20,
        .crashes_strong_max = 3, .crashes_max = 10};
}

static status check_limits(const machine_limits *l, err *e) {
    const struct {
        const char *name;
        uint64_t value, min, max;
    } rows[] = {
        {"n_items_max", l->n_items_max, 1, 1u << 22},
        {"n_clients_max", l->n_clients_max, 1, 1u << 20},
        {"client_items_max", l->client_items_max, 1, UINT32_MAX},
        {"n_nodes_max", l->n_nodes_max, 1, 1u << 16},
        {"n_grants_max", l->n_grants_max, 1, 1u << 22},
        {"n_images_max", l->n_images_max, l->n_items_max, 1u << 24},
        {"n_tombstones_max", l->n_tombstones_max, 1, 1u << 24},
        {"n_tenants", l->n_tenants, 1, 1u << 20},
        {"heartbeat_us", (uint64_t)l->heartbeat_us, 1000, INT64_MAX / 8},
        {"lease_us", (uint64_t)l->lease_us, 4 * (uint64_t)l->heartbeat_us, INT64_MAX / 8},
        {"attempt_us", (uint64_t)l->attempt_us, (uint64_t)l->lease_us, INT64_MAX / 8},
        {"client_silence_us", (uint64_t)l->client_silence_us, 1000, INT64_MAX / 8},
        {"retention_us", (uint64_t)l->retention_us, 1000, INT64_MAX / 8},
        {"backoff_us", (uint64_t)l->backoff_us, 1, INT64_MAX / 8},
        {"backoff_max_us", (uint64_t)l->backoff_max_us, (uint64_t)l->backoff_us, INT64_MAX / 8},
        {"affinity_wait_us", (uint64_t)l->affinity_wait_us, 1, INT64_MAX / 8},
        {"tries_max", l->tries_max, 1, 1000},
        {"regressions_max", l->regressions_max, 1, 1000},
        {"expiries_max", l->expiries_max, 1, 1000},
        {"crashes_strong_max", l->crashes_strong_max, 1, l->crashes_max},
        {"crashes_max", l->crashes_max, 1, ITEM_CRASHES_MAX},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].value < rows[i].min || rows[i].value > rows[i].max)
            return fail(e, STATUS_BAD_ARGUMENT, "broker limit %s: %llu, need %llu to %llu",
                        rows[i].name, (unsigned long long)rows[i].value,
                        (unsigned long long)rows[i].min, (unsigned long long)rows[i].max);
    return STATUS_OK;
}

static status open_tables(item_machine *m) {
    const machine_limits *l = &m->limits;
    m->n_ring = 5 * l->n_items_max + l->n_nodes_max + 1;
    m->items = calloc(l->n_items_max, sizeof *m->items);
    m->clients = calloc(l->n_clients_max, sizeof *m->clients);
    m->tombs = calloc(l->n_tombstones_max, sizeof *m->tombs);
    m->waking = calloc(l->n_images_max, sizeof *m->waking);
    m->losing = calloc(l->n_nodes_max, sizeof *m->losing);
    m->ring = calloc(m->n_ring, sizeof *m->ring);
    if (!m->items || !m->clients || !m->tombs || !m->waking || !m->losing || !m->ring)
        return STATUS_NO_MEMORY;
    status st = slot_index_init(&m->items_by_id, l->n_items_max);
    if (st == STATUS_OK) st = slot_index_init(&m->clients_by_peer, l->n_clients_max);
    if (st == STATUS_OK) st = slot_index_init(&m->tombs_by_id, l->n_tombstones_max);
    if (st == STATUS_OK) st = node_table_init(&m->nodes, l->n_nodes_max, l->n_grants_max);
    if (st == STATUS_OK) st = image_table_init(&m->images, l->n_images_max);
    for (int s = 0; s < STAGE_COUNT && st == STATUS_OK; s++) {
        m->reserved[s] = SLOT_NONE;
        st = item_queue_init(&m->queue[s], l->n_items_max, UINT64_MAX, l->n_tenants);
        if (st == STATUS_OK) st = item_queue_init(&m->suspects[s], l->n_items_max, UINT64_MAX, 1);
    }
    if (st == STATUS_OK)
        st = heap_init(&m->timers,
                       l->n_items_max + l->n_grants_max + l->n_nodes_max + l->n_clients_max);
    return st;
}

status machine_open(item_machine **machine, const machine_limits *limits, err *e) {
    *machine = NULL;
    status st = check_limits(limits, e);
    if (st != STATUS_OK) return st;
    item_machine *m = calloc(1, sizeof *m);
    if (!m) return fail(e, STATUS_NO_MEMORY, "broker: no memory for its tables");
    m->limits = *limits;
    m->free_item = SLOT_NONE;
    st = open_tables(m);
    if (st != STATUS_OK) {
        machine_close(m);
        return fail(e, STATUS_NO_MEMORY, "broker: no memory for %u items", limits->n_items_max);
    }
    *machine = m;
    return STATUS_OK;
}

void machine_close(item_machine *m) {
    if (!m) return;
    free(m->items);
    free(m->clients);
    free(m->tombs);
    free(m->waking);
    free(m->losing);
    free(m->ring);
    slot_index_deinit(&m->items_by_id);
    slot_index_deinit(&m->clients_by_peer);
    slot_index_deinit(&m->tombs_by_id);
    node_table_deinit(&m->nodes);
    image_table_deinit(&m->images);
    for (int s = 0; s < STAGE_COUNT; s++) {
        item_queue_deinit(&m->queue[s]);
        item_queue_deinit(&m->suspects[s]);
    }
    heap_deinit(&m->timers);
    free(m);
}

/* --- clients --------------------------------------------------------------------------------- */

uint32_t client_add(item_machine *m, uint64_t peer, uint64_t tenant) {
    uint32_t c = 0;
    while (c < m->limits.n_clients_max && m->clients[c].is_used) c++;
    if (c == m->limits.n_clients_max) return SLOT_NONE;
    m->clients[c] = (client_row){.is_used = true, .generation = m->clients[c].generation + 1,
                                 .peer = peer, .tenant = tenant};
    slot_index_add(&m->clients_by_peer, slot_hash(peer), c);
    m->counts.n_clients++;
    return c;
}

void client_lose(item_machine *m, uint32_t c) {
    client_row *row = &m->clients[c];
    slot_index_remove(&m->clients_by_peer, slot_hash(row->peer), c);
    m->n_owed -= row->n_items;
    row->is_used = false;
    row->generation++; /* its items no longer find it */
    m->counts.n_clients--;
    arm_client(m, c);
}

/* --- items ----------------------------------------------------------------------------------- */

uint32_t item_add(item_machine *m, const event *e, uint32_t c) {
    uint32_t item = m->free_item;
    if (item != SLOT_NONE) m->free_item = m->items[item].next;
    else item = m->items_end++;
    item_row *it = &m->items[item];
    client_row *client = &m->clients[c];
    *it = (item_row){.is_used = true, .generation = it->generation + 1, .id = e->id,
                     .digest = e->submit.digest, .tenant = client->tenant, .client = c,
                     .client_generation = client->generation, .state = ITEM_NONE,
                     .grant = SLOT_NONE, .place = PLACE_NONE, .image = SLOT_NONE,
                     .deadline_us = e->submit.deadline_us > 0 ? e->submit.deadline_us : 0,
                     .accepted_us = m->now_us, .priority = e->submit.priority,
                     .n_questions = e->submit.n_questions,
                     .cost = e->submit.cost ? e->submit.cost : 1,
                     .request_payload = e->submit.request_payload,
                     .request_bytes = e->submit.request_bytes};
    slot_index_add(&m->items_by_id, id_hash(&it->id), item);
    m->counts.bytes += it->request_bytes;
    if (e->submit.has_image) {
        it->image = image_table_use(&m->images, &e->submit.image);
        it->image_bytes = e->submit.image_bytes;
        image_row *image = &m->images.rows[it->image];
        if (image->payload == 0) {
            image->payload = e->submit.image_payload;
            image->bytes = e->submit.image_bytes;
            m->counts.bytes += image->bytes;
        } else {
            release(m, e->submit.image_payload);
        }
        if (e->submit.features_known) image->is_encoded = true;
    }
    client->n_items++;
    client->bytes += (uint64_t)it->image_bytes + it->request_bytes;
    m->n_owed++;
    m->counts.n_rows++;
    return item;
}

void image_drop_features(item_machine *m, image_row *image) {
    release(m, image->features);
    m->counts.features_bytes -= image->features_bytes;
    if (!MUTANT(m, 19)) image->features = 0;
    image->features_bytes = 0;
}

void item_drop_inputs(item_machine *m, item_row *it) {
    client_row *c = client_of(m, it);
    if (c) c->bytes -= (uint64_t)it->image_bytes + it->request_bytes;
    release(m, it->request_payload);
    m->counts.bytes -= it->request_bytes;
    it->request_payload = 0;
    it->request_bytes = it->image_bytes = 0;
    if (it->image == SLOT_NONE) return;
    image_row *image = &m->images.rows[it->image];
    if (image_table_let_go(&m->images, it->image)) {
        image_drop_features(m, image);
        release(m, image->payload);
        m->counts.bytes -= image->bytes;
        image->payload = 0;
        image->bytes = 0;
    }
    it->image = SLOT_NONE;
}

void item_keep_payload(item_machine *m, uint64_t *payload, uint32_t *bytes, const event *e) {
    release(m, *payload);
    m->counts.bytes += e->payload_bytes;
    m->counts.bytes -= *bytes;
    *payload = e->payload;
    *bytes = e->payload_bytes;
}

static void remember(item_machine *m, const item_row *it) {
    if (MUTANT(m, 4)) return;
    uint32_t slot = (uint32_t)(m->n_tombs_ever++ % m->limits.n_tombstones_max);
    if (m->n_tombs_ever > m->limits.n_tombstones_max)
        slot_index_remove(&m->tombs_by_id, id_hash(&m->tombs[slot].id), slot);
    m->tombs[slot] = (tombstone){it->id, it->digest, it->tenant, it->code};
    slot_index_add(&m->tombs_by_id, id_hash(&it->id), slot);
}

void item_remove(item_machine *m, uint32_t item) {
    item_row *it = &m->items[item];
    remember(m, it);
    client_row *c = client_of(m, it);
    if (c) {
        c->n_items--;
        m->n_owed--;
    }
    release(m, it->result_payload);
    release(m, it->report_payload);
    m->counts.bytes -= (uint64_t)it->result_bytes + it->report_bytes;
    slot_index_remove(&m->items_by_id, id_hash(&it->id), item);
    it->is_used = false;
    it->next = m->free_item;
    m->free_item = item;
    m->counts.n_rows--;
}

/* --- views ----------------------------------------------------------------------------------- */

const machine_counts *machine_numbers(item_machine *m) {
    m->counts.n_nodes = m->nodes.n_nodes;
    m->counts.n_images = m->images.n;
    for (int s = 0; s < STAGE_COUNT; s++) {
        m->counts.leased[s] = 0;
        m->counts.queued[s] = item_queue_count(&m->queue[s]) + item_queue_count(&m->suspects[s]);
    }
    for (uint32_t g = 0; g < m->nodes.grants_end; g++)
        if (m->nodes.grants[g].item != SLOT_NONE && m->nodes.grants[g].state != GRANT_FREE)
            m->counts.leased[m->nodes.grants[g].stage]++;
    m->counts.queued[STAGE_LM] += m->n_parked;
    uint64_t placed = 0;
    for (int s = 0; s < STAGE_COUNT; s++) placed += m->counts.queued[s] + m->counts.leased[s];
    m->counts.waiting =
        m->counts.in_flight > placed ? (uint32_t)(m->counts.in_flight - placed) : 0;
    return &m->counts;
}

bool machine_node_at(const item_machine *m, uint32_t idx, machine_node_view *view) {
    for (uint32_t n = 0; n < m->nodes.nodes_end; n++) {
        const node_row *row = &m->nodes.nodes[n];
        if (!row->is_used || row->is_lost || idx-- > 0) continue;
        *view = (machine_node_view){row->peer, row->node, row->incarnation, row->roles, row->items,
                                    row->items_max, row->bytes, row->bytes_max, row->n_done,
                                    row->heard_us, row->is_draining};
        return true;
    }
    return false;
}

const fingerprint *machine_model(const item_machine *m) { return &m->model; }
const fingerprint *machine_tower(const item_machine *m) { return &m->tower; }
