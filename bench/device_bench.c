/* Times operators of Mipha-3B on a device, each next to the floor that this device sets it.
 *
 *     device_bench [--device NAME] [--only TEXT]
 *
 * For a GPU: a case is a few calls in a row, recorded as one graph where the device has them; the best of several runs counts.
 * Weights, keys and values are such that no cache holds them, as between the layers of a network; rows of activations are
 * the same in each call and may come from the second-level cache, as what the operator before has left. The floor is the larger of two times: the bytes that the operator has to read and
 * write once, and its multiply-adds, at the rates that a sum of two large arrays and a product of two large squares reach
 * here in the same run. Weights, activations, keys and values are bf16, or f32 where the device knows nothing else. Results
 * are not looked at: the tests do that. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/rng.h"
#include "cli/bench_ceilings.h"
#include "ops/ops.h"

#define CALLS     16 /* of a case, one after the other */
#define RUNS      7
#define COLD      ((int64_t)200 << 20) /* bytes that no second-level cache holds */
#define BLOCK     16                   /* tokens of a block of keys and values */
#define NOISE     ((int64_t)51200 * 2560 * 4)
#define N_BLOCKS  8 /* memory of a case */
#define COPIES    CALLS

static ops_ctx *ctx;
static bench_ceilings top;
static ops_dtype dtype;     /* of what is computed with */
static unsigned char *noise; /* NOISE bytes of numbers between -1 and 1 in dtype */
static const char *only = "";
static char name[128];

/* e: what says why, or NULL. */
static void must(status st, const err *e) {
    if (st == STATUS_OK) return;
    (void)fprintf(stderr, "device_bench: %s: %s\n", name, e ? e->text : status_text((int)st));
    exit(1);
}

/* ---- memory of a case ------------------------------------------------------------------------- */

static ops_block blocks[N_BLOCKS * COPIES];
static int n_blocks;

static ops_tensor of_dtype(ops_dtype of, int n_dims, const int64_t *dims, const void *values) {
    err e;
    int64_t n = 1;
    for (int i = 0; i < n_dims; i++) n *= dims[i];
    CHECK(n_blocks < N_BLOCKS * COPIES, "room for the tensors of a case");
    ops_block *b = &blocks[n_blocks++];
    must(ops_block_open(ctx, b, ops_cut_bytes(of, n), &e), &e);
    ops_tensor t = ops_block_cut(b, of, n_dims, dims);
    CHECK((int64_t)tensor_bytes(&t) <= NOISE, "numbers for a tensor");
    must(ops_upload(ctx, &t, values ? values : noise), NULL);
    return t;
}

static ops_tensor rows_of(int64_t rows, int64_t cols) { return of_dtype(dtype, 2, (int64_t[]){rows, cols}, NULL); }

static ops_tensor floats(int64_t n) {
    float *values = calloc((size_t)n, sizeof *values);
    CHECK(values, "memory for a vector");
    for (int64_t i = 0; i < n; i++) values[i] = 1.0f;
    ops_tensor t = of_dtype(OPS_DTYPE_F32, 1, &n, values);
    free(values);
    return t;
}

static ops_tensor indices(int n_dims, const int64_t *dims, int32_t (*value)(int64_t, const void *), const void *arg) {
    int64_t n = n_dims == 2 ? dims[0] * dims[1] : dims[0];
    int32_t *values = calloc((size_t)n, sizeof *values);
    CHECK(values, "memory for indices");
    for (int64_t i = 0; i < n; i++) values[i] = value(i, arg);
    ops_tensor t = of_dtype(OPS_DTYPE_I32, n_dims, dims, values);
    free(values);
    return t;
}

static void drop(void) {
    must(ops_sync(ctx), NULL);
    while (n_blocks > 0) ops_block_close(&blocks[--n_blocks]);
}

/* ---- timing ------------------------------------------------------------------------------------ */

typedef void one_call(void *arg, int i);

static double best_us(one_call *call, void *arg) {
    err e;
    ops_graph *graph = NULL;
    double best = (double)INFINITY;
    for (int i = 0; i < CALLS; i++) call(arg, i); /* warms up, and memory of the device's own is there */
    must(ops_sync(ctx), NULL);
    if (ops_has_graphs(ctx)) {
        must(ops_graph_begin(ctx, &e), &e);
        for (int i = 0; i < CALLS; i++) call(arg, i);
        must(ops_graph_end(ctx, &graph, &e), &e);
    }
    for (int run = 0; run < RUNS; run++) {
        int64_t start_us = clock_now_us();
        if (graph) must(ops_graph_run(ctx, graph), NULL);
        else
            for (int i = 0; i < CALLS; i++) call(arg, i);
        must(ops_sync(ctx), NULL);
        double us = (double)(clock_now_us() - start_us) / CALLS;
        if (us < best) best = us;
    }
    ops_graph_close(ctx, &graph);
    return best;
}

static void report(one_call *call, void *arg, double bytes, double flops) {
    double us = best_us(call, arg), by_bytes = bytes / top.bytes * 1e6, by_flops = flops / top.flops * 1e6;
    (void)printf("%-58s %9.1f us %9.1f by %s %6.0f%%\n", name, us, fmax(by_bytes, by_flops), by_bytes > by_flops ? "bytes" : "flops",
                 100 * fmax(by_bytes, by_flops) / us);
    (void)fflush(stdout);
    drop();
}

/* name, and whether it is wanted. */
static bool wanted(const char *format, ...) __attribute__((format(printf, 1, 2)));
static bool wanted(const char *format, ...) {
    va_list args;
    va_start(args, format);
    (void)vsnprintf(name, sizeof name, format, args);
    va_end(args);
    return strstr(name, only) != NULL;
}

/* How many copies of so many bytes no cache holds. */
static int copies_of(double bytes) {
    int n = (int)((double)COLD / bytes) + 1;
    return n < COPIES ? n : COPIES;
}

/* ---- products ---------------------------------------------------------------------------------- */

typedef struct {
    ops_matrix *m[COPIES];
    int n;
    ops_tensor x, out, add;
    ops_linear_params params;
} linear_case;

static void do_linear(void *arg, int i) {
    linear_case *c = arg;
    must(ops_linear(ctx, &c->out, &c->x, c->m[i % c->n], &c->params), NULL);
}

/* act_from: gelu from there on; n_out: nowhere. */
static void bench_linear(const char *what, int64_t rows, int64_t n_in, int64_t n_out, int64_t act_from, bool adds, bool is_few) {
    if (!wanted("linear %-10s %5lld x %5lld x %5lld%s%s", what, (long long)rows, (long long)n_in, (long long)n_out,
                is_few ? ", few" : "", act_from < n_out ? ", gelu" : adds ? ", add" : "")) return;
    err e;
    double size = (double)dtype_bytes(dtype), weights = size * (double)(n_in * n_out), out = size * (double)(rows * n_out);
    linear_case c = {.n = copies_of(weights), .x = rows_of(rows, n_in), .out = rows_of(rows, n_out)};
    c.params = (ops_linear_params){.is_few = is_few, .act = act_from < n_out ? OPS_ACT_GELU_TANH : OPS_ACT_NONE, .act_from = act_from % n_out};
    if (adds) c.add = rows_of(rows, n_out), c.params.add = &c.add;
    ops_tensor w = tensor_make(noise, OPS_PLACE_HOST, dtype, 2, (int64_t[]){n_out, n_in});
    for (int i = 0; i < c.n; i++) must(ops_matrix_open(ctx, &c.m[i], &w, NULL, &e), &e);
    report(do_linear, &c, weights + size * (double)(rows * n_in) + (adds ? 2 : 1) * out, 2.0 * (double)rows * (double)(n_in * n_out));
    for (int i = 0; i < c.n; i++) ops_matrix_close(ctx, &c.m[i]);
}

/* ---- attention --------------------------------------------------------------------------------- */

typedef struct {
    ops_tensor q, k, v, out;
    int64_t length;
    ops_attention_params params;
} full_case;

static void do_full(void *arg, int i) {
    full_case *c = arg;
    (void)i;
    must(ops_attention(ctx, &c->out, &c->q, &c->k, &c->v, c->length, &c->params), NULL);
}

static void bench_full(int64_t pictures, int64_t length, int heads, int64_t hd) {
    if (!wanted("attention of %lld x %lld rows, %d heads of %lld", (long long)pictures, (long long)length, heads, (long long)hd)) return;
    int64_t rows = pictures * length, width = heads * hd;
    full_case c = {rows_of(rows, width), rows_of(rows, width), rows_of(rows, width), rows_of(rows, width), length,
                   {.n_heads = heads, .n_kv_heads = heads, .scale = 0.11f}};
    report(do_full, &c, 4.0 * (double)dtype_bytes(dtype) * (double)(rows * width), 4.0 * (double)(rows * length * width));
}

typedef struct {
    int64_t rows_each, length, max_blocks, shared_blocks, tens;
} paged_shape;

static int32_t table_value(int64_t i, const void *arg) {
    const paged_shape *p = arg;
    int64_t seq = i / p->max_blocks, block = i % p->max_blocks;
    return (int32_t)((block < p->shared_blocks ? seq / p->tens * p->tens : seq) * p->max_blocks + block);
}
static int32_t seq_value(int64_t i, const void *arg) { return (int32_t)(i / ((const paged_shape *)arg)->rows_each); }
static int32_t position_value(int64_t i, const void *arg) {
    const paged_shape *p = arg;
    return (int32_t)(p->length - p->rows_each + i % p->rows_each);
}
static int32_t slot_value(int64_t i, const void *arg) {
    (void)arg;
    return (int32_t)i;
}

typedef struct {
    ops_tensor q, out, k[COPIES], v[COPIES], tables, seqs, positions, slots, cos, sin, more_k, more_v;
    int n;
    ops_attention_params params;
} paged_case;

static void do_paged(void *arg, int i) {
    paged_case *c = arg;
    must(ops_attention_paged(ctx, &c->out, &c->q, &c->k[i % c->n], &c->v[i % c->n], &c->tables, &c->seqs, &c->positions, &c->params),
         NULL);
}

/* The last rows_each rows of n sequences that see `length` keys each; tens: how many share all whole blocks but the last four. */
static void bench_paged(int64_t n, int64_t rows_each, int64_t length, int64_t tens, int heads, int64_t hd) {
    if (!wanted("attention of %lld x %lld rows of %lld%s", (long long)n, (long long)rows_each, (long long)length,
                tens > 1 ? ", ten share" : "")) return;
    int64_t rows = n * rows_each, width = heads * hd, max_blocks = (length + BLOCK - 1) / BLOCK;
    paged_shape p = {rows_each, length, max_blocks, tens > 1 ? max_blocks - 4 : 0, tens};
    int64_t cache[4] = {n * max_blocks, heads, BLOCK, hd};
    double size = (double)dtype_bytes(dtype), all = (double)(n * length), once = all - (double)((n - (n + tens - 1) / tens) * p.shared_blocks * BLOCK);
    double keys = (double)n * ((double)rows_each * (double)(length - rows_each) + 0.5 * (double)rows_each * (double)(rows_each + 1));
    paged_case c = {.q = rows_of(rows, width), .out = rows_of(rows, width), .n = copies_of(2 * size * all * (double)width),
                    .params = {.n_heads = heads, .n_kv_heads = heads, .scale = 0.11f, .is_few = rows_each == 1}};
    for (int i = 0; i < c.n; i++) c.k[i] = of_dtype(dtype, 4, cache, NULL), c.v[i] = of_dtype(dtype, 4, cache, NULL);
    c.tables = indices(2, (int64_t[]){n, max_blocks}, table_value, &p);
    c.seqs = indices(1, &rows, seq_value, &p);
    c.positions = indices(1, &rows, position_value, &p);
    report(do_paged, &c, size * (double)width * (2 * once + 2 * (double)rows), 4.0 * keys * (double)width);
}

static void do_append(void *arg, int i) {
    paged_case *c = arg;
    const ops_kv_places at = {&c->cos, &c->sin, &c->positions, &c->slots};
    must(ops_kv_append(ctx, &c->k[i % c->n], &c->v[i % c->n], &c->more_k, &c->more_v, &c->q, &at, c->params.n_heads,
                       c->params.n_kv_heads), NULL);
}

static void bench_append(int64_t rows, int heads, int64_t hd, int64_t half) {
    if (!wanted("kv_append of %lld rows", (long long)rows)) return;
    int64_t width = heads * hd, n_blocks_each = (rows + BLOCK - 1) / BLOCK, cache[4] = {n_blocks_each, heads, BLOCK, hd};
    paged_shape p = {1, 1, 1, 0, 1};
    double size = (double)dtype_bytes(dtype);
    paged_case c = {.q = rows_of(rows, width), .more_k = rows_of(rows, width), .more_v = rows_of(rows, width), .n = 2,
                    .params = {.n_heads = heads, .n_kv_heads = heads}};
    for (int i = 0; i < c.n; i++) c.k[i] = of_dtype(dtype, 4, cache, NULL), c.v[i] = of_dtype(dtype, 4, cache, NULL);
    c.positions = indices(1, &rows, position_value, &p);
    c.slots = indices(1, &rows, slot_value, &p);
    ops_tensor cos = floats(half), sin = floats(half);
    c.cos = tensor_reshape(&cos, 2, (int64_t[]){1, half});
    c.sin = tensor_reshape(&sin, 2, (int64_t[]){1, half});
    report(do_append, &c, size * (double)rows * (4.0 * (double)width + 2.0 * 2.0 * (double)(half * heads)), 0);
}

/* ---- rows -------------------------------------------------------------------------------------- */

typedef struct {
    ops_tensor x, out, w, b;
} rows_case;

static void do_norm(void *arg, int i) {
    rows_case *c = arg;
    (void)i;
    must(ops_layer_norm(ctx, &c->out, &c->x, &c->w, &c->b, 1e-6f), NULL);
}

static void bench_norm(int64_t rows, int64_t cols) {
    if (!wanted("layer_norm of %lld x %lld", (long long)rows, (long long)cols)) return;
    rows_case c = {rows_of(rows, cols), rows_of(rows, cols), floats(cols), floats(cols)};
    report(do_norm, &c, 2.0 * (double)dtype_bytes(dtype) * (double)(rows * cols), 0);
}

static void do_candidates(void *arg, int i) {
    rows_case *c = arg;
    (void)i;
    must(ops_candidates_rows(ctx, &c->out, &c->x, c->x.dims[1], NULL), NULL);
}

static void bench_candidates(int64_t rows, int64_t cols) {
    if (!wanted("candidates of %lld x %lld", (long long)rows, (long long)cols)) return;
    float *values = calloc((size_t)(rows * cols), sizeof *values);
    CHECK(values, "memory for logits");
    rng r = rng_make(4);
    for (int64_t i = 0; i < rows * cols; i++) values[i] = (float)(rng_unit(&r) - 0.5);
    rows_case c = {.x = of_dtype(OPS_DTYPE_F32, 2, (int64_t[]){rows, cols}, values),
                   .out = of_dtype(OPS_DTYPE_U8, 2, (int64_t[]){rows, sizeof(ops_candidates)}, NULL)};
    free(values);
    report(do_candidates, &c, 4.0 * (double)(rows * cols), 0);
}

/* ---- all --------------------------------------------------------------------------------------- */

static void bench_tower(int64_t pictures) {
    int64_t rows = pictures * 729;
    bench_linear("patch", rows, 588, 1152, 1152, false, false);
    bench_linear("qkv", rows, 1152, 3456, 3456, false, false);
    bench_linear("out", rows, 1152, 1152, 1152, true, false);
    bench_linear("fc1", rows, 1152, 4304, 0, false, false);
    bench_linear("fc2", rows, 4304, 1152, 1152, true, false);
    bench_full(pictures, 729, 16, 72);
    bench_norm(rows, 1152);
}

static void bench_prompts(int64_t n) {
    bench_linear("qkv+fc1", n * 789, 2560, 17920, 7680, false, false);
    bench_linear("out+fc2", n * 789, 12800, 2560, 2560, true, false);
    bench_paged(n, 789, 789, 1, 32, 80);
    bench_append(n * 789, 32, 80, 16);
    bench_norm(n * 789, 2560);
}

static void bench_decoding(int64_t rows) {
    bench_linear("qkv+fc1", rows, 2560, 17920, 7680, false, true);
    bench_linear("out+fc2", rows, 12800, 2560, 2560, true, true);
    bench_linear("head", rows, 2560, 51200, 51200, false, true);
    bench_paged(rows, 1, 800, 1, 32, 80);
    if (rows >= 10) bench_paged(rows, 1, 800, 10, 32, 80);
    bench_append(rows, 32, 80, 16);
    bench_norm(rows, 2560);
    bench_candidates(rows, 51200);
}

static void make_noise(void) {
    rng r = rng_make(1);
    noise = malloc((size_t)NOISE);
    CHECK(noise, "memory for numbers");
    const int64_t n = NOISE / (int64_t)dtype_bytes(dtype);
    const ops_tensor all = tensor_make(noise, OPS_PLACE_HOST, dtype, 1, &n);
    for (int64_t i = 0; i < n; i++) tensor_set_value(&all, i, (float)(rng_next(&r) >> 40) * 0x1p-23f - 1.0f);
}

int main(int argc, char **argv) {
    const char *device = "cuda";
    bool is_known = argc % 2 == 1;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--device") == 0) device = argv[i + 1];
        else if (strcmp(argv[i], "--only") == 0) only = argv[i + 1];
        else is_known = false;
    }
    if (!is_known) {
        (void)fputs("usage: device_bench [--device NAME] [--only TEXT]\n", stderr);
        return 2;
    }
    err e;
    if (ops_open(&ctx, &(ops_settings){.device = device}, &e) != STATUS_OK ||
        bench_ceilings_measure(&top, ctx, OPS_DTYPE_BF16, &e) != STATUS_OK) {
        (void)fprintf(stderr, "device_bench: %s\n", e.text);
        return 2;
    }
    dtype = ops_activation_dtype(ctx, OPS_DTYPE_BF16);
    (void)printf("%s, %s; %.1f TFLOP/s, %.0f GB/s\n", ops_device_text(ctx), dtype_name(dtype), top.flops / 1e12, top.bytes / 1e9);
    make_noise();
    static const int64_t pictures[] = {1, 8, 32}, prompts[] = {1, 8}, rows[] = {1, 8, 32, 64};
    for (size_t i = 0; i < sizeof pictures / sizeof *pictures; i++) bench_tower(pictures[i]);
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) bench_prompts(prompts[i]);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) bench_decoding(rows[i]);
    free(noise);
    ops_close(&ctx);
    return 0;
}
