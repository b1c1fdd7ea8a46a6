/* The engine alone, measured: tower and continuous batching on one device, without broker, cache or files.
 *
 *     st = bench_engine_open(&b, &settings, &e);
 *     st = bench_engine_run(b, &c, &ms, &e);         // one run
 *     bench_engine_close(&b);
 *
 * Pictures and features are random numbers, never zeros. One thread. */
#ifndef CLI_BENCH_ENGINE_H
#define CLI_BENCH_ENGINE_H

#include "cli/bench_case.h"

typedef struct bench_engine bench_engine;

typedef struct {
    model_settings model;
    const char *device;
    int n_threads;
    bool is_fast; /* ops_settings */
    uint64_t kv_bytes;
    int batch;         /* pictures through the tower at once, at most */
    int chunk_rows;    /* of prompts in a step */
    int max_questions; /* running at once */
} bench_settings;

/* Errors: those of model, device and memory. */
MUST_USE status bench_engine_open(bench_engine **b, const bench_settings *s, err *e);
void bench_engine_close(bench_engine **b);

const char *bench_engine_device(const bench_engine *b);
const model *bench_engine_model(const bench_engine *b);
ops_ctx *bench_engine_context(bench_engine *b);

/* What the timed part of one run took. Errors: BAD_ARGUMENT (the case does not fit the settings), and the engine's. */
MUST_USE status bench_engine_run(bench_engine *b, const bench_case *c, double *ms, err *e);

size_t bench_engine_kv_element_bytes(const bench_engine *b);

/* Device memory by purpose, in bytes. */
typedef struct {
    size_t tower, weights, activations, kv;
} bench_memory;
bench_memory bench_engine_memory(const bench_engine *b);

#endif
