/* One row of logits to one token.
 *
 *     sampled_token t;
 *     st = sampler_pick(s, &t, logits, n, &params, position, &e);
 *
 * Greedy unless a temperature is given: the largest logit, the lowest id on ties. With a temperature the
 * candidates are taken in the order (logit falling, id rising) and thinned as Hugging Face does: top_k,
 * then top_p, then min_p. The random number is rng_at(seed, stream, position) and nothing else, so the
 * token depends on this row, these parameters and this position only. All sums are in double, in the
 * order of ids or of candidates. One thread. */
#ifndef LM_NODE_SAMPLER_H
#define LM_NODE_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define SAMPLER_LOGPROBS_MAX 20

typedef struct {
    float temperature;  /* 0: greedy; else up to 100 */
    int top_k;          /* 0: off */
    float top_p;        /* 0 or 1: off; else the smallest set whose probability reaches it */
    float min_p;        /* 0: off; else at least this share of the likeliest token's probability */
    bool wants_logprob; /* of the token; n_logprobs ask for it, too */
    int n_logprobs;     /* likeliest tokens to report, 0 .. SAMPLER_LOGPROBS_MAX */
    uint64_t seed;
    uint64_t stream;    /* which item and question: equal questions of different items differ in it */
} sampler_params;

typedef struct {
    int32_t id;
    float logprob; /* natural logarithm of the model's probability, before temperature and thinning */
} sampled_candidate;

typedef struct {
    int32_t id;
    float logprob; /* 0 unless it is wanted */
    int n_top;
    sampled_candidate top[SAMPLER_LOGPROBS_MAX]; /* likeliest first */
} sampled_token;

/* Whether more than the largest logit of a row has to be known. */
bool sampler_needs_logits(const sampler_params *params);

typedef struct sampler sampler;

/* n_ids: the most logits a row has. Errors: NO_MEMORY. */
MUST_USE status sampler_open(sampler **s, int n_ids, err *e);
void sampler_close(sampler **s);

/* Errors: BAD_ARGUMENT, naming the parameter, its value and its range. */
MUST_USE status sampler_params_check(const sampler_params *params, err *e);

/* params were checked; position: index of the token among the generated ones. Errors: INTERNAL when a
 * logit is not a finite number. */
MUST_USE status sampler_pick(sampler *s, sampled_token *token, const float *logits, int n,
                             const sampler_params *params, uint64_t position, err *e);

#endif
