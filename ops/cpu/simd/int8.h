/* The INT8 product (ops_linear) on vectors, included by kernels.h. A variant says INT8_ROWS, the rows of a tile.
 *
 * Without more, codes are multiplied and added as f32, which is exact: no sum reaches 2^24. A variant that multiplies
 * bytes defines HAS_BYTE_DOT and brings
 *
 *     vload_bytes(p)         LANES * 4 bytes of q8, each code + 128
 *     vload_halves(p, shift) LANES * 4 bytes, of each the four bits at shift (0 or 4): codes of q4 + 8
 *     vbyte_dot(sum, w, x)   sum + the four products of each lane, w unsigned, x signed
 *
 * x lies as 32-bit words, each DOT_K codes, so that a row's next DOT_K values are one broadcast. Where weights carry an
 * offset, sums begin with -offset times the sum of the row's codes, which takes it out again, exactly. */
#ifdef HAS_BYTE_DOT
#define DOT_K       4
#define OFFSET_Q8   128
#define OFFSET_Q4   8
typedef vi int8_sum;
typedef int32_t int8_word;
#else
#define DOT_K       1
#define OFFSET_Q8   0
#define OFFSET_Q4   0
typedef vf int8_sum;
typedef float int8_word;
#endif

#define BLOCKS_A_TILE  (TILE_STRIDE / QUANT_BLOCK)
#define STEPS_A_BLOCK  (QUANT_BLOCK / DOT_K)
#define WORDS_A_BLOCK  (1 + STEPS_A_BLOCK) /* of a row */
#define PASS_VECS      2 /* vectors of columns side by side in a tile */
#define Q8_STEP_BYTES  (QUANT_BLOCK * PANEL_COLS) /* of a run, for QUANT_BLOCK k */
#define Q4_BLOCK_BYTES (QUANT_HEAD + QUANT_BLOCK * PANEL_COLS / 2)

BUILD_CHECK(TILE_STRIDE == OPS_INT8_RUN, "a tile of x is a run of each row");

/* A tile in the order it is read: for each block, -offset * the sum of its codes for each row (of Q8 that of all blocks, in
 * front of the first), then for each step a word for each row. */
typedef struct {
    int8_word words[BLOCKS_A_TILE * WORDS_A_BLOCK * INT8_ROWS];
    float scale[INT8_ROWS];
} __attribute__((aligned(LINE_BYTES))) int8_tile_x;

INLINE int64_t blocks_of(int64_t k) { return (k + QUANT_BLOCK - 1) / QUANT_BLOCK; }

/* ---- x ------------------------------------------------------------------------------------- */

/* Adding 1.5 * 2^23 rounds what is smaller than 2^22 to a whole number, to nearest even, and leaves it in the low bits. */
#define ROUNDER 12582912.0f

/* Codes of x [OPS_INT8_RUN]; returns the scale. */
static float quantize_run(int8_t *codes, const float *x) {
    vu magnitudes = {0};
    for (int i = 0; i < OPS_INT8_RUN; i += LANES) { /* as whole numbers, so that NaN is the largest */
        vu m = (vu)vload(x + i) & 0x7fffffffu;
        vi is_larger = (vi)(m > magnitudes);
        magnitudes = ((vu)is_larger & m) | (~(vu)is_larger & magnitudes);
    }
    uint32_t bits[LANES], most = 0;
    memcpy(bits, &magnitudes, sizeof bits);
    for (int l = 0; l < LANES; l++) most = bits[l] > most ? bits[l] : most;
    float top;
    memcpy(&top, &most, sizeof top);
    bool is_finite = most < 0x7f800000u;
    if (!is_finite || top < OPS_TINY) {
        memset(codes, 0, OPS_INT8_RUN);
        return is_finite ? 0.0f : NAN;
    }
    vf factor = vsplat(127.0f / top), rounder = vsplat(ROUNDER);
    for (int i = 0; i < OPS_INT8_RUN; i += LANES) vstore_i8(codes + i, (vi)(vload(x + i) * factor + rounder));
    return top / 127.0f;
}

/* The same of the first k, the rest being zeros. */
static float code_run(int8_t codes[OPS_INT8_RUN], const float *x, int64_t k) {
    float run[OPS_INT8_RUN];
    if (k == OPS_INT8_RUN) return quantize_run(codes, x);
    memcpy(run, x, (size_t)k * sizeof *run);
    memset(run + k, 0, (size_t)(OPS_INT8_RUN - k) * sizeof *run);
    return quantize_run(codes, run);
}

static int32_t sum_codes(const int8_t *codes, int n) {
    int32_t sum = 0;
    for (int i = 0; i < n; i++) sum += codes[i];
    return sum;
}

static inline void int8_pack_x(void *tile, int row, int n_rows, const float *x, int64_t k, int offset) {
    int8_tile_x *t = tile;
    int8_t codes[OPS_INT8_RUN];
    t->scale[row] = code_run(codes, x, k);
    int8_word *to = t->words + row;
    for (int b = 0; b < BLOCKS_A_TILE; b++) {
        const int8_t *from = codes + b * QUANT_BLOCK;
        int32_t sum = offset != OFFSET_Q8 ? sum_codes(from, QUANT_BLOCK) : b == 0 ? sum_codes(codes, OPS_INT8_RUN) : 0;
        *to = (int8_word)(-offset * sum);
        to += n_rows;
        for (int step = 0; step < STEPS_A_BLOCK; step++, to += n_rows) {
#ifdef HAS_BYTE_DOT
            memcpy(to, from + step * DOT_K, DOT_K);
#else
            *to = (float)from[step];
#endif
        }
    }
}

/* ---- tile ---------------------------------------------------------------------------------- */

/* Vector `vec` of the codes of a step. */
#ifdef HAS_BYTE_DOT
INLINE vi vsplat_word(int32_t x) { return x - (vi){0}; }
INLINE vi vdot(vi sum, vi w, vi x) { return vbyte_dot(sum, w, x); }
INLINE vf vsums(vi sums) { return __builtin_convertvector(sums, vf); }
INLINE vi load_step(const unsigned char *codes, int step, int vec, const bool is_q4) {
    int col = vec * LANES;
    if (!is_q4) return vload_bytes(codes + (step * PANEL_COLS + col) * DOT_K);
    return vload_halves(codes + (step * HALF_COLS + col % HALF_COLS) * DOT_K, col < HALF_COLS ? 0 : 4);
}
#else
INLINE vf vsplat_word(float x) { return vsplat(x); }
INLINE vf vdot(vf sum, vf w, vf x) { return vfma(w, x, sum); }
INLINE vf vsums(vf sums) { return sums; }
INLINE vf load_step(const unsigned char *codes, int step, int vec, const bool is_q4) {
    const ops_dtype dtype = is_q4 ? OPS_DTYPE_Q4 : OPS_DTYPE_Q8;
    return load_codes(codes + step * quant_row_bytes(dtype), vec, dtype);
}
#endif

/* Adds QUANT_BLOCK k to rows x PASS_VECS sums of whole numbers; words are those of the steps. n_rows and is_q4 are
 * constants wherever this is inlined. */
INLINE void add_block(int8_sum sums[INT8_ROWS][PASS_VECS], const int8_word *words, const int n_rows,
                      const unsigned char *codes, int first_vec, const bool is_q4) {
#pragma GCC unroll 8
    for (int step = 0; step < STEPS_A_BLOCK; step++) {
        int8_sum w0 = load_step(codes, step, first_vec, is_q4), w1 = load_step(codes, step, first_vec + 1, is_q4);
#pragma GCC unroll 12
        for (int r = 0; r < n_rows; r++) {
            int8_sum word = vsplat_word(words[step * n_rows + r]);
            sums[r][0] = vdot(sums[r][0], w0, word);
            sums[r][1] = vdot(sums[r][1], w1, word);
        }
    }
}

INLINE void begin_sums(int8_sum sums[INT8_ROWS][PASS_VECS], const int8_word *words, const int n_rows) {
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++) sums[r][0] = sums[r][1] = vsplat_word(words[r]);
}

INLINE void add_scaled(float *out, vf sum0, vf sum1, float scale, bool load) {
    vf s = vsplat(scale);
    vstore(out, vfma(sum0, s, load ? vload(out) : vsplat(0.0f)));
    vstore(out + LANES, vfma(sum1, s, load ? vload(out + LANES) : vsplat(0.0f)));
}

/* A run of weights in q8: their scales in f32, then codes. */
INLINE void int8_body_q8(float *out, const int8_tile_x *x, const int n_rows, const unsigned char *w, int64_t n_blocks,
                         int first_vec, bool load, const simd_ahead *ahead) {
    const float *scales = (const float *)(const void *)w + first_vec * LANES;
    int8_sum sums[INT8_ROWS][PASS_VECS];
    simd_ahead share = share_ahead(ahead, n_blocks);
    begin_sums(sums, x->words, n_rows);
    for (int64_t b = 0; b < n_blocks; b++) {
        ask_ahead(&share);
        add_block(sums, x->words + (b * WORDS_A_BLOCK + 1) * n_rows, n_rows, w + INT8_HEAD + b * Q8_STEP_BYTES, first_vec,
                  false);
    }
    vf s0 = vload(scales), s1 = vload(scales + LANES);
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++)
        add_scaled(out + r * PANEL_COLS, vsums(sums[r][0]) * s0, vsums(sums[r][1]) * s1, x->scale[r], load);
}

/* Blocks of q4, each with scales of its own. */
INLINE void int8_body_q4(float *out, const int8_tile_x *x, const int n_rows, const unsigned char *w, int64_t n_blocks,
                         int first_vec, bool load, const simd_ahead *ahead) {
    vf run[INT8_ROWS][PASS_VECS] = {{{0}}};
    simd_ahead share = share_ahead(ahead, n_blocks);
    for (int64_t b = 0; b < n_blocks; b++, w += Q4_BLOCK_BYTES) {
        const int8_word *words = x->words + b * WORDS_A_BLOCK * n_rows;
        int8_sum sums[INT8_ROWS][PASS_VECS];
        vf s0 = vload_bf16((const uint16_t *)(const void *)w + first_vec * LANES);
        vf s1 = vload_bf16((const uint16_t *)(const void *)w + (first_vec + 1) * LANES);
        ask_ahead(&share);
        begin_sums(sums, words, n_rows);
        add_block(sums, words + n_rows, n_rows, w + QUANT_HEAD, first_vec, true);
#pragma GCC unroll 12
        for (int r = 0; r < n_rows; r++) {
            run[r][0] = vfma(vsums(sums[r][0]), s0, run[r][0]);
            run[r][1] = vfma(vsums(sums[r][1]), s1, run[r][1]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++) add_scaled(out + r * PANEL_COLS, run[r][0], run[r][1], x->scale[r], load);
}

typedef void int8_fn(float *out, const int8_tile_x *x, const unsigned char *w, int64_t n_blocks, bool is_q4, bool load,
                     const simd_ahead *ahead);

#define INT8_FN(rows)                                                                                                  \
    static void int8_##rows(float *out, const int8_tile_x *x, const unsigned char *w, int64_t n_blocks, bool is_q4,    \
                            bool load, const simd_ahead *ahead) {                                                      \
        for (int v = 0; v < PANEL_VECS; v += PASS_VECS, ahead = NULL) {                                                \
            if (is_q4) int8_body_q4(out + v * LANES, x, rows, w, n_blocks, v, load, ahead);                            \
            else int8_body_q8(out + v * LANES, x, rows, w, n_blocks, v, load, ahead);                                  \
        }                                                                                                              \
    }

INT8_FN(1)
INT8_FN(2)
INT8_FN(3)
#if INT8_ROWS > 3
INT8_FN(4)
INT8_FN(5)
INT8_FN(6)
#endif
#if INT8_ROWS > 6
INT8_FN(7)
INT8_FN(8)
#endif
#if INT8_ROWS > 8
INT8_FN(9)
INT8_FN(10)
INT8_FN(11)
INT8_FN(12)
#endif

static inline void int8_tile(float *out, const void *x, int n_rows, const unsigned char *w,
                             ops_dtype dtype, int64_t k, bool load, const simd_ahead *ahead) {
    static int8_fn *const fns[INT8_ROWS] = {int8_1, int8_2, int8_3,
#if INT8_ROWS > 3
                                            int8_4, int8_5, int8_6,
#endif
#if INT8_ROWS > 6
                                            int8_7, int8_8,
#endif
#if INT8_ROWS > 8
                                            int8_9, int8_10, int8_11, int8_12,
#endif
    };
    fns[n_rows - 1](out, x, w, blocks_of(k), dtype == OPS_DTYPE_Q4, load, ahead);
}

static const simd_product product_int8_vectors = {
    .tile_rows = INT8_ROWS,
    .dot_k = DOT_K,
    .offset_q8 = OFFSET_Q8,
    .offset_q4 = OFFSET_Q4,
    .group_panels = 16,
    .tile_bytes = sizeof(int8_tile_x),
    .pack_x = int8_pack_x,
    .tile = int8_tile,
};
