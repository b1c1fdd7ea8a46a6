#include <math.h>
#include <stdlib.h>

#include "base/check.h"
#include "tests/ops/ref.h"

void ref_attention_row(double *out, double *size, const float *q, const float *k, const float *v,
                       const int64_t *at, int64_t n_keys, int64_t head_dim, double scale) {
    double *p = calloc((size_t)n_keys, sizeof *p);
    CHECK(p, "memory for a reference");
    double top = (double)-INFINITY, sum = 0.0;
    for (int64_t j = 0; j < n_keys; j++) {
        for (int64_t d = 0; d < head_dim; d++) p[j] += (double)q[d] * (double)k[at[j] + d];
        p[j] *= scale;
        top = p[j] > top ? p[j] : top;
    }
    for (int64_t j = 0; j < n_keys; j++) {
        p[j] = exp(p[j] - top);
        sum += p[j];
    }
    for (int64_t d = 0; d < head_dim; d++) {
        out[d] = size[d] = 0.0;
        for (int64_t j = 0; j < n_keys; j++) {
            out[d] += p[j] / sum * (double)v[at[j] + d];
            size[d] += p[j] / sum * fabs((double)v[at[j] + d]);
        }
    }
    free(p);
}
