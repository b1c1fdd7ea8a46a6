/* What tests need around cmocka: deadlines instead of sleeps, free ports instead of fixed ones, temporary
 * folders, and child processes that cannot outlive the test.
 *
 *     char *dir = temp_dir_make();
 *     child c;
 *     const char *argv[] = {PROGRAM_DIR "/mipha-broker", "--listen", endpoint, NULL};
 *     child_start(&c, argv, NULL);
 *     assert_true(child_wait_for_output(&c, "ready", 5000));
 *     assert_int_equal(child_stop(&c, SIGTERM, 5000), 0);
 *     temp_dir_remove(dir);
 *
 * What cannot be set up (no memory, no fork) aborts the test with a message. One thread per object. */
#ifndef TESTS_SUPPORT_SUPPORT_H
#define TESTS_SUPPORT_SUPPORT_H

/* cmocka.h needs these four before it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* cmocka's macro fail() hides the function of base/err.h, so fail_msg is written without it. */
#undef fail
#undef fail_msg
#define fail_msg(...) (print_error(__VA_ARGS__), print_error("\n"), _fail(__FILE__, __LINE__))

#include <stdbool.h>
#include <sys/types.h>

#include "base/buf.h"

/* What a test program returns from main when something it needs is absent; CTest counts it as skipped. */
#define TEST_SKIPPED 77

/* The seed for random inputs: MIPHA_TEST_SEED or a fixed number, printed so that a failure can be run
 * again. */
uint64_t test_seed(void);

/* ---- time ---- */

/* Asks until the answer is true or the time is over; returns the last answer. Between questions it
 * gives the processor away for a millisecond. */
typedef bool condition(void *arg);
bool wait_until(condition *is_true, void *arg, int timeout_ms);

/* ---- places ---- */

char *temp_dir_make(void);        /* under $TMPDIR or /tmp; free with temp_dir_remove; gone at exit in any case */
void temp_dir_remove(char *path); /* and everything in it; NULL is fine */
size_t files_in(const char *dir);  /* hidden ones not counted */

/* "dir/name" in memory the caller frees. */
char *path_join(const char *dir, const char *name);
void file_write(const char *path, const void *data, size_t len_bytes);
/* Whole file into out (appended); false when it cannot be read. */
bool file_read(buf *out, const char *path);

/* A TCP port on 127.0.0.1 that was free a moment ago. Somebody else may take it: whoever starts a server
 * on it tries again with another when that fails (redis_server.h does). */
int free_port(void);

/* ---- processes ---- */

/* A child with its stdout and stderr in two unlinked files, so it never blocks on a full pipe and its
 * output can be read at any time. It is killed when the thread that started it ends. */
typedef struct {
    pid_t pid;         /* 0 when not running */
    int out_fd, err_fd;
    int wait_status;   /* as from waitpid, valid once pid is 0 */
} child;

/* argv[0] is looked up in PATH when it holds no slash; environment: NULL-ended list of "NAME=VALUE" added
 * to ours, or NULL. stdin is /dev/null. */
void child_start(child *c, const char *const argv[], const char *const environment[]);

/* The same for a function of the test: it runs in a fork and its return value is the exit status. */
void child_start_function(child *c, int (*function)(void *arg), void *arg);

/* Exit status, 128 + signal when a signal ended it, or -1 when it still runs after timeout_ms. */
int child_wait(child *c, int timeout_ms);

/* Sends the signal and waits; a child still alive after timeout_ms is killed and -1 returned. Call it (or
 * child_close) for every child. */
int child_stop(child *c, int signo, int timeout_ms);

/* Kills if needed, releases everything. Zeroed and closed children are fine. */
void child_close(child *c);

bool child_is_running(child *c);
void child_stdout(child *c, buf *out); /* everything so far, replaces out; at most out's maximum */
void child_stderr(child *c, buf *out);

/* Until text stands in stdout or stderr. False when it does not in time or the child ends before. */
bool child_wait_for_output(child *c, const char *text, int timeout_ms);

/* Starts, waits and closes in one step; output may be NULL. Returns as child_wait. */
int child_run(const char *const argv[], buf *out, buf *errors, int timeout_ms);

/* A program's whole run with everything it wrote; the two texts end in a zero and are never NULL. */
typedef struct {
    int exit_code; /* as child_wait */
    buf out, errors;
} ended_run;

ended_run ended_run_of(const char *const argv[], int timeout_ms);
const char *ended_run_out(const ended_run *r);
const char *ended_run_errors(const ended_run *r);
void ended_run_free(ended_run *r);

/* Whether a program can be found in PATH. */
bool program_exists(const char *name);

#endif
