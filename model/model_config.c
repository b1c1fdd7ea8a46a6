/* config.json and preprocessor_config.json, read as the reference implementation reads them.
 *
 * Every key has the default its Hugging Face class has, a range, and a place in one of the tables of
 * calls below. What this engine does not run is refused here with the key, what it says and what would
 * be accepted: a network that silently computes something else is the one failure nobody can see.
 * Which decoder a folder holds is finally decided by its tensor names (model.c), because "mipha_phi"
 * names two of them; this file checks that config.json does not contradict. */
#include "model/model_config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/json_file.h"

#define WIDTH_MAX     65536
#define LAYERS_MAX    512
#define HEADS_MAX     1024
#define PIXELS_MAX    4096
#define POSITIONS_MAX (1 << 24)
#define MLP_LINEAR_MAX 16

static bool is_one_of(const char *text, const char *const *allowed) {
    while (*allowed && strcmp(text, *allowed) != 0) allowed++;
    return *allowed != NULL;
}

/* All three names are one function, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). */
static const char *const TANH_GELUS[] = {"gelu_pytorch_tanh", "gelu_new", NULL};

/* --- tower ------------------------------------------------------------------------------------ */

static void read_select_layer(model_tower_config *t, json_view *v) {
    int n = t->n_layers;
    int select = (int)json_view_int(v, "mm_vision_select_layer", -2, -n - 1, n);
    t->n_layers_run = select < 0 ? n + 1 + select : select;
    const char *feature = json_view_text(v, "mm_vision_select_feature", "patch");
    if (!is_one_of(feature, (const char *const[]){"patch", "cls_patch", NULL}))
        json_view_refuse(v, "mm_vision_select_feature", "\"patch\" or \"cls_patch\"");
}

static status read_tower(model_tower_config *t, json_view v) {
    /* The authors test the name for these words in this order; "siglip" does not contain "clip". */
    const char *name = json_view_text(&v, "vision_model_name_or_path", "clip");
    if (strstr(name, "clip") || !strstr(name, "siglip"))
        json_view_refuse(&v, "vision_model_name_or_path",
                         "a name with \"siglip\" in it: other towers (CLIP, DINOv2) are not supported "
                         "yet");
    t->kind = MODEL_TOWER_SIGLIP;
    t->hidden = (int)json_view_int(&v, "hidden_size", 768, 1, WIDTH_MAX);
    t->intermediate = (int)json_view_int(&v, "intermediate_size", 3072, 1, 4 * WIDTH_MAX);
    t->n_layers = (int)json_view_int(&v, "num_hidden_layers", 12, 1, LAYERS_MAX);
    t->n_heads = (int)json_view_int(&v, "num_attention_heads", 12, 1, HEADS_MAX);
    t->image_size = (int)json_view_int(&v, "image_size", 224, 1, PIXELS_MAX);
    t->patch_size = (int)json_view_int(&v, "patch_size", 32, 1, PIXELS_MAX);
    /* An absent key counts with its default, which may be too large for a small image. */
    if (v.st == STATUS_OK && t->patch_size > t->image_size) {
        v.st = fail(v.e, STATUS_BAD_MODEL,
                    "%s: patch_size is %d, expected at most image_size, which is %d", v.where,
                    t->patch_size, t->image_size);
    }
    t->layer_norm_eps = (float)json_view_real(&v, "layer_norm_eps", 1e-5, 1e-12, 1.0);
    (void)json_view_int(&v, "num_channels", 3, 3, 3);
    if (!is_one_of(json_view_text(&v, "hidden_act", "quick_gelu"), TANH_GELUS))
        json_view_refuse(&v, "hidden_act", "\"gelu_pytorch_tanh\", the one SigLIP has");
    if (v.st == STATUS_OK && t->hidden % t->n_heads != 0) {
        char expected[96];
        (void)snprintf(expected, sizeof expected, "a divisor of hidden_size, which is %d", t->hidden);
        json_view_refuse(&v, "num_attention_heads", expected);
    }
    read_select_layer(t, &v);
    int grid = t->image_size / t->patch_size;
    t->n_tokens = grid * grid;
    return v.st;
}

/* --- projector -------------------------------------------------------------------------------- */

/* The K of mlpKx_gelu, 0 when the text is something else. */
static int mlp_depth(const char *type) {
    if (strncmp(type, "mlp", 3) != 0 || type[3] < '1' || type[3] > '9') return 0;
    char *end;
    long k = strtol(type + 3, &end, 10);
    return k <= MLP_LINEAR_MAX && strcmp(end, "x_gelu") == 0 ? (int)k : 0;
}

static status read_projector(model_config *c, json_view v) {
    model_projector_config *p = &c->projector;
    const char *type = json_view_text(&v, "mm_projector_type", "linear");
    p->n_linear = mlp_depth(type);
    if (p->n_linear > 0) {
        p->kind = MODEL_PROJECTOR_MLP;
    } else if (strcmp(type, "linear") == 0) {
        p->kind = MODEL_PROJECTOR_LINEAR;
        p->n_linear = 1;
    } else if (strcmp(type, "identity") == 0) {
        p->kind = MODEL_PROJECTOR_IDENTITY;
    } else {
        json_view_refuse(&v, "mm_projector_type",
                         "\"linear\", \"identity\" or \"mlpKx_gelu\" with K from 1 to 16");
    }
    char expected[96];
    int64_t in = json_view_int(&v, "mm_hidden_size", c->tower.hidden, 1, WIDTH_MAX);
    int64_t out = json_view_int(&v, "hidden_size", c->decoder.hidden, 1, WIDTH_MAX);
    (void)snprintf(expected, sizeof expected, "%d, the tower's hidden_size", c->tower.hidden);
    if (in != c->tower.hidden) json_view_refuse(&v, "mm_hidden_size", expected);
    (void)snprintf(expected, sizeof expected, "%d, the decoder's hidden_size", c->decoder.hidden);
    if (out != c->decoder.hidden) json_view_refuse(&v, "hidden_size", expected);
    if (p->kind == MODEL_PROJECTOR_IDENTITY && c->tower.hidden != c->decoder.hidden)
        json_view_refuse(&v, "mm_projector_type",
                         "a projector that changes the width: tower and decoder differ in hidden_size");
    return v.st;
}

/* --- decoder ---------------------------------------------------------------------------------- */

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

static status read_decoder(model_decoder_config *d, json_view *v) {
    check_family(v);
    d->kind = MODEL_DECODER_PHI;
    d->hidden = (int)json_view_int(v, "hidden_size", 2048, 1, WIDTH_MAX);
    d->intermediate = (int)json_view_int(v, "intermediate_size", 8192, 1, 4 * WIDTH_MAX);
    d->n_layers = (int)json_view_int(v, "num_hidden_layers", 24, 1, LAYERS_MAX);
    d->n_heads = (int)json_view_int(v, "num_attention_heads", 32, 1, HEADS_MAX);
    d->n_kv_heads = (int)json_view_int(v, "num_key_value_heads", d->n_heads, 1, HEADS_MAX);
    d->max_positions = (int)json_view_int(v, "max_position_embeddings", 2048, 1, POSITIONS_MAX);
    d->layer_norm_eps = (float)json_view_real(v, "layer_norm_eps", 1e-5, 1e-12, 1.0);
    if (!is_one_of(json_view_text(v, "hidden_act", "gelu_new"), TANH_GELUS))
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

/* --- preprocessing ---------------------------------------------------------------------------- */

static void read_size(model_preprocess_config *p, int image_size, json_view *v) {
    char expected[96];
    (void)snprintf(expected, sizeof expected, "%d by %d, the tower's image_size", image_size,
                   image_size);
    p->size = image_size;
    const json_t *size = json_object_get(v->object, "size");
    if (json_is_null(size) || !size) return;
    int64_t height = 0, width = 0;
    if (json_is_integer(size)) {
        height = width = json_integer_value(size);
    } else if (json_is_object(size)) {
        height = json_integer_value(json_object_get(size, "height"));
        width = json_integer_value(json_object_get(size, "width"));
    }
    if (v->st == STATUS_OK && (height != image_size || width != image_size)) {
        if (height > 0 && width > 0)
            v->st = fail(v->e, STATUS_BAD_MODEL, "%s: size is %lld by %lld, expected %s", v->where,
                         (long long)height, (long long)width, expected);
        else
            json_view_refuse(v, "size", expected);
    }
}

static void read_triple(float out[3], json_view *v, const char *key, double min, double max) {
    const json_t *list = json_object_get(v->object, key);
    for (int i = 0; i < 3; i++) out[i] = 0.5f;
    if (v->st != STATUS_OK || json_is_null(list) || !list) return;
    for (size_t i = 0; i < 3; i++) {
        const json_t *number = json_array_get(list, i);
        double value = json_number_value(number);
        if (json_array_size(list) != 3 || !json_is_number(number) || !(value >= min && value <= max)) {
            v->st = fail(v->e, STATUS_BAD_MODEL,
                         "%s: %s is not an array of three numbers from %g to %g", v->where, key, min,
                         max);
            return;
        }
        out[i] = (float)value;
    }
}

/* The reference computes int(mean * 255) on the double of the file, before any rounding to f32. */
static void read_pad_colour(model_preprocess_config *p, const json_view *v) {
    const json_t *list = json_object_get(v->object, "image_mean");
    for (size_t i = 0; i < 3; i++) {
        double mean = json_is_array(list) ? json_number_value(json_array_get(list, i)) : 0.5;
        p->pad_rgb[i] = (uint8_t)(mean * 255.0);
    }
}

static status read_preprocess(model_preprocess_config *p, int image_size, json_view v) {
    static const char *const SWITCHES[] = {"do_resize", "do_rescale", "do_normalize", NULL};
    for (const char *const *key = SWITCHES; *key; key++)
        if (!json_view_bool(&v, *key, true)) json_view_refuse(&v, *key, "true");
    if (json_view_bool(&v, "do_center_crop", false))
        json_view_refuse(&v, "do_center_crop", "false, as SigLIP has it");
    (void)json_view_int(&v, "resample", 3, 3, 3);
    read_size(p, image_size, &v);
    p->rescale_factor = json_view_real(&v, "rescale_factor", 1.0 / 255.0, 1e-6, 1.0);
    read_triple(p->mean, &v, "image_mean", 0.0, 1.0);
    read_triple(p->std, &v, "image_std", 1e-6, 10.0);
    if (v.st == STATUS_OK) read_pad_colour(p, &v);
    return v.st;
}

/* --- the two files ---------------------------------------------------------------------------- */

/* The last part of the folder's path, without trailing slashes. */
static void take_name(model_config *c, const char *dir) {
    size_t end = strlen(dir);
    while (end > 1 && dir[end - 1] == '/') end--;
    size_t start = end;
    while (start > 0 && dir[start - 1] != '/') start--;
    (void)snprintf(c->name, sizeof c->name, "%.*s", (int)(end - start < 127 ? end - start : 127),
                   dir + start);
}

static status read_config(model_config *c, const json_t *root, err *e) {
    json_view top = json_view_make(root, "config.json", e);
    status st = read_decoder(&c->decoder, &top);
    json_view vision = json_view_child(&top, "vision_config");
    json_view tower = json_view_child(&vision, "vision_tower");
    json_view projector = json_view_child(&vision, "mm_projector");
    if (st == STATUS_OK) st = vision.st;
    if (st == STATUS_OK) st = read_tower(&c->tower, tower);
    if (st == STATUS_OK) st = read_projector(c, projector);
    const char *aspect = json_view_text(&top, "image_aspect_ratio", "square");
    if (st == STATUS_OK) st = top.st;
    c->preprocess.pad_to_square = strcmp(aspect, "pad") == 0;
    return st;
}

status model_config_load(model_config *c, const char *dir, err *e) {
    status st = STATUS_OK;
    json_t *config = NULL, *preprocess = NULL;
    char path[4096];
    *c = (model_config){0};
    take_name(c, dir);

    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    st = json_file_load(&config, path, JSON_FILE_CONFIG_LIMITS, e);
    if (st != STATUS_OK) goto done;
    st = read_config(c, config, e);
    if (st != STATUS_OK) goto done;

    (void)snprintf(path, sizeof path, "%s/preprocessor_config.json", dir);
    st = json_file_load(&preprocess, path, JSON_FILE_CONFIG_LIMITS, e);
    if (st != STATUS_OK) goto done;
    st = read_preprocess(&c->preprocess, c->tower.image_size,
                         json_view_make(preprocess, "preprocessor_config.json", e));
done:
    json_decref(config);
    json_decref(preprocess);
    return st;
}
