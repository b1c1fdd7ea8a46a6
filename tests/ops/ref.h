/* The operators once more, in double precision and in the order of their formulas: the oracle. */
#ifndef TESTS_OPS_REF_H
#define TESTS_OPS_REF_H

#include <stdint.h>

#include "tests/ops/ops_cases.h"

/* out [rows, n_out] before the activation, size [rows, n_out] = sum |x w| + |bias|; size may be NULL.
 * w holds f32 values that are exact in the dtype tested. */
void ref_linear(double *out, double *size, const float *x, const float *w, const float *bias,
                int64_t rows, int64_t n_in, int64_t n_out);

/* OPS_PRODUCT_FP8 as ops.h says it, with codes found by search. size: of the products of codes times both scales. */
void ref_fp8(double *out, double *size, const float *x, const float *w, const float *bias, int64_t rows, int64_t n_in,
             int64_t n_out);
double ref_e4m3_value(int code); /* of one that is not NaN */
int ref_e4m3_code(double v);     /* of a finite one */

/* What a sum may be off, as a share of size: a rounding or (generic) two for each of n_in, two for scales, one for a bias;
 * tensor cores add up with fewer bits. */
static inline double ref_fp8_bound(int64_t n_in) {
    return ((double)(2 * n_in) + 4) * 0x1p-24 + (test_device_is_cpu() ? 0.0 : 0x1p-12);
}

double ref_act(double x, ops_act act);

void ref_layer_norm(double *out, const float *x, const float *w, const float *b, int64_t rows,
                    int64_t cols, double eps);

void ref_rms_norm(double *out, const float *x, const float *w, int64_t rows, int64_t cols, double eps);

/* One row and one head: q [hd]; key j at k + at[j], value j at v + at[j]. size: sum p |v| / sum p. */
void ref_attention_row(double *out, double *size, const float *q, const float *k, const float *v,
                       const int64_t *at, int64_t n_keys, int64_t head_dim, double scale);

void ref_rope(double *out, const float *x, const float *cos, const float *sin,
              const int32_t *positions, int64_t rows, int n_heads, int64_t head_dim, int64_t half);

#endif
