/* Many rows: cuBLASLt, f32 sums, and for every number of rows the same bits.
 *
 * For each kind of product (sizes, dtypes, epilogue: matrices of a network share a few) one algorithm is nominal: the best
 * for 2048 rows of those with one piece of K (split-K 1, no reduction between blocks), which sum an element over k in one
 * block. It is bad for other numbers of rows: on an H200 by 15 to 35 % at 729 or 789 rows of the shapes of Mipha-3B. So when
 * a number of rows of some size first comes, the library is asked again, and its first answer with one piece that gives the
 * bits of the nominal one is taken. That is tried, with random rows and the weights at hand: the tensor cores' kernels go
 * through k in the same steps whatever their tiles are, but the library does not promise it. Of a sum that leaves as a half,
 * eight bits are too few to see its order by: so it is tried with minus the rounded sum added, and what leaves is the
 * remainder. A row's bits do not depend on its neighbours. Where ops_settings.is_fast gives that up, the library's first answer is taken as it is.
 * The bias, and with it the tanh GELU, is added to the f32 sum by cuBLASLt where the library offers
 * that, and so is what the caller adds; other activations follow as a pass of their own over the rounded result. Where an
 * activation is for a part of the outputs only, the two parts are two products over the one matrix: what a finished tile
 * goes through is fixed for a whole call.
 *
 * Weights in blocks are made halves of the rows' dtype in scratch, a panel of outputs at a time, just before they are
 * multiplied; a weight is rounded to that dtype once, a relative 2^-8. f32 is multiplied as f32, never
 * as TF32: it is the mode that parity is checked in.
 *
 * Codes of OPS_PRODUCT_FP8 are multiplied as codes where the device and the sizes allow it, and elsewhere made halves like
 * blocks, which is exact. Their sums come as f32, of so many rows at a time that they may stay in the second-level cache,
 * and one pass does all that follows: a sum that was rounded before its scales would be rounded twice, and one algorithm
 * then serves every kind of row and every end.
 *
 * cuBLASLt counts columns first: out' [n_out, rows] = w' [n_in, n_out] transposed times x' [n_in, rows]. */
#include "ops/cuda/linear.cuh"

#include "base/log.h"

#define ROWS_NOMINAL  2048
#define SMALL_STEP    128 /* numbers of rows are of one size up to each multiple of it, */
#define N_SMALL       4   /* so often, */
#define N_OCTAVES     6   /* then in quarters of octaves, and all above are of the last */
#define N_SIZES       (N_SMALL + 4 * N_OCTAVES)
#define ROWS_LARGEST  ((int64_t)SMALL_STEP * N_SMALL << N_OCTAVES)
#define ROWS_TRIED    128 /* to see whether two algorithms give the same bits; all sizes have as many */
#define ALGORITHMS    16
#define PANEL_BYTES   ((int64_t)20 << 20) /* of halves that blocks or codes are made at once: they may stay in the */
#define PANEL_STEP    1024 /* second-level cache, and their product still fills the device; outputs in multiples of it */
#define SUMS_BYTES    ((int64_t)32 << 20) /* of products of codes that wait for their end */
#define SUMS_ROWS     128                 /* but at least so many rows, and in multiples: a tile of most algorithms */
#define CODES_ALIGN   16                  /* what cuBLASLt wants sizes of products of codes to be multiples of */
#define THREADS       256

static cudaDataType_t type_of(ops_dtype dtype) {
    if (dtype == OPS_DTYPE_E4M3) return CUDA_R_8F_E4M3;
    return dtype == OPS_DTYPE_F32 ? CUDA_R_32F : dtype == OPS_DTYPE_F16 ? CUDA_R_16F : CUDA_R_16BF;
}

static status blas_status(cublasStatus_t blas, const char *call) {
    if (blas == CUBLAS_STATUS_SUCCESS) return STATUS_OK;
    log_error("cublas_failed", "call=%s error=\"%s\"", call, cublasLtGetStatusString(blas));
    return STATUS_DEVICE;
}
#define BLAS_TRY(call) TRY(blas_status((call), #call))

/* What matrices, and calls of them, have alike that are multiplied by the same algorithms. */
typedef struct {
    ops_dtype dtype, out_dtype;
    int64_t n_in, n_out, w_stride, out_stride;
    bool has_bias;
    int gelu;
} product_kind;

struct cuda_product {
    cuda_product *next;
    product_kind kind;
    bool has_nominal;
    bool is_chosen[N_SIZES];
    cublasLtMatmulAlgo_t nominal, chosen[N_SIZES];
};

/* ---- describing ---------------------------------------------------------------------------- */

/* A product as the library knows it. */
typedef struct {
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, out;
} description;

static void description_close(description *d) {
    if (d->out) (void)cublasLtMatrixLayoutDestroy(d->out);
    if (d->x) (void)cublasLtMatrixLayoutDestroy(d->x);
    if (d->w) (void)cublasLtMatrixLayoutDestroy(d->w);
    if (d->product) (void)cublasLtMatmulDescDestroy(d->product);
}

/* bias: read only where the kind has one. The rows of x are x_stride apart. */
static status description_open(description *d, const product_kind *k, int64_t rows, int64_t x_stride, const void *bias) {
    cudaDataType_t type = type_of(k->dtype);
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtEpilogue_t epilogue = !k->has_bias ? CUBLASLT_EPILOGUE_DEFAULT
                                  : k->gelu ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
    BLAS_TRY(cublasLtMatmulDescCreate(&d->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS_TRY(cublasLtMatmulDescSetAttribute(d->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    BLAS_TRY(cublasLtMatmulDescSetAttribute(d->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (k->has_bias)
        BLAS_TRY(cublasLtMatmulDescSetAttribute(d->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    BLAS_TRY(cublasLtMatrixLayoutCreate(&d->w, type, (uint64_t)k->n_in, (uint64_t)k->n_out, k->w_stride));
    BLAS_TRY(cublasLtMatrixLayoutCreate(&d->x, type, (uint64_t)k->n_in, (uint64_t)rows, x_stride));
    BLAS_TRY(cublasLtMatrixLayoutCreate(&d->out, type_of(k->out_dtype), (uint64_t)k->n_out, (uint64_t)rows, k->out_stride));
    return STATUS_OK;
}

/* What goes into a product: out = x w' + bias + add, add NULL: nothing. */
typedef struct {
    const void *w, *x, *bias, *add;
    void *out;
    int64_t rows, x_stride;
} product_job;

static status multiply(cuda_state *s, const product_kind *k, const product_job *j, const cublasLtMatmulAlgo_t *algorithm) {
    const float one = 1.0f, added = j->add ? 1.0f : 0.0f;
    description d = {};
    status st = description_open(&d, k, j->rows, j->x_stride, j->bias);
    if (st == STATUS_OK)
        st = blas_status(cublasLtMatmul(s->blas, d.product, &one, j->w, d.w, j->x, d.x, &added, j->add ? j->add : j->out, d.out,
                                        j->out, d.out, algorithm, s->workspace, WORKSPACE_BYTES, s->stream), "cublasLtMatmul");
    description_close(&d);
    return st;
}

/* ---- choosing ------------------------------------------------------------------------------ */

static bool sums_in_one_piece(const cublasLtMatmulAlgo_t *algorithm) {
    int32_t pieces = 0;
    uint32_t scheme = 0;
    size_t written;
    return cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &pieces, sizeof pieces,
                                                &written) == CUBLAS_STATUS_SUCCESS &&
           cublasLtMatmulAlgoConfigGetAttribute(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme,
                                                &written) == CUBLAS_STATUS_SUCCESS &&
           pieces <= 1 && scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* The most rows of a size. */
static int64_t rows_of_size(int size) {
    if (size < N_SMALL) return (int64_t)SMALL_STEP * (size + 1);
    int octave = (size - N_SMALL) / 4, quarter = (size - N_SMALL) % 4 + 1;
    return ((int64_t)SMALL_STEP * N_SMALL << octave) / 4 * (4 + quarter);
}

static int size_of_rows(int64_t rows) {
    int size = 0;
    while (size + 1 < N_SIZES && rows > rows_of_size(size)) size++;
    return size;
}

/* The library's answers for so many rows, best first; takes_pieces: also those that sum in several. */
static status ask(cuda_state *s, const product_kind *k, int64_t rows, bool takes_pieces, cublasLtMatmulAlgo_t *answers, int *n) {
    uint32_t alignment = 16;
    size_t workspace = WORKSPACE_BYTES;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    description d = {};
    cublasLtMatmulPreference_t preference = NULL;
    status st = description_open(&d, k, rows, k->n_in, s->workspace); /* any address: alignments are said */
    if (st == STATUS_OK) st = blas_status(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    if (st == STATUS_OK)
        st = blas_status(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                              sizeof workspace), "cublasLtMatmulPreferenceSetAttribute");
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments && st == STATUS_OK; i++)
        st = blas_status(cublasLtMatmulPreferenceSetAttribute(preference, alignments[i], &alignment, sizeof alignment),
                         "cublasLtMatmulPreferenceSetAttribute");
    cublasLtMatmulHeuristicResult_t found[ALGORITHMS];
    int n_found = 0;
    bool has_any = st == STATUS_OK && cublasLtMatmulAlgoGetHeuristic(s->blas, d.product, d.w, d.x, d.out, d.out, preference,
                                                                     ALGORITHMS, found, &n_found) == CUBLAS_STATUS_SUCCESS;
    *n = 0;
    for (int i = 0; has_any && i < n_found; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS && (takes_pieces || sums_in_one_piece(&found[i].algo)))
            answers[(*n)++] = found[i].algo;
    if (preference) (void)cublasLtMatmulPreferenceDestroy(preference);
    description_close(&d);
    return st;
}

static bool is_same_kind(const product_kind *a, const product_kind *b) {
    return a->dtype == b->dtype && a->out_dtype == b->out_dtype && a->n_in == b->n_in && a->n_out == b->n_out &&
           a->w_stride == b->w_stride && a->out_stride == b->out_stride && a->has_bias == b->has_bias && a->gelu == b->gelu;
}

/* The context's, begun where there is none. */
static status product_of(cuda_state *s, cuda_product **product, const product_kind *k) {
    for (cuda_product *p = s->products; p; p = p->next) {
        *product = p;
        if (is_same_kind(&p->kind, k)) return STATUS_OK;
    }
    cuda_product *p = static_cast<cuda_product *>(calloc(1, sizeof *p));
    if (!p) return STATUS_NO_MEMORY;
    cublasLtMatmulAlgo_t answers[ALGORITHMS];
    int n = 0;
    status st = ask(s, k, ROWS_NOMINAL, false, answers, &n);
    if (st != STATUS_OK) {
        free(p);
        return st;
    }
    p->kind = *k;
    p->has_nominal = n > 0;
    if (n > 0) p->nominal = answers[0];
    p->next = s->products;
    *product = s->products = p;
    return STATUS_OK;
}

void cuda_products_close(cuda_state *s) {
    while (s->products) {
        cuda_product *p = s->products;
        s->products = p->next;
        free(p);
    }
}

/* thread -> one element: numbers in no particular order, all finite. */
template <typename T>
static __global__ void scramble_element_per_thread(T *x, int64_t n) {
    follow_last();
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    unsigned h = (unsigned)i * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    if (i < n) from_f32(&x[i], (float)(h >> 8) * 0x1p-23f - 1.0f);
}

/* thread -> 16 bytes: another sign for each of their numbers, whose highest bits are in the mask. */
static __global__ void negate_piece_per_thread(uint4 *x, unsigned mask, int64_t n) {
    follow_last();
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n) x[i] = uint4{x[i].x ^ mask, x[i].y ^ mask, x[i].z ^ mask, x[i].w ^ mask};
}

static __global__ void differ_piece_per_thread(int *differ, const uint4 *a, const uint4 *b, int64_t n) {
    follow_last();
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < n && (a[i].x != b[i].x || a[i].y != b[i].y || a[i].z != b[i].z || a[i].w != b[i].w)) *differ = 1;
}

/* What algorithms are compared by: a product of random rows with minus its rounded result added. */
typedef struct {
    product_kind kind;
    product_job job;
    unsigned char *data, *want, *got, *minus; /* of outs: n_pieces of 16 bytes */
    int *differ;
    int64_t n_pieces;
    unsigned n_blocks; /* a thread a piece */
} trial;

static status trial_open(cuda_state *s, trial *t, const product_kind *k, const product_job *j) {
    const int64_t rows = ROWS_TRIED, n = rows * k->n_in;
    size_t x_bytes = (size_t)n * dtype_bytes(k->dtype), out_bytes = (size_t)(rows * k->n_out) * dtype_bytes(k->out_dtype);
    void *data;
    CUDA_TRY(cudaMalloc(&data, x_bytes + 3 * out_bytes + sizeof *t->differ));
    t->kind = *k;
    t->kind.out_stride = k->n_out;
    t->data = static_cast<unsigned char *>(data);
    t->want = t->data + x_bytes;
    t->got = t->want + out_bytes;
    t->minus = t->got + out_bytes;
    t->differ = reinterpret_cast<int *>(t->minus + out_bytes);
    t->n_pieces = (int64_t)(out_bytes / sizeof(uint4));
    t->n_blocks = (unsigned)ceil_div(t->n_pieces, THREADS);
    t->job = product_job{j->w, t->data, j->bias, NULL, NULL, rows, k->n_in};
    unsigned n_blocks = (unsigned)ceil_div(n, THREADS);
    if (k->dtype == OPS_DTYPE_E4M3)
        LAUNCH((scramble_element_per_thread<e4m3>), n_blocks, THREADS, 0, s, reinterpret_cast<e4m3 *>(t->data), n);
    else
        WITH_DTYPE(k->dtype, T, {
            LAUNCH((scramble_element_per_thread<T>), n_blocks, THREADS, 0, s, reinterpret_cast<T *>(t->data), n);
        });
    return cuda_launched("scramble_element_per_thread");
}

/* minus: of sums before an activation, whatever kind the trial is of; then what the nominal algorithm makes of them. */
static status trial_want(cuda_state *s, trial *t, const cublasLtMatmulAlgo_t *nominal) {
    product_kind plain = t->kind;
    cuda_product *p;
    plain.gelu = 0;
    t->job.out = t->minus;
    TRY(product_of(s, &p, &plain));
    if (!p->has_nominal) return STATUS_UNSUPPORTED;
    TRY(multiply(s, &plain, &t->job, &p->nominal));
    LAUNCH(negate_piece_per_thread, t->n_blocks, THREADS, 0, s, reinterpret_cast<uint4 *>(t->minus),
           t->kind.out_dtype == OPS_DTYPE_F32 ? 0x80000000u : 0x80008000u, t->n_pieces);
    TRY(cuda_launched("negate_piece_per_thread"));
    t->job.add = t->minus;
    t->job.out = t->want;
    return multiply(s, &t->kind, &t->job, nominal);
}

static status trial_run(cuda_state *s, trial *t, const cublasLtMatmulAlgo_t *algorithm, bool *is_same) {
    int differ = 0;
    t->job.out = t->got;
    CUDA_TRY(cudaMemsetAsync(t->differ, 0, sizeof *t->differ, s->stream));
    TRY(multiply(s, &t->kind, &t->job, algorithm));
    LAUNCH(differ_piece_per_thread, t->n_blocks, THREADS, 0, s, t->differ, reinterpret_cast<const uint4 *>(t->want),
           reinterpret_cast<const uint4 *>(t->got), t->n_pieces);
    TRY(cuda_launched("differ_piece_per_thread"));
    CUDA_TRY(cudaMemcpyAsync(&differ, t->differ, sizeof differ, cudaMemcpyDeviceToHost, s->stream));
    CUDA_TRY(cudaStreamSynchronize(s->stream));
    *is_same = differ == 0;
    return STATUS_OK;
}

/* The first of the answers with the nominal one's bits; the nominal one itself where none has them, or nothing can be tried. */
static cublasLtMatmulAlgo_t choose_same(cuda_state *s, const cuda_product *p, const product_job *j,
                                        const cublasLtMatmulAlgo_t *answers, int n) {
    trial t = {};
    cublasLtMatmulAlgo_t chosen = p->nominal;
    bool is_open = trial_open(s, &t, &p->kind, j) == STATUS_OK && trial_want(s, &t, &p->nominal) == STATUS_OK;
    for (int i = 0; is_open && i < n; i++) {
        bool is_same = false;
        if (trial_run(s, &t, &answers[i], &is_same) != STATUS_OK || !is_same) continue; /* the library may refuse it here */
        chosen = answers[i];
        break;
    }
    (void)cudaFree(t.data);
    return chosen;
}

static status choose(cuda_state *s, cuda_product *p, int size, const product_job *j) {
    cublasLtMatmulAlgo_t answers[ALGORITHMS];
    int n = 0;
    bool takes_pieces = s->is_fast && rows_of_size(size) < ROWS_LARGEST; /* the largest is for more rows too, and pieces want memory by rows */
    TRY(ask(s, &p->kind, rows_of_size(size), takes_pieces, answers, &n));
    p->chosen[size] = s->is_fast && n > 0 ? answers[0] : choose_same(s, p, j, answers, n);
    p->is_chosen[size] = true;
    return STATUS_OK;
}

static status multiply_best(cuda_state *s, const product_kind *k, const product_job *j) {
    cuda_product *p;
    TRY(product_of(s, &p, k));
    if (!p->has_nominal) return STATUS_UNSUPPORTED;
    int size = size_of_rows(j->rows);
    if (!p->is_chosen[size] && !s->is_recording) TRY(choose(s, p, size, j)); /* a graph that is recorded does not wait for trials */
    return multiply(s, k, j, p->is_chosen[size] ? &p->chosen[size] : &p->nominal);
}

/* ---- what a matrix is multiplied as -------------------------------------------------------- */

static ops_dtype many_dtype(const cuda_state *s, const cuda_matrix *m) {
    bool takes_codes = s->multiplies_e4m3 && m->head.n_out % CODES_ALIGN == 0;
    if (m->head.dtype == OPS_DTYPE_E4M3) return takes_codes ? OPS_DTYPE_E4M3 : OPS_DTYPE_BF16;
    return dtype_is_quantized(m->head.dtype) ? OPS_DTYPE_BF16 : m->head.dtype;
}

/* Outputs that are multiplied at once: weights that become halves first do so in panels. */
static int64_t panel_outputs(const cuda_matrix *m) {
    if (m->many_dtype == m->head.dtype) return m->head.n_out;
    int64_t most = PANEL_BYTES / (m->row_elements * (int64_t)sizeof(__nv_bfloat16)) / PANEL_STEP * PANEL_STEP;
    if (most < PANEL_STEP) most = PANEL_STEP;
    return m->head.n_out < most ? m->head.n_out : most;
}

/* Inputs that are multiplied: rows that the tensor cores cannot take as they are get filled up. */
static int64_t many_inputs(const cuda_matrix *m) {
    return m->head.dtype == OPS_DTYPE_E4M3 || m->head.n_in % CHUNK != 0 ? m->row_elements : m->head.n_in;
}

static const void *bias_of(const cuda_matrix *m) { return m->head.dtype == OPS_DTYPE_F32 ? m->bias : m->own_bias; }

static product_kind kind_of(const cuda_matrix *m, int64_t n_out, int gelu) {
    product_kind k = {m->many_dtype, m->many_dtype, many_inputs(m), n_out, m->row_elements, m->head.n_out, bias_of(m) != NULL, gelu};
    if (m->head.dtype != OPS_DTYPE_E4M3) return k;
    k.out_dtype = OPS_DTYPE_F32; /* sums of codes, a panel of them beside each other */
    k.out_stride = n_out;
    k.has_bias = false;
    return k;
}

static status can_multiply(cuda_state *s, const cuda_matrix *m, int gelu, bool *can) {
    cuda_product *p;
    product_kind k = kind_of(m, panel_outputs(m), gelu);
    TRY(product_of(s, &p, &k));
    *can = p->has_nominal;
    return STATUS_OK;
}

status cuda_many_choose(cuda_state *s, cuda_matrix *m) {
    m->many_dtype = many_dtype(s, m);
    if (m->head.n_out % CHUNK != 0) return STATUS_OK;
    TRY(can_multiply(s, m, 0, &m->has_many[0]));
    if (m->many_dtype == OPS_DTYPE_E4M3 && !m->has_many[0]) {
        m->many_dtype = OPS_DTYPE_BF16;
        TRY(can_multiply(s, m, 0, &m->has_many[0]));
    }
    return m->own_bias ? can_multiply(s, m, 1, &m->has_many[1]) : STATUS_OK;
}

bool cuda_many_takes(const linear_job *j) {
    return j->m->has_many[0] && j->dtype == j->m->many_dtype && j->out_dtype == j->dtype && is_aligned16(j->out) &&
           is_aligned16(j->add) && (j->act == OPS_ACT_NONE || j->act_from % CHUNK == 0);
}

/* ---- what stands around the product -------------------------------------------------------- */

/* weight_at of eight neighbours of a block, or eight codes. */
static __device__ inline void load_weights(float v[CHUNK], const weight_view *w, int64_t o, int64_t k) {
    int64_t at = o * w->row_elements + k;
    if (w->dtype == OPS_DTYPE_E4M3) {
        load_chunk(v, reinterpret_cast<const e4m3 *>(w->data) + at, CHUNK, true);
        return;
    }
    bool is_q8 = w->dtype == OPS_DTYPE_Q8;
    const int half = QUANT_BLOCK / 2;
    const unsigned char *from = w->data + (is_q8 ? at : at / QUANT_BLOCK * half + k % half);
    chunk_of<signed char> codes;
    *reinterpret_cast<uint2 *>(&codes) = *reinterpret_cast<const uint2 *>(from);
    float scale = to_f32(w->scales[at / QUANT_BLOCK]);
    int shift = k % QUANT_BLOCK < half ? 0 : 4;
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
        v[i] = (float)(is_q8 ? codes.v[i] : ((unsigned char)codes.v[i] >> shift & 15) - 8) * scale;
}

/* thread -> a chunk of eight weights of one output. */
static __global__ void dequantize_chunk_per_thread(__nv_bfloat16 *out, weight_view w, int64_t first, int64_t n_out) {
    follow_last();
    int64_t chunks = w.row_elements / CHUNK, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t o = at / chunks, k = at % chunks * CHUNK;
    if (o >= n_out) return;
    float v[CHUNK];
    load_weights(v, &w, first + o, k);
    store_chunk(out + o * w.row_elements + k, v, CHUNK, true);
}

static status dequantize(cuda_state *s, const cuda_matrix *m, void *out, int64_t first, int64_t n_out) {
    LAUNCH(dequantize_chunk_per_thread, (unsigned)ceil_div(n_out * m->row_elements / CHUNK, THREADS), THREADS, 0, s,
           static_cast<__nv_bfloat16 *>(out), weights_of(m), first, n_out);
    return cuda_launched("dequantize_chunk_per_thread");
}

/* thread -> a chunk of eight results of one row: out = act(out + bias), bias NULL where it was added. first: the first
 * output there is something to do for. */
template <typename T>
static __global__ void finish_chunk_per_thread(T *out, const float *bias, int64_t rows, int64_t n_out, int64_t first,
                                               int64_t act_from, ops_act act) {
    follow_last();
    int64_t chunks = (n_out - first) / CHUNK, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t r = at / chunks, o = first + at % chunks * CHUNK;
    if (r >= rows) return;
    float v[CHUNK];
    load_chunk(v, out + r * n_out + o, CHUNK, true);
    for (int i = 0; i < CHUNK; i++) {
        if (bias) v[i] += bias[o + i];
        if (o >= act_from) v[i] = activation(v[i], act);
    }
    store_chunk(out + r * n_out + o, v, CHUNK, true);
}

static status finish(cuda_state *s, const linear_job *j, const float *bias, ops_act act) {
    int64_t n_out = j->m->head.n_out, first = bias ? 0 : j->act_from;
    if ((!bias && act == OPS_ACT_NONE) || first >= n_out) return STATUS_OK;
    int64_t n_chunks = j->rows * ((n_out - first) / CHUNK);
    WITH_DTYPE(j->dtype, T, {
        LAUNCH((finish_chunk_per_thread<T>), (unsigned)ceil_div(n_chunks, THREADS), THREADS, 0, s,
               static_cast<T *>(j->out), bias, j->rows, n_out, first, j->act_from, act);
    });
    return cuda_launched("finish_chunk_per_thread");
}

/* ---- running ------------------------------------------------------------------------------- */

/* thread -> a chunk of eight of a row: x with zeros behind its n_in columns. */
template <typename T>
static __global__ void fill_up_chunk_per_thread(T *out, const T *x, int64_t rows, int64_t n_in, int64_t x_stride, int64_t width) {
    follow_last();
    int64_t chunks = width / CHUNK, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t r = at / chunks, k = at % chunks * CHUNK;
    if (r >= rows) return;
    float v[CHUNK];
    load_chunk(v, x + r * x_stride + k, n_in - k, false);
    store_chunk(out + r * width + k, v, CHUNK, true);
}

/* Rows of x that begin at 16 bytes and are as long as the product wants them. */
static status fill_up(cuda_state *s, linear_job *j) {
    int64_t width = many_inputs(j->m);
    if (width == j->m->head.n_in && is_aligned16(j->x) && j->x_stride % CHUNK == 0) return STATUS_OK;
    void *filled;
    TRY(cuda_codes(s, &filled, (size_t)(j->rows * width) * dtype_bytes(j->dtype)));
    WITH_DTYPE(j->dtype, T, {
        LAUNCH((fill_up_chunk_per_thread<T>), (unsigned)ceil_div(j->rows * (width / CHUNK), THREADS), THREADS, 0, s,
               static_cast<T *>(filled), static_cast<const T *>(j->x), j->rows, j->m->head.n_in, j->x_stride, width);
    });
    j->x = filled;
    j->x_stride = width;
    return cuda_launched("fill_up_chunk_per_thread");
}

/* n_out outputs from `first`, whose weights are w. */
static status multiply_some(cuda_state *s, const linear_job *j, const void *w, int64_t first, int64_t n_out, int gelu) {
    size_t before = (size_t)first * dtype_bytes(j->dtype);
    product_kind k = kind_of(j->m, n_out, gelu);
    product_job p = {w, j->x, NULL, NULL, static_cast<unsigned char *>(j->out) + before, j->rows, j->x_stride};
    if (k.has_bias) p.bias = static_cast<const unsigned char *>(bias_of(j->m)) + before;
    if (j->add) p.add = static_cast<const unsigned char *>(j->add) + before;
    return multiply_best(s, &k, &p);
}

/* Outputs first .. end - 1. */
static status multiply_outputs(cuda_state *s, const linear_job *j, int64_t first, int64_t end, int gelu) {
    const cuda_matrix *m = j->m;
    if (first >= end) return STATUS_OK;
    if (!dtype_is_quantized(m->head.dtype)) {
        const unsigned char *w = m->weights + (size_t)(first * m->row_elements) * dtype_bytes(m->head.dtype);
        return multiply_some(s, j, w, first, end - first, gelu);
    }
    int64_t panel = panel_outputs(m);
    void *halves;
    TRY(cuda_scratch(s, &halves, (size_t)(panel * m->row_elements) * sizeof(__nv_bfloat16)));
    for (; first < end; first += panel) {
        int64_t n = end - first < panel ? end - first : panel;
        TRY(dequantize(s, m, halves, first, n));
        TRY(multiply_some(s, j, halves, first, n, gelu));
    }
    return STATUS_OK;
}

status cuda_many_run(cuda_state *s, const linear_job *job) {
    linear_job filled = *job, *j = &filled;
    const cuda_matrix *m = j->m;
    int gelu = j->act == OPS_ACT_GELU_TANH && m->has_many[1]; /* of f32 rows never: own_bias is for halves */
    int64_t plain = gelu ? j->act_from : m->head.n_out;
    TRY(fill_up(s, j));
    TRY(multiply_outputs(s, j, 0, plain, 0));
    TRY(multiply_outputs(s, j, plain, m->head.n_out, 1));
    return finish(s, j, bias_of(m) ? NULL : m->bias, gelu ? OPS_ACT_NONE : j->act);
}

/* ---- codes --------------------------------------------------------------------------------- */

/* block -> a row and THREADS of its outputs; thread -> one, from a sum [rows, n_out] of `first_row` and `first_out` on. */
template <typename O>
static __global__ void end_sum_per_thread(linear_end end, const float *sums, int64_t first_row, int64_t first_out, int64_t n_out) {
    follow_last();
    int64_t row = blockIdx.x, o = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (o < n_out) finish_one<O>(&end, sums[row * n_out + o], first_row + row, first_out + o);
}

/* n_out outputs from first_out, whose weights are w, of some rows. */
static status multiply_codes(cuda_state *s, const linear_job *j, float *sums, const void *w, int64_t first_row, int64_t rows,
                             int64_t first_out, int64_t n_out) {
    const unsigned char *x = static_cast<const unsigned char *>(j->x) + (size_t)(first_row * j->x_stride) * dtype_bytes(j->dtype);
    product_kind k = kind_of(j->m, n_out, 0);
    product_job p = {w, x, NULL, NULL, sums, rows, j->x_stride};
    TRY(multiply_best(s, &k, &p));
    dim3 grid((unsigned)rows, (unsigned)ceil_div(n_out, THREADS));
    WITH_DTYPE(j->out_dtype, O, {
        LAUNCH((end_sum_per_thread<O>), grid, THREADS, 0, s, end_of(j), sums, first_row, first_out, n_out);
    });
    return cuda_launched("end_sum_per_thread");
}

status cuda_many_run_codes(cuda_state *s, const linear_job *j) {
    const cuda_matrix *m = j->m;
    bool are_halves = m->many_dtype != m->head.dtype;
    int64_t panel = panel_outputs(m), at_once = SUMS_BYTES / (int64_t)sizeof(float) / panel / SUMS_ROWS * SUMS_ROWS;
    if (at_once < SUMS_ROWS) at_once = SUMS_ROWS;
    if (at_once > j->rows) at_once = j->rows;
    size_t halves_bytes = are_halves ? (size_t)(panel * m->row_elements) * sizeof(__nv_bfloat16) : 0;
    void *scratch;
    TRY(cuda_scratch(s, &scratch, halves_bytes + (size_t)(at_once * panel) * sizeof(float)));
    float *sums = reinterpret_cast<float *>(static_cast<unsigned char *>(scratch) + halves_bytes);
    for (int64_t first = 0; first < m->head.n_out; first += panel) {
        int64_t n = m->head.n_out - first < panel ? m->head.n_out - first : panel;
        if (are_halves) TRY(dequantize(s, m, scratch, first, n));
        const void *w = are_halves ? scratch : m->weights;
        for (int64_t row = 0; row < j->rows; row += at_once)
            TRY(multiply_codes(s, j, sums, w, row, j->rows - row < at_once ? j->rows - row : at_once, first, n));
    }
    return STATUS_OK;
}
