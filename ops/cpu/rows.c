/* Moving whole rows: gather, scatter, copies of cache blocks. */
#include <string.h>

#include "ops/cpu/cpu_internal.h"

status cpu_gather_rows(void *state, ops_tensor *out, const ops_tensor *table,
                       const ops_tensor *ids) {
    const cpu_state *s = state;
    const int32_t *id = ids->data;
    int64_t n_rows = ids->dims[0], cols = table->dims[1], stride = tensor_row_stride(table);
    if (!cpu_indices_fit(id, n_rows, table->dims[0])) return STATUS_BAD_ARGUMENT;
    const unsigned char *rows = table->data;
    for (int64_t r = 0; r < n_rows; r++)
        s->simd->widen((float *)out->data + r * cols, rows + (size_t)(id[r] * stride) * dtype_bytes(table->dtype), table->dtype,
                       cols);
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
    size_t bytes = (size_t)(tensor_elements(cache) / cache->dims[0]) * dtype_bytes(cache->dtype);
    unsigned char *data = cache->data;
    memcpy(data + (size_t)to * bytes, data + (size_t)from * bytes, bytes);
    return STATUS_OK;
}
