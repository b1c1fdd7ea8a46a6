/* A simulator that finds nothing must first show that it can find something: each seeded mistake in
 * the rules is caught within SCHEDULES_MAX schedules, and no mistake is found where there is none. */
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/broker/sim.h"

#define SCHEDULES_MAX 5000

/* What a child says: each mutant runs in one, since a CHECK may stop it. */
typedef struct {
    uint64_t seed;
    sim_verdict verdict;
} report;

static void hunt(report *r, int mutant) {
    sim *s = sim_open();
    uint64_t n = mutant == 0 ? 500 : SCHEDULES_MAX;
    for (r->seed = 1; s; r->seed++) {
        r->verdict = sim_run(s, r->seed, mutant, NULL);
        if (!r->verdict.is_fine || r->seed == n) break;
    }
    sim_close(s);
}

int main(void) {
    report *r = mmap(NULL, sizeof *r, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (r == MAP_FAILED) return 3;
    int missed = 0;
    for (int mutant = 0; mutant <= MACHINE_MUTANTS; mutant++) {
        *r = (report){.verdict = {.is_fine = true}};
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            hunt(r, mutant);
            _exit(0);
        }
        int how = 0;
        if (child < 0 || waitpid(child, &how, 0) != child) return 3;
        bool was_stopped = how != 0; /* by a CHECK, or by a sanitizer's finding */
        bool is_caught = was_stopped || !r->verdict.is_fine;
        bool as_it_should = is_caught == (mutant != 0);
        missed += !as_it_should;
        printf("%s mutant %2d seed %4llu  %s: %s\n", as_it_should ? "ok  " : "FAIL", mutant,
               (unsigned long long)r->seed, machine_mutant_name(mutant),
               was_stopped ? "it was stopped" : is_caught ? r->verdict.text : "nothing found");
    }
    return missed ? 1 : 0;
}
