/* The names of a set of weights: equal exactly when networks would compute the same.
 *
 *     fingerprint *f = fingerprint_begin("tower");
 *     fingerprint_add_text(f, "hidden=%d", c->tower.hidden);
 *     fingerprint_add_tensor(f, tensor_name, tensor);     // in name order
 *     fingerprint_end(f, out);                            // releases f
 *
 * One thread. */
#ifndef MODEL_FINGERPRINT_H
#define MODEL_FINGERPRINT_H

#include "base/hash.h"
#include "model/model_config.h"
#include "model/safetensors.h"

typedef struct fingerprint fingerprint;

fingerprint *fingerprint_begin(const char *what);
void fingerprint_add_text(fingerprint *f, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Cost: reads every byte of the tensor once; XXH3, more than 10 GB/s from memory. */
void fingerprint_add_tensor(fingerprint *f, const char *name, const safetensors_tensor *t);
void fingerprint_end(fingerprint *f, unsigned char out[HASH_SHA256_BYTES]);

/* Every config value that decides the features, and every one that decides the rest. */
void fingerprint_add_tower_config(fingerprint *f, const model_config *c);
void fingerprint_add_decoder_config(fingerprint *f, const model_config *c);

#endif
