/* A fingerprint is the SHA-256 of lines of text: config values, then one line per tensor with its name,
 * dtype, shape and the XXH3-128 of its bytes. Hashing 6 GB with SHA-256 would take a node 4 to 15 seconds
 * at every start; XXH3 runs at the speed of memory. XXH3 is not made to resist somebody who constructs two
 * tensors with one hash, and need not be: a fingerprint tells checkpoints apart that were mixed up by
 * accident or by an honest mistake, and whoever may write the checkpoint may anyway serve what he likes.
 *
 * Lines come in name order and say nothing of files, so that the number of shards and the order inside
 * them do not matter. Reals are written as hexadecimal floats, so that no digit is lost. */
#include "model/fingerprint.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/check.h"

#define LINE_BYTES 512

fingerprint *fingerprint_begin(const char *what) {
    fingerprint *f = (fingerprint *)hash_sha256_open();
    fingerprint_add_text(f, "mipha %s 1", what);
    return f;
}

void fingerprint_add_text(fingerprint *f, const char *format, ...) {
    char line[LINE_BYTES];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    CHECK(n >= 0 && (size_t)n < sizeof line - 1, "a line of a fingerprint fits");
    line[n] = '\n';
    hash_sha256_add((hash_sha256_stream *)f, line, (size_t)n + 1);
}

void fingerprint_add_tensor(fingerprint *f, const char *name, const safetensors_tensor *t) {
    char shape[200];
    safetensors_shape_text(shape, sizeof shape, t->n_dims, t->dims);
    XXH128_hash_t hash = XXH3_128bits(t->data, t->len_bytes);
    fingerprint_add_text(f, "%s %s %s %016" PRIx64 "%016" PRIx64, name, t->dtype_text, shape,
                         (uint64_t)hash.high64, (uint64_t)hash.low64);
}

void fingerprint_end(fingerprint *f, unsigned char out[HASH_SHA256_BYTES]) {
    hash_sha256_finish((hash_sha256_stream *)f, out);
}

void fingerprint_add_tower_config(fingerprint *f, const model_config *c) {
    const model_tower_config *t = &c->tower;
    const model_preprocess_config *p = &c->preprocess;
    fingerprint_add_text(f, "tower kind=%d hidden=%d intermediate=%d layers_run=%d heads=%d image=%d "
                            "patch=%d tokens=%d act=%d eps=%a",
                         (int)t->kind, t->hidden, t->intermediate, t->n_layers_run, t->n_heads,
                         t->image_size, t->patch_size, t->n_tokens, (int)t->act, (double)t->layer_norm_eps);
    fingerprint_add_text(f, "preprocess pad=%d rgb=%d,%d,%d aspect=%d resize=%d size=%d rescale=%a",
                         p->pad_to_square, p->pad_rgb[0], p->pad_rgb[1], p->pad_rgb[2], p->keeps_aspect,
                         p->resize, p->size, p->rescale_factor);
    for (int i = 0; i < 3; i++)
        fingerprint_add_text(f, "channel %d mean=%a std=%a", i, (double)p->mean[i], (double)p->std[i]);
}

void fingerprint_add_decoder_config(fingerprint *f, const model_config *c) {
    const model_decoder_config *d = &c->decoder;
    fingerprint_add_text(f, "projector kind=%d linear=%d", (int)c->projector.kind,
                         c->projector.n_linear);
    fingerprint_add_text(f, "decoder kind=%d hidden=%d intermediate=%d layers=%d heads=%d kv_heads=%d "
                            "head_size=%d window=%d tied=%d act=%d eps=%a positions=%d",
                         (int)d->kind, d->hidden, d->intermediate, d->n_layers, d->n_heads, d->n_kv_heads,
                         d->head_size, d->window, d->is_tied, (int)d->act, (double)d->norm_eps,
                         d->max_positions);
    fingerprint_add_text(f, "rotary dims=%d theta=%a factor=%a long=%d from=%d", d->rotary_dims,
                         (double)d->rope_theta, (double)d->rope_factor, d->has_long_rope, d->original_positions);
    for (int i = 0; d->has_long_rope && i < d->rotary_dims / 2; i++)
        fingerprint_add_text(f, "pair %d short=%a long=%a", i, (double)d->rope_short[i], (double)d->rope_long[i]);
}
