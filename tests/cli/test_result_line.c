/* A result line has exactly the keys of the contract, whatever came back. */
#include "tests/support/support.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#include "cli/result_line.h"

static const char *const prompts[] = {"What?", "Which \"one\"?\n"};
static const int32_t ids[] = {5, 6};
static const int32_t top_ids[] = {5, 9};
static const float top_values[] = {-0.1f, -INFINITY};
static const answer_logprob logprobs[] = {{5, -0.1f, top_ids, top_values, 2}, {6, NAN, NULL, NULL, 0}};

static json_t *line_at(const buf *lines, size_t idx) {
    const char *at = (const char *)lines->data;
    for (size_t i = 0; i < idx; i++) at = strchr(at, '\n') + 1;
    json_error_t where;
    json_t *line = json_loadb(at, strcspn(at, "\n"), JSON_REJECT_DUPLICATES, &where);
    if (!line) fail_msg("%s", where.text);
    return line;
}

static const char *text_of(const json_t *line, const char *key) {
    return json_string_value(json_object_get(line, key));
}

static double number_of(const json_t *line, const char *object, const char *key) {
    return json_number_value(json_object_get(json_object_get(line, object), key));
}

static client_event good_event(answer answers[2]) {
    answers[0] = (answer){.text = "a \x1b[31mdog\x1b[0m", .token_ids = ids, .n_tokens = 2,
                          .finish_reason = ANSWER_STOP, .prompt_tokens = 61, .prefix_cached = true,
                          .logprobs = logprobs, .prefill_us = 20300, .generate_us = 80100};
    answers[1] = (answer){.text = "", .finish_reason = ANSWER_ERROR, .code = STATUS_PROMPT_TOO_LONG,
                          .message = "3000 tokens, limit 2048"};
    return (client_event){.kind = CLIENT_RESULT, .text = "", .outcome = {answers, 2, "Mipha-3B", 729, 200},
                          .vision = {true, 4000, 9100, 64, 48, 6}, .has_image = true, .image_sha256 = {0xab},
                          .has_fingerprints = true, .model_fingerprint = {0xcd}, .queue_us = 1000,
                          .total_us = 118000};
}

static void every_key_of_the_contract_is_there_with_its_value(void **state) {
    (void)state;
    answer answers[2];
    client_event event = good_event(answers);
    result_subject subject = {.id = "item", .image = "a/b.jpg", .prompts = prompts, .n_prompts = 2, .exif = true};
    buf lines;
    err e;
    buf_init(&lines, 1 << 20);
    assert_int_equal(result_lines_append(&lines, &subject, &event, &e), STATUS_OK);
    assert_int_equal(lines.data[lines.len_bytes - 1], '\n');
    assert_null(memchr(lines.data, 0x1b, lines.len_bytes)); /* nothing a terminal would obey */

    json_t *line = line_at(&lines, 0);
    static const char *const keys[] = {"id", "image", "image_sha256", "prompt_index", "prompt", "text",
                                       "token_ids", "finish_reason", "error", "exif", "usage", "cached",
                                       "model", "timing_ms", "logprobs"};
    assert_int_equal(json_object_size(line), sizeof keys / sizeof *keys);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) assert_non_null(json_object_get(line, keys[i]));
    assert_string_equal(text_of(line, "id"), "item");
    assert_string_equal(text_of(line, "image"), "a/b.jpg");
    assert_string_equal(text_of(line, "image_sha256"),
                        "ab00000000000000000000000000000000000000000000000000000000000000");
    assert_string_equal(text_of(line, "text"), "a \x1b[31mdog\x1b[0m");
    assert_string_equal(text_of(line, "finish_reason"), "stop");
    assert_true(json_is_null(json_object_get(line, "error")));
    assert_true(json_is_true(json_object_get(line, "exif")));
    assert_int_equal(number_of(line, "usage", "image_tokens"), 729);
    assert_int_equal(number_of(line, "usage", "prompt_tokens"), 61);
    assert_int_equal(number_of(line, "usage", "completion_tokens"), 2);
    json_t *cached = json_object_get(line, "cached");
    assert_true(json_is_true(json_object_get(cached, "features")));
    assert_true(json_is_true(json_object_get(cached, "prefix")));
    json_t *model = json_object_get(line, "model");
    assert_string_equal(text_of(model, "name"), "Mipha-3B");
    assert_string_equal(text_of(model, "fingerprint"),
                        "sha256:cd00000000000000000000000000000000000000000000000000000000000000");
    assert_true(number_of(line, "timing_ms", "queue") == 1.2);
    assert_true(number_of(line, "timing_ms", "decode") == 4.0);
    assert_true(number_of(line, "timing_ms", "encode") == 9.1);
    assert_true(number_of(line, "timing_ms", "prefill") == 20.3);
    assert_true(number_of(line, "timing_ms", "generate") == 80.1);
    assert_true(number_of(line, "timing_ms", "total") == 118.0);

    json_t *first = json_array_get(json_object_get(line, "logprobs"), 0);
    assert_true((float)json_real_value(json_object_get(first, "logprob")) == -0.1f); /* read back exactly */
    json_t *second_best = json_array_get(json_object_get(first, "top"), 1);
    assert_int_equal(json_integer_value(json_array_get(second_best, 0)), 9);
    assert_true(json_is_null(json_array_get(second_best, 1))); /* JSON has no infinity */
    json_decref(line);

    line = line_at(&lines, 1);
    assert_int_equal(json_integer_value(json_object_get(line, "prompt_index")), 1);
    assert_string_equal(text_of(line, "prompt"), prompts[1]);
    assert_string_equal(text_of(line, "finish_reason"), "error");
    json_t *failure = json_object_get(line, "error");
    assert_string_equal(text_of(failure, "code"), "prompt_too_long");
    assert_string_equal(text_of(failure, "message"), "3000 tokens, limit 2048");
    assert_null(json_object_get(line, "logprobs"));
    json_decref(line);
    assert_true(result_event_has_failed(&event));
    buf_deinit(&lines);
}

static void several_images_stand_in_a_list(void **state) {
    (void)state;
    static const char *const images[] = {"a.jpg", "data:", "b.png"};
    answer answers[2];
    client_event event = good_event(answers);
    buf lines;
    err e;
    buf_init(&lines, 1 << 20);
    result_subject subject = {.id = "item", .prompts = prompts, .n_prompts = 2, .images = images, .n_images = 3};
    assert_int_equal(result_lines_append(&lines, &subject, &event, &e), STATUS_OK);
    for (size_t i = 0; i < 2; i++) {
        json_t *line = line_at(&lines, i), *list = json_object_get(line, "images");
        assert_true(json_is_null(json_object_get(line, "image")));
        assert_int_equal(json_array_size(list), 3);
        for (size_t k = 0; k < 3; k++) assert_string_equal(json_string_value(json_array_get(list, k)), images[k]);
        json_decref(line);
    }
    buf_deinit(&lines);
}

static void an_item_that_failed_whole_has_a_line_for_every_question(void **state) {
    (void)state;
    client_event event = result_event_failed(STATUS_IMAGE_UNREADABLE, "No such file");
    result_subject subject = {.id = "item", .image = "a.jpg", .prompts = prompts, .n_prompts = 2};
    buf lines;
    err e;
    buf_init(&lines, 1 << 20);
    assert_int_equal(result_lines_append(&lines, &subject, &event, &e), STATUS_OK);
    for (size_t i = 0; i < 2; i++) {
        json_t *line = line_at(&lines, i);
        assert_int_equal(json_integer_value(json_object_get(line, "prompt_index")), i);
        assert_string_equal(text_of(json_object_get(line, "error"), "code"), "image_unreadable");
        assert_string_equal(text_of(line, "text"), "");
        assert_int_equal(json_array_size(json_object_get(line, "token_ids")), 0);
        assert_true(json_is_null(json_object_get(line, "image_sha256")));
        assert_true(json_is_null(json_object_get(line, "model")));
        assert_true(json_is_false(json_object_get(line, "exif")));
        json_decref(line);
    }
    buf_deinit(&lines);
}

static void lines_that_do_not_fit_are_not_written_by_half(void **state) {
    (void)state;
    client_event event = result_event_failed(STATUS_BUSY, "x");
    result_subject subject = {.id = "item", .image = "a.jpg", .prompts = prompts, .n_prompts = 2};
    buf lines;
    err e;
    buf_init(&lines, 600); /* one line, not two */
    assert_int_equal(result_lines_append(&lines, &subject, &event, &e), STATUS_NO_MEMORY);
    assert_int_equal(lines.len_bytes, 0);
    buf_deinit(&lines);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_key_of_the_contract_is_there_with_its_value),
        cmocka_unit_test(several_images_stand_in_a_list),
        cmocka_unit_test(an_item_that_failed_whole_has_a_line_for_every_question),
        cmocka_unit_test(lines_that_do_not_fit_are_not_written_by_half),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
