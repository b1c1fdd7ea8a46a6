/* `mipha embed`: images to numbers, as a numpy file.
 *
 * The file is written as it grows, one image after the other, so memory does not depend on how many there
 * are; its header is known before the first image because every image has the same shape. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/stop.h"
#include "cli/commands.h"
#include "cli/model_place.h"
#include "cli/one_image.h"
#include "cli/service.h"
#include "lm_node/projector.h"
#include "vision_node/image_decoder.h"
#include "vision_node/vision_encoder.h"

static const option_row rows[] = {
    MODEL_ROW,
    MODEL_ADAPTER_ROW,
    MODEL_DTYPE_ROW,
    {"output", 'o', OPTION_STRING, "OUT.npy", NULL, 0, 0, "the file to write"},
    {"layer", 'l', OPTION_STRING, "LAYER", "features", 0, 0,
     "features: the tower's, as cached; projected: as the language model sees them; pooled: features "
     "averaged over tokens"},
    EXIF_ROW,
    COMPUTE_ROWS,
    {0}};

const option_table embed_table = {
    .program = "mipha embed",
    .positional = "IMAGE...",
    .purpose = "write image embeddings as a numpy array of float32",
    .example = "  mipha embed photos/*.jpg -o embeddings.npy --layer pooled\n"
               "  python3 -c \"import numpy; print(numpy.load('embeddings.npy').shape)\"\n",
    .rows = rows,
    .positional_min = 1,
    .positional_max = -1};

typedef enum { LAYER_FEATURES, LAYER_PROJECTED, LAYER_POOLED } layer;

typedef struct {
    layer wanted;
    int n_tokens, width; /* of what is written; pooled: one token */
    image_decoder *decoder;
    ops_ctx *ctx;
    model *m;
    vision_encoder *encoder;
    projector *projection; /* only for LAYER_PROJECTED */
    float *values;
    unsigned char *pixels, *features;
    FILE *out;
} embedding;

static status layer_from_text(layer *out, const char *text, err *e) {
    static const char *const names[] = {"features", "projected", "pooled"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *out = (layer)i;
        return STATUS_OK;
    }
    return fail(e, STATUS_BAD_ARGUMENT, "--layer: \"%.100s\" is not features, projected or pooled", text);
}

/* Version 1.0 of the format: magic, header length, a Python literal padded so that the data starts at a
 * multiple of 64. Source: numpy.lib.format. */
static status write_header(const embedding *em, long long n_images, err *e) {
    char shape[96], text[256];
    if (em->wanted == LAYER_POOLED)
        (void)snprintf(shape, sizeof shape, "(%lld, %d)", n_images, em->width);
    else
        (void)snprintf(shape, sizeof shape, "(%lld, %d, %d)", n_images, em->n_tokens, em->width);
    int n = snprintf(text, sizeof text, "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }", shape);
    size_t used = (size_t)n, padded = (10 + used + 1 + 63) / 64 * 64 - 10;
    memset(text + used, ' ', padded - used);
    text[padded - 1] = '\n';
    unsigned char head[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0};
    bytes_store_le(head + 8, padded, 2);
    if (fwrite(head, 1, sizeof head, em->out) != sizeof head || fwrite(text, 1, padded, em->out) != padded)
        return fail_errno(e, STATUS_IO, "writing the output");
    return STATUS_OK;
}

/* em->features to em->values. Averages are summed in double, in token order. */
static status values_of_features(embedding *em, int n_tokens, int tower_width, err *e) {
    if (em->wanted == LAYER_PROJECTED) {
        ops_tensor projected;
        status st = projector_upload(em->projection, 0, em->features, n_tokens);
        if (st == STATUS_OK) st = projector_run(em->projection, &projected, n_tokens);
        if (st == STATUS_OK) st = ops_download(em->ctx, em->values, &projected);
        if (st == STATUS_OK) st = ops_sync(em->ctx);
        return st == STATUS_OK ? st : fail(e, st, "projecting features: %s", status_text((int)st));
    }
    const ops_tensor features = tensor_make(em->features, OPS_PLACE_HOST, model_tower_dtype(em->m), 2,
                                            (int64_t[]){n_tokens, tower_width});
    int64_t n = tensor_elements(&features);
    if (em->wanted == LAYER_FEATURES) {
        for (int64_t i = 0; i < n; i++) em->values[i] = tensor_value(&features, i);
        return STATUS_OK;
    }
    for (int c = 0; c < tower_width; c++) {
        double sum = 0;
        for (int t = 0; t < n_tokens; t++) sum += (double)tensor_value(&features, (int64_t)t * tower_width + c);
        em->values[c] = (float)(sum / n_tokens);
    }
    return STATUS_OK;
}

static status embed_one(embedding *em, const char *path, bool exif, err *e) {
    const model_config *c = model_get_config(em->m);
    buf image;
    status st = one_image_read(&image, path, e);
    if (st != STATUS_OK) return st;
    err why = {0};
    st = image_decoder_run(em->decoder, em->pixels, NULL, (bytes){image.data, image.len_bytes}, exif,
                           &c->preprocess, &why);
    buf_deinit(&image);
    if (st != STATUS_OK) return fail(e, st, "%.200s: %.250s", path, why.text);
    st = vision_encoder_run(em->encoder, em->pixels, 1, em->features, e);
    if (st == STATUS_OK) st = values_of_features(em, c->tower.n_tokens, c->tower.hidden, e);
    if (st != STATUS_OK) return st;
    size_t n = (size_t)em->n_tokens * (size_t)em->width;
    if (fwrite(em->values, sizeof *em->values, n, em->out) != n)
        return fail_errno(e, STATUS_IO, "writing the output");
    return STATUS_OK;
}

/* The decoder's processes first: they are forked. */
static status open_engine(embedding *em, model_settings *settings, const ops_settings *device, err *e) {
    image_decoder_limits limits = {0};
    status st = image_decoder_open(&em->decoder, 1, &limits, e);
    bool is_whole = em->wanted == LAYER_PROJECTED || settings->adapter;
    settings->parts = is_whole ? MODEL_PART_ALL : MODEL_PART_TOWER;
    if (st == STATUS_OK) st = model_open(&em->m, settings, e);
    if (st == STATUS_OK) st = ops_open(&em->ctx, device, e);
    if (st == STATUS_OK) st = vision_encoder_open(&em->encoder, em->ctx, em->m, 1, e);
    if (st != STATUS_OK) return st;
    const model_config *c = model_get_config(em->m);
    em->n_tokens = em->wanted == LAYER_POOLED ? 1 : c->tower.n_tokens;
    em->width = em->wanted == LAYER_PROJECTED ? c->decoder.hidden : c->tower.hidden;
    if (em->wanted == LAYER_PROJECTED)
        st = projector_open(&em->projection, em->ctx, em->m, 0, OPS_DTYPE_F32, c->tower.n_tokens, e);
    if (st != STATUS_OK) return st;
    size_t side = (size_t)c->preprocess.size;
    em->pixels = calloc(3 * side * side, sizeof *em->pixels);
    em->features = calloc(vision_encoder_feature_bytes(em->encoder), 1);
    em->values = calloc((size_t)em->n_tokens * (size_t)em->width, sizeof *em->values);
    if (em->pixels && em->features && em->values) return STATUS_OK;
    return fail(e, STATUS_NO_MEMORY, "embedding: out of memory");
}

static void close_engine(embedding *em) {
    free(em->values);
    free(em->features);
    free(em->pixels);
    projector_close(&em->projection);
    vision_encoder_close(&em->encoder);
    ops_close(&em->ctx);
    model_close(&em->m);
    image_decoder_close(&em->decoder);
}

static status embed_all(embedding *em, const options *o, const char *path, err *e) {
    em->out = fopen(path, "wbe");
    if (!em->out) return fail_errno(e, STATUS_IO, "%.300s", path);
    status st = write_header(em, o->n_positional, e);
    for (int i = 0; i < o->n_positional && st == STATUS_OK; i++) {
        st = stop_check(e);
        if (st == STATUS_OK) st = embed_one(em, o->positional[i], options_flag(o, "exif"), e);
    }
    if (fclose(em->out) != 0 && st == STATUS_OK) st = fail_errno(e, STATUS_IO, "writing %.300s", path);
    struct stat info;
    /* Half a file is worth nothing; a pipe or a link somebody named is not ours to remove. */
    if (st != STATUS_OK && lstat(path, &info) == 0 && S_ISREG(info.st_mode)) (void)unlink(path);
    return st;
}

status embed_run(const options *o, int *exit_code, err *e) {
    embedding em = {0};
    char dir[MODEL_PLACE_BYTES];
    const char *path = options_string(o, "output");
    if (!path) return fail(e, STATUS_BAD_ARGUMENT, "-o OUT.npy is needed");
    status st = layer_from_text(&em.wanted, options_string(o, "layer"), e);
    if (st != STATUS_OK) return st;
    st = model_place(dir, options_string(o, "model"), e);
    ops_settings device = {.device = options_string(o, "device"), .n_threads = (int)options_int(o, "threads")};
    model_settings checkpoint = {
        .dir = dir, .adapter = options_string(o, "adapter"), .dtype = options_string(o, "dtype")};
    if (st == STATUS_OK) st = open_engine(&em, &checkpoint, &device, e);
    if (st != STATUS_OK)
        *exit_code = exit_code_not_started(st);
    else
        st = embed_all(&em, o, path, e);
    close_engine(&em);
    return st;
}
