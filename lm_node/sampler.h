/* One row of logits to one token, from what ops_candidates_rows found in it.
 *
 *     ops_candidates_wanted wanted = sampler_wants(&params, n);
 *     sampled_token t;
 *     st = sampler_pick(s, &t, &(sampler_row){&candidates, n, fetch, user}, &params, position, &e);
 *
 * Greedy unless a temperature is given: the largest logit, the lowest id on ties. With a temperature the
 * candidates are taken in the order (logit falling, id rising) and thinned as Hugging Face does: top_k,
 * then top_p, then min_p. The random number is rng_at(seed, stream, position) and nothing else, so the
 * token depends on this row, these parameters and this position only. All sums are in double, in the
 * order of candidates, or of the totals of ops_candidates_rows. A draw that goes behind the candidates at hand
 * fetches the whole row and goes on: where they end changes no token. One thread. */
#ifndef LM_NODE_SAMPLER_H
#define LM_NODE_SAMPLER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "ops/ops.h"

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

/* What a token with these parameters needs of its row of n logits. */
ops_candidates_wanted sampler_wants(const sampler_params *params, int n);

/* Brings all logits of the row, good as long as the call that asks. */
typedef status sampler_fetch(void *user, const float **logits, err *e);

typedef struct {
    const ops_candidates *candidates; /* what sampler_wants says, or more */
    int n;                            /* logits that candidates and totals are of */
    sampler_fetch *fetch;             /* called at most once for a token */
    void *user;
} sampler_row;

typedef struct sampler sampler;

/* n_ids: the most logits a row has. Errors: NO_MEMORY. */
MUST_USE status sampler_open(sampler **s, int n_ids, err *e);
void sampler_close(sampler **s);

/* Errors: BAD_ARGUMENT, naming the parameter, its value and its range. */
MUST_USE status sampler_params_check(const sampler_params *params, err *e);

/* params were checked; position: index of the token among the generated ones. Errors: INTERNAL when a
 * logit is not a finite number; those of fetch. */
MUST_USE status sampler_pick(sampler *s, sampled_token *token, const sampler_row *row, const sampler_params *params,
                             uint64_t position, err *e);

#endif
