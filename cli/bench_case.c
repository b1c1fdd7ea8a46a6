#include "cli/bench_case.h"

#include <stdio.h>
#include <string.h>

/* ---- words --------------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    bench_case shape; /* tokens 0: said in the text */
    const char *unit;
} case_kind;

static const case_kind KINDS[] = {
    {"encode", {.kind = BENCH_ENCODE, .tokens = 1}, "images/s"},
    {"prefill", {.kind = BENCH_PREFILL}, "tokens/s"},
    {"decode", {.kind = BENCH_DECODE, .questions = 1}, "tokens/s"},
    {"shared", {.kind = BENCH_DECODE, .questions = 10}, "tokens/s"},
    {"caption", {.kind = BENCH_JOBS, .tokens = 64, .questions = 1}, "images/s"},
    {"answer", {.kind = BENCH_JOBS, .tokens = 3, .questions = 1}, "images/s"},
    {"questions", {.kind = BENCH_JOBS, .tokens = 3, .questions = 10}, "answers/s"},
    {"cached", {.kind = BENCH_JOBS, .tokens = 3, .questions = 1, .has_features = true}, "images/s"},
    {"resident", {.kind = BENCH_JOBS, .tokens = 3, .questions = 1, .has_features = true, .has_prefix = true}, "answers/s"},
};
#define N_KINDS (sizeof KINDS / sizeof *KINDS)

static const case_kind *find_kind(const char *text, size_t n) {
    for (size_t i = 0; i < N_KINDS; i++)
        if (strlen(KINDS[i].name) == n && memcmp(KINDS[i].name, text, n) == 0) return &KINDS[i];
    return NULL;
}

static const case_kind *kind_of(const bench_case *c) { return find_kind(c->text, strcspn(c->text, " ")); }

status bench_case_parse(bench_case *c, const char *text, err *e) {
    int n = 0, tokens = 0, end = 0;
    size_t n_name = strcspn(text, " ");
    const case_kind *k = find_kind(text, n_name);
    const char *numbers = text + n_name;
    bool is_whole = false;
    if (k && k->shape.tokens) is_whole = sscanf(numbers, "%d %n", &n, &end) == 1 && numbers[end] == '\0';
    else if (k) is_whole = sscanf(numbers, "%d %d %n", &n, &tokens, &end) == 2 && numbers[end] == '\0' && tokens > 0;
    if (!is_whole || n < 1 || n > 65536 || tokens > 65536 || strlen(text) >= sizeof c->text)
        return fail(e, STATUS_BAD_ARGUMENT, "case \"%.60s\", expected one of: " BENCH_CASES_HELP, text);
    *c = k->shape;
    (void)snprintf(c->text, sizeof c->text, "%s", text);
    c->n = n;
    if (tokens) c->tokens = tokens;
    return STATUS_OK;
}

const char *bench_case_unit(const bench_case *c) { return kind_of(c)->unit; }

double bench_case_units(const bench_case *c) {
    if (c->kind == BENCH_PREFILL) return (double)c->n * c->tokens;
    return c->kind == BENCH_JOBS ? (double)c->n * c->questions : (double)c->n;
}

/* ---- work ---------------------------------------------------------------------------------------- */

double bench_weight_bytes(ops_dtype stored, ops_product product) {
    if (product == OPS_PRODUCT_FP8) return 1.0;
    if (product == OPS_PRODUCT_BF16) return 2.0;
    if (product == OPS_PRODUCT_INT8 && !dtype_is_quantized(stored)) stored = OPS_DTYPE_Q8;
    return (double)dtype_row_bytes(stored, QUANT_BLOCK) / QUANT_BLOCK;
}

bench_sizes bench_sizes_of(const model *m, size_t kv) {
    const model_decoder_config *d = &model_get_config(m)->decoder;
    ops_dtype decoder = model_weight(m, "%slayers.0.%s.weight", d->prefix, d->family->fc2).dtype;
    ops_dtype tower = model_tower_dtype(m);
    return (bench_sizes){.tower = bench_weight_bytes(tower, model_product(m)), .feature = (double)dtype_bytes(tower),
                         .decoder = bench_weight_bytes(decoder, model_product(m)), .kv = (double)kv};
}

static double tower_weights(const model_tower_config *t) {
    double d = t->hidden, ff = t->intermediate;
    return t->n_layers_run * (4 * d * d + (t->family->is_gated ? 3 : 2) * d * ff) + 3.0 * t->patch_size * t->patch_size * d;
}

static double projector_weights(const model_config *c) {
    double in = c->tower.hidden, out = c->decoder.hidden;
    return c->projector.n_linear == 0 ? 0 : in * out + (c->projector.n_linear - 1) * out * out;
}

static double kv_width(const model_decoder_config *d) { return (double)d->n_kv_heads * d->head_size; }

static double layer_weights(const model_decoder_config *d) {
    double h = d->hidden, q = (double)d->n_heads * d->head_size;
    return 2 * h * q + 2 * h * kv_width(d) + (d->family->is_gated ? 3 : 2) * h * d->intermediate;
}

static double head_weights(const model_decoder_config *d) { return (double)d->hidden * d->n_vocab_out; }

static double encode_flops(const model_config *c) {
    const model_tower_config *t = &c->tower;
    return 2.0 * t->n_rows * tower_weights(t) + 4.0 * t->n_rows * t->n_rows * t->hidden * t->n_layers_run;
}

/* n rows behind n_before others of their sequence, of which n_out have logits: elsewhere the last layer makes keys and
 * values only. */
static double rows_flops(const model_decoder_config *d, double n_before, double n, double n_out) {
    double q = (double)d->n_heads * d->head_size, keys = n * n_before + n * (n + 1) / 2;
    double linear = (d->n_layers - 1) * n * layer_weights(d) + n * 2 * d->hidden * kv_width(d);
    linear += n_out * (layer_weights(d) - 2 * d->hidden * kv_width(d) + head_weights(d));
    double attention = 2 * q * ((d->n_layers - 1) * keys + n_out * (n_before + n));
    return 2 * (linear + attention);
}

/* What all questions on a picture have in common. */
static double prefix_rows(const model_config *m) { return BENCH_TEXT_BEFORE + m->tower.n_tokens; }

static double job_flops(const bench_case *c, const model_config *m) {
    const model_decoder_config *d = &m->decoder;
    double prefix = prefix_rows(m), sum = 0;
    if (!c->has_features) sum += encode_flops(m);
    if (!c->has_prefix) sum += rows_flops(d, 0, prefix, 0) + 2.0 * m->tower.n_tokens * projector_weights(m);
    sum += c->questions * rows_flops(d, prefix, BENCH_TEXT_BEHIND, 1);
    for (int i = 1; i < c->tokens; i++) sum += c->questions * rows_flops(d, prefix + BENCH_TEXT_BEHIND + i - 1, 1, 1);
    return sum;
}

bench_work bench_case_work(const bench_case *c, const model_config *m, const bench_sizes *each) {
    const model_decoder_config *d = &m->decoder;
    double n = c->n, decoder = d->n_layers * layer_weights(d) + head_weights(d);
    double kv_row = 2 * kv_width(d) * d->n_layers * each->kv;
    switch (c->kind) {
    case BENCH_ENCODE:
        return (bench_work){n * encode_flops(m),
                            tower_weights(&m->tower) * each->tower + n * m->tower.n_tokens * m->tower.hidden * each->feature};
    case BENCH_PREFILL:
        return (bench_work){n * (rows_flops(d, 0, c->tokens, 1) + 2.0 * m->tower.n_tokens * projector_weights(m)),
                            (decoder + projector_weights(m)) * each->decoder + n * c->tokens * kv_row};
    case BENCH_DECODE: {
        int n_pictures = (c->n + c->questions - 1) / c->questions;
        double kv_rows = n * c->tokens - (n - n_pictures) * prefix_rows(m);
        return (bench_work){n * rows_flops(d, c->tokens - 1, 1, 1), decoder * each->decoder + kv_rows * kv_row};
    }
    case BENCH_JOBS: return (bench_work){n * job_flops(c, m), 0};
    }
    return (bench_work){0};
}
