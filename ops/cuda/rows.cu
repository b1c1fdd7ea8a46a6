/* Moving and searching whole rows: gather, scatter, copies of cache blocks, argmax.
 *
 * gather, scatter: thread -> one chunk of eight columns of one row; a row whose index lies outside is left as it is.
 * argmax: block -> a row; thread -> the columns t, t + 256, ... */
#include "ops/cuda/cuda_internal.cuh"

#define THREADS 256
#define WARPS   (THREADS / WARP)

static unsigned n_blocks(int64_t rows, int64_t cols) { return (unsigned)ceil_div(rows * ceil_div(cols, CHUNK), THREADS); }

/* False, and the fault set, where the index is outside. */
static __device__ inline bool index_fits(int32_t index, int64_t limit, int *fault) {
    if (index >= 0 && index < limit) return true;
    *fault = 1;
    return false;
}

template <typename T, typename U>
static __global__ void gather_chunk_per_thread(T *out, const U *table, const int32_t *ids, int64_t rows, int64_t cols,
                                               int64_t table_stride, int64_t n_table, int *fault, bool is_aligned) {
    int64_t chunks = (cols + CHUNK - 1) / CHUNK, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t r = at / chunks, c = at % chunks * CHUNK;
    if (r >= rows || !index_fits(ids[r], n_table, fault)) return;
    float v[CHUNK];
    load_chunk(v, table + ids[r] * table_stride + c, cols - c, is_aligned);
    store_chunk(out + r * cols + c, v, cols - c, is_aligned);
}

status cuda_gather_rows(void *state, ops_tensor *out, const ops_tensor *table, const ops_tensor *ids) {
    cuda_state *s = static_cast<cuda_state *>(state);
    int64_t rows = out->dims[0], cols = out->dims[1], stride = tensor_row_stride(table);
    bool is_aligned = (cols | stride) % CHUNK == 0 && is_aligned16(out->data) && is_aligned16(table->data);
    WITH_DTYPE(out->dtype, T, WITH_DTYPE(table->dtype, U, {
        LAUNCH((gather_chunk_per_thread<T, U>), n_blocks(rows, cols), THREADS, 0, s->stream, static_cast<T *>(out->data),
               static_cast<const U *>(table->data), static_cast<const int32_t *>(ids->data), rows, cols, stride,
               table->dims[0], s->fault, is_aligned);
    }));
    return cuda_launched("gather_chunk_per_thread");
}

/* Bits as they are: T is any type of the element's size. */
template <typename T>
static __global__ void scatter_chunk_per_thread(T *out, const T *x, const int32_t *to, int64_t rows, int64_t cols,
                                                int64_t n_out, int *fault, bool is_aligned) {
    int64_t chunks = (cols + CHUNK - 1) / CHUNK, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int64_t r = at / chunks, c = at % chunks * CHUNK;
    if (r >= rows || !index_fits(to[r], n_out, fault)) return;
    const T *from = x + r * cols + c;
    T *target = out + to[r] * cols + c;
    if (is_aligned) copy_chunk(reinterpret_cast<chunk_of<T> *>(target), reinterpret_cast<const chunk_of<T> *>(from));
    else
        for (int i = 0; i < CHUNK && c + i < cols; i++) target[i] = from[i];
}

status cuda_scatter_rows(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *to) {
    cuda_state *s = static_cast<cuda_state *>(state);
    int64_t rows = x->dims[0], cols = x->dims[1];
    bool is_aligned = cols % CHUNK == 0 && is_aligned16(out->data) && is_aligned16(x->data);
    const int32_t *at = static_cast<const int32_t *>(to->data);
    if (x->dtype == OPS_DTYPE_F32)
        LAUNCH((scatter_chunk_per_thread<uint32_t>), n_blocks(rows, cols), THREADS, 0, s->stream,
               static_cast<uint32_t *>(out->data), static_cast<const uint32_t *>(x->data), at, rows, cols, out->dims[0],
               s->fault, is_aligned);
    else
        LAUNCH((scatter_chunk_per_thread<uint16_t>), n_blocks(rows, cols), THREADS, 0, s->stream,
               static_cast<uint16_t *>(out->data), static_cast<const uint16_t *>(x->data), at, rows, cols, out->dims[0],
               s->fault, is_aligned);
    return cuda_launched("scatter_chunk_per_thread");
}

status cuda_kv_copy_block(void *state, ops_tensor *cache, int64_t to, int64_t from) {
    cuda_state *s = static_cast<cuda_state *>(state);
    size_t bytes = (size_t)(cache->dims[1] * cache->dims[2]) * dtype_bytes(cache->dtype);
    unsigned char *data = static_cast<unsigned char *>(cache->data);
    return cuda_status(cudaMemcpyAsync(data + (size_t)to * bytes, data + (size_t)from * bytes, bytes,
                                       cudaMemcpyDeviceToDevice, s->stream), "cudaMemcpyAsync");
}

/* ---- argmax -------------------------------------------------------------------------------- */

#define NOT_FINITE (~0ull) /* above the rank of every number */

/* A number whose order is that of the values, above that of the columns, the first on top. */
static __device__ inline unsigned long long rank_of(float v, int64_t col) {
    if (!isfinite(v)) return NOT_FINITE;
    unsigned bits = __float_as_uint(v + 0.0f); /* -0 counts as 0 */
    unsigned order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (unsigned long long)order << 32 | (0xffffffffu - (unsigned)col);
}

static __global__ void argmax_block_per_row(int32_t *out, const float *x, int64_t cols, int64_t n) {
    SHARED_MEMORY(memory);
    const float *row = x + blockIdx.x * cols;
    unsigned long long best = 0;
    for (int64_t c = threadIdx.x; c < n; c += THREADS) best = larger(best, rank_of(row[c], c));
    best = block_max(best, reinterpret_cast<unsigned long long *>(memory));
    if (threadIdx.x == 0) out[blockIdx.x] = best == NOT_FINITE ? -1 : (int32_t)(0xffffffffu - (unsigned)best);
}

status cuda_argmax_rows(void *state, ops_tensor *out, const ops_tensor *x, int64_t n) {
    cuda_state *s = static_cast<cuda_state *>(state);
    LAUNCH(argmax_block_per_row, (unsigned)x->dims[0], THREADS, WARPS * sizeof(unsigned long long), s->stream,
           static_cast<int32_t *>(out->data), static_cast<const float *>(x->data), x->dims[1], n);
    return cuda_launched("argmax_block_per_row");
}
