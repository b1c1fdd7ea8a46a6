/* A draw walks over candidates, likeliest first, and most often ends among those at hand. Behind them, candidates leave a
 * binary heap of the rest of the row one at a time: building it costs one pass, and nothing is ever sorted as a whole. */
#include "lm_node/sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/rng.h"

#define TEMPERATURE_MAX 100.0f

struct sampler {
    int n_max;
    int32_t *heap; /* [n_max] ids behind the known ones, the likeliest at 0, once the row was fetched */
    int n_heap;
    const float *logits; /* the fetched row */
    int n_known;         /* candidates of the walk so far */
    int32_t *order;      /* [n_max] their ids */
    float *value;        /* [n_max] and logits */
    double *weight;      /* [n_max] exp((logit - largest) / temperature) of order[i] */
};

status sampler_open(sampler **out, int n_ids, err *e) {
    *out = NULL;
    CHECK(n_ids > 0, "a row of logits has values");
    sampler *s = calloc(1, sizeof *s);
    if (s) {
        s->n_max = n_ids;
        s->heap = calloc((size_t)n_ids, sizeof *s->heap);
        s->order = calloc((size_t)n_ids, sizeof *s->order);
        s->value = calloc((size_t)n_ids, sizeof *s->value);
        s->weight = calloc((size_t)n_ids, sizeof *s->weight);
    }
    if (s && s->heap && s->order && s->value && s->weight) {
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
    free(s->value);
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

/* ---- candidates ---------------------------------------------------------------------------- */

static bool comes_first(const float *logits, int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sift_down(sampler *s, int at) {
    int32_t id = s->heap[at];
    for (;;) {
        int next = 2 * at + 1;
        if (next >= s->n_heap) break;
        if (next + 1 < s->n_heap && comes_first(s->logits, s->heap[next + 1], s->heap[next])) next++;
        if (!comes_first(s->logits, s->heap[next], id)) break;
        s->heap[at] = s->heap[next];
        at = next;
    }
    s->heap[at] = id;
}

/* Of what comes behind the last known candidate. */
static status fill_heap(sampler *s, const sampler_row *row, err *e) {
    TRY(row->fetch(row->user, &s->logits, e));
    int32_t last = s->order[s->n_known - 1];
    s->n_heap = 0;
    for (int32_t i = 0; i < row->n; i++)
        if (comes_first(s->logits, last, i)) s->heap[s->n_heap++] = i;
    CHECK(s->n_heap == row->n - s->n_known, "candidates are those of the row");
    for (int i = s->n_heap / 2 - 1; i >= 0; i--) sift_down(s, i);
    return STATUS_OK;
}

static int32_t pop_heap(sampler *s) {
    int32_t id = s->heap[0];
    s->heap[0] = s->heap[--s->n_heap];
    if (s->n_heap > 0) sift_down(s, 0);
    return id;
}

/* Makes one more candidate known; there is one. */
static status look_further(sampler *s, const sampler_row *row, double temperature, err *e) {
    const ops_candidates *at_hand = row->candidates;
    int i = s->n_known;
    if (i < at_hand->n) {
        s->order[i] = at_hand->column[i];
        s->value[i] = at_hand->value[i];
    } else {
        if (i == at_hand->n) TRY(fill_heap(s, row, e));
        s->order[i] = pop_heap(s);
        s->value[i] = s->logits[s->order[i]];
    }
    s->weight[i] = exp(((double)s->value[i] - (double)at_hand->value[0]) / temperature);
    s->n_known++;
    return STATUS_OK;
}

/* ---- choosing ------------------------------------------------------------------------------ */

/* How parameters thin a row of n. */
typedef struct {
    int n_kept_max;
    bool cuts_k, cuts_p;
    bool is_open; /* nothing is cut: the walk may stop at the drawn token, because the total is known beforehand */
} thinning;

static thinning thinning_of(const sampler_params *p, int n) {
    thinning t = {.cuts_k = p->top_k > 0 && p->top_k < n, .cuts_p = p->top_p > 0.0f && p->top_p < 1.0f};
    t.n_kept_max = t.cuts_k ? p->top_k : n;
    t.is_open = !t.cuts_k && !t.cuts_p && p->min_p <= 0.0f;
    return t;
}

static bool needs_total(const thinning *t) { return t->is_open || (t->cuts_p && !t->cuts_k); }

static bool wants_logprobs(const sampler_params *p) { return p->wants_logprob || p->n_logprobs > 0; }

ops_candidates_wanted sampler_wants(const sampler_params *p, int n) {
    BUILD_CHECK(SAMPLER_LOGPROBS_MAX <= OPS_CANDIDATES_MAX, "reported tokens are candidates at hand");
    ops_candidates_wanted w = {.n = p->n_logprobs > 0 ? p->n_logprobs : 1};
    if (wants_logprobs(p)) w.temperature[1] = 1.0f;
    if (p->temperature <= 0.0f) return w;
    thinning t = thinning_of(p, n);
    w.n = OPS_CANDIDATES_MAX;
    if (needs_total(&t)) w.temperature[0] = p->temperature;
    return w;
}

/* at: which of the known candidates was drawn. */
static status draw(sampler *s, int *at, const sampler_row *row, const sampler_params *p, uint64_t position, err *e) {
    const thinning t = thinning_of(p, row->n);
    const double temperature = (double)p->temperature;
    double u = (double)(rng_at(p->seed, p->stream, position) >> 11) * 0x1p-53;
    double all = row->candidates->total[0], kept = 0.0;
    if (t.cuts_p && t.cuts_k) { /* the share is one of the top_k, whose total must be known first */
        all = 0.0;
        for (int i = 0; i < t.n_kept_max; i++) {
            TRY(look_further(s, row, temperature, e));
            all += s->weight[i];
        }
    }
    CHECK(all >= 1.0 || !needs_total(&t), "the total was wanted");
    int n_kept = 0;
    while (n_kept < t.n_kept_max) {
        if (n_kept == s->n_known) TRY(look_further(s, row, temperature, e));
        if (n_kept > 0 && s->weight[n_kept] < (double)p->min_p) break; /* the first one's weight is 1 */
        kept += s->weight[n_kept++];
        if (t.cuts_p && kept >= (double)p->top_p * all) break;
        if (t.is_open && kept > u * all) {
            *at = n_kept - 1;
            return STATUS_OK;
        }
    }
    double walked = 0.0;
    for (*at = 0; *at < n_kept - 1; ++*at) { /* the last one also where u is so close to 1 that rounding passes the end */
        walked += s->weight[*at];
        if (walked > u * kept) break;
    }
    return STATUS_OK;
}

status sampler_pick(sampler *s, sampled_token *token, const sampler_row *row, const sampler_params *p, uint64_t position,
                    err *e) {
    const ops_candidates *at_hand = row->candidates;
    CHECK(row->n > 0 && row->n <= s->n_max, "a row is no longer than at open");
    if (at_hand->bad >= 0)
        return fail(e, STATUS_INTERNAL, "logit %d of token %llu is not a finite number", (int)at_hand->bad,
                    (unsigned long long)position);
    CHECK(at_hand->n >= 1 && at_hand->n <= row->n, "a row has candidates");
    double largest = (double)at_hand->value[0], logit = largest;
    *token = (sampled_token){.id = at_hand->column[0]};
    if (p->temperature > 0.0f) {
        int at = 0;
        s->n_known = 0;
        TRY(draw(s, &at, row, p, position, e));
        token->id = s->order[at];
        logit = (double)s->value[at];
    }
    if (!wants_logprobs(p)) return STATUS_OK;
    CHECK(at_hand->total[1] >= 1.0, "the total was wanted");
    double log_total = log(at_hand->total[1]);
    token->logprob = (float)(logit - largest - log_total);
    for (; token->n_top < p->n_logprobs && token->n_top < at_hand->n; token->n_top++)
        token->top[token->n_top] = (sampled_candidate){
            .id = at_hand->column[token->n_top],
            .logprob = (float)((double)at_hand->value[token->n_top] - largest - log_total)};
    return STATUS_OK;
}
