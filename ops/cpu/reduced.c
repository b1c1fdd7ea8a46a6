/* Linear layers with reduced products: OPS_PRODUCT_INT8, and OPS_PRODUCT_BF16 and FP8 where the processor multiplies bf16.
 *
 * The matrix lies in panels of 32 outputs, a panel in blocks of 32 k (simd.h). x is packed once, row by row, into tiles
 * [row block][k block of 256][tile], which is also where it is rounded. A task is a block of rows times a group of panels;
 * inside, for each k block, for each panel, for each tile. The k block of a panel is 8 to 16 KiB and stays in L1 while the
 * tiles of x pass by from L2. With few rows a group is one panel, so that weights are streamed front to back.
 *
 * A tile adds to what out holds in the order of k, whatever its rows: equal bits for any cut of rows and of work. */
#include <string.h>

#include "base/check.h"
#include "ops/cpu/cpu_internal.h"

#define K_BLOCK       TILE_STRIDE
#define K_BLOCKS_OF   (K_BLOCK / QUANT_BLOCK) /* blocks of a k block */
#define ROW_BLOCK_MAX 384
#define GROUP_PANELS  8
#define FEW_ROWS      32
#define Q8_BYTES      (QUANT_HEAD + QUANT_BLOCK * PANEL_COLS)
#define Q4_BYTES      (QUANT_HEAD + QUANT_BLOCK * PANEL_COLS / 2)
#define BF16_BYTES    (QUANT_BLOCK * PANEL_COLS * 2)

BUILD_CHECK(K_BLOCK % OPS_INT8_RUN == 0 && OPS_INT8_RUN % QUANT_BLOCK == 0, "blocks fill runs, and runs a k block");

/* ---- packing the matrix -------------------------------------------------------------------- */

static size_t block_bytes(ops_dtype dtype) {
    return dtype == OPS_DTYPE_BF16 ? BF16_BYTES : dtype == OPS_DTYPE_Q4 ? Q4_BYTES : Q8_BYTES;
}

/* Column c of a block from 32 weights in q8. */
static void put_q8(unsigned char *out, const simd_reduced *kernels, int64_t c, const unsigned char *in) {
    const int dot_k = kernels->dot_k;
    unsigned char codes[QUANT_BLOCK];
    for (int k = 0; k < QUANT_BLOCK; k++) codes[k] = (unsigned char)(in[2 + k] + kernels->offset_q8);
    memcpy(out + 2 * c, in, 2);
    out += QUANT_HEAD + c * dot_k;
    for (int k = 0; k < QUANT_BLOCK; k += dot_k) {
        if (dot_k == 4) memcpy(out + k * PANEL_COLS, codes + k, 4);
        else memcpy(out + k * PANEL_COLS, codes + k, (size_t)dot_k);
    }
}

/* The same in q4; the memory is zeroed. */
static void put_q4(unsigned char *out, const simd_reduced *kernels, int64_t c, const unsigned char *in) {
    const int dot_k = kernels->dot_k, shift = c < PANEL_COLS / 2 ? 0 : 4;
    memcpy(out + 2 * c, in, 2);
    out += QUANT_HEAD + c % (PANEL_COLS / 2) * dot_k;
    for (int k = 0; k < QUANT_BLOCK; k += dot_k)
        for (int i = 0; i < dot_k; i++) {
            unsigned code = in[2 + (k + i) % (QUANT_BLOCK / 2)] >> (k + i < QUANT_BLOCK / 2 ? 0 : 4) & 15;
            out[k * (PANEL_COLS / 2) + i] |= (unsigned char)(code << shift);
        }
}

/* Column c of a block from n values in bf16. */
static void put_bf16(unsigned char *out, int64_t c, const unsigned char *in, int64_t n) {
    for (int64_t k = 0; k < n; k++) memcpy(out + (k / 2 * PANEL_COLS * 2 + c * 2 + k % 2) * 2, in + 2 * k, 2);
}

void cpu_reduced_pack(const cpu_matrix *m, unsigned char *panel, const ops_tensor *w) {
    const int64_t n_in = w->dims[1];
    size_t row_bytes = dtype_row_bytes(w->dtype, n_in), in_bytes = dtype_row_bytes(w->dtype, QUANT_BLOCK);
    for (int64_t c = 0; c < w->dims[0]; c++) {
        const unsigned char *row = (const unsigned char *)w->data + (size_t)c * row_bytes;
        unsigned char *out = panel;
        for (int64_t k = 0; k < n_in; k += QUANT_BLOCK, row += in_bytes, out += block_bytes(w->dtype)) {
            if (w->dtype == OPS_DTYPE_BF16) put_bf16(out, c, row, min_i64(QUANT_BLOCK, n_in - k));
            else if (w->dtype == OPS_DTYPE_Q8) put_q8(out, m->reduced, c, row);
            else put_q4(out, m->reduced, c, row);
        }
    }
}

size_t cpu_reduced_panel_bytes(ops_dtype dtype, int64_t n_in) {
    return (size_t)ceil_div(n_in, QUANT_BLOCK) * block_bytes(dtype);
}

/* ---- multiplying --------------------------------------------------------------------------- */

/* What a thread needs for itself. */
typedef struct {
    _Alignas(64) unsigned char expanded[K_BLOCKS_OF * Q8_BYTES];
    float sums[REDUCED_ROWS_MAX * PANEL_COLS];
} thread_space;

typedef struct {
    linear_call c;
    const simd_reduced *kernels;
    bool is_expanded; /* q4 becomes q8 before it is used */
    int offset;       /* of the codes x meets */
    int64_t row_block, n_row_blocks, n_groups, tiles_a_block;
    unsigned char *tiles;
    thread_space *spaces;
} reduced_job;

static unsigned char *tile_at(const reduced_job *j, int64_t block, int64_t k_block, int64_t tile) {
    int64_t n_k_blocks = ceil_div(j->c.m->head.n_in, K_BLOCK);
    int64_t index = (block * n_k_blocks + k_block) * j->tiles_a_block + tile;
    return j->tiles + (size_t)index * j->kernels->tile_bytes;
}

static void pack_rows(void *arg, int64_t first, int64_t n, int thread) {
    const reduced_job *j = arg;
    (void)thread;
    int64_t n_in = j->c.m->head.n_in;
    for (int64_t r = first; r < first + n; r++) {
        int64_t in_block = r % j->row_block;
        float factor = 0.0f, codes[K_BLOCK];
        if (j->c.row_scales) j->c.row_scales[r] = e4m3_scale(j->c.x + r * j->c.x_stride, n_in, &factor);
        for (int64_t k = 0; k < n_in; k += K_BLOCK) {
            void *tile = tile_at(j, r / j->row_block, k / K_BLOCK, in_block / j->kernels->tile_rows);
            const float *from = j->c.x + r * j->c.x_stride + k;
            int64_t width = min_i64(K_BLOCK, n_in - k);
            if (j->c.row_scales) {
                e4m3_round(codes, from, width, factor);
                from = codes;
            }
            j->kernels->pack_x(tile, (int)(in_block % j->kernels->tile_rows), from, width, j->offset);
        }
    }
}

static void copy_sums(float *out, int64_t out_stride, const float *in, int64_t in_stride, int n_rows, int n_cols) {
    for (int r = 0; r < n_rows; r++)
        memcpy(out + r * out_stride, in + r * in_stride, (size_t)n_cols * sizeof *out);
}

/* One tile; where it is not whole, on sums of our own, so that nothing past them is touched. */
static void multiply_tile(const reduced_job *j, float *out, const unsigned char *x, int rows, int n_cols,
                          const unsigned char *w, int64_t n_blocks, bool is_q4, bool load, float *sums) {
    int64_t stride = j->c.m->head.n_out;
    if (n_cols == PANEL_COLS && (rows == j->kernels->tile_rows || !j->kernels->needs_whole)) {
        j->kernels->tile(out, stride, x, rows, w, n_blocks, is_q4, load);
        return;
    }
    if (load) copy_sums(sums, PANEL_COLS, out, stride, rows, n_cols);
    j->kernels->tile(sums, PANEL_COLS, x, rows, w, n_blocks, is_q4, load);
    copy_sums(out, stride, sums, PANEL_COLS, rows, n_cols);
}

/* All rows of a block times one k block of one panel. */
static void multiply_panel(const reduced_job *j, int64_t block, int64_t panel, int64_t k0, thread_space *space) {
    const cpu_matrix *m = j->c.m;
    const simd_reduced *kernels = j->kernels;
    int64_t first_row = block * j->row_block, col = panel * PANEL_COLS;
    int64_t n_rows = min_i64(j->row_block, j->c.n_rows - first_row), k = min_i64(K_BLOCK, m->head.n_in - k0);
    int64_t n_blocks = ceil_div(k, QUANT_BLOCK);
    int n_cols = (int)min_i64(PANEL_COLS, m->head.n_out - col);
    bool is_q4 = m->head.dtype == OPS_DTYPE_Q4;
    const unsigned char *w =
        m->panels + (size_t)panel * m->panel_bytes + (size_t)(k0 / QUANT_BLOCK) * block_bytes(m->head.dtype);
    if (j->is_expanded) {
        kernels->expand(space->expanded, w, n_blocks);
        w = space->expanded;
        is_q4 = false;
    }
    for (int64_t r = 0; r < n_rows; r += kernels->tile_rows) {
        int rows = (int)min_i64(kernels->tile_rows, n_rows - r);
        float *out = j->c.out + (first_row + r) * m->head.n_out + col;
        multiply_tile(j, out, tile_at(j, block, k0 / K_BLOCK, r / kernels->tile_rows), rows, n_cols, w, n_blocks, is_q4,
                      k0 > 0, space->sums);
        if (k0 + k == m->head.n_in) cpu_linear_finish(&j->c, out, m->head.n_out, first_row + r, rows, col, n_cols);
    }
}

static void multiply_group(void *arg, int64_t task, int thread) {
    const reduced_job *j = arg;
    int64_t block = task % j->n_row_blocks, group = task / j->n_row_blocks;
    int64_t first = j->c.m->n_panels * group / j->n_groups;
    int64_t end = j->c.m->n_panels * (group + 1) / j->n_groups;
    if (j->kernels->enter) j->kernels->enter();
    for (int64_t k0 = 0; k0 < j->c.m->head.n_in; k0 += K_BLOCK)
        for (int64_t panel = first; panel < end; panel++) multiply_panel(j, block, panel, k0, &j->spaces[thread]);
    if (j->kernels->leave) j->kernels->leave();
}

/* Blocks of rows, and enough groups that the threads finish together. */
static void cut_work(reduced_job *j, int n_threads) {
    int64_t n_panels = j->c.m->n_panels;
    j->n_row_blocks = ceil_div(j->c.n_rows, ROW_BLOCK_MAX);
    j->tiles_a_block = ceil_div(ceil_div(j->c.n_rows, j->n_row_blocks), j->kernels->tile_rows);
    j->row_block = j->tiles_a_block * j->kernels->tile_rows;
    j->n_row_blocks = ceil_div(j->c.n_rows, j->row_block);
    j->n_groups = j->c.n_rows <= FEW_ROWS ? n_panels : ceil_div(n_panels, GROUP_PANELS);
    while (n_threads > 1 && j->n_groups < n_panels && j->n_groups * j->n_row_blocks < 8 * n_threads)
        j->n_groups = min_i64(2 * j->n_groups, n_panels);
}

status cpu_reduced_linear(cpu_state *s, const linear_call *c) {
    const cpu_matrix *m = c->m;
    const simd_reduced *kernels = m->reduced;
    reduced_job j = {.c = *c, .kernels = kernels};
    j.is_expanded = m->head.dtype == OPS_DTYPE_Q4 && c->n_rows >= kernels->rows_to_expand;
    j.offset = m->head.dtype == OPS_DTYPE_Q4 ? kernels->offset_q4 : kernels->offset_q8;
    int n_threads = pool_threads(s->pool);
    cut_work(&j, n_threads);
    size_t space_bytes = (size_t)n_threads * sizeof *j.spaces;
    size_t n_tiles = (size_t)(j.n_row_blocks * ceil_div(m->head.n_in, K_BLOCK) * j.tiles_a_block);
    size_t tiles_bytes = n_tiles * kernels->tile_bytes;
    unsigned char *scratch = cpu_scratch(s, space_bytes + tiles_bytes + row_scales_bytes(c));
    if (!scratch) return STATUS_NO_MEMORY;
    j.spaces = (thread_space *)(void *)scratch;
    j.tiles = scratch + space_bytes;
    if (m->scales) j.c.row_scales = (float *)(void *)(scratch + space_bytes + tiles_bytes);
    cpu_split_rows(s, c->n_rows, m->scales ? 8 * m->head.n_in : m->head.n_in, pack_rows, &j);
    pool_run(s->pool, j.n_groups * j.n_row_blocks, multiply_group, &j);
    return STATUS_OK;
}
