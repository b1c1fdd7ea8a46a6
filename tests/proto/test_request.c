/* Requests, outcomes and reports: whole after the wire, refused with the field's name over any limit. */
#include "tests/support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "proto/request.h"

static const request_turn one_turn[] = {{"What is it?", "a cat"}};
static const request_question two_questions[] = {
    {.prompt = "What is this?", .turns = one_turn, .n_turns = 1}, {.prompt = "o\xc3\xb9 ?", .is_raw = true}};

static request good_request(void) {
    return (request){.questions = two_questions,
                     .n_questions = 2,
                     .sampling = {.temperature = 0.5f, .top_p = 0.9f, .top_k = 40, .min_p = 0.05f,
                                  .seed = UINT64_MAX, .max_new_tokens = MESSAGE_NEW_TOKENS_MAX,
                                  .want_logprobs = true, .n_logprobs = MESSAGE_LOGPROBS_MAX,
                                  .stop = {"\n", "</s>"}, .n_stop = 2},
                     .template_name = "phi3",
                     .adapter = "birds"};
}

static void assert_request(const request *r, status want, const char *named) {
    buf body;
    buf_init(&body, MESSAGE_ENVELOPE_BYTES_MAX);
    assert_int_equal(request_encode(r, &body), STATUS_OK);
    request decoded;
    request_memory memory = {0};
    err e = {0};
    status st = request_decode(&decoded, &memory, (bytes){body.data, body.len_bytes}, &e);
    if (st != want) fail_msg("got %s: %s", status_code((int)st), e.text);
    if (named && !strstr(e.text, named)) fail_msg("\"%s\" does not name %s", e.text, named);
    if (want != STATUS_OK) assert_null(memory.memory);
    request_memory_clear(&memory);
    buf_deinit(&body);
}

static void a_request_survives_the_wire(void **state) {
    (void)state;
    request r = good_request(), d;
    buf body;
    buf_init(&body, 1 << 16);
    assert_int_equal(request_encode(&r, &body), STATUS_OK);
    request_memory memory = {0};
    err e;
    assert_int_equal(request_decode(&d, &memory, (bytes){body.data, body.len_bytes}, &e), STATUS_OK);
    assert_int_equal(d.n_questions, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_string_equal(d.questions[i].prompt, two_questions[i].prompt);
        assert_int_equal(d.questions[i].is_raw, two_questions[i].is_raw);
        assert_int_equal(d.questions[i].n_turns, two_questions[i].n_turns);
    }
    assert_string_equal(d.questions[0].turns[0].question, "What is it?");
    assert_string_equal(d.questions[0].turns[0].answer, "a cat");
    assert_string_equal(d.template_name, "phi3");
    assert_string_equal(d.adapter, "birds");
    const request_sampling *a = &d.sampling, *b = &r.sampling;
    assert_true(a->temperature == b->temperature && a->top_p == b->top_p && a->top_k == b->top_k &&
                a->min_p == b->min_p && a->seed == b->seed && a->max_new_tokens == b->max_new_tokens &&
                a->want_logprobs && a->n_logprobs == b->n_logprobs && a->n_stop == 2);
    assert_string_equal(a->stop[0], "\n");
    assert_string_equal(a->stop[1], "</s>");
    request_memory_clear(&memory);
    request_memory_clear(&memory);
    buf_deinit(&body);
}

static void hashes_of_images_are_two_to_sixteen_and_survive_the_wire_in_order(void **state) {
    (void)state;
    static unsigned char hashes[MESSAGE_IMAGES_MAX][HASH_SHA256_BYTES];
    for (size_t i = 0; i < MESSAGE_IMAGES_MAX; i++) memset(hashes[i], (int)i + 1, sizeof hashes[i]);
    request r = good_request(), d;
    r.images = (const unsigned char(*)[HASH_SHA256_BYTES])hashes;
    for (r.n_images = 0; r.n_images <= MESSAGE_IMAGES_MAX; r.n_images++) {
        if (r.n_images == 1) continue;
        buf body;
        buf_init(&body, 1 << 16);
        request_memory memory = {0};
        err e;
        assert_int_equal(request_encode(&r, &body), STATUS_OK);
        assert_int_equal(request_decode(&d, &memory, (bytes){body.data, body.len_bytes}, &e), STATUS_OK);
        assert_int_equal(d.n_images, r.n_images);
        if (d.n_images) assert_memory_equal(d.images, hashes, d.n_images * sizeof *hashes);
        request_memory_clear(&memory);
        buf_deinit(&body);
    }
    r.n_images = 1; /* it is in the envelope already */
    assert_request(&r, STATUS_BAD_MESSAGE, "1 images, allowed are 2 to 16");

    /* By hand: more than there may be, and hashes of another length. */
    for (size_t len = 0; len <= 64; len++) {
        buf body;
        buf_init(&body, 1 << 16);
        r.n_images = 2;
        assert_int_equal(request_encode(&r, &body), STATUS_OK);
        size_t n_more = len == HASH_SHA256_BYTES ? MESSAGE_IMAGES_MAX - 1 : 1;
        for (size_t i = 0; i < n_more; i++) {
            const unsigned char tag[2] = {5 << 3 | 2, (unsigned char)len};
            static const unsigned char zeros[64];
            assert_int_equal(buf_append(&body, tag, 2), STATUS_OK);
            assert_int_equal(buf_append(&body, zeros, len), STATUS_OK);
        }
        request_memory memory = {0};
        err e = {0};
        assert_int_equal(request_decode(&d, &memory, (bytes){body.data, body.len_bytes}, &e), STATUS_BAD_MESSAGE);
        if (!strstr(e.text, n_more > 1 ? "17 images" : "image 2 has a hash")) fail_msg("%s", e.text);
        buf_deinit(&body);
    }
}

static void sampling_outside_its_range_is_refused_by_name(void **state) {
    (void)state;
    const float bad_reals[] = {-0.001f, NAN, INFINITY, -INFINITY, 1000.0f};
    for (size_t i = 0; i < sizeof bad_reals / sizeof *bad_reals; i++) {
        request r = good_request();
        r.sampling.temperature = bad_reals[i];
        assert_request(&r, STATUS_BAD_MESSAGE, "temperature");
        r = good_request();
        r.sampling.top_p = bad_reals[i];
        assert_request(&r, STATUS_BAD_MESSAGE, "top_p");
        r = good_request();
        r.sampling.min_p = bad_reals[i];
        assert_request(&r, STATUS_BAD_MESSAGE, "min_p");
    }
    const uint32_t bad_lengths[] = {0, MESSAGE_NEW_TOKENS_MAX + 1, UINT32_MAX};
    for (size_t i = 0; i < 3; i++) {
        request r = good_request();
        r.sampling.max_new_tokens = bad_lengths[i];
        assert_request(&r, STATUS_BAD_MESSAGE, "max_new_tokens");
    }
    request r = good_request();
    r.sampling.n_logprobs = MESSAGE_LOGPROBS_MAX + 1;
    assert_request(&r, STATUS_BAD_MESSAGE, "logprobs");
}

static void stop_strings_are_one_to_256_bytes_of_utf8(void **state) {
    (void)state;
    static char text[MESSAGE_STOP_BYTES_MAX + 2];
    memset(text, 's', MESSAGE_STOP_BYTES_MAX + 1);
    request r = good_request();
    r.sampling.stop[1] = text;
    assert_request(&r, STATUS_BAD_MESSAGE, "stop");
    r.sampling.stop[1] = text + 1;
    assert_request(&r, STATUS_OK, NULL);
    r.sampling.stop[1] = "";
    assert_request(&r, STATUS_BAD_MESSAGE, "stop");
    r.sampling.stop[1] = "\xff";
    assert_request(&r, STATUS_BAD_MESSAGE, "stop");
}

static void prompts_are_bounded_utf8(void **state) {
    (void)state;
    static char text[MESSAGE_PROMPT_BYTES_MAX + 2];
    memset(text, 'p', MESSAGE_PROMPT_BYTES_MAX + 1);
    request_question q = {.prompt = text};
    request r = good_request();
    r.questions = &q;
    r.n_questions = 1;
    assert_request(&r, STATUS_BAD_MESSAGE, "question");
    q.prompt = text + 1;
    assert_request(&r, STATUS_OK, NULL);
    static const char *const broken[] = {
        "\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82", "a\xc3", "\xf0\x9f\x98"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        q.prompt = broken[i];
        assert_request(&r, STATUS_BAD_MESSAGE, "UTF-8");
    }
    static const char *const fine[] = {"\xc2\x80", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
                                       "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", ""};
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        q.prompt = fine[i];
        assert_request(&r, STATUS_OK, NULL);
    }
}

static void turns_and_names_are_bounded_too(void **state) {
    (void)state;
    static char text[MESSAGE_PROMPT_BYTES_MAX / 2 + 2];
    memset(text, 'p', sizeof text - 1);
    static request_turn turns[MESSAGE_TURNS_MAX];
    for (int i = 0; i < MESSAGE_TURNS_MAX; i++) turns[i] = (request_turn){"q", "a"};
    request_question q = {.prompt = "x", .turns = turns, .n_turns = MESSAGE_TURNS_MAX};
    request r = good_request();
    r.questions = &q;
    r.n_questions = 1;
    assert_request(&r, STATUS_OK, NULL);
    q.is_raw = true;
    assert_request(&r, STATUS_BAD_MESSAGE, "raw");
    q.is_raw = false;
    turns[3].answer = "\xff";
    assert_request(&r, STATUS_BAD_MESSAGE, "UTF-8");
    turns[3] = (request_turn){text, text}; /* one byte more than a prompt may have */
    assert_request(&r, STATUS_BAD_MESSAGE, "limit");
    turns[3].answer = "a";
    assert_request(&r, STATUS_OK, NULL);
    static char name[MESSAGE_NAME_BYTES_MAX + 2];
    memset(name, 'n', MESSAGE_NAME_BYTES_MAX + 1);
    r.template_name = name;
    assert_request(&r, STATUS_BAD_MESSAGE, "template");
    r.template_name = name + 1;
    r.adapter = name;
    assert_request(&r, STATUS_BAD_MESSAGE, "adapter");
    r.adapter = name + 1;
    assert_request(&r, STATUS_OK, NULL);
}

static void a_request_has_one_to_64_questions(void **state) {
    (void)state;
    static request_question many[MESSAGE_QUESTIONS_MAX];
    for (size_t i = 0; i < MESSAGE_QUESTIONS_MAX; i++) many[i].prompt = "x";
    request r = good_request();
    r.questions = many;
    r.n_questions = MESSAGE_QUESTIONS_MAX;
    assert_request(&r, STATUS_OK, NULL);
    r.n_questions = 0;
    assert_request(&r, STATUS_BAD_MESSAGE, "questions");

    /* 65 of two bytes each, and as many as fit into 4 MiB, put together by hand. */
    for (size_t n = MESSAGE_QUESTIONS_MAX + 1; n < (2u << 20); n = n * 2000 + 1) {
        unsigned char *body = malloc(2 * n);
        assert_non_null(body);
        for (size_t i = 0; i < n; i++) {
            body[2 * i] = 0x0a;
            body[2 * i + 1] = 0;
        }
        request d;
        request_memory memory = {0};
        err e;
        assert_int_equal(request_decode(&d, &memory, (bytes){body, 2 * n}, &e), STATUS_BAD_MESSAGE);
        assert_null(memory.memory);
        free(body);
    }
}

static const int32_t token_ids[] = {5, -1};
static const int32_t top_ids[] = {5, 6};
static const float top_values[] = {-0.5f, -1.0f};

static void an_outcome_survives_the_wire(void **state) {
    (void)state;
    answer_logprob logprobs[] = {{5, -0.5f, top_ids, top_values, 2}, {-1, -2.0f, NULL, NULL, 0}};
    answer answers[] = {{.text = "a dog", .token_ids = token_ids, .n_tokens = 2, .finish_reason = ANSWER_STOP,
                         .prompt_tokens = 61, .prefix_cached = true, .logprobs = logprobs,
                         .prefill_us = 10, .generate_us = 20},
                        {.text = "", .finish_reason = ANSWER_ERROR, .code = STATUS_PROMPT_TOO_LONG,
                         .message = "3000 tokens, limit 2048"}};
    outcome o = {answers, 2, "mipha-demo", 81, 7}, d;
    buf body;
    buf_init(&body, 1 << 16);
    assert_int_equal(outcome_encode(&o, &body), STATUS_OK);
    request_memory memory = {0};
    err e;
    assert_int_equal(outcome_decode(&d, &memory, (bytes){body.data, body.len_bytes}, &e), STATUS_OK);
    assert_int_equal(d.n_answers, 2);
    assert_string_equal(d.model_name, "mipha-demo");
    assert_int_equal(d.image_tokens, 81);
    assert_true(d.wait_us == 7);
    const answer *a = &d.answers[0];
    assert_string_equal(a->text, "a dog");
    assert_memory_equal(a->token_ids, token_ids, sizeof token_ids);
    assert_true(a->prefix_cached && a->prefill_us == 10 && a->generate_us == 20 && a->prompt_tokens == 61);
    assert_non_null(a->logprobs);
    assert_memory_equal(a->logprobs[0].top_ids, top_ids, sizeof top_ids);
    assert_memory_equal(a->logprobs[0].top_logprobs, top_values, sizeof top_values);
    assert_int_equal(a->logprobs[1].n_top, 0);
    assert_int_equal(d.answers[1].code, STATUS_PROMPT_TOO_LONG);
    assert_string_equal(d.answers[1].message, "3000 tokens, limit 2048");
    assert_null(d.answers[1].logprobs);
    request_memory_clear(&memory);
    buf_deinit(&body);
}

static void assert_outcome_refused(const outcome *o) {
    buf body;
    buf_init(&body, 1 << 20);
    assert_int_equal(outcome_encode(o, &body), STATUS_OK);
    outcome d;
    request_memory memory = {0};
    err e;
    assert_int_equal(outcome_decode(&d, &memory, (bytes){body.data, body.len_bytes}, &e), STATUS_BAD_MESSAGE);
    assert_null(memory.memory);
    buf_deinit(&body);
}

static void a_broken_answer_is_refused(void **state) {
    (void)state;
    answer a = {.text = "x", .finish_reason = (answer_finish)0};
    outcome o = {&a, 1, "m", 0, 0};
    assert_outcome_refused(&o);
    a.finish_reason = (answer_finish)5;
    assert_outcome_refused(&o);
    a = (answer){.text = "x", .finish_reason = ANSWER_STOP, .code = STATUS_COUNT};
    assert_outcome_refused(&o);
    a = (answer){.text = "\xff", .finish_reason = ANSWER_STOP};
    assert_outcome_refused(&o);
    int32_t many[MESSAGE_LOGPROBS_MAX + 1] = {0};
    float values[MESSAGE_LOGPROBS_MAX + 1] = {0};
    answer_logprob l = {1, 0.0f, many, values, MESSAGE_LOGPROBS_MAX + 1};
    a = (answer){.text = "x", .finish_reason = ANSWER_STOP, .token_ids = token_ids, .n_tokens = 1, .logprobs = &l};
    assert_outcome_refused(&o);
}

static void reports_and_pieces_survive_the_wire(void **state) {
    (void)state;
    err e;
    buf body;
    buf_init(&body, 1 << 16);
    vision_report v = {true, 1, 2, 640, 480, 6}, v2;
    assert_int_equal(vision_report_encode(&v, &body), STATUS_OK);
    assert_int_equal(vision_report_decode(&v2, (bytes){body.data, body.len_bytes}, &e), STATUS_OK);
    assert_true(v2.features_cached && v2.decode_us == 1 && v2.encode_us == 2 && v2.width == 640 &&
                v2.height == 480 && v2.orientation == 6);

    buf_clear(&body);
    tokens_piece t = {token_ids, 2, " dog"}, t2;
    request_memory memory = {0};
    assert_int_equal(tokens_encode(&t, &body), STATUS_OK);
    assert_int_equal(tokens_decode(&t2, &memory, (bytes){body.data, body.len_bytes}, &e), STATUS_OK);
    assert_memory_equal(t2.token_ids, token_ids, sizeof token_ids);
    assert_string_equal(t2.text, " dog");
    request_memory_clear(&memory);

    buf_clear(&body);
    metric figures[] = {{"done", 3.5}, {"failed", 0.0}};
    node_status nodes[] = {{"vm:1", 3, 16, 2, 250, true, figures, 1}};
    status_report s = {figures, 2, nodes, 1}, s2;
    assert_int_equal(status_report_encode(&s, &body), STATUS_OK);
    assert_int_equal(status_report_decode(&s2, &memory, (bytes){body.data, body.len_bytes}, &e), STATUS_OK);
    assert_int_equal(s2.n_metrics, 2);
    assert_true(s2.metrics[0].value == 3.5);
    assert_string_equal(s2.nodes[0].name, "vm:1");
    assert_true(s2.nodes[0].is_draining && s2.nodes[0].silent_ms == 250 && s2.nodes[0].n_metrics == 1);
    request_memory_clear(&memory);
    buf_deinit(&body);
}

static void what_does_not_fit_is_not_half_encoded(void **state) {
    (void)state;
    request r = good_request();
    buf body;
    buf_init(&body, 16);
    assert_int_equal(request_encode(&r, &body), STATUS_TOO_LARGE);
    assert_int_equal(body.len_bytes, 0);
    buf_deinit(&body);
}

/* Expected value from Python: sha256(bytes(range(32)) + struct.pack('<I', 5) + b'body')[:16]. */
static void the_digest_covers_image_flags_and_body(void **state) {
    (void)state;
    static const unsigned char want[MESSAGE_DIGEST_BYTES] = {0xe5, 0xe0, 0xd6, 0x2c, 0xa3, 0x6c, 0x7c, 0x26,
                                                             0xe9, 0xcd, 0x95, 0x24, 0xcf, 0x5a, 0x48, 0xfe};
    unsigned char sha[HASH_SHA256_BYTES], got[MESSAGE_DIGEST_BYTES], other[MESSAGE_DIGEST_BYTES];
    for (size_t i = 0; i < sizeof sha; i++) sha[i] = (unsigned char)i;
    bytes body = {(const unsigned char *)"body", 4};
    request_digest(got, sha, 5, body);
    assert_memory_equal(got, want, sizeof want);
    request_digest(other, sha, 4, body);
    assert_memory_not_equal(got, other, sizeof got);
    request_digest(other, sha, 5, (bytes){body.data, 3});
    assert_memory_not_equal(got, other, sizeof got);
    sha[31] ^= 1;
    request_digest(other, sha, 5, body);
    assert_memory_not_equal(got, other, sizeof got);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_survives_the_wire),
        cmocka_unit_test(hashes_of_images_are_two_to_sixteen_and_survive_the_wire_in_order),
        cmocka_unit_test(sampling_outside_its_range_is_refused_by_name),
        cmocka_unit_test(stop_strings_are_one_to_256_bytes_of_utf8),
        cmocka_unit_test(prompts_are_bounded_utf8),
        cmocka_unit_test(turns_and_names_are_bounded_too),
        cmocka_unit_test(a_request_has_one_to_64_questions),
        cmocka_unit_test(an_outcome_survives_the_wire),
        cmocka_unit_test(a_broken_answer_is_refused),
        cmocka_unit_test(reports_and_pieces_survive_the_wire),
        cmocka_unit_test(what_does_not_fit_is_not_half_encoded),
        cmocka_unit_test(the_digest_covers_image_flags_and_body),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
