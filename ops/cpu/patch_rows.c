/* out[(n*rows + y)*cols + x, (c*p + i)*p + k] = levels[c, in[n, y*p + i, x*p + k, c]]
 * A row of patches of a picture is one task. */
#include "ops/cpu/cpu_internal.h"

typedef struct {
    float *out;
    const unsigned char *x;
    const float *levels;
    int64_t height, width, rows, cols, patch;
} patch_job;

static void patch_lines(void *arg, int64_t first, int64_t n, int thread) {
    const patch_job *j = arg;
    (void)thread;
    int64_t p = j->patch, row_bytes = j->width * 3;
    for (int64_t line = first; line < first + n; line++) {
        int64_t picture = line / j->rows, y = line % j->rows;
        const unsigned char *top = j->x + (picture * j->height + y * p) * row_bytes;
        float *out = j->out + line * j->cols * 3 * p * p;
        for (int64_t x = 0; x < j->cols; x++)
            for (int64_t c = 0; c < 3; c++)
                for (int64_t i = 0; i < p; i++) {
                    const unsigned char *pixels = top + i * row_bytes + x * p * 3 + c;
                    for (int64_t k = 0; k < p; k++) *out++ = j->levels[c * 256 + pixels[3 * k]];
                }
    }
}

status cpu_patch_rows(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *levels, int patch) {
    patch_job j = {.out = out->data, .x = x->data, .levels = levels->data, .height = x->dims[1], .width = x->dims[2],
                   .rows = x->dims[1] / patch, .cols = x->dims[2] / patch, .patch = patch};
    cpu_split_rows(state, x->dims[0] * j.rows, j.cols * 3 * patch * patch, patch_lines, &j);
    return STATUS_OK;
}
