/* Parts that refuse, are absent, are full or die, seen from the command line: a clear error at start, or
 * the answers of an undisturbed run. Nodes and Redis that die in the middle are in test_cluster.c. */
#include "tests/support/redis_server.h"
#include "tests/support/result_lines.h"
#include "tests/support/support.h"

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIPHA      PROGRAM_DIR "/mipha"
#define EXAMPLES   SOURCE_DIR "/examples"
#define MODEL      SOURCE_DIR "/models/mipha-demo"
#define N_ITEMS    200
#define WAIT_MS    120000
#define WORDS_MAX  32
#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

typedef struct {
    char *dir, *items, *out;
    result_lines expected; /* embedded, nothing wrong */
    char absent[64];       /* host:port where nobody listens */
} world;

/* ---- runs ---------------------------------------------------------------------------------------- */

static ended_run run_words(const char *const words[]) { return ended_run_of(words, WAIT_MS); }

static const char *text_of(const buf *b) { return b->data ? (const char *)b->data : ""; }

static const char *const *annotate_words(const world *w, const char *argv[WORDS_MAX], const char *const words[]) {
    const char *const fixed[] = {MIPHA, "annotate", "--input", w->items, "-o", w->out, "--overwrite"};
    size_t n = sizeof fixed / sizeof *fixed;
    memcpy(argv, fixed, sizeof fixed);
    for (size_t i = 0; words[i]; i++) argv[n++] = words[i];
    argv[n] = NULL;
    return argv;
}

static void gives_the_expected_lines(const world *w) {
    result_lines got = result_lines_of(w->out);
    result_lines_assert_same(&got, &w->expected);
    result_lines_free(&got);
}

static void annotate(const world *w, const char *const words[]) {
    const char *argv[WORDS_MAX];
    ended_run r = run_words(annotate_words(w, argv, words));
    if (r.exit_code != 0) fail_msg("exit status %d: %s", r.exit_code, ended_run_errors(&r));
    ended_run_free(&r);
    gives_the_expected_lines(w);
}

static int set_up(void **state) {
    world *w = calloc(1, sizeof *w);
    w->dir = temp_dir_make();
    w->items = path_join(w->dir, "items.jsonl");
    w->out = path_join(w->dir, "out.jsonl");
    static const char *const images[] = {"farm.jpg", "cafe.webp", "frogs.jpg", "street.jpg", "music.png", "grey.jpg"};
    FILE *f = fopen(w->items, "w");
    assert_non_null(f);
    for (int i = 0; i < N_ITEMS; i++)
        (void)fprintf(f, "{\"id\":\"item-%d\",\"image\":\"%s/%s\",\"prompts\":[\"Describe the image.\"%s]}\n", i,
                      EXAMPLES, images[i % 6], i % 2 ? ",\"Is there a dog?\"" : "");
    (void)fclose(f);
    (void)snprintf(w->absent, sizeof w->absent, "127.0.0.1:%d", free_port());
    const char *argv[WORDS_MAX];
    ended_run r = run_words(annotate_words(w, argv, WORDS("-q")));
    assert_int_equal(r.exit_code, 0);
    ended_run_free(&r);
    w->expected = result_lines_of(w->out);
    assert_int_equal(w->expected.n, N_ITEMS * 3 / 2);
    *state = w;
    return 0;
}

static int tear_down(void **state) {
    world *w = *state;
    result_lines_free(&w->expected);
    temp_dir_remove(w->dir);
    free(w->items);
    free(w->out);
    free(w);
    return 0;
}

/* ---- clusters ------------------------------------------------------------------------------------ */

typedef struct {
    child process;
    char broker[128];
} local_cluster;

static void cluster_start(local_cluster *k, const char *const words[]) {
    const char *argv[WORDS_MAX] = {MIPHA, "up"};
    for (size_t i = 0; words[i]; i++) argv[2 + i] = words[i];
    child_start(&k->process, argv, NULL);
    buf text;
    buf_init(&text, 1 << 20);
    if (!child_wait_for_output(&k->process, "is ready", WAIT_MS)) {
        child_stderr(&k->process, &text);
        fail_msg("the cluster does not start: %s", text_of(&text));
    }
    child_stdout(&k->process, &text);
    assert_int_equal(sscanf(text_of(&text), "%127s", k->broker), 1);
    buf_deinit(&text);
}

static double metric_of(const char *broker, const char *name) {
    ended_run r = run_words(WORDS(MIPHA, "status", "--broker", broker, "--json"));
    assert_int_equal(r.exit_code, 0);
    json_t *report = json_loads(ended_run_out(&r), 0, NULL);
    json_t *value = json_object_get(json_object_get(report, "metrics"), name);
    if (!json_is_number(value)) fail_msg("no metric %s in %s", name, ended_run_out(&r));
    double v = json_number_value(value);
    json_decref(report);
    ended_run_free(&r);
    return v;
}

/* ---- Redis --------------------------------------------------------------------------------------- */

static void a_wrong_redis_password_is_an_error_at_start_that_does_not_show_it(void **state) {
    const world *w = *state;
    redis_server redis;
    redis_server_start(&redis, WORDS("--requirepass", "right"));
    char url[96], broker[96], place[32];
    (void)snprintf(url, sizeof url, "redis://:guessed-wrong@127.0.0.1:%d", redis.port);
    (void)snprintf(place, sizeof place, "127.0.0.1:%d", redis.port);
    (void)snprintf(broker, sizeof broker, "tcp://%s", w->absent);
    const char *const *const lines[] = {
        WORDS(MIPHA, "annotate", EXAMPLES "/farm.jpg", "--cache", url),
        WORDS(MIPHA, "ask", EXAMPLES "/farm.jpg", "-p", "What?", "--cache", url),
        WORDS(MIPHA, "up", "--cache", url),
        WORDS(PROGRAM_DIR "/mipha-vision-node", "--broker", broker, "--model", MODEL, "--cache", url),
        WORDS(PROGRAM_DIR "/mipha-lm-node", "--broker", broker, "--model", MODEL, "--cache", url)};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        ended_run r = run_words(lines[i]);
        const char *errors = ended_run_errors(&r);
        if (r.exit_code != 3 || r.out.len_bytes != 0 || !strstr(errors, "refused the password") ||
            !strstr(errors, place) || strstr(errors, "guessed-wrong"))
            fail_msg("%s %s: exit %d, %s", lines[i][0], lines[i][1], r.exit_code, errors);
        ended_run_free(&r);
    }
    redis_server_stop(&redis);
}

static void an_absent_redis_costs_no_answer(void **state) {
    const world *w = *state;
    char url[96];
    (void)snprintf(url, sizeof url, "redis://%s", w->absent);
    annotate(w, WORDS("-q", "--cache", url));
    local_cluster k;
    cluster_start(&k, WORDS("--cache", url));
    annotate(w, WORDS("-q", "--broker", k.broker));
    assert_true(metric_of(k.broker, "features_handed_over") > 0);
    assert_int_equal(child_stop(&k.process, SIGTERM, WAIT_MS), 0);
}

static void a_full_redis_that_may_not_evict_costs_no_answer(void **state) {
    const world *w = *state;
    redis_server redis;
    redis_server_start(&redis, WORDS("--maxmemory", "1kb", "--maxmemory-policy", "noeviction"));
    annotate(w, WORDS("-q", "--cache", redis.url));
    local_cluster k;
    cluster_start(&k, WORDS("--cache", redis.url));
    annotate(w, WORDS("-q", "--broker", k.broker));
    assert_true(metric_of(k.broker, "features_handed_over") > 0);
    assert_int_equal(redis_server_command(&redis, NULL, "DBSIZE"), 0);
    assert_int_equal(child_stop(&k.process, SIGTERM, WAIT_MS), 0);
    redis_server_stop(&redis);
}

/* ---- the broker ---------------------------------------------------------------------------------- */

static void an_absent_broker_is_an_error_at_start_that_says_where_and_how_long(void **state) {
    const world *w = *state;
    char broker[96], wanted[160];
    (void)snprintf(broker, sizeof broker, "tcp://%s", w->absent);
    (void)snprintf(wanted, sizeof wanted, "no broker answers at %s within 10000 ms\n", broker);
    const char *const *const lines[] = {
        WORDS(MIPHA, "annotate", EXAMPLES "/farm.jpg", "--broker", broker),
        WORDS(MIPHA, "ask", EXAMPLES "/farm.jpg", "-p", "What?", "--broker", broker),
        WORDS(MIPHA, "generate", "--raw-prompt", "What?", "--broker", broker)};
    child runs[3];
    for (size_t i = 0; i < 3; i++) child_start(&runs[i], lines[i], NULL);
    for (size_t i = 0; i < 3; i++) {
        buf text;
        buf_init(&text, 1 << 20);
        assert_int_equal(child_wait(&runs[i], WAIT_MS), 3);
        child_stderr(&runs[i], &text);
        if (!strstr(text_of(&text), wanted)) fail_msg("%s: %s", lines[i][1], text_of(&text));
        child_stdout(&runs[i], &text);
        assert_int_equal(text.len_bytes, 0);
        buf_deinit(&text);
        child_close(&runs[i]);
    }
}

/* A broker and one node of each kind, with words of their own, around a Redis. */
typedef struct {
    redis_server redis;
    child broker, nodes[2];
    char *ready, front[128], back[128];
} parts;

static void start_broker(parts *p, const char *front, const char *back, const char *const words[]) {
    const char *argv[WORDS_MAX] = {PROGRAM_DIR "/mipha-broker", "--front", front, "--back", back, "--ready-file", p->ready};
    for (size_t i = 0; words[i]; i++) argv[7 + i] = words[i];
    (void)unlink(p->ready);
    child_start(&p->broker, argv, NULL);
    assert_true(child_wait_for_output(&p->broker, "ready front", WAIT_MS));
}

static void start_parts(parts *p, const world *w, const char *const broker_words[], const char *const vision_words[],
                        const char *const lm_words[]) {
    redis_server_start(&p->redis, NULL);
    p->ready = path_join(w->dir, "ready");
    start_broker(p, "tcp://127.0.0.1:*", "tcp://127.0.0.1:*", broker_words);
    FILE *f = fopen(p->ready, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%127s %127s", p->front, p->back), 2);
    (void)fclose(f);
    const char *const programs[] = {PROGRAM_DIR "/mipha-vision-node", PROGRAM_DIR "/mipha-lm-node"};
    for (int i = 0; i < 2; i++) {
        const char *const *words = i == 0 ? vision_words : lm_words;
        const char *argv[WORDS_MAX] = {programs[i], "--broker", p->back, "--model", MODEL, "--cache", p->redis.url};
        for (size_t k = 0; words[k]; k++) argv[7 + k] = words[k];
        child_start(&p->nodes[i], argv, NULL);
        assert_true(child_wait_for_output(&p->nodes[i], "joined", WAIT_MS));
    }
}

static void stop_parts(parts *p) {
    for (int i = 0; i < 2; i++) assert_int_equal(child_stop(&p->nodes[i], SIGTERM, WAIT_MS), 0);
    assert_int_equal(child_stop(&p->broker, SIGTERM, WAIT_MS), 0);
    redis_server_stop(&p->redis);
    free(p->ready);
}

typedef struct {
    const char *path;
    child *c;
    long wanted;
} line_goal;

static bool has_lines_or_ended(void *arg) {
    line_goal *g = arg;
    buf text;
    buf_init(&text, 64 << 20);
    long n = 0;
    if (file_read(&text, g->path))
        for (size_t i = 0; i < text.len_bytes; i++) n += text.data[i] == '\n';
    buf_deinit(&text);
    return n >= g->wanted || !child_is_running(g->c);
}

static void a_broker_killed_and_started_again_costs_a_waiting_client_no_answer(void **state) {
    const world *w = *state;
    parts p;
    child run;
    start_parts(&p, w, WORDS("--heartbeat-ms", "200"), WORDS(NULL), WORDS(NULL));
    const char *argv[WORDS_MAX];
    (void)unlink(w->out);
    child_start(&run, annotate_words(w, argv, WORDS("--broker", p.front, "-c", "4")), NULL);
    line_goal goal = {w->out, &run, 20};
    assert_true(wait_until(has_lines_or_ended, &goal, WAIT_MS));
    (void)child_stop(&p.broker, SIGKILL, WAIT_MS);
    assert_true(child_is_running(&run)); /* or it had nothing left to wait for */
    assert_true(child_wait_for_output(&run, "silent for three heartbeats", WAIT_MS));
    assert_true(child_wait_for_output(&run, "  waiting for the broker\n", WAIT_MS));
    start_broker(&p, p.front, p.back, WORDS("--heartbeat-ms", "200"));
    assert_int_equal(child_wait(&run, WAIT_MS), 0);
    buf errors;
    buf_init(&errors, 1 << 20);
    child_stderr(&run, &errors);
    assert_non_null(strstr(text_of(&errors), "the broker is back\n"));
    buf_deinit(&errors);
    gives_the_expected_lines(w);
    child_close(&run);
    stop_parts(&p);
}

/* ---- leases -------------------------------------------------------------------------------------- */

/* Annotates the forty scenes through parts of their own; every scene is new to their cache. Returns the
 * milliseconds the tower ran. */
static double annotate_scenes(const world *w, int lease_ms, double *n_expired) {
    char lease[16], beat[16];
    (void)snprintf(lease, sizeof lease, "%d", lease_ms);
    (void)snprintf(beat, sizeof beat, "%d", lease_ms / 4);
    parts p;
    start_parts(&p, w, WORDS("--lease-ms", lease, "--heartbeat-ms", beat),
                WORDS("--threads", "1", "--batch", "64", "--slots", "64"),
                WORDS("--threads", "1", "--chunk-rows", "4096"));
    ended_run r = run_words(WORDS(MIPHA, "annotate", TEST_DATA_DIR "/demo_scenes", "-q", "--broker", p.front));
    if (r.exit_code != 0) fail_msg("exit status %d: %s", r.exit_code, ended_run_errors(&r));
    double tower_ms = 0;
    for (const char *at = ended_run_out(&r); (at = strstr(at, "\"encode\":")); at++) tower_ms += atof(at + 9);
    ended_run_free(&r);
    *n_expired = metric_of(p.front, "leases_expired");
    stop_parts(&p);
    return tower_ms;
}

/* Nearly all scenes are encoded in one batch, and their prompts computed in two steps: each takes several
 * times the lease, none of their operators does. On a machine that stalls a lease may still run out, hence
 * several attempts. */
static void a_step_that_takes_longer_than_a_lease_keeps_it(void **state) {
    const world *w = *state;
    double expired;
    int lease_ms = (int)(annotate_scenes(w, 20000, &expired) / 5);
    if (lease_ms < 40) lease_ms = 40;
    assert_true(expired == 0);
    expired = 1;
    for (int i = 0; i < 5 && expired > 0; i++) (void)annotate_scenes(w, lease_ms, &expired);
    assert_true(expired == 0);
}

/* ---- mipha up ------------------------------------------------------------------------------------ */

/* The process id of a direct child of pid by its command, which the kernel cuts after 15 bytes; 0: none. */
static pid_t child_named(pid_t pid, const char *name) {
    char path[64], found[32] = "";
    (void)snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)pid, (int)pid);
    FILE *list = fopen(path, "r");
    assert_non_null(list);
    int candidate, result = 0;
    while (!result && fscanf(list, "%d", &candidate) == 1) {
        (void)snprintf(path, sizeof path, "/proc/%d/comm", candidate);
        FILE *f = fopen(path, "r");
        if (f && fscanf(f, "%31s", found) == 1 && strncmp(found, name, 15) == 0) result = candidate;
        if (f) (void)fclose(f);
    }
    (void)fclose(list);
    return result;
}

static void a_cluster_names_the_node_it_lost_goes_on_and_ends_without_its_broker(void **state) {
    const world *w = *state;
    local_cluster k;
    cluster_start(&k, WORDS("--lm-nodes", "2"));
    pid_t node = child_named(k.process.pid, "mipha-lm-node"), broker = child_named(k.process.pid, "mipha-broker");
    assert_true(node > 0 && broker > 0);
    assert_int_equal(kill(node, SIGKILL), 0);
    assert_true(child_wait_for_output(&k.process, "mipha-lm-node ended with signal 9", WAIT_MS));
    annotate(w, WORDS("-q", "--broker", k.broker));
    assert_int_equal(kill(broker, SIGKILL), 0);
    assert_int_equal(child_wait(&k.process, WAIT_MS), 1);
    assert_true(child_wait_for_output(&k.process, "mipha up: mipha-broker ended with signal 9", WAIT_MS));
    child_close(&k.process);
}

/* ---- the same questions again ------------------------------------------------------------------- */

static void one_cluster_answers_the_same_run_again_beside_itself_and_after_an_interruption(void **state) {
    const world *w = *state;
    local_cluster k;
    cluster_start(&k, WORDS(NULL));
    annotate(w, WORDS("-q", "--broker", k.broker));
    child beside;
    char *out = path_join(w->dir, "beside.jsonl");
    child_start(&beside, WORDS(MIPHA, "annotate", "--input", w->items, "-o", out, "-q", "--broker", k.broker), NULL);
    annotate(w, WORDS("-q", "--broker", k.broker));
    assert_int_equal(child_wait(&beside, WAIT_MS), 0);
    child_close(&beside);
    result_lines got = result_lines_of(out);
    result_lines_assert_same(&got, &w->expected);
    result_lines_free(&got);

    child run;
    const char *argv[WORDS_MAX];
    (void)unlink(w->out);
    child_start(&run, annotate_words(w, argv, WORDS("--broker", k.broker)), NULL);
    line_goal goal = {w->out, &run, 20};
    assert_true(wait_until(has_lines_or_ended, &goal, WAIT_MS));
    assert_int_equal(child_stop(&run, SIGINT, WAIT_MS), 130);
    child_close(&run);
    ended_run r = run_words(WORDS(MIPHA, "annotate", "--input", w->items, "-o", w->out, "--resume", "-q", "--broker", k.broker));
    if (r.exit_code != 0) fail_msg("exit status %d: %s", r.exit_code, ended_run_errors(&r));
    ended_run_free(&r);
    gives_the_expected_lines(w);
    assert_int_equal(child_stop(&k.process, SIGTERM, WAIT_MS), 0);
    free(out);
}

int main(void) {
    if (!redis_server_exists()) {
        print_message("redis-server is not installed\n");
        return TEST_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_wrong_redis_password_is_an_error_at_start_that_does_not_show_it),
        cmocka_unit_test(an_absent_redis_costs_no_answer),
        cmocka_unit_test(a_full_redis_that_may_not_evict_costs_no_answer),
        cmocka_unit_test(an_absent_broker_is_an_error_at_start_that_says_where_and_how_long),
        cmocka_unit_test(a_broker_killed_and_started_again_costs_a_waiting_client_no_answer),
        cmocka_unit_test(a_step_that_takes_longer_than_a_lease_keeps_it),
        cmocka_unit_test(one_cluster_answers_the_same_run_again_beside_itself_and_after_an_interruption),
        cmocka_unit_test(a_cluster_names_the_node_it_lost_goes_on_and_ends_without_its_broker),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
