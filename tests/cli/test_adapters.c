/* Adapters served side by side, from the command line: in this process, and in a cluster that `mipha up` starts. */
#include "tests/support/redis_server.h"
#include "tests/support/support.h"

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lm_node/golden.h"

#define MIPHA    PROGRAM_DIR "/mipha"
#define ADAPTERS TEST_DATA_DIR "/adapters"
#define FARM     SOURCE_DIR "/examples/farm.jpg"
#define CAFE     SOURCE_DIR "/examples/cafe.webp"
#define WAIT_MS  120000
#define SERVED                                                                                     \
    "--serve-adapter", "plain=" ADAPTERS "/clip.plain", "--serve-adapter", "all=" ADAPTERS "/clip.all", \
        "--serve-adapter", "projector=" ADAPTERS "/clip.projector"

static const char *const names[] = {"", "plain", "all", "projector"};
#define N_NAMES 4
#define N_ITEMS (3 * N_NAMES)

typedef struct {
    golden *g;
    char *dir, *manifest;
} world;

static int set_up(void **state) {
    world *w = calloc(1, sizeof *w);
    w->g = golden_open("clip");
    w->dir = temp_dir_make();
    w->manifest = path_join(w->dir, "items.jsonl");
    FILE *f = fopen(w->manifest, "w");
    assert_non_null(f);
    for (int i = 0; i < N_ITEMS; i++) {
        const char *name = names[i % N_NAMES];
        (void)fprintf(f, "{\"id\":\"%d\",\"image\":\"%s\",\"prompt\":\"What is %d?\"%s%s%s}\n", i, i % 3 ? FARM : CAFE,
                      i / N_NAMES, *name ? ",\"adapter\":\"" : "", name, *name ? "\"" : "");
    }
    assert_int_equal(fclose(f), 0);
    *state = w;
    return 0;
}

static int tear_down(void **state) {
    world *w = *state;
    golden_close(&w->g);
    temp_dir_remove(w->dir);
    free(w->manifest);
    free(w);
    return 0;
}

/* token ids and log-probabilities of each item, as text. */
static void answers_of(const char *const argv[], char *answers[N_ITEMS]) {
    ended_run r = ended_run_of(argv, WAIT_MS);
    if (r.exit_code != 0) fail_msg("exit %d\n%s\n%s", r.exit_code, ended_run_out(&r), ended_run_errors(&r));
    char *rest = NULL;
    for (char *line = strtok_r((char *)r.out.data, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        json_t *value = json_loads(line, 0, NULL);
        int i = atoi(json_string_value(json_object_get(value, "id")));
        assert_true(i >= 0 && i < N_ITEMS && !answers[i]);
        answers[i] = json_dumps(json_object_get(value, "logprobs"), JSON_COMPACT);
        json_decref(value);
    }
    ended_run_free(&r);
}

#define ANNOTATE(...)                                                                              \
    ((const char *const[]){MIPHA, "annotate", "-q", "--logprobs", "0", "-n", "8", "--input", w->manifest, __VA_ARGS__, NULL})

static void forget(char *answers[N_ITEMS]) {
    for (int i = 0; i < N_ITEMS; i++) {
        free(answers[i]);
        answers[i] = NULL;
    }
}

static void items_of_one_manifest_are_answered_by_the_adapters_they_name(void **state) {
    const world *w = *state;
    char *mixed[N_ITEMS] = {0}, *one[N_ITEMS] = {0}, *other[N_ITEMS] = {0};
    answers_of(ANNOTATE("--model", golden_dir(w->g), SERVED), mixed);
    answers_of(ANNOTATE("--model", golden_dir(w->g), SERVED, "--concurrency", "1", "--threads", "1"), one);
    answers_of(ANNOTATE("--model", golden_dir(w->g), SERVED, "--use-adapter", "all"), other);
    for (int i = 0; i < N_ITEMS; i++) {
        assert_non_null(mixed[i]);
        assert_string_equal(mixed[i], one[i]);
        /* --use-adapter is for those that name none. */
        if (i % N_NAMES) assert_string_equal(other[i], mixed[i]);
        else assert_string_not_equal(other[i], mixed[i]);
    }
    for (int a = 1; a < N_NAMES; a++) assert_string_not_equal(mixed[a], mixed[0]);
    forget(mixed), forget(one), forget(other);
}

static void an_adapter_nobody_serves_is_an_error_of_its_item(void **state) {
    const world *w = *state;
    ended_run r = ended_run_of(ANNOTATE("--model", golden_dir(w->g), "--serve-adapter", "plain=" ADAPTERS "/clip.plain"),
                               WAIT_MS);
    assert_int_equal(r.exit_code, 1);
    assert_non_null(strstr(ended_run_out(&r), "adapter \\\"all\\\" is unknown, 1 are served, the first is \\\"plain\\\""));
    ended_run_free(&r);
    r = ended_run_of(ANNOTATE("--model", golden_dir(w->g), "--serve-adapter", "plain"), WAIT_MS);
    assert_int_equal(r.exit_code, 2);
    assert_non_null(strstr(ended_run_errors(&r), "expected NAME=DIR"));
    ended_run_free(&r);
    r = ended_run_of(ANNOTATE("--model", golden_dir(w->g), "--dtype", "f8"), WAIT_MS);
    assert_int_equal(r.exit_code, 2);
    assert_non_null(strstr(ended_run_errors(&r), "expected auto, f32, f16, bf16, int8 or fp8"));
    ended_run_free(&r);
}

static void a_cluster_serves_the_same_adapters_with_the_same_bytes(void **state) {
    const world *w = *state;
    if (!redis_server_exists()) skip();
    char endpoint[128];
    child up;
    child_start(&up, (const char *const[]){MIPHA, "up", "--model", golden_dir(w->g), SERVED, "--dtype", "f32", "--vision-nodes",
                                           "1", "--lm-nodes", "2", "--threads", "1", NULL}, NULL);
    assert_true(child_wait_for_output(&up, "cluster of 3 nodes is ready", WAIT_MS));
    buf text;
    buf_init(&text, 4096);
    child_stdout(&up, &text);
    assert_int_equal(sscanf((const char *)text.data, "%127s", endpoint), 1);
    buf_deinit(&text);
    char *here[N_ITEMS] = {0}, *there[N_ITEMS] = {0};
    answers_of(ANNOTATE("--model", golden_dir(w->g), SERVED), here);
    answers_of(ANNOTATE("--broker", endpoint), there);
    for (int i = 0; i < N_ITEMS; i++) assert_string_equal(here[i], there[i]);
    forget(here), forget(there);
    assert_int_equal(child_stop(&up, SIGTERM, WAIT_MS), 0);
    child_close(&up);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(items_of_one_manifest_are_answered_by_the_adapters_they_name),
        cmocka_unit_test(an_adapter_nobody_serves_is_an_error_of_its_item),
        cmocka_unit_test(a_cluster_serves_the_same_adapters_with_the_same_bytes),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
