/* The files a checkpoint consists of are written in the order in which opening reads them: the config, from which the
 * table of weights follows, then a tensor for each of its rows. Matrices are uniform, not normal: four values come out of
 * one number of the generator, which is what makes 3 billion of them a matter of seconds. */
#include "model/random_checkpoint.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/stop.h"
#include "model/byte_map.h"
#include "model/model_internal.h"
#include "model/safetensors_write.h"
#include "model/utf8.h"

#define PATH_BYTES   4112
#define TOWER_WIDTH  1152
#define VOCAB_ROWS   51200
#define TEXTS        50257 /* ids with a text, the last of them ends an answer */
#define CHUNK        65536
#define MATRIX_SPREAD 0.02f

/* ---- the small files ----------------------------------------------------------------------------- */

static status write_json(const char *dir, const char *name, json_t *value, err *e) {
    char path[PATH_BYTES];
    (void)snprintf(path, sizeof path, "%.4000s/%s", dir, name);
    status st = STATUS_OK;
    if (!value) st = fail(e, STATUS_NO_MEMORY, "%.300s: no memory", path);
    else if (json_dump_file(value, path, JSON_INDENT(1)) != 0) st = fail_errno(e, STATUS_IO, "%.300s", path);
    json_decref(value);
    return st;
}

static json_t *make_config(const random_checkpoint *s) {
    json_t *tower = json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:f, s:i, s:s}", "model_type", "mipha_vision_model",
        "vision_model_name_or_path", "siglip-so400m-patch14-384", "hidden_size", TOWER_WIDTH, "intermediate_size", 4304,
        "num_attention_heads", 16, "num_hidden_layers", s->tower_layers, "image_size", 384, "patch_size", 14,
        "num_channels", 3, "hidden_act", "gelu_pytorch_tanh", "layer_norm_eps", 1e-6, "mm_vision_select_layer", -2,
        "mm_vision_select_feature", "patch");
    json_t *projector = json_pack("{s:s, s:s, s:i, s:i}", "model_type", "mipha_projector", "mm_projector_type",
                                  "mlp2x_gelu", "mm_hidden_size", TOWER_WIDTH, "hidden_size", 2560);
    json_t *vision = json_pack("{s:o, s:o}", "vision_tower", tower, "mm_projector", projector);
    return json_pack(
        "{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:s, s:s, s:b, s:o}", "architectures",
        "MiphaPhiForCausalLM", "model_type", "mipha_phi", "hidden_size", 2560, "intermediate_size", 10240,
        "num_attention_heads", 32, "num_key_value_heads", 32, "num_hidden_layers", s->decoder_layers, "vocab_size",
        VOCAB_ROWS, "max_position_embeddings", 2048, "partial_rotary_factor", 0.4, "layer_norm_eps", 1e-5, "rope_theta",
        10000.0, "hidden_act", "gelu_new", "image_aspect_ratio", "pad", "tie_word_embeddings", 0, "vision_config", vision);
}

static json_t *make_preprocessor(void) {
    return json_pack("{s:b, s:b, s:b, s:[f,f,f], s:[f,f,f], s:s, s:i, s:f, s:{s:i, s:i}}", "do_resize", 1, "do_rescale", 1,
                     "do_normalize", 1, "image_mean", 0.5, 0.5, 0.5, "image_std", 0.5, 0.5, 0.5, "image_processor_type",
                     "SiglipImageProcessor", "resample", 3, "rescale_factor", 1.0 / 255.0, "size", "height", 384, "width",
                     384);
}

/* The 256 bytes, then words that no text is made into and that can be read. */
static json_t *make_tokenizer(void) {
    json_t *vocab = json_object();
    for (int id = 0; id < TEXTS - 1; id++) {
        char text[16];
        if (id < 256) text[utf8_put((unsigned char *)text, byte_map_character((unsigned)id))] = '\0';
        else (void)snprintf(text, sizeof text, "\xc4\xa0w%d", id);
        if (json_object_set_new(vocab, text, json_integer(id)) != 0) return json_decref(vocab), NULL;
    }
    return json_pack(
        "{s:s, s:[{s:i, s:s, s:b, s:b, s:b, s:b, s:b}], s:n, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:b, s:b, s:b}, "
        "s:{s:s, s:o, s:[]}}",
        "version", "1.0", "added_tokens", "id", TEXTS - 1, "content", "<|endoftext|>", "single_word", 0, "lstrip", 0,
        "rstrip", 0, "normalized", 0, "special", 1, "normalizer", "pre_tokenizer", "type", "ByteLevel",
        "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1, "decoder", "type", "ByteLevel", "add_prefix_space", 1,
        "trim_offsets", 1, "use_regex", 1, "model", "type", "BPE", "vocab", vocab, "merges");
}

static json_t *make_tokenizer_config(void) {
    return json_pack("{s:s, s:s, s:s}", "tokenizer_class", "CodeGenTokenizer", "bos_token", "<|endoftext|>", "eos_token",
                     "<|endoftext|>");
}

/* ---- the weights --------------------------------------------------------------------------------- */

typedef struct {
    const weight_table *table;
    ops_dtype dtype;
    rng random;
} weights_job;

static int64_t elements(const weight_row *row) {
    int64_t n = 1;
    for (int d = 0; d < row->n_dims; d++) n *= row->dims[d];
    return n;
}

static bool has_end(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* Values around middle, evenly from a range with this standard deviation. */
static void fill(const ops_tensor *out, weights_job *j, float middle, float spread) {
    const float step = spread * 2.0f * sqrtf(3.0f) / 65536.0f;
    for (int64_t i = 0, n = tensor_elements(out); i < n; i += 4) {
        uint64_t bits = rng_next(&j->random);
        for (int64_t k = i; k < n && k < i + 4; k++, bits >>= 16)
            tensor_set_value(out, k, middle + ((float)(bits & 0xffff) - 32767.5f) * step);
    }
}

static bool write_weights(FILE *f, void *arg) {
    weights_job *j = arg;
    static unsigned char chunk[CHUNK * 4];
    for (size_t i = 0; i < j->table->n_rows; i++) {
        const weight_row *row = &j->table->rows[i];
        if (row->use == WEIGHT_NOT_COMPUTED) continue;
        bool is_norm = row->n_dims == 1 && has_end(row->name, ".weight");
        for (int64_t n = elements(row), at = 0; at < n && !stop_requested(); at += CHUNK) {
            int64_t part = n - at < CHUNK ? n - at : CHUNK;
            ops_tensor out = tensor_make(chunk, OPS_PLACE_HOST, j->dtype, 1, &part);
            fill(&out, j, is_norm ? 1.0f : 0.0f, MATRIX_SPREAD);
            if (fwrite(chunk, dtype_bytes(j->dtype), (size_t)part, f) != (size_t)part) return false;
        }
    }
    return true;
}

static status write_tensors(const random_checkpoint *s, safetensors_dtype dtype, err *e) {
    model_config c;
    weight_table table = {0};
    status st = model_config_load(&c, s->out_dir, (model_signs){&model_format_mipha, MODEL_DECODER_PHI}, e);
    if (st != STATUS_OK) return st;
    c.decoder.n_vocab_in = c.decoder.n_vocab_out = VOCAB_ROWS;
    st = weight_table_init(&table, &c, e);
    if (st != STATUS_OK) return st;
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    int64_t at = 0;
    for (size_t i = 0; i < table.n_rows && header; i++) {
        const weight_row *row = &table.rows[i];
        if (row->use == WEIGHT_NOT_COMPUTED) continue;
        if (safetensors_header_add(header, row->name, stored_dtype_text(dtype), row->n_dims, row->dims,
                                   (size_t)elements(row) * dtype_bytes(stored_dtype_ops(dtype)), &at))
            continue;
        json_decref(header);
        header = NULL;
    }
    char path[PATH_BYTES];
    (void)snprintf(path, sizeof path, "%.4000s/model.safetensors", s->out_dir);
    weights_job j = {&table, stored_dtype_ops(dtype), rng_make(s->seed)};
    st = safetensors_write(path, header, write_weights, &j, e);
    weight_table_deinit(&table);
    return st;
}

status random_checkpoint_write(const random_checkpoint *settings, err *e) {
    random_checkpoint s = *settings;
    if (s.tower_layers == 0) s.tower_layers = RANDOM_CHECKPOINT_TOWER_LAYERS;
    if (s.decoder_layers == 0) s.decoder_layers = RANDOM_CHECKPOINT_DECODER_LAYERS;
    safetensors_dtype dtype = stored_dtype_find(s.dtype);
    if (dtype == SAFETENSORS_OTHER)
        return fail(e, STATUS_BAD_ARGUMENT, "dtype \"%.40s\", expected f32, f16 or bf16", s.dtype);
    status st = safetensors_folder_make(s.out_dir, e);
    if (st == STATUS_OK) st = write_json(s.out_dir, "config.json", make_config(&s), e);
    if (st == STATUS_OK) st = write_json(s.out_dir, "preprocessor_config.json", make_preprocessor(), e);
    if (st == STATUS_OK) st = write_json(s.out_dir, "tokenizer.json", make_tokenizer(), e);
    if (st == STATUS_OK) st = write_json(s.out_dir, "tokenizer_config.json", make_tokenizer_config(), e);
    return st == STATUS_OK ? write_tensors(&s, dtype, e) : st;
}
