#include "lm_node/decoder_layer.h"

#include <stdio.h>

#include "base/check.h"
#include "lm_node/kv_cache.h"

#define NAME_BYTES 128

/* ---- sizes --------------------------------------------------------------------------------- */

int64_t decoder_kv_width(const model_decoder_config *c) {
    return (int64_t)c->n_kv_heads * c->head_size;
}

int64_t decoder_q_width(const model_decoder_config *c) { return (int64_t)c->n_heads * c->head_size; }

int64_t decoder_fc1_width(const model_decoder_config *c) {
    return c->family->is_gated ? 2 * (int64_t)c->intermediate : c->intermediate;
}

int64_t decoder_q_mlp_width(const model_decoder_config *c) {
    return decoder_q_width(c) + (c->family->is_parallel ? decoder_fc1_width(c) : 0);
}

/* ---- opening ------------------------------------------------------------------------------- */

status decoder_norm_open(decoder_norm *norm, const layer_source *from, const char *prefix, const char *name, err *e) {
    const float plus = from->c->family->norm_adds_one ? 1.0f : 0.0f;
    TRY(device_vector_cut(from->weights, &norm->w, plus, from->m, e, "%s%s.weight", prefix, name));
    if (from->c->family->is_rms) return STATUS_OK;
    return device_vector_cut(from->weights, &norm->b, 0.0f, from->m, e, "%s%s.bias", prefix, name);
}

status decoder_matrix_open(adapted_matrix *w, const layer_source *from, const char *prefix, const char *name, err *e) {
    char full[NAME_BYTES];
    (void)snprintf(full, sizeof full, "%s%s", prefix, name);
    const device_rows all = device_rows_all(from->m, full);
    return adapted_matrix_open(w, from->adapters, from->m, &(device_join){&all, 1, false}, e);
}

#define PART_K 0
#define PART_V 1
#define PART_Q 2

/* Where the rows of keys, values and queries are: in matrices of their own, or each its rows of one. names: room for what
 * the parts are called. */
static void find_qkv(const layer_source *from, device_rows parts[3], char names[3][NAME_BYTES], const char *prefix) {
    const decoder_family *f = from->c->family;
    const char *apart[3] = {f->k, f->v, f->q};
    const int64_t q = decoder_q_width(from->c), kv = decoder_kv_width(from->c), head = from->c->head_size;
    const int64_t first[3] = {q, q + kv, 0}, n[3] = {kv, kv, q}, place[3] = {1, 2, 0}; /* in the order q, k, v */
    for (int i = 0; i < 3; i++) {
        bool is_apart = f->qkv_layout == MODEL_QKV_APART;
        (void)snprintf(names[i], NAME_BYTES, "%s%s", prefix, is_apart ? apart[i] : f->qkv);
        if (is_apart) parts[i] = device_rows_all(from->m, names[i]);
        else if (f->qkv_layout == MODEL_QKV_IN_BLOCKS) parts[i] = device_rows_from(names[i], first[i], n[i]);
        else
            parts[i] = (device_rows){.name = names[i], .first = place[i] * head, .n = q, .run = head, .stride = 3 * head};
    }
}

static status open_attention(decoder_layer *l, const layer_source *from, const char *prefix, bool is_last, err *e) {
    const decoder_family *f = from->c->family;
    char names[3][NAME_BYTES], fc1[NAME_BYTES], out[NAME_BYTES], fc2[NAME_BYTES];
    device_rows in[4];
    find_qkv(from, in, names, prefix);
    if (is_last) TRY(adapted_matrix_open(&l->kv, from->adapters, from->m, &(device_join){&in[PART_K], 2, false}, e));
    size_t first = is_last ? PART_Q : PART_K, n_parts = 3;
    (void)snprintf(fc1, sizeof fc1, "%s%s", prefix, f->is_parallel ? f->fc1 : "");
    if (f->is_parallel) in[n_parts++] = device_rows_all(from->m, fc1);
    TRY(adapted_matrix_open(&l->in, from->adapters, from->m, &(device_join){in + first, n_parts - first, false}, e));
    if (!f->is_parallel) return decoder_matrix_open(&l->out, from, prefix, f->out, e);
    (void)snprintf(out, sizeof out, "%s%s", prefix, f->out);
    (void)snprintf(fc2, sizeof fc2, "%s%s", prefix, f->fc2);
    device_rows beside[2] = {device_rows_all(from->m, out), device_rows_all(from->m, fc2)};
    return adapted_matrix_open(&l->out, from->adapters, from->m, &(device_join){beside, 2, true}, e);
}

/* Of a layer that is not parallel. */
static status open_mlp(decoder_layer *l, const layer_source *from, const char *prefix, err *e) {
    const decoder_family *f = from->c->family;
    TRY(decoder_matrix_open(&l->fc2, from, prefix, f->fc2, e));
    if (f->fc1) return decoder_matrix_open(&l->fc1, from, prefix, f->fc1, e);
    char gate[NAME_BYTES], up[NAME_BYTES];
    (void)snprintf(gate, sizeof gate, "%s%s", prefix, f->gate);
    (void)snprintf(up, sizeof up, "%s%s", prefix, f->up);
    device_rows parts[2] = {device_rows_all(from->m, gate), device_rows_all(from->m, up)};
    return adapted_matrix_open(&l->fc1, from->adapters, from->m, &(device_join){parts, 2, false}, e);
}

status decoder_layer_open(decoder_layer *l, const layer_source *from, int layer, err *e) {
    const decoder_family *f = from->c->family;
    char prefix[NAME_BYTES];
    (void)snprintf(prefix, sizeof prefix, "%slayers.%d.", from->c->prefix, layer);
    TRY(decoder_norm_open(&l->norm1, from, prefix, f->norm1, e));
    if (f->norm2) TRY(decoder_norm_open(&l->norm2, from, prefix, f->norm2, e));
    CHECK(!f->is_parallel || !f->is_gated, "no parallel family has a gate");
    TRY(open_attention(l, from, prefix, layer + 1 == from->c->n_layers, e));
    if (!f->is_parallel) TRY(open_mlp(l, from, prefix, e));
    const int64_t dims[4] = {from->kv_blocks, from->c->n_kv_heads, KV_BLOCK_TOKENS, from->c->head_size};
    l->keys = ops_block_cut(from->kv, from->dtype, 4, dims);
    l->values = ops_block_cut(from->kv, from->dtype, 4, dims);
    return STATUS_OK;
}

/* ---- all of its matrices ------------------------------------------------------------------- */

void decoder_layer_close(decoder_layer *l, const adapter_room *adapters) {
    adapted_matrix *all[] = {&l->in, &l->kv, &l->out, &l->fc1, &l->fc2};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) adapted_matrix_close(all[i], adapters);
}

size_t decoder_layer_matrix_bytes(const decoder_layer *l, const adapter_room *adapters) {
    const adapted_matrix *all[] = {&l->in, &l->kv, &l->out, &l->fc1, &l->fc2};
    size_t sum = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) sum += adapted_matrix_bytes(all[i], adapters);
    return sum;
}
