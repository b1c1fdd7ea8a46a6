/* A real cluster: redis-server, mipha-broker, two vision nodes, two language nodes, all separate
 * processes, some of them killed while they work. */
#include "tests/support/redis_server.h"
#include "tests/support/support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/embedded.h"
#include "client/client.h"
#include "proto/socket.h"

#define N_ITEMS  200
#define N_SCENES 40
#define WAIT_MS  60000
#define MODEL    SOURCE_DIR "/models/mipha-demo"

static const request_question questions[] = {
    {.prompt = "Describe the image."}, {.prompt = "How many objects are there?"}, {.prompt = "Is there a circle?"}};
#define N_QUESTIONS (sizeof questions / sizeof *questions)

static const char *const front_args[] = {"--front", "tcp://127.0.0.1:*", "--back", "tcp://127.0.0.1:*"};

typedef struct {
    redis_server redis;
    child broker, nodes[4]; /* two vision nodes, then two language nodes */
    char *dir;
    char front[128], back[128];
    void *context;
    client *client;
} cluster;

static char *expected[N_SCENES][N_QUESTIONS]; /* what embedded mode answers */

static void start_node(cluster *k, int i) {
    const char *program = i < 2 ? PROGRAM_DIR "/mipha-vision-node" : PROGRAM_DIR "/mipha-lm-node";
    const char *argv[] = {program, "--broker", k->back, "--model", MODEL, "--cache", k->redis.url,
                          "--threads", "1", "--drain-ms", "5000", NULL};
    child_start(&k->nodes[i], argv, NULL);
    if (!child_wait_for_output(&k->nodes[i], "joined", WAIT_MS)) {
        buf text;
        buf_init(&text, 1 << 20);
        child_stderr(&k->nodes[i], &text);
        fail_msg("node %d did not join: %s", i, text.data ? (const char *)text.data : "");
    }
}

static void read_endpoints(cluster *k, const char *ready) {
    FILE *f = fopen(ready, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%127s %127s", k->front, k->back), 2);
    (void)fclose(f);
}

static int start_cluster(void **state) {
    cluster *k = calloc(1, sizeof *k);
    k->dir = temp_dir_make();
    redis_server_start(&k->redis, NULL);
    char *ready = path_join(k->dir, "ready");
    const char *argv[] = {PROGRAM_DIR "/mipha-broker", front_args[0], front_args[1], front_args[2],
                          front_args[3], "--heartbeat-ms", "200", "--lease-ms", "5000",
                          "--ready-file", ready, NULL};
    child_start(&k->broker, argv, NULL);
    assert_true(child_wait_for_output(&k->broker, "ready front", WAIT_MS));
    read_endpoints(k, ready);
    free(ready);
    for (int i = 0; i < 4; i++) start_node(k, i);
    k->context = wire_context_open();
    err e;
    client_settings wishes = {.name = "test", .window_items = N_ITEMS};
    if (client_open(&k->client, k->context, k->front, &wishes, &e) != STATUS_OK) fail_msg("%s", e.text);
    *state = k;
    return 0;
}

static int stop_cluster(void **state) {
    cluster *k = *state;
    client_close(&k->client);
    wire_context_close(&k->context);
    for (int i = 0; i < 4; i++) child_close(&k->nodes[i]);
    child_close(&k->broker);
    redis_server_stop(&k->redis);
    temp_dir_remove(k->dir);
    free(k);
    return 0;
}

static void submit(client *c, size_t i, uintptr_t *tag) {
    char name[64];
    (void)snprintf(name, sizeof name, "scene-%02zu.jpg", i % N_SCENES);
    char *path = path_join(TEST_DATA_DIR "/demo_scenes", name);
    buf image;
    buf_init(&image, 16 << 20);
    assert_true(file_read(&image, path));
    request r = {.questions = questions, .n_questions = N_QUESTIONS, .sampling.max_new_tokens = 32};
    client_item item = {.tag = tag, .image = {image.data, image.len_bytes}, .request = &r};
    client_random_id(&item.id);
    err e;
    if (client_submit(c, &item, &e) != STATUS_OK) fail_msg("%s: %s", path, e.text);
    buf_deinit(&image);
    free(path);
}

/* Takes one result: counts it for its item and compares its texts with what embedded mode said. */
static void take_result(client *c, int answered[], bool is_reference) {
    client_event event;
    err e = {0};
    do {
        status st = client_poll(c, WAIT_MS, &event, &e);
        if (st != STATUS_OK) fail_msg("no result: %s", status_text((int)st));
    } while (event.kind != CLIENT_RESULT);
    size_t i = *(uintptr_t *)event.tag;
    if (event.code != STATUS_OK) fail_msg("item %zu: %s", i, event.text);
    assert_int_equal(event.outcome.n_answers, N_QUESTIONS);
    answered[i]++;
    for (size_t q = 0; q < N_QUESTIONS; q++) {
        if (is_reference) expected[i % N_SCENES][q] = strdup(event.outcome.answers[q].text);
        else assert_string_equal(event.outcome.answers[q].text, expected[i % N_SCENES][q]);
    }
    client_ack(c, &event.id);
}

static int ask_embedded_mode(void **state) {
    (void)state;
    embedded *em;
    client *c;
    err e;
    embedded_settings settings = embedded_defaults();
    settings.model = (model_settings){.dir = MODEL, .parts = MODEL_PART_ALL};
    if (embedded_open(&em, &settings, &e) != STATUS_OK) fail_msg("%s", e.text);
    client_settings wishes = {.name = "test", .window_items = N_SCENES};
    assert_int_equal(client_open(&c, embedded_context(em), embedded_endpoint(em), &wishes, &e), STATUS_OK);
    uintptr_t tags[N_SCENES];
    int answered[N_SCENES] = {0};
    for (size_t i = 0; i < N_SCENES; i++) {
        tags[i] = i;
        submit(c, i, &tags[i]);
    }
    for (size_t i = 0; i < N_SCENES; i++) take_result(c, answered, true);
    client_close(&c);
    embedded_close(&em);
    return 0;
}

static int free_expected(void **state) {
    (void)state;
    for (size_t i = 0; i < N_SCENES; i++)
        for (size_t q = 0; q < N_QUESTIONS; q++) free(expected[i][q]);
    return 0;
}

static double metric_of(cluster *k, const char *name) {
    const status_report *report;
    err e;
    if (client_status(k->client, WAIT_MS, &report, &e) != STATUS_OK) fail_msg("%s", e.text);
    for (size_t i = 0; i < report->n_metrics; i++)
        if (strcmp(report->metrics[i].name, name) == 0) return report->metrics[i].value;
    fail_msg("no metric %s", name);
    return 0;
}

typedef void disturbance(cluster *k, size_t n_answered);

static void run_items(cluster *k, disturbance *disturb) {
    uintptr_t tags[N_ITEMS];
    int answered[N_ITEMS] = {0};
    for (size_t i = 0; i < N_ITEMS; i++) {
        tags[i] = i;
        submit(k->client, i, &tags[i]);
    }
    for (size_t n = 0; n < N_ITEMS; n++) {
        disturb(k, n);
        take_result(k->client, answered, false);
    }
    for (size_t i = 0; i < N_ITEMS; i++) assert_int_equal(answered[i], 1);
    assert_true(metric_of(k, "accepted") == N_ITEMS);
    assert_true(metric_of(k, "done") == N_ITEMS);
    assert_true(metric_of(k, "in_flight") == 0);
}

static void none(cluster *k, size_t n) {
    (void)k;
    (void)n;
}

static void two_hundred_items_give_the_bytes_of_embedded_mode_and_one_encoding_an_image(void **state) {
    cluster *k = *state;
    run_items(k, none);
    assert_true(metric_of(k, "encodes") == N_SCENES);
}

static void kill_two(cluster *k, size_t n) {
    if (n == 10) (void)child_stop(&k->nodes[0], SIGKILL, WAIT_MS);
    if (n == 20) (void)child_stop(&k->nodes[2], SIGKILL, WAIT_MS);
}

static void a_vision_node_and_a_language_node_killed_in_the_middle_cost_no_answer(void **state) {
    run_items(*state, kill_two);
}

static void kill_redis(cluster *k, size_t n) {
    if (n == 10) redis_server_kill(&k->redis);
    if (n == 12) redis_server_restart(&k->redis);
}

static void redis_killed_and_started_again_costs_no_answer(void **state) {
    run_items(*state, kill_redis);
}

static void kill_redis_for_good(cluster *k, size_t n) {
    if (n == 10) redis_server_kill(&k->redis);
}

static void redis_that_stays_away_costs_no_answer_because_features_travel_with_the_work(void **state) {
    cluster *k = *state;
    run_items(k, kill_redis_for_good);
    assert_true(metric_of(k, "features_handed_over") > 0);
}

static void every_program_drains_on_sigterm_and_ends_with_0(void **state) {
    cluster *k = *state;
    run_items(k, none);
    for (int i = 0; i < 4; i++) assert_int_equal(child_stop(&k->nodes[i], SIGTERM, WAIT_MS), 0);
    assert_int_equal(child_stop(&k->broker, SIGTERM, WAIT_MS), 0);
}

#define STORY(f) cmocka_unit_test_setup_teardown(f, start_cluster, stop_cluster)

int main(void) {
    if (!redis_server_exists()) {
        print_message("redis-server is not installed\n");
        return TEST_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        STORY(two_hundred_items_give_the_bytes_of_embedded_mode_and_one_encoding_an_image),
        STORY(a_vision_node_and_a_language_node_killed_in_the_middle_cost_no_answer),
        STORY(redis_killed_and_started_again_costs_no_answer),
        STORY(redis_that_stays_away_costs_no_answer_because_features_travel_with_the_work),
        STORY(every_program_drains_on_sigterm_and_ends_with_0),
    };
    return cmocka_run_group_tests(tests, ask_embedded_mode, free_expected);
}
