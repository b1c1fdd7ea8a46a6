/* out[r,o] = act(bias[o] + sum over i of x[r,i] w[o,i]) + add[r,o]
 *
 * One way for every product; what a product does with values is in its kernels (simd.h), and how weights lie is in matrix.c.
 *
 * x is packed once, row by row, into tiles [row block][k block of 256][tile], which is where it is rounded or coded. A task is
 * a block of rows times a group of panels; inside, for each k block, for each panel, for each tile. A k block of a panel
 * (8 to 32 KiB, expanded once where many tiles use it) stays in L1 or L2 while the tiles pass by from L2. Sums lie panel by
 * panel in memory of the task's own, where rows are a cache line or two apart: in out they may be a multiple of 4 KiB
 * apart, which few sets of a cache have room for. Bias, activation and the way to out come last, row by row.
 *
 * One row, where the product has a kernel for it: a task is a few panels, each streamed once.
 *
 * Every output element is one sum that runs over k in order, whatever the rows beside it: equal bits for any cut of rows and
 * of work. Codes of OPS_PRODUCT_FP8 are exact in bf16 and are multiplied as such; what is its own is done where x is read
 * and before the bias. */
#include <stdatomic.h>
#include <string.h>

#include "base/check.h"
#include "ops/cpu/cpu_internal.h"

#define K_BLOCK        TILE_STRIDE
#define ROW_BLOCK_MAX  384 /* rows of x in one task */
#define FAR_BYTES      (4 << 20) /* of out, from which it is written past the caches */
#define GEMV_GROUP     8   /* panels of one task with a single row */
#define EXPANDED_BYTES (K_BLOCK * PANEL_COLS * sizeof(float)) /* of a k block of a panel, at most */

BUILD_CHECK(K_BLOCK % OPS_INT8_RUN == 0 && OPS_INT8_RUN % QUANT_BLOCK == 0, "blocks fill runs, and runs k blocks");

typedef struct {
    const cpu_matrix *m;
    const simd_kernels *simd;
    float *out;
    const float *x, *add; /* add NULL: nothing */
    int64_t n_rows, x_stride;
    ops_act act;
    int64_t act_from;

    bool is_gemv, is_expanded;
    bool is_far; /* out does not stay in a cache */
    int offset; /* of the codes x meets */
    int64_t tile_rows, tiles_a_block, row_block, n_row_blocks, n_groups;
    size_t tile_bytes, space_bytes;
    unsigned char *tiles, *spaces; /* a space for each thread: an expanded k block, the sums of a task */
    float *row_scales;             /* of OPS_PRODUCT_FP8, where the rows of x have become codes; otherwise NULL */
} linear_job;

/* ---- x ------------------------------------------------------------------------------------- */

static unsigned char *tile_at(const linear_job *j, int64_t block, int64_t k_block, int64_t tile) {
    int64_t n_k_blocks = ceil_div(j->m->head.n_in, K_BLOCK);
    return j->tiles + (size_t)((block * n_k_blocks + k_block) * j->tiles_a_block + tile) * j->tile_bytes;
}

static int64_t rows_of_block(const linear_job *j, int64_t block) {
    return min_i64(j->row_block, j->n_rows - block * j->row_block);
}

static int rows_of_tile(const linear_job *j, int64_t block, int64_t tile) {
    return (int)min_i64(j->tile_rows, rows_of_block(j, block) - tile * j->tile_rows);
}

static void pack_rows(void *arg, int64_t first, int64_t n, int thread) {
    const linear_job *j = arg;
    (void)thread;
    int64_t n_in = j->m->head.n_in;
    for (int64_t r = first; r < first + n; r++) {
        int64_t block = r / j->row_block, tile = r % j->row_block / j->tile_rows, row = r % j->row_block % j->tile_rows;
        float factor = 0.0f, codes[K_BLOCK];
        if (j->row_scales) j->row_scales[r] = e4m3_scale(j->x + r * j->x_stride, n_in, &factor);
        for (int64_t k = 0; k < n_in; k += K_BLOCK) {
            const float *from = j->x + r * j->x_stride + k;
            int64_t width = min_i64(K_BLOCK, n_in - k);
            if (j->row_scales) {
                e4m3_round(codes, from, width, factor);
                from = codes;
            }
            j->m->kernels->pack_x(tile_at(j, block, k / K_BLOCK, tile), (int)row, rows_of_tile(j, block, tile), from, width,
                                  j->offset);
        }
    }
}

/* ---- sums ---------------------------------------------------------------------------------- */

/* A k block of a panel, and the panels of its group. */
typedef struct {
    int64_t block, panel, k0; /* block of rows */
    int64_t first, end;
} panel_place;

static const unsigned char *weights_at(const cpu_matrix *m, int64_t panel, int64_t k0) {
    return m->panels + (size_t)panel * m->panel_bytes + (size_t)(k0 / m->block_k) * m->block_bytes;
}

static int64_t whole_lines(int64_t bytes) { return ceil_div(bytes, LINE_BYTES) * LINE_BYTES; }

/* What the first of n tiles asks for while it is multiplied; each after it for what is weights_bytes and a tile further. A
 * single tile streams through the weights: those that are next. Many stay with a k block for long: each asks for its share
 * of the panel's next one, and the panels of a group for theirs of the tile's. */
static simd_ahead ahead_of(const linear_job *j, const panel_place *at, int64_t n_tiles) {
    const cpu_matrix *m = j->m;
    int64_t next_k = at->k0 + K_BLOCK, block_bytes = K_BLOCK / m->block_k * (int64_t)m->block_bytes;
    bool has_next_k = next_k < m->head.n_in;
    if (n_tiles == 1) {
        const unsigned char *weights = at->panel + 1 < at->end ? weights_at(m, at->panel + 1, at->k0)
                                                               : weights_at(m, at->first, next_k);
        return (simd_ahead){.weights = weights, .weights_bytes = block_bytes, .is_next = true};
    }
    if (!has_next_k) return (simd_ahead){0};
    int64_t weights_bytes = whole_lines(block_bytes / n_tiles), n_panels = at->end - at->first;
    int64_t rows_bytes = whole_lines((int64_t)j->tile_bytes / n_panels);
    return (simd_ahead){.weights = weights_at(m, at->panel, next_k),
                        .weights_bytes = weights_bytes,
                        .rows = tile_at(j, at->block, next_k / K_BLOCK, 0) + (at->panel - at->first) * rows_bytes,
                        .rows_bytes = rows_bytes};
}

/* Sums of a row and a panel become values of out. */
static void finish_row(const linear_job *j, int64_t row, int64_t panel, float *sums) {
    int64_t col = panel * PANEL_COLS, n_out = j->m->head.n_out, at = row * n_out + col;
    int n_cols = (int)min_i64(PANEL_COLS, n_out - col);
    int n_plain = (int)(j->act_from <= col ? 0 : min_i64(j->act_from - col, n_cols));
    const float *bias = j->m->bias + col, *add = j->add ? j->add + at : NULL;
    for (int i = 0; j->row_scales && i < n_cols; i++) sums[i] = sums[i] * j->m->scales[col + i] * j->row_scales[row];
    if (j->act == OPS_ACT_NONE) n_plain = n_cols;
    if (n_plain > 0) j->simd->finish(j->out + at, sums, n_plain, bias, add, OPS_ACT_NONE, j->is_far);
    if (n_plain < n_cols)
        j->simd->finish(j->out + at + n_plain, sums + n_plain, n_cols - n_plain, bias + n_plain,
                        add ? add + n_plain : NULL, j->act, j->is_far);
}

/* All rows of a block times one k block of one panel, added to sums [row_block, PANEL_COLS]. */
static void multiply_panel(const linear_job *j, const panel_place *at, unsigned char *expanded, float *sums) {
    const cpu_matrix *m = j->m;
    const simd_product *kernels = m->kernels;
    int64_t k = min_i64(K_BLOCK, m->head.n_in - at->k0), n_tiles = ceil_div(rows_of_block(j, at->block), j->tile_rows);
    ops_dtype dtype = m->head.dtype;
    const unsigned char *w = weights_at(m, at->panel, at->k0);
    if (j->is_expanded) {
        kernels->expand(expanded, w, dtype, k);
        w = expanded;
        dtype = kernels->expanded;
    }
    simd_ahead ahead = ahead_of(j, at, n_tiles);
    for (int64_t t = 0; t < n_tiles; t++) {
        int64_t row = t * j->tile_rows;
        int n_rows = rows_of_tile(j, at->block, t);
        kernels->tile(sums + row * PANEL_COLS, tile_at(j, at->block, at->k0 / K_BLOCK, t), n_rows, w, dtype, k, at->k0 > 0,
                      &ahead);
        if (!ahead.rows) continue;
        ahead.weights += ahead.weights_bytes;
        ahead.rows += j->tile_bytes;
    }
}

static void multiply_group(void *arg, int64_t task, int thread) {
    const linear_job *j = arg;
    const cpu_matrix *m = j->m;
    int64_t block = task % j->n_row_blocks, group = task / j->n_row_blocks;
    int64_t first = m->n_panels * group / j->n_groups, end = m->n_panels * (group + 1) / j->n_groups;
    unsigned char *expanded = j->spaces + (size_t)thread * j->space_bytes;
    float *sums = (float *)(void *)(expanded + EXPANDED_BYTES);
    int64_t panel_sums = j->row_block * PANEL_COLS;
    panel_place at = {.block = block, .first = first, .end = end};
    if (m->kernels->enter) m->kernels->enter();
    for (at.k0 = 0; at.k0 < m->head.n_in; at.k0 += K_BLOCK)
        for (at.panel = first; at.panel < end; at.panel++)
            multiply_panel(j, &at, expanded, sums + (at.panel - first) * panel_sums);
    if (m->kernels->leave) m->kernels->leave();
    for (int64_t r = 0; r < rows_of_block(j, block); r++)
        for (int64_t panel = first; panel < end; panel++)
            finish_row(j, block * j->row_block + r, panel, sums + (panel - first) * panel_sums + r * PANEL_COLS);
    if (j->is_far) atomic_thread_fence(memory_order_seq_cst);
}

/* The single row's tiles lie one behind the other: x in one piece. */
static void gemv_group(void *arg, int64_t group, int thread) {
    const linear_job *j = arg;
    const cpu_matrix *m = j->m;
    int64_t panel = group * GEMV_GROUP, end = min_i64(panel + GEMV_GROUP, m->n_panels);
    float sums[GEMV_GROUP * PANEL_COLS];
    while (panel < end) {
        int64_t n = m->kernels->gemv_panels;
        if (panel + n <= end) {
            m->kernels->gemv(sums, (const float *)(const void *)j->tiles, weights_at(m, panel, 0), (int64_t)m->panel_bytes,
                             m->head.dtype, m->head.n_in);
            for (int64_t p = 0; p < n; p++) finish_row(j, 0, panel + p, sums + p * PANEL_COLS);
        } else {
            panel_place at = {.panel = panel, .first = panel, .end = panel + 1};
            n = 1;
            for (; at.k0 < m->head.n_in; at.k0 += K_BLOCK)
                multiply_panel(j, &at, j->spaces + (size_t)thread * j->space_bytes, sums);
            finish_row(j, 0, panel, sums);
        }
        panel += n;
    }
}

/* ---- work ---------------------------------------------------------------------------------- */

/* Tiles and blocks of rows, and enough groups that the threads finish together. */
static void cut_work(linear_job *j, int n_threads) {
    const simd_product *kernels = j->m->kernels;
    int64_t n_panels = j->m->n_panels;
    j->is_gemv = j->n_rows == 1 && kernels->gemv;
    j->tile_bytes = j->is_gemv ? K_BLOCK * sizeof(float) : kernels->tile_bytes;
    j->n_row_blocks = ceil_div(j->n_rows, ROW_BLOCK_MAX);
    int64_t block_rows = ceil_div(j->n_rows, j->n_row_blocks);
    j->tiles_a_block = ceil_div(block_rows, kernels->tile_rows);
    j->tile_rows = kernels->needs_whole ? kernels->tile_rows : ceil_div(block_rows, j->tiles_a_block);
    j->row_block = j->tiles_a_block * j->tile_rows;
    j->n_row_blocks = ceil_div(j->n_rows, j->row_block);
    j->n_groups = ceil_div(n_panels, kernels->group_panels);
    if (j->tiles_a_block == 1) j->n_groups = n_panels; /* weights are streamed: front to back */
    while (n_threads > 1 && j->n_groups < n_panels && j->n_groups * j->n_row_blocks < 8 * n_threads)
        j->n_groups = min_i64(2 * j->n_groups, n_panels);
}

status cpu_linear(void *state, ops_tensor *out, const ops_tensor *x, const ops_matrix *matrix,
                  const ops_linear_params *params) { /* one order of sums for every row: is_few says nothing */
    cpu_state *s = state;
    const cpu_matrix *m = (const cpu_matrix *)matrix;
    const simd_product *kernels = m->kernels;
    ops_dtype dtype = m->head.dtype;
    linear_job j = {.m = m, .simd = s->simd, .out = out->data, .x = x->data, .add = params->add ? params->add->data : NULL,
                    .n_rows = x->dims[0], .x_stride = tensor_row_stride(x), .act = params->act, .act_from = params->act_from};
    int n_threads = pool_threads(s->pool);
    cut_work(&j, n_threads);
    j.is_expanded = kernels->expand && dtype != kernels->expanded &&
                    (j.n_rows >= kernels->rows_to_expand || dtype_is_quantized(dtype));
    j.is_far = j.n_rows * m->head.n_out * (int64_t)sizeof(float) > FAR_BYTES;
    j.offset = dtype == OPS_DTYPE_Q4 ? kernels->offset_q4 : kernels->offset_q8;
    int64_t group_panels = ceil_div(m->n_panels, j.n_groups); /* at most */
    j.space_bytes = EXPANDED_BYTES + (size_t)(group_panels * j.row_block * PANEL_COLS) * sizeof(float);
    size_t spaces_bytes = (size_t)n_threads * j.space_bytes;
    size_t tiles_bytes = (size_t)(j.n_row_blocks * ceil_div(m->head.n_in, K_BLOCK) * j.tiles_a_block) * j.tile_bytes;
    unsigned char *scratch = cpu_scratch(s, spaces_bytes + tiles_bytes + (size_t)j.n_rows * sizeof(float));
    if (!scratch) return STATUS_NO_MEMORY;
    j.spaces = scratch;
    j.tiles = scratch + spaces_bytes;
    if (m->scales) j.row_scales = (float *)(void *)(j.tiles + tiles_bytes);
    cpu_split_rows(s, j.n_rows, m->scales ? 8 * m->head.n_in : m->head.n_in, pack_rows, &j);
    if (j.is_gemv) pool_run(s->pool, ceil_div(m->n_panels, GEMV_GROUP), gemv_group, &j);
    else pool_run(s->pool, j.n_groups * j.n_row_blocks, multiply_group, &j);
    return STATUS_OK;
}
