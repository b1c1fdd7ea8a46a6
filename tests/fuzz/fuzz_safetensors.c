/* A safetensors file from outside: whatever its bytes are, what is accepted lies inside the file, does not
 * overlap, and can be read. */
#include "base/check.h"
#include "model/safetensors.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    safetensors *f;
    err e;
    if (safetensors_open_bytes(&f, (bytes){data, size}, "fuzz", &e) != STATUS_OK) {
        CHECK(f == NULL && e.text[0], "a refusal says why and leaves nothing");
        return 0;
    }
    size_t covered = 0;
    for (size_t i = 0; i < safetensors_count(f); i++) {
        const safetensors_tensor *t = safetensors_at(f, i);
        CHECK(t->n_dims >= 0 && t->n_dims <= SAFETENSORS_DIMS_MAX, "dims are bounded");
        CHECK(t->data >= data && t->len_bytes <= size - (size_t)(t->data - data), "a tensor lies inside");
        CHECK(safetensors_find(f, t->name) == t, "a tensor is found by its name");
        CHECK(i == 0 || strcmp(safetensors_at(f, i - 1)->name, t->name) < 0, "names are in order, once");
        if (t->dtype != SAFETENSORS_OTHER) {
            size_t n = t->dtype == SAFETENSORS_F32 ? 4 : 2;
            for (int d = 0; d < t->n_dims; d++) n *= (size_t)t->dims[d];
            CHECK(n == t->len_bytes, "bytes agree with the shape");
        }
        covered += t->len_bytes;
    }
    CHECK(covered <= size, "tensors do not overlap");
    char text[128];
    if (safetensors_count(f) > 0) {
        const safetensors_tensor *t = safetensors_at(f, 0);
        safetensors_shape_text(text, sizeof text, t->n_dims, t->dims);
    }
    safetensors_close(&f);
    return 0;
}
