/* out[r,o] = act(bias[o] + sum over i of x[r,i] w[o,i]) + add[r,o]
 *
 * The matrix lies in panels of 32 outputs, [panel][k][32], in its own dtype. Every output element has
 * one f32 accumulator that runs over k in order; where k is cut into blocks the partial sum is stored
 * to out and loaded again, which rounds nothing. So one row, many rows, any number of threads and any
 * blocking give equal bits.
 *
 * One row: x is used in place; a task is a group of panels, each streamed once.
 * A matrix of OPS_PRODUCT_BF16 is the same with both sides rounded, unless the processor has kernels of its own for it;
 * those, and OPS_PRODUCT_INT8, are in reduced.c. Codes of OPS_PRODUCT_FP8 are exact in bf16 and are multiplied as such; what
 * is its own is done where x is read and before the bias.
 *
 * Many rows: x is first copied into tiles [row block][k block][tile][rows of tile][256]. A task is a
 * block of rows times a group of panels. Inside: for each k block, for each panel (made f32 once when
 * there are several tiles to use it), for each tile. A k block of a panel in f32 is 32 KiB and stays
 * in L1/L2 while the tiles of x, 240 rows x 256 = 240 KiB, go by from L2. */
#include <stdlib.h>
#include <string.h>

#include "ops/cpu/cpu_internal.h"

#define K_BLOCK        TILE_STRIDE
#define ROW_BLOCK_MAX  384 /* rows of x in one task: 384 KiB of a k block */
#define GROUP_PANELS   8   /* panels of one task; their out block is rewritten once per k block */
#define ROWS_TO_UPCAST 3   /* tiles of rows from which a panel is made f32 beforehand */
#define GEMV_GROUP     8   /* panels of one task with a single row */

/* ---- packing the matrix -------------------------------------------------------------------- */

/* Codes of one packed block. */
static size_t quant_codes_bytes(ops_dtype dtype) {
    return (size_t)QUANT_BLOCK * PANEL_COLS / (dtype == OPS_DTYPE_Q8 ? 1 : 2);
}

#define PACK_K 32 /* k of one small block, so that both sides stay in cache */

/* Where row k of a packed panel begins; of q8 and q4, k begins a block. */
static size_t panel_offset(ops_dtype dtype, int64_t k) {
    if (!dtype_is_quantized(dtype)) return (size_t)(k * PANEL_COLS) * dtype_bytes(dtype);
    return (size_t)(k / QUANT_BLOCK) * (QUANT_HEAD + quant_codes_bytes(dtype));
}

/* Turns blocks of rows into blocks of a panel: the scales of its columns, then the codes row by row. */
static void pack_blocks(unsigned char *panel, const ops_tensor *w) {
    size_t row_bytes = dtype_row_bytes(w->dtype, w->dims[1]), in_bytes = dtype_row_bytes(w->dtype, QUANT_BLOCK);
    for (int64_t b = 0; b < ceil_div(w->dims[1], QUANT_BLOCK); b++) {
        unsigned char *out = panel + panel_offset(w->dtype, b * QUANT_BLOCK);
        for (int64_t c = 0; c < w->dims[0]; c++) {
            const unsigned char *in = (const unsigned char *)w->data + (size_t)c * row_bytes + (size_t)b * in_bytes;
            memcpy(out + 2 * c, in, 2);
            for (int k = 0; k < QUANT_BLOCK; k++) {
                if (w->dtype == OPS_DTYPE_Q8) {
                    out[QUANT_HEAD + k * PANEL_COLS + c] = in[2 + k];
                    continue;
                }
                unsigned code = in[2 + k % (QUANT_BLOCK / 2)] >> (k < QUANT_BLOCK / 2 ? 0 : 4) & 15;
                unsigned char *to = out + QUANT_HEAD + k * (PANEL_COLS / 2) + c % (PANEL_COLS / 2);
                *to |= (unsigned char)(code << (c < PANEL_COLS / 2 ? 0 : 4)); /* the memory is zeroed */
            }
        }
    }
}

static void pack_values(unsigned char *panel, const ops_tensor *w) {
    size_t size = dtype_bytes(w->dtype);
    int64_t n_in = w->dims[1];
    for (int64_t k0 = 0; k0 < n_in; k0 += PACK_K) {
        int64_t k1 = min_i64(k0 + PACK_K, n_in);
        for (int64_t c = 0; c < w->dims[0]; c++) {
            const unsigned char *from = (const unsigned char *)w->data + (size_t)(c * n_in + k0) * size;
            unsigned char *to = panel + (size_t)(k0 * PANEL_COLS + c) * size;
            if (size == 2)
                for (int64_t k = k0; k < k1; k++, from += 2, to += 2 * PANEL_COLS)
                    memcpy(to, from, 2);
            else
                for (int64_t k = k0; k < k1; k++, from += 4, to += 4 * PANEL_COLS)
                    memcpy(to, from, 4);
        }
    }
}

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
    float factor;
    if (dtype_is_quantized(w->dtype)) tensor_row_values(values, w, row);
    else j->simd->widen(values, (const unsigned char *)w->data + (size_t)row * dtype_row_bytes(w->dtype, n_in), w->dtype, n_in);
    if (m->scales) {
        m->scales[o] = e4m3_scale(values, n_in, &factor);
        e4m3_round(values, values, n_in, factor);
    }
    if (dtype_is_quantized(m->head.dtype)) quantize_row(held, m->head.dtype, values, n_in);
    else j->simd->narrow(held, values, m->head.dtype, n_in);
}

static void pack_panel(void *arg, int64_t panel, int thread) {
    const pack_job *j = arg;
    const cpu_matrix *m = j->m;
    int64_t first = panel * PANEL_COLS, n_in = m->head.n_in, n = min_i64(PANEL_COLS, m->head.n_out - first);
    size_t row_bytes = dtype_row_bytes(m->head.dtype, n_in);
    unsigned char *values = j->spaces + (size_t)thread * j->space_bytes, *held = values + j->values_bytes;
    unsigned char *rows = held + j->held_bytes, *out = m->panels + (size_t)panel * m->panel_bytes;
    ops_tensor w = tensor_make(rows, OPS_PLACE_HOST, j->from->dtype, 2, (int64_t[]){n, n_in});
    j->from->read(j->from->user, rows, dtype_row_bytes(w.dtype, n_in), first, n);
    if (w.dtype != m->head.dtype || m->scales) {
        for (int64_t r = 0; r < n; r++) hold_row(j, held + (size_t)r * row_bytes, (float *)(void *)values, &w, r, first + r);
        w = tensor_make(held, OPS_PLACE_HOST, m->head.dtype, 2, w.dims);
    }
    if (m->reduced) cpu_reduced_pack(m, out, &w);
    else if (dtype_is_quantized(w.dtype)) pack_blocks(out, &w);
    else pack_values(out, &w);
}

static status pack_matrix(cpu_state *s, cpu_matrix *m, const ops_rows *from, err *e) {
    pack_job j = {.simd = s->simd, .m = m, .from = from};
    j.values_bytes = align_up((size_t)from->n_in * sizeof(float));
    j.held_bytes = align_up(PANEL_COLS * dtype_row_bytes(m->head.dtype, from->n_in));
    j.space_bytes = j.values_bytes + j.held_bytes + align_up(PANEL_COLS * dtype_row_bytes(from->dtype, from->n_in));
    j.spaces = malloc((size_t)pool_threads(s->pool) * j.space_bytes);
    if (!j.spaces) return fail(e, STATUS_NO_MEMORY, "ops: no memory to pack a matrix");
    pool_run(s->pool, m->n_panels, pack_panel, &j);
    free(j.spaces);
    return STATUS_OK;
}

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
    m->reduced = product == OPS_PRODUCT_INT8 ? s->simd->int8 : product == OPS_PRODUCT_BF16 || is_fp8 ? s->simd->bf16 : NULL;
    m->n_panels = ceil_div(m->head.n_out, PANEL_COLS);
    int64_t whole_k = dtype_is_quantized(dtype) ? ceil_div(m->head.n_in, QUANT_BLOCK) * QUANT_BLOCK : m->head.n_in;
    m->panel_bytes = m->reduced ? cpu_reduced_panel_bytes(dtype, m->head.n_in) : panel_offset(dtype, whole_k);
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

/* ---- behind the sums ----------------------------------------------------------------------- */

void cpu_linear_finish(const linear_call *c, float *sums, int64_t stride, int64_t row, int n_rows, int64_t col, int n_cols) {
    int n_plain = (int)(c->act_from <= col ? 0 : min_i64(c->act_from - col, n_cols));
    const float *bias = c->m->bias + col;
    if (c->act == OPS_ACT_NONE) n_plain = n_cols;
    for (int r = 0; c->row_scales && r < n_rows; r++)
        for (int i = 0; i < n_cols; i++)
            sums[r * stride + i] = sums[r * stride + i] * c->m->scales[col + i] * c->row_scales[row + r];
    if (n_plain > 0) c->simd->finish(sums, stride, n_rows, n_plain, bias, OPS_ACT_NONE);
    if (n_plain < n_cols) c->simd->finish(sums + n_plain, stride, n_rows, n_cols - n_plain, bias + n_plain, c->act);
    for (int r = 0; c->add && r < n_rows; r++) {
        float *out = sums + r * stride;
        const float *add = c->add + (row + r) * c->m->head.n_out + col;
        for (int i = 0; i < n_cols; i++) out[i] += add[i];
    }
}

/* ---- one row ------------------------------------------------------------------------------- */

typedef struct {
    linear_call c;
    bool rounds; /* x to bf16 before it is used */
    float *panel_f32;   /* one k block of a panel for each thread */
    /* many rows only */
    float *tiles;       /* packed x */
    int64_t row_block, n_row_blocks, n_groups, tiles_a_block;
} linear_job;

/* A panel of blocks without enough others beside it for gemv. */
static void last_panel(const linear_job *j, float *sums, const unsigned char *w, int thread) {
    float *panel_f32 = j->panel_f32 + thread * K_BLOCK * PANEL_COLS;
    ops_dtype dtype = j->c.m->head.dtype;
    for (int64_t k0 = 0; k0 < j->c.m->head.n_in; k0 += K_BLOCK) {
        int64_t k = min_i64(K_BLOCK, j->c.m->head.n_in - k0);
        j->c.simd->upcast(panel_f32, w + panel_offset(dtype, k0), dtype, k);
        j->c.simd->tile(sums, PANEL_COLS, j->c.x + k0, 1, panel_f32, PANEL_COLS, OPS_DTYPE_F32, k, PANEL_COLS, k0 > 0);
    }
}

static void gemv_group(void *arg, int64_t group, int thread) {
    const linear_job *j = arg;
    const simd_kernels *simd = j->c.simd;
    const cpu_matrix *m = j->c.m;
    int64_t panel = group * GEMV_GROUP, end = min_i64(panel + GEMV_GROUP, m->n_panels);
    float sums[GEMV_GROUP * PANEL_COLS];
    while (panel < end) {
        const unsigned char *w = m->panels + (size_t)panel * m->panel_bytes;
        int64_t n = simd->gemv_panels;
        if (panel + n <= end) {
            simd->gemv(sums, j->c.x, w, (int64_t)m->panel_bytes, m->head.dtype, m->head.n_in);
        } else if (dtype_is_quantized(m->head.dtype)) {
            n = 1;
            last_panel(j, sums, w, thread);
        } else {
            n = 1;
            simd->tile(sums, PANEL_COLS, j->c.x, 1, w, PANEL_COLS, m->head.dtype, m->head.n_in, PANEL_COLS, false);
        }
        int64_t col = panel * PANEL_COLS;
        int n_cols = (int)min_i64(n * PANEL_COLS, m->head.n_out - col);
        cpu_linear_finish(&j->c, sums, n * PANEL_COLS, 0, 1, col, n_cols);
        memcpy(j->c.out + col, sums, (size_t)n_cols * sizeof *sums);
        panel += n;
    }
}

/* ---- many rows ----------------------------------------------------------------------------- */

/* Where the tile of x with these rows and this k block lies. */
static float *tile_at(const linear_job *j, int64_t block, int64_t k_block, int64_t tile) {
    int64_t n_k_blocks = ceil_div(j->c.m->head.n_in, K_BLOCK);
    int64_t index = (block * n_k_blocks + k_block) * j->tiles_a_block + tile;
    return j->tiles + index * j->c.simd->tile_rows * TILE_STRIDE;
}

static void pack_rows(void *arg, int64_t first, int64_t n, int thread) {
    const linear_job *j = arg;
    (void)thread;
    int64_t n_in = j->c.m->head.n_in, tile_rows = j->c.simd->tile_rows;
    for (int64_t r = first; r < first + n; r++) {
        int64_t in_block = r % j->row_block;
        float factor = 0.0f;
        if (j->c.row_scales) j->c.row_scales[r] = e4m3_scale(j->c.x + r * j->c.x_stride, n_in, &factor);
        for (int64_t k = 0; k < n_in; k += K_BLOCK) {
            float *tile = tile_at(j, r / j->row_block, k / K_BLOCK, in_block / tile_rows);
            float *to = tile + in_block % tile_rows * TILE_STRIDE;
            const float *from = j->c.x + r * j->c.x_stride + k;
            int64_t width = min_i64(K_BLOCK, n_in - k);
            if (j->rounds) j->c.simd->round_bf16(to, from, width);
            else if (j->c.row_scales) e4m3_round(to, from, width, factor);
            else memcpy(to, from, (size_t)width * sizeof *to);
        }
    }
}

/* All rows of a block times one k block of one panel. */
static void multiply_panel(const linear_job *j, int64_t block, int64_t panel, int64_t k0,
                           float *panel_f32) {
    const cpu_matrix *m = j->c.m;
    const simd_kernels *simd = j->c.simd;
    int64_t first_row = block * j->row_block;
    int64_t n_rows = min_i64(j->row_block, j->c.n_rows - first_row);
    int64_t k = min_i64(K_BLOCK, m->head.n_in - k0), col = panel * PANEL_COLS;
    int n_cols = (int)min_i64(PANEL_COLS, m->head.n_out - col);
    int tile_rows = simd->tile_rows;
    ops_dtype dtype = m->head.dtype;
    const void *w = m->panels + (size_t)panel * m->panel_bytes + panel_offset(dtype, k0);
    if (dtype_is_quantized(dtype) || (dtype != OPS_DTYPE_F32 && n_rows >= ROWS_TO_UPCAST * tile_rows)) {
        simd->upcast(panel_f32, w, dtype, k);
        w = panel_f32;
        dtype = OPS_DTYPE_F32;
    }
    for (int64_t r = 0; r < n_rows; r += tile_rows) {
        int rows = (int)min_i64(tile_rows, n_rows - r);
        float *out = j->c.out + (first_row + r) * m->head.n_out + col;
        simd->tile(out, m->head.n_out, tile_at(j, block, k0 / K_BLOCK, r / tile_rows), rows, w,
                   PANEL_COLS, dtype, k, n_cols, k0 > 0);
        if (k0 + k == m->head.n_in) cpu_linear_finish(&j->c, out, m->head.n_out, first_row + r, rows, col, n_cols);
    }
}

static void multiply_group(void *arg, int64_t task, int thread) {
    const linear_job *j = arg;
    int64_t block = task % j->n_row_blocks, group = task / j->n_row_blocks;
    int64_t first = j->c.m->n_panels * group / j->n_groups;
    int64_t end = j->c.m->n_panels * (group + 1) / j->n_groups;
    float *panel_f32 = j->panel_f32 + thread * K_BLOCK * PANEL_COLS;
    for (int64_t k0 = 0; k0 < j->c.m->head.n_in; k0 += K_BLOCK)
        for (int64_t panel = first; panel < end; panel++)
            multiply_panel(j, block, panel, k0, panel_f32);
}

status cpu_linear(void *state, ops_tensor *out, const ops_tensor *x, const ops_matrix *matrix,
                  const ops_linear_params *params) { /* one order of sums for every row: is_few says nothing */
    cpu_state *s = state;
    const cpu_matrix *m = (const cpu_matrix *)matrix;
    linear_job j = {.c = {.simd = s->simd, .m = m, .out = out->data, .x = x->data,
                          .add = params->add ? params->add->data : NULL, .n_rows = x->dims[0],
                          .x_stride = tensor_row_stride(x), .act = params->act, .act_from = params->act_from},
                    .rounds = m->head.product == OPS_PRODUCT_BF16};
    if (m->reduced) return cpu_reduced_linear(s, &j.c);
    int n_threads = pool_threads(s->pool);
    size_t f32_bytes = (size_t)n_threads * K_BLOCK * PANEL_COLS * sizeof(float);
    if (j.c.n_rows == 1) {
        float row_scale, factor;
        j.panel_f32 = (float *)(void *)cpu_scratch(s, f32_bytes + (size_t)m->head.n_in * sizeof(float));
        if (!j.panel_f32) return STATUS_NO_MEMORY;
        float *rounded = j.panel_f32 + f32_bytes / sizeof(float);
        if (j.rounds) s->simd->round_bf16(rounded, j.c.x, m->head.n_in);
        if (m->scales) {
            row_scale = e4m3_scale(j.c.x, m->head.n_in, &factor);
            e4m3_round(rounded, j.c.x, m->head.n_in, factor);
            j.c.row_scales = &row_scale;
        }
        if (j.rounds || m->scales) j.c.x = rounded;
        pool_run(s->pool, ceil_div(m->n_panels, GEMV_GROUP), gemv_group, &j);
        return STATUS_OK;
    }
    j.n_row_blocks = ceil_div(j.c.n_rows, ROW_BLOCK_MAX);
    j.tiles_a_block = ceil_div(ceil_div(j.c.n_rows, j.n_row_blocks), s->simd->tile_rows);
    j.row_block = j.tiles_a_block * s->simd->tile_rows;
    j.n_row_blocks = ceil_div(j.c.n_rows, j.row_block);
    /* enough groups that the threads finish together */
    j.n_groups = ceil_div(m->n_panels, GROUP_PANELS);
    if (j.tiles_a_block == 1) j.n_groups = m->n_panels; /* weights are streamed: front to back */
    while (n_threads > 1 && j.n_groups < m->n_panels && j.n_groups * j.n_row_blocks < 8 * n_threads)
        j.n_groups = min_i64(2 * j.n_groups, m->n_panels);

    size_t tile_bytes = (size_t)s->simd->tile_rows * TILE_STRIDE * sizeof(float);
    size_t n_tiles = (size_t)(j.n_row_blocks * ceil_div(m->head.n_in, K_BLOCK) * j.tiles_a_block);
    unsigned char *scratch = cpu_scratch(s, f32_bytes + n_tiles * tile_bytes + row_scales_bytes(&j.c));
    if (!scratch) return STATUS_NO_MEMORY;
    j.panel_f32 = (float *)(void *)scratch;
    j.tiles = (float *)(void *)(scratch + f32_bytes);
    if (m->scales) j.c.row_scales = (float *)(void *)(scratch + f32_bytes + n_tiles * tile_bytes);
    cpu_split_rows(s, j.c.n_rows, m->scales ? 8 * m->head.n_in : m->head.n_in / 4, pack_rows, &j);
    pool_run(s->pool, j.n_groups * j.n_row_blocks, multiply_group, &j);
    return STATUS_OK;
}
