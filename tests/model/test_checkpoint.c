/* Opening a checkpoint folder: what is the same model, and what is refused and with which words. The folders
 * are small ones in the published format (checkpoint.h) with one thing wrong in each. */
#include "tests/model/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "model/model.h"

#define CASE      "one_head" /* identity projector, two tower layers of which one runs */
#define TOWER     "model.vision_tower.vision_model."
#define SAYS(...) ((const char *const[]){__VA_ARGS__, NULL})

static model *open_model(const checkpoint *c) {
    model *m;
    err e;
    if (model_open(&m, &(model_settings){.dir = c->dir, .parts = MODEL_PART_ALL}, &e) != STATUS_OK) fail_msg("%s", e.text);
    return m;
}

static void expect_words(const char *text, const char *const *needles) {
    for (; *needles; needles++)
        if (!strstr(text, *needles)) fail_msg("\"%s\" does not say \"%s\"", text, *needles);
}

/* What lies in the folder now is refused, and the text says each of the needles. */
static void folder_is_refused(const checkpoint *c, status want, const char *const *needles) {
    model *m;
    err e = {0};
    status st = model_open(&m, &(model_settings){.dir = c->dir, .parts = MODEL_PART_ALL}, &e);
    if (st == STATUS_OK) fail_msg("taken, though it should say \"%s\"", needles[0]);
    expect_words(e.text, needles);
    assert_int_equal(st, want);
    assert_null(m);
}

/* Writes, expects the refusal, and ends the checkpoint. */
static void refused(checkpoint *c, const char *const *needles) {
    checkpoint_write(c, 1);
    folder_is_refused(c, STATUS_BAD_MODEL, needles);
    checkpoint_close(c);
}

/* The object a dotted path leads to; the last part goes to *key. */
static json_t *walk(json_t *root, const char *path, char key[64]) {
    while (strchr(path, '.')) {
        const char *dot = strchr(path, '.');
        char part[64];
        (void)snprintf(part, sizeof part, "%.*s", (int)(dot - path), path);
        root = json_object_get(root, part);
        assert_non_null(root);
        path = dot + 1;
    }
    (void)snprintf(key, 64, "%s", path);
    return root;
}

static void set_key(json_t *root, const char *path, const char *json) {
    char key[64];
    json_t *object = walk(root, path, key), *value = json_loads(json, JSON_DECODE_ANY, NULL);
    assert_non_null(value);
    assert_int_equal(json_object_set_new(object, key, value), 0);
}

/* ---- what is taken ------------------------------------------------------------------------------- */

static void expect_values(const model *m, const checkpoint *c) {
    const char *name;
    json_t *entry;
    json_object_foreach(c->tensors, name, entry) {
        if (strstr(name, "post_layernorm") || strstr(name, ".head.") || strstr(name, "encoder.layers.1."))
            continue; /* not computed, so nobody may ask for them */
        ops_tensor t = model_weight(m, "%s", name);
        const unsigned char *data = t.data;
        size_t n = 1, bytes_each = t.dtype == OPS_DTYPE_F32 ? 4 : 2;
        for (int d = 0; d < t.n_dims; d++) {
            assert_int_equal(t.dims[d], json_integer_value(json_array_get(checkpoint_shape(c, name), (size_t)d)));
            n *= (size_t)t.dims[d];
        }
        for (size_t i = 0; i < n; i++) {
            uint16_t half;
            float value;
            memcpy(&half, data + i * bytes_each, sizeof half);
            if (t.dtype == OPS_DTYPE_F32)
                memcpy(&value, data + i * bytes_each, sizeof value);
            else
                value = t.dtype == OPS_DTYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
            if (value != checkpoint_value(name, i)) fail_msg("%s value %zu is %g", name, i, (double)value);
        }
    }
}

static void every_tensor_reads_as_it_was_written_in_every_dtype(void **state) {
    (void)state;
    static const struct {
        const char *text;
        ops_dtype dtype;
    } dtypes[] = {{"F32", OPS_DTYPE_F32}, {"F16", OPS_DTYPE_F16}, {"BF16", OPS_DTYPE_BF16}};
    for (size_t i = 0; i < 3; i++) {
        checkpoint c = checkpoint_load(CASE);
        checkpoint_set_dtype(&c, dtypes[i].text);
        checkpoint_write(&c, 1);
        model *m = open_model(&c);
        assert_int_equal(model_tower_dtype(m), dtypes[i].dtype);
        expect_values(m, &c);
        model_close(&m);
        checkpoint_close(&c);
    }
}

static void a_tower_of_two_dtypes_counts_as_f32(void **state) {
    (void)state;
    checkpoint c = checkpoint_load(CASE);
    checkpoint_set_dtype(&c, "F16");
    json_object_set_new(json_object_get(c.tensors, TOWER "embeddings.patch_embedding.bias"), "dtype",
                        json_string("BF16"));
    checkpoint_write(&c, 1);
    model *m = open_model(&c);
    assert_int_equal(model_tower_dtype(m), OPS_DTYPE_F32);
    expect_values(m, &c);
    model_close(&m);
    checkpoint_close(&c);
}

static void expect_same_fingerprints(const checkpoint *a, const checkpoint *b, bool is_same) {
    model *x = open_model(a), *y = open_model(b);
    assert_int_equal(memcmp(model_fingerprint(x), model_fingerprint(y), HASH_SHA256_BYTES) == 0, is_same);
    if (is_same)
        assert_memory_equal(model_tower_fingerprint(x), model_tower_fingerprint(y), HASH_SHA256_BYTES);
    model_close(&x);
    model_close(&y);
}

static void shards_and_one_file_are_the_same_model(void **state) {
    (void)state;
    checkpoint one = checkpoint_load(CASE), three = checkpoint_load(CASE);
    checkpoint_write(&one, 1);
    checkpoint_write(&three, 3);
    model *m = open_model(&three);
    expect_values(m, &three);
    model_close(&m);
    expect_same_fingerprints(&one, &three, true);
    checkpoint_close(&one);
    checkpoint_close(&three);
}

static void names_in_the_wrappers_of_training_are_the_same_model(void **state) {
    (void)state;
    checkpoint plain = checkpoint_load(CASE), wrapped = checkpoint_load(CASE);
    checkpoint_rename(&wrapped, "lm_head.weight", "base_model.model.lm_head.weight");
    checkpoint_rename(&wrapped, "lm_head.bias", "module.module.lm_head.bias");
    checkpoint_write(&plain, 1);
    checkpoint_write(&wrapped, 2);
    expect_same_fingerprints(&plain, &wrapped, true);
    checkpoint_rename(&plain, "lm_head.bias", "module.lm_head.bias");
    json_object_set(plain.tensors, "lm_head.bias", json_object_get(plain.tensors, "module.lm_head.bias"));
    checkpoint_write(&plain, 1);
    folder_is_refused(&plain, STATUS_BAD_MODEL, SAYS("lm_head.bias is there twice", "model.safetensors"));
    checkpoint_close(&plain);
    checkpoint_close(&wrapped);
}

static void one_other_value_or_setting_is_another_model(void **state) {
    (void)state;
    checkpoint a = checkpoint_load(CASE), b = checkpoint_load(CASE);
    json_object_set_new(json_object_get(b.tensors, "lm_head.bias"), "values", json_string("another"));
    checkpoint_write(&a, 1);
    checkpoint_write(&b, 1);
    expect_same_fingerprints(&a, &b, false);
    json_object_set_new(json_object_get(b.tensors, "lm_head.bias"), "values", json_string("lm_head.bias"));
    checkpoint_write(&b, 1);
    expect_same_fingerprints(&a, &b, true);
    set_key(b.config, "layer_norm_eps", "2e-5");
    checkpoint_write(&b, 1);
    expect_same_fingerprints(&a, &b, false);
    checkpoint_close(&a);
    checkpoint_close(&b);
}

/* ---- tensors ------------------------------------------------------------------------------------- */

static bool is_not_computed(const char *name) {
    return strstr(name, "post_layernorm") || strstr(name, "vision_model.head.") ||
           strstr(name, "encoder.layers.1.");
}

static void each_missing_tensor_is_named_unless_nobody_reads_it(void **state) {
    (void)state;
    checkpoint c = checkpoint_load(CASE);
    json_t *whole = json_copy(c.tensors), *entry;
    const char *name;
    int n_missed = 0;
    json_object_foreach(whole, name, entry) {
        assert_int_equal(json_object_del(c.tensors, name), 0);
        checkpoint_write(&c, 1);
        if (is_not_computed(name)) {
            model *m = open_model(&c);
            model_close(&m);
        } else {
            folder_is_refused(&c, STATUS_BAD_MODEL, SAYS(name, "missing", "expected shape ["));
            n_missed++;
        }
        json_object_set(c.tensors, name, entry);
    }
    assert_true(n_missed > 60);
    json_decref(whole);
    checkpoint_close(&c);
}

static void each_misshapen_tensor_is_named_with_both_shapes(void **state) {
    (void)state;
    checkpoint c = checkpoint_load(CASE);
    json_t *whole = json_copy(c.tensors), *entry;
    const char *name;
    json_object_foreach(whole, name, entry) {
        json_t *shape = json_object_get(entry, "shape");
        size_t last = json_array_size(shape) - 1;
        json_int_t was = json_integer_value(json_array_get(shape, last));
        char found[32], expected[32];
        (void)snprintf(found, sizeof found, "%d], expected", (int)was + 1);
        (void)snprintf(expected, sizeof expected, "%d]", (int)was);
        json_array_set_new(shape, last, json_integer(was + 1));
        checkpoint_write(&c, 1);
        if (!is_not_computed(name))
            folder_is_refused(&c, STATUS_BAD_MODEL, SAYS("model.safetensors", name, found, expected));
        json_array_set_new(shape, last, json_integer(was));
    }
    json_decref(whole);
    checkpoint_close(&c);
}

static void a_transposed_tensor_is_refused(void **state) {
    (void)state;
    checkpoint c = checkpoint_load(CASE);
    json_t *shape = checkpoint_shape(&c, "model.layers.0.mlp.fc1.weight");
    json_array_append(shape, json_array_get(shape, 0));
    json_array_remove(shape, 0);
    refused(&c, SAYS("model.safetensors", "model.layers.0.mlp.fc1.weight", "[72, 40], expected [40, 72]"));

    c = checkpoint_load(CASE);
    shape = checkpoint_shape(&c, "model.layers.0.mlp.fc1.weight");
    json_array_append_new(shape, json_integer(1));
    refused(&c, SAYS("fc1.weight", "[40, 72, 1], expected [40, 72]"));
}

static void a_damaged_vocabulary_is_named_and_nothing_else(void **state) {
    (void)state;
    static const char *const names[] = {"lm_head.weight", "model.embed_tokens.weight"};
    for (size_t i = 0; i < 2; i++) {
        checkpoint c = checkpoint_load(CASE);
        json_t *shape = checkpoint_shape(&c, names[i]);
        json_array_append(shape, json_array_get(shape, 0));
        json_array_remove(shape, 0);
        refused(&c, SAYS(names[i], "[72, 275], expected [275, 72]"));
        c = checkpoint_load(CASE);
        assert_int_equal(json_object_del(c.tensors, names[i]), 0);
        refused(&c, SAYS(names[i], "missing, expected shape [275, 72]"));
    }
    checkpoint c = checkpoint_load(CASE);
    json_array_set_new(checkpoint_shape(&c, "lm_head.weight"), 0, json_integer(0));
    refused(&c, SAYS("lm_head.weight has shape [0, 72], expected [275, 72]"));
}

static void a_tensor_of_a_dtype_that_no_network_reads_is_refused(void **state) {
    (void)state;
    checkpoint c = checkpoint_load(CASE);
    json_object_set_new(json_object_get(c.tensors, "lm_head.weight"), "dtype", json_string("F64"));
    refused(&c, SAYS("model.safetensors", "lm_head.weight is F64, expected F32, F16 or BF16"));
}

static void set_blocks(checkpoint *c, const char *name, int row_bytes) {
    json_object_set_new(json_object_get(c->tensors, name), "dtype", json_string("U8"));
    json_array_set_new(checkpoint_shape(c, name), 1, json_integer(row_bytes));
}

/* 72 values are three blocks: 102 bytes of q8, 54 of q4. */
static void matrices_in_blocks_are_read_and_nothing_else_is(void **state) {
    (void)state;
    static const char MATRIX[] = "model.layers.0.mlp.fc1.weight", TABLE[] = "model.embed_tokens.weight";
    static const struct {
        int row_bytes;
        ops_dtype dtype;
    } forms[] = {{102, OPS_DTYPE_Q8}, {54, OPS_DTYPE_Q4}};
    for (size_t i = 0; i < 2; i++) {
        checkpoint c = checkpoint_load(CASE);
        set_blocks(&c, MATRIX, forms[i].row_bytes);
        checkpoint_write(&c, 1);
        model *m = open_model(&c);
        ops_tensor w = model_weight(m, "%s", MATRIX);
        assert_int_equal(w.dtype, forms[i].dtype);
        assert_true(w.n_dims == 2 && w.dims[0] == 40 && w.dims[1] == 72);
        model_close(&m);
        checkpoint_close(&c);
    }
    checkpoint c = checkpoint_load(CASE);
    set_blocks(&c, MATRIX, 72);
    refused(&c, SAYS("fc1.weight is U8 [40, 72], expected [40, 102] (q8) or [40, 54] (q4)"));
    c = checkpoint_load(CASE);
    set_blocks(&c, TABLE, 102);
    refused(&c, SAYS("embed_tokens.weight", "[275, 102], expected [275, 72]"));
}

static void other_decoders_are_recognised_by_their_tensors(void **state) {
    (void)state;
    static const char *const names[][2] = {{"self_attn.query_key_value", "Phi-1.5"},
                                           {"self_attn.qkv_proj", "Phi-3"},
                                           {"mlp.gate_proj", "Gemma"}};
    for (size_t i = 0; i < 3; i++) {
        checkpoint c = checkpoint_load(CASE);
        char name[96];
        (void)snprintf(name, sizeof name, "model.layers.0.%s.weight", names[i][0]);
        checkpoint_rename(&c, "model.layers.0.self_attn.q_proj.weight", name);
        refused(&c, SAYS("config.json: ", "as the tensors are those of ", names[i][1]));
    }
}

/* ---- verify and inspect -------------------------------------------------------------------------- */

static status report(status (*print)(const char *, FILE *, err *), const checkpoint *c, char **text) {
    size_t n = 0;
    err e = {0};
    FILE *to = open_memstream(text, &n);
    assert_non_null(to);
    status st = print(c->dir, to, &e);
    (void)fclose(to);
    return st;
}

static void verify_names_every_finding_and_not_just_the_first(void **state) {
    (void)state;
    checkpoint c = checkpoint_load(CASE);
    char *text;
    json_object_set_new(c.tensors, "model.rotary_emb.inv_freq",
                        json_pack("{s:s,s:[i]}", "dtype", "F32", "shape", 4)); /* nothing learned */
    checkpoint_write(&c, 1);
    assert_int_equal(report(model_verify, &c, &text), STATUS_OK);
    expect_words(text, SAYS("tensors present", "none extra"));
    free(text);

    checkpoint_rename(&c, "lm_head.bias", "lm_head.bais");
    json_array_set_new(checkpoint_shape(&c, "model.final_layernorm.bias"), 0, json_integer(7));
    assert_int_equal(json_object_del(c.tensors, TOWER "embeddings.patch_embedding.bias"), 0);
    set_key(c.tokenizer, "normalizer", "{\"type\":\"NFC\"}");
    checkpoint_write(&c, 1);
    assert_int_equal(report(model_verify, &c, &text), STATUS_BAD_MODEL);
    expect_words(text, SAYS("model.safetensors: tensor lm_head.bias is missing", "model.safetensors: tensor lm_head.bais F16 [275]",
                            "model.final_layernorm.bias has shape [7], expected [72]",
                            "patch_embedding.bias is missing", "normalizer is of type NFC"));
    free(text);
    checkpoint_close(&c);
}

static void an_extra_tensor_opens_but_does_not_verify(void **state) {
    (void)state;
    checkpoint c = checkpoint_load(CASE);
    char *text;
    json_object_set_new(c.tensors, "model.extra", json_pack("{s:s,s:[i]}", "dtype", "I64", "shape", 0));
    checkpoint_write(&c, 1);
    model *m = open_model(&c);
    model_close(&m);
    assert_int_equal(report(model_verify, &c, &text), STATUS_BAD_MODEL);
    expect_words(text, SAYS("model.safetensors: tensor model.extra I64 [0] is not part"));
    free(text);
    checkpoint_close(&c);
}

static void inspect_prints_the_sizes_of_the_config(void **state) {
    (void)state;
    checkpoint c = checkpoint_load(CASE);
    char *text;
    checkpoint_write(&c, 2);
    assert_int_equal(report(model_inspect, &c, &text), STATUS_OK);
    expect_words(text, SAYS("1 of 2 layers, width 72", "28 x 28 pixels", "4 tokens", "identity", "275 rows in",
                            "9 heads (3 for keys) of 8, 4 rotary", "F16 in 2 files", "sha256:"));
    free(text);
    set_key(c.config, "hidden_size", "0");
    checkpoint_write(&c, 2);
    assert_int_equal(report(model_inspect, &c, &text), STATUS_BAD_MODEL);
    free(text);
    checkpoint_close(&c);
}

/* ---- configs ------------------------------------------------------------------------------------- */

typedef struct {
    const char *path, *json, *says;
} bad_key;

static void refuse_each(const char *golden_case, bool is_preprocess, const bad_key *rows, size_t n) {
    for (size_t i = 0; i < n; i++) {
        checkpoint c = checkpoint_load(golden_case);
        set_key(is_preprocess ? c.preprocess : c.config, rows[i].path, rows[i].json);
        const char *key = strrchr(rows[i].path, '.') ? strrchr(rows[i].path, '.') + 1 : rows[i].path;
        refused(&c, SAYS(rows[i].says, is_preprocess ? "preprocessor_config.json" : "config.json", key));
    }
}

#define VT "vision_config.vision_tower."
#define MP "vision_config.mm_projector."

static void a_config_that_this_engine_does_not_run_is_refused_by_key(void **state) {
    (void)state;
    static const bad_key rows[] = {
        {"model_type", "\"mipha_gemma\"", "\"mipha_gemma\", expected \"mipha_phi\""},
        {"model_type", "\"llama\"", "\"llama\", expected"},
        {"model_type", "null", "nothing, expected \"mipha_phi\""},
        {"model_type", "3", "is 3, expected a string"},
        {"architectures", "[\"MiphaPhi15ForCausalLM\"]", "MiphaPhi15ForCausalLM first, expected Mipha"},
        {"architectures", "[]", "names nothing first"},
        {"hidden_act", "\"relu\"", "\"relu\", expected \"gelu\""},
        {"qk_layernorm", "true", "true, expected false"},
        {"tie_word_embeddings", "true", "true, expected false"},
        {"mm_use_im_start_end", "true", "true, expected false"},
        {"rope_scaling", "{\"type\":\"linear\"}", "expected null"},
        {"hidden_size", "0", "is 0, expected a whole number from 1 to 65536"},
        {"hidden_size", "-72", "is -72, expected"},
        {"hidden_size", "72.0", "is 72, expected a whole number"},
        {"hidden_size", "\"72\"", "is \"72\", expected"},
        {"hidden_size", "4611686018427387904", "is 4611686018427387904, expected"},
        {"num_attention_heads", "7", "is 7, expected a divisor of hidden_size, which is 72"},
        {"num_key_value_heads", "2", "is 2, expected a divisor of num_attention_heads, which is 9"},
        {"num_hidden_layers", "513", "is 513, expected"},
        {"partial_rotary_factor", "0.125", "1 rotary dimensions, expected an even"},
        {"partial_rotary_factor", "0.4", "3 rotary dimensions, expected an even"},
        {"partial_rotary_factor", "1.5", "is 1.5, expected a number from 0 to 1"},
        {"layer_norm_eps", "0", "is 0, expected"},
        {"vision_config", "[]", "an array of 0, expected an object"},
        {VT "vision_model_name_or_path", "\"google/vit-base\"", "\"google/vit-base\", expected a name with \"clip\""},
        {VT "vision_model_name_or_path", "\"SigLIP\"", "\"SigLIP\", expected"},
        {VT "num_attention_heads", "5", "is 5, expected a divisor of hidden_size"},
        {VT "patch_size", "29", "is 29, expected at most image_size, which is 28"},
        {VT "patch_size", "null", "is 32, expected at most image_size, which is 28"},
        {VT "num_channels", "1", "is 1, expected"},
        {VT "hidden_act", "\"relu\"", "\"relu\", expected \"gelu\""},
        {VT "mm_vision_select_layer", "3", "is 3, expected a whole number from -3 to 2"},
        {VT "mm_vision_select_feature", "\"cls\"", "\"cls\", expected"},
        {MP "mm_projector_type", "\"mlp0x_gelu\"", "\"mlp0x_gelu\", expected"},
        {MP "mm_projector_type", "\"mlp17x_gelu\"", "\"mlp17x_gelu\", expected"},
        {MP "mm_projector_type", "\"mlp2x_gelux\"", "\"mlp2x_gelux\", expected"},
        {MP "mm_hidden_size", "71", "is 71, expected 72, the tower's hidden_size"},
        {MP "hidden_size", "71", "is 71, expected 72, the decoder's hidden_size"},
    };
    refuse_each(CASE, false, rows, sizeof rows / sizeof *rows);
}

static void a_preprocessor_config_that_makes_other_pixels_is_refused_by_key(void **state) {
    (void)state;
    static const bad_key rows[] = {
        {"do_resize", "false", "false, expected true"},
        {"do_rescale", "false", "false, expected true"},
        {"do_normalize", "0", "is 0, expected true or false"},
        {"do_center_crop", "true", "true, expected false"},
        {"resample", "2", "is 2, expected"},
        {"size", "{\"height\":384,\"width\":384}", "384 by 384, expected 28 by 28"},
        {"size", "27", "27 by 27, expected 28 by 28"},
        {"size", "{\"shortest_edge\":28}", "an object, expected 28 by 28"},
        {"rescale_factor", "0", "is 0, expected a number"},
        {"image_mean", "[0.5,0.5]", "array of three numbers"},
        {"image_mean", "[0.5,0.5,1.5]", "array of three numbers from 0 to 1"},
        {"image_std", "[0.5,0,0.5]", "array of three numbers"},
        {"image_std", "0.5", "array of three numbers"},
    };
    refuse_each(CASE, true, rows, sizeof rows / sizeof *rows);
}

static void a_config_that_the_tensors_contradict_names_the_tensor(void **state) {
    (void)state;
    static const bad_key rows[] = {
        {"intermediate_size", "41", "model.layers.0.mlp.fc1.bias has shape [40], expected [41]"},
        {"num_hidden_layers", "5", "tensor model.layers.4.input_layernorm.bias is missing"},
        {"num_key_value_heads", "9", "model.layers.0.self_attn.k_proj.bias has shape [24], expected [72]"},
        {VT "intermediate_size", "34", "mlp.fc1.bias has shape [33], expected [34]"},
        {VT "patch_size", "7", "patch_embedding.weight has shape [72, 3, 14, 14], expected [72, 3, 7, 7]"},
        {MP "mm_projector_type", "\"linear\"", "model.mm_projector.bias is missing, expected shape [72]"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        checkpoint c = checkpoint_load(CASE);
        set_key(c.config, rows[i].path, rows[i].json);
        refused(&c, SAYS(rows[i].says));
    }
}

/* ---- tokenizers ---------------------------------------------------------------------------------- */

static void a_tokenizer_that_does_not_fit_is_refused(void **state) {
    (void)state;
    checkpoint c = checkpoint_load(CASE);
    set_key(c.tokenizer, "model.vocab.twice", "7");
    refused(&c, SAYS("tokenizer.json", "id 7 has two texts", "\"twice\""));

    c = checkpoint_load(CASE);
    set_key(c.tokenizer, "model.vocab.last", "275");
    refused(&c, SAYS("ids up to 275", "model.embed_tokens.weight has 275 rows"));

    c = checkpoint_load(CASE);
    set_key(c.tokenizer, "model.vocab.last", "274");
    checkpoint_write(&c, 1);
    model *m = open_model(&c);
    assert_int_equal(tokenizer_n_ids(model_get_tokenizer(m)), 275);
    model_close(&m);
    checkpoint_close(&c);

    c = checkpoint_load(CASE);
    set_key(c.tokenizer, "added_tokens", "[]");
    refused(&c, SAYS("tokenizer.json", "end token \"<|endoftext|>\" is not in the vocabulary"));
}

/* ---- shards -------------------------------------------------------------------------------------- */

static void put_index(checkpoint *c, const char *tensor, const char *file) {
    json_object_set_new(c->index, tensor, json_string(file));
    json_t *whole = json_pack("{s:O}", "weight_map", c->index);
    checkpoint_write_json(c, "model.safetensors.index.json", whole);
    json_decref(whole);
}

static void an_index_that_leaves_the_folder_is_refused(void **state) {
    (void)state;
    static const char *const names[] = {"../model-00001-of-00002.safetensors", "/etc/passwd", "sub/model.safetensors",
                                        "..", "..\\model.safetensors", ""};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        checkpoint c = checkpoint_load(CASE);
        checkpoint_write(&c, 2);
        put_index(&c, "lm_head.bias", names[i]);
        folder_is_refused(&c, STATUS_BAD_FORMAT,
                          SAYS("model.safetensors.index.json", "lm_head.bias", names[i], "expected the name of a file in"));
        checkpoint_close(&c);
    }
}

static void an_index_and_shards_that_disagree_are_refused(void **state) {
    (void)state;
    static const char first[] = "model-00001-of-00002.safetensors", second[] = "model-00002-of-00002.safetensors";
    checkpoint c = checkpoint_load(CASE);
    checkpoint_write(&c, 2);
    put_index(&c, "more.weight", "model-00003-of-00003.safetensors");
    folder_is_refused(&c, STATUS_IO, SAYS("model-00003-of-00003.safetensors"));
    put_index(&c, "more.weight", first);
    folder_is_refused(&c, STATUS_BAD_MODEL, SAYS("index.json", "more.weight is not in", first));
    json_object_del(c.index, "more.weight");
    const char *now = json_string_value(json_object_get(c.index, "lm_head.bias"));
    bool is_in_first = strcmp(now, first) == 0;
    put_index(&c, "lm_head.bias", is_in_first ? second : first);
    folder_is_refused(&c, STATUS_BAD_MODEL,
                      SAYS("lm_head.bias is not in", "it is in", is_in_first ? first : second));
    json_object_del(c.index, "lm_head.bias");
    put_index(&c, "lm_head.weight", json_string_value(json_object_get(c.index, "lm_head.weight")));
    folder_is_refused(&c, STATUS_BAD_MODEL, SAYS("lm_head.bias in model-0000", "is not listed in the index"));
    json_object_clear(c.index);
    put_index(&c, "a", first);
    folder_is_refused(&c, STATUS_BAD_MODEL, SAYS("tensor a is not in", first));
    json_t *empty = json_pack("{s:{}}", "weight_map");
    checkpoint_write_json(&c, "model.safetensors.index.json", empty);
    folder_is_refused(&c, STATUS_BAD_FORMAT, SAYS("index.json", "weight_map names no file"));
    json_object_clear(empty);
    checkpoint_write_json(&c, "model.safetensors.index.json", empty);
    folder_is_refused(&c, STATUS_BAD_FORMAT, SAYS("index.json", "no object weight_map"));
    json_decref(empty);
    checkpoint_close(&c);
}

static void a_folder_without_one_of_its_files_is_refused_by_name(void **state) {
    (void)state;
    static const char *const names[] = {"config.json", "preprocessor_config.json", "tokenizer.json",
                                        "model.safetensors"};
    for (size_t i = 0; i < 4; i++) {
        checkpoint c = checkpoint_load(CASE);
        checkpoint_write(&c, 1);
        char *path = path_join(c.dir, names[i]);
        assert_int_equal(remove(path), 0);
        folder_is_refused(&c, STATUS_IO, SAYS(names[i]));
        file_write(path, "{", 1);
        folder_is_refused(&c, STATUS_BAD_FORMAT, SAYS(names[i]));
        free(path);
        checkpoint_close(&c);
    }
}

/* ---- other dtypes -------------------------------------------------------------------------------- */

static status open_as(model **m, const checkpoint *c, const char *dtype, err *e) {
    return model_open(m, &(model_settings){.dir = c->dir, .dtype = dtype, .parts = MODEL_PART_ALL}, e);
}

/* The values of the test are exact in all three. */
static void a_converted_checkpoint_is_the_one_stored_so(void **state) {
    (void)state;
    static const char *const NAMES[][2] = {{"F32", "f32"}, {"F16", "f16"}, {"BF16", "bf16"}};
    static const ops_dtype DTYPES[] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16};
    checkpoint c = checkpoint_load(CASE);
    for (int stored = 0; stored < 3; stored++) {
        checkpoint_set_dtype(&c, NAMES[stored][0]);
        checkpoint_write(&c, 1);
        model *as_is = open_model(&c);
        for (int wanted = 0; wanted < 3; wanted++) {
            model *m;
            err e;
            if (open_as(&m, &c, NAMES[wanted][1], &e) != STATUS_OK) fail_msg("%s", e.text);
            expect_values(m, &c);
            bool is_same = memcmp(model_fingerprint(m), model_fingerprint(as_is), HASH_SHA256_BYTES) == 0;
            bool is_exact = wanted != 2; /* bf16 is a product too */
            assert_int_equal(model_product(m), is_exact ? OPS_PRODUCT_F32 : OPS_PRODUCT_BF16);
            assert_int_equal(is_same, wanted == stored && is_exact);
            assert_int_equal(model_tower_dtype(m), DTYPES[wanted]);
            model_close(&m);
        }
        model_close(&as_is);
    }
    model *m;
    err e;
    assert_int_equal(open_as(&m, &c, "f64", &e), STATUS_BAD_ARGUMENT);
    expect_words(e.text, SAYS("f64", "expected auto, f32, f16, bf16, int8 or fp8"));
    checkpoint_close(&c);
}

/* What a cache was filled with by one product may not answer for another. */
static void products_have_fingerprints_of_their_own(void **state) {
    (void)state;
    static const char *const NAMES[] = {"auto", "bf16", "int8", "fp8"};
    static const ops_product PRODUCTS[] = {OPS_PRODUCT_F32, OPS_PRODUCT_BF16, OPS_PRODUCT_INT8, OPS_PRODUCT_FP8};
    checkpoint c = checkpoint_load(CASE);
    checkpoint_set_dtype(&c, "BF16");
    checkpoint_write(&c, 1);
    model *m[4];
    err e;
    for (int i = 0; i < 4; i++) {
        if (open_as(&m[i], &c, NAMES[i], &e) != STATUS_OK) fail_msg("%s", e.text);
        assert_int_equal(model_product(m[i]), PRODUCTS[i]);
        assert_int_equal(model_tower_dtype(m[i]), OPS_DTYPE_BF16);
        for (int k = 0; k < i; k++) {
            assert_memory_not_equal(model_fingerprint(m[i]), model_fingerprint(m[k]), HASH_SHA256_BYTES);
            assert_memory_not_equal(model_tower_fingerprint(m[i]), model_tower_fingerprint(m[k]), HASH_SHA256_BYTES);
        }
    }
    for (int i = 0; i < 4; i++) model_close(&m[i]);
    checkpoint_close(&c);
}

static void what_keys_are_kept_in_is_told_and_known_by_the_fingerprint(void **state) {
    (void)state;
    static const struct {
        const char *name;
        ops_dtype kept;
    } told[] = {{"f32", OPS_DTYPE_F32}, {"f16", OPS_DTYPE_F16}, {"bf16", OPS_DTYPE_BF16}, {"fp8", OPS_DTYPE_E4M3}};
    checkpoint c = checkpoint_load(CASE);
    checkpoint_write(&c, 1);
    model *as_is = open_model(&c), *m;
    ops_dtype kept;
    err e;
    model_settings s = {.dir = c.dir, .kv_dtype = "auto", .parts = MODEL_PART_ALL};
    assert_false(model_kv_dtype(as_is, &kept));
    if (model_open(&m, &s, &e) != STATUS_OK) fail_msg("%s", e.text);
    assert_false(model_kv_dtype(m, &kept));
    assert_memory_equal(model_fingerprint(m), model_fingerprint(as_is), HASH_SHA256_BYTES);
    model_close(&m);
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        s.kv_dtype = told[i].name;
        if (model_open(&m, &s, &e) != STATUS_OK) fail_msg("%s", e.text);
        assert_true(model_kv_dtype(m, &kept) && kept == told[i].kept);
        assert_memory_not_equal(model_fingerprint(m), model_fingerprint(as_is), HASH_SHA256_BYTES);
        assert_memory_equal(model_tower_fingerprint(m), model_tower_fingerprint(as_is), HASH_SHA256_BYTES);
        model_close(&m);
    }
    s.kv_dtype = "q8";
    assert_int_equal(model_open(&m, &s, &e), STATUS_BAD_ARGUMENT);
    expect_words(e.text, SAYS("kv-dtype \"q8\"", "expected auto, f32, f16, bf16 or fp8"));
    model_close(&as_is);
    checkpoint_close(&c);
}

static void a_value_that_has_no_place_in_f16_is_refused(void **state) {
    (void)state;
    checkpoint c = checkpoint_load(CASE);
    checkpoint_set_dtype(&c, "F32");
    checkpoint_write(&c, 1);
    char *path = path_join(c.dir, "model.safetensors");
    buf file;
    buf_init(&file, 16 << 20);
    assert_true(file_read(&file, path));
    const float large = 65520.0f; /* half way to the step behind the largest: rounds to infinity */
    uint64_t header_bytes = 0;
    assert_true(bytes_get_u64((bytes){file.data, file.len_bytes}, 0, &header_bytes));
    memcpy(file.data + 8 + header_bytes, &large, sizeof large); /* the first value of all */
    file_write(path, file.data, file.len_bytes);
    model *m;
    err e;
    assert_int_equal(open_as(&m, &c, "f16", &e), STATUS_BAD_MODEL);
    expect_words(e.text, SAYS("tensor ", "65520", "too large for F16"));
    assert_int_equal(open_as(&m, &c, "bf16", &e), STATUS_OK);
    model_close(&m);
    buf_deinit(&file);
    free(path);
    checkpoint_close(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_tensor_reads_as_it_was_written_in_every_dtype),
        cmocka_unit_test(a_converted_checkpoint_is_the_one_stored_so),
        cmocka_unit_test(products_have_fingerprints_of_their_own),
        cmocka_unit_test(what_keys_are_kept_in_is_told_and_known_by_the_fingerprint),
        cmocka_unit_test(a_value_that_has_no_place_in_f16_is_refused),
        cmocka_unit_test(a_tower_of_two_dtypes_counts_as_f32),
        cmocka_unit_test(shards_and_one_file_are_the_same_model),
        cmocka_unit_test(names_in_the_wrappers_of_training_are_the_same_model),
        cmocka_unit_test(one_other_value_or_setting_is_another_model),
        cmocka_unit_test(each_missing_tensor_is_named_unless_nobody_reads_it),
        cmocka_unit_test(each_misshapen_tensor_is_named_with_both_shapes),
        cmocka_unit_test(a_transposed_tensor_is_refused),
        cmocka_unit_test(a_damaged_vocabulary_is_named_and_nothing_else),
        cmocka_unit_test(matrices_in_blocks_are_read_and_nothing_else_is),
        cmocka_unit_test(a_tensor_of_a_dtype_that_no_network_reads_is_refused),
        cmocka_unit_test(other_decoders_are_recognised_by_their_tensors),
        cmocka_unit_test(verify_names_every_finding_and_not_just_the_first),
        cmocka_unit_test(an_extra_tensor_opens_but_does_not_verify),
        cmocka_unit_test(inspect_prints_the_sizes_of_the_config),
        cmocka_unit_test(a_config_that_this_engine_does_not_run_is_refused_by_key),
        cmocka_unit_test(a_preprocessor_config_that_makes_other_pixels_is_refused_by_key),
        cmocka_unit_test(a_config_that_the_tensors_contradict_names_the_tensor),
        cmocka_unit_test(a_tokenizer_that_does_not_fit_is_refused),
        cmocka_unit_test(an_index_that_leaves_the_folder_is_refused),
        cmocka_unit_test(an_index_and_shards_that_disagree_are_refused),
        cmocka_unit_test(a_folder_without_one_of_its_files_is_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
