/* A decoder, forward. In a layer, attention(n) = out(softmax(rope(q(n)) rope(k(n))') v(n)) over the sequence's
 * keys, and mlp(n) = fc2(act(fc1(n))) or, gated, fc2(act(gate(n)) * up(n)). Families differ in the order
 * (model/decoder_family.h):
 *
 *     parallel:         n = norm1(x);  x = (attention(n) + mlp(n)) + x
 *     one by one:       x = x + attention(norm1(x));  x = x + mlp(norm2(x))
 *     behind the last:  logits = head(final_norm(x))
 *
 * What is multiplied by the same rows is one matrix: `in` makes keys, values and queries, and of a parallel layer fc1's
 * part, too, side by side in `wide`. Attention leaves its result in the queries' place, so that what `out` of a parallel
 * layer multiplies, [attention | act(fc1)], stands side by side as well; out and fc2 are one matrix then. x is added where
 * a product ends.
 *
 * The last layer needs keys and values of all rows, but everything else only of the rows whose logits
 * are wanted, so those are gathered first: a prompt costs almost one layer less. There, keys and values have a matrix of
 * their own.
 *
 * Rows are of two kinds (ops_linear_params.is_few): tokens being decoded, and of every step the rows whose logits are wanted,
 * from where the others stop to be needed, are few; rows of prompts are many. The kind follows from the row alone.
 *
 * All indices of a step go to the device in one upload (step_indices.h). They, the candidates and the rows of features, where
 * the caller has them in memory of ops_host_open, cross without a stop. What runs on them up to the logits is one function,
 * run_network, which a device with graphs records for steps of decoding (step_graphs.h). The candidates are found outside of
 * it: what is wanted of the rows is read from host memory. */
#include "lm_node/lm_decoder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/log.h"
#include "lm_node/decoder_layer.h"
#include "lm_node/kv_cache.h"
#include "lm_node/projector.h"
#include "lm_node/step_graphs.h"
#include "lm_node/step_indices.h"
#include "model/device_weights.h"

struct lm_decoder {
    ops_ctx *ctx;
    model_decoder_config c;
    lm_decoder_settings s;
    ops_dtype dtype;    /* of activations; logits are f32 */
    ops_dtype kv_dtype; /* of keys and values */
    bool may_round;     /* products are reduced, so attention may be */
    projector **projectors; /* [1 + n_adapters]: the checkpoint's own, and as each adapter has it */
    ops_block weights, activations, kv;
    decoder_layer *layers;
    adapted_matrix head;
    decoder_norm final;
    ops_tensor embed, embed_scale;
    ops_tensor cos, sin; /* [max_context, rotary / 2], and the same again for calls of a long context */
    /* Activations: x, other, n [max_rows, hidden], x of a layer and of the next in turns; wide [max_rows, wide_width];
     * gated [max_rows, intermediate]; out_x, out_other, out_n [max_out, hidden]; logits [max_out, n_vocab_out], candidates
     * [max_out] of them. */
    ops_tensor x, other, n, wide, gated, out_x, out_other, out_n, logits, candidates;
    void *host; /* memory of ops_host_open: of the two host_ arrays and of room */
    size_t host_bytes;
    adapter_room adapters;
    step_room room;
    step_indices at; /* of the last step */
    float *host_logits; /* of one row */
    ops_candidates *host_candidates;
    int n_out; /* of the last step */
    step_graphs *graphs; /* NULL where the device has none */
    lm_decoder_tap *tap;
    void *tap_user;
};

#define NAME_BYTES 128

/* ---- sizes --------------------------------------------------------------------------------- */

/* What the widest of a layer's products makes. */
static int64_t wide_width(const model_decoder_config *c) {
    int64_t in = 2 * decoder_kv_width(c) + decoder_q_mlp_width(c);
    return in > decoder_fc1_width(c) ? in : decoder_fc1_width(c);
}

static int64_t n_turns(const lm_decoder *d) { return (int64_t)d->s.max_context * (d->c.has_long_rope ? 2 : 1); }

ops_dtype lm_decoder_dtype(const ops_ctx *ctx, const model *m) {
    const model_decoder_config *c = &model_get_config(m)->decoder;
    return ops_activation_dtype(ctx, model_weight(m, "%slayers.0.%s.weight", c->prefix, c->family->fc2).dtype);
}

/* What was asked for; else the activations', and where those are f32 but the products are not, the halves that products of
 * their precision deserve, if the device takes them. */
ops_dtype lm_decoder_kv_dtype(const ops_ctx *ctx, const model *m) {
    ops_dtype dtype = lm_decoder_dtype(ctx, m), kept;
    if (model_kv_dtype(m, &kept)) return kept;
    if (model_product(m) == OPS_PRODUCT_BF16) kept = OPS_DTYPE_BF16;
    else if (model_product(m) == OPS_PRODUCT_INT8) kept = OPS_DTYPE_F16;
    else return dtype;
    return dtype == OPS_DTYPE_F32 && ops_takes_cache(ctx, dtype, kept) ? kept : dtype;
}

size_t lm_decoder_block_bytes(const ops_ctx *ctx, const model *m) {
    const model_decoder_config *c = &model_get_config(m)->decoder;
    return 2 * (size_t)c->n_layers * ops_cut_bytes(lm_decoder_kv_dtype(ctx, m), KV_BLOCK_TOKENS * decoder_kv_width(c));
}

/* The caller's, and behind them the spare one of rows of nobody. */
static int64_t n_blocks(const lm_decoder *d) { return d->s.kv_blocks + (ops_has_graphs(d->ctx) ? 1 : 0); }

static size_t kv_bytes(const lm_decoder *d) {
    int64_t elements = n_blocks(d) * KV_BLOCK_TOKENS * decoder_kv_width(&d->c);
    return 2 * (size_t)d->c.n_layers * ops_cut_bytes(d->kv_dtype, elements);
}

static size_t activation_bytes(const lm_decoder *d) {
    const int64_t rows = d->s.max_rows, outs = d->s.max_out, hidden = d->c.hidden;
    return 3 * ops_cut_bytes(d->dtype, rows * hidden) + ops_cut_bytes(d->dtype, rows * wide_width(&d->c)) +
           (d->c.family->is_gated ? ops_cut_bytes(d->dtype, rows * d->c.intermediate) : 0) +
           3 * ops_cut_bytes(d->dtype, outs * hidden) +
           ops_cut_bytes(OPS_DTYPE_F32, outs * d->c.n_vocab_out) +
           ops_cut_bytes(OPS_DTYPE_U8, outs * (int64_t)sizeof(ops_candidates)) +
           ops_cut_bytes(OPS_DTYPE_I32, step_indices_max(&d->s));
}

static size_t weight_block_bytes(const lm_decoder *d, const ops_tensor *embed) {
    const decoder_family *f = d->c.family;
    const int64_t table = n_turns(d) * (d->c.rotary_dims / 2);
    size_t norm = (f->is_rms ? 1 : 2) * ops_cut_bytes(OPS_DTYPE_F32, d->c.hidden);
    return ops_cut_bytes(embed->dtype, tensor_elements(embed)) +
           ((f->norm2 ? 2 : 1) * (size_t)d->c.n_layers + 1) * norm +
           (f->scales_embeddings ? ops_cut_bytes(OPS_DTYPE_F32, d->c.hidden) : 0) +
           2 * ops_cut_bytes(OPS_DTYPE_F32, table);
}

lm_decoder_memory lm_decoder_get_memory(const lm_decoder *d) {
    lm_decoder_memory sum = {
        .weights = d->weights.size_bytes + adapted_matrix_bytes(&d->head, &d->adapters),
        .activations = d->activations.size_bytes + d->adapters.block.size_bytes,
        .kv = d->kv.size_bytes,
    };
    for (int i = 0; i <= d->adapters.n_adapters; i++) {
        sum.weights += projector_weight_bytes(d->projectors[i]);
        sum.activations += projector_activation_bytes(d->projectors[i]);
    }
    for (int i = 0; i < d->c.n_layers; i++) sum.weights += decoder_layer_matrix_bytes(&d->layers[i], &d->adapters);
    return sum;
}

size_t lm_decoder_feature_row_bytes(const lm_decoder *d) { return projector_row_bytes(d->projectors[0]); }
int lm_decoder_n_vocab(const lm_decoder *d) { return d->c.n_vocab_out; }
int lm_decoder_n_offered(const lm_decoder *d) {
    return d->c.n_vocab_out < d->c.n_vocab_in ? d->c.n_vocab_out : d->c.n_vocab_in;
}

/* ---- opening ------------------------------------------------------------------------------- */

/* As transformers computes them, every step in f32: 1 / theta^(2i/R), for long contexts divided by the
 * pair's factor, times the position, cosine, times what long contexts make it larger by. */
static void fill_turns(const lm_decoder *d, float *cosines, float *sines, const float *divide_by) {
    const int half = d->c.rotary_dims / 2;
    for (int i = 0; i < half; i++) {
        float power = powf(d->c.rope_theta, (float)(2 * i) / (float)d->c.rotary_dims);
        float frequency = 1.0f / (divide_by ? divide_by[i] * power : power);
        for (int position = 0; position < d->s.max_context; position++) {
            float angle = (float)position * frequency;
            size_t at = (size_t)position * (size_t)half + (size_t)i;
            cosines[at] = cosf(angle) * d->c.rope_factor;
            sines[at] = sinf(angle) * d->c.rope_factor;
        }
    }
}

static status open_turns(lm_decoder *d, err *e) {
    const int half = d->c.rotary_dims / 2;
    const int64_t dims[2] = {n_turns(d), half};
    d->cos = ops_block_cut(&d->weights, OPS_DTYPE_F32, 2, dims);
    d->sin = ops_block_cut(&d->weights, OPS_DTYPE_F32, 2, dims);
    size_t n_values = (size_t)dims[0] * (size_t)half, n_first = (size_t)d->s.max_context * (size_t)half;
    float *cosines = malloc((n_values + 1) * sizeof *cosines);
    float *sines = malloc((n_values + 1) * sizeof *sines);
    status st = cosines && sines ? STATUS_OK : STATUS_NO_MEMORY;
    if (st == STATUS_OK) {
        fill_turns(d, cosines, sines, d->c.has_long_rope ? d->c.rope_short : NULL);
        if (d->c.has_long_rope) fill_turns(d, cosines + n_first, sines + n_first, d->c.rope_long);
        st = ops_upload(d->ctx, &d->cos, cosines);
    }
    if (st == STATUS_OK) st = ops_upload(d->ctx, &d->sin, sines);
    if (st == STATUS_OK) st = ops_sync(d->ctx);
    free(cosines);
    free(sines);
    return st == STATUS_OK ? st : fail(e, st, "decoder: rotary tables: %s", status_text((int)st));
}

/* The factor as the reference has it in f32: the root of the width in double, rounded. */
static status open_embed_scale(lm_decoder *d, err *e) {
    const int64_t hidden = d->c.hidden;
    d->embed_scale = ops_block_cut(&d->weights, OPS_DTYPE_F32, 1, &hidden);
    float *values = malloc((size_t)hidden * sizeof *values);
    if (!values) return fail(e, STATUS_NO_MEMORY, "decoder: no memory for a row");
    for (int64_t i = 0; i < hidden; i++) values[i] = (float)sqrt((double)hidden);
    status st = ops_upload(d->ctx, &d->embed_scale, values);
    if (st == STATUS_OK) st = ops_sync(d->ctx);
    free(values);
    return st == STATUS_OK ? st : fail(e, st, "decoder: scale of embeddings: %s", status_text((int)st));
}

static status open_projectors(lm_decoder *d, const model *m, err *e) {
    int n = 1 + d->adapters.n_adapters;
    d->projectors = calloc((size_t)n, sizeof(projector *));
    if (!d->projectors) return fail(e, STATUS_NO_MEMORY, "decoder: no memory for projectors");
    for (int i = 0; i < n; i++) TRY(projector_open(&d->projectors[i], d->ctx, m, i, d->dtype, d->s.max_rows, e));
    return STATUS_OK;
}

/* The most values that go into one matrix, or come out of it. */
static int64_t widest_call(const lm_decoder *d) {
    int64_t row = wide_width(&d->c) > d->c.hidden ? wide_width(&d->c) : d->c.hidden;
    int64_t rows = d->s.max_rows * row, outs = d->s.max_out * (int64_t)d->c.n_vocab_out;
    return rows > outs ? rows : outs;
}

static status open_weights(lm_decoder *d, const model *m, err *e) {
    adapter_room_init(&d->adapters, d->ctx, m, d->dtype, widest_call(d));
    const layer_source from = {m, &d->c, &d->weights, &d->kv, n_blocks(d), d->kv_dtype, &d->adapters};
    const char *prefix = d->c.prefix;
    char embed_name[NAME_BYTES];
    (void)snprintf(embed_name, sizeof embed_name, "%sembed_tokens.weight", prefix);
    ops_tensor embed = model_weight(m, "%s", embed_name);
    TRY(ops_block_open(d->ctx, &d->weights, weight_block_bytes(d, &embed), e));
    TRY(ops_block_open(d->ctx, &d->kv, kv_bytes(d), e));
    TRY(device_table_cut(&d->weights, &d->embed, m, e, embed_name));
    if (d->c.family->scales_embeddings) TRY(open_embed_scale(d, e));
    TRY(decoder_norm_open(&d->final, &from, prefix, d->c.family->final_norm, e));
    TRY(open_turns(d, e));
    TRY(open_projectors(d, m, e));
    TRY(decoder_matrix_open(&d->head, &from, d->c.is_tied ? prefix : "", d->c.is_tied ? "embed_tokens" : d->c.head, e));
    d->layers = calloc((size_t)d->c.n_layers, sizeof *d->layers);
    if (!d->layers) return fail(e, STATUS_NO_MEMORY, "decoder: no memory for its layers");
    for (int i = 0; i < d->c.n_layers; i++) TRY(decoder_layer_open(&d->layers[i], &from, i, e));
    return STATUS_OK;
}

static status open_activations(lm_decoder *d, err *e) {
    TRY(adapter_room_ready(&d->adapters, d->s.max_rows, e));
    TRY(ops_block_open(d->ctx, &d->activations, activation_bytes(d), e));
    ops_block *block = &d->activations;
    const int64_t rows = d->s.max_rows, outs = d->s.max_out, hidden = d->c.hidden;
    const int64_t vocab = d->c.n_vocab_out;
    ops_tensor *rows_by_hidden[] = {&d->x, &d->other, &d->n}, *outs_by_hidden[] = {&d->out_x, &d->out_other, &d->out_n};
    for (size_t i = 0; i < sizeof rows_by_hidden / sizeof rows_by_hidden[0]; i++)
        *rows_by_hidden[i] = ops_block_cut(block, d->dtype, 2, (int64_t[]){rows, hidden});
    d->wide = ops_block_cut(block, d->dtype, 2, (int64_t[]){rows, wide_width(&d->c)});
    if (d->c.family->is_gated)
        d->gated = ops_block_cut(block, d->dtype, 2, (int64_t[]){rows, d->c.intermediate});
    for (size_t i = 0; i < sizeof outs_by_hidden / sizeof outs_by_hidden[0]; i++)
        *outs_by_hidden[i] = ops_block_cut(block, d->dtype, 2, (int64_t[]){outs, hidden});
    d->logits = ops_block_cut(block, OPS_DTYPE_F32, 2, (int64_t[]){outs, vocab});
    d->candidates = ops_block_cut(block, OPS_DTYPE_U8, 2, (int64_t[]){outs, sizeof(ops_candidates)});
    d->room.device = ops_block_cut(block, OPS_DTYPE_I32, 1, (int64_t[]){step_indices_max(&d->s)});
    return STATUS_OK;
}

static status open_host(lm_decoder *d, err *e) {
    size_t candidates = ops_cut_bytes(OPS_DTYPE_U8, d->s.max_out * (int64_t)sizeof(ops_candidates));
    size_t logits = ops_cut_bytes(OPS_DTYPE_F32, d->c.n_vocab_out);
    d->host_bytes = candidates + logits + ops_cut_bytes(OPS_DTYPE_I32, step_indices_max(&d->s));
    TRY(ops_host_open(d->ctx, &d->host, d->host_bytes, e));
    unsigned char *memory = d->host;
    d->host_candidates = (ops_candidates *)(void *)memory;
    d->host_logits = (float *)(void *)(memory + candidates);
    d->room.host = (int32_t *)(void *)(memory + candidates + logits);
    return STATUS_OK;
}

/* As large as the steps that have graphs can be: all of their rows are wanted. */
static status open_graphs(lm_decoder *d, err *e) {
    int rows = d->s.max_out < d->s.max_seqs ? d->s.max_out : d->s.max_seqs; /* and max_out is not above max_rows */
    const step_graphs_settings settings = {
        .max_rows = rows, .max_table_blocks = kv_blocks_for(d->s.max_context), .spare_block = d->s.kv_blocks};
    return step_graphs_open(&d->graphs, d->ctx, &settings, e);
}

static status check_settings(const lm_decoder *d, err *e) {
    const lm_decoder_settings *s = &d->s;
    if (s->max_rows < 1 || s->max_rows > (1 << 20) || s->max_seqs < 1 || s->max_seqs > (1 << 16) ||
        s->max_out < 1 || s->max_out > s->max_rows)
        return fail(e, STATUS_BAD_ARGUMENT,
                    "decoder: %d rows, %d sequences, %d rows of logits a step are out of range",
                    s->max_rows, s->max_seqs, s->max_out);
    if (s->max_context < 1 || s->max_context > d->c.max_positions)
        return fail(e, STATUS_BAD_ARGUMENT, "decoder: a context of %d, this model has 1 to %d",
                    s->max_context, d->c.max_positions);
    if (s->kv_blocks < 1 || s->kv_blocks > INT32_MAX / KV_BLOCK_TOKENS)
        return fail(e, STATUS_BAD_ARGUMENT, "decoder: %d blocks of keys and values, need 1 to %d",
                    s->kv_blocks, INT32_MAX / KV_BLOCK_TOKENS);
    if (!ops_takes_cache(d->ctx, d->dtype, d->kv_dtype))
        return fail(e, STATUS_BAD_ARGUMENT, "decoder: keys and values in %s, device %s has %s or e4m3 (--kv-dtype fp8) here",
                    dtype_name(d->kv_dtype), ops_device_text(d->ctx), dtype_name(d->dtype));
    return STATUS_OK;
}

status lm_decoder_open(lm_decoder **out, ops_ctx *ctx, const model *m,
                       const lm_decoder_settings *settings, err *e) {
    *out = NULL;
    lm_decoder *d = calloc(1, sizeof *d);
    if (!d) return fail(e, STATUS_NO_MEMORY, "decoder: no memory");
    d->ctx = d->adapters.ctx = ctx;
    d->c = model_get_config(m)->decoder;
    d->may_round = model_product(m) != OPS_PRODUCT_F32;
    d->s = *settings;
    d->room = (step_room){.ctx = ctx, .c = &d->c, .s = &d->s, .n_adapters = model_n_served(m)};
    d->dtype = lm_decoder_dtype(ctx, m);
    d->kv_dtype = lm_decoder_kv_dtype(ctx, m);
    status st = check_settings(d, e);
    if (st == STATUS_OK) st = open_weights(d, m, e);
    if (st == STATUS_OK) st = open_activations(d, e);
    if (st == STATUS_OK) st = open_host(d, e);
    if (st == STATUS_OK) st = open_graphs(d, e);
    if (st != STATUS_OK) {
        lm_decoder_close(&d);
        return st;
    }
    lm_decoder_memory memory = lm_decoder_get_memory(d);
    log_info("decoder_ready",
             "layers=%d activations=%s keys=%s max_rows=%d context=%d weight_bytes=%zu activation_bytes=%zu kv_bytes=%zu "
             "kv_blocks=%d",
             d->c.n_layers, dtype_name(d->dtype), dtype_name(d->kv_dtype), d->s.max_rows, d->s.max_context, memory.weights, memory.activations,
             memory.kv, d->s.kv_blocks);
    *out = d;
    return STATUS_OK;
}

void lm_decoder_close(lm_decoder **out) {
    lm_decoder *d = *out;
    if (!d) return;
    step_graphs_close(&d->graphs);
    for (int i = 0; d->layers && i < d->c.n_layers; i++) decoder_layer_close(&d->layers[i], &d->adapters);
    adapted_matrix_close(&d->head, &d->adapters);
    for (int i = 0; d->projectors && i <= d->adapters.n_adapters; i++) projector_close(&d->projectors[i]);
    adapter_room_deinit(&d->adapters);
    free(d->projectors);
    ops_block_close(&d->activations);
    ops_block_close(&d->kv);
    ops_block_close(&d->weights);
    free(d->layers);
    ops_host_close(d->ctx, &d->host, d->host_bytes);
    free(d);
    *out = NULL;
}

/* ---- one step ------------------------------------------------------------------------------ */

void lm_decoder_set_tap(lm_decoder *d, lm_decoder_tap *tap, void *user) {
    d->tap = tap;
    d->tap_user = user;
}

static void tap_state(const lm_decoder *d, int layer, const ops_tensor *x) {
    if (d->tap) d->tap(d->tap_user, layer, x);
}

static status run_norm(lm_decoder *d, ops_tensor *out, const ops_tensor *x, const decoder_norm *norm) {
    if (d->c.family->is_rms) return ops_rms_norm(d->ctx, out, x, &norm->w, d->c.norm_eps);
    return ops_layer_norm(d->ctx, out, x, &norm->w, &norm->b, d->c.norm_eps);
}

/* Image rows first .. first + n - 1 to the projector: what stands beside each other crosses at once. */
static status upload_features(projector *p, const lm_batch *b, int first, int n) {
    const size_t row_bytes = projector_row_bytes(p);
    for (int i = 0, end; i < n; i = end) {
        const unsigned char *from = b->feature_rows[first + i];
        for (end = i + 1; end < n && b->feature_rows[first + end] == from + (size_t)(end - i) * row_bytes;) end++;
        TRY(projector_upload(p, i, from, end - i));
    }
    return STATUS_OK;
}

/* Runs of image rows with one adapter, each through its projector. */
static status run_images(lm_decoder *d, ops_tensor *x, const lm_batch *b) {
    for (int first = 0, n; first < b->n_image_rows; first += n) {
        int served = batch_adapter(b, b->image_rows[first]);
        for (n = 1; first + n < b->n_image_rows && batch_adapter(b, b->image_rows[first + n]) == served;) n++;
        ops_tensor projected, to = tensor_rows(&d->at.image_rows, first, n);
        TRY(upload_features(d->projectors[served], b, first, n));
        TRY(projector_run(d->projectors[served], &projected, n));
        TRY(ops_scatter_rows(d->ctx, x, &projected, &to));
    }
    return STATUS_OK;
}

static status run_embeddings(lm_decoder *d, ops_tensor *x, const lm_batch *b) {
    TRY(ops_gather_rows(d->ctx, x, &d->embed, &d->at.ids));
    TRY(run_images(d, x, b));
    if (!d->c.family->scales_embeddings) return STATUS_OK;
    return ops_scale_columns(d->ctx, x, x, &d->embed_scale);
}

static status run_linear(lm_decoder *d, ops_tensor *out, const ops_tensor *x, const adapted_matrix *w,
                         const ops_linear_params *params, const row_places *at) {
    return adapted_linear(&d->adapters, out, x, w, params, &at->kinds);
}

static void swap(ops_tensor *a, ops_tensor *b) {
    ops_tensor kept = *a;
    *a = *b;
    *b = kept;
}

/* What `in` ends with: of a parallel layer, the activation of the MLP's part. */
static ops_linear_params in_params(const lm_decoder *d, int64_t mlp_from) {
    if (!d->c.family->is_parallel) return (ops_linear_params){.act = OPS_ACT_NONE};
    return (ops_linear_params){.act = d->c.act, .act_from = mlp_from};
}

/* out = x + MLP of n. */
static status run_mlp(lm_decoder *d, const decoder_layer *l, ops_tensor *out, const ops_tensor *n, const ops_tensor *x,
                      const row_places *at) {
    const bool is_gated = d->c.family->is_gated;
    ops_tensor wide = tensor_first(&d->wide, n->dims[0], decoder_fc1_width(&d->c)), inner = wide;
    TRY(run_linear(d, &wide, n, &l->fc1, &(ops_linear_params){.act = is_gated ? OPS_ACT_NONE : d->c.act}, at));
    if (is_gated) {
        inner = tensor_rows(&d->gated, 0, n->dims[0]);
        TRY(ops_gate(d->ctx, &inner, &wide, d->c.act));
    }
    return run_linear(d, out, &inner, &l->fc2, &(ops_linear_params){.add = x}, at);
}

/* q = attention of q, each kind of rows apart. */
static status attend(lm_decoder *d, const decoder_layer *l, ops_tensor *q, const row_places *at) {
    ops_attention_params params = {
        .n_heads = d->c.n_heads,
        .n_kv_heads = d->c.n_kv_heads,
        .scale = (float)(1.0 / sqrt((double)d->c.head_size)),
        .window = d->c.window,
        .may_round = d->may_round,
    };
    const int64_t rows = q->dims[0], n_few = at->kinds.n_few;
    for (int64_t first = 0, n = n_few > 0 ? n_few : rows; first < rows; first += n, n = rows - first) {
        params.is_few = first < n_few;
        ops_tensor part = tensor_rows(q, first, n), seqs = tensor_rows(&at->seqs, first, n);
        ops_tensor positions = tensor_rows(&at->positions, first, n);
        TRY(ops_attention_paged(d->ctx, &part, &part, &l->keys, &l->values, &at->tables, &seqs, &positions, &params));
    }
    return STATUS_OK;
}

/* Attention and MLP of the rows of x, whose queries (and the MLP's part beside them) are in q_mlp and whose keys are all
 * written. n and other are used up; the result is in x. */
static status run_branches(lm_decoder *d, decoder_layer *l, ops_tensor *x, ops_tensor *other, ops_tensor *n,
                           const ops_tensor *q_mlp, const row_places *at) {
    ops_tensor q = tensor_columns(q_mlp, 0, decoder_q_width(&d->c));
    TRY(attend(d, l, &q, at));
    TRY(run_linear(d, other, d->c.family->is_parallel ? q_mlp : &q, &l->out, &(ops_linear_params){.add = x}, at));
    if (d->c.family->is_parallel) {
        swap(x, other);
        return STATUS_OK;
    }
    TRY(run_norm(d, n, other, &l->norm2));
    return run_mlp(d, l, x, n, other, at);
}

/* Keys and values, the first columns of rows, to their slots; q NULL: no queries are turned with them. */
static status append_rows(lm_decoder *d, decoder_layer *l, const ops_tensor *rows, ops_tensor *q, const ops_tensor *turns,
                          const ops_tensor *slots) {
    const int64_t kv = decoder_kv_width(&d->c);
    ops_tensor k = tensor_columns(rows, 0, kv), v = tensor_columns(rows, kv, kv);
    const ops_kv_places places = {&d->cos, &d->sin, turns, slots};
    return ops_kv_append(d->ctx, &l->keys, &l->values, &k, &v, q, &places, d->c.n_heads, d->c.n_kv_heads);
}

/* Of all rows of a step, and those of some a second time. */
static status append_keys(lm_decoder *d, decoder_layer *l, const ops_tensor *rows, ops_tensor *q) {
    const step_indices *at = &d->at;
    TRY(append_rows(d, l, rows, q, &at->all.turns, &at->slots));
    for (int64_t i = 0, used = 0; i < at->n_twice; used += at->twice[i].n_rows, i++) {
        const int64_t first = at->twice[i].first_row, n = at->twice[i].n_rows;
        ops_tensor again = tensor_rows(rows, first, n), turns = tensor_rows(&at->all.turns, first, n);
        ops_tensor slots = tensor_rows(&at->twice_slots, used, n);
        TRY(append_rows(d, l, &again, NULL, &turns, &slots));
    }
    return STATUS_OK;
}

static status run_layer(lm_decoder *d, decoder_layer *l, ops_tensor *x, ops_tensor *other) {
    const int64_t rows = x->dims[0], before = 2 * decoder_kv_width(&d->c), width = before + decoder_q_mlp_width(&d->c);
    ops_tensor n = tensor_rows(&d->n, 0, rows), wide = tensor_first(&d->wide, rows, width);
    const ops_linear_params params = in_params(d, before + decoder_q_width(&d->c));
    TRY(run_norm(d, &n, x, &l->norm1));
    TRY(run_linear(d, &wide, &n, &l->in, &params, &d->at.all));
    ops_tensor q = tensor_columns(&wide, before, decoder_q_width(&d->c)), q_mlp = tensor_columns(&wide, before, width - before);
    TRY(append_keys(d, l, &wide, &q));
    return run_branches(d, l, x, other, &n, &q_mlp, &d->at.all);
}

/* The last layer: keys and values of every row of x, the rest of the wanted rows. */
static status run_last_layer(lm_decoder *d, decoder_layer *l, ops_tensor *out_x, const ops_tensor *x) {
    const row_places *wanted = &d->at.wanted;
    const int64_t rows = x->dims[0], n_out = out_x->dims[0];
    ops_tensor n = tensor_rows(&d->n, 0, rows), both = tensor_first(&d->wide, rows, 2 * decoder_kv_width(&d->c));
    TRY(run_norm(d, &n, x, &l->norm1));
    TRY(run_linear(d, &both, &n, &l->kv, &(ops_linear_params){.act = OPS_ACT_NONE}, &d->at.all));
    TRY(append_keys(d, l, &both, NULL));
    if (n_out == 0) return STATUS_OK;
    ops_tensor other = tensor_rows(&d->out_other, 0, n_out), out_n = tensor_rows(&d->out_n, 0, n_out);
    ops_tensor q_mlp = tensor_first(&d->wide, n_out, decoder_q_mlp_width(&d->c));
    ops_tensor q = tensor_columns(&q_mlp, 0, decoder_q_width(&d->c));
    const ops_linear_params params = in_params(d, decoder_q_width(&d->c));
    TRY(ops_gather_rows(d->ctx, out_x, x, &d->at.out_rows));
    TRY(ops_gather_rows(d->ctx, &out_n, &n, &d->at.out_rows));
    TRY(run_linear(d, &q_mlp, &out_n, &l->in, &params, wanted));
    TRY(ops_rope(d->ctx, &q, &d->cos, &d->sin, &wanted->turns, d->c.n_heads));
    return run_branches(d, l, out_x, &other, &out_n, &q_mlp, wanted);
}

/* out_x receives what the last layer makes of the wanted rows. */
static status run_layers(lm_decoder *d, ops_tensor *out_x, ops_tensor *x) {
    ops_tensor other = tensor_rows(&d->other, 0, x->dims[0]);
    const int last = d->c.n_layers - 1;
    for (int i = 0; i < last; i++) {
        TRY(run_layer(d, &d->layers[i], x, &other));
        tap_state(d, i + 1, x);
    }
    TRY(run_last_layer(d, &d->layers[last], out_x, x));
    if (out_x->dims[0] > 0) tap_state(d, d->c.n_layers, out_x);
    return STATUS_OK;
}

/* What the network runs on: a step whose indices are on the device. */
typedef struct {
    lm_decoder *d;
    const lm_batch *b;
} network_call;

/* From tokens to the logits of the wanted rows: operators only, where no row is an image's. */
static status run_network(void *user) {
    const network_call *call = user;
    lm_decoder *d = call->d;
    const lm_batch *b = call->b;
    ops_tensor x = tensor_rows(&d->x, 0, b->n_rows), out_x = tensor_rows(&d->out_x, 0, b->n_out);
    ops_tensor logits = tensor_rows(&d->logits, 0, b->n_out);
    TRY(run_embeddings(d, &x, b));
    tap_state(d, 0, &x);
    TRY(run_layers(d, &out_x, &x));
    if (b->n_out == 0) return STATUS_OK;
    TRY(run_norm(d, &out_x, &out_x, &d->final));
    return run_linear(d, &logits, &out_x, &d->head, &(ops_linear_params){.act = OPS_ACT_NONE}, &d->at.wanted);
}

/* What a choice among the logits needs is found on the device: a row of them is large, and most often nobody looks at it. */
static status take_candidates(lm_decoder *d, const lm_batch *b) {
    ops_tensor logits = tensor_rows(&d->logits, 0, b->n_out), candidates = tensor_rows(&d->candidates, 0, b->n_out);
    if (b->n_out == 0) return STATUS_OK;
    TRY(ops_candidates_rows(d->ctx, &candidates, &logits, lm_decoder_n_offered(d), b->wanted));
    return ops_download(d->ctx, d->host_candidates, &candidates);
}

/* Who listens to the layers hears each of them, of the step's own rows. */
static status run_step(lm_decoder *d, lm_step *out, const lm_batch *b) {
    lm_batch padded;
    bool has_graph = !d->tap && step_graphs_pad(d->graphs, &padded, b);
    network_call call = {.d = d, .b = has_graph ? &padded : b};
    TRY(step_indices_upload(&d->at, &d->room, call.b));
    if (has_graph) TRY(step_graphs_run(d->graphs, &out->is_replayed, &padded, run_network, &call));
    else TRY(run_network(&call));
    TRY(take_candidates(d, b));
    return ops_sync(d->ctx);
}

status lm_decoder_step(lm_decoder *d, lm_step *out, const lm_batch *batch, err *e) {
    step_check(&d->room, batch);
    *out = (lm_step){.candidates = d->host_candidates};
    d->n_out = batch->n_out;
    status st = run_step(d, out, batch);
    if (st == STATUS_OK) return st;
    IGNORE(ops_sync(d->ctx), "what was begun may still read the caller's memory; the step has failed already");
    return fail(e, st, "decoder: %d rows: %s", batch->n_rows, status_text((int)st));
}

status lm_decoder_logits(lm_decoder *d, const float **logits, int row, err *e) {
    CHECK(row >= 0 && row < d->n_out, "the last step had the row");
    ops_tensor one = tensor_rows(&d->logits, row, 1);
    status st = ops_download(d->ctx, d->host_logits, &one);
    if (st == STATUS_OK) st = ops_sync(d->ctx);
    *logits = d->host_logits;
    return st == STATUS_OK ? st : fail(e, st, "decoder: a row of logits: %s", status_text((int)st));
}

status lm_decoder_copy_block(lm_decoder *d, int32_t to, int32_t from, err *e) {
    CHECK(to >= 0 && to < d->s.kv_blocks && from >= 0 && from < d->s.kv_blocks && to != from,
          "two blocks that exist");
    status st = STATUS_OK;
    for (int i = 0; i < d->c.n_layers && st == STATUS_OK; i++) {
        st = ops_kv_copy_block(d->ctx, &d->layers[i].keys, to, from);
        if (st == STATUS_OK) st = ops_kv_copy_block(d->ctx, &d->layers[i].values, to, from);
    }
    return st == STATUS_OK ? st
                           : fail(e, st, "decoder: copying block %d: %s", (int)from, status_text((int)st));
}
