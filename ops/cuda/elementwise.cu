/* add_table: out[r,c] = x[r,c] + table[r mod n_table,c]
 * scale_columns: out[r,c] = x[r,c] w[c]
 * activate: out[r,c] = act(x[r,c])
 * gate: out[r,c] = act(x[r,c]) x[r,n + c]
 * and cast. thread -> one chunk of eight columns of one row. Memory: each operand once. Arithmetic in f32, rounded to
 * the dtype of out once. In place, a thread reads its chunk before it writes it. */
#include "ops/cuda/cuda_internal.cuh"

#define THREADS 256

/* The row and first column of this thread's chunk; false where it has none. */
static __device__ inline bool chunk_here(int64_t *row, int64_t *col, int64_t rows, int64_t cols) {
    int64_t chunks = (cols + CHUNK - 1) / CHUNK, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    *row = at / chunks;
    *col = at % chunks * CHUNK;
    return *row < rows;
}

static unsigned n_blocks(int64_t rows, int64_t cols) { return (unsigned)ceil_div(rows * ceil_div(cols, CHUNK), THREADS); }

template <typename T, typename U>
static __global__ void add_table_chunk_per_thread(T *out, const T *x, const U *table, int64_t rows, int64_t cols,
                                                  int64_t n_table, bool is_aligned) {
    follow_last();
    int64_t r, c;
    if (!chunk_here(&r, &c, rows, cols)) return;
    float a[CHUNK], b[CHUNK];
    load_chunk(a, x + r * cols + c, cols - c, is_aligned);
    load_chunk(b, table + r % n_table * cols + c, cols - c, is_aligned);
    for (int i = 0; i < CHUNK; i++) a[i] += b[i];
    store_chunk(out + r * cols + c, a, cols - c, is_aligned);
}

template <typename T, typename U>
static void launch_add_table(cuda_state *s, ops_tensor *out, const ops_tensor *x, const ops_tensor *table) {
    int64_t rows = x->dims[0], cols = x->dims[1];
    bool is_aligned = cols % CHUNK == 0 && is_aligned16(out->data) && is_aligned16(x->data) && is_aligned16(table->data);
    LAUNCH((add_table_chunk_per_thread<T, U>), n_blocks(rows, cols), THREADS, 0, s, static_cast<T *>(out->data),
           static_cast<const T *>(x->data), static_cast<const U *>(table->data), rows, cols, table->dims[0], is_aligned);
}

status cuda_add_table(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *table) {
    cuda_state *s = static_cast<cuda_state *>(state);
    WITH_DTYPE(x->dtype, T, {
        if (table->dtype == x->dtype) launch_add_table<T, T>(s, out, x, table);
        else launch_add_table<T, float>(s, out, x, table);
    });
    return cuda_launched("add_table_chunk_per_thread");
}

template <typename T>
static __global__ void scale_columns_chunk_per_thread(T *out, const T *x, const float *w, int64_t rows, int64_t cols,
                                                      bool is_aligned) {
    follow_last();
    int64_t r, c;
    if (!chunk_here(&r, &c, rows, cols)) return;
    float a[CHUNK], b[CHUNK];
    load_chunk(a, x + r * cols + c, cols - c, is_aligned);
    load_chunk(b, w + c, cols - c, is_aligned);
    for (int i = 0; i < CHUNK; i++) a[i] *= b[i];
    store_chunk(out + r * cols + c, a, cols - c, is_aligned);
}

status cuda_scale_columns(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w) {
    cuda_state *s = static_cast<cuda_state *>(state);
    int64_t rows = x->dims[0], cols = x->dims[1];
    bool is_aligned = cols % CHUNK == 0 && is_aligned16(out->data) && is_aligned16(x->data) && is_aligned16(w->data);
    WITH_DTYPE(x->dtype, T, {
        LAUNCH((scale_columns_chunk_per_thread<T>), n_blocks(rows, cols), THREADS, 0, s,
               static_cast<T *>(out->data), static_cast<const T *>(x->data), static_cast<const float *>(w->data), rows,
               cols, is_aligned);
    });
    return cuda_launched("scale_columns_chunk_per_thread");
}

template <typename T>
static __global__ void activate_chunk_per_thread(T *out, const T *x, int64_t rows, int64_t cols, int64_t out_stride,
                                                 int64_t x_stride, ops_act act, bool is_aligned) {
    follow_last();
    int64_t r, c;
    if (!chunk_here(&r, &c, rows, cols)) return;
    float a[CHUNK];
    load_chunk(a, x + r * x_stride + c, cols - c, is_aligned);
    for (int i = 0; i < CHUNK; i++) a[i] = activation(a[i], act);
    store_chunk(out + r * out_stride + c, a, cols - c, is_aligned);
}

status cuda_activate(void *state, ops_tensor *out, const ops_tensor *x, ops_act act) {
    cuda_state *s = static_cast<cuda_state *>(state);
    int64_t rows = x->dims[0], cols = x->dims[1], out_stride = tensor_row_stride(out), x_stride = tensor_row_stride(x);
    bool is_aligned = (cols | out_stride | x_stride) % CHUNK == 0 && is_aligned16(out->data) && is_aligned16(x->data);
    WITH_DTYPE(x->dtype, T, {
        LAUNCH((activate_chunk_per_thread<T>), n_blocks(rows, cols), THREADS, 0, s, static_cast<T *>(out->data),
               static_cast<const T *>(x->data), rows, cols, out_stride, x_stride, act, is_aligned);
    });
    return cuda_launched("activate_chunk_per_thread");
}

template <typename T>
static __global__ void gate_chunk_per_thread(T *out, const T *x, int64_t rows, int64_t cols, ops_act act,
                                             bool is_aligned) {
    follow_last();
    int64_t r, c;
    if (!chunk_here(&r, &c, rows, cols)) return;
    float gate[CHUNK], up[CHUNK];
    load_chunk(gate, x + 2 * r * cols + c, cols - c, is_aligned);
    load_chunk(up, x + (2 * r + 1) * cols + c, cols - c, is_aligned);
    for (int i = 0; i < CHUNK; i++) gate[i] = activation(gate[i], act) * up[i];
    store_chunk(out + r * cols + c, gate, cols - c, is_aligned);
}

status cuda_gate(void *state, ops_tensor *out, const ops_tensor *x, ops_act act) {
    cuda_state *s = static_cast<cuda_state *>(state);
    int64_t rows = out->dims[0], cols = out->dims[1];
    bool is_aligned = cols % CHUNK == 0 && is_aligned16(out->data) && is_aligned16(x->data);
    WITH_DTYPE(x->dtype, T, {
        LAUNCH((gate_chunk_per_thread<T>), n_blocks(rows, cols), THREADS, 0, s, static_cast<T *>(out->data),
               static_cast<const T *>(x->data), rows, cols, act, is_aligned);
    });
    return cuda_launched("gate_chunk_per_thread");
}

template <typename T, typename U>
static __global__ void cast_chunk_per_thread(T *out, const U *x, int64_t n, bool is_aligned) {
    follow_last();
    int64_t r, c;
    if (!chunk_here(&r, &c, 1, n)) return;
    float a[CHUNK];
    bool whole = is_aligned && n - c >= CHUNK;
    load_chunk(a, x + c, n - c, whole);
    store_chunk(out + c, a, n - c, whole);
}

status cuda_cast(void *state, ops_tensor *out, const ops_tensor *x) {
    cuda_state *s = static_cast<cuda_state *>(state);
    if (out->dtype == x->dtype) {
        if (out->data == x->data) return STATUS_OK;
        return cuda_status(cudaMemcpyAsync(out->data, x->data, tensor_bytes(x), cudaMemcpyDeviceToDevice, s->stream),
                           "cudaMemcpyAsync");
    }
    int64_t n = tensor_elements(x);
    bool is_aligned = is_aligned16(out->data) && is_aligned16(x->data);
    WITH_DTYPE(out->dtype, T, WITH_DTYPE(x->dtype, U, {
        LAUNCH((cast_chunk_per_thread<T, U>), n_blocks(1, n), THREADS, 0, s, static_cast<T *>(out->data),
               static_cast<const U *>(x->data), n, is_aligned);
    }));
    return cuda_launched("cast_chunk_per_thread");
}
