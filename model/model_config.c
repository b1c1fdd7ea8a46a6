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

static status read_config(model_config *c, const json_t *root, model_decoder_kind decoder, err *e) {
    json_view top = json_view_make(root, "config.json", e);
    status st = config_read_decoder(&c->decoder, decoder, &top);
    json_view vision = json_view_child(&top, "vision_config");
    json_view tower = json_view_child(&vision, "vision_tower");
    json_view projector = json_view_child(&vision, "mm_projector");
    if (st == STATUS_OK) st = vision.st;
    if (st == STATUS_OK) st = config_read_tower(&c->tower, tower);
    if (st == STATUS_OK) st = read_projector(c, projector);
    const char *aspect = json_view_text(&top, "image_aspect_ratio", "square");
    if (st == STATUS_OK) st = top.st;
    c->preprocess.pad_to_square = strcmp(aspect, "pad") == 0;
    return st;
}

status model_config_load(model_config *c, const char *dir, model_decoder_kind decoder, err *e) {
    status st = STATUS_OK;
    json_t *config = NULL, *preprocess = NULL;
    char path[4096];
    *c = (model_config){0};
    take_name(c, dir);

    (void)snprintf(path, sizeof path, "%s/config.json", dir);
    st = json_file_load(&config, path, JSON_FILE_CONFIG_LIMITS, e);
    if (st != STATUS_OK) goto done;
    st = read_config(c, config, decoder, e);
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
