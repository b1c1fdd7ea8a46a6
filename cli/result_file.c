/* Writing and resuming.
 *
 * Resuming reads the file once, line by line. Lines are grouped by item; an item is done when it has one line
 * for every prompt of its plan, in order. What cannot be read or is not complete is cut off if nothing
 * readable follows it, since only the last write can be torn; anywhere else it means that the file is not
 * what this program wrote, and it is left alone.
 *
 * Items that failed and are asked again may stand anywhere. The file is written anew without them, beside itself, and then
 * takes its own place, so it is whole with them or whole without them whatever happens. */
#include "cli/result_file.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/same_file.h"

#define SIDE_FILE_BYTES_MAX 4096
#define SIDE_TEXT_BYTES     256

typedef struct {
    off_t start, end;
} span;

struct result_file {
    char *path; /* NULL: standard output */
    int fd;
    unsigned char *done; /* one bit an item */
    size_t n_done, n_failed;
    off_t end;           /* after the last whole item */
    bool has_unsynced, reader_is_gone;
    bool starts_anew;    /* not begun: the file is empty, or to be emptied */
    bool retries_failed;
    span *dropped;       /* not begun: lines of items that are asked again, in order */
    size_t n_dropped;
    char fingerprint[80];
    char side[SIDE_TEXT_BYTES]; /* what the file beside it says */
};

/* ---- what is there already ------------------------------------------------------------------- */

/* The item whose lines are being read. */
typedef struct {
    size_t idx;      /* plan_count: none */
    size_t n_lines;
    bool has_failed;
    off_t start;     /* of its first line */
    char fingerprint[80];
} open_item;

typedef struct {
    result_file *f;
    const plan *p;
    open_item item;
    off_t at;        /* start of the line */
    size_t line_no;
    off_t bad_at;    /* -1, or where the first unreadable line starts */
    size_t bad_line_no;
} scan;

static bool bit_of(const unsigned char *bits, size_t i) { return bits[i / 8] >> (i % 8) & 1; }

typedef struct {
    const char *id;
    json_int_t prompt_index;
    bool has_failed;
    const char *fingerprint;
} old_line;

static bool old_line_parse(json_t **object, old_line *line, const char *text, size_t n) {
    json_t *failure = NULL, *model = NULL;
    *line = (old_line){0};
    *object = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    if (!*object || json_unpack(*object, "{s:s, s:I, s:o, s?o}", "id", &line->id, "prompt_index",
                                &line->prompt_index, "error", &failure, "model", &model) != 0)
        return false;
    line->has_failed = !json_is_null(failure);
    line->fingerprint = json_string_value(json_object_get(model, "fingerprint"));
    return true;
}

static status drop_item(result_file *f, off_t start, off_t end, err *e) {
    span *last = f->n_dropped ? &f->dropped[f->n_dropped - 1] : NULL;
    if (last && last->end == start) {
        last->end = end;
        return STATUS_OK;
    }
    span *grown = realloc(f->dropped, (f->n_dropped + 1) * sizeof *grown);
    if (!grown) return fail(e, STATUS_NO_MEMORY, "%.300s: out of memory", f->path);
    f->dropped = grown;
    f->dropped[f->n_dropped++] = (span){start, end};
    return STATUS_OK;
}

static status finish_item(scan *s, off_t end, err *e) {
    result_file *f = s->f;
    open_item item = s->item;
    f->end = end;
    s->item = (open_item){.idx = plan_count(s->p)};
    if (item.has_failed && f->retries_failed) return drop_item(f, item.start, end, e);
    f->done[item.idx / 8] = (unsigned char)(f->done[item.idx / 8] | 1u << (item.idx % 8));
    f->n_done++;
    f->n_failed += item.has_failed;
    if (!f->fingerprint[0]) memcpy(f->fingerprint, item.fingerprint, sizeof f->fingerprint);
    return STATUS_OK;
}

static status take_line(scan *s, const old_line *line, off_t end, err *e) {
    const char *path = s->f->path;
    size_t none = plan_count(s->p), idx = plan_find(s->p, line->id);
    if (idx == none)
        return fail(e, STATUS_BAD_FORMAT, "%.200s line %zu: item \"%.100s\" is not in this run", path,
                    s->line_no, line->id);
    if (bit_of(s->f->done, idx))
        return fail(e, STATUS_BAD_FORMAT, "%.200s line %zu: item \"%.100s\" is there already", path,
                    s->line_no, line->id);
    if (s->item.idx == none) s->item = (open_item){.idx = idx, .start = s->at};
    if (s->item.idx != idx || line->prompt_index != (json_int_t)s->item.n_lines)
        return fail(e, STATUS_BAD_FORMAT, "%.200s line %zu: the lines of item \"%.100s\" are not complete",
                    path, s->line_no, plan_id(s->p, s->item.idx));
    s->item.n_lines++;
    s->item.has_failed |= line->has_failed;
    if (line->fingerprint && !s->item.fingerprint[0])
        (void)snprintf(s->item.fingerprint, sizeof s->item.fingerprint, "%s", line->fingerprint);
    return s->item.n_lines == plan_n_prompts(s->p, idx) ? finish_item(s, end, e) : STATUS_OK;
}

static status scan_line(scan *s, const char *text, size_t n, err *e) {
    json_t *object;
    old_line line;
    bool is_readable = text[n - 1] == '\n' && old_line_parse(&object, &line, text, n);
    if (text[n - 1] != '\n') object = NULL;
    status st = STATUS_OK;
    if (is_readable && s->bad_at >= 0)
        st = fail(e, STATUS_BAD_FORMAT, "%.200s line %zu: not a result line; the file is damaged",
                  s->f->path, s->bad_line_no);
    else if (is_readable)
        st = take_line(s, &line, s->at + (off_t)n, e);
    else if (s->bad_at < 0) {
        s->bad_at = s->at;
        s->bad_line_no = s->line_no;
    }
    json_decref(object);
    s->at += (off_t)n;
    return st;
}

static status scan_file(result_file *f, const plan *p, err *e) {
    int copy = dup(f->fd);
    FILE *in = copy < 0 ? NULL : fdopen(copy, "rb");
    if (!in) {
        if (copy >= 0) (void)close(copy);
        return fail_errno(e, STATUS_IO, "%.300s", f->path);
    }
    scan s = {.f = f, .p = p, .item = {.idx = plan_count(p)}, .bad_at = -1};
    char *text = NULL;
    size_t cap = 0;
    status st = STATUS_OK;
    rewind(in);
    for (ssize_t n; st == STATUS_OK && (n = getline(&text, &cap, in)) > 0;) {
        s.line_no++;
        st = scan_line(&s, text, (size_t)n, e);
    }
    if (st == STATUS_OK && ferror(in)) st = fail_errno(e, STATUS_IO, "%.300s", f->path);
    free(text);
    (void)fclose(in);
    return st;
}

/* ---- the file beside it ---------------------------------------------------------------------- */

static char *side_path(const result_file *f, const char *ending) {
    size_t n = strlen(f->path) + strlen(ending) + 1;
    char *path = malloc(n);
    if (path) (void)snprintf(path, n, "%s%s", f->path, ending);
    return path;
}

static status write_whole(int fd, const void *data, size_t n, const char *path, err *e) {
    const char *from = data;
    while (n > 0) {
        ssize_t written = write(fd, from, n);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return fail_errno(e, STATUS_IO, "writing %.300s", path);
        from += written;
        n -= (size_t)written;
    }
    return STATUS_OK;
}

static status sync_folder_of(const char *path, err *e) {
    const char *slash = strrchr(path, '/');
    char *dir = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    if (!dir) return fail(e, STATUS_NO_MEMORY, "%.300s: out of memory", path);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(dir);
    if (fd < 0) return fail_errno(e, STATUS_IO, "folder of %.300s", path);
    /* Some file systems cannot sync a folder (EINVAL); there is nothing better to be had there. */
    status st = fsync(fd) == 0 || errno == EINVAL ? STATUS_OK
                                                  : fail_errno(e, STATUS_IO, "folder of %.300s", path);
    (void)close(fd);
    return st;
}

static void side_text(char out[SIDE_TEXT_BYTES], const unsigned char digest[HASH_SHA256_BYTES], const plan *p) {
    char hex[HASH_HEX_BYTES];
    hash_hex(hex, digest, HASH_SHA256_BYTES);
    (void)snprintf(out, SIDE_TEXT_BYTES, "{\"run\":\"sha256:%s\",\"items\":%zu}\n", hex, plan_count(p));
}

/* Whole or not at all: written beside, synced, then moved into its place. */
static status side_write(const result_file *f, err *e) {
    char *path = side_path(f, ".manifest"), *draft = side_path(f, ".manifest.new");
    status st = path && draft ? STATUS_OK : fail(e, STATUS_NO_MEMORY, "%.300s: out of memory", f->path);
    int fd = -1;
    if (st == STATUS_OK && (fd = open(draft, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) < 0)
        st = fail_errno(e, STATUS_IO, "%.300s", draft);
    if (st == STATUS_OK) st = write_whole(fd, f->side, strlen(f->side), draft, e);
    if (st == STATUS_OK && fsync(fd) != 0) st = fail_errno(e, STATUS_IO, "%.300s", draft);
    if (st == STATUS_OK && rename(draft, path) != 0) st = fail_errno(e, STATUS_IO, "%.300s", path);
    if (st == STATUS_OK) st = sync_folder_of(path, e);
    if (fd >= 0) (void)close(fd);
    free(draft);
    free(path);
    return st;
}

/* Errors: BAD_ARGUMENT when it is there and says something else, NOT_FOUND when it is not there. */
static status side_check(const result_file *f, err *e) {
    char *path = side_path(f, ".manifest");
    if (!path) return fail(e, STATUS_NO_MEMORY, "%.300s: out of memory", f->path);
    char found[SIDE_FILE_BYTES_MAX];
    FILE *in = fopen(path, "rbe");
    size_t n = in ? fread(found, 1, sizeof found, in) : 0;
    status st = STATUS_OK;
    if (!in)
        st = fail_errno(e, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%.300s", path);
    else if (n != strlen(f->side) || memcmp(found, f->side, n) != 0)
        st = fail(e, STATUS_BAD_ARGUMENT,
                  "%.200s is the output of a run with other images, prompts or settings; resume needs the "
                  "same ones, or another -o", f->path);
    if (in) (void)fclose(in);
    free(path);
    return st;
}

/* ---- without the items that are asked again -------------------------------------------------- */

static status copy_range(const result_file *f, int to, off_t at, off_t end, const char *draft, err *e) {
    char block[65536];
    while (at < end) {
        size_t want = end - at < (off_t)sizeof block ? (size_t)(end - at) : sizeof block;
        ssize_t n = pread(f->fd, block, want, at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return fail_errno(e, STATUS_IO, "reading %.300s", f->path);
        TRY(write_whole(to, block, (size_t)n, draft, e));
        at += n;
    }
    return STATUS_OK;
}

static status copy_kept(const result_file *f, int to, const char *draft, err *e) {
    off_t at = 0;
    for (size_t i = 0; i < f->n_dropped; i++) {
        TRY(copy_range(f, to, at, f->dropped[i].start, draft, e));
        at = f->dropped[i].end;
    }
    return copy_range(f, to, at, f->end, draft, e);
}

/* The new file has the old one's mode, and our lock before it has its name. Until then its name is nobody else's. */
static status drop_failed(result_file *f, err *e) {
    struct stat info;
    char *path = realpath(f->path, NULL), draft[PATH_MAX + 8]; /* of a link, what it leads to */
    if (!path || fstat(f->fd, &info) != 0) {
        free(path);
        return fail_errno(e, STATUS_IO, "%.300s", f->path);
    }
    (void)snprintf(draft, sizeof draft, "%s.XXXXXX", path);
    int fd = mkstemp(draft);
    status st = STATUS_OK;
    if (fd < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 || fcntl(fd, F_SETFL, O_APPEND) != 0 ||
        fchmod(fd, info.st_mode & 0777) != 0 || flock(fd, LOCK_EX | LOCK_NB) != 0)
        st = fail_errno(e, STATUS_IO, "%.300s", draft);
    if (st == STATUS_OK) st = copy_kept(f, fd, draft, e);
    if (st == STATUS_OK && fsync(fd) != 0) st = fail_errno(e, STATUS_IO, "%.300s", draft);
    if (st == STATUS_OK && rename(draft, path) != 0) st = fail_errno(e, STATUS_IO, "%.300s", path);
    if (st == STATUS_OK) st = sync_folder_of(path, e);
    free(path);
    if (st != STATUS_OK) {
        if (fd >= 0) (void)close(fd), (void)unlink(draft);
        return st;
    }
    (void)close(f->fd);
    f->fd = fd;
    for (size_t i = 0; i < f->n_dropped; i++) f->end -= f->dropped[i].end - f->dropped[i].start;
    f->n_dropped = 0;
    return STATUS_OK;
}

/* ---- opening and writing --------------------------------------------------------------------- */

static status start_anew(result_file *f, const result_file_settings *s, off_t old_bytes, err *e) {
    if (old_bytes > 0 && !s->overwrite)
        return fail(e, STATUS_BAD_ARGUMENT,
                    "%.200s has results already: --resume finishes it, --overwrite replaces it", f->path);
    f->starts_anew = true;
    return STATUS_OK;
}

status result_file_begin(result_file *f, err *e) {
    if (f->n_dropped) return drop_failed(f, e);
    if (!f->starts_anew) return STATUS_OK;
    f->starts_anew = false;
    if (ftruncate(f->fd, 0) != 0) return fail_errno(e, STATUS_IO, "%.300s", f->path);
    return side_write(f, e);
}

static status take_up(result_file *f, const result_file_settings *s, const plan *p, off_t old_bytes,
                      err *e) {
    status st = side_check(f, e);
    /* Killed before the first line: there is nothing to mix up. */
    if (st == STATUS_NOT_FOUND && old_bytes == 0) return start_anew(f, s, old_bytes, e);
    if (st == STATUS_NOT_FOUND)
        return fail(e, STATUS_BAD_ARGUMENT, "%.200s cannot be resumed: %.200s.manifest is missing", f->path,
                    f->path);
    if (st != STATUS_OK) return st;
    st = scan_file(f, p, e);
    if (st == STATUS_OK && f->end < old_bytes && ftruncate(f->fd, f->end) != 0)
        st = fail_errno(e, STATUS_IO, "cutting the torn end of %.300s", f->path);
    return st;
}

static status open_path(result_file *f, const result_file_settings *s, const plan *p, err *e) {
    struct stat info;
    f->path = strdup(s->path);
    f->done = calloc(plan_count(p) / 8 + 1, 1);
    f->retries_failed = s->retry_failed;
    if (!f->path || !f->done) return fail(e, STATUS_NO_MEMORY, "%.300s: out of memory", s->path);
    f->fd = open(s->path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (f->fd < 0 || fstat(f->fd, &info) != 0) return fail_errno(e, STATUS_IO, "%.300s", s->path);
    if (!S_ISREG(info.st_mode)) /* a pipe, /dev/null: written as it comes */
        return s->resume ? fail(e, STATUS_BAD_ARGUMENT, "%.300s is not a file that can be resumed", s->path)
                         : STATUS_OK;
    if (flock(f->fd, LOCK_EX | LOCK_NB) != 0)
        return errno == EWOULDBLOCK
                   ? fail(e, STATUS_CONFLICT, "%.300s is being written by another mipha", s->path)
                   : fail_errno(e, STATUS_IO, "locking %.300s", s->path);
    if (!is_same_file(&info, s->path))
        return fail(e, STATUS_CONFLICT, "%.300s has just been replaced by another mipha", s->path);
    side_text(f->side, s->digest, p);
    return s->resume ? take_up(f, s, p, info.st_size, e) : start_anew(f, s, info.st_size, e);
}

status result_file_open(result_file **f, const result_file_settings *settings, const plan *p, err *e) {
    *f = NULL;
    bool has_path = settings->path && strcmp(settings->path, "-") != 0;
    if (settings->resume && settings->overwrite)
        return fail(e, STATUS_BAD_ARGUMENT, "%s keeps what there is and --overwrite replaces it; write one of them",
                    settings->retry_failed ? "--retry-failed" : "--resume");
    if (settings->resume && !has_path)
        return fail(e, STATUS_BAD_ARGUMENT, "%s needs the file to finish: -o OUT.jsonl",
                    settings->retry_failed ? "--retry-failed" : "--resume");
    result_file *made = calloc(1, sizeof *made);
    if (!made) return fail(e, STATUS_NO_MEMORY, "output: out of memory");
    made->fd = has_path ? -1 : STDOUT_FILENO;
    status st = has_path ? open_path(made, settings, p, e) : STATUS_OK;
    if (st != STATUS_OK) {
        result_file_close(&made);
        return st;
    }
    *f = made;
    return STATUS_OK;
}

void result_file_close(result_file **f) {
    if (!*f) return;
    if ((*f)->path && (*f)->fd >= 0) (void)close((*f)->fd);
    free((*f)->done);
    free((*f)->dropped);
    free((*f)->path);
    free(*f);
    *f = NULL;
}

bool result_file_is_done(const result_file *f, size_t idx) { return f->done && bit_of(f->done, idx); }
size_t result_file_n_done(const result_file *f) { return f->n_done; }
size_t result_file_n_failed(const result_file *f) { return f->n_failed; }
const char *result_file_fingerprint(const result_file *f) {
    return f->fingerprint[0] ? f->fingerprint : NULL;
}

status result_file_write(result_file *f, const void *lines, size_t n_bytes, err *e) {
    status st = write_whole(f->fd, lines, n_bytes, f->path ? f->path : "standard output", e);
    f->reader_is_gone = st != STATUS_OK && errno == EPIPE;
    if (st == STATUS_OK) {
        f->end += (off_t)n_bytes;
        f->has_unsynced = true;
    } else if (f->path && ftruncate(f->fd, f->end) != 0) {
        /* A torn end stays; the next --resume cuts it off. */
    }
    return st;
}

bool result_file_can_be_resumed(const result_file *f) { return f->side[0] != '\0'; }
bool result_file_reader_is_gone(const result_file *f) { return f->reader_is_gone; }

status result_file_sync(result_file *f, err *e) {
    if (!f->path || !f->has_unsynced) return STATUS_OK;
    f->has_unsynced = false;
    /* EINVAL: the file system, or the pipe, has nothing to sync to. */
    if (fdatasync(f->fd) != 0 && errno != EINVAL && errno != EROFS)
        return fail_errno(e, STATUS_IO, "syncing %.300s", f->path);
    return STATUS_OK;
}
