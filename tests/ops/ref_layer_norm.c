#include <math.h>

#include "tests/ops/ref.h"

void ref_layer_norm(double *out, const float *x, const float *w, const float *b, int64_t rows,
                    int64_t cols, double eps) {
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * cols;
        double mean = 0.0, variance = 0.0;
        for (int64_t c = 0; c < cols; c++) mean += (double)row[c];
        mean /= (double)cols;
        for (int64_t c = 0; c < cols; c++) variance += pow((double)row[c] - mean, 2);
        variance /= (double)cols;
        for (int64_t c = 0; c < cols; c++)
            out[r * cols + c] =
                ((double)row[c] - mean) / sqrt(variance + eps) * (double)w[c] + (double)b[c];
    }
}

void ref_rms_norm(double *out, const float *x, const float *w, int64_t rows, int64_t cols, double eps) {
    for (int64_t r = 0; r < rows; r++) {
        const float *row = x + r * cols;
        double mean = 0.0;
        for (int64_t c = 0; c < cols; c++) mean += pow((double)row[c], 2) / (double)cols;
        for (int64_t c = 0; c < cols; c++) out[r * cols + c] = (double)row[c] / sqrt(mean + eps) * (double)w[c];
    }
}
