/* `mipha model compare`: what two checkpoints of one tokenizer make of the same text, token by token.
 *
 * The text is cut into windows; in each the first token has nothing before it and is not scored. Both networks see the
 * same rows at the same time, so only one window's logits are ever held. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/stop.h"
#include "cli/commands.h"
#include "cli/model_place.h"
#include "cli/service.h"
#include "lm_node/kv_cache.h"
#include "lm_node/lm_decoder.h"

#define TEXT_BYTES_MAX (64u << 20)
#define STEP_ROWS      64

static const option_row rows[] = {
    {"text", 0, OPTION_STRING, "FILE", NULL, 0, 0, "what both read, in UTF-8; - is standard input"},
    {"window", 0, OPTION_INT, "N", "512", 2, 65536, "tokens read in one piece, at most what the checkpoints can"},
    {"dtype", 0, OPTION_STRING, "TYPE", "auto", 0, 0,
     "how the second one is opened: auto, f32, f16, bf16, int8 or fp8; with one folder twice, what that costs"},
    {"kv-dtype", 0, OPTION_STRING, "TYPE", "auto", 0, 0,
     "what the second one keeps keys and values in: auto, f32, f16, bf16 or fp8"},
    COMPUTE_ROWS,
    {0}};

const option_table model_compare_table = {
    .program = "mipha model compare",
    .positional = "DIR DIR",
    .purpose = "top-1 agreement, KL divergence and perplexity of two checkpoints over a text",
    .example = "  mipha model compare Mipha-3B Mipha-3B-q4 --text book.txt\n"
               "  mipha model compare Mipha-3B Mipha-3B --dtype int8 --text book.txt\n",
    .rows = rows,
    .positional_min = 2,
    .positional_max = 2};

/* ---- one checkpoint ------------------------------------------------------------------------------ */

typedef struct {
    model *m;
    lm_decoder *decoder;
} side;

typedef struct {
    side sides[2];
    ops_ctx *ctx;
    int window, n_vocab;
    int32_t *ids;
    size_t n_ids;
    int32_t *table; /* blocks 0, 1, ... */
    /* sums over scored tokens */
    double loss[2], divergence;
    size_t n, n_agree;
} comparison;

static status open_side(comparison *c, int i, const options *o, err *e) {
    char dir[MODEL_PLACE_BYTES];
    model_settings s = {.dir = dir, .parts = MODEL_PART_ALL};
    if (i == 1) {
        s.dtype = options_string(o, "dtype");
        s.kv_dtype = options_string(o, "kv-dtype");
    }
    status st = model_place(dir, o->positional[i], e);
    if (st == STATUS_OK) st = model_open(&c->sides[i].m, &s, e);
    if (st != STATUS_OK) return st;
    int max = model_get_config(c->sides[i].m)->decoder.max_positions;
    if (c->window > max) c->window = max;
    return STATUS_OK;
}

static status open_decoders(comparison *c, err *e) {
    const model *a = c->sides[0].m, *b = c->sides[1].m;
    if (memcmp(tokenizer_digest(model_get_tokenizer(a)), tokenizer_digest(model_get_tokenizer(b)), HASH_SHA256_BYTES) != 0)
        return fail(e, STATUS_MODEL_MISMATCH, "%s and %s have different tokenizers: their tokens cannot be compared",
                    model_get_config(a)->name, model_get_config(b)->name);
    lm_decoder_settings settings = {.max_rows = STEP_ROWS, .max_seqs = 1, .max_out = STEP_ROWS, .max_context = c->window,
                                    .kv_blocks = (c->window + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS};
    for (int i = 0; i < 2; i++) {
        status st = lm_decoder_open(&c->sides[i].decoder, c->ctx, c->sides[i].m, &settings, e);
        if (st != STATUS_OK) return st;
    }
    c->n_vocab = lm_decoder_n_vocab(c->sides[0].decoder);
    int n_other = lm_decoder_n_vocab(c->sides[1].decoder);
    if (c->n_vocab != n_other)
        return fail(e, STATUS_MODEL_MISMATCH, "%s has %d outputs, %s %d: they cannot be compared", model_get_config(a)->name,
                    c->n_vocab, model_get_config(b)->name, n_other);
    c->table = calloc((size_t)settings.kv_blocks, sizeof *c->table);
    for (int i = 0; c->table && i < settings.kv_blocks; i++) c->table[i] = i;
    return c->table ? STATUS_OK : fail(e, STATUS_NO_MEMORY, "out of memory");
}

/* ---- the text ------------------------------------------------------------------------------------ */

static status read_text(buf *text, const char *path, err *e) {
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    if (!f) return fail_errno(e, STATUS_IO, "--text %.300s", path);
    char block[65536];
    status st = STATUS_OK;
    for (size_t n; st == STATUS_OK && (n = fread(block, 1, sizeof block, f)) > 0;) st = buf_append(text, block, n);
    if (st != STATUS_OK) st = fail(e, st, "--text %.300s: %s (limit %u bytes)", path, status_text((int)st), TEXT_BYTES_MAX);
    if (st == STATUS_OK && ferror(f)) st = fail_errno(e, STATUS_IO, "--text %.300s", path);
    if (f != stdin) (void)fclose(f);
    return st;
}

static status read_ids(comparison *c, const char *path, err *e) {
    buf text;
    buf_init(&text, TEXT_BYTES_MAX);
    status st = read_text(&text, path, e);
    size_t room = 2 * text.len_bytes + 1; /* a token stands for a byte or more, or for a space put in front */
    if (st == STATUS_OK && !(c->ids = calloc(room, sizeof *c->ids))) st = fail(e, STATUS_NO_MEMORY, "out of memory");
    if (st == STATUS_OK)
        st = tokenizer_encode(model_get_tokenizer(c->sides[0].m), text.data ? (const char *)text.data : "", text.len_bytes,
                              TOKENIZER_PLAIN, c->ids, room, &c->n_ids, e);
    if (st == STATUS_OK && c->n_ids < 2)
        st = fail(e, STATUS_BAD_ARGUMENT, "--text %.300s has %zu tokens, expected 2 or more", path, c->n_ids);
    buf_deinit(&text);
    return st;
}

/* Where the model begins texts with a token of its own, every window does. */
static status begin_windows(comparison *c, err *e) {
    int32_t bos = tokenizer_bos_id(model_get_tokenizer(c->sides[0].m));
    if (bos < 0) return STATUS_OK;
    size_t own = (size_t)c->window - 1, n_windows = (c->n_ids + own - 1) / own, n = 0;
    int32_t *ids = calloc(c->n_ids + n_windows, sizeof *ids);
    if (!ids) return fail(e, STATUS_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < c->n_ids; i++) {
        if (i % own == 0) ids[n++] = bos;
        ids[n++] = c->ids[i];
    }
    free(c->ids);
    c->ids = ids;
    c->n_ids = n;
    return STATUS_OK;
}

/* ---- scoring ------------------------------------------------------------------------------------- */

/* log of the sum of exp over a row, and where its largest value is. */
static double log_sum(const float *logits, int n, int *best) {
    *best = 0;
    for (int i = 1; i < n; i++)
        if (logits[i] > logits[*best]) *best = i;
    double sum = 0.0;
    for (int i = 0; i < n; i++) sum += exp((double)logits[i] - (double)logits[*best]);
    return (double)logits[*best] + log(sum);
}

static void score_row(comparison *c, const float *a, const float *b, int32_t next) {
    int best[2];
    double total_a = log_sum(a, c->n_vocab, &best[0]), total_b = log_sum(b, c->n_vocab, &best[1]), divergence = 0.0;
    for (int i = 0; i < c->n_vocab; i++) {
        double p = (double)a[i] - total_a, q = (double)b[i] - total_b;
        divergence += exp(p) * (p - q);
    }
    c->loss[0] += total_a - (double)a[next];
    c->loss[1] += total_b - (double)b[next];
    c->divergence += divergence;
    c->n_agree += best[0] == best[1];
    c->n++;
}

/* Rows first .. first + n - 1 of a window; the one after each is known up to `last`. */
static status step(comparison *c, const int32_t *ids, int first, int n, int last, err *e) {
    TRY(stop_check(e));
    int32_t positions[STEP_ROWS], slots[STEP_ROWS], seqs[STEP_ROWS] = {0}, out_rows[STEP_ROWS];
    int n_blocks = (c->window + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS, n_out = n;
    for (int i = 0; i < n; i++) positions[i] = slots[i] = first + i, out_rows[i] = i; /* blocks lie in order */
    if (first + n - 1 == last) n_out--;
    lm_step ignored;
    for (int s = 0; s < 2; s++) {
        lm_batch batch = {.n_rows = n, .ids = ids + first, .positions = positions, .slots = slots, .seqs = seqs,
                          .n_seqs = 1, .n_table_blocks = n_blocks, .tables = c->table, .n_out = n_out,
                          .out_rows = out_rows};
        status st = lm_decoder_step(c->sides[s].decoder, &ignored, &batch, e);
        if (st != STATUS_OK) return st;
    }
    status st = STATUS_OK;
    for (int i = 0; i < n_out && st == STATUS_OK; i++) {
        const float *logits[2];
        for (int s = 0; s < 2 && st == STATUS_OK; s++) st = lm_decoder_logits(c->sides[s].decoder, &logits[s], i, e);
        if (st == STATUS_OK) score_row(c, logits[0], logits[1], ids[first + i + 1]);
    }
    return st;
}

static status score_text(comparison *c, err *e) {
    status st = STATUS_OK;
    for (size_t at = 0; at + 1 < c->n_ids && st == STATUS_OK; at += (size_t)c->window) {
        int n = c->n_ids - at < (size_t)c->window ? (int)(c->n_ids - at) : c->window;
        for (int first = 0; first < n && st == STATUS_OK; first += STEP_ROWS)
            st = step(c, c->ids + at, first, n - first < STEP_ROWS ? n - first : STEP_ROWS, n - 1, e);
    }
    return st;
}

static void print_scores(const comparison *c) {
    double n = (double)c->n;
    (void)printf("tokens scored         %zu, in windows of %d\n", c->n, c->window);
    (void)printf("same first choice     %.2f %%\n", 100.0 * (double)c->n_agree / n);
    (void)printf("KL divergence         %.6f nats a token\n", c->divergence / n);
    for (int i = 0; i < 2; i++)
        (void)printf("perplexity            %.4f  %s\n", exp(c->loss[i] / n), model_get_config(c->sides[i].m)->name);
}

status model_compare_run(const options *o, int *exit_code, err *e) {
    comparison c = {.window = (int)options_int(o, "window")};
    if (!options_string(o, "text")) return fail(e, STATUS_BAD_ARGUMENT, "--text FILE is missing: what both read");
    ops_settings settings = {.device = options_string(o, "device"), .n_threads = (int)options_int(o, "threads")};
    status st = ops_open(&c.ctx, &settings, e);
    for (int i = 0; i < 2 && st == STATUS_OK; i++) st = open_side(&c, i, o, e);
    if (st == STATUS_OK) st = open_decoders(&c, e);
    if (st == STATUS_OK) st = read_ids(&c, options_string(o, "text"), e);
    if (st == STATUS_OK) st = begin_windows(&c, e);
    if (st != STATUS_OK) *exit_code = exit_code_not_started(st);
    if (st == STATUS_OK) st = score_text(&c, e);
    if (st == STATUS_OK) print_scores(&c);
    for (int i = 0; i < 2; i++) {
        lm_decoder_close(&c.sides[i].decoder);
        model_close(&c.sides[i].m);
    }
    if (c.ctx) ops_close(&c.ctx);
    free(c.ids);
    free(c.table);
    return st;
}
