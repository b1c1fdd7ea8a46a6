/* A PEFT adapter: low-rank changes of matrices, and tensors that were trained whole.
 *
 *     adapter *a;
 *     st = adapter_open(&a, "my-lora", &e);
 *     st = adapter_merge(a, &tensor, base, name, &e);    // for every tensor of the model
 *     st = adapter_check_used(a, "a tensor of this model", &e);
 *     adapter_close(&a);
 *
 * A folder with adapter_config.json and adapter_model.safetensors; what the authors' training saves beside them,
 * all that is not low-rank, is read from non_lora_trainables.safetensors. Source of names and formulas: peft.
 * One thread. */
#ifndef MODEL_ADAPTER_H
#define MODEL_ADAPTER_H

#include "model/adapter_factors.h"
#include "model/fingerprint.h"
#include "model/safetensors.h"

typedef struct adapter adapter;

/* Errors: IO, BAD_FORMAT, BAD_MODEL (a kind of adapter that is not supported, by key). */
MUST_USE status adapter_open(adapter **a, const char *dir, err *e);
void adapter_close(adapter **a);

/* The tensor of the model called name, as the adapter changes it: W + s B A, with s = alpha / r, or
 * alpha / sqrt(r) with use_rslora, computed in f32 and rounded once to W's type; or what was trained whole. *changed
 * receives a new tensor, valid until adapter_close, or NULL when the adapter says nothing about it.
 * Errors: BAD_MODEL (a shape that does not fit), NO_MEMORY. */
MUST_USE status adapter_merge(adapter *a, const safetensors_tensor **changed, const safetensors_tensor *base,
                              const char *name, err *e);

/* *found: the adapter changes the matrix called name, of dims [n_out, n_in], by factors. Errors: BAD_MODEL. */
MUST_USE status adapter_find_factors(adapter *a, adapter_factors *f, bool *found, const char *name,
                                     const int64_t dims[2], err *e);

/* Everything that decides what the adapter does. */
void adapter_add_to_fingerprint(const adapter *a, fingerprint *f);

/* After the last merge: every tensor of the adapter belonged to one of the model. Errors: BAD_MODEL, naming one
 * that did not, and what it should have been: "a tensor of this model". */
MUST_USE status adapter_check_used(const adapter *a, const char *expected, err *e);

#endif
