/* Runs a node's engine in a child process and starts it again when it dies, remembering what it was
 * working on.
 *
 *     static int child_main(supervisor_child *c, void *arg) { ... }     // exit status
 *     return supervisor_run(child_main, arg);                           // in main, before any thread
 *
 * Before the engine sees a piece of work the child leaves a breadcrumb, and takes it away afterwards:
 *
 *     int slot = supervisor_breadcrumb_set(c, item_id, attempt);
 *     supervisor_breadcrumb_clear(c, slot);
 *
 * When a child dies by a signal, its breadcrumbs become reports, which the next child finds by
 * supervisor_n_reports and must have acknowledged before it takes work. A child that ends by itself ends
 * the supervisor with the same exit status. SIGTERM and SIGINT are passed on; the child dies with the
 * supervisor, however that dies.
 *
 * Breadcrumbs lie in memory shared by the two processes. Any thread of the child may set and clear
 * them; reports belong to one thread. */
#ifndef WORKER_SUPERVISOR_H
#define WORKER_SUPERVISOR_H

#include <stddef.h>
#include <stdint.h>

#define SUPERVISOR_ITEM_ID_BYTES 16
#define SUPERVISOR_BREADCRUMBS   1024

typedef struct supervisor_child supervisor_child;

typedef struct {
    unsigned char item_id[SUPERVISOR_ITEM_ID_BYTES];
    uint32_t attempt;
    uint64_t incarnation; /* of the child that died, as it named itself */
    int signal;
} supervisor_report;

typedef int supervisor_child_main(supervisor_child *c, void *arg);

/* Returns the exit status for main: the child's own; 128 + signal when it was told to stop and a child
 * did not end by itself; 3 when no child could be started. Restarts wait 0, 0.1, 0.5, 1, 2, then 5 s,
 * and from the beginning again after a child that lived for 30 s. */
int supervisor_run(supervisor_child_main *child_main, void *arg);

/* What the child calls itself on the wire; reports about it will carry it. */
void supervisor_set_incarnation(supervisor_child *c, uint64_t incarnation);

/* -1 when every slot is taken: the work is then not remembered. */
int supervisor_breadcrumb_set(supervisor_child *c, const unsigned char *item_id, uint32_t attempt);
void supervisor_breadcrumb_clear(supervisor_child *c, int slot);

size_t supervisor_n_reports(const supervisor_child *c);
supervisor_report supervisor_get_report(const supervisor_child *c, size_t idx);
/* The broker has noted every report about that item and incarnation. */
void supervisor_report_done(supervisor_child *c, const unsigned char *item_id, uint64_t incarnation);

#endif
