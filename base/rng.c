#include "base/rng.h"

#include <sys/random.h>

#include "base/check.h"

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t rng_next(rng *r) { return mix(r->state += UINT64_C(0x9e3779b97f4a7c15)); }

uint64_t rng_below(rng *r, uint64_t n) {
    CHECK(n > 0, "a range has at least one value");
    return rng_next(r) % n;
}

double rng_unit(rng *r) { return (double)(rng_next(r) >> 11) * 0x1p-53; }

uint64_t rng_at(uint64_t seed, uint64_t stream, uint64_t position) {
    rng r = {mix(seed) ^ mix(stream * UINT64_C(0xd1342543de82ef95) + 1)};
    r.state += position * UINT64_C(0x9e3779b97f4a7c15);
    return rng_next(&r);
}

uint64_t rng_system(void) {
    uint64_t v;
    CHECK(getrandom(&v, sizeof v, 0) == (ssize_t)sizeof v, "the system gives random bytes");
    return v;
}
