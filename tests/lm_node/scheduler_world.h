/* What the tests of the scheduler share: a golden case opened as a model, an engine that answers questions about it, and a
 * list of questions of every kind.
 *
 *     engine en = open_engine(usual);
 *     submit(&en, &world.asks[3], records, 3);                    // answers into records[3]
 *     run_to_end(&en);
 *     close_engine(&en);
 *
 * Whatever fails ends the test with a message. */
#ifndef TESTS_LM_NODE_SCHEDULER_WORLD_H
#define TESTS_LM_NODE_SCHEDULER_WORLD_H

#include "base/rng.h"
#include "lm_node/scheduler.h"
#include "tests/lm_node/golden.h"

/* The device a program tests the scheduler on: its tests are built once for each there is. */
#ifndef TEST_DEVICE
#define TEST_DEVICE "cpu"
#endif

#define ASKS       21
#define TOKENS_MAX 64
#define STEPS_MAX  20000

/* What came out of one question. */
typedef struct {
    int n;
    sampled_token tokens[TOKENS_MAX];
    bool is_finished, prefix_cached;
    scheduler_finish reason;
    err why;
    int stop_after; /* the callback asks to stop after so many tokens; 0: never */
    int turn;       /* of its last token, among those of all questions */
} record;

typedef struct {
    int32_t ids[400];
    int n_ids;
    int image; /* of several the first, the others follow it; -1: none */
    int adapter;
    sampler_params sampling;
    int max_new;
} ask;

typedef struct {
    ops_ctx *ctx;
    scheduler *s;
} engine;

typedef struct {
    int n_threads, chunk_rows, max_questions;
    int kv_blocks;
} engine_settings;

/* Of a group of tests. */
typedef struct {
    golden *g;
    model *m;
    float *features; /* [GOLDEN_IMAGES, n_tokens, hidden] */
    size_t image_values;
    int n_turns;     /* tokens of all questions so far */
    ask asks[ASKS];  /* images, prefixes, lengths and ways of sampling in every mixture; the same list every time */
} scheduler_world;
extern scheduler_world world;

/* Set-ups and the tear-down of groups. The case with five heads of 80; */
int world_open(void **state);
int world_open_coded(void **state);    /* the same with keys and values in e4m3; */
int world_open_rounded(void **state);  /* with products in 8 bits, and with them keys and values in halves; */
int world_open_adapters(void **state); /* questions with three adapters and with none, which one changes the projector; */
int world_open_long(void **state);     /* prompts and answers shorter and longer than the 40 positions from which keys are
                                          turned otherwise. */
int world_close(void **state);

extern const engine_settings usual;
engine open_engine(engine_settings wanted);
void close_engine(engine *en);

/* As question idx of records. */
scheduler_question question_of(const ask *a, record *records, int idx);
status try_submit(engine *en, const ask *a, record *records, int idx, err *e);
void submit(engine *en, const ask *a, record *records, int idx);
void run_to_end(engine *en);

void add_words(ask *a, rng *r, int n); /* any n ids */
record *new_records(void);             /* [ASKS], to be freed */
void assert_same(const record *got, const record *want, int i);

#endif
