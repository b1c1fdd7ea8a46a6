/* What a language node makes of the tokens of its questions: a broker played by the test over a real socket, and in the
 * place of the scheduler one that gives the tokens and the failures that the test has written down. */
#include "tests/support/support.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "lm_node/lm_service.h"
#include "lm_node/scheduler.h"
#include "tests/worker/played_broker.h"

#define N_ASKED_MAX 4
#define N_IDS_MAX   16
#define WAIT_MS     60000

/* ---- a scheduler that does what is written down ------------------------------------------------- */

typedef struct {
    int32_t ids[N_IDS_MAX]; /* one a step */
    int n_ids;
    scheduler_finish reason; /* once they are through */
    status why, refused;     /* with SCHEDULER_ERROR; at submit */
    bool is_endless;         /* only a cancellation ends it */
} part;

static struct {
    pthread_mutex_t mutex; /* a sanitizer cannot see that messages put test and node into an order */
    part parts[N_ASKED_MAX];
    int n_dropped; /* by cancellations */
} script = {.mutex = PTHREAD_MUTEX_INITIALIZER};

typedef struct {
    void *user; /* NULL: it is over */
    int idx, at;
    int n_logprobs;
} asked;

/* These stand in for lm_node/scheduler.c. */
struct scheduler {
    scheduler_callbacks callbacks;
    asked questions[N_ASKED_MAX];
};

status scheduler_open(scheduler **s, ops_ctx *ctx, const model *m, const scheduler_settings *settings,
                      const scheduler_callbacks *callbacks, err *e) {
    (void)ctx, (void)m, (void)settings, (void)e;
    *s = calloc(1, sizeof **s);
    (*s)->callbacks = *callbacks;
    return STATUS_OK;
}

void scheduler_close(scheduler **s) {
    free(*s);
    *s = NULL;
}

bool scheduler_has_prefix(const scheduler *s, const scheduler_question *q) {
    (void)s, (void)q;
    return true;
}

status scheduler_submit(scheduler *s, const scheduler_question *q, err *e) {
    (void)pthread_mutex_lock(&script.mutex);
    status refused = script.parts[q->question_idx].refused;
    (void)pthread_mutex_unlock(&script.mutex);
    if (refused != STATUS_OK) return fail(e, refused, "refused as written down");
    s->questions[q->question_idx] = (asked){q->user, q->question_idx, 0, q->sampling.n_logprobs};
    return STATUS_OK;
}

void scheduler_cancel(scheduler *s, const void *user) {
    for (int i = 0; i < N_ASKED_MAX; i++) {
        if (!s->questions[i].user || s->questions[i].user != user) continue;
        s->questions[i].user = NULL;
        (void)pthread_mutex_lock(&script.mutex);
        script.n_dropped++;
        (void)pthread_mutex_unlock(&script.mutex);
    }
}

/* Tells the token and the alternative. */
static float logprob_of(int token_idx, int alternative) { return -(float)token_idx - (float)alternative / 100; }

static sampled_token token_of(const asked *a, int32_t id) {
    sampled_token t = {.id = id, .logprob = logprob_of(a->at, 0), .n_top = a->n_logprobs};
    for (int k = 0; k < a->n_logprobs; k++) t.top[k] = (sampled_candidate){k, logprob_of(a->at, k)};
    return t;
}

static void advance(scheduler *s, asked *a) {
    (void)pthread_mutex_lock(&script.mutex);
    part p = script.parts[a->idx];
    (void)pthread_mutex_unlock(&script.mutex);
    void *user = a->user;
    err why;
    if (a->at < p.n_ids) {
        sampled_token t = token_of(a, p.ids[a->at]);
        a->at++;
        if (!s->callbacks.token(user, a->idx, &t)) return;
        p.reason = SCHEDULER_STOP;
    } else if (p.is_endless) return;
    a->user = NULL;
    if (p.reason == SCHEDULER_ERROR) (void)!fail(&why, p.why, "failed as written down");
    s->callbacks.finished(user, a->idx, p.reason, false, p.reason == SCHEDULER_ERROR ? &why : NULL);
}

bool scheduler_step(scheduler *s) {
    bool has_more = false;
    for (int i = 0; i < N_ASKED_MAX; i++) {
        if (s->questions[i].user) advance(s, &s->questions[i]);
        has_more |= s->questions[i].user != NULL;
    }
    return has_more;
}

scheduler_counters scheduler_read_counters(const scheduler *s) {
    (void)s;
    return (scheduler_counters){0};
}

/* ---- the stage ---------------------------------------------------------------------------------- */

typedef struct {
    model *m;
    cache *cache;
    lm_service *service;
    played_broker broker;
    request_memory memory; /* of what was decoded last */
    uint8_t n_asked;
} stage;

static int set_up(void **state) {
    stage *s = calloc(1, sizeof *s);
    err e;
    model_settings checkpoint = {.dir = DEMO_MODEL_DIR, .parts = MODEL_PART_DECODER};
    if (model_open(&s->m, &checkpoint, &e) != STATUS_OK) fail_msg("%s", e.text);
    cache_settings kept = cache_settings_default();
    if (cache_open(&s->cache, "memory:", &kept, &e) != STATUS_OK) fail_msg("%s", e.text);
    lm_service_parts parts = {s->m, s->cache};
    lm_service_settings wishes = lm_service_defaults("cpu");
    wishes.ops.n_threads = 1;
    if (lm_service_open(&s->service, &parts, &wishes, &e) != STATUS_OK) fail_msg("%s", e.text);
    played_broker_open(&s->broker);
    worker_settings settings = {.name = "node", .role = MESSAGE_ROLE_LM, .slots = 4};
    worker_handler handler = lm_service_handler(s->service);
    played_broker_employ(&s->broker, &settings, &handler);
    lm_service_attach(s->service, s->broker.w);
    played_broker_run(&s->broker);
    played_broker_welcome(&s->broker, 20000);
    memset(script.parts, 0, sizeof script.parts);
    script.n_dropped = 0;
    *state = s;
    return 0;
}

static int tear_down(void **state) {
    stage *s = *state;
    played_broker_dismiss(&s->broker);
    lm_service_close(&s->service);
    played_broker_close(&s->broker);
    request_memory_clear(&s->memory);
    cache_close(&s->cache);
    model_close(&s->m);
    free(s);
    return 0;
}

/* What question idx answers: each of the words, a token. */
static void write_down(stage *s, int idx, part p, const char *const *words) {
    for (p.n_ids = 0; words[p.n_ids]; p.n_ids++) {
        size_t n;
        err e;
        const char *word = words[p.n_ids];
        assert_int_equal(tokenizer_encode(model_get_tokenizer(s->m), word, strlen(word), TOKENIZER_PLAIN,
                                          &p.ids[p.n_ids], 1, &n, &e),
                         STATUS_OK);
        assert_int_equal(n, 1);
    }
    (void)pthread_mutex_lock(&script.mutex);
    script.parts[idx] = p;
    (void)pthread_mutex_unlock(&script.mutex);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void ask(stage *s, size_t n_questions, const request_sampling *sampling, uint32_t flags) {
    request_question questions[N_ASKED_MAX];
    for (size_t i = 0; i < n_questions; i++) questions[i] = (request_question){.prompt = "What is there?"};
    request r = {.questions = questions, .n_questions = n_questions, .sampling = *sampling};
    r.sampling.max_new_tokens = N_IDS_MAX;
    buf body;
    buf_init(&body, MESSAGE_ENVELOPE_BYTES_MAX);
    assert_int_equal(request_encode(&r, &body), STATUS_OK);
    message m = {.kind = MESSAGE_GENERATE, .has_item = true, .attempt = 1, .flags = flags,
                 .body = {body.data, body.len_bytes}};
    memset(m.item.bytes, ++s->n_asked, sizeof m.item.bytes);
    played_broker_say(&s->broker, &m, NULL);
    buf_deinit(&body);
}

static outcome read_outcome(stage *s, wire_message *in) {
    outcome o;
    err e;
    request_memory_clear(&s->memory);
    if (outcome_decode(&o, &s->memory, in->in.m.body, &e) != STATUS_OK) fail_msg("%s", e.text);
    wire_message_clear(in);
    return o;
}

static outcome answered(stage *s) {
    wire_message in;
    played_broker_expect(&s->broker, MESSAGE_GENERATED, &in);
    return read_outcome(s, &in);
}

static void expect_text(stage *s, const char *text, answer_finish finish) {
    outcome o = answered(s);
    assert_int_equal(o.n_answers, 1);
    assert_string_equal(o.answers[0].text, text);
    assert_int_equal(o.answers[0].finish_reason, finish);
}

/* The whole job comes back, for another node. */
static void expect_given_back(stage *s, status code) {
    wire_message in;
    assert_true(played_broker_next(&s->broker, MESSAGE_FAILED, &in, WAIT_MS));
    assert_int_equal(in.in.m.code, code);
    assert_true(in.in.m.flags & MESSAGE_FLAG_RETRYABLE);
    assert_non_null(strstr(in.in.m.text, "as written down"));
    wire_message_clear(&in);
}

static int n_dropped(void) {
    (void)pthread_mutex_lock(&script.mutex);
    int n = script.n_dropped;
    (void)pthread_mutex_unlock(&script.mutex);
    return n;
}

/* ---- promises ----------------------------------------------------------------------------------- */

static void without_stop_strings_the_text_is_that_of_all_tokens(void **state) {
    stage *s = *state;
    write_down(s, 0, (part){.reason = SCHEDULER_LENGTH}, WORDS("o", "on", "n"));
    ask(s, 1, &(request_sampling){0}, 0);
    expect_text(s, "oonn", ANSWER_LENGTH);
}

/* Of "on" the tokenizer gives "o" at once, and holds "n" back. */
static void nothing_of_a_token_stands_behind_a_stop_string_in_it(void **state) {
    stage *s = *state;
    write_down(s, 0, (part){.is_endless = true}, WORDS("d", "on"));
    ask(s, 1, &(request_sampling){.stop = {"o"}, .n_stop = 1}, 0);
    expect_text(s, "d", ANSWER_STOP);
}

static void a_stop_string_is_found_across_tokens_and_the_earliest_counts(void **state) {
    stage *s = *state;
    write_down(s, 0, (part){.is_endless = true}, WORDS("o", "d", "o", "."));
    ask(s, 1, &(request_sampling){.stop = {"o.", "do."}, .n_stop = 2}, 0);
    expect_text(s, "o", ANSWER_STOP);
}

static void a_stop_string_that_only_the_end_completes_is_cut_too(void **state) {
    stage *s = *state;
    write_down(s, 0, (part){.reason = SCHEDULER_LENGTH}, WORDS("d", "on"));
    ask(s, 1, &(request_sampling){.stop = {"n"}, .n_stop = 1}, 0);
    expect_text(s, "do", ANSWER_STOP);
}

static void what_is_streamed_is_the_text(void **state) {
    stage *s = *state;
    static const request_sampling samplings[] = {{0}, {.stop = {"."}, .n_stop = 1}};
    for (size_t i = 0; i < 2; i++) {
        write_down(s, 0, (part){.reason = SCHEDULER_LENGTH}, WORDS("d", "on", ".", "o"));
        ask(s, 1, &samplings[i], MESSAGE_FLAG_STREAM);
        char text[64] = "";
        size_t n_tokens = 0, n_pieces = 0;
        wire_message in;
        int64_t until_us = clock_now_us() + WAIT_MS * CLOCK_MS_US;
        while (played_broker_hear(&s->broker, &in, until_us) && in.in.m.kind != MESSAGE_GENERATED) {
            if (in.in.m.kind == MESSAGE_TOKENS) {
                tokens_piece piece;
                err e;
                request_memory_clear(&s->memory);
                assert_int_equal(tokens_decode(&piece, &s->memory, in.in.m.body, &e), STATUS_OK);
                assert_int_equal(in.in.m.token_idx, n_tokens);
                (void)strncat(text, piece.text, sizeof text - strlen(text) - 1);
                n_tokens += piece.n_tokens;
                n_pieces++;
            }
            wire_message_clear(&in);
        }
        outcome o = read_outcome(s, &in);
        assert_string_equal(text, o.answers[0].text);
        assert_string_equal(text, i == 0 ? "don.o" : "don");
        assert_int_equal(n_tokens, i == 0 ? 4 : 3);
        assert_true(i == 0 ? n_pieces > 2 : n_pieces == 1);
    }
}

static void alternatives_stay_with_their_tokens(void **state) {
    stage *s = *state;
    write_down(s, 0, (part){.reason = SCHEDULER_LENGTH}, WORDS("d", "on", "o"));
    ask(s, 1, &(request_sampling){.want_logprobs = true, .n_logprobs = 3}, 0);
    outcome o = answered(s);
    assert_int_equal(o.answers[0].n_tokens, 3);
    for (int t = 0; t < 3; t++) {
        const answer_logprob *l = &o.answers[0].logprobs[t];
        assert_int_equal(l->token_id, o.answers[0].token_ids[t]);
        assert_true(l->logprob == logprob_of(t, 0));
        assert_int_equal(l->n_top, 3);
        for (int k = 0; k < 3; k++) {
            assert_int_equal(l->top_ids[k], k);
            assert_true(l->top_logprobs[k] == logprob_of(t, k));
        }
    }
}

static void a_questions_own_failure_is_its_answer_and_the_others_are_answered(void **state) {
    stage *s = *state;
    write_down(s, 0, (part){.reason = SCHEDULER_ERROR, .why = STATUS_INTERNAL}, WORDS("d"));
    write_down(s, 1, (part){.refused = STATUS_PROMPT_TOO_LONG}, WORDS("d"));
    write_down(s, 2, (part){.reason = SCHEDULER_LENGTH}, WORDS("d", "on"));
    ask(s, 3, &(request_sampling){0}, 0);
    outcome o = answered(s);
    assert_int_equal(o.n_answers, 3);
    assert_int_equal(o.answers[0].finish_reason, ANSWER_ERROR);
    assert_int_equal(o.answers[0].code, STATUS_INTERNAL);
    assert_int_equal(o.answers[1].code, STATUS_PROMPT_TOO_LONG);
    assert_string_equal(o.answers[2].text, "don");
}

static void a_machine_that_fails_a_question_gives_the_job_back(void **state) {
    stage *s = *state;
    static const status codes[] = {STATUS_DEVICE, STATUS_NO_MEMORY};
    for (size_t i = 0; i < 2; i++) {
        write_down(s, 0, (part){.is_endless = true}, WORDS("d"));
        write_down(s, 1, (part){.reason = SCHEDULER_ERROR, .why = codes[i]}, WORDS("d"));
        ask(s, 2, &(request_sampling){0}, 0);
        expect_given_back(s, codes[i]);
        assert_int_equal(n_dropped(), i + 1);
    }
    /* The node goes on. */
    write_down(s, 0, (part){.reason = SCHEDULER_LENGTH}, WORDS("on"));
    ask(s, 1, &(request_sampling){0}, 0);
    expect_text(s, "on", ANSWER_LENGTH);
}

static void a_machine_without_memory_for_a_question_gives_the_job_back(void **state) {
    stage *s = *state;
    write_down(s, 0, (part){.is_endless = true}, WORDS("d"));
    write_down(s, 1, (part){.refused = STATUS_NO_MEMORY}, WORDS("d"));
    ask(s, 2, &(request_sampling){0}, 0);
    expect_given_back(s, STATUS_NO_MEMORY);
    assert_int_equal(n_dropped(), 1);
}

#define STORY(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        STORY(without_stop_strings_the_text_is_that_of_all_tokens),
        STORY(nothing_of_a_token_stands_behind_a_stop_string_in_it),
        STORY(a_stop_string_is_found_across_tokens_and_the_earliest_counts),
        STORY(a_stop_string_that_only_the_end_completes_is_cut_too),
        STORY(what_is_streamed_is_the_text),
        STORY(alternatives_stay_with_their_tokens),
        STORY(a_questions_own_failure_is_its_answer_and_the_others_are_answered),
        STORY(a_machine_that_fails_a_question_gives_the_job_back),
        STORY(a_machine_without_memory_for_a_question_gives_the_job_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
