/* Which token comes out of a row of logits, by what the device finds in it. Sets of candidates are compared with a plain
 * sort, shares of draws with the probabilities computed in double. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "lm_node/sampler.h"
#include "tests/support/support.h"

/* The device this program tests on: its tests are built once for each there is. */
#ifndef TEST_DEVICE
#define TEST_DEVICE "cpu"
#endif
static bool is_cpu(void) { return strcmp(TEST_DEVICE, "cpu") == 0; }

#define N     50
#define N_MAX 2000

static ops_ctx *ctx;
static ops_block block;
static ops_tensor device_row, device_found; /* in block, N_MAX logits and what is found in them */
static sampler *s;

static int n_fetched;

static status fetch(void *user, const float **logits, err *e) {
    (void)e;
    *logits = user;
    n_fetched++;
    return STATUS_OK;
}

static ops_candidates look(const float *logits, int n, sampler_params p) {
    ops_candidates found;
    ops_candidates_wanted wanted = sampler_wants(&p, n);
    ops_tensor row = tensor_first(&device_row, 1, n);
    assert_int_equal(ops_upload(ctx, &row, logits), STATUS_OK);
    assert_int_equal(ops_candidates_rows(ctx, &device_found, &row, n, &wanted), STATUS_OK);
    assert_int_equal(ops_download(ctx, &found, &device_found), STATUS_OK);
    assert_int_equal(ops_sync(ctx), STATUS_OK);
    return found;
}

static status pick_from(const ops_candidates *found, sampled_token *t, const float *logits, int n, sampler_params p,
                        uint64_t position, err *e) {
    float *whole = (float *)(uintptr_t)logits;
    return sampler_pick(s, t, &(sampler_row){found, n, fetch, whole}, &p, position, e);
}

static sampled_token pick(const float *logits, int n, sampler_params p, uint64_t position) {
    ops_candidates found = look(logits, n, p);
    sampled_token t;
    err e;
    if (pick_from(&found, &t, logits, n, p, position, &e) != STATUS_OK) fail_msg("%s", e.text);
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
        ops_candidates found = look(logits, N, cases[c]);
        for (int i = 0; i < DRAWS; i++) {
            sampler_params p = cases[c];
            sampled_token t;
            err e;
            p.seed = 99;
            p.stream = c;
            assert_int_equal(pick_from(&found, &t, logits, N, p, (uint64_t)i, &e), STATUS_OK);
            seen[t.id]++;
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

/* The rule as it stands in sampler.h, over the whole row. */
static int32_t walk_whole_row(const float *logits, int n, const sampler_params *p, uint64_t position) {
    static int32_t order[N_MAX];
    static double weight[N_MAX];
    double all = 0.0, kept = 0.0, walked = 0.0, u = (double)(rng_at(p->seed, p->stream, position) >> 11) * 0x1p-53;
    for (int i = 0; i < n; i++) order[i] = i;
    sorted_by = logits;
    qsort(order, (size_t)n, sizeof *order, likelier);
    int n_kept = p->top_k > 0 && p->top_k < n ? p->top_k : n;
    for (int i = 0; i < n_kept; i++) {
        weight[i] = exp(((double)logits[order[i]] - (double)logits[order[0]]) / (double)p->temperature);
        all += weight[i];
    }
    bool cuts_p = p->top_p > 0.0f && p->top_p < 1.0f;
    for (int i = 0; i < n_kept; i++) {
        if (i > 0 && weight[i] < (double)p->min_p) n_kept = i;
        else if (cuts_p && (walked += weight[i]) >= (double)p->top_p * all) n_kept = i + 1;
    }
    for (int i = 0; i < n_kept; i++) kept += weight[i];
    walked = 0.0;
    for (int i = 0; i < n_kept; i++)
        if ((walked += weight[i]) > u * kept) return order[i];
    return order[n_kept - 1];
}

/* Flat and steep rows, with and without ties, short and long; all ways of thinning. */
static sampler_params fill_case(float *logits, int *n, rng *r) {
    static const int lengths[] = {1, 40, OPS_CANDIDATES_MAX, OPS_CANDIDATES_MAX + 1, 300, N_MAX};
    static const float temperatures[] = {0.01f, 0.7f, 1.0f, 3.0f, 100.0f};
    *n = lengths[rng_below(r, 6)];
    double spread = rng_below(r, 2) ? 1.0 : 25.0, grid = rng_below(r, 3) ? 0.0 : 0.5;
    for (int i = 0; i < *n; i++) {
        double x = spread * (rng_unit(r) + rng_unit(r) + rng_unit(r) - 1.5);
        logits[i] = (float)(grid > 0.0 ? grid * round(x / grid) : x); /* of a grid: ties, and both zeros */
    }
    sampler_params p = {.temperature = temperatures[rng_below(r, 5)], .seed = rng_below(r, 1000)};
    if (rng_below(r, 2)) p.top_k = 1 + (int)rng_below(r, rng_below(r, 2) ? 100 : 2 * N_MAX);
    if (rng_below(r, 2)) p.top_p = rng_below(r, 2) ? (float)rng_unit(r) : 0.999f;
    if (rng_below(r, 3) == 0) p.min_p = (float)(rng_below(r, 2) ? rng_unit(r) : 0.01 * rng_unit(r));
    return p;
}

static void where_the_candidates_at_hand_end_changes_no_token(void **state) {
    (void)state;
    enum { DRAWS = 10 };
    const int n_rows = is_cpu() ? 4000 : 600;
    static float logits[N_MAX];
    rng r = rng_make(12);
    int n_behind = 0, n_at_hand = 0;
    for (int row = 0; row < n_rows; row++) {
        int n;
        sampler_params p = fill_case(logits, &n, &r);
        ops_candidates found = look(logits, n, p);
        for (uint64_t position = 0; position < DRAWS; position++) {
            sampled_token t;
            err e;
            n_fetched = 0;
            assert_int_equal(pick_from(&found, &t, logits, n, p, position, &e), STATUS_OK);
            int32_t want = walk_whole_row(logits, n, &p, position);
            if (t.id != want)
                fail_msg("row %d, draw %d: %d, want %d (n %d, temperature %g, top_k %d, top_p %g, min_p %g)", row,
                         (int)position, t.id, want, n, (double)p.temperature, p.top_k, (double)p.top_p, (double)p.min_p);
            assert_true(n_fetched <= 1);
            if (n <= OPS_CANDIDATES_MAX || (p.top_k > 0 && p.top_k <= OPS_CANDIDATES_MAX)) assert_int_equal(n_fetched, 0);
            n_behind += n_fetched;
            n_at_hand += n_fetched == 0;
        }
    }
    print_message("%d draws from the candidates at hand, %d went behind them\n", n_at_hand, n_behind);
    assert_true(n_behind > n_rows && n_at_hand > n_rows);
}

static status fetch_fails(void *user, const float **logits, err *e) {
    (void)user;
    (void)logits;
    return fail(e, STATUS_DEVICE, "gone");
}

static void a_row_that_cannot_be_fetched_is_an_error_of_the_token(void **state) {
    (void)state;
    float logits[N_MAX] = {0};
    sampler_params p = {.temperature = 1.0f, .top_k = OPS_CANDIDATES_MAX + 1};
    ops_candidates found = look(logits, N_MAX, p);
    sampled_token t;
    err e;
    assert_int_equal(sampler_pick(s, &t, &(sampler_row){&found, N_MAX, fetch_fails, NULL}, &p, 0, &e), STATUS_DEVICE);
    assert_non_null(strstr(e.text, "gone"));
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
        ops_candidates found = look(logits, 4, p);
        assert_int_equal(pick_from(&found, &t, logits, 4, p, 5, &e), STATUS_INTERNAL);
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
    const ops_settings settings = {.device = TEST_DEVICE, .n_threads = 1};
    const int64_t row_dims[2] = {1, N_MAX}, found_dims[2] = {1, sizeof(ops_candidates)};
    size_t bytes = ops_cut_bytes(OPS_DTYPE_F32, N_MAX) + ops_cut_bytes(OPS_DTYPE_U8, sizeof(ops_candidates));
    if (ops_open(&ctx, &settings, &e) != STATUS_OK || ops_block_open(ctx, &block, bytes, &e) != STATUS_OK) return -1;
    device_row = ops_block_cut(&block, OPS_DTYPE_F32, 2, row_dims);
    device_found = ops_block_cut(&block, OPS_DTYPE_U8, 2, found_dims);
    return sampler_open(&s, N_MAX, &e) == STATUS_OK ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    sampler_close(&s);
    ops_block_close(&block);
    ops_close(&ctx);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_largest_and_the_lowest_id_on_ties),
        cmocka_unit_test(log_probabilities_are_those_of_the_whole_row_likeliest_first),
        cmocka_unit_test(draws_follow_the_thinned_distribution),
        cmocka_unit_test(where_the_candidates_at_hand_end_changes_no_token),
        cmocka_unit_test(a_row_that_cannot_be_fetched_is_an_error_of_the_token),
        cmocka_unit_test(a_draw_depends_on_seed_stream_and_position_only),
        cmocka_unit_test(a_logit_that_is_no_finite_number_is_an_error_with_its_place),
        cmocka_unit_test(extreme_logits_and_temperatures_give_a_token),
        cmocka_unit_test(parameters_out_of_range_are_refused_by_name),
    };
    if (ops_device_count(TEST_DEVICE) == 0) return TEST_SKIPPED;
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
