/* The reference works in f32 throughout, and where a sample lies decides its weights: so the coordinates are
 * f32 here too, in the reference's order. */
#include "vision_node/position_table.h"

#include <math.h>

#include "base/check.h"

#define TAPS 4
#define A    (-0.75f)

typedef struct {
    int at[TAPS];
    float weight[TAPS];
} cubic_taps;

static float inner(float x) { return ((A + 2.0f) * x - (A + 3.0f)) * x * x + 1.0f; }
static float outer(float x) { return ((A * x - 5.0f * A) * x + 8.0f * A) * x - 4.0f * A; }

/* Where sample i of n lies on an axis of n_table, and what it takes from there. */
static cubic_taps taps_of(int i, int n, int n_table) {
    float step = (float)(1.0 / ((n + 0.1) / n_table));
    float source = step * ((float)i + 0.5f) - 0.5f;
    int first = (int)floorf(source);
    float t = source - (float)first;
    cubic_taps taps = {.weight = {outer(t + 1.0f), inner(t), inner(1.0f - t), outer(2.0f - t)}};
    for (int k = 0; k < TAPS; k++) {
        int at = first - 1 + k;
        taps.at[k] = at < 0 ? 0 : at >= n_table ? n_table - 1 : at;
    }
    return taps;
}

static float resampled(const ops_tensor *stored, int64_t first, int64_t width, int64_t column, int grid,
                       const cubic_taps *down, const cubic_taps *across) {
    float sum = 0.0f;
    for (int y = 0; y < TAPS; y++) {
        float row = 0.0f;
        for (int x = 0; x < TAPS; x++) {
            int64_t at = first + (int64_t)down->at[y] * grid + across->at[x];
            row += across->weight[x] * tensor_value(stored, at * width + column);
        }
        sum += down->weight[y] * row;
    }
    return sum;
}

void position_table_make(float *table, const ops_tensor *stored, const model_tower_config *tower) {
    int64_t width = tower->hidden, first = tower->n_rows - tower->n_patches;
    int from = tower->table_grid, to = tower->image_size / tower->patch_size;
    CHECK(tensor_elements(stored) == (first + (int64_t)from * from) * width, "a table of positions has its shape");
    int64_t n_copied = (from == to ? tower->n_rows : first) * width;
    for (int64_t i = 0; i < n_copied; i++) table[i] = tensor_value(stored, i);
    if (from == to) return;
    for (int y = 0; y < to; y++) {
        cubic_taps down = taps_of(y, to, from);
        for (int x = 0; x < to; x++) {
            cubic_taps across = taps_of(x, to, from);
            float *row = table + (first + (int64_t)y * to + x) * width;
            for (int64_t c = 0; c < width; c++) row[c] = resampled(stored, first, width, c, from, &down, &across);
        }
    }
}
