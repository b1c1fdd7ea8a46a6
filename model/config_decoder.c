/* config.json: the decoder's keys, which stand at the top level. */
#include <stdio.h>
#include <string.h>

#include "model/config_internal.h"

static void check_family(json_view *v) {
    const char *type = json_view_text(v, "model_type", "");
    if (strcmp(type, "mipha_phi") != 0)
        json_view_refuse(v, "model_type",
                         "\"mipha_phi\": other decoders (Gemma, Phi-3) are not supported yet");
    if (!json_view_has(v, "architectures")) return;
    const json_t *list = json_object_get(v->object, "architectures");
    const char *class_name = json_string_value(json_array_get(list, 0));
    if (v->st == STATUS_OK && (!class_name || strcmp(class_name, "MiphaPhiForCausalLM") != 0)) {
        v->st = fail(v->e, STATUS_BAD_MODEL,
                     "%s: architectures names %.60s first, expected MiphaPhiForCausalLM: other classes "
                     "(Phi-1.5, Gemma, Phi-3) are not supported yet",
                     v->where, class_name ? class_name : "nothing");
    }
}

/* Older files keep the rotary numbers at the top level, transformers 5 in rope_parameters. */
static void read_rotary(model_decoder_config *d, json_view *v) {
    if (json_view_has(v, "rope_scaling")) json_view_refuse(v, "rope_scaling", "null");
    json_view newer = json_view_child(v, "rope_parameters");
    const char *type = json_view_text(&newer, "rope_type", "default");
    if (strcmp(type, "default") != 0) json_view_refuse(&newer, "rope_type", "\"default\"");
    double theta = json_view_real(&newer, "rope_theta", 10000.0, 1.0, 1e12);
    double factor = json_view_real(&newer, "partial_rotary_factor", 0.5, 0.0, 1.0);
    if (newer.st != STATUS_OK) v->st = newer.st;
    theta = json_view_real(v, "rope_theta", theta, 1.0, 1e12);
    factor = json_view_real(v, "partial_rotary_factor", factor, 0.0, 1.0);
    if (v->st != STATUS_OK) return;
    d->rope_theta = (float)theta;
    d->rotary_dims = (int)(factor * d->head_size);
    if (d->rotary_dims < 2 || d->rotary_dims % 2 != 0)
        v->st = fail(v->e, STATUS_BAD_MODEL,
                     "%s: partial_rotary_factor %g of %d gives %d rotary dimensions, expected an even "
                     "number >= 2",
                     v->where, factor, d->head_size, d->rotary_dims);
}

status config_read_decoder(model_decoder_config *d, json_view *v) {
    check_family(v);
    d->kind = MODEL_DECODER_PHI;
    d->hidden = (int)json_view_int(v, "hidden_size", 2048, 1, WIDTH_MAX);
    d->intermediate = (int)json_view_int(v, "intermediate_size", 8192, 1, 4 * WIDTH_MAX);
    d->n_layers = (int)json_view_int(v, "num_hidden_layers", 24, 1, LAYERS_MAX);
    d->n_heads = (int)json_view_int(v, "num_attention_heads", 32, 1, HEADS_MAX);
    d->n_kv_heads = (int)json_view_int(v, "num_key_value_heads", d->n_heads, 1, HEADS_MAX);
    d->max_positions = (int)json_view_int(v, "max_position_embeddings", 2048, 1, POSITIONS_MAX);
    d->layer_norm_eps = (float)json_view_real(v, "layer_norm_eps", 1e-5, 1e-12, 1.0);
    if (config_read_act(v, "hidden_act", "gelu_new") != OPS_ACT_GELU_TANH)
        json_view_refuse(v, "hidden_act", "\"gelu_new\"");
    if (json_view_bool(v, "qk_layernorm", false)) json_view_refuse(v, "qk_layernorm", "false");
    if (json_view_bool(v, "tie_word_embeddings", false))
        json_view_refuse(v, "tie_word_embeddings", "false");
    if (json_view_bool(v, "mm_use_im_start_end", false))
        json_view_refuse(v, "mm_use_im_start_end", "false");
    if (v->st != STATUS_OK) return v->st;

    char expected[96];
    (void)snprintf(expected, sizeof expected, "a divisor of hidden_size, which is %d", d->hidden);
    if (d->hidden % d->n_heads != 0) json_view_refuse(v, "num_attention_heads", expected);
    (void)snprintf(expected, sizeof expected, "a divisor of num_attention_heads, which is %d",
                   d->n_heads);
    if (d->n_heads % d->n_kv_heads != 0) json_view_refuse(v, "num_key_value_heads", expected);
    d->head_size = d->hidden / d->n_heads;
    read_rotary(d, v);
    return v->st;
}

