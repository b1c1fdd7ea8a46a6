/* What questions cost. The image is encoded once and its prefix computed once however many questions are
 * asked about it, and images seen before are not encoded again, not even by another vision node. Counted
 * in what the programs say they computed; time is compared too, with room for a busy machine. */
#include "tests/support/redis_server.h"
#include "tests/support/result_lines.h"
#include "tests/support/support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/embedded.h"
#include "client/client.h"

#define MIPHA       PROGRAM_DIR "/mipha"
#define MODEL       SOURCE_DIR "/models/mipha-demo"
#define SCENES      TEST_DATA_DIR "/demo_scenes"
#define N_QUESTIONS 10
#define N_IMAGES    8   /* each kind of item is asked this often */
#define RATIO_MAX   2.5 /* of ten questions to one */
#define WAIT_MS     120000
#define WORDS(...)  ((const char *const[]){__VA_ARGS__, NULL})

static const request_question questions[N_QUESTIONS] = {
    {.prompt = "Is there a dog in the image?"},    {.prompt = "Is there a cat in the image?"},
    {.prompt = "Is there a circle in the image?"}, {.prompt = "Is there a star in the image?"},
    {.prompt = "Is there a tree in the image?"},   {.prompt = "How many dogs are there?"},
    {.prompt = "How many objects are there?"},     {.prompt = "How many circles are there?"},
    {.prompt = "Is there a bee in the image?"},    {.prompt = "How many bees are there?"}};

/* ---- one process, looked into ---------------------------------------------------------------- */

typedef struct {
    embedded *em;
    client *c;
} engine;

static void engine_open(engine *g) {
    err e;
    embedded_settings settings = embedded_defaults();
    settings.model = (model_settings){.dir = MODEL, .parts = MODEL_PART_ALL};
    settings.n_threads = 1;
    if (embedded_open(&g->em, &settings, &e) != STATUS_OK) fail_msg("%s", e.text);
    if (client_open(&g->c, embedded_context(g->em), embedded_endpoint(g->em), NULL, &e) != STATUS_OK)
        fail_msg("%s", e.text);
}

static void engine_close(engine *g) {
    client_close(&g->c);
    embedded_close(&g->em);
}

/* Asks the first n questions about scene number idx; returns how many tokens they were, prompts and images. */
static double ask(engine *g, int idx, size_t n) {
    char name[32];
    (void)snprintf(name, sizeof name, "scene-%02d.jpg", idx);
    char *path = path_join(SCENES, name);
    buf image;
    buf_init(&image, 1 << 20);
    assert_true(file_read(&image, path));
    request r = {.questions = questions, .n_questions = n, .sampling.max_new_tokens = 8};
    client_item item = {.image = {image.data, image.len_bytes}, .request = &r};
    client_random_id(&item.id);
    client_event event;
    err e;
    if (client_submit(g->c, &item, &e) != STATUS_OK) fail_msg("%s: %s", path, e.text);
    do {
        if (client_poll(g->c, WAIT_MS, &event, &e) != STATUS_OK) fail_msg("%s: no answer", path);
    } while (event.kind != CLIENT_RESULT);
    if (event.code != STATUS_OK) fail_msg("%s: %s", path, event.text);
    assert_int_equal(event.outcome.n_answers, n);
    double n_tokens = 0;
    for (size_t i = 0; i < n; i++) {
        assert_true(event.outcome.answers[i].finish_reason != ANSWER_ERROR);
        n_tokens += event.outcome.answers[i].prompt_tokens + event.outcome.image_tokens;
    }
    client_ack(g->c, &event.id);
    buf_deinit(&image);
    free(path);
    return n_tokens;
}

/* A figure summed over the nodes, or the broker's when no node has it. */
static double figure(engine *g, const char *name) {
    const status_report *report;
    err e;
    if (client_status(g->c, WAIT_MS, &report, &e) != STATUS_OK) fail_msg("%s", e.text);
    double sum = 0;
    for (size_t i = 0; i < report->n_metrics; i++)
        if (strcmp(report->metrics[i].name, name) == 0) sum += report->metrics[i].value;
    for (size_t n = 0; n < report->n_nodes; n++)
        for (size_t i = 0; i < report->nodes[n].n_metrics; i++)
            if (strcmp(report->nodes[n].metrics[i].name, name) == 0) sum += report->nodes[n].metrics[i].value;
    return sum;
}

/* Nodes report twice a second, so figures come a moment later. */
typedef struct {
    engine *g;
    double n_encoded, n_tokens;
} awaited_figures;

static bool have_come(void *arg) {
    awaited_figures *a = arg;
    return figure(a->g, "images_encoded") >= a->n_encoded &&
           figure(a->g, "prefill_tokens") + figure(a->g, "prefix_tokens_reused") >= a->n_tokens;
}

typedef struct {
    double encoded, prefixes, prefilled, reused, tokens, cpu_ms;
} cost;

static double cpu_ms(void) {
    struct timespec t;
    assert_int_equal(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t), 0);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* N_IMAGES items of n questions, one after the other, each about an image never seen. */
static cost cost_of(size_t n) {
    engine g;
    cost c = {0};
    engine_open(&g);
    double start_ms = cpu_ms();
    for (int i = 0; i < N_IMAGES; i++) c.tokens += ask(&g, i, n);
    c.cpu_ms = cpu_ms() - start_ms;
    awaited_figures a = {&g, N_IMAGES, c.tokens};
    assert_true(wait_until(have_come, &a, WAIT_MS));
    c.encoded = figure(&g, "images_encoded");
    c.prefixes = figure(&g, "prefixes_computed");
    c.prefilled = figure(&g, "prefill_tokens");
    c.reused = figure(&g, "prefix_tokens_reused");
    print_message("%2zu questions: %.0f encoded, %.0f prefixes, %.0f of %.0f tokens prefilled, %.1f ms of CPU\n",
                  n, c.encoded, c.prefixes, c.prefilled, c.tokens, c.cpu_ms);
    engine_close(&g);
    return c;
}

static void ten_questions_about_an_image_cost_less_than_two_and_a_half_times_one(void **state) {
    (void)state;
    cost one = cost_of(1), ten = cost_of(N_QUESTIONS);
    assert_true(one.encoded == N_IMAGES && ten.encoded == N_IMAGES);
    assert_true(one.prefixes == N_IMAGES && ten.prefixes == N_IMAGES);
    assert_true(one.prefilled == one.tokens);               /* nothing to share, nothing twice */
    assert_true(ten.prefilled + ten.reused == ten.tokens);
    assert_true(ten.prefilled < RATIO_MAX * one.prefilled);
    assert_true(ten.cpu_ms < RATIO_MAX * one.cpu_ms);
}

/* ---- images seen before -------------------------------------------------------------------------- */

/* One run of a cluster of its own over the folder; returns its lines and how many images it encoded. */
static result_lines run_cluster(const char *redis_url, const char *out, double *n_encoded) {
    child up;
    char broker[128];
    buf text;
    buf_init(&text, 16 << 20);
    child_start(&up, WORDS(MIPHA, "up", "--cache", redis_url), NULL);
    assert_true(child_wait_for_output(&up, "is ready", WAIT_MS));
    child_stdout(&up, &text);
    assert_int_equal(sscanf((char *)text.data, "%127s", broker), 1);
    buf_clear(&text);
    assert_int_equal(child_run(WORDS(MIPHA, "annotate", SCENES, "-n", "8", "-q", "--broker", broker, "-o", out,
                                     "--overwrite"), NULL, &text, WAIT_MS), 0);
    assert_int_equal(child_run(WORDS(MIPHA, "status", "--json", "--broker", broker), &text, NULL, WAIT_MS), 0);
    const char *found = strstr((char *)text.data, "\"encodes\":");
    assert_non_null(found);
    double n_dispatched = strtod(found + strlen("\"encodes\":"), NULL);
    assert_int_equal(child_stop(&up, SIGTERM, WAIT_MS), 0);
    result_lines lines = result_lines_of(out);
    *n_encoded = (double)(lines.n - lines.n_features_cached);
    print_message("%zu images: %.0f given to a vision node, %.0f encoded\n", lines.n, n_dispatched, *n_encoded);
    buf_deinit(&text);
    return lines;
}

static void a_second_run_through_other_nodes_encodes_nothing_and_says_the_same(void **state) {
    (void)state;
    redis_server redis;
    redis_server_start(&redis, NULL);
    char *dir = temp_dir_make(), *out = path_join(dir, "out.jsonl");
    double n_first, n_second;
    result_lines first = run_cluster(redis.url, out, &n_first);
    long long n_keys = redis_server_command(&redis, NULL, "DBSIZE");
    result_lines second = run_cluster(redis.url, out, &n_second);
    assert_true(first.n > 50);
    assert_true(n_first == (double)first.n && n_keys == (long long)first.n);
    assert_true(n_second == 0);
    assert_int_equal(redis_server_command(&redis, NULL, "DBSIZE"), n_keys);
    result_lines_assert_same(&first, &second);
    result_lines_free(&first);
    result_lines_free(&second);
    redis_server_stop(&redis);
    temp_dir_remove(dir);
    free(out);
}

int main(void) {
    if (!redis_server_exists()) {
        print_message("redis-server is not installed\n");
        return TEST_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ten_questions_about_an_image_cost_less_than_two_and_a_half_times_one),
        cmocka_unit_test(a_second_run_through_other_nodes_encodes_nothing_and_says_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
