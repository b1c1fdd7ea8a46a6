/* Features of Mipha-3B through the cache and through plain hiredis, in turns.
 *
 *     cache_bench redis://127.0.0.1:6379 [ROUNDS]
 *
 *     cache op=get backend=redis ours_us=900.0 hiredis_us=850.0 ratio=0.94 ours_mbs=1866.2
 *
 * One blob is 729 x 1152 values of two bytes, 1.68 MB. Ours adds the key, a header and a checksum over
 * all values, written at put and verified at get; hiredis sends the same bytes with SET and GET and looks
 * at nothing. backend=memory is the cache inside the process. A number is the median over the rounds, of
 * KEYS different keys each; ratio is hiredis' time divided by ours, above 1 we are faster. */
#include <hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/rng.h"
#include "bench/median.h"
#include "cache/cache.h"

#define KEYS       8
#define ROUNDS_MAX 999
#define N_TOKENS   729
#define WIDTH      1152
#define N_BYTES    ((size_t)N_TOKENS * WIDTH * 2)

static cache_key make_key(int i) {
    unsigned char tower[HASH_SHA256_BYTES] = {0}, image[HASH_SHA256_BYTES] = {(unsigned char)i, 1};
    cache_key key;
    cache_key_make(&key, tower, (cache_preprocess){1, false}, image);
    return key;
}

static void must_answer(redisContext *redis, redisReply *reply, int type) {
    if (!reply || reply->type != type) {
        (void)fprintf(stderr, "cache_bench: redis: %s\n", reply ? reply->str : redis->errstr);
        exit(1);
    }
    freeReplyObject(reply);
}

static double time_ours(cache *c, const blob *b, buf *storage, bool put) {
    int64_t start = clock_now_us();
    for (int i = 0; i < KEYS; i++) {
        cache_key key = make_key(i);
        blob got;
        status st = put ? cache_put(c, &key, b) : cache_get(c, &got, storage, &key);
        CHECK(st == STATUS_OK && (put || got.values.len_bytes == N_BYTES), "the cache answers");
    }
    return (double)(clock_now_us() - start) / KEYS;
}

static double time_plain(redisContext *redis, const blob *b, bool put) {
    int64_t start = clock_now_us();
    for (int i = 0; i < KEYS; i++) {
        if (put)
            must_answer(redis, redisCommand(redis, "SET plain:%d %b", i, b->values.data, b->values.len_bytes),
                        REDIS_REPLY_STATUS);
        else
            must_answer(redis, redisCommand(redis, "GET plain:%d", i), REDIS_REPLY_STRING);
    }
    return (double)(clock_now_us() - start) / KEYS;
}

/* redis may be NULL: then there is nothing to compare with. */
static void run(const char *backend, cache *c, redisContext *redis, const blob *b, int n_rounds) {
    static double ours[2][ROUNDS_MAX], plain[2][ROUNDS_MAX];
    buf storage;
    buf_init(&storage, BLOB_BYTES_MAX);
    for (int round = -1; round < n_rounds; round++) /* the first one warms up */
        for (int put = 1; put >= 0; put--) {
            double a = time_ours(c, b, &storage, put), p = redis ? time_plain(redis, b, put) : 0;
            if (round < 0) continue;
            ours[put][round] = a;
            plain[put][round] = p;
        }
    for (int put = 1; put >= 0; put--) {
        double a = median(ours[put], n_rounds), p = median(plain[put], n_rounds);
        printf("cache op=%s backend=%s ours_us=%.1f", put ? "put" : "get", backend, a);
        if (redis) printf(" hiredis_us=%.1f ratio=%.2f", p, p / a);
        printf(" ours_mbs=%.1f\n", (double)N_BYTES / a);
    }
    buf_deinit(&storage);
}

int main(int argc, char **argv) {
    int n_rounds = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 50;
    if (argc < 2 || strncmp(argv[1], "redis://127.0.0.1:", 18) != 0 || n_rounds < 1 || n_rounds > ROUNDS_MAX) {
        (void)fprintf(stderr, "usage: cache_bench redis://127.0.0.1:PORT [ROUNDS]\n");
        return 2;
    }
    unsigned char *values = malloc(N_BYTES);
    CHECK(values, "memory for the benchmark");
    rng r = rng_make(1);
    for (size_t i = 0; i < N_BYTES; i++) values[i] = (unsigned char)rng_below(&r, 256);
    const blob b = {.dtype = BLOB_F16, .n_tokens = N_TOKENS, .width = WIDTH, .values = {values, N_BYTES}};
    cache_settings settings = cache_settings_default();
    settings.command_timeout_ms = 5000;
    redisContext *redis = redisConnect("127.0.0.1", (int)strtol(argv[1] + 18, NULL, 10));
    cache *c = NULL;
    err e = {0};
    if (!redis || redis->err || cache_open(&c, argv[1], &settings, &e) != STATUS_OK) {
        (void)fprintf(stderr, "cache_bench: %s\n", redis && redis->err ? redis->errstr : e.text);
        return 1;
    }
    run("redis", c, redis, &b, n_rounds);
    cache_close(&c);
    redisFree(redis);
    CHECK(cache_open(&c, "memory:", &settings, &e) == STATUS_OK, "memory for the benchmark");
    run("memory", c, NULL, &b, n_rounds);
    cache_close(&c);
    free(values);
    return 0;
}
