/* Every promise that can be checked by looking at the tables: walks everything, so it is for tests and
 * the simulator. */
#include "broker/item_machine_internal.h"

static void audit_item(const item_machine *m, uint32_t item) {
    const item_row *it = &m->items[item];
    bool is_leased = it->state == ITEM_ENCODING || it->state == ITEM_GENERATING;
    bool is_waiting = it->state == ITEM_WAITING_FEATURES || it->state == ITEM_READY;
    CHECK(it->place == PLACE_NONE || is_waiting, "only a waiting item has a place");
    CHECK(it->grant == SLOT_NONE || is_leased || item_state_is_final(it->state),
          "only a leased item has a grant");
    if (it->grant != SLOT_NONE) {
        const grant_row *g = &m->nodes.grants[it->grant];
        CHECK(g->state != GRANT_FREE && g->item == item && g->attempt == it->attempt,
              "an item and its grant name each other");
    } else {
        CHECK(!is_leased, "a leased item has a grant");
    }
    if (is_waiting && it->token <= m->settled)
        CHECK(it->place != PLACE_NONE, "a waiting item waits somewhere");
    item_stage stage = stage_of(it->state);
    CHECK(item_queue_has(&m->queue[stage], item) == (it->place == PLACE_QUEUE),
          "the queue holds exactly the items that are placed there");
    CHECK(item_queue_has(&m->suspects[stage], item) == (it->place == PLACE_SUSPECT),
          "the queue of suspects holds exactly the items that are placed there");
    if (it->place == PLACE_WAITERS) {
        const image_row *image = &m->images.rows[it->image];
        CHECK(image->encoder != SLOT_NONE || image->is_waking,
              "who waits for an encoding is waited for by an encoder, or about to be woken");
    }
    if (it->place == PLACE_BACKOFF || it->place == PLACE_PARKED)
        CHECK(heap_has(&m->timers, item), "who waits for a time has a timer");
    CHECK(it->n_crashes <= ITEM_CRASHES_MAX && it->n_strong <= it->n_crashes,
          "crashes are counted once");
}

void machine_audit(const item_machine *m) {
    const machine_counts *k = &m->counts;
    CHECK(k->accepted == k->done + k->failed + k->cancelled + k->expired + k->in_flight,
          "accepted = done + failed + cancelled + expired + in flight");
    uint64_t in_flight = 0, rows = 0, bytes = 0, features = 0, owed = 0, parked = 0;
    for (uint32_t i = 0; i < m->items_end; i++) {
        const item_row *it = &m->items[i];
        if (!it->is_used) continue;
        rows++;
        in_flight += !item_state_is_final(it->state);
        bytes += (uint64_t)it->request_bytes + it->result_bytes + it->report_bytes;
        parked += it->place == PLACE_PARKED;
        const client_row *c = &m->clients[it->client];
        owed += c->is_used && c->generation == it->client_generation;
        audit_item(m, i);
    }
    for (uint32_t i = 0; i < m->images.end; i++) {
        bytes += m->images.rows[i].bytes;
        features += m->images.rows[i].features_bytes;
        CHECK(m->images.rows[i].n_items > 0 || m->images.rows[i].features == 0,
              "features are kept for items that want them");
        uint32_t encoder = m->images.rows[i].encoder;
        CHECK(encoder == SLOT_NONE || m->items[encoder].image == i, "an encoder has the image");
    }
    CHECK(rows == k->n_rows && in_flight == k->in_flight, "rows are counted");
    CHECK(bytes == k->bytes && features == k->features_bytes, "bytes are counted");
    CHECK(owed == m->n_owed, "what is owed to connected clients is counted");
    CHECK(parked == m->n_parked, "parked items are counted");
    uint32_t grants = 0;
    for (uint32_t n = 0; n < m->nodes.nodes_end; n++) {
        const node_row *row = &m->nodes.nodes[n];
        if (!row->is_used) continue;
        uint32_t items = 0, solo = 0;
        uint64_t held_bytes = 0;
        for (uint32_t g = row->first_grant; g != SLOT_NONE; g = m->nodes.grants[g].next) {
            items++;
            solo += m->nodes.grants[g].is_solo;
            held_bytes += m->nodes.grants[g].bytes;
            CHECK(m->nodes.grants[g].node == n, "a grant stands in its node's list");
        }
        CHECK(items == row->items && held_bytes == row->bytes && solo == row->n_solo,
              "a node's credit is counted");
        CHECK(row->is_lost || row->n_solo == 0 || row->n_solo == row->items || row->items == 1,
              "an item that travels alone is alone");
        grants += items;
    }
    CHECK(grants == m->nodes.n_grants, "grants are counted");
}
