/* The claim is a lock on the file itself, which exists as PATH.new until it is written and is then renamed: a lock
 * belongs to the file, not to its name, and the kernel takes it back from whoever is killed. So there are two names to look
 * at: the draft of somebody who is starting, and the file of somebody who has started. A file that lost its last name
 * between our opening and our locking it was somebody's who has just ended; then we look again. */
#include "base/ready_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/same_file.h"

#define TRIES 100

static status lock(int fd, const char *path, err *e) {
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) return STATUS_OK;
    return errno == EWOULDBLOCK ? fail(e, STATUS_CONFLICT, "ready file %.300s is another's, who still runs", path)
                                : fail_errno(e, STATUS_IO, "locking ready file %.300s", path);
}

/* Whether path names the open file. */
static bool is_named(int fd, const char *path) {
    struct stat info;
    return fstat(fd, &info) == 0 && is_same_file(&info, path);
}

static status claim_draft(ready_file *r, err *e) {
    for (int i = 0; i < TRIES; i++) {
        r->fd = open(r->draft, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (r->fd < 0) return fail_errno(e, STATUS_IO, "ready file %.300s", r->draft);
        status st = lock(r->fd, r->path, e);
        if (st == STATUS_OK && is_named(r->fd, r->draft)) return STATUS_OK;
        (void)close(r->fd);
        r->fd = -1;
        if (st != STATUS_OK) return st;
    }
    return fail(e, STATUS_CONFLICT, "ready file %.300s: others come and go", r->path);
}

/* The file of somebody who has started before, and runs or was killed. */
static status remove_old(const ready_file *r, err *e) {
    int fd = open(r->path, O_RDWR | O_CLOEXEC | O_NONBLOCK); /* to write: NFS locks no other */
    if (fd < 0) return errno == ENOENT ? STATUS_OK : fail_errno(e, STATUS_IO, "ready file %.300s", r->path);
    status st = lock(fd, r->path, e);
    if (st == STATUS_OK && unlink(r->path) != 0 && errno != ENOENT) st = fail_errno(e, STATUS_IO, "old ready file %.300s", r->path);
    (void)close(fd);
    return st;
}

status ready_file_claim(ready_file *r, const char *path, err *e) {
    *r = (ready_file){.fd = -1};
    if (!path) return STATUS_OK;
    if (strlen(path) >= sizeof r->path)
        return fail(e, STATUS_BAD_ARGUMENT, "ready file: a path of %zu bytes, limit %zu", strlen(path), sizeof r->path - 1);
    (void)snprintf(r->path, sizeof r->path, "%s", path);
    (void)snprintf(r->draft, sizeof r->draft, "%s.new", path);
    status st = claim_draft(r, e);
    if (st == STATUS_OK) st = remove_old(r, e);
    if (st != STATUS_OK) ready_file_remove(r);
    return st;
}

status ready_file_write(ready_file *r, const char *text, err *e) {
    if (r->fd < 0) return STATUS_OK;
    size_t n = strlen(text);
    bool ok = ftruncate(r->fd, 0) == 0 && pwrite(r->fd, text, n, 0) == (ssize_t)n && rename(r->draft, r->path) == 0;
    return ok ? STATUS_OK : fail_errno(e, STATUS_IO, "ready file %.300s", r->path);
}

void ready_file_remove(ready_file *r) {
    if (r->fd < 0) return;
    if (is_named(r->fd, r->draft)) (void)unlink(r->draft);
    if (is_named(r->fd, r->path)) (void)unlink(r->path);
    (void)close(r->fd);
    r->fd = -1;
}
