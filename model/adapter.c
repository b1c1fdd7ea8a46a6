/* A matrix's two factors are found by its name: "model.layers.0.mlp.fc1.weight" is changed by
 * "model.layers.0.mlp.fc1.lora_B.weight" times "...lora_A.weight", a table of embeddings by lora_embedding_B and
 * lora_embedding_A without ".weight". The product is computed by ops, which is the fastest way to it here. */
#include "model/adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "model/json_file.h"
#include "model/stored_tensor.h"
#include "model/weight_files.h"
#include "ops/ops.h"

#define PATH_BYTES 4096
#define NAME_BYTES 192

struct adapter {
    char dir[PATH_BYTES];
    json_t *config;
    weight_files *low_rank, *whole; /* whole: NULL without non_lora_trainables */
    bool *low_rank_used, *whole_used;
    double alpha;
    bool is_rslora;
    ops_ctx *ctx;
    stored_tensor *merged;
};

/* ---- opening ------------------------------------------------------------------------------------- */

static status read_config(adapter *a, err *e) {
    char path[PATH_BYTES];
    (void)snprintf(path, sizeof path, "%.4000s/adapter_config.json", a->dir);
    status st = json_file_load(&a->config, path, JSON_FILE_CONFIG_LIMITS, e);
    if (st != STATUS_OK) return st;
    json_view v = json_view_make(a->config, "adapter_config.json", e);
    if (strcmp(json_view_text(&v, "peft_type", ""), "LORA") != 0) json_view_refuse(&v, "peft_type", "\"LORA\"");
    if (json_view_bool(&v, "use_dora", false)) json_view_refuse(&v, "use_dora", "false");
    (void)json_view_int(&v, "r", 8, 1, 65536);
    a->alpha = json_view_real(&v, "lora_alpha", 8.0, -1e9, 1e9);
    a->is_rslora = json_view_bool(&v, "use_rslora", false);
    /* For transposed layers, of which no network here has one: peft ignores it then, and says so. */
    if (json_view_bool(&v, "fan_in_fan_out", false))
        log_warn("fan_in_fan_out_ignored", "adapter=%s reason=\"the matrices are linear layers\"", a->dir);
    return v.st;
}

static status open_whole(adapter *a, err *e) {
    char path[PATH_BYTES];
    (void)snprintf(path, sizeof path, "%.4000s/non_lora_trainables.safetensors", a->dir);
    if (access(path, F_OK) == 0) return weight_files_open_one(&a->whole, a->dir, "non_lora_trainables.safetensors", e);
    (void)snprintf(path, sizeof path, "%.4000s/non_lora_trainables.bin", a->dir);
    if (access(path, F_OK) != 0) return STATUS_OK;
    return fail(e, STATUS_BAD_MODEL,
                "%.200s is a pickle, which is not read: save what torch.load gives with "
                "safetensors.torch.save_file as non_lora_trainables.safetensors beside it", path);
}

status adapter_open(adapter **out, const char *dir, err *e) {
    *out = NULL;
    adapter *a = calloc(1, sizeof *a);
    if (!a) return fail(e, STATUS_NO_MEMORY, "%s: no memory to open it", dir);
    (void)snprintf(a->dir, sizeof a->dir, "%s", dir);
    status st = read_config(a, e);
    if (st == STATUS_OK) st = weight_files_open_one(&a->low_rank, dir, "adapter_model.safetensors", e);
    if (st == STATUS_OK) st = open_whole(a, e);
    if (st == STATUS_OK) st = ops_open(&a->ctx, &(ops_settings){.device = "cpu"}, e);
    if (st == STATUS_OK) {
        a->low_rank_used = calloc(weight_files_count(a->low_rank) + 1, sizeof *a->low_rank_used);
        a->whole_used = calloc((a->whole ? weight_files_count(a->whole) : 0) + 1, sizeof *a->whole_used);
        if (!a->low_rank_used || !a->whole_used) st = fail(e, STATUS_NO_MEMORY, "%s: no memory to open it", dir);
    }
    if (st != STATUS_OK) {
        adapter_close(&a);
        return st;
    }
    *out = a;
    return STATUS_OK;
}

void adapter_close(adapter **a) {
    if (!*a) return;
    stored_tensors_close(&(*a)->merged);
    ops_close(&(*a)->ctx);
    weight_files_close(&(*a)->low_rank);
    weight_files_close(&(*a)->whole);
    free((*a)->low_rank_used);
    free((*a)->whole_used);
    json_decref((*a)->config);
    free(*a);
    *a = NULL;
}

/* ---- finding ------------------------------------------------------------------------------------- */

static const safetensors_tensor *take(const weight_files *files, bool *used, const char *name) {
    const weight_entry *entry = files ? weight_files_find(files, name) : NULL;
    if (!entry) return NULL;
    used[entry - weight_files_at(files, 0)] = true;
    return entry->tensor;
}

/* "model.layers.0.mlp.fc1" + ".lora_A" + ".weight", with the adapter's own name between when it was kept. */
static const safetensors_tensor *take_factor(const adapter *a, const char *module, const char *factor, const char *end) {
    static const char *const BETWEEN[] = {"", ".default"};
    for (int i = 0; i < 2; i++) {
        char name[NAME_BYTES];
        (void)snprintf(name, sizeof name, "%s.%s%s%s", module, factor, BETWEEN[i], end);
        const safetensors_tensor *t = take(a->low_rank, a->low_rank_used, name);
        if (t) return t;
    }
    return NULL;
}

/* alpha of a module: that of the pattern whose name it is or ends with. */
static double alpha_of(const adapter *a, const char *module) {
    const char *key;
    json_t *value;
    size_t n = strlen(module);
    json_object_foreach(json_object_get(a->config, "alpha_pattern"), key, value) {
        size_t m = strlen(key);
        bool is_end = n > m && module[n - m - 1] == '.' && strcmp(module + n - m, key) == 0;
        if ((is_end || strcmp(module, key) == 0) && json_is_number(value)) return json_number_value(value);
    }
    return a->alpha;
}

/* ---- merging ------------------------------------------------------------------------------------- */

static status check_factors(const safetensors_tensor *base, const safetensors_tensor *b, const safetensors_tensor *a,
                            const char *name, err *e) {
    bool fits = b && a && base->n_dims == 2 && b->n_dims == 2 && a->n_dims == 2 && b->dims[0] == base->dims[0] &&
                a->dims[1] == base->dims[1] && b->dims[1] == a->dims[0] && a->dims[0] > 0;
    bool is_read = fits && b->dtype != SAFETENSORS_OTHER && a->dtype != SAFETENSORS_OTHER;
    if (is_read) return STATUS_OK;
    char shapes[3][96] = {"nothing", "nothing", ""};
    if (b) safetensors_shape_text(shapes[0], sizeof shapes[0], b->n_dims, b->dims);
    if (a) safetensors_shape_text(shapes[1], sizeof shapes[1], a->n_dims, a->dims);
    safetensors_shape_text(shapes[2], sizeof shapes[2], base->n_dims, base->dims);
    return fail(e, STATUS_BAD_MODEL, "adapter: %s has factors of %s and %s, expected F32, F16 or BF16 whose product is %s",
                name, shapes[0], shapes[1], shapes[2]);
}

/* product [n_out, n_in] = b [n_out, r] times a [r, n_in] */
static status multiply(adapter *ad, float *product, const ops_tensor *b, const ops_tensor *a, err *e) {
    int64_t n_out = b->dims[0], r = b->dims[1], n_in = a->dims[1];
    float *right = malloc((size_t)(n_in * r) * sizeof *right), *left = malloc((size_t)(n_out * r) * sizeof *left);
    status st = right && left ? STATUS_OK : fail(e, STATUS_NO_MEMORY, "adapter: no memory to merge");
    ops_matrix *matrix = NULL;
    if (st == STATUS_OK) {
        for (int64_t i = 0; i < n_in; i++)
            for (int64_t k = 0; k < r; k++) right[i * r + k] = tensor_value(a, k * n_in + i);
        for (int64_t i = 0; i < n_out * r; i++) left[i] = tensor_value(b, i);
        ops_tensor w = tensor_make(right, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, (int64_t[]){n_in, r});
        st = ops_matrix_open(ad->ctx, &matrix, &w, NULL, e);
    }
    if (st == STATUS_OK) {
        ops_tensor x = tensor_make(left, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 2, (int64_t[]){n_out, r});
        ops_tensor y = tensor_make(product, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 2, (int64_t[]){n_out, n_in});
        st = ops_linear(ad->ctx, &y, &x, matrix, OPS_ACT_NONE);
        if (st != STATUS_OK) (void)fail(e, st, "adapter: merging: %s", status_text((int)st));
    }
    ops_matrix_close(ad->ctx, &matrix);
    free(left);
    free(right);
    return st;
}

/* base + scale * b a, or for a table of embeddings base + scale * (b a)'. */
static status merge(adapter *ad, const safetensors_tensor **changed, const safetensors_tensor *base,
                    const ops_tensor *b, const ops_tensor *a, double scale, bool is_table, err *e) {
    float *product = malloc((size_t)(b->dims[0] * a->dims[1]) * sizeof *product);
    status st = product ? multiply(ad, product, b, a, e) : fail(e, STATUS_NO_MEMORY, "adapter: no memory to merge");
    stored_tensor *m = st == STATUS_OK ? stored_tensor_open(&ad->merged, base, base->dtype) : NULL;
    if (st == STATUS_OK && !m) st = fail(e, STATUS_NO_MEMORY, "adapter: no memory to merge");
    if (st == STATUS_OK) {
        ops_tensor w = stored_tensor_view(base), out = stored_tensor_view(&m->tensor);
        int64_t rows = base->dims[0], cols = base->dims[1];
        for (int64_t i = 0; i < rows * cols; i++) {
            float delta = product[is_table ? i % cols * rows + i / cols : i];
            tensor_set_value(&out, i, tensor_value(&w, i) + (float)scale * delta);
        }
        *changed = &m->tensor;
    }
    free(product);
    return st;
}

static status replace(const safetensors_tensor **changed, const safetensors_tensor *base,
                      const safetensors_tensor *own, const char *name, err *e) {
    bool fits = own->n_dims == base->n_dims && own->dtype != SAFETENSORS_OTHER &&
                memcmp(own->dims, base->dims, (size_t)base->n_dims * sizeof *base->dims) == 0;
    char found[96], expected[96];
    safetensors_shape_text(found, sizeof found, own->n_dims, own->dims);
    safetensors_shape_text(expected, sizeof expected, base->n_dims, base->dims);
    *changed = own;
    return fits ? STATUS_OK
                : fail(e, STATUS_BAD_MODEL, "adapter: tensor %s is %s %s, expected F32, F16 or BF16 %s", name,
                       own->dtype_text, found, expected);
}

status adapter_merge(adapter *a, const safetensors_tensor **changed, const safetensors_tensor *base, const char *name,
                     err *e) {
    *changed = NULL;
    const safetensors_tensor *own = take(a->whole, a->whole_used, name);
    const safetensors_tensor *saved = take(a->low_rank, a->low_rank_used, name); /* modules_to_save, bias */
    status st = STATUS_OK;
    if (saved || own) st = replace(changed, base, saved ? saved : own, name, e);
    if (st != STATUS_OK) return st;
    if (*changed) base = *changed;

    char module[NAME_BYTES];
    size_t n = strlen(name);
    if (n <= 7 || n >= sizeof module || strcmp(name + n - 7, ".weight") != 0) return STATUS_OK;
    (void)snprintf(module, sizeof module, "%.*s", (int)(n - 7), name);
    const safetensors_tensor *lora_a = take_factor(a, module, "lora_A", ".weight");
    const safetensors_tensor *lora_b = take_factor(a, module, "lora_B", ".weight");
    bool is_table = !lora_a && !lora_b;
    if (is_table) {
        lora_a = take_factor(a, module, "lora_embedding_A", "");
        lora_b = take_factor(a, module, "lora_embedding_B", "");
        if (!lora_a && !lora_b) return STATUS_OK;
    }
    if (base->dtype == SAFETENSORS_OTHER)
        return fail(e, STATUS_BAD_MODEL, "adapter: tensor %s of the checkpoint is %s, expected F32, F16 or BF16: merge an "
                    "adapter before weights are quantized", name, base->dtype_text);
    safetensors_tensor as_product = *base;
    if (is_table && base->n_dims == 2) {
        as_product.dims[0] = base->dims[1];
        as_product.dims[1] = base->dims[0];
    }
    st = check_factors(&as_product, lora_b, lora_a, name, e);
    if (st != STATUS_OK) return st;
    double r = (double)lora_a->dims[0], alpha = alpha_of(a, module);
    ops_tensor left = stored_tensor_view(lora_b), right = stored_tensor_view(lora_a);
    return merge(a, changed, base, &left, &right, alpha / (a->is_rslora ? sqrt(r) : r), is_table, e);
}

static status check_all_used(const weight_files *files, const bool *used, const char *dir, const char *expected, err *e) {
    for (size_t i = 0; files && i < weight_files_count(files); i++)
        if (!used[i])
            return fail(e, STATUS_BAD_MODEL, "%s: tensor %s of %s is not of %s", dir, weight_files_at(files, i)->name,
                        weight_files_at(files, i)->file, expected);
    return STATUS_OK;
}

status adapter_check_used(const adapter *a, const char *expected, err *e) {
    status st = check_all_used(a->low_rank, a->low_rank_used, a->dir, expected, e);
    return st == STATUS_OK ? check_all_used(a->whole, a->whole_used, a->dir, expected, e) : st;
}

/* ---- not merged ---------------------------------------------------------------------------------- */

status adapter_find_factors(adapter *ad, adapter_factors *f, bool *found, const char *name, const int64_t dims[2],
                            err *e) {
    char module[NAME_BYTES];
    size_t n = strlen(name);
    *found = false;
    if (n <= 7 || n >= sizeof module || strcmp(name + n - 7, ".weight") != 0) return STATUS_OK;
    (void)snprintf(module, sizeof module, "%.*s", (int)(n - 7), name);
    const safetensors_tensor *a = take_factor(ad, module, "lora_A", ".weight");
    const safetensors_tensor *b = take_factor(ad, module, "lora_B", ".weight");
    if (!a && !b) return STATUS_OK;
    const safetensors_tensor base = {.n_dims = 2, .dims = {dims[0], dims[1]}};
    status st = check_factors(&base, b, a, name, e);
    if (st != STATUS_OK) return st;
    double r = (double)a->dims[0];
    *f = (adapter_factors){stored_tensor_view(a), stored_tensor_view(b), alpha_of(ad, module) / (ad->is_rslora ? sqrt(r) : r)};
    *found = true;
    return STATUS_OK;
}

static void add_files(fingerprint *f, const weight_files *files) {
    for (size_t i = 0; files && i < weight_files_count(files); i++)
        fingerprint_add_tensor(f, weight_files_at(files, i)->name, weight_files_at(files, i)->tensor);
}

void adapter_add_to_fingerprint(const adapter *a, fingerprint *f) {
    char *patterns = json_dumps(json_object_get(a->config, "alpha_pattern"), JSON_SORT_KEYS | JSON_COMPACT | JSON_ENCODE_ANY);
    unsigned char digest[HASH_SHA256_BYTES];
    char hex[HASH_HEX_BYTES];
    hash_sha256_stream *h = hash_sha256_open();
    if (patterns) hash_sha256_add(h, patterns, strlen(patterns));
    hash_sha256_finish(h, digest);
    hash_hex(hex, digest, sizeof digest);
    free(patterns);
    fingerprint_add_text(f, "alpha=%a rslora=%d patterns=%s", a->alpha, a->is_rslora, hex);
    add_files(f, a->low_rank);
    add_files(f, a->whole);
}
