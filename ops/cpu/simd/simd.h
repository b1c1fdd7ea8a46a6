/* The innermost loops, one table per instruction set, chosen once when a context opens.
 *
 * Every variant is the same source (kernels.h) compiled with its own flags over its own vector type.
 * Whatever the vector width, each output element has one accumulator that runs over k in order, and
 * sums over a row use sixteen fixed lanes folded in a fixed tree: a result never depends on where in a
 * tile or vector an element happens to lie. AVX2 and AVX-512 therefore give equal bits; the generic
 * variant rounds products, because it has no fused multiply-add. */
#ifndef OPS_CPU_SIMD_SIMD_H
#define OPS_CPU_SIMD_SIMD_H

#include <stdbool.h>
#include <stdint.h>

#include "ops/ops.h"

#define PANEL_COLS   32  /* outputs side by side in a packed panel: one cache line of f16 */
#define TILE_ROWS_MAX 12 /* the most rows a tile has in any variant */
#define TILE_STRIDE  256 /* elements between the rows of a packed tile of x: the k of one block */
#define QUANT_HEAD   (PANEL_COLS * 2) /* bytes of the scales before the codes of a packed block, bf16 a column */
#define KEY_CHUNK    64  /* keys of one softmax step, counted from absolute position 0 */

typedef struct {
    const char *name;
    int tile_rows;   /* rows of x that one tile takes, at most TILE_ROWS_MAX */
    int gemv_panels; /* panels that one row walks at once */

    /* The product of a tile: out[r, c] (+)= sum over i < k of a[r, i] * w[i, c].
     * a [n_rows, TILE_STRIDE]; w rows w_stride elements apart, readable up to the next multiple of
     * 16 columns after n_cols; n_cols 1 .. PANEL_COLS; load: continue from what out holds. */
    void (*tile)(float *out, int64_t out_stride, const float *a, int n_rows, const void *w,
                 int64_t w_stride, ops_dtype dtype, int64_t k, int n_cols, bool load);

    /* One row of x [k] with gemv_panels whole panels that lie panel_bytes apart; out is written
     * densely, PANEL_COLS for each panel. */
    void (*gemv)(float *out, const float *x, const void *panels, int64_t panel_bytes,
                 ops_dtype dtype, int64_t k);

    /* out[r, c] = act(out[r, c] + bias[c]); bias readable like w. */
    void (*finish)(float *out, int64_t out_stride, int n_rows, int n_cols, const float *bias,
                   ops_act act);

    /* k rows of a packed panel to f32 [k, PANEL_COLS]; w begins a row, of q8 and q4 a block. */
    void (*upcast)(float *out, const void *w, ops_dtype dtype, int64_t k);

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

    /* One step of a streaming softmax over s [KEY_CHUNK], of which n are valid:
     *   new = max(*max, scale * s);  s = exp(scale * s - new);  *sum = *sum * shrink + sum of s
     * and shrink = exp(old max - new) is returned, for what was accumulated before. */
    float (*softmax_step)(float *s, int n, float scale, float *max, float *sum);

    /* out[i] = x[i] * factor, i < n */
    void (*scale)(float *out, const float *x, float factor, int64_t n);
} simd_kernels;

extern const simd_kernels simd_generic;
#ifdef __x86_64__
extern const simd_kernels simd_avx2;
extern const simd_kernels simd_avx512;
#endif

/* The variant of this name, or the best one for NULL; NULL when this machine has no such variant. */
const simd_kernels *simd_choose(const char *name);

#endif
