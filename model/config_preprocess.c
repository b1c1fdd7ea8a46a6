/* preprocessor_config.json, as the image processor of the tower's family reads it. */
#include <stdio.h>
#include <string.h>

#include "model/config_internal.h"

/* What a family's image processor does where the file says nothing. */
typedef struct {
    bool crops;
    int resize, crop; /* 0: the tower's image size */
    double mean[3], std[3];
} processor_defaults;

static const processor_defaults DEFAULTS[MODEL_TOWER_KINDS] = {
    [MODEL_TOWER_SIGLIP] = {false, 0, 0, {0.5, 0.5, 0.5}, {0.5, 0.5, 0.5}},
#define OPENAI_CLIP                                                                                \
    {true, 224, 224, {0.48145466, 0.4578275, 0.40821073}, {0.26862954, 0.26130258, 0.27577711}}
    [MODEL_TOWER_CLIP] = OPENAI_CLIP,
    [MODEL_TOWER_DINOV2] = OPENAI_CLIP,
    [MODEL_TOWER_DINOV2_SWIGLU] = OPENAI_CLIP,
};

static void refuse_size(json_view *v, const char *key, int64_t height, int64_t width, const char *expected) {
    if (v->st != STATUS_OK) return;
    if (height > 0 && width > 0)
        v->st = fail(v->e, STATUS_BAD_MODEL, "%s: %s is %lld by %lld, expected %s", v->where, key,
                     (long long)height, (long long)width, expected);
    else
        json_view_refuse(v, key, expected);
}

/* A number, {"shortest_edge": n} or {"height": n, "width": n}. A number means the shorter side where a crop
 * follows, and both sides otherwise. */
static int read_square(json_view *v, const char *key, int fallback, bool number_is_short, bool *is_short) {
    const json_t *size = json_object_get(v->object, key);
    *is_short = number_is_short;
    if (!size || json_is_null(size)) return fallback;
    int64_t height = 0, width = 0;
    const json_t *shortest = json_object_get(size, "shortest_edge");
    if (json_is_integer(size) || json_is_integer(shortest)) {
        if (shortest) *is_short = true;
        height = width = json_integer_value(shortest ? shortest : size);
    } else if (json_is_object(size)) {
        *is_short = false;
        height = json_integer_value(json_object_get(size, "height"));
        width = json_integer_value(json_object_get(size, "width"));
    }
    if (height == width && height >= 1 && height <= PIXELS_MAX) return (int)height;
    refuse_size(v, key, height, width, "one side of 1 to 4096 pixels, or two equal ones");
    return fallback;
}

static void read_sizes(model_preprocess_config *p, const model_tower_config *t, json_view *v) {
    const processor_defaults *d = &DEFAULTS[t->kind];
    char expected[96];
    bool ignored, crops = json_view_bool(v, "do_center_crop", d->crops);
    p->resize = read_square(v, "size", d->resize ? d->resize : t->image_size, d->crops, &p->keeps_aspect);
    p->size = p->resize;
    if (crops) p->size = read_square(v, "crop_size", d->crop ? d->crop : p->resize, false, &ignored);
    if (v->st != STATUS_OK) return;
    if (crops && !d->crops) json_view_refuse(v, "do_center_crop", "false, as this tower has it");
    if (p->keeps_aspect && !d->crops) {
        (void)snprintf(expected, sizeof expected, "%d by %d, the tower's image_size", t->image_size, t->image_size);
        json_view_refuse(v, "size", expected);
    }
    if (p->keeps_aspect && !crops)
        json_view_refuse(v, "do_center_crop", "true, because size keeps the shape of the image");
    (void)snprintf(expected, sizeof expected, "at most size, which is %d", p->resize);
    if (p->size > p->resize) refuse_size(v, "crop_size", p->size, p->size, expected);
    const char *key = crops ? "crop_size" : "size";
    (void)snprintf(expected, sizeof expected, "%d by %d, the tower's image_size", t->image_size, t->image_size);
    if (!t->family->interpolates && p->size != t->image_size) refuse_size(v, key, p->size, p->size, expected);
    (void)snprintf(expected, sizeof expected, "at least patch_size, which is %d", t->patch_size);
    if (p->size < t->patch_size) refuse_size(v, key, p->size, p->size, expected);
}

/* The values as doubles, for the reference computes with those of the file before it rounds to f32. */
static void read_triple(double out[3], json_view *v, const char *key, const double fallback[3], double min,
                        double max) {
    const json_t *list = json_object_get(v->object, key);
    memcpy(out, fallback, 3 * sizeof *out);
    if (v->st != STATUS_OK || json_is_null(list) || !list) return;
    for (size_t i = 0; i < 3; i++) {
        const json_t *number = json_array_get(list, i);
        double value = json_number_value(number);
        if (json_array_size(list) != 3 || !json_is_number(number) || !(value >= min && value <= max)) {
            v->st = fail(v->e, STATUS_BAD_MODEL, "%s: %s is not an array of three numbers from %g to %g",
                         v->where, key, min, max);
            return;
        }
        out[i] = value;
    }
}

status config_read_preprocess(model_preprocess_config *p, const model_tower_config *t, json_view v) {
    static const char *const SWITCHES[] = {"do_resize", "do_rescale", "do_normalize", NULL};
    for (const char *const *key = SWITCHES; *key; key++)
        if (!json_view_bool(&v, *key, true)) json_view_refuse(&v, *key, "true");
    (void)json_view_int(&v, "resample", 3, 3, 3);
    read_sizes(p, t, &v);
    p->rescale_factor = json_view_real(&v, "rescale_factor", 1.0 / 255.0, 1e-6, 1.0);
    double mean[3], std[3];
    read_triple(mean, &v, "image_mean", DEFAULTS[t->kind].mean, 0.0, 1.0);
    read_triple(std, &v, "image_std", DEFAULTS[t->kind].std, 1e-6, 10.0);
    for (int i = 0; i < 3; i++) {
        p->mean[i] = (float)mean[i];
        p->std[i] = (float)std[i];
        p->pad_rgb[i] = (uint8_t)(mean[i] * 255.0);
    }
    return v.st;
}
