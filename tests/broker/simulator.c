/* The simulator as a program:
 *
 *     simulator [--from SEED] [--schedules N] [--mutant M]
 *     simulator --seed SEED --trace [--mutant M]       one schedule, told step by step
 *
 * Exit status 1 and the seed of every schedule that broke a promise. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "tests/broker/sim.h"

static uint64_t hash_of_file(FILE *f) {
    uint64_t h = UINT64_C(14695981039346656037);
    rewind(f);
    for (int c; (c = fgetc(f)) != EOF;) h = (h ^ (uint64_t)(unsigned char)c) * UINT64_C(1099511628211);
    return h;
}

/* The same seed twice gives the same trace, byte for byte. */
static bool is_deterministic(sim *s, uint64_t seed) {
    uint64_t hashes[2];
    for (int i = 0; i < 2; i++) {
        FILE *f = tmpfile();
        if (!f) return false;
        sim_run(s, seed, 0, f);
        hashes[i] = hash_of_file(f);
        fclose(f);
        sim_run(s, seed + 1, 0, NULL); /* something else in between */
    }
    return hashes[0] == hashes[1];
}

int main(int argc, char **argv) {
    uint64_t from = 1, n = 100000, failures = 0, steps = 0, faults = 0;
    int64_t virtual_us = 0;
    int mutant = 0;
    bool trace = false, one = false;
    for (int i = 1; i < argc; i++) {
        bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--trace") == 0) trace = true;
        else if (strcmp(argv[i], "--seed") == 0 && has_value)
            one = true, n = 1, from = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--from") == 0 && has_value) from = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--schedules") == 0 && has_value) n = strtoull(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--mutant") == 0 && has_value) mutant = atoi(argv[++i]);
        else {
            fprintf(stderr, "simulator: what is %s?\n", argv[i]);
            return 2;
        }
    }
    log_set_level(LOG_ERROR);
    sim *s = sim_open();
    if (!s) return 3;
    clock_t began = clock();
    for (uint64_t seed = from; seed < from + n && failures < 10; seed++) {
        sim_verdict v = sim_run(s, seed, mutant, trace ? stdout : NULL);
        steps += v.n_steps;
        faults += v.n_faults;
        virtual_us += v.virtual_us;
        if (v.is_fine) continue;
        failures++;
        printf("seed %llu: %s\n", (unsigned long long)seed, v.text);
    }
    double cpu_s = (double)(clock() - began) / CLOCKS_PER_SEC;
    printf("seeds %llu to %llu: %llu failed; %llu steps, %llu faults, %.1f virtual hours, "
           "%.0f schedules/s\n",
           (unsigned long long)from, (unsigned long long)(from + n - 1), (unsigned long long)failures,
           (unsigned long long)steps, (unsigned long long)faults, (double)virtual_us / 3.6e9,
           (double)n / (cpu_s > 0 ? cpu_s : 1));
    if (!one && mutant == 0 && failures == 0)
        for (uint64_t seed = from; seed < from + 20; seed++)
            if (!is_deterministic(s, seed)) {
                printf("seed %llu: two runs differ\n", (unsigned long long)seed);
                failures++;
            }
    sim_close(s);
    return failures ? 1 : 0;
}
