#include "tests/ops/ref.h"

void ref_rope(double *out, const float *x, const float *cos, const float *sin,
              const int32_t *positions, int64_t rows, int n_heads, int64_t head_dim, int64_t half) {
    for (int64_t r = 0; r < rows; r++)
        for (int h = 0; h < n_heads; h++) {
            int64_t at = (r * n_heads + h) * head_dim;
            for (int64_t i = 0; i < head_dim; i++) out[at + i] = (double)x[at + i];
            for (int64_t i = 0; i < half; i++) {
                double a = (double)x[at + i], b = (double)x[at + i + half];
                double c = (double)cos[positions[r] * half + i];
                double s = (double)sin[positions[r] * half + i];
                out[at + i] = a * c - b * s;
                out[at + i + half] = b * c + a * s;
            }
        }
}
