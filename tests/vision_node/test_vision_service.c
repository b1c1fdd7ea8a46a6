/* The vision node's pipeline: a broker played by the test, a cache that does what the test says, and images whose
 * decoding waits for what the test wants to see first. Nothing here measures time: what must go on at once is made to
 * need each other. */
#include "tests/vision_node/image_cases.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "proto/bundle.h"
#include "tests/lm_node/golden.h"
#include "tests/worker/played_broker.h"
#include "vision_node/vision_service.h"

#ifndef TEST_DEVICE
#define TEST_DEVICE "cpu"
#endif

#define WAIT_MS    60000
#define WALL_MS    30000 /* an image that waits in vain is not decoded, and its job fails */
#define MAX_IMAGES 2     /* six pictures on their way */
#define N_KEYS     64

/* ---- a cache that does what it is told -------------------------------------------------------- */

/* These stand in for cache/cache.c. */
struct cache {
    pthread_mutex_t mutex; /* guards all of it */
    pthread_cond_t changed;
    cache_key keys[N_KEYS];
    unsigned char *blobs[N_KEYS]; /* NULL once an entry is lost */
    size_t blob_bytes, n_keys;
    bool is_away, loses_reads, refuses_puts; /* loses_reads: an entry is there until it is read */
    int holds_puts, holds_looks;             /* so many more of them wait until they are let go */
    int n_puts, n_puts_waiting, n_looks_waiting;
};

static cache the_cache = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void hold(cache *c, int *held, int *n_waiting) {
    if (*held == 0) return;
    (*held)--;
    (*n_waiting)++;
    (void)pthread_cond_broadcast(&c->changed);
    while (*n_waiting > 0) (void)pthread_cond_wait(&c->changed, &c->mutex);
}

static void let_go(int *n_waiting) {
    (void)pthread_mutex_lock(&the_cache.mutex);
    *n_waiting = 0;
    (void)pthread_cond_broadcast(&the_cache.changed);
    (void)pthread_mutex_unlock(&the_cache.mutex);
}

static bool waits(void *n_waiting) {
    (void)pthread_mutex_lock(&the_cache.mutex);
    bool is_so = *(int *)n_waiting > 0;
    (void)pthread_mutex_unlock(&the_cache.mutex);
    return is_so;
}

static size_t find(const cache *c, const cache_key *key) {
    size_t i = 0;
    while (i < c->n_keys && strcmp(c->keys[i].text, key->text) != 0) i++;
    return i;
}

status cache_has(cache *c, const cache_key *key) {
    (void)pthread_mutex_lock(&c->mutex);
    hold(c, &c->holds_looks, &c->n_looks_waiting);
    size_t i = find(c, key);
    status st = c->is_away ? STATUS_UNAVAILABLE : i < c->n_keys && c->blobs[i] ? STATUS_OK : STATUS_NOT_FOUND;
    (void)pthread_mutex_unlock(&c->mutex);
    return st;
}

status cache_get(cache *c, blob *b, buf *storage, const cache_key *key) {
    err e;
    (void)pthread_mutex_lock(&c->mutex);
    size_t i = find(c, key);
    bool is_here = !c->is_away && !c->loses_reads && i < c->n_keys && c->blobs[i];
    status st = is_here ? buf_append(storage, c->blobs[i], c->blob_bytes) : STATUS_NOT_FOUND;
    (void)pthread_mutex_unlock(&c->mutex);
    return st == STATUS_OK ? blob_decode(b, (bytes){storage->data, storage->len_bytes}, key, &e) : st;
}

status cache_put(cache *c, const cache_key *key, const blob *b) {
    (void)pthread_mutex_lock(&c->mutex);
    hold(c, &c->holds_puts, &c->n_puts_waiting);
    bool is_taken = !c->is_away && !c->refuses_puts;
    if (is_taken) {
        size_t i = find(c, key);
        c->blob_bytes = BLOB_HEADER_BYTES + b->values.len_bytes;
        if (i == c->n_keys) {
            c->keys[c->n_keys++] = *key;
            c->blobs[i] = malloc(c->blob_bytes);
        }
        blob_header(c->blobs[i], key, b);
        memcpy(c->blobs[i] + BLOB_HEADER_BYTES, b->values.data, b->values.len_bytes);
        c->n_puts++;
    }
    (void)pthread_mutex_unlock(&c->mutex);
    return is_taken ? STATUS_OK : STATUS_UNAVAILABLE;
}

cache_counters cache_counters_read(cache *c) {
    (void)c;
    return (cache_counters){0};
}

/* Messages put what the test does to the cache and what the node does into an order. A sanitizer cannot see ZeroMQ, so
 * each of them is told to it once more. */
static void messages_order(void) {
    (void)pthread_mutex_lock(&the_cache.mutex);
    (void)pthread_mutex_unlock(&the_cache.mutex);
}

static void forget_all(void) {
    for (size_t i = 0; i < the_cache.n_keys; i++) free(the_cache.blobs[i]);
    the_cache = (cache){.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
}

static int n_puts(void) {
    (void)pthread_mutex_lock(&the_cache.mutex);
    int n = the_cache.n_puts;
    (void)pthread_mutex_unlock(&the_cache.mutex);
    return n;
}

/* ---- images whose decoding waits -------------------------------------------------------------- */

/* Seen by the test and by the processes that decode. */
typedef struct {
    _Atomic(int) n_decoded, n_meeting, n_held;
    _Atomic(bool) is_open;
} gate;

static gate *the_gate;

/* Runs in a decoder process: what an image's last bytes say. */
static void before_decode(bytes encoded) {
    const unsigned char *end = encoded.data + encoded.len_bytes;
    (void)atomic_fetch_add(&the_gate->n_decoded, 1);
    if (encoded.len_bytes < 8) return;
    if (memcmp(end - 8, "MEET", 4) == 0) {
        (void)atomic_fetch_add(&the_gate->n_meeting, 1);
        while (atomic_load(&the_gate->n_meeting) < 2) continue;
    }
    if (memcmp(end - 8, "HOLD", 4) == 0) {
        (void)atomic_fetch_add(&the_gate->n_held, 1);
        while (!atomic_load(&the_gate->is_open)) continue;
    }
}

static bool one_is_held(void *unused) {
    (void)unused;
    return atomic_load(&the_gate->n_held) > 0;
}

static unsigned char *picture_file;
static size_t n_picture_file;

/* A picture that tells its decoder what to do; number makes it another image. In memory the caller frees. */
static bytes image_of(const char what[4], int number) {
    unsigned char *copy = malloc(n_picture_file + 8);
    memcpy(copy, picture_file, n_picture_file);
    memcpy(copy + n_picture_file, what, 4);
    memset(copy + n_picture_file + 4, '0' + number, 4);
    copy[n_picture_file / 2] ^= (unsigned char)number; /* and other pixels */
    return (bytes){copy, n_picture_file + 8};
}

static void free_image(bytes image) { free((void *)(uintptr_t)image.data); }

/* ---- the stage -------------------------------------------------------------------------------- */

typedef struct {
    golden *g;
    model *m;
    image_decoder *decoder;
    vision_service *service;
    played_broker broker;
} stage;

static void expect(stage *s, message_kind kind, wire_message *in) { played_broker_expect(&s->broker, kind, in); }

static void say(stage *s, const message *m, const wire_payload *payload) {
    messages_order();
    played_broker_say(&s->broker, m, payload);
}

static stage *open_stage(int n_decoders) {
    stage *s = calloc(1, sizeof *s);
    err e;
    memset(the_gate, 0, sizeof *the_gate);
    image_decoder_limits limits = {.wall_ms = WALL_MS, .before_decode = before_decode};
    if (image_decoder_open(&s->decoder, n_decoders, &limits, &e) != STATUS_OK) fail_msg("%s", e.text);
    s->g = golden_open("odd_heads");
    model_settings checkpoint = {.dir = golden_dir(s->g), .parts = MODEL_PART_TOWER};
    if (model_open(&s->m, &checkpoint, &e) != STATUS_OK) fail_msg("%s", e.text);
    vision_service_settings wishes = vision_service_defaults(TEST_DEVICE);
    wishes.ops.n_threads = 1;
    wishes.max_images = MAX_IMAGES;
    vision_service_parts parts = {s->m, &the_cache, &the_cache, s->decoder};
    if (vision_service_open(&s->service, &parts, &wishes, &e) != STATUS_OK) fail_msg("%s", e.text);

    played_broker_open(&s->broker);
    worker_settings settings = {.name = "node", .role = MESSAGE_ROLE_VISION, .slots = 64, .slot_bytes = 1 << 30,
                                .drain_ms = 0};
    worker_handler handler = vision_service_handler(s->service);
    played_broker_employ(&s->broker, &settings, &handler);
    vision_service_attach(s->service, s->broker.w);
    played_broker_run(&s->broker);
    played_broker_welcome(&s->broker, 20000);
    return s;
}

static void end_worker(stage *s) {
    played_broker_dismiss(&s->broker);
    if (s->broker.result != STATUS_OK) print_error("%s\n", s->broker.why.text);
}

static void close_stage(stage *s) {
    end_worker(s);
    vision_service_close(&s->service);
    played_broker_close(&s->broker);
    image_decoder_close(&s->decoder);
    model_close(&s->m);
    golden_close(&s->g);
    free(s);
}

static message about(message_kind kind, uint8_t id) {
    message m = {.kind = kind, .has_item = true, .attempt = 1};
    memset(m.item.bytes, id, sizeof m.item.bytes);
    return m;
}

static void send_payload(stage *s, uint8_t id, uint32_t flags, const void *data, size_t n) {
    err e;
    wire_payload *payload;
    message m = about(MESSAGE_ENCODE, id);
    m.flags = MESSAGE_FLAG_IMAGE | flags;
    m.has_image = true;
    assert_int_equal(wire_payload_open(&payload, data, n, &e), STATUS_OK);
    wire_payload_sha256(payload, m.image_sha256);
    say(s, &m, payload);
    wire_payload_close(&payload);
}

static void send_image(stage *s, uint8_t id, uint32_t flags, bytes image) {
    send_payload(s, id, flags, image.data, image.len_bytes);
}

static void send_bundle(stage *s, uint8_t id, uint32_t flags, const bytes *images, size_t n) {
    unsigned char head[BUNDLE_HEADER_BYTES_MAX];
    buf whole;
    buf_init(&whole, 16 << 20);
    assert_int_equal(buf_append(&whole, head, bundle_header(head, images, n)), STATUS_OK);
    for (size_t i = 0; i < n; i++) assert_int_equal(buf_append(&whole, images[i].data, images[i].len_bytes), STATUS_OK);
    send_payload(s, id, MESSAGE_FLAG_BUNDLE | flags, whole.data, whole.len_bytes);
    buf_deinit(&whole);
}

typedef struct {
    uint8_t id;
    vision_report report;
    unsigned char *handed; /* of an answer features travel with; the caller frees it */
    size_t n_handed;
} answered;

static answered next_answer(stage *s) {
    wire_message in;
    err e;
    expect(s, MESSAGE_ENCODED, &in);
    answered a = {.id = in.in.m.item.bytes[0], .n_handed = wire_payload_bytes(in.payload)};
    assert_int_equal(vision_report_decode(&a.report, in.in.m.report, &e), STATUS_OK);
    if (a.n_handed) wire_payload_copy(in.payload, a.handed = malloc(a.n_handed));
    wire_message_clear(&in);
    messages_order();
    return a;
}

/* Answers in any order; false if one is missing or comes twice. */
static bool answers_are(stage *s, const char *ids) {
    size_t n = strlen(ids);
    char seen[32] = {0};
    for (size_t i = 0; i < n; i++) {
        answered a = next_answer(s);
        free(a.handed);
        if (!strchr(ids, a.id) || strchr(seen, a.id)) return false;
        seen[i] = (char)a.id;
    }
    return true;
}

/* ---- promises --------------------------------------------------------------------------------- */

static void images_are_decoded_side_by_side(void **state) {
    (void)state;
    stage *s = open_stage(2);
    bytes first = image_of("MEET", 1), second = image_of("MEET", 2);
    send_image(s, 'a', 0, first);
    send_image(s, 'b', 0, second);
    assert_true(answers_are(s, "ab"));
    /* The same of two images of one job. */
    atomic_store(&the_gate->n_meeting, 0);
    bytes pair[] = {image_of("MEET", 3), image_of("MEET", 4)};
    send_bundle(s, 'c', 0, pair, 2);
    assert_true(answers_are(s, "c"));
    close_stage(s);
    free_image(first), free_image(second), free_image(pair[0]), free_image(pair[1]);
}

static void an_image_is_encoded_stored_and_answered_while_another_is_decoded(void **state) {
    (void)state;
    stage *s = open_stage(2);
    bytes slow = image_of("HOLD", 1), quick = image_of("GO  ", 2);
    send_image(s, 'a', 0, slow);
    assert_true(wait_until(one_is_held, NULL, WAIT_MS));
    send_image(s, 'b', 0, quick);
    assert_true(answers_are(s, "b"));
    assert_int_equal(n_puts(), 1);
    atomic_store(&the_gate->is_open, true);
    assert_true(answers_are(s, "a"));
    close_stage(s);
    free_image(slow), free_image(quick);
}

static void an_image_is_encoded_while_features_are_stored_and_answers_wait_for_their_own(void **state) {
    (void)state;
    stage *s = open_stage(2);
    bytes first = image_of("GO  ", 1), second = image_of("GO  ", 2);
    the_cache.holds_puts = 1;
    send_image(s, 'a', 0, first);
    assert_true(wait_until(waits, &the_cache.n_puts_waiting, WAIT_MS));
    send_image(s, 'b', 0, second);
    assert_true(answers_are(s, "b")); /* and not a */
    let_go(&the_cache.n_puts_waiting);
    assert_true(answers_are(s, "a"));
    assert_int_equal(n_puts(), 2);
    close_stage(s);
    free_image(first), free_image(second);
}

/* More images than there are pictures, in any company, have the bytes they have alone. */
static void company_changes_no_byte(void **state) {
    (void)state;
    enum { N = 14 };
    bytes images[N];
    unsigned char *alone[N];
    char ids[N + 1] = {0};
    stage *s = open_stage(3);
    for (int i = 0; i < N; i++) {
        images[i] = image_of("GO  ", i + 1);
        send_image(s, 'a', 0, images[i]);
        assert_true(answers_are(s, "a"));
        assert_int_equal(the_cache.n_keys, i + 1);
        alone[i] = malloc(the_cache.blob_bytes);
        memcpy(alone[i], the_cache.blobs[i], the_cache.blob_bytes);
        message committed = about(MESSAGE_COMMITTED, 'a');
        say(s, &committed, NULL);
    }
    assert_memory_not_equal(alone[0] + BLOB_HEADER_BYTES, alone[1] + BLOB_HEADER_BYTES,
                            the_cache.blob_bytes - BLOB_HEADER_BYTES);
    (void)pthread_mutex_lock(&the_cache.mutex); /* all of them, before any is encoded again */
    for (int i = 0; i < N; i++) memset(the_cache.blobs[i], 0, the_cache.blob_bytes);
    (void)pthread_mutex_unlock(&the_cache.mutex);
    for (int i = 0; i < N; i++) {
        ids[i] = (char)('b' + i);
        send_image(s, (uint8_t)ids[i], MESSAGE_FLAG_REENCODE, images[N - 1 - i]);
    }
    assert_true(answers_are(s, ids));
    assert_int_equal(n_puts(), 2 * N);
    for (int i = 0; i < N; i++) assert_memory_equal(the_cache.blobs[i], alone[i], the_cache.blob_bytes);
    close_stage(s);
    for (int i = 0; i < N; i++) free(alone[i]), free_image(images[i]);
}

static void an_image_on_its_way_is_not_begun_again(void **state) {
    (void)state;
    stage *s = open_stage(2);
    bytes image = image_of("HOLD", 1), both[] = {image, image_of("GO  ", 2)}, same[] = {image, image};
    send_image(s, 'a', 0, image);
    assert_true(wait_until(one_is_held, NULL, WAIT_MS));
    send_image(s, 'b', 0, image);
    send_bundle(s, 'c', 0, both, 2);
    send_bundle(s, 'd', 0, same, 2);
    send_image(s, 'e', 0, both[1]); /* one of the bundle's, or from the cache */
    assert_true(answers_are(s, "e"));
    atomic_store(&the_gate->is_open, true);
    for (int i = 0; i < 4; i++) {
        answered a = next_answer(s);
        assert_true(a.report.features_cached == (a.id == 'b' || a.id == 'd') || a.id == 'c');
        assert_true((a.report.encode_us > 0) == (a.id == 'a') || a.id == 'c');
        assert_true(a.report.width > 0);
    }
    assert_int_equal(n_puts(), 2);
    assert_int_equal(atomic_load(&the_gate->n_decoded), 2);
    close_stage(s);
    free_image(image), free_image(both[1]);
}

static void a_picture_that_cannot_be_decoded_costs_nobody_elses_answer(void **state) {
    (void)state;
    stage *s = open_stage(2);
    bytes good[] = {image_of("GO  ", 1), image_of("GO  ", 2), image_of("GO  ", 3)};
    bytes text = {(const unsigned char *)"no picture", 10};
    bytes mixed[] = {good[0], text, good[2]};
    the_cache.holds_looks = 1; /* all of them are on their way before the first is decoded */
    send_image(s, 'a', 0, good[0]);
    assert_true(wait_until(waits, &the_cache.n_looks_waiting, WAIT_MS));
    send_image(s, 'b', 0, text);
    wire_message in;
    expect(s, MESSAGE_FAILED, &in);
    assert_int_equal(in.in.m.item.bytes[0], 'b');
    assert_int_equal(in.in.m.code, STATUS_IMAGE_UNDECODABLE);
    assert_false(in.in.m.flags & MESSAGE_FLAG_RETRYABLE);
    assert_non_null(strstr(in.in.m.text, "not a JPEG"));
    assert_null(strstr(in.in.m.text, "image 1 of"));
    wire_message_clear(&in);
    send_bundle(s, 'c', 0, mixed, 3);
    expect(s, MESSAGE_FAILED, &in);
    assert_int_equal(in.in.m.item.bytes[0], 'c');
    assert_non_null(strstr(in.in.m.text, "image 2 of 3: not a JPEG"));
    wire_message_clear(&in);
    send_image(s, 'd', 0, good[1]);
    send_image(s, 'e', 0, good[2]);
    let_go(&the_cache.n_looks_waiting);
    assert_true(answers_are(s, "ade"));
    close_stage(s);
    for (int i = 0; i < 3; i++) free_image(good[i]);
}

static void what_is_not_what_it_says_is_refused(void **state) {
    (void)state;
    stage *s = open_stage(1);
    err e;
    wire_payload *payload;
    bytes image = image_of("GO  ", 1);
    message m = about(MESSAGE_ENCODE, 'a');
    m.flags = MESSAGE_FLAG_IMAGE;
    m.has_image = true;
    assert_int_equal(wire_payload_open(&payload, image.data, image.len_bytes, &e), STATUS_OK);
    say(s, &m, payload);
    wire_message in;
    expect(s, MESSAGE_FAILED, &in);
    assert_int_equal(in.in.m.code, STATUS_BAD_MESSAGE);
    assert_string_equal(in.in.m.text, "image bytes do not have the SHA-256 they came with");
    wire_message_clear(&in);
    send_payload(s, 'b', MESSAGE_FLAG_BUNDLE, image.data, image.len_bytes);
    expect(s, MESSAGE_FAILED, &in);
    assert_int_equal(in.in.m.code, STATUS_BAD_MESSAGE);
    assert_non_null(strstr(in.in.m.text, "do not start as one"));
    wire_message_clear(&in);
    assert_int_equal(n_puts(), 0);
    wire_payload_close(&payload);
    close_stage(s);
    free_image(image);
}

static void a_job_is_given_up_while_its_image_is_decoded_and_the_image_is_not_encoded(void **state) {
    (void)state;
    stage *s = open_stage(1);
    bytes slow = image_of("HOLD", 1), other = image_of("GO  ", 2);
    send_image(s, 'a', 0, slow);
    assert_true(wait_until(one_is_held, NULL, WAIT_MS));
    message stop = about(MESSAGE_STOP, 'a');
    say(s, &stop, NULL);
    wire_message in;
    expect(s, MESSAGE_RELEASE, &in); /* before the image is decoded */
    assert_int_equal(in.in.m.item.bytes[0], 'a');
    wire_message_clear(&in);
    atomic_store(&the_gate->is_open, true);
    send_image(s, 'b', 0, other);
    assert_true(answers_are(s, "b"));
    close_stage(s);
    assert_int_equal(n_puts(), 1);
    free_image(slow), free_image(other);
}

static void a_job_that_is_given_up_leaves_its_image_to_another(void **state) {
    (void)state;
    stage *s = open_stage(1);
    bytes slow = image_of("HOLD", 1);
    send_image(s, 'a', 0, slow);
    assert_true(wait_until(one_is_held, NULL, WAIT_MS));
    send_image(s, 'b', 0, slow);
    message stop = about(MESSAGE_STOP, 'a');
    say(s, &stop, NULL);
    wire_message in;
    expect(s, MESSAGE_RELEASE, &in);
    wire_message_clear(&in);
    atomic_store(&the_gate->is_open, true);
    assert_true(answers_are(s, "b"));
    int n_decoded = atomic_load(&the_gate->n_decoded); /* twice when b was opened only after a's picture had ended */
    assert_true(n_decoded == 1 || n_decoded == 2);
    close_stage(s);
    free_image(slow);
}

/* One image is being decoded, one was read, more wait for a picture or are not open. */
static void a_node_that_ends_gives_back_what_is_on_its_way(void **state) {
    (void)state;
    enum { N = 12 };
    stage *s = open_stage(1);
    bytes images[N];
    for (int i = 0; i < N; i++) {
        images[i] = image_of(i == 0 ? "HOLD" : "GO  ", i + 1);
        send_image(s, (uint8_t)('a' + i), 0, images[i]);
        if (i == 0) assert_true(wait_until(one_is_held, NULL, WAIT_MS)); /* jobs are opened side by side: none passes it */
    }
    wire_message in;
    message unknown = about(MESSAGE_STOP, 'z'); /* is answered behind all that was sent before */
    say(s, &unknown, NULL);
    expect(s, MESSAGE_RELEASE, &in);
    wire_message_clear(&in);
    end_worker(s);
    bool is_back[N] = {false};
    for (int i = 0; i < N; i++) {
        expect(s, MESSAGE_RELEASE, &in);
        is_back[in.in.m.item.bytes[0] - 'a'] = true;
        wire_message_clear(&in);
    }
    for (int i = 0; i < N; i++) assert_true(is_back[i]);
    atomic_store(&the_gate->is_open, true);
    close_stage(s);
    assert_int_equal(n_puts(), 0);
    for (int i = 0; i < N; i++) free_image(images[i]);
}

static void features_travel_while_the_cache_is_away(void **state) {
    (void)state;
    stage *s = open_stage(2);
    bytes pair[] = {image_of("GO  ", 1), image_of("GO  ", 2)};
    send_bundle(s, 'a', 0, pair, 2);
    assert_true(answers_are(s, "a"));
    the_cache.is_away = true;
    send_image(s, 'b', 0, pair[1]);
    answered a = next_answer(s);
    size_t n = the_cache.blob_bytes;
    cache_key *keys = the_cache.keys;
    size_t first = 0, second = 1; /* in the cache they stand in the order they were stored */
    assert_int_equal(a.n_handed, n);
    if (memcmp(a.handed, the_cache.blobs[1], n) != 0) first = 1, second = 0;
    assert_memory_equal(a.handed, the_cache.blobs[second], n);
    free(a.handed);
    send_bundle(s, 'c', 0, pair, 2);
    a = next_answer(s);
    assert_int_equal(a.n_handed, 2 * n);
    assert_memory_equal(a.handed, the_cache.blobs[first], n);
    assert_memory_equal(a.handed + n, the_cache.blobs[second], n);
    free(a.handed);
    assert_string_not_equal(keys[0].text, keys[1].text);
    close_stage(s);
    free_image(pair[0]), free_image(pair[1]);
}

/* A bundle of which the cache has one image and does not take the other: all features travel, the one's from the cache
 * or, when it is gone by then, encoded again. */
static void what_the_cache_has_travels_with_what_it_does_not_take(void **state) {
    (void)state;
    for (int is_lost = 0; is_lost < 2; is_lost++) {
        stage *s = open_stage(2);
        bytes pair[] = {image_of("GO  ", 1), image_of("GO  ", 2)};
        send_image(s, 'a', 0, pair[0]);
        assert_true(answers_are(s, "a"));
        the_cache.refuses_puts = true;
        the_cache.loses_reads = is_lost;
        send_bundle(s, 'b', 0, pair, 2);
        answered b = next_answer(s);
        size_t n = the_cache.blob_bytes;
        assert_int_equal(b.n_handed, 2 * n);
        assert_memory_equal(b.handed, the_cache.blobs[0], n);
        assert_int_equal(atomic_load(&the_gate->n_decoded), is_lost ? 3 : 2);
        the_cache.refuses_puts = false;
        send_image(s, 'c', 0, pair[1]);
        assert_true(answers_are(s, "c"));
        assert_memory_equal(b.handed + n, the_cache.blobs[1], n);
        free(b.handed);
        close_stage(s);
        free_image(pair[0]), free_image(pair[1]);
        forget_all();
    }
}

static void who_must_not_trust_the_cache_is_not_served_from_it(void **state) {
    (void)state;
    stage *s = open_stage(2);
    bytes image = image_of("GO  ", 1), pair[] = {image, image_of("GO  ", 2)};
    send_image(s, 'a', 0, image);
    assert_true(answers_are(s, "a"));
    send_image(s, 'b', 0, image);
    answered b = next_answer(s);
    assert_true(b.report.features_cached && b.report.encode_us == 0);
    assert_int_equal(n_puts(), 1);
    send_image(s, 'c', MESSAGE_FLAG_REENCODE, image);
    answered c = next_answer(s);
    assert_true(!c.report.features_cached && c.report.encode_us > 0 && c.n_handed == 0);
    assert_int_equal(n_puts(), 2);

    /* Also when somebody looks into the cache for the same image just then. */
    the_cache.holds_looks = 1;
    send_image(s, 'd', 0, image);
    assert_true(wait_until(waits, &the_cache.n_looks_waiting, WAIT_MS));
    send_image(s, 'e', MESSAGE_FLAG_REENCODE, image);
    send_image(s, 'f', 0, pair[1]); /* once it is answered, e has been looked at */
    assert_true(answers_are(s, "f"));
    let_go(&the_cache.n_looks_waiting);
    for (int i = 0; i < 2; i++) {
        answered a = next_answer(s);
        assert_true(a.report.features_cached == (a.id == 'd'));
    }
    assert_int_equal(n_puts(), 4);

    /* Several images that were not found together come along. */
    send_bundle(s, 'g', MESSAGE_FLAG_REENCODE, pair, 2);
    answered g = next_answer(s);
    assert_int_equal(g.n_handed, 2 * the_cache.blob_bytes);
    assert_memory_equal(g.handed, the_cache.blobs[0], the_cache.blob_bytes);
    assert_memory_equal(g.handed + the_cache.blob_bytes, the_cache.blobs[1], the_cache.blob_bytes);
    free(g.handed);
    close_stage(s);
    free_image(image), free_image(pair[1]);
}

static int set_up_all(void **state) {
    (void)state;
    picture_file = image_case_load("jpeg_420_q92.jpg", &n_picture_file);
    the_gate = mmap(NULL, sizeof *the_gate, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return the_gate == MAP_FAILED ? -1 : 0;
}

static int tear_down_all(void **state) {
    (void)state;
    free(picture_file);
    return munmap(the_gate, sizeof *the_gate);
}

static int empty_cache(void **state) {
    (void)state;
    forget_all();
    return 0;
}

#define STORY(f) cmocka_unit_test_teardown(f, empty_cache)

int main(void) {
    const struct CMUnitTest tests[] = {
        STORY(images_are_decoded_side_by_side),
        STORY(an_image_is_encoded_stored_and_answered_while_another_is_decoded),
        STORY(an_image_is_encoded_while_features_are_stored_and_answers_wait_for_their_own),
        STORY(company_changes_no_byte),
        STORY(an_image_on_its_way_is_not_begun_again),
        STORY(a_picture_that_cannot_be_decoded_costs_nobody_elses_answer),
        STORY(what_is_not_what_it_says_is_refused),
        STORY(a_job_is_given_up_while_its_image_is_decoded_and_the_image_is_not_encoded),
        STORY(a_job_that_is_given_up_leaves_its_image_to_another),
        STORY(a_node_that_ends_gives_back_what_is_on_its_way),
        STORY(features_travel_while_the_cache_is_away),
        STORY(what_the_cache_has_travels_with_what_it_does_not_take),
        STORY(who_must_not_trust_the_cache_is_not_served_from_it),
    };
    return cmocka_run_group_tests(tests, set_up_all, tear_down_all);
}
