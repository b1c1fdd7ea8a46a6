/* Private to the files of ops/cuda that multiply: what they are called with, and how a sum becomes a result. */
#ifndef OPS_CUDA_LINEAR_CUH
#define OPS_CUDA_LINEAR_CUH

#include "ops/cuda/cuda_internal.cuh"

typedef struct {
    const cuda_matrix *m;
    void *out; /* of x's dtype, or f32 */
    const void *x, *add; /* add as out; NULL: nothing */
    ops_dtype dtype, out_dtype;
    int64_t rows, x_stride;
    ops_act act;
    int64_t act_from;
    const float *row_scales; /* OPS_PRODUCT_FP8: x is codes; otherwise NULL */
} linear_job;

/* What follows a sum, as a kernel sees it. */
typedef struct {
    void *out;
    const void *add;
    const float *bias; /* NULL: it is in the sum */
    const float *output_scales, *row_scales; /* of codes; NULL: there are none */
    int64_t n_out, act_from;
    ops_act act;
} linear_end;

static inline linear_end end_of(const linear_job *j) {
    linear_end e = {j->out, j->add, j->m->bias, j->m->output_scales, j->row_scales, j->m->head.n_out, j->act_from, j->act};
    return e;
}

/* What all results of an output end with. */
typedef struct {
    float scale, bias;
} output_end;

static __device__ inline output_end output_end_of(const linear_end *e, int64_t o) {
    output_end end = {e->row_scales ? e->output_scales[o] : 1.0f, e->bias ? e->bias[o] : 0.0f};
    return end;
}

/* A sum with all that follows but what is added. */
static __device__ inline float end_sum(const linear_end *e, const output_end *end, float sum, int64_t row, int64_t o) {
    if (e->row_scales) sum = sum * end->scale * e->row_scales[row];
    if (e->bias) sum += end->bias;
    return o >= e->act_from ? activation(sum, e->act) : sum;
}

/* What is added to it, 0 without. O is the type of out. */
template <typename O>
static __device__ inline float added(const linear_end *e, int64_t at) {
    return e->add ? to_f32(static_cast<const O *>(e->add)[at]) : 0.0f;
}

template <typename O>
static __device__ inline void store_result(const linear_end *e, float result, float more, int64_t at) {
    from_f32(&static_cast<O *>(e->out)[at], e->add ? result + more : result);
}

template <typename O>
static __device__ inline void finish_one(const linear_end *e, float sum, int64_t row, int64_t o) {
    output_end end = output_end_of(e, o);
    int64_t at = row * e->n_out + o;
    store_result<O>(e, end_sum(e, &end, sum, row, o), added<O>(e, at), at);
}

/* Weights as a kernel sees them. */
typedef struct {
    const unsigned char *data;
    const __nv_bfloat16 *scales; /* of blocks only */
    int64_t row_elements;
    ops_dtype dtype;
} weight_view;

static inline weight_view weights_of(const cuda_matrix *m) {
    weight_view w = {m->weights, m->scales, m->row_elements, m->head.dtype};
    return w;
}

/* One weight, as exact as f32 holds it; of codes without a scale a code. */
static __device__ inline float weight_at(const weight_view *w, int64_t o, int64_t k) {
    int64_t at = o * w->row_elements + k;
    if (w->dtype == OPS_DTYPE_F32) return reinterpret_cast<const float *>(w->data)[at];
    if (w->dtype == OPS_DTYPE_F16) return to_f32(reinterpret_cast<const __half *>(w->data)[at]);
    if (w->dtype == OPS_DTYPE_BF16) return to_f32(reinterpret_cast<const __nv_bfloat16 *>(w->data)[at]);
    if (w->dtype == OPS_DTYPE_E4M3) return to_f32(reinterpret_cast<const e4m3 *>(w->data)[at]);
    float scale = to_f32(w->scales[at / QUANT_BLOCK]);
    if (w->dtype == OPS_DTYPE_Q8) return (float)reinterpret_cast<const signed char *>(w->data)[at] * scale;
    int j = (int)(k % QUANT_BLOCK);
    int code = w->data[at / QUANT_BLOCK * (QUANT_BLOCK / 2) + j % (QUANT_BLOCK / 2)] >> (j < QUANT_BLOCK / 2 ? 0 : 4) & 15;
    return (float)(code - 8) * scale;
}

/* Tensor cores want rows that begin at multiples of 16 bytes. */
static inline bool fits_tensor_cores(const linear_job *j) {
    bool is_half = j->dtype != OPS_DTYPE_F32;
    bool same = j->m->head.dtype == j->dtype || dtype_is_quantized(j->m->head.dtype);
    return is_half && same && j->m->head.n_in % CHUNK == 0 && j->x_stride % CHUNK == 0 && is_aligned16(j->x);
}

/* fits_tensor_cores, or rows of codes */
MUST_USE status cuda_few_run(cuda_state *s, const linear_job *j);

/* Whether cuBLASLt multiplies the matrix: has_many and many_dtype. */
MUST_USE status cuda_many_choose(cuda_state *s, cuda_matrix *m);
void cuda_products_close(cuda_state *s);
bool cuda_many_takes(const linear_job *j);
MUST_USE status cuda_many_run(cuda_state *s, const linear_job *j); /* cuda_many_takes */
MUST_USE status cuda_many_run_codes(cuda_state *s, const linear_job *j); /* has_many, x codes of many_dtype */

/* OPS_PRODUCT_FP8: codes and scales of the weights; a product, rows of any dtype, size and alignment. */
MUST_USE status cuda_fp8_pack(cuda_state *s, cuda_matrix *m, const ops_rows *from);
MUST_USE status cuda_fp8_run(cuda_state *s, const linear_job *j, bool is_few);

#endif
