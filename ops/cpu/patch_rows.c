/* out[(n*rows + y)*cols + x, (c*p + i)*p + k] = in[n, c, y*p + i, x*p + k]
 * A copy of p floats at a time; each row of patches of a picture is one task. */
#include <string.h>

#include "ops/cpu/cpu_internal.h"

typedef struct {
    float *out;
    const float *x;
    int64_t height, width, rows, cols, patch;
} patch_job;

static void patch_lines(void *arg, int64_t first, int64_t n, int thread) {
    const patch_job *j = arg;
    (void)thread;
    int64_t p = j->patch, plane = j->height * j->width;
    for (int64_t line = first; line < first + n; line++) {
        int64_t picture = line / j->rows, y = line % j->rows;
        const float *top = j->x + picture * 3 * plane + y * p * j->width;
        float *out = j->out + line * j->cols * 3 * p * p;
        for (int64_t x = 0; x < j->cols; x++)
            for (int64_t c = 0; c < 3; c++)
                for (int64_t i = 0; i < p; i++, out += p)
                    memcpy(out, top + c * plane + i * j->width + x * p, (size_t)p * sizeof *out);
    }
}

status cpu_patch_rows(void *state, ops_tensor *out, const ops_tensor *x, int patch) {
    patch_job j = {.out = out->data, .x = x->data, .height = x->dims[2], .width = x->dims[3],
                   .rows = x->dims[2] / patch, .cols = x->dims[3] / patch, .patch = patch};
    cpu_split_rows(state, x->dims[0] * j.rows, j.cols * 3 * patch * patch / 2, patch_lines, &j);
    return STATUS_OK;
}
