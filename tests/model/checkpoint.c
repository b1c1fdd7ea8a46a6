/* Tensors are written in the order of the object, round robin over the files, each file's data without
 * holes. Values depend on the name as it was at load, so that a renamed tensor keeps its own. */
#include "tests/model/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

#define FILE_MAX (16u << 20)

static json_t *load_json(const char *dir, const char *name) {
    char *path = path_join(dir, name);
    json_error_t error;
    json_t *value = json_load_file(path, 0, &error);
    if (!value) fail_msg("%s: %s", path, error.text);
    free(path);
    return value;
}

checkpoint checkpoint_load(const char *golden_case) {
    char *from = path_join(TEST_DATA_DIR "/golden", golden_case);
    checkpoint c = {.dir = temp_dir_make(),
                    .config = load_json(from, "config.json"),
                    .preprocess = load_json(from, "preprocessor_config.json"),
                    .tokenizer = load_json(TEST_DATA_DIR "/golden", "tokenizer.json"),
                    .tensors = load_json(from, "model.safetensors.header")};
    (void)json_object_del(c.tensors, "__metadata__");
    const char *name;
    json_t *entry;
    json_object_foreach(c.tensors, name, entry) json_object_set_new(entry, "values", json_string(name));
    free(from);
    return c;
}

void checkpoint_close(checkpoint *c) {
    temp_dir_remove(c->dir);
    json_decref(c->config);
    json_decref(c->preprocess);
    json_decref(c->tokenizer);
    json_decref(c->tensors);
    json_decref(c->index);
    *c = (checkpoint){0};
}

float checkpoint_value(const char *tensor, size_t i) {
    uint32_t h = 2166136261u;
    for (const char *p = tensor; *p; p++) h = (h ^ (unsigned char)*p) * 16777619u;
    h = (h + (uint32_t)i) * 2654435761u;
    return (float)((int)((h >> 16) % 255) - 127) / 64.0f;
}

/* Exact for multiples of 1/64 below 2: sign, exponent and the upper bits of the mantissa. */
static uint16_t exact_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value == 0) return 0;
    uint32_t exponent = (bits >> 23 & 0xFF) - 127 + 15;
    return (uint16_t)((bits >> 16 & 0x8000u) | exponent << 10 | (bits >> 13 & 0x3FF));
}

static void append_value(buf *data, const char *dtype, float value) {
    uint32_t bits;
    unsigned char le[8] = {0};
    size_t n = 4;
    memcpy(&bits, &value, sizeof bits);
    if (strcmp(dtype, "F16") == 0) {
        bits = exact_half(value);
        n = 2;
    } else if (strcmp(dtype, "BF16") == 0) {
        bits >>= 16;
        n = 2;
    } else if (strcmp(dtype, "U8") == 0) {
        n = 1; /* some byte */
    } else if (strcmp(dtype, "F64") == 0) {
        n = 8;
    }
    bytes_store_le(le, bits, 4);
    assert_int_equal(buf_append(data, le, n), STATUS_OK);
}

static void append_tensor(buf *data, json_t *header, const char *name, const json_t *entry) {
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    const char *values = json_string_value(json_object_get(entry, "values"));
    size_t n = 1, begin = data->len_bytes, d;
    json_t *dim;
    json_array_foreach(json_object_get(entry, "shape"), d, dim) n *= (size_t)json_integer_value(dim);
    for (size_t i = 0; i < n; i++) append_value(data, dtype, checkpoint_value(values ? values : name, i));
    json_object_set_new(header, name,
                        json_pack("{s:s,s:O,s:[I,I]}", "dtype", dtype, "shape",
                                  json_object_get(entry, "shape"), "data_offsets", (json_int_t)begin,
                                  (json_int_t)data->len_bytes));
}

static void write_weights(checkpoint *c, const char *file, int part, int n_files) {
    buf whole, data;
    buf_init(&whole, FILE_MAX);
    buf_init(&data, FILE_MAX);
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt"), *entry;
    const char *name;
    int i = 0;
    json_object_foreach(c->tensors, name, entry) {
        if (i++ % n_files != part) continue;
        append_tensor(&data, header, name, entry);
        json_object_set_new(c->index, name, json_string(file));
    }
    char *text = json_dumps(header, JSON_COMPACT);
    unsigned char length[8];
    bytes_store_le(length, strlen(text), 8);
    assert_int_equal(buf_append(&whole, length, 8), STATUS_OK);
    assert_int_equal(buf_append_text(&whole, text), STATUS_OK);
    assert_int_equal(buf_append(&whole, data.data, data.len_bytes), STATUS_OK);
    char *path = path_join(c->dir, file);
    file_write(path, whole.data, whole.len_bytes);
    free(path);
    free(text);
    json_decref(header);
    buf_deinit(&whole);
    buf_deinit(&data);
}

void checkpoint_write_json(const checkpoint *c, const char *name, const json_t *value) {
    char *path = path_join(c->dir, name), *text = json_dumps(value, JSON_COMPACT);
    assert_non_null(text);
    file_write(path, text, strlen(text));
    free(text);
    free(path);
}

void checkpoint_write(checkpoint *c, int n_files) {
    checkpoint_write_json(c, "config.json", c->config);
    checkpoint_write_json(c, "preprocessor_config.json", c->preprocess);
    checkpoint_write_json(c, "tokenizer.json", c->tokenizer);
    json_decref(c->index);
    c->index = json_object();
    for (int i = 0; i < n_files; i++) {
        char file[64] = "model.safetensors";
        if (n_files > 1)
            (void)snprintf(file, sizeof file, "model-%05d-of-%05d.safetensors", i + 1, n_files);
        write_weights(c, file, i, n_files);
    }
    if (n_files == 1) return;
    json_t *whole = json_pack("{s:{s:i},s:O}", "metadata", "total_size", 0, "weight_map", c->index);
    checkpoint_write_json(c, "model.safetensors.index.json", whole);
    json_decref(whole);
}

void checkpoint_set_dtype(checkpoint *c, const char *dtype) {
    const char *name;
    json_t *entry;
    json_object_foreach(c->tensors, name, entry) json_object_set_new(entry, "dtype", json_string(dtype));
}

void checkpoint_rename(checkpoint *c, const char *from, const char *to) {
    json_t *entry = json_object_get(c->tensors, from);
    assert_non_null(entry);
    assert_int_equal(json_object_set(c->tensors, to, entry), 0);
    assert_int_equal(json_object_del(c->tensors, from), 0);
}

json_t *checkpoint_shape(const checkpoint *c, const char *tensor) {
    json_t *shape = json_object_get(json_object_get(c->tensors, tensor), "shape");
    assert_non_null(shape);
    return shape;
}
