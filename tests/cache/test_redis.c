/* The cache in Redis, against real servers that are stopped, killed, filled and tampered with. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>

#include "base/clock.h"
#include "tests/cache/sample.h"
#include "tests/support/redis_server.h"

static redis_server r;
static cache *c;
static err e;

static status open_cache(const char *url) {
    cache_settings settings = cache_settings_default();
    settings.command_timeout_ms = 2000; /* the machine may be busy; tests of time set their own */
    return cache_open(&c, url, &settings, &e);
}

static void start(const char *const arguments[]) {
    redis_server_start(&r, arguments);
    assert_int_equal(open_cache(r.url), STATUS_OK);
}

static int clean(void **state) {
    (void)state;
    cache_close(&c);
    redis_server_stop(&r);
    return 0;
}

static long long ask(const char *format, const cache_key *key) {
    char command[256];
    /* The formats are the literals below. */
    (void)snprintf(command, sizeof command, "%.*s %s%s", (int)strcspn(format, "%"), format, key->text,
                   strchr(format, '%') ? strchr(format, '%') + 1 : "");
    return redis_server_command(&r, NULL, command);
}

static void what_one_handle_puts_another_finds(void **state) {
    (void)state;
    start(NULL);
    assert_int_equal(get_sample(c, 1, 729, 1152), STATUS_NOT_FOUND);
    assert_int_equal(put_sample(c, 1, 729, 1152), STATUS_OK); /* the size of Mipha-3B */
    assert_int_equal(put_sample(c, 2, 1, 1), STATUS_OK);
    assert_int_equal(cache_check(c, &e), STATUS_OK);
    cache_close(&c);
    assert_int_equal(open_cache(r.url), STATUS_OK);
    cache_key key = sample_key(1), other = sample_key(3);
    assert_int_equal(get_sample(c, 1, 729, 1152), STATUS_OK);
    assert_int_equal(get_sample(c, 2, 1, 1), STATUS_OK);
    assert_int_equal(cache_has(c, &key), STATUS_OK);
    assert_int_equal(cache_has(c, &other), STATUS_NOT_FOUND);
    assert_int_equal(cache_delete(c, &key), STATUS_OK);
    assert_int_equal(cache_has(c, &key), STATUS_NOT_FOUND);
    cache_counters n = cache_counters_read(c);
    assert_int_equal(n.hits, 2);
    assert_int_equal(n.errors, 0);
}

static void a_unix_socket_serves_as_well(void **state) {
    (void)state;
    redis_server_start(&r, NULL);
    char url[256];
    (void)snprintf(url, sizeof url, "redis+unix://%s?db=1", r.socket_path);
    assert_int_equal(open_cache(url), STATUS_OK);
    assert_int_equal(put_sample(c, 1, 10, 100), STATUS_OK);
    assert_int_equal(get_sample(c, 1, 10, 100), STATUS_OK);
}

static void every_entry_ends_and_not_all_at_the_same_time(void **state) {
    (void)state;
    start(NULL);
    long long least = INT64_MAX, most = 0, week_ms = 7LL * 24 * 3600 * 1000;
    for (uint64_t i = 0; i < 50; i++) {
        assert_int_equal(put_sample(c, i, 1, 4), STATUS_OK);
        cache_key key = sample_key(i);
        long long ttl = ask("PTTL", &key);
        assert_true(ttl > week_ms * 89 / 100 && ttl <= week_ms * 110 / 100);
        least = ttl < least ? ttl : least;
        most = ttl > most ? ttl : most;
    }
    assert_true(most - least > week_ms / 20);
}

static void the_database_of_the_url_is_used(void **state) {
    (void)state;
    redis_server_start(&r, NULL);
    char url[128];
    (void)snprintf(url, sizeof url, "%s/3", r.url);
    assert_int_equal(open_cache(url), STATUS_OK);
    assert_int_equal(put_sample(c, 1, 1, 4), STATUS_OK);
    assert_int_equal(redis_server_command(&r, NULL, "DBSIZE"), 0);
    cache_close(&c);
    (void)snprintf(url, sizeof url, "%s/999", r.url);
    assert_int_equal(open_cache(url), STATUS_UNAVAILABLE);
    assert_non_null(strstr(e.text, "refused the database number"));
}

static void a_password_is_needed_given_and_never_shown(void **state) {
    (void)state;
    redis_server_start(&r, (const char *const[]){"--requirepass", "right", NULL});
    char url[128];
    (void)snprintf(url, sizeof url, "redis://:right@127.0.0.1:%d", r.port);
    assert_int_equal(open_cache(url), STATUS_OK);
    assert_int_equal(put_sample(c, 1, 1, 4), STATUS_OK);
    assert_int_equal(get_sample(c, 1, 1, 4), STATUS_OK);
    cache_close(&c);

    (void)snprintf(url, sizeof url, "redis://:wr0ng@127.0.0.1:%d", r.port);
    assert_int_equal(open_cache(url), STATUS_UNAVAILABLE);
    assert_null(c);
    char server[64];
    (void)snprintf(server, sizeof server, "127.0.0.1:%d/0 refused the password", r.port);
    assert_non_null(strstr(e.text, server));
    assert_null(strstr(e.text, "wr0ng"));

    assert_int_equal(open_cache(r.url), STATUS_UNAVAILABLE);
    assert_non_null(strstr(e.text, "NOAUTH"));
}

static bool hits_one(void *arg) {
    (void)arg;
    return put_sample(c, 1, 1, 4) == STATUS_OK && get_sample(c, 1, 1, 4) == STATUS_OK;
}

static void an_absent_server_is_a_miss_until_it_comes(void **state) {
    (void)state;
    redis_server_start(&r, NULL);
    redis_server_kill(&r);
    assert_int_equal(open_cache(r.url), STATUS_OK);
    assert_int_equal(get_sample(c, 1, 1, 4), STATUS_UNAVAILABLE);
    assert_int_equal(put_sample(c, 1, 1, 4), STATUS_UNAVAILABLE);
    cache_key key = sample_key(1);
    assert_int_equal(cache_has(c, &key), STATUS_UNAVAILABLE);
    assert_int_equal(cache_check(c, &e), STATUS_UNAVAILABLE);
    assert_non_null(strstr(e.text, r.url));
    assert_int_equal(cache_counters_read(c).errors, 3);
    redis_server_restart(&r);
    assert_true(wait_until(hits_one, NULL, 10000));
    assert_int_equal(cache_check(c, &e), STATUS_OK);
}

static void a_server_killed_in_the_middle_costs_misses_only(void **state) {
    (void)state;
    start(NULL);
    for (uint64_t i = 0; i < 60; i++) {
        if (i == 20) redis_server_kill(&r);
        if (i == 40) redis_server_restart(&r);
        status put = put_sample(c, i, 100, 100), got = get_sample(c, i, 100, 100);
        if (i < 20) assert_true(put == STATUS_OK && got == STATUS_OK);
        if (i >= 20 && i < 40) assert_true(put == STATUS_UNAVAILABLE && got == STATUS_UNAVAILABLE);
    }
    assert_true(wait_until(hits_one, NULL, 10000));
}

static void a_restart_between_two_calls_is_not_even_noticed(void **state) {
    (void)state;
    start(NULL);
    assert_int_equal(put_sample(c, 1, 1, 4), STATUS_OK);
    redis_server_kill(&r);
    redis_server_restart(&r);
    assert_int_equal(get_sample(c, 1, 1, 4), STATUS_NOT_FOUND);
    assert_int_equal(cache_counters_read(c).errors, 0);
}

static void a_hanging_server_costs_one_timeout_five_times_then_nothing(void **state) {
    (void)state;
    redis_server_start(&r, NULL);
    cache_settings settings = cache_settings_default();
    settings.connect_timeout_ms = settings.command_timeout_ms = 100;
    assert_int_equal(cache_open(&c, r.url, &settings, &e), STATUS_OK);
    assert_int_equal(kill(r.process.pid, SIGSTOP), 0);
    int64_t began_us = clock_now_us(), longest_us = 0;
    int n_slow = 0, n_calls = 0;
    while (clock_now_us() - began_us < 3 * CLOCK_SECOND_US) {
        int64_t call_us = clock_now_us();
        assert_int_equal(get_sample(c, 1, 1, 4), STATUS_UNAVAILABLE);
        call_us = clock_now_us() - call_us;
        longest_us = call_us > longest_us ? call_us : longest_us;
        n_slow += call_us > 50 * CLOCK_MS_US;
        n_calls++;
    }
    assert_int_equal(kill(r.process.pid, SIGCONT), 0);
    print_message("%d calls, %d of them slow, longest %lld us\n", n_calls, n_slow,
                  (long long)longest_us);
    /* Five failures open the breaker; then about one probe a second. */
    assert_in_range(n_slow, 5, 9);
    assert_true(n_calls > 1000);
    assert_true(longest_us < 1500 * CLOCK_MS_US);
    assert_true(wait_until(hits_one, NULL, 10000));
}

static void a_tampered_value_is_a_miss_and_is_deleted(void **state) {
    (void)state;
    start(NULL);
    static const char *const tamper[] = {"SETRANGE % 0 X", "SETRANGE % 63 X", "SETRANGE % 500 XYZ",
                                         "APPEND % more", "SET % short", "SETRANGE % 70000000 x"};
    for (size_t i = 0; i < sizeof tamper / sizeof *tamper; i++) {
        assert_int_equal(put_sample(c, 1, 10, 100), STATUS_OK);
        cache_key key = sample_key(1);
        assert_true(ask(tamper[i], &key) >= 0);
        assert_int_equal(get_sample(c, 1, 10, 100), STATUS_NOT_FOUND);
        assert_int_equal(ask("EXISTS", &key), 0);
        assert_int_equal(cache_counters_read(c).corrupt, i + 1);
        assert_int_equal(cache_counters_read(c).misses, i + 1);
    }
    assert_int_equal(cache_counters_read(c).errors, 0);
}

static void a_value_of_another_type_or_key_is_a_miss_and_is_deleted(void **state) {
    (void)state;
    start(NULL);
    cache_key key = sample_key(1), other = sample_key(2);
    assert_int_equal(ask("LPUSH % x", &key), 1);
    assert_int_equal(get_sample(c, 1, 10, 100), STATUS_NOT_FOUND);
    assert_int_equal(ask("EXISTS", &key), 0);
    assert_int_equal(put_sample(c, 2, 10, 100), STATUS_OK);
    char copy[300];
    (void)snprintf(copy, sizeof copy, "COPY %s %s", other.text, key.text);
    assert_int_equal(redis_server_command(&r, NULL, copy), 1);
    assert_int_equal(get_sample(c, 1, 10, 100), STATUS_NOT_FOUND);
    assert_int_equal(get_sample(c, 2, 10, 100), STATUS_OK);
    assert_int_equal(cache_counters_read(c).corrupt, 2);
}

static void a_flushed_server_misses(void **state) {
    (void)state;
    start(NULL);
    assert_int_equal(put_sample(c, 1, 10, 100), STATUS_OK);
    assert_int_equal(redis_server_command(&r, NULL, "FLUSHALL"), 0);
    assert_int_equal(get_sample(c, 1, 10, 100), STATUS_NOT_FOUND);
}

static void a_full_server_evicts_features_and_goes_on(void **state) {
    (void)state;
    start((const char *const[]){"--maxmemory", "16mb", "--maxmemory-policy", "volatile-lru", NULL});
    int n_found = 0;
    for (uint64_t i = 0; i < 60; i++) assert_int_equal(put_sample(c, i, 500, 500), STATUS_OK);
    for (uint64_t i = 0; i < 60; i++) n_found += get_sample(c, i, 500, 500) == STATUS_OK;
    assert_in_range(n_found, 5, 40);
    assert_int_equal(get_sample(c, 59, 500, 500), STATUS_OK);
}

static void a_full_server_that_may_not_evict_refuses_puts_and_still_answers_gets(void **state) {
    (void)state;
    start((const char *const[]){"--maxmemory", "8mb", "--maxmemory-policy", "noeviction", NULL});
    assert_int_equal(put_sample(c, 0, 500, 500), STATUS_OK);
    status st = STATUS_OK;
    for (uint64_t i = 1; i < 40 && st == STATUS_OK; i++) st = put_sample(c, i, 500, 500);
    assert_int_equal(st, STATUS_UNAVAILABLE);
    assert_int_equal(get_sample(c, 0, 500, 500), STATUS_OK);
    assert_int_equal(redis_server_command(&r, NULL, "FLUSHALL"), 0);
    assert_true(wait_until(hits_one, NULL, 10000));
}

#define KEYS 300

static void only_the_share_of_a_removed_server_moves(void **state) {
    (void)state;
    redis_server servers[3];
    char all[256], two[256];
    for (int i = 0; i < 3; i++) redis_server_start(&servers[i], NULL);
    (void)snprintf(all, sizeof all, "%s,%s,%s", servers[0].url, servers[1].url, servers[2].url);
    (void)snprintf(two, sizeof two, "%s,%s", servers[2].url, servers[0].url); /* order is no matter */
    assert_int_equal(open_cache(all), STATUS_OK);
    for (uint64_t i = 0; i < KEYS; i++) assert_int_equal(put_sample(c, i, 1, 4), STATUS_OK);
    long long sizes[3], total = 0;
    for (int i = 0; i < 3; i++) {
        sizes[i] = redis_server_command(&servers[i], NULL, "DBSIZE");
        assert_in_range(sizes[i], KEYS / 3 - 40, KEYS / 3 + 40); /* 5 standard deviations of 8.2 */
        total += sizes[i];
    }
    assert_int_equal(total, KEYS);
    cache_close(&c);

    assert_int_equal(open_cache(two), STATUS_OK);
    long long n_found = 0;
    for (uint64_t i = 0; i < KEYS; i++) n_found += get_sample(c, i, 1, 4) == STATUS_OK;
    assert_int_equal(n_found, KEYS - sizes[1]);
    cache_close(&c);

    /* A server that is down keeps its share: the others answer, its keys are misses. */
    assert_int_equal(open_cache(all), STATUS_OK);
    redis_server_kill(&servers[1]);
    n_found = 0;
    for (uint64_t i = 0; i < KEYS; i++) n_found += get_sample(c, i, 1, 4) == STATUS_OK;
    assert_int_equal(n_found, KEYS - sizes[1]);
    assert_int_equal(cache_check(c, &e), STATUS_UNAVAILABLE);
    assert_non_null(strstr(e.text, servers[1].url));
    for (int i = 0; i < 3; i++) redis_server_stop(&servers[i]);
}

static void *put_and_get(void *arg) {
    uint64_t first = (uint64_t)(uintptr_t)arg * 1000;
    for (uint64_t i = first; i < first + 100; i++)
        if (put_sample(c, i, 10, 100) != STATUS_OK || get_sample(c, i, 10, 100) != STATUS_OK)
            return arg;
    return NULL;
}

static void threads_may_share_a_handle(void **state) {
    (void)state;
    start(NULL);
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, put_and_get, (void *)(i + 1)), 0);
    for (int i = 0; i < 4; i++) {
        void *failed = NULL;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    assert_int_equal(cache_counters_read(c).hits, 400);
}

int main(void) {
#define TEST(f) cmocka_unit_test_teardown(f, clean)
    const struct CMUnitTest tests[] = {
        TEST(what_one_handle_puts_another_finds),
        TEST(a_unix_socket_serves_as_well),
        TEST(every_entry_ends_and_not_all_at_the_same_time),
        TEST(the_database_of_the_url_is_used),
        TEST(a_password_is_needed_given_and_never_shown),
        TEST(an_absent_server_is_a_miss_until_it_comes),
        TEST(a_server_killed_in_the_middle_costs_misses_only),
        TEST(a_restart_between_two_calls_is_not_even_noticed),
        TEST(a_hanging_server_costs_one_timeout_five_times_then_nothing),
        TEST(a_tampered_value_is_a_miss_and_is_deleted),
        TEST(a_value_of_another_type_or_key_is_a_miss_and_is_deleted),
        TEST(a_flushed_server_misses),
        TEST(a_full_server_evicts_features_and_goes_on),
        TEST(a_full_server_that_may_not_evict_refuses_puts_and_still_answers_gets),
        TEST(only_the_share_of_a_removed_server_moves),
        TEST(threads_may_share_a_handle),
    };
    if (!redis_server_exists()) {
        print_message("redis-server is not installed: the Redis cache is not tested\n");
        return TEST_SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
