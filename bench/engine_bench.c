/* Runs pieces of the engine on a checkpoint, on request, and says how long each took.
 *
 *     engine_bench DIR THREADS        then, on standard input, one request a line:
 *
 *     encode N        N pictures through the tower
 *     prefill T I     a prompt of T rows, I of them image rows (projected here), logits of the last
 *     decode B C      one token for each of B sequences, the context being C with it; the first one
 *                     fills all keys and values beforehand, untimed: memory never written would all
 *                     be the same zero page, read from the cache of the processor
 *
 * Each is answered with one line, "ms 123.456". bench/compare.py asks, with PyTorch in turns. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "lm_node/kv_cache.h"
#include "lm_node/lm_decoder.h"
#include "vision_node/vision_encoder.h"

#define IMAGES_MAX  4
#define SEQS_MAX    8
#define CONTEXT_MAX 1024
#define PER_SEQ     (CONTEXT_MAX / KV_BLOCK_TOKENS) /* blocks of one sequence */

BUILD_CHECK(CONTEXT_MAX % KV_BLOCK_TOKENS == 0, "contexts are whole blocks");

static model *m;
static ops_ctx *ctx;
static vision_encoder *tower;
static lm_decoder *decoder;

static float *random_floats(size_t n) {
    float *x = malloc(n * sizeof *x);
    CHECK(x, "memory for the benchmark");
    rng r = rng_make(1);
    for (size_t i = 0; i < n; i++) x[i] = (float)(rng_unit(&r) - 0.5);
    return x;
}

static void encode(int n) {
    static float *planes;
    static void *features;
    size_t side = (size_t)model_get_config(m)->preprocess.size;
    if (!planes) planes = random_floats(IMAGES_MAX * 3 * side * side);
    if (!features) features = malloc(IMAGES_MAX * vision_encoder_feature_bytes(tower));
    err e;
    CHECK(features && vision_encoder_run(tower, planes, n, features, &e) == STATUS_OK, "pictures are encoded");
}

/* Sequence s has the blocks s * per_seq and on. */
static void step(int n_seqs, int rows_each, int context, int n_image_rows) {
    static int32_t ids[CONTEXT_MAX], positions[CONTEXT_MAX], slots[CONTEXT_MAX], seqs[CONTEXT_MAX];
    static int32_t image_rows[CONTEXT_MAX], out_rows[SEQS_MAX], tables[SEQS_MAX * PER_SEQ];
    static void *features; /* zeros are as good as any */
    if (!features) features = calloc(CONTEXT_MAX, lm_decoder_feature_row_bytes(decoder));
    CHECK(features, "memory for the benchmark");
    int n_rows = n_seqs * rows_each;
    for (int s = 0; s < n_seqs; s++) {
        for (int k = 0; k < PER_SEQ; k++) tables[s * PER_SEQ + k] = s * PER_SEQ + k;
        for (int r = 0; r < rows_each; r++) {
            int row = s * rows_each + r, position = context - rows_each + r;
            ids[row] = (7 * row + s) % 200;
            positions[row] = position;
            slots[row] = s * PER_SEQ * KV_BLOCK_TOKENS + position;
            seqs[row] = s;
        }
        out_rows[s] = (s + 1) * rows_each - 1;
    }
    for (int i = 0; i < n_image_rows; i++) {
        image_rows[i] = 35 + i; /* behind the system text */
        ids[35 + i] = 0;
    }
    lm_batch batch = {.n_rows = n_rows, .ids = ids, .positions = positions, .slots = slots, .seqs = seqs,
                      .n_image_rows = n_image_rows, .image_rows = image_rows, .features = features,
                      .n_seqs = n_seqs, .n_table_blocks = PER_SEQ, .tables = tables,
                      .n_out = n_seqs, .out_rows = out_rows};
    const float *logits;
    err e;
    CHECK(lm_decoder_step(decoder, &logits, &batch, &e) == STATUS_OK, "a step is computed");
}

/* Keys and values of a prompt, for every sequence. */
static void fill_contexts(void) {
    err e;
    step(1, CONTEXT_MAX, CONTEXT_MAX, 0);
    for (int block = PER_SEQ; block < SEQS_MAX * PER_SEQ; block++)
        CHECK(lm_decoder_copy_block(decoder, block, block % PER_SEQ, &e) == STATUS_OK, "a block is copied");
}

static void open_all(const char *dir, int n_threads) {
    err e;
    ops_settings settings = {.device = "cpu", .n_threads = n_threads};
    lm_decoder_settings sizes = {.max_rows = CONTEXT_MAX, .max_seqs = SEQS_MAX, .max_out = SEQS_MAX,
                                 .max_context = CONTEXT_MAX,
                                 .kv_blocks = SEQS_MAX * PER_SEQ};
    status st = model_open(&m, &(model_settings){.dir = dir, .parts = MODEL_PART_ALL}, &e);
    if (st == STATUS_OK) st = ops_open(&ctx, &settings, &e);
    if (st == STATUS_OK) st = vision_encoder_open(&tower, ctx, m, IMAGES_MAX, &e);
    if (st == STATUS_OK) st = lm_decoder_open(&decoder, ctx, m, &sizes, &e);
    if (st == STATUS_OK) return;
    (void)fprintf(stderr, "engine_bench: %s\n", e.text);
    exit(1);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        (void)fprintf(stderr, "usage: engine_bench DIR THREADS\n");
        return 2;
    }
    log_set_level(LOG_ERROR);
    open_all(argv[1], (int)strtol(argv[2], NULL, 10));
    (void)printf("ready %s\n", ops_device_text(ctx));
    (void)fflush(stdout);
    char what[16];
    bool filled = false;
    int a, b;
    for (char line[64]; fgets(line, sizeof line, stdin);) {
        b = 0;
        if (sscanf(line, "%15s %d %d", what, &a, &b) < 2 || a < 1) return 2;
        if (strcmp(what, "decode") == 0 && !filled) fill_contexts();
        filled = filled || strcmp(what, "decode") == 0;
        int64_t start_us = clock_now_us();
        if (strcmp(what, "encode") == 0 && a <= IMAGES_MAX) encode(a);
        else if (strcmp(what, "prefill") == 0 && a <= CONTEXT_MAX && b >= 0 && b + 35 < a) step(1, a, a, b);
        else if (strcmp(what, "decode") == 0 && a <= SEQS_MAX && b >= 1 && b <= CONTEXT_MAX) step(a, 1, b, 0);
        else return 2;
        (void)printf("ms %.3f\n", (double)(clock_now_us() - start_us) / 1e3);
        (void)fflush(stdout);
    }
    lm_decoder_close(&decoder);
    vision_encoder_close(&tower);
    ops_close(&ctx);
    model_close(&m);
    return 0;
}
