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
 * offset, the sums of a block begin with -offset times the sum of the row's codes, which takes it out again, exactly. */
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

#define RUNS_A_TILE    (TILE_STRIDE / OPS_INT8_RUN)
#define BLOCKS_A_RUN   (OPS_INT8_RUN / QUANT_BLOCK)
#define BLOCKS_A_TILE  (TILE_STRIDE / QUANT_BLOCK)
#define STEPS_A_BLOCK  (QUANT_BLOCK / DOT_K)
#define WORDS_A_BLOCK  (1 + STEPS_A_BLOCK) /* of a row */
#define PASS_VECS      2 /* vectors of columns side by side in a tile */
#define Q8_BLOCK_BYTES (QUANT_HEAD + QUANT_BLOCK * PANEL_COLS)
#define Q4_BLOCK_BYTES (QUANT_HEAD + QUANT_BLOCK * PANEL_COLS / 2)

/* A tile in the order it is read: for each block, -offset * the sum of its codes for each row, then for each step a word
 * for each row. */
typedef struct {
    int8_word words[BLOCKS_A_TILE * WORDS_A_BLOCK * INT8_ROWS];
    float scale[RUNS_A_TILE * INT8_ROWS];
} int8_tile_x;

INLINE int64_t blocks_of(int64_t k) { return (k + QUANT_BLOCK - 1) / QUANT_BLOCK; }

/* ---- x ------------------------------------------------------------------------------------- */

/* Adding and taking away 1.5 * 2^23 rounds what is smaller than 2^22 to a whole number, to nearest even. */
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
    float rounded[OPS_INT8_RUN];
    for (int i = 0; i < OPS_INT8_RUN; i += LANES) vstore(rounded + i, vload(x + i) * factor + rounder - rounder);
    for (int i = 0; i < OPS_INT8_RUN; i++) codes[i] = (int8_t)(int32_t)rounded[i];
    return top / 127.0f;
}

static void quantize_row_part(int8_t codes[TILE_STRIDE], float scale[RUNS_A_TILE], const float *x, int64_t k) {
    float run[OPS_INT8_RUN];
    for (int64_t i = 0; i < TILE_STRIDE; i += OPS_INT8_RUN) {
        const float *from = x + i;
        if (i >= k) {
            memset(codes + i, 0, OPS_INT8_RUN);
            scale[i / OPS_INT8_RUN] = 0.0f;
            continue;
        }
        if (k - i < OPS_INT8_RUN) {
            memset(run, 0, sizeof run);
            memcpy(run, from, (size_t)(k - i) * sizeof *run);
            from = run;
        }
        scale[i / OPS_INT8_RUN] = quantize_run(codes + i, from);
    }
}

static inline void int8_pack_x(void *tile, int row, int n_rows, const float *x, int64_t k, int offset) {
    int8_tile_x *t = tile;
    int8_t codes[TILE_STRIDE];
    float scale[RUNS_A_TILE];
    quantize_row_part(codes, scale, x, k);
    for (int i = 0; i < RUNS_A_TILE; i++) t->scale[i * n_rows + row] = scale[i];
    int8_word *to = t->words + row;
    for (const int8_t *from = codes; from < codes + TILE_STRIDE; from += QUANT_BLOCK) {
        int32_t sum = 0;
        for (int i = 0; i < QUANT_BLOCK; i++) sum += from[i];
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

/* One block: rows x PASS_VECS sums of whole numbers. n_rows and is_q4 are constants wherever this is inlined. */
INLINE void block_sums(int8_sum sums[INT8_ROWS][PASS_VECS], const int8_word *words, const int n_rows,
                       const unsigned char *codes, int first_vec, const bool is_q4) {
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++) sums[r][0] = sums[r][1] = vsplat_word(words[r]);
#pragma GCC unroll 8
    for (int step = 0; step < STEPS_A_BLOCK; step++) {
        int8_sum w0 = load_step(codes, step, first_vec, is_q4), w1 = load_step(codes, step, first_vec + 1, is_q4);
#pragma GCC unroll 12
        for (int r = 0; r < n_rows; r++) {
            int8_sum word = vsplat_word(words[(1 + step) * n_rows + r]);
            sums[r][0] = vdot(sums[r][0], w0, word);
            sums[r][1] = vdot(sums[r][1], w1, word);
        }
    }
}

INLINE void int8_body(float *out, const int8_tile_x *x, const int n_rows, const unsigned char *w,
                      int64_t n_blocks, int first_vec, const bool is_q4, bool load, const unsigned char *ahead) {
    const int64_t block_bytes = is_q4 ? Q4_BLOCK_BYTES : Q8_BLOCK_BYTES;
    out += first_vec * LANES;
    for (int64_t first = 0; first < n_blocks; first += BLOCKS_A_RUN) {
        vf run[INT8_ROWS][PASS_VECS] = {{{0}}};
        for (int64_t b = first; b < first + BLOCKS_A_RUN && b < n_blocks; b++, w += block_bytes) {
            int8_sum sums[INT8_ROWS][PASS_VECS];
            vf s0 = vload_bf16((const uint16_t *)(const void *)w + first_vec * LANES);
            vf s1 = vload_bf16((const uint16_t *)(const void *)w + (first_vec + 1) * LANES);
            if (ahead) prefetch(ahead + b * block_bytes, block_bytes);
            block_sums(sums, x->words + b * WORDS_A_BLOCK * n_rows, n_rows, w + QUANT_HEAD, first_vec, is_q4);
#pragma GCC unroll 12
            for (int r = 0; r < n_rows; r++) {
                run[r][0] = vfma(vsums(sums[r][0]), s0, run[r][0]);
                run[r][1] = vfma(vsums(sums[r][1]), s1, run[r][1]);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < n_rows; r++) {
            vf scale = vsplat(x->scale[first / BLOCKS_A_RUN * n_rows + r]);
            float *to = out + r * PANEL_COLS;
            bool has = load || first > 0;
            vstore(to, vfma(run[r][0], scale, has ? vload(to) : vsplat(0.0f)));
            vstore(to + LANES, vfma(run[r][1], scale, has ? vload(to + LANES) : vsplat(0.0f)));
        }
    }
}

typedef void int8_fn(float *out, const int8_tile_x *x, const unsigned char *w, int64_t n_blocks, bool is_q4, bool load,
                     const unsigned char *ahead);

#define INT8_FN(rows)                                                                                                  \
    static void int8_##rows(float *out, const int8_tile_x *x, const unsigned char *w, int64_t n_blocks, bool is_q4,    \
                            bool load, const unsigned char *ahead) {                                                   \
        for (int v = 0; v < PANEL_VECS; v += PASS_VECS, ahead = NULL) {                                                \
            if (is_q4) int8_body(out, x, rows, w, n_blocks, v, true, load, ahead);                                     \
            else int8_body(out, x, rows, w, n_blocks, v, false, load, ahead);                                          \
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
                             ops_dtype dtype, int64_t k, bool load, const unsigned char *ahead) {
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

/* ---- q4 in the form of q8 ------------------------------------------------------------------ */

static inline void expand_blocks(unsigned char *out, const unsigned char *w, int64_t n_blocks, const int dot_k,
                                 const int take) {
    for (int64_t b = 0; b < n_blocks; b++, w += Q4_BLOCK_BYTES, out += Q8_BLOCK_BYTES) {
        memcpy(out, w, QUANT_HEAD);
        int half = HALF_COLS * dot_k;
        for (int step = 0; step < QUANT_BLOCK / dot_k; step++) {
            const unsigned char *from = w + QUANT_HEAD + step * half;
            unsigned char *to = out + QUANT_HEAD + 2 * step * half;
            for (int i = 0; i < half; i++) {
                to[i] = (unsigned char)((from[i] & 15) - take);
                to[half + i] = (unsigned char)((from[i] >> 4) - take);
            }
        }
    }
}

static inline void int8_expand(void *out, const unsigned char *w, ops_dtype dtype, int64_t k) {
    (void)dtype; /* q4 */
    expand_blocks(out, w, blocks_of(k), DOT_K, OFFSET_Q4 ? 0 : 8);
}

#ifndef AMX_KERNELS
static const simd_product product_int8 = {
    .tile_rows = INT8_ROWS,
    .dot_k = DOT_K,
    .offset_q8 = OFFSET_Q8,
    .offset_q4 = OFFSET_Q4,
    .expanded = OPS_DTYPE_Q8,
    .rows_to_expand = 3 * INT8_ROWS,
    .takes_codes = true,
    .tile_bytes = (sizeof(int8_tile_x) + 63) / 64 * 64,
    .pack_x = int8_pack_x,
    .tile = int8_tile,
    .expand = int8_expand,
};
#endif
