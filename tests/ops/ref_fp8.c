#include <math.h>
#include <stdlib.h>

#include "base/check.h"
#include "tests/ops/ref.h"

double ref_e4m3_value(int code) {
    int exponent = code >> 3 & 15, fraction = code & 7;
    double size = exponent ? ldexp(8 + fraction, exponent - 10) : ldexp(fraction, -9);
    return code & 128 ? -size : size;
}

#define N_SIZES 127

static const double *sizes(void) {
    static double values[N_SIZES];
    for (int code = 1; values[N_SIZES - 1] == 0.0 && code < N_SIZES; code++) values[code] = ref_e4m3_value(code);
    return values;
}

/* The nearest of the 127 values that are not negative, of two equally near the one with the even code. */
int ref_e4m3_code(double v) {
    const double size = fabs(v), *values = sizes();
    int low = 0, high = N_SIZES - 1;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (values[middle] <= size) low = middle;
        else high = middle;
    }
    double below = size - values[low], above = values[high] - size;
    int code = below < above || (below == above && low % 2 == 0) ? low : high;
    return signbit(v) ? code | 128 : code;
}

/* What the codes of a row stand for; returns its scale. */
static float code_row(double *codes, const float *x, int64_t n) {
    float top = 0.0f;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) top = NAN;
        if (!isnan(top)) top = fmaxf(top, fabsf(x[i]));
    }
    bool is_zero = top < OPS_TINY;
    for (int64_t i = 0; i < n; i++)
        codes[i] = is_zero || isnan(top) ? 0.0 : ref_e4m3_value(ref_e4m3_code((double)(x[i] * (448.0f / top))));
    return is_zero ? 0.0f : top / 448.0f;
}

void ref_fp8(double *out, double *size, const float *x, const float *w, const float *bias, int64_t rows, int64_t n_in,
             int64_t n_out) {
    double *w_codes = calloc((size_t)(n_out * n_in), sizeof *w_codes), *codes = calloc((size_t)n_in, sizeof *codes);
    float *scales = calloc((size_t)n_out, sizeof *scales);
    CHECK(w_codes && codes && scales, "memory for a reference");
    for (int64_t o = 0; o < n_out; o++) scales[o] = code_row(w_codes + o * n_in, w + o * n_in, n_in);
    for (int64_t r = 0; r < rows; r++) {
        double row_scale = (double)code_row(codes, x + r * n_in, n_in);
        for (int64_t o = 0; o < n_out; o++) {
            double sum = 0.0, magnitude = 0.0, scale = (double)scales[o] * row_scale;
            for (int64_t k = 0; k < n_in; k++) {
                double product = codes[k] * w_codes[o * n_in + k];
                sum += product;
                magnitude += fabs(product);
            }
            out[r * n_out + o] = sum * scale + (bias ? (double)bias[o] : 0.0);
            size[r * n_out + o] = magnitude * scale + (bias ? fabs((double)bias[o]) : 0.0);
        }
    }
    free(w_codes), free(codes), free(scales);
}
