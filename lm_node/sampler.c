/* Candidates leave a binary heap one at a time, likeliest first. Building it costs one pass, and the
 * usual draw pops only a few of tens of thousands, so nothing is ever sorted as a whole. */
#include "lm_node/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/rng.h"

#define TEMPERATURE_MAX 100.0f

struct sampler {
    int n_max;
    int32_t *heap;  /* [n_max] ids not popped yet, the likeliest at 0 */
    int n_heap;
    int32_t *order; /* [n_max] ids as they were popped */
    double *weight; /* [n_max] exp((logit - largest) / temperature) of order[i] */
};

status sampler_open(sampler **out, int n_ids, err *e) {
    *out = NULL;
    CHECK(n_ids > 0, "a row of logits has values");
    sampler *s = calloc(1, sizeof *s);
    if (s) {
        s->n_max = n_ids;
        s->heap = calloc((size_t)n_ids, sizeof *s->heap);
        s->order = calloc((size_t)n_ids, sizeof *s->order);
        s->weight = calloc((size_t)n_ids, sizeof *s->weight);
    }
    if (s && s->heap && s->order && s->weight) {
        *out = s;
        return STATUS_OK;
    }
    sampler_close(&s);
    return fail(e, STATUS_NO_MEMORY, "sampler: no memory for %d candidates", n_ids);
}

void sampler_close(sampler **out) {
    sampler *s = *out;
    if (!s) return;
    free(s->heap);
    free(s->order);
    free(s->weight);
    free(s);
    *out = NULL;
}

status sampler_params_check(const sampler_params *p, err *e) {
    if (!(p->temperature >= 0.0f && p->temperature <= TEMPERATURE_MAX))
        return fail(e, STATUS_BAD_ARGUMENT, "temperature %g, need 0 to %g", (double)p->temperature,
                    (double)TEMPERATURE_MAX);
    if (p->top_k < 0) return fail(e, STATUS_BAD_ARGUMENT, "top_k %d, need 0 or more", p->top_k);
    if (!(p->top_p >= 0.0f && p->top_p <= 1.0f))
        return fail(e, STATUS_BAD_ARGUMENT, "top_p %g, need 0 to 1", (double)p->top_p);
    if (!(p->min_p >= 0.0f && p->min_p <= 1.0f))
        return fail(e, STATUS_BAD_ARGUMENT, "min_p %g, need 0 to 1", (double)p->min_p);
    if (p->n_logprobs < 0 || p->n_logprobs > SAMPLER_LOGPROBS_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "logprobs %d, need 0 to %d", p->n_logprobs,
                    SAMPLER_LOGPROBS_MAX);
    return STATUS_OK;
}

/* ---- the heap ------------------------------------------------------------------------------ */

static bool comes_first(const float *logits, int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sift_down(sampler *s, const float *logits, int at) {
    int32_t id = s->heap[at];
    for (;;) {
        int next = 2 * at + 1;
        if (next >= s->n_heap) break;
        if (next + 1 < s->n_heap && comes_first(logits, s->heap[next + 1], s->heap[next])) next++;
        if (!comes_first(logits, s->heap[next], id)) break;
        s->heap[at] = s->heap[next];
        at = next;
    }
    s->heap[at] = id;
}

static void heap_fill(sampler *s, const float *logits, int n) {
    for (int i = 0; i < n; i++) s->heap[i] = i;
    s->n_heap = n;
    for (int i = n / 2 - 1; i >= 0; i--) sift_down(s, logits, i);
}

static int32_t heap_pop(sampler *s, const float *logits) {
    int32_t id = s->heap[0];
    s->heap[0] = s->heap[--s->n_heap];
    if (s->n_heap > 0) sift_down(s, logits, 0);
    return id;
}

/* ---- choosing ------------------------------------------------------------------------------ */

/* Sum over all ids, in order, of exp((logit - largest) / temperature). */
static double total_weight(const float *logits, int n, double largest, double temperature) {
    double sum = 0.0;
    for (int i = 0; i < n; i++) sum += exp(((double)logits[i] - largest) / temperature);
    return sum;
}

static int32_t draw(sampler *s, const float *logits, int n, double largest,
                    const sampler_params *p, uint64_t position) {
    double temperature = (double)p->temperature;
    int n_kept_max = p->top_k > 0 && p->top_k < n ? p->top_k : n;
    bool cuts_p = p->top_p > 0.0f && p->top_p < 1.0f;
    bool is_open = !cuts_p && p->min_p <= 0.0f && n_kept_max == n;
    double u = (double)(rng_at(p->seed, p->stream, position) >> 11) * 0x1p-53;
    /* Without thinning the total is known beforehand and popping may stop at the drawn token. */
    double total = is_open ? total_weight(logits, n, largest, temperature) : 0.0;
    double all = 0.0;
    heap_fill(s, logits, n);
    if (cuts_p && n_kept_max < n) {
        /* The share is one of the top_k, whose total must be known first. */
        for (int i = 0; i < n_kept_max; i++) {
            s->order[i] = heap_pop(s, logits);
            s->weight[i] = exp(((double)logits[s->order[i]] - largest) / temperature);
            all += s->weight[i];
        }
    } else if (cuts_p) {
        all = total_weight(logits, n, largest, temperature);
    }
    double kept = 0.0;
    int n_kept = 0;
    while (n_kept < n_kept_max) {
        if (!(cuts_p && n_kept_max < n)) {
            s->order[n_kept] = heap_pop(s, logits);
            s->weight[n_kept] = exp(((double)logits[s->order[n_kept]] - largest) / temperature);
        }
        if (n_kept > 0 && s->weight[n_kept] < (double)p->min_p) break; /* the first one's weight is 1 */
        kept += s->weight[n_kept++];
        if (cuts_p && kept >= (double)p->top_p * all) break;
        if (is_open && kept > u * total) return s->order[n_kept - 1];
    }
    double walked = 0.0;
    for (int i = 0; i < n_kept; i++) {
        walked += s->weight[i];
        if (walked > u * kept) return s->order[i];
    }
    return s->order[n_kept - 1]; /* u so close to 1 that rounding passed the end */
}

bool sampler_needs_logits(const sampler_params *p) {
    return p->temperature > 0.0f || p->wants_logprob || p->n_logprobs > 0;
}

status sampler_pick(sampler *s, sampled_token *token, const float *logits, int n,
                    const sampler_params *p, uint64_t position, err *e) {
    CHECK(n > 0 && n <= s->n_max, "a row is no longer than at open");
    int32_t best = 0;
    for (int i = 0; i < n; i++) {
        if (!isfinite(logits[i]))
            return fail(e, STATUS_INTERNAL, "logit %d of token %llu is not a finite number", i,
                        (unsigned long long)position);
        if (logits[i] > logits[best]) best = i;
    }
    double largest = (double)logits[best];
    *token = (sampled_token){.id = best};
    if (p->temperature > 0.0f) token->id = draw(s, logits, n, largest, p, position);
    if (!p->wants_logprob && p->n_logprobs == 0) return STATUS_OK;
    double log_total = log(total_weight(logits, n, largest, 1.0));
    token->logprob = (float)((double)logits[token->id] - largest - log_total);
    if (p->n_logprobs == 0) return STATUS_OK;
    heap_fill(s, logits, n);
    for (; token->n_top < p->n_logprobs && token->n_top < n; token->n_top++) {
        int32_t id = heap_pop(s, logits);
        token->top[token->n_top] = (sampled_candidate){
            .id = id, .logprob = (float)((double)logits[id] - largest - log_total)};
    }
    return STATUS_OK;
}
