/* Times the operators at the sizes of Mipha-3B. One line per case:
 *
 *     linear dtype=bf16 product=f32 rows=729 n_in=1152 n_out=3456 threads=2 ms=31.2 gflops=186.1 gbs=12.3
 *
 *     ops_bench [--threads N] [--simd NAME] [--only TEXT] [--clock wall|cpu]
 *
 * Each case is first checked at a few places against a double sum; a wrong one is not timed and the
 * program ends with 1. ms is the best of several rounds, after one round to warm up. gflops counts
 * useful multiply-adds twice; gbs counts the bytes of the weights or of keys and values, read once.
 * With --clock cpu time is the processor time of the program, which with one thread says more on a busy
 * machine. "peak" and "int8_peak" multiply one tile in L1, the ceiling for what computes; "read" is a plain loop over
 * 1 GiB, the ceiling for what streams. bench/torch_linear.py prints the same linear cases with PyTorch. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/check.h"
#include "base/rng.h"
#include "ops/cpu/pool.h"
#include "ops/cpu/simd/simd.h"
#include "ops/ops.h"

#define ROUND_MIN_US 300000 /* rounds are repeated for this long, at least three times */

static int n_threads = 1, n_wrong;
static clockid_t clock_kind = CLOCK_MONOTONIC;
static const char *only = "";
static ops_ctx *ctx;

static double now_us(void) {
    struct timespec t;
    CHECK(clock_gettime(clock_kind, &t) == 0, "the system has this clock");
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* Best time in microseconds of call(arg). */
static double best_us(void (*call)(void *), void *arg) {
    double best = (double)INFINITY;
    call(arg);
    double start = now_us(), now = start;
    for (int round = 0; round < 3 || now - start < ROUND_MIN_US; round++) {
        double before = now_us();
        call(arg);
        now = now_us();
        if (now - before < best) best = now - before;
    }
    return best;
}

static ops_tensor device_values(ops_block *block, ops_dtype dtype, int64_t rows, int64_t cols, uint64_t seed) {
    err e;
    CHECK(ops_block_open(ctx, block, ops_cut_bytes(dtype, rows * cols), &e) == STATUS_OK, "memory for the benchmark");
    ops_tensor t = ops_block_cut(block, dtype, 2, (int64_t[]){rows, cols});
    rng r = rng_make(seed);
    for (int64_t i = 0; i < rows * cols; i++) tensor_set_value(&t, i, (float)(rng_unit(&r) - 0.5));
    return t;
}

static ops_tensor device_floats(ops_block *block, int64_t rows, int64_t cols, uint64_t seed) {
    return device_values(block, OPS_DTYPE_F32, rows, cols, seed);
}

static bool near(double got, double want, double bound, const char *name) {
    if (fabs(got - want) <= bound) return true;
    (void)fprintf(stderr, "ops_bench: %s: got %.9g want %.9g\n", name, got, want);
    n_wrong++;
    return false;
}

static void must(status st) { CHECK(st == STATUS_OK, "an operator of the benchmark works"); }

/* ---- read ---------------------------------------------------------------------------------- */

#define READ_BYTES   ((size_t)1 << 30)
#define READ_PIECES  64
#define READ_LANES   32

typedef struct {
    const uint32_t *data;
    pool *p;
    uint32_t sums[READ_PIECES];
} read_job;

static void read_piece(void *arg, int64_t piece, int thread) {
    read_job *j = arg;
    (void)thread;
    size_t n = READ_BYTES / sizeof *j->data / READ_PIECES;
    const uint32_t *p = j->data + (size_t)piece * n;
    uint32_t lanes[READ_LANES] = {0}, sum = 0;
    for (size_t i = 0; i < n; i += READ_LANES)
        for (size_t l = 0; l < READ_LANES; l++) lanes[l] += p[i + l];
    for (size_t l = 0; l < READ_LANES; l++) sum += lanes[l];
    j->sums[piece] = sum;
}

static void read_all(void *arg) {
    read_job *j = arg;
    pool_run(j->p, READ_PIECES, read_piece, j);
}

static void bench_read(void) {
    if (!strstr("read", only)) return;
    err e;
    ops_block block;
    read_job j = {0};
    must(ops_block_open(ctx, &block, READ_BYTES, &e));
    must(pool_open(&j.p, n_threads, &e));
    memset(block.data, 1, READ_BYTES);
    j.data = block.data;
    double us = best_us(read_all, &j);
    printf("read bytes=%zu threads=%d ms=%.3f gbs=%.2f\n", READ_BYTES, n_threads, us / 1e3,
           (double)READ_BYTES / us / 1e3);
    pool_close(&j.p);
    ops_block_close(&block);
}

/* ---- peak ---------------------------------------------------------------------------------- */

#define PEAK_ROUNDS 2000
#define PEAK_K      128 /* 128 x 32 weights are 16 KiB, half of the smallest L1 */

typedef struct {
    const simd_kernels *simd;
    float out[TILE_ROWS_MAX * PANEL_COLS], x[TILE_ROWS_MAX * TILE_STRIDE], w[PEAK_K * PANEL_COLS];
} peak_job;

static void multiply_one_tile(void *arg) {
    peak_job *j = arg;
    for (int i = 0; i < PEAK_ROUNDS; i++)
        j->simd->tile(j->out, PANEL_COLS, j->x, j->simd->tile_rows, j->w, PANEL_COLS, OPS_DTYPE_F32,
                      PEAK_K, PANEL_COLS, false);
}

/* The same with a tile of the int8 product: 8 blocks of a panel are 8.5 KiB. */
typedef struct {
    const simd_product *kernels;
    void *x;
    float out[PRODUCT_ROWS_MAX * PANEL_COLS];
    unsigned char w[8 * (QUANT_HEAD + QUANT_BLOCK * PANEL_COLS)];
} int8_peak_job;

static void multiply_one_int8_tile(void *arg) {
    int8_peak_job *j = arg;
    if (j->kernels->enter) j->kernels->enter();
    for (int i = 0; i < PEAK_ROUNDS; i++)
        j->kernels->tile(j->out, j->x, j->kernels->tile_rows, j->w, OPS_DTYPE_Q8, 8 * QUANT_BLOCK, false, NULL);
    if (j->kernels->leave) j->kernels->leave();
}

static void bench_int8_peak(const char *simd) {
    static int8_peak_job j;
    if (!strstr("peak", only)) return;
    j.kernels = simd_choose(simd)->int8;
    j.x = calloc(1, j.kernels->tile_bytes);
    CHECK(j.x, "memory for the benchmark");
    double us = best_us(multiply_one_int8_tile, &j);
    printf("int8_peak threads=1 gflops=%.1f\n",
           2.0 * PEAK_ROUNDS * 8 * QUANT_BLOCK * PANEL_COLS * j.kernels->tile_rows / us / 1e3);
    free(j.x);
}

static void bench_peak(const char *simd) {
    static peak_job j; /* zeroes; the time does not depend on the values */
    if (!strstr("peak", only)) return;
    j.simd = simd_choose(simd);
    double us = best_us(multiply_one_tile, &j);
    printf("peak threads=1 gflops=%.1f\n",
           2.0 * PEAK_ROUNDS * PEAK_K * PANEL_COLS * j.simd->tile_rows / us / 1e3);
}

/* ---- linear -------------------------------------------------------------------------------- */

typedef struct {
    ops_tensor out, x;
    ops_matrix *m;
    ops_act act;
} linear_call;

static ops_product product = OPS_PRODUCT_F32;

static void do_linear(void *arg) {
    linear_call *c = arg;
    must(ops_linear(ctx, &c->out, &c->x, c->m, &(ops_linear_params){.act = c->act}));
}

/* Rows of w as `dtype` holds them. */
static void *stored_weights(const float *w, ops_dtype dtype, int64_t n_out, int64_t n_in) {
    size_t row_bytes = dtype_row_bytes(dtype, n_in), size = dtype_bytes(dtype);
    unsigned char *stored = malloc((size_t)n_out * row_bytes);
    CHECK(stored, "memory for the benchmark");
    for (int64_t o = 0; o < n_out; o++) {
        unsigned char *row = stored + (size_t)o * row_bytes;
        if (dtype_is_quantized(dtype)) quantize_row(row, dtype, w + o * n_in, n_in);
        else if (dtype == OPS_DTYPE_F32) memcpy(row, w + o * n_in, row_bytes);
        else
            for (int64_t i = 0; i < n_in; i++) {
                float v = w[o * n_in + i];
                uint16_t half = dtype == OPS_DTYPE_F16 ? f32_to_f16(v) : f32_to_bf16(v);
                memcpy(row + (size_t)i * size, &half, size);
            }
    }
    return stored;
}

/* A few outputs against a double sum over the stored weights; what a reduced product may lose besides is a share of the
 * magnitude: both sides rounded to 9 bits, to 127 steps of at most four times the mean, or to 4 bits. */
static bool is_right(const linear_call *c, const ops_tensor *w, const char *name) {
    static const double losses[OPS_PRODUCT_COUNT] = {0.0, 0x1p-7, 0.02, 0.13};
    int64_t n_in = w->dims[1];
    rng r = rng_make(3);
    for (int i = 0; i < 20 && c->act == OPS_ACT_NONE; i++) {
        int64_t row = (int64_t)rng_below(&r, (uint64_t)c->x.dims[0]), col = (int64_t)rng_below(&r, (uint64_t)w->dims[0]);
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < n_in; k++) {
            double term = (double)tensor_value(w, col * n_in + k) * (double)((float *)c->x.data)[row * n_in + k];
            sum += term;
            magnitude += fabs(term);
        }
        if (!near((double)((float *)c->out.data)[row * w->dims[0] + col], sum,
                  ((double)(2 * n_in + 2) * 0x1p-24 + losses[product]) * magnitude, name))
            return false;
    }
    return true;
}

static void bench_linear(ops_dtype dtype, int64_t rows, int64_t n_in, int64_t n_out, ops_act act) {
    char name[160];
    (void)snprintf(name, sizeof name, "linear dtype=%s product=%s rows=%lld n_in=%lld n_out=%lld act=%d", dtype_name(dtype),
                   ops_product_name(product), (long long)rows, (long long)n_in, (long long)n_out, (int)act);
    if (!strstr(name, only)) return;
    err e;
    ops_block bx, bo, bw;
    linear_call c = {.x = device_floats(&bx, rows, n_in, 1), .act = act};
    c.out = device_floats(&bo, rows, n_out, 2);
    ops_tensor values = device_floats(&bw, n_out, n_in, 3);
    void *w = stored_weights(values.data, dtype, n_out, n_in);
    ops_tensor tw = tensor_make(w, OPS_PLACE_HOST, dtype, 2, (int64_t[]){n_out, n_in});
    must(ops_matrix_open_as(ctx, &c.m, &tw, NULL, product, &e));
    do_linear(&c);
    if (is_right(&c, &tw, name)) {
        double us = best_us(do_linear, &c);
        printf("%s threads=%d ms=%.3f gflops=%.1f gbs=%.2f\n", name, n_threads, us / 1e3,
               2.0 * (double)rows * (double)(n_in * n_out) / us / 1e3, (double)ops_matrix_bytes(c.m) / us / 1e3);
        (void)fflush(stdout);
    }
    ops_matrix_close(ctx, &c.m);
    ops_block_close(&bx);
    ops_block_close(&bo);
    ops_block_close(&bw);
    free(w);
}

/* ---- attention ----------------------------------------------------------------------------- */

typedef struct {
    ops_tensor out, q, k, v, tables, row_seq, row_pos;
    int64_t length;
    ops_attention_params params;
} attention_call;

static void do_full(void *arg) {
    attention_call *c = arg;
    must(ops_attention(ctx, &c->out, &c->q, &c->k, &c->v, c->length, &c->params));
}

static void do_paged(void *arg) {
    attention_call *c = arg;
    must(ops_attention_paged(ctx, &c->out, &c->q, &c->k, &c->v, &c->tables, &c->row_seq,
                             &c->row_pos, &c->params));
}

static void report_attention(const char *name, attention_call *c, void (*call)(void *), double keys,
                             double kv_bytes) {
    double us = best_us(call, c);
    double flops = 4.0 * keys * (double)c->q.dims[1];
    printf("%s threads=%d ms=%.3f gflops=%.1f gbs=%.2f\n", name, n_threads, us / 1e3,
           flops / us / 1e3, kv_bytes / us / 1e3);
}

static void bench_full(int64_t length, int heads, int64_t hd, bool may_round) {
    char name[128];
    (void)snprintf(name, sizeof name, "attention length=%lld heads=%d hd=%lld round=%d", (long long)length,
                   heads, (long long)hd, may_round);
    if (!strstr(name, only)) return;
    ops_block b[4];
    attention_call c = {.length = length, .params = {heads, heads, 0.11f, .may_round = may_round}};
    c.q = device_floats(&b[0], length, heads * hd, 1);
    c.k = device_floats(&b[1], length, heads * hd, 2);
    c.v = device_floats(&b[2], length, heads * hd, 3);
    c.out = device_floats(&b[3], length, heads * hd, 4);
    report_attention(name, &c, do_full, (double)length * (double)length,
                     8.0 * (double)(length * heads * hd));
    for (int i = 0; i < 4; i++) ops_block_close(&b[i]);
}

/* n_seqs sequences that share their first `shared` positions, each with rows_each rows at the end. */
static void bench_paged(int64_t n_seqs, int64_t rows_each, int64_t length, int64_t shared, int heads,
                        int64_t hd, ops_dtype cached, bool may_round) {
    enum { BLOCK = 16 };
    char name[160];
    (void)snprintf(name, sizeof name,
                   "attention_paged seqs=%lld rows=%lld keys=%lld shared=%lld heads=%d hd=%lld cache=%s round=%d",
                   (long long)n_seqs, (long long)rows_each, (long long)length, (long long)shared,
                   heads, (long long)hd, dtype_name(cached), may_round);
    if (!strstr(name, only)) return;
    int64_t max_blocks = (length + BLOCK - 1) / BLOCK, rows = n_seqs * rows_each, kw = heads * hd;
    ops_block b[4], bi;
    err e;
    attention_call c = {.params = {heads, heads, 0.11f, .is_few = rows_each == 1, .may_round = may_round}};
    c.q = device_floats(&b[0], rows, kw, 1);
    c.out = device_floats(&b[1], rows, kw, 2);
    c.k = device_values(&b[2], cached, n_seqs * max_blocks * BLOCK, kw, 3);
    c.v = device_values(&b[3], cached, n_seqs * max_blocks * BLOCK, kw, 4);
    int64_t cache[4] = {n_seqs * max_blocks, heads, BLOCK, hd};
    c.k = tensor_reshape(&c.k, 4, cache);
    c.v = tensor_reshape(&c.v, 4, cache);
    must(ops_block_open(ctx, &bi,
                        ops_cut_bytes(OPS_DTYPE_I32, n_seqs * max_blocks) +
                            2 * ops_cut_bytes(OPS_DTYPE_I32, rows), &e));
    c.tables = ops_block_cut(&bi, OPS_DTYPE_I32, 2, (int64_t[]){n_seqs, max_blocks});
    c.row_seq = ops_block_cut(&bi, OPS_DTYPE_I32, 1, &rows);
    c.row_pos = ops_block_cut(&bi, OPS_DTYPE_I32, 1, &rows);
    double keys = 0;
    for (int64_t s = 0; s < n_seqs; s++)
        for (int64_t i = 0; i < max_blocks; i++)
            ((int32_t *)c.tables.data)[s * max_blocks + i] =
                (int32_t)((i < shared / BLOCK ? 0 : s) * max_blocks + i);
    for (int64_t r = 0; r < rows; r++) {
        ((int32_t *)c.row_seq.data)[r] = (int32_t)(r / rows_each);
        ((int32_t *)c.row_pos.data)[r] = (int32_t)(length - rows_each + r % rows_each);
        keys += (double)((int32_t *)c.row_pos.data)[r] + 1;
    }
    report_attention(name, &c, do_paged, keys,
                     2.0 * (double)dtype_bytes(cached) * (double)(kw * (shared + n_seqs * (length - shared))));
    for (int i = 0; i < 4; i++) ops_block_close(&b[i]);
    ops_block_close(&bi);
}

/* ---- norms --------------------------------------------------------------------------------- */

typedef struct {
    ops_tensor out, x, w, b;
} norm_call;

static void do_norm(void *arg) {
    norm_call *c = arg;
    must(ops_layer_norm(ctx, &c->out, &c->x, &c->w, &c->b, 1e-6f));
}

static void bench_norm(int64_t rows, int64_t cols) {
    char name[96];
    (void)snprintf(name, sizeof name, "layer_norm rows=%lld cols=%lld", (long long)rows,
                   (long long)cols);
    if (!strstr(name, only)) return;
    ops_block b[4];
    norm_call c = {.out = device_floats(&b[0], rows, cols, 1), .x = device_floats(&b[1], rows, cols, 2)};
    ops_tensor w = device_floats(&b[2], 1, cols, 3), bias = device_floats(&b[3], 1, cols, 4);
    c.w = tensor_reshape(&w, 1, &cols);
    c.b = tensor_reshape(&bias, 1, &cols);
    double us = best_us(do_norm, &c);
    printf("%s threads=%d ms=%.3f gbs=%.2f\n", name, n_threads, us / 1e3,
           8.0 * (double)(rows * cols) / us / 1e3);
    for (int i = 0; i < 4; i++) ops_block_close(&b[i]);
}

/* False: what the program does not know. */
static bool read_options(int argc, char **argv, const char **simd) {
    if (argc % 2 == 0) return false;
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (strcmp(name, "--threads") == 0 && atoi(value) > 0) n_threads = atoi(value);
        else if (strcmp(name, "--simd") == 0) *simd = value;
        else if (strcmp(name, "--only") == 0) only = value;
        else if (strcmp(name, "--clock") == 0 && strcmp(value, "cpu") == 0) clock_kind = CLOCK_PROCESS_CPUTIME_ID;
        else if (strcmp(name, "--clock") != 0 || strcmp(value, "wall") != 0) return false;
    }
    return true;
}

int main(int argc, char **argv) {
    const char *simd = NULL;
    if (!read_options(argc, argv, &simd)) {
        (void)fputs("usage: ops_bench [--threads N] [--simd NAME] [--only TEXT] [--clock wall|cpu]\n", stderr);
        return 2;
    }
    err e;
    ops_settings settings = {.device = "cpu", .n_threads = n_threads, .simd = simd};
    if (ops_open(&ctx, &settings, &e) != STATUS_OK) {
        (void)fprintf(stderr, "ops_bench: %s\n", e.text);
        return 2;
    }
    printf("device %s\n", ops_device_text(ctx));
    bench_peak(simd);
    bench_int8_peak(simd);
    bench_read();
    static const ops_dtype dtypes[] = {OPS_DTYPE_F32, OPS_DTYPE_BF16, OPS_DTYPE_F16, OPS_DTYPE_Q8, OPS_DTYPE_Q4};
    static const int64_t shapes[][3] = {{729, 1152, 3456}, {729, 1152, 4304}, {729, 4304, 1152}, {1, 2560, 10240},
                                        {8, 2560, 10240},  {64, 2560, 10240}, {789, 2560, 10240}, {789, 10240, 2560}};
    for (size_t d = 0; d < sizeof dtypes / sizeof *dtypes; d++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (int p = 0; p < OPS_PRODUCT_COUNT; p++) {
                product = (ops_product)p;
                bench_linear(dtypes[d], shapes[i][0], shapes[i][1], shapes[i][2], OPS_ACT_NONE);
            }
    product = OPS_PRODUCT_F32;
    bench_linear(OPS_DTYPE_BF16, 729, 1152, 4304, OPS_ACT_GELU_TANH);
    bench_linear(OPS_DTYPE_BF16, 729, 1152, 4304, OPS_ACT_GELU_ERF);
    for (int r = 0; r < 2; r++) bench_full(729, 16, 72, r == 1);
    static const ops_dtype caches[] = {OPS_DTYPE_F32, OPS_DTYPE_BF16, OPS_DTYPE_F16, OPS_DTYPE_E4M3};
    for (size_t i = 0; i < sizeof caches / sizeof *caches; i++) {
        for (int r = 0; r < 2; r++) bench_paged(1, 789, 789, 789, 32, 80, caches[i], r == 1);
        for (int r = 0; r < 2; r++) bench_paged(1, 64, 789, 789, 32, 80, caches[i], r == 1);
        bench_paged(1, 1, 789, 789, 32, 80, caches[i], false);
        bench_paged(10, 1, 789, 736, 32, 80, caches[i], false);
        bench_paged(10, 1, 789, 0, 32, 80, caches[i], false);
    }
    bench_norm(729, 1152);
    bench_norm(1, 2560);
    ops_close(&ctx);
    return n_wrong ? 1 : 0;
}
