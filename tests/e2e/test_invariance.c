/* The same 100 items, asked in every way: the bytes of the answers and of their log-probabilities are
 * always the same. */
#include "tests/support/redis_server.h"
#include "tests/support/result_lines.h"
#include "tests/support/support.h"

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

#define MIPHA      PROGRAM_DIR "/mipha"
#define SCENES     TEST_DATA_DIR "/demo_scenes"
#define N_ITEMS    100
#define TIMEOUT_MS 240000

typedef struct {
    char *dir, *items, *shuffled;
    result_lines expected; /* one thread, all at once, nothing cached */
    redis_server redis;
} world;

/* Items over the 60 scenes, two to six questions each, captions among them. */
static json_t *make_items(void) {
    json_t *scenes = json_array(), *items = json_array();
    FILE *f = fopen(SCENES "/scenes.jsonl", "r");
    assert_non_null(f);
    for (json_t *scene; (scene = json_loadf(f, JSON_DISABLE_EOF_CHECK, NULL));)
        (void)json_array_append_new(scenes, scene);
    (void)fclose(f);
    for (size_t i = 0; i < N_ITEMS; i++) {
        json_t *scene = json_array_get(scenes, i % json_array_size(scenes));
        json_t *all = json_object_get(scene, "prompts"), *prompts = json_array();
        for (size_t k = 0; k < 2 + i % 5 && k < json_array_size(all); k++)
            (void)json_array_append(prompts, json_array_get(all, k));
        char *path = path_join(SCENES, json_string_value(json_object_get(scene, "image")));
        (void)json_array_append_new(items, json_pack("{s:o, s:s, s:o}", "id", json_sprintf("item-%zu", i),
                                                     "image", path, "prompts", prompts));
        free(path);
    }
    json_decref(scenes);
    return items;
}

static char *write_items(const world *w, const char *name, const json_t *items) {
    char *path = path_join(w->dir, name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)(uintptr_t)items, i, item) {
        assert_int_equal(json_dumpf(item, f, JSON_COMPACT), 0);
        (void)fputc('\n', f);
    }
    (void)fclose(f);
    return path;
}

static void shuffle(json_t *items) {
    rng r = rng_make(test_seed());
    for (size_t i = json_array_size(items); i > 1; i--) {
        size_t other = (size_t)rng_below(&r, i);
        json_t *a = json_incref(json_array_get(items, i - 1)), *b = json_incref(json_array_get(items, other));
        (void)json_array_set_new(items, i - 1, b);
        (void)json_array_set_new(items, other, a);
    }
}

/* Words are added to the command line; returns what was written. */
static result_lines annotate(const world *w, const char *items, const char *const words[]) {
    char *out = path_join(w->dir, "out.jsonl");
    const char *argv[32] = {MIPHA, "annotate", "--input", items, "-o", out, "--overwrite", "--logprobs", "2",
                            "--max-new-tokens", "24", "-q"};
    for (size_t i = 0; words[i]; i++) argv[12 + i] = words[i];
    buf errors;
    buf_init(&errors, 1 << 20);
    int rc = child_run(argv, NULL, &errors, TIMEOUT_MS);
    if (rc != 0) fail_msg("exit status %d: %s", rc, errors.data ? (char *)errors.data : "");
    buf_deinit(&errors);
    result_lines set = result_lines_of(out);
    free(out);
    return set;
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* Returns how many lines had their features from the cache. */
static size_t gives_the_same(const world *w, const char *items, const char *const words[]) {
    result_lines got = annotate(w, items, words);
    result_lines_assert_same(&got, &w->expected);
    size_t n_cached = got.n_features_cached;
    result_lines_free(&got);
    return n_cached;
}

static int set_up(void **state) {
    world *w = calloc(1, sizeof *w);
    w->dir = temp_dir_make();
    json_t *items = make_items();
    w->items = write_items(w, "items.jsonl", items);
    shuffle(items);
    w->shuffled = write_items(w, "shuffled.jsonl", items);
    json_decref(items);
    redis_server_start(&w->redis, NULL);
    w->expected = annotate(w, w->items, WORDS("--threads", "1"));
    *state = w;
    return 0;
}

static int tear_down(void **state) {
    world *w = *state;
    result_lines_free(&w->expected);
    redis_server_stop(&w->redis);
    temp_dir_remove(w->dir);
    free(w->items);
    free(w->shuffled);
    free(w);
    return 0;
}

static void every_item_is_answered_with_log_probabilities(void **state) {
    const world *w = *state;
    assert_true(w->expected.n > 300);
    assert_int_equal(result_lines_with(&w->expected, "\"error\":null"), w->expected.n);
    assert_int_equal(result_lines_with(&w->expected, "\"logprobs\":[{"), w->expected.n);
}

static void one_at_a_time_changes_no_byte(void **state) {
    const world *w = *state;
    (void)gives_the_same(w, w->items, WORDS("-c", "1"));
}

static void another_order_changes_no_byte(void **state) {
    const world *w = *state;
    (void)gives_the_same(w, w->shuffled, WORDS("-c", "64"));
}

static void two_three_and_four_threads_change_no_byte(void **state) {
    const world *w = *state;
    for (char n[2] = "2"; n[0] <= '4'; n[0]++) (void)gives_the_same(w, w->items, WORDS("--threads", n));
}

static void little_memory_for_keys_and_values_changes_no_byte(void **state) {
    const world *w = *state;
    (void)gives_the_same(w, w->items, WORDS("--kv-bytes", "4M"));
}

static void a_second_run_over_a_shared_cache_encodes_nothing_and_changes_no_byte(void **state) {
    world *w = *state;
    size_t n_cold = gives_the_same(w, w->items, WORDS("--cache", w->redis.url));
    assert_true(n_cold < w->expected.n);
    assert_int_equal(gives_the_same(w, w->shuffled, WORDS("--cache", w->redis.url)), w->expected.n);
}

static void a_cluster_changes_no_byte_cold_or_warm(void **state) {
    const world *w = *state;
    char *ready = path_join(w->dir, "ready");
    const char *const argv[] = {MIPHA, "up", "--vision-nodes", "2", "--lm-nodes", "2", "--ready-file", ready,
                                NULL};
    child up;
    child_start(&up, argv, NULL);
    buf endpoint;
    buf_init(&endpoint, 4096);
    while (!file_read(&endpoint, ready)) assert_int_equal(child_wait(&up, 20), -1);
    char *end = strchr((char *)endpoint.data, '\n');
    if (end) *end = 0;
    const char *broker = (const char *)endpoint.data;
    (void)gives_the_same(w, w->items, WORDS("--broker", broker, "-c", "64"));
    (void)gives_the_same(w, w->shuffled, WORDS("--broker", broker, "-c", "1"));
    assert_int_equal(child_stop(&up, SIGTERM, TIMEOUT_MS), 0);
    child_close(&up);
    buf_deinit(&endpoint);
    free(ready);
}

int main(void) {
    if (!redis_server_exists()) {
        print_message("redis-server is not installed\n");
        return TEST_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_is_answered_with_log_probabilities),
        cmocka_unit_test(one_at_a_time_changes_no_byte),
        cmocka_unit_test(another_order_changes_no_byte),
        cmocka_unit_test(two_three_and_four_threads_change_no_byte),
        cmocka_unit_test(little_memory_for_keys_and_values_changes_no_byte),
        cmocka_unit_test(a_second_run_over_a_shared_cache_encodes_nothing_and_changes_no_byte),
        cmocka_unit_test(a_cluster_changes_no_byte_cold_or_warm),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
