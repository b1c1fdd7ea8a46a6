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
    return ops_matrix_open_as(ctx, matrix, &w, has_bias ? &bias : NULL, model_product(m), e);
}

device_rows device_rows_from(const char *name, int64_t first, int64_t n) {
    return (device_rows){name, first, n, n, n};
}

device_rows device_rows_all(const model *m, const char *name) {
    ops_tensor w = model_weight(m, "%s.weight", name);
    return device_rows_from(name, 0, w.dims[0]);
}

/* Row i of a part, in the stored matrix. */
static int64_t row_at(const device_rows *part, int64_t i) {
    return part->first + i / part->run * part->stride + i % part->run;
}

/* Rows of width values, copied as they are where the types agree. */
static void copy_rows(ops_tensor *to, int64_t at, const ops_tensor *from, const device_rows *part, int64_t width) {
    size_t size = dtype_bytes(to->dtype), row_bytes = dtype_row_bytes(to->dtype, width);
    unsigned char *out = (unsigned char *)to->data + (size_t)at * row_bytes;
    for (int64_t i = 0; i < part->n; i++, out += row_bytes) {
        int64_t row = row_at(part, i);
        if (from->dtype == to->dtype) {
            memcpy(out, (const unsigned char *)from->data + (size_t)row * row_bytes, row_bytes);
            continue;
        }
        for (int64_t c = 0; c < width; c++) {
            float value = tensor_value(from, row * width + c);
            memcpy(out + (size_t)c * size, &value, sizeof value);
        }
    }
}

status device_matrix_join(ops_ctx *ctx, ops_matrix **matrix, const model *m, const device_rows *parts,
                          size_t n_parts, err *e) {
    bool has_bias = model_has_weight(m, "%s.bias", parts[0].name);
    ops_tensor first = model_weight(m, "%s.weight", parts[0].name);
    int64_t width = first.dims[1], n_rows = 0;
    ops_dtype dtype = first.dtype;
    for (size_t i = 0; i < n_parts; i++) {
        if (model_weight(m, "%s.weight", parts[i].name).dtype != dtype) dtype = OPS_DTYPE_F32;
        n_rows += parts[i].n;
    }
    ops_tensor w = tensor_make(malloc((size_t)n_rows * dtype_row_bytes(dtype, width)), OPS_PLACE_HOST, dtype, 2,
                               (int64_t[]){n_rows, width});
    ops_tensor bias = tensor_make(malloc((size_t)n_rows * sizeof(float)), OPS_PLACE_HOST, OPS_DTYPE_F32, 1, &n_rows);
    status st = w.data && bias.data ? STATUS_OK
                                    : fail(e, STATUS_NO_MEMORY, "weight %s: no memory to gather it", parts[0].name);
    int64_t at = 0;
    for (size_t i = 0; i < n_parts && st == STATUS_OK; i++) {
        ops_tensor from = model_weight(m, "%s.weight", parts[i].name);
        copy_rows(&w, at, &from, &parts[i], width);
        if (has_bias) {
            ops_tensor from_bias = model_weight(m, "%s.bias", parts[i].name);
            copy_rows(&bias, at, &from_bias, &parts[i], 1);
        }
        at += parts[i].n;
    }
    if (st == STATUS_OK) st = ops_matrix_open_as(ctx, matrix, &w, has_bias ? &bias : NULL, model_product(m), e);
    free(w.data);
    free(bias.data);
    return st;
}

/* ---- adapters ------------------------------------------------------------------------------------ */

#define PARTS_MAX 3

/* a: the parts' factors, one below the other. */
static void fill_a(const ops_tensor *a, const adapter_factors *f, const bool *has, size_t n_parts) {
    int64_t at = 0;
    for (size_t p = 0; p < n_parts; p++)
        for (int64_t i = 0; has[p] && i < tensor_elements(&f[p].a); i++) tensor_set_value(a, at++, tensor_value(&f[p].a, i));
}

/* b: the wanted rows of each part, in the columns of its own a. */
static void fill_b(const ops_tensor *b, const adapter_factors *f, const bool *has, const device_rows *parts,
                   size_t n_parts) {
    int64_t column = 0, row = 0;
    for (size_t p = 0; p < n_parts; p++) {
        int64_t r = has[p] ? f[p].a.dims[0] : 0;
        for (int64_t i = 0; i < parts[p].n; i++, row++)
            for (int64_t k = 0; k < r; k++) {
                double value = f[p].scale * (double)tensor_value(&f[p].b, row_at(&parts[p], i) * r + k);
                tensor_set_value(b, row * b->dims[1] + column + k, (float)value);
            }
        column += r;
    }
}

status device_low_rank_open(ops_ctx *ctx, ops_dtype dtype, ops_matrix **a, ops_matrix **b, int64_t *rank, const model *m,
                            int served, const device_rows *parts, size_t n_parts, err *e) {
    CHECK(n_parts >= 1 && n_parts <= PARTS_MAX, "a matrix is joined of few parts");
    adapter_factors f[PARTS_MAX];
    bool has[PARTS_MAX];
    int64_t n_out = 0, n_in = 0;
    *a = *b = NULL;
    *rank = 0;
    for (size_t p = 0; p < n_parts; p++) {
        char name[NAME_BYTES];
        (void)snprintf(name, sizeof name, "%s.weight", parts[p].name);
        has[p] = model_served_factors(m, served, name, &f[p]);
        if (has[p]) *rank += f[p].a.dims[0], n_in = f[p].a.dims[1];
        n_out += parts[p].n;
    }
    if (*rank == 0) return STATUS_OK;
    size_t size = dtype_bytes(dtype);
    ops_tensor wide = tensor_make(calloc((size_t)(*rank * n_in), size), OPS_PLACE_HOST, dtype, 2, (int64_t[]){*rank, n_in});
    ops_tensor tall = tensor_make(calloc((size_t)(n_out * *rank), size), OPS_PLACE_HOST, dtype, 2, (int64_t[]){n_out, *rank});
    status st = wide.data && tall.data ? STATUS_OK
                                       : fail(e, STATUS_NO_MEMORY, "adapter: no memory for %s", parts[0].name);
    if (st == STATUS_OK) {
        fill_a(&wide, f, has, n_parts);
        fill_b(&tall, f, has, parts, n_parts);
        st = ops_matrix_open(ctx, a, &wide, NULL, e);
    }
    if (st == STATUS_OK) st = ops_matrix_open(ctx, b, &tall, NULL, e);
    free(wide.data);
    free(tall.data);
    return st;
}

status device_projector_open(ops_ctx *ctx, ops_matrix **matrix, const model *m, int served, const char *name, err *e) {
    char weight[NAME_BYTES], bias_name[NAME_BYTES];
    (void)snprintf(weight, sizeof weight, "%s.weight", name);
    (void)snprintf(bias_name, sizeof bias_name, "%s.bias", name);
    ops_tensor w = model_served_weight(m, served, weight), bias = model_served_weight(m, served, bias_name);
    return ops_matrix_open_as(ctx, matrix, &w, &bias, model_product(m), e);
}

/* ---- vectors ------------------------------------------------------------------------------------- */

status device_vector_cut_plus(ops_block *block, ops_tensor *out, float plus, const model *m, err *e,
                              const char *name) {
    ops_tensor w = model_weight(m, "%s", name);
    *out = ops_block_cut(block, OPS_DTYPE_F32, w.n_dims, w.dims);
    int64_t n = tensor_elements(&w);
    float *wide = malloc((size_t)n * sizeof *wide);
    if (!wide) return fail(e, STATUS_NO_MEMORY, "weight %s: no memory to widen it", name);
    for (int64_t i = 0; i < n; i++) wide[i] = plus + tensor_value(&w, i);
    status st = ops_upload(block->ctx, out, wide);
    if (st == STATUS_OK) st = ops_sync(block->ctx); /* wide is read until then */
    free(wide);
    return st == STATUS_OK ? st : fail(e, st, "weight %s: upload: %s", name, status_text((int)st));
}

status device_vector_cut(ops_block *block, ops_tensor *out, const model *m, err *e,
                         const char *name_format, ...) {
    char name[NAME_BYTES];
    va_list args;
    va_start(args, name_format);
    format_name(name, name_format, args);
    va_end(args);
    return device_vector_cut_plus(block, out, 0.0f, m, e, name);
}

status device_table_cut(ops_block *block, ops_tensor *out, const model *m, err *e,
                        const char *name) {
    ops_tensor w = model_weight(m, "%s", name);
    *out = ops_block_cut(block, w.dtype, w.n_dims, w.dims);
    status st = ops_upload(block->ctx, out, w.data);
    if (st == STATUS_OK) st = ops_sync(block->ctx);
    return st == STATUS_OK ? st : fail(e, st, "weight %s: upload: %s", name, status_text((int)st));
}
