/* config.json: the tower's keys, in vision_config.vision_tower or, LLaVA's, in vision_config. */
#include <stdio.h>
#include <string.h>

#include "model/config_internal.h"

ops_act config_read_act(json_view *v, const char *key, const char *fallback) {
    /* The first two names are one function. */
    static const struct {
        const char *name;
        ops_act act;
    } ACTS[] = {{"gelu_pytorch_tanh", OPS_ACT_GELU_TANH}, {"gelu_new", OPS_ACT_GELU_TANH},
                {"gelu", OPS_ACT_GELU_ERF},               {"quick_gelu", OPS_ACT_QUICK_GELU},
                {"silu", OPS_ACT_SILU}};
    const char *name = json_view_text(v, key, fallback);
    for (size_t i = 0; i < sizeof ACTS / sizeof *ACTS; i++)
        if (strcmp(name, ACTS[i].name) == 0) return ACTS[i].act;
    json_view_refuse(v, key, "\"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\", \"quick_gelu\" or \"silu\"");
    return OPS_ACT_NONE;
}

/* LLaVA's says it as transformers does. */
static model_tower_kind kind_of_type(json_view *v) {
    const char *type = json_view_text(v, "model_type", "clip_vision_model");
    if (strcmp(type, "siglip_vision_model") == 0) return MODEL_TOWER_SIGLIP;
    if (strcmp(type, "clip_vision_model") != 0)
        json_view_refuse(v, "model_type", "\"clip_vision_model\" or \"siglip_vision_model\"");
    return MODEL_TOWER_CLIP;
}

/* The authors test the name for these words in this order; "siglip" does not contain "clip". */
static model_tower_kind kind_of_name(json_view *v) {
    const char *name = json_view_text(v, "vision_model_name_or_path", "clip");
    if (strstr(name, "clip")) return MODEL_TOWER_CLIP;
    if (strstr(name, "siglip")) return MODEL_TOWER_SIGLIP;
    if (!strstr(name, "dinov2"))
        json_view_refuse(v, "vision_model_name_or_path", "a name with \"clip\", \"siglip\" or \"dinov2\" in it");
    return json_view_bool(v, "use_swiglu_ffn", false) ? MODEL_TOWER_DINOV2_SWIGLU : MODEL_TOWER_DINOV2;
}

void config_read_select(model_tower_config *t, json_view *v, const char *layer_key, const char *feature_key,
                        const char *without, const char *with) {
    int n = t->n_layers;
    int select = (int)json_view_int(v, layer_key, -2, -n - 1, n);
    t->n_layers_run = select < 0 ? n + 1 + select : select;
    const char *feature = json_view_text(v, feature_key, without);
    t->keeps_class_token = strcmp(feature, with) == 0;
    if (t->keeps_class_token || strcmp(feature, without) == 0) return;
    char expected[96];
    (void)snprintf(expected, sizeof expected, "\"%s\" or \"%s\"", without, with);
    json_view_refuse(v, feature_key, expected);
}

/* DINOv2 says by how much its MLP is wider. The gated one has two thirds of that, up to a multiple of 8. */
static void read_mlp_ratio(model_tower_config *t, json_view *v) {
    double ratio = json_view_real(v, "mlp_ratio", 4.0, 0.01, 64.0);
    t->intermediate = (int)(t->hidden * ratio);
    if (t->family->is_gated) t->intermediate = (t->intermediate * 2 / 3 + 7) / 8 * 8;
    if (t->intermediate < 1) json_view_refuse(v, "mlp_ratio", "an MLP of at least one");
    if (!json_view_bool(v, "qkv_bias", true)) json_view_refuse(v, "qkv_bias", "true");
}

status config_read_tower(model_tower_config *t, const model_format *format, json_view v) {
    t->kind = format->is_llava ? kind_of_type(&v) : kind_of_name(&v);
    t->family = &tower_families[t->kind];
    (void)snprintf(t->prefix, sizeof t->prefix, "%s%s.", format->tower,
                   t->family->interpolates ? "dinov2" : "vision_model");
    t->hidden = (int)json_view_int(&v, "hidden_size", 768, 1, WIDTH_MAX);
    t->n_layers = (int)json_view_int(&v, "num_hidden_layers", 12, 1, LAYERS_MAX);
    t->n_heads = (int)json_view_int(&v, "num_attention_heads", 12, 1, HEADS_MAX);
    t->image_size = (int)json_view_int(&v, "image_size", 224, 1, PIXELS_MAX);
    t->patch_size = (int)json_view_int(&v, "patch_size", 32, 1, PIXELS_MAX);
    t->layer_norm_eps = (float)json_view_real(&v, "layer_norm_eps", 1e-5, 1e-12, 1.0);
    (void)json_view_int(&v, "num_channels", 3, 3, 3);
    t->act = config_read_act(&v, "hidden_act", "quick_gelu");
    if (t->family->interpolates)
        read_mlp_ratio(t, &v);
    else
        t->intermediate = (int)json_view_int(&v, "intermediate_size", 3072, 1, 4 * WIDTH_MAX);
    /* An absent key counts with its default, which may be too large for a small image. */
    if (v.st == STATUS_OK && t->patch_size > t->image_size) {
        v.st = fail(v.e, STATUS_BAD_MODEL, "%s: patch_size is %d, expected at most image_size, which is %d",
                    v.where, t->patch_size, t->image_size);
    }
    if (v.st == STATUS_OK && t->hidden % t->n_heads != 0) {
        char expected[96];
        (void)snprintf(expected, sizeof expected, "a divisor of hidden_size, which is %d", t->hidden);
        json_view_refuse(&v, "num_attention_heads", expected);
    }
    return v.st;
}

void config_finish_tower(model_tower_config *t, const model_preprocess_config *p) {
    int grid = p->size / t->patch_size;
    t->table_grid = t->image_size / t->patch_size;
    t->image_size = p->size;
    t->n_patches = grid * grid;
    t->n_rows = t->n_patches + (t->family->class_token != NULL);
    t->n_tokens = t->keeps_class_token ? t->n_rows : t->n_patches;
}
