#include <math.h>

#include "tests/ops/ref.h"

void ref_linear(double *out, double *size, const float *x, const float *w, const float *bias,
                int64_t rows, int64_t n_in, int64_t n_out) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < n_out; o++) {
            double sum = 0.0, magnitude = 0.0;
            for (int64_t i = 0; i < n_in; i++) {
                double product = (double)x[r * n_in + i] * (double)w[o * n_in + i];
                sum += product;
                magnitude += fabs(product);
            }
            if (bias) {
                sum += (double)bias[o];
                magnitude += fabs((double)bias[o]);
            }
            out[r * n_out + o] = sum;
            if (size) size[r * n_out + o] = magnitude;
        }
}

double ref_act(double x, ops_act act) {
    const double pi = 3.14159265358979323846;
    if (act == OPS_ACT_GELU_TANH)
        return 0.5 * x * (1.0 + tanh(sqrt(2.0 / pi) * (x + 0.044715 * x * x * x)));
    if (act == OPS_ACT_GELU_ERF) return 0.5 * x * erfc(-x / sqrt(2.0));
    if (act == OPS_ACT_QUICK_GELU) return x / (1.0 + exp(-1.702 * x));
    if (act == OPS_ACT_SILU) return x / (1.0 + exp(-x));
    return x;
}
