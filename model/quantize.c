#include "model/quantize.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model/model_internal.h"

#define PATH_BYTES 4096
#define COPY_BYTES 65536

typedef struct {
    const quantize_settings *s;
    const model *m;
    quantize_result *result;
} job;

/* Whether the tensor of row i is to be put into blocks. */
static bool is_chosen(const job *j, size_t i) {
    const weight_row *row = &j->m->table.rows[i];
    ops_dtype dtype;
    if (!row->is_matrix || !weight_dtype(&dtype, j->m->tensors[i], row->dims[0], row->dims[1]) || dtype_is_quantized(dtype))
        return false;
    return row->use == WEIGHT_OF_DECODER || (j->s->has_tower && row->use == WEIGHT_OF_TOWER);
}

static size_t new_bytes(const job *j, size_t i) {
    const weight_row *row = &j->m->table.rows[i];
    if (!is_chosen(j, i)) return j->m->tensors[i]->len_bytes;
    return (size_t)row->dims[0] * dtype_row_bytes(j->s->dtype, row->dims[1]);
}

/* ---- the file of tensors ------------------------------------------------------------------------- */

static json_t *shape_of(const job *j, size_t i) {
    const safetensors_tensor *t = j->m->tensors[i];
    json_t *shape = json_array();
    if (is_chosen(j, i)) {
        const int64_t *dims = j->m->table.rows[i].dims;
        (void)json_array_append_new(shape, json_integer(dims[0]));
        (void)json_array_append_new(shape, json_integer((json_int_t)dtype_row_bytes(j->s->dtype, dims[1])));
        return shape;
    }
    for (int d = 0; d < t->n_dims; d++) (void)json_array_append_new(shape, json_integer(t->dims[d]));
    return shape;
}

static json_t *make_header(const job *j) {
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    json_int_t at = 0;
    for (size_t i = 0; i < j->m->table.n_rows && header; i++) {
        if (!j->m->tensors[i]) continue;
        bool chosen = is_chosen(j, i);
        json_int_t n = (json_int_t)new_bytes(j, i);
        json_t *entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", chosen ? "U8" : j->m->tensors[i]->dtype_text, "shape",
                                  shape_of(j, i), "data_offsets", at, at + n);
        if (!entry || json_object_set_new(header, j->m->table.rows[i].name, entry) != 0) {
            json_decref(header);
            return NULL;
        }
        at += n;
        j->result->n_matrices += chosen;
        j->result->bytes_before += j->m->tensors[i]->len_bytes;
        j->result->bytes_after += (uint64_t)n;
    }
    return header;
}

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

static bool write_blocks(FILE *f, const job *j, size_t i) {
    const weight_row *row = &j->m->table.rows[i];
    ops_tensor w = model_weight(j->m, "%s", row->name);
    size_t n_bytes = dtype_row_bytes(j->s->dtype, row->dims[1]);
    float *values = malloc((size_t)row->dims[1] * sizeof *values);
    unsigned char *blocks = malloc(n_bytes);
    bool ok = values && blocks;
    for (int64_t r = 0; r < row->dims[0] && ok; r++) {
        for (int64_t c = 0; c < row->dims[1]; c++) values[c] = tensor_value(&w, r * row->dims[1] + c);
        quantize_row(blocks, j->s->dtype, values, row->dims[1]);
        ok = fwrite(blocks, 1, n_bytes, f) == n_bytes;
    }
    free(values);
    free(blocks);
    return ok;
}

static bool write_tensors(FILE *f, const job *j) {
    bool ok = true;
    for (size_t i = 0; i < j->m->table.n_rows && ok; i++) {
        const safetensors_tensor *t = j->m->tensors[i];
        if (!t) continue;
        ok = is_chosen(j, i) ? write_blocks(f, j, i) : fwrite(t->data, 1, t->len_bytes, f) == t->len_bytes;
    }
    return ok;
}

/* Under another name until it is whole. */
static status write_file(const job *j, err *e) {
    char path[PATH_BYTES], draft[PATH_BYTES + 8];
    (void)snprintf(path, sizeof path, "%s/model.safetensors", j->s->out_dir);
    (void)snprintf(draft, sizeof draft, "%s.part", path);
    json_t *header = make_header(j);
    if (!header) return fail(e, STATUS_NO_MEMORY, "%.300s: no memory for its header", path);
    status st = STATUS_OK;
    FILE *f = fopen(draft, "we");
    if (!f) st = fail_errno(e, STATUS_IO, "%.300s", draft);
    if (st == STATUS_OK) {
        bool ok = write_header(f, header) && write_tensors(f, j) && fflush(f) == 0 && fsync(fileno(f)) == 0;
        if (!ok) st = fail_errno(e, STATUS_IO, "%.300s", draft);
        if (fclose(f) != 0 && st == STATUS_OK) st = fail_errno(e, STATUS_IO, "%.300s", draft);
    }
    if (st == STATUS_OK && rename(draft, path) != 0) st = fail_errno(e, STATUS_IO, "%.300s", path);
    json_decref(header);
    return st;
}

/* ---- the other files ----------------------------------------------------------------------------- */

static bool ends_with(const char *name, const char *ending) {
    size_t n = strlen(name), m = strlen(ending);
    return n >= m && strcmp(name + n - m, ending) == 0;
}

static status copy_file(const char *from, const char *to, err *e) {
    FILE *in = fopen(from, "re"), *out = in ? fopen(to, "we") : NULL;
    char block[COPY_BYTES];
    status st = in && out ? STATUS_OK : fail_errno(e, STATUS_IO, "%.300s", in ? to : from);
    for (size_t n; st == STATUS_OK && (n = fread(block, 1, sizeof block, in)) > 0;)
        if (fwrite(block, 1, n, out) != n) st = fail_errno(e, STATUS_IO, "%.300s", to);
    if (st == STATUS_OK && ferror(in)) st = fail_errno(e, STATUS_IO, "%.300s", from);
    if (in) (void)fclose(in);
    if (out && fclose(out) != 0 && st == STATUS_OK) st = fail_errno(e, STATUS_IO, "%.300s", to);
    return st;
}

static status copy_others(const quantize_settings *s, err *e) {
    DIR *dir = opendir(s->dir);
    if (!dir) return fail_errno(e, STATUS_IO, "%.300s", s->dir);
    status st = STATUS_OK;
    for (struct dirent *d; st == STATUS_OK && (d = readdir(dir)) != NULL;) {
        static const char *const LEFT_OUT[] = {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth"};
        char from[PATH_BYTES], to[PATH_BYTES];
        struct stat info;
        bool is_weights = false;
        for (size_t i = 0; i < sizeof LEFT_OUT / sizeof *LEFT_OUT; i++) is_weights = is_weights || ends_with(d->d_name, LEFT_OUT[i]);
        (void)snprintf(from, sizeof from, "%s/%s", s->dir, d->d_name);
        (void)snprintf(to, sizeof to, "%s/%s", s->out_dir, d->d_name);
        if (!is_weights && stat(from, &info) == 0 && S_ISREG(info.st_mode)) st = copy_file(from, to, e);
    }
    (void)closedir(dir);
    return st;
}

/* -------------------------------------------------------------------------------------------------- */

static status make_folder(const char *dir, err *e) {
    char path[PATH_BYTES];
    if (mkdir(dir, 0777) != 0 && errno != EEXIST) return fail_errno(e, STATUS_IO, "%.300s", dir);
    (void)snprintf(path, sizeof path, "%s/model.safetensors", dir);
    if (access(path, F_OK) != 0) return STATUS_OK;
    return fail(e, STATUS_CONFLICT, "%.300s is there already; name a new folder", path);
}

status model_quantize(const quantize_settings *s, quantize_result *r, err *e) {
    *r = (quantize_result){0};
    model *m;
    status st = model_open(&m, &(model_settings){.dir = s->dir, .adapter = s->adapter_dir, .parts = MODEL_PART_ALL}, e);
    if (st != STATUS_OK) return st;
    job j = {s, m, r};
    bool has_any = false;
    for (size_t i = 0; i < m->table.n_rows; i++) has_any = has_any || (m->tensors[i] && is_chosen(&j, i));
    if (!has_any) st = fail(e, STATUS_BAD_MODEL, "%.300s has no matrix in F32, F16 or BF16 left to quantize", s->dir);
    if (st == STATUS_OK) st = make_folder(s->out_dir, e);
    if (st == STATUS_OK) st = copy_others(s, e);
    if (st == STATUS_OK) st = write_file(&j, e);
    model_close(&m);
    return st;
}
