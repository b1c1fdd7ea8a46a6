/* out[r,o] = act(bias[o] + sum over i of x[r,i] w[o,i]) + add[r,o]
 *
 * Three ways, and which one is a fact about the matrix, the dtypes and the kind of row that the caller names (with
 * ops_settings.is_fast, instead of the kind how many there are):
 *
 *     many rows           linear_many.cu: cuBLASLt, one algorithm a matrix
 *     few rows            linear_few.cu: tensor cores, weights streamed
 *     everything else     the kernel below: any dtype with any other, any size, any alignment
 *
 * OPS_PRODUCT_FP8 makes codes of the rows first (linear_fp8.cu), which then fit the first two.
 *
 * linear_tile: block -> 16 rows x 16 outputs; thread -> one of them. x and w go through shared memory in pieces of 32 k.
 * The sum runs over k in order in one f32 accumulator with fmaf. Memory: x is read n_out / 16 times, w rows / 16 times;
 * it is the plain version, and the one for f32 rows of a kind that comes in small numbers.
 *
 * Opening: a row of the file goes to a row here, filled up with zeros to a multiple of 64 elements; blocks of q8 and q4
 * are taken apart into codes and scales, because 34 or 18 bytes have no alignment. Both happens in the pinned memory that
 * rows cross in, so nothing lies in host memory in between. */
#include "ops/cuda/linear.cuh"

#include <stdlib.h>
#include <string.h>

#define TILE       16
#define TILE_K     32
#define FAST_FEW_ROWS 32 /* with is_fast: half of what a block of linear_few takes at once */
#define PART_ALIGN ((size_t)256)

/* ---- opening ------------------------------------------------------------------------------- */

static size_t align_part(size_t bytes) { return (bytes + PART_ALIGN - 1) / PART_ALIGN * PART_ALIGN; }

static size_t row_bytes_here(const cuda_matrix *m) {
    if (m->head.dtype == OPS_DTYPE_Q8) return (size_t)m->row_elements;
    if (m->head.dtype == OPS_DTYPE_Q4) return (size_t)m->row_elements / 2;
    return (size_t)m->row_elements * dtype_bytes(m->head.dtype);
}

static size_t scale_bytes_here(const cuda_matrix *m) { return (size_t)(m->row_elements / QUANT_BLOCK) * 2; }

/* What crosses: weights, and where they are made. */
typedef struct {
    const cuda_matrix *m;
    const ops_rows *from;
} weights_crossing;

static void fill_rows(const void *user, unsigned char *pinned, int64_t first, int64_t n) {
    const weights_crossing *w = static_cast<const weights_crossing *>(user);
    size_t filled = dtype_row_bytes(w->from->dtype, w->from->n_in), bytes = row_bytes_here(w->m);
    w->from->read(w->from->user, pinned, bytes, first, n);
    for (int64_t r = 0; r < n; r++) memset(pinned + (size_t)r * bytes + filled, 0, bytes - filled);
}

/* Codes of all rows, then their scales; a row with its blocks whole is read behind them. */
static void fill_blocks(const void *user, unsigned char *pinned, int64_t first, int64_t n) {
    const weights_crossing *w = static_cast<const weights_crossing *>(user);
    size_t code_bytes = dtype_row_bytes(w->from->dtype, QUANT_BLOCK) - 2;
    unsigned char *codes = pinned, *scales = codes + (size_t)n * row_bytes_here(w->m);
    unsigned char *row = scales + (size_t)n * scale_bytes_here(w->m);
    memset(pinned, 0, (size_t)(row - pinned));
    for (int64_t r = 0; r < n; r++, codes += row_bytes_here(w->m), scales += scale_bytes_here(w->m)) {
        w->from->read(w->from->user, row, 0, first + r, 1);
        const unsigned char *block = row;
        for (int64_t b = 0; b < ceil_div(w->from->n_in, QUANT_BLOCK); b++, block += 2 + code_bytes) {
            memcpy(scales + 2 * b, block, 2);
            memcpy(codes + (size_t)b * code_bytes, block + 2, code_bytes);
        }
    }
}

static status upload_weights(cuda_state *s, cuda_matrix *m, const ops_rows *from) {
    const weights_crossing w = {m, from};
    cuda_rows_upload u = {fill_rows, &w, m->head.n_out, {m->weights, NULL}, {row_bytes_here(m), 0}, 0};
    if (m->scales) {
        u.fill = fill_blocks;
        u.to[1] = reinterpret_cast<unsigned char *>(m->scales);
        u.row_bytes[1] = scale_bytes_here(m);
        u.spare_bytes = dtype_row_bytes(from->dtype, from->n_in);
    }
    return cuda_upload_rows(s, &u);
}

/* bias in f32, and in the weights' dtype where all its values are exact in it. */
static status upload_bias(cuda_state *s, cuda_matrix *m, const ops_tensor *bias) {
    size_t n = (size_t)m->head.n_out;
    float *wide = static_cast<float *>(calloc(n, sizeof *wide));
    uint16_t *own = static_cast<uint16_t *>(calloc(n, sizeof *own));
    status st = wide && own ? STATUS_OK : STATUS_NO_MEMORY;
    bool is_exact = m->own_bias != NULL;
    for (size_t i = 0; bias && st == STATUS_OK && i < n; i++) {
        wide[i] = tensor_value(bias, (int64_t)i);
        bool is_f16 = m->head.dtype == OPS_DTYPE_F16;
        own[i] = is_f16 ? f32_to_f16(wide[i]) : f32_to_bf16(wide[i]);
        is_exact = is_exact && (is_f16 ? f16_to_f32(own[i]) : bf16_to_f32(own[i])) == wide[i];
    }
    if (st == STATUS_OK) st = cuda_upload(s, m->bias, wide, n * sizeof *wide);
    if (st == STATUS_OK && is_exact) st = cuda_upload(s, m->own_bias, own, n * sizeof *own);
    if (!is_exact) m->own_bias = NULL;
    free(wide);
    free(own);
    return st;
}

static status open_memory(cuda_matrix *m, int device) {
    size_t weights = align_part((size_t)m->head.n_out * row_bytes_here(m));
    bool is_coded = m->head.dtype == OPS_DTYPE_E4M3;
    size_t scales = is_coded ? align_part((size_t)m->head.n_out * sizeof(float))
                    : dtype_is_quantized(m->head.dtype) ? align_part((size_t)m->head.n_out * scale_bytes_here(m)) : 0;
    size_t bias = align_part((size_t)m->head.n_out * sizeof(float)), own = align_part((size_t)m->head.n_out * 2);
    m->head.bytes = weights + scales + bias + own;
    void *data;
    cudaError_t error = cudaSetDevice(device);
    if (error == cudaSuccess) error = cudaMalloc(&data, m->head.bytes);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        return error == cudaErrorMemoryAllocation ? STATUS_NO_MEMORY : STATUS_DEVICE;
    }
    m->weights = static_cast<unsigned char *>(data);
    m->scales = scales && !is_coded ? reinterpret_cast<__nv_bfloat16 *>(m->weights + weights) : NULL;
    m->output_scales = is_coded ? reinterpret_cast<float *>(m->weights + weights) : NULL;
    m->bias = reinterpret_cast<float *>(m->weights + weights + scales);
    m->own_bias = m->head.dtype == OPS_DTYPE_F32 || is_coded ? NULL : m->weights + weights + scales + bias;
    return STATUS_OK;
}

/* Products are of the activations' type as they are: bf16 where weights are bf16. */
status cuda_matrix_open(void *state, ops_matrix **matrix, const ops_rows *rows, const ops_tensor *bias, ops_product product,
                        err *e) {
    cuda_state *s = static_cast<cuda_state *>(state);
    if (product == OPS_PRODUCT_INT8)
        return fail(e, STATUS_UNSUPPORTED, "ops: device cuda:%d has no products in int8, need f32, bf16 or fp8", s->device);
    cuda_matrix *m = static_cast<cuda_matrix *>(calloc(1, sizeof *m));
    if (!m) return fail(e, STATUS_NO_MEMORY, "ops: no memory for a matrix");
    m->head.n_out = rows->n_out;
    m->head.n_in = rows->n_in;
    m->head.product = product;
    m->head.dtype = product == OPS_PRODUCT_FP8 ? OPS_DTYPE_E4M3 : rows->dtype;
    m->row_elements = ceil_div(m->head.n_in, ROW_MULTIPLE) * ROW_MULTIPLE;
    status st = open_memory(m, s->device);
    if (st == STATUS_OK) st = product == OPS_PRODUCT_FP8 ? cuda_fp8_pack(s, m, rows) : upload_weights(s, m, rows);
    if (st == STATUS_OK) st = upload_bias(s, m, bias);
    if (st == STATUS_OK) st = cuda_many_choose(s, m);
    if (st != STATUS_OK) {
        st = fail(e, st, "ops: a matrix of %lld x %lld on device cuda:%d: %s", (long long)m->head.n_out,
                  (long long)m->head.n_in, s->device, status_text((int)st));
        cuda_matrix_close(s, &m->head);
        return st;
    }
    *matrix = &m->head;
    return STATUS_OK;
}

void cuda_matrix_close(void *state, ops_matrix *matrix) {
    (void)state;
    cuda_matrix *m = reinterpret_cast<cuda_matrix *>(matrix);
    (void)cudaFree(m->weights); /* where the memory begins */
    free(m);
}

/* ---- any rows, any weights ----------------------------------------------------------------- */

template <typename T, typename O>
static __global__ void linear_tile(linear_end end, const T *x, weight_view w, int64_t rows, int64_t x_stride, int64_t n_in) {
    follow_last();
    SHARED_MEMORY(memory);
    float *x_tile = reinterpret_cast<float *>(memory);      /* [TILE, TILE_K + 1] */
    float *w_tile = x_tile + TILE * (TILE_K + 1);            /* the same of outputs */
    int64_t first_row = (int64_t)blockIdx.y * TILE, first_out = (int64_t)blockIdx.x * TILE;
    int row = (int)threadIdx.x / TILE, col = (int)threadIdx.x % TILE;
    float sum = 0.0f;
    for (int64_t k0 = 0; k0 < n_in; k0 += TILE_K) {
        for (int i = (int)threadIdx.x; i < TILE * TILE_K; i += TILE * TILE) {
            int line = i / TILE_K, k = i % TILE_K;
            bool in_x = first_row + line < rows && k0 + k < n_in, in_w = first_out + line < end.n_out && k0 + k < n_in;
            x_tile[line * (TILE_K + 1) + k] = in_x ? to_f32(x[(first_row + line) * x_stride + k0 + k]) : 0.0f;
            w_tile[line * (TILE_K + 1) + k] = in_w ? weight_at(&w, first_out + line, k0 + k) : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < TILE_K && k0 + k < n_in; k++)
            sum = fmaf(x_tile[row * (TILE_K + 1) + k], w_tile[col * (TILE_K + 1) + k], sum);
        __syncthreads();
    }
    if (first_row + row < rows && first_out + col < end.n_out) finish_one<O>(&end, sum, first_row + row, first_out + col);
}

template <typename T, typename O>
static void launch_tile(cuda_state *s, const linear_job *j) {
    dim3 grid((unsigned)ceil_div(j->m->head.n_out, TILE), (unsigned)ceil_div(j->rows, TILE));
    LAUNCH((linear_tile<T, O>), grid, TILE * TILE, 2 * TILE * (TILE_K + 1) * sizeof(float), s,
           end_of(j), static_cast<const T *>(j->x), weights_of(j->m), j->rows, j->x_stride, j->m->head.n_in);
}

status cuda_linear(void *state, ops_tensor *out, const ops_tensor *x, const ops_matrix *matrix,
                   const ops_linear_params *params) {
    cuda_state *s = static_cast<cuda_state *>(state);
    linear_job j = {};
    j.m = reinterpret_cast<const cuda_matrix *>(matrix);
    j.out = out->data;
    j.x = x->data;
    j.add = params->add ? params->add->data : NULL;
    j.dtype = x->dtype;
    j.out_dtype = out->dtype;
    j.rows = x->dims[0];
    j.x_stride = tensor_row_stride(x);
    j.act = params->act;
    j.act_from = params->act_from;
    bool is_few = s->is_fast ? j.rows <= FAST_FEW_ROWS : params->is_few;
    if (matrix->product == OPS_PRODUCT_FP8) return cuda_fp8_run(s, &j, is_few);
    bool takes_few = fits_tensor_cores(&j), takes_many = cuda_many_takes(&j);
    if (takes_many && !is_few) return cuda_many_run(s, &j);
    if (takes_few && (is_few || s->is_fast)) return cuda_few_run(s, &j);
    WITH_DTYPE(x->dtype, T, {
        if (out->dtype == x->dtype) launch_tile<T, T>(s, &j);
        else launch_tile<T, float>(s, &j);
    });
    return cuda_launched("linear_tile");
}
