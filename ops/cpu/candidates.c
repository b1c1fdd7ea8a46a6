/* The candidates of rows: one pass keeps the first of them in order, in a list that most values do not get into. */
#include <math.h>

#include "ops/cpu/cpu_internal.h"

typedef struct {
    ops_candidates *out;
    const float *x;
    int64_t cols, n;
    const ops_candidates_wanted *wanted;
} candidates_job;

/* Puts the value, whose column is larger than all in the list, into its place; the list has room for n_max. */
static void insert(ops_candidates *list, int32_t n_max, float value, int32_t column) {
    int32_t at = list->n < n_max ? list->n++ : n_max - 1;
    for (; at > 0 && value > list->value[at - 1]; at--) {
        list->value[at] = list->value[at - 1];
        list->column[at] = list->column[at - 1];
    }
    list->value[at] = value;
    list->column[at] = column;
}

static double total(const float *row, int64_t n, double largest, double temperature) {
    double sum = 0.0;
    for (int64_t c = 0; c < n; c++) sum += exp(((double)row[c] - largest) / temperature);
    return sum;
}

static void choose(ops_candidates *out, const float *row, int64_t n, const ops_candidates_wanted *wanted) {
    out->n = 0;
    out->bad = -1;
    out->total[0] = out->total[1] = 0.0;
    for (int64_t c = 0; c < n; c++) {
        if (!isfinite(row[c])) {
            out->n = 0;
            out->bad = (int32_t)c;
            return;
        }
        if (out->n < wanted->n || row[c] > out->value[wanted->n - 1]) insert(out, wanted->n, row[c], (int32_t)c);
    }
    for (int i = 0; i < 2; i++)
        if (wanted->temperature[i] > 0.0f)
            out->total[i] = total(row, n, (double)out->value[0], (double)wanted->temperature[i]);
}

static void choose_some(void *arg, int64_t first, int64_t n, int thread) {
    static const ops_candidates_wanted the_first = {.n = 1};
    const candidates_job *j = arg;
    (void)thread;
    for (int64_t r = first; r < first + n; r++)
        choose(&j->out[r], j->x + r * j->cols, j->n, j->wanted ? &j->wanted[r] : &the_first);
}

status cpu_candidates_rows(void *state, ops_tensor *out, const ops_tensor *x, int64_t n,
                           const ops_candidates_wanted *wanted) {
    candidates_job j = {.out = out->data, .x = x->data, .cols = x->dims[1], .n = n, .wanted = wanted};
    cpu_split_rows(state, x->dims[0], n, choose_some, &j);
    return STATUS_OK;
}
