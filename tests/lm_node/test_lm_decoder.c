/* Projector and decoder against transformers: hidden state of every layer, logits, greedy tokens. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lm_node/kv_cache.h"
#include "lm_node/lm_decoder.h"
#include "lm_node/projector.h"
#include "lm_node/sampler.h"
#include "model/model.h"
#include "tests/lm_node/golden.h"
#include "tests/support/support.h"

/* The device this program tests the network on: its tests are built once for each there is. */
#ifndef TEST_DEVICE
#define TEST_DEVICE "cpu"
#endif

#define IMAGE_ID (-200)
#define ROWS_MAX 400
#define FP8_LOSS 0.2 /* of logits, as a share of their size */

typedef struct {
    golden *g;
    model *m;
    ops_ctx *ctx;
    lm_decoder *d;
    kv_cache *kv;
    unsigned char *features; /* the tower's golden result, in the tower's dtype */
    const model_config *c;
    int adapter; /* of all rows */
    lm_step step;
    float *logits; /* [ROWS_MAX, n_vocab_out] of the wanted rows of the last step */
} fixture;

/* The decoder gets the tower's features as a node would: rounded to the dtype of the weights. */
static unsigned char *stored_features(const fixture *f) {
    golden_tensor t = golden_get(f->g, "features");
    size_t n = (size_t)(t.dims[0] * t.dims[1] * t.dims[2]);
    ops_dtype dtype = model_tower_dtype(f->m);
    unsigned char *out = malloc(n * dtype_bytes(dtype));
    assert_non_null(out);
    for (size_t i = 0; i < n; i++) {
        uint16_t half = dtype == OPS_DTYPE_F16 ? f32_to_f16(t.f32[i]) : f32_to_bf16(t.f32[i]);
        if (dtype == OPS_DTYPE_F32) memcpy(out + 4 * i, &t.f32[i], 4);
        else memcpy(out + 2 * i, &half, 2);
    }
    return out;
}

static void open_fixture_with(fixture *f, const char *case_name, int n_threads, model_settings how) {
    err e;
    f->g = golden_open(case_name);
    how.dir = golden_dir(f->g);
    how.parts = MODEL_PART_ALL;
    if (model_open(&f->m, &how, &e) != STATUS_OK) fail_msg("%s", e.text);
    f->adapter = how.n_served > 0;
    f->c = model_get_config(f->m);
    ops_settings settings = {.device = TEST_DEVICE, .n_threads = n_threads};
    if (ops_open(&f->ctx, &settings, &e) != STATUS_OK) fail_msg("%s", e.text);
    lm_decoder_settings s = {.max_rows = ROWS_MAX,
                             .max_seqs = 4,
                             .max_out = ROWS_MAX,
                             .max_context = f->c->decoder.max_positions,
                             .kv_blocks = 64};
    if (lm_decoder_open(&f->d, f->ctx, f->m, &s, &e) != STATUS_OK) fail_msg("%s", e.text);
    assert_int_equal(kv_cache_open(&f->kv, s.kv_blocks, &e), STATUS_OK);
    f->features = stored_features(f);
    f->logits = malloc((size_t)ROWS_MAX * (size_t)f->c->decoder.n_vocab_out * sizeof *f->logits);
    assert_non_null(f->logits);
}

static void open_fixture(fixture *f, const char *case_name, int n_threads) {
    open_fixture_with(f, case_name, n_threads, (model_settings){0});
}

static void close_fixture(fixture *f) {
    free(f->features);
    free(f->logits);
    kv_cache_close(&f->kv);
    lm_decoder_close(&f->d);
    ops_close(&f->ctx);
    model_close(&f->m);
    golden_close(&f->g);
}

/* A prompt spliced out to rows. */
typedef struct {
    int n;
    int32_t ids[ROWS_MAX];
    int feature[ROWS_MAX]; /* row of features, or -1 */
} spliced;

static spliced splice(const fixture *f, const int32_t *ids, int n_ids) {
    spliced s = {0};
    int n_features = 0;
    for (int i = 0; i < n_ids; i++) {
        int n = ids[i] == IMAGE_ID ? f->c->tower.n_tokens : 1;
        for (int k = 0; k < n; k++) {
            assert_true(s.n < ROWS_MAX);
            s.ids[s.n] = ids[i] == IMAGE_ID ? 0 : ids[i];
            s.feature[s.n++] = ids[i] == IMAGE_ID ? n_features++ : -1;
        }
    }
    return s;
}

/* All logits of the step; the first candidate is the first of the largest among those that have an embedding. */
static void take_logits(fixture *f, int n_out) {
    const int n_vocab = f->c->decoder.n_vocab_out;
    for (int row = 0; row < n_out; row++) {
        const float *logits;
        err e;
        if (lm_decoder_logits(f->d, &logits, row, &e) != STATUS_OK) fail_msg("%s", e.text);
        memcpy(f->logits + (size_t)row * (size_t)n_vocab, logits, (size_t)n_vocab * sizeof *logits);
        int32_t best = 0;
        for (int32_t i = 1; i < n_vocab && i < f->c->decoder.n_vocab_in; i++)
            if (logits[i] > logits[best]) best = i;
        assert_int_equal(f->step.candidates[row].column[0], best);
        assert_true(f->step.candidates[row].value[0] == logits[best]);
    }
}

/* A sequence that goes on at position `cut` where another one ends, in the step that computes it. */
typedef struct {
    kv_seq *seq;
    int cut;
    lm_kv_twice twice; /* what it takes over */
} follower;

/* Rows from .. from + n - 1 of s as one step of one sequence, or from `cut` on of the follower, if there is one. all: logits of
 * every row, else the last. */
static const float *run_rows_of(fixture *f, kv_seq *seq, const follower *behind, const spliced *s, int from, int n, bool all) {
    static int32_t positions[ROWS_MAX], spans[ROWS_MAX], slots[ROWS_MAX], seqs[ROWS_MAX], images[ROWS_MAX], outs[ROWS_MAX];
    static int32_t adapters[ROWS_MAX];
    static const unsigned char *rows[ROWS_MAX];
    size_t row_bytes = lm_decoder_feature_row_bytes(f->d);
    unsigned char *features = malloc((size_t)n * row_bytes);
    assert_non_null(features);
    static int32_t tables[2 * ROWS_MAX];
    kv_seq_extend(f->kv, seq, behind ? behind->cut - from : n);
    const kv_seq *last = behind ? behind->seq : seq;
    memset(tables, 0, sizeof tables);
    memcpy(tables, seq->blocks, (size_t)seq->n_blocks * sizeof *tables);
    if (behind) memcpy(tables + last->n_blocks, last->blocks, (size_t)last->n_blocks * sizeof *tables);
    lm_batch b = {.n_rows = n,
                  .ids = s->ids + from,
                  .positions = positions,
                  .spans = spans,
                  .slots = slots,
                  .seqs = seqs,
                  .adapters = adapters,
                  .image_rows = images,
                  .feature_rows = rows,
                  .n_seqs = behind ? 2 : 1,
                  .n_table_blocks = last->n_blocks,
                  .tables = tables,
                  .out_rows = outs,
                  .n_twice = behind && behind->twice.n_rows > 0,
                  .twice = behind ? &behind->twice : NULL};
    for (int i = 0; i < n; i++) {
        positions[i] = from + i;
        spans[i] = s->n;
        seqs[i] = behind && from + i >= behind->cut;
        slots[i] = kv_seq_slot(seqs[i] ? last : seq, from + i);
        adapters[i] = f->adapter;
        if (all || i == n - 1) outs[b.n_out++] = i;
        if (s->feature[from + i] < 0) continue;
        const unsigned char *row = f->features + (size_t)s->feature[from + i] * row_bytes;
        unsigned char *copy = features + (size_t)b.n_image_rows * row_bytes;
        memcpy(copy, row, row_bytes);
        rows[b.n_image_rows] = all ? copy : row; /* beside each other, and as they are */
        images[b.n_image_rows++] = i;
    }
    err e;
    if (lm_decoder_step(f->d, &f->step, &b, &e) != STATUS_OK) fail_msg("%s", e.text);
    free(features);
    take_logits(f, b.n_out);
    return f->logits;
}

static const float *run_rows(fixture *f, kv_seq *seq, const spliced *s, int from, int n, bool all) {
    return run_rows_of(f, seq, NULL, s, from, n, all);
}

/* ---- comparisons --------------------------------------------------------------------------- */

typedef struct {
    fixture *f;
    int prompt;
    int n_layers_seen;
    double worst;
} layer_check;

static float *pick_rows(const float *x, const golden_tensor *rows, int64_t width) {
    float *picked = malloc((size_t)(rows->dims[0] * width) * sizeof *picked);
    assert_non_null(picked);
    for (int64_t i = 0; i < rows->dims[0]; i++)
        memcpy(picked + i * width, x + rows->i32[i] * width, (size_t)width * sizeof *picked);
    return picked;
}

static void check_layer(void *user, int layer, const ops_tensor *x) {
    layer_check *c = user;
    const golden *g = c->f->g;
    golden_tensor rows = golden_get(g, "prompt.%d.hidden_rows", c->prompt);
    golden_tensor want = golden_get(g, "prompt.%d.hidden.%d", c->prompt, layer);
    golden_tensor bound = golden_get(g, "prompt.%d.hidden.%d.bound", c->prompt, layer);
    char what[64];
    (void)snprintf(what, sizeof what, "prompt %d, layer %d", c->prompt, layer);
    assert_true(rows.i32[rows.dims[0] - 1] < x->dims[0]);
    float *hidden = golden_download(c->f->ctx, x), *got = pick_rows(hidden, &rows, x->dims[1]);
    double worst = golden_compare(got, &want, bound.f32, what);
    if (worst > c->worst) c->worst = worst;
    c->n_layers_seen++;
    free(got), free(hidden);
}

/* Relative distances of logits from transformers in float32: ours, and its own in the stored precision. */
typedef struct {
    double ours, own;
} distances;

static double check_prompt(fixture *f, int prompt, distances *largest) {
    golden_tensor ids = golden_get(f->g, "prompt.%d.ids", prompt);
    golden_tensor rows = golden_get(f->g, "prompt.%d.rows", prompt);
    golden_tensor want = golden_get(f->g, "prompt.%d.logits", prompt);
    golden_tensor bound = golden_get(f->g, "prompt.%d.logits.bound", prompt);
    spliced s = splice(f, ids.i32, (int)ids.dims[0]);
    layer_check c = {f, prompt, 0, 0.0};
    kv_seq seq;
    assert_int_equal(kv_seq_open(f->kv, &seq, s.n, 0), STATUS_OK);
    bool is_f32 = lm_decoder_dtype(f->ctx, f->m) == OPS_DTYPE_F32; /* bounds of layers are for f32 */
    if (is_f32) lm_decoder_set_tap(f->d, check_layer, &c);
    const float *logits = run_rows(f, &seq, &s, 0, s.n, true);
    lm_decoder_set_tap(f->d, NULL, NULL);
    if (is_f32) assert_int_equal(c.n_layers_seen, f->c->decoder.n_layers + 1);
    char what[64];
    (void)snprintf(what, sizeof what, "prompt %d, logits", prompt);
    float *got = pick_rows(logits, &rows, f->c->decoder.n_vocab_out);
    double worst = is_f32 ? golden_compare(got, &want, bound.f32, what) : 0.0;
    if (golden_has(f->g, "own.features")) {
        double ours = golden_distance(got, &want), own = (double)golden_get(f->g, "prompt.%d.own.logits", prompt).f32[0];
        /* who rounds in the same type at other places is as far off, give or take */
        if (!(ours < (is_f32 ? 1.0 : 2.0) * own)) fail_msg("%s: %.3g from float32, the reference itself only %.3g", what, ours, own);
        if (ours > largest->ours) largest->ours = ours;
        if (own > largest->own) largest->own = own;
    }
    free(got);
    kv_seq_close(f->kv, &seq);
    return worst > c.worst ? worst : c.worst;
}

static void check_case(const char *case_name) {
    fixture f;
    open_fixture(&f, case_name, 2);
    double worst = 0.0;
    distances largest = {0};
    for (int p = 0; p < GOLDEN_PROMPTS; p++) {
        double here = check_prompt(&f, p, &largest);
        if (here > worst) worst = here;
    }
    print_message("%s: largest error is %.2g of its bound\n", case_name, worst);
    if (largest.own > 0.0)
        print_message("%s: logits are %.2g from float32, transformers in the stored precision %.2g\n", case_name,
                      largest.ours, largest.own);
    close_fixture(&f);
}

static void states_and_logits_of_every_case_equal_transformers(void **state) {
    (void)state;
    const char *name;
    for (size_t i = 0; (name = golden_case_name(i)); i++) check_case(name);
}

static void states_and_logits_equal_transformers_with_five_heads_of_80(void **state) {
    (void)state;
    check_case("odd_heads");
}

static void states_and_logits_equal_transformers_from_bf16_with_shared_key_heads(void **state) {
    (void)state;
    check_case("grouped");
}

static void states_and_logits_equal_transformers_from_f16(void **state) {
    (void)state;
    check_case("one_head");
}

static void states_and_logits_equal_transformers_from_shards_with_fewer_output_rows(void **state) {
    (void)state;
    check_case("sharded");
}

static void states_and_logits_of_phi_1_5_equal_transformers(void **state) {
    (void)state;
    check_case("phi15");
}

static void states_and_logits_of_gemma_equal_transformers(void **state) {
    (void)state;
    check_case("gemma");
}

static void states_and_logits_of_phi_3_equal_transformers_behind_a_window_and_in_long_contexts(void **state) {
    (void)state;
    check_case("phi3");
    check_case("phi3_long");
}

static void states_and_logits_of_llava_equal_transformers_in_both_its_formats(void **state) {
    (void)state;
    check_case("llava");
    check_case("llava_new");
}

/* Greedy decoding one row at a time, over the ids that can be read back. */
static void check_greedy(fixture *f, int prompt) {
    golden_tensor ids = golden_get(f->g, "prompt.%d.ids", prompt);
    golden_tensor want = golden_get(f->g, "prompt.%d.greedy", prompt);
    spliced s = splice(f, ids.i32, (int)ids.dims[0]);
    const model_decoder_config *c = &f->c->decoder;
    int n_ids = c->n_vocab_in < c->n_vocab_out ? c->n_vocab_in : c->n_vocab_out;
    int n_new = (int)want.dims[0];
    sampler *sample;
    sampler_params greedy = {0};
    sampled_token t;
    err e;
    kv_seq seq;
    assert_int_equal(sampler_open(&sample, c->n_vocab_out, &e), STATUS_OK);
    assert_int_equal(kv_seq_open(f->kv, &seq, s.n + n_new, 0), STATUS_OK);
    (void)run_rows(f, &seq, &s, 0, s.n, false);
    for (int i = 0; i < n_new; i++) {
        const sampler_row row = {.candidates = f->step.candidates, .n = n_ids};
        assert_int_equal(sampler_pick(sample, &t, &row, &greedy, (uint64_t)i, &e), STATUS_OK);
        if (t.id != want.i32[i])
            fail_msg("prompt %d, token %d: %d, transformers has %d", prompt, i, t.id, want.i32[i]);
        s.ids[s.n] = t.id;
        s.feature[s.n++] = -1;
        if (i + 1 < n_new) (void)run_rows(f, &seq, &s, s.n - 1, 1, false);
    }
    kv_seq_close(f->kv, &seq);
    sampler_close(&sample);
}

static void greedy_tokens_equal_transformers(void **state) {
    (void)state;
    const char *name;
    for (size_t i = 0; (name = golden_case_name(i)); i++) {
        fixture f;
        open_fixture(&f, name, 2);
        for (int p = 0; p < GOLDEN_PROMPTS; p++) check_greedy(&f, p);
        close_fixture(&f);
    }
}

static void projected_features_equal_transformers(void **state) {
    (void)state;
    const char *name;
    for (size_t i = 0; (name = golden_case_name(i)); i++) {
        fixture f;
        err e;
        open_fixture(&f, name, 2);
        golden_tensor want = golden_get(f.g, "projected"), bound = golden_get(f.g, "projected.bound");
        int n_rows = (int)(want.dims[0] * want.dims[1]);
        projector *p;
        ops_tensor projected;
        assert_int_equal(projector_open(&p, f.ctx, f.m, 0, OPS_DTYPE_F32, n_rows, &e), STATUS_OK);
        const int n_first = n_rows > 1 ? n_rows / 2 : n_rows; /* in two pieces, if there are two */
        assert_int_equal(projector_upload(p, 0, f.features, n_first), STATUS_OK);
        if (n_rows > n_first)
            assert_int_equal(projector_upload(p, n_first, f.features + (size_t)n_first * projector_row_bytes(p), n_rows - n_first),
                             STATUS_OK);
        assert_int_equal(projector_run(p, &projected, n_rows), STATUS_OK);
        float *got = golden_download(f.ctx, &projected);
        (void)golden_compare(got, &want, bound.f32, name);
        free(got);
        projector_close(&p);
        close_fixture(&f);
    }
}

static void check_pieces(const char *case_name, const char *dtype) {
    fixture f;
    open_fixture_with(&f, case_name, 2, (model_settings){.dtype = dtype});
    golden_tensor ids = golden_get(f.g, "prompt.%d.ids", 3);
    spliced s = splice(&f, ids.i32, (int)ids.dims[0]);
    size_t bytes = (size_t)f.c->decoder.n_vocab_out * sizeof(float);
    float *whole = malloc(bytes);
    const int pieces[] = {ROWS_MAX, 1, 7, 16, 17};
    for (size_t k = 0; k < sizeof pieces / sizeof pieces[0]; k++) {
        kv_seq seq;
        assert_int_equal(kv_seq_open(f.kv, &seq, s.n, 0), STATUS_OK);
        const float *logits = NULL;
        for (int at = 0; at < s.n; at += pieces[k])
            logits = run_rows(&f, &seq, &s, at, s.n - at < pieces[k] ? s.n - at : pieces[k], false);
        if (k == 0) memcpy(whole, logits, bytes);
        assert_memory_equal(logits, whole, bytes);
        kv_seq_close(f.kv, &seq);
    }
    free(whole);
    close_fixture(&f);
}

static void a_prompt_cut_into_any_pieces_has_the_same_logits(void **state) {
    (void)state;
    check_pieces("odd_heads", NULL);
    check_pieces("odd_heads", "fp8");
    check_pieces("gemma", NULL);
    check_pieces("gemma", "fp8");
    check_pieces("phi3", NULL);
    check_pieces("phi3_long", NULL);
}

/* The last row's logits when the rows from cut on are of a sequence of their own, in one step with those before. */
static const float *run_followed(fixture *f, const spliced *s, int cut) {
    kv_seq first, second;
    int n_twice = cut % KV_BLOCK_TOKENS;
    assert_int_equal(kv_seq_open(f->kv, &first, cut, 0), STATUS_OK);
    assert_int_equal(kv_seq_open(f->kv, &second, s->n, cut), STATUS_OK);
    kv_seq_extend(f->kv, &first, cut);
    kv_copy copy = kv_seq_fork(f->kv, &second, &first, cut);
    kv_seq_extend(f->kv, &second, s->n - cut);
    follower behind = {&second, cut, {cut - n_twice, n_twice, copy.to * KV_BLOCK_TOKENS}};
    first.n_tokens = 0; /* run_rows_of extends it again, in the blocks it has */
    const float *logits = run_rows_of(f, &first, &behind, s, 0, s->n, false);
    kv_seq_close(f->kv, &second);
    kv_seq_close(f->kv, &first);
    return logits;
}

static void check_followed(const char *case_name, model_settings how) {
    fixture f;
    open_fixture_with(&f, case_name, 2, how);
    golden_tensor ids = golden_get(f.g, "prompt.%d.ids", 3);
    spliced s = splice(&f, ids.i32, (int)ids.dims[0]);
    size_t bytes = (size_t)f.c->decoder.n_vocab_out * sizeof(float);
    float *whole = malloc(bytes);
    kv_seq seq;
    assert_non_null(whole);
    assert_int_equal(kv_seq_open(f.kv, &seq, s.n, 0), STATUS_OK);
    memcpy(whole, run_rows(&f, &seq, &s, 0, s.n, false), bytes);
    kv_seq_close(f.kv, &seq);
    assert_true(s.n > KV_BLOCK_TOKENS + 2);
    for (int cut = 1; cut < s.n && cut < 2 * KV_BLOCK_TOKENS + 2; cut++)
        assert_memory_equal(run_followed(&f, &s, cut), whole, bytes);
    free(whole);
    close_fixture(&f);
}

static void a_sequence_goes_on_where_another_ends_in_the_same_step(void **state) {
    (void)state;
    check_followed("odd_heads", (model_settings){0});
    check_followed("odd_heads", (model_settings){.kv_dtype = "fp8"});
    check_followed("gemma", (model_settings){0});
    check_followed("phi3_long", (model_settings){0});
}

/* Logits of every row of prompt 3; the caller frees them. */
static float *logits_of_prompt(fixture *f, spliced *s) {
    golden_tensor ids = golden_get(f->g, "prompt.%d.ids", 3);
    *s = splice(f, ids.i32, (int)ids.dims[0]);
    kv_seq seq;
    assert_int_equal(kv_seq_open(f->kv, &seq, s->n, 0), STATUS_OK);
    size_t n = (size_t)s->n * (size_t)f->c->decoder.n_vocab_out;
    float *copy = malloc(n * sizeof *copy);
    memcpy(copy, run_rows(f, &seq, s, 0, s->n, true), n * sizeof *copy);
    kv_seq_close(f->kv, &seq);
    return copy;
}

/* Both networks are within the case's bound of the exact one with the adapter, up to what the adapter makes the
 * gains larger by; the merged weights are rounded once more, which is less than the sums they go into. */
static void check_served(const char *case_name, const char *adapter) {
    char dir[512], text[544];
    (void)snprintf(dir, sizeof dir, TEST_DATA_DIR "/adapters/%s", adapter);
    (void)snprintf(text, sizeof text, "it=%s", dir);
    const char *served[] = {text};
    fixture base, merged, kept;
    open_fixture_with(&base, case_name, 2, (model_settings){.dtype = "f32"});
    open_fixture_with(&merged, case_name, 2, (model_settings){.dtype = "f32", .adapter = dir});
    open_fixture_with(&kept, case_name, 2, (model_settings){.dtype = "f32", .served = served, .n_served = 1});
    spliced s;
    float *from_base = logits_of_prompt(&base, &s), *want = logits_of_prompt(&merged, &s);
    float *got = logits_of_prompt(&kept, &s);
    kept.adapter = 0;
    float *without = logits_of_prompt(&kept, &s);
    golden_tensor bound = golden_get(base.g, "prompt.%d.logits.bound", 3), rows = golden_get(base.g, "prompt.%d.rows", 3);
    int n = base.c->decoder.n_vocab_out;
    assert_memory_equal(without, from_base, (size_t)(s.n * n) * sizeof *without); /* who asks for none gets none */
    double worst = 0, least = INFINITY;
    for (int row = 0; row < rows.dims[0]; row++) {
        double off = 0, change = 0;
        for (int i = rows.i32[row] * n; i < (rows.i32[row] + 1) * n; i++) {
            off += pow((double)got[i] - (double)want[i], 2);
            change += pow((double)got[i] - (double)from_base[i], 2);
        }
        worst = fmax(worst, sqrt(off) / (3 * (double)bound.f32[row]));
        least = fmin(least, sqrt(change) / (3 * (double)bound.f32[row]));
    }
    print_message("%s: served and merged differ by %.3f of the bound, from no adapter by at least %.0f\n", adapter, worst,
                  least);
    assert_true(least > 10);
    if (worst > 1) fail_msg("%s: served and merged differ by %.2f bounds", adapter, worst);
    free(from_base), free(want), free(got), free(without);
    close_fixture(&kept);
    close_fixture(&merged);
    close_fixture(&base);
}

static void an_adapter_that_is_served_is_the_one_that_is_merged(void **state) {
    (void)state;
    check_served("clip", "clip.plain");
    check_served("clip", "clip.all");
    check_served("clip", "clip.projector");
    check_served("gemma", "gemma.plain");
    check_served("grouped", "grouped.plain");
    check_served("phi15", "phi15.fused");
    check_served("phi3", "phi3.fused");
}

static double distance(const float *got, const float *want, int n) {
    double off = 0, size = 0;
    for (int i = 0; i < n; i++) {
        off += pow((double)got[i] - (double)want[i], 2);
        size += pow((double)want[i], 2);
    }
    return sqrt(off / size);
}

/* Products in fp8 of matrices joined above and beside each other, with an adapter that is served: logits are as far from
 * the exact ones as rounding makes them, which is less than what the adapter does. */
static void check_fp8(const char *case_name, const char *adapter) {
    char text[544];
    (void)snprintf(text, sizeof text, "it=" TEST_DATA_DIR "/adapters/%s", adapter);
    const char *served[] = {text};
    fixture exact, rounds;
    open_fixture_with(&exact, case_name, 2, (model_settings){.served = served, .n_served = 1});
    open_fixture_with(&rounds, case_name, 2, (model_settings){.dtype = "fp8", .served = served, .n_served = 1});
    spliced s;
    float *want = logits_of_prompt(&exact, &s), *got = logits_of_prompt(&rounds, &s);
    exact.adapter = 0;
    float *without = logits_of_prompt(&exact, &s);
    int n = s.n * exact.c->decoder.n_vocab_out;
    double loss = distance(got, want, n), change = distance(without, want, n);
    print_message("%s: fp8 is %.3f from the exact logits, without its adapter they are %.3f away\n", adapter, loss, change);
    assert_true(loss > 0.001 && loss < FP8_LOSS && loss < change);
    free(want), free(got), free(without);
    close_fixture(&exact);
    close_fixture(&rounds);
}

static void products_in_fp8_are_near_the_exact_ones(void **state) {
    (void)state;
    check_fp8("clip", "clip.plain");
    check_fp8("gemma", "gemma.plain");
    check_fp8("phi15", "phi15.fused");
    check_fp8("phi3", "phi3.fused");
}

/* Of a network stored in f32: halves where its products are of that precision and the device keeps them beside f32; what was
 * asked for, always, and a device that cannot says so. */
static void keys_are_kept_as_told_or_as_products_deserve(void **state) {
    (void)state;
    bool is_cpu = strcmp(TEST_DEVICE, "cpu") == 0;
    const struct {
        const char *dtype, *kv_dtype;
        ops_dtype kept;
    } rows[] = {{"auto", "auto", OPS_DTYPE_F32},
                {"fp8", "auto", OPS_DTYPE_F32},
                {"int8", "auto", is_cpu ? OPS_DTYPE_F16 : OPS_DTYPE_F32},
                {"bf16", "auto", OPS_DTYPE_BF16},
                {"int8", "f32", OPS_DTYPE_F32},
                {"auto", "fp8", OPS_DTYPE_E4M3},
                {"auto", "f16", OPS_DTYPE_F16}};
    err e;
    ops_ctx *ctx;
    golden *g = golden_open("clip");
    if (ops_open(&ctx, &(ops_settings){.device = TEST_DEVICE, .n_threads = 1}, &e) != STATUS_OK) fail_msg("%s", e.text);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        model *m;
        lm_decoder *d;
        model_settings how = {.dir = golden_dir(g), .dtype = rows[i].dtype, .kv_dtype = rows[i].kv_dtype, .parts = MODEL_PART_ALL};
        if (model_open(&m, &how, &e) != STATUS_OK) fail_msg("%s", e.text);
        if (lm_decoder_kv_dtype(ctx, m) != rows[i].kept)
            fail_msg("%s and %s: %s", rows[i].dtype, rows[i].kv_dtype, dtype_name(lm_decoder_kv_dtype(ctx, m)));
        if (!ops_takes_cache(ctx, lm_decoder_dtype(ctx, m), rows[i].kept)) {
            assert_string_equal(rows[i].kv_dtype, "f16");
            lm_decoder_settings s = {.max_rows = 4, .max_seqs = 1, .max_out = 1, .max_context = 16, .kv_blocks = 2};
            assert_int_equal(lm_decoder_open(&d, ctx, m, &s, &e), STATUS_BAD_ARGUMENT);
            assert_non_null(strstr(e.text, "keys and values in f16"));
            assert_non_null(strstr(e.text, "f32 or e4m3"));
        }
        model_close(&m);
    }
    ops_close(&ctx);
    golden_close(&g);
}

static void a_context_beyond_the_model_is_refused_with_both_numbers(void **state) {
    (void)state;
    fixture f;
    err e;
    lm_decoder *d;
    open_fixture(&f, "one_head", 1);
    lm_decoder_settings s = {
        .max_rows = 4, .max_seqs = 1, .max_out = 1, .max_context = 4096, .kv_blocks = 2};
    assert_int_equal(lm_decoder_open(&d, f.ctx, f.m, &s, &e), STATUS_BAD_ARGUMENT);
    assert_null(d);
    assert_non_null(strstr(e.text, "4096"));
    assert_non_null(strstr(e.text, "2048"));
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(states_and_logits_equal_transformers_with_five_heads_of_80),
        cmocka_unit_test(states_and_logits_equal_transformers_from_bf16_with_shared_key_heads),
        cmocka_unit_test(states_and_logits_equal_transformers_from_f16),
        cmocka_unit_test(states_and_logits_equal_transformers_from_shards_with_fewer_output_rows),
        cmocka_unit_test(states_and_logits_of_phi_1_5_equal_transformers),
        cmocka_unit_test(states_and_logits_of_gemma_equal_transformers),
        cmocka_unit_test(states_and_logits_of_phi_3_equal_transformers_behind_a_window_and_in_long_contexts),
        cmocka_unit_test(states_and_logits_of_llava_equal_transformers_in_both_its_formats),
        cmocka_unit_test(projected_features_equal_transformers),
        cmocka_unit_test(greedy_tokens_equal_transformers),
        cmocka_unit_test(a_prompt_cut_into_any_pieces_has_the_same_logits),
        cmocka_unit_test(a_sequence_goes_on_where_another_ends_in_the_same_step),
        cmocka_unit_test(products_in_fp8_are_near_the_exact_ones),
        cmocka_unit_test(keys_are_kept_as_told_or_as_products_deserve),
        cmocka_unit_test(an_adapter_that_is_served_is_the_one_that_is_merged),
        cmocka_unit_test(a_context_beyond_the_model_is_refused_with_both_numbers),
    };
    const struct CMUnitTest device[] = {
        cmocka_unit_test(states_and_logits_equal_transformers_with_five_heads_of_80),
        cmocka_unit_test(states_and_logits_equal_transformers_from_bf16_with_shared_key_heads),
        cmocka_unit_test(states_and_logits_equal_transformers_from_f16),
        cmocka_unit_test(states_and_logits_of_gemma_equal_transformers),
        cmocka_unit_test(states_and_logits_of_phi_3_equal_transformers_behind_a_window_and_in_long_contexts),
        cmocka_unit_test(a_prompt_cut_into_any_pieces_has_the_same_logits),
        cmocka_unit_test(a_sequence_goes_on_where_another_ends_in_the_same_step),
        cmocka_unit_test(products_in_fp8_are_near_the_exact_ones),
        cmocka_unit_test(keys_are_kept_as_told_or_as_products_deserve),
    };
    if (ops_device_count(TEST_DEVICE) == 0) return TEST_SKIPPED;
    if (strcmp(TEST_DEVICE, "cpu") != 0) return cmocka_run_group_tests(device, NULL, NULL);
    const struct CMUnitTest matrix[] = {
        cmocka_unit_test(states_and_logits_of_every_case_equal_transformers),
        cmocka_unit_test(projected_features_equal_transformers),
        cmocka_unit_test(greedy_tokens_equal_transformers),
    };
    return golden_is_matrix() ? cmocka_run_group_tests(matrix, NULL, NULL) : cmocka_run_group_tests(tests, NULL, NULL);
}
