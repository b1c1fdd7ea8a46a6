/* SigLIP, forward:
 *
 *     x = patches(planes) W_patch' + b_patch + position table
 *     for each layer:  x = x + out(attention(q(n), k(n), v(n)))   with n = layer_norm1(x)
 *                      x = x + fc2(gelu_tanh(fc1(layer_norm2(x))))
 *
 * Rows are tokens of all pictures, one picture after the other; attention stays inside a picture.
 *
 * Memory: weights (matrices packed by the backend, vectors in one block) and one block of activations.
 * Two wide buffers are used twice: patches are gone before the MLP needs `wide`, and planes before the
 * first norm needs `a`. */
#include "vision_node/vision_encoder.h"

#include <math.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/log.h"
#include "model/device_weights.h"

#define TOWER "model.vision_tower.vision_model."

typedef struct {
    ops_tensor norm1_w, norm1_b, norm2_w, norm2_b;
    ops_matrix *q, *k, *v, *out, *fc1, *fc2;
} tower_layer;

struct vision_encoder {
    ops_ctx *ctx;
    model_tower_config c;
    ops_dtype dtype; /* of the features */
    int max_images;
    ops_block weights, activations;
    ops_matrix *patch;
    ops_tensor positions;
    tower_layer *layers;
    /* Activations for max_images: x, a, q, k, v [rows, hidden]; wide holds patches or MLP; half is the
     * result in the dtype of the features. */
    ops_tensor planes, x, a, q, k, v, wide, half;
    vision_tap *tap;
    void *tap_user;
    float *tap_hidden;
};

#define TRY(call)                                                                                  \
    do {                                                                                           \
        status try_status = (call);                                                                \
        if (try_status != STATUS_OK) return try_status;                                            \
    } while (0)

/* ---- opening ------------------------------------------------------------------------------- */

static int64_t max_rows(const vision_encoder *v) { return (int64_t)v->max_images * v->c.n_tokens; }

static int64_t patch_width(const vision_encoder *v) {
    return (int64_t)3 * v->c.patch_size * v->c.patch_size;
}

static int64_t wide_width(const vision_encoder *v) {
    return patch_width(v) > v->c.intermediate ? patch_width(v) : v->c.intermediate;
}

static int64_t planes_elements(const vision_encoder *v) {
    return (int64_t)v->max_images * 3 * v->c.image_size * v->c.image_size;
}

static size_t weight_vector_bytes(const vision_encoder *v) {
    size_t vector = ops_cut_bytes(OPS_DTYPE_F32, v->c.hidden);
    return ops_cut_bytes(OPS_DTYPE_F32, (int64_t)v->c.n_tokens * v->c.hidden) +
           4 * vector * (size_t)v->c.n_layers_run;
}

static size_t activation_bytes(const vision_encoder *v) {
    int64_t rows = max_rows(v);
    return ops_cut_bytes(OPS_DTYPE_F32, planes_elements(v)) +
           5 * ops_cut_bytes(OPS_DTYPE_F32, rows * v->c.hidden) +
           ops_cut_bytes(OPS_DTYPE_F32, rows * wide_width(v)) +
           ops_cut_bytes(v->dtype, rows * v->c.hidden);
}

static status open_layer(vision_encoder *v, tower_layer *l, const model *m, int i, err *e) {
    ops_block *block = &v->weights;
    TRY(device_vector_cut(block, &l->norm1_w, m, e, TOWER "encoder.layers.%d.layer_norm1.weight", i));
    TRY(device_vector_cut(block, &l->norm1_b, m, e, TOWER "encoder.layers.%d.layer_norm1.bias", i));
    TRY(device_vector_cut(block, &l->norm2_w, m, e, TOWER "encoder.layers.%d.layer_norm2.weight", i));
    TRY(device_vector_cut(block, &l->norm2_b, m, e, TOWER "encoder.layers.%d.layer_norm2.bias", i));
    TRY(device_matrix_open(v->ctx, &l->q, m, e, TOWER "encoder.layers.%d.self_attn.q_proj", i));
    TRY(device_matrix_open(v->ctx, &l->k, m, e, TOWER "encoder.layers.%d.self_attn.k_proj", i));
    TRY(device_matrix_open(v->ctx, &l->v, m, e, TOWER "encoder.layers.%d.self_attn.v_proj", i));
    TRY(device_matrix_open(v->ctx, &l->out, m, e, TOWER "encoder.layers.%d.self_attn.out_proj", i));
    TRY(device_matrix_open(v->ctx, &l->fc1, m, e, TOWER "encoder.layers.%d.mlp.fc1", i));
    return device_matrix_open(v->ctx, &l->fc2, m, e, TOWER "encoder.layers.%d.mlp.fc2", i);
}

static status open_weights(vision_encoder *v, const model *m, err *e) {
    TRY(ops_block_open(v->ctx, &v->weights, weight_vector_bytes(v), e));
    TRY(device_matrix_open(v->ctx, &v->patch, m, e, TOWER "embeddings.patch_embedding"));
    TRY(device_vector_cut(&v->weights, &v->positions, m, e,
                          TOWER "embeddings.position_embedding.weight"));
    v->layers = calloc((size_t)v->c.n_layers_run + 1, sizeof *v->layers);
    if (!v->layers) return fail(e, STATUS_NO_MEMORY, "tower: no memory for its layers");
    for (int i = 0; i < v->c.n_layers_run; i++) TRY(open_layer(v, &v->layers[i], m, i, e));
    return STATUS_OK;
}

static status open_activations(vision_encoder *v, err *e) {
    TRY(ops_block_open(v->ctx, &v->activations, activation_bytes(v), e));
    ops_block *block = &v->activations;
    const int64_t flat[2] = {max_rows(v), v->c.hidden};
    v->planes = ops_block_cut(block, OPS_DTYPE_F32, 1, (int64_t[]){planes_elements(v)});
    v->x = ops_block_cut(block, OPS_DTYPE_F32, 2, flat);
    v->a = ops_block_cut(block, OPS_DTYPE_F32, 2, flat);
    v->q = ops_block_cut(block, OPS_DTYPE_F32, 2, flat);
    v->k = ops_block_cut(block, OPS_DTYPE_F32, 2, flat);
    v->v = ops_block_cut(block, OPS_DTYPE_F32, 2, flat);
    v->wide = ops_block_cut(block, OPS_DTYPE_F32, 1, (int64_t[]){max_rows(v) * wide_width(v)});
    v->half = ops_block_cut(block, v->dtype, 2, flat);
    v->tap_hidden = NULL;
    return STATUS_OK;
}

status vision_encoder_open(vision_encoder **out, ops_ctx *ctx, const model *m, int max_images,
                           err *e) {
    *out = NULL;
    if (max_images < 1 || max_images > VISION_ENCODER_IMAGES_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "tower: %d images at once, need 1 to %d", max_images,
                    VISION_ENCODER_IMAGES_MAX);
    vision_encoder *v = calloc(1, sizeof *v);
    if (!v) return fail(e, STATUS_NO_MEMORY, "tower: no memory");
    v->ctx = ctx;
    v->c = model_get_config(m)->tower;
    v->dtype = model_tower_dtype(m);
    v->max_images = max_images;
    status st = open_weights(v, m, e);
    if (st == STATUS_OK) st = open_activations(v, e);
    if (st != STATUS_OK) {
        vision_encoder_close(&v);
        return st;
    }
    log_info("tower_ready", "layers=%d tokens=%d max_images=%d device_bytes=%zu", v->c.n_layers_run,
             v->c.n_tokens, max_images, vision_encoder_device_bytes(v));
    *out = v;
    return STATUS_OK;
}

void vision_encoder_close(vision_encoder **out) {
    vision_encoder *v = *out;
    if (!v) return;
    for (int i = 0; v->layers && i < v->c.n_layers_run; i++) {
        tower_layer *l = &v->layers[i];
        ops_matrix **all[] = {&l->q, &l->k, &l->v, &l->out, &l->fc1, &l->fc2};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) ops_matrix_close(v->ctx, all[k]);
    }
    ops_matrix_close(v->ctx, &v->patch);
    ops_block_close(&v->activations);
    ops_block_close(&v->weights);
    free(v->layers);
    free(v->tap_hidden);
    free(v);
    *out = NULL;
}

size_t vision_encoder_feature_bytes(const vision_encoder *v) {
    return (size_t)v->c.n_tokens * (size_t)v->c.hidden * dtype_bytes(v->dtype);
}

size_t vision_encoder_device_bytes(const vision_encoder *v) {
    size_t bytes = v->weights.size_bytes + v->activations.size_bytes + ops_matrix_bytes(v->patch);
    for (int i = 0; i < v->c.n_layers_run; i++) {
        const tower_layer *l = &v->layers[i];
        const ops_matrix *all[] = {l->q, l->k, l->v, l->out, l->fc1, l->fc2};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) bytes += ops_matrix_bytes(all[k]);
    }
    return bytes;
}

/* ---- running ------------------------------------------------------------------------------- */

/* The first rows of a buffer, or of a flat one seen as rows of width. */
static ops_tensor first(const ops_tensor *t, int64_t n_rows, int64_t width) {
    ops_tensor view = *t;
    view.n_dims = 2;
    view.dims[0] = n_rows;
    view.dims[1] = width;
    CHECK(tensor_elements(&view) <= tensor_elements(t), "a run fits in the buffers of open");
    return view;
}

void vision_encoder_set_tap(vision_encoder *v, vision_tap *tap, void *user) {
    v->tap = tap;
    v->tap_user = user;
}

static status tap_state(vision_encoder *v, int layer, const ops_tensor *x) {
    if (!v->tap) return STATUS_OK;
    if (!v->tap_hidden) v->tap_hidden = malloc(tensor_bytes(&v->x));
    if (!v->tap_hidden) return STATUS_NO_MEMORY;
    TRY(ops_download(v->ctx, v->tap_hidden, x));
    TRY(ops_sync(v->ctx));
    v->tap(v->tap_user, layer, v->tap_hidden, x->dims[0], x->dims[1]);
    return STATUS_OK;
}

static status run_embeddings(vision_encoder *v, ops_tensor *x, const float *planes, int n_images) {
    const int64_t size = v->c.image_size;
    ops_tensor pictures = v->planes;
    pictures.n_dims = 4;
    pictures.dims[0] = n_images;
    pictures.dims[1] = 3;
    pictures.dims[2] = pictures.dims[3] = size;
    ops_tensor patches = first(&v->wide, x->dims[0], patch_width(v));
    ops_tensor embedded = first(&v->a, x->dims[0], v->c.hidden);
    TRY(ops_upload(v->ctx, &pictures, planes));
    TRY(ops_patch_rows(v->ctx, &patches, &pictures, v->c.patch_size));
    TRY(ops_linear(v->ctx, &embedded, &patches, v->patch, OPS_ACT_NONE));
    return ops_add_table(v->ctx, x, &embedded, &v->positions);
}

static status run_layer(vision_encoder *v, const tower_layer *l, ops_tensor *x) {
    const int64_t rows = x->dims[0], width = v->c.hidden;
    ops_tensor a = first(&v->a, rows, width), q = first(&v->q, rows, width);
    ops_tensor k = first(&v->k, rows, width), values = first(&v->v, rows, width);
    ops_tensor wide = first(&v->wide, rows, v->c.intermediate);
    const ops_attention_params params = {
        .n_heads = v->c.n_heads,
        .n_kv_heads = v->c.n_heads,
        .scale = (float)(1.0 / sqrt((double)(v->c.hidden / v->c.n_heads))),
    };
    TRY(ops_layer_norm(v->ctx, &a, x, &l->norm1_w, &l->norm1_b, v->c.layer_norm_eps));
    TRY(ops_linear(v->ctx, &q, &a, l->q, OPS_ACT_NONE));
    TRY(ops_linear(v->ctx, &k, &a, l->k, OPS_ACT_NONE));
    TRY(ops_linear(v->ctx, &values, &a, l->v, OPS_ACT_NONE));
    TRY(ops_attention(v->ctx, &q, &q, &k, &values, v->c.n_tokens, &params));
    TRY(ops_linear(v->ctx, &a, &q, l->out, OPS_ACT_NONE));
    TRY(ops_add(v->ctx, x, x, &a));
    TRY(ops_layer_norm(v->ctx, &a, x, &l->norm2_w, &l->norm2_b, v->c.layer_norm_eps));
    TRY(ops_linear(v->ctx, &wide, &a, l->fc1, OPS_ACT_GELU_TANH));
    TRY(ops_linear(v->ctx, &a, &wide, l->fc2, OPS_ACT_NONE));
    return ops_add(v->ctx, x, x, &a);
}

static status run(vision_encoder *v, const float *planes, int n_images, void *features) {
    const int64_t rows = (int64_t)n_images * v->c.n_tokens;
    ops_tensor x = first(&v->x, rows, v->c.hidden), half = first(&v->half, rows, v->c.hidden);
    TRY(run_embeddings(v, &x, planes, n_images));
    TRY(tap_state(v, 0, &x));
    for (int i = 0; i < v->c.n_layers_run; i++) {
        TRY(run_layer(v, &v->layers[i], &x));
        TRY(tap_state(v, i + 1, &x));
    }
    TRY(ops_cast(v->ctx, &half, &x));
    TRY(ops_download(v->ctx, features, &half));
    return ops_sync(v->ctx);
}

status vision_encoder_run(vision_encoder *v, const float *planes, int n_images, void *features,
                          err *e) {
    if (n_images < 1 || n_images > v->max_images)
        return fail(e, STATUS_BAD_ARGUMENT, "tower: %d images in one run, need 1 to %d", n_images,
                    v->max_images);
    status st = run(v, planes, n_images, features);
    return st == STATUS_OK ? st
                           : fail(e, st, "tower: %d images: %s", n_images, status_text((int)st));
}
