/* out[(n*rows + y)*cols + x, (c*p + i)*p + k] = in[n, c, y*p + i, x*p + k]
 * thread -> one element of out, so writes are dense and reads come in runs of p. Memory: each pixel once. */
#include "ops/cuda/cuda_internal.cuh"

#define THREADS 256

template <typename T>
static __global__ void patch_element_per_thread(T *out, const float *x, int64_t n, int64_t height, int64_t width, int p) {
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= n) return;
    int64_t rows = height / p, cols = width / p, row = at / (3 * p * p), e = at % (3 * p * p);
    int64_t k = e % p, i = e / p % p, c = e / p / p;
    int64_t px = row % cols, py = row / cols % rows, picture = row / cols / rows;
    from_f32(&out[at], x[((picture * 3 + c) * height + py * p + i) * width + px * p + k]);
}

status cuda_patch_rows(void *state, ops_tensor *out, const ops_tensor *x, int patch) {
    cuda_state *s = static_cast<cuda_state *>(state);
    int64_t n = tensor_elements(out);
    WITH_DTYPE(out->dtype, T, {
        LAUNCH((patch_element_per_thread<T>), (unsigned)ceil_div(n, THREADS), THREADS, 0, s->stream,
               static_cast<T *>(out->data), static_cast<const float *>(x->data), n, x->dims[2], x->dims[3], patch);
    });
    return cuda_launched("patch_element_per_thread");
}
