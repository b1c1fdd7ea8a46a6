/* Tensor operators: one checked front, one table of functions per backend.
 *
 *     ops_ctx *ctx;
 *     st = ops_open(&ctx, &(ops_settings){.device = "cpu", .n_threads = 2}, &e);
 *     st = ops_block_open(ctx, &block, bytes, &e);
 *     ops_tensor x = ops_block_cut(&block, OPS_DTYPE_F32, 2, (int64_t[]){rows, cols});
 *     st = ops_layer_norm(ctx, &x, &x, &w, &b, 1e-5f);
 *     ops_close(&ctx);
 *
 * Rules that hold for every operator:
 * - Calls are ordered on the context; they may return before the device is done. ops_sync waits for all of them,
 *   ops_mark_wait for those before a mark, and nothing else waits. Uploads and downloads are the only crossings between
 *   host and device.
 * - All tensors are on the device (OPS_PLACE_DEVICE) except where a comment says host; a wrong place,
 *   dtype or shape is BAD_SHAPE or UNSUPPORTED, never a crash.
 * - Activations are of the one dtype that ops_activation_dtype answers for a network's weights; the tensors of a call
 *   share it. Keys and values are, too, or are kept in another that ops_takes_cache allows. Weights of norms, tables of angles and positions and logits are f32 everywhere,
 *   and so is every sum: a result is rounded to the activations' dtype once, at its end.
 * - Batch-invariant, but where ops_settings.is_fast gives it up: for each output row the order of every reduction depends only on that row's own
 *   length, never on how many other rows there are, on threads, or on how work was cut into calls.
 * - Tensors are contiguous. Where a comment says "view", rows may be columns of wider rows (tensor_columns).
 * - No operator knows a model: layer numbers, head counts and token ids never appear in ops/.
 * - One context belongs to one thread at a time. Two contexts may live side by side. */
#ifndef OPS_OPS_H
#define OPS_OPS_H

#include "base/err.h"
#include "ops/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ops_ctx ops_ctx;

typedef struct {
    const char *device; /* "cpu"; "cuda" or "cuda:N" where built with it */
    int n_threads;      /* CPU: compute threads, 1..256; 0: one per available core */
    bool is_fast;       /* CUDA: products go the way, and by the algorithm, that suits how many rows there are, so that a row's
                           bits may depend on its neighbours. CPU: nothing would be faster */
    const char *simd;   /* CPU: NULL picks the best; "generic", "avx2", "avx512", "vnni" or "amx" force one */
} ops_settings;

MUST_USE status ops_open(ops_ctx **ctx, const ops_settings *settings, err *e);
void ops_close(ops_ctx **ctx);
const char *ops_device_text(const ops_ctx *ctx); /* "cpu avx512, 2 threads" */

/* How many of them there are: "cpu", 1; "cuda", the GPUs of this machine, 0 where this was built without CUDA. */
int ops_device_count(const char *name);

/* What the activations of a network are cut in when its weights are stored like this. CPU: f32. CUDA: f32, f16 and
 * bf16 stay what they are, and q8 and q4 go with bf16. */
ops_dtype ops_activation_dtype(const ops_ctx *ctx, ops_dtype stored);

/* Whether keys and values can be kept in this dtype beside activations of that one, which itself always can. */
bool ops_takes_cache(const ops_ctx *ctx, ops_dtype activations, ops_dtype cache);

/* Called after each operator that had something to do, on the thread that called the operator: for a caller
 * who must tell a long computation from a stuck one. It does not call ops. NULL: none. */
typedef void ops_progress(void *user);
void ops_set_progress(ops_ctx *ctx, ops_progress *progress, void *user);

/* ---- memory -------------------------------------------------------------------------------- */

typedef struct {
    ops_ctx *ctx;
    void *data;
    size_t used_bytes, size_bytes;
} ops_block;

/* Device memory of one lifetime, zeroed, taken at once. Errors: NO_MEMORY. */
MUST_USE status ops_block_open(ops_ctx *ctx, ops_block *block, size_t size_bytes, err *e);
void ops_block_close(ops_block *block);

/* Bytes a cut of this many takes, alignment included: for summing up before opening. */
size_t ops_cut_bytes(ops_dtype dtype, int64_t n_elements);

/* The next piece of a block. A block that is too small is our own mistake (CHECK). */
ops_tensor ops_block_cut(ops_block *block, ops_dtype dtype, int n_dims, const int64_t *dims);

/* Host memory that the device copies from and to without a stop on the way: zeroed, 64-aligned. Any thread may use
 * it; open and close are the context's thread's, and nothing that crosses is under way at close. Errors: NO_MEMORY,
 * DEVICE. */
MUST_USE status ops_host_open(ops_ctx *ctx, void **host, size_t size_bytes, err *e);
void ops_host_close(ops_ctx *ctx, void **host, size_t size_bytes); /* NULL inside is fine */

/* tensor_bytes of the tensor, which is no view of columns. From memory of ops_host_open an upload may still read when it returns: that memory must
 * not be written again before an ops_sync that comes after. From any other memory it has read when it returns.
 * What a download writes is there after the ops_sync that comes next, whatever the memory. */
MUST_USE status ops_upload(ops_ctx *ctx, ops_tensor *out, const void *host);
MUST_USE status ops_download(ops_ctx *ctx, void *host, const ops_tensor *x);
MUST_USE status ops_sync(ops_ctx *ctx);

/* Crossings beside operators: what one run of a network begins with and ends with moves while another is computed.
 *
 *     st = ops_upload_ahead(ctx, &x, host);         // waits for nothing that was called before
 *     st = ops_linear(ctx, &y, &x, w, NULL);        // waits for it
 *     st = ops_download_behind(ctx, host, &y);      // waits for what was called before; nothing waits for it
 *     st = ops_mark_set(ctx, mark);                 // the place in the order of calls up to which
 *     st = ops_mark_wait(ctx, mark);                // all is done
 *
 * Nothing orders those two crossings and the rest but what stands there. So x is used by nobody when ahead is called, and
 * an ops_sync lies behind the opening of its block; y is written by nobody, and host memory left alone, until a mark set
 * behind the crossing is reached, or ops_sync. From memory that is not of ops_host_open they are ops_upload and
 * ops_download; so they are on the CPU, where calls have done all when they return. */
MUST_USE status ops_upload_ahead(ops_ctx *ctx, ops_tensor *out, const void *host);
MUST_USE status ops_download_behind(ops_ctx *ctx, void *host, const ops_tensor *x);

bool ops_runs_ahead(const ops_ctx *ctx); /* whether calls return before they are done. CPU: no */

/* CPU: NULL, which all of these take. A mark that was never set is reached. Errors of the wait are those of ops_sync;
 * BAD_ARGUMENT may be about a call behind the mark. */
typedef struct ops_mark ops_mark;
MUST_USE status ops_mark_open(ops_ctx *ctx, ops_mark **mark, err *e); /* Errors: NO_MEMORY, DEVICE */
MUST_USE status ops_mark_set(ops_ctx *ctx, ops_mark *mark);
MUST_USE status ops_mark_wait(ops_ctx *ctx, ops_mark *mark);
void ops_mark_close(ops_ctx *ctx, ops_mark **mark); /* NULL inside is fine */

/* ---- graphs -------------------------------------------------------------------------------- */

/* Operators that are recorded once and started together: for a run of them that costs less than its starts.
 *
 *     st = ops_graph_begin(ctx, &e);                          // operators are checked and recorded, and do not run
 *     st = ops_linear(ctx, &y, &x, w, NULL);                  // ...
 *     st = ops_graph_end(ctx, &graph, &e);
 *     st = ops_graph_run(ctx, graph);                         // as often as wanted
 *
 * Which tensors are read and written, their shapes and all parameters are those of the recording; what the tensors hold,
 * indices too, is what they hold when the graph runs. Tensors and matrices stay open as long as a graph names them.
 *
 * While a graph is recorded, what is no operator (memory, crossings, matrices, ops_sync), and an operator that reads host
 * memory, is UNSUPPORTED. The same operators with the same shapes have run before: one that needs more memory of the
 * device's own than it has is UNSUPPORTED as well. After an operator has failed the caller still ends the recording. */
typedef struct ops_graph ops_graph;

bool ops_has_graphs(const ops_ctx *ctx); /* CPU: no, and then all of these are UNSUPPORTED */
MUST_USE status ops_graph_begin(ops_ctx *ctx, err *e);

/* graph NULL: what was recorded is thrown away. Errors: NO_MEMORY, DEVICE; the recording is over then, too. */
MUST_USE status ops_graph_end(ops_ctx *ctx, ops_graph **graph, err *e);

/* False when the device's own memory has moved since the recording: run the operators, or record them anew. */
bool ops_graph_is_current(const ops_ctx *ctx, const ops_graph *graph);

/* In order with all other calls. Progress is told once. A graph that is not current is BAD_ARGUMENT. */
MUST_USE status ops_graph_run(ops_ctx *ctx, const ops_graph *graph);
void ops_graph_close(ops_ctx *ctx, ops_graph **graph); /* NULL inside is fine */

/* ---- matrices ------------------------------------------------------------------------------ */

/* A weight matrix in the form the backend multiplies fastest; opaque. */
typedef struct ops_matrix ops_matrix;

#define OPS_INPUTS_MAX (INT64_C(1) << 19) /* n_in of a matrix */

/* Packs w [n_out, n_in] (host, f32, f16, bf16, q8 or q4; unaligned data is fine) and bias [n_out] (host, f32, f16 or
 * bf16, or NULL). Values are kept exactly. w may be unmapped afterwards. Errors: NO_MEMORY, BAD_SHAPE. */
MUST_USE status ops_matrix_open(ops_ctx *ctx, ops_matrix **matrix, const ops_tensor *w,
                                const ops_tensor *bias, err *e);

/* How a matrix is multiplied. What each means is the same on every processor; one with the right instructions is faster.
 * Whatever the product, a row's bits do not depend on other rows, on threads or on how work is cut. */
typedef enum {
    OPS_PRODUCT_F32,  /* every weight and every value of x as it is */
    OPS_PRODUCT_BF16, /* both rounded to bf16 (nearest even), exact products, sums in f32 */
    OPS_PRODUCT_INT8, /* both as whole numbers with scales: see ops_linear */
    OPS_PRODUCT_FP8,  /* both as e4m3 with a scale a row and an output: see ops_linear */
    OPS_PRODUCT_COUNT
} ops_product;

const char *ops_product_name(ops_product product); /* "f32", "bf16", "int8", "fp8" */

/* ops_matrix_open with a product of that kind; F32 is ops_matrix_open. BF16 keeps every weight as bf16, blocks too. INT8
 * keeps q8 and q4 as they are and puts other weights into q8. FP8 makes codes of the values of any weights, blocks too.
 * Errors: UNSUPPORTED where the device has no such product. */
MUST_USE status ops_matrix_open_as(ops_ctx *ctx, ops_matrix **matrix, const ops_tensor *w, const ops_tensor *bias,
                                   ops_product product, err *e);

/* The weights of a matrix that lies in several places: what asks for them goes from there to where the device wants them,
 * and the matrix is never in memory as a whole. */
typedef struct {
    ops_dtype dtype; /* f32, f16, bf16, q8 or q4 */
    int64_t n_out, n_in;
    /* Writes the weights of outputs [first, first + n) to out, one output `stride` bytes behind the other, and nothing else;
     * of f32 and halves, each stands where such a value may. Several threads ask at once, in any order, within the call that
     * opens the matrix. */
    void (*read)(const void *user, unsigned char *out, size_t stride, int64_t first, int64_t n);
    const void *user;
} ops_rows;

/* ops_matrix_open_as of such weights. */
MUST_USE status ops_matrix_open_rows(ops_ctx *ctx, ops_matrix **matrix, const ops_rows *rows, const ops_tensor *bias,
                                     ops_product product, err *e);
void ops_matrix_close(ops_ctx *ctx, ops_matrix **matrix);
size_t ops_matrix_bytes(const ops_matrix *matrix);

typedef enum {
    OPS_ACT_NONE,
    OPS_ACT_GELU_TANH,  /* 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
    OPS_ACT_GELU_ERF,   /* 0.5 x (1 + erf(x / sqrt 2)) */
    OPS_ACT_QUICK_GELU, /* x sigmoid(1.702 x) */
    OPS_ACT_SILU,       /* x sigmoid(x) */
    OPS_ACT_COUNT
} ops_act;

typedef struct {
    ops_act act;
    int64_t act_from;      /* the first of the outputs that act is for; the others stay as they are */
    const ops_tensor *add; /* [rows, n_out] as out, added to the sum; only without act. NULL: nothing */
    bool is_few;           /* the rows are of a kind that comes in small numbers: tokens being decoded, rows whose logits are
                              wanted */
} ops_linear_params;

/* out[r,o] = act(bias[o] + sum over i of x[r,i] * w[o,i]) + add[r,o]
 * out [rows, n_out], x [rows, n_in], a view; out f32 or as x. params NULL: all zero. Neither x nor add overlaps out.
 *
 * For few rows a backend may have another way that reads the weights at the speed of memory, in an order of its own. Which
 * of the two a row takes is a fact about the row, never about how many there are: only so a row's bits do not depend on
 * its neighbours. CPU: the same bits.
 *
 * CPU: the sum runs over i in order in one f32 accumulator per element (fused multiply-add where the
 * machine has it), whatever rows is. Relative to sum |x*w| the error is at most (n_in + 2) * 2^-24,
 * before the activation. CUDA: the order is another one, and as fixed.
 *
 * BF16: the same of rounded values; processors with bf16 instructions add in another fixed order, and there what is below
 * 2^-126 counts as zero.
 * INT8: x is cut into runs of OPS_INT8_RUN. A run's scale is its largest magnitude / 127, in f32, and a code is x * (127 /
 * that magnitude) rounded to nearest even. Weights are coded in the same way when the matrix is opened, those in q8, too,
 * from what they stand for; those in q4 stay as they are. Codes are multiplied and added exactly over a run; the sum is
 * multiplied by the weights' scale, and that by the scale of x and added to out, in f32 and in order. Of weights in q4 it is
 * the sum over each QUANT_BLOCK that is exact; times the block's scale they are added over the run in f32 first. A run
 * whose largest magnitude is below OPS_TINY counts as zeros; a row of x with a run that has a value that is not finite is
 * NaN, and so it is with outputs.
 * FP8: a row of x has one scale, its largest magnitude / 448, in f32, and a code is x * (448 / that magnitude), both steps
 * rounded to f32, and then to e4m3 (f32_to_e4m3). The weights of an output are coded in the same way when the matrix is
 * opened. Products of codes are exact and their sum is in f32; out is act(sum * the output's scale * the row's scale +
 * bias) + add, from left to right in f32. A row whose largest magnitude is below OPS_TINY counts as zeros; one with a value
 * that is not finite is NaN; and so it is with outputs. CUDA: tensor cores that multiply e4m3 add up with fewer bits than
 * f32 has, to about 2^-12 of the sum of magnitudes. */
#define OPS_INT8_RUN 256
MUST_USE status ops_linear(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x,
                           const ops_matrix *matrix, const ops_linear_params *params);

/* Whether in ops_linear rows of a kind that comes in small numbers go another way here: where not, a caller with rows of
 * both kinds needs one call. */
bool ops_tells_few(const ops_ctx *ctx);

/* ---- rows ---------------------------------------------------------------------------------- */

/* out[r,c] = (x[r,c] - mean_r) / sqrt(var_r + eps) * w[c] + b[c], biased variance. out may be x. */
MUST_USE status ops_layer_norm(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x,
                               const ops_tensor *w, const ops_tensor *b, float eps);

/* out[r,c] = x[r,c] / sqrt(mean over c of x[r,c]^2 + eps) * w[c]. out may be x. */
MUST_USE status ops_rms_norm(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x,
                             const ops_tensor *w, float eps);

/* out[r,c] = act(x[r,c]) * x[r, n + c]   x [rows, 2 n], out [rows, n]: the gate stands left. */
MUST_USE status ops_gate(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, ops_act act);

/* out[r,c] = act(x[r,c]); of f32 the bits that ops_linear gives with it; views; out may be x. */
MUST_USE status ops_activate(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, ops_act act);

/* out[r,c] = x[r,c] * w[c]; out may be x. */
MUST_USE status ops_scale_columns(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x,
                                  const ops_tensor *w);

/* out = a + b, same shape; out may be a or b. */
MUST_USE status ops_add(ops_ctx *ctx, ops_tensor *out, const ops_tensor *a, const ops_tensor *b);

/* out[r,c] = x[r,c] + table[r mod n_table,c]; x [rows, cols], table [n_table, cols] f32 or as x; out may be x. */
MUST_USE status ops_add_table(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x,
                              const ops_tensor *table);

/* out[r,:] = table[ids[r],:]; ids [rows] i32 on the device; table f32, f16 or bf16, a view; out of an activations' dtype.
 * An id outside the table gives BAD_ARGUMENT here, before anything is written, or at the next ops_sync, without the
 * rows it names. */
MUST_USE status ops_gather_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *table,
                                const ops_tensor *ids);

/* out[to[r],:] = x[r,:]; to [rows] i32 on the device. */
MUST_USE status ops_scatter_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x,
                                 const ops_tensor *to);

/* Between f32, f16 and bf16, rounding to nearest even; same shape. */
MUST_USE status ops_cast(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x);

#define OPS_CANDIDATES_MAX 64

/* What is wanted of a row of numbers. */
typedef struct {
    int32_t n;            /* candidates, 1 .. OPS_CANDIDATES_MAX */
    float temperature[2]; /* of the totals; 0: that one is not wanted */
} ops_candidates_wanted;

/* A row's values in the order (value falling, column rising), as far as they were wanted, and its totals. */
typedef struct {
    double total[2]; /* sum over the row of exp((value - largest) / temperature); 0 where it is not wanted */
    int32_t bad;     /* the first column whose value is infinite or not a number, and nothing more is told; -1: none */
    int32_t n;       /* what is there of the next two: as wanted, or the row's length if that is less */
    int32_t column[OPS_CANDIDATES_MAX];
    float value[OPS_CANDIDATES_MAX];
} ops_candidates;

/* The candidates of the first n values of each row. out [rows, sizeof(ops_candidates)] u8, x [rows, cols] f32, n at most
 * cols; wanted [rows], on the host and read before this returns; NULL: the first candidate of each, no totals.
 * Totals are sums in double in a fixed order, which is that of the columns on the CPU: off by at most (n + 8) * 2^-52 of
 * themselves. */
MUST_USE status ops_candidates_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, int64_t n,
                                    const ops_candidates_wanted *wanted);

/* ---- vision -------------------------------------------------------------------------------- */

/* Cuts pictures into patches and makes values of their pixels: out [n*rows*cols, 3*p*p] of an activations' dtype,
 * x [n, height, width, 3] u8, levels [3, 256] f32: what each byte of each channel becomes. rows = height / p,
 * cols = width / p (a remainder is left unread); element order is channel, y, x, which is the order of a flattened
 * convolution kernel. */
MUST_USE status ops_patch_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, const ops_tensor *levels, int patch);

typedef struct {
    int n_heads;
    int n_kv_heads; /* divides n_heads */
    float scale;    /* multiplies q.k; above 0, so that what a row does not see stays below all it sees */
    int window;     /* paged: a row sees its own key and the window - 1 before it; 0: all of them */
    bool is_few;    /* paged: the rows are tokens being decoded; as in ops_linear_params, a fact about the rows */
    bool may_round; /* queries, keys, values and weights of values may be rounded to bf16 where that is faster: on CPUs with
                       tiles (AMX), unless rows are few; sums and the softmax are in f32 */
} ops_attention_params;

/* Full attention inside groups of equal length (all tokens of one image see each other, no others).
 * out, q [n_groups*length, n_heads*hd], k, v [n_groups*length, n_kv_heads*hd]; all views, those of k and v as wide; out may
 * be q. */
MUST_USE status ops_attention(ops_ctx *ctx, ops_tensor *out, const ops_tensor *q,
                              const ops_tensor *k, const ops_tensor *v, int64_t length,
                              const ops_attention_params *params);

/* ---- language ------------------------------------------------------------------------------ */

/* Rotates the first 2*half dims of every head of x [rows, n_heads*hd], a view, in place, halves paired:
 *   new[i] = x[i] cos - x[i+half] sin;  new[i+half] = x[i+half] cos + x[i] sin
 * cos, sin [n_positions, half] f32; positions [rows] i32, each < n_positions. */
MUST_USE status ops_rope(ops_ctx *ctx, ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin,
                         const ops_tensor *positions, int n_heads);

/* Where the rows of a step stand. */
typedef struct {
    const ops_tensor *cos, *sin, *positions; /* as ops_rope has them */
    const ops_tensor *slots;                 /* [rows] i32: block * block_tokens + offset */
} ops_kv_places;

/* Paged keys and values of one layer: caches [n_blocks, n_kv_heads, block_tokens, hd], both of one dtype; what is written
 * is rounded to it (nearest even; e4m3 makes 448 of what is larger), what is read is exact. What a head has of a block
 * stands together, because that is what attention reads in one go.
 * Writes k [rows, n_kv_heads*hd], rotated, and v as it is, at the rows' slots, and rotates q [rows, n_heads*hd] in place;
 * q NULL: none. k, v and q are views; k is left as it was. A row whose slot or position is outside is not written, and
 * BAD_ARGUMENT is answered here, or by the next ops_sync. */
MUST_USE status ops_kv_append(ops_ctx *ctx, ops_tensor *k_cache, ops_tensor *v_cache, const ops_tensor *k,
                              const ops_tensor *v, ops_tensor *q, const ops_kv_places *at, int n_heads, int n_kv_heads);

/* Copies block `from` to block `to` of one layer's cache. */
MUST_USE status ops_kv_copy_block(ops_ctx *ctx, ops_tensor *cache, int64_t to, int64_t from);

/* Causal attention of rows over paged keys and values.
 * out, q [rows, n_heads*hd]; k_cache, v_cache as above; tables [n_seqs, max_blocks] i32: the blocks of
 * each sequence in order; row_seq [rows] i32: which sequence a row belongs to; row_pos [rows] i32: the
 * row sees positions 0 .. row_pos[r] of its sequence, or the last params->window of them, its own key
 * already written. out and q are views; out may be q. Blocks that rows beside each other share are read once for all. */
MUST_USE status ops_attention_paged(ops_ctx *ctx, ops_tensor *out, const ops_tensor *q,
                                    const ops_tensor *k_cache, const ops_tensor *v_cache,
                                    const ops_tensor *tables, const ops_tensor *row_seq,
                                    const ops_tensor *row_pos, const ops_attention_params *params);

#ifdef __cplusplus
}
#endif

#endif
