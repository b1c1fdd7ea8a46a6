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

/* Rows of `width` values to row `row` and column `column`, copied as they are where the types agree. */
static void copy_rows(ops_tensor *to, int64_t row, int64_t column, const ops_tensor *from, const device_rows *part,
                      int64_t width) {
    size_t size = dtype_bytes(to->dtype), row_bytes = dtype_row_bytes(from->dtype, width);
    size_t to_bytes = dtype_row_bytes(to->dtype, to->dims[1]);
    unsigned char *out = (unsigned char *)to->data + (size_t)row * to_bytes + dtype_row_bytes(to->dtype, column);
    for (int64_t i = 0; i < part->n; i++, out += to_bytes) {
        int64_t stored = row_at(part, i);
        if (from->dtype == to->dtype) {
            memcpy(out, (const unsigned char *)from->data + (size_t)stored * row_bytes, row_bytes);
            continue;
        }
        for (int64_t c = 0; c < width; c++) {
            float value = tensor_value(from, stored * width + c);
            memcpy(out + (size_t)c * size, &value, sizeof value);
        }
    }
}

static ops_tensor part_weight(const model *m, const device_rows *part) { return model_weight(m, "%s.weight", part->name); }

/* Rows and columns of all parts together, and the type that holds them. */
static ops_tensor joined_shape(const model *m, const device_join *join) {
    ops_tensor first = part_weight(m, &join->parts[0]);
    int64_t n_rows = 0, n_columns = 0;
    ops_dtype dtype = first.dtype;
    for (size_t i = 0; i < join->n_parts; i++) {
        ops_tensor w = part_weight(m, &join->parts[i]);
        bool begins_block = !join->is_beside || n_columns % QUANT_BLOCK == 0;
        if (w.dtype != first.dtype || (dtype_is_quantized(w.dtype) && !begins_block)) dtype = OPS_DTYPE_F32;
        CHECK(join->is_beside ? join->parts[i].n == join->parts[0].n : w.dims[1] == first.dims[1], "parts fit each other");
        n_rows = join->is_beside ? join->parts[i].n : n_rows + join->parts[i].n;
        n_columns = join->is_beside ? n_columns + w.dims[1] : w.dims[1];
    }
    return tensor_make(NULL, OPS_PLACE_HOST, dtype, 2, (int64_t[]){n_rows, n_columns});
}

static float rounded(float value, ops_dtype dtype) {
    if (dtype == OPS_DTYPE_F16) return f16_to_f32(f32_to_f16(value));
    return dtype == OPS_DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(value)) : value;
}

/* out is zeroed. Of parts beside each other, the sum: added up in f32, then rounded to dtype. False: no part has one. */
static bool join_biases(float *out, ops_dtype dtype, int64_t n_rows, const model *m, const device_join *join) {
    bool has_any = false;
    int64_t first = 0;
    for (size_t i = 0; i < join->n_parts; i++) {
        const device_rows *part = &join->parts[i];
        if (model_has_weight(m, "%s.bias", part->name)) {
            ops_tensor from = model_weight(m, "%s.bias", part->name);
            for (int64_t r = 0; r < part->n; r++) out[first + r] += tensor_value(&from, row_at(part, r));
            has_any = true;
        }
        if (!join->is_beside) first += part->n;
    }
    for (int64_t r = 0; join->is_beside && r < n_rows; r++) out[r] = rounded(out[r], dtype);
    return has_any;
}

status device_matrix_join(ops_ctx *ctx, ops_matrix **matrix, const model *m, const device_join *join, err *e) {
    ops_tensor w = joined_shape(m, join);
    const int64_t n_rows = w.dims[0];
    w.data = malloc(tensor_bytes(&w));
    ops_tensor bias = tensor_make(calloc((size_t)n_rows, sizeof(float)), OPS_PLACE_HOST, OPS_DTYPE_F32, 1, &n_rows);
    status st = w.data && bias.data ? STATUS_OK
                                    : fail(e, STATUS_NO_MEMORY, "weight %s: no memory to gather it", join->parts[0].name);
    int64_t row = 0, column = 0;
    for (size_t i = 0; i < join->n_parts && st == STATUS_OK; i++) {
        ops_tensor from = part_weight(m, &join->parts[i]);
        copy_rows(&w, row, column, &from, &join->parts[i], from.dims[1]);
        if (join->is_beside) column += from.dims[1];
        else row += join->parts[i].n;
    }
    bool has_bias = st == STATUS_OK && join_biases(bias.data, ops_activation_dtype(ctx, w.dtype), n_rows, m, join);
    if (st == STATUS_OK) st = ops_matrix_open_as(ctx, matrix, &w, has_bias ? &bias : NULL, model_product(m), e);
    free(w.data);
    free(bias.data);
    return st;
}

/* ---- adapters ------------------------------------------------------------------------------------ */

#define PARTS_MAX 4

/* a: the parts' factors, one below the other; of parts beside each other, each in the columns of its x. */
static void fill_a(const ops_tensor *a, const adapter_factors *f, const bool *has, const model *m, const device_join *join) {
    int64_t row = 0, column = 0;
    for (size_t p = 0; p < join->n_parts; p++) {
        int64_t width = part_weight(m, &join->parts[p]).dims[1], n = has[p] ? f[p].a.dims[0] * width : 0;
        for (int64_t i = 0; i < n; i++)
            tensor_set_value(a, (row + i / width) * a->dims[1] + column + i % width, tensor_value(&f[p].a, i));
        if (has[p]) row += f[p].a.dims[0];
        if (join->is_beside) column += width;
    }
}

/* b: the wanted rows of each part, in the columns of its own a. */
static void fill_b(const ops_tensor *b, const adapter_factors *f, const bool *has, const device_join *join) {
    int64_t column = 0, row = 0;
    for (size_t p = 0; p < join->n_parts; p++) {
        const device_rows *part = &join->parts[p];
        int64_t r = has[p] ? f[p].a.dims[0] : 0;
        for (int64_t i = 0; i < part->n; i++)
            for (int64_t k = 0; k < r; k++) {
                double value = f[p].scale * (double)tensor_value(&f[p].b, row_at(part, i) * r + k);
                tensor_set_value(b, (row + i) * b->dims[1] + column + k, (float)value);
            }
        column += r;
        if (!join->is_beside) row += part->n;
    }
}

status device_low_rank_open(ops_ctx *ctx, ops_dtype dtype, ops_matrix **a, ops_matrix **b, int64_t *rank, const model *m,
                            int served, const device_join *join, err *e) {
    CHECK(join->n_parts >= 1 && join->n_parts <= PARTS_MAX, "a matrix is joined of few parts");
    adapter_factors f[PARTS_MAX];
    bool has[PARTS_MAX];
    const ops_tensor shape = joined_shape(m, join);
    const int64_t n_out = shape.dims[0], n_in = shape.dims[1];
    *a = *b = NULL;
    *rank = 0;
    for (size_t p = 0; p < join->n_parts; p++) {
        char name[NAME_BYTES];
        (void)snprintf(name, sizeof name, "%s.weight", join->parts[p].name);
        has[p] = model_served_factors(m, served, name, &f[p]);
        if (has[p]) *rank += f[p].a.dims[0];
    }
    if (*rank == 0) return STATUS_OK;
    size_t size = dtype_bytes(dtype);
    ops_tensor wide = tensor_make(calloc((size_t)(*rank * n_in), size), OPS_PLACE_HOST, dtype, 2, (int64_t[]){*rank, n_in});
    ops_tensor tall = tensor_make(calloc((size_t)(n_out * *rank), size), OPS_PLACE_HOST, dtype, 2, (int64_t[]){n_out, *rank});
    status st = wide.data && tall.data ? STATUS_OK
                                       : fail(e, STATUS_NO_MEMORY, "adapter: no memory for %s", join->parts[0].name);
    if (st == STATUS_OK) {
        fill_a(&wide, f, has, m, join);
        fill_b(&tall, f, has, join);
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
