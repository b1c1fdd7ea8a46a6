/* out[r,c] = (x[r,c] - mean_r) / sqrt(var_r + eps) * w[c] + b[c]
 * and the same without mean and bias (RMS norm, b NULL). Rows are split over threads; the arithmetic of a
 * row is simd layer_norm or rms_norm: in double with sixteen sums, rounded to f32 once at the end. */
#include "ops/cpu/cpu_internal.h"

typedef struct {
    const simd_kernels *simd;
    float *out;
    const float *x, *w, *b;
    int64_t cols;
    float eps;
} norm_job;

static void norm_rows(void *arg, int64_t first, int64_t n, int thread) {
    const norm_job *j = arg;
    (void)thread;
    for (int64_t r = first; r < first + n; r++) {
        float *out = j->out + r * j->cols;
        const float *x = j->x + r * j->cols;
        if (j->b)
            j->simd->layer_norm(out, x, j->w, j->b, j->cols, j->eps);
        else
            j->simd->rms_norm(out, x, j->w, j->cols, j->eps);
    }
}

status cpu_rms_norm(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w, float eps) {
    cpu_state *s = state;
    norm_job j = {.simd = s->simd, .out = out->data, .x = x->data, .w = w->data, .cols = x->dims[1], .eps = eps};
    cpu_split_rows(s, x->dims[0], j.cols, norm_rows, &j);
    return STATUS_OK;
}

status cpu_layer_norm(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w,
                      const ops_tensor *b, float eps) {
    cpu_state *s = state;
    norm_job j = {.simd = s->simd, .out = out->data, .x = x->data, .w = w->data, .b = b->data,
                  .cols = x->dims[1], .eps = eps};
    cpu_split_rows(s, x->dims[0], j.cols, norm_rows, &j);
    return STATUS_OK;
}
