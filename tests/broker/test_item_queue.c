/* What heap, queue, index and node table promise the machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "broker/image_table.h"
#include "broker/item_queue.h"

#include <cmocka.h> /* after ours: it has a macro called fail */

static void lower_priority_numbers_are_served_first(void **state) {
    (void)state;
    item_queue q;
    assert_int_equal(item_queue_init(&q, 8, 1000, 4), STATUS_OK);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(item_queue_push(&q, i, 1, item_queue_enter(&q, 1, 1, (uint8_t)(9 - i), 0)),
                         STATUS_OK);
    for (uint32_t i = 4; i-- > 0;) {
        assert_int_equal(item_queue_first(&q), i);
        item_queue_served(&q, i);
    }
    assert_int_equal(item_queue_first(&q), SLOT_NONE);
    item_queue_deinit(&q);
}

static void earlier_deadlines_go_before_later_ones_and_before_none(void **state) {
    (void)state;
    item_queue q;
    assert_int_equal(item_queue_init(&q, 8, 1000, 4), STATUS_OK);
    const int64_t deadlines[] = {0, 900, 300, 600};
    const uint32_t order[] = {2, 3, 1, 0};
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(item_queue_push(&q, i, 1, item_queue_enter(&q, 1, 1, 5, deadlines[i])),
                         STATUS_OK);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(item_queue_first(&q), order[i]);
        item_queue_served(&q, order[i]);
    }
    item_queue_deinit(&q);
}

/* Tenant 1 has queued a hundred items when tenant 2 comes with ten of the same cost. */
static void a_newcomer_does_not_wait_behind_another_tenants_hundred_items(void **state) {
    (void)state;
    item_queue q;
    assert_int_equal(item_queue_init(&q, 110, 1000, 1024), STATUS_OK);
    for (uint32_t i = 0; i < 100; i++)
        assert_int_equal(item_queue_push(&q, i, 1, item_queue_enter(&q, 1, 10, 5, 0)), STATUS_OK);
    for (uint32_t i = 100; i < 110; i++)
        assert_int_equal(item_queue_push(&q, i, 1, item_queue_enter(&q, 2, 10, 5, 0)), STATUS_OK);
    uint32_t served_of_2 = 0;
    for (uint32_t k = 0; k < 20; k++) {
        uint32_t i = item_queue_first(&q);
        served_of_2 += i >= 100;
        item_queue_served(&q, i);
    }
    assert_int_equal(served_of_2, 10);
    item_queue_deinit(&q);
}

/* Over a long time, tenants with items of cost 1 and cost 7 get the same cost served. */
static void shares_are_fair_in_cost_not_in_count(void **state) {
    (void)state;
    item_queue q;
    assert_int_equal(item_queue_init(&q, 2000, UINT64_MAX, 1024), STATUS_OK);
    const uint64_t cost[2] = {1, 7};
    for (uint32_t i = 0; i < 2000; i++)
        assert_int_equal(item_queue_push(&q, i, 1, item_queue_enter(&q, 1 + i % 2, cost[i % 2], 5, 0)),
                         STATUS_OK);
    uint64_t served[2] = {0};
    while (served[0] + served[1] < 1400) {
        uint32_t i = item_queue_first(&q);
        served[i % 2] += cost[i % 2];
        item_queue_served(&q, i);
    }
    assert_in_range(served[0], 693, 707);
    assert_in_range(served[1], 693, 707);
    item_queue_deinit(&q);
}

static void a_full_queue_says_busy_in_items_and_in_bytes(void **state) {
    (void)state;
    item_queue q;
    assert_int_equal(item_queue_init(&q, 2, 100, 1), STATUS_OK);
    item_queue_rank r = item_queue_enter(&q, 1, 1, 0, 0);
    assert_int_equal(item_queue_push(&q, 0, 60, r), STATUS_OK);
    assert_int_equal(item_queue_push(&q, 1, 41, r), STATUS_BUSY);
    assert_int_equal(item_queue_push(&q, 1, 40, r), STATUS_OK);
    item_queue_remove(&q, 0);
    item_queue_remove(&q, 0);
    assert_int_equal(item_queue_push(&q, 0, 60, r), STATUS_OK);
    assert_int_equal(item_queue_count(&q), 2);
    item_queue_deinit(&q);
}

/* Against sorting: 20,000 random puts, moves, removals and looks at the first. */
static void a_heap_always_knows_its_smallest(void **state) {
    (void)state;
    enum { N = 60 };
    heap h;
    uint64_t key[N];
    bool is_in[N] = {false};
    rng r = rng_make(11);
    assert_int_equal(heap_init(&h, N), STATUS_OK);
    for (int k = 0; k < 20000; k++) {
        uint32_t thing = (uint32_t)rng_below(&r, N);
        if (rng_below(&r, 3) == 0) {
            heap_remove(&h, thing);
            is_in[thing] = false;
        } else {
            key[thing] = rng_below(&r, 1000);
            heap_put(&h, thing, (heap_key){key[thing], thing, 0});
            is_in[thing] = true;
        }
        uint32_t best = HEAP_NONE;
        for (uint32_t i = 0; i < N; i++)
            if (is_in[i] && (best == HEAP_NONE || key[i] < key[best])) best = i;
        assert_int_equal(heap_first(&h), best);
        assert_int_equal(heap_has(&h, thing), is_in[thing]);
    }
    heap_deinit(&h);
}

static bool is_number(const void *rows, uint32_t slot, const void *key) {
    return ((const uint64_t *)rows)[slot] == *(const uint64_t *)key;
}

/* Against an array: additions and removals with hashes that collide on purpose. */
static void an_index_finds_what_was_added_and_nothing_else(void **state) {
    (void)state;
    enum { N = 50 };
    slot_index x;
    uint64_t rows[N];
    bool is_in[N] = {false};
    rng r = rng_make(12);
    assert_int_equal(slot_index_init(&x, N), STATUS_OK);
    for (uint32_t i = 0; i < N; i++) rows[i] = i;
    for (int k = 0; k < 20000; k++) {
        uint32_t slot = (uint32_t)rng_below(&r, N);
        uint64_t hash = rows[slot] % 7;
        if (is_in[slot]) slot_index_remove(&x, hash, slot);
        else slot_index_add(&x, hash, slot);
        is_in[slot] = !is_in[slot];
        uint64_t probe = rng_below(&r, N);
        assert_int_equal(slot_index_find(&x, probe % 7, is_number, rows, &probe),
                         is_in[probe] ? probe : SLOT_NONE);
    }
    slot_index_deinit(&x);
}

static grant_row grant_of(unsigned char id, uint32_t attempt, uint32_t bytes, bool is_solo) {
    grant_row g = {.state = GRANT_RUNNING, .attempt = attempt, .bytes = bytes, .is_solo = is_solo,
                   .item = SLOT_NONE};
    g.id.bytes[0] = id;
    return g;
}

static void a_node_has_room_for_its_credit_and_not_for_more(void **state) {
    (void)state;
    node_table t;
    assert_int_equal(node_table_init(&t, 2, 8), STATUS_OK);
    uint32_t n = node_table_add(&t, 10, 1, 1);
    t.nodes[n].roles = ROLE_LM;
    t.nodes[n].items_max = 2;
    t.nodes[n].bytes_max = 100;
    assert_true(node_table_has_room(&t, n, 100));
    assert_false(node_table_has_room(&t, n, 101));
    grant_row row = grant_of(1, 1, 60, false);
    uint32_t g = grant_add(&t, n, &row);
    assert_false(node_table_has_room(&t, n, 41));
    assert_true(node_table_has_room(&t, n, 40));
    assert_int_equal(node_table_pick(&t, ROLE_LM, 40), n);
    assert_int_equal(node_table_pick(&t, ROLE_VISION, 40), SLOT_NONE);
    row = grant_of(2, 1, 0, false);
    uint32_t other = grant_add(&t, n, &row);
    assert_false(node_table_has_room(&t, n, 0));
    assert_int_equal(grant_find(&t, &row.id, 1), other);
    assert_int_equal(grant_find(&t, &row.id, 2), SLOT_NONE);
    grant_free(&t, g);
    grant_free(&t, other);
    row = grant_of(3, 1, 1, true);
    g = grant_add(&t, n, &row);
    assert_false(node_table_has_room(&t, n, 1)); /* it travels alone */
    grant_free(&t, g);
    assert_true(node_table_is_idle_for(&t, n, 1));
    t.nodes[n].n_holds = 1;
    assert_false(node_table_has_room(&t, n, 1));
    node_table_deinit(&t);
}

static void the_least_loaded_node_is_picked(void **state) {
    (void)state;
    node_table t;
    assert_int_equal(node_table_init(&t, 3, 8), STATUS_OK);
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t n = node_table_add(&t, 10 + i, i, 1);
        t.nodes[n].roles = ROLE_VISION;
        t.nodes[n].items_max = i == 2 ? 8 : 4;
        t.nodes[n].bytes_max = 1000;
    }
    assert_int_equal(node_table_add(&t, 20, 9, 9), SLOT_NONE);
    grant_row row = grant_of(1, 1, 1, false);
    grant_add(&t, 0, &row);
    row = grant_of(2, 1, 1, false);
    grant_add(&t, 1, &row);
    row = grant_of(3, 1, 1, false);
    grant_add(&t, 2, &row);
    assert_int_equal(node_table_pick(&t, ROLE_VISION, 1), 2); /* 1 of 8 against 1 of 4 */
    t.nodes[2].reserved_for = 1;
    assert_int_equal(node_table_pick(&t, ROLE_VISION, 1), 0);
    node_table_deinit(&t);
}

static void unused_images_are_forgotten_oldest_first(void **state) {
    (void)state;
    image_table t;
    assert_int_equal(image_table_init(&t, 3), STATUS_OK);
    image_key key[4] = {{{1}, 0}, {{2}, 0}, {{1}, 1}, {{3}, 0}};
    for (int i = 0; i < 3; i++) t.rows[image_table_use(&t, &key[i])].is_encoded = true;
    for (int i = 0; i < 3; i++) assert_true(image_table_let_go(&t, image_table_find(&t, &key[i])));
    image_table_use(&t, &key[0]); /* in use again: not the oldest unused one any more */
    uint32_t fresh = image_table_use(&t, &key[3]);
    assert_false(t.rows[fresh].is_encoded);
    assert_int_equal(image_table_find(&t, &key[1]), SLOT_NONE);
    assert_int_not_equal(image_table_find(&t, &key[0]), SLOT_NONE);
    assert_true(t.rows[image_table_find(&t, &key[2])].is_encoded);
    image_table_deinit(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lower_priority_numbers_are_served_first),
        cmocka_unit_test(earlier_deadlines_go_before_later_ones_and_before_none),
        cmocka_unit_test(a_newcomer_does_not_wait_behind_another_tenants_hundred_items),
        cmocka_unit_test(shares_are_fair_in_cost_not_in_count),
        cmocka_unit_test(a_full_queue_says_busy_in_items_and_in_bytes),
        cmocka_unit_test(a_heap_always_knows_its_smallest),
        cmocka_unit_test(an_index_finds_what_was_added_and_nothing_else),
        cmocka_unit_test(a_node_has_room_for_its_credit_and_not_for_more),
        cmocka_unit_test(the_least_loaded_node_is_picked),
        cmocka_unit_test(unused_images_are_forgotten_oldest_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
