/* Blocks are shared, reserved and given back as the header promises. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "lm_node/kv_cache.h"
#include "tests/support/support.h"

static kv_cache *open_cache(int n_blocks) {
    kv_cache *kv;
    err e;
    if (kv_cache_open(&kv, n_blocks, &e) != STATUS_OK) fail_msg("%s", e.text);
    return kv;
}

static void a_sequence_takes_blocks_as_it_grows_and_gives_all_back(void **state) {
    (void)state;
    kv_cache *kv = open_cache(4);
    kv_seq seq;
    assert_int_equal(kv_seq_open(kv, &seq, 33, 0), STATUS_OK);
    assert_int_equal(kv_cache_n_in_use(kv), 0);
    assert_int_equal(kv_cache_n_available(kv), 1);
    kv_seq_extend(kv, &seq, 16);
    assert_int_equal(kv_cache_n_in_use(kv), 1);
    kv_seq_extend(kv, &seq, 1);
    assert_int_equal(kv_cache_n_in_use(kv), 2);
    kv_seq_extend(kv, &seq, 16);
    assert_int_equal(kv_cache_n_in_use(kv), 3);
    assert_int_equal(kv_cache_n_available(kv), 1);
    assert_int_equal(kv_seq_slot(&seq, 17), seq.blocks[1] * KV_BLOCK_TOKENS + 1);
    kv_seq_close(kv, &seq);
    kv_seq_close(kv, &seq);
    assert_int_equal(kv_cache_n_available(kv), 4);
    kv_cache_close(&kv);
}

static void a_reservation_that_does_not_fit_is_busy_and_takes_nothing(void **state) {
    (void)state;
    kv_cache *kv = open_cache(4);
    kv_seq a, b;
    assert_int_equal(kv_seq_open(kv, &a, 48, 0), STATUS_OK);
    assert_int_equal(kv_seq_open(kv, &b, 17, 0), STATUS_BUSY);
    assert_int_equal(kv_cache_n_available(kv), 1);
    assert_int_equal(kv_seq_open(kv, &b, 16, 0), STATUS_OK);
    kv_seq_close(kv, &a);
    kv_seq_close(kv, &b);
    kv_cache_close(&kv);
}

static void a_fork_shares_full_blocks_and_owns_its_partial_one(void **state) {
    (void)state;
    kv_cache *kv = open_cache(8);
    kv_seq parent, heir;
    assert_int_equal(kv_seq_open(kv, &parent, 41, 0), STATUS_OK);
    kv_seq_extend(kv, &parent, 41);
    assert_int_equal(kv_seq_open(kv, &heir, 60, 41), STATUS_OK);
    kv_copy copy = kv_seq_fork(kv, &heir, &parent, 41);
    assert_int_equal(copy.from, parent.blocks[2]);
    assert_int_equal(copy.to, heir.blocks[2]);
    assert_int_not_equal(copy.from, copy.to);
    assert_memory_equal(heir.blocks, parent.blocks, 2 * sizeof *heir.blocks);
    assert_int_equal(kv_cache_n_in_use(kv), 4);
    kv_seq_close(kv, &parent); /* the shared blocks live on in the child */
    assert_int_equal(kv_cache_n_in_use(kv), 3);
    kv_seq_extend(kv, &heir, 19);
    assert_int_equal(kv_cache_n_in_use(kv), 4);
    kv_seq_close(kv, &heir);
    assert_int_equal(kv_cache_n_in_use(kv), 0);
    kv_cache_close(&kv);
}

static void a_fork_at_a_block_boundary_copies_nothing(void **state) {
    (void)state;
    kv_cache *kv = open_cache(8);
    kv_seq parent, heir;
    assert_int_equal(kv_seq_open(kv, &parent, 32, 0), STATUS_OK);
    kv_seq_extend(kv, &parent, 32);
    assert_int_equal(kv_seq_open(kv, &heir, 33, 32), STATUS_OK);
    assert_true(kv_seq_fork(kv, &heir, &parent, 32).from < 0);
    assert_int_equal(kv_cache_n_in_use(kv), 2);
    kv_seq_close(kv, &heir);
    kv_seq_close(kv, &parent);
    kv_cache_close(&kv);
}

/* A plain model beside it: who owns which block, counted anew after every action. */
static void no_block_is_lost_or_written_by_two_in_random_work(void **state) {
    (void)state;
    enum { SEQS = 24, BLOCKS = 40 };
    kv_cache *kv = open_cache(BLOCKS);
    kv_seq seqs[SEQS];
    int n_max[SEQS] = {0};
    memset(seqs, 0, sizeof seqs);
    rng r = rng_make(test_seed());
    for (int round = 0; round < 20000; round++) {
        int i = (int)rng_below(&r, SEQS), parent = (int)rng_below(&r, SEQS);
        if (!seqs[i].blocks) {
            int n_shared = seqs[parent].blocks ? (int)rng_below(&r, (uint64_t)seqs[parent].n_tokens + 1) : 0;
            n_max[i] = n_shared + 1 + (int)rng_below(&r, 100);
            if (kv_seq_open(kv, &seqs[i], n_max[i], n_shared) != STATUS_OK) continue;
            if (n_shared > 0) (void)kv_seq_fork(kv, &seqs[i], &seqs[parent], n_shared);
        } else if (rng_below(&r, 4) == 0) {
            kv_seq_close(kv, &seqs[i]);
        } else {
            kv_seq_extend(kv, &seqs[i], (int)rng_below(&r, (uint64_t)(n_max[i] - seqs[i].n_tokens) + 1));
        }
        int n_owners[BLOCKS] = {0}, n_reserved = 0, n_in_use = 0;
        for (int k = 0; k < SEQS; k++) {
            n_reserved += seqs[k].n_reserved;
            for (int b = 0; b < seqs[k].n_blocks; b++) n_owners[seqs[k].blocks[b]]++;
        }
        for (int b = 0; b < BLOCKS; b++) n_in_use += n_owners[b] > 0;
        assert_int_equal(kv_cache_n_in_use(kv), n_in_use);
        assert_int_equal(kv_cache_n_available(kv), BLOCKS - n_in_use - n_reserved);
        for (int k = 0; k < SEQS; k++) /* the block a sequence writes to next is its own */
            if (seqs[k].n_tokens % KV_BLOCK_TOKENS != 0)
                assert_int_equal(n_owners[seqs[k].blocks[seqs[k].n_blocks - 1]], 1);
    }
    for (int i = 0; i < SEQS; i++) kv_seq_close(kv, &seqs[i]);
    kv_cache_close(&kv);
}

static void a_cache_without_blocks_is_refused(void **state) {
    (void)state;
    kv_cache *kv;
    err e;
    assert_int_equal(kv_cache_open(&kv, 0, &e), STATUS_BAD_ARGUMENT);
    assert_int_equal(kv_cache_open(&kv, KV_BLOCKS_MAX + 1, &e), STATUS_BAD_ARGUMENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sequence_takes_blocks_as_it_grows_and_gives_all_back),
        cmocka_unit_test(a_reservation_that_does_not_fit_is_busy_and_takes_nothing),
        cmocka_unit_test(a_fork_shares_full_blocks_and_owns_its_partial_one),
        cmocka_unit_test(a_fork_at_a_block_boundary_copies_nothing),
        cmocka_unit_test(no_block_is_lost_or_written_by_two_in_random_work),
        cmocka_unit_test(a_cache_without_blocks_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
