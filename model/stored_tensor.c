#include "model/stored_tensor.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static const struct {
    const char *text;
    ops_dtype dtype;
} KINDS[] = {
    [SAFETENSORS_F32] = {"F32", OPS_DTYPE_F32},
    [SAFETENSORS_F16] = {"F16", OPS_DTYPE_F16},
    [SAFETENSORS_BF16] = {"BF16", OPS_DTYPE_BF16},
};

stored_tensor *stored_tensor_open(stored_tensor **all, const safetensors_tensor *like, safetensors_dtype dtype) {
    CHECK(dtype != SAFETENSORS_OTHER, "computed tensors are of a type that networks read");
    size_t n_bytes = dtype_bytes(KINDS[dtype].dtype);
    for (int i = 0; i < like->n_dims; i++) n_bytes *= (size_t)like->dims[i]; /* at most twice what is mapped */
    stored_tensor *t = malloc(sizeof *t + n_bytes);
    if (!t) return NULL;
    t->tensor = *like;
    t->tensor.dtype = dtype;
    t->tensor.dtype_text = KINDS[dtype].text;
    t->tensor.data = t->data;
    t->tensor.len_bytes = n_bytes;
    t->next = *all;
    *all = t;
    return t;
}

void stored_tensors_close(stored_tensor **all) {
    for (stored_tensor *t = *all, *next; t; t = next) {
        next = t->next;
        free(t);
    }
    *all = NULL;
}

void stored_tensor_put(stored_tensor *t, int64_t i, float value) {
    if (t->tensor.dtype == SAFETENSORS_F32) {
        memcpy(t->data + (size_t)i * sizeof value, &value, sizeof value);
        return;
    }
    uint16_t half = t->tensor.dtype == SAFETENSORS_F16 ? f32_to_f16(value) : f32_to_bf16(value);
    memcpy(t->data + (size_t)i * sizeof half, &half, sizeof half);
}

ops_tensor stored_tensor_view(const safetensors_tensor *t) {
    CHECK(t->dtype != SAFETENSORS_OTHER, "ops reads tensors of numbers only");
    return tensor_make((void *)(uintptr_t)t->data, OPS_PLACE_HOST, KINDS[t->dtype].dtype, t->n_dims, t->dims);
}
