/* One safetensors file, mapped and validated: after open every tensor lies inside the file, the tensors
 * cover the data exactly, and sizes agree with shapes.
 *
 *     safetensors *f;
 *     st = safetensors_open(&f, "m/model.safetensors", &e);
 *     const safetensors_tensor *t = safetensors_find(f, "lm_head.bias");   // NULL: no such name
 *     safetensors_close(&f);
 *
 * Numbers are little-endian and may lie at any address. Read-only after open: any thread.
 * Source: huggingface/safetensors, format description. */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"

#define SAFETENSORS_HEADER_BYTES_MAX ((size_t)16 << 20)
#define SAFETENSORS_TENSORS_MAX      65536
#define SAFETENSORS_DIMS_MAX         8

typedef enum {
    SAFETENSORS_F32,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_OTHER /* valid, but no network reads it: integers, f64, f8; see dtype_text */
} safetensors_dtype;

typedef struct {
    const char *name;
    const char *dtype_text; /* as in the file: "BF16" */
    safetensors_dtype dtype;
    int n_dims; /* 0 is a scalar of one element */
    int64_t dims[SAFETENSORS_DIMS_MAX];
    const unsigned char *data; /* into the mapping */
    size_t len_bytes;          /* 0 when a dim is 0 */
} safetensors_tensor;

typedef struct safetensors safetensors;

/* Errors: IO, BAD_FORMAT; the text names file, tensor, found and expected. */
MUST_USE status safetensors_open(safetensors **f, const char *path, err *e);

/* The same over bytes of the caller, which must outlive f; label names them in errors. */
MUST_USE status safetensors_open_bytes(safetensors **f, bytes file, const char *label, err *e);

void safetensors_close(safetensors **f);

size_t safetensors_count(const safetensors *f);
const safetensors_tensor *safetensors_at(const safetensors *f, size_t idx); /* in name order */
const safetensors_tensor *safetensors_find(const safetensors *f, const char *name);

/* "[2560, 1152]" */
void safetensors_shape_text(char *out, size_t out_bytes, int n_dims, const int64_t *dims);

#endif
