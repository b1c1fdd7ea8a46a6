#include "model/safetensors_write.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/stop.h"

#define PATH_BYTES 4112

status safetensors_folder_make(const char *dir, err *e) {
    char path[PATH_BYTES];
    if (mkdir(dir, 0777) != 0 && errno != EEXIST) return fail_errno(e, STATUS_IO, "%.300s", dir);
    (void)snprintf(path, sizeof path, "%.4000s/model.safetensors", dir);
    if (access(path, F_OK) != 0) return STATUS_OK;
    return fail(e, STATUS_CONFLICT, "%.300s is there already; name a new folder", path);
}

bool safetensors_header_add(json_t *header, const char *name, const char *dtype, int n_dims, const int64_t *dims,
                            size_t n_bytes, int64_t *at) {
    json_t *shape = json_array();
    for (int i = 0; i < n_dims; i++)
        if (json_array_append_new(shape, json_integer(dims[i])) != 0) return json_decref(shape), false;
    json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype, "shape", shape, "data_offsets", (json_int_t)*at,
                              (json_int_t)*at + (json_int_t)n_bytes);
    *at += (int64_t)n_bytes;
    return entry && json_object_set_new(header, name, entry) == 0;
}

/* Its length, then the text, filled up with spaces so that tensors are aligned. */
static bool write_header(FILE *f, const json_t *header) {
    char *text = json_dumps(header, JSON_COMPACT);
    if (!text) return false;
    size_t n = strlen(text), padded = (n + 7) / 8 * 8;
    unsigned char size[8];
    for (int i = 0; i < 8; i++) size[i] = (unsigned char)((uint64_t)padded >> 8 * i);
    bool ok = fwrite(size, 1, 8, f) == 8 && fwrite(text, 1, n, f) == n;
    for (; n < padded && ok; n++) ok = fputc(' ', f) != EOF;
    free(text);
    return ok;
}

static status write_draft(const char *draft, const json_t *header, safetensors_data_fn *write_data, void *arg, err *e) {
    FILE *f = fopen(draft, "we");
    if (!f) return fail_errno(e, STATUS_IO, "%.300s", draft);
    bool ok = write_header(f, header) && write_data(f, arg) && fflush(f) == 0 && fsync(fileno(f)) == 0;
    status st = stop_check(e);
    if (st == STATUS_OK && !ok) st = fail_errno(e, STATUS_IO, "%.300s", draft);
    if (fclose(f) != 0 && st == STATUS_OK) st = fail_errno(e, STATUS_IO, "%.300s", draft);
    return st;
}

status safetensors_write(const char *path, json_t *header, safetensors_data_fn *write_data, void *arg, err *e) {
    char draft[PATH_BYTES];
    if (!header) return fail(e, STATUS_NO_MEMORY, "%.300s: no memory for its header", path);
    (void)snprintf(draft, sizeof draft, "%.4096s.part", path);
    status st = write_draft(draft, header, write_data, arg, e);
    if (st == STATUS_OK && rename(draft, path) != 0) st = fail_errno(e, STATUS_IO, "%.300s", path);
    if (st != STATUS_OK) (void)unlink(draft);
    json_decref(header);
    return st;
}
