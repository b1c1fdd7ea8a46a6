/* Moving whole rows: gather, scatter, copies of cache blocks.
 *
 * gather, scatter: thread -> one chunk of eight columns of one row; a row whose index lies outside is left as it is. */
#include "ops/cuda/cuda_internal.cuh"

#define THREADS 256

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
    follow_last();
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
        LAUNCH((gather_chunk_per_thread<T, U>), n_blocks(rows, cols), THREADS, 0, s, static_cast<T *>(out->data),
               static_cast<const U *>(table->data), static_cast<const int32_t *>(ids->data), rows, cols, stride,
               table->dims[0], s->fault, is_aligned);
    }));
    return cuda_launched("gather_chunk_per_thread");
}

/* Bits as they are: T is any type of the element's size. */
template <typename T>
static __global__ void scatter_chunk_per_thread(T *out, const T *x, const int32_t *to, int64_t rows, int64_t cols,
                                                int64_t n_out, int *fault, bool is_aligned) {
    follow_last();
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
        LAUNCH((scatter_chunk_per_thread<uint32_t>), n_blocks(rows, cols), THREADS, 0, s,
               static_cast<uint32_t *>(out->data), static_cast<const uint32_t *>(x->data), at, rows, cols, out->dims[0],
               s->fault, is_aligned);
    else
        LAUNCH((scatter_chunk_per_thread<uint16_t>), n_blocks(rows, cols), THREADS, 0, s,
               static_cast<uint16_t *>(out->data), static_cast<const uint16_t *>(x->data), at, rows, cols, out->dims[0],
               s->fault, is_aligned);
    return cuda_launched("scatter_chunk_per_thread");
}

status cuda_kv_copy_block(void *state, ops_tensor *cache, int64_t to, int64_t from) {
    cuda_state *s = static_cast<cuda_state *>(state);
    size_t bytes = (size_t)(tensor_elements(cache) / cache->dims[0]) * dtype_bytes(cache->dtype);
    unsigned char *data = static_cast<unsigned char *>(cache->data);
    return cuda_status(cudaMemcpyAsync(data + (size_t)to * bytes, data + (size_t)from * bytes, bytes,
                                       cudaMemcpyDeviceToDevice, s->stream), "cudaMemcpyAsync");
}
