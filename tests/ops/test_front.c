/* Each refusal of the operators' front: a wrong shape, dtype, place, overlap or index is a status, nothing
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

static void blocks_of_a_cache_in_a_dtype_that_none_is_kept_in_are_not_copied(void **state) {
    (void)state;
    static const ops_dtype kept_by_nobody[] = {OPS_DTYPE_Q8, OPS_DTYPE_Q4, OPS_DTYPE_I32, OPS_DTYPE_U8};
    for (size_t i = 0; i < sizeof kept_by_nobody / sizeof *kept_by_nobody; i++) {
        ops_tensor blocks = tensor_make(memory + 500, OPS_PLACE_DEVICE, kept_by_nobody[i], 4, (int64_t[]){2, 1, 2, QUANT_BLOCK});
        assert_int_equal(ops_kv_copy_block(ctx, &blocks, 1, 0), STATUS_UNSUPPORTED);
    }
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
    ops_attention_params p = {.n_heads = 1, .n_kv_heads = 1, .scale = 1.0f};
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
    ops_attention_params back = {.n_heads = 1, .n_kv_heads = 1, .scale = 1.0f, .window = -1};
    ops_attention_params upside_down = {.n_heads = 1, .n_kv_heads = 1, .scale = -1.0f};
    assert_int_equal(ops_attention_paged(ctx, &out, &q, &k, &v, &tables, &seq, &pos, &back), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_attention_paged(ctx, &out, &q, &k, &v, &tables, &seq, &pos, &upside_down), STATUS_BAD_ARGUMENT);
    assert_int_equal(ops_attention_paged(ctx, &k, &q, &k, &v, &tables, &seq, &pos, &p),
                     STATUS_BAD_SHAPE);
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
        cmocka_unit_test(matrices_refuse_bad_weights),
        cmocka_unit_test(linear_refuses_and_takes_no_rows),
        cmocka_unit_test(row_operators_refuse_wrong_shapes_and_half_overlaps),
        cmocka_unit_test(candidates_refuse_rows_and_wishes_that_do_not_fit),
        cmocka_unit_test(an_index_outside_its_table_is_refused_before_anything_is_written),
        cmocka_unit_test(blocks_of_a_cache_in_a_dtype_that_none_is_kept_in_are_not_copied),
        cmocka_unit_test(patches_refuse_what_does_not_fit),
        cmocka_unit_test(rope_refuses_heads_that_do_not_fit),
        cmocka_unit_test(attention_refuses_heads_lengths_and_overlaps),
        cmocka_unit_test(paged_attention_refuses_rows_that_point_outside),
    };
    return cmocka_run_group_tests(tests, open_one, close_one);
}
