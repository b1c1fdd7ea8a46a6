/* The products of bf16 and of bytes on tiles, included by kernels.h: 32 rows of x times one panel. Tiles are always whole;
 * rows past n_rows hold whatever the scratch held, and their sums are not looked at.
 *
 * Four tiles of sums, 2 x 2 of 16 x 16, run over the k of a block. A step loads two tiles of x and two of weights for four
 * products of 16 x 16 x 64 bytes, and x lies in the order of steps. BF16: sums continue from out, which holds the partial
 * sums exactly. INT8: they are whole numbers; behind the run they are stored, and their rows are turned to f32 and added
 * to out as int8.h does it, to the same bits. Storing and turning takes as long as two steps: so runs are as long as a block.
 *
 * Few rows of INT8, and weights in q4, whose scales change every 32 k, are left to the vectors (int8.h): x is packed for
 * them in pieces of INT8_ROWS. */
#include <immintrin.h>

#include AMX_TILES_HEADER

#define TILE_EDGE     16
#define AMX_ROWS      (2 * TILE_EDGE)
#define PANEL_HALVES  2                        /* tiles side by side in a panel */
#define STEP_BYTES    (AMX_ROWS * LINE_BYTES)  /* of x and of a panel, of one step */
#define ROW_STRIDE    LINE_BYTES               /* of x */
#define PANEL_STRIDE  (PANEL_HALVES * LINE_BYTES)

BUILD_CHECK(AMX_ROWS <= PRODUCT_ROWS_MAX && PANEL_HALVES * TILE_EDGE == PANEL_COLS && LANES == TILE_EDGE,
            "tiles fill panels, and a row of one is a vector");

static void amx_enter(void) {
    tile_config c = {.palette = 1};
    for (int t = 0; t < TILES; t++) c.rows[t] = TILE_EDGE, c.row_bytes[t] = LINE_BYTES;
    tile_configure(&c);
}

INLINE void zero_sums(void) {
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
}

/* Tiles 0 to 3 (+)= the tiles of x at x times the panel's at w. */
#define AMX_STEP(DOT, x, w, has_bottom, meanwhile)                                                                     \
    do {                                                                                                               \
        TILE_LOAD(6, w, PANEL_STRIDE);                                                                                 \
        TILE_LOAD(7, (w) + LINE_BYTES, PANEL_STRIDE);                                                                  \
        TILE_LOAD(4, x, ROW_STRIDE);                                                                                   \
        DOT(0, 4, 6);                                                                                                  \
        DOT(1, 4, 7);                                                                                                  \
        meanwhile;                                                                                                     \
        if (!(has_bottom)) break;                                                                                      \
        TILE_LOAD(5, (x) + STEP_BYTES / 2, ROW_STRIDE);                                                                \
        DOT(2, 5, 6);                                                                                                  \
        DOT(3, 5, 7);                                                                                                  \
    } while (0)

/* Where the bytes of a row begin in step `step` of a tile of x. */
INLINE unsigned char *amx_row(unsigned char *steps, int row, int step) {
    return steps + step * STEP_BYTES + row * ROW_STRIDE;
}

/* The first n of a line, which may be 0 or less, and zeros. */
INLINE void narrow_some(void *to, const float *x, int64_t n) {
    _Alignas(LINE_BYTES) float line[QUANT_BLOCK];
    if (n >= QUANT_BLOCK) {
        narrow_line(to, x);
        return;
    }
    for (int at = 0; at < QUANT_BLOCK; at += LANES, x += LANES, n -= LANES) {
        uint32_t here = n >= LANES ? 0xffff : n > 0 ? (1u << n) - 1 : 0;
        _mm512_store_ps(line + at, _mm512_maskz_loadu_ps((__mmask16)here, x));
    }
    narrow_line(to, line);
}

INLINE void copy_line(unsigned char *to, const void *from) { vstore((float *)(void *)to, vload(from)); }

/* ---- bf16 ---------------------------------------------------------------------------------- */

#define BF16_STEPS (TILE_STRIDE * 2 / LINE_BYTES)

static void amx_bf16_pack_x(void *tile, int row, int n_rows, const float *x, int64_t k, int offset) {
    (void)n_rows, (void)offset;
    for (int step = 0; step < BF16_STEPS; step++, x += QUANT_BLOCK, k -= QUANT_BLOCK)
        narrow_some(amx_row(tile, row, step), x, k);
}

static void amx_bf16_tile(float *out, const void *x, int n_rows, const unsigned char *w,
                          ops_dtype dtype, int64_t k, bool load, const simd_ahead *ahead) {
    const unsigned char *rows = x;
    const size_t stride = PANEL_COLS * sizeof *out;
    float *low = out + TILE_EDGE * PANEL_COLS;
    bool has_bottom = n_rows > TILE_EDGE;
    int64_t n_steps = blocks_of(k);
    simd_ahead share = share_ahead(ahead, n_steps);
    (void)dtype;
    if (load) {
        TILE_LOAD(0, out, stride);
        TILE_LOAD(1, out + TILE_EDGE, stride);
        if (has_bottom) {
            TILE_LOAD(2, low, stride);
            TILE_LOAD(3, low + TILE_EDGE, stride);
        }
    } else {
        zero_sums();
    }
    for (int64_t step = 0; step < n_steps; step++, rows += STEP_BYTES, w += STEP_BYTES)
        AMX_STEP(TILE_DOT_BF16, rows, w, has_bottom, ask_ahead(&share));
    TILE_STORE(0, out, stride);
    TILE_STORE(1, out + TILE_EDGE, stride);
    if (has_bottom) {
        TILE_STORE(2, low, stride);
        TILE_STORE(3, low + TILE_EDGE, stride);
    }
}

static const simd_product product_bf16 = {
    .tile_rows = AMX_ROWS,
    .dot_k = 2,
    .group_panels = 8,
    .needs_whole = true,
    .tile_bytes = BF16_STEPS * STEP_BYTES,
    .pack_x = amx_bf16_pack_x,
    .tile = amx_bf16_tile,
    .enter = amx_enter,
    .leave = tile_release,
};

/* ---- int8 ---------------------------------------------------------------------------------- */

#define INT8_STEPS  (OPS_INT8_RUN / LINE_BYTES)
#define INT8_PIECES ((AMX_ROWS + INT8_ROWS - 1) / INT8_ROWS)

BUILD_CHECK(INT8_TAIL == LINE_BYTES, "the last piece of a run is a step");

/* What many rows meet weights in q8 as. */
typedef struct {
    unsigned char steps[INT8_STEPS * STEP_BYTES];
    float scale[AMX_ROWS];
    int32_t excess[AMX_ROWS]; /* the weights' offset times the sum of the row's codes */
} amx_int8_x;

typedef union {
    amx_int8_x rows;
    int8_tile_x pieces[INT8_PIECES]; /* as the vectors read x */
} amx_int8_tile_x;

static void amx_int8_pack_x(void *tile, int row, int n_rows, const float *x, int64_t k, int offset) {
    amx_int8_tile_x *t = tile;
    if (offset != OFFSET_Q8 || n_rows <= INT8_ROWS) {
        int first = row - row % INT8_ROWS, n = n_rows - first < INT8_ROWS ? n_rows - first : INT8_ROWS;
        int8_pack_x(&t->pieces[row / INT8_ROWS], row - first, n, x, k, offset);
        return;
    }
    int8_t codes[OPS_INT8_RUN];
    t->rows.scale[row] = code_run(codes, x, k);
    t->rows.excess[row] = offset * sum_codes(codes, OPS_INT8_RUN);
    for (int step = 0; step < INT8_STEPS; step++)
        copy_line(amx_row(t->rows.steps, row, step), codes + step * LINE_BYTES);
}

/* Adds a run to 16 rows of 16 columns of out. Of rows that are not there anything may come, so numbers wrap. */
INLINE void add_sums(float *out, const int32_t *sums, const amx_int8_x *x, int first_row, vf scales, bool load) {
#pragma GCC unroll 16
    for (int r = 0; r < TILE_EDGE; r++) {
        vu whole;
        memcpy(&whole, sums + r * TILE_EDGE, sizeof whole);
        vf sum = __builtin_convertvector((vi)(whole - (vu)vsplat_word(x->excess[first_row + r])), vf) * scales;
        float *to = out + r * PANEL_COLS;
        vstore(to, vfma(sum, vsplat(x->scale[first_row + r]), load ? vload(to) : vsplat(0.0f)));
    }
}

static void amx_int8_rows(float *out, const amx_int8_x *x, int n_rows, const unsigned char *w, int64_t k, bool load,
                          const simd_ahead *ahead) {
    _Alignas(LINE_BYTES) int32_t sums[4][TILE_EDGE * TILE_EDGE];
    const unsigned char *rows = x->steps, *codes = w + INT8_HEAD;
    bool has_bottom = n_rows > TILE_EDGE;
    int64_t n_steps = (k + LINE_BYTES - 1) / LINE_BYTES;
    simd_ahead share = share_ahead(ahead, n_steps);
    zero_sums();
    for (int64_t step = 0; step < n_steps; step++, rows += STEP_BYTES, codes += STEP_BYTES)
        AMX_STEP(TILE_DOT_INT8, rows, codes, has_bottom, ask_ahead(&share));
    TILE_STORE(0, sums[0], LINE_BYTES);
    TILE_STORE(1, sums[1], LINE_BYTES);
    if (has_bottom) {
        TILE_STORE(2, sums[2], LINE_BYTES);
        TILE_STORE(3, sums[3], LINE_BYTES);
    }
    for (int half = 0; half < PANEL_HALVES; half++) {
        vf scales = vload((const float *)(const void *)w + half * TILE_EDGE);
        float *top = out + half * TILE_EDGE;
        add_sums(top, sums[half], x, 0, scales, load);
        if (has_bottom) add_sums(top + TILE_EDGE * PANEL_COLS, sums[2 + half], x, TILE_EDGE, scales, load);
    }
}

static void amx_int8_tile(float *out, const void *x, int n_rows, const unsigned char *w,
                          ops_dtype dtype, int64_t k, bool load, const simd_ahead *ahead) {
    const amx_int8_tile_x *t = x;
    if (dtype == OPS_DTYPE_Q8 && n_rows > INT8_ROWS) {
        amx_int8_rows(out, &t->rows, n_rows, w, k, load, ahead);
        return;
    }
    for (int first = 0; first < n_rows; first += INT8_ROWS, ahead = NULL)
        int8_tile(out + first * PANEL_COLS, &t->pieces[first / INT8_ROWS],
                  n_rows - first < INT8_ROWS ? n_rows - first : INT8_ROWS, w, dtype, k, load, ahead);
}

static const simd_product product_int8 = {
    .tile_rows = AMX_ROWS,
    .dot_k = DOT_K,
    .offset_q8 = OFFSET_Q8,
    .offset_q4 = OFFSET_Q4,
    .group_panels = 8,
    .needs_whole = true,
    .tile_bytes = sizeof(amx_int8_tile_x),
    .pack_x = amx_int8_pack_x,
    .tile = amx_int8_tile,
    .enter = amx_enter,
    .leave = tile_release,
};
