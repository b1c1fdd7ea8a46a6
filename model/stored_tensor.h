/* Tensors that were computed when a checkpoint was opened: they stand where the file's own would.
 *
 *     stored_tensor *all = NULL;
 *     stored_tensor *t = stored_tensor_open(&all, &of_the_file, SAFETENSORS_BF16);   // NULL: no memory
 *     ops_tensor values = stored_tensor_view(&t->tensor);  // tensor_set_value(&values, i, v) for every i
 *     use(&t->tensor);                                     // until
 *     stored_tensors_close(&all);
 */
#ifndef MODEL_STORED_TENSOR_H
#define MODEL_STORED_TENSOR_H

#include "model/safetensors.h"
#include "ops/tensor.h"

typedef struct stored_tensor {
    struct stored_tensor *next;
    safetensors_tensor tensor;
    unsigned char data[];
} stored_tensor;

/* "f32", "f16" or "bf16"; OTHER: none of them. */
safetensors_dtype stored_dtype_find(const char *name);
const char *stored_dtype_text(safetensors_dtype dtype); /* as safetensors has it: "BF16" */
ops_dtype stored_dtype_ops(safetensors_dtype dtype);

/* Of the name and shape of `like`, in dtype, not OTHER. */
stored_tensor *stored_tensor_open(stored_tensor **all, const safetensors_tensor *like, safetensors_dtype dtype);
void stored_tensors_close(stored_tensor **all);

/* A tensor of the file, or a computed one, as ops sees it: f32, f16 or bf16. */
ops_tensor stored_tensor_view(const safetensors_tensor *t);

#endif
