/* A view of numbers: where they are, what they are, how many. Never owns, cheap to copy.
 *
 *     ops_tensor x = tensor_make(data, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){rows, cols});
 *     size_t n = tensor_bytes(&x);
 *
 * Slowest axis first. Contiguous, but for a view of columns: its rows stand as far apart as those of what it is cut
 * from, and only operators that say so take it. */
#ifndef OPS_TENSOR_H
#define OPS_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { OPS_PLACE_HOST, OPS_PLACE_DEVICE } ops_place;

/* Q8 and Q4 are weights in blocks: each row is a run of blocks of QUANT_BLOCK, the last filled up with zeros. A block
 * is a bf16 scale and codes; a weight is code * scale, rounded once to f32. Q8: a signed byte a weight. Q4: weights j
 * and j + 16 share byte j, the first in its low half, each stored as code + 8. */
typedef enum {
    OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16, OPS_DTYPE_I32, OPS_DTYPE_U8, OPS_DTYPE_Q8, OPS_DTYPE_Q4,
    OPS_DTYPE_E4M3 /* keys and values; and inside a backend codes of OPS_PRODUCT_FP8, without their scales */
} ops_dtype;

#define QUANT_BLOCK 32

#define OPS_TINY 0x1p-100f /* where values get a scale together, and the largest magnitude is below this, they count as zeros */

#define OPS_DIMS_MAX 4

typedef struct {
    void *data;
    ops_place place; /* the CPU backend's device memory is OPS_PLACE_DEVICE too */
    ops_dtype dtype;
    int n_dims;
    int64_t dims[OPS_DIMS_MAX]; /* dims[0] is the slowest; unused ones are 1 */
    int64_t row_stride;         /* of a view of columns: elements from row to row; 0: contiguous */
} ops_tensor;

ops_tensor tensor_make(void *data, ops_place place, ops_dtype dtype, int n_dims,
                       const int64_t *dims);
int64_t tensor_elements(const ops_tensor *t);
size_t tensor_bytes(const ops_tensor *t);
size_t dtype_bytes(ops_dtype dtype); /* of an element; 0 of Q8 and Q4 */
bool dtype_is_quantized(ops_dtype dtype);
size_t dtype_row_bytes(ops_dtype dtype, int64_t n); /* of n elements side by side */
const char *dtype_name(ops_dtype dtype); /* "f32", "f16", "bf16", "i32", "u8", "q8", "q4", "e4m3" */

/* Rows [first, first + n) of the slowest axis, as a view. */
ops_tensor tensor_rows(const ops_tensor *t, int64_t first, int64_t n);

/* Columns [first, first + n) of the rows of a tensor of two dims, as a view. */
ops_tensor tensor_columns(const ops_tensor *t, int64_t first, int64_t n);

/* Elements from one row of two dims to the next. */
int64_t tensor_row_stride(const ops_tensor *t);

/* The first n_rows * width elements as rows of that width (CHECK that they are there). */
ops_tensor tensor_first(const ops_tensor *t, int64_t n_rows, int64_t width);

/* The same elements seen with other dims; their product must be equal (CHECK). */
ops_tensor tensor_reshape(const ops_tensor *t, int n_dims, const int64_t *dims);

/* Element i as f32; of f32, f16, bf16 or a quantized matrix on the host, at any alignment. */
float tensor_value(const ops_tensor *t, int64_t i);

/* Row r of two dims as f32, of such a tensor. */
void tensor_row_values(float *out, const ops_tensor *t, int64_t r);

/* Element i of an f32, f16 or bf16 tensor on the host, at any alignment, rounded to nearest even. */
void tensor_set_value(const ops_tensor *t, int64_t i, float value);

/* n values as a row of blocks; n need not fill the last. Q8: the largest of a block is 127 steps. Q4: of the steps around
 * a sixteenth of the range, the one with the least square error. What is not finite counts as 0. */
void quantize_row(void *out, ops_dtype dtype, const float *x, int64_t n);

/* The scale of a row whose values become e4m3 codes: its largest magnitude / 448, 0 where that is below OPS_TINY, NaN where a
 * value is not finite. A code is that of x * factor, which is 448 / the largest magnitude, or 0. */
float e4m3_scale(const float *x, int64_t n, float *factor);

/* out[i] = what the code of x[i] * factor stands for; out may be x. */
void e4m3_round(float *out, const float *x, int64_t n, float factor);

/* Whether some byte is of both. Columns beside each other of the same rows do not overlap. */
bool tensor_overlaps(const ops_tensor *a, const ops_tensor *b);

/* One number between f32 and the storage types, rounding to nearest even. */
float f16_to_f32(uint16_t v);
uint16_t f32_to_f16(float v);
float bf16_to_f32(uint16_t v);
uint16_t f32_to_bf16(float v);

/* e4m3: sign, 4 bits of exponent (bias 7), 3 of fraction; no infinity, NaN is 0x7f and 0xff. What is larger than 448, the
 * largest, becomes it. */
float e4m3_to_f32(uint8_t v);
uint8_t f32_to_e4m3(float v);

#ifdef __cplusplus
}
#endif

#endif
