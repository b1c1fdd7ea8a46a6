/* The checked front of the operators: each function states its operator's rules once, then makes one indirect call.
 * add is add_table with equal rows. */
#include <math.h>
#include <string.h>

#include "base/check.h"
#include "ops/ops_internal.h"

/* ---- the rules ----------------------------------------------------------------------------- */

/* A tensor an operator may touch: on the device, with sane dims. A view of columns has rows no longer than its stride. */
static status rule_view(const ops_tensor *t, ops_dtype dtype, int n_dims) {
    if (t->place != OPS_PLACE_DEVICE) return STATUS_UNSUPPORTED;
    if (t->dtype != dtype) return STATUS_UNSUPPORTED;
    if (t->n_dims != n_dims) return STATUS_BAD_SHAPE;
    int64_t n = (int64_t)dtype_bytes(dtype), reach;
    bool empty = false;
    if (t->row_stride && (n_dims != 2 || t->row_stride < t->dims[1] || t->dims[0] < 0 ||
                          __builtin_mul_overflow(n * t->dims[0], t->row_stride, &reach)))
        return STATUS_BAD_SHAPE;
    for (int i = 0; i < n_dims; i++) {
        if (t->dims[i] < 0) return STATUS_BAD_SHAPE;
        if (t->dims[i] == 0)
            empty = true;
        else if (__builtin_mul_overflow(n, t->dims[i], &n))
            return STATUS_BAD_SHAPE;
    }
    if (!empty && !t->data) return STATUS_BAD_ARGUMENT;
    return STATUS_OK;
}

static status rule_device(const ops_tensor *t, ops_dtype dtype, int n_dims) {
    return is_contiguous(t) ? rule_view(t, dtype, n_dims) : STATUS_BAD_SHAPE;
}

static bool is_storage_dtype(ops_dtype d) {
    return d == OPS_DTYPE_F32 || d == OPS_DTYPE_F16 || d == OPS_DTYPE_BF16;
}

static status rule_storage(const ops_tensor *t, int n_dims) {
    if (!is_storage_dtype(t->dtype)) return STATUS_UNSUPPORTED;
    return rule_device(t, t->dtype, n_dims);
}

/* Tensors of activations: of a dtype the backend computes in. */
static status rule_computed(const ops_ctx *ctx, ops_dtype dtype) {
    return is_storage_dtype(dtype) && ctx->backend->activations & OPS_DTYPE_BIT(dtype) ? STATUS_OK : STATUS_UNSUPPORTED;
}

static status rule_activation(const ops_ctx *ctx, const ops_tensor *t, int n_dims) {
    TRY(rule_computed(ctx, t->dtype));
    return rule_device(t, t->dtype, n_dims);
}

static status rule_activation_view(const ops_ctx *ctx, const ops_tensor *t) {
    TRY(rule_computed(ctx, t->dtype));
    return rule_view(t, t->dtype, 2);
}

/* Two of them in one call have one dtype. */
static status rule_alike(const ops_ctx *ctx, const ops_tensor *out, const ops_tensor *x, int n_dims) {
    TRY(rule_activation(ctx, out, n_dims));
    return rule_device(x, out->dtype, n_dims);
}

static bool same_dims(const ops_tensor *a, const ops_tensor *b) {
    if (a->n_dims != b->n_dims) return false;
    for (int i = 0; i < a->n_dims; i++)
        if (a->dims[i] != b->dims[i]) return false;
    return true;
}

/* Keys and values of a layer, for activations of a dtype. */
static status rule_caches(const ops_ctx *ctx, const ops_tensor *k, const ops_tensor *v, ops_dtype activations) {
    if (!ops_takes_cache(ctx, activations, k->dtype)) return STATUS_UNSUPPORTED;
    TRY(rule_device(k, k->dtype, 4));
    TRY(rule_device(v, k->dtype, 4));
    return same_dims(k, v) ? STATUS_OK : STATUS_BAD_SHAPE;
}

/* The same of views. */
static status rule_views_alike(const ops_ctx *ctx, const ops_tensor *out, const ops_tensor *x) {
    TRY(rule_activation_view(ctx, out));
    return rule_view(x, out->dtype, 2);
}

/* Out of place: no byte shared. */
static status rule_apart(const ops_tensor *out, const ops_tensor *x) {
    return tensor_overlaps(out, x) ? STATUS_BAD_ARGUMENT : STATUS_OK;
}

/* In place is fine, shifted is not. */
static status rule_apart_or_same(const ops_tensor *out, const ops_tensor *x) {
    bool is_same = out->data == x->data && same_dims(out, x) &&
                   (out->n_dims != 2 || tensor_row_stride(out) == tensor_row_stride(x));
    return is_same ? STATUS_OK : rule_apart(out, x);
}

/* ---- matrices ------------------------------------------------------------------------------ */

status ops_matrix_open(ops_ctx *ctx, ops_matrix **matrix, const ops_tensor *w,
                       const ops_tensor *bias, err *e) {
    return ops_matrix_open_as(ctx, matrix, w, bias, OPS_PRODUCT_F32, e);
}

const char *ops_product_name(ops_product product) {
    static const char *const NAMES[] = {"f32", "bf16", "int8", "fp8"};
    return (unsigned)product < OPS_PRODUCT_COUNT ? NAMES[product] : "unknown";
}

status ops_matrix_open_rows(ops_ctx *ctx, ops_matrix **matrix, const ops_rows *rows, const ops_tensor *bias,
                            ops_product product, err *e) {
    *matrix = NULL;
    TRY(open_not_recording(ctx, e));
    if ((unsigned)product >= OPS_PRODUCT_COUNT) return fail(e, STATUS_BAD_ARGUMENT, "ops: product %d", (int)product);
    if (bias && bias->place != OPS_PLACE_HOST) return fail(e, STATUS_UNSUPPORTED, "ops: a matrix is packed from host memory");
    if ((!is_storage_dtype(rows->dtype) && !dtype_is_quantized(rows->dtype)) || (bias && !is_storage_dtype(bias->dtype)))
        return fail(e, STATUS_UNSUPPORTED, "ops: a matrix of %s with bias of %s, need f32, f16 or bf16, or a matrix of q8 or q4",
                    dtype_name(rows->dtype), bias ? dtype_name(bias->dtype) : "none");
    int64_t bytes;
    if (rows->n_out < 1 || rows->n_in < 1 || rows->n_in > OPS_INPUTS_MAX ||
        __builtin_mul_overflow(rows->n_out, rows->n_in, &bytes) || __builtin_mul_overflow(bytes, INT64_C(256), &bytes))
        return fail(e, STATUS_BAD_SHAPE, "ops: a matrix of %lld x %lld, need at most %lld inputs", (long long)rows->n_out,
                    (long long)rows->n_in, (long long)OPS_INPUTS_MAX);
    if (bias && (bias->n_dims != 1 || bias->dims[0] != rows->n_out))
        return fail(e, STATUS_BAD_SHAPE, "ops: a bias with %d dims of %lld, need 1 of %lld",
                    bias->n_dims, (long long)bias->dims[0], (long long)rows->n_out);
    if (bias && !bias->data) return fail(e, STATUS_BAD_ARGUMENT, "ops: a bias without data");
    return ctx->backend->matrix_open(ctx->state, matrix, rows, bias, product, e);
}

static void read_tensor(const void *user, unsigned char *out, size_t stride, int64_t first, int64_t n) {
    const ops_tensor *w = user;
    size_t row_bytes = dtype_row_bytes(w->dtype, w->dims[1]);
    const unsigned char *from = (const unsigned char *)w->data + (size_t)first * row_bytes;
    for (int64_t r = 0; r < n; r++) memcpy(out + (size_t)r * stride, from + (size_t)r * row_bytes, row_bytes);
}

status ops_matrix_open_as(ops_ctx *ctx, ops_matrix **matrix, const ops_tensor *w, const ops_tensor *bias,
                          ops_product product, err *e) {
    *matrix = NULL;
    if (w->place != OPS_PLACE_HOST) return fail(e, STATUS_UNSUPPORTED, "ops: a matrix is packed from host memory");
    if (w->n_dims != 2) return fail(e, STATUS_BAD_SHAPE, "ops: a matrix with %d dims, need 2", w->n_dims);
    if (!w->data) return fail(e, STATUS_BAD_ARGUMENT, "ops: a matrix without data");
    const ops_rows rows = {w->dtype, w->dims[0], w->dims[1], read_tensor, w};
    return ops_matrix_open_rows(ctx, matrix, &rows, bias, product, e);
}

void ops_matrix_close(ops_ctx *ctx, ops_matrix **matrix) {
    if (*matrix) ctx->backend->matrix_close(ctx->state, *matrix);
    *matrix = NULL;
}

size_t ops_matrix_bytes(const ops_matrix *matrix) { return matrix->bytes; }

static bool is_act(ops_act act) { return (unsigned)act < OPS_ACT_COUNT; }

status ops_linear(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_matrix *matrix,
                  const ops_linear_params *params) {
    static const ops_linear_params plain;
    const ops_linear_params *p = params ? params : &plain;
    TRY(rule_activation_view(ctx, x));
    TRY(rule_device(out, out->dtype == OPS_DTYPE_F32 ? OPS_DTYPE_F32 : x->dtype, 2));
    if (out->dims[0] != x->dims[0] || x->dims[1] != matrix->n_in || out->dims[1] != matrix->n_out)
        return STATUS_BAD_SHAPE;
    if (!is_act(p->act) || p->act_from < 0 || p->act_from > matrix->n_out) return STATUS_BAD_ARGUMENT;
    TRY(rule_apart(out, x));
    if (p->add) {
        TRY(rule_device(p->add, out->dtype, 2));
        if (!same_dims(p->add, out)) return STATUS_BAD_SHAPE;
        if (p->act != OPS_ACT_NONE) return STATUS_BAD_ARGUMENT;
        TRY(rule_apart(out, p->add));
    }
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->linear(ctx->state, out, x, matrix, p));
}

bool ops_tells_few(const ops_ctx *ctx) { return ctx->backend->tells_few && !ctx->is_fast; }

/* ---- rows ---------------------------------------------------------------------------------- */

/* out and x alike, one value of w for each of their columns. */
static status rule_columns(const ops_ctx *ctx, const ops_tensor *out, const ops_tensor *x, const ops_tensor *w) {
    TRY(rule_alike(ctx, out, x, 2));
    TRY(rule_device(w, OPS_DTYPE_F32, 1));
    if (!same_dims(out, x) || w->dims[0] != x->dims[1]) return STATUS_BAD_SHAPE;
    TRY(rule_apart_or_same(out, x));
    return rule_apart(out, w);
}

status ops_layer_norm(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_tensor *w,
                      const ops_tensor *b, float eps) {
    TRY(rule_columns(ctx, out, x, w));
    TRY(rule_device(b, OPS_DTYPE_F32, 1));
    if (b->dims[0] != x->dims[1]) return STATUS_BAD_SHAPE;
    if (!(eps > 0.0f) || isinf(eps)) return STATUS_BAD_ARGUMENT; /* also rejects NaN */
    TRY(rule_apart(out, b));
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->layer_norm(ctx->state, out, x, w, b, eps));
}

status ops_rms_norm(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_tensor *w, float eps) {
    TRY(rule_columns(ctx, out, x, w));
    if (!(eps > 0.0f) || isinf(eps)) return STATUS_BAD_ARGUMENT;
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->rms_norm(ctx->state, out, x, w, eps));
}

status ops_activate(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, ops_act act) {
    TRY(rule_views_alike(ctx, out, x));
    if (!same_dims(out, x)) return STATUS_BAD_SHAPE;
    if (!is_act(act)) return STATUS_BAD_ARGUMENT;
    TRY(rule_apart_or_same(out, x));
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->activate(ctx->state, out, x, act));
}

status ops_scale_columns(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_tensor *w) {
    TRY(rule_columns(ctx, out, x, w));
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->scale_columns(ctx->state, out, x, w));
}

status ops_gate(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, ops_act act) {
    TRY(rule_alike(ctx, out, x, 2));
    if (out->dims[0] != x->dims[0] || x->dims[1] % 2 != 0 || out->dims[1] != x->dims[1] / 2)
        return STATUS_BAD_SHAPE;
    if (!is_act(act)) return STATUS_BAD_ARGUMENT;
    TRY(rule_apart(out, x));
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->gate(ctx->state, out, x, act));
}

status ops_add(ops_ctx *ctx, ops_tensor *out, const ops_tensor *a, const ops_tensor *b) {
    TRY(rule_alike(ctx, out, a, out->n_dims));
    TRY(rule_device(b, out->dtype, out->n_dims));
    if (!same_dims(out, a) || !same_dims(out, b)) return STATUS_BAD_SHAPE;
    TRY(rule_apart_or_same(out, a));
    TRY(rule_apart_or_same(out, b));
    if (is_empty(out)) return STATUS_OK;
    int64_t flat[2] = {1, tensor_elements(out)};
    ops_tensor flat_out = tensor_reshape(out, 2, flat);
    ops_tensor flat_a = tensor_reshape(a, 2, flat), flat_b = tensor_reshape(b, 2, flat);
    return done(ctx, ctx->backend->add_table(ctx->state, &flat_out, &flat_a, &flat_b));
}

status ops_add_table(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_tensor *table) {
    TRY(rule_alike(ctx, out, x, 2));
    TRY(rule_device(table, table->dtype == OPS_DTYPE_F32 ? OPS_DTYPE_F32 : x->dtype, 2));
    if (!same_dims(out, x) || table->dims[1] != x->dims[1]) return STATUS_BAD_SHAPE;
    TRY(rule_apart_or_same(out, x));
    TRY(rule_apart(out, table));
    if (is_empty(out)) return STATUS_OK;
    if (table->dims[0] < 1) return STATUS_BAD_SHAPE;
    return done(ctx, ctx->backend->add_table(ctx->state, out, x, table));
}

status ops_gather_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *table,
                       const ops_tensor *ids) {
    TRY(rule_activation(ctx, out, 2));
    if (!is_storage_dtype(table->dtype)) return STATUS_UNSUPPORTED;
    TRY(rule_view(table, table->dtype, 2));
    TRY(rule_device(ids, OPS_DTYPE_I32, 1));
    if (out->dims[0] != ids->dims[0] || out->dims[1] != table->dims[1]) return STATUS_BAD_SHAPE;
    TRY(rule_apart(out, table));
    TRY(rule_apart(out, ids));
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->gather_rows(ctx->state, out, table, ids));
}

status ops_scatter_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_tensor *to) {
    TRY(rule_alike(ctx, out, x, 2));
    TRY(rule_device(to, OPS_DTYPE_I32, 1));
    if (x->dims[0] != to->dims[0] || x->dims[1] != out->dims[1]) return STATUS_BAD_SHAPE;
    TRY(rule_apart(out, x));
    TRY(rule_apart(out, to));
    if (is_empty(x)) return STATUS_OK;
    return done(ctx, ctx->backend->scatter_rows(ctx->state, out, x, to));
}

status ops_cast(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x) {
    TRY(rule_storage(out, out->n_dims));
    TRY(rule_storage(x, out->n_dims));
    if (!same_dims(out, x)) return STATUS_BAD_SHAPE;
    if (out->dtype == x->dtype)
        TRY(rule_apart_or_same(out, x));
    else
        TRY(rule_apart(out, x));
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->cast(ctx->state, out, x));
}

static bool is_wanted(const ops_candidates_wanted *w) {
    for (int i = 0; i < 2; i++)
        if (!(w->temperature[i] >= 0.0f) || isinf(w->temperature[i])) return false;
    return w->n >= 1 && w->n <= OPS_CANDIDATES_MAX;
}

status ops_candidates_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, int64_t n,
                           const ops_candidates_wanted *wanted) {
    TRY(rule_device(out, OPS_DTYPE_U8, 2));
    TRY(rule_device(x, OPS_DTYPE_F32, 2));
    if (out->dims[0] != x->dims[0] || out->dims[1] != (int64_t)sizeof(ops_candidates) || x->dims[1] > INT32_MAX)
        return STATUS_BAD_SHAPE;
    if (n < 1 || n > x->dims[1] || (uintptr_t)out->data % _Alignof(ops_candidates) != 0) return STATUS_BAD_ARGUMENT;
    bool wants_more = false; /* than the first of each row, which a backend need not be told */
    for (int64_t r = 0; wanted && r < x->dims[0]; r++) {
        if (!is_wanted(&wanted[r])) return STATUS_BAD_ARGUMENT;
        wants_more |= wanted[r].n > 1 || wanted[r].temperature[0] > 0.0f || wanted[r].temperature[1] > 0.0f;
    }
    if (wants_more) TRY(rule_not_recording(ctx));
    TRY(rule_apart(out, x));
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->candidates_rows(ctx->state, out, x, n, wants_more ? wanted : NULL));
}

/* ---- vision -------------------------------------------------------------------------------- */

status ops_patch_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_tensor *levels, int patch) {
    TRY(rule_activation(ctx, out, 2));
    TRY(rule_device(x, OPS_DTYPE_U8, 4));
    TRY(rule_device(levels, OPS_DTYPE_F32, 2));
    if (patch < 1 || patch > 4096) return STATUS_BAD_ARGUMENT;
    if (x->dims[3] != 3 || levels->dims[0] != 3 || levels->dims[1] != 256) return STATUS_BAD_SHAPE;
    int64_t per_picture, rows;
    if (__builtin_mul_overflow(x->dims[1] / patch, x->dims[2] / patch, &per_picture) ||
        __builtin_mul_overflow(per_picture, x->dims[0], &rows))
        return STATUS_BAD_SHAPE;
    if (out->dims[0] != rows || out->dims[1] != (int64_t)3 * patch * patch) return STATUS_BAD_SHAPE;
    TRY(rule_apart(out, x));
    TRY(rule_apart(out, levels));
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->patch_rows(ctx->state, out, x, levels, patch));
}

/* Heads divide the widths evenly: q [.., n_heads*hd], keys [.., n_kv_heads*hd]. */
static status rule_heads(const ops_attention_params *p, int64_t q_width, int64_t kv_width) {
    if (p->n_heads < 1 || p->n_kv_heads < 1 || p->n_heads % p->n_kv_heads != 0)
        return STATUS_BAD_ARGUMENT;
    if (!isfinite(p->scale) || !(p->scale > 0.0f) || p->window < 0) return STATUS_BAD_ARGUMENT;
    if (q_width < 1 || q_width % p->n_heads != 0) return STATUS_BAD_SHAPE;
    int64_t head_dim = q_width / p->n_heads;
    return kv_width == head_dim * p->n_kv_heads ? STATUS_OK : STATUS_BAD_SHAPE;
}

status ops_attention(ops_ctx *ctx, ops_tensor *out, const ops_tensor *q, const ops_tensor *k,
                     const ops_tensor *v, int64_t length, const ops_attention_params *params) {
    TRY(rule_views_alike(ctx, out, q));
    TRY(rule_view(k, out->dtype, 2));
    TRY(rule_view(v, out->dtype, 2));
    if (!same_dims(out, q) || !same_dims(k, v) || q->dims[0] != k->dims[0] || tensor_row_stride(k) != tensor_row_stride(v))
        return STATUS_BAD_SHAPE;
    if (length < 1 || length > INT32_MAX || params->window != 0) return STATUS_BAD_ARGUMENT;
    if (q->dims[0] % length != 0 || q->dims[0] > INT32_MAX) return STATUS_BAD_SHAPE;
    TRY(rule_heads(params, q->dims[1], k->dims[1]));
    TRY(rule_apart_or_same(out, q));
    TRY(rule_apart(out, k));
    TRY(rule_apart(out, v));
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->attention(ctx->state, out, q, k, v, length, params));
}

/* ---- language ------------------------------------------------------------------------------ */

/* Rows of heads, and where the tables of angles turn them. */
static status rule_turned(const ops_ctx *ctx, const ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin,
                          const ops_tensor *positions, int n_heads) {
    TRY(rule_activation_view(ctx, x));
    TRY(rule_device(cos, OPS_DTYPE_F32, 2));
    TRY(rule_device(sin, OPS_DTYPE_F32, 2));
    TRY(rule_device(positions, OPS_DTYPE_I32, 1));
    if (n_heads < 1) return STATUS_BAD_ARGUMENT;
    if (!same_dims(cos, sin) || positions->dims[0] != x->dims[0]) return STATUS_BAD_SHAPE;
    if (x->dims[1] % n_heads != 0 || cos->dims[1] > x->dims[1] / n_heads / 2)
        return STATUS_BAD_SHAPE;
    return STATUS_OK;
}

/* What is written shares no byte with tables and indices. */
static status rule_apart_from_tables(const ops_tensor *out, const ops_tensor *cos, const ops_tensor *sin,
                                     const ops_tensor *positions) {
    TRY(rule_apart(out, cos));
    TRY(rule_apart(out, sin));
    return rule_apart(out, positions);
}

status ops_rope(ops_ctx *ctx, ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin,
                const ops_tensor *positions, int n_heads) {
    TRY(rule_turned(ctx, x, cos, sin, positions, n_heads));
    TRY(rule_apart_from_tables(x, cos, sin, positions));
    if (is_empty(x) || cos->dims[1] == 0) return STATUS_OK;
    return done(ctx, ctx->backend->rope(ctx->state, x, cos, sin, positions, n_heads));
}

status ops_kv_append(ops_ctx *ctx, ops_tensor *k_cache, ops_tensor *v_cache, const ops_tensor *k, const ops_tensor *v,
                     ops_tensor *q, const ops_kv_places *at, int n_heads, int n_kv_heads) {
    TRY(rule_caches(ctx, k_cache, v_cache, k->dtype));
    TRY(rule_turned(ctx, k, at->cos, at->sin, at->positions, n_kv_heads));
    TRY(rule_view(v, k->dtype, 2));
    TRY(rule_device(at->slots, OPS_DTYPE_I32, 1));
    if (!same_dims(k, v) || at->slots->dims[0] != k->dims[0]) return STATUS_BAD_SHAPE;
    if (k_cache->dims[1] != n_kv_heads || k_cache->dims[3] != k->dims[1] / n_kv_heads) return STATUS_BAD_SHAPE;
    const ops_tensor *read[] = {k, v, at->slots};
    ops_tensor *written[] = {k_cache, v_cache, q};
    TRY(rule_apart(k_cache, v_cache));
    for (int i = 0; i < (q ? 3 : 2); i++) {
        for (int r = 0; r < 3; r++) TRY(rule_apart(written[i], read[r]));
        TRY(rule_apart_from_tables(written[i], at->cos, at->sin, at->positions));
    }
    if (q) {
        TRY(rule_turned(ctx, q, at->cos, at->sin, at->positions, n_heads));
        if (q->dtype != k->dtype) return STATUS_UNSUPPORTED;
        if (n_heads % n_kv_heads != 0 || q->dims[1] / n_heads != k->dims[1] / n_kv_heads) return STATUS_BAD_SHAPE;
        TRY(rule_apart(q, k_cache));
        TRY(rule_apart(q, v_cache));
    }
    if (is_empty(k)) return STATUS_OK;
    return done(ctx, ctx->backend->kv_append(ctx->state, k_cache, v_cache, k, v, q, at, n_heads, n_kv_heads));
}

status ops_kv_copy_block(ops_ctx *ctx, ops_tensor *cache, int64_t to, int64_t from) {
    if (!((ctx->backend->activations | ctx->backend->caches) & OPS_DTYPE_BIT(cache->dtype))) return STATUS_UNSUPPORTED;
    TRY(rule_device(cache, cache->dtype, 4));
    if (to < 0 || from < 0 || to >= cache->dims[0] || from >= cache->dims[0])
        return STATUS_BAD_ARGUMENT;
    if (is_empty(cache) || to == from) return STATUS_OK;
    return done(ctx, ctx->backend->kv_copy_block(ctx->state, cache, to, from));
}

status ops_attention_paged(ops_ctx *ctx, ops_tensor *out, const ops_tensor *q,
                           const ops_tensor *k_cache, const ops_tensor *v_cache,
                           const ops_tensor *tables, const ops_tensor *row_seq,
                           const ops_tensor *row_pos, const ops_attention_params *params) {
    TRY(rule_views_alike(ctx, out, q));
    TRY(rule_caches(ctx, k_cache, v_cache, out->dtype));
    TRY(rule_device(tables, OPS_DTYPE_I32, 2));
    TRY(rule_device(row_seq, OPS_DTYPE_I32, 1));
    TRY(rule_device(row_pos, OPS_DTYPE_I32, 1));
    if (!same_dims(out, q)) return STATUS_BAD_SHAPE;
    if (row_seq->dims[0] != q->dims[0] || row_pos->dims[0] != q->dims[0]) return STATUS_BAD_SHAPE;
    if (q->dims[0] > INT32_MAX || tables->dims[0] > INT32_MAX) return STATUS_BAD_SHAPE;
    TRY(rule_heads(params, q->dims[1], params->n_kv_heads * k_cache->dims[3]));
    if (k_cache->dims[1] != params->n_kv_heads) return STATUS_BAD_SHAPE;
    TRY(rule_apart_or_same(out, q));
    TRY(rule_apart(out, k_cache));
    TRY(rule_apart(out, v_cache));
    TRY(rule_apart(out, tables));
    TRY(rule_apart(out, row_seq));
    TRY(rule_apart(out, row_pos));
    if (is_empty(out)) return STATUS_OK;
    return done(ctx, ctx->backend->attention_paged(ctx->state, out, q, k_cache, v_cache, tables, row_seq,
                                         row_pos, params));
}
