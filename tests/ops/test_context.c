/* A context: opening it, memory, crossings of every kind, graphs; and what each of them refuses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Before cmocka.h, which has a macro of the name of our function fail(). */
#include "base/err.h"

#include <cmocka.h>

#include "tests/ops/ops_cases.h"

static ops_ctx *ctx;
static ops_block block; /* on the device */
static float *memory;

/* A view of our own memory from element `at`. */
static ops_tensor at2(int64_t at, int64_t rows, int64_t cols) {
    return tensor_make(memory + at, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 2, (int64_t[]){rows, cols});
}

static void opening_refuses_what_is_not_there(void **state) {
    (void)state;
    static const struct {
        ops_settings settings;
        status want;
        const char *text;
    } cases[] = {
        {{.device = "cuda:999", .n_threads = 1}, STATUS_UNSUPPORTED, "CUDA"},
        {{.device = "cuda:", .n_threads = 1}, STATUS_BAD_ARGUMENT, "cuda:"},
        {{.device = "cuda:-1", .n_threads = 1}, STATUS_BAD_ARGUMENT, "cuda:-1"},
        {{.device = "cpu:1", .n_threads = 1}, STATUS_BAD_ARGUMENT, "cpu:1"},
        {{.device = "tpu", .n_threads = 1}, STATUS_BAD_ARGUMENT, "tpu"},
        {{.device = "", .n_threads = 1}, STATUS_BAD_ARGUMENT, "device"},
        {{.device = "cpu", .n_threads = -1}, STATUS_BAD_ARGUMENT, "-1 threads"},
        {{.device = "cpu", .n_threads = 257}, STATUS_BAD_ARGUMENT, "257 threads"},
        {{.device = "cpu", .n_threads = 1, .simd = "sse9"}, STATUS_BAD_ARGUMENT, "sse9"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        err e = {0};
        ops_ctx *c = ctx;
        assert_int_equal(ops_open(&c, &cases[i].settings, &e), cases[i].want);
        assert_null(c);
        assert_non_null(strstr(e.text, cases[i].text));
    }
}

static void activations_keep_the_dtype_of_the_weights_where_the_device_has_it(void **state) {
    (void)state;
    static const ops_dtype stored[] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16, OPS_DTYPE_Q8, OPS_DTYPE_Q4};
    static const ops_dtype device[] = {OPS_DTYPE_F32, OPS_DTYPE_F16, OPS_DTYPE_BF16, OPS_DTYPE_BF16, OPS_DTYPE_BF16};
    for (int i = 0; i < 5; i++)
        assert_int_equal(ops_activation_dtype(ctx, stored[i]), test_device_is_cpu() ? OPS_DTYPE_F32 : device[i]);
}

static void no_threads_named_means_every_available_core(void **state) {
    (void)state;
    err e;
    ops_ctx *c;
    assert_int_equal(ops_open(&c, &(ops_settings){.device = "cpu"}, &e), STATUS_OK);
    assert_non_null(strstr(ops_device_text(c), "cpu "));
    assert_non_null(strstr(ops_device_text(c), "thread"));
    ops_close(&c);
    assert_null(c);
    ops_close(&c);
}

static void memory_is_zeroed_cut_aligned_and_crossed_only_on_the_device(void **state) {
    (void)state;
    err e;
    ops_block cut;
    size_t bytes = ops_cut_bytes(OPS_DTYPE_F32, 3) + ops_cut_bytes(OPS_DTYPE_F16, 5);
    assert_int_equal(bytes, 128);
    assert_int_equal(ops_block_open(ctx, &cut, bytes, &e), STATUS_OK);
    ops_tensor a = ops_block_cut(&cut, OPS_DTYPE_F32, 1, (int64_t[]){3});
    ops_tensor b = ops_block_cut(&cut, OPS_DTYPE_F16, 1, (int64_t[]){5});
    assert_int_equal((uintptr_t)b.data % 64, 0);
    assert_int_equal((uintptr_t)b.data - (uintptr_t)a.data, 64);
    float in[3] = {1, 2, 3}, out[3] = {9, 9, 9};
    assert_int_equal(ops_download(ctx, out, &a), STATUS_OK);
    assert_true(out[0] == 0 && out[2] == 0);
    assert_int_equal(ops_upload(ctx, &a, in), STATUS_OK);
    assert_int_equal(ops_download(ctx, out, &a), STATUS_OK);
    assert_int_equal(ops_sync(ctx), STATUS_OK);
    assert_true(same_bits(in, out, 3));
    assert_int_equal(ops_sync(ctx), STATUS_OK);
    ops_tensor host = a, nothing = a;
    host.place = OPS_PLACE_HOST;
    nothing.data = NULL;
    assert_int_equal(ops_upload(ctx, &host, in), STATUS_UNSUPPORTED);
    assert_int_equal(ops_download(ctx, out, &host), STATUS_UNSUPPORTED);
    assert_int_equal(ops_upload(ctx, &nothing, in), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_upload(ctx, &a, NULL), STATUS_BAD_ARGUMENT);
    ops_tensor whole = at2(0, 2, 4), columns = tensor_columns(&whole, 1, 2);
    assert_int_equal(ops_upload(ctx, &columns, in), STATUS_BAD_SHAPE);
    assert_int_equal(ops_download(ctx, out, &columns), STATUS_BAD_SHAPE);
    ops_block_close(&cut);
    ops_block_close(&cut);
    assert_int_equal(ops_block_open(ctx, &cut, (size_t)1 << 62, &e), STATUS_NO_MEMORY);
    assert_int_equal(ops_block_open(ctx, &cut, 0, &e), STATUS_OK);
    ops_tensor empty = ops_block_cut(&cut, OPS_DTYPE_F32, 2, (int64_t[]){0, 8});
    assert_int_equal(ops_upload(ctx, &empty, in), STATUS_OK);
    ops_block_close(&cut);
}

/* Pieces of every number and a rest, from memory of both kinds into memory of both kinds. */
static void crossings_of_any_size_and_memory_bring_every_byte(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 4095, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (13 << 20) + 7, 75 << 20};
    enum { GUARD = 64, LONGEST = 75 << 20, CROSSING_SEED = 11 };
    err e;
    ops_block far;
    void *direct_in, *direct_out;
    assert_int_equal(ops_block_open(ctx, &far, LONGEST, &e), STATUS_OK);
    assert_int_equal(ops_host_open(ctx, &direct_in, LONGEST + GUARD, &e), STATUS_OK);
    assert_int_equal(ops_host_open(ctx, &direct_out, LONGEST + GUARD, &e), STATUS_OK);
    assert_int_equal((uintptr_t)direct_in % 64, 0);
    for (size_t i = 0; i < LONGEST; i += 4096) assert_int_equal(((unsigned char *)direct_in)[i], 0);
    unsigned char *plain_in = malloc(LONGEST + GUARD), *plain_out = malloc(LONGEST + GUARD);
    rng r = rng_make(CROSSING_SEED);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t n = sizes[i], shift = i % 2; /* from the middle of the memory as well */
        for (int kind = 0; kind < 4; kind++) {
            unsigned char *in = (unsigned char *)(kind & 1 ? direct_in : plain_in) + shift;
            unsigned char *out = (unsigned char *)(kind & 2 ? direct_out : plain_out) + shift;
            for (size_t k = 0; k + 8 <= n; k += 8) {
                uint64_t word = rng_next(&r);
                memcpy(in + k, &word, 8);
            }
            in[n - 1] = (unsigned char)rng_next(&r);
            memset(out, 0xA5, n + GUARD / 2);
            const int64_t n_halves[] = {(int64_t)((n + 1) / 2)};
            ops_tensor t = tensor_make(far.data, OPS_PLACE_DEVICE, OPS_DTYPE_F16, 1, n_halves);
            in[n] = 0xA5;
            assert_int_equal(ops_upload(ctx, &t, in), STATUS_OK);
            assert_int_equal(ops_download(ctx, out, &t), STATUS_OK);
            assert_int_equal(ops_sync(ctx), STATUS_OK);
            if (memcmp(in, out, n) != 0) fail_msg("%zu bytes, kind %d", n, kind);
            for (size_t k = n + 1; k < n + GUARD / 2; k++) assert_int_equal(out[k], 0xA5);
        }
    }
    free(plain_in);
    free(plain_out);
    ops_host_close(ctx, &direct_in, LONGEST + GUARD);
    ops_host_close(ctx, &direct_out, LONGEST + GUARD);
    assert_null(direct_in);
    ops_host_close(ctx, &direct_in, LONGEST + GUARD);
    ops_block_close(&far);
    void *nothing = ctx;
    assert_int_equal(ops_host_open(ctx, &nothing, (size_t)1 << 62, &e), STATUS_NO_MEMORY);
    assert_int_equal(ops_host_open(ctx, &nothing, 0, &e), STATUS_OK);
    assert_null(nothing);
}

/* Two lanes in turns, as long as the one before is under way: each sums what went up for it, and nobody else's. */
static void crossings_beside_operators_keep_to_their_marks(void **state) {
    (void)state;
    enum { LANES = 2, RUNS = 5, N = 1000 };
    err e;
    ops_block lanes;
    void *pinned;
    assert_int_equal(ops_block_open(ctx, &lanes, LANES * 2 * ops_cut_bytes(OPS_DTYPE_F32, N), &e), STATUS_OK);
    assert_int_equal(ops_host_open(ctx, &pinned, LANES * 2 * N * sizeof(float), &e), STATUS_OK);
    assert_int_equal(ops_sync(ctx), STATUS_OK);
    ops_tensor x[LANES], y[LANES];
    ops_mark *marks[LANES], *unset;
    float *in[LANES], *out[LANES];
    for (int i = 0; i < LANES; i++) {
        x[i] = ops_block_cut(&lanes, OPS_DTYPE_F32, 2, (int64_t[]){1, N});
        y[i] = ops_block_cut(&lanes, OPS_DTYPE_F32, 2, (int64_t[]){1, N});
        in[i] = (float *)pinned + 2 * i * N;
        out[i] = in[i] + N;
        assert_int_equal(ops_mark_open(ctx, &marks[i], &e), STATUS_OK);
    }
    assert_int_equal(ops_mark_open(ctx, &unset, &e), STATUS_OK);
    assert_int_equal(ops_mark_wait(ctx, unset), STATUS_OK);
    for (int run = 0; run <= RUNS; run++) {
        int lane = run % LANES, last = 1 - lane;
        if (run < RUNS) {
            for (int k = 0; k < N; k++) in[lane][k] = (float)(1000 * run + k);
            assert_int_equal(ops_upload_ahead(ctx, &x[lane], in[lane]), STATUS_OK);
            assert_int_equal(ops_add(ctx, &y[lane], &x[lane], &x[lane]), STATUS_OK);
            assert_int_equal(ops_download_behind(ctx, out[lane], &y[lane]), STATUS_OK);
            assert_int_equal(ops_mark_set(ctx, marks[lane]), STATUS_OK);
        }
        if (run == 0) continue;
        assert_int_equal(ops_mark_wait(ctx, marks[last]), STATUS_OK);
        for (int k = 0; k < N; k++) assert_true(out[last][k] == (float)(2 * (1000 * (run - 1) + k)));
    }
    float far[N], back[N]; /* memory that cannot cross by itself */
    for (int k = 0; k < N; k++) far[k] = (float)k;
    assert_int_equal(ops_upload_ahead(ctx, &x[0], far), STATUS_OK);
    assert_int_equal(ops_download_behind(ctx, out[1], &x[0]), STATUS_OK);
    assert_int_equal(ops_sync(ctx), STATUS_OK); /* of what goes down beside operators, too */
    assert_memory_equal(out[1], far, sizeof far);
    assert_int_equal(ops_download_behind(ctx, back, &x[0]), STATUS_OK);
    assert_int_equal(ops_sync(ctx), STATUS_OK);
    assert_memory_equal(back, far, sizeof far);
    assert_int_equal(ops_upload_ahead(ctx, &x[0], NULL), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_download_behind(ctx, NULL, &x[0]), STATUS_BAD_ARGUMENT);
    for (int i = 0; i < LANES; i++) ops_mark_close(ctx, &marks[i]);
    ops_mark_close(ctx, &unset);
    assert_null(unset);
    ops_mark_close(ctx, &unset);
    ops_host_close(ctx, &pinned, LANES * 2 * N * sizeof(float));
    ops_block_close(&lanes);
}

static void count_one(void *user) { ++*(int *)user; }

static void progress_is_told_after_each_operator_that_had_work(void **state) {
    (void)state;
    int n = 0;
    ops_tensor a = at2(0, 2, 4), b = at2(20, 2, 4), none = at2(40, 0, 4), odd = at2(60, 2, 3);
    ops_set_progress(ctx, count_one, &n);
    assert_int_equal(ops_add(ctx, &a, &a, &b), STATUS_OK);
    assert_int_equal(ops_add_table(ctx, &a, &a, &b), STATUS_OK);
    assert_int_equal(n, 2);
    assert_int_equal(ops_add(ctx, &none, &none, &none), STATUS_OK);
    assert_int_equal(ops_add(ctx, &a, &a, &odd), STATUS_BAD_SHAPE);
    assert_int_equal(n, 2);
    ops_set_progress(ctx, NULL, NULL);
    assert_int_equal(ops_add(ctx, &a, &a, &b), STATUS_OK);
    assert_int_equal(n, 2);
}

/* ---- graphs -------------------------------------------------------------------------------- */

static void a_device_without_graphs_says_so(void **state) {
    (void)state;
    err e;
    ops_graph *g = NULL;
    if (ops_has_graphs(ctx)) return;
    assert_int_equal(ops_graph_begin(ctx, &e), STATUS_UNSUPPORTED);
    assert_non_null(strstr(e.text, ops_device_text(ctx)));
    assert_int_equal(ops_graph_end(ctx, &g, &e), STATUS_UNSUPPORTED);
    assert_false(ops_graph_is_current(ctx, g));
    assert_int_equal(ops_graph_run(ctx, g), STATUS_UNSUPPORTED);
    ops_graph_close(ctx, &g);
}

/* Everything that is refused while a graph is recorded, none of which spoils it. */
static void refuse_what_is_no_operator(void) {
    err e;
    ops_block more;
    void *host;
    ops_matrix *m;
    ops_graph *g;
    ops_mark *mark;
    static float values[64];
    ops_tensor row = at2(0, 1, 64), w = tensor_make(values, OPS_PLACE_HOST, OPS_DTYPE_F32, 2, row.dims);
    ops_tensor found = tensor_make(memory + 128, OPS_PLACE_DEVICE, OPS_DTYPE_U8, 2, (int64_t[]){1, sizeof(ops_candidates)});
    assert_int_equal(ops_upload(ctx, &row, values), STATUS_UNSUPPORTED);
    assert_int_equal(ops_download(ctx, values, &row), STATUS_UNSUPPORTED);
    assert_int_equal(ops_upload_ahead(ctx, &row, values), STATUS_UNSUPPORTED);
    assert_int_equal(ops_download_behind(ctx, values, &row), STATUS_UNSUPPORTED);
    assert_int_equal(ops_mark_open(ctx, &mark, &e), STATUS_UNSUPPORTED);
    assert_int_equal(ops_sync(ctx), STATUS_UNSUPPORTED);
    assert_int_equal(ops_block_open(ctx, &more, 64, &e), STATUS_UNSUPPORTED);
    assert_int_equal(ops_host_open(ctx, &host, 64, &e), STATUS_UNSUPPORTED);
    assert_int_equal(ops_matrix_open(ctx, &m, &w, NULL, &e), STATUS_UNSUPPORTED);
    assert_int_equal(ops_candidates_rows(ctx, &found, &row, 64, &(ops_candidates_wanted){.n = 2}), STATUS_UNSUPPORTED);
    assert_int_equal(ops_graph_begin(ctx, &e), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_graph_run(ctx, g = NULL), STATUS_UNSUPPORTED);
}

static void expect_sum(const ops_tensor *sum, float want) {
    float got[8];
    assert_int_equal(ops_download(ctx, got, sum), STATUS_OK);
    assert_int_equal(ops_sync(ctx), STATUS_OK);
    for (int i = 0; i < 8; i++) assert_true(got[i] == want);
}

static void fill(ops_tensor *t, float value) {
    float values[8];
    for (int i = 0; i < 8; i++) values[i] = value;
    assert_int_equal(ops_upload(ctx, t, values), STATUS_OK);
}

static void a_graph_runs_what_was_recorded_on_what_is_there(void **state) {
    (void)state;
    err e;
    int n = 0;
    ops_graph *g = NULL;
    ops_tensor a = at2(0, 2, 4), b = at2(64, 2, 4), sum = at2(128, 2, 4), odd = at2(64, 2, 5);
    if (!ops_has_graphs(ctx)) return;
    assert_int_equal(ops_graph_end(ctx, &g, &e), STATUS_BAD_ARGUMENT);
    assert_null(g);
    fill(&a, 1);
    fill(&b, 2);
    fill(&sum, 9);
    assert_int_equal(ops_graph_begin(ctx, &e), STATUS_OK);
    refuse_what_is_no_operator();
    assert_int_equal(ops_add(ctx, &sum, &a, &b), STATUS_OK);
    assert_int_equal(ops_add(ctx, &sum, &a, &odd), STATUS_BAD_SHAPE);
    assert_int_equal(ops_add(ctx, &sum, &sum, &a), STATUS_OK);
    assert_int_equal(ops_graph_end(ctx, &g, &e), STATUS_OK);
    assert_true(ops_graph_is_current(ctx, g));
    expect_sum(&sum, 9);
    ops_set_progress(ctx, count_one, &n);
    assert_int_equal(ops_graph_run(ctx, g), STATUS_OK);
    assert_int_equal(n, 1);
    ops_set_progress(ctx, NULL, NULL);
    expect_sum(&sum, 4);
    fill(&b, 5);
    assert_int_equal(ops_graph_run(ctx, g), STATUS_OK);
    expect_sum(&sum, 7);
    ops_graph_close(ctx, &g);
    assert_null(g);
    ops_graph_close(ctx, &g);
    assert_int_equal(ops_graph_run(ctx, NULL), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_graph_begin(ctx, &e), STATUS_OK); /* and one that nobody wants */
    assert_int_equal(ops_add(ctx, &sum, &a, &a), STATUS_OK);
    assert_int_equal(ops_graph_end(ctx, NULL, &e), STATUS_OK);
    expect_sum(&sum, 7);
}

/* A context of its own, whose scratch is still empty; of heads of halves attention takes some. */
static void a_graph_is_not_current_when_scratch_has_moved(void **state) {
    (void)state;
    err e;
    ops_graph *g;
    ops_block own;
    if (!ops_has_graphs(ctx)) return;
    ops_ctx *shared = ctx;
    ctx = case_context_open(NULL, 1);
    assert_int_equal(ops_block_open(ctx, &own, 4096, &e), STATUS_OK);
    ops_tensor q = ops_block_cut(&own, OPS_DTYPE_F16, 2, (int64_t[]){1, 8}), out = q;
    ops_tensor k = ops_block_cut(&own, OPS_DTYPE_F16, 4, (int64_t[]){1, 1, 1, 8}), v = ops_block_cut(&own, OPS_DTYPE_F16, 4, k.dims);
    ops_tensor table = ops_block_cut(&own, OPS_DTYPE_I32, 2, (int64_t[]){1, 1});
    ops_tensor seq = ops_block_cut(&own, OPS_DTYPE_I32, 1, (int64_t[]){1}), pos = ops_block_cut(&own, OPS_DTYPE_I32, 1, seq.dims);
    const ops_attention_params params = {.n_heads = 1, .n_kv_heads = 1, .scale = 1};
    assert_int_equal(ops_graph_begin(ctx, &e), STATUS_OK);
    assert_int_equal(ops_attention_paged(ctx, &out, &q, &k, &v, &table, &seq, &pos, &params), STATUS_UNSUPPORTED);
    assert_int_equal(ops_graph_end(ctx, NULL, &e), STATUS_OK);
    assert_int_equal(ops_graph_begin(ctx, &e), STATUS_OK);
    assert_int_equal(ops_add(ctx, &out, &q, &q), STATUS_OK);
    assert_int_equal(ops_graph_end(ctx, &g, &e), STATUS_OK);
    assert_int_equal(ops_graph_run(ctx, g), STATUS_OK);
    assert_int_equal(ops_attention_paged(ctx, &out, &q, &k, &v, &table, &seq, &pos, &params), STATUS_OK);
    assert_false(ops_graph_is_current(ctx, g));
    assert_int_equal(ops_graph_run(ctx, g), STATUS_BAD_ARGUMENT);
    ops_graph_close(ctx, &g);
    assert_int_equal(ops_graph_begin(ctx, &e), STATUS_OK);
    assert_int_equal(ops_attention_paged(ctx, &out, &q, &k, &v, &table, &seq, &pos, &params), STATUS_OK);
    assert_int_equal(ops_graph_end(ctx, &g, &e), STATUS_OK);
    assert_int_equal(ops_graph_run(ctx, g), STATUS_OK);
    assert_int_equal(ops_sync(ctx), STATUS_OK);
    ops_graph_close(ctx, &g);
    ops_block_close(&own);
    ops_close(&ctx);
    ctx = shared;
}

static void a_device_that_refuses_to_record_goes_on_without(void **state) {
    (void)state;
    err e;
    ops_tensor a = at2(0, 2, 4), sum = at2(128, 2, 4);
    if (!strstr(ops_device_text(ctx), "emulated")) return;
    assert_int_equal(setenv("EMULATED_CUDA_NO_GRAPHS", "1", 1), 0);
    assert_int_equal(ops_graph_begin(ctx, &e), STATUS_DEVICE);
    assert_int_equal(unsetenv("EMULATED_CUDA_NO_GRAPHS"), 0);
    fill(&a, 1);
    assert_int_equal(ops_add(ctx, &sum, &a, &a), STATUS_OK);
    expect_sum(&sum, 2);
}

static int open_one(void **state) {
    (void)state;
    err e;
    ctx = case_context_open(NULL, 1);
    if (!ctx || ops_block_open(ctx, &block, 4096 * sizeof(float), &e) != STATUS_OK) return 1;
    memory = block.data;
    return 0;
}

static int close_one(void **state) {
    (void)state;
    ops_block_close(&block);
    ops_close(&ctx);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(opening_refuses_what_is_not_there),
        cmocka_unit_test(activations_keep_the_dtype_of_the_weights_where_the_device_has_it),
        cmocka_unit_test(no_threads_named_means_every_available_core),
        cmocka_unit_test(memory_is_zeroed_cut_aligned_and_crossed_only_on_the_device),
        cmocka_unit_test(crossings_of_any_size_and_memory_bring_every_byte),
        cmocka_unit_test(crossings_beside_operators_keep_to_their_marks),
        cmocka_unit_test(progress_is_told_after_each_operator_that_had_work),
        cmocka_unit_test(a_device_without_graphs_says_so),
        cmocka_unit_test(a_graph_runs_what_was_recorded_on_what_is_there),
        cmocka_unit_test(a_graph_is_not_current_when_scratch_has_moved),
        cmocka_unit_test(a_device_that_refuses_to_record_goes_on_without),
    };
    return cmocka_run_group_tests(tests, open_one, close_one);
}
