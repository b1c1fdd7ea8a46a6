/* config.json and preprocessor_config.json, read as the reference implementation reads them.
 *
 * Every key has the default its Hugging Face class has, a range, and a place in one of the tables of
 * calls below. What this engine does not run is refused here with the key, what it says and what would
 * be accepted: a network that silently computes something else is the one failure nobody can see.
 * Which decoder a folder holds is decided by its tensor names (model.c), because "mipha_phi" names two of
 * them; config.json may not contradict. */
#include "model/model_config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/config_internal.h"

#define MLP_LINEAR_MAX 16

/* --- projector -------------------------------------------------------------------------------- */

/* The K of mlpKx_gelu, 0 when the text is something else. */
static int mlp_depth(const char *type) {
    if (strncmp(type, "mlp", 3) != 0 || type[3] < '1' || type[3] > '9') return 0;
    char *end;
    long k = strtol(type + 3, &end, 10);
    return k <= MLP_LINEAR_MAX && strcmp(end, "x_gelu") == 0 ? (int)k : 0;
}

static void check_widths(model_config *c, json_view *v) {
    char expected[96];
    int64_t in = json_view_int(v, "mm_hidden_size", c->tower.hidden, 1, WIDTH_MAX);
    int64_t out = json_view_int(v, "hidden_size", c->decoder.hidden, 1, WIDTH_MAX);
    (void)snprintf(expected, sizeof expected, "%d, the tower's hidden_size", c->tower.hidden);
    if (in != c->tower.hidden) json_view_refuse(v, "mm_hidden_size", expected);
    (void)snprintf(expected, sizeof expected, "%d, the decoder's hidden_size", c->decoder.hidden);
    if (out != c->decoder.hidden) json_view_refuse(v, "hidden_size", expected);
    if (c->projector.kind == MODEL_PROJECTOR_IDENTITY && c->tower.hidden != c->decoder.hidden)
        json_view_refuse(v, "mm_projector_type",
                         "a projector that changes the width: tower and decoder differ in hidden_size");
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
    check_widths(c, &v);
    return v.st;
}

/* LlavaConfig keeps few words about it at the top level: always two layers. */
static void read_llava_projector(model_config *c, json_view *v) {
    c->projector = (model_projector_config){.kind = MODEL_PROJECTOR_MLP, .n_linear = 2};
    if (config_read_act(v, "projector_hidden_act", "gelu") != OPS_ACT_GELU_ERF)
        json_view_refuse(v, "projector_hidden_act", "\"gelu\"");
    if (!json_view_bool(v, "multimodal_projector_bias", true))
        json_view_refuse(v, "multimodal_projector_bias", "true");
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

static status read_mipha(model_config *c, json_view *top, model_decoder_kind decoder) {
    status st = config_read_decoder(&c->decoder, c->format, decoder, top);
    json_view vision = json_view_child(top, "vision_config");
    json_view tower = json_view_child(&vision, "vision_tower");
    json_view projector = json_view_child(&vision, "mm_projector");
    if (st == STATUS_OK) st = vision.st;
    if (st == STATUS_OK) st = config_read_tower(&c->tower, c->format, tower);
    if (st != STATUS_OK) return st;
    config_read_select(&c->tower, &tower, "mm_vision_select_layer", "mm_vision_select_feature", "patch", "cls_patch");
    st = tower.st;
    if (st == STATUS_OK) st = read_projector(c, projector);
    c->preprocess.pad_to_square = strcmp(json_view_text(top, "image_aspect_ratio", "square"), "pad") == 0;
    return st == STATUS_OK ? top->st : st;
}

static status read_llava(model_config *c, json_view *top, model_decoder_kind decoder) {
    if (strcmp(json_view_text(top, "model_type", ""), "llava") != 0) json_view_refuse(top, "model_type", "\"llava\"");
    json_view text = json_view_child(top, "text_config"), vision = json_view_child(top, "vision_config");
    status st = top->st;
    if (st == STATUS_OK) st = config_read_decoder(&c->decoder, c->format, decoder, &text);
    if (st == STATUS_OK) st = config_read_tower(&c->tower, c->format, vision);
    if (st != STATUS_OK) return st;
    config_read_select(&c->tower, top, "vision_feature_layer", "vision_feature_select_strategy", "default", "full");
    read_llava_projector(c, top);
    return top->st;
}

static status read_config(model_config *c, const json_t *root, model_signs signs, err *e) {
    json_view top = json_view_make(root, "config.json", e);
    bool says_llava = strcmp(json_view_text(&top, "model_type", ""), "llava") == 0;
    c->format = signs.format ? signs.format : says_llava ? &model_format_llava : &model_format_mipha;
    if (top.st != STATUS_OK) return top.st;
    return c->format->is_llava ? read_llava(c, &top, signs.decoder) : read_mipha(c, &top, signs.decoder);
}

status model_config_load(model_config *c, const char *dir, model_signs signs, err *e) {
    status st = STATUS_OK;
    json_t *config = NULL, *preprocess = NULL;
    char path[4096];
    *c = (model_config){0};
    take_name(c, dir);

    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    st = json_file_load(&config, path, JSON_FILE_CONFIG_LIMITS, e);
    if (st != STATUS_OK) goto done;
    st = read_config(c, config, signs, e);
    if (st != STATUS_OK) goto done;

    (void)snprintf(path, sizeof path, "%s/preprocessor_config.json", dir);
    st = json_file_load(&preprocess, path, JSON_FILE_CONFIG_LIMITS, e);
    if (st != STATUS_OK) goto done;
    st = config_read_preprocess(&c->preprocess, &c->tower, json_view_make(preprocess, "preprocessor_config.json", e));
    if (st == STATUS_OK) config_finish_tower(&c->tower, &c->preprocess);
done:
    json_decref(config);
    json_decref(preprocess);
    return st;
}
