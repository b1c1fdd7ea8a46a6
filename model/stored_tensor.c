#include "model/stored_tensor.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static const struct {
    const char *name, *text;
    ops_dtype dtype;
} KINDS[] = {
    [SAFETENSORS_F32] = {"f32", "F32", OPS_DTYPE_F32},
    [SAFETENSORS_F16] = {"f16", "F16", OPS_DTYPE_F16},
    [SAFETENSORS_BF16] = {"bf16", "BF16", OPS_DTYPE_BF16},
};

safetensors_dtype stored_dtype_find(const char *name) {
    int i = 0;
    while (i < SAFETENSORS_OTHER && strcmp(KINDS[i].name, name) != 0) i++;
    return (safetensors_dtype)i;
}

const char *stored_dtype_text(safetensors_dtype dtype) { return KINDS[dtype].text; }
ops_dtype stored_dtype_ops(safetensors_dtype dtype) { return KINDS[dtype].dtype; }

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

ops_tensor stored_tensor_view(const safetensors_tensor *t) {
    CHECK(t->dtype != SAFETENSORS_OTHER, "ops reads tensors of numbers only");
    return tensor_make((void *)(uintptr_t)t->data, OPS_PLACE_HOST, KINDS[t->dtype].dtype, t->n_dims, t->dims);
}
