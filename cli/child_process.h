/* A program started in the background that cannot outlive us.
 *
 *     child_process p;
 *     st = child_process_start(&p, argv, true, &e);
 *     if (child_process_has_ended(&p)) ...
 *     child_process_stop(&p, 10000);      // SIGTERM, then SIGKILL when it takes longer
 *
 * One thread, the one that started it: the kernel ends the child when that thread ends. */
#ifndef CLI_CHILD_PROCESS_H
#define CLI_CHILD_PROCESS_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"

typedef struct {
    const char *name; /* argv[0]'s last part; borrowed */
    pid_t pid;        /* 0: not running */
    int wait_status;  /* as from waitpid, once it has ended */
} child_process;

/* argv ends with NULL; argv[0] with a slash is that file, else it is looked up in PATH. Its standard input
 * is empty, its standard output goes to our stderr, or nowhere when is_silent. It has a process group of
 * its own, so that Ctrl-C reaches only us. Errors: NOT_FOUND (cannot be executed, with the reason), IO. */
MUST_USE status child_process_start(child_process *p, const char *const argv[], bool is_silent, err *e);

bool child_process_has_ended(child_process *p); /* true for one that was never started */
void child_process_ask_to_stop(const child_process *p);
void child_process_stop(child_process *p, int timeout_ms);

/* "exit status 3", "signal 9" */
#define CHILD_PROCESS_TEXT_BYTES 32
const char *child_process_end_text(char out[CHILD_PROCESS_TEXT_BYTES], const child_process *p);

/* Whether argv[0] could be started. */
bool child_process_exists(const char *program);

#endif
