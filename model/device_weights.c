/* Matrices go to the backend as they lie in the file. Vectors are few and small: they are widened to f32
 * here, on the host, once. */
#include "model/device_weights.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define NAME_BYTES 160

__attribute__((format(printf, 2, 0)))
static void format_name(char name[NAME_BYTES], const char *format, va_list args) {
    int n = vsnprintf(name, NAME_BYTES, format, args);
    CHECK(n > 0 && n < NAME_BYTES, "names of weights are short");
}

status device_matrix_open(ops_ctx *ctx, ops_matrix **matrix, const model *m, err *e,
                          const char *name_format, ...) {
    char name[NAME_BYTES];
    va_list args;
    va_start(args, name_format);
    format_name(name, name_format, args);
    va_end(args);
    ops_tensor w = model_weight(m, "%s.weight", name);
    bool has_bias = model_has_weight(m, "%s.bias", name);
    ops_tensor bias = {0};
    if (has_bias) bias = model_weight(m, "%s.bias", name);
    int64_t n_rows = w.dims[0];
    w = tensor_reshape(&w, 2, (int64_t[]){n_rows, tensor_elements(&w) / n_rows});
    return ops_matrix_open(ctx, matrix, &w, has_bias ? &bias : NULL, e);
}

status device_vector_cut(ops_block *block, ops_tensor *out, const model *m, err *e,
                         const char *name_format, ...) {
    char name[NAME_BYTES];
    va_list args;
    va_start(args, name_format);
    format_name(name, name_format, args);
    va_end(args);
    ops_tensor w = model_weight(m, "%s", name);
    *out = ops_block_cut(block, OPS_DTYPE_F32, w.n_dims, w.dims);
    int64_t n = tensor_elements(&w);
    float *wide = malloc((size_t)n * sizeof *wide);
    if (!wide) return fail(e, STATUS_NO_MEMORY, "weight %s: no memory to widen it", name);
    for (int64_t i = 0; i < n; i++) wide[i] = tensor_value(&w, i);
    status st = ops_upload(block->ctx, out, wide);
    if (st == STATUS_OK) st = ops_sync(block->ctx); /* wide is read until then */
    free(wide);
    return st == STATUS_OK ? st : fail(e, st, "weight %s: upload: %s", name, status_text((int)st));
}

status device_table_cut(ops_block *block, ops_tensor *out, const model *m, err *e,
                        const char *name) {
    ops_tensor w = model_weight(m, "%s", name);
    *out = ops_block_cut(block, w.dtype, w.n_dims, w.dims);
    status st = ops_upload(block->ctx, out, w.data);
    if (st == STATUS_OK) st = ops_sync(block->ctx);
    return st == STATUS_OK ? st : fail(e, st, "weight %s: upload: %s", name, status_text((int)st));
}
