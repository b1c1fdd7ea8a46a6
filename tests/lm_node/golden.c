#include "tests/lm_node/golden.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/hash.h"
#include "base/rng.h"
#include "ops/tensor.h"
#include "tests/support/support.h"

#define SEED      UINT64_C(20240607)
#define FILE_MAX  (64u << 20)
#define RECIPES   512
struct golden {
    char *dir;
    buf values; /* golden.safetensors */
    json_t *header;
    size_t data_at;
};

typedef struct {
    char name[128], salt[32]; /* salt and name together choose the numbers */
    float scale, shift;
} recipe;

/* Of one text behind the other. */
static uint64_t fnv1a(const char *salt, const char *text) {
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (const char *c = salt; *c; c++) h = (h ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    for (const char *c = text; *c; c++) h = (h ^ (unsigned char)*c) * UINT64_C(0x100000001b3);
    return h;
}

static float formula(uint64_t stream, uint64_t i, float scale, float shift) {
    float u = (float)(rng_at(SEED, stream, i) >> 40) * 0x1p-23f - 1.0f;
    return scale * u + shift;
}

float *golden_download(ops_ctx *ctx, const ops_tensor *x) {
    float *values = malloc((size_t)tensor_elements(x) * sizeof *values);
    assert_non_null(values);
    assert_int_equal(x->dtype, OPS_DTYPE_F32);
    assert_int_equal(ops_download(ctx, values, x), STATUS_OK);
    assert_int_equal(ops_sync(ctx), STATUS_OK);
    return values;
}

unsigned char *golden_pixels(int image, int n_bytes) {
    char name[32];
    (void)snprintf(name, sizeof name, "pixels.%d", image);
    unsigned char *pixels = malloc((size_t)n_bytes);
    assert_non_null(pixels);
    for (int i = 0; i < n_bytes; i++) pixels[i] = (unsigned char)formula(fnv1a("", name), (uint64_t)i, 128.0f, 128.0f);
    return pixels;
}

static void read_file(buf *out, const char *dir, const char *name) {
    char *path = path_join(dir, name);
    buf_init(out, FILE_MAX);
    if (!file_read(out, path)) fail_msg("cannot read %s", path);
    free(path);
}

static void copy_file(const golden *g, const char *from_dir, const char *name) {
    buf content;
    read_file(&content, from_dir, name);
    char *to = path_join(g->dir, name);
    file_write(to, content.data, content.len_bytes);
    free(to);
    buf_deinit(&content);
}

static size_t read_recipes(recipe *recipes, const char *case_dir) {
    buf text;
    read_file(&text, case_dir, "weights.txt");
    size_t n = 0;
    char *rest = NULL;
    for (char *line = strtok_r((char *)text.data, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *name_end = strchr(line, ' ');
        assert_non_null(name_end);
        assert_true(n < RECIPES && name_end - line < (long)sizeof recipes[n].name);
        recipe *r = &recipes[n++];
        memcpy(r->name, line, (size_t)(name_end - line));
        r->name[name_end - line] = '\0';
        char *shift = NULL;
        r->scale = (float)strtod(name_end + 1, &shift);
        char *salt = NULL;
        r->shift = (float)strtod(shift, &salt);
        (void)snprintf(r->salt, sizeof r->salt, "%s", *salt == ' ' ? salt + 1 : "");
    }
    buf_deinit(&text);
    return n;
}

static void put_value(unsigned char *at, const char *dtype, float v) {
    if (strcmp(dtype, "F32") == 0) {
        memcpy(at, &v, sizeof v);
        return;
    }
    uint16_t half = strcmp(dtype, "F16") == 0 ? f32_to_f16(v) : f32_to_bf16(v);
    memcpy(at, &half, sizeof half);
}

static void fill_tensor(unsigned char *data, const json_t *entry, const recipe *r) {
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    size_t from = (size_t)json_integer_value(json_array_get(offsets, 0));
    size_t to = (size_t)json_integer_value(json_array_get(offsets, 1));
    size_t size = strcmp(dtype, "F32") == 0 ? 4 : 2;
    uint64_t stream = fnv1a(r->salt, r->name);
    for (size_t i = 0; i < (to - from) / size; i++)
        put_value(data + from + i * size, dtype, formula(stream, i, r->scale, r->shift));
}

static json_t *parse_header(const void *text, size_t len_bytes) {
    json_error_t error;
    json_t *header = json_loadb(text, len_bytes, 0, &error);
    if (!header) fail_msg("safetensors header: %s", error.text);
    return header;
}

/* The file whose header is kept, with its data computed anew. */
static void write_weights(const golden *g, const char *case_dir, const char *file,
                          const char *want_hex) {
    static recipe recipes[RECIPES];
    size_t n_recipes = read_recipes(recipes, case_dir), data_bytes = 0;
    char header_name[128];
    (void)snprintf(header_name, sizeof header_name, "%s.header", file);
    buf text, content;
    read_file(&text, case_dir, header_name);
    json_t *header = parse_header(text.data, text.len_bytes), *entry;
    const char *name;
    json_object_foreach(header, name, entry) {
        size_t end = (size_t)json_integer_value(
            json_array_get(json_object_get(entry, "data_offsets"), 1));
        if (end > data_bytes) data_bytes = end;
    }
    buf_init(&content, FILE_MAX);
    unsigned char *at = buf_reserve(&content, 8 + text.len_bytes + data_bytes);
    assert_non_null(at);
    bytes_store_le(at, text.len_bytes, 8);
    memcpy(at + 8, text.data, text.len_bytes);
    json_object_foreach(header, name, entry) {
        for (size_t i = 0; i < n_recipes; i++)
            if (strcmp(recipes[i].name, name) == 0)
                fill_tensor(at + 8 + text.len_bytes, entry, &recipes[i]);
    }
    content.len_bytes += 8 + text.len_bytes + data_bytes;
    unsigned char digest[HASH_SHA256_BYTES];
    char hex[HASH_HEX_BYTES];
    hash_sha256(digest, content.data, content.len_bytes);
    hash_hex(hex, digest, sizeof digest);
    if (strcmp(hex, want_hex) != 0) fail_msg("%s: SHA-256 %s, MANIFEST.json has %s", file, hex, want_hex);
    char *path = path_join(g->dir, file);
    file_write(path, content.data, content.len_bytes);
    free(path);
    json_decref(header);
    buf_deinit(&content);
    buf_deinit(&text);
}

static const char *golden_folder(void) {
    const char *dir = getenv("MIPHA_GOLDEN_DIR");
    return dir && *dir ? dir : TEST_DATA_DIR "/golden";
}

bool golden_is_matrix(void) {
    const char *dir = getenv("MIPHA_GOLDEN_DIR");
    return dir && *dir;
}

const char *golden_case_name(size_t idx) {
    static char name[96];
    buf text;
    read_file(&text, golden_folder(), "MANIFEST.json");
    json_t *manifest = parse_header(text.data, text.len_bytes), *cases = json_object_get(manifest, "cases");
    void *at = json_object_iter(cases);
    for (size_t i = 0; at && i < idx; i++) at = json_object_iter_next(cases, at);
    if (at) (void)snprintf(name, sizeof name, "%s", json_object_iter_key(at));
    json_decref(manifest);
    buf_deinit(&text);
    return at ? name : NULL;
}

golden *golden_open(const char *case_name) {
    golden *g = calloc(1, sizeof *g);
    assert_non_null(g);
    g->dir = temp_dir_make();
    char *case_dir = path_join(golden_folder(), case_name);
    copy_file(g, case_dir, "config.json");
    copy_file(g, case_dir, "preprocessor_config.json");
    copy_file(g, golden_folder(), "tokenizer.json");
    copy_file(g, golden_folder(), "tokenizer_config.json");
    buf text;
    read_file(&text, golden_folder(), "MANIFEST.json");
    json_t *manifest = parse_header(text.data, text.len_bytes);
    json_t *files = json_object_get(
        json_object_get(json_object_get(manifest, "cases"), case_name), "files");
    const char *file;
    json_t *hex;
    assert_true(json_object_size(files) > 0);
    json_object_foreach(files, file, hex)
        write_weights(g, case_dir, file, json_string_value(hex));
    if (json_object_size(files) > 1) copy_file(g, case_dir, "model.safetensors.index.json");
    json_decref(manifest);
    buf_deinit(&text);

    read_file(&g->values, case_dir, "golden.safetensors");
    uint64_t header_bytes = bytes_load_le(g->values.data, 8);
    g->header = parse_header(g->values.data + 8, (size_t)header_bytes);
    g->data_at = 8 + (size_t)header_bytes;
    free(case_dir);
    return g;
}

void golden_close(golden **g) {
    if (!*g) return;
    temp_dir_remove((*g)->dir);
    json_decref((*g)->header);
    buf_deinit(&(*g)->values);
    free(*g);
    *g = NULL;
}

const char *golden_dir(const golden *g) { return g->dir; }

golden_tensor golden_get(const golden *g, const char *name_format, ...) {
    char name[128];
    va_list args;
    va_start(args, name_format);
    (void)vsnprintf(name, sizeof name, name_format, args);
    va_end(args);
    const json_t *entry = json_object_get(g->header, name);
    if (!entry) fail_msg("golden data has no %s", name);
    golden_tensor t = {0};
    const json_t *shape = json_object_get(entry, "shape");
    t.n_dims = (int)json_array_size(shape);
    for (int i = 0; i < t.n_dims; i++) t.dims[i] = json_integer_value(json_array_get(shape, (size_t)i));
    size_t from = (size_t)json_integer_value(json_array_get(json_object_get(entry, "data_offsets"), 0));
    const void *data = g->values.data + g->data_at + from; /* the package aligns data to 8 bytes */
    if (strcmp(json_string_value(json_object_get(entry, "dtype")), "I32") == 0) t.i32 = data;
    else t.f32 = data;
    return t;
}

bool golden_has(const golden *g, const char *name) { return json_object_get(g->header, name) != NULL; }

double golden_distance(const float *got, const golden_tensor *want) {
    int64_t n = 1;
    double difference = 0.0, size = 0.0;
    for (int i = 0; i < want->n_dims; i++) n *= want->dims[i];
    for (int64_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want->f32[i];
        difference += d * d;
        size += (double)want->f32[i] * (double)want->f32[i];
    }
    return sqrt(difference / size);
}

double golden_compare(const float *got, const golden_tensor *want, const float *bound,
                      const char *what) {
    int64_t width = want->dims[want->n_dims - 1], n_rows = 1;
    for (int i = 0; i + 1 < want->n_dims; i++) n_rows *= want->dims[i];
    double worst = 0.0;
    for (int64_t r = 0; r < n_rows; r++) {
        double sum = 0.0;
        for (int64_t c = 0; c < width; c++) {
            double d = (double)got[r * width + c] - (double)want->f32[r * width + c];
            sum += d * d;
        }
        double error = sqrt(sum);
        if (!(error <= (double)bound[r]))
            fail_msg("%s, row %lld: error %.3g, bound %.3g", what, (long long)r, error,
                     (double)bound[r]);
        if (bound[r] > 0.0f && error / (double)bound[r] > worst) worst = error / (double)bound[r];
    }
    return worst;
}
