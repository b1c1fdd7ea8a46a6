/* A whole cluster in one thread: clients, nodes and a network that misbehaves, around the broker's own
 * state machine, under a virtual clock and one seeded generator.
 *
 *     sim *s = sim_open();
 *     sim_verdict v = sim_run(s, seed, 0, NULL);      // same seed, same run, byte for byte
 *     if (!v.is_fine) printf("seed %llu: %s\n", seed, v.text);
 *     sim_close(s);
 *
 * Swarm testing: every seed draws its own intensity for each kind of fault, some of them zero. After a
 * random time all faults end, and everything must be finished within SIM_HEAL_US. The checker sees
 * only what clients, nodes and the journal see. */
#ifndef TESTS_BROKER_SIM_H
#define TESTS_BROKER_SIM_H

#include <stdio.h>

#include "broker/item_machine.h"

#define SIM_HEAL_US INT64_C(400000000)

typedef struct sim sim;

typedef struct {
    bool is_fine;
    char text[200];
    uint64_t n_steps, n_faults;
    int64_t virtual_us;
} sim_verdict;

sim *sim_open(void);
void sim_close(sim *s);

/* mutant 0: the rules as they are. trace: one line per step and message, or NULL. */
sim_verdict sim_run(sim *s, uint64_t seed, int mutant, FILE *trace);

#endif
