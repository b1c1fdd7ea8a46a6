#include "model/quantize.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/stop.h"
#include "model/model_internal.h"
#include "model/safetensors_write.h"

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

static json_t *make_header(const job *j) {
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    int64_t at = 0;
    for (size_t i = 0; i < j->m->table.n_rows && header; i++) {
        const safetensors_tensor *t = j->m->tensors[i];
        const weight_row *row = &j->m->table.rows[i];
        if (!t) continue;
        bool chosen = is_chosen(j, i);
        size_t n = new_bytes(j, i);
        const int64_t in_blocks[2] = {row->dims[0], (int64_t)dtype_row_bytes(j->s->dtype, row->dims[1])};
        bool ok = chosen ? safetensors_header_add(header, row->name, "U8", 2, in_blocks, n, &at)
                         : safetensors_header_add(header, row->name, t->dtype_text, t->n_dims, t->dims, n, &at);
        if (!ok) {
            json_decref(header);
            return NULL;
        }
        j->result->n_matrices += chosen;
        j->result->bytes_before += t->len_bytes;
        j->result->bytes_after += n;
    }
    return header;
}

static bool write_blocks(FILE *f, const job *j, size_t i) {
    const weight_row *row = &j->m->table.rows[i];
    ops_tensor w = model_weight(j->m, "%s", row->name);
    size_t n_bytes = dtype_row_bytes(j->s->dtype, row->dims[1]);
    float *values = malloc((size_t)row->dims[1] * sizeof *values);
    unsigned char *blocks = malloc(n_bytes);
    bool ok = values && blocks;
    for (int64_t r = 0; r < row->dims[0] && ok && !stop_requested(); r++) {
        tensor_row_values(values, &w, r);
        quantize_row(blocks, j->s->dtype, values, row->dims[1]);
        ok = fwrite(blocks, 1, n_bytes, f) == n_bytes;
    }
    free(values);
    free(blocks);
    return ok;
}

static bool write_tensors(FILE *f, void *arg) {
    const job *j = arg;
    bool ok = true;
    for (size_t i = 0; i < j->m->table.n_rows && ok; i++) {
        const safetensors_tensor *t = j->m->tensors[i];
        if (!t) continue;
        ok = is_chosen(j, i) ? write_blocks(f, j, i) : fwrite(t->data, 1, t->len_bytes, f) == t->len_bytes;
    }
    return ok;
}

static status write_file(job *j, err *e) {
    char path[PATH_BYTES];
    (void)snprintf(path, sizeof path, "%s/model.safetensors", j->s->out_dir);
    return safetensors_write(path, make_header(j), write_tensors, j, e);
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

status model_quantize(const quantize_settings *s, quantize_result *r, err *e) {
    *r = (quantize_result){0};
    model *m;
    status st = model_open(&m, &(model_settings){.dir = s->dir, .adapter = s->adapter_dir, .parts = MODEL_PART_ALL}, e);
    if (st != STATUS_OK) return st;
    job j = {s, m, r};
    bool has_any = false;
    for (size_t i = 0; i < m->table.n_rows; i++) has_any = has_any || (m->tensors[i] && is_chosen(&j, i));
    if (!has_any) st = fail(e, STATUS_BAD_MODEL, "%.300s has no matrix in F32, F16 or BF16 left to quantize", s->dir);
    if (st == STATUS_OK) st = safetensors_folder_make(s->out_dir, e);
    if (st == STATUS_OK) st = copy_others(s, e);
    if (st == STATUS_OK) st = write_file(&j, e);
    model_close(&m);
    return st;
}
