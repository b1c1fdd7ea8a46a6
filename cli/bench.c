/* `mipha bench`: how fast the engine is on this machine, next to what the machine can do.
 *
 * Without --model a checkpoint of random weights is written into a temporary folder and removed at the end. Each case
 * runs once to warm up, then --rounds times; the median counts. Cases that come from standard input are run once each
 * and answered at once, so that a script can run them in turns with another engine (bench/compare.py). */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/bench_ceilings.h"
#include "cli/bench_engine.h"
#include "cli/commands.h"
#include "cli/model_place.h"
#include "cli/service.h"
#include "model/random_checkpoint.h"

#define ROUNDS_MAX 1000
#define CASES_MAX  64

static const option_row rows[] = {
    {"model", 'm', OPTION_STRING, "DIR", NULL, 0, 0,
     "checkpoint folder; without it, random weights with the sizes of Mipha-3B"},
    {"tower-layers", 0, OPTION_INT, "N", "27", 2, 512, "of random weights; all but the last are run"},
    {"decoder-layers", 0, OPTION_INT, "N", "32", 1, 512, "of random weights"},
    MODEL_DTYPE_ROW,
    MODEL_KV_DTYPE_ROW,
    {"device", 0, OPTION_STRING, "NAME", "cpu", 0, 0, "where to compute: cpu, cuda or cuda:N"},
    {"threads", 0, OPTION_INT, "N", "0", 0, 256, "compute threads of the CPU; 0: one per core"},
    {"batch", 0, OPTION_INT, "N", NULL, 1, 256, "most images through the tower at once (cpu 4, cuda 32)"},
    {"chunk-rows", 0, OPTION_INT, "N", NULL, 1, 65536, "rows of prompts in one step (cpu 1024, cuda 6400)"},
    {"max-questions", 0, OPTION_INT, "N", NULL, 1, 4096, "answers generated at once (cpu 16, cuda 128)"},
    FAST_ROW,
    {"kv-bytes", 0, OPTION_BYTES, "BYTES", NULL, 1 << 20, 1e13, "memory for keys and values (cpu 5G, cuda 40G)"},
    {"rounds", 0, OPTION_INT, "N", "3", 1, ROUNDS_MAX, "timed runs of each case; the median counts"},
    {"json", 0, OPTION_FLAG, NULL, NULL, 0, 0, "one JSON object a line instead of a table"},
    {"log-level", 0, OPTION_STRING, "LEVEL", "error", 0, 0, "what to log on stderr: off, error, warn, info or debug"},
    {0}};

const option_table bench_table = {
    .program = "mipha bench",
    .positional = "[CASE...]",
    .purpose = "measure the engine on this machine, next to what the machine can do",
    .example = "  # cases: encode N, prefill N TOKENS, decode N CONTEXT, shared N CONTEXT (ten on a picture),\n"
               "  # caption N, answer N, questions N, cached N, resident N\n"
               "  mipha bench\n"
               "  mipha bench --device cuda \"encode 32\" \"prefill 8 789\" \"decode 64 800\"\n"
               "  mipha bench --model Mipha-3B --json \"answer 8\"\n"
               "  echo \"decode 1 800\" | mipha bench -\n",
    .rows = rows,
    .positional_max = CASES_MAX};

static const char *const CPU_CASES[] = {"encode 1", "encode 4", "prefill 1 789", "decode 1 800", "decode 8 800", "shared 8 800",
                                        "caption 1", "answer 2", "questions 1", "cached 2", "resident 4", NULL};
static const char *const CUDA_CASES[] = {"encode 1", "encode 8", "encode 32", "prefill 1 789", "prefill 8 789",
                                         "decode 1 800", "decode 8 800", "decode 64 800", "shared 64 800", "caption 128",
                                         "answer 128", "questions 32", "cached 128", "resident 64", NULL};

typedef struct {
    bench_engine *engine;
    bench_ceilings top;
    int rounds;
    bool is_json;
    char dir[MODEL_PLACE_BYTES]; /* of random weights; empty: not ours */
} bench;

/* ---- printing ------------------------------------------------------------------------------------ */

static void print_heading(const bench *b) {
    const model_config *c = model_get_config(bench_engine_model(b->engine));
    bench_memory m = bench_engine_memory(b->engine);
    const double gb = 1e9;
    if (b->is_json) {
        (void)printf("{\"device\":\"%s\",\"tower_layers\":%d,\"decoder_layers\":%d,\"flops_per_s\":%.4g,\"bytes_per_s\":%.4g,"
                     "\"tower_bytes\":%zu,\"weight_bytes\":%zu,\"activation_bytes\":%zu,\"kv_bytes\":%zu}\n",
                     bench_engine_device(b->engine), c->tower.n_layers_run, c->decoder.n_layers, b->top.flops, b->top.bytes,
                     m.tower, m.weights, m.activations, m.kv);
        return;
    }
    (void)printf("%s; %s with %d layers, %s with %d\n", bench_engine_device(b->engine), c->tower.family->title,
                 c->tower.n_layers_run, c->decoder.family->title, c->decoder.n_layers);
    (void)printf("ceilings  %.2f TFLOP/s in a product of squares, %.1f GB/s read and written in a sum\n", b->top.flops / 1e12,
                 b->top.bytes / gb);
    (void)printf("memory    %.2f GB tower, %.2f GB decoder, %.2f GB activations, %.2f GB keys and values\n\n",
                 (double)m.tower / gb, (double)m.weights / gb, (double)m.activations / gb, (double)m.kv / gb);
    (void)printf("%-18s %12s %22s %10s %9s %9s %9s\n", "case", "ms", "rate", "TFLOP", "of peak", "GB", "of bytes");
}

static void print_result(const bench *b, const bench_case *c, double ms) {
    const model *m = bench_engine_model(b->engine);
    bench_sizes each = bench_sizes_of(m, bench_engine_kv_element_bytes(b->engine));
    bench_work w = bench_case_work(c, model_get_config(m), &each);
    double s = ms / 1e3, rate = bench_case_units(c) / s;
    if (b->is_json) {
        (void)printf("{\"case\":\"%s\",\"ms\":%.4f,\"rate\":%.4f,\"unit\":\"%s\",\"flops\":%.6g,\"bytes\":%.6g,"
                     "\"of_flops\":%.4f,\"of_bytes\":%.4f}\n",
                     c->text, ms, rate, bench_case_unit(c), w.flops, w.bytes, w.flops / s / b->top.flops,
                     w.bytes / s / b->top.bytes);
    } else {
        (void)printf("%-18s %12.2f %12.2f %-9s %10.3f %8.0f%%", c->text, ms, rate, bench_case_unit(c), w.flops / 1e12,
                     100 * w.flops / s / b->top.flops);
        if (w.bytes > 0) (void)printf(" %9.3f %8.0f%%", w.bytes / 1e9, 100 * w.bytes / s / b->top.bytes);
        (void)putchar('\n');
    }
    (void)fflush(stdout);
}

/* ---- running ------------------------------------------------------------------------------------- */

static int compare_times(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static status run_case(bench *b, const char *text, err *e) {
    bench_case c;
    double times[ROUNDS_MAX];
    status st = bench_case_parse(&c, text, e);
    for (int i = -1; i < b->rounds && st == STATUS_OK; i++) st = bench_engine_run(b->engine, &c, &times[i < 0 ? 0 : i], e);
    if (st != STATUS_OK) return st;
    qsort(times, (size_t)b->rounds, sizeof *times, compare_times);
    print_result(b, &c, times[b->rounds / 2]);
    return STATUS_OK;
}

static status run_from_stdin(bench *b, err *e) {
    status st = STATUS_OK;
    for (char line[128]; st == STATUS_OK && fgets(line, sizeof line, stdin);) {
        bench_case c;
        double ms;
        line[strcspn(line, "\n")] = '\0';
        st = bench_case_parse(&c, line, e);
        if (st == STATUS_OK) st = bench_engine_run(b->engine, &c, &ms, e);
        if (st == STATUS_OK) print_result(b, &c, ms);
    }
    return st;
}

static status run_cases(bench *b, const options *o, err *e) {
    if (o->n_positional == 1 && strcmp(o->positional[0], "-") == 0) return run_from_stdin(b, e);
    bool is_cpu = strncmp(options_string(o, "device"), "cpu", 3) == 0;
    const char *const *all = o->n_positional ? (const char *const *)o->positional : is_cpu ? CPU_CASES : CUDA_CASES;
    status st = STATUS_OK;
    for (int i = 0; st == STATUS_OK && (o->n_positional ? i < o->n_positional : all[i] != NULL); i++)
        st = run_case(b, all[i], e);
    return st;
}

/* Before minutes go into opening the engine. */
static status check_cases(const options *o, err *e) {
    bench_case c;
    if (o->n_positional == 1 && strcmp(o->positional[0], "-") == 0) return STATUS_OK;
    for (int i = 0; i < o->n_positional; i++) TRY(bench_case_parse(&c, o->positional[i], e));
    return STATUS_OK;
}

/* ---- opening ------------------------------------------------------------------------------------- */

static int64_t choose(const options *o, const char *name, int64_t cpu, int64_t cuda) {
    if (options_is_set(o, name)) return options_int(o, name);
    return strncmp(options_string(o, "device"), "cpu", 3) == 0 ? cpu : cuda;
}

static status write_random(bench *b, const options *o, err *e) {
    const char *temp = getenv("TMPDIR");
    (void)snprintf(b->dir, sizeof b->dir, "%.4000s/mipha-bench-XXXXXX", temp && *temp ? temp : "/tmp");
    if (!mkdtemp(b->dir)) {
        b->dir[0] = '\0';
        return fail_errno(e, STATUS_IO, "making a temporary folder");
    }
    (void)fprintf(stderr, "writing random weights into %s\n", b->dir);
    random_checkpoint random = {.out_dir = b->dir,
                                .dtype = "bf16",
                                .tower_layers = (int)options_int(o, "tower-layers"),
                                .decoder_layers = (int)options_int(o, "decoder-layers")};
    return random_checkpoint_write(&random, e);
}

static void remove_random(const bench *b) {
    static const char *const FILES[] = {"config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
                                        "model.safetensors"};
    for (size_t i = 0; b->dir[0] && i < sizeof FILES / sizeof *FILES; i++) {
        char path[MODEL_PLACE_BYTES + 32];
        (void)snprintf(path, sizeof path, "%s/%s", b->dir, FILES[i]);
        (void)unlink(path);
    }
    if (b->dir[0]) (void)rmdir(b->dir);
}

static status open_engine(bench *b, const options *o, err *e) {
    const char *dir = options_string(o, "model");
    status st = dir ? STATUS_OK : write_random(b, o, e);
    uint64_t kv_bytes = options_is_set(o, "kv-bytes") ? options_bytes(o, "kv-bytes")
                                                      : (uint64_t)choose(o, "kv-bytes", INT64_C(5) << 30, INT64_C(40) << 30);
    bench_settings s = {
        .model = {.dir = dir ? dir : b->dir, .dtype = options_string(o, "dtype"), .kv_dtype = options_string(o, "kv-dtype"),
                  .parts = MODEL_PART_ALL},
        .device = options_string(o, "device"),
        .n_threads = (int)options_int(o, "threads"),
        .is_fast = options_flag(o, "fast"),
        .kv_bytes = kv_bytes,
        .batch = (int)choose(o, "batch", 4, 32),
        .chunk_rows = (int)choose(o, "chunk-rows", 1024, 6400),
        .max_questions = (int)choose(o, "max-questions", 16, 128)};
    int64_t start_us = clock_now_us();
    if (st == STATUS_OK) st = bench_engine_open(&b->engine, &s, e);
    if (st != STATUS_OK) return st;
    double ready_ms = (double)(clock_now_us() - start_us) / 1e3;
    if (b->is_json) (void)printf("{\"ready_ms\":%.1f}\n", ready_ms);
    else (void)printf("ready in %.0f ms\n", ready_ms);
    return bench_ceilings_measure(&b->top, bench_engine_context(b->engine), model_tower_dtype(bench_engine_model(b->engine)), e);
}

status bench_run(const options *o, int *exit_code, err *e) {
    bench b = {.rounds = (int)options_int(o, "rounds"), .is_json = options_flag(o, "json")};
    status st = log_level_from_options(o, e);
    if (st == STATUS_OK) st = check_cases(o, e);
    if (st == STATUS_OK) st = open_engine(&b, o, e);
    if (st != STATUS_OK) *exit_code = exit_code_not_started(st);
    if (st == STATUS_OK) {
        print_heading(&b);
        (void)fflush(stdout); /* who asks case by case waits for it */
        st = run_cases(&b, o, e);
    }
    bench_engine_close(&b.engine);
    remove_random(&b);
    return st;
}
