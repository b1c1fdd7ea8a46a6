/* A safetensors file is 8 bytes of header length, a JSON header, and data.
 *
 *     0        8                     8+N                                  end
 *     | N, u64 | {"name":{...},...}  | tensor | tensor | ...              |
 *
 * Everything a header promises is checked against the file before open returns, so readers index without
 * looking: ranges in order of their beginning must start at 0, touch without hole or overlap, and end
 * with the file. That makes the sum of sizes equal to the file's, so no header can promise more memory
 * than there is. Sizes are multiplied in one checked place. */
#include "model/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "model/json_file.h"

#define LENGTH_BYTES 8

struct safetensors {
    bytes file;
    void *map; /* MAP_FAILED when the bytes are borrowed */
    json_t *header;
    safetensors_tensor *tensors; /* sorted by name */
    size_t n_tensors;
};

static const struct {
    const char *text;
    safetensors_dtype dtype;
    size_t bytes;
} DTYPES[] = {
    {"F32", SAFETENSORS_F32, 4},    {"F16", SAFETENSORS_F16, 2},
    {"BF16", SAFETENSORS_BF16, 2},  {"BOOL", SAFETENSORS_OTHER, 1},
    {"U8", SAFETENSORS_OTHER, 1},   {"I8", SAFETENSORS_OTHER, 1},
    {"I16", SAFETENSORS_OTHER, 2},  {"U16", SAFETENSORS_OTHER, 2},
    {"I32", SAFETENSORS_OTHER, 4},  {"U32", SAFETENSORS_OTHER, 4},
    {"I64", SAFETENSORS_OTHER, 8},  {"U64", SAFETENSORS_OTHER, 8},
    {"F64", SAFETENSORS_OTHER, 8},  {"F8_E5M2", SAFETENSORS_OTHER, 1},
    {"F8_E4M3", SAFETENSORS_OTHER, 1},
};

void safetensors_shape_text(char *out, size_t out_bytes, int n_dims, const int64_t *dims) {
    size_t used = 0;
    (void)snprintf(out, out_bytes, "[");
    for (int i = 0; i < n_dims; i++) {
        used = strlen(out);
        (void)snprintf(out + used, out_bytes - used, "%s%" PRId64, i ? ", " : "", dims[i]);
    }
    used = strlen(out);
    (void)snprintf(out + used, out_bytes - used, "]");
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const safetensors_tensor *)a)->name, ((const safetensors_tensor *)b)->name);
}

/* Ranges in file order; an empty range comes before a full one that begins at the same place. */
static int by_place(const void *a, const void *b) {
    const safetensors_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->len_bytes > y->len_bytes) - (x->len_bytes < y->len_bytes);
}

static status read_shape(safetensors_tensor *t, const json_t *shape, size_t *n_elements,
                         const char *label, err *e) {
    if (!json_is_array(shape))
        return fail(e, STATUS_BAD_FORMAT, "%s: tensor %s has no shape array", label, t->name);
    if (json_array_size(shape) > SAFETENSORS_DIMS_MAX)
        return fail(e, STATUS_BAD_FORMAT, "%s: tensor %s has %zu dimensions, at most %d", label,
                    t->name, json_array_size(shape), SAFETENSORS_DIMS_MAX);
    t->n_dims = (int)json_array_size(shape);
    *n_elements = 1;
    for (int i = 0; i < t->n_dims; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0) {
            char found[64];
            json_describe(found, sizeof found, dim);
            return fail(e, STATUS_BAD_FORMAT,
                        "%s: tensor %s: dimension %d is %s, expected a whole number >= 0", label,
                        t->name, i, found);
        }
        t->dims[i] = json_integer_value(dim);
        if (!size_mul(*n_elements, (size_t)t->dims[i], n_elements))
            return fail(e, STATUS_BAD_FORMAT,
                        "%s: tensor %s: its shape has more elements than can be counted", label,
                        t->name);
    }
    return STATUS_OK;
}

static status read_tensor(safetensors_tensor *t, const json_t *entry, bytes data, const char *label,
                          err *e) {
    if (!json_is_object(entry))
        return fail(e, STATUS_BAD_FORMAT, "%s: tensor %s is not described by an object", label,
                    t->name);
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    size_t kind = 0, n_kinds = sizeof DTYPES / sizeof DTYPES[0];
    while (dtype && kind < n_kinds && strcmp(dtype, DTYPES[kind].text) != 0) kind++;
    if (!dtype || kind == n_kinds)
        return fail(e, STATUS_BAD_FORMAT, "%s: tensor %s has dtype %.40s, which is not known", label,
                    t->name, dtype ? dtype : "missing");
    t->dtype = DTYPES[kind].dtype;
    t->dtype_text = DTYPES[kind].text;

    size_t need_bytes = 0;
    status st = read_shape(t, json_object_get(entry, "shape"), &need_bytes, label, e);
    if (st != STATUS_OK) return st;
    if (!size_mul(need_bytes, DTYPES[kind].bytes, &need_bytes))
        return fail(e, STATUS_BAD_FORMAT, "%s: tensor %s: its size overflows", label, t->name);

    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *second = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(second))
        return fail(e, STATUS_BAD_FORMAT,
                    "%s: tensor %s: data_offsets is not an array of two whole numbers", label, t->name);
    json_int_t begin = json_integer_value(first), end = json_integer_value(second);
    if (begin < 0 || end < begin || (uint64_t)end > data.len_bytes)
        return fail(e, STATUS_BAD_FORMAT,
                    "%s: tensor %s: data_offsets [%lld, %lld] do not lie in the %zu bytes of data", label,
                    t->name, (long long)begin, (long long)end, data.len_bytes);
    t->len_bytes = (size_t)(end - begin);
    t->data = data.data + begin;
    if (t->len_bytes != need_bytes) {
        char shape[160];
        safetensors_shape_text(shape, sizeof shape, t->n_dims, t->dims);
        return fail(e, STATUS_BAD_FORMAT,
                    "%s: tensor %s: %zu bytes of data, but shape %s of %s needs %zu", label, t->name,
                    t->len_bytes, shape, t->dtype_text, need_bytes);
    }
    return STATUS_OK;
}

/* The tensors, sorted by place, cover the data from its first byte to its last exactly once. */
static status check_cover(const safetensors_tensor *t, size_t n, bytes data, const char *label,
                          err *e) {
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        size_t begin = (size_t)(t[i].data - data.data);
        if (begin < at)
            return fail(e, STATUS_BAD_FORMAT,
                        "%s: tensor %s begins at byte %zu and overlaps %s, which ends at %zu", label,
                        t[i].name, begin, t[i - 1].name, at);
        if (begin > at)
            return fail(e, STATUS_BAD_FORMAT,
                        "%s: %zu bytes before tensor %s (bytes %zu to %zu) belong to no tensor", label,
                        begin - at, t[i].name, at, begin);
        at = begin + t[i].len_bytes;
    }
    if (at != data.len_bytes)
        return fail(e, STATUS_BAD_FORMAT, "%s: %zu bytes at the end belong to no tensor", label,
                    data.len_bytes - at);
    return STATUS_OK;
}

static status check_metadata(const json_t *metadata, const char *label, err *e) {
    if (!metadata) return STATUS_OK;
    if (!json_is_object(metadata))
        return fail(e, STATUS_BAD_FORMAT, "%s: __metadata__ is not an object", label);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value) if (!json_is_string(value))
        return fail(e, STATUS_BAD_FORMAT, "%s: __metadata__ %.60s is not a string", label, key);
    return STATUS_OK;
}

static status read_header(safetensors *f, bytes data, const char *label, err *e) {
    const json_t *metadata = json_object_get(f->header, "__metadata__");
    status st = check_metadata(metadata, label, e);
    if (st != STATUS_OK) return st;
    size_t n = json_object_size(f->header) - (metadata ? 1 : 0);
    if (n > SAFETENSORS_TENSORS_MAX)
        return fail(e, STATUS_BAD_FORMAT, "%s: %zu tensors, at most %d", label, n,
                    SAFETENSORS_TENSORS_MAX);
    f->tensors = calloc(n ? n : 1, sizeof *f->tensors);
    if (!f->tensors) return fail(e, STATUS_NO_MEMORY, "%s: no memory for %zu tensors", label, n);

    const char *name;
    json_t *entry;
    json_object_foreach(f->header, name, entry) {
        if (entry == metadata) continue;
        safetensors_tensor *t = &f->tensors[f->n_tensors++];
        t->name = name;
        st = read_tensor(t, entry, data, label, e);
        if (st != STATUS_OK) return st;
    }
    if (n) qsort(f->tensors, n, sizeof *f->tensors, by_place);
    st = check_cover(f->tensors, n, data, label, e);
    if (n) qsort(f->tensors, n, sizeof *f->tensors, by_name);
    return st;
}

static status parse(safetensors *f, const char *label, err *e) {
    uint64_t n = 0;
    if (f->file.len_bytes < LENGTH_BYTES)
        return fail(e, STATUS_BAD_FORMAT, "%s: %zu bytes, a safetensors file has at least %d", label,
                    f->file.len_bytes, LENGTH_BYTES);
    n = bytes_load_le(f->file.data, LENGTH_BYTES);
    if (n > SAFETENSORS_HEADER_BYTES_MAX)
        return fail(e, STATUS_BAD_FORMAT, "%s: the header claims %" PRIu64 " bytes, at most %zu", label,
                    n, SAFETENSORS_HEADER_BYTES_MAX);
    if (!bytes_has(f->file, LENGTH_BYTES, (size_t)n))
        return fail(e, STATUS_BAD_FORMAT,
                    "%s: the header claims %" PRIu64 " bytes, but the file has %zu in all (cut off?)",
                    label, n, f->file.len_bytes);
    bytes header = {f->file.data + LENGTH_BYTES, (size_t)n};
    if (n == 0 || header.data[0] != '{')
        return fail(e, STATUS_BAD_FORMAT, "%s: the header does not begin with {", label);
    bytes data = {header.data + n, f->file.len_bytes - LENGTH_BYTES - (size_t)n};

    char what[300];
    (void)snprintf(what, sizeof what, "%.250s: header", label);
    json_file_limits limits = {SAFETENSORS_HEADER_BYTES_MAX, 24 * SAFETENSORS_TENSORS_MAX};
    status st = json_text_parse(&f->header, header, what, limits, e);
    if (st == STATUS_TOO_LARGE) e->code = st = STATUS_BAD_FORMAT;
    if (st != STATUS_OK) return st;
    return read_header(f, data, label, e);
}

status safetensors_open_bytes(safetensors **out, bytes file, const char *label, err *e) {
    *out = NULL;
    safetensors *f = calloc(1, sizeof *f);
    if (!f) return fail(e, STATUS_NO_MEMORY, "%s: no memory to open it", label);
    f->file = file;
    f->map = MAP_FAILED;
    status st = parse(f, label, e);
    if (st != STATUS_OK) {
        safetensors_close(&f);
        return st;
    }
    *out = f;
    return STATUS_OK;
}

status safetensors_open(safetensors **out, const char *path, err *e) {
    status st = STATUS_OK;
    struct stat info;
    void *map = MAP_FAILED;
    size_t len_bytes = 0;
    *out = NULL;

    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) < 0) {
        st = fail_errno(e, STATUS_IO, "%s: open", path);
        goto done;
    }
    if (!S_ISREG(info.st_mode)) {
        st = fail(e, STATUS_IO, "%s: not a regular file", path);
        goto done;
    }
    len_bytes = (size_t)info.st_size;
    if (len_bytes < LENGTH_BYTES) { /* an empty file cannot be mapped */
        st = fail(e, STATUS_BAD_FORMAT, "%s: %zu bytes, a safetensors file has at least %d", path,
                  len_bytes, LENGTH_BYTES);
        goto done;
    }
    map = mmap(NULL, len_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) {
        st = fail_errno(e, STATUS_IO, "%s: mmap of %zu bytes", path, len_bytes);
        goto done;
    }
    st = safetensors_open_bytes(out, (bytes){map, len_bytes}, path, e);
    if (st == STATUS_OK) {
        (*out)->map = map;
        map = MAP_FAILED;
    }
done:
    if (map != MAP_FAILED) (void)munmap(map, len_bytes);
    if (fd >= 0) (void)close(fd);
    return st;
}

void safetensors_close(safetensors **f) {
    if (!*f) return;
    free((*f)->tensors);
    json_decref((*f)->header);
    if ((*f)->map != MAP_FAILED) (void)munmap((*f)->map, (*f)->file.len_bytes);
    free(*f);
    *f = NULL;
}

size_t safetensors_count(const safetensors *f) { return f->n_tensors; }

const safetensors_tensor *safetensors_at(const safetensors *f, size_t idx) {
    CHECK(idx < f->n_tensors, "a tensor is asked for by an index below the count");
    return &f->tensors[idx];
}

const safetensors_tensor *safetensors_find(const safetensors *f, const char *name) {
    safetensors_tensor key = {.name = name};
    if (f->n_tensors == 0) return NULL;
    return bsearch(&key, f->tensors, f->n_tensors, sizeof key, by_name);
}
