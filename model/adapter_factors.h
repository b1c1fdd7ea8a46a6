/* What an adapter adds to a matrix w [n_out, n_in]: scale * b a, with a [r, n_in] and b [n_out, r]. */
#ifndef MODEL_ADAPTER_FACTORS_H
#define MODEL_ADAPTER_FACTORS_H

#include "ops/tensor.h"

typedef struct {
    ops_tensor a, b; /* views of the adapter's file: f32, f16 or bf16 */
    double scale;
} adapter_factors;

#endif
