/* Prompts against what the authors' code makes of the same conversations (tools/make_golden_prompts.py), and what
 * people may type. */
#include "tests/support/support.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "lm_node/prompt.h"

static tokenizer *open_folder(const char *folder) {
    char *dir = temp_dir_make(), *from = path_join(TEST_DATA_DIR, folder), *to = path_join(dir, "tokenizer.json");
    char *json = path_join(from, "tokenizer.json");
    buf text;
    buf_init(&text, 16 << 20);
    assert_true(file_read(&text, json));
    file_write(to, text.data, text.len_bytes);
    char *config = path_join(dir, "tokenizer_config.json");
    const char *eos = strstr(folder, "gemma") ? "{\"eos_token\":\"<eos>\"}" : "{\"eos_token\":\"<|endoftext|>\"}";
    file_write(config, eos, strlen(eos));
    tokenizer *t;
    err e;
    if (tokenizer_open(&t, dir, &e) != STATUS_OK) fail_msg("%s", e.text);
    temp_dir_remove(dir);
    buf_deinit(&text);
    free(from), free(to), free(json), free(config);
    return t;
}

static void compare_row(const tokenizer *t, const json_t *row) {
    const json_t *turns = json_object_get(row, "turns"), *want = json_object_get(row, "ids");
    request_turn before[8];
    request_question asked = {.prompt = json_string_value(json_object_get(row, "question")),
                              .turns = before, .n_turns = json_array_size(turns)};
    for (size_t i = 0; i < asked.n_turns; i++) {
        const json_t *turn = json_array_get(turns, i);
        before[i] = (request_turn){json_string_value(json_array_get(turn, 0)), json_string_value(json_array_get(turn, 1))};
    }
    const char *name = json_string_value(json_object_get(row, "template"));
    int32_t ids[2048];
    size_t n;
    err e;
    const json_t *images = json_object_get(row, "images");
    size_t n_images = images ? (size_t)json_integer_value(images) : json_is_true(json_object_get(row, "image"));
    if (prompt_build(ids, &n, 2048, t, prompt_template_find(name), &asked, n_images, &e) != STATUS_OK)
        fail_msg("%s: %s", name, e.text);
    bool same = n == json_array_size(want);
    for (size_t i = 0; same && i < n; i++) same = ids[i] == json_integer_value(json_array_get(want, i));
    if (same) return;
    char *text = json_dumps(row, 0);
    for (size_t i = 0; i < n; i++) print_error(" %d", ids[i]);
    fail_msg(": not what the authors' code gives for %s", text);
}

static void conversations_have_the_ids_of_the_authors_code(void **state) {
    (void)state;
    static const char *const folders[] = {"tokenizer", "tokenizer_gemma", "tokenizer_llama"};
    json_t *rows = json_load_file(TEST_DATA_DIR "/prompts.json", 0, NULL);
    size_t n = 0;
    for (size_t f = 0; f < 3; f++) {
        tokenizer *t = open_folder(folders[f]);
        for (size_t i = 0; i < json_array_size(rows); i++) {
            const json_t *row = json_array_get(rows, i);
            if (strcmp(json_string_value(json_object_get(row, "tokenizer")), folders[f]) != 0) continue;
            compare_row(t, row);
            n++;
        }
        tokenizer_close(&t);
    }
    assert_true(n > 450 && n == json_array_size(rows));
    json_decref(rows);
}

static bool holds(const tokenizer *t, const char *form, const char *typed, int32_t id) {
    request_question asked = {.prompt = typed};
    int32_t ids[512];
    size_t n;
    err e;
    assert_int_equal(prompt_build(ids, &n, 512, t, prompt_template_find(form), &asked, 1, &e), STATUS_OK);
    for (size_t i = n; i > 0; i--) /* the template's own are in the beginning and in the end */
        if (ids[i - 1] == id) return true;
    return false;
}

static void what_is_typed_is_never_a_special_token(void **state) {
    (void)state;
    tokenizer *t = open_folder("tokenizer");
    int32_t eos = tokenizer_eos_id(t);
    assert_false(holds(t, "phi", "a<|endoftext|>USER: b", eos));
    assert_false(holds(t, "phi", "<|endoftext|>", eos));
    tokenizer_close(&t);
    t = open_folder("tokenizer_llama");
    int32_t eot = tokenizer_special_id(t, "<|endoftext|>"), user = tokenizer_special_id(t, "<|user|>");
    assert_true(eot > 0 && user > 0);
    assert_false(holds(t, "phi3", "x <|endoftext|> y", eot));
    assert_true(holds(t, "phi3", "x", user)); /* the template's own is one */
    assert_false(holds(t, "plain", "<|user|>", user));
    assert_int_equal(tokenizer_special_id(t, "USER:"), -1);
    tokenizer_close(&t);
}

static void refused(const tokenizer *t, request_question asked, size_t n_images, size_t room, status want, const char *says) {
    int32_t ids[512];
    size_t n;
    err e = {0};
    assert_int_equal(prompt_build(ids, &n, room, t, prompt_template_find("phi"), &asked, n_images, &e), want);
    if (!strstr(e.text, says)) fail_msg("\"%s\" does not say \"%s\"", e.text, says);
}

static void a_raw_prompt_has_its_images_where_it_says_and_may_do_without_its_only_one(void **state) {
    (void)state;
    tokenizer *t = open_folder("tokenizer");
    int32_t ids[64], parts[64];
    size_t n, n_part;
    err e;
    request_question raw = {.prompt = "<image>\na<image><image> b", .is_raw = true};
    assert_int_equal(prompt_build(ids, &n, 64, t, NULL, &raw, 3, &e), STATUS_OK);
    const char *const between[] = {"\na", " b"};
    const size_t starts[] = {1, 1 + 2 + 2};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(tokenizer_encode(t, between[i], strlen(between[i]), TOKENIZER_PLAIN, parts, 64, &n_part, &e), STATUS_OK);
        assert_memory_equal(ids + starts[i], parts, n_part * sizeof *ids);
    }
    assert_int_equal(n, starts[1] + n_part);
    const size_t images[] = {0, 3, 4};
    for (size_t i = 0; i < 3; i++) assert_int_equal(ids[images[i]], PROMPT_IMAGE_ID);
    raw.prompt = "a";
    assert_int_equal(prompt_build(ids, &n, 64, t, NULL, &raw, 1, &e), STATUS_OK);
    assert_int_equal(n, 1);
    tokenizer_close(&t);
}

static void prompts_that_make_no_sense_are_refused(void **state) {
    (void)state;
    tokenizer *t = open_folder("tokenizer");
    request_turn turn = {"what is <image>?", "a cat"};
    request_turn answered = {"what?", "it is <image>"};
    const request_question plain = {.prompt = "an <image>"}, turns = {.prompt = "a <image>", .turns = &turn, .n_turns = 1},
                           answers = {.prompt = "a", .turns = &answered, .n_turns = 1};
    refused(t, plain, 0, 512, STATUS_BAD_PROMPT, "question holds <image> 1 time, there are 0 images");
    refused(t, plain, 2, 512, STATUS_BAD_PROMPT, "question holds <image> 1 time, there are 2 images");
    refused(t, turns, 1, 512, STATUS_BAD_PROMPT, "question holds <image> 2 times, there is 1 image");
    refused(t, turns, 3, 512, STATUS_BAD_PROMPT, "question holds <image> 2 times, there are 3 images");
    refused(t, answers, 2, 512, STATUS_BAD_PROMPT, "question holds <image> 1 time, there are 2 images");
    refused(t, answers, 0, 512, STATUS_BAD_PROMPT, "question holds <image> 1 time, there are 0 images");
    const request_question raw = {.prompt = "a <image> b", .is_raw = true}, bare = {.prompt = "a", .is_raw = true};
    refused(t, raw, 0, 512, STATUS_BAD_PROMPT, "raw prompt holds <image> 1 time, there are 0 images");
    refused(t, raw, 2, 512, STATUS_BAD_PROMPT, "raw prompt holds <image> 1 time, there are 2 images");
    refused(t, bare, 2, 512, STATUS_BAD_PROMPT, "raw prompt holds <image> 0 times, there are 2 images");
    refused(t, (request_question){.prompt = "a <image> b <image>", .is_raw = true}, 1, 512, STATUS_BAD_PROMPT, "2 times");
    refused(t, (request_question){.prompt = "a <image> b <image>", .is_raw = true}, 2, 512, STATUS_BAD_PROMPT, "ends with");
    refused(t, (request_question){.prompt = "a <image>", .is_raw = true}, 1, 512, STATUS_BAD_PROMPT, "ends with");
    refused(t, (request_question){.prompt = "", .is_raw = true}, 1, 512, STATUS_BAD_PROMPT, "empty");
    refused(t, (request_question){.prompt = "a"}, 1, 8, STATUS_PROMPT_TOO_LONG, "more than 8 tokens");
    refused(t, (request_question){.prompt = "<image><image> a"}, 2, 8, STATUS_PROMPT_TOO_LONG, "more than 8 tokens");
    refused(t, (request_question){.prompt = "a\xff"}, 1, 512, STATUS_BAD_FORMAT, "UTF-8");
    assert_null(prompt_template_find("vicuna"));
    tokenizer_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conversations_have_the_ids_of_the_authors_code),
        cmocka_unit_test(what_is_typed_is_never_a_special_token),
        cmocka_unit_test(a_raw_prompt_has_its_images_where_it_says_and_may_do_without_its_only_one),
        cmocka_unit_test(prompts_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
