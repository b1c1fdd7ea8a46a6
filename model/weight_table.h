/* What a checkpoint must hold: one row per tensor, its name and its shape, made from the config.
 *
 *     weight_table t;
 *     st = weight_table_init(&t, &config, &e);
 *     for (size_t i = 0; i < t.n_rows; i++)
 *         st = weight_row_find(&t.rows[i], files, &entry, &e);   // missing or misshapen: named in e
 *     weight_table_deinit(&t);
 *
 * The table is the whole list: a tensor of the folder without a row is an extra one, unless
 * weight_is_ignorable. One thread. */
#ifndef MODEL_WEIGHT_TABLE_H
#define MODEL_WEIGHT_TABLE_H

#include <stdbool.h>

#include "model/model_config.h"
#include "model/weight_files.h"
#include "ops/tensor.h"

typedef enum {
    WEIGHT_OF_TOWER,     /* decides the features */
    WEIGHT_OF_DECODER,   /* projector, decoder and output */
    WEIGHT_NOT_COMPUTED  /* belongs to the architecture, but no network here reads it: may be absent */
} weight_use;

#define WEIGHT_NAME_BYTES 96

typedef struct {
    char name[WEIGHT_NAME_BYTES];
    weight_use use;
    bool is_matrix; /* is only multiplied with: may be stored in blocks */
    int n_dims;
    int64_t dims[4];
} weight_row;

typedef struct {
    weight_row *rows; /* in name order */
    size_t n_rows;
} weight_table;

/* c->decoder.n_vocab_in and n_vocab_out must be set. Errors: NO_MEMORY. */
MUST_USE status weight_table_init(weight_table *t, const model_config *c, err *e);
void weight_table_deinit(weight_table *t);
const weight_row *weight_table_find(const weight_table *t, const char *name);

/* How a tensor of n_out rows of n_in is stored, in f32, f16, bf16, or in blocks: U8 [n_out, dtype_row_bytes(n_in)] is q8
 * or q4. False: in none of them. */
bool weight_dtype(ops_dtype *dtype, const safetensors_tensor *t, int64_t n_out, int64_t n_in);

/* The entry of a row, present, of the row's shape, and of a dtype the networks read (f32, f16, bf16; a matrix: q8, q4).
 * *entry is NULL with STATUS_OK only for an absent row of WEIGHT_NOT_COMPUTED. Errors: BAD_MODEL. */
MUST_USE status weight_row_find(const weight_row *row, const weight_files *files,
                                const weight_entry **entry, err *e);

/* Buffers that training frameworks save along and that hold nothing learned, by name. */
bool weight_is_ignorable(const char *name);

#endif
