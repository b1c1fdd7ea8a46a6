/* A checkpoint written again with its matrices in blocks (q8 or q4, ops/tensor.h).
 *
 *     st = model_quantize(&(quantize_settings){.dir = "Mipha-3B", .out_dir = "Mipha-3B-q4", .dtype = OPS_DTYPE_Q4}, &r, &e);
 *
 * The new folder has one model.safetensors, in which a quantized matrix of n_out x n_in is U8 [n_out, bytes of a row], and
 * the other files of the old one. It loads like any other. One thread. */
#ifndef MODEL_QUANTIZE_H
#define MODEL_QUANTIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "ops/tensor.h"

typedef struct {
    const char *dir;
    const char *adapter_dir; /* merged first; NULL: none */
    const char *out_dir;     /* made; may hold no model.safetensors */
    ops_dtype dtype;         /* OPS_DTYPE_Q8 or OPS_DTYPE_Q4 */
    bool has_tower;          /* the tower's matrices too; without, the decoder's and the projector's */
} quantize_settings;

typedef struct {
    uint64_t n_matrices, bytes_before, bytes_after; /* of all tensors that are used */
} quantize_result;

/* Errors: those of model_open, IO, CONFLICT (there is a model.safetensors), BAD_MODEL (nothing to quantize). */
MUST_USE status model_quantize(const quantize_settings *s, quantize_result *r, err *e);

#endif
