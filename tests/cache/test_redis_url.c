/* Which URLs name a Redis, and that no error text shows a password. */
#include "cache/redis_url.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/support.h"

static redis_url list[CACHE_SERVERS_MAX];
static size_t n;
static err e;

static status parse(const char *text) { return redis_url_parse(list, &n, text, &e); }

static void each_part_of_a_url_is_read(void **state) {
    (void)state;
    assert_int_equal(parse("redis://127.0.0.1"), STATUS_OK);
    assert_int_equal(n, 1);
    assert_string_equal(list[0].host, "127.0.0.1");
    assert_int_equal(list[0].port, 6379);
    assert_int_equal(list[0].db, 0);
    assert_string_equal(list[0].password, "");
    assert_string_equal(list[0].name, "redis://127.0.0.1:6379/0");

    assert_int_equal(parse("redis://:s%40cret%2C@cache.example:7000/12"), STATUS_OK);
    assert_string_equal(list[0].password, "s@cret,");
    assert_string_equal(list[0].user, "");
    assert_string_equal(list[0].host, "cache.example");
    assert_int_equal(list[0].port, 7000);
    assert_int_equal(list[0].db, 12);
    assert_string_equal(list[0].name, "redis://cache.example:7000/12");

    assert_int_equal(parse("redis://node:pw@[::1]:7001/"), STATUS_OK);
    assert_string_equal(list[0].user, "node");
    assert_string_equal(list[0].host, "::1");
    assert_string_equal(list[0].name, "redis://[::1]:7001/0");

    assert_int_equal(parse("redis+unix://:pw@/run/redis.sock?db=3"), STATUS_OK);
    assert_true(list[0].is_unix);
    assert_string_equal(list[0].host, "/run/redis.sock");
    assert_int_equal(list[0].db, 3);
    assert_string_equal(list[0].name, "redis+unix:///run/redis.sock?db=3");
}

static void several_servers_stand_apart_by_commas(void **state) {
    (void)state;
    assert_int_equal(parse("redis://a,redis://:x@b:1/2,redis+unix:///c"), STATUS_OK);
    assert_int_equal(n, 3);
    assert_string_equal(list[1].host, "b");
    assert_int_equal(parse("redis://a,redis://:x@a:6379/0"), STATUS_BAD_ARGUMENT);
    assert_string_equal(e.text, "cache URL: redis://a:6379/0 stands there twice");
    char many[CACHE_SERVERS_MAX * 16 + 32] = "redis://h0";
    for (int i = 1; i <= CACHE_SERVERS_MAX; i++)
        (void)snprintf(many + strlen(many), sizeof many - strlen(many), ",redis://h%d", i);
    assert_int_equal(parse(many), STATUS_BAD_ARGUMENT);
    assert_string_equal(e.text, "cache URL: more than 16 servers");
}

static void anything_else_is_refused(void **state) {
    (void)state;
    static const char *const wrong[] = {
        "", "redis", "redis://", "redis:///", "redis://:6379", "redis://host:", "redis://host:0",
        "redis://host:65536", "redis://host:12a", "redis://host:-1", "redis://host/x",
        "redis://host/1/2", "redis://host/65536", "redis://host/99999999999999999999",
        "redis://secret@host", "redis://:@host", "redis://:%4@host", "redis://:%zz@host",
        "redis://:%00@host", "redis://[::1", "redis://[::1]x", "redis://[]:1", "rediss://host",
        "http://host", "redis+unix://", "redis+unix://relative", "redis+unix:///s?db=",
        "redis+unix:///s?x=1", "redis://a,", ",redis://a", "redis://a,,redis://b", "memory",
        "redis+unix:///"
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
        "xxxxxxxxxxxxxxxxxxx"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (parse(wrong[i]) != STATUS_BAD_ARGUMENT) fail_msg("accepted \"%s\"", wrong[i]);
    char *longest = malloc(100001);
    assert_non_null(longest);
    memset(longest, 'a', 100000);
    longest[100000] = '\0';
    memcpy(longest, "redis://", 8);
    assert_int_equal(parse(longest), STATUS_BAD_ARGUMENT);
    longest[8] = ':';
    longest[99990] = '@';
    assert_int_equal(parse(longest), STATUS_BAD_ARGUMENT);
    free(longest);
}

static void no_text_of_an_error_shows_a_password(void **state) {
    (void)state;
    static const char *const wrong[] = {"redis://:hunter2@host:x", "redis://:hunter2,@host",
                                        "redis://hunter2@host", "redis://a,redis://u:hunter2@",
                                        "redis://:hunter2@a,redis://:hunter2@a"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(parse(wrong[i]), STATUS_BAD_ARGUMENT);
        assert_null(strstr(e.text, "hunter2"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_part_of_a_url_is_read),
        cmocka_unit_test(several_servers_stand_apart_by_commas),
        cmocka_unit_test(anything_else_is_refused),
        cmocka_unit_test(no_text_of_an_error_shows_a_password),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
