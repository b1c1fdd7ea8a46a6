/* A vision transformer, forward; in brackets what only some families have (model/tower_family.h):
 *
 *     x = [class token,] patches(levels[pixels]) W_patch' [+ b_patch], + position table
 *     [x = pre_norm(x)]
 *     for each layer:  x = x + [scale1 *] out(attention(q(n), k(n), v(n)))   with n = norm1(x)
 *                      x = x + [scale2 *] fc2(act(fc1(norm2(x))))
 *                              or fc2(silu(gate) * value) with [gate value] = fc1(norm2(x))
 *     [class token dropped]
 *
 * Rows are tokens of all pictures, one picture after the other; attention stays inside a picture.
 *
 * Memory: weights (matrices packed by the backend, vectors in one block) and one block of activations.
 * Buffers are used twice where their times do not meet: patches are gone before the MLP needs `wide`, and
 * rows between places stand in `a`. What crosses has places of its own for each run that may be under way, because one
 * run's pixels come and another's features go while a third thing, the run between them, is computed. */
#include "vision_node/vision_encoder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/log.h"
#include "model/device_weights.h"
#include "vision_node/image_preprocess.h"
#include "vision_node/position_table.h"

#define NAME_BYTES 160

typedef struct {
    ops_tensor norm1_w, norm1_b, norm2_w, norm2_b, scale1, scale2;
    ops_matrix *qkv, *out, *fc1, *fc2; /* qkv: one below the other */
} tower_layer;

typedef struct {
    ops_tensor pixels;   /* [max_images * size * size * 3] */
    ops_tensor features; /* [max_images * n_tokens, hidden], in the dtype of the features */
    ops_mark *end;
    int n_images;
} tower_run;

struct vision_encoder {
    ops_ctx *ctx;
    model_tower_config c;
    ops_dtype dtype, running; /* of the features, of all that is computed before them */
    bool may_round; /* products are reduced, so attention may be */
    int max_images;
    tower_run runs[VISION_ENCODER_RUNS_MAX]; /* the oldest under way first, then round */
    int n_runs, n_running, oldest;
    ops_block weights, activations;
    ops_matrix *patch;
    ops_tensor levels; /* [3, 256]: what a byte of each channel stands for */
    ops_tensor positions, pre_norm_w, pre_norm_b;
    ops_tensor class_tokens;         /* [max_images, hidden]: the same one for each picture */
    ops_tensor class_at, patches_at; /* [pictures], [patches]: their rows among the tokens */
    tower_layer *layers;
    /* Activations for max_images: x, other, a [rows, hidden], x before and behind a branch in turns; wide holds patches,
     * queries, keys and values side by side, or MLP, gated what is left of it behind the gate. */
    ops_tensor x, other, a, wide, gated;
    vision_tap *tap;
    void *tap_user;
};

/* ---- opening ------------------------------------------------------------------------------- */

static int64_t max_rows(const vision_encoder *v) { return (int64_t)v->max_images * v->c.n_rows; }
static int64_t max_tokens(const vision_encoder *v) { return (int64_t)v->max_images * v->c.n_tokens; }
static int64_t max_patches(const vision_encoder *v) { return (int64_t)v->max_images * v->c.n_patches; }

static int64_t patch_width(const vision_encoder *v) {
    return (int64_t)3 * v->c.patch_size * v->c.patch_size;
}

/* What fc1 makes: the MLP, or gate and value of it. */
static int64_t fc1_width(const vision_encoder *v) {
    return v->c.family->is_gated ? 2 * (int64_t)v->c.intermediate : v->c.intermediate;
}

static int64_t wide_width(const vision_encoder *v) {
    int64_t widest = patch_width(v) > fc1_width(v) ? patch_width(v) : fc1_width(v);
    return widest > 3 * (int64_t)v->c.hidden ? widest : 3 * (int64_t)v->c.hidden;
}

static int64_t pixel_bytes(const vision_encoder *v) {
    return (int64_t)v->max_images * 3 * v->c.image_size * v->c.image_size;
}

static size_t weight_vector_bytes(const vision_encoder *v) {
    const tower_family *f = v->c.family;
    size_t vector = ops_cut_bytes(OPS_DTYPE_F32, v->c.hidden);
    size_t n_bytes = ops_cut_bytes(OPS_DTYPE_F32, 3 * 256) + ops_cut_bytes(OPS_DTYPE_F32, (int64_t)v->c.n_rows * v->c.hidden) +
                   (f->scale1 ? 6 : 4) * vector * (size_t)v->c.n_layers_run;
    if (f->pre_norm) n_bytes += 2 * vector;
    if (f->class_token)
        n_bytes += ops_cut_bytes(v->running, v->max_images * (int64_t)v->c.hidden) +
                 ops_cut_bytes(OPS_DTYPE_I32, v->max_images) + ops_cut_bytes(OPS_DTYPE_I32, max_patches(v));
    return n_bytes;
}

static size_t activation_bytes(const vision_encoder *v) {
    int64_t rows = max_rows(v);
    size_t run = ops_cut_bytes(OPS_DTYPE_U8, pixel_bytes(v)) + ops_cut_bytes(v->dtype, max_tokens(v) * v->c.hidden);
    size_t n_bytes = (size_t)v->n_runs * run + 3 * ops_cut_bytes(v->running, rows * v->c.hidden) +
                     ops_cut_bytes(v->running, rows * wide_width(v));
    if (v->c.family->is_gated) n_bytes += ops_cut_bytes(v->running, rows * v->c.intermediate);
    return n_bytes;
}

static status open_norm(vision_encoder *v, ops_tensor *w, ops_tensor *b, const model *m, err *e,
                        const char *prefix, const char *name) {
    TRY(device_vector_cut(&v->weights, w, 0.0f, m, e, "%s%s.weight", prefix, name));
    return device_vector_cut(&v->weights, b, 0.0f, m, e, "%s%s.bias", prefix, name);
}

static status open_matrix(vision_encoder *v, ops_matrix **matrix, const model *m, const char *prefix, const char *name, err *e) {
    char full[NAME_BYTES];
    (void)snprintf(full, sizeof full, "%s%s", prefix, name);
    const device_rows all = device_rows_all(m, full);
    return device_matrix_join(v->ctx, matrix, m, &(device_join){&all, 1, false}, e);
}

static status open_layer(vision_encoder *v, tower_layer *l, const model *m, int i, err *e) {
    const tower_family *f = v->c.family;
    char prefix[96], names[3][NAME_BYTES];
    (void)snprintf(prefix, sizeof prefix, "%s%s%d.", v->c.prefix, f->layers, i);
    TRY(open_norm(v, &l->norm1_w, &l->norm1_b, m, e, prefix, f->norm1));
    TRY(open_norm(v, &l->norm2_w, &l->norm2_b, m, e, prefix, f->norm2));
    if (f->scale1) {
        TRY(device_vector_cut(&v->weights, &l->scale1, 0.0f, m, e, "%s%s", prefix, f->scale1));
        TRY(device_vector_cut(&v->weights, &l->scale2, 0.0f, m, e, "%s%s", prefix, f->scale2));
    }
    device_rows parts[3];
    const char *qkv[3] = {f->q, f->k, f->v};
    for (int k = 0; k < 3; k++) {
        (void)snprintf(names[k], sizeof names[k], "%s%s", prefix, qkv[k]);
        parts[k] = device_rows_all(m, names[k]);
    }
    TRY(device_matrix_join(v->ctx, &l->qkv, m, &(device_join){parts, 3, false}, e));
    TRY(open_matrix(v, &l->out, m, prefix, f->out, e));
    TRY(open_matrix(v, &l->fc1, m, prefix, f->fc1, e));
    return open_matrix(v, &l->fc2, m, prefix, f->fc2, e);
}

static status open_levels(vision_encoder *v, const model *m, err *e) {
    float levels[3][256];
    image_levels(levels, &model_get_config(m)->preprocess);
    v->levels = ops_block_cut(&v->weights, OPS_DTYPE_F32, 2, (int64_t[]){3, 256});
    status st = ops_upload(v->ctx, &v->levels, levels);
    return st == STATUS_OK ? st : fail(e, st, "tower: levels: %s", status_text((int)st));
}

/* The table as it is added to a picture's tokens: resampled where the picture has another grid. */
static status open_positions(vision_encoder *v, const model *m, err *e) {
    ops_tensor stored = model_weight(m, "%s%s", v->c.prefix, v->c.family->positions);
    float *table = calloc((size_t)v->c.n_rows * (size_t)v->c.hidden, sizeof *table);
    if (!table) return fail(e, STATUS_NO_MEMORY, "tower: no memory for its positions");
    position_table_make(table, &stored, &v->c);
    v->positions = ops_block_cut(&v->weights, OPS_DTYPE_F32, 2, (int64_t[]){v->c.n_rows, v->c.hidden});
    status st = ops_upload(v->ctx, &v->positions, table);
    free(table);
    return st == STATUS_OK ? st : fail(e, st, "tower: positions: %s", status_text((int)st));
}

/* Where tokens stand when the class token comes first, and that token once for each picture. */
static status open_class_tokens(vision_encoder *v, const model *m, err *e) {
    const int n = v->max_images, n_patches = v->c.n_patches;
    const int64_t width = v->c.hidden, dims[2] = {n, width};
    v->class_tokens = ops_block_cut(&v->weights, v->running, 2, dims);
    v->class_at = ops_block_cut(&v->weights, OPS_DTYPE_I32, 1, (int64_t[]){n});
    v->patches_at = ops_block_cut(&v->weights, OPS_DTYPE_I32, 1, (int64_t[]){max_patches(v)});
    int32_t *class_at = calloc((size_t)n, sizeof *class_at);
    int32_t *patches_at = calloc((size_t)max_patches(v), sizeof *patches_at);
    void *data = calloc((size_t)(n * width), dtype_bytes(v->running));
    status st = class_at && patches_at && data ? STATUS_OK : STATUS_NO_MEMORY;
    if (st == STATUS_OK) {
        ops_tensor stored = model_weight(m, "%s%s", v->c.prefix, v->c.family->class_token);
        ops_tensor tokens = tensor_make(data, OPS_PLACE_HOST, v->running, 2, dims);
        for (int i = 0; i < n; i++) {
            class_at[i] = i * v->c.n_rows;
            for (int p = 0; p < n_patches; p++) patches_at[i * n_patches + p] = class_at[i] + 1 + p;
            for (int64_t c = 0; c < width; c++) tensor_set_value(&tokens, i * width + c, tensor_value(&stored, c));
        }
        st = ops_upload(v->ctx, &v->class_tokens, data);
        if (st == STATUS_OK) st = ops_upload(v->ctx, &v->class_at, class_at);
        if (st == STATUS_OK) st = ops_upload(v->ctx, &v->patches_at, patches_at);
    }
    free(class_at), free(patches_at), free(data);
    return st == STATUS_OK ? st : fail(e, st, "tower: class tokens: %s", status_text((int)st));
}

static status open_weights(vision_encoder *v, const model *m, err *e) {
    const tower_family *f = v->c.family;
    TRY(ops_block_open(v->ctx, &v->weights, weight_vector_bytes(v), e));
    TRY(open_matrix(v, &v->patch, m, v->c.prefix, f->patch, e));
    TRY(open_levels(v, m, e));
    TRY(open_positions(v, m, e));
    if (f->class_token) TRY(open_class_tokens(v, m, e));
    if (f->pre_norm) TRY(open_norm(v, &v->pre_norm_w, &v->pre_norm_b, m, e, v->c.prefix, f->pre_norm));
    v->layers = calloc((size_t)v->c.n_layers_run + 1, sizeof *v->layers);
    if (!v->layers) return fail(e, STATUS_NO_MEMORY, "tower: no memory for its layers");
    for (int i = 0; i < v->c.n_layers_run; i++) TRY(open_layer(v, &v->layers[i], m, i, e));
    return STATUS_OK;
}

static status open_activations(vision_encoder *v, err *e) {
    TRY(ops_block_open(v->ctx, &v->activations, activation_bytes(v), e));
    ops_block *block = &v->activations;
    const int64_t flat[2] = {max_rows(v), v->c.hidden};
    for (int i = 0; i < v->n_runs; i++) {
        v->runs[i].pixels = ops_block_cut(block, OPS_DTYPE_U8, 1, (int64_t[]){pixel_bytes(v)});
        v->runs[i].features = ops_block_cut(block, v->dtype, 2, (int64_t[]){max_tokens(v), v->c.hidden});
        TRY(ops_mark_open(v->ctx, &v->runs[i].end, e));
    }
    v->x = ops_block_cut(block, v->running, 2, flat);
    v->other = ops_block_cut(block, v->running, 2, flat);
    v->a = ops_block_cut(block, v->running, 2, flat);
    v->wide = ops_block_cut(block, v->running, 1, (int64_t[]){max_rows(v) * wide_width(v)});
    if (v->c.family->is_gated)
        v->gated = ops_block_cut(block, v->running, 2, (int64_t[]){max_rows(v), v->c.intermediate});
    status st = ops_sync(v->ctx); /* weights are there, and pixels may go to the block from now on */
    return st == STATUS_OK ? st : fail(e, st, "tower: activations: %s", status_text((int)st));
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
    v->may_round = model_product(m) != OPS_PRODUCT_F32;
    v->dtype = model_tower_dtype(m);
    v->running = ops_activation_dtype(ctx, model_weight(m, "%s%s.weight", v->c.prefix, v->c.family->patch).dtype);
    v->max_images = max_images;
    v->n_runs = ops_runs_ahead(ctx) ? VISION_ENCODER_RUNS_MAX : 1;
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
        ops_matrix **all[] = {&l->qkv, &l->out, &l->fc1, &l->fc2};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) ops_matrix_close(v->ctx, all[k]);
    }
    for (int i = 0; i < v->n_runs; i++) ops_mark_close(v->ctx, &v->runs[i].end);
    ops_matrix_close(v->ctx, &v->patch);
    ops_block_close(&v->activations);
    ops_block_close(&v->weights);
    free(v->layers);
    free(v);
    *out = NULL;
}

int vision_encoder_n_runs(const vision_encoder *v) { return v->n_runs; }

size_t vision_encoder_feature_bytes(const vision_encoder *v) {
    return (size_t)v->c.n_tokens * (size_t)v->c.hidden * dtype_bytes(v->dtype);
}

size_t vision_encoder_device_bytes(const vision_encoder *v) {
    size_t n_bytes = v->weights.size_bytes + v->activations.size_bytes + ops_matrix_bytes(v->patch);
    for (int i = 0; i < v->c.n_layers_run; i++) {
        const tower_layer *l = &v->layers[i];
        const ops_matrix *all[] = {l->qkv, l->out, l->fc1, l->fc2};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) n_bytes += ops_matrix_bytes(all[k]);
    }
    return n_bytes;
}

/* ---- running ------------------------------------------------------------------------------- */

void vision_encoder_set_tap(vision_encoder *v, vision_tap *tap, void *user) {
    v->tap = tap;
    v->tap_user = user;
}

static void tap_state(const vision_encoder *v, int layer, const ops_tensor *x) {
    if (v->tap) v->tap(v->tap_user, layer, x);
}

/* Picture i of a tensor that holds many: n elements from the i-th n on. */
static ops_tensor one_of(const ops_tensor *all, int i, int64_t n) {
    ops_tensor flat = tensor_first(all, i + 1, n);
    return tensor_rows(&flat, i, 1);
}

static status run_embeddings(vision_encoder *v, const tower_run *run, ops_tensor *x, const unsigned char *const *pixels) {
    const int64_t size = v->c.image_size;
    const int n_images = run->n_images;
    ops_tensor pictures = run->pixels;
    pictures.n_dims = 4;
    pictures.dims[0] = n_images;
    pictures.dims[1] = pictures.dims[2] = size;
    pictures.dims[3] = 3;
    const int64_t n_patches = (int64_t)n_images * v->c.n_patches;
    ops_tensor patches = tensor_first(&v->wide, n_patches, patch_width(v));
    ops_tensor embedded = tensor_first(&v->a, n_patches, v->c.hidden);
    for (int i = 0; i < n_images; i++) {
        ops_tensor picture = one_of(&run->pixels, i, 3 * size * size);
        TRY(ops_upload_ahead(v->ctx, &picture, pixels[i]));
    }
    TRY(ops_patch_rows(v->ctx, &patches, &pictures, &v->levels, v->c.patch_size));
    TRY(ops_linear(v->ctx, &embedded, &patches, v->patch, NULL));
    if (v->c.family->class_token) {
        ops_tensor tokens = tensor_first(&v->class_tokens, n_images, v->c.hidden);
        ops_tensor class_at = tensor_rows(&v->class_at, 0, n_images);
        ops_tensor patches_at = tensor_rows(&v->patches_at, 0, n_patches);
        TRY(ops_scatter_rows(v->ctx, x, &tokens, &class_at));
        TRY(ops_scatter_rows(v->ctx, x, &embedded, &patches_at));
        TRY(ops_add_table(v->ctx, x, x, &v->positions));
    } else {
        TRY(ops_add_table(v->ctx, x, &embedded, &v->positions));
    }
    if (!v->c.family->pre_norm) return STATUS_OK;
    return ops_layer_norm(v->ctx, x, x, &v->pre_norm_w, &v->pre_norm_b, v->c.layer_norm_eps);
}

/* out = x + [scale *] what the matrix makes of rows inside a branch */
static status end_branch(vision_encoder *v, ops_tensor *out, const ops_tensor *inside, const ops_matrix *matrix,
                         const ops_tensor *x, const ops_tensor *scale) {
    if (!v->c.family->scale1) return ops_linear(v->ctx, out, inside, matrix, &(ops_linear_params){.add = x});
    TRY(ops_linear(v->ctx, out, inside, matrix, NULL));
    TRY(ops_scale_columns(v->ctx, out, out, scale));
    return ops_add(v->ctx, out, out, x);
}

static status run_attention(vision_encoder *v, const tower_layer *l, ops_tensor *out, const ops_tensor *n,
                            const ops_tensor *x) {
    const int64_t width = v->c.hidden;
    const ops_attention_params params = {
        .n_heads = v->c.n_heads,
        .n_kv_heads = v->c.n_heads,
        .scale = (float)(1.0 / sqrt((double)(v->c.hidden / v->c.n_heads))),
        .may_round = v->may_round,
    };
    ops_tensor qkv = tensor_first(&v->wide, n->dims[0], 3 * width), q = tensor_columns(&qkv, 0, width);
    ops_tensor k = tensor_columns(&qkv, width, width), values = tensor_columns(&qkv, 2 * width, width);
    TRY(ops_linear(v->ctx, &qkv, n, l->qkv, NULL));
    TRY(ops_attention(v->ctx, &q, &q, &k, &values, v->c.n_rows, &params));
    return end_branch(v, out, &q, l->out, x, &l->scale1);
}

static status run_mlp(vision_encoder *v, const tower_layer *l, ops_tensor *out, const ops_tensor *n, const ops_tensor *x) {
    const bool is_gated = v->c.family->is_gated;
    ops_tensor wide = tensor_first(&v->wide, n->dims[0], fc1_width(v)), inside = wide;
    TRY(ops_linear(v->ctx, &wide, n, l->fc1, &(ops_linear_params){.act = is_gated ? OPS_ACT_NONE : v->c.act}));
    if (is_gated) {
        inside = tensor_first(&v->gated, n->dims[0], v->c.intermediate);
        TRY(ops_gate(v->ctx, &inside, &wide, OPS_ACT_SILU));
    }
    return end_branch(v, out, &inside, l->fc2, x, &l->scale2);
}

static status run_layer(vision_encoder *v, const tower_layer *l, ops_tensor *x) {
    ops_tensor n = tensor_first(&v->a, x->dims[0], v->c.hidden), other = tensor_first(&v->other, x->dims[0], v->c.hidden);
    TRY(ops_layer_norm(v->ctx, &n, x, &l->norm1_w, &l->norm1_b, v->c.layer_norm_eps));
    TRY(run_attention(v, l, &other, &n, x));
    TRY(ops_layer_norm(v->ctx, &n, &other, &l->norm2_w, &l->norm2_b, v->c.layer_norm_eps));
    return run_mlp(v, l, x, &n, &other);
}

static status start(vision_encoder *v, const tower_run *run, const unsigned char *const *pixels, void *const *features) {
    ops_tensor x = tensor_first(&v->x, (int64_t)run->n_images * v->c.n_rows, v->c.hidden);
    ops_tensor out = tensor_first(&run->features, (int64_t)run->n_images * v->c.n_tokens, v->c.hidden);
    TRY(run_embeddings(v, run, &x, pixels));
    tap_state(v, 0, &x);
    for (int i = 0; i < v->c.n_layers_run; i++) {
        TRY(run_layer(v, &v->layers[i], &x));
        tap_state(v, i + 1, &x);
    }
    if (v->c.n_tokens < v->c.n_rows) {
        ops_tensor kept = tensor_first(&v->a, out.dims[0], v->c.hidden);
        ops_tensor patches_at = tensor_rows(&v->patches_at, 0, kept.dims[0]);
        TRY(ops_gather_rows(v->ctx, &kept, &x, &patches_at));
        x = kept;
    }
    TRY(ops_cast(v->ctx, &out, &x));
    for (int i = 0; i < run->n_images; i++) {
        ops_tensor one = one_of(&run->features, i, (int64_t)v->c.n_tokens * v->c.hidden);
        TRY(ops_download_behind(v->ctx, features[i], &one));
    }
    return ops_mark_set(v->ctx, run->end);
}

status vision_encoder_start(vision_encoder *v, const unsigned char *const *pixels, int n_images, void *const *features,
                            err *e) {
    CHECK(v->n_running < v->n_runs, "no more runs are under way than may be");
    if (n_images < 1 || n_images > v->max_images)
        return fail(e, STATUS_BAD_ARGUMENT, "tower: %d images in one run, need 1 to %d", n_images,
                    v->max_images);
    tower_run *run = &v->runs[(v->oldest + v->n_running) % v->n_runs];
    run->n_images = n_images;
    status st = start(v, run, pixels, features);
    if (st != STATUS_OK) {
        IGNORE(ops_sync(v->ctx), "what was begun may still read pixels; the run has failed already");
        return fail(e, st, "tower: %d images: %s", n_images, status_text((int)st));
    }
    v->n_running++;
    return STATUS_OK;
}

status vision_encoder_finish(vision_encoder *v, err *e) {
    CHECK(v->n_running > 0, "a run is under way");
    const tower_run *run = &v->runs[v->oldest];
    v->oldest = (v->oldest + 1) % v->n_runs;
    v->n_running--;
    status st = ops_mark_wait(v->ctx, run->end);
    return st == STATUS_OK ? st : fail(e, st, "tower: %d images: %s", run->n_images, status_text((int)st));
}

status vision_encoder_start_dense(vision_encoder *v, const unsigned char *pixels, int n_images, void *features, err *e) {
    const unsigned char *each_pixels[VISION_ENCODER_IMAGES_MAX];
    void *each_features[VISION_ENCODER_IMAGES_MAX];
    const size_t one_bytes = (size_t)(3 * v->c.image_size) * (size_t)v->c.image_size;
    for (int i = 0; i < n_images && i < v->max_images; i++) {
        each_pixels[i] = pixels + (size_t)i * one_bytes;
        each_features[i] = (unsigned char *)features + (size_t)i * vision_encoder_feature_bytes(v);
    }
    return vision_encoder_start(v, each_pixels, n_images, each_features, e);
}

status vision_encoder_run(vision_encoder *v, const unsigned char *pixels, int n_images, void *features, err *e) {
    CHECK(v->n_running == 0, "what is finished is what was started");
    status st = vision_encoder_start_dense(v, pixels, n_images, features, e);
    return st == STATUS_OK ? vision_encoder_finish(v, e) : st;
}
