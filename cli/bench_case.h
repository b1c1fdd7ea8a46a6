/* What `mipha bench` can be asked to run, and the least work it is.
 *
 *     bench_case c;
 *     st = bench_case_parse(&c, "decode 64 800", &e);
 *     bench_work w = bench_case_work(&c, config, &(bench_sizes){2, 2, 2, 2});
 *
 * Any thread. */
#ifndef CLI_BENCH_CASE_H
#define CLI_BENCH_CASE_H

#include "model/model.h"

typedef enum {
    BENCH_ENCODE,  /* n pictures through the tower, at once; of several, one such run behind the other where a device can */
    BENCH_PREFILL, /* n prompts of `tokens` rows, each with a picture; until each has its first token */
    BENCH_DECODE,  /* one step of n sequences with a context of `tokens`, `questions` of them on each picture */
    BENCH_JOBS     /* n pictures, `questions` about each, `tokens` new ones an answer */
} bench_kind;

typedef struct {
    char text[48];
    bench_kind kind;
    int n, tokens, questions;
    bool has_features; /* of jobs: the tower has nothing to do */
    bool has_prefix;   /* of jobs: keys and values of the pictures are there */
} bench_case;

#define BENCH_CASES_HELP "encode N, prefill N TOKENS, decode N CONTEXT, shared N CONTEXT, caption N, answer N, questions N, cached N, resident N"

#define BENCH_TEXT_BEFORE 30 /* rows of a prompt in front of the picture, and behind it */
#define BENCH_TEXT_BEHIND 30

/* Errors: BAD_ARGUMENT. */
MUST_USE status bench_case_parse(bench_case *c, const char *text, err *e);

/* Units of the rate: "images/s". */
const char *bench_case_unit(const bench_case *c);
double bench_case_units(const bench_case *c); /* of one run */

/* Bytes of one weight of the tower or the decoder, one value of a feature, and one of keys and values. */
typedef struct {
    double tower, decoder, feature, kv;
} bench_sizes;

/* Of a weight as products of that kind need it: as it is stored, in bf16, as a code with its part of a scale, or as a code. */
double bench_weight_bytes(ops_dtype stored, ops_product product);

/* kv: of keys and values. */
bench_sizes bench_sizes_of(const model *m, size_t kv);

/* The least a run must do: multiply-adds times two; weights read once a step, and keys and values as often as they are
 * looked at, those of a picture once for all sequences on it. bytes is 0 for jobs, which have too many kinds of steps for
 * one number. */
typedef struct {
    double flops, bytes;
} bench_work;

bench_work bench_case_work(const bench_case *c, const model_config *m, const bench_sizes *each);

#endif
