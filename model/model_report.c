/* What `mipha model inspect` and `mipha model verify` print. Both open the folder the way a node does, so
 * that what they say is what a node would find; verify then goes on after the first finding. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "model/model_internal.h"

static const char *projector_text(const model_config *c, char *out, size_t out_bytes) {
    switch (c->projector.kind) {
    case MODEL_PROJECTOR_LINEAR: return "linear";
    case MODEL_PROJECTOR_IDENTITY: return "identity";
    case MODEL_PROJECTOR_MLP: break;
    }
    (void)snprintf(out, out_bytes, "%d linear layers with GELU between", c->projector.n_linear);
    return out;
}

static void print_bytes(FILE *to, const char *what, double n_bytes) {
    if (n_bytes >= 1e9)
        fprintf(to, "%-22s%.2f GB\n", what, n_bytes / 1e9);
    else
        fprintf(to, "%-22s%.2f MB\n", what, n_bytes / 1e6);
}

/* Elements and bytes of the tensors that are used, and which dtypes were met. */
typedef struct {
    uint64_t n_tower, n_decoder, n_bytes;
    bool has_dtype[OPS_DTYPE_Q4 + 1];
} weight_sums;

static void print_dtypes(FILE *to, const weight_sums *s) {
    static const char *const NAMES[] = {[OPS_DTYPE_F32] = "F32", [OPS_DTYPE_F16] = "F16", [OPS_DTYPE_BF16] = "BF16",
                                        [OPS_DTYPE_Q8] = "Q8",   [OPS_DTYPE_Q4] = "Q4"};
    const char *between = "";
    for (int i = 0; i <= OPS_DTYPE_Q4; i++) {
        if (!s->has_dtype[i]) continue;
        fprintf(to, "%s%s", between, NAMES[i]);
        between = " and ";
    }
}

static weight_sums sum_weights(const model *m) {
    weight_sums s = {0};
    for (size_t i = 0; i < m->table.n_rows; i++) {
        const safetensors_tensor *t = m->tensors[i];
        if (!t) continue;
        uint64_t n = 1;
        const weight_row *row = &m->table.rows[i];
        ops_dtype dtype;
        for (int d = 0; d < row->n_dims; d++) n *= (uint64_t)row->dims[d];
        if (row->use == WEIGHT_OF_TOWER)
            s.n_tower += n;
        else
            s.n_decoder += n;
        s.n_bytes += t->len_bytes;
        if (weight_dtype(&dtype, t, row->dims[0], row->dims[1])) s.has_dtype[dtype] = true;
    }
    return s;
}

static void print_sizes(FILE *to, const model_config *c) {
    const model_tower_config *t = &c->tower;
    const model_decoder_config *d = &c->decoder;
    char projector[64];
    fprintf(to, "%-22s%s\n", "name", c->name);
    fprintf(to, "%-22s%s, %d of %d layers, width %d, MLP %d, %d heads\n", "tower", t->family->title,
            t->n_layers_run, t->n_layers, t->hidden, t->intermediate, t->n_heads);
    fprintf(to, "%-22s%d x %d pixels%s, patches of %d, %d tokens\n", "image", t->image_size,
            t->image_size, c->preprocess.pad_to_square ? " (padded to square)" : "", t->patch_size,
            t->n_tokens);
    fprintf(to, "%-22s%s, %d to %d\n", "projector", projector_text(c, projector, sizeof projector),
            t->hidden, d->hidden);
    fprintf(to, "%-22s%s, %d layers, width %d, MLP %d, %d heads (%d for keys) of %d, %d rotary\n",
            "decoder", d->family->title, d->n_layers, d->hidden, d->intermediate, d->n_heads, d->n_kv_heads, d->head_size,
            d->rotary_dims);
    fprintf(to, "%-22s%d rows in, %d rows out, %d positions\n", "vocabulary", d->n_vocab_in,
            d->n_vocab_out, d->max_positions);
}

status model_inspect(const char *dir, FILE *to, err *e) {
    model *m;
    status st = model_open(&m, &(model_settings){.dir = dir, .parts = MODEL_PART_ALL}, e);
    if (st != STATUS_OK) return st;
    const model_decoder_config *d = &m->config.decoder;
    weight_sums s = sum_weights(m);
    char hex[HASH_HEX_BYTES];

    print_sizes(to, &m->config);
    fprintf(to, "%-22s%" PRIu64 " (tower %" PRIu64 ", the rest %" PRIu64 ")\n", "parameters used",
            s.n_tower + s.n_decoder, s.n_tower, s.n_decoder);
    fprintf(to, "%-22s", "stored as");
    print_dtypes(to, &s);
    fprintf(to, " in %zu file%s\n", weight_files_shards(m->files),
            weight_files_shards(m->files) == 1 ? "" : "s");
    print_bytes(to, "memory for weights", (double)s.n_bytes);
    print_bytes(to, "per 1000 tokens of KV",
                1000.0 * 2 * 2 * d->n_layers * d->n_kv_heads * d->head_size);
    hash_hex(hex, model_tower_fingerprint(m), HASH_SHA256_BYTES);
    fprintf(to, "%-22ssha256:%s\n", "tower fingerprint", hex);
    hash_hex(hex, model_fingerprint(m), HASH_SHA256_BYTES);
    fprintf(to, "%-22ssha256:%s\n", "fingerprint", hex);
    model_close(&m);
    return ferror(to) ? fail(e, STATUS_IO, "%s: the report cannot be written", dir) : STATUS_OK;
}

static int report_rows(const model *m, FILE *to) {
    int n_findings = 0;
    for (size_t i = 0; i < m->table.n_rows; i++) {
        const weight_entry *entry;
        err finding;
        if (weight_row_find(&m->table.rows[i], m->files, &entry, &finding) == STATUS_OK) continue;
        fprintf(to, "%s\n", finding.text);
        n_findings++;
    }
    return n_findings;
}

static int report_extras(const model *m, FILE *to) {
    int n_findings = 0;
    for (size_t i = 0; i < weight_files_count(m->files); i++) {
        const weight_entry *entry = weight_files_at(m->files, i);
        char shape[200];
        if (!model_is_extra(m, entry)) continue;
        safetensors_shape_text(shape, sizeof shape, entry->tensor->n_dims, entry->tensor->dims);
        fprintf(to, "%s: tensor %s %s %s is not part of this architecture\n", entry->file, entry->name,
                entry->tensor->dtype_text, shape);
        n_findings++;
    }
    return n_findings;
}

status model_verify(const char *dir, FILE *to, err *e) {
    int n_findings = 0;
    model *m = calloc(1, sizeof *m);
    if (!m) return fail(e, STATUS_NO_MEMORY, "%s: no memory to open it", dir);
    status st = model_open_files(m, dir, e);
    if (st != STATUS_OK) goto done;
    n_findings = report_rows(m, to) + report_extras(m, to);
    err finding;
    if (model_open_tokenizer(m, dir, &finding) != STATUS_OK) {
        fprintf(to, "%s\n", finding.text);
        n_findings++;
    }
    if (n_findings > 0)
        st = fail(e, STATUS_BAD_MODEL, "%s: %d finding%s", dir, n_findings, n_findings == 1 ? "" : "s");
    else
        fprintf(to, "%zu tensors present with the expected shapes, none extra\n",
                weight_files_count(m->files));
done:
    model_close(&m);
    return st;
}
