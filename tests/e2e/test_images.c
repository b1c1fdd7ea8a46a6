/* Items of several images: the same bytes in any company, an image encoded once whatever it comes in, and what goes
 * wrong with one of them told by its number. In one process, and through a cluster with a real Redis. */
#include "tests/support/redis_server.h"
#include "tests/support/support.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "cli/embedded.h"
#include "client/client.h"
#include "proto/bundle.h"
#include "proto/socket.h"

#define WAIT_MS     60000
#define MODEL       SOURCE_DIR "/models/mipha-demo"
#define N_SCENES    20
#define TOKENS_MAX  24
#define IMAGE_TOKENS 81 /* config.json: (128 / 14)^2 */

/* ---- what is asked --------------------------------------------------------------------------- */

typedef struct {
    int scenes[MESSAGE_IMAGES_MAX];
    size_t n;
    const char *question; /* besides the usual ones; NULL: none */
} ask;

static const ask asks[] = {
    {{0}, 1, NULL},
    {{1}, 1, "What is in <image>?"},
    {{0, 1}, 2, "Is <image> like <image>?"},
    {{1, 0}, 2, "Is <image> like <image>?"},
    {{0, 0}, 2, NULL},
    {{2, 0, 1}, 3, "First <image><image>, then <image>."},
    {{0, 1, 2}, 3, NULL},
    {{3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18}, 16, NULL}, /* more than a batch holds */
    {{18, 3}, 2, NULL},
};
#define N_ASKS (sizeof asks / sizeof *asks)

static bytes scenes[N_SCENES];
static const bytes not_a_picture = {(const unsigned char *)"not a picture", 13};

typedef struct {
    status code;
    char text[512];        /* of a failed item */
    char answers[3][256];
    int32_t ids[3][TOKENS_MAX];
    float logprobs[3][TOKENS_MAX];
    size_t n_tokens[3], n_answers;
    uint32_t image_tokens, prompt_tokens;
    vision_report vision;
    bool prefix_cached;    /* of the first question */
} result;

static void submit_images(client *c, const bytes *images, size_t n, const char *question, result *tag) {
    request_question questions[] = {{.prompt = "Describe the image."}, {.prompt = "How many objects are there?"},
                                    {.prompt = question}};
    request r = {.questions = questions, .n_questions = question ? 3 : 2,
                 .sampling = {.max_new_tokens = TOKENS_MAX, .want_logprobs = true}};
    client_item item = {.tag = tag, .images = images, .n_images = n, .request = &r};
    client_random_id(&item.id);
    err e;
    if (client_submit(c, &item, &e) != STATUS_OK) fail_msg("%s", e.text);
}

static void submit(client *c, const ask *a, result *tag) {
    bytes images[MESSAGE_IMAGES_MAX];
    for (size_t i = 0; i < a->n; i++) images[i] = scenes[a->scenes[i]];
    submit_images(c, images, a->n, a->question, tag);
}

static void take_result(client *c) {
    client_event event;
    err e = {0};
    do {
        status st = client_poll(c, WAIT_MS, &event, &e);
        if (st != STATUS_OK) fail_msg("no result: %s", status_text((int)st));
    } while (event.kind != CLIENT_RESULT);
    result *r = event.tag;
    *r = (result){.code = event.code, .n_answers = event.outcome.n_answers, .vision = event.vision,
                  .image_tokens = event.outcome.image_tokens};
    (void)snprintf(r->text, sizeof r->text, "%s", event.text);
    for (size_t q = 0; q < r->n_answers; q++) {
        const answer *a = &event.outcome.answers[q];
        if (a->finish_reason == ANSWER_ERROR) fail_msg("question %zu: %s", q, a->message);
        (void)snprintf(r->answers[q], sizeof r->answers[q], "%s", a->text);
        r->n_tokens[q] = a->n_tokens;
        memcpy(r->ids[q], a->token_ids, a->n_tokens * sizeof *a->token_ids);
        for (size_t i = 0; i < a->n_tokens; i++) r->logprobs[q][i] = a->logprobs[i].logprob;
        if (q == 0) r->prefix_cached = a->prefix_cached, r->prompt_tokens = a->prompt_tokens;
    }
    client_ack(c, &event.id);
}

static result result_of(client *c, const ask *a) {
    result r;
    submit(c, a, &r);
    take_result(c);
    if (r.code != STATUS_OK) fail_msg("%s", r.text);
    return r;
}

static void assert_same(const result *got, const result *want, size_t i) {
    if (got->code != STATUS_OK) fail_msg("item %zu: %s", i, got->text);
    assert_int_equal(got->n_answers, want->n_answers);
    for (size_t q = 0; q < got->n_answers; q++) {
        if (strcmp(got->answers[q], want->answers[q]) != 0 || got->n_tokens[q] != want->n_tokens[q] ||
            memcmp(got->ids[q], want->ids[q], sizeof got->ids[q]) != 0 ||
            memcmp(got->logprobs[q], want->logprobs[q], sizeof got->logprobs[q]) != 0)
            fail_msg("item %zu, question %zu: \"%s\", alone \"%s\", or other numbers", i, q, got->answers[q], want->answers[q]);
    }
}

/* ---- one process ----------------------------------------------------------------------------- */

typedef struct {
    embedded *em;
    client *c;
} place;

static place open_place(uint64_t cache_bytes) {
    place p;
    err e;
    embedded_settings settings = embedded_defaults();
    settings.model = (model_settings){.dir = MODEL, .parts = MODEL_PART_ALL};
    settings.cache_bytes = cache_bytes ? cache_bytes : settings.cache_bytes;
    if (embedded_open(&p.em, &settings, &e) != STATUS_OK) fail_msg("%s", e.text);
    client_settings wishes = {.name = "test"};
    if (client_open(&p.c, embedded_context(p.em), embedded_endpoint(p.em), &wishes, &e) != STATUS_OK)
        fail_msg("%s", e.text);
    return p;
}

static void close_place(place *p) {
    client_close(&p->c);
    embedded_close(&p->em);
}

static result alone[N_ASKS]; /* each in a process that has seen nothing else */

static int set_up(void **state) {
    (void)state;
    for (size_t i = 0; i < N_SCENES; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, "scene-%02zu.jpg", i);
        char *path = path_join(TEST_DATA_DIR "/demo_scenes", name);
        buf image;
        buf_init(&image, 16 << 20);
        assert_true(file_read(&image, path));
        scenes[i] = (bytes){image.data, image.len_bytes};
        free(path);
    }
    for (size_t i = 0; i < N_ASKS; i++) {
        place p = open_place(0);
        alone[i] = result_of(p.c, &asks[i]);
        close_place(&p);
    }
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    for (size_t i = 0; i < N_SCENES; i++) free((void *)(uintptr_t)scenes[i].data);
    return 0;
}

/* All at once, from the first or from the last. */
static void ask_all(client *c, bool backwards, result got[N_ASKS]) {
    for (size_t i = 0; i < N_ASKS; i++) {
        size_t k = backwards ? N_ASKS - 1 - i : i;
        submit(c, &asks[k], &got[k]);
    }
    for (size_t i = 0; i < N_ASKS; i++) take_result(c);
    for (size_t i = 0; i < N_ASKS; i++) assert_same(&got[i], &alone[i], i);
}

static double metric_in(const metric *metrics, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(metrics[i].name, name) == 0) return metrics[i].value;
    return -1;
}

typedef struct {
    client *c;
    const char *name;
    double want, got;
} metric_goal;

/* Nodes tell their figures with their heartbeats. */
static bool nodes_report(void *arg) {
    metric_goal *g = arg;
    const status_report *report;
    err e;
    if (client_status(g->c, WAIT_MS, &report, &e) != STATUS_OK) fail_msg("%s", e.text);
    g->got = 0;
    for (size_t i = 0; i < report->n_nodes; i++) {
        double value = metric_in(report->nodes[i].metrics, report->nodes[i].n_metrics, g->name);
        if (value > 0) g->got += value;
    }
    return g->got == g->want;
}

static void nodes_have(client *c, const char *name, double want) {
    metric_goal g = {c, name, want, 0};
    if (!wait_until(nodes_report, &g, 20000)) fail_msg("%s is %g, expected %g", name, g.got, want);
}

static void several_images_have_rows_of_each_and_words_of_none(void **state) {
    (void)state;
    for (size_t i = 0; i < N_ASKS; i++) assert_int_equal(alone[i].image_tokens, asks[i].n * IMAGE_TOKENS);
    /* "\n" for each image is a token of its own. */
    assert_int_equal(alone[2].prompt_tokens, alone[0].prompt_tokens + 1);
    assert_int_equal(alone[6].prompt_tokens, alone[0].prompt_tokens + 2);
    assert_memory_not_equal(alone[2].logprobs, alone[3].logprobs, sizeof alone[2].logprobs); /* order counts */
    size_t n = sizeof alone[0].logprobs[0];
    assert_memory_not_equal(alone[0].logprobs[0], alone[4].logprobs[0], n); /* once is not twice, */
    assert_memory_not_equal(alone[2].logprobs[0], alone[4].logprobs[0], n); /* nor twice one of each */
}

static void company_and_caches_change_no_byte(void **state) {
    (void)state;
    static result got[N_ASKS];
    place p = open_place(0);
    ask_all(p.c, false, got);
    ask_all(p.c, true, got);
    for (size_t i = 0; i < N_ASKS; i++) assert_true(got[i].vision.features_cached && got[i].prefix_cached);
    close_place(&p);
    p = open_place(0);
    ask_all(p.c, true, got);
    close_place(&p);
}

static void an_image_is_encoded_once_whatever_it_comes_in(void **state) {
    (void)state;
    static result got[N_ASKS];
    place p = open_place(0);
    ask_all(p.c, false, got);
    nodes_have(p.c, "images_encoded", 19); /* scenes 0 to 18 */
    assert_false(got[7].vision.features_cached);
    close_place(&p);

    /* One after another: what was there before is not encoded again, and the report says so. */
    p = open_place(0);
    result r = result_of(p.c, &asks[0]);
    assert_true(!r.vision.features_cached && r.vision.encode_us > 0 && r.vision.width > 0);
    r = result_of(p.c, &(ask){{0, 1}, 2, NULL});
    assert_true(!r.vision.features_cached && r.vision.encode_us > 0);
    assert_int_equal(r.vision.width, 0); /* the first was not decoded */
    nodes_have(p.c, "images_encoded", 2);
    r = result_of(p.c, &(ask){{1}, 1, NULL});
    assert_true(r.vision.features_cached);
    r = result_of(p.c, &(ask){{1, 0, 1}, 3, NULL});
    assert_true(r.vision.features_cached && r.vision.encode_us == 0 && r.vision.decode_us == 0);
    nodes_have(p.c, "images_encoded", 2);
    close_place(&p);
}

static void an_image_that_cannot_be_decoded_is_named_by_its_number(void **state) {
    (void)state;
    place p = open_place(0);
    result bad[3], good[2];
    submit_images(p.c, (const bytes[]){scenes[0], not_a_picture}, 2, NULL, &bad[0]);
    submit(p.c, &asks[2], &good[0]);
    submit_images(p.c, (const bytes[]){scenes[1], scenes[0], not_a_picture}, 3, NULL, &bad[1]);
    submit(p.c, &asks[0], &good[1]);
    submit_images(p.c, &not_a_picture, 1, NULL, &bad[2]);
    for (int i = 0; i < 5; i++) take_result(p.c);
    for (int i = 0; i < 3; i++) assert_int_equal(bad[i].code, STATUS_IMAGE_UNDECODABLE);
    assert_non_null(strstr(bad[0].text, "image 2 of 2: not a JPEG"));
    assert_non_null(strstr(bad[1].text, "image 3 of 3: not a JPEG"));
    assert_null(strstr(bad[2].text, "image 1 of 1"));
    assert_same(&good[0], &alone[2], 2);
    assert_same(&good[1], &alone[0], 0);
    close_place(&p);
}

static buf bundle_of_two(int first, int second) {
    const bytes files[] = {scenes[first], scenes[second]};
    unsigned char head[BUNDLE_HEADER_BYTES_MAX];
    buf whole;
    buf_init(&whole, 16 << 20);
    assert_int_equal(buf_append(&whole, head, bundle_header(head, files, 2)), STATUS_OK);
    for (int i = 0; i < 2; i++) assert_int_equal(buf_append(&whole, files[i].data, files[i].len_bytes), STATUS_OK);
    return whole;
}

/* The same bytes and the same hash, once as a bundle and once as what they would be as a file. */
static void the_bytes_of_a_bundle_sent_as_an_image_are_an_image(void **state) {
    (void)state;
    buf whole = bundle_of_two(0, 1);
    const bytes file = {whole.data, whole.len_bytes};
    for (int order = 0; order < 2; order++) {
        place p = open_place(0);
        result bad, good;
        for (int i = 0; i < 2; i++) {
            if (i == order) submit_images(p.c, &file, 1, NULL, &bad);
            else submit(p.c, &asks[2], &good);
        }
        for (int i = 0; i < 2; i++) take_result(p.c);
        assert_int_equal(bad.code, STATUS_IMAGE_UNDECODABLE);
        assert_same(&good, &alone[2], 2);
        close_place(&p);
    }
    buf_deinit(&whole);
}

/* ---- a client of another making -------------------------------------------------------------- */

static void receive(wire_socket *s, message_kind kind, wire_message *in) {
    for (;;) {
        err e = {0};
        zmq_pollitem_t item = {.socket = wire_zmq(s), .events = ZMQ_POLLIN};
        if (zmq_poll(&item, 1, WAIT_MS) <= 0) fail_msg("no %s", message_kind_name((int)kind));
        while (wire_receive(s, in, &e) == STATUS_OK) {
            if (in->in.m.kind == kind) return;
            wire_message_clear(in);
        }
    }
}

/* One question about a payload that says of itself what it likes. The answer's text, or why there is none, in text. */
static status ask_raw(const place *p, bytes payload, uint32_t flags, const int *hashed, size_t n_hashed, char text[512]) {
    wire_socket *s;
    wire_message in;
    err e;
    wire_payload *sent;
    assert_int_equal(wire_connect(&s, embedded_context(p->em), embedded_endpoint(p->em), &e), STATUS_OK);
    message m = {.kind = MESSAGE_HELLO, .name = "raw"};
    while (wire_send(s, NULL, &m, NULL) != STATUS_OK) {
        zmq_pollitem_t item = {.socket = wire_zmq(s), .events = ZMQ_POLLOUT};
        (void)zmq_poll(&item, 1, 100);
    }
    receive(s, MESSAGE_WELCOME, &in);
    wire_message_clear(&in);
    unsigned char hashes[MESSAGE_IMAGES_MAX][HASH_SHA256_BYTES];
    for (size_t i = 0; i < n_hashed; i++) hash_sha256(hashes[i], scenes[hashed[i]].data, scenes[hashed[i]].len_bytes);
    request_question question = {.prompt = "Describe the image."};
    request r = {.questions = &question, .n_questions = 1, .sampling.max_new_tokens = TOKENS_MAX,
                 .images = (const unsigned char(*)[HASH_SHA256_BYTES])hashes, .n_images = n_hashed};
    buf body;
    buf_init(&body, 1 << 16);
    assert_int_equal(request_encode(&r, &body), STATUS_OK);
    assert_int_equal(wire_payload_open(&sent, payload.data, payload.len_bytes, &e), STATUS_OK);
    m = (message){.kind = MESSAGE_SUBMIT, .has_item = true, .has_digest = true, .has_image = true, .n_questions = 1,
                  .flags = flags, .body = {body.data, body.len_bytes}};
    client_random_id(&m.item);
    wire_payload_sha256(sent, m.image_sha256);
    assert_int_equal(wire_send(s, NULL, &m, sent), STATUS_OK);
    receive(s, MESSAGE_RESULT, &in);
    status code = (status)in.in.m.code;
    (void)snprintf(text, 512, "%s", in.in.m.text);
    if (code == STATUS_OK) {
        outcome o;
        request_memory memory = {0};
        assert_int_equal(outcome_decode(&o, &memory, in.in.m.body, &e), STATUS_OK);
        (void)snprintf(text, 512, "%s", o.answers[0].text);
        request_memory_clear(&memory);
    }
    m = (message){.kind = MESSAGE_RESULT_ACK, .has_item = true, .item = m.item};
    assert_int_equal(wire_send(s, NULL, &m, NULL), STATUS_OK);
    wire_message_clear(&in);
    wire_payload_close(&sent);
    buf_deinit(&body);
    wire_close(&s);
    return code;
}

static void a_bundle_that_is_none_and_hashes_that_do_not_fit_are_refused(void **state) {
    (void)state;
    place p = open_place(0);
    char text[512];
    buf whole = bundle_of_two(0, 1);
    const bytes two = {whole.data, whole.len_bytes}, cut = {whole.data, whole.len_bytes - 1};
    const uint32_t flags = MESSAGE_FLAG_IMAGE | MESSAGE_FLAG_BUNDLE;
    const int both[] = {0, 1};
    assert_int_equal(ask_raw(&p, scenes[0], flags, both, 2, text), STATUS_BAD_MESSAGE);
    assert_non_null(strstr(text, "do not start as one"));
    assert_int_equal(ask_raw(&p, cut, flags, both, 2, text), STATUS_BAD_MESSAGE);
    assert_non_null(strstr(text, "bundle: image 2 of 2"));
    assert_int_equal(ask_raw(&p, two, flags, NULL, 0, text), STATUS_BAD_MESSAGE);
    assert_non_null(strstr(text, "0 hashes of images with a bundle"));
    assert_int_equal(ask_raw(&p, scenes[0], MESSAGE_FLAG_IMAGE, both, 2, text), STATUS_BAD_MESSAGE);
    assert_non_null(strstr(text, "2 hashes of images with no bundle"));
    assert_int_equal(ask_raw(&p, two, flags, (const int[]){0, 19}, 2, text), STATUS_UNAVAILABLE); /* 19 is nowhere */
    assert_int_equal(ask_raw(&p, two, flags, both, 2, text), STATUS_OK);
    assert_string_equal(text, alone[2].answers[0]);
    buf_deinit(&whole);
    close_place(&p);
}

static void a_request_that_lies_about_its_images_spoils_nobody_elses(void **state) {
    (void)state;
    place p = open_place(0);
    char text[512];
    buf whole = bundle_of_two(0, 1);
    result r = result_of(p.c, &asks[8]); /* scenes 18 and 3 are there now */
    assert_int_equal(ask_raw(&p, (bytes){whole.data, whole.len_bytes}, MESSAGE_FLAG_IMAGE | MESSAGE_FLAG_BUNDLE,
                             (const int[]){18, 3}, 2, text), STATUS_OK);
    assert_string_equal(text, r.answers[0]);
    assert_string_not_equal(text, alone[2].answers[0]);
    r = result_of(p.c, &asks[2]); /* the very same payload */
    assert_same(&r, &alone[2], 2);
    buf_deinit(&whole);
    close_place(&p);
}

static void a_cache_without_room_costs_no_answer(void **state) {
    (void)state;
    static result got[N_ASKS];
    place p = open_place(100000); /* of one image's features, hardly */
    ask_all(p.c, false, got);
    ask_all(p.c, true, got);
    close_place(&p);
}

static void more_images_than_there_may_be_are_refused(void **state) {
    (void)state;
    place p = open_place(0);
    bytes images[MESSAGE_IMAGES_MAX + 1];
    for (size_t i = 0; i < MESSAGE_IMAGES_MAX + 1; i++) images[i] = scenes[i];
    request_question question = {.prompt = "What?"};
    request r = {.questions = &question, .n_questions = 1, .sampling.max_new_tokens = 1};
    client_item item = {.images = images, .n_images = MESSAGE_IMAGES_MAX + 1, .request = &r};
    err e;
    assert_int_equal(client_submit(p.c, &item, &e), STATUS_BAD_ARGUMENT);
    assert_non_null(strstr(e.text, "17 images, limit 16"));
    item.n_images = 3;
    images[1] = (bytes){0};
    assert_int_equal(client_submit(p.c, &item, &e), STATUS_BAD_ARGUMENT);
    assert_non_null(strstr(e.text, "image 2 of 3 is empty"));
    images[1] = (bytes){scenes[0].data, MESSAGE_IMAGE_BYTES_MAX - scenes[0].len_bytes};
    assert_int_equal(client_submit(p.c, &item, &e), STATUS_TOO_LARGE);
    assert_non_null(strstr(e.text, "3 images of"));
    assert_int_equal(client_unanswered(p.c), 0);
    close_place(&p);
}

/* ---- a cluster ------------------------------------------------------------------------------- */

typedef struct {
    redis_server redis;
    child broker, nodes[3]; /* one vision node, two language nodes */
    char *dir;
    char front[128], back[128];
    void *context;
    client *c;
} cluster;

static void start_node(cluster *k, int i) {
    const char *program = i < 1 ? PROGRAM_DIR "/mipha-vision-node" : PROGRAM_DIR "/mipha-lm-node";
    const char *argv[] = {program, "--broker", k->back, "--model", MODEL, "--cache", k->redis.url,
                          "--threads", "1", i < 1 ? "--batch" : NULL, "3", NULL}; /* smaller than most items */
    child_start(&k->nodes[i], argv, NULL);
    if (!child_wait_for_output(&k->nodes[i], "joined", WAIT_MS)) {
        buf text;
        buf_init(&text, 1 << 20);
        child_stderr(&k->nodes[i], &text);
        fail_msg("node %d did not join: %s", i, text.data ? (const char *)text.data : "");
    }
}

static int start_cluster(void **state) {
    cluster *k = calloc(1, sizeof *k);
    k->dir = temp_dir_make();
    redis_server_start(&k->redis, NULL);
    char *ready = path_join(k->dir, "ready");
    const char *argv[] = {PROGRAM_DIR "/mipha-broker", "--front", "tcp://127.0.0.1:*", "--back", "tcp://127.0.0.1:*",
                          "--heartbeat-ms", "200", "--ready-file", ready, NULL};
    child_start(&k->broker, argv, NULL);
    assert_true(child_wait_for_output(&k->broker, "ready front", WAIT_MS));
    FILE *f = fopen(ready, "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%127s %127s", k->front, k->back), 2);
    (void)fclose(f);
    free(ready);
    for (int i = 0; i < 3; i++) start_node(k, i);
    k->context = wire_context_open();
    err e;
    client_settings wishes = {.name = "test"};
    if (client_open(&k->c, k->context, k->front, &wishes, &e) != STATUS_OK) fail_msg("%s", e.text);
    *state = k;
    return 0;
}

static int stop_cluster(void **state) {
    cluster *k = *state;
    client_close(&k->c);
    wire_context_close(&k->context);
    for (int i = 0; i < 3; i++) child_close(&k->nodes[i]);
    child_close(&k->broker);
    redis_server_stop(&k->redis);
    temp_dir_remove(k->dir);
    free(k);
    return 0;
}

static double broker_metric(cluster *k, const char *name) {
    const status_report *report;
    err e;
    if (client_status(k->c, WAIT_MS, &report, &e) != STATUS_OK) fail_msg("%s", e.text);
    return metric_in(report->metrics, report->n_metrics, name);
}

static void a_cluster_changes_no_byte_and_encodes_an_image_once(void **state) {
    cluster *k = *state;
    static result got[N_ASKS];
    ask_all(k->c, false, got);
    nodes_have(k->c, "images_encoded", 19);
    ask_all(k->c, true, got);
    nodes_have(k->c, "images_encoded", 19);
    assert_int_equal(redis_server_command(&k->redis, NULL, "DBSIZE"), 19);
    result bad;
    submit_images(k->c, (const bytes[]){scenes[0], not_a_picture}, 2, NULL, &bad);
    take_result(k->c);
    assert_int_equal(bad.code, STATUS_IMAGE_UNDECODABLE);
    assert_non_null(strstr(bad.text, "image 2 of 2"));
}

static void a_cache_that_is_killed_costs_no_answer(void **state) {
    cluster *k = *state;
    static result got[N_ASKS];
    result r = result_of(k->c, &asks[0]);
    assert_same(&r, &alone[0], 0);
    redis_server_kill(&k->redis);
    ask_all(k->c, false, got);
    assert_true(broker_metric(k, "features_handed_over") > 0);
    redis_server_restart(&k->redis);
    ask_all(k->c, true, got);
}

static void redis_says(cluster *k, const char *command) {
    if (redis_server_command(&k->redis, NULL, command) < 0) fail_msg("%s failed", command);
}

/* The first image is in the cache and the second finds no room there: both travel. */
static void a_cache_that_takes_only_some_images_of_an_item_costs_no_answer(void **state) {
    cluster *k = *state;
    result r = result_of(k->c, &asks[0]);
    redis_says(k, "CONFIG SET maxmemory 1");
    r = result_of(k->c, &asks[2]);
    assert_same(&r, &alone[2], 2);
    assert_true(broker_metric(k, "features_handed_over") > 0);
    nodes_have(k->c, "images_encoded", 2);
    nodes_have(k->c, "images_handed_over", 2);
}

static void spoil_any(cluster *k) {
    buf key;
    buf_init(&key, 4096);
    assert_true(redis_server_command(&k->redis, &key, "RANDOMKEY") >= 0);
    char command[512];
    (void)snprintf(command, sizeof command, "SETRANGE %s 1000 spoilt", (const char *)key.data);
    redis_says(k, command);
    buf_deinit(&key);
}

/* The same, but the first is broken when it is read back: it is encoded again. */
static void a_broken_image_beside_one_without_room_costs_no_answer(void **state) {
    cluster *k = *state;
    result r = result_of(k->c, &asks[0]);
    spoil_any(k);
    redis_says(k, "CONFIG SET maxmemory 1");
    r = result_of(k->c, &asks[2]);
    assert_same(&r, &alone[2], 2);
    nodes_have(k->c, "images_encoded", 3);
}

static void a_broken_entry_of_one_image_is_made_again(void **state) {
    cluster *k = *state;
    result r = result_of(k->c, &asks[0]);
    spoil_any(k);
    r = result_of(k->c, &asks[2]);
    assert_same(&r, &alone[2], 2);
    assert_true(broker_metric(k, "features_missing") > 0);
    r = result_of(k->c, &asks[3]);
    assert_same(&r, &alone[3], 3);
    assert_true(r.vision.features_cached);
}

#define STORY(f) cmocka_unit_test_setup_teardown(f, start_cluster, stop_cluster)

int main(void) {
    const struct CMUnitTest in_one_process[] = {
        cmocka_unit_test(several_images_have_rows_of_each_and_words_of_none),
        cmocka_unit_test(company_and_caches_change_no_byte),
        cmocka_unit_test(an_image_is_encoded_once_whatever_it_comes_in),
        cmocka_unit_test(an_image_that_cannot_be_decoded_is_named_by_its_number),
        cmocka_unit_test(the_bytes_of_a_bundle_sent_as_an_image_are_an_image),
        cmocka_unit_test(a_bundle_that_is_none_and_hashes_that_do_not_fit_are_refused),
        cmocka_unit_test(a_request_that_lies_about_its_images_spoils_nobody_elses),
        cmocka_unit_test(a_cache_without_room_costs_no_answer),
        cmocka_unit_test(more_images_than_there_may_be_are_refused),
    };
    const struct CMUnitTest stories[] = {
        STORY(a_cluster_changes_no_byte_and_encodes_an_image_once),
        STORY(a_cache_that_is_killed_costs_no_answer),
        STORY(a_cache_that_takes_only_some_images_of_an_item_costs_no_answer),
        STORY(a_broken_image_beside_one_without_room_costs_no_answer),
        STORY(a_broken_entry_of_one_image_is_made_again),
    };
    int n_failed = 0;
    if (!redis_server_exists()) {
        print_message("redis-server is not installed: without a cluster\n");
        return cmocka_run_group_tests_name("one process", in_one_process, set_up, tear_down) ? 1 : TEST_SKIPPED;
    }
    /* One group: what both compare with is made once. */
    struct CMUnitTest all[sizeof in_one_process / sizeof *in_one_process + sizeof stories / sizeof *stories];
    memcpy(all, in_one_process, sizeof in_one_process);
    memcpy(all + sizeof in_one_process / sizeof *in_one_process, stories, sizeof stories);
    n_failed = cmocka_run_group_tests_name("several images", all, set_up, tear_down);
    return n_failed;
}
