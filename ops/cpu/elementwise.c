/* add_table: out[r,c] = x[r,c] + table[r mod n_table,c]
 * scale_columns: out[r,c] = x[r,c] w[c]
 * activate: out[r,c] = act(x[r,c])
 * gate: out[r,c] = act(x[r,c]) x[r,n + c]
 * and cast. Bound by memory, so but for the activation the compiler's own vectors are enough. A single
 * long row (ops_add) is cut by columns. */
#include <string.h>

#include "ops/cpu/cpu_internal.h"

#define ELEMENTS_A_NS 4

typedef struct {
    float *out;
    const float *x, *table;
    int64_t cols, n_table;
} add_job;

static void add_rows(void *arg, int64_t first, int64_t n, int thread) {
    const add_job *j = arg;
    (void)thread;
    for (int64_t r = first; r < first + n; r++) {
        float *out = j->out + r * j->cols;
        const float *x = j->x + r * j->cols, *t = j->table + r % j->n_table * j->cols;
        for (int64_t c = 0; c < j->cols; c++) out[c] = x[c] + t[c];
    }
}

static void add_columns(void *arg, int64_t first, int64_t n, int thread) {
    const add_job *j = arg;
    (void)thread;
    for (int64_t c = first; c < first + n; c++) j->out[c] = j->x[c] + j->table[c];
}

status cpu_add_table(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *table) {
    cpu_state *s = state;
    add_job j = {.out = out->data, .x = x->data, .table = table->data, .cols = x->dims[1],
                 .n_table = table->dims[0]};
    if (x->dims[0] == 1 && j.cols < 100000)
        add_columns(&j, 0, j.cols, 0);
    else if (x->dims[0] == 1)
        cpu_split_rows(s, j.cols, 1, add_columns, &j);
    else
        cpu_split_rows(s, x->dims[0], j.cols / ELEMENTS_A_NS + 1, add_rows, &j);
    return STATUS_OK;
}

/* ---- scale_columns and gate ---------------------------------------------------------------- */

typedef struct {
    const simd_kernels *simd;
    float *out;
    const float *x, *w;
    int64_t cols;                 /* of out */
    int64_t out_stride, x_stride; /* activate only */
    ops_act act;
} columns_job;

static void scale_rows(void *arg, int64_t first, int64_t n, int thread) {
    const columns_job *j = arg;
    (void)thread;
    for (int64_t r = first; r < first + n; r++) {
        float *out = j->out + r * j->cols;
        const float *x = j->x + r * j->cols;
        for (int64_t c = 0; c < j->cols; c++) out[c] = x[c] * j->w[c];
    }
}

status cpu_scale_columns(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w) {
    columns_job j = {.out = out->data, .x = x->data, .w = w->data, .cols = x->dims[1]};
    cpu_split_rows(state, x->dims[0], j.cols / ELEMENTS_A_NS + 1, scale_rows, &j);
    return STATUS_OK;
}

static void activate_rows(void *arg, int64_t first, int64_t n, int thread) {
    const columns_job *j = arg;
    (void)thread;
    for (int64_t r = first; r < first + n; r++)
        j->simd->activate(j->out + r * j->out_stride, j->x + r * j->x_stride, j->cols, j->act);
}

status cpu_activate(void *state, ops_tensor *out, const ops_tensor *x, ops_act act) {
    cpu_state *s = state;
    columns_job j = {.simd = s->simd, .out = out->data, .x = x->data, .cols = out->dims[1], .act = act,
                     .out_stride = tensor_row_stride(out), .x_stride = tensor_row_stride(x)};
    cpu_split_rows(s, x->dims[0], j.cols + 1, activate_rows, &j);
    return STATUS_OK;
}

static void gate_rows(void *arg, int64_t first, int64_t n, int thread) {
    const columns_job *j = arg;
    (void)thread;
    for (int64_t r = first; r < first + n; r++)
        j->simd->gate(j->out + r * j->cols, j->x + 2 * r * j->cols, j->cols, j->act);
}

status cpu_gate(void *state, ops_tensor *out, const ops_tensor *x, ops_act act) {
    cpu_state *s = state;
    columns_job j = {.simd = s->simd, .out = out->data, .x = x->data, .cols = out->dims[1], .act = act};
    cpu_split_rows(s, x->dims[0], j.cols + 1, gate_rows, &j);
    return STATUS_OK;
}

/* ---- cast ---------------------------------------------------------------------------------- */

typedef struct {
    void *out;
    const void *x;
    ops_dtype from, to;
} cast_job;

static float load_as_f32(const void *x, ops_dtype dtype, int64_t i) {
    if (dtype == OPS_DTYPE_F16) return f16_to_f32(((const uint16_t *)x)[i]);
    if (dtype == OPS_DTYPE_BF16) return bf16_to_f32(((const uint16_t *)x)[i]);
    return ((const float *)x)[i];
}

static void cast_elements(void *arg, int64_t first, int64_t n, int thread) {
    const cast_job *j = arg;
    (void)thread;
    for (int64_t i = first; i < first + n; i++) {
        float v = load_as_f32(j->x, j->from, i);
        if (j->to == OPS_DTYPE_F16)
            ((uint16_t *)j->out)[i] = f32_to_f16(v);
        else if (j->to == OPS_DTYPE_BF16)
            ((uint16_t *)j->out)[i] = f32_to_bf16(v);
        else
            ((float *)j->out)[i] = v;
    }
}

status cpu_cast(void *state, ops_tensor *out, const ops_tensor *x) {
    if (out->dtype == x->dtype) {
        memmove(out->data, x->data, tensor_bytes(x));
        return STATUS_OK;
    }
    cast_job j = {.out = out->data, .x = x->data, .from = x->dtype, .to = out->dtype};
    cpu_split_rows(state, tensor_elements(x), 2, cast_elements, &j);
    return STATUS_OK;
}
