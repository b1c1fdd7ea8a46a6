/* Steps of decoding from recorded graphs: the bits of plain steps, whatever stood in the steps between. */
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "lm_node/kv_cache.h"
#include "lm_node/lm_decoder.h"
#include "model/model.h"
#include "tests/lm_node/golden.h"
#include "tests/support/support.h"

/* The device this program tests on: its tests are built once for each there is. */
#ifndef TEST_DEVICE
#define TEST_DEVICE "cpu"
#endif

#define ROWS_MAX   320
#define SEQS_MAX   11 /* no size of a step: the last one is cut to it */
#define KV_BLOCKS  64
#define LENGTH_MAX 360

typedef struct {
    golden *g;
    model *m;
    const model_decoder_config *c;
    ops_ctx *ctx[2];
    lm_decoder *d[2]; /* the second never has graphs: somebody listens to its layers */
    int64_t rows_heard;
} fixture;

static void listen(void *user, int layer, const ops_tensor *x) {
    if (layer == 0) ((fixture *)user)->rows_heard = x->dims[0];
}

static void open_fixture(fixture *f, const char *case_name, const char *dtype, int n_decoders, int max_seqs) {
    err e;
    *f = (fixture){.g = golden_open(case_name)};
    const model_settings how = {.dir = golden_dir(f->g), .parts = MODEL_PART_ALL, .dtype = dtype};
    if (model_open(&f->m, &how, &e) != STATUS_OK) fail_msg("%s", e.text);
    f->c = &model_get_config(f->m)->decoder;
    const ops_settings settings = {.device = TEST_DEVICE, .n_threads = 1};
    const lm_decoder_settings s = {.max_rows = ROWS_MAX,
                                   .max_seqs = max_seqs,
                                   .max_out = max_seqs + 1,
                                   .max_context = f->c->max_positions,
                                   .kv_blocks = KV_BLOCKS};
    for (int i = 0; i < n_decoders; i++) {
        if (ops_open(&f->ctx[i], &settings, &e) != STATUS_OK) fail_msg("%s", e.text);
        if (lm_decoder_open(&f->d[i], f->ctx[i], f->m, &s, &e) != STATUS_OK) fail_msg("%s", e.text);
    }
    if (f->d[1]) lm_decoder_set_tap(f->d[1], listen, f);
}

static void close_fixture(fixture *f) {
    for (int i = 0; i < 2; i++) {
        lm_decoder_close(&f->d[i]);
        ops_close(&f->ctx[i]);
    }
    model_close(&f->m);
    golden_close(&f->g);
}

/* ---- steps --------------------------------------------------------------------------------- */

/* The batch of a step, filled row by row. */
typedef struct {
    lm_batch b;
    int32_t ids[ROWS_MAX], positions[ROWS_MAX], spans[ROWS_MAX], slots[ROWS_MAX], seqs[ROWS_MAX], out_rows[ROWS_MAX];
    ops_candidates_wanted wanted[ROWS_MAX];
    int32_t tables[SEQS_MAX * 128];
} step_rows;

static void clear_rows(step_rows *s) {
    s->b = (lm_batch){.ids = s->ids,
                      .positions = s->positions,
                      .spans = s->spans,
                      .slots = s->slots,
                      .seqs = s->seqs,
                      .tables = s->tables,
                      .out_rows = s->out_rows,
                      .wanted = s->wanted};
}

static void add_row(step_rows *s, int32_t id, int position, int span, int32_t slot, int seq) {
    int row = s->b.n_rows++;
    s->ids[row] = id;
    s->positions[row] = position;
    s->spans[row] = span;
    s->slots[row] = slot;
    s->seqs[row] = seq;
}

static void want_row(step_rows *s, int row, rng *r) {
    s->wanted[s->b.n_out] = (ops_candidates_wanted){.n = 1 + (int32_t)rng_below(r, 5), .temperature = {0.0f, 0.7f}};
    s->out_rows[s->b.n_out++] = row;
}

static void assert_same_candidates(const ops_candidates *a, const ops_candidates *b) {
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->total, b->total, sizeof a->total);
    assert_memory_equal(a->column, b->column, (size_t)a->n * sizeof a->column[0]);
    assert_memory_equal(a->value, b->value, (size_t)a->n * sizeof a->value[0]);
}

/* Both decoders take the step; their bits are equal. */
static bool step_both(fixture *f, const step_rows *s, int step) {
    lm_step out[2];
    err e;
    for (int i = 0; i < 2; i++)
        if (lm_decoder_step(f->d[i], &out[i], &s->b, &e) != STATUS_OK) fail_msg("step %d: %s", step, e.text);
    assert_false(out[1].is_replayed);
    assert_int_equal(f->rows_heard, s->b.n_rows);
    for (int row = 0; row < s->b.n_out; row++) {
        const float *logits[2];
        for (int i = 0; i < 2; i++) assert_int_equal(lm_decoder_logits(f->d[i], &logits[i], row, &e), STATUS_OK);
        if (memcmp(logits[0], logits[1], (size_t)f->c->n_vocab_out * sizeof(float)) != 0)
            fail_msg("step %d of %d rows, %d blocks: row %d differs", step, s->b.n_rows, s->b.n_table_blocks, row);
        assert_same_candidates(&out[0].candidates[row], &out[1].candidates[row]);
    }
    return out[0].is_replayed;
}

/* ---- a service's day, in short ------------------------------------------------------------- */

typedef struct {
    kv_seq seq; /* blocks NULL: nobody */
    int n_prompt, n_done, n_end;
} speaker;

typedef struct {
    fixture *f;
    kv_cache *kv;
    rng r;
    speaker speakers[SEQS_MAX];
    int n_plans;  /* prompts begun */
    int n_steps, n_decoding, n_replayed;
} day;

static int32_t any_token(day *d) { return (int32_t)rng_below(&d->r, (uint64_t)d->f->c->n_vocab_in); }

/* Rows of one speaker; a prompt comes in pieces of at most 200. */
static void speak(day *d, step_rows *s, speaker *p) {
    bool is_decoding = p->n_done >= p->n_prompt;
    int n = is_decoding ? 1 : p->n_prompt - p->n_done < 200 ? p->n_prompt - p->n_done : 200;
    kv_seq_extend(d->kv, &p->seq, n);
    for (int i = 0; i < n; i++) {
        int at = p->n_done + i;
        add_row(s, any_token(d), at, is_decoding ? at + 1 : p->n_prompt, kv_seq_slot(&p->seq, at), s->b.n_seqs);
    }
    p->n_done += n;
    s->b.n_seqs++;
    if (p->seq.n_blocks > s->b.n_table_blocks) s->b.n_table_blocks = p->seq.n_blocks;
    if (p->n_done >= p->n_prompt) want_row(s, s->b.n_rows - 1, &d->r);
}

/* Prompts that grow make scratch grow under the graphs there are; one of ten is just below 256 positions, where its table
 * meets the end of a size while it decodes, and one of three is one row, all of which are wanted and which is not decoded. */
static void begin(day *d, speaker *p) {
    int n_plan = d->n_plans++, max = d->f->c->max_positions < LENGTH_MAX ? d->f->c->max_positions : LENGTH_MAX;
    *p = (speaker){.n_prompt = n_plan % 10 == 4 ? 250 + n_plan : n_plan % 3 == 0 ? 1 : 1 + (int)rng_below(&d->r, 30)};
    p->n_end = p->n_prompt + 3 + (int)rng_below(&d->r, 20);
    if (p->n_end > max) p->n_end = max;
    if (kv_seq_open(d->kv, &p->seq, p->n_end, 0) != STATUS_OK) *p = (speaker){0};
}

static void fill_tables(step_rows *s, const speaker *const *of) {
    memset(s->tables, 0, sizeof s->tables);
    for (int i = 0; i < s->b.n_seqs; i++)
        memcpy(s->tables + i * s->b.n_table_blocks, of[i]->seq.blocks, (size_t)of[i]->seq.n_blocks * sizeof(int32_t));
}

static void live_one_step(day *d, bool may_begin) {
    static step_rows s;
    const speaker *of[SEQS_MAX];
    clear_rows(&s);
    for (int i = 0; i < SEQS_MAX; i++) {
        speaker *p = &d->speakers[i];
        if (!p->seq.blocks || p->n_done < p->n_prompt) continue;
        of[s.b.n_seqs] = p;
        speak(d, &s, p);
    }
    s.b.n_decode_rows = s.b.n_rows;
    for (int i = 0, n_begun = 0; i < SEQS_MAX && s.b.n_rows + 200 < ROWS_MAX; i++) {
        speaker *p = &d->speakers[i];
        if (!p->seq.blocks && may_begin && n_begun++ == 0) begin(d, p);
        if (!p->seq.blocks || p->n_done >= p->n_prompt) continue;
        of[s.b.n_seqs] = p;
        speak(d, &s, p);
    }
    if (s.b.n_rows == 0) return;
    fill_tables(&s, of);
    bool is_decoding = s.b.n_decode_rows == s.b.n_rows, is_replayed = step_both(d->f, &s, d->n_steps++);
    assert_true(is_decoding || !is_replayed);
    d->n_decoding += is_decoding;
    d->n_replayed += is_replayed;
    for (int i = 0; i < SEQS_MAX; i++)
        if (d->speakers[i].seq.blocks && d->speakers[i].n_done >= d->speakers[i].n_end) {
            kv_seq_close(d->kv, &d->speakers[i].seq);
            d->speakers[i] = (speaker){0};
        }
}

static void check_day(const char *case_name, const char *dtype, int n_steps) {
    fixture f;
    err e;
    open_fixture(&f, case_name, dtype, 2, SEQS_MAX);
    day d = {.f = &f, .r = rng_make(17)};
    assert_int_equal(kv_cache_open(&d.kv, KV_BLOCKS, &e), STATUS_OK);
    for (int i = 0; i < n_steps; i++) live_one_step(&d, i < 4 || rng_below(&d.r, 4) == 0);
    for (int i = 0; i < SEQS_MAX; i++) kv_seq_close(d.kv, &d.speakers[i].seq);
    print_message("%s: %d prompts, %d steps, %d of decoding only, %d from a graph\n", case_name, d.n_plans, d.n_steps,
                  d.n_decoding, d.n_replayed);
    assert_true(d.n_plans > 10 && d.n_decoding > n_steps / 3);
    if (!ops_has_graphs(f.ctx[0])) assert_int_equal(d.n_replayed, 0);
    else assert_true(d.n_replayed > d.n_decoding / 2); /* of each size all but the first */
    kv_cache_close(&d.kv);
    close_fixture(&f);
}

static void graphs_and_plain_steps_have_the_same_bits_in_halves(void **state) {
    (void)state;
    check_day("one_head", NULL, 50);
}

static void graphs_and_plain_steps_have_the_same_bits_in_f32(void **state) {
    (void)state;
    check_day("gemma", "f32", 40);
}

static void graphs_and_plain_steps_have_the_same_bits_in_long_contexts(void **state) {
    (void)state;
    check_day("phi3_long", NULL, 40);
}

/* ---- one size at a time -------------------------------------------------------------------- */

/* n rows, each of a sequence of its own with one block, on the first decoder; tables of n_blocks columns. */
static lm_step step_of(fixture *f, int n_rows, int n_blocks, const int32_t *adapters) {
    static int32_t ids[KV_BLOCKS], zeros[KV_BLOCKS], slots[KV_BLOCKS], rows[KV_BLOCKS], tables[KV_BLOCKS * 128];
    lm_step out;
    err e;
    memset(tables, 0, sizeof tables);
    for (int i = 0; i < n_rows; i++) {
        ids[i] = 1 + i % 8;
        rows[i] = i;
        slots[i] = i * KV_BLOCK_TOKENS;
        tables[i * n_blocks] = i;
    }
    const lm_batch b = {.n_rows = n_rows,
                        .n_decode_rows = n_rows,
                        .ids = ids,
                        .positions = zeros,
                        .slots = slots,
                        .seqs = rows,
                        .adapters = adapters,
                        .n_seqs = n_rows,
                        .n_table_blocks = n_blocks,
                        .tables = tables,
                        .n_out = n_rows,
                        .out_rows = rows};
    if (lm_decoder_step(f->d[0], &out, &b, &e) != STATUS_OK) fail_msg("%d rows, %d blocks: %s", n_rows, n_blocks, e.text);
    return out;
}

static void a_size_is_recorded_the_second_time(void **state) {
    (void)state;
    fixture f;
    open_fixture(&f, "one_head", NULL, 1, SEQS_MAX);
    bool has_graphs = ops_has_graphs(f.ctx[0]);
    static const struct {
        int n_rows, n_blocks;
        bool is_replayed;
    } steps[] = {
        {1, 1, false}, {1, 16, true},  {1, 3, true},  {1, 17, false}, {3, 1, false}, {4, 1, true},
        {2, 1, false}, {1, 32, true},  {9, 2, false}, {11, 2, true},  {1, 1, true},  {10, 16, true},
    };
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++)
        if (step_of(&f, steps[i].n_rows, steps[i].n_blocks, NULL).is_replayed != (steps[i].is_replayed && has_graphs))
            fail_msg("step %zu", i);
    close_fixture(&f);
}

/* Four sizes more than are kept: the first four are forgotten, the others are there. Every logit is that of the row's token
 * when it first came. */
static void more_sizes_than_are_kept_are_forgotten_in_order(void **state) {
    (void)state;
    fixture f;
    open_fixture(&f, "one_head", NULL, 1, KV_BLOCKS);
    bool has_graphs = ops_has_graphs(f.ctx[0]);
    static const int rows[] = {2, 48, 40, 32, 24, 16, 8, 4, 1}, blocks[] = {16, 32, 64, 128};
    const size_t bytes = (size_t)f.c->n_vocab_out * sizeof(float), n_sizes = sizeof rows / sizeof rows[0] * 4;
    float *first = calloc(8, bytes);
    bool is_known[8] = {false};
    for (size_t i = 0; i < n_sizes; i++) {
        assert_false(step_of(&f, rows[i / 4], blocks[i % 4], NULL).is_replayed);
        for (int row = 0; row < rows[i / 4]; row++) {
            const float *logits;
            err e;
            assert_int_equal(lm_decoder_logits(f.d[0], &logits, row, &e), STATUS_OK);
            float *known = first + row % 8 * f.c->n_vocab_out;
            if (!is_known[row % 8]) memcpy(known, logits, bytes);
            is_known[row % 8] = true;
            assert_memory_equal(logits, known, bytes);
        }
    }
    for (size_t i = n_sizes - 4; i < n_sizes; i++)
        assert_int_equal(step_of(&f, rows[i / 4], blocks[i % 4], NULL).is_replayed, has_graphs);
    for (size_t i = 0; i < 4; i++) assert_false(step_of(&f, rows[i / 4], blocks[i % 4], NULL).is_replayed);
    assert_int_equal(step_of(&f, rows[0], blocks[3], NULL).is_replayed, has_graphs);
    free(first);
    close_fixture(&f);
}

/* Only where the emulated device can be told to. */
static void a_device_that_cannot_record_runs_plain_steps(void **state) {
    (void)state;
    fixture f;
    open_fixture(&f, "one_head", NULL, 1, SEQS_MAX);
    if (strstr(ops_device_text(f.ctx[0]), "emulated")) {
        int32_t want = step_of(&f, 2, 1, NULL).candidates[1].column[0];
        assert_int_equal(setenv("EMULATED_CUDA_NO_GRAPHS", "1", 1), 0);
        for (int i = 0; i < 2; i++) {
            lm_step out = step_of(&f, 2, 1, NULL);
            assert_false(out.is_replayed);
            assert_int_equal(out.candidates[1].column[0], want);
        }
        assert_int_equal(unsetenv("EMULATED_CUDA_NO_GRAPHS"), 0);
        assert_false(step_of(&f, 2, 1, NULL).is_replayed); /* it is not asked again */
    }
    close_fixture(&f);
}

static void rows_with_an_adapter_have_no_graph(void **state) {
    (void)state;
    fixture f = {.g = golden_open("clip")};
    err e;
    const char *served[] = {"it=" TEST_DATA_DIR "/adapters/clip.plain"};
    const model_settings how = {.dir = golden_dir(f.g), .parts = MODEL_PART_ALL, .served = served, .n_served = 1};
    if (model_open(&f.m, &how, &e) != STATUS_OK) fail_msg("%s", e.text);
    const ops_settings settings = {.device = TEST_DEVICE, .n_threads = 1};
    const lm_decoder_settings s = {.max_rows = 8, .max_seqs = 8, .max_out = 8, .max_context = 512, .kv_blocks = 8};
    if (ops_open(&f.ctx[0], &settings, &e) != STATUS_OK) fail_msg("%s", e.text);
    if (lm_decoder_open(&f.d[0], f.ctx[0], f.m, &s, &e) != STATUS_OK) fail_msg("%s", e.text);
    static const int32_t none[3] = {0, 0, 0}, one[3] = {0, 0, 1};
    for (int i = 0; i < 3; i++) {
        assert_false(step_of(&f, 3, 1, one).is_replayed);
        assert_int_equal(step_of(&f, 3, 1, none).is_replayed, i > 0 && ops_has_graphs(f.ctx[0]));
    }
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_size_is_recorded_the_second_time),
        cmocka_unit_test(graphs_and_plain_steps_have_the_same_bits_in_halves),
        cmocka_unit_test(graphs_and_plain_steps_have_the_same_bits_in_f32),
        cmocka_unit_test(graphs_and_plain_steps_have_the_same_bits_in_long_contexts),
        cmocka_unit_test(more_sizes_than_are_kept_are_forgotten_in_order),
        cmocka_unit_test(a_device_that_cannot_record_runs_plain_steps),
        cmocka_unit_test(rows_with_an_adapter_have_no_graph),
    };
    if (ops_device_count(TEST_DEVICE) == 0) return TEST_SKIPPED;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
