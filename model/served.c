/* Adapters that are served beside the checkpoint. What a name brings with it is checked here, whole, so that a decoder
 * can take it without errors. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/model_internal.h"

static bool is_of_projector(const model *m, const weight_row *row) {
    const char *prefix = m->config.projector.kind == MODEL_PROJECTOR_MLP ? m->config.format->projector : "model.mm_projector.";
    return m->config.projector.kind != MODEL_PROJECTOR_IDENTITY && strncmp(row->name, prefix, strlen(prefix)) == 0;
}

/* "NAME=DIR" apart. */
static status read_text(const model *m, char name[SERVED_NAME_BYTES], const char **dir, const char *text, err *e) {
    const char *equals = strchr(text, '=');
    size_t n = equals ? (size_t)(equals - text) : 0;
    if (!equals || !equals[1])
        return fail(e, STATUS_BAD_ARGUMENT, "adapter \"%.200s\", expected NAME=DIR", text);
    if (n < 1 || n >= SERVED_NAME_BYTES)
        return fail(e, STATUS_BAD_ARGUMENT, "adapter \"%.200s\": a name of %zu bytes, allowed are 1 to %d", text, n,
                    SERVED_NAME_BYTES - 1);
    memcpy(name, text, n);
    name[n] = '\0';
    *dir = equals + 1;
    return model_find_served(m, name) ? fail(e, STATUS_BAD_ARGUMENT, "two adapters are called \"%s\"", name) : STATUS_OK;
}

/* Every row it may change, and that it changes nothing else. */
static status bind_rows(model *m, served_adapter *s, err *e) {
    s->projector = calloc(m->table.n_rows, sizeof *s->projector);
    if (!s->projector) return fail(e, STATUS_NO_MEMORY, "adapter %s: no memory", s->name);
    status st = STATUS_OK;
    for (size_t i = 0; i < m->table.n_rows && st == STATUS_OK; i++) {
        const weight_row *row = &m->table.rows[i];
        adapter_factors unused;
        bool found;
        if (!m->tensors[i] || row->use != WEIGHT_OF_DECODER) continue;
        if (is_of_projector(m, row)) st = adapter_merge(s->adapter, &s->projector[i], m->tensors[i], row->name, e);
        else if (row->is_matrix) st = adapter_find_factors(s->adapter, &unused, &found, row->name, row->dims, e);
    }
    if (st != STATUS_OK) return st;
    return adapter_check_used(s->adapter, "what an adapter may change that is served (factors of the decoder's matrices, "
                              "and the projector); it can be merged", e);
}

static void renew_fingerprint(model *m, const served_adapter *s) {
    char hex[HASH_HEX_BYTES];
    fingerprint *f = fingerprint_begin("served");
    hash_hex(hex, m->fingerprint, sizeof m->fingerprint);
    fingerprint_add_text(f, "model %s", hex);
    fingerprint_add_text(f, "name %s", s->name);
    adapter_add_to_fingerprint(s->adapter, f);
    fingerprint_end(f, m->fingerprint);
}

status model_serve(model *m, const char *text, err *e) {
    CHECK(m->parts & MODEL_PART_DECODER, "adapters are of the decoder");
    served_adapter *s = &m->served[m->n_served];
    const char *dir = NULL;
    *s = (served_adapter){0};
    status st = read_text(m, s->name, &dir, text, e);
    if (st == STATUS_OK) st = adapter_open(&s->adapter, dir, e);
    if (st == STATUS_OK) st = bind_rows(m, s, e);
    if (st != STATUS_OK) {
        adapter_close(&s->adapter);
        free(s->projector);
        return st;
    }
    m->n_served++;
    renew_fingerprint(m, s);
    return STATUS_OK;
}

int model_n_served(const model *m) { return m->n_served; }

const char *model_served_name(const model *m, int served) {
    CHECK(served >= 1 && served <= m->n_served, "an adapter that is served");
    return m->served[served - 1].name;
}

int model_find_served(const model *m, const char *name) {
    for (int i = 0; i < m->n_served; i++)
        if (strcmp(m->served[i].name, name) == 0) return i + 1;
    return 0;
}

bool model_served_factors(const model *m, int served, const char *weight_name, adapter_factors *f) {
    CHECK(served >= 1 && served <= m->n_served, "an adapter that is served");
    const weight_row *row = weight_table_find(&m->table, weight_name);
    CHECK(row, "a weight of the model");
    if (!row->is_matrix) return false; /* tied embeddings: their own changes cannot be served */
    bool found;
    err e;
    status st = adapter_find_factors(m->served[served - 1].adapter, f, &found, weight_name, row->dims, &e);
    CHECK(st == STATUS_OK, "factors were checked when the adapter came");
    return found;
}

ops_tensor model_served_weight(const model *m, int served, const char *name) {
    const weight_row *row = weight_table_find(&m->table, name);
    CHECK(row && served >= 0 && served <= m->n_served, "a weight of the model, as an adapter has it");
    ops_tensor w = model_weight(m, "%s", name);
    const safetensors_tensor *own = served ? m->served[served - 1].projector[row - m->table.rows] : NULL;
    if (!own) return w;
    CHECK(weight_dtype(&w.dtype, own, row->dims[0], row->dims[1]), "merged tensors have a type networks read");
    w.data = (void *)(uintptr_t)own->data;
    return w;
}
