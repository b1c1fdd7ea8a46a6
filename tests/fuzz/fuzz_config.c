/* config.json and preprocessor_config.json from outside: refused with a reason, or every number is safe to
 * allocate by. The input is the first file, then a zero byte and the second one; without a zero byte the
 * second file is an empty object, which means its defaults. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "model/model_config.h"
#include "model/weight_table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64], files[2][96];

static void remove_folder(void) {
    for (int i = 0; i < 2; i++) (void)unlink(files[i]);
    (void)rmdir(folder);
}

static void make_folder(void) {
    bool has_shm = access("/dev/shm", W_OK) == 0;
    (void)snprintf(folder, sizeof folder, "%s/mipha-fuzz-XXXXXX", has_shm ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(folder), "a folder for the files");
    (void)snprintf(files[0], sizeof files[0], "%s/config.json", folder);
    (void)snprintf(files[1], sizeof files[1], "%s/preprocessor_config.json", folder);
    (void)atexit(remove_folder);
}

static void write_file(const char *path, const uint8_t *data, size_t size) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(data, 1, size, f) == size && fclose(f) == 0, "the file is written");
}

static void check_numbers(const model_config *c) {
    const model_tower_config *t = &c->tower;
    const model_decoder_config *d = &c->decoder;
    CHECK(t->hidden > 0 && t->n_heads > 0 && t->hidden % t->n_heads == 0, "heads divide the tower");
    CHECK(t->n_layers_run >= 0 && t->n_layers_run <= t->n_layers, "the layers that run are there");
    CHECK(t->patch_size > 0 && t->patch_size <= t->image_size && t->n_tokens > 0, "an image has tokens");
    CHECK(t->layer_norm_eps > 0 && d->norm_eps > 0, "no division by zero in layer norms");
    CHECK(c->preprocess.size == t->image_size, "images have the size of the tower");
    for (int i = 0; i < 3; i++) CHECK(c->preprocess.std[i] > 0, "pixels are divided by something");
    CHECK(d->hidden > 0 && d->n_heads > 0 && d->head_size > 0, "heads have a width");
    CHECK(d->n_kv_heads > 0 && d->n_heads % d->n_kv_heads == 0, "key heads divide heads");
    CHECK(d->rotary_dims >= 0 && d->rotary_dims % 2 == 0 && d->rotary_dims <= d->head_size,
          "rotary dims are pairs inside a head");
    CHECK(d->rope_theta >= 1 && d->max_positions > 0, "positions turn");
    CHECK(memchr(c->name, '\0', sizeof c->name), "the name ends");
}

/* What is accepted, as a checkpoint with these tensors, can be allocated by. */
static void check_config(model_signs signs) {
    model_config c;
    err e = {0};
    if (model_config_load(&c, folder, signs, &e) != STATUS_OK) {
        CHECK(e.text[0], "a refusal says why");
        return;
    }
    check_numbers(&c);
    c.decoder.n_vocab_in = c.decoder.n_vocab_out = 1;
    weight_table t;
    CHECK(weight_table_init(&t, &c, &e) == STATUS_OK, "every accepted config has a table of weights");
    for (size_t i = 1; i < t.n_rows; i++)
        CHECK(strcmp(t.rows[i - 1].name, t.rows[i].name) < 0, "every row has its own name");
    weight_table_deinit(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!folder[0]) make_folder();
    const uint8_t *cut = size ? memchr(data, '\0', size) : NULL;
    write_file(files[0], data, cut ? (size_t)(cut - data) : size);
    if (cut)
        write_file(files[1], cut + 1, size - (size_t)(cut + 1 - data));
    else
        write_file(files[1], (const uint8_t *)"{}", 2);
    for (int kind = 0; kind < MODEL_DECODER_LLAMA; kind++)
        check_config((model_signs){&model_format_mipha, (model_decoder_kind)kind});
    check_config((model_signs){&model_format_llava, MODEL_DECODER_LLAMA});
    check_config((model_signs){NULL, MODEL_DECODER_KINDS});
    return 0;
}
