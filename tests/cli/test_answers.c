/* `ask`, `generate`, `embed`, `up`, `status` and `model` with the demonstration model: what they print and
 * how they end. What the answers should be, `annotate` says, whose answers are compared with transformers
 * in tests/e2e/test_demo_scores.c. */
#include "tests/support/redis_server.h"
#include "tests/support/support.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIPHA      PROGRAM_DIR "/mipha"
#define MODEL      SOURCE_DIR "/models/mipha-demo"
#define FARM       SOURCE_DIR "/examples/farm.jpg"
#define CAFE       SOURCE_DIR "/examples/cafe.webp"
#define WAIT_MS    120000
#define WORDS(...) ((const char *const[]){MIPHA, __VA_ARGS__, NULL})

/* The prompt template of Phi-2, as published; written out a second time on purpose. */
#define BEFORE_QUESTION \
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, " \
    "detailed, and polite answers to the user's questions. USER: <image>\n"
#define AFTER_QUESTION " ASSISTANT:"

static const char *const questions[] = {"Describe the image.", "How many objects are there?", "Is there a cow?"};
#define N_QUESTIONS (sizeof questions / sizeof *questions)

typedef struct {
    char *dir, *text_file, *absent, *out;
    json_t *expected[N_QUESTIONS]; /* the result lines of FARM */
} world;

/* ---- runs ---------------------------------------------------------------------------------------- */

static void fail_of(const ended_run *r, const char *what) {
    fail_msg("%s: exit %d\nstdout: %s\nstderr: %s", what, r->exit_code, ended_run_out(r), ended_run_errors(r));
}

/* errors: a part of standard error, or NULL when it must be empty. */
static void gives(const char *const argv[], int exit_code, const char *out, const char *errors) {
    ended_run r = ended_run_of(argv, WAIT_MS);
    bool errors_fit = errors ? strstr(ended_run_errors(&r), errors) != NULL : r.errors.len_bytes == 0;
    if (r.exit_code != exit_code || strcmp(ended_run_out(&r), out) != 0 || !errors_fit) {
        print_error("wanted exit %d, stdout: %s, in stderr: %s\n", exit_code, out, errors ? errors : "nothing");
        fail_of(&r, argv[1]);
    }
    ended_run_free(&r);
}

static json_t *json_of(const ended_run *r) {
    json_error_t why;
    json_t *value = json_loads(ended_run_out(r), 0, &why);
    if (!value) fail_of(r, why.text);
    return value;
}

static const char *answer_to(const world *w, size_t i) {
    const char *text = json_string_value(json_object_get(w->expected[i], "text"));
    assert_non_null(text);
    return text;
}

static int set_up(void **state) {
    world *w = calloc(1, sizeof *w);
    w->dir = temp_dir_make();
    w->text_file = path_join(w->dir, "text.jpg");
    w->absent = path_join(w->dir, "absent.jpg");
    w->out = path_join(w->dir, "out.npy");
    file_write(w->text_file, "not a picture", 13);
    ended_run r = ended_run_of(WORDS("annotate", FARM, "-q", "-p", questions[0], "-p", questions[1], "-p",
                                     questions[2]), WAIT_MS);
    if (r.exit_code != 0) fail_of(&r, "annotate");
    char *line = (char *)r.out.data, *rest = NULL;
    for (line = strtok_r(line, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        json_t *value = json_loads(line, 0, NULL);
        size_t i = (size_t)json_integer_value(json_object_get(value, "prompt_index"));
        assert_true(i < N_QUESTIONS && !w->expected[i]);
        w->expected[i] = value;
    }
    for (size_t i = 0; i < N_QUESTIONS; i++) assert_true(*answer_to(w, i));
    ended_run_free(&r);
    *state = w;
    return 0;
}

static int tear_down(void **state) {
    world *w = *state;
    for (size_t i = 0; i < N_QUESTIONS; i++) json_decref(w->expected[i]);
    temp_dir_remove(w->dir);
    free(w->text_file);
    free(w->absent);
    free(w->out);
    free(w);
    return 0;
}

/* ---- ask ----------------------------------------------------------------------------------------- */

static void ask_prints_one_answer_a_line_to_questions_given_or_typed(void **state) {
    const world *w = *state;
    char all[1024];
    (void)snprintf(all, sizeof all, "%s\n%s\n%s\n", answer_to(w, 0), answer_to(w, 1), answer_to(w, 2));
    gives(WORDS("ask", FARM, "-p", questions[0], "-p", questions[1], "-p", questions[2]), 0, all, NULL);
    /* Empty lines, a line end of Windows, and a last line without one. */
    char script[512];
    (void)snprintf(script, sizeof script, "printf '%s\\n\\n%s\\r\\n%s' | \"$0\" ask \"$1\"", questions[0],
                   questions[1], questions[2]);
    gives((const char *const[]){"sh", "-c", script, MIPHA, FARM, NULL}, 0, all, NULL);
    gives(WORDS("ask", FARM), 0, "", NULL); /* nobody asks */
}

static void ask_about_a_bad_image_says_why_and_exits_1(void **state) {
    const world *w = *state;
    gives(WORDS("ask", w->text_file, "-p", "What?"), 1, "", "image_undecodable: not a JPEG, PNG or WebP image");
    gives(WORDS("ask", w->absent, "-p", "What?"), 1, "", "absent.jpg: No such file or directory");
    gives(WORDS("ask", w->dir, "-p", "What?"), 1, "", "is a folder");
}

static void ask_goes_on_after_a_question_that_cannot_be_answered(void **state) {
    const world *w = *state;
    char *too_long = calloc(20001, 1), answer[256];
    assert_non_null(too_long);
    for (size_t i = 0; i < 20000; i += 4) memcpy(too_long + i, "cow ", 4);
    (void)snprintf(answer, sizeof answer, "%s\n", answer_to(w, 0));
    gives(WORDS("ask", FARM, "-p", too_long, "-p", questions[0]), 1, answer, "prompt_too_long: ");
    free(too_long);
}

/* ---- generate ------------------------------------------------------------------------------------ */

static void generate_with_the_template_written_out_gives_the_answer_of_annotate(void **state) {
    const world *w = *state;
    for (size_t i = 0; i < N_QUESTIONS; i++) {
        char prompt[512], text[256];
        (void)snprintf(prompt, sizeof prompt, BEFORE_QUESTION "%s" AFTER_QUESTION, questions[i]);
        (void)snprintf(text, sizeof text, "%s\n", answer_to(w, i));
        /* annotate turns pictures upright, which changes nothing in this one */
        gives(WORDS("generate", "--image", FARM, "--raw-prompt", prompt), 0, text, NULL);
        ended_run r = ended_run_of(WORDS("generate", "--image", FARM, "--raw-prompt", prompt, "--json"), WAIT_MS);
        assert_int_equal(r.exit_code, 0);
        json_t *line = json_of(&r);
        static const char *const same[] = {"text", "token_ids", "finish_reason", "error", "model", "image_sha256"};
        for (size_t k = 0; k < sizeof same / sizeof *same; k++)
            if (!json_equal(json_object_get(line, same[k]), json_object_get(w->expected[i], same[k])))
                fail_of(&r, same[k]);
        assert_string_equal(json_string_value(json_object_get(line, "prompt")), prompt);
        json_decref(line);
        ended_run_free(&r);
    }
}

/* What a manifest, `ask` and a raw prompt say of two images together. */
static void two_images_are_asked_about_together_in_every_command(void **state) {
    const world *w = *state;
    char *items = path_join(w->dir, "items.jsonl"), text[512], prompt[512];
    (void)snprintf(text, sizeof text, "{\"id\":\"two\",\"images\":[\"%s\",\"%s\"],\"prompt\":\"%s\"}\n", FARM, CAFE, questions[0]);
    file_write(items, text, strlen(text));
    ended_run r = ended_run_of(WORDS("annotate", "--input", items, "-q"), WAIT_MS);
    if (r.exit_code != 0) fail_of(&r, "annotate");
    json_t *wanted = json_of(&r), *line;
    ended_run_free(&r);
    (void)snprintf(text, sizeof text, "%s\n", json_string_value(json_object_get(wanted, "text")));
    gives(WORDS("ask", FARM, CAFE, "-p", questions[0]), 0, text, NULL);
    (void)snprintf(prompt, sizeof prompt, BEFORE_QUESTION "<image>\n%s" AFTER_QUESTION, questions[0]);
    r = ended_run_of(WORDS("generate", "--image", FARM, "--image", CAFE, "--raw-prompt", prompt, "--json"), WAIT_MS);
    if (r.exit_code != 0) fail_of(&r, "generate");
    line = json_of(&r);
    static const char *const same[] = {"text", "token_ids", "finish_reason", "error", "image", "images", "image_sha256"};
    for (size_t k = 0; k < sizeof same / sizeof *same; k++)
        if (!json_equal(json_object_get(line, same[k]), json_object_get(wanted, same[k]))) fail_of(&r, same[k]);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(line, "usage"), "image_tokens")), 2 * 81);
    ended_run_free(&r);
    json_decref(line);
    json_decref(wanted);
    free(items);

    gives(WORDS("ask", FARM, w->text_file, "-p", "What?"), 1, "", "image_undecodable: image 2 of 2: not a JPEG");
    gives(WORDS("ask", FARM, w->absent, "-p", "What?"), 1, "", "absent.jpg: No such file or directory");
    gives(WORDS("generate", "--image", FARM, "--image", CAFE, "--raw-prompt", "<image> What?"), 1, "",
          "bad_prompt: raw prompt holds <image> 1 time, there are 2 images");
    const char *many[20] = {MIPHA, "ask"};
    for (int i = 2; i < 19; i++) many[i] = FARM;
    ended_run too_many = ended_run_of(many, WAIT_MS);
    assert_int_equal(too_many.exit_code, 2);
    ended_run_free(&too_many);
}

static void generate_refuses_an_image_mark_without_image_and_a_bad_image(void **state) {
    const world *w = *state;
    gives(WORDS("generate", "--raw-prompt", "<image> What?"), 1, "",
          "bad_prompt: raw prompt holds <image> 1 time, there are 0 images");
    gives(WORDS("generate", "--image", w->text_file, "--raw-prompt", "<image>"), 1, "", "image_undecodable: ");
    ended_run r = ended_run_of(WORDS("generate", "--image", w->text_file, "--raw-prompt", "<image>", "--json"),
                               WAIT_MS);
    json_t *line = json_of(&r);
    assert_int_equal(r.exit_code, 1);
    const char *code = json_string_value(json_object_get(json_object_get(line, "error"), "code"));
    assert_string_equal(code ? code : "none", "image_undecodable");
    json_decref(line);
    ended_run_free(&r);
}

/* ---- embed --------------------------------------------------------------------------------------- */

typedef struct {
    int n_dims;
    size_t dims[3], n;
    float *values;
} array;

/* Reads version 1.0 of numpy's format by its definition. */
static array array_of(const char *path) {
    buf file;
    buf_init(&file, 64 << 20);
    assert_true(file_read(&file, path));
    assert_true(file.len_bytes > 10 && memcmp(file.data, "\x93NUMPY\x01\x00", 8) == 0);
    size_t n_header = (size_t)file.data[8] | (size_t)file.data[9] << 8;
    assert_int_equal((10 + n_header) % 64, 0);
    assert_int_equal(file.data[9 + n_header], '\n');
    file.data[9 + n_header] = 0;
    const char *header = (const char *)file.data + 10;
    assert_non_null(strstr(header, "'descr': '<f4'"));
    assert_non_null(strstr(header, "'fortran_order': False"));
    array a = {.n = 1};
    const char *shape = strstr(header, "'shape': (");
    assert_non_null(shape);
    a.n_dims = sscanf(shape, "'shape': (%zu, %zu, %zu)", &a.dims[0], &a.dims[1], &a.dims[2]);
    for (int i = 0; i < a.n_dims; i++) a.n *= a.dims[i];
    assert_int_equal(file.len_bytes, 10 + n_header + 4 * a.n);
    a.values = malloc(4 * a.n);
    assert_non_null(a.values);
    memcpy(a.values, file.data + 10 + n_header, 4 * a.n);
    for (size_t i = 0; i < a.n; i++) assert_true(isfinite(a.values[i]));
    buf_deinit(&file);
    return a;
}

static void embed_writes_one_array_of_all_images(void **state) {
    const world *w = *state;
    gives(WORDS("embed", FARM, CAFE, FARM, "-o", w->out), 0, "", NULL);
    array features = array_of(w->out);
    assert_int_equal(features.n_dims, 3);
    assert_int_equal(features.dims[0], 3);
    assert_int_equal(features.dims[1], 81); /* config.json: (128 / 14)^2 patches, width 192 */
    assert_int_equal(features.dims[2], 192);
    size_t n_one = 81 * 192;
    assert_memory_equal(features.values, features.values + 2 * n_one, 4 * n_one);
    assert_memory_not_equal(features.values, features.values + n_one, 4 * n_one);

    gives(WORDS("embed", FARM, CAFE, "-o", w->out, "--layer", "pooled"), 0, "", NULL);
    array pooled = array_of(w->out);
    assert_int_equal(pooled.n_dims, 2);
    assert_int_equal(pooled.dims[0], 2);
    assert_int_equal(pooled.dims[1], 192);
    for (size_t i = 0; i < 2; i++)
        for (size_t c = 0; c < 192; c++) {
            double sum = 0;
            for (size_t t = 0; t < 81; t++) sum += (double)features.values[i * n_one + t * 192 + c];
            assert_true(pooled.values[i * 192 + c] == (float)(sum / 81));
        }

    gives(WORDS("embed", FARM, "-o", w->out, "--layer", "projected"), 0, "", NULL);
    array projected = array_of(w->out);
    assert_int_equal(projected.n_dims, 3);
    assert_int_equal(projected.dims[2], 256);
    free(features.values);
    free(pooled.values);
    free(projected.values);
    assert_int_equal(unlink(w->out), 0);
}

/* One default for all of them: the same photo is the same picture to every command. */
static void photos_stand_upright_unless_told_otherwise(void **state) {
    const world *w = *state;
    static const char *const flags[] = {NULL, "--exif", "--no-exif"};
    array seen[3];
    for (size_t i = 0; i < 3; i++) {
        gives(WORDS("embed", SOURCE_DIR "/examples/portrait-exif.jpg", "-o", w->out, flags[i]), 0, "", NULL);
        seen[i] = array_of(w->out);
    }
    assert_memory_equal(seen[0].values, seen[1].values, 4 * seen[0].n);
    assert_memory_not_equal(seen[0].values, seen[2].values, 4 * seen[0].n);
    for (size_t i = 0; i < 3; i++) free(seen[i].values);
    assert_int_equal(unlink(w->out), 0);
    ended_run r = ended_run_of(WORDS("generate", "--image", FARM, "-r", "<image>", "-n", "1", "--json"), WAIT_MS);
    if (!strstr(ended_run_out(&r), "\"exif\":true")) fail_of(&r, "generate");
    ended_run_free(&r);
}

static void embed_leaves_no_half_file(void **state) {
    const world *w = *state;
    gives(WORDS("embed", FARM, w->text_file, "-o", w->out), 1, "", "text.jpg: not a JPEG, PNG or WebP image");
    assert_int_equal(access(w->out, F_OK), -1);
    gives(WORDS("embed", FARM, "-o", w->dir), 1, "", w->dir);
}

/* ---- model --------------------------------------------------------------------------------------- */

static void inspect_prints_the_numbers_of_the_config(void **state) {
    (void)state;
    ended_run r = ended_run_of(WORDS("model", "inspect", MODEL), WAIT_MS);
    assert_int_equal(r.exit_code, 0);
    json_t *config = json_load_file(MODEL "/config.json", 0, NULL);
    assert_non_null(config);
    char wanted[128];
    (void)snprintf(wanted, sizeof wanted,
                   "%" JSON_INTEGER_FORMAT " layers, width %" JSON_INTEGER_FORMAT ", MLP %" JSON_INTEGER_FORMAT
                   ", %" JSON_INTEGER_FORMAT " heads",
                   json_integer_value(json_object_get(config, "num_hidden_layers")),
                   json_integer_value(json_object_get(config, "hidden_size")),
                   json_integer_value(json_object_get(config, "intermediate_size")),
                   json_integer_value(json_object_get(config, "num_attention_heads")));
    if (!strstr(ended_run_out(&r), wanted)) fail_of(&r, wanted);
    json_decref(config);
    ended_run_free(&r);
    gives(WORDS("model", "verify", MODEL), 0, "180 tensors present with the expected shapes, none extra\n", NULL);
}

static void a_checkpoint_cut_short_is_refused_naming_file_and_tensor(void **state) {
    const world *w = *state;
    char *dir = path_join(w->dir, "cut"), *weights = path_join(dir, "model.safetensors");
    ended_run copy = ended_run_of((const char *const[]){"cp", "-r", MODEL, dir, NULL}, WAIT_MS);
    assert_int_equal(copy.exit_code, 0);
    ended_run_free(&copy);
    assert_int_equal(truncate(weights, 1000000), 0);
    const char *const *const lines[] = {
        WORDS("model", "verify", dir), WORDS("model", "inspect", dir), WORDS("annotate", "--model", dir, FARM),
        WORDS("ask", "--model", dir, FARM, "-p", "What?"), WORDS("generate", "--model", dir, "-r", "What?"),
        WORDS("embed", "--model", dir, FARM, "-o", w->out)};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        gives(lines[i], 3, "", "model.safetensors: tensor model.embed_tokens.weight: data_offsets");
        assert_int_equal(access(w->out, F_OK), -1);
    }
    free(weights);
    free(dir);
}

/* ---- up and status ------------------------------------------------------------------------------- */

typedef struct {
    const char *path;
    child *c;
} file_goal;

static bool exists_or_ended(void *arg) {
    file_goal *g = arg;
    return access(g->path, F_OK) == 0 || !child_is_running(g->c);
}

static void status_tells_of_the_cluster_that_up_runs(void **state) {
    const world *w = *state;
    if (!redis_server_exists()) skip();
    char *ready = path_join(w->dir, "ready"), endpoint[128], wanted[160], errors_wanted[256];
    file_write(ready, "tcp://127.0.0.1:1\n", 18); /* of a cluster that was killed */
    child up;
    child_start(&up, WORDS("up", "--vision-nodes", "1", "--lm-nodes", "2", "--threads", "1", "--ready-file", ready),
                NULL);
    assert_true(child_wait_for_output(&up, "cluster of 3 nodes is ready", WAIT_MS));
    file_goal goal = {ready, &up};
    assert_true(wait_until(exists_or_ended, &goal, WAIT_MS));
    FILE *f = fopen(ready, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%127s", endpoint), 1);
    (void)fclose(f);
    (void)snprintf(wanted, sizeof wanted, "%s\n", endpoint);

    ended_run r = ended_run_of(WORDS("annotate", FARM, CAFE, "-q", "--broker", endpoint), WAIT_MS);
    if (r.exit_code != 0) fail_of(&r, "annotate");
    ended_run_free(&r);
    r = ended_run_of(WORDS("status", "--broker", endpoint), WAIT_MS);
    if (r.exit_code != 0 || !strstr(ended_run_out(&r), "accepted 2   done 2   failed 0") ||
        !strstr(ended_run_out(&r), "nodes 3") || !strstr(ended_run_out(&r), "rates "))
        fail_of(&r, "status");
    ended_run_free(&r);
    r = ended_run_of(WORDS("status", "--broker", endpoint, "--json"), WAIT_MS);
    json_t *report = json_of(&r), *nodes = json_object_get(report, "nodes");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(report, "metrics"), "done")), 2);
    size_t n_vision = 0, n_lm = 0;
    for (size_t i = 0; i < json_array_size(nodes); i++) {
        const char *role = json_string_value(json_object_get(json_array_get(nodes, i), "role"));
        n_vision += role && strcmp(role, "vision") == 0;
        n_lm += role && strcmp(role, "lm") == 0;
    }
    assert_int_equal(n_vision, 1);
    assert_int_equal(n_lm, 2);
    json_decref(report);
    ended_run_free(&r);

    (void)snprintf(errors_wanted, sizeof errors_wanted, "mipha annotate --broker %s IMAGES\n", endpoint);
    assert_true(child_wait_for_output(&up, errors_wanted, WAIT_MS));
    buf text;
    buf_init(&text, 1 << 16);
    child_stdout(&up, &text);
    assert_string_equal((const char *)text.data, wanted); /* a line and nothing else, for scripts */

    gives(WORDS("up", "--ready-file", ready), 3, "", "/ready is another's, who still runs");
    assert_int_equal(access(ready, F_OK), 0);

    char line[512];
    (void)snprintf(line, sizeof line, "{ '" MIPHA "' status --broker %s --watch --interval 0.1; echo $? >&2; } | head -n 1 >/dev/null",
                   endpoint);
    r = ended_run_of((const char *const[]){"/bin/sh", "-c", line, NULL}, WAIT_MS);
    if (strcmp(ended_run_errors(&r), "141\n") != 0) fail_of(&r, "status --watch | head");
    ended_run_free(&r);
    buf_deinit(&text);
    assert_int_equal(child_stop(&up, SIGTERM, WAIT_MS), 0);
    assert_int_equal(access(ready, F_OK), -1);
    child_close(&up);
    free(ready);
}

static void a_gpu_that_is_not_there_is_refused_by_name(void **state) {
    (void)state;
    if (!redis_server_exists()) skip();
    gives(WORDS("up", "--gpus", "99"), 3, "", "--gpus: ");
    gives(WORDS("up", "--gpus", "0", "--device", "cpu"), 2, "", "write one of them");
    gives(WORDS("annotate", FARM, "-q", "--device", "cuda:99"), 3, "", "cuda:99");
    gives(WORDS("annotate", FARM, "-q", "--device", "tpu"), 2, "", "device \"tpu\", need \"cpu\", \"cuda\" or \"cuda:N\"");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ask_prints_one_answer_a_line_to_questions_given_or_typed),
        cmocka_unit_test(ask_goes_on_after_a_question_that_cannot_be_answered),
        cmocka_unit_test(ask_about_a_bad_image_says_why_and_exits_1),
        cmocka_unit_test(generate_with_the_template_written_out_gives_the_answer_of_annotate),
        cmocka_unit_test(two_images_are_asked_about_together_in_every_command),
        cmocka_unit_test(generate_refuses_an_image_mark_without_image_and_a_bad_image),
        cmocka_unit_test(embed_writes_one_array_of_all_images),
        cmocka_unit_test(photos_stand_upright_unless_told_otherwise),
        cmocka_unit_test(embed_leaves_no_half_file),
        cmocka_unit_test(inspect_prints_the_numbers_of_the_config),
        cmocka_unit_test(a_checkpoint_cut_short_is_refused_naming_file_and_tensor),
        cmocka_unit_test(status_tells_of_the_cluster_that_up_runs),
        cmocka_unit_test(a_gpu_that_is_not_there_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
