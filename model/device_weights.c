/* The backend reads matrices where they lie in the file. Vectors are few and small: they are widened to f32
 * here, on the host, once. */
#include "model/device_weights.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define NAME_BYTES 160

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

/* The stored matrix of a part, as [rows, everything else]. */
static ops_tensor part_weight(const model *m, const device_rows *part) {
    ops_tensor w = model_weight(m, "%s.weight", part->name);
    return tensor_reshape(&w, 2, (int64_t[]){w.dims[0], tensor_elements(&w) / w.dims[0]});
}

#define PARTS_MAX 4

/* Parts as one matrix, and where they lie. */
typedef struct {
    const device_join *join;
    ops_tensor stored[PARTS_MAX]; /* of each part */
    int64_t n_rows, n_columns;
    ops_dtype dtype; /* that holds them all */
} joined_weights;

static joined_weights joined_from(const model *m, const device_join *join) {
    CHECK(join->n_parts >= 1 && join->n_parts <= PARTS_MAX, "a matrix is joined of few parts");
    joined_weights j = {.join = join};
    for (size_t i = 0; i < join->n_parts; i++) {
        ops_tensor w = j.stored[i] = part_weight(m, &join->parts[i]);
        bool begins_block = !join->is_beside || j.n_columns % QUANT_BLOCK == 0;
        if (i == 0) j.dtype = w.dtype;
        else if (w.dtype != j.stored[0].dtype || (dtype_is_quantized(w.dtype) && !begins_block)) j.dtype = OPS_DTYPE_F32;
        CHECK(join->is_beside ? join->parts[i].n == join->parts[0].n : w.dims[1] == j.stored[0].dims[1], "parts fit each other");
        j.n_rows = join->is_beside ? join->parts[i].n : j.n_rows + join->parts[i].n;
        j.n_columns = join->is_beside ? j.n_columns + w.dims[1] : w.dims[1];
    }
    return j;
}

/* A stored row, as it is where the types agree, and otherwise as f32. */
static void read_row(unsigned char *out, ops_dtype dtype, const ops_tensor *stored, int64_t row) {
    size_t row_bytes = dtype_row_bytes(stored->dtype, stored->dims[1]);
    if (stored->dtype == dtype) memcpy(out, (const unsigned char *)stored->data + (size_t)row * row_bytes, row_bytes);
    else tensor_row_values((float *)(void *)out, stored, row);
}

/* ops_rows.read */
static void read_joined(const void *user, unsigned char *out, size_t stride, int64_t first, int64_t n) {
    const joined_weights *j = user;
    int64_t row = 0, column = 0; /* where the part begins */
    for (size_t i = 0; i < j->join->n_parts; i++) {
        const device_rows *part = &j->join->parts[i];
        int64_t begin = first > row ? first : row, end = first + n < row + part->n ? first + n : row + part->n;
        for (int64_t r = begin; r < end; r++)
            read_row(out + (size_t)(r - first) * stride + dtype_row_bytes(j->dtype, column), j->dtype, &j->stored[i],
                     row_at(part, r - row));
        if (j->join->is_beside) column += j->stored[i].dims[1];
        else row += part->n;
    }
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
    const joined_weights j = joined_from(m, join);
    const ops_rows rows = {j.dtype, j.n_rows, j.n_columns, read_joined, &j};
    ops_tensor bias = tensor_make(calloc((size_t)j.n_rows, sizeof(float)), OPS_PLACE_HOST, OPS_DTYPE_F32, 1, &j.n_rows);
    if (!bias.data) return fail(e, STATUS_NO_MEMORY, "weight %s: no memory for its bias", join->parts[0].name);
    bool has_bias = join_biases(bias.data, ops_activation_dtype(ctx, j.dtype), j.n_rows, m, join);
    status st = ops_matrix_open_rows(ctx, matrix, &rows, has_bias ? &bias : NULL, model_product(m), e);
    free(bias.data);
    return st;
}

/* ---- adapters ------------------------------------------------------------------------------------ */

/* a: the parts' factors, one below the other; of parts beside each other, each in the columns of its x. */
static void fill_a(const ops_tensor *a, const adapter_factors *f, const bool *has, const joined_weights *base) {
    int64_t row = 0, column = 0;
    for (size_t p = 0; p < base->join->n_parts; p++) {
        int64_t width = base->stored[p].dims[1], n = has[p] ? f[p].a.dims[0] * width : 0;
        for (int64_t i = 0; i < n; i++)
            tensor_set_value(a, (row + i / width) * a->dims[1] + column + i % width, tensor_value(&f[p].a, i));
        if (has[p]) row += f[p].a.dims[0];
        if (base->join->is_beside) column += width;
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
    adapter_factors f[PARTS_MAX];
    bool has[PARTS_MAX];
    const joined_weights base = joined_from(m, join);
    const int64_t n_out = base.n_rows, n_in = base.n_columns;
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
        fill_a(&wide, f, has, &base);
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

status device_vector_cut(ops_block *block, ops_tensor *out, float plus, const model *m, err *e, const char *name_format, ...) {
    char name[NAME_BYTES];
    va_list args;
    va_start(args, name_format);
    int n_chars = vsnprintf(name, sizeof name, name_format, args);
    va_end(args);
    CHECK(n_chars > 0 && n_chars < NAME_BYTES, "names of weights are short");
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

status device_table_cut(ops_block *block, ops_tensor *out, const model *m, err *e,
                        const char *name) {
    ops_tensor w = model_weight(m, "%s", name);
    *out = ops_block_cut(block, w.dtype, w.n_dims, w.dims);
    status st = ops_upload(block->ctx, out, w.data);
    if (st == STATUS_OK) st = ops_sync(block->ctx);
    return st == STATUS_OK ? st : fail(e, st, "weight %s: upload: %s", name, status_text((int)st));
}
