/* Many rows: cuBLASLt, f32 sums, one algorithm a matrix.
 *
 * The algorithm is asked for when the matrix opens, once, as if there were 2048 rows, and used for every number of rows.
 * Only algorithms with one piece of K are taken (split-K 1, no reduction between blocks), so an element is summed over
 * k by one block in the order of that algorithm's tile loop, whatever the number of rows: a row's bits do not depend
 * on its neighbours. Where ops_settings.is_fast gives that up, any algorithm is taken, asked for at eight numbers of rows.
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
#define ROWS_SMALLEST 64 /* of the sizes of is_fast, each twice the one before */
#define ROWS_LARGEST  ((int64_t)ROWS_SMALLEST << (MANY_SIZES - 1))
#define ALGORITHMS    16
#define PANEL_OUTPUTS 1024 /* of a quantized matrix, made halves at once: 5 MB of scratch at 2560 inputs */
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

/* What a product is described with. */
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

/* bias NULL: none is added. n_out: of this panel; the rows of out are out_stride apart. */
static status description_open(description *d, ops_dtype dtype, ops_dtype out_dtype, int64_t n_in, int64_t n_out,
                               int64_t w_stride, int64_t x_stride, int64_t out_stride, int64_t rows, const void *bias,
                               int gelu) {
    cudaDataType_t type = type_of(dtype);
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtEpilogue_t epilogue = !bias ? CUBLASLT_EPILOGUE_DEFAULT
                                  : gelu ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
    BLAS_TRY(cublasLtMatmulDescCreate(&d->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS_TRY(cublasLtMatmulDescSetAttribute(d->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    BLAS_TRY(cublasLtMatmulDescSetAttribute(d->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
    if (bias) BLAS_TRY(cublasLtMatmulDescSetAttribute(d->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
    BLAS_TRY(cublasLtMatrixLayoutCreate(&d->w, type, (uint64_t)n_in, (uint64_t)n_out, w_stride));
    BLAS_TRY(cublasLtMatrixLayoutCreate(&d->x, type, (uint64_t)n_in, (uint64_t)rows, x_stride));
    BLAS_TRY(cublasLtMatrixLayoutCreate(&d->out, type_of(out_dtype), (uint64_t)n_out, (uint64_t)rows, out_stride));
    return STATUS_OK;
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

static int many_size(int64_t rows) {
    int size = 0;
    while (size + 1 < MANY_SIZES && rows > (int64_t)ROWS_SMALLEST << size) size++;
    return size;
}

/* The best one for a product of that description, into *algorithm. */
static status ask(cuda_state *s, bool *has_found, cublasLtMatmulAlgo_t *algorithm, description *d, bool takes_pieces,
                  cublasLtMatmulPreference_t preference) {
    uint32_t alignment = 16;
    size_t workspace = WORKSPACE_BYTES;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    BLAS_TRY(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                  sizeof workspace));
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments; i++)
        BLAS_TRY(cublasLtMatmulPreferenceSetAttribute(preference, alignments[i], &alignment, sizeof alignment));
    cublasLtMatmulHeuristicResult_t found[ALGORITHMS];
    int n = 0;
    cublasStatus_t blas = cublasLtMatmulAlgoGetHeuristic(s->blas, d->product, d->w, d->x, d->out, d->out, preference,
                                                         ALGORITHMS, found, &n);
    *has_found = false;
    for (int i = 0; blas == CUBLAS_STATUS_SUCCESS && i < n && !*has_found; i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS || (!takes_pieces && !sums_in_one_piece(&found[i].algo))) continue;
        *algorithm = found[i].algo;
        *has_found = true;
    }
    return STATUS_OK; /* none: linear_tile takes the matrix */
}

static ops_dtype many_dtype(const cuda_state *s, const cuda_matrix *m) {
    bool takes_codes = s->multiplies_e4m3 && m->head.n_out % CODES_ALIGN == 0;
    if (m->head.dtype == OPS_DTYPE_E4M3) return takes_codes ? OPS_DTYPE_E4M3 : OPS_DTYPE_BF16;
    return dtype_is_quantized(m->head.dtype) ? OPS_DTYPE_BF16 : m->head.dtype;
}

/* Outputs that are multiplied at once: weights that become halves first do so in panels. */
static int64_t panel_outputs(const cuda_matrix *m) {
    return m->many_dtype != m->head.dtype && m->head.n_out > PANEL_OUTPUTS ? PANEL_OUTPUTS : m->head.n_out;
}

static status choose_for(cuda_state *s, cuda_matrix *m, int gelu, int64_t rows, bool *has_found,
                         cublasLtMatmulAlgo_t *algorithm) {
    description d = {};
    cublasLtMatmulPreference_t preference = NULL;
    bool is_coded = m->head.dtype == OPS_DTYPE_E4M3;
    int64_t n_in = is_coded ? m->row_elements : m->head.n_in, n_out = panel_outputs(m);
    status st = description_open(&d, m->many_dtype, is_coded ? OPS_DTYPE_F32 : m->many_dtype, n_in, n_out, m->row_elements,
                                 n_in, is_coded ? n_out : m->head.n_out, rows,
                                 m->head.dtype == OPS_DTYPE_F32 ? m->bias : m->own_bias, gelu);
    if (st == STATUS_OK) st = blas_status(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    bool takes_pieces = s->is_fast && rows < ROWS_LARGEST; /* the largest is for more rows too, and pieces want memory by rows */
    if (st == STATUS_OK) st = ask(s, has_found, algorithm, &d, takes_pieces, preference);
    if (preference) (void)cublasLtMatmulPreferenceDestroy(preference);
    description_close(&d);
    return st;
}

/* A matrix has algorithms for all sizes or for none. */
static status choose(cuda_state *s, cuda_matrix *m, int gelu) {
    bool has_found = true;
    for (int i = 0; i < MANY_SIZES && has_found; i++) {
        if (s->is_fast) TRY(choose_for(s, m, gelu, (int64_t)ROWS_SMALLEST << i, &has_found, &m->many[gelu][i]));
        else if (i == 0) TRY(choose_for(s, m, gelu, ROWS_NOMINAL, &has_found, &m->many[gelu][0]));
        else m->many[gelu][i] = m->many[gelu][0];
    }
    m->has_many[gelu] = has_found;
    return STATUS_OK;
}

status cuda_many_choose(cuda_state *s, cuda_matrix *m) {
    bool is_coded = m->head.dtype == OPS_DTYPE_E4M3; /* rows of codes are filled up */
    m->many_dtype = many_dtype(s, m);
    if ((!is_coded && m->head.n_in % CHUNK != 0) || m->head.n_out % CHUNK != 0) return STATUS_OK;
    TRY(choose(s, m, 0));
    if (m->many_dtype == OPS_DTYPE_E4M3 && !m->has_many[0]) {
        m->many_dtype = OPS_DTYPE_BF16;
        TRY(choose(s, m, 0));
    }
    return m->own_bias ? choose(s, m, 1) : STATUS_OK;
}

bool cuda_many_takes(const linear_job *j) {
    return j->m->has_many[0] && j->dtype == j->m->many_dtype && j->out_dtype == j->dtype && is_aligned16(j->x) &&
           j->x_stride % CHUNK == 0 && is_aligned16(j->out) && is_aligned16(j->add) &&
           (j->act == OPS_ACT_NONE || j->act_from % CHUNK == 0);
}

/* ---- what stands around the product -------------------------------------------------------- */

/* thread -> a chunk of eight weights of one output. */
static __global__ void dequantize_chunk_per_thread(__nv_bfloat16 *out, weight_view w, int64_t first, int64_t n_out) {
    int64_t chunks = w.row_elements / CHUNK, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t o = at / chunks, k = at % chunks * CHUNK;
    if (o >= n_out) return;
    float v[CHUNK];
    for (int i = 0; i < CHUNK; i++) v[i] = weight_at(&w, first + o, k + i);
    store_chunk(out + o * w.row_elements + k, v, CHUNK, true);
}

static status dequantize(cuda_state *s, const cuda_matrix *m, void *out, int64_t first, int64_t n_out) {
    LAUNCH(dequantize_chunk_per_thread, (unsigned)ceil_div(n_out * m->row_elements / CHUNK, THREADS), THREADS, 0, s->stream,
           static_cast<__nv_bfloat16 *>(out), weights_of(m), first, n_out);
    return cuda_launched("dequantize_chunk_per_thread");
}

/* thread -> a chunk of eight results of one row: out = act(out + bias), bias NULL where it was added. first: the first
 * output there is something to do for. */
template <typename T>
static __global__ void finish_chunk_per_thread(T *out, const float *bias, int64_t rows, int64_t n_out, int64_t first,
                                               int64_t act_from, ops_act act) {
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
        LAUNCH((finish_chunk_per_thread<T>), (unsigned)ceil_div(n_chunks, THREADS), THREADS, 0, s->stream,
               static_cast<T *>(j->out), bias, j->rows, n_out, first, j->act_from, act);
    });
    return cuda_launched("finish_chunk_per_thread");
}

/* ---- running ------------------------------------------------------------------------------- */

/* n_out outputs from `first`, whose weights are w. */
static status multiply(cuda_state *s, const linear_job *j, const void *w, int64_t first, int64_t n_out, const void *bias,
                       int gelu) {
    const cuda_matrix *m = j->m;
    const float one = 1.0f, added = j->add ? 1.0f : 0.0f;
    size_t before = (size_t)first * dtype_bytes(j->dtype);
    unsigned char *out = static_cast<unsigned char *>(j->out) + before;
    const unsigned char *add = j->add ? static_cast<const unsigned char *>(j->add) + before : out;
    if (bias) bias = static_cast<const unsigned char *>(bias) + before;
    description d = {};
    status st = description_open(&d, j->dtype, j->dtype, m->head.n_in, n_out, m->row_elements, j->x_stride, m->head.n_out,
                                 j->rows, bias, gelu);
    if (st == STATUS_OK)
        st = blas_status(cublasLtMatmul(s->blas, d.product, &one, w, d.w, j->x, d.x, &added, add, d.out, out, d.out,
                                        &m->many[gelu][many_size(j->rows)], s->workspace, WORKSPACE_BYTES, s->stream), "cublasLtMatmul");
    description_close(&d);
    return st;
}

/* Outputs first .. end - 1. */
static status multiply_outputs(cuda_state *s, const linear_job *j, int64_t first, int64_t end, const void *bias, int gelu) {
    const cuda_matrix *m = j->m;
    if (first >= end) return STATUS_OK;
    if (!dtype_is_quantized(m->head.dtype)) {
        const unsigned char *w = m->weights + (size_t)(first * m->row_elements) * dtype_bytes(m->head.dtype);
        return multiply(s, j, w, first, end - first, bias, gelu);
    }
    void *panel;
    TRY(cuda_scratch(s, &panel, (size_t)(PANEL_OUTPUTS * m->row_elements) * sizeof(__nv_bfloat16)));
    for (; first < end; first += PANEL_OUTPUTS) {
        int64_t n = end - first < PANEL_OUTPUTS ? end - first : PANEL_OUTPUTS;
        TRY(dequantize(s, m, panel, first, n));
        TRY(multiply(s, j, panel, first, n, bias, gelu));
    }
    return STATUS_OK;
}

status cuda_many_run(cuda_state *s, const linear_job *j) {
    const cuda_matrix *m = j->m;
    const void *bias = j->dtype == OPS_DTYPE_F32 ? m->bias : m->own_bias;
    int gelu = j->act == OPS_ACT_GELU_TANH && m->has_many[1]; /* of f32 rows never: own_bias is for halves */
    int64_t plain = gelu ? j->act_from : m->head.n_out;
    TRY(multiply_outputs(s, j, 0, plain, bias, 0));
    TRY(multiply_outputs(s, j, plain, m->head.n_out, bias, 1));
    return finish(s, j, bias ? NULL : m->bias, gelu ? OPS_ACT_NONE : j->act);
}

/* ---- codes --------------------------------------------------------------------------------- */

/* block -> a row and THREADS of its outputs; thread -> one, from a sum [rows, n_out] of `first_row` and `first_out` on. */
template <typename O>
static __global__ void end_sum_per_thread(linear_end end, const float *sums, int64_t first_row, int64_t first_out, int64_t n_out) {
    int64_t row = blockIdx.x, o = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    if (o < n_out) finish_one<O>(&end, sums[row * n_out + o], first_row + row, first_out + o);
}

/* n_out outputs from first_out, whose weights are w, of some rows. */
static status multiply_codes(cuda_state *s, const linear_job *j, float *sums, const void *w, int64_t first_row, int64_t rows,
                             int64_t first_out, int64_t n_out) {
    const cuda_matrix *m = j->m;
    const float one = 1.0f, zero = 0.0f;
    const unsigned char *x = static_cast<const unsigned char *>(j->x) + (size_t)(first_row * j->x_stride) * dtype_bytes(j->dtype);
    description d = {};
    status st = description_open(&d, j->dtype, OPS_DTYPE_F32, m->row_elements, n_out, m->row_elements, j->x_stride, n_out, rows,
                                 NULL, 0);
    if (st == STATUS_OK)
        st = blas_status(cublasLtMatmul(s->blas, d.product, &one, w, d.w, x, d.x, &zero, sums, d.out, sums, d.out,
                                        &m->many[0][many_size(rows)], s->workspace, WORKSPACE_BYTES, s->stream), "cublasLtMatmul");
    description_close(&d);
    if (st != STATUS_OK) return st;
    dim3 grid((unsigned)rows, (unsigned)ceil_div(n_out, THREADS));
    WITH_DTYPE(j->out_dtype, O, {
        LAUNCH((end_sum_per_thread<O>), grid, THREADS, 0, s->stream, end_of(j), sums, first_row, first_out, n_out);
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
