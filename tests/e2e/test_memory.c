/* Many small images, all different: the memory of every process of the run levels off, embedded and in a
 * cluster, and results come out while it goes on.
 *
 *     MIPHA_TEST_IMAGES=20000 ./test_e2e_memory      as many as you like; 1,500 without it
 *
 * The features go to Redis, because embedded mode's own cache is meant to fill up to its limit first, and
 * so is the memory for keys and values, which is therefore small. */
#include "tests/support/redis_server.h"
#include "tests/support/result_lines.h"
#include "tests/support/support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIPHA      PROGRAM_DIR "/mipha"
#define SEED_IMAGE TEST_DATA_DIR "/demo_scenes/scene-00.jpg"
#define PROMPT     "How many objects are there?"
#define TIMEOUT_MS 1800000
#define KV_BYTES   "64M"
#define GROWTH_MB  24 /* allowed between the middle and the end */
#define PROCESSES_MAX 64

typedef struct {
    char *dir, *images, *out;
    redis_server redis;
    long n_images;
} world;

/* The bytes behind the end of a JPEG are not read, but they make it another file. */
static int set_up(void **state) {
    world *w = calloc(1, sizeof *w);
    w->dir = temp_dir_make();
    w->images = path_join(w->dir, "images");
    w->out = path_join(w->dir, "out.jsonl");
    const char *wanted = getenv("MIPHA_TEST_IMAGES");
    w->n_images = wanted ? strtol(wanted, NULL, 10) : 1500;
    assert_true(w->n_images >= 100);
    assert_int_equal(mkdir(w->images, 0700), 0);
    buf image;
    buf_init(&image, 1 << 20);
    assert_true(file_read(&image, SEED_IMAGE));
    size_t n = image.len_bytes;
    for (long i = 0; i < w->n_images; i++) {
        char name[32];
        (void)snprintf(name, sizeof name, "%06ld.jpg", i);
        image.len_bytes = n;
        assert_int_equal(buf_append(&image, (const unsigned char *)name, 6), STATUS_OK);
        char *path = path_join(w->images, name);
        file_write(path, image.data, image.len_bytes);
        free(path);
    }
    buf_deinit(&image);
    redis_server_start(&w->redis, (const char *const[]){"--maxmemory", "64mb", "--maxmemory-policy",
                                                        "volatile-lru", NULL});
    *state = w;
    return 0;
}

static int tear_down(void **state) {
    world *w = *state;
    redis_server_stop(&w->redis);
    temp_dir_remove(w->dir);
    free(w->images);
    free(w->out);
    free(w);
    return 0;
}

/* ---- what processes hold ------------------------------------------------------------------------- */

static long resident_kb(long pid) {
    char path[64], line[256];
    long kb = 0;
    (void)snprintf(path, sizeof path, "/proc/%ld/status", pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmRSS: %ld", &kb) == 1) break;
    if (f) (void)fclose(f);
    return kb;
}

static void add_family(long pid, long *pids, size_t *n) {
    assert_true(*n < PROCESSES_MAX);
    pids[(*n)++] = pid;
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/%ld/task/%ld/children", pid, pid);
    FILE *f = fopen(path, "r");
    for (long child_pid; f && fscanf(f, "%ld", &child_pid) == 1;) add_family(child_pid, pids, n);
    if (f) (void)fclose(f);
}

static long family_kb(long pid) {
    long pids[PROCESSES_MAX], kb = 0;
    size_t n = 0;
    add_family(pid, pids, &n);
    for (size_t i = 0; i < n; i++) kb += resident_kb(pids[i]);
    return kb;
}

/* ---- the run ------------------------------------------------------------------------------------- */

typedef struct {
    const char *path;
    long wanted;
    child *c;
    FILE *f;
    long n;
} line_count;

static bool has_lines(void *arg) {
    line_count *at = arg;
    if (!at->f) at->f = fopen(at->path, "r");
    char piece[4096];
    for (size_t n; at->f && (n = fread(piece, 1, sizeof piece, at->f)) > 0;)
        for (size_t i = 0; i < n; i++) at->n += piece[i] == '\n';
    if (at->f) clearerr(at->f);
    return at->n >= at->wanted || !child_is_running(at->c);
}

/* Runs `mipha annotate` and watches it, and the processes of a cluster if it has one. */
static void watch_run(const world *w, const char *const argv[], long cluster_pid) {
    child run;
    child_start(&run, argv, NULL);
    long kb[5] = {0};
    line_count at = {.path = w->out, .c = &run};
    for (int i = 1; i <= 4; i++) { /* at 24, 48, 72 and 96 of a hundred */
        at.wanted = w->n_images * 24 * i / 100;
        assert_true(wait_until(has_lines, &at, TIMEOUT_MS));
        assert_true(child_is_running(&run)); /* or nothing was streamed */
        kb[i] = family_kb(run.pid) + (cluster_pid ? family_kb(cluster_pid) : 0);
        print_message("%6ld of %ld lines written: %ld kB resident\n", at.n, w->n_images, kb[i]);
    }
    assert_int_equal(child_wait(&run, TIMEOUT_MS), 0);
    (void)fclose(at.f);
    assert_true(kb[4] < kb[2] + GROWTH_MB * 1024);

    buf errors;
    buf_init(&errors, 16 << 20);
    child_stderr(&run, &errors);
    assert_non_null(strstr((char *)errors.data, "100%"));
    buf_deinit(&errors);
    child_close(&run);
}

static void expect_every_image_to_have_its_line(const world *w) {
    result_lines all = result_lines_of(w->out);
    assert_int_equal(all.n, (size_t)w->n_images);
    assert_int_equal(result_lines_with(&all, "\"error\":null"), all.n);
    assert_int_equal(all.n_features_cached, 0);
    result_lines_free(&all);
}

static void memory_of_a_run_levels_off_and_results_are_streamed(void **state) {
    const world *w = *state;
    const char *const argv[] = {MIPHA, "annotate", w->images, "-o", w->out, "-p", PROMPT, "-n", "3",
                                "--cache", w->redis.url, "--kv-bytes", KV_BYTES, "--threads", "2", NULL};
    watch_run(w, argv, 0);
    expect_every_image_to_have_its_line(w);
}

static void memory_of_a_cluster_levels_off(void **state) {
    world *w = *state;
    assert_int_equal(redis_server_command(&w->redis, NULL, "FLUSHALL"), 0);
    assert_int_equal(unlink(w->out), 0);
    child up;
    const char *const up_argv[] = {MIPHA, "up", "--cache", w->redis.url, "--kv-bytes", KV_BYTES, "--threads", "1",
                                   NULL};
    child_start(&up, up_argv, NULL);
    assert_true(child_wait_for_output(&up, "is ready", TIMEOUT_MS));
    buf text;
    buf_init(&text, 1 << 16);
    child_stdout(&up, &text);
    char broker[128];
    assert_int_equal(sscanf((char *)text.data, "%127s", broker), 1);
    buf_deinit(&text);
    const char *const argv[] = {MIPHA, "annotate", w->images, "-o", w->out, "-p", PROMPT, "-n", "3",
                                "--broker", broker, NULL};
    watch_run(w, argv, up.pid);
    expect_every_image_to_have_its_line(w);
    assert_int_equal(child_stop(&up, SIGTERM, TIMEOUT_MS), 0);
    child_close(&up);
}

int main(void) {
    if (!redis_server_exists()) {
        print_message("redis-server is not installed\n");
        return TEST_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_of_a_run_levels_off_and_results_are_streamed),
        cmocka_unit_test(memory_of_a_cluster_levels_off),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
