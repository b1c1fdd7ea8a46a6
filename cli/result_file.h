/* The output of `mipha annotate`: result lines on standard output, or in a file that survives whatever
 * happens to the program that writes it.
 *
 *     result_file *f;
 *     st = result_file_open(&f, &settings, p, &e);       // resume: finds out what is done
 *     st = result_file_begin(f, &e);                     // what is to be replaced is thrown away
 *     if (!result_file_is_done(f, idx)) ...              // still to be asked
 *     st = result_file_write(f, lines, n_bytes, &e);     // all lines of one item, one write
 *     st = result_file_sync(f, &e);                      // before results are acknowledged
 *     result_file_close(&f);
 *
 * The file holds nothing but result lines. Beside it, OUT.manifest says what it is the output of, so that
 * a run with other inputs is refused instead of mixed in. An item's lines are written with one call, so a
 * torn item is always the file's tail, and resuming cuts it off. One writer at a time: the file is locked.
 * One thread. */
#ifndef CLI_RESULT_FILE_H
#define CLI_RESULT_FILE_H

#include "cli/plan.h"

typedef struct result_file result_file;

typedef struct {
    const char *path; /* NULL or "-": standard output */
    bool resume;      /* keep what is there and finish it */
    bool retry_failed; /* with resume: all but the items with an error in a line, which are still to be asked */
    bool overwrite;   /* an old file with results in it may be replaced */
    unsigned char digest[HASH_SHA256_BYTES]; /* of plan and settings: what makes the same run */
} result_file_settings;

/* Errors: BAD_ARGUMENT (the file has results already; resume without a file, or with overwrite; another run's file), CONFLICT
 * (somebody else is writing it), BAD_FORMAT (not a file of ours, naming the line), IO, NO_MEMORY. */
MUST_USE status result_file_open(result_file **f, const result_file_settings *settings, const plan *p,
                                 err *e);
void result_file_close(result_file **f);

/* Until this an old file that is to be replaced, or to lose its failed items, is as it was: call it when nothing stands in
 * the way of new results. Errors: IO, NO_MEMORY. */
MUST_USE status result_file_begin(result_file *f, err *e);

bool result_file_is_done(const result_file *f, size_t idx);
size_t result_file_n_done(const result_file *f);   /* items found complete at opening */
size_t result_file_n_failed(const result_file *f); /* of those, items with an error in a line */
const char *result_file_fingerprint(const result_file *f); /* of the model found at opening, or NULL */

/* Errors: IO; what was written of the item is cut off again where the file allows it. */
MUST_USE status result_file_write(result_file *f, const void *lines, size_t n_bytes, err *e);

/* A regular file, which a later run can go on with. */
bool result_file_can_be_resumed(const result_file *f);

/* Writing has failed because the other end of the pipe is closed. */
bool result_file_reader_is_gone(const result_file *f);

/* Waits until everything written is on the disk; nothing to do for standard output. Errors: IO, final: after
 * a failed sync nobody knows what is on the disk. */
MUST_USE status result_file_sync(result_file *f, err *e);

#endif
