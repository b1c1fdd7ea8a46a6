/* out[(n*rows + y)*cols + x, (c*p + i)*p + k] = levels[c, in[n, y*p + i, x*p + k, c]]
 * thread -> eight elements of out beside each other, whichever rows they are of: writes are dense, reads are bytes three
 * apart in runs of p, the other two of three for channels that are not far; levels are 3 KB and stay near. Memory: out
 * once, an eighth to a quarter of that for the pixels. Where the first element comes from is divided out, the others are
 * steps from it. */
#include "ops/cuda/cuda_internal.cuh"

#define THREADS 256

typedef struct {
    int64_t n; /* elements of out */
    int64_t height, width;
    unsigned p, rows, cols; /* of a picture */
    bool is_aligned;
} patch_job;

/* A place in the picture: element (c, i, k) of a row of out. */
typedef struct {
    int64_t at;
    unsigned c, i, k;
} patch_place;

static __device__ inline patch_place place_of(const patch_job *j, uint64_t row, unsigned element) {
    unsigned line = element / j->p, patches = j->rows * j->cols;
    unsigned picture = (unsigned)(row / patches), patch = (unsigned)(row - (uint64_t)picture * patches);
    unsigned y = patch / j->cols, x = patch - y * j->cols;
    patch_place at = {0, line / j->p, line % j->p, element - line * j->p};
    at.at = (((int64_t)picture * j->height + y * j->p + at.i) * j->width + x * j->p + at.k) * 3 + at.c;
    return at;
}

/* The next one of the row; false behind its last. */
static __device__ inline bool step_on(patch_place *at, const patch_job *j) {
    at->at += 3;
    if (++at->k < j->p) return true;
    at->k = 0;
    at->at += (j->width - j->p) * 3;
    if (++at->i < j->p) return true;
    at->i = 0;
    at->at += 1 - j->p * j->width * 3;
    return ++at->c < 3;
}

template <typename T>
static __global__ void patch_chunk_per_thread(T *out, const unsigned char *x, const float *levels, patch_job j) {
    follow_last();
    int64_t first = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * CHUNK, n = j.n - first;
    if (n <= 0) return;
    const unsigned width = 3 * j.p * j.p;
    uint64_t row = (uint64_t)first / width;
    patch_place at = place_of(&j, row, (unsigned)((uint64_t)first - row * width));
    float v[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        if (i >= n) continue;
        v[i] = levels[at.c * 256 + x[at.at]];
        if (!step_on(&at, &j) && i + 1 < n) at = place_of(&j, ++row, 0);
    }
    store_chunk(out + first, v, n, j.is_aligned && n >= CHUNK);
}

status cuda_patch_rows(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *levels, int patch) {
    cuda_state *s = static_cast<cuda_state *>(state);
    patch_job j = {tensor_elements(out), x->dims[1], x->dims[2], (unsigned)patch, 0, 0, is_aligned16(out->data)};
    j.rows = (unsigned)(j.height / patch);
    j.cols = (unsigned)(j.width / patch);
    WITH_DTYPE(out->dtype, T, {
        LAUNCH((patch_chunk_per_thread<T>), (unsigned)ceil_div(ceil_div(j.n, CHUNK), THREADS), THREADS, 0, s,
               static_cast<T *>(out->data), static_cast<const unsigned char *>(x->data),
               static_cast<const float *>(levels->data), j);
    });
    return cuda_launched("patch_chunk_per_thread");
}
