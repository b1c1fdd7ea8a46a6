/* A safetensors file, written: under another name until it is whole.
 *
 *     json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
 *     ok = safetensors_header_add(header, "lm_head.bias", "BF16", 1, dims, n_bytes, &at);   // in the order of the data
 *     st = safetensors_write(path, header, write_tensors, &my_job, &e);                     // takes the header
 */
#ifndef MODEL_SAFETENSORS_WRITE_H
#define MODEL_SAFETENSORS_WRITE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

/* A folder for a new checkpoint: made, if it is not there. Errors: IO, CONFLICT (it has a model.safetensors). */
MUST_USE status safetensors_folder_make(const char *dir, err *e);

/* One tensor of n_bytes at *at, which moves behind it. False: no memory. */
bool safetensors_header_add(json_t *header, const char *name, const char *dtype, int n_dims, const int64_t *dims,
                            size_t n_bytes, int64_t *at);

/* Writes the tensors' bytes in the order of the header; false: errno says why not. */
typedef bool safetensors_data_fn(FILE *f, void *arg);

/* header is released in any case; NULL counts as NO_MEMORY. Errors: IO, NO_MEMORY. */
MUST_USE status safetensors_write(const char *path, json_t *header, safetensors_data_fn *write_data, void *arg, err *e);

#endif
