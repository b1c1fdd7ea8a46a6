/* Each refusal of the checked front: a wrong shape, dtype, place, overlap or index is a status, nothing
 * is written, nothing crashes; and what is empty or allowed in place works. */
#include <math.h>
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
static ops_block block;     /* 4096 floats, then 64 indices, on the device */
static float *memory;
static int32_t indices[64]; /* the host's copy, sent by ids and push_indices */

static void push_indices(void) {
    ops_tensor all = tensor_make(memory + 4096, OPS_PLACE_DEVICE, OPS_DTYPE_I32, 1, (int64_t[]){64});
    assert_int_equal(ops_upload(ctx, &all, indices), STATUS_OK);
    assert_int_equal(ops_sync(ctx), STATUS_OK);
}

/* What the call or the next sync says: an index can be found out late. */
static status late(status st) { return st == STATUS_OK ? ops_sync(ctx) : st; }

/* Views of our own memory from element `at`. */
static ops_tensor at2(int64_t at, int64_t rows, int64_t cols) {
    return tensor_make(memory + at, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 2, (int64_t[]){rows, cols});
}
static ops_tensor at1(int64_t at, int64_t n) {
    return tensor_make(memory + at, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 1, &n);
}
static ops_tensor at3(int64_t at, int64_t a, int64_t b, int64_t c) {
    return tensor_make(memory + at, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 3, (int64_t[]){a, b, c});
}
static ops_tensor at4(int64_t at, int64_t a, int64_t b, int64_t c, int64_t d) {
    return tensor_make(memory + at, OPS_PLACE_DEVICE, OPS_DTYPE_F32, 4, (int64_t[]){a, b, c, d});
}
static ops_tensor ids(int64_t at, int64_t n) {
    push_indices();
    return tensor_make((int32_t *)(void *)(memory + 4096) + at, OPS_PLACE_DEVICE, OPS_DTYPE_I32, 1, &n);
}
static ops_tensor with_place(ops_tensor t, ops_place place) {
    t.place = place;
    return t;
}
static ops_tensor with_dtype(ops_tensor t, ops_dtype dtype) {
    t.dtype = dtype;
    return t;
}
static ops_tensor with_dim(ops_tensor t, int i, int64_t n) {
    t.dims[i] = n;
    return t;
}
static ops_tensor with_data(ops_tensor t, void *data) {
    t.data = data;
    return t;
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
    ops_tensor host = with_place(a, OPS_PLACE_HOST), nothing = with_data(a, NULL);
    assert_int_equal(ops_upload(ctx, &host, in), STATUS_UNSUPPORTED);
    assert_int_equal(ops_download(ctx, out, &host), STATUS_UNSUPPORTED);
    assert_int_equal(ops_upload(ctx, &nothing, in), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_upload(ctx, &a, NULL), STATUS_BAD_ARGUMENT);
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

static void matrices_refuse_bad_weights(void **state) {
    (void)state;
    err e;
    ops_matrix *m;
    static float host[32];
    ops_tensor w = with_data(with_place(at2(0, 4, 6), OPS_PLACE_HOST), host);
    ops_tensor b = with_data(with_place(at1(100, 4), OPS_PLACE_HOST), host);
#define REFUSE(want, tw, tb)                                                                       \
    do {                                                                                           \
        ops_tensor w_ = (tw), b_ = (tb);                                                           \
        assert_int_equal(ops_matrix_open(ctx, &m, &w_, &b_, &e), want);                            \
        assert_null(m);                                                                            \
    } while (0)
    REFUSE(STATUS_UNSUPPORTED, with_place(w, OPS_PLACE_DEVICE), b);
    REFUSE(STATUS_UNSUPPORTED, w, with_place(b, OPS_PLACE_DEVICE));
    REFUSE(STATUS_UNSUPPORTED, with_dtype(w, OPS_DTYPE_I32), b);
    REFUSE(STATUS_UNSUPPORTED, w, with_dtype(b, OPS_DTYPE_U8));
    REFUSE(STATUS_BAD_SHAPE, with_dim(w, 0, 0), b);
    REFUSE(STATUS_BAD_SHAPE, with_dim(w, 1, -6), b);
    REFUSE(STATUS_BAD_SHAPE, with_dim(with_dim(w, 1, INT64_MAX / 2), 0, 4), b);
    REFUSE(STATUS_BAD_SHAPE, w, with_dim(b, 0, 5));
    REFUSE(STATUS_BAD_SHAPE, b, b);
    REFUSE(STATUS_BAD_ARGUMENT, with_data(w, NULL), b);
    REFUSE(STATUS_BAD_ARGUMENT, w, with_data(b, NULL));
    REFUSE(STATUS_BAD_SHAPE, with_dim(w, 1, OPS_INPUTS_MAX + 1), b);
    REFUSE(STATUS_NO_MEMORY, with_dim(w, 0, INT64_C(1) << 40), with_dim(b, 0, INT64_C(1) << 40));
#undef REFUSE
    ops_matrix_close(ctx, &m);
}

static void linear_refuses_and_takes_no_rows(void **state) {
    (void)state;
    err e;
    ops_matrix *m;
    static float host[24];
    ops_tensor w = with_data(with_place(at2(0, 4, 6), OPS_PLACE_HOST), host);
    assert_int_equal(ops_matrix_open(ctx, &m, &w, NULL, &e), STATUS_OK);
    assert_true(ops_matrix_bytes(m) >= 4 * 6 * sizeof(float));
#define CALL(want, to, tx, with)                                                                   \
    do {                                                                                           \
        ops_tensor o_ = (to), x_ = (tx);                                                           \
        assert_int_equal(ops_linear(ctx, &o_, &x_, m, &(ops_linear_params){.act = (with)}), want);  \
    } while (0)
    ops_tensor x = at2(0, 3, 6), out = at2(100, 3, 4);
    CALL(STATUS_OK, out, x, OPS_ACT_NONE);
    CALL(STATUS_OK, at2(100, 0, 4), at2(0, 0, 6), OPS_ACT_NONE);
    CALL(STATUS_BAD_SHAPE, at2(100, 2, 4), x, OPS_ACT_NONE);
    CALL(STATUS_BAD_SHAPE, at2(100, 3, 5), x, OPS_ACT_NONE);
    CALL(STATUS_BAD_SHAPE, out, at2(0, 3, 7), OPS_ACT_NONE);
    CALL(STATUS_BAD_SHAPE, with_dim(out, 0, -3), with_dim(x, 0, -3), OPS_ACT_NONE);
    CALL(STATUS_BAD_SHAPE, with_dim(out, 0, INT64_MAX), with_dim(x, 0, INT64_MAX), OPS_ACT_NONE);
    CALL(STATUS_BAD_SHAPE, at3(100, 3, 4, 1), x, OPS_ACT_NONE);
    CALL(STATUS_UNSUPPORTED, with_dtype(out, OPS_DTYPE_F16), x, OPS_ACT_NONE);
    CALL(STATUS_UNSUPPORTED, out, with_dtype(x, OPS_DTYPE_I32), OPS_ACT_NONE);
    CALL(test_device_is_cpu() ? STATUS_UNSUPPORTED : STATUS_OK, out, with_dtype(x, OPS_DTYPE_F16), OPS_ACT_NONE);
    CALL(STATUS_UNSUPPORTED, with_place(out, OPS_PLACE_HOST), x, OPS_ACT_NONE);
    CALL(STATUS_UNSUPPORTED, out, with_place(x, OPS_PLACE_HOST), OPS_ACT_NONE);
    CALL(STATUS_BAD_ARGUMENT, out, with_data(x, NULL), OPS_ACT_NONE);
    CALL(STATUS_BAD_ARGUMENT, at2(17, 3, 4), x, OPS_ACT_NONE); /* overlap of one float */
    CALL(STATUS_OK, at2(18, 3, 4), x, OPS_ACT_NONE);
    CALL(STATUS_BAD_ARGUMENT, out, x, (ops_act)7);
    ops_tensor wide = at2(0, 3, 10), columns = tensor_columns(&wide, 4, 6), before = tensor_columns(&wide, 0, 4);
    CALL(STATUS_OK, out, columns, OPS_ACT_NONE);
    CALL(STATUS_BAD_SHAPE, before, at2(100, 3, 6), OPS_ACT_NONE); /* no view is written */
    columns.row_stride = 5;
    CALL(STATUS_BAD_SHAPE, out, columns, OPS_ACT_NONE);
    columns.row_stride = INT64_MAX / 2;
    CALL(STATUS_BAD_SHAPE, out, columns, OPS_ACT_NONE);
#undef CALL
#define CALL(want, ...)                                                                            \
    assert_int_equal(ops_linear(ctx, &out, &x, m, &(ops_linear_params){__VA_ARGS__}), want)
    ops_tensor add = at2(200, 3, 4), narrow = at2(200, 3, 3), inside = at2(101, 3, 4), far = with_place(add, OPS_PLACE_HOST);
    CALL(STATUS_OK, .add = &add);
    CALL(STATUS_OK, .act = OPS_ACT_SILU, .act_from = 4);
    CALL(STATUS_BAD_ARGUMENT, .act = OPS_ACT_SILU, .act_from = 5);
    CALL(STATUS_BAD_ARGUMENT, .act = OPS_ACT_SILU, .act_from = -1);
    CALL(STATUS_BAD_ARGUMENT, .act = OPS_ACT_SILU, .add = &add);
    CALL(STATUS_BAD_SHAPE, .add = &narrow);
    CALL(STATUS_BAD_ARGUMENT, .add = &inside);
    CALL(STATUS_BAD_ARGUMENT, .add = &out);
    CALL(STATUS_UNSUPPORTED, .add = &far);
#undef CALL
    ops_matrix_close(ctx, &m);
}

static void row_operators_refuse_wrong_shapes_and_half_overlaps(void **state) {
    (void)state;
    ops_tensor x = at2(0, 3, 6), out = at2(100, 3, 6), w = at1(200, 6), b = at1(300, 6);
    ops_tensor shifted = at2(6, 3, 6), short_w = at1(200, 5), wide = at2(100, 3, 7);
    assert_int_equal(ops_layer_norm(ctx, &out, &x, &w, &b, 1e-5f), STATUS_OK);
    assert_int_equal(ops_layer_norm(ctx, &x, &x, &w, &b, 1e-5f), STATUS_OK);
    assert_int_equal(ops_layer_norm(ctx, &shifted, &x, &w, &b, 1e-5f), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_layer_norm(ctx, &out, &x, &short_w, &b, 1e-5f), STATUS_BAD_SHAPE);
    assert_int_equal(ops_layer_norm(ctx, &out, &x, &w, &short_w, 1e-5f), STATUS_BAD_SHAPE);
    assert_int_equal(ops_layer_norm(ctx, &wide, &x, &w, &b, 1e-5f), STATUS_BAD_SHAPE);
    assert_int_equal(ops_layer_norm(ctx, &out, &x, &w, &b, 0.0f), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_layer_norm(ctx, &out, &x, &w, &b, NAN), STATUS_BAD_ARGUMENT);

    assert_int_equal(ops_rms_norm(ctx, &x, &x, &w, 1e-5f), STATUS_OK);
    assert_int_equal(ops_rms_norm(ctx, &shifted, &x, &w, 1e-5f), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_rms_norm(ctx, &out, &x, &short_w, 1e-5f), STATUS_BAD_SHAPE);
    assert_int_equal(ops_rms_norm(ctx, &out, &x, &w, NAN), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_scale_columns(ctx, &x, &x, &w), STATUS_OK);
    assert_int_equal(ops_scale_columns(ctx, &wide, &x, &w), STATUS_BAD_SHAPE);
    assert_int_equal(ops_scale_columns(ctx, &shifted, &x, &w), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_activate(ctx, &x, &x, OPS_ACT_SILU), STATUS_OK);
    assert_int_equal(ops_activate(ctx, &shifted, &x, OPS_ACT_SILU), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_activate(ctx, &wide, &x, OPS_ACT_SILU), STATUS_BAD_SHAPE);
    assert_int_equal(ops_activate(ctx, &out, &x, OPS_ACT_COUNT), STATUS_BAD_ARGUMENT);
    ops_tensor gated = at2(500, 3, 3), inside = at2(9, 3, 3), uneven = at2(500, 3, 4);
    assert_int_equal(ops_gate(ctx, &gated, &x, OPS_ACT_SILU), STATUS_OK);
    assert_int_equal(ops_gate(ctx, &gated, &x, OPS_ACT_COUNT), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_gate(ctx, &inside, &x, OPS_ACT_SILU), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_gate(ctx, &uneven, &x, OPS_ACT_SILU), STATUS_BAD_SHAPE);
    assert_int_equal(ops_gate(ctx, &gated, &wide, OPS_ACT_SILU), STATUS_BAD_SHAPE);

    assert_int_equal(ops_add(ctx, &x, &x, &x), STATUS_OK);
    assert_int_equal(ops_add(ctx, &out, &x, &wide), STATUS_BAD_SHAPE);
    assert_int_equal(ops_add(ctx, &shifted, &x, &out), STATUS_BAD_ARGUMENT);

    ops_tensor table = at2(400, 2, 6), no_table = at2(400, 0, 6), thin = at2(400, 2, 5);
    assert_int_equal(ops_add_table(ctx, &x, &x, &table), STATUS_OK);
    assert_int_equal(ops_add_table(ctx, &out, &x, &no_table), STATUS_BAD_SHAPE);
    assert_int_equal(ops_add_table(ctx, &out, &x, &thin), STATUS_BAD_SHAPE);
    assert_int_equal(ops_add_table(ctx, &table, &table, &table), STATUS_BAD_ARGUMENT);

    ops_tensor half = with_dtype(at2(100, 3, 6), OPS_DTYPE_F16), number = with_dtype(x, OPS_DTYPE_I32);
    ops_tensor half_x = with_dtype(x, OPS_DTYPE_F16);
    assert_int_equal(ops_cast(ctx, &half, &x), STATUS_OK);
    assert_int_equal(ops_cast(ctx, &half_x, &x), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_cast(ctx, &out, &number), STATUS_UNSUPPORTED);
}

static void candidates_refuse_rows_and_wishes_that_do_not_fit(void **state) {
    (void)state;
    ops_tensor x = at2(100, 3, 6), out = at2(200, 3, 6);
    enum { BYTES = sizeof(ops_candidates) };
    ops_tensor found = with_dtype(at2(1024, 3, BYTES), OPS_DTYPE_U8), few = with_dtype(at2(1024, 2, BYTES), OPS_DTYPE_U8);
    ops_tensor narrow = with_dtype(at2(1024, 3, BYTES - 8), OPS_DTYPE_U8), none = at2(0, 3, 0);
    ops_candidates_wanted wanted[3] = {{.n = 1}, {.n = OPS_CANDIDATES_MAX, .temperature = {1.0f, 0.5f}}, {.n = 1}};
    assert_int_equal(ops_candidates_rows(ctx, &found, &x, 6, wanted), STATUS_OK);
    assert_int_equal(ops_candidates_rows(ctx, &found, &x, 6, NULL), STATUS_OK);
    assert_int_equal(ops_candidates_rows(ctx, &few, &x, 6, wanted), STATUS_BAD_SHAPE);
    assert_int_equal(ops_candidates_rows(ctx, &narrow, &x, 6, wanted), STATUS_BAD_SHAPE);
    assert_int_equal(ops_candidates_rows(ctx, &found, &none, 0, wanted), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_candidates_rows(ctx, &found, &x, 0, wanted), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_candidates_rows(ctx, &found, &x, 7, wanted), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_candidates_rows(ctx, &out, &x, 6, wanted), STATUS_UNSUPPORTED);
    ops_tensor askew = with_data(found, (unsigned char *)found.data + 4);
    assert_int_equal(ops_candidates_rows(ctx, &askew, &x, 6, wanted), STATUS_BAD_ARGUMENT);
    static const ops_candidates_wanted refused[] = {{.n = 0}, {.n = OPS_CANDIDATES_MAX + 1}, {1, {-1.0f, 0.0f}},
                                                    {1, {0.0f, NAN}}, {1, {0.0f, INFINITY}}};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        wanted[2] = refused[i];
        assert_int_equal(ops_candidates_rows(ctx, &found, &x, 6, wanted), STATUS_BAD_ARGUMENT);
    }
}

static void an_index_outside_its_table_is_refused_before_anything_is_written(void **state) {
    (void)state;
    static const int32_t bad[] = {-1, 4, INT32_MAX, INT32_MIN};
    indices[9] = 1;
    ops_tensor table = at2(0, 4, 6), out = at2(500, 2, 6), two = ids(0, 2), fine = ids(8, 2), x = at2(100, 2, 6);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        float fill[24], before[12], after[12];
        memset(fill, 0x5A, sizeof fill);
        ops_tensor place = at1(500, 24), seen = at1(500, 12);
        assert_int_equal(ops_upload(ctx, &place, fill), STATUS_OK);
        memcpy(before, fill, sizeof before);
        indices[0] = 1;
        indices[1] = bad[i];
        push_indices();
        /* before anything is written, or late, and then without the row that it names */
#define UNTOUCHED(n_floats)                                                                        \
    do {                                                                                           \
        assert_int_equal(ops_download(ctx, after, &seen), STATUS_OK);                              \
        int64_t n_ = test_device_is_cpu() ? 12 : (n_floats);                                       \
        assert_true(same_bits(before + 12 - n_, after + 12 - n_, n_));                             \
    } while (0)
        assert_int_equal(late(ops_gather_rows(ctx, &out, &table, &two)), STATUS_BAD_ARGUMENT);
        UNTOUCHED(6);
        ops_tensor target = at2(500, 4, 6);
        assert_int_equal(late(ops_scatter_rows(ctx, &target, &x, &two)), STATUS_BAD_ARGUMENT);
        UNTOUCHED(0);
        ops_tensor cache = at4(500, 2, 2, 2, 3);
        ops_tensor values = at4(600, 2, 2, 2, 3), cos = at2(200, 4, 1), sin = at2(210, 4, 1);
        ops_tensor long_head = at4(500, 2, 1, 2, 6), flat = at3(500, 2, 2, 6);
        const ops_kv_places here = {&cos, &sin, &fine, &fine};
        assert_int_equal(ops_kv_append(ctx, &long_head, &long_head, &x, &x, NULL, &here, 2, 2), STATUS_BAD_SHAPE);
        assert_int_equal(ops_kv_append(ctx, &flat, &flat, &x, &x, NULL, &here, 2, 2), STATUS_BAD_SHAPE);
        assert_int_equal(late(ops_kv_append(ctx, &cache, &values, &x, &x, NULL, &(ops_kv_places){&cos, &sin, &fine, &two}, 2, 2)),
                         STATUS_BAD_ARGUMENT);
        assert_int_equal(late(ops_kv_append(ctx, &cache, &values, &x, &x, NULL, &(ops_kv_places){&cos, &sin, &two, &fine}, 2, 2)),
                         STATUS_BAD_ARGUMENT);
        assert_int_equal(late(ops_rope(ctx, &out, &cos, &sin, &two, 2)), STATUS_BAD_ARGUMENT);
        UNTOUCHED(0);
#undef UNTOUCHED
        assert_int_equal(ops_kv_copy_block(ctx, &cache, bad[i], 0), STATUS_BAD_ARGUMENT);
        assert_int_equal(ops_kv_copy_block(ctx, &cache, 0, bad[i]), STATUS_BAD_ARGUMENT);
    }
    indices[1] = 3;
    push_indices();
    assert_int_equal(late(ops_gather_rows(ctx, &out, &table, &two)), STATUS_OK);
    ops_tensor thin = at2(0, 4, 5), flat = at3(0, 4, 1, 6);
    assert_int_equal(ops_gather_rows(ctx, &out, &thin, &two), STATUS_BAD_SHAPE);
    assert_int_equal(ops_gather_rows(ctx, &out, &flat, &two), STATUS_BAD_SHAPE);
    assert_int_equal(ops_gather_rows(ctx, &out, &table, &x), STATUS_UNSUPPORTED);
}

static void patches_refuse_what_does_not_fit(void **state) {
    (void)state;
    ops_tensor x = tensor_make(memory, OPS_PLACE_DEVICE, OPS_DTYPE_U8, 4, (int64_t[]){1, 5, 6, 3});
    ops_tensor levels = at2(1024, 3, 256), few = at2(1024, 3, 255), two = at2(1024, 2, 256);
    ops_tensor out = at2(500, 6, 12), wrong = at2(500, 6, 11), none = at2(500, 0, 3 * 49), over = at2(1024, 6, 12);
    ops_tensor grey = with_dim(x, 3, 1), floats = with_dtype(x, OPS_DTYPE_F32);
    assert_int_equal(ops_patch_rows(ctx, &out, &x, &levels, 2), STATUS_OK);
    assert_int_equal(ops_patch_rows(ctx, &wrong, &x, &levels, 2), STATUS_BAD_SHAPE);
    assert_int_equal(ops_patch_rows(ctx, &out, &grey, &levels, 2), STATUS_BAD_SHAPE);
    assert_int_equal(ops_patch_rows(ctx, &out, &floats, &levels, 2), STATUS_UNSUPPORTED);
    assert_int_equal(ops_patch_rows(ctx, &out, &x, &few, 2), STATUS_BAD_SHAPE);
    assert_int_equal(ops_patch_rows(ctx, &out, &x, &two, 2), STATUS_BAD_SHAPE);
    assert_int_equal(ops_patch_rows(ctx, &over, &x, &levels, 2), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_patch_rows(ctx, &out, &x, &levels, 0), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_patch_rows(ctx, &none, &x, &levels, 7), STATUS_OK); /* smaller than one patch */
}

static void rope_refuses_heads_that_do_not_fit(void **state) {
    (void)state;
    memset(indices, 0, sizeof indices);
    ops_tensor x = at2(0, 2, 12), cos = at2(100, 4, 2), sin = at2(200, 4, 2), pos = ids(0, 2);
    ops_tensor long_half = at2(100, 4, 4), long_sin = at2(200, 4, 4), few = ids(0, 1);
    assert_int_equal(ops_rope(ctx, &x, &cos, &sin, &pos, 3), STATUS_OK);
    assert_int_equal(ops_rope(ctx, &x, &cos, &sin, &pos, 5), STATUS_BAD_SHAPE);
    assert_int_equal(ops_rope(ctx, &x, &cos, &sin, &pos, 0), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_rope(ctx, &x, &long_half, &long_sin, &pos, 2), STATUS_BAD_SHAPE);
    assert_int_equal(ops_rope(ctx, &x, &cos, &long_sin, &pos, 3), STATUS_BAD_SHAPE);
    assert_int_equal(ops_rope(ctx, &x, &cos, &sin, &few, 3), STATUS_BAD_SHAPE);
    assert_int_equal(ops_rope(ctx, &x, &x, &sin, &pos, 3), STATUS_BAD_SHAPE);
}

static void attention_refuses_heads_lengths_and_overlaps(void **state) {
    (void)state;
    ops_tensor q = at2(0, 6, 12), k = at2(100, 6, 4), v = at2(200, 6, 4), out = at2(300, 6, 12);
    ops_tensor thin = at2(100, 6, 3), fewer = at2(100, 5, 4), shifted = at2(12, 6, 12);
    ops_tensor over_k = at2(90, 6, 12);
#define CALL(want, to, tk, tv, length, heads, kv_heads, factor)                                    \
    assert_int_equal(ops_attention(ctx, &(to), &q, &(tk), &(tv), length,                           \
                                   &(ops_attention_params){.n_heads = heads, .n_kv_heads = kv_heads, \
                                                           .scale = factor}), want)
    CALL(STATUS_OK, out, k, v, 3, 3, 1, 1.0f);
    CALL(STATUS_OK, q, k, v, 6, 3, 1, 1.0f);
    CALL(STATUS_BAD_SHAPE, out, k, v, 4, 3, 1, 1.0f);
    CALL(STATUS_BAD_ARGUMENT, out, k, v, 0, 3, 1, 1.0f);
    CALL(STATUS_BAD_ARGUMENT, out, k, v, 3, 3, 2, 1.0f);
    CALL(STATUS_BAD_ARGUMENT, out, k, v, 3, 0, 1, 1.0f);
    CALL(STATUS_BAD_ARGUMENT, out, k, v, 3, 3, 0, 1.0f);
    CALL(STATUS_BAD_ARGUMENT, out, k, v, 3, 3, 1, NAN);
    CALL(STATUS_BAD_SHAPE, out, k, v, 3, 5, 1, 1.0f);
    CALL(STATUS_BAD_SHAPE, out, thin, thin, 3, 3, 1, 1.0f);
    CALL(STATUS_BAD_SHAPE, out, fewer, fewer, 3, 3, 1, 1.0f);
    CALL(STATUS_BAD_SHAPE, out, k, thin, 3, 3, 1, 1.0f);
    CALL(STATUS_BAD_ARGUMENT, shifted, k, v, 3, 3, 1, 1.0f);
    CALL(STATUS_BAD_ARGUMENT, over_k, k, v, 3, 3, 1, 1.0f);
#undef CALL
}

static void paged_attention_refuses_rows_that_point_outside(void **state) {
    (void)state;
    static const struct {
        int32_t seq, pos, first_block, second_block;
        status want;
    } cases[] = {
        {0, 3, 0, 1, STATUS_OK},           {0, 1, 1, -1, STATUS_OK}, /* second not needed */
        {0, 2, 1, -1, STATUS_BAD_ARGUMENT}, {0, 0, 2, 0, STATUS_BAD_ARGUMENT},
        {1, 0, 0, 1, STATUS_BAD_ARGUMENT},  {-1, 0, 0, 1, STATUS_BAD_ARGUMENT},
        {0, -1, 0, 1, STATUS_BAD_ARGUMENT}, {0, 4, 0, 1, STATUS_BAD_ARGUMENT},
        {0, INT32_MAX, 0, 1, STATUS_BAD_ARGUMENT},
    };
    ops_tensor q = at2(0, 1, 4), out = at2(20, 1, 4), k = at4(40, 2, 1, 2, 4), v = at4(80, 2, 1, 2, 4);
    ops_tensor tables = ids(0, 2);
    tables = tensor_reshape(&tables, 2, (int64_t[]){1, 2});
    ops_tensor seq = ids(10, 1), pos = ids(11, 1), two = ids(10, 2);
    ops_attention_params p = {1, 1, 1.0f, 0, false};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        indices[0] = cases[i].first_block;
        indices[1] = cases[i].second_block;
        indices[10] = cases[i].seq;
        indices[11] = cases[i].pos;
        push_indices();
        assert_int_equal(late(ops_attention_paged(ctx, &out, &q, &k, &v, &tables, &seq, &pos, &p)),
                         cases[i].want);
    }
    indices[0] = indices[1] = indices[10] = indices[11] = 0;
    push_indices();
    ops_tensor no_tokens = at4(40, 2, 1, 0, 4), deep = at4(40, 1, 1, 2, 4), flat = at3(40, 2, 2, 4), more = at4(40, 2, 2, 1, 4);
    assert_int_equal(ops_attention_paged(ctx, &out, &q, &k, &v, &tables, &two, &pos, &p),
                     STATUS_BAD_SHAPE);
    assert_int_equal(ops_attention_paged(ctx, &out, &q, &k, &deep, &tables, &seq, &pos, &p),
                     STATUS_BAD_SHAPE);
    assert_int_equal(ops_attention_paged(ctx, &out, &q, &flat, &flat, &tables, &seq, &pos, &p), STATUS_BAD_SHAPE);
    assert_int_equal(ops_attention_paged(ctx, &out, &q, &more, &more, &tables, &seq, &pos, &p), STATUS_BAD_SHAPE);
    assert_int_equal(
        ops_attention_paged(ctx, &out, &q, &no_tokens, &no_tokens, &tables, &seq, &pos, &p),
        STATUS_BAD_ARGUMENT);
    ops_attention_params back = {1, 1, 1.0f, -1, false}, upside_down = {1, 1, -1.0f, 2, false};
    assert_int_equal(ops_attention_paged(ctx, &out, &q, &k, &v, &tables, &seq, &pos, &back), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_attention_paged(ctx, &out, &q, &k, &v, &tables, &seq, &pos, &upside_down), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_attention_paged(ctx, &k, &q, &k, &v, &tables, &seq, &pos, &p),
                     STATUS_BAD_SHAPE);
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
    ops_tensor row = at2(0, 1, 64), w = with_data(with_place(row, OPS_PLACE_HOST), values);
    ops_tensor found = with_dtype(with_dim(at2(128, 1, 1), 1, sizeof(ops_candidates)), OPS_DTYPE_U8);
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
    if (!ctx || ops_block_open(ctx, &block, 4096 * sizeof(float) + sizeof indices, &e) != STATUS_OK) return 1;
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
        cmocka_unit_test(matrices_refuse_bad_weights),
        cmocka_unit_test(linear_refuses_and_takes_no_rows),
        cmocka_unit_test(row_operators_refuse_wrong_shapes_and_half_overlaps),
        cmocka_unit_test(candidates_refuse_rows_and_wishes_that_do_not_fit),
        cmocka_unit_test(an_index_outside_its_table_is_refused_before_anything_is_written),
        cmocka_unit_test(patches_refuse_what_does_not_fit),
        cmocka_unit_test(rope_refuses_heads_that_do_not_fit),
        cmocka_unit_test(attention_refuses_heads_lengths_and_overlaps),
        cmocka_unit_test(paged_attention_refuses_rows_that_point_outside),
        cmocka_unit_test(progress_is_told_after_each_operator_that_had_work),
        cmocka_unit_test(a_device_without_graphs_says_so),
        cmocka_unit_test(a_graph_runs_what_was_recorded_on_what_is_there),
        cmocka_unit_test(a_graph_is_not_current_when_scratch_has_moved),
        cmocka_unit_test(a_device_that_refuses_to_record_goes_on_without),
    };
    return cmocka_run_group_tests(tests, open_one, close_one);
}
