/* Opening is one walk: files, which decoder, config, table from config, one tensor per row, tokenizer,
 * fingerprints. After it every question a network asks has an answer, so model_weight has no error.
 *
 * The decoder is recognised by the names of layer 0, because config.json says "mipha_phi" for two of them;
 * config.json is then only asked not to contradict. Vocabulary sizes come from the tensors, because
 * resized checkpoints exist whose config still says 51200. */
#include "model/model.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "model/fingerprint.h"
#include "model/model_internal.h"

#define VOCAB_ROWS_MAX (1 << 24)

static bool has(const model *m, const char *name) {
    return weight_files_find(m->files, name) != NULL;
}

/* The format and the family whose own tensors are in layer 0. Llama's are Gemma's: the format tells them apart. */
static model_signs find_signs(const model *m) {
    static const model_format *const FORMATS[] = {&model_format_mipha, &model_format_llava, &model_format_llava_new};
    for (size_t i = 0; i < sizeof FORMATS / sizeof *FORMATS; i++)
        for (int kind = FORMATS[i]->is_llava ? MODEL_DECODER_LLAMA : 0; kind < MODEL_DECODER_KINDS; kind++) {
            char name[WEIGHT_NAME_BYTES];
            (void)snprintf(name, sizeof name, "%slayers.0.%s", FORMATS[i]->decoder, decoder_families[kind].marker);
            if (has(m, name)) return (model_signs){FORMATS[i], (model_decoder_kind)kind};
        }
    return (model_signs){NULL, MODEL_DECODER_KINDS};
}

static void vocabulary_names(const model *m, char in[WEIGHT_NAME_BYTES], char out[WEIGHT_NAME_BYTES]) {
    (void)snprintf(in, WEIGHT_NAME_BYTES, "%sembed_tokens.weight", m->config.decoder.prefix);
    (void)snprintf(out, WEIGHT_NAME_BYTES, "%s.weight", m->config.decoder.head);
}

/* A second table of outputs, where config.json says there is but one, must be the same one. */
static status check_tied(const model *m, const char *dir, err *e) {
    char in_name[WEIGHT_NAME_BYTES], out_name[WEIGHT_NAME_BYTES];
    vocabulary_names(m, in_name, out_name);
    const weight_entry *in = weight_files_find(m->files, in_name);
    const weight_entry *out = weight_files_find(m->files, out_name);
    if (!m->config.decoder.is_tied || !in || !out) return STATUS_OK;
    if (in->tensor->len_bytes == out->tensor->len_bytes &&
        memcmp(in->tensor->data, out->tensor->data, in->tensor->len_bytes) == 0)
        return STATUS_OK;
    return fail(e, STATUS_BAD_MODEL,
                "%s: %s differs from %s, expected equal ones as tie_word_embeddings is true", dir, out_name, in_name);
}

/* Rows of a table of the vocabulary; 0 when it is missing or not one, which the table of weights then says. */
static int vocabulary_rows(const model *m, const char *name) {
    const weight_entry *entry = weight_files_find(m->files, name);
    if (!entry || entry->tensor->n_dims != 2) return 0;
    int64_t rows = entry->tensor->dims[0], width = m->config.decoder.hidden;
    ops_dtype dtype;
    bool fits = weight_dtype(&dtype, entry->tensor, rows, width) &&
                (dtype_is_quantized(dtype) || entry->tensor->dims[1] == width);
    return fits && rows <= VOCAB_ROWS_MAX ? (int)rows : 0;
}

/* A damaged table counts with the rows of the other one, so that the finding names it and nothing else. */
static void read_vocabulary(model *m) {
    char in_name[WEIGHT_NAME_BYTES], out_name[WEIGHT_NAME_BYTES];
    vocabulary_names(m, in_name, out_name);
    int in = vocabulary_rows(m, in_name);
    int out = m->config.decoder.is_tied ? in : vocabulary_rows(m, out_name);
    if (in == 0) in = out > 0 ? out : 1;
    m->config.decoder.n_vocab_in = in;
    m->config.decoder.n_vocab_out = out > 0 ? out : in;
}

status model_open_files(model *m, const char *dir, err *e) {
    status st = weight_files_open(&m->files, dir, e);
    if (st != STATUS_OK) return st;
    st = model_config_load(&m->config, dir, find_signs(m), e);
    if (st != STATUS_OK) return st;
    st = check_tied(m, dir, e);
    if (st != STATUS_OK) return st;
    read_vocabulary(m);
    st = weight_table_init(&m->table, &m->config, e);
    if (st != STATUS_OK) return st;
    m->tensors = calloc(m->table.n_rows, sizeof *m->tensors);
    return m->tensors ? STATUS_OK : fail(e, STATUS_NO_MEMORY, "%s: no memory for its table", dir);
}

status model_open_tokenizer(model *m, const char *dir, err *e) {
    status st = tokenizer_open(&m->tokens, dir, e);
    if (st != STATUS_OK) return st;
    int32_t n_ids = tokenizer_n_ids(m->tokens);
    int n_rows = m->config.decoder.n_vocab_in;
    char name[WEIGHT_NAME_BYTES], head[WEIGHT_NAME_BYTES];
    vocabulary_names(m, name, head);
    if (n_ids <= n_rows || !has(m, name)) return STATUS_OK;
    return fail(e, STATUS_BAD_MODEL, "%s: the tokenizer has ids up to %d, but %s has %d rows", dir, (int)n_ids - 1,
                name, n_rows);
}

static int part_of(const weight_row *row) {
    switch (row->use) {
    case WEIGHT_OF_TOWER: return MODEL_PART_TOWER;
    case WEIGHT_OF_DECODER: return MODEL_PART_DECODER;
    case WEIGHT_NOT_COMPUTED: return 0;
    }
    return 0;
}

static void make_fingerprints(model *m, int parts) {
    fingerprint *f = fingerprint_begin("tower");
    if (m->product != OPS_PRODUCT_F32) fingerprint_add_text(f, "product %s", ops_product_name(m->product));
    fingerprint_add_tower_config(f, &m->config);
    for (size_t i = 0; i < m->table.n_rows; i++)
        if (part_of(&m->table.rows[i]) == MODEL_PART_TOWER)
            fingerprint_add_tensor(f, m->table.rows[i].name, m->tensors[i]);
    fingerprint_end(f, m->tower_fingerprint);
    if (!(parts & MODEL_PART_DECODER)) return;

    char hex[HASH_HEX_BYTES];
    f = fingerprint_begin("model");
    hash_hex(hex, m->tower_fingerprint, sizeof m->tower_fingerprint);
    fingerprint_add_text(f, "tower %s", hex);
    hash_hex(hex, tokenizer_digest(m->tokens), HASH_SHA256_BYTES);
    fingerprint_add_text(f, "tokenizer %s", hex);
    fingerprint_add_decoder_config(f, &m->config);
    if (m->has_kv_dtype) fingerprint_add_text(f, "keys %s", dtype_name(m->kv_dtype));
    for (size_t i = 0; i < m->table.n_rows; i++)
        if (part_of(&m->table.rows[i]) == MODEL_PART_DECODER)
            fingerprint_add_tensor(f, m->table.rows[i].name, m->tensors[i]);
    fingerprint_end(f, m->fingerprint);
}

bool model_is_extra(const model *m, const weight_entry *entry) {
    return !weight_table_find(&m->table, entry->name) && !weight_is_ignorable(entry->name);
}

static status read_dtype(model *m, const char *name, err *e) {
    m->wanted = SAFETENSORS_OTHER;
    m->product = OPS_PRODUCT_F32;
    if (!name || strcmp(name, "auto") == 0) return STATUS_OK;
    m->wanted = stored_dtype_find(name);
    if (m->wanted == SAFETENSORS_BF16) m->product = OPS_PRODUCT_BF16;
    if (strcmp(name, "int8") == 0) m->product = OPS_PRODUCT_INT8;
    else if (strcmp(name, "fp8") == 0) m->product = OPS_PRODUCT_FP8;
    else if (m->wanted == SAFETENSORS_OTHER)
        return fail(e, STATUS_BAD_ARGUMENT, "dtype \"%.40s\", expected auto, f32, f16, bf16, int8 or fp8", name);
    return STATUS_OK;
}

static status read_kv_dtype(model *m, const char *name, err *e) {
    if (!name || strcmp(name, "auto") == 0) return STATUS_OK;
    static const struct {
        const char *name;
        ops_dtype dtype;
    } known[] = {{"f32", OPS_DTYPE_F32}, {"f16", OPS_DTYPE_F16}, {"bf16", OPS_DTYPE_BF16}, {"fp8", OPS_DTYPE_E4M3}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(name, known[i].name) != 0) continue;
        m->has_kv_dtype = true;
        m->kv_dtype = known[i].dtype;
        return STATUS_OK;
    }
    return fail(e, STATUS_BAD_ARGUMENT, "kv-dtype \"%.40s\", expected auto, f32, f16, bf16 or fp8", name);
}

/* The tensor of a row in the wanted dtype. A finite value that has no place in f16 is refused: it would be infinite. */
static status convert(model *m, size_t i, err *e) {
    const safetensors_tensor *from = m->tensors[i];
    if (m->wanted == SAFETENSORS_OTHER || from->dtype == SAFETENSORS_OTHER || from->dtype == m->wanted) return STATUS_OK;
    stored_tensor *to = stored_tensor_open(&m->converted, from, m->wanted);
    if (!to) return fail(e, STATUS_NO_MEMORY, "tensor %s: no memory to convert it", m->table.rows[i].name);
    ops_tensor old = stored_tensor_view(from), new = stored_tensor_view(&to->tensor);
    for (int64_t k = 0, n = tensor_elements(&old); k < n; k++) {
        float value = tensor_value(&old, k);
        tensor_set_value(&new, k, value);
        if (isinf(tensor_value(&new, k)) && !isinf(value))
            return fail(e, STATUS_BAD_MODEL, "tensor %s has the value %g, which is too large for %s", m->table.rows[i].name,
                        (double)value, to->tensor.dtype_text);
    }
    m->tensors[i] = &to->tensor;
    return STATUS_OK;
}

static status merge_adapter(model *m, size_t i, err *e) {
    const safetensors_tensor *changed;
    status st = adapter_merge(m->adapter, &changed, m->tensors[i], m->table.rows[i].name, e);
    if (st == STATUS_OK && changed) m->tensors[i] = changed;
    return st;
}

status model_bind_weights(model *m, int parts, err *e) {
    /* The tower is part of the whole fingerprint, so decoder nodes need its tensors too. */
    int wanted = parts & MODEL_PART_DECODER ? MODEL_PART_ALL : parts;
    for (size_t i = 0; i < m->table.n_rows; i++) {
        const weight_row *row = &m->table.rows[i];
        const weight_entry *entry;
        if (!(part_of(row) & wanted)) continue;
        status st = weight_row_find(row, m->files, &entry, e);
        if (st != STATUS_OK) return st;
        m->tensors[i] = entry->tensor;
        st = convert(m, i, e);
        if (st == STATUS_OK && m->adapter) st = merge_adapter(m, i, e);
        if (st != STATUS_OK) return st;
    }
    if (m->adapter && wanted == MODEL_PART_ALL) {
        status st = adapter_check_used(m->adapter, "this model", e);
        if (st != STATUS_OK) return st;
    }
    make_fingerprints(m, parts);
    m->parts = parts;
    return STATUS_OK;
}

static void warn_of_extras(const model *m) {
    for (size_t i = 0; i < weight_files_count(m->files); i++) {
        const weight_entry *entry = weight_files_at(m->files, i);
        if (model_is_extra(m, entry))
            log_warn("extra_tensor", "model=%s tensor=%s file=%s", m->config.name, entry->name,
                     entry->file);
    }
}

static status open_served(model *m, const model_settings *settings, err *e) {
    if (settings->n_served > MODEL_SERVED_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "%zu adapters, limit %d", settings->n_served, MODEL_SERVED_MAX);
    m->served = calloc(settings->n_served + 1, sizeof *m->served);
    status st = m->served ? STATUS_OK : fail(e, STATUS_NO_MEMORY, "%s: no memory for its adapters", settings->dir);
    for (size_t i = 0; i < settings->n_served && st == STATUS_OK; i++) st = model_serve(m, settings->served[i], e);
    return st;
}

status model_open(model **out, const model_settings *settings, err *e) {
    const char *dir = settings->dir;
    int parts = settings->parts;
    CHECK(parts > 0 && parts <= MODEL_PART_ALL, "a checkpoint is opened for some of its parts");
    *out = NULL;
    model *m = calloc(1, sizeof *m);
    if (!m) return fail(e, STATUS_NO_MEMORY, "%s: no memory to open it", dir);
    status st = read_dtype(m, settings->dtype, e);
    if (st == STATUS_OK) st = read_kv_dtype(m, settings->kv_dtype, e);
    if (st == STATUS_OK) st = model_open_files(m, dir, e);
    if (st == STATUS_OK && parts & MODEL_PART_DECODER) st = model_open_tokenizer(m, dir, e);
    if (st == STATUS_OK && settings->adapter) st = adapter_open(&m->adapter, settings->adapter, e);
    if (st == STATUS_OK) st = model_bind_weights(m, parts, e);
    if (st == STATUS_OK) st = open_served(m, settings, e);
    if (st != STATUS_OK) {
        model_close(&m);
        return st;
    }
    warn_of_extras(m);
    *out = m;
    return STATUS_OK;
}

void model_close(model **m) {
    if (!*m) return;
    for (int i = 0; i < (*m)->n_served; i++) {
        adapter_close(&(*m)->served[i].adapter);
        free((*m)->served[i].projector);
    }
    free((*m)->served);
    tokenizer_close(&(*m)->tokens);
    adapter_close(&(*m)->adapter);
    stored_tensors_close(&(*m)->converted);
    free((*m)->tensors);
    weight_table_deinit(&(*m)->table);
    weight_files_close(&(*m)->files);
    free(*m);
    *m = NULL;
}

const model_config *model_get_config(const model *m) { return &m->config; }

const tokenizer *model_get_tokenizer(const model *m) { return m->tokens; }

static ops_dtype dtype_of(const model *m, size_t i) {
    const weight_row *row = &m->table.rows[i];
    ops_dtype dtype = OPS_DTYPE_F32;
    CHECK(weight_dtype(&dtype, m->tensors[i], row->dims[0], row->dims[1]), "rows of other dtypes are refused at open");
    return dtype;
}

__attribute__((format(printf, 3, 0)))
static const weight_row *find_row(const model *m, char name[WEIGHT_NAME_BYTES], const char *format, va_list args) {
    int n = vsnprintf(name, WEIGHT_NAME_BYTES, format, args);
    CHECK(n > 0 && n < WEIGHT_NAME_BYTES, "a tensor name fits the table's");
    return weight_table_find(&m->table, name);
}

bool model_has_weight(const model *m, const char *name_format, ...) {
    char name[WEIGHT_NAME_BYTES];
    va_list args;
    va_start(args, name_format);
    const weight_row *row = find_row(m, name, name_format, args);
    va_end(args);
    return row != NULL;
}

ops_tensor model_weight(const model *m, const char *name_format, ...) {
    char name[WEIGHT_NAME_BYTES];
    va_list args;
    va_start(args, name_format);
    const weight_row *row = find_row(m, name, name_format, args);
    va_end(args);
    CHECK(row, name);
    CHECK(part_of(row) & m->parts, "a weight is asked for only of a part that was opened");
    size_t i = (size_t)(row - m->table.rows);
    return tensor_make((void *)(uintptr_t)m->tensors[i]->data, OPS_PLACE_HOST, dtype_of(m, i), row->n_dims, row->dims);
}

/* The one dtype all of them share, or f32, which holds every other exactly. */
ops_dtype model_tower_dtype(const model *m) {
    bool found = false;
    ops_dtype dtype = OPS_DTYPE_F32;
    for (size_t i = 0; i < m->table.n_rows; i++) {
        if (part_of(&m->table.rows[i]) != MODEL_PART_TOWER || !m->tensors[i]) continue;
        ops_dtype own = dtype_of(m, i);
        if (dtype_is_quantized(own)) continue; /* what is not stored in blocks says it */
        if (found && own != dtype) return OPS_DTYPE_F32;
        dtype = own;
        found = true;
    }
    return dtype;
}

ops_product model_product(const model *m) { return m->product; }

bool model_kv_dtype(const model *m, ops_dtype *kept) {
    if (m->has_kv_dtype) *kept = m->kv_dtype;
    return m->has_kv_dtype;
}

const unsigned char *model_tower_fingerprint(const model *m) { return m->tower_fingerprint; }

const unsigned char *model_fingerprint(const model *m) {
    return m->parts & MODEL_PART_DECODER ? m->fingerprint : NULL;
}
