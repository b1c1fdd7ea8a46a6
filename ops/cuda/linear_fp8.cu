/* OPS_PRODUCT_FP8: rows of x become codes with a scale each, and so do outputs' weights when a matrix opens, by one kernel.
 *
 *     many rows    linear_many.cu: codes times codes, or both as bf16, which holds them exactly
 *     few rows     linear_few.cu: codes of x as halves of the results' dtype, weights decoded on the way; many rows too,
 *                  where sizes do not fit cuBLASLt
 *
 * code_row_per_block: block -> a row; thread -> every THREADS-th chunk of eight. The row is read twice, the second time from
 * a cache. Largest magnitudes are compared as whole numbers, in which NaN is the largest of all, so their order is nothing.
 * Codes are filled up with zeros to the length of the weights' rows: no product has to care about n_in. */
#include "ops/cuda/linear.cuh"

#define THREADS      128
#define E4M3_MAX     448.0f
#define NOT_FINITE   0x7f800000u
#define PACK_OUTPUTS 1024 /* whose weights are uploaded and coded at once: 10 MB of scratch at 2560 inputs in f32 */

/* ops/tensor.c has the same of a row on the host, e4m3_scale. */
static __device__ inline float scale_of_row(unsigned most, float *factor) {
    float top = __uint_as_float(most);
    *factor = 0.0f;
    if (most >= NOT_FINITE) return __uint_as_float(0x7fffffffu);
    if (top < OPS_TINY) return 0.0f;
    *factor = E4M3_MAX / top;
    return top / E4M3_MAX;
}

static __device__ inline void round_to(e4m3 *out, float v) { from_f32(out, v); }
template <typename C>
static __device__ inline void round_to(C *out, float v) {
    e4m3 code;
    from_f32(&code, v);
    from_f32(out, to_f32(code));
}

/* codes [rows, row_elements], scales [rows] */
template <typename C, typename T>
static __global__ void __launch_bounds__(THREADS) code_row_per_block(C *codes, float *scales, const T *x, int64_t n_in,
                                                                     int64_t x_stride, int64_t row_elements, bool is_aligned) {
    follow_last();
    SHARED_MEMORY(memory);
    int64_t row = blockIdx.x, first = (int64_t)threadIdx.x * CHUNK, step = THREADS * CHUNK;
    const T *from = x + row * x_stride;
    float v[CHUNK], factor;
    unsigned most = 0;
    for (int64_t k = first; k < n_in; k += step) {
        load_chunk(v, from + k, n_in - k, is_aligned);
        for (int i = 0; i < CHUNK; i++) most = larger(most, __float_as_uint(v[i]) & 0x7fffffffu);
    }
    float scale = scale_of_row(block_max(most, reinterpret_cast<unsigned *>(memory)), &factor);
    if (threadIdx.x == 0) scales[row] = scale;
    for (int64_t k = first; k < row_elements; k += step) {
        chunk_of<C> chunk;
        load_chunk(v, from + k, n_in - k, is_aligned && k < n_in);
        for (int i = 0; i < CHUNK; i++) round_to(&chunk.v[i], v[i] * factor);
        copy_chunk(reinterpret_cast<chunk_of<C> *>(codes + row * row_elements + k), &chunk);
    }
}

typedef struct {
    const void *x;
    ops_dtype dtype;
    int64_t rows, n_in, x_stride;
} plain_rows;

template <typename C>
static status launch(cuda_state *s, void *codes, float *scales, const plain_rows *r, int64_t row_elements) {
    bool is_aligned = is_aligned16(r->x) && r->n_in % CHUNK == 0 && r->x_stride % CHUNK == 0;
    WITH_DTYPE(r->dtype, T, {
        LAUNCH((code_row_per_block<C, T>), (unsigned)r->rows, THREADS, THREADS / WARP * sizeof(unsigned), s,
               static_cast<C *>(codes), scales, static_cast<const T *>(r->x), r->n_in, r->x_stride, row_elements, is_aligned);
    });
    return cuda_launched("code_row_per_block");
}

/* dtype: E4M3, or a half that holds what codes stand for. */
static status code_rows(cuda_state *s, void *codes, ops_dtype dtype, float *scales, const plain_rows *r, int64_t row_elements) {
    if (dtype == OPS_DTYPE_E4M3) return launch<e4m3>(s, codes, scales, r, row_elements);
    if (dtype == OPS_DTYPE_F16) return launch<__half>(s, codes, scales, r, row_elements);
    return launch<__nv_bfloat16>(s, codes, scales, r, row_elements);
}

/* ---- opening ------------------------------------------------------------------------------- */

/* Some outputs of a matrix. */
typedef struct {
    const ops_rows *from;
    int64_t first;
} outputs;

static void fill_outputs(const void *user, unsigned char *pinned, int64_t first, int64_t n) {
    const outputs *o = static_cast<const outputs *>(user);
    o->from->read(o->from->user, pinned, dtype_row_bytes(o->from->dtype, o->from->n_in), o->first + first, n);
}

/* Blocks become f32; a row of them is read behind the values. */
static void fill_values(const void *user, unsigned char *pinned, int64_t first, int64_t n) {
    const outputs *o = static_cast<const outputs *>(user);
    const int64_t dims[2] = {1, o->from->n_in};
    size_t row_bytes = (size_t)dims[1] * sizeof(float);
    const ops_tensor row = tensor_make(pinned + (size_t)n * row_bytes, OPS_PLACE_HOST, o->from->dtype, 2, dims);
    for (int64_t r = 0; r < n; r++, pinned += row_bytes) {
        o->from->read(o->from->user, static_cast<unsigned char *>(row.data), 0, o->first + first + r, 1);
        tensor_row_values(reinterpret_cast<float *>(pinned), &row, 0);
    }
}

static status pack_outputs(cuda_state *s, cuda_matrix *m, const outputs *o, int64_t n) {
    bool is_blocks = dtype_is_quantized(o->from->dtype);
    plain_rows r = {NULL, is_blocks ? OPS_DTYPE_F32 : o->from->dtype, n, m->head.n_in, m->head.n_in};
    size_t row_bytes = dtype_row_bytes(r.dtype, r.n_in);
    void *rows;
    TRY(cuda_scratch(s, &rows, (size_t)n * row_bytes));
    cuda_rows_upload u = {fill_outputs, o, n, {static_cast<unsigned char *>(rows), NULL}, {row_bytes, 0}, 0};
    if (is_blocks) {
        u.fill = fill_values;
        u.spare_bytes = dtype_row_bytes(o->from->dtype, r.n_in);
    }
    TRY(cuda_upload_rows(s, &u));
    r.x = rows;
    return code_rows(s, m->weights + o->first * m->row_elements, OPS_DTYPE_E4M3, m->output_scales + o->first, &r, m->row_elements);
}

status cuda_fp8_pack(cuda_state *s, cuda_matrix *m, const ops_rows *from) {
    for (outputs o = {from, 0}; o.first < from->n_out; o.first += PACK_OUTPUTS)
        TRY(pack_outputs(s, m, &o, from->n_out - o.first < PACK_OUTPUTS ? from->n_out - o.first : PACK_OUTPUTS));
    return STATUS_OK;
}

/* ---- running ------------------------------------------------------------------------------- */

status cuda_fp8_run(cuda_state *s, const linear_job *j, bool is_few) {
    const cuda_matrix *m = j->m;
    bool is_many = !is_few && m->has_many[0];
    linear_job coded = *j;
    coded.dtype = is_many ? m->many_dtype : j->dtype == OPS_DTYPE_F16 ? OPS_DTYPE_F16 : OPS_DTYPE_BF16;
    coded.x_stride = m->row_elements;
    size_t codes_bytes = (size_t)(j->rows * m->row_elements) * dtype_bytes(coded.dtype); /* row_elements are a multiple of 64 */
    void *codes;
    TRY(cuda_codes(s, &codes, codes_bytes + (size_t)j->rows * sizeof(float)));
    float *row_scales = reinterpret_cast<float *>(static_cast<unsigned char *>(codes) + codes_bytes);
    const plain_rows rows = {j->x, j->dtype, j->rows, m->head.n_in, j->x_stride};
    TRY(code_rows(s, codes, coded.dtype, row_scales, &rows, m->row_elements));
    coded.x = codes;
    coded.row_scales = row_scales;
    return is_many ? cuda_many_run_codes(s, &coded) : cuda_few_run(s, &coded);
}
