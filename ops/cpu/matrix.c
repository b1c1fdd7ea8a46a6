/* Matrices of linear layers: weights of the file in the order that the kernels of a product read (simd.h).
 *
 * Panels of 32 outputs, a panel in blocks of k, each panel packed by one thread from rows that the caller's reader
 * brings; outputs past n_out and k past n_in are zero. What the weights are kept as is the product's choice: OPS_PRODUCT_INT8
 * keeps codes, of q8 its own, OPS_PRODUCT_BF16 and OPS_PRODUCT_FP8 keep bf16 (the codes of FP8 are exact in it). */
#include <stdlib.h>
#include <string.h>

#include "ops/cpu/cpu_internal.h"

/* ---- blocks -------------------------------------------------------------------------------- */

/* A run of weights in OPS_PRODUCT_INT8. */
typedef struct {
    float scale;
    int8_t codes[OPS_INT8_RUN];
} int8_codes;

static bool holds_runs(const cpu_matrix *m) { return m->head.product == OPS_PRODUCT_INT8 && m->head.dtype == OPS_DTYPE_Q8; }

/* Of n_in weights of a panel. */
static size_t panel_bytes(const cpu_matrix *m) {
    int64_t rest = m->head.n_in % m->block_k;
    if (!holds_runs(m) || rest == 0) return (size_t)ceil_div(m->head.n_in, m->block_k) * m->block_bytes;
    return (size_t)(m->head.n_in / m->block_k) * m->block_bytes + INT8_HEAD +
           (size_t)(ceil_div(rest, INT8_TAIL) * INT8_TAIL * PANEL_COLS);
}

static size_t block_bytes(ops_dtype dtype) {
    if (!dtype_is_quantized(dtype)) return (size_t)QUANT_BLOCK * PANEL_COLS * dtype_bytes(dtype);
    return QUANT_HEAD + (size_t)QUANT_BLOCK * PANEL_COLS / (dtype == OPS_DTYPE_Q8 ? 1 : 2);
}

/* Column c of a run from its codes, n of them in whole pieces. */
static void put_run(unsigned char *out, const simd_product *kernels, int64_t c, const int8_codes *in, int64_t n) {
    const int dot_k = kernels->dot_k;
    memcpy(out + sizeof in->scale * (size_t)c, &in->scale, sizeof in->scale);
    out += INT8_HEAD + c * dot_k;
    for (int64_t k = 0; k < n; k += dot_k)
        for (int i = 0; i < dot_k; i++) out[k * PANEL_COLS + i] = (unsigned char)(in->codes[k + i] + kernels->offset_q8);
}

/* Column c of a block from 32 weights in q8, which are in blocks for the product of f32 alone. */
static void put_q8(unsigned char *out, int64_t c, const unsigned char *in) {
    memcpy(out + 2 * c, in, 2);
    for (int k = 0; k < QUANT_BLOCK; k++) out[QUANT_HEAD + k * PANEL_COLS + c] = in[2 + k];
}

/* The same in q4; the memory is zeroed. */
static void put_q4(unsigned char *out, const simd_product *kernels, int64_t c, const unsigned char *in) {
    const int dot_k = kernels->dot_k, shift = c < PANEL_COLS / 2 ? 0 : 4;
    memcpy(out + 2 * c, in, 2);
    out += QUANT_HEAD + c % (PANEL_COLS / 2) * dot_k;
    for (int k = 0; k < QUANT_BLOCK; k += dot_k)
        for (int i = 0; i < dot_k; i++) {
            unsigned code = in[2 + (k + i) % (QUANT_BLOCK / 2)] >> (k + i < QUANT_BLOCK / 2 ? 0 : 4) & 15;
            out[k * (PANEL_COLS / 2) + i] |= (unsigned char)(code << shift);
        }
}

/* Column c of a block from n values of two bytes. */
static void put_halves(unsigned char *out, const simd_product *kernels, int64_t c, const unsigned char *in, int64_t n) {
    if (kernels->dot_k == 2)
        for (int64_t k = 0; k < n; k += 2) memcpy(out + (k * PANEL_COLS + 2 * c) * 2, in + 2 * k, k + 1 < n ? 4 : 2);
    else
        for (int64_t k = 0; k < n; k++) memcpy(out + (k * PANEL_COLS + c) * 2, in + 2 * k, 2);
}

/* The same of four. */
static void put_floats(unsigned char *out, int64_t c, const unsigned char *in, int64_t n) {
    for (int64_t k = 0; k < n; k++) memcpy(out + (k * PANEL_COLS + c) * 4, in + 4 * k, 4);
}

/* A zeroed panel from the runs of n outputs. */
static void pack_runs(const cpu_matrix *m, unsigned char *panel, const int8_codes *held, int64_t n) {
    int64_t n_runs = ceil_div(m->head.n_in, OPS_INT8_RUN);
    for (int64_t i = 0; i < n_runs; i++, panel += m->block_bytes) {
        int64_t n_codes = min_i64(OPS_INT8_RUN, ceil_div(m->head.n_in - i * OPS_INT8_RUN, INT8_TAIL) * INT8_TAIL);
        for (int64_t c = 0; c < n; c++) put_run(panel, m->kernels, c, &held[c * n_runs + i], n_codes);
    }
}

/* A zeroed panel from the weights of its outputs. Block by block, so that both sides stay in the cache. */
static void pack_rows(const cpu_matrix *m, unsigned char *panel, const ops_tensor *w) {
    const int64_t n_in = w->dims[1];
    size_t row_bytes = dtype_row_bytes(w->dtype, n_in), in_bytes = dtype_row_bytes(w->dtype, QUANT_BLOCK);
    for (int64_t b = 0; b * QUANT_BLOCK < n_in; b++, panel += m->block_bytes) {
        int64_t n = min_i64(QUANT_BLOCK, n_in - b * QUANT_BLOCK);
        for (int64_t c = 0; c < w->dims[0]; c++) {
            const unsigned char *in = (const unsigned char *)w->data + (size_t)c * row_bytes + (size_t)b * in_bytes;
            if (w->dtype == OPS_DTYPE_Q8) put_q8(panel, c, in);
            else if (w->dtype == OPS_DTYPE_Q4) put_q4(panel, m->kernels, c, in);
            else if (w->dtype == OPS_DTYPE_F32) put_floats(panel, c, in, n);
            else put_halves(panel, m->kernels, c, in, n);
        }
    }
}

/* ---- panels -------------------------------------------------------------------------------- */

typedef struct {
    const simd_kernels *simd;
    cpu_matrix *m;
    const ops_rows *from;
    unsigned char *spaces; /* for each thread: a row as f32, a panel's rows as the matrix holds them, and as they are read */
    size_t values_bytes, held_bytes, space_bytes;
} pack_job;

/* The weights of output o in the dtype that the matrix holds. values: room for them. */
static void hold_row(const pack_job *j, void *held, float *values, const ops_tensor *w, int64_t row, int64_t o) {
    const int64_t n_in = w->dims[1];
    const cpu_matrix *m = j->m;
    int8_codes *runs = held;
    float factor;
    if (dtype_is_quantized(w->dtype)) tensor_row_values(values, w, row);
    else j->simd->widen(values, (const unsigned char *)w->data + (size_t)row * dtype_row_bytes(w->dtype, n_in), w->dtype, n_in);
    if (m->scales) {
        m->scales[o] = e4m3_scale(values, n_in, &factor);
        e4m3_round(values, values, n_in, factor);
    }
    if (holds_runs(m))
        for (int64_t k = 0; k < n_in; k += OPS_INT8_RUN, runs++)
            runs->scale = j->simd->code_run(runs->codes, values + k, min_i64(OPS_INT8_RUN, n_in - k));
    else j->simd->narrow(held, values, m->head.dtype, n_in);
}

static size_t held_row_bytes(const cpu_matrix *m) {
    if (holds_runs(m)) return (size_t)ceil_div(m->head.n_in, OPS_INT8_RUN) * sizeof(int8_codes);
    return dtype_row_bytes(m->head.dtype, m->head.n_in);
}

static void pack_panel(void *arg, int64_t panel, int thread) {
    const pack_job *j = arg;
    const cpu_matrix *m = j->m;
    int64_t first = panel * PANEL_COLS, n_in = m->head.n_in, n = min_i64(PANEL_COLS, m->head.n_out - first);
    size_t row_bytes = held_row_bytes(m);
    unsigned char *values = j->spaces + (size_t)thread * j->space_bytes, *held = values + j->values_bytes;
    unsigned char *rows = held + j->held_bytes, *out = m->panels + (size_t)panel * m->panel_bytes;
    ops_tensor w = tensor_make(rows, OPS_PLACE_HOST, j->from->dtype, 2, (int64_t[]){n, n_in});
    j->from->read(j->from->user, rows, dtype_row_bytes(w.dtype, n_in), first, n);
    if (w.dtype != m->head.dtype || m->scales || holds_runs(m)) {
        for (int64_t r = 0; r < n; r++) hold_row(j, held + (size_t)r * row_bytes, (float *)(void *)values, &w, r, first + r);
        if (holds_runs(m)) {
            pack_runs(m, out, (const int8_codes *)(const void *)held, n);
            return;
        }
        w = tensor_make(held, OPS_PLACE_HOST, m->head.dtype, 2, w.dims);
    }
    pack_rows(m, out, &w);
}

static status pack_matrix(cpu_state *s, cpu_matrix *m, const ops_rows *from, err *e) {
    pack_job j = {.simd = s->simd, .m = m, .from = from};
    j.values_bytes = align_up((size_t)from->n_in * sizeof(float));
    j.held_bytes = align_up(PANEL_COLS * held_row_bytes(m));
    j.space_bytes = j.values_bytes + j.held_bytes + align_up(PANEL_COLS * dtype_row_bytes(from->dtype, from->n_in));
    j.spaces = malloc((size_t)pool_threads(s->pool) * j.space_bytes);
    if (!j.spaces) return fail(e, STATUS_NO_MEMORY, "ops: no memory to pack a matrix");
    pool_run(s->pool, m->n_panels, pack_panel, &j);
    free(j.spaces);
    return STATUS_OK;
}

/* ---- opening ------------------------------------------------------------------------------- */

/* What the weights of a matrix are kept as. */
static ops_dtype held_dtype(ops_dtype dtype, ops_product product) {
    if (product == OPS_PRODUCT_BF16 || product == OPS_PRODUCT_FP8) return OPS_DTYPE_BF16;
    return product == OPS_PRODUCT_INT8 && !dtype_is_quantized(dtype) ? OPS_DTYPE_Q8 : dtype;
}

status cpu_matrix_open(void *state, ops_matrix **matrix, const ops_rows *rows,
                       const ops_tensor *bias, ops_product product, err *e) {
    cpu_state *s = state;
    cpu_matrix *m = calloc(1, sizeof *m);
    if (!m) return fail(e, STATUS_NO_MEMORY, "ops: no memory for a matrix");
    ops_dtype dtype = held_dtype(rows->dtype, product);
    m->head = (ops_matrix){.n_out = rows->n_out, .n_in = rows->n_in, .dtype = dtype, .product = product};
    bool is_fp8 = product == OPS_PRODUCT_FP8;
    m->kernels = product == OPS_PRODUCT_INT8 ? s->simd->int8 : product == OPS_PRODUCT_BF16 || is_fp8 ? s->simd->bf16 : s->simd->f32;
    m->n_panels = ceil_div(m->head.n_out, PANEL_COLS);
    m->block_k = holds_runs(m) ? OPS_INT8_RUN : QUANT_BLOCK;
    m->block_bytes = holds_runs(m) ? INT8_HEAD + OPS_INT8_RUN * PANEL_COLS : block_bytes(dtype);
    m->panel_bytes = panel_bytes(m);
    size_t bias_bytes = (size_t)m->n_panels * PANEL_COLS * sizeof(float);
    size_t scale_bytes = is_fp8 ? bias_bytes : 0;
    m->head.bytes = (size_t)m->n_panels * m->panel_bytes + bias_bytes + scale_bytes;
    void *data = NULL;
    status st = cpu_memory_open(&data, m->head.bytes, e);
    if (st != STATUS_OK) {
        free(m);
        return st;
    }
    m->bias = data;
    m->scales = is_fp8 ? m->bias + m->n_panels * PANEL_COLS : NULL;
    m->panels = (unsigned char *)data + bias_bytes + scale_bytes;
    if (bias)
        for (int64_t i = 0; i < m->head.n_out; i++) m->bias[i] = tensor_value(bias, i);
    st = pack_matrix(s, m, rows, e);
    if (st == STATUS_OK) *matrix = &m->head;
    else cpu_matrix_close(s, &m->head);
    return st;
}

void cpu_matrix_close(void *state, ops_matrix *matrix) {
    (void)state;
    cpu_matrix *m = (cpu_matrix *)matrix;
    cpu_memory_close(m->bias, m->head.bytes); /* bias is where the memory begins */
    free(m);
}
