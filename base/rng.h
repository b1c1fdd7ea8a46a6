/* A seedable generator (SplitMix64), its state passed in and never global.
 *
 *     rng r = rng_make(seed);
 *     uint64_t v = rng_next(&r);
 *     double u = rng_unit(&r);          // in [0, 1)
 *
 * rng_at gives the value a stream has at a place without walking there: sampling uses it so that a
 * random number is a function of (seed, item, position) only. Source: Steele, Lea, Flood 2014. */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stdint.h>

typedef struct {
    uint64_t state;
} rng;

static inline rng rng_make(uint64_t seed) { return (rng){seed}; }
uint64_t rng_next(rng *r);
uint64_t rng_below(rng *r, uint64_t n); /* 0 .. n-1, n > 0; unbiased enough for tests and jitter */
double rng_unit(rng *r);
uint64_t rng_at(uint64_t seed, uint64_t stream, uint64_t position);

/* From the system: for incarnations and ids, never for anything a test must repeat. */
uint64_t rng_system(void);

#endif
