/* The kernels of simd.h over one vector type. A variant file defines, before including this:
 *
 *     VARIANT        suffix of the table's name: simd_<VARIANT>
 *     LANES          floats of a vector: 4, 8 or 16
 *     TILE_ROWS      rows of a tile;  TILE_VECS  vectors side by side in it
 *     vf, vi, vu     vectors of LANES float, int32_t, uint32_t (GCC vector extension)
 *     vload, vstore, vfma(a, b, c) = a*b + c, vmax, vmin (second operand when one is NaN)
 *     vload_f16, vload_bf16   LANES values, upcast;  vstore_f16   LANES values, to nearest even;
 *     vload_e4m3              LANES codes, as e4m3_to_f32;  vload_i8   LANES signed bytes;
 *     vload_u4(p, shift)      LANES bytes, of each the four bits at shift (0 or 4), less 8
 *     INT8_ROWS, and where the machine has it HAS_BYTE_DOT, vload_bytes, vload_halves, vbyte_dot    see int8.h
 *     and where it has instructions for them, with HAS_ and the name defined: vtimes_power(x, n, of, least) = x * 2^n,
 *     rounded once, 0 where of < least; vfold(v), the sum of sixteen lanes, 8-4-2-1; and what stands below in plain C
 *     TRANSPOSE_EDGE, transpose_square(out, out_stride, rows): a square of that edge
 *
 * A tile keeps TILE_ROWS x TILE_VECS accumulators in registers; for each k it loads TILE_VECS vectors
 * of w and one broadcast of x per row. All trip counts inside are constants, unrolled by pragma. */
#include <math.h>
#include <string.h>

#include "base/check.h"
#include "ops/cpu/simd/simd.h"
#include "ops/cpu/simd/vmath.h"

typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

#define INLINE    static inline __attribute__((always_inline))
#define TILE_COLS (TILE_VECS * LANES)

/* To an aligned place, past the caches where that is known to pay. */
#ifndef HAS_STREAM
INLINE void vstream(float *p, vf v) { vstore(p, v); }
#endif

/* The largest lane; of a NaN nothing is promised but that it does no harm. */
#ifndef HAS_LARGEST
INLINE float vlargest(vf v) {
    float top = v[0];
    for (int l = 1; l < LANES; l++) top = v[l] > top ? v[l] : top;
    return top;
}
#endif

/* The lowest byte of each lane. */
#ifndef HAS_STORE_I8
INLINE void vstore_i8(int8_t *p, vi v) {
    for (int i = 0; i < LANES; i++) p[i] = (int8_t)v[i];
}
#endif

INLINE vf load_weights(const void *w, int64_t at, const ops_dtype dtype) {
    if (dtype == OPS_DTYPE_F32) return vload((const float *)w + at);
    if (dtype == OPS_DTYPE_F16) return vload_f16((const uint16_t *)w + at);
    if (dtype == OPS_DTYPE_E4M3) return vload_e4m3((const uint8_t *)w + at);
    return vload_bf16((const uint16_t *)w + at);
}

INLINE float value_at(const void *x, int64_t at, const ops_dtype dtype) {
    if (dtype == OPS_DTYPE_F32) return ((const float *)x)[at];
    if (dtype == OPS_DTYPE_E4M3) return e4m3_to_f32(((const uint8_t *)x)[at]);
    return dtype == OPS_DTYPE_F16 ? f16_to_f32(((const uint16_t *)x)[at]) : bf16_to_f32(((const uint16_t *)x)[at]);
}

/* Calls run(dtype) with dtype a constant. */
#define WITH_STORED(dtype, run)                                        \
    do {                                                               \
        switch (dtype) {                                               \
        case OPS_DTYPE_F32: run(OPS_DTYPE_F32); break;                 \
        case OPS_DTYPE_F16: run(OPS_DTYPE_F16); break;                 \
        case OPS_DTYPE_E4M3: run(OPS_DTYPE_E4M3); break;               \
        default: run(OPS_DTYPE_BF16);                                  \
        }                                                              \
    } while (0)

/* ---- tile ---------------------------------------------------------------------------------- */

/* n_rows, n_vecs and dtype are constants wherever this is inlined. */
INLINE void tile_body(float *out, int64_t out_stride, const float *a, const int n_rows,
                      const int n_vecs, const void *w, int64_t w_stride, const ops_dtype dtype,
                      int64_t k, bool load) {
    vf acc[TILE_ROWS][TILE_VECS];
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < n_vecs; v++)
            acc[r][v] = load ? vload(out + r * out_stride + v * LANES) : vsplat(0.0f);
    }
    for (int64_t i = 0; i < k; i++) {
        vf b[TILE_VECS];
        if (dtype != OPS_DTYPE_F32) __builtin_prefetch((const uint16_t *)w + i * w_stride + 2048);
#pragma GCC unroll 2
        for (int v = 0; v < n_vecs; v++) b[v] = load_weights(w, i * w_stride + v * LANES, dtype);
#pragma GCC unroll 12
        for (int r = 0; r < n_rows; r++) {
            vf x = vsplat(a[r * TILE_STRIDE + i]);
#pragma GCC unroll 2
            for (int v = 0; v < n_vecs; v++) acc[r][v] = vfma(x, b[v], acc[r][v]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < n_rows; r++) {
#pragma GCC unroll 2
        for (int v = 0; v < n_vecs; v++) vstore(out + r * out_stride + v * LANES, acc[r][v]);
    }
}

typedef void tile_fn(float *out, int64_t out_stride, const float *a, const void *w,
                     int64_t w_stride, int64_t k, bool load);

#define TILE_FN(rows, vecs, type)                                                                  \
    static void tile_##rows##_##vecs##_##type(float *out, int64_t out_stride, const float *a,      \
                                              const void *w, int64_t w_stride, int64_t k,          \
                                              bool load) {                                         \
        tile_body(out, out_stride, a, rows, vecs, w, w_stride, OPS_DTYPE_##type, k, load);         \
    }
#define TILE_FNS(rows)                                                                             \
    TILE_FN(rows, 1, F32)                                                                          \
    TILE_FN(rows, 2, F32)                                                                          \
    TILE_FN(rows, 1, F16)                                                                          \
    TILE_FN(rows, 2, F16)                                                                          \
    TILE_FN(rows, 1, BF16)                                                                         \
    TILE_FN(rows, 2, BF16)
#define TILE_ROW(rows)                                                                             \
    {{tile_##rows##_1_F32, tile_##rows##_2_F32},                                                   \
     {tile_##rows##_1_F16, tile_##rows##_2_F16},                                                   \
     {tile_##rows##_1_BF16, tile_##rows##_2_BF16}}

BUILD_CHECK(TILE_VECS == 2, "tiles exist for one and for two vectors");
BUILD_CHECK(OPS_DTYPE_F32 == 0 && OPS_DTYPE_F16 == 1 && OPS_DTYPE_BF16 == 2, "index of tile_fns");

TILE_FNS(1)
TILE_FNS(2)
TILE_FNS(3)
TILE_FNS(4)
#if TILE_ROWS > 4
TILE_FNS(5)
TILE_FNS(6)
#endif
#if TILE_ROWS > 6
TILE_FNS(7)
TILE_FNS(8)
TILE_FNS(9)
TILE_FNS(10)
TILE_FNS(11)
TILE_FNS(12)
#endif

static tile_fn *const tile_fns[TILE_ROWS][3][2] = {
    TILE_ROW(1),  TILE_ROW(2), TILE_ROW(3), TILE_ROW(4),
#if TILE_ROWS > 4
    TILE_ROW(5),  TILE_ROW(6),
#endif
#if TILE_ROWS > 6
    TILE_ROW(7),  TILE_ROW(8), TILE_ROW(9), TILE_ROW(10),
    TILE_ROW(11), TILE_ROW(12),
#endif
};

static void tile(float *out, int64_t out_stride, const float *a, int n_rows, const void *w,
                 int64_t w_stride, ops_dtype dtype, int64_t k, int n_cols, bool load) {
    size_t step_bytes = TILE_COLS * dtype_bytes(dtype);
    for (int c = 0; c < n_cols; c += TILE_COLS) {
        int vecs = n_cols - c > LANES ? 2 : 1;
        tile_fns[n_rows - 1][dtype][vecs - 1](out + c, out_stride, a, w, w_stride, k, load);
        w = (const unsigned char *)w + step_bytes;
    }
}

/* ---- one row ------------------------------------------------------------------------------- */

/* Eight accumulators in flight hide the latency of the fused multiply-add. */
#define GEMV_PANELS (8 * LANES / PANEL_COLS)
#define PANEL_VECS  (PANEL_COLS / LANES)

INLINE void gemv_body(float *out, const float *x, const void *panels, int64_t panel_bytes,
                      const ops_dtype dtype, int64_t k) {
    vf acc[GEMV_PANELS][PANEL_VECS];
    const unsigned char *w[GEMV_PANELS];
#pragma GCC unroll 4
    for (int p = 0; p < GEMV_PANELS; p++) {
        w[p] = (const unsigned char *)panels + p * panel_bytes;
#pragma GCC unroll 8
        for (int v = 0; v < PANEL_VECS; v++) acc[p][v] = vsplat(0.0f);
    }
    for (int64_t i = 0; i < k; i++) {
        vf xi = vsplat(x[i]);
#pragma GCC unroll 4
        for (int p = 0; p < GEMV_PANELS; p++) {
#pragma GCC unroll 8
            for (int v = 0; v < PANEL_VECS; v++)
                acc[p][v] = vfma(xi, load_weights(w[p], i * PANEL_COLS + v * LANES, dtype),
                                 acc[p][v]);
        }
    }
#pragma GCC unroll 4
    for (int p = 0; p < GEMV_PANELS; p++) {
#pragma GCC unroll 8
        for (int v = 0; v < PANEL_VECS; v++) vstore(out + p * PANEL_COLS + v * LANES, acc[p][v]);
    }
}

/* ---- blocks of q8 and q4 ------------------------------------------------------------------- */

/* A packed block: the bf16 scales of the panel's columns, then QUANT_BLOCK rows of codes; in a row of q4, column c and
 * column c + 16 share byte c. dtype is a constant wherever these are inlined. */
#define HALF_COLS (PANEL_COLS / 2)

INLINE int64_t quant_row_bytes(const ops_dtype dtype) { return dtype == OPS_DTYPE_Q8 ? PANEL_COLS : HALF_COLS; }

INLINE vf load_codes(const unsigned char *codes, int v, const ops_dtype dtype) {
    int col = v * LANES;
    if (dtype == OPS_DTYPE_Q8) return vload_i8((const int8_t *)codes + col);
    return vload_u4(codes + col % HALF_COLS, col < HALF_COLS ? 0 : 4);
}

INLINE void upcast_blocks(float *out, const unsigned char *w, const ops_dtype dtype, int64_t k) {
    while (k > 0) {
        vf scales[PANEL_VECS];
#pragma GCC unroll 8
        for (int v = 0; v < PANEL_VECS; v++) scales[v] = vload_bf16((const uint16_t *)(const void *)w + v * LANES);
        w += QUANT_HEAD;
        int64_t n = k < QUANT_BLOCK ? k : QUANT_BLOCK;
        for (int64_t i = 0; i < n; i++, out += PANEL_COLS) {
#pragma GCC unroll 8
            for (int v = 0; v < PANEL_VECS; v++)
                vstore(out + v * LANES, load_codes(w + i * quant_row_bytes(dtype), v, dtype) * scales[v]);
        }
        w += QUANT_BLOCK * quant_row_bytes(dtype);
        k -= n;
    }
}

INLINE void widen_of(float *out, const void *x, const ops_dtype dtype, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) vstore(out + i, load_weights(x, i, dtype));
    for (; i < n; i++) out[i] = value_at(x, i, dtype);
}

static void widen(float *out, const void *x, ops_dtype dtype, int64_t n) {
#define WIDEN(constant) widen_of(out, x, constant, n)
    WITH_STORED(dtype, WIDEN);
}

static void f32_expand(void *out, const unsigned char *w, ops_dtype dtype, int64_t k) {
    int64_t n = k * PANEL_COLS;
    if (dtype == OPS_DTYPE_Q8) upcast_blocks(out, w, OPS_DTYPE_Q8, k);
    else if (dtype == OPS_DTYPE_Q4) upcast_blocks(out, w, OPS_DTYPE_Q4, k);
    else widen(out, w, dtype, n);
}

INLINE void gemv_blocks(float *out, const float *x, const void *panels, int64_t panel_bytes,
                        const ops_dtype dtype, int64_t k) {
    vf acc[GEMV_PANELS][PANEL_VECS];
#pragma GCC unroll 4
    for (int p = 0; p < GEMV_PANELS; p++) {
#pragma GCC unroll 8
        for (int v = 0; v < PANEL_VECS; v++) acc[p][v] = vsplat(0.0f);
    }
    const unsigned char *w = panels;
    for (int64_t k0 = 0; k0 < k; k0 += QUANT_BLOCK) {
        vf scales[GEMV_PANELS][PANEL_VECS];
#pragma GCC unroll 4
        for (int p = 0; p < GEMV_PANELS; p++) {
#pragma GCC unroll 8
            for (int v = 0; v < PANEL_VECS; v++)
                scales[p][v] = vload_bf16((const uint16_t *)(const void *)(w + p * panel_bytes) + v * LANES);
        }
        w += QUANT_HEAD;
        int64_t n = k - k0 < QUANT_BLOCK ? k - k0 : QUANT_BLOCK;
        for (int64_t i = 0; i < n; i++, w += quant_row_bytes(dtype)) {
            vf xi = vsplat(x[k0 + i]);
#pragma GCC unroll 4
            for (int p = 0; p < GEMV_PANELS; p++) {
#pragma GCC unroll 8
                for (int v = 0; v < PANEL_VECS; v++)
                    acc[p][v] = vfma(xi, load_codes(w + p * panel_bytes, v, dtype) * scales[p][v], acc[p][v]);
            }
        }
    }
#pragma GCC unroll 4
    for (int p = 0; p < GEMV_PANELS; p++) {
#pragma GCC unroll 8
        for (int v = 0; v < PANEL_VECS; v++) vstore(out + p * PANEL_COLS + v * LANES, acc[p][v]);
    }
}

static void gemv(float *out, const float *x, const unsigned char *panels, int64_t panel_bytes,
                 ops_dtype dtype, int64_t k) {
    switch (dtype) {
    case OPS_DTYPE_F32: gemv_body(out, x, panels, panel_bytes, OPS_DTYPE_F32, k); break;
    case OPS_DTYPE_F16: gemv_body(out, x, panels, panel_bytes, OPS_DTYPE_F16, k); break;
    case OPS_DTYPE_Q8: gemv_blocks(out, x, panels, panel_bytes, OPS_DTYPE_Q8, k); break;
    case OPS_DTYPE_Q4: gemv_blocks(out, x, panels, panel_bytes, OPS_DTYPE_Q4, k); break;
    default: gemv_body(out, x, panels, panel_bytes, OPS_DTYPE_BF16, k); break;
    }
}

/* ---- bias and activation ------------------------------------------------------------------- */

INLINE vf activate(vf x, ops_act act) {
    if (act == OPS_ACT_GELU_TANH) return vgelu_tanh(x);
    if (act == OPS_ACT_GELU_ERF) return vgelu_erf(x);
    if (act == OPS_ACT_QUICK_GELU) return vsigmoid_times(x, 1.702f);
    if (act == OPS_ACT_SILU) return vsigmoid_times(x, 1.0f);
    return x;
}

static void finish(float *out, const float *sums, int n, const float *bias, const float *add, ops_act act, bool is_far) {
    int c = 0;
    for (; c + LANES <= n; c += LANES) {
        vf v = activate(vload(sums + c) + vload(bias + c), act);
        if (add) v = v + vload(add + c);
        if (is_far && (uintptr_t)(out + c) % sizeof v == 0) vstream(out + c, v);
        else vstore(out + c, v);
    }
    if (c < n) {
        float edge[LANES] = {0}, edge_bias[LANES] = {0};
        memcpy(edge, sums + c, (size_t)(n - c) * sizeof *edge);
        memcpy(edge_bias, bias + c, (size_t)(n - c) * sizeof *edge_bias);
        vstore(edge, activate(vload(edge) + vload(edge_bias), act));
        for (int i = c; i < n; i++) out[i] = add ? edge[i - c] + add[i] : edge[i - c];
    }
}

static void activate_row(float *out, const float *x, int64_t n, ops_act act) {
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES) vstore(out + c, activate(vload(x + c), act));
    if (c < n) {
        float edge[LANES] = {0};
        memcpy(edge, x + c, (size_t)(n - c) * sizeof *edge);
        vstore(edge, activate(vload(edge), act));
        memcpy(out + c, edge, (size_t)(n - c) * sizeof *edge);
    }
}

static void gate(float *out, const float *x, int64_t n, ops_act act) {
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES) vstore(out + c, activate(vload(x + c), act) * vload(x + n + c));
    if (c < n) {
        float edge[LANES] = {0};
        memcpy(edge, x + c, (size_t)(n - c) * sizeof *edge);
        vstore(edge, activate(vload(edge), act));
        for (int64_t i = c; i < n; i++) out[i] = edge[i - c] * x[n + i];
    }
}

/* ---- layer norm ---------------------------------------------------------------------------- */

/* Sixteen sums, element i in sum i mod 16, folded 8-4-2-1. In double, so that a large mean with a
 * small spread loses nothing. */
#define SUMS 16

static double fold_sums(double *sums) {
    for (int half = SUMS / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) sums[l] += sums[l + half];
    return sums[0];
}

static void layer_norm(float *out, const float *x, const float *w, const float *b, int64_t n,
                       float eps) {
    double sums[SUMS] = {0}, squares[SUMS] = {0};
    int64_t whole = n - n % SUMS;
    for (int64_t i = 0; i < whole; i += SUMS)
        for (int l = 0; l < SUMS; l++) sums[l] += (double)x[i + l];
    for (int64_t i = whole; i < n; i++) sums[i - whole] += (double)x[i];
    double mean = fold_sums(sums) / (double)n;
    for (int64_t i = 0; i < whole; i += SUMS)
        for (int l = 0; l < SUMS; l++) {
            double d = (double)x[i + l] - mean;
            squares[l] += d * d;
        }
    for (int64_t i = whole; i < n; i++) {
        double d = (double)x[i] - mean;
        squares[i - whole] += d * d;
    }
    double scale = 1.0 / sqrt(fold_sums(squares) / (double)n + (double)eps);
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(((double)x[i] - mean) * scale * (double)w[i] + (double)b[i]);
}

static void rms_norm(float *out, const float *x, const float *w, int64_t n, float eps) {
    double squares[SUMS] = {0};
    int64_t whole = n - n % SUMS;
    for (int64_t i = 0; i < whole; i += SUMS)
        for (int l = 0; l < SUMS; l++) squares[l] += (double)x[i + l] * (double)x[i + l];
    for (int64_t i = whole; i < n; i++) squares[i - whole] += (double)x[i] * (double)x[i];
    double scale = 1.0 / sqrt(fold_sums(squares) / (double)n + (double)eps);
    for (int64_t i = 0; i < n; i++) out[i] = (float)((double)x[i] * scale * (double)w[i]);
}

/* ---- attention ----------------------------------------------------------------------------- */

static void transpose(float *out, const float *const *rows, int n, int64_t width) {
    const float *square[TRANSPOSE_EDGE];
    int64_t whole = width - width % TRANSPOSE_EDGE;
    for (int j = 0; j < n; j += TRANSPOSE_EDGE) {
        /* past the last key, repeat it: its columns are computed and never looked at */
        for (int e = 0; e < TRANSPOSE_EDGE; e++) square[e] = rows[j + e < n ? j + e : n - 1];
        for (int64_t i = 0; i < whole; i += TRANSPOSE_EDGE)
            transpose_square(out + i * KEY_CHUNK + j, KEY_CHUNK, square, i);
        for (int64_t i = whole; i < width; i++)
            for (int e = 0; e < TRANSPOSE_EDGE; e++) out[i * KEY_CHUNK + j + e] = square[e][i];
    }
}

#define FOLD_LANES 16
#define FOLD_VECS  (FOLD_LANES / LANES)

/* Sixteen sums to one, 8-4-2-1. */
INLINE float fold_lanes(const vf lanes[FOLD_VECS]) {
#ifdef HAS_FOLD
    return vfold(lanes[0]);
#endif
    float fold[FOLD_LANES];
    for (int v = 0; v < FOLD_VECS; v++) vstore(fold + v * LANES, lanes[v]);
#pragma GCC unroll 4
    for (int half = FOLD_LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int l = 0; l < half; l++) fold[l] += fold[l + half];
    return fold[0];
}

#define CHUNK_VECS (KEY_CHUNK / LANES)

BUILD_CHECK(SOFTMAX_ROWS % LANES == 0, "rows fill vectors");

/* Rows are independent, and none waits for a branch: their chains of operations overlap. */
static void softmax_step(float *s, int n_rows, const int *n, float scale, float *max, float *sum, float *shrink) {
    _Alignas(LINE_BYTES) float tops[SOFTMAX_ROWS] = {0}, sums[SOFTMAX_ROWS] = {0};
    vf vscale = vsplat(scale);
    for (int r = 0; r < n_rows; r++) {
        float *row = s + r * TILE_STRIDE;
        for (int j = n[r]; j < KEY_CHUNK; j++) row[j] = -INFINITY;
        vf vtop = vload(row) * vscale;
#pragma GCC unroll 16
        for (int v = 1; v < CHUNK_VECS; v++) vtop = vmax(vtop, vload(row + v * LANES) * vscale);
        tops[r] = vlargest(vtop);
    }
    for (int r = 0; r < n_rows; r += LANES) {
        vf old = vload(max + r), top = vmax(vload(tops + r), old);
        vstore(max + r, top);
        vstore(shrink + r, vexp(old - top));
    }
    for (int r = 0; r < n_rows; r++) {
        float *row = s + r * TILE_STRIDE;
        vf vtop = vsplat(max[r]), lanes[FOLD_VECS] = {0};
#pragma GCC unroll 16
        for (int v = 0; v < CHUNK_VECS; v++) {
            vf p = vexp(vload(row + v * LANES) * vscale - vtop);
            vstore(row + v * LANES, p);
            lanes[v % FOLD_VECS] = lanes[v % FOLD_VECS] + p;
        }
        sums[r] = fold_lanes(lanes);
    }
    for (int r = 0; r < n_rows; r++) sum[r] = sum[r] * shrink[r] + sums[r];
}

INLINE void prefetch_row(const void *const *ahead, int j, const ops_dtype dtype, int64_t width) {
    if (ahead) prefetch(ahead[j], width * (dtype == OPS_DTYPE_F32 ? 4 : dtype == OPS_DTYPE_E4M3 ? 1 : 2));
}

INLINE void scores_of(float *out, const float *q, const void *const *keys, const ops_dtype dtype, int n, int64_t width,
                      const void *const *ahead) {
    _Alignas(64) float sums[KEY_CHUNK][FOLD_LANES], turned[FOLD_LANES][KEY_CHUNK];
    const float *rows[KEY_CHUNK];
    int64_t whole = width - width % FOLD_LANES;
    for (int j = 0; j < KEY_CHUNK; j++) rows[j] = sums[j];
    for (int j = 0; j < n; j++) {
        vf acc[FOLD_VECS] = {0};
        prefetch_row(ahead, j, dtype, width);
        for (int64_t d = 0; d < whole; d += FOLD_LANES)
#pragma GCC unroll 4
            for (int v = 0; v < FOLD_VECS; v++)
                acc[v] = vfma(vload(q + d + v * LANES), load_weights(keys[j], d + v * LANES, dtype), acc[v]);
#pragma GCC unroll 4
        for (int v = 0; v < FOLD_VECS; v++) vstore(sums[j] + v * LANES, acc[v]);
        for (int64_t d = whole; d < width; d++)
            sums[j][d - whole] = fmaf(q[d], value_at(keys[j], d, dtype), sums[j][d - whole]);
    }
    transpose(turned[0], rows, n, FOLD_LANES);
    for (int half = FOLD_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++)
            for (int j = 0; j < n; j += LANES) {
                vf sum = vload(turned[l] + j) + vload(turned[l + half] + j);
                vstore(half > 1 ? turned[l] + j : out + j, sum);
            }
}

static void scores(float *out, const float *q, const void *const *keys, ops_dtype dtype, int n, int64_t width,
                   const void *const *ahead) {
#define SCORES(constant) scores_of(out, q, keys, constant, n, width, ahead)
    WITH_STORED(dtype, SCORES);
}

#define VALUE_VECS 8

/* n_vecs and dtype are constants wherever this is inlined. */
INLINE void add_columns(float *out, const float *weights, const void *const *values, const ops_dtype dtype, int n, int64_t d,
                        const int n_vecs, int64_t width, const void *const *ahead) {
    vf acc[VALUE_VECS];
#pragma GCC unroll 8
    for (int v = 0; v < n_vecs; v++) acc[v] = vload(out + d + v * LANES);
    for (int j = 0; j < n; j++) {
        vf weight = vsplat(weights[j]);
        prefetch_row(ahead, j, dtype, width);
#pragma GCC unroll 8
        for (int v = 0; v < n_vecs; v++) acc[v] = vfma(weight, load_weights(values[j], d + v * LANES, dtype), acc[v]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < n_vecs; v++) vstore(out + d + v * LANES, acc[v]);
}

/* As few passes as there are registers for: each waits for its sums. */
INLINE void add_values_of(float *out, const float *weights, const void *const *values, const ops_dtype dtype, int n,
                          int64_t width, const void *const *ahead) {
    int64_t d = 0;
    for (int64_t n_vecs; (n_vecs = (width - d) / LANES) > 0; ahead = NULL) {
        switch (n_vecs) {
        case 1: add_columns(out, weights, values, dtype, n, d, 1, width, ahead); break;
        case 2: add_columns(out, weights, values, dtype, n, d, 2, width, ahead); break;
        case 3: add_columns(out, weights, values, dtype, n, d, 3, width, ahead); break;
        case 4: add_columns(out, weights, values, dtype, n, d, 4, width, ahead); break;
        case 5: add_columns(out, weights, values, dtype, n, d, 5, width, ahead); break;
        case 6: add_columns(out, weights, values, dtype, n, d, 6, width, ahead); break;
        case 7: add_columns(out, weights, values, dtype, n, d, 7, width, ahead); break;
        default:
            n_vecs = VALUE_VECS;
            add_columns(out, weights, values, dtype, n, d, VALUE_VECS, width, ahead);
            break;
        }
        d += n_vecs * LANES;
    }
    for (; d < width; d++)
        for (int j = 0; j < n; j++) out[d] = fmaf(weights[j], value_at(values[j], d, dtype), out[d]);
}

static void add_values(float *out, const float *weights, const void *const *values, ops_dtype dtype, int n, int64_t width,
                       const void *const *ahead) {
#define ADD_VALUES(constant) add_values_of(out, weights, values, constant, n, width, ahead)
    WITH_STORED(dtype, ADD_VALUES);
}

static void scale(float *out, const float *x, float factor, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * factor;
}

static void divide(float *out, const float *x, float by, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = x[i] / by;
}

/* ---- bf16 ---------------------------------------------------------------------------------- */

/* As f32_to_bf16: to nearest even, NaN stays one. */
INLINE vf vround_bf16(vf x) {
    vu bits = (vu)x;
    vi is_nan = (vi)(x != x);
    vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    return (vf)(((vu)is_nan & ((bits | 0x400000u) & 0xffff0000u)) | (~(vu)is_nan & rounded));
}

static void narrow(void *out, const float *x, ops_dtype dtype, int64_t n) {
    uint16_t *half = out;
    int64_t i = 0;
    if (dtype == OPS_DTYPE_F32) memcpy(out, x, (size_t)n * sizeof *x);
    else if (dtype == OPS_DTYPE_F16) {
        for (; i + LANES <= n; i += LANES) vstore_f16(half + i, vload(x + i));
        for (; i < n; i++) half[i] = f32_to_f16(x[i]);
    } else if (dtype == OPS_DTYPE_E4M3) {
        for (; i < n; i++) ((uint8_t *)out)[i] = f32_to_e4m3(x[i]);
    } else {
        for (; i + LANES <= n; i += LANES) {
            vh narrowed = __builtin_convertvector((vu)vround_bf16(vload(x + i)) >> 16, vh);
            memcpy(half + i, &narrowed, sizeof narrowed);
        }
        for (; i < n; i++) half[i] = f32_to_bf16(x[i]);
    }
}

/* ---- the products of f32 ------------------------------------------------------------------- */

/* A tile of x is [row][TILE_STRIDE]. With weights of 16 bits it is few rows that come here, and the kernel asks ahead by
 * itself. */
static void f32_tile(float *out, const void *x, int n_rows, const unsigned char *w, ops_dtype dtype, int64_t k, bool load,
                     const simd_ahead *ahead) {
    (void)ahead;
    tile(out, PANEL_COLS, x, n_rows, w, PANEL_COLS, dtype, k, PANEL_COLS, load);
}

static void f32_pack_x(void *tile, int row, int n_rows, const float *x, int64_t k, int offset) {
    (void)n_rows, (void)offset;
    memcpy((float *)tile + row * TILE_STRIDE, x, (size_t)k * sizeof *x);
}

#define PRODUCT_OF_F32(pack)                                      \
    {                                                             \
        .tile_rows = TILE_ROWS,                                   \
        .dot_k = 1,                                               \
        .group_panels = 16,                                       \
        .expanded = OPS_DTYPE_F32,                                \
        .rows_to_expand = 3 * TILE_ROWS,                          \
        .tile_bytes = TILE_ROWS * TILE_STRIDE * sizeof(float),    \
        .pack_x = pack,                                           \
        .tile = f32_tile,                                         \
        .expand = f32_expand,                                     \
        .gemv = gemv,                                             \
        .gemv_panels = GEMV_PANELS,                               \
    }

static const simd_product product_f32 = PRODUCT_OF_F32(f32_pack_x);

#ifndef AMX_KERNELS
static void round_bf16(float *out, const float *x, int64_t n) {
    int64_t c = 0;
    for (; c + LANES <= n; c += LANES) vstore(out + c, vround_bf16(vload(x + c)));
    if (c < n) {
        float edge[LANES] = {0};
        memcpy(edge, x + c, (size_t)(n - c) * sizeof *edge);
        vstore(edge, vround_bf16(vload(edge)));
        memcpy(out + c, edge, (size_t)(n - c) * sizeof *edge);
    }
}

static void bf16_pack_x(void *tile, int row, int n_rows, const float *x, int64_t k, int offset) {
    (void)n_rows, (void)offset;
    round_bf16((float *)tile + row * TILE_STRIDE, x, k);
}

static const simd_product product_bf16 = PRODUCT_OF_F32(bf16_pack_x);
#endif

/* A part of it with each of n steps. */
INLINE simd_ahead share_ahead(const simd_ahead *ahead, int64_t n) {
    if (!ahead) return (simd_ahead){0};
    simd_ahead share = *ahead;
    share.weights_bytes = (int64_t)((uint32_t)(share.weights_bytes / LINE_BYTES + n - 1) / (uint32_t)n) * LINE_BYTES;
    share.rows_bytes = (int64_t)((uint32_t)(share.rows_bytes / LINE_BYTES + n - 1) / (uint32_t)n) * LINE_BYTES;
    return share;
}

INLINE void ask_ahead(simd_ahead *share) {
    if (share->is_next) prefetch(share->weights, share->weights_bytes);
    else prefetch_far(share->weights, share->weights_bytes);
    prefetch_far(share->rows, share->rows_bytes);
    share->weights += share->weights_bytes;
    share->rows += share->rows_bytes;
}

#include "ops/cpu/simd/int8.h"

#ifdef AMX_KERNELS
#include "ops/cpu/simd/amx_kernels.h"
#include "ops/cpu/simd/amx_attention.h"
#else
#define product_int8 product_int8_vectors
#endif

#define TABLE_NAME_OF(variant) simd_##variant
#define TABLE_NAME(variant)    TABLE_NAME_OF(variant)
#define TEXT_OF(text)          #text
#define TEXT(text)             TEXT_OF(text)

const simd_kernels TABLE_NAME(VARIANT) = {
    .name = TEXT(VARIANT),
    .f32 = &product_f32,
    .bf16 = &product_bf16,
    .int8 = &product_int8,
    .code_run = code_run,
    .tile_rows = TILE_ROWS,
    .tile = tile,
    .finish = finish,
    .widen = widen,
    .narrow = narrow,
    .layer_norm = layer_norm,
    .rms_norm = rms_norm,
    .activate = activate_row,
    .gate = gate,
    .transpose = transpose,
    .softmax_step = softmax_step,
    .scores = scores,
    .add_values = add_values,
    .scale = scale,
    .divide = divide,
#ifdef AMX_KERNELS
    .attention = &attention_bf16,
#endif
};
