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
 * - Calls are ordered on the context; they may return before the device is done. ops_sync is the only
 *   wait. ops_upload and ops_download are the only crossings between host and device.
 * - All tensors are on the device (OPS_PLACE_DEVICE) except where a comment says host; a wrong place,
 *   dtype or shape is BAD_SHAPE or UNSUPPORTED, never a crash.
 * - Activations, keys and values are of the one dtype that ops_activation_dtype answers for a network's weights;
 *   the tensors of a call share it. Weights of norms, tables of angles and positions and logits are f32 everywhere,
 *   and so is every sum: a result is rounded to the activations' dtype once, at its end.
 * - Batch-invariant: for each output row the order of every reduction depends only on that row's own
 *   length, never on how many other rows there are, on threads, or on how work was cut into calls.
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

/* tensor_bytes of the tensor. From memory of ops_host_open an upload may still read when it returns: that memory must
 * not be written again before an ops_sync that comes after. From any other memory it has read when it returns.
 * What a download writes is there after the ops_sync that comes next, whatever the memory. */
MUST_USE status ops_upload(ops_ctx *ctx, ops_tensor *out, const void *host);
MUST_USE status ops_download(ops_ctx *ctx, void *host, const ops_tensor *x);
MUST_USE status ops_sync(ops_ctx *ctx);

/* ---- matrices ------------------------------------------------------------------------------ */

/* A weight matrix in the form the backend multiplies fastest; opaque. */
typedef struct ops_matrix ops_matrix;

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
    OPS_PRODUCT_COUNT
} ops_product;

const char *ops_product_name(ops_product product); /* "f32", "bf16", "int8" */

/* ops_matrix_open with a product of that kind; F32 is ops_matrix_open. BF16 keeps every weight as bf16, blocks too. INT8
 * keeps q8 and q4 as they are and puts other weights into q8. Errors: UNSUPPORTED where the device has no such product. */
MUST_USE status ops_matrix_open_as(ops_ctx *ctx, ops_matrix **matrix, const ops_tensor *w, const ops_tensor *bias,
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

/* out[r,o] = act(bias[o] + sum over i of x[r,i] * w[o,i])    out [rows, n_out], x [rows, n_in]; out f32 or as x.
 * CPU: the sum runs over i in order in one f32 accumulator per element (fused multiply-add where the
 * machine has it), whatever rows is. Relative to sum |x*w| the error is at most (n_in + 2) * 2^-24,
 * before the activation. CUDA: the order is another one, and as fixed. out may not overlap x.
 *
 * BF16: the same of rounded values; processors with bf16 instructions add in another fixed order, and there what is below
 * 2^-126 counts as zero.
 * INT8: x is cut into runs of OPS_INT8_RUN. A run's scale is its largest magnitude / 127, in f32, and a code is x * (127 /
 * that magnitude) rounded to nearest even. Codes are multiplied and added exactly over each QUANT_BLOCK; the sum of a
 * block is multiplied by the weights' scale and added to those of its run, and that by the run's scale and added to out,
 * in f32 and in order. A run whose largest magnitude is below OPS_INT8_TINY counts as zeros; one with a value that is not
 * finite makes its row NaN. */
#define OPS_INT8_RUN  64
#define OPS_INT8_TINY 0x1p-100f
MUST_USE status ops_linear(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x,
                           const ops_matrix *matrix, ops_act act);

/* The same sum for rows of a kind that comes in small numbers: tokens being decoded, rows whose logits are wanted.
 * A backend may have another way for them that reads the weights at the speed of memory, in an order of its own.
 * Which of the two a row takes is a fact about the row, never about how many there are: only so a row's bits do not
 * depend on its neighbours. CPU: the bits of ops_linear. */
MUST_USE status ops_linear_few(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x,
                               const ops_matrix *matrix, ops_act act);

/* Whether the two ways differ here: where not, a caller with rows of both kinds needs one call. */
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

/* out[r,c] = act(x[r,c]); of f32 the bits that ops_linear gives with it; out may be x. */
MUST_USE status ops_activate(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, ops_act act);

/* out[r,c] = x[r,c] * w[c]; out may be x. */
MUST_USE status ops_scale_columns(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x,
                                  const ops_tensor *w);

/* out = a + b, same shape; out may be a or b. */
MUST_USE status ops_add(ops_ctx *ctx, ops_tensor *out, const ops_tensor *a, const ops_tensor *b);

/* out[r,c] = x[r,c] + table[r mod n_table,c]; x [rows, cols], table [n_table, cols] f32 or as x; out may be x. */
MUST_USE status ops_add_table(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x,
                              const ops_tensor *table);

/* out[r,:] = table[ids[r],:]; ids [rows] i32 on the device; table f32, f16 or bf16; out of an activations' dtype.
 * An id outside the table gives BAD_ARGUMENT here, before anything is written, or at the next ops_sync, without the
 * rows it names. */
MUST_USE status ops_gather_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *table,
                                const ops_tensor *ids);

/* out[to[r],:] = x[r,:]; to [rows] i32 on the device. */
MUST_USE status ops_scatter_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x,
                                 const ops_tensor *to);

/* Between f32, f16 and bf16, rounding to nearest even; same shape. */
MUST_USE status ops_cast(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x);

/* Index of the largest of the first n values of each row, the lowest index on ties; -1 where one of them is infinite or
 * not a number. out [rows] i32, x [rows, cols] f32, n at most cols. */
MUST_USE status ops_argmax_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, int64_t n);

/* ---- vision -------------------------------------------------------------------------------- */

/* Cuts pictures into patches: out [n*rows*cols, 3*p*p] of an activations' dtype, x [n, 3, height, width] f32 planes;
 * rows = height / p, cols = width / p (a remainder is left unread); element order is channel, y, x,
 * which is the order of a flattened convolution kernel. */
MUST_USE status ops_patch_rows(ops_ctx *ctx, ops_tensor *out, const ops_tensor *x, int patch);

typedef struct {
    int n_heads;
    int n_kv_heads; /* divides n_heads */
    float scale;    /* multiplies q.k */
    int window;     /* paged: a row sees its own key and the window - 1 before it; 0: all of them */
} ops_attention_params;

/* Full attention inside groups of equal length (all tokens of one image see each other, no others).
 * out, q [n_groups*length, n_heads*hd], k, v [n_groups*length, n_kv_heads*hd]; out may be q. */
MUST_USE status ops_attention(ops_ctx *ctx, ops_tensor *out, const ops_tensor *q,
                              const ops_tensor *k, const ops_tensor *v, int64_t length,
                              const ops_attention_params *params);

/* ---- language ------------------------------------------------------------------------------ */

/* Rotates the first 2*half dims of every head of x [rows, n_heads*hd] in place, halves paired:
 *   new[i] = x[i] cos - x[i+half] sin;  new[i+half] = x[i+half] cos + x[i] sin
 * cos, sin [n_positions, half] f32; positions [rows] i32, each < n_positions. */
MUST_USE status ops_rope(ops_ctx *ctx, ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin,
                         const ops_tensor *positions, int n_heads);

/* Paged keys and values of one layer: cache [n_blocks, block_tokens, n_kv_heads*hd].
 * Writes row r of x [rows, n_kv_heads*hd] at slot slots[r] = block * block_tokens + offset. */
MUST_USE status ops_kv_write(ops_ctx *ctx, ops_tensor *cache, const ops_tensor *x,
                             const ops_tensor *slots);

/* Copies block `from` to block `to` of one layer's cache. */
MUST_USE status ops_kv_copy_block(ops_ctx *ctx, ops_tensor *cache, int64_t to, int64_t from);

/* Causal attention of rows over paged keys and values.
 * out, q [rows, n_heads*hd]; k_cache, v_cache as above; tables [n_seqs, max_blocks] i32: the blocks of
 * each sequence in order; row_seq [rows] i32: which sequence a row belongs to; row_pos [rows] i32: the
 * row sees positions 0 .. row_pos[r] of its sequence, or the last params->window of them, its own key
 * already written. out may be q. */
MUST_USE status ops_attention_paged(ops_ctx *ctx, ops_tensor *out, const ops_tensor *q,
                                    const ops_tensor *k_cache, const ops_tensor *v_cache,
                                    const ops_tensor *tables, const ops_tensor *row_seq,
                                    const ops_tensor *row_pos, const ops_attention_params *params);

#ifdef __cplusplus
}
#endif

#endif
