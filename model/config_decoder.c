/* config.json: the decoder's keys, at the top level or, LLaVA's, in text_config. Which family it is was seen from the names of the tensors; here
 * config.json is asked not to contradict. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/config_internal.h"

/* What a family's config class has where the file says nothing. */
typedef struct {
    int hidden, intermediate, n_layers, n_heads, n_kv_heads; /* n_kv_heads 0: as many as heads */
    int head_size; /* 0: hidden / heads */
    int max_positions;
    const char *eps_key, *act;
    double eps, rotary_share;
} decoder_defaults;

static const decoder_defaults DEFAULTS[MODEL_DECODER_KINDS] = {
    [MODEL_DECODER_PHI] = {2048, 8192, 24, 32, 0, 0, 2048, "layer_norm_eps", "gelu_new", 1e-5, 0.5},
    [MODEL_DECODER_PHI15] = {2048, 8192, 24, 32, 0, 0, 2048, "layer_norm_eps", "gelu_new", 1e-5, 0.5},
    [MODEL_DECODER_GEMMA] = {3072, 24576, 28, 16, 16, 256, 8192, "rms_norm_eps", "gelu", 1e-6, 1.0},
    [MODEL_DECODER_PHI3] = {3072, 8192, 32, 32, 0, 0, 4096, "rms_norm_eps", "silu", 1e-5, 1.0},
    [MODEL_DECODER_LLAMA] = {4096, 11008, 32, 32, 0, 0, 2048, "rms_norm_eps", "silu", 1e-6, 1.0},
};

/* The class that config.json names first under architectures, or NULL. */
static const char *first_class(const json_view *v) {
    return json_string_value(json_array_get(json_object_get(v->object, "architectures"), 0));
}

static bool is_either(const char *text, const char *const names[2]) {
    return text && (strcmp(text, names[0]) == 0 || (names[1] && strcmp(text, names[1]) == 0));
}

/* Without a tensor that tells, the class or else the type does. */
static model_decoder_kind kind_of_config(json_view *v) {
    const char *class_name = first_class(v), *type = json_view_text(v, "model_type", "");
    for (int kind = 0; kind < MODEL_DECODER_KINDS; kind++)
        if (is_either(class_name, decoder_families[kind].class_names)) return (model_decoder_kind)kind;
    for (int kind = 0; kind < MODEL_DECODER_KINDS; kind++)
        if (is_either(type, decoder_families[kind].model_types)) return (model_decoder_kind)kind;
    return MODEL_DECODER_PHI;
}

static void check_names(const model_decoder_config *d, json_view *v) {
    const decoder_family *f = d->family;
    char expected[160];
    (void)snprintf(expected, sizeof expected, "\"%s\" as the tensors are those of %s", f->model_types[0], f->title);
    if (!is_either(json_view_text(v, "model_type", ""), f->model_types)) json_view_refuse(v, "model_type", expected);
    if (!json_view_has(v, "architectures") || v->st != STATUS_OK) return;
    const char *class_name = first_class(v);
    if (!is_either(class_name, f->class_names))
        v->st = fail(v->e, STATUS_BAD_MODEL,
                     "%s: architectures names %.60s first, expected %s as the tensors are those of %s", v->where,
                     class_name ? class_name : "nothing", f->class_names[0], f->title);
}

/* The file's factors, one for each pair of rotary dimensions. */
static void read_factors(float *out, int n, json_view *v, const char *key) {
    const json_t *list = json_object_get(v->object, key);
    if (v->st == STATUS_OK && (!json_is_array(list) || json_array_size(list) != (size_t)n)) {
        char expected[96];
        (void)snprintf(expected, sizeof expected, "an array of %d numbers, one for each rotary pair", n);
        json_view_refuse(v, key, expected);
    }
    for (int i = 0; i < n && v->st == STATUS_OK; i++) {
        double value = json_number_value(json_array_get(list, (size_t)i));
        if (!(value >= 1e-3 && value <= 1e6)) json_view_refuse(v, key, "numbers from 0.001 to 1000000");
        out[i] = (float)value;
    }
}

/* Phi-3's long contexts: other frequencies, and cosines and sines a little larger. "longrope" is what newer
 * files call "su". */
static void read_long_rope(model_decoder_config *d, json_view *v) {
    if (!json_view_has(v, "rope_scaling")) return;
    json_view scaling = json_view_child(v, "rope_scaling");
    const char *type = json_view_text(&scaling, "type", "");
    bool is_yarn = strcmp(type, "yarn") == 0;
    if (d->kind != MODEL_DECODER_PHI3) {
        json_view_refuse(v, "rope_scaling", "null");
        return;
    }
    if (!is_yarn && strcmp(type, "su") != 0 && strcmp(type, "longrope") != 0)
        json_view_refuse(&scaling, "type", "\"su\", \"longrope\" or \"yarn\"");
    d->original_positions = (int)json_view_int(v, "original_max_position_embeddings", 4096, 2, POSITIONS_MAX);
    read_factors(d->rope_short, d->rotary_dims / 2, &scaling, "short_factor");
    read_factors(d->rope_long, d->rotary_dims / 2, &scaling, "long_factor");
    if (scaling.st != STATUS_OK) v->st = scaling.st;
    double grown = (double)d->max_positions / d->original_positions;
    d->has_long_rope = true;
    if (grown > 1.0)
        d->rope_factor = (float)(is_yarn ? 0.1 * log(grown) + 1.0 : sqrt(1.0 + log(grown) / log(d->original_positions)));
}

/* Older files keep the rotary numbers at the top level, transformers 5 in rope_parameters. */
static void read_rotary(model_decoder_config *d, json_view *v) {
    json_view newer = json_view_child(v, "rope_parameters");
    const char *type = json_view_text(&newer, "rope_type", "default");
    if (strcmp(type, "default") != 0) json_view_refuse(&newer, "rope_type", "\"default\"");
    double theta = json_view_real(&newer, "rope_theta", 10000.0, 1.0, 1e12);
    double factor = json_view_real(&newer, "partial_rotary_factor", DEFAULTS[d->kind].rotary_share, 0.0, 1.0);
    if (newer.st != STATUS_OK) v->st = newer.st;
    theta = json_view_real(v, "rope_theta", theta, 1.0, 1e12);
    factor = json_view_real(v, "partial_rotary_factor", factor, 0.0, 1.0);
    if (v->st != STATUS_OK) return;
    d->rope_theta = (float)theta;
    d->rope_factor = 1.0f;
    d->rotary_dims = (int)(factor * d->head_size);
    if (d->rotary_dims < 2 || d->rotary_dims % 2 != 0 || d->rotary_dims > MODEL_ROTARY_DIMS_MAX) {
        v->st = fail(v->e, STATUS_BAD_MODEL,
                     "%s: partial_rotary_factor %g of %d gives %d rotary dimensions, expected an even "
                     "number from 2 to %d",
                     v->where, factor, d->head_size, d->rotary_dims, MODEL_ROTARY_DIMS_MAX);
        return;
    }
    read_long_rope(d, v);
}

/* "gelu" alone means the exact one, as in the transformers that the authors pin; hidden_activation, which
 * came later, says which it is. */
static void read_act(model_decoder_config *d, json_view *v) {
    const char *fallback = DEFAULTS[d->kind].act;
    const char *key = json_view_has(v, "hidden_activation") ? "hidden_activation" : "hidden_act";
    d->act = config_read_act(v, key, fallback);
}

static void refuse_what_is_not_run(const model_decoder_config *d, json_view *v) {
    if (json_view_bool(v, "qk_layernorm", false)) json_view_refuse(v, "qk_layernorm", "false");
    if (json_view_bool(v, "attention_bias", d->family->has_bias) != d->family->has_bias)
        json_view_refuse(v, "attention_bias", d->family->has_bias ? "true" : "false");
    if (d->is_tied && d->family->has_bias) json_view_refuse(v, "tie_word_embeddings", "false");
    if (json_view_bool(v, "mm_use_im_start_end", false)) json_view_refuse(v, "mm_use_im_start_end", "false");
}

static void read_heads(model_decoder_config *d, json_view *v) {
    const decoder_defaults *defaults = &DEFAULTS[d->kind];
    char expected[96];
    d->head_size = defaults->head_size;
    if (json_view_has(v, "head_dim") || d->head_size > 0) {
        d->head_size = (int)json_view_int(v, "head_dim", d->head_size, 1, 1024);
    } else {
        (void)snprintf(expected, sizeof expected, "a divisor of hidden_size, which is %d", d->hidden);
        if (d->hidden % d->n_heads != 0) json_view_refuse(v, "num_attention_heads", expected);
        d->head_size = d->hidden / d->n_heads;
    }
    (void)snprintf(expected, sizeof expected, "a divisor of num_attention_heads, which is %d", d->n_heads);
    if (d->n_heads % d->n_kv_heads != 0) json_view_refuse(v, "num_key_value_heads", expected);
    if (d->family->qkv_layout == MODEL_QKV_BY_HEAD && d->n_kv_heads != d->n_heads)
        json_view_refuse(v, "num_key_value_heads", "as many as num_attention_heads");
}

status config_read_decoder(model_decoder_config *d, const model_format *format, model_decoder_kind found,
                           json_view *v) {
    d->kind = found < MODEL_DECODER_KINDS ? found : kind_of_config(v);
    d->family = &decoder_families[d->kind];
    const decoder_defaults *defaults = &DEFAULTS[d->kind];
    check_names(d, v);
    (void)snprintf(d->prefix, sizeof d->prefix, "%s", format->decoder);
    (void)snprintf(d->head, sizeof d->head, "%s", format->head);
    d->hidden = (int)json_view_int(v, "hidden_size", defaults->hidden, 1, WIDTH_MAX);
    d->intermediate = (int)json_view_int(v, "intermediate_size", defaults->intermediate, 1, 4 * WIDTH_MAX);
    d->n_layers = (int)json_view_int(v, "num_hidden_layers", defaults->n_layers, 1, LAYERS_MAX);
    d->n_heads = (int)json_view_int(v, "num_attention_heads", defaults->n_heads, 1, HEADS_MAX);
    int n_kv_heads = defaults->n_kv_heads ? defaults->n_kv_heads : d->n_heads;
    d->n_kv_heads = (int)json_view_int(v, "num_key_value_heads", n_kv_heads, 1, HEADS_MAX);
    d->max_positions = (int)json_view_int(v, "max_position_embeddings", defaults->max_positions, 1, POSITIONS_MAX);
    d->norm_eps = (float)json_view_real(v, defaults->eps_key, defaults->eps, 1e-12, 1.0);
    d->window = (int)json_view_int(v, "sliding_window", 0, 0, POSITIONS_MAX);
    d->is_tied = json_view_bool(v, "tie_word_embeddings", d->family->is_tied);
    read_act(d, v);
    refuse_what_is_not_run(d, v);
    if (v->st != STATUS_OK) return v->st;
    read_heads(d, v);
    if (v->st != STATUS_OK) return v->st;
    read_rotary(d, v);
    return v->st;
}
