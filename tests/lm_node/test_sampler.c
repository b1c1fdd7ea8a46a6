/* Which token comes out of a row of logits. Sets of candidates are compared with a plain sort, shares of
 * draws with the probabilities computed in double. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "lm_node/sampler.h"
#include "tests/support/support.h"

#define N 50

static sampler *s;

static sampled_token pick(const float *logits, int n, sampler_params p, uint64_t position) {
    sampled_token t;
    err e;
    if (sampler_pick(s, &t, logits, n, &p, position, &e) != STATUS_OK) fail_msg("%s", e.text);
    return t;
}

static void greedy_takes_the_largest_and_the_lowest_id_on_ties(void **state) {
    (void)state;
    const float logits[] = {-1.0f, 3.0f, 2.0f, 3.0f};
    assert_int_equal(pick(logits, 4, (sampler_params){0}, 0).id, 1);
    const float negative[] = {-3.0f, -2.0f, -2.0f};
    assert_int_equal(pick(negative, 3, (sampler_params){.seed = 5}, 9).id, 1);
}

static void random_logits(float *logits, uint64_t seed) {
    rng r = rng_make(seed);
    for (int i = 0; i < N; i++) logits[i] = (float)(6.0 * rng_unit(&r) - 3.0);
    logits[7] = logits[21]; /* a tie */
}

static const float *sorted_by;

static int likelier(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (sorted_by[x] != sorted_by[y]) return sorted_by[x] > sorted_by[y] ? -1 : 1;
    return x < y ? -1 : 1;
}

static void log_probabilities_are_those_of_the_whole_row_likeliest_first(void **state) {
    (void)state;
    float logits[N];
    int32_t order[N];
    random_logits(logits, 1);
    double sum = 0.0;
    for (int i = 0; i < N; i++) {
        order[i] = i;
        sum += exp((double)logits[i]);
    }
    sorted_by = logits;
    qsort(order, N, sizeof *order, likelier);
    /* Sampling does not change what is reported. */
    sampled_token t = pick(logits, N, (sampler_params){.n_logprobs = 20, .temperature = 2.0f, .top_k = 3}, 4);
    assert_int_equal(t.n_top, 20);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(t.top[i].id, order[i]);
        double want = (double)logits[order[i]] - log(sum);
        assert_true(fabs((double)t.top[i].logprob - want) <= 1e-6 * fabs(want));
    }
    double want = (double)logits[t.id] - log(sum);
    assert_true(fabs((double)t.logprob - want) <= 1e-6 * fabs(want));
    const float two[] = {0.0f, 0.0f};
    assert_int_equal(pick(two, 2, (sampler_params){.n_logprobs = 20}, 0).n_top, 2);
}

/* The candidates top_k, top_p and min_p leave, in that order, as Hugging Face applies them; their
 * probabilities at the end. */
static void expected(double *share, const float *logits, sampler_params p) {
    int32_t order[N];
    double weight[N], sum = 0.0, walked = 0.0, kept = 0.0;
    for (int i = 0; i < N; i++) order[i] = i;
    sorted_by = logits;
    qsort(order, N, sizeof *order, likelier);
    int n = p.top_k > 0 && p.top_k < N ? p.top_k : N;
    for (int i = 0; i < n; i++) {
        weight[i] = exp((double)logits[order[i]] / (double)p.temperature);
        sum += weight[i];
    }
    if (p.top_p > 0.0f && p.top_p < 1.0f)
        for (int i = 0; i < n; i++) {
            walked += weight[i];
            if (walked < (double)p.top_p * sum) continue;
            n = i + 1;
        }
    memset(share, 0, N * sizeof *share);
    for (int i = 0; i < n; i++)
        if (weight[i] >= (double)p.min_p * weight[0]) kept += share[order[i]] = weight[i];
    for (int i = 0; i < N; i++) share[i] /= kept;
}

static void draws_follow_the_thinned_distribution(void **state) {
    (void)state;
    enum { DRAWS = 40000 };
    const sampler_params cases[] = {
        {.temperature = 1.0f},
        {.temperature = 0.5f, .top_k = 5},
        {.temperature = 1.3f, .top_p = 0.8f},
        {.temperature = 2.0f, .min_p = 0.3f},
        {.temperature = 1.5f, .top_k = 12, .top_p = 0.7f, .min_p = 0.1f},
        {.temperature = 1.0f, .top_p = 0.0001f},
        {.temperature = 1.0f, .top_k = 1000, .top_p = 1.0f},
    };
    float logits[N];
    random_logits(logits, 2);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        double share[N];
        int seen[N] = {0};
        expected(share, logits, cases[c]);
        for (int i = 0; i < DRAWS; i++) {
            sampler_params p = cases[c];
            p.seed = 99;
            p.stream = c;
            seen[pick(logits, N, p, (uint64_t)i).id]++;
        }
        for (int i = 0; i < N; i++) {
            if (share[i] <= 0.0) assert_int_equal(seen[i], 0);
            /* Six standard deviations of a binomial count, and one for rounding to whole numbers. */
            double off = fabs((double)seen[i] - DRAWS * share[i]);
            if (off > 6.0 * sqrt(DRAWS * share[i] * (1.0 - share[i])) + 1.0)
                fail_msg("case %zu, id %d: %d of %d draws, expected a share of %g", c, i, seen[i], DRAWS,
                         share[i]);
        }
    }
}

static void a_draw_depends_on_seed_stream_and_position_only(void **state) {
    (void)state;
    float logits[N];
    random_logits(logits, 3);
    sampler_params p = {.temperature = 3.0f, .seed = 1, .stream = 2};
    int first[64], n_same_seed = 0, n_same_stream = 0;
    for (int i = 0; i < 64; i++) first[i] = pick(logits, N, p, (uint64_t)i).id;
    for (int i = 63; i >= 0; i--) assert_int_equal(pick(logits, N, p, (uint64_t)i).id, first[i]);
    for (int i = 0; i < 64; i++) {
        sampler_params seed = p, stream = p;
        seed.seed = 2;
        stream.stream = 3;
        n_same_seed += pick(logits, N, seed, (uint64_t)i).id == first[i];
        n_same_stream += pick(logits, N, stream, (uint64_t)i).id == first[i];
    }
    assert_true(n_same_seed < 32 && n_same_stream < 32);
}

static void a_logit_that_is_no_finite_number_is_an_error_with_its_place(void **state) {
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        float logits[4] = {1.0f, 2.0f, 3.0f, 4.0f};
        sampled_token t;
        err e;
        sampler_params p = {.temperature = 1.0f};
        logits[2] = bad[i];
        assert_int_equal(sampler_pick(s, &t, logits, 4, &p, 5, &e), STATUS_INTERNAL);
        assert_non_null(strstr(e.text, "logit 2 of token 5"));
    }
}

static void extreme_logits_and_temperatures_give_a_token(void **state) {
    (void)state;
    const float logits[] = {3.0e38f, -3.0e38f, 2.0e38f};
    assert_int_equal(pick(logits, 3, (sampler_params){.temperature = 1e-30f}, 0).id, 0);
    assert_int_equal(pick(logits, 3, (sampler_params){.temperature = 100.0f, .top_p = 0.5f}, 0).id, 0);
    const float one[] = {-5.0f};
    sampled_token t = pick(one, 1, (sampler_params){.temperature = 1.0f, .n_logprobs = 3}, 0);
    assert_int_equal(t.id, 0);
    assert_int_equal(t.n_top, 1);
}

static void parameters_out_of_range_are_refused_by_name(void **state) {
    (void)state;
    const struct {
        sampler_params p;
        const char *name;
    } cases[] = {
        {{.temperature = -0.1f}, "temperature"}, {{.temperature = NAN}, "temperature"},
        {{.temperature = 101.0f}, "temperature"}, {{.top_k = -1}, "top_k"},
        {{.top_p = 1.1f}, "top_p"},              {{.top_p = NAN}, "top_p"},
        {{.min_p = -1.0f}, "min_p"},             {{.n_logprobs = 21}, "logprobs"},
    };
    err e;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(sampler_params_check(&cases[i].p, &e), STATUS_BAD_ARGUMENT);
        assert_non_null(strstr(e.text, cases[i].name));
    }
    assert_int_equal(sampler_params_check(&(sampler_params){.temperature = 1.0f, .top_p = 1.0f}, &e),
                     STATUS_OK);
}

static int set_up(void **state) {
    (void)state;
    err e;
    return sampler_open(&s, N, &e) == STATUS_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    sampler_close(&s);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_largest_and_the_lowest_id_on_ties),
        cmocka_unit_test(log_probabilities_are_those_of_the_whole_row_likeliest_first),
        cmocka_unit_test(draws_follow_the_thinned_distribution),
        cmocka_unit_test(a_draw_depends_on_seed_stream_and_position_only),
        cmocka_unit_test(a_logit_that_is_no_finite_number_is_an_error_with_its_place),
        cmocka_unit_test(extreme_logits_and_temperatures_give_a_token),
        cmocka_unit_test(parameters_out_of_range_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
