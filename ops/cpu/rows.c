/* Moving whole rows: gather, scatter, copies of cache blocks. */
#include <string.h>

#include "ops/cpu/cpu_internal.h"

status cpu_gather_rows(void *state, ops_tensor *out, const ops_tensor *table,
                       const ops_tensor *ids) {
    const cpu_state *s = state;
    const int32_t *id = ids->data;
    int64_t n_rows = ids->dims[0], cols = table->dims[1], stride = tensor_row_stride(table);
    if (!cpu_indices_fit(id, n_rows, table->dims[0])) return STATUS_BAD_ARGUMENT;
    size_t row_bytes = (size_t)cols * dtype_bytes(table->dtype);
    int64_t whole = table->dtype == OPS_DTYPE_F32 ? cols : cols - cols % PANEL_COLS;
    for (int64_t r = 0; r < n_rows; r++) {
        float *to = (float *)out->data + r * cols;
        const void *from = (const unsigned char *)table->data + (size_t)(id[r] * stride) * dtype_bytes(table->dtype);
        if (table->dtype == OPS_DTYPE_F32) {
            memcpy(to, from, row_bytes);
            continue;
        }
        s->simd->upcast(to, from, table->dtype, whole / PANEL_COLS);
        const uint16_t *tail = from;
        for (int64_t c = whole; c < cols; c++)
            to[c] = table->dtype == OPS_DTYPE_F16 ? f16_to_f32(tail[c]) : bf16_to_f32(tail[c]);
    }
    return STATUS_OK;
}

status cpu_scatter_rows(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *to) {
    (void)state;
    const int32_t *at = to->data;
    int64_t n_rows = x->dims[0], cols = x->dims[1];
    if (!cpu_indices_fit(at, n_rows, out->dims[0])) return STATUS_BAD_ARGUMENT;
    for (int64_t r = 0; r < n_rows; r++)
        memcpy((float *)out->data + at[r] * cols, (const float *)x->data + r * cols,
               (size_t)cols * sizeof(float));
    return STATUS_OK;
}

status cpu_kv_copy_block(void *state, ops_tensor *cache, int64_t to, int64_t from) {
    (void)state;
    int64_t block = cache->dims[1] * cache->dims[2];
    float *data = cache->data;
    memcpy(data + to * block, data + from * block, (size_t)block * sizeof(float));
    return STATUS_OK;
}
