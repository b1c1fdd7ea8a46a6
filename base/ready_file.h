/* A file that is there while a service is: it says where the service is reached, and goes when it ends.
 *
 *     ready_file r;
 *     st = ready_file_claim(&r, path, &e);               // at start; NULL: no such file is wanted
 *     st = ready_file_write(&r, "tcp://...\n", &e);      // now it appears, whole
 *     ready_file_remove(&r);                             // at the end, written or not
 *
 * One service a file: claiming what another claims is CONFLICT. What was killed leaves its file, which the next one
 * removes. One thread. */
#ifndef BASE_READY_FILE_H
#define BASE_READY_FILE_H

#include "base/err.h"

#define READY_FILE_PATH_BYTES 4096

typedef struct {
    int fd; /* the file, locked, still under its draft's name or not; -1: none */
    char path[READY_FILE_PATH_BYTES], draft[READY_FILE_PATH_BYTES + 8];
} ready_file;

/* Errors: CONFLICT, BAD_ARGUMENT (too long a path), IO. On failure nothing is claimed, and removing is legal. */
MUST_USE status ready_file_claim(ready_file *r, const char *path, err *e);

/* Errors: IO. */
MUST_USE status ready_file_write(ready_file *r, const char *text, err *e);

void ready_file_remove(ready_file *r);

#endif
