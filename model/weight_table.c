/* The table is written as the architecture is: one line per tensor with its shape, layers in loops. Source
 * of names and shapes: the published Mipha checkpoints. */
#include "model/weight_table.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

#define TOWER_ROWS     64 /* rows outside the layers, with room */
#define ROWS_PER_LAYER 16

typedef struct {
    weight_table *t;
    size_t max_rows;
    weight_use use;
} table_writer;

/* One row; a dim of 0 ends the shape. */
static void add(table_writer *w, int64_t d0, int64_t d1, int64_t d2, int64_t d3, const char *format,
                ...) __attribute__((format(printf, 6, 7)));
static void add(table_writer *w, int64_t d0, int64_t d1, int64_t d2, int64_t d3, const char *format,
                ...) {
    CHECK(w->t->n_rows < w->max_rows, "the table was sized for all rows");
    weight_row *row = &w->t->rows[w->t->n_rows++];
    *row = (weight_row){.use = w->use, .dims = {d0, d1, d2, d3}};
    while (row->n_dims < 4 && row->dims[row->n_dims] > 0) row->n_dims++;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(row->name, sizeof row->name, format, args);
    va_end(args);
    CHECK(n > 0 && (size_t)n < sizeof row->name, "a tensor name fits its row");
}

/* The row just added is a matrix. */
static void mark_matrix(table_writer *w) { w->t->rows[w->t->n_rows - 1].is_matrix = true; }

/* weight [out, in] and bias [out] of a linear layer */
static void add_linear(table_writer *w, const char *prefix, int layer, const char *name, int64_t out,
                       int64_t in) {
    add(w, out, in, 0, 0, "%s%d.%s.weight", prefix, layer, name);
    mark_matrix(w);
    add(w, out, 0, 0, 0, "%s%d.%s.bias", prefix, layer, name);
}

/* weight [width] and bias [width] of a layer norm */
static void add_norm(table_writer *w, const char *prefix, int layer, const char *name,
                     int64_t width) {
    add(w, width, 0, 0, 0, "%s%d.%s.weight", prefix, layer, name);
    add(w, width, 0, 0, 0, "%s%d.%s.bias", prefix, layer, name);
}

static void add_tower_layer(table_writer *w, const model_tower_config *t, int layer) {
    const tower_family *f = t->family;
    char prefix[96];
    (void)snprintf(prefix, sizeof prefix, "%s%s", t->prefix, f->layers);
    int64_t d = t->hidden, ff = t->intermediate;
    add_norm(w, prefix, layer, f->norm1, d);
    add_norm(w, prefix, layer, f->norm2, d);
    add_linear(w, prefix, layer, f->q, d, d);
    add_linear(w, prefix, layer, f->k, d, d);
    add_linear(w, prefix, layer, f->v, d, d);
    add_linear(w, prefix, layer, f->out, d, d);
    add_linear(w, prefix, layer, f->fc1, f->is_gated ? 2 * ff : ff, d);
    add_linear(w, prefix, layer, f->fc2, d, ff);
    if (!f->scale1) return;
    add(w, d, 0, 0, 0, "%s%d.%s", prefix, layer, f->scale1);
    add(w, d, 0, 0, 0, "%s%d.%s", prefix, layer, f->scale2);
}

/* What a family has behind its last layer. */
static void add_tower_rest(table_writer *w, const model_tower_config *t) {
    int64_t d = t->hidden, ff = t->intermediate;
    const char *p = t->prefix;
    if (t->family->interpolates) {
        add(w, 1, d, 0, 0, "%sembeddings.mask_token", p);
        add(w, d, 0, 0, 0, "%slayernorm.weight", p);
        add(w, d, 0, 0, 0, "%slayernorm.bias", p);
        return;
    }
    add(w, d, 0, 0, 0, "%spost_layernorm.weight", p);
    add(w, d, 0, 0, 0, "%spost_layernorm.bias", p);
    if (t->kind != MODEL_TOWER_SIGLIP) return;
    add(w, 1, 1, d, 0, "%shead.probe", p);
    add(w, 3 * d, d, 0, 0, "%shead.attention.in_proj_weight", p);
    add(w, 3 * d, 0, 0, 0, "%shead.attention.in_proj_bias", p);
    add(w, d, d, 0, 0, "%shead.attention.out_proj.weight", p);
    add(w, d, 0, 0, 0, "%shead.attention.out_proj.bias", p);
    add(w, d, 0, 0, 0, "%shead.layernorm.weight", p);
    add(w, d, 0, 0, 0, "%shead.layernorm.bias", p);
    add(w, ff, d, 0, 0, "%shead.mlp.fc1.weight", p);
    add(w, ff, 0, 0, 0, "%shead.mlp.fc1.bias", p);
    add(w, d, ff, 0, 0, "%shead.mlp.fc2.weight", p);
    add(w, d, 0, 0, 0, "%shead.mlp.fc2.bias", p);
}

static void add_tower(table_writer *w, const model_tower_config *t) {
    const tower_family *f = t->family;
    int64_t d = t->hidden, size = t->patch_size;
    int64_t n_positions = (int64_t)t->table_grid * t->table_grid + (f->class_token != NULL);
    w->use = WEIGHT_OF_TOWER;
    add(w, d, 3, size, size, "%s%s.weight", t->prefix, f->patch);
    if (f->has_patch_bias) add(w, d, 0, 0, 0, "%s%s.bias", t->prefix, f->patch);
    if (f->is_batched) { /* a leading 1 for the picture */
        add(w, 1, 1, d, 0, "%s%s", t->prefix, f->class_token);
        add(w, 1, n_positions, d, 0, "%s%s", t->prefix, f->positions);
    } else {
        if (f->class_token) add(w, d, 0, 0, 0, "%s%s", t->prefix, f->class_token);
        add(w, n_positions, d, 0, 0, "%s%s", t->prefix, f->positions);
    }
    if (f->pre_norm) {
        add(w, d, 0, 0, 0, "%s%s.weight", t->prefix, f->pre_norm);
        add(w, d, 0, 0, 0, "%s%s.bias", t->prefix, f->pre_norm);
    }
    for (int i = 0; i < t->n_layers; i++) {
        w->use = i < t->n_layers_run ? WEIGHT_OF_TOWER : WEIGHT_NOT_COMPUTED;
        add_tower_layer(w, t, i);
    }
    w->use = WEIGHT_NOT_COMPUTED;
    add_tower_rest(w, t);
}

static void add_projector(table_writer *w, const model_config *c) {
    int64_t in = c->tower.hidden, out = c->decoder.hidden;
    w->use = WEIGHT_OF_DECODER;
    if (c->projector.kind == MODEL_PROJECTOR_LINEAR) {
        add(w, out, in, 0, 0, "model.mm_projector.weight");
        mark_matrix(w);
        add(w, out, 0, 0, 0, "model.mm_projector.bias");
    } else if (c->projector.kind == MODEL_PROJECTOR_MLP) {
        const model_format *f = c->format;
        for (int i = 0; i < c->projector.n_linear; i++) {
            int number = f->projector_first + i * f->projector_step;
            add(w, out, i == 0 ? in : out, 0, 0, "%s%d.weight", f->projector, number);
            mark_matrix(w);
            add(w, out, 0, 0, 0, "%s%d.bias", f->projector, number);
        }
    }
}

/* weight, and bias where the family has them */
static void add_matrix(table_writer *w, const model_decoder_config *c, const char *prefix, const char *name,
                       int64_t out, int64_t in) {
    add(w, out, in, 0, 0, "%s%s.weight", prefix, name);
    mark_matrix(w);
    if (c->family->has_bias) add(w, out, 0, 0, 0, "%s%s.bias", prefix, name);
}

static void add_decoder_norm(table_writer *w, const model_decoder_config *c, const char *prefix, const char *name) {
    add(w, c->hidden, 0, 0, 0, "%s%s.weight", prefix, name);
    if (!c->family->is_rms) add(w, c->hidden, 0, 0, 0, "%s%s.bias", prefix, name);
}

static void add_decoder_layer(table_writer *w, const model_decoder_config *c, int layer) {
    const decoder_family *f = c->family;
    int64_t d = c->hidden, ff = c->intermediate;
    int64_t q = (int64_t)c->n_heads * c->head_size, kv = (int64_t)c->n_kv_heads * c->head_size;
    char p[WEIGHT_NAME_BYTES];
    (void)snprintf(p, sizeof p, "%slayers.%d.", c->prefix, layer);
    add_decoder_norm(w, c, p, f->norm1);
    if (f->norm2) add_decoder_norm(w, c, p, f->norm2);
    if (f->qkv) {
        add_matrix(w, c, p, f->qkv, q + 2 * kv, d);
    } else {
        add_matrix(w, c, p, f->q, q, d);
        add_matrix(w, c, p, f->k, kv, d);
        add_matrix(w, c, p, f->v, kv, d);
    }
    add_matrix(w, c, p, f->out, d, q);
    if (f->fc1) add_matrix(w, c, p, f->fc1, f->is_gated ? 2 * ff : ff, d);
    if (f->gate) add_matrix(w, c, p, f->gate, ff, d);
    if (f->up) add_matrix(w, c, p, f->up, ff, d);
    add_matrix(w, c, p, f->fc2, d, ff);
}

static void add_decoder(table_writer *w, const model_decoder_config *c) {
    w->use = WEIGHT_OF_DECODER;
    add(w, c->n_vocab_in, c->hidden, 0, 0, "%sembed_tokens.weight", c->prefix);
    for (int i = 0; i < c->n_layers; i++) add_decoder_layer(w, c, i);
    add_decoder_norm(w, c, c->prefix, c->family->final_norm);
    if (c->is_tied) w->use = WEIGHT_NOT_COMPUTED;
    add_matrix(w, c, "", c->head, c->n_vocab_out, c->hidden);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const weight_row *)a)->name, ((const weight_row *)b)->name);
}

status weight_table_init(weight_table *t, const model_config *c, err *e) {
    size_t n_layers = (size_t)c->tower.n_layers + (size_t)c->decoder.n_layers;
    size_t max_rows = TOWER_ROWS + ROWS_PER_LAYER * n_layers;
    *t = (weight_table){.rows = calloc(max_rows, sizeof *t->rows)};
    if (!t->rows) return fail(e, STATUS_NO_MEMORY, "no memory for a table of %zu weights", max_rows);
    table_writer w = {.t = t, .max_rows = max_rows};
    add_tower(&w, &c->tower);
    add_projector(&w, c);
    add_decoder(&w, &c->decoder);
    qsort(t->rows, t->n_rows, sizeof *t->rows, by_name);
    return STATUS_OK;
}

void weight_table_deinit(weight_table *t) {
    free(t->rows);
    *t = (weight_table){0};
}

const weight_row *weight_table_find(const weight_table *t, const char *name) {
    weight_row key;
    if (strlen(name) >= sizeof key.name) return NULL;
    (void)snprintf(key.name, sizeof key.name, "%s", name);
    return bsearch(&key, t->rows, t->n_rows, sizeof key, by_name);
}

bool weight_dtype(ops_dtype *dtype, const safetensors_tensor *t, int64_t n_out, int64_t n_in) {
    switch (t->dtype) {
    case SAFETENSORS_F32: *dtype = OPS_DTYPE_F32; return true;
    case SAFETENSORS_F16: *dtype = OPS_DTYPE_F16; return true;
    case SAFETENSORS_BF16: *dtype = OPS_DTYPE_BF16; return true;
    case SAFETENSORS_OTHER: break;
    }
    if (strcmp(t->dtype_text, "U8") != 0 || t->n_dims != 2 || t->dims[0] != n_out) return false;
    *dtype = t->dims[1] == (int64_t)dtype_row_bytes(OPS_DTYPE_Q8, n_in) ? OPS_DTYPE_Q8 : OPS_DTYPE_Q4;
    return t->dims[1] == (int64_t)dtype_row_bytes(*dtype, n_in);
}

status weight_row_find(const weight_row *row, const weight_files *files, const weight_entry **entry,
                       err *e) {
    char expected[96], found[160];
    safetensors_shape_text(expected, sizeof expected, row->n_dims, row->dims);
    *entry = weight_files_find(files, row->name);
    if (!*entry) {
        if (row->use == WEIGHT_NOT_COMPUTED) return STATUS_OK;
        return fail(e, STATUS_BAD_MODEL, "%s: tensor %s is missing, expected shape %s",
                    weight_files_list_name(files), row->name, expected);
    }
    const safetensors_tensor *t = (*entry)->tensor;
    ops_dtype dtype;
    bool is_read = weight_dtype(&dtype, t, row->dims[0], row->dims[1]);
    if (is_read && dtype_is_quantized(dtype) && row->is_matrix) return STATUS_OK;
    if (row->is_matrix && strcmp(t->dtype_text, "U8") == 0) {
        safetensors_shape_text(found, sizeof found, t->n_dims, t->dims);
        return fail(e, STATUS_BAD_MODEL, "%s: tensor %s is U8 %s, expected [%lld, %zu] (q8) or [%lld, %zu] (q4)",
                    (*entry)->file, row->name, found, (long long)row->dims[0],
                    dtype_row_bytes(OPS_DTYPE_Q8, row->dims[1]), (long long)row->dims[0],
                    dtype_row_bytes(OPS_DTYPE_Q4, row->dims[1]));
    }
    if (t->n_dims != row->n_dims ||
        memcmp(t->dims, row->dims, sizeof row->dims[0] * (size_t)row->n_dims) != 0) {
        safetensors_shape_text(found, sizeof found, t->n_dims, t->dims);
        return fail(e, STATUS_BAD_MODEL, "%s: tensor %s has shape %s, expected %s", (*entry)->file,
                    row->name, found, expected);
    }
    if (row->use != WEIGHT_NOT_COMPUTED && (!is_read || dtype_is_quantized(dtype)))
        return fail(e, STATUS_BAD_MODEL, "%s: tensor %s is %s, expected F32, F16 or BF16",
                    (*entry)->file, row->name, t->dtype_text);
    return STATUS_OK;
}

bool weight_is_ignorable(const char *name) {
    static const char *const ENDINGS[] = {
        ".position_ids", ".rotary_emb.inv_freq", ".cos_cached",           ".sin_cached",
        ".causal_mask",  ".attn.bias",           ".masked_bias",          ".embeddings.mask_token",
        "logit_scale",   "logit_bias",           "visual_projection.weight", NULL};
    size_t n = strlen(name);
    for (const char *const *ending = ENDINGS; *ending; ending++) {
        size_t m = strlen(*ending);
        if (n >= m && strcmp(name + n - m, *ending) == 0) return true;
    }
    return strstr(name, "text_model.") != NULL || strstr(name, "text_projection.") != NULL;
}
