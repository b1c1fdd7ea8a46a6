/* The generator: SplitMix64 as published, and its form without a walk. */
#include "base/rng.h"

#include <math.h>

#include "tests/support/support.h"

/* The first values for seed 1234567 of the public-domain reference by Sebastiano Vigna (splitmix64.c). */
static void a_seed_gives_the_published_sequence(void **state) {
    (void)state;
    rng r = rng_make(1234567);
    assert_true(rng_next(&r) == UINT64_C(6457827717110365317));
    assert_true(rng_next(&r) == UINT64_C(3203168211198807973));
    assert_true(rng_next(&r) == UINT64_C(9817491932198370423));
}

static void units_lie_in_zero_to_one_and_average_a_half(void **state) {
    (void)state;
    rng r = rng_make(test_seed());
    double sum = 0;
    const int n = 100000;
    for (int i = 0; i < n; i++) {
        double u = rng_unit(&r);
        assert_true(u >= 0 && u < 1);
        sum += u;
    }
    /* The deviation of the mean is 1 / sqrt(12 n) = 0.0009; six of them. */
    assert_true(fabs(sum / n - 0.5) < 0.0055);
}

static void every_value_below_n_comes_and_none_other(void **state) {
    (void)state;
    rng r = rng_make(test_seed());
    int counts[7] = {0};
    for (int i = 0; i < 7000; i++) {
        uint64_t v = rng_below(&r, 7);
        assert_true(v < 7);
        counts[v]++;
    }
    for (int i = 0; i < 7; i++) assert_in_range(counts[i], 800, 1200);
    assert_int_equal(rng_below(&r, 1), 0);
}

static void a_place_in_a_stream_has_one_value_and_neighbours_differ(void **state) {
    (void)state;
    uint64_t seen[1000];
    int n = 0;
    for (uint64_t seed = 0; seed < 10; seed++)
        for (uint64_t stream = 0; stream < 10; stream++)
            for (uint64_t position = 0; position < 10; position++) {
                uint64_t v = rng_at(seed, stream, position);
                assert_true(v == rng_at(seed, stream, position));
                for (int i = 0; i < n; i++) assert_true(seen[i] != v);
                seen[n++] = v;
            }
}

static void the_system_gives_different_values(void **state) {
    (void)state;
    assert_true(rng_system() != rng_system());
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_seed_gives_the_published_sequence),
        cmocka_unit_test(units_lie_in_zero_to_one_and_average_a_half),
        cmocka_unit_test(every_value_below_n_comes_and_none_other),
        cmocka_unit_test(a_place_in_a_stream_has_one_value_and_neighbours_differ),
        cmocka_unit_test(the_system_gives_different_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
