/* Adapters against PEFT (tools/make_golden_adapter.py), tensor by tensor, and adapters that are nearly right. */
#include "tests/support/support.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"
#include "model/safetensors.h"
#include "tests/lm_node/golden.h"

#define ADAPTERS TEST_DATA_DIR "/adapters"

static model *open_with(const golden *g, const char *adapter_dir) {
    model *m;
    err e;
    if (model_open(&m, &(model_settings){.dir = golden_dir(g), .adapter = adapter_dir, .parts = MODEL_PART_ALL}, &e) != STATUS_OK) fail_msg("%s", e.text);
    return m;
}

static safetensors *open_merged(const char *name) {
    char path[512];
    (void)snprintf(path, sizeof path, ADAPTERS "/%s/merged.safetensors", name);
    safetensors *f;
    err e;
    if (safetensors_open(&f, path, &e) != STATUS_OK) fail_msg("%s", e.text);
    return f;
}

static ops_tensor view_of(const safetensors_tensor *t) {
    return tensor_make((void *)(uintptr_t)t->data, OPS_PLACE_HOST, OPS_DTYPE_F32, t->n_dims, t->dims);
}

/* Sums of a few products in two orders in f32, then one rounding to the stored type. */
static void compare(const model *m, const safetensors_tensor *want, size_t *n_rounded) {
    ops_tensor got = model_weight(m, "%s", want->name), theirs = view_of(want);
    double step = got.dtype == OPS_DTYPE_F32 ? 0 : got.dtype == OPS_DTYPE_F16 ? 0x1p-10 : 0x1p-7;
    assert_int_equal(tensor_elements(&got), tensor_elements(&theirs));
    for (int64_t i = 0; i < tensor_elements(&got); i++) {
        float a = tensor_value(&got, i), b = tensor_value(&theirs, i);
        float rounded = got.dtype == OPS_DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(b)) : b;
        *n_rounded += a != rounded;
        if (fabs((double)a - (double)b) > 1e-6 + step * fabs((double)b))
            fail_msg("%s [%lld]: %g, PEFT has %g", want->name, (long long)i, (double)a, (double)b);
    }
}

static void check_merged(const char *case_name, const char *adapter_name) {
    char dir[512];
    (void)snprintf(dir, sizeof dir, ADAPTERS "/%s", adapter_name);
    golden *g = golden_open(case_name);
    model *m = open_with(g, dir), *base = open_with(g, NULL);
    safetensors *merged = open_merged(adapter_name);
    size_t n_rounded = 0;
    for (size_t i = 0; i < safetensors_count(merged); i++) compare(m, safetensors_at(merged, i), &n_rounded);
    assert_true(safetensors_count(merged) >= 3 && n_rounded < 2000);
    ops_tensor same = model_weight(m, "model.layers.0.input_layernorm.weight");
    ops_tensor theirs = model_weight(base, "model.layers.0.input_layernorm.weight");
    assert_memory_equal(same.data, theirs.data, tensor_bytes(&same)); /* what it does not name stays */
    assert_memory_not_equal(model_fingerprint(m), model_fingerprint(base), HASH_SHA256_BYTES);
    assert_memory_equal(model_tower_fingerprint(m), model_tower_fingerprint(base), HASH_SHA256_BYTES);
    safetensors_close(&merged);
    model_close(&base);
    model_close(&m);
    golden_close(&g);
}

static void merged_weights_are_those_of_peft(void **state) {
    (void)state;
    check_merged("clip", "clip.plain");
    check_merged("gemma", "gemma.plain");
}

static void ranks_scales_saved_modules_and_embeddings_are_those_of_peft(void **state) {
    (void)state;
    check_merged("clip", "clip.everything");
}

static void merged_weights_are_rounded_once_to_the_stored_type(void **state) {
    (void)state;
    check_merged("grouped", "grouped.plain");
}

/* ---- adapters of one's own ----------------------------------------------------------------------- */

static void copy_into(const char *dir, const char *from, const char *name, const char *as) {
    char path[512];
    (void)snprintf(path, sizeof path, ADAPTERS "/%s/%s", from, name);
    buf content;
    buf_init(&content, 16 << 20);
    assert_true(file_read(&content, path));
    char *to = path_join(dir, as);
    file_write(to, content.data, content.len_bytes);
    free(to);
    buf_deinit(&content);
}

/* The adapter "clip.plain" with one key of its config changed. */
static char *adapter_with(const char *key, const char *value) {
    char *dir = temp_dir_make();
    copy_into(dir, "clip.plain", "adapter_model.safetensors", "adapter_model.safetensors");
    json_t *config = json_load_file(ADAPTERS "/clip.plain/adapter_config.json", 0, NULL);
    if (key) json_object_set_new(config, key, json_loads(value, JSON_DECODE_ANY, NULL));
    char *path = path_join(dir, "adapter_config.json"), *text = json_dumps(config, 0);
    file_write(path, text, strlen(text));
    free(text), free(path);
    json_decref(config);
    return dir;
}

static void what_training_saved_beside_the_adapter_comes_first(void **state) {
    (void)state;
    char *dir = adapter_with(NULL, NULL);
    copy_into(dir, "clip.plain", "merged.safetensors", "non_lora_trainables.safetensors");
    golden *g = golden_open("clip");
    model *m = open_with(g, dir), *base = open_with(g, NULL);
    safetensors *merged = open_merged("clip.plain");
    for (size_t i = 0; i < safetensors_count(merged); i++) {
        const safetensors_tensor *t = safetensors_at(merged, i);
        ops_tensor got = model_weight(m, "%s", t->name), first = model_weight(base, "%s", t->name), once = view_of(t);
        for (int64_t k = 0; k < tensor_elements(&got); k++) {
            double twice = 2.0 * (double)tensor_value(&once, k) - (double)tensor_value(&first, k);
            assert_true(fabs((double)tensor_value(&got, k) - twice) < 2e-6);
        }
    }
    safetensors_close(&merged);
    model_close(&base);
    model_close(&m);
    golden_close(&g);
    temp_dir_remove(dir);
}

static void refused(const char *case_name, char *dir, const char *says) {
    golden *g = golden_open(case_name);
    model *m;
    err e = {0};
    status st = model_open(&m, &(model_settings){.dir = golden_dir(g), .adapter = dir, .parts = MODEL_PART_ALL}, &e);
    if (st == STATUS_OK) fail_msg("taken, though it should say \"%s\"", says);
    if (!strstr(e.text, says)) fail_msg("\"%s\" does not say \"%s\"", e.text, says);
    golden_close(&g);
    temp_dir_remove(dir);
}

static void an_adapter_that_is_nearly_right_is_refused_by_name(void **state) {
    (void)state;
    refused("clip", adapter_with("peft_type", "\"IA3\""), "peft_type is \"IA3\", expected \"LORA\"");
    refused("clip", adapter_with("use_dora", "true"), "use_dora is true, expected false");
    refused("clip", adapter_with("lora_alpha", "\"x\""), "lora_alpha is \"x\"");
    refused("clip", temp_dir_make(), "adapter_config.json");
    refused("grouped", adapter_with(NULL, NULL), "expected F32, F16 or BF16 whose product is [");
    refused("gemma", adapter_with(NULL, NULL), "q_proj");
    char *dir = adapter_with(NULL, NULL), *pickle = path_join(dir, "non_lora_trainables.bin");
    file_write(pickle, "PK", 2);
    free(pickle);
    refused("clip", dir, "is a pickle, which is not read");
    dir = adapter_with(NULL, NULL);
    copy_into(dir, "../golden/clip", "golden.safetensors", "non_lora_trainables.safetensors");
    refused("clip", dir, "of non_lora_trainables.safetensors is not of this model");
}

/* ---- served --------------------------------------------------------------------------------------- */

static void not_served(const char *case_name, const char *first, const char *second, const char *says) {
    golden *g = golden_open(case_name);
    const char *both[] = {first, second};
    model_settings s = {.dir = golden_dir(g), .served = both, .n_served = second ? 2 : 1, .parts = MODEL_PART_ALL};
    model *m;
    err e = {0};
    if (model_open(&m, &s, &e) == STATUS_OK) fail_msg("taken, though it should say \"%s\"", says);
    if (!strstr(e.text, says)) fail_msg("\"%s\" does not say \"%s\"", e.text, says);
    golden_close(&g);
}

static void what_cannot_be_served_is_refused_by_name(void **state) {
    (void)state;
    not_served("clip", "x", NULL, "expected NAME=DIR");
    not_served("clip", "x=", NULL, "expected NAME=DIR");
    not_served("clip", "=" ADAPTERS "/clip.plain", NULL, "a name of 0 bytes");
    not_served("clip", "a=" ADAPTERS "/clip.plain", "a=" ADAPTERS "/clip.all", "two adapters are called \"a\"");
    not_served("clip", "a=" ADAPTERS "/clip.everything", NULL, "is not of what an adapter may change that is served");
    not_served("gemma", "a=" ADAPTERS "/clip.plain", NULL, "q_proj");
    not_served("clip", "a=" ADAPTERS "/nowhere", NULL, "nowhere");
}

static void served_adapters_are_in_the_fingerprint_with_their_names(void **state) {
    (void)state;
    static const char *const plain[] = {"a=" ADAPTERS "/clip.plain"}, *const all[] = {"a=" ADAPTERS "/clip.all"};
    static const char *const renamed[] = {"b=" ADAPTERS "/clip.plain"};
    const char *const *const lists[] = {NULL, plain, all, renamed};
    unsigned char prints[4][HASH_SHA256_BYTES];
    golden *g = golden_open("clip");
    for (int i = 0; i < 4; i++) {
        model *m;
        err e;
        model_settings s = {.dir = golden_dir(g), .served = lists[i], .n_served = i > 0, .parts = MODEL_PART_ALL};
        if (model_open(&m, &s, &e) != STATUS_OK) fail_msg("%s", e.text);
        memcpy(prints[i], model_fingerprint(m), HASH_SHA256_BYTES);
        assert_int_equal(model_find_served(m, "a"), i == 1 || i == 2);
        assert_int_equal(model_find_served(m, "none"), 0);
        for (int k = 0; k < i; k++) assert_memory_not_equal(prints[k], prints[i], HASH_SHA256_BYTES);
        model_close(&m);
    }
    golden_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merged_weights_are_those_of_peft),
        cmocka_unit_test(ranks_scales_saved_modules_and_embeddings_are_those_of_peft),
        cmocka_unit_test(merged_weights_are_rounded_once_to_the_stored_type),
        cmocka_unit_test(what_training_saved_beside_the_adapter_comes_first),
        cmocka_unit_test(an_adapter_that_is_nearly_right_is_refused_by_name),
        cmocka_unit_test(what_cannot_be_served_is_refused_by_name),
        cmocka_unit_test(served_adapters_are_in_the_fingerprint_with_their_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
