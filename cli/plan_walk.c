/* Paths of the command line: files as they are, folders walked in sorted order.
 *
 * In folders the ending of the name decides what is an image, in any case; names that start with a dot are
 * left out, and links to folders are not followed, so that a walk always ends. A file somebody names is
 * tried whatever it is called. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "cli/plan_internal.h"

#define DEPTH_MAX 64

/* Result lines are JSON and need valid UTF-8; a name's other bytes are shown as \xNN. */
static char *text_of_path(const char *path) {
    json_t *whole = json_string(path);
    if (whole) {
        json_decref(whole);
        return strdup(path);
    }
    char *text = malloc(4 * strlen(path) + 1);
    size_t n = 0;
    for (const char *p = path; text && *p;) {
        size_t len = 0;
        for (size_t k = 1; k <= 4 && !len && strnlen(p, k) == k; k++) {
            json_t *one = json_stringn(p, k);
            if (one) len = k;
            json_decref(one);
        }
        if (len)
            memcpy(text + n, p, len);
        else
            (void)snprintf(text + n, 5, "\\x%02x", (unsigned char)*p);
        n += len ? len : 4;
        p += len ? len : 1;
    }
    if (text) text[n] = '\0';
    return text;
}

static status add_file(plan *p, const char *path, err *e) {
    plan_entry entry = {.id = text_of_path(path), .path = strdup(path)};
    if (!entry.id || !entry.path) {
        free(entry.id);
        free(entry.path);
        return fail(e, STATUS_NO_MEMORY, "%.300s: out of memory", path);
    }
    plan_hash_text(p, path);
    return plan_add(p, &entry, e);
}

static bool is_image_name(const char *name) {
    static const char *const endings[] = {".jpg", ".jpeg", ".png", ".webp"};
    const char *dot = strrchr(name, '.');
    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcasecmp(dot, endings[i]) == 0) return true;
    return false;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int is_visible(const struct dirent *entry) { return entry->d_name[0] != '.'; }

static status add_folder(plan *p, const char *path, int depth, err *e);

static status add_child(plan *p, const char *dir, const char *name, int depth, err *e) {
    size_t n = strlen(dir) + strlen(name) + 2;
    char *path = malloc(n);
    if (!path) return fail(e, STATUS_NO_MEMORY, "%.300s: out of memory", dir);
    bool has_slash = dir[strlen(dir) - 1] == '/';
    (void)snprintf(path, n, "%s%s%s", dir, has_slash ? "" : "/", name);
    struct stat info;
    status st = STATUS_OK;
    if (lstat(path, &info) == 0 && S_ISDIR(info.st_mode))
        st = add_folder(p, path, depth + 1, e);
    else if (is_image_name(name))
        st = add_file(p, path, e);
    free(path);
    return st;
}

static status add_folder(plan *p, const char *path, int depth, err *e) {
    if (depth > DEPTH_MAX)
        return fail(e, STATUS_TOO_LARGE, "%.300s: more than %d folders deep", path, DEPTH_MAX);
    struct dirent **children = NULL;
    int n = scandir(path, &children, is_visible, by_name);
    if (n < 0) return fail_errno(e, STATUS_IO, "folder %.300s", path);
    status st = STATUS_OK;
    for (int i = 0; i < n; i++) {
        if (st == STATUS_OK) st = add_child(p, path, children[i]->d_name, depth, e);
        free(children[i]);
    }
    free(children);
    return st;
}

status plan_add_path(plan *p, const char *path, err *e) {
    struct stat info;
    if (!*path) return fail(e, STATUS_BAD_ARGUMENT, "an empty path");
    if (stat(path, &info) == 0 && S_ISDIR(info.st_mode)) return add_folder(p, path, 0, e);
    return add_file(p, path, e);
}
