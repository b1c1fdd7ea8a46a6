/* The tower against transformers, layer by layer, and against itself in other company. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "tests/lm_node/golden.h"
#include "tests/support/support.h"
#include "vision_node/vision_encoder.h"

/* The device this program tests the network on: its tests are built once for each there is. */
#ifndef TEST_DEVICE
#define TEST_DEVICE "cpu"
#endif

typedef struct {
    golden *g;
    model *m;
    ops_ctx *ctx;
    vision_encoder *v;
    int one_bytes; /* of a picture */
} fixture;

static void open_fixture(fixture *f, const char *case_name, int n_threads, int max_images) {
    err e;
    f->g = golden_open(case_name);
    if (model_open(&f->m, &(model_settings){.dir = golden_dir(f->g), .parts = MODEL_PART_TOWER}, &e) != STATUS_OK) fail_msg("%s", e.text);
    ops_settings settings = {.device = TEST_DEVICE, .n_threads = n_threads};
    if (ops_open(&f->ctx, &settings, &e) != STATUS_OK) fail_msg("%s", e.text);
    if (vision_encoder_open(&f->v, f->ctx, f->m, max_images, &e) != STATUS_OK) fail_msg("%s", e.text);
    int size = model_get_config(f->m)->tower.image_size;
    f->one_bytes = 3 * size * size;
}

static void close_fixture(fixture *f) {
    vision_encoder_close(&f->v);
    ops_close(&f->ctx);
    model_close(&f->m);
    golden_close(&f->g);
}

static unsigned char *pictures(const fixture *f, const int *which, int n) {
    unsigned char *all = malloc((size_t)n * (size_t)f->one_bytes);
    assert_non_null(all);
    for (int i = 0; i < n; i++) {
        unsigned char *one = golden_pixels(which[i], f->one_bytes);
        memcpy(all + (size_t)i * (size_t)f->one_bytes, one, (size_t)f->one_bytes);
        free(one);
    }
    return all;
}

typedef struct {
    const golden *g;
    ops_ctx *ctx;
    const char *case_name;
    int n_layers_seen;
    double worst;
} layer_check;

static void check_layer(void *user, int layer, const ops_tensor *x) {
    layer_check *c = user;
    golden_tensor want = golden_get(c->g, "tower.%d", layer);
    golden_tensor bound = golden_get(c->g, "tower.%d.bound", layer);
    char what[64];
    (void)snprintf(what, sizeof what, "%s, tower layer %d", c->case_name, layer);
    assert_int_equal(x->dims[0], want.dims[0] * want.dims[1]);
    assert_int_equal(x->dims[1], want.dims[2]);
    float *hidden = golden_download(c->ctx, x);
    double worst = golden_compare(hidden, &want, bound.f32, what);
    if (worst > c->worst) c->worst = worst;
    c->n_layers_seen++;
    free(hidden);
}

/* What leaves the tower is the last state, without the class token where it is not wanted, in its dtype. */
static void check_features(const fixture *f, const layer_check *c, const unsigned char *features) {
    const model_tower_config *t = &model_get_config(f->m)->tower;
    golden_tensor last = golden_get(f->g, "tower.%d", t->n_layers_run);
    golden_tensor bound = golden_get(f->g, "tower.%d.bound", t->n_layers_run);
    ops_dtype dtype = model_tower_dtype(f->m);
    double step = dtype == OPS_DTYPE_F32 ? 0 : dtype == OPS_DTYPE_F16 ? 0x1p-10 : 0x1p-7;
    int n_dropped = t->n_rows - t->n_tokens;
    for (int i = 0; i < GOLDEN_IMAGES; i++)
        for (int r = 0; r < t->n_tokens; r++)
            for (int k = 0; k < t->hidden; k++) {
                ops_tensor all = {.data = (void *)(uintptr_t)features, .dtype = dtype};
                float got = tensor_value(&all, ((int64_t)i * t->n_tokens + r) * t->hidden + k);
                float want = last.f32[((int64_t)i * t->n_rows + n_dropped + r) * t->hidden + k];
                double allowed = (double)bound.f32[i * t->n_rows + n_dropped + r] + step * fabs((double)want);
                if (fabs((double)got - (double)want) > allowed)
                    fail_msg("%s: feature %d of token %d of picture %d is %g, want %g", c->case_name, k, r, i,
                             (double)got, (double)want);
            }
}

/* Rounded to the stored type, features are no further from float32 than transformers is when it runs in that type, times
 * `room`: who rounds in the same type at other places is as far off, give or take. */
static void check_own_error(const fixture *f, const char *case_name, const unsigned char *features, double room) {
    if (!golden_has(f->g, "own.features")) return;
    golden_tensor want = golden_get(f->g, "features");
    int64_t n = want.dims[0] * want.dims[1] * want.dims[2];
    ops_tensor stored = {.data = (void *)(uintptr_t)features, .dtype = model_tower_dtype(f->m)};
    float *got = malloc((size_t)n * sizeof *got);
    for (int64_t i = 0; i < n; i++) got[i] = tensor_value(&stored, i);
    double ours = golden_distance(got, &want), own = (double)golden_get(f->g, "own.features").f32[0];
    print_message("%s: features are %.2g from float32, transformers in the stored precision %.2g\n", case_name, ours, own);
    if (!(ours < room * own)) fail_msg("%s: %.3g from float32, the reference itself only %.3g", case_name, ours, own);
    free(got);
}

/* One picture alone, and eight together, have the bytes they have as three. */
static void check_batches(const fixture *f, const unsigned char *pixels, const unsigned char *features) {
    size_t one = vision_encoder_feature_bytes(f->v);
    unsigned char *got = malloc(8 * one);
    unsigned char *eight = pictures(f, (int[]){0, 1, 2, 2, 1, 0, 0, 1}, 8);
    err e;
    assert_int_equal(vision_encoder_run(f->v, pixels, 1, got, &e), STATUS_OK);
    assert_memory_equal(got, features, one);
    assert_int_equal(vision_encoder_run(f->v, eight, 8, got, &e), STATUS_OK);
    assert_memory_equal(got, features, 3 * one);
    assert_memory_equal(got + 7 * one, features + one, one);
    free(eight);
    free(got);
}

/* Bounds of layers are for f32; where a device computes in halves, the result's distance is compared alone. */
static void check_case(const char *case_name) {
    fixture f;
    err e;
    open_fixture(&f, case_name, 2, 8);
    bool is_f32 = ops_activation_dtype(f.ctx, model_tower_dtype(f.m)) == OPS_DTYPE_F32;
    layer_check c = {f.g, f.ctx, case_name, 0, 0.0};
    if (is_f32) vision_encoder_set_tap(f.v, check_layer, &c);
    unsigned char *pixels = pictures(&f, (int[]){0, 1, 2}, GOLDEN_IMAGES);
    unsigned char *features = malloc(GOLDEN_IMAGES * vision_encoder_feature_bytes(f.v));
    assert_int_equal(vision_encoder_run(f.v, pixels, GOLDEN_IMAGES, features, &e), STATUS_OK);
    if (is_f32) {
        assert_int_equal(c.n_layers_seen, model_get_config(f.m)->tower.n_layers_run + 1);
        check_features(&f, &c, features);
    }
    check_own_error(&f, case_name, features, is_f32 ? 1.0 : 1.5);
    print_message("%s: largest error is %.2g of its bound\n", case_name, c.worst);
    vision_encoder_set_tap(f.v, NULL, NULL);
    check_batches(&f, pixels, features);
    free(features);
    free(pixels);
    close_fixture(&f);
}

static void every_layer_of_every_case_equals_transformers(void **state) {
    (void)state;
    const char *name;
    for (size_t i = 0; (name = golden_case_name(i)); i++) check_case(name);
}

static void every_layer_equals_transformers_with_three_heads_of_72(void **state) {
    (void)state;
    check_case("odd_heads");
}

static void every_layer_equals_transformers_from_bf16(void **state) {
    (void)state;
    check_case("grouped");
}

static void every_layer_equals_transformers_from_f16_with_one_head_of_72(void **state) {
    (void)state;
    check_case("one_head");
}

static void every_layer_equals_transformers_from_shards_with_a_rest_of_pixels(void **state) {
    (void)state;
    check_case("sharded");
}

static void every_layer_of_clip_equals_transformers(void **state) {
    (void)state;
    check_case("clip");
    check_case("clip_with_class");
    check_case("llava");
    check_case("llava_new");
}

static void every_layer_of_dinov2_equals_transformers_on_another_grid_and_its_own(void **state) {
    (void)state;
    check_case("dinov2");
    check_case("dinov2_swiglu");
}

static void check_company(const char *case_name) {
    err e;
    fixture f;
    open_fixture(&f, case_name, 1, 1);
    size_t one = vision_encoder_feature_bytes(f.v);
    unsigned char *alone = malloc(one), *together = malloc(5 * one);
    unsigned char *pixels = pictures(&f, (int[]){1}, 1);
    assert_int_equal(vision_encoder_run(f.v, pixels, 1, alone, &e), STATUS_OK);
    free(pixels);
    close_fixture(&f);
    for (int n_threads = 1; n_threads <= (strcmp(TEST_DEVICE, "cpu") == 0 ? 4 : 1); n_threads++) {
        open_fixture(&f, case_name, n_threads, 5);
        pixels = pictures(&f, (int[]){0, 2, 1, 0, 1}, 5);
        assert_int_equal(vision_encoder_run(f.v, pixels, 5, together, &e), STATUS_OK);
        assert_memory_equal(together + 2 * one, alone, one);
        assert_memory_equal(together + 4 * one, alone, one);
        free(pixels);
        close_fixture(&f);
    }
    free(alone);
    free(together);
}

static void a_picture_has_the_same_features_in_any_company_and_with_any_threads(void **state) {
    (void)state;
    check_company("odd_heads");
    check_company("clip");
    check_company("dinov2");
}

/* As many runs as may be, each begun before the one ahead of it is finished, in memory that crosses by itself and is
 * written again as soon as its run is over. */
static void runs_under_way_at_once_have_the_features_of_runs_alone(void **state) {
    (void)state;
    enum { RUNS = 5, EACH = 2 };
    fixture f;
    err e;
    open_fixture(&f, "clip", 1, EACH);
    size_t one = vision_encoder_feature_bytes(f.v), lane = (size_t)EACH * ((size_t)f.one_bytes + one);
    int n_lanes = vision_encoder_n_runs(f.v);
    unsigned char *want = malloc(RUNS * EACH * one);
    for (int run = 0; run < RUNS; run++) {
        unsigned char *pixels = pictures(&f, (int[]){run % 3, (run + 1) % 3}, EACH);
        assert_int_equal(vision_encoder_run(f.v, pixels, EACH, want + (size_t)run * EACH * one, &e), STATUS_OK);
        free(pixels);
    }
    void *pinned;
    assert_int_equal(ops_host_open(f.ctx, &pinned, (size_t)n_lanes * lane, &e), STATUS_OK);
    for (int run = 0; run < RUNS + n_lanes; run++) {
        unsigned char *at = (unsigned char *)pinned + (size_t)(run % n_lanes) * lane, *features = at + EACH * f.one_bytes;
        if (run >= n_lanes) {
            assert_int_equal(vision_encoder_finish(f.v, &e), STATUS_OK);
            assert_memory_equal(features, want + (size_t)(run - n_lanes) * EACH * one, EACH * one);
        }
        if (run >= RUNS) continue;
        unsigned char *pixels = pictures(&f, (int[]){run % 3, (run + 1) % 3}, EACH);
        memcpy(at, pixels, (size_t)EACH * (size_t)f.one_bytes);
        const unsigned char *each_pixels[EACH] = {at, at + f.one_bytes};
        void *each_features[EACH] = {features, features + one};
        assert_int_equal(vision_encoder_start(f.v, each_pixels, EACH, each_features, &e), STATUS_OK);
        free(pixels);
    }
    ops_host_close(f.ctx, &pinned, (size_t)n_lanes * lane);
    free(want);
    close_fixture(&f);
}

static void a_run_of_too_many_pictures_is_refused_with_both_numbers(void **state) {
    (void)state;
    fixture f;
    err e;
    unsigned char pixels = 0;
    open_fixture(&f, "one_head", 1, 2);
    assert_int_equal(vision_encoder_run(f.v, &pixels, 3, &pixels, &e), STATUS_BAD_ARGUMENT);
    assert_non_null(strstr(e.text, "3 images"));
    assert_non_null(strstr(e.text, "1 to 2"));
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layer_equals_transformers_with_three_heads_of_72),
        cmocka_unit_test(every_layer_equals_transformers_from_bf16),
        cmocka_unit_test(every_layer_equals_transformers_from_f16_with_one_head_of_72),
        cmocka_unit_test(every_layer_equals_transformers_from_shards_with_a_rest_of_pixels),
        cmocka_unit_test(every_layer_of_clip_equals_transformers),
        cmocka_unit_test(every_layer_of_dinov2_equals_transformers_on_another_grid_and_its_own),
        cmocka_unit_test(a_picture_has_the_same_features_in_any_company_and_with_any_threads),
        cmocka_unit_test(runs_under_way_at_once_have_the_features_of_runs_alone),
        cmocka_unit_test(a_run_of_too_many_pictures_is_refused_with_both_numbers),
    };
    if (ops_device_count(TEST_DEVICE) == 0) return TEST_SKIPPED;
    const struct CMUnitTest matrix[] = {cmocka_unit_test(every_layer_of_every_case_equals_transformers)};
    return golden_is_matrix() ? cmocka_run_group_tests(matrix, NULL, NULL) : cmocka_run_group_tests(tests, NULL, NULL);
}
