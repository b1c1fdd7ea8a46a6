/* The tensors of a checkpoint folder by name, whether it is one file or several shards.
 *
 *     weight_files *w;
 *     st = weight_files_open(&w, dir, &e);
 *     const weight_entry *t = weight_files_find(w, "lm_head.bias");   // NULL: not there
 *     weight_files_close(&w);
 *
 * Names are without the wrappers `base_model.model.` and `module.` that training tools leave behind.
 * Read-only after open: any thread. */
#ifndef MODEL_WEIGHT_FILES_H
#define MODEL_WEIGHT_FILES_H

#include "model/safetensors.h"

#define WEIGHT_FILES_SHARDS_MAX 1024

typedef struct {
    const char *name; /* wrappers removed */
    const char *file; /* "model-00001-of-00002.safetensors" */
    const safetensors_tensor *tensor;
} weight_entry;

typedef struct weight_files weight_files;

/* Reads dir/model.safetensors, or, when that is absent, dir/model.safetensors.index.json and the shards
 * it names. Errors: IO, BAD_FORMAT, BAD_MODEL (index and shards do not agree). */
MUST_USE status weight_files_open(weight_files **w, const char *dir, err *e);
/* Reads this one file of dir. */
MUST_USE status weight_files_open_one(weight_files **w, const char *dir, const char *file, err *e);
void weight_files_close(weight_files **w);

size_t weight_files_count(const weight_files *w);
const weight_entry *weight_files_at(const weight_files *w, size_t idx); /* in name order */
const weight_entry *weight_files_find(const weight_files *w, const char *name);
size_t weight_files_shards(const weight_files *w);
/* The file that lists every tensor, for errors: "model.safetensors", or the index of several shards. */
const char *weight_files_list_name(const weight_files *w);

#endif
