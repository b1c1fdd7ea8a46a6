/* The cache in memory: bounded, least recently used first, safe for many threads. */
#include <pthread.h>

#include "tests/cache/sample.h"

#define WIDTH 512 /* one token of it is a blob of 1 KB values */

static cache *c;
static err e;

static void open_with(uint64_t memory_bytes) {
    cache_settings settings = cache_settings_default();
    settings.memory_bytes = memory_bytes;
    assert_int_equal(cache_open(&c, "memory:", &settings, &e), STATUS_OK);
}

static int close_it(void **state) {
    (void)state;
    cache_close(&c);
    return 0;
}

static void what_is_put_is_found_until_it_is_deleted(void **state) {
    (void)state;
    open_with(1 << 20);
    cache_key key = sample_key(1);
    assert_int_equal(get_sample(c, 1, 3, WIDTH), STATUS_NOT_FOUND);
    assert_int_equal(cache_has(c, &key), STATUS_NOT_FOUND);
    assert_int_equal(put_sample(c, 1, 3, WIDTH), STATUS_OK);
    assert_int_equal(cache_has(c, &key), STATUS_OK);
    assert_int_equal(get_sample(c, 1, 3, WIDTH), STATUS_OK);
    assert_int_equal(cache_delete(c, &key), STATUS_OK);
    assert_int_equal(cache_delete(c, &key), STATUS_OK);
    assert_int_equal(get_sample(c, 1, 3, WIDTH), STATUS_NOT_FOUND);
    assert_int_equal(cache_check(c, &e), STATUS_OK);
    cache_counters n = cache_counters_read(c);
    assert_int_equal(n.hits, 1);
    assert_int_equal(n.misses, 2);
    assert_int_equal(n.puts, 1);
    assert_int_equal(n.errors, 0);
    assert_int_equal(n.bytes_written, 64 + 3 * WIDTH * 2);
    assert_int_equal(n.bytes_read, n.bytes_written);
    assert_int_equal(n.n_held, 0);
    assert_int_equal(n.bytes_held, 0);
}

static void putting_again_replaces(void **state) {
    (void)state;
    open_with(1 << 20);
    cache_key key = sample_key(1);
    blob other = sample_blob(99, 2, WIDTH), got;
    buf storage;
    buf_init(&storage, BLOB_BYTES_MAX);
    assert_int_equal(put_sample(c, 1, 3, WIDTH), STATUS_OK);
    assert_int_equal(cache_put(c, &key, &other), STATUS_OK);
    assert_int_equal(cache_get(c, &got, &storage, &key), STATUS_OK);
    assert_same_blob(&got, &other);
    assert_int_equal(cache_counters_read(c).n_held, 1);
    buf_deinit(&storage);
    sample_free(&other);
}

static void never_more_bytes_are_held_than_allowed(void **state) {
    (void)state;
    open_with(20000);
    for (uint64_t i = 0; i < 500; i++) {
        assert_int_equal(put_sample(c, i, 1 + (uint32_t)(i % 5), WIDTH), STATUS_OK);
        cache_counters n = cache_counters_read(c);
        assert_true(n.bytes_held <= 20000);
        assert_int_equal(n.evictions + n.n_held, i + 1);
    }
    assert_int_equal(get_sample(c, 499, 5, WIDTH), STATUS_OK);
}

static void the_least_recently_used_goes_first(void **state) {
    (void)state;
    open_with(6 * 1400); /* six blobs of 1088 bytes and their book-keeping, not seven */
    for (uint64_t i = 0; i < 6; i++) assert_int_equal(put_sample(c, i, 1, WIDTH), STATUS_OK);
    assert_int_equal(cache_counters_read(c).n_held, 6);
    assert_int_equal(get_sample(c, 0, 1, WIDTH), STATUS_OK); /* 0 is now the newest, 1 the oldest */
    assert_int_equal(put_sample(c, 2, 1, WIDTH), STATUS_OK); /* so is 2 */
    assert_int_equal(put_sample(c, 6, 1, WIDTH), STATUS_OK);
    assert_int_equal(put_sample(c, 7, 1, WIDTH), STATUS_OK);
    static const bool stays[] = {true, false, true, false, true, true, true, true};
    for (uint64_t i = 0; i < 8; i++) {
        cache_key key = sample_key(i);
        assert_int_equal(cache_has(c, &key), stays[i] ? STATUS_OK : STATUS_NOT_FOUND);
    }
    assert_int_equal(cache_counters_read(c).evictions, 2);
}

static void a_blob_larger_than_the_cache_is_refused_and_drives_nobody_out(void **state) {
    (void)state;
    open_with(20000);
    assert_int_equal(put_sample(c, 1, 1, WIDTH), STATUS_OK);
    assert_int_equal(put_sample(c, 2, 20, WIDTH), STATUS_TOO_LARGE);
    assert_int_equal(get_sample(c, 1, 1, WIDTH), STATUS_OK);
}

static void a_reader_with_too_small_a_buffer_misses_and_deletes_nothing(void **state) {
    (void)state;
    open_with(1 << 20);
    cache_key key = sample_key(1);
    blob got;
    buf small;
    buf_init(&small, 100);
    assert_int_equal(put_sample(c, 1, 1, WIDTH), STATUS_OK);
    assert_int_equal(cache_get(c, &got, &small, &key), STATUS_NOT_FOUND);
    assert_int_equal(get_sample(c, 1, 1, WIDTH), STATUS_OK);
    assert_int_equal(cache_counters_read(c).corrupt, 0);
    buf_deinit(&small);
}

static void senseless_settings_are_refused(void **state) {
    (void)state;
    cache_settings settings = cache_settings_default();
    settings.memory_bytes = 100;
    assert_int_equal(cache_open(&c, "memory:", &settings, &e), STATUS_BAD_ARGUMENT);
    assert_null(c);
    settings = cache_settings_default();
    settings.ttl_ms = 0;
    assert_int_equal(cache_open(&c, "memory:", &settings, &e), STATUS_BAD_ARGUMENT);
    settings = cache_settings_default();
    settings.command_timeout_ms = 0;
    assert_int_equal(cache_open(&c, "memory:", &settings, &e), STATUS_BAD_ARGUMENT);
    cache_close(&c);
}

#define THREADS 4
#define ROUNDS  2000

static void *use_everything(void *arg) {
    rng r = rng_make((uint64_t)(uintptr_t)arg);
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t n = rng_below(&r, 20);
        cache_key key = sample_key(n);
        switch (rng_below(&r, 8)) {
        case 0:
        case 1:
        case 2:
            if (put_sample(c, n, 1, WIDTH) != STATUS_OK) return arg;
            break;
        case 3:
            IGNORE(cache_delete(c, &key), "races with the others");
            break;
        case 4:
            IGNORE(cache_has(c, &key), "races with the others");
            break;
        default:
            IGNORE(get_sample(c, n, 1, WIDTH), "checks the bytes itself");
        }
    }
    return NULL;
}

static void threads_get_whole_blobs_whatever_others_do(void **state) {
    (void)state;
    open_with(12000); /* about nine of twenty fit: evictions all the time */
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, use_everything, (void *)(i + 1)), 0);
    for (int i = 0; i < THREADS; i++) {
        void *failed = NULL;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    cache_counters n = cache_counters_read(c);
    assert_true(n.bytes_held <= 12000);
    assert_true(n.hits > 0 && n.evictions > 0);
    assert_int_equal(n.corrupt, 0);
}

int main(void) {
#define TEST(f) cmocka_unit_test_teardown(f, close_it)
    const struct CMUnitTest tests[] = {
        TEST(what_is_put_is_found_until_it_is_deleted),
        TEST(putting_again_replaces),
        TEST(never_more_bytes_are_held_than_allowed),
        TEST(the_least_recently_used_goes_first),
        TEST(a_blob_larger_than_the_cache_is_refused_and_drives_nobody_out),
        TEST(a_reader_with_too_small_a_buffer_misses_and_deletes_nothing),
        TEST(senseless_settings_are_refused),
        TEST(threads_get_whole_blobs_whatever_others_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
