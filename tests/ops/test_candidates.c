/* Candidates and totals of rows against a sort and sums in double, on every variant and several threads. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Before cmocka.h, which has a macro of the name of our function fail(). */
#include "base/err.h"

#include <cmocka.h>

#include "base/check.h"
#include "tests/ops/ops_cases.h"

#define K       OPS_CANDIDATES_MAX
#define PADDING 5 /* columns behind the first n, which no result may show */

static case_contexts contexts; /* a device's differ in the dtype of activations only, which these rows are not */
static int n_contexts(void) { return test_device_is_cpu() ? contexts.n : 1; }

/* Rows of n values, in order, each with PADDING larger ones behind; to be freed. */
static ops_candidates *candidates(ops_ctx *ctx, const float *x, int64_t rows, int64_t n, const ops_candidates_wanted *wanted) {
    float *padded = test_alloc((size_t)(rows * (n + PADDING)), sizeof *padded);
    for (int64_t r = 0; r < rows; r++) {
        memcpy(padded + r * (n + PADDING), x + r * n, (size_t)n * sizeof *x);
        for (int64_t c = n; c < n + PADDING; c++) padded[r * (n + PADDING) + c] = c % 2 ? NAN : FLT_MAX;
    }
    guarded gx = guarded_floats(ctx, OPS_DTYPE_F32, 2, (int64_t[]){rows, n + PADDING}, padded);
    guarded go = guarded_open(ctx, OPS_DTYPE_U8, 2, (int64_t[]){rows, sizeof(ops_candidates)});
    assert_int_equal(ops_candidates_rows(ctx, &go.t, &gx.t, n, wanted), STATUS_OK);
    assert_true(guarded_intact(&go));
    ops_candidates *got = guarded_bytes(&go);
    guarded_close(&gx), guarded_close(&go);
    free(padded);
    return got;
}

/* ---- rows ---------------------------------------------------------------------------------- */

enum { RANDOM, EQUAL, TIES, RISING, FALLING, ZEROS, EXTREMES, IN_ONE_GROUP, IN_ONE_GROUP_BY_FOURS, TWO_LEVELS, N_KINDS };

/* IN_ONE_GROUP, TWO_LEVELS: what makes bounds that are taken from every 512th column bad ones, or from every 512th four. */
static void fill_row(float *x, int64_t n, int kind, rng *r) {
    static const float extremes[] = {FLT_MAX, -FLT_MAX, FLT_MIN, -FLT_MIN, 1e-45f, -1e-45f, 0.0f, -0.0f};
    for (int64_t c = 0; c < n; c++) {
        float any = (float)(12.0 * rng_unit(r) - 6.0);
        switch (kind) {
        case EQUAL: x[c] = -2.5f; break;
        case TIES: x[c] = (float)rng_below(r, 7); break;
        case RISING: x[c] = (float)c; break;
        case FALLING: x[c] = -(float)c; break;
        case ZEROS: x[c] = c % 2 ? 0.0f : -0.0f; break;
        case EXTREMES: x[c] = extremes[rng_below(r, 8)]; break;
        case IN_ONE_GROUP: x[c] = c % 512 < 8 ? 20.0f + any : any; break;
        case IN_ONE_GROUP_BY_FOURS: x[c] = c % 2048 < 32 ? 20.0f + any : any; break;
        case TWO_LEVELS: x[c] = c % 512 == 3 ? 1.0f : c % 512 < 62 && c < 512 ? 2.0f : -1.0f; break;
        default: x[c] = any;
        }
    }
}

static const float *sorted_by;

static int likelier(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (sorted_by[x] != sorted_by[y]) return sorted_by[x] > sorted_by[y] ? -1 : 1;
    return x < y ? -1 : 1;
}

static void expect_row(const ops_candidates *got, const float *x, int64_t n, const ops_candidates_wanted *wanted, int kind) {
    int32_t *order = test_alloc((size_t)n, sizeof *order);
    for (int64_t c = 0; c < n; c++) order[c] = (int32_t)c;
    sorted_by = x;
    qsort(order, (size_t)n, sizeof *order, likelier);
    assert_int_equal(got->bad, -1);
    assert_int_equal(got->n, n < wanted->n ? n : wanted->n);
    for (int i = 0; i < got->n; i++) {
        if (got->column[i] != order[i])
            fail_msg("kind %d, %lld values: candidate %d is column %d, want %d", kind, (long long)n, i, got->column[i], order[i]);
        assert_true(same_bits(&got->value[i], &x[order[i]], 1));
    }
    for (int t = 0; t < 2; t++) {
        double sum = 0.0, temperature = (double)wanted->temperature[t];
        for (int64_t c = n; c > 0 && temperature > 0.0; c--) /* from the smallest up */
            sum += exp(((double)x[order[c - 1]] - (double)x[order[0]]) / temperature);
        if (!(fabs(got->total[t] - sum) <= (double)(n + 8) * 0x1p-52 * sum))
            fail_msg("kind %d, %lld values: total %.17g, want %.17g", kind, (long long)n, got->total[t], sum);
    }
    free(order);
}

static void candidates_are_the_sorted_row_and_totals_its_sums_in_double(void **state) {
    (void)state;
    static const int64_t lengths[] = {1, 2, 63, 64, 65, 504, 505, 512, 513, 1000, 5003, 51200};
    static const ops_candidates_wanted ways[] = {{K, {0.7f, 1.0f}}, {20, {0.0f, 1.0f}}, {1, {0.0f, 0.0f}},
                                                 {K, {100.0f, 0.0f}}, {2, {1e-30f, 1e-45f}}, {63, {1e30f, 0.0f}}};
    enum { WAYS = sizeof ways / sizeof ways[0] };
    for (int i = 0; i < n_contexts(); i++)
        for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++)
            for (int kind = 0; kind < N_KINDS; kind++) {
                int64_t n = lengths[l], rows = n > 10000 ? 1 : WAYS;
                rng r = rng_make(70 + l);
                float *x = test_alloc((size_t)(rows * n), sizeof *x);
                for (int64_t row = 0; row < rows; row++) fill_row(x + row * n, n, kind, &r);
                ops_candidates *got = candidates(contexts.ctx[i], x, rows, n, ways);
                for (int64_t row = 0; row < rows; row++) expect_row(&got[row], x + row * n, n, &ways[row], kind);
                free(got);
                got = candidates(contexts.ctx[i], x, rows, n, NULL);
                for (int64_t row = 0; row < rows; row++) expect_row(&got[row], x + row * n, n, &ways[2], kind);
                free(got), free(x);
            }
}

/* Each thing that may be wanted beyond the first candidate, alone in its call: one of them is one row's only wish. */
static void one_wish_of_one_row_is_enough(void **state) {
    (void)state;
    enum { N = 700, ROWS = 3 };
    static const ops_candidates_wanted nothing = {1, {0.0f, 0.0f}};
    static const ops_candidates_wanted wishes[] = {{2, {0.0f, 0.0f}}, {1, {0.5f, 0.0f}}, {1, {0.0f, 1.0f}}, {1, {0.0f, 0.0f}}};
    rng r = rng_make(9);
    float x[ROWS * N];
    for (int row = 0; row < ROWS; row++) fill_row(x + row * N, N, RANDOM, &r);
    for (int i = 0; i < n_contexts(); i++)
        for (size_t w = 0; w < sizeof wishes / sizeof wishes[0]; w++)
            for (int who = 0; who < ROWS; who++) {
                ops_candidates_wanted wanted[ROWS] = {nothing, nothing, nothing};
                wanted[who] = wishes[w];
                ops_candidates *got = candidates(contexts.ctx[i], x, ROWS, N, wanted);
                for (int row = 0; row < ROWS; row++) expect_row(&got[row], x + row * N, N, &wanted[row], RANDOM);
                free(got);
            }
}

static void the_first_value_that_is_no_number_is_told(void **state) {
    (void)state;
    enum { N = 1500 };
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const int32_t at[] = {0, 1, 700, N - 1};
    float x[N];
    for (int i = 0; i < n_contexts(); i++)
        for (int b = 0; b < 3; b++)
            for (int a = 0; a < 4; a++) {
                for (int c = 0; c < N; c++) x[c] = (float)(c % 91);
                for (int c = at[a]; c < N; c += 100) x[c] = bad[(b + c) % 3];
                x[at[a]] = bad[b];
                ops_candidates *got = candidates(contexts.ctx[i], x, 1, N, &(ops_candidates_wanted){K, {1.0f, 1.0f}});
                assert_int_equal(got->bad, at[a]);
                assert_int_equal(got->n, 0);
                assert_true(got->total[0] == 0.0 && got->total[1] == 0.0);
                free(got);
            }
}

/* Bit by bit: among others or alone, whatever is wanted of the others, on any number of threads. */
static void a_row_does_not_depend_on_its_neighbours(void **state) {
    (void)state;
    enum { ROWS = 40, N = 3001 };
    rng r = rng_make(8);
    float *x = test_alloc(ROWS * N, sizeof *x);
    ops_candidates_wanted wanted[ROWS];
    ops_candidates want[ROWS];
    for (int row = 0; row < ROWS; row++) {
        fill_row(x + row * N, N, row % 4 ? RANDOM : row / 4 % N_KINDS, &r);
        wanted[row] = (ops_candidates_wanted){1 + (int32_t)rng_below(&r, K), {(float)rng_unit(&r) + 0.2f, (float)(row % 2)}};
    }
    x[5 * N + 17] = NAN;
    for (int i = 0; i < n_contexts(); i++) {
        for (int row = 0; row < ROWS; row++) {
            ops_candidates *alone = candidates(contexts.ctx[i], x + row * N, 1, N, &wanted[row]);
            if (i == 0) want[row] = *alone;
            assert_memory_equal(alone, &want[row], sizeof *alone);
            free(alone);
        }
        for (int first = 0, n; first < ROWS; first += n) {
            n = first == 0 ? 3 : ROWS - first;
            ops_candidates *together = candidates(contexts.ctx[i], x + first * N, n, N, wanted + first);
            assert_memory_equal(together, want + first, (size_t)n * sizeof *together);
            free(together);
        }
    }
    free(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(candidates_are_the_sorted_row_and_totals_its_sums_in_double),
        cmocka_unit_test(one_wish_of_one_row_is_enough),
        cmocka_unit_test(the_first_value_that_is_no_number_is_told),
        cmocka_unit_test(a_row_does_not_depend_on_its_neighbours),
    };
    case_contexts_open(&contexts);
    int n_failed = cmocka_run_group_tests(tests, NULL, NULL);
    case_contexts_close(&contexts);
    return n_failed;
}
