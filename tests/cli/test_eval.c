/* `mipha eval` as a person runs it, with the demonstration model and a POPE of a few questions. */
#include "tests/support/support.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MIPHA      PROGRAM_DIR "/mipha"
#define TIMEOUT_MS 240000

typedef struct {
    char *dir, *data, *out;
} fixture;

static void put(const char *dir, const char *name, const char *text) {
    char *path = path_join(dir, name);
    file_write(path, text, strlen(text));
    free(path);
}

/* The demonstration model knows these prompts; image names are given relative to val2014/, as anybody's are. */
static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    f->dir = temp_dir_make();
    f->data = path_join(f->dir, "pope");
    f->out = path_join(f->dir, "scores");
    char *coco = path_join(f->data, "coco"), *images = path_join(f->data, "val2014");
    assert_int_equal(mkdir(f->data, 0777) | mkdir(coco, 0777) | mkdir(images, 0777), 0);
    char *picture = path_join(images, "farm.jpg");
    buf bytes;
    buf_init(&bytes, 1 << 24);
    assert_true(file_read(&bytes, SOURCE_DIR "/examples/farm.jpg"));
    file_write(picture, bytes.data, bytes.len_bytes);
    buf_deinit(&bytes);
    put(f->data, "llava_pope_test.jsonl",
        "{\"question_id\": 1, \"image\": \"farm.jpg\", \"text\": \"Is there a cow?\", \"category\": \"adversarial\"}\n"
        "{\"question_id\": 2, \"image\": \"farm.jpg\", \"text\": \"Is there a rocket?\", \"category\": \"popular\"}\n"
        "{\"question_id\": 3, \"image\": \"gone.jpg\", \"text\": \"Is there a dog?\", \"category\": \"random\"}\n");
    put(coco, "coco_pope_adversarial.json", "{\"label\": \"yes\"}\n");
    put(coco, "coco_pope_popular.json", "{\"label\": \"no\"}\n");
    put(coco, "coco_pope_random.json", "{\"label\": \"no\"}\n");
    free(coco), free(images), free(picture);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    temp_dir_remove(f->dir);
    free(f->data), free(f->out), free(f);
    return 0;
}

static void says(const char *text, const char *want) {
    if (!strstr(text, want)) fail_msg("no \"%s\" in:\n%s", want, text);
}

static char *text_of(const fixture *f, const char *name) {
    char *path = path_join(f->out, name);
    buf text;
    buf_init(&text, 1 << 20);
    if (!file_read(&text, path)) fail_msg("%s cannot be read", path);
    free(path);
    return (char *)text.data;
}

static void a_benchmark_is_asked_scored_and_not_asked_again(void **state) {
    fixture *f = *state;
    const char *argv[] = {MIPHA, "eval", "pope", "--data", f->data, "-o", f->out, "--threads", "2", NULL};
    ended_run r = ended_run_of(argv, TIMEOUT_MS);
    assert_int_equal(r.exit_code, 1); /* a picture is missing */
    says(ended_run_out(&r), "POPE, mipha-demo\n");
    says(ended_run_out(&r), "questions                       3\n");
    says(ended_run_out(&r), "unanswered                      1\n");
    says(ended_run_out(&r), "adversarial F1             100.00\n");
    says(ended_run_out(&r), "popular accuracy           100.00\n");
    ended_run_free(&r);
    char *scores = text_of(f, "scores.json"), *results = text_of(f, "results.jsonl"), *again;
    says(scores, "\"answered\": 2,");
    says(scores, "\"adversarial F1\": 100.0,");
    says(results, "\"exif\":false");
    r = ended_run_of(argv, TIMEOUT_MS);
    assert_int_equal(r.exit_code, 1);
    again = text_of(f, "results.jsonl");
    assert_string_equal(results, again);
    free(scores), free(results), free(again);
    ended_run_free(&r);
}

static void what_is_wrong_is_said_before_a_model_is_loaded(void **state) {
    fixture *f = *state;
    const struct {
        const char *argv[10];
        int exit_code;
        const char *want;
    } cases[] = {{{MIPHA, "eval"}, 2, "which benchmark? mipha eval --list names them"},
                 {{MIPHA, "eval", "imagenet"}, 2, "no benchmark \"imagenet\""},
                 {{MIPHA, "eval", "gqa"}, 2, "--data DIR is missing; gqa needs llava_gqa_testdev_balanced.jsonl"},
                 {{MIPHA, "eval", "gqa", "--data", "/nowhere"}, 3, "--data /nowhere: No such file"},
                 {{MIPHA, "eval", "gqa", "--data", f->data}, 3, "llava_gqa_testdev_balanced.jsonl: No such file"},
                 {{MIPHA, "eval", "pope", "--data", f->data, "-o", "/nowhere/out"}, 3, "/nowhere/out: No such file"},
                 {{MIPHA, "eval", "pope", "--data", f->data, "-o", f->out, "--serve-adapter=x"}, 2, "NAME=DIR"},
                 {{MIPHA, "eval", "pope", "--data", f->data, "-o", f->out, "--no-fast", "--broker=x"}, 2, "--fast has no effect"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ended_run r = ended_run_of(cases[i].argv, TIMEOUT_MS);
        says(ended_run_errors(&r), cases[i].want);
        assert_int_equal(r.exit_code, cases[i].exit_code);
        ended_run_free(&r);
    }
}

static void the_list_names_every_benchmark_and_its_files(void **state) {
    (void)state;
    ended_run r = ended_run_of((const char *const[]){MIPHA, "eval", "--list", NULL}, TIMEOUT_MS);
    assert_int_equal(r.exit_code, 0);
    static const char *const names[] = {"vqav2", "gqa", "vizwiz", "scienceqa", "textvqa", "pope", "mme", "mmbench",
                                        "mmvet", "seed", "mmmu"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) says(ended_run_out(&r), names[i]);
    ended_run_free(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_benchmark_is_asked_scored_and_not_asked_again, setup, teardown),
        cmocka_unit_test_setup_teardown(what_is_wrong_is_said_before_a_model_is_loaded, setup, teardown),
        cmocka_unit_test(the_list_names_every_benchmark_and_its_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
