/* The products of bf16 and of bytes on tiles, included by kernels.h: 32 rows of x times one panel. Tiles are always whole;
 * rows past n_rows hold whatever the scratch held, and their sums are not looked at.
 *
 * BF16: four tiles of sums, 2 x 2 of 16 x 16, run over the k of a block and continue from out, which holds the partial sums
 * exactly. A step loads two tiles of x and two of weights for four products of 16 x 16 x 32.
 *
 * INT8: scales change every 32 k, so a product of 16 x 16 x 32 is stored, and its rows are turned to f32 and added as
 * int8.h does it, to the same bits. The blocks of a run use tiles and buffers of their own, so that a product can begin
 * while the one before is added. */
#include AMX_TILES_HEADER

#define TILE_EDGE     16
#define AMX_ROWS      (2 * TILE_EDGE)
#define PANEL_HALVES  2 /* tiles side by side in a panel */

BUILD_CHECK(AMX_ROWS <= PRODUCT_ROWS_MAX && PANEL_HALVES * TILE_EDGE == PANEL_COLS && LANES == TILE_EDGE,
            "tiles fill panels, and a row of one is a vector");

static void configure(int row_bytes_x, int rows_w) {
    tile_config c = {.palette = 1};
    for (int t = 0; t < 4; t++) c.rows[t] = TILE_EDGE, c.row_bytes[t] = LINE_BYTES; /* sums */
    for (int t = 4; t < 6; t++) c.rows[t] = TILE_EDGE, c.row_bytes[t] = (uint16_t)row_bytes_x;
    for (int t = 6; t < 8; t++) c.rows[t] = (uint8_t)rows_w, c.row_bytes[t] = LINE_BYTES;
    tile_configure(&c);
}

/* ---- bf16 ---------------------------------------------------------------------------------- */

#define BF16_BLOCK_BYTES (QUANT_BLOCK * PANEL_COLS * 2)
#define BF16_ROW_BYTES   (TILE_STRIDE * 2)

static void amx_bf16_enter(void) { configure(QUANT_BLOCK * 2, QUANT_BLOCK / 2); }

static void amx_bf16_pack_x(void *tile, int row, int n_rows, const float *x, int64_t k, int offset) {
    uint16_t *to = (uint16_t *)tile + row * TILE_STRIDE;
    float rounded[TILE_STRIDE];
    (void)n_rows, (void)offset;
    round_bf16(rounded, x, k);
    for (int64_t i = 0; i < k; i++) {
        uint32_t bits;
        memcpy(&bits, rounded + i, sizeof bits);
        to[i] = (uint16_t)(bits >> 16);
    }
    memset(to + k, 0, (size_t)(TILE_STRIDE - k) * sizeof *to);
}

static void amx_bf16_tile(float *out, const void *x, int n_rows, const unsigned char *w,
                          ops_dtype dtype, int64_t k, bool load, const unsigned char *ahead) {
    const unsigned char *top = x, *bottom = top + TILE_EDGE * BF16_ROW_BYTES;
    const size_t stride = PANEL_COLS * sizeof *out;
    float *low = out + TILE_EDGE * PANEL_COLS;
    bool has_bottom = n_rows > TILE_EDGE;
    (void)dtype;
    if (load) {
        TILE_LOAD(0, out, stride);
        TILE_LOAD(1, out + TILE_EDGE, stride);
        if (has_bottom) {
            TILE_LOAD(2, low, stride);
            TILE_LOAD(3, low + TILE_EDGE, stride);
        }
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    }
    for (int64_t b = 0; b < blocks_of(k); b++, w += BF16_BLOCK_BYTES) {
        if (ahead) prefetch(ahead + b * BF16_BLOCK_BYTES, BF16_BLOCK_BYTES);
        TILE_LOAD(6, w, 2 * LINE_BYTES);
        TILE_LOAD(7, w + LINE_BYTES, 2 * LINE_BYTES);
        TILE_LOAD(4, top + b * QUANT_BLOCK * 2, BF16_ROW_BYTES);
        TILE_DOT_BF16(0, 4, 6);
        TILE_DOT_BF16(1, 4, 7);
        if (!has_bottom) continue;
        TILE_LOAD(5, bottom + b * QUANT_BLOCK * 2, BF16_ROW_BYTES);
        TILE_DOT_BF16(2, 5, 6);
        TILE_DOT_BF16(3, 5, 7);
    }
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
    .expanded = OPS_DTYPE_BF16,
    .needs_whole = true,
    .tile_bytes = AMX_ROWS * BF16_ROW_BYTES,
    .pack_x = amx_bf16_pack_x,
    .tile = amx_bf16_tile,
    .enter = amx_bf16_enter,
    .leave = tile_release,
};

/* ---- int8 ---------------------------------------------------------------------------------- */

typedef struct {
    int8_t codes[AMX_ROWS][TILE_STRIDE];
    float scale[AMX_ROWS][RUNS_A_TILE];
} amx_int8_x;

typedef int32_t tile_sums[TILE_EDGE][TILE_EDGE];

BUILD_CHECK(BLOCKS_A_RUN == 2, "the blocks of a run have a tile each");

static void amx_int8_enter(void) { configure(QUANT_BLOCK, QUANT_BLOCK / 4); }

static void amx_int8_pack_x(void *tile, int row, int n_rows, const float *x, int64_t k, int offset) {
    amx_int8_x *t = tile;
    (void)n_rows, (void)offset;
    quantize_row_part(t->codes[row], t->scale[row], x, k);
}

/* Adds a run to 16 rows of out; scales of the columns in s. */
INLINE void add_run(float *out, const amx_int8_x *x, int first_row, int64_t run, tile_sums *sums,
                    const vf s[BLOCKS_A_RUN], int64_t n_blocks, bool load) {
    for (int r = 0; r < TILE_EDGE; r++) {
        vf sum = vsplat(0.0f);
        for (int64_t b = 0; b < n_blocks; b++) {
            vi whole;
            memcpy(&whole, sums[b][r], sizeof whole);
            sum = vfma(__builtin_convertvector(whole, vf), s[b], sum);
        }
        float *to = out + r * PANEL_COLS;
        vstore(to, vfma(sum, vsplat(x->scale[first_row + r][run]), load ? vload(to) : vsplat(0.0f)));
    }
}

/* 16 rows times 16 columns. */
static void amx_int8_square(float *out, const amx_int8_x *x, int first_row, const unsigned char *w,
                            int half, int64_t n_blocks, bool load, const unsigned char *ahead) {
    _Alignas(LINE_BYTES) tile_sums sums[2][BLOCKS_A_RUN]; /* of this run and the one before */
    for (int64_t b = 0; b < n_blocks; b += BLOCKS_A_RUN) {
        tile_sums *own = sums[b / BLOCKS_A_RUN % 2];
        int64_t n = n_blocks - b < BLOCKS_A_RUN ? n_blocks - b : BLOCKS_A_RUN;
        const unsigned char *block = w + b * Q8_BLOCK_BYTES;
        vf s[BLOCKS_A_RUN];
        if (ahead) prefetch(ahead + b * Q8_BLOCK_BYTES, n * Q8_BLOCK_BYTES);
        TILE_ZERO(0);
        TILE_LOAD(4, x->codes[first_row] + b * QUANT_BLOCK, TILE_STRIDE);
        TILE_LOAD(6, block + QUANT_HEAD + half * LINE_BYTES, 2 * LINE_BYTES);
        TILE_DOT_INT8(0, 4, 6);
        TILE_STORE(0, own[0], LINE_BYTES);
        s[0] = vload_bf16((const uint16_t *)(const void *)block + half * TILE_EDGE);
        if (n == 2) {
            block += Q8_BLOCK_BYTES;
            TILE_ZERO(1);
            TILE_LOAD(5, x->codes[first_row] + (b + 1) * QUANT_BLOCK, TILE_STRIDE);
            TILE_LOAD(7, block + QUANT_HEAD + half * LINE_BYTES, 2 * LINE_BYTES);
            TILE_DOT_INT8(1, 5, 7);
            TILE_STORE(1, own[1], LINE_BYTES);
            s[1] = vload_bf16((const uint16_t *)(const void *)block + half * TILE_EDGE);
        } else {
            s[1] = vsplat(0.0f);
        }
        add_run(out, x, first_row, b / BLOCKS_A_RUN, own, s, n, load || b > 0);
    }
}

static void amx_int8_tile(float *out, const void *x, int n_rows, const unsigned char *w,
                          ops_dtype dtype, int64_t k, bool load, const unsigned char *ahead) {
    CHECK(dtype == OPS_DTYPE_Q8, "q4 is expanded for tiles");
    for (int first = 0; first < n_rows; first += TILE_EDGE)
        for (int half = 0; half < PANEL_HALVES; half++)
            amx_int8_square(out + first * PANEL_COLS + half * TILE_EDGE, x, first, w, half, blocks_of(k), load,
                            first == 0 && half == 0 ? ahead : NULL);
}

static void amx_int8_expand(void *out, const unsigned char *w, ops_dtype dtype, int64_t k) {
    (void)dtype; /* q4 */
    expand_blocks(out, w, blocks_of(k), 4, 8);
}

static const simd_product product_int8 = {
    .tile_rows = AMX_ROWS,
    .dot_k = 4,
    .expanded = OPS_DTYPE_Q8,
    .rows_to_expand = 1,
    .needs_whole = true,
    .tile_bytes = (sizeof(amx_int8_x) + 63) / 64 * 64,
    .pack_x = amx_int8_pack_x,
    .tile = amx_int8_tile,
    .expand = amx_int8_expand,
    .enter = amx_int8_enter,
    .leave = tile_release,
};
