/* The parts of an opened checkpoint, for model.c and model_report.c. */
#ifndef MODEL_MODEL_INTERNAL_H
#define MODEL_MODEL_INTERNAL_H

#include "model/adapter.h"
#include "model/model.h"
#include "model/stored_tensor.h"
#include "model/weight_table.h"

#define SERVED_NAME_BYTES (MODEL_SERVED_NAME_BYTES_MAX + 1)

typedef struct {
    char name[SERVED_NAME_BYTES];
    adapter *adapter;
    const safetensors_tensor **projector; /* one per row of the table; NULL: not of the projector, or unchanged */
} served_adapter;

struct model {
    model_config config;
    int parts;
    safetensors_dtype wanted; /* of every weight that is not in blocks; OTHER: as it is stored */
    ops_product product;
    bool has_kv_dtype;  /* one was asked for */
    ops_dtype kv_dtype;
    weight_files *files;
    stored_tensor *converted; /* to another dtype */
    adapter *adapter;         /* NULL: none is merged */
    served_adapter *served;
    int n_served;
    weight_table table;
    const safetensors_tensor **tensors; /* one per row of the table; NULL: absent or not opened */
    tokenizer *tokens;
    unsigned char tower_fingerprint[HASH_SHA256_BYTES];
    unsigned char fingerprint[HASH_SHA256_BYTES];
};

/* Config, files and table, with the vocabulary's sizes taken from the tensors; no row is looked for yet.
 * On failure m holds what was opened so far and model_close releases it. */
MUST_USE status model_open_files(model *m, const char *dir, err *e);

/* After the files, before the weights: its digest is part of the fingerprint. */
MUST_USE status model_open_tokenizer(model *m, const char *dir, err *e);

/* The rows of parts are looked for, and the fingerprints made. */
MUST_USE status model_bind_weights(model *m, int parts, err *e);

/* "NAME=DIR": one adapter more, after the weights. */
MUST_USE status model_serve(model *m, const char *text, err *e);

/* An entry of the folder that the architecture does not have. */
bool model_is_extra(const model *m, const weight_entry *entry);

#endif
