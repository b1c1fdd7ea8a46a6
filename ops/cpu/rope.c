/* For i < half, in every head of every row:
 *     new[i]        = x[i] cos[pos, i] - x[i + half] sin[pos, i]
 *     new[i + half] = x[i + half] cos[pos, i] + x[i] sin[pos, i]
 * Products are rounded before the sum, in every build. */
#include "ops/cpu/cpu_internal.h"

typedef struct {
    float *x;
    const float *cos, *sin;
    const int32_t *positions;
    int64_t width, head_dim, half;
    int n_heads;
} rope_job;

static void rotate_head(float *restrict low, float *restrict high, const float *restrict cos,
                        const float *restrict sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float a = low[i], b = high[i];
        low[i] = a * cos[i] - b * sin[i];
        high[i] = b * cos[i] + a * sin[i];
    }
}

static void rotate_rows(void *arg, int64_t first, int64_t n, int thread) {
    const rope_job *j = arg;
    (void)thread;
    for (int64_t r = first; r < first + n; r++) {
        int64_t at = j->positions[r] * j->half;
        for (int h = 0; h < j->n_heads; h++) {
            float *head = j->x + r * j->width + h * j->head_dim;
            rotate_head(head, head + j->half, j->cos + at, j->sin + at, j->half);
        }
    }
}

status cpu_rope(void *state, ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin,
                const ops_tensor *positions, int n_heads) {
    if (!cpu_indices_fit(positions->data, x->dims[0], cos->dims[0])) return STATUS_BAD_ARGUMENT;
    rope_job j = {.x = x->data, .cos = cos->data, .sin = sin->data, .positions = positions->data,
                  .width = x->dims[1], .head_dim = x->dims[1] / n_heads, .half = cos->dims[1],
                  .n_heads = n_heads};
    cpu_split_rows(state, x->dims[0], j.half * n_heads, rotate_rows, &j);
    return STATUS_OK;
}
