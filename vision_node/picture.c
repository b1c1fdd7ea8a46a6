#include "vision_node/picture.h"

#include <string.h>

#include "base/clock.h"

static blob_dtype blob_dtype_of(ops_dtype dtype) {
    switch (dtype) {
    case OPS_DTYPE_F16: return BLOB_F16;
    case OPS_DTYPE_BF16: return BLOB_BF16;
    default: return BLOB_F32;
    }
}

blob picture_features(const picture *p) {
    const model *m = p->kit->parts.model;
    const model_config *config = model_get_config(m);
    return (blob){.dtype = blob_dtype_of(model_tower_dtype(m)),
                  .n_tokens = (uint32_t)config->tower.n_tokens,
                  .width = (uint32_t)config->tower.hidden,
                  .values = {p->features, p->kit->feature_bytes}};
}

static bool fetch(picture *p) {
    buf stored;
    blob b;
    buf_init(&stored, BLOB_BYTES_MAX);
    bool is_here = cache_get(p->kit->parts.cache, &b, &stored, &p->key) == STATUS_OK &&
                   b.values.len_bytes == p->kit->feature_bytes;
    if (is_here) memcpy(p->features, b.values.data, b.values.len_bytes);
    buf_deinit(&stored);
    return is_here;
}

static bool is_in_cache(picture *p) {
    if (!p->trusts_cache) return false;
    return p->wants_features ? fetch(p) : cache_has(p->kit->parts.cache, &p->key) == STATUS_OK;
}

void picture_read(crew_work *work) {
    picture *p = (picture *)work;
    p->read = STATUS_OK;
    p->decode_us = 0;
    p->was_found = is_in_cache(p);
    if (p->was_found) return;
    int64_t start_us = clock_now_us();
    p->read = image_decoder_run(p->kit->parts.decoder, p->pixels, &p->info, p->file, p->applies_exif,
                                &model_get_config(p->kit->parts.model)->preprocess, &p->why);
    p->decode_us = (uint64_t)(clock_now_us() - start_us);
}

void picture_store(crew_work *work) {
    picture *p = (picture *)work;
    blob features = picture_features(p);
    p->is_stored = cache_put(p->kit->parts.store, &p->key, &features) == STATUS_OK;
}
