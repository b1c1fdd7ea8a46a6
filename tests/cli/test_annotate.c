/* `mipha annotate` with the demonstration model, as a person runs it: folders, manifests, bad input, being
 * interrupted and being killed. */
#include "tests/support/result_lines.h"
#include "tests/support/support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"

#define MIPHA      PROGRAM_DIR "/mipha"
#define EXAMPLES   SOURCE_DIR "/examples"
#define TIMEOUT_MS 240000
#define KILLS      10

typedef struct {
    char *dir;
} fixture;

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    f->dir = temp_dir_make();
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    temp_dir_remove(f->dir);
    free(f);
    return 0;
}

/* ---- runs ------------------------------------------------------------------------------------ */

static int run(const char *const words[], buf *out, buf *errors) {
    const char *argv[24] = {MIPHA, "annotate"};
    for (size_t i = 0; words[i]; i++) argv[2 + i] = words[i];
    return child_run(argv, out, errors, TIMEOUT_MS);
}

static char *put(fixture *f, const char *name, const char *text) {
    char *path = path_join(f->dir, name);
    file_write(path, text, strlen(text));
    return path;
}

/* Items over the example images, each image many times under different names, one to three questions. */
static char *big_manifest(fixture *f, int n_items) {
    static const char *const images[] = {"farm.jpg", "cafe.webp", "frogs.jpg", "street.jpg", "music.png", "grey.jpg"};
    char *path = path_join(f->dir, "big.jsonl");
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    for (int i = 0; i < n_items; i++)
        (void)fprintf(out, "{\"id\":\"item-%d\",\"image\":\"%s/%s\",\"prompts\":[\"Describe the image.\"%s%s]}\n", i,
                      EXAMPLES, images[i % 6], i % 2 ? ",\"What do you see?\"" : "",
                      i % 3 == 2 ? ",\"Is there a dog?\"" : "");
    (void)fclose(out);
    return path;
}

/* ---- promises -------------------------------------------------------------------------------- */

static void a_folder_is_annotated_with_one_line_for_each_question(void **state) {
    (void)state;
    buf out, errors;
    buf_init(&out, 64 << 20);
    buf_init(&errors, 1 << 20);
    assert_int_equal(run((const char *const[]){EXAMPLES, "-p", "Describe the image.", "-p", "What do you see?", NULL},
                         &out, &errors), 0);
    result_lines set = result_lines_read(&out);
    assert_true(set.n >= 24 && set.n % 2 == 0);
    assert_int_equal(result_lines_with(&set, "\"error\":null"), set.n);
    assert_int_equal(result_lines_with(&set, "\"exif\":true"), set.n);
    assert_int_equal(result_lines_with(&set, "\"prompt_index\":1"), set.n / 2);
    assert_non_null(strstr((char *)errors.data, "100%"));
    buf_clear(&out);
    buf_clear(&errors);
    assert_int_equal(run((const char *const[]){EXAMPLES "/farm.jpg", "--quiet", "--no-exif", NULL}, &out, &errors), 0);
    assert_int_equal(errors.len_bytes, 0);
    assert_non_null(strstr((char *)out.data, "\"exif\":false"));
    result_lines_free(&set);
    buf_deinit(&out);
    buf_deinit(&errors);
}

static void bad_items_fail_alone_and_are_named(void **state) {
    fixture *f = *state;
    free(put(f, "text.jpg", "this is not a picture"));
    free(put(f, "empty.png", ""));
    char *path = put(f, "items.jsonl",
                     "{\"id\":\"text\",\"image\":\"text.jpg\"}\n"
                     "{\"id\":\"broken\"\n"
                     "{\"id\":\"empty\",\"image\":\"empty.png\"}\n"
                     "{\"id\":\"absent\",\"image\":\"absent.png\",\"prompts\":[\"a\",\"b\"]}\n"
                     "{\"id\":\"good\",\"image\":\"" EXAMPLES "/farm.jpg\"}\n");
    buf out, errors;
    buf_init(&out, 1 << 20);
    buf_init(&errors, 1 << 20);
    assert_int_equal(run((const char *const[]){"--input", path, NULL}, &out, &errors), 1);
    assert_non_null(strstr((char *)errors.data, "items.jsonl line 2: "));
    result_lines set = result_lines_read(&out);
    assert_int_equal(set.n, 5);
    assert_int_equal(result_lines_with(&set, "\"code\":\"image_undecodable\""), 2);
    assert_int_equal(result_lines_with(&set, "\"code\":\"image_unreadable\""), 2);
    assert_int_equal(result_lines_with(&set, "\"error\":null"), 1);
    result_lines_free(&set);
    buf_deinit(&out);
    buf_deinit(&errors);
    free(path);
}

static void items_of_several_images_have_their_lines_and_are_resumed(void **state) {
    fixture *f = *state;
    free(put(f, "text.jpg", "this is not a picture"));
    char *items = put(f, "items.jsonl",
                      "{\"id\":\"two\",\"images\":[\"" EXAMPLES "/farm.jpg\",\"" EXAMPLES "/cafe.webp\"],"
                      "\"prompts\":[\"Describe the image.\",\"Is <image> like <image>?\"]}\n"
                      "{\"id\":\"bad\",\"images\":[\"" EXAMPLES "/farm.jpg\",\"text.jpg\"]}\n"
                      "{\"id\":\"absent\",\"images\":[\"" EXAMPLES "/farm.jpg\",\"absent.jpg\"]}\n"
                      "{\"id\":\"wrong\",\"images\":[\"" EXAMPLES "/farm.jpg\",\"" EXAMPLES "/cafe.webp\"],"
                      "\"prompt\":\"What is <image>?\"}\n"
                      "{\"id\":\"one\",\"image\":\"" EXAMPLES "/cafe.webp\"}\n");
    char *path = path_join(f->dir, "out.jsonl");
    const char *const words[] = {"--input", items, "-o", path, "-q", "--resume", NULL};
    assert_int_equal(run(words, NULL, NULL), 1);
    result_lines set = result_lines_of(path);
    assert_int_equal(set.n, 6);
    assert_int_equal(result_lines_with(&set, "\"image\":null"), 5);
    assert_int_equal(result_lines_with(&set, "\"images\":[\"" EXAMPLES "/farm.jpg\",\"" EXAMPLES "/cafe.webp\"]"), 3);
    assert_int_equal(result_lines_with(&set, "\"images\":[\"" EXAMPLES "/farm.jpg\",\"text.jpg\"]"), 1);
    assert_int_equal(result_lines_with(&set, "\"error\":null"), 3);
    assert_int_equal(result_lines_with(&set, "\"image_undecodable\",\"message\":\"image 2 of 2: not a JPEG"), 1);
    assert_int_equal(result_lines_with(&set, "\"image_unreadable\",\"message\":\"image 2 of 2: "), 1);
    assert_int_equal(result_lines_with(&set, "\"bad_prompt\",\"message\":\"question holds <image> 1 time, there are 2"), 1);

    /* Cut after its second line and gone on with, it has the same lines again. */
    buf text;
    buf_init(&text, 1 << 20);
    assert_true(file_read(&text, path));
    char *end = (char *)text.data;
    for (int i = 0; i < 2; i++) end = strchr(end, '\n') + 1;
    assert_int_equal(truncate(path, end - (char *)text.data), 0);
    assert_int_equal(run(words, NULL, NULL), 1);
    result_lines again = result_lines_of(path);
    result_lines_assert_same(&again, &set);
    result_lines_free(&again);
    result_lines_free(&set);
    buf_deinit(&text);
    free(items);
    free(path);
}

static void what_failed_is_asked_again_once_its_picture_is_there(void **state) {
    fixture *f = *state;
    free(put(f, "text.jpg", "this is not a picture"));
    char *items = put(f, "items.jsonl",
                      "{\"id\":\"good\",\"image\":\"" EXAMPLES "/farm.jpg\"}\n"
                      "{\"id\":\"late\",\"image\":\"late.webp\",\"prompts\":[\"Describe the image.\",\"What do you see?\"]}\n"
                      "{\"id\":\"bad\",\"image\":\"text.jpg\"}\n");
    char *path = path_join(f->dir, "out.jsonl"), *late = path_join(f->dir, "late.webp");
    buf errors, picture;
    buf_init(&errors, 1 << 20);
    buf_init(&picture, 1 << 24);
    assert_int_equal(run((const char *const[]){"--input", items, "-o", path, NULL}, NULL, &errors), 1);
    assert_non_null(strstr((char *)errors.data, "2 items failed; their lines say why, and --retry-failed asks again\n"));
    assert_true(file_read(&picture, EXAMPLES "/cafe.webp"));
    file_write(late, picture.data, picture.len_bytes);
    assert_int_equal(run((const char *const[]){"--input", items, "-o", path, "-q", "--resume", NULL}, NULL, NULL), 1);
    result_lines set = result_lines_of(path);
    assert_int_equal(result_lines_with(&set, "\"error\":null"), 1);
    result_lines_free(&set);
    buf_clear(&errors);
    assert_int_equal(run((const char *const[]){"--input", items, "-o", path, "--retry-failed", NULL}, NULL, &errors), 1);
    assert_non_null(strstr((char *)errors.data, "1 item failed; its lines say why"));
    set = result_lines_of(path);
    assert_int_equal(set.n, 4);
    assert_int_equal(result_lines_with(&set, "\"error\":null"), 3);
    assert_int_equal(result_lines_with(&set, "\"id\":\"late\""), 2);
    assert_int_equal(result_lines_with(&set, "\"id\":\"good\""), 1);
    result_lines_free(&set);
    buf_deinit(&errors);
    buf_deinit(&picture);
    free(items);
    free(path);
    free(late);
}

/* A picture of 900 million pixels is refused before it is unpacked; the largest that is allowed, and one
 * whose comment unpacks to 100 MB, are pictures like any other. */
static void small_files_that_unpack_to_very_much_harm_nobody(void **state) {
    (void)state;
    buf out;
    buf_init(&out, 1 << 20);
    /* Under a sanitizer the largest takes ten times as long. */
    assert_int_equal(run((const char *const[]){TEST_DATA_DIR "/hostile", EXAMPLES "/farm.jpg", "-q", "--decode-ms",
                                               "60000", NULL}, &out, NULL), 1);
    result_lines set = result_lines_read(&out);
    assert_int_equal(set.n, 4);
    assert_int_equal(result_lines_with(&set, "\"error\":null"), 3);
    assert_int_equal(result_lines_with(&set, "{\"code\":\"image_too_large\",\"message\":\"image of 30000 x 30000 is "
                                             "900000000 pixels, the limit is 64000000\"}"), 1);
    result_lines_free(&set);
    buf_clear(&out);
    assert_int_equal(run((const char *const[]){TEST_DATA_DIR "/hostile/sides_7900.png", "-q", "--decode-ms", "1",
                                               "--max-pixels", "62410000", NULL}, &out, NULL), 1);
    assert_non_null(strstr((char *)out.data, "decoding took longer than 1 ms"));
    buf_clear(&out);
    assert_int_equal(run((const char *const[]){TEST_DATA_DIR "/hostile/sides_7900.png", "-q", "--max-pixels",
                                               "62409999", NULL}, &out, NULL), 1);
    assert_non_null(strstr((char *)out.data, "the limit is 62409999"));
    buf_deinit(&out);
}

static void wrong_inputs_are_usage_errors_before_anything_runs(void **state) {
    fixture *f = *state;
    char *path = put(f, "items.jsonl", "{\"id\":\"a\",\"image\":\"x\"}\n\n{\"id\":\"a\",\"image\":\"y\"}\n");
    buf out, errors;
    buf_init(&out, 1 << 20);
    buf_init(&errors, 1 << 20);
    assert_int_equal(run((const char *const[]){"--input", path, NULL}, &out, &errors), 2);
    assert_non_null(strstr((char *)errors.data, "line 1 and again in line 3"));
    assert_int_equal(out.len_bytes, 0);
    char *whole = put(f, "whole.jsonl", "{\"id\":\"a\",\"image\":\"x\"}\n");
    buf_clear(&errors);
    assert_int_equal(run((const char *const[]){"--input", whole, "-o", whole, "--overwrite", NULL}, &out, &errors), 2);
    assert_non_null(strstr((char *)errors.data, "is an input of this run"));
    assert_true(file_read(&out, whole));
    assert_int_equal(out.len_bytes, 23);
    buf_clear(&out);
    free(whole);
    char *empty = path_join(f->dir, "empty");
    assert_int_equal(mkdir(empty, 0755), 0);
    buf_clear(&errors);
    assert_int_equal(run((const char *const[]){empty, NULL}, &out, &errors), 2);
    assert_non_null(strstr((char *)errors.data, "no images in"));
    free(empty);
    buf_deinit(&out);
    buf_deinit(&errors);
    free(path);
}

static void results_do_not_depend_on_concurrency(void **state) {
    fixture *f = *state;
    char *items = big_manifest(f, 24), *one = path_join(f->dir, "one.jsonl"), *many = path_join(f->dir, "many.jsonl");
    assert_int_equal(run((const char *const[]){"--input", items, "-o", one, "-c", "1", "-q", NULL}, NULL, NULL), 0);
    assert_int_equal(run((const char *const[]){"--input", items, "-o", many, "-c", "64", "-q", "--threads", "2", NULL},
                         NULL, NULL), 0);
    result_lines a = result_lines_of(one), b = result_lines_of(many);
    result_lines_assert_same(&a, &b);
    result_lines_free(&a);
    result_lines_free(&b);
    free(items);
    free(one);
    free(many);
}

static off_t size_of(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 ? info.st_size : 0;
}

typedef struct {
    const char *path;
    off_t wanted;
    child *c;
} growth;

static bool has_grown_or_ended(void *arg) {
    growth *g = arg;
    return size_of(g->path) >= g->wanted || !child_is_running(g->c);
}

/* Killed when its output has reached a random size, ten times over, then left to finish. */
static void a_run_killed_ten_times_has_the_lines_of_an_undisturbed_one(void **state) {
    fixture *f = *state;
    char *items = big_manifest(f, 300);
    char *calm = path_join(f->dir, "calm.jsonl"), *torn = path_join(f->dir, "torn.jsonl");
    assert_int_equal(run((const char *const[]){"--input", items, "-o", calm, "-q", NULL}, NULL, NULL), 0);
    result_lines want = result_lines_of(calm);
    off_t whole = size_of(calm);
    rng r = rng_make(test_seed());
    int n_killed = 0;
    for (int i = 0; i < KILLS; i++) {
        const char *const argv[] = {MIPHA, "annotate", "--input", items, "-o", torn, "--resume", "-q", NULL};
        child c;
        child_start(&c, argv, NULL);
        /* Sometimes before the first new line, at most a fifth of the file further. */
        growth g = {torn, size_of(torn) + (off_t)rng_below(&r, (uint64_t)whole / 5), &c};
        (void)wait_until(has_grown_or_ended, &g, TIMEOUT_MS);
        n_killed += child_stop(&c, SIGKILL, TIMEOUT_MS) == 128 + SIGKILL;
        child_close(&c);
    }
    assert_true(n_killed >= 3); /* the others found everything done */
    assert_int_equal(run((const char *const[]){"--input", items, "-o", torn, "--resume", "-q", NULL}, NULL, NULL), 0);
    result_lines got = result_lines_of(torn);
    result_lines_assert_same(&got, &want);
    off_t before = size_of(torn);
    assert_int_equal(run((const char *const[]){"--input", items, "-o", torn, "--resume", "-q", NULL}, NULL, NULL), 0);
    assert_int_equal(size_of(torn), before);
    result_lines_free(&got);
    result_lines_free(&want);
    free(items);
    free(calm);
    free(torn);
}

static void an_interrupted_run_exits_130_and_resumes_without_losing_or_repeating(void **state) {
    fixture *f = *state;
    char *items = big_manifest(f, 300), *path = path_join(f->dir, "out.jsonl");
    const char *const argv[] = {MIPHA, "annotate", "--input", items, "-o", path, NULL};
    child c;
    child_start(&c, argv, NULL);
    growth g = {path, 1, &c};
    assert_true(wait_until(has_grown_or_ended, &g, TIMEOUT_MS));
    assert_int_equal(child_stop(&c, SIGINT, TIMEOUT_MS), 130);
    child_close(&c);
    result_lines part = result_lines_of(path); /* whole lines only */
    assert_int_equal(result_lines_with(&part, "\"cancelled\""), 0);
    size_t n_part = part.n;
    result_lines_free(&part);
    assert_int_equal(run((const char *const[]){"--input", items, "-o", path, "--resume", NULL}, NULL, NULL), 0);
    result_lines all = result_lines_of(path);
    assert_true(n_part > 0 && n_part < all.n);
    assert_int_equal(all.n, 300 + 150 + 100);
    for (size_t i = 1; i < all.n; i++) assert_string_not_equal(all.lines[i - 1], all.lines[i]);
    result_lines_free(&all);
    /* Other questions are another run. */
    buf errors;
    buf_init(&errors, 1 << 20);
    assert_int_equal(run((const char *const[]){"--input", items, "-o", path, "--resume", "-n", "7", NULL}, NULL,
                         &errors), 2);
    assert_non_null(strstr((char *)errors.data, "other images, prompts or settings"));
    buf_deinit(&errors);
    free(items);
    free(path);
}

/* Runs a line of shell in which $M is mipha and $S a file for its exit status. */
static ended_run run_shell(const fixture *f, const char *line, int *exit_code) {
    char whole[1024];
    (void)snprintf(whole, sizeof whole, "M='" MIPHA "' E='" EXAMPLES "' D='%s'; %s", f->dir, line);
    ended_run r = ended_run_of((const char *const[]){"/bin/sh", "-c", whole, NULL}, TIMEOUT_MS);
    char *path = path_join(f->dir, "status");
    buf text;
    buf_init(&text, 1 << 16);
    assert_true(file_read(&text, path));
    *exit_code = atoi((const char *)text.data);
    buf_deinit(&text);
    free(path);
    return r;
}

static void a_reader_that_has_seen_enough_ends_a_run_quietly(void **state) {
    const fixture *f = *state;
    int exit_code;
    ended_run r = run_shell(f, "{ \"$M\" annotate \"$E\" -q -c 1; echo $? >\"$D/status\"; } | head -n 1", &exit_code);
    assert_int_equal(exit_code, 141);
    assert_string_equal(ended_run_errors(&r), "");
    ended_run_free(&r);
    r = run_shell(f, "mkfifo \"$D/gate\"; { read -r _ <\"$D/gate\"; \"$M\" annotate --help; echo $? >\"$D/status\"; } | "
                     "{ exec <&-; echo >\"$D/gate\"; }", &exit_code);
    assert_int_equal(exit_code, 141);
    assert_string_equal(ended_run_errors(&r), "");
    ended_run_free(&r);

    /* Who stops looking at the progress does not stop the run. */
    r = run_shell(f, "{ \"$M\" annotate \"$E\" -o \"$D/out.jsonl\" 2>&1; echo $? >\"$D/status\"; } | true", &exit_code);
    assert_int_equal(exit_code, 0);
    ended_run_free(&r);
    char *path = path_join(f->dir, "out.jsonl");
    result_lines set = result_lines_of(path);
    assert_true(set.n >= 12);
    result_lines_free(&set);
    free(path);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        T(a_folder_is_annotated_with_one_line_for_each_question),
        T(bad_items_fail_alone_and_are_named),
        T(items_of_several_images_have_their_lines_and_are_resumed),
        T(what_failed_is_asked_again_once_its_picture_is_there),
        T(small_files_that_unpack_to_very_much_harm_nobody),
        T(wrong_inputs_are_usage_errors_before_anything_runs),
        T(results_do_not_depend_on_concurrency),
        T(a_run_killed_ten_times_has_the_lines_of_an_undisturbed_one),
        T(a_reader_that_has_seen_enough_ends_a_run_quietly),
        T(an_interrupted_run_exits_130_and_resumes_without_losing_or_repeating),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
