/* The innermost loops, one table per instruction set, chosen once when a context opens.
 *
 * Every variant is the same source (kernels.h) compiled with its own flags over its own vector type.
 * Whatever the vector width, each output element has one accumulator that runs over k in order, and
 * sums over a row use sixteen fixed lanes folded in a fixed tree: a result never depends on where in a
 * tile or vector an element happens to lie. AVX2 and AVX-512 therefore give equal bits; the generic
 * variant rounds products, because it has no fused multiply-add. vnni and amx are avx512 with their own
 * instructions for the products of bytes and of bf16. */
#ifndef OPS_CPU_SIMD_SIMD_H
#define OPS_CPU_SIMD_SIMD_H

#include <stdbool.h>
#include <stdint.h>

#include "ops/ops.h"

#define PANEL_COLS   32  /* outputs side by side in a packed panel: one cache line of f16 */
#define TILE_ROWS_MAX 12 /* the most rows a tile of f32 has in any variant */
#define PRODUCT_ROWS_MAX 32 /* the same of any product */
#define TILE_STRIDE  256 /* elements between the rows of a packed tile of x: the k of one block */
#define QUANT_HEAD   (PANEL_COLS * 2) /* bytes of the scales before the codes of a packed block, bf16 a column */
#define INT8_HEAD    (PANEL_COLS * 4) /* the same of a run in OPS_PRODUCT_INT8, f32 a column */
#define INT8_TAIL    64               /* the k that fill a run's last piece */
#define SOFTMAX_ROWS 16  /* rows that take a softmax step together, at most */
#define KEY_CHUNK    64  /* keys of one softmax step, counted from absolute position 0 */

#define LINE_BYTES 64 /* of a cache */

/* Asks for memory that will be read soon; it need not be there. */
static inline void prefetch(const void *data, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += LINE_BYTES) __builtin_prefetch((const char *)data + at);
}

/* The same for the second cache: the first has no room for it yet. */
static inline void prefetch_far(const void *data, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += LINE_BYTES) __builtin_prefetch((const char *)data + at, 0, 2);
}

/* Memory that will be wanted after what is multiplied now, and is asked for meanwhile, a part with each step. */
typedef struct {
    const unsigned char *weights, *rows; /* NULL: nothing */
    int64_t weights_bytes, rows_bytes;
    bool is_next; /* it is wanted by the next tile already */
} simd_ahead;

/* The kernels of one product (ops_product) of a variant. Weights lie in panels of PANEL_COLS columns, a panel is a run of
 * blocks of QUANT_BLOCK k, and a block is
 *
 *     f32, f16, bf16   values [k / dot_k][column][dot_k]
 *     q8               the bf16 scales of the columns, then bytes [k][column]
 *     q4               the scales, then bytes [k / dot_k][column mod 16][dot_k]; columns from 16 on in the high half, each
 *                      code + 8
 *
 * but in OPS_PRODUCT_INT8 a block of q8 is a run of OPS_INT8_RUN k, the last one as many of them as INT8_TAIL fills, its
 * scales are f32, and its bytes [k / dot_k][column][dot_k], each code + offset_q8.
 *
 * x comes in tiles of at most tile_rows rows and TILE_STRIDE of k, packed by pack_x in whatever way tile reads. */
typedef struct {
    int tile_rows;      /* at most PRODUCT_ROWS_MAX */
    int dot_k;          /* k side by side: what one instruction adds up */
    int offset_q8;      /* 0 or 128 */
    int offset_q4;      /* 0 or 8: what tile and expand leave of the 8 that q4 is stored with */
    int group_panels;   /* panels of one task with many rows */
    ops_dtype expanded; /* what expand makes of weights, where it is there */
    int rows_to_expand; /* rows from which it pays */
    bool needs_whole;   /* tile always writes tile_rows rows */
    size_t tile_bytes;  /* of a tile of x, a multiple of 64 */

    /* Row `row` of a tile of n_rows from x [k], 0 < k <= TILE_STRIDE; offset is what was added to the codes of the weights it
     * will meet. */
    void (*pack_x)(void *tile, int row, int n_rows, const float *x, int64_t k, int offset);

    /* With the n_rows that the tile was packed with: out [rows, PANEL_COLS] (+)= what the first k of a panel add. load:
     * continue from what out holds. */
    void (*tile)(float *out, const void *x, int n_rows, const unsigned char *w, ops_dtype dtype, int64_t k, bool load,
                 const simd_ahead *ahead);

    /* The first k of a panel in the dtype `expanded`; NULL: tile takes whatever comes. */
    void (*expand)(void *out, const unsigned char *w, ops_dtype dtype, int64_t k);

    /* One row of x [k] in one piece, with gemv_panels whole panels that lie panel_bytes apart; out is written densely,
     * PANEL_COLS for each panel. NULL: tile does it. */
    void (*gemv)(float *out, const float *x, const unsigned char *panels, int64_t panel_bytes, ops_dtype dtype, int64_t k);
    int gemv_panels;

    /* Around the tiles of a task, on its thread; NULL: nothing is to be done. */
    void (*enter)(void);
    void (*leave)(void);
} simd_product;

#define ATTENTION_TILE_ROWS 16

/* Attention of many rows in bf16: ATTENTION_TILE_ROWS of them and a chunk of KEY_CHUNK keys. width is the padded one, a
 * multiple of 32, at most TILE_STRIDE. */
typedef struct {
    /* out[i] = x[i], rounded; zeros up to a multiple of 32. */
    void (*narrow)(uint16_t *out, const float *x, int64_t n);

    /* keys [n, width], zero past the head's size, are used up; packed: as large. */
    void (*pack_keys)(void *packed, float *keys, int n, int64_t width);

    /* values [n, width], zero past the head's size; packed: half as large as KEY_CHUNK of them. Returns the keys, a bit each,
     * with a value that is not finite: it counts as zero. */
    uint64_t (*pack_values)(void *packed, const float *values, int n, int64_t width);

    /* s [row, KEY_CHUNK] = queries [row, width] times keys, rows of s TILE_STRIDE apart. Every row of the tile is written, and
     * the keys past those that were packed are whatever. */
    void (*scores)(float *s, const uint16_t *queries, const void *keys, int64_t width);

    /* acc [row, width] += weights [row, KEY_CHUNK] times values. */
    void (*add_values)(float *acc, const uint16_t *weights, const void *values, int64_t width);

    void (*enter)(void); /* around all of these in a task, on its thread */
    void (*leave)(void);
} simd_attention;

typedef struct {
    const char *name;
    const simd_product *f32, *bf16, *int8;

    /* Codes of the first k of a run for OPS_PRODUCT_INT8, the rest 0; returns their scale. */
    float (*code_run)(int8_t codes[OPS_INT8_RUN], const float *x, int64_t k);

    int tile_rows; /* rows of a that one tile takes, at most TILE_ROWS_MAX */

    /* The product of a tile: out[r, c] (+)= sum over i < k of a[r, i] * w[i, c].
     * a [n_rows, TILE_STRIDE]; w rows w_stride elements apart; n_cols 16 or PANEL_COLS; load: continue from what out
     * holds. */
    void (*tile)(float *out, int64_t out_stride, const float *a, int n_rows, const void *w,
                 int64_t w_stride, ops_dtype dtype, int64_t k, int n_cols, bool load);

    /* out[c] = act(sums[c] + bias[c]) + add[c], c < n; add NULL: nothing. is_far: out is more than caches hold; a fence
     * (seq_cst) lies between and whoever reads it. */
    void (*finish)(float *out, const float *sums, int n, const float *bias, const float *add, ops_act act, bool is_far);

    /* out[i] = x[i] of f32, f16, bf16 or e4m3, i < n */
    void (*widen)(float *out, const void *x, ops_dtype dtype, int64_t n);

    /* out[i] of f32, f16, bf16 or e4m3 = x[i], to nearest even, i < n */
    void (*narrow)(void *out, const float *x, ops_dtype dtype, int64_t n);

    /* One row of layer norm. */
    void (*layer_norm)(float *out, const float *x, const float *w, const float *b, int64_t n,
                       float eps);

    /* One row of RMS norm. */
    void (*rms_norm)(float *out, const float *x, const float *w, int64_t n, float eps);

    /* out[i] = act(x[i]), i < n */
    void (*activate)(float *out, const float *x, int64_t n, ops_act act);

    /* out[i] = act(x[i]) * x[n + i], i < n */
    void (*gate)(float *out, const float *x, int64_t n, ops_act act);

    /* out[i, j] = rows[j][i], i < width, j < n <= KEY_CHUNK; out [width, KEY_CHUNK]; a few columns
     * after n may be written too. */
    void (*transpose)(float *out, const float *const *rows, int n, int64_t width);

    /* One step of a streaming softmax of n_rows rows s [KEY_CHUNK], TILE_STRIDE apart, of which n[row] are valid. For each row
     *   new = max(max, scale * s);  s = exp(scale * s - new);  shrink = exp(max - new);  sum = sum * shrink + sum of s
     * and shrink is for what was accumulated before. max, sum and shrink [SOFTMAX_ROWS]; max is finite behind n_rows, too. */
    void (*softmax_step)(float *s, int n_rows, const int *n, float scale, float *max, float *sum, float *shrink);

    /* out[j] = sum over d < width of q[d] keys[j][d], j < n <= KEY_CHUNK; keys of f32, f16, bf16 or e4m3. Sixteen sums, d in sum
     * d mod 16, folded 8-4-2-1. out [KEY_CHUNK]. ahead: n lines of the same size that will be wanted next and are asked
     * for meanwhile; NULL: none. */
    void (*scores)(float *out, const float *q, const void *const *keys, ops_dtype dtype, int n, int64_t width,
                   const void *const *ahead);

    /* out[d] += sum over j < n of weights[j] values[j][d], d < width, one key after the other; ahead as there. */
    void (*add_values)(float *out, const float *weights, const void *const *values, ops_dtype dtype, int n, int64_t width,
                       const void *const *ahead);

    /* out[i] = x[i] * factor, i < n */
    void (*scale)(float *out, const float *x, float factor, int64_t n);

    /* out[i] = x[i] / by, i < n */
    void (*divide)(float *out, const float *x, float by, int64_t n);

    const simd_attention *attention; /* NULL: there is none in bf16 that would be faster */
} simd_kernels;

extern const simd_kernels simd_generic;
#ifdef __x86_64__
extern const simd_kernels simd_avx2;
extern const simd_kernels simd_avx512;
extern const simd_kernels simd_vnni;
extern const simd_kernels simd_amx;
#endif

/* The variant of this name, or the best one for NULL; NULL when this machine has no such variant. */
const simd_kernels *simd_choose(const char *name);

/* Whether some machine has a variant of this name. */
bool simd_is_known(const char *name);

#endif
