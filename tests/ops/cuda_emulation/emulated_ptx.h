/* What ops/cuda/ptx.cuh has in assembly, lane by lane. A copy arrives no earlier than the wait that promises it: who
 * reads before it finds NaN. */
#ifndef TESTS_CUDA_EMULATION_EMULATED_PTX_H
#define TESTS_CUDA_EMULATION_EMULATED_PTX_H

#include <cuda_runtime.h>
#include <math.h>

void emulated_copy_async(void *shared, const void *global, size_t bytes, bool is_there);
void copies_commit(void);
void emulated_copies_wait(int n_left);

static inline void copy16_async(void *shared, const void *global, bool is_there) {
    emulated_copy_async(shared, global, 16, is_there);
}
static inline void copy4_async(void *shared, const void *global, bool is_there) {
    emulated_copy_async(shared, global, 4, is_there);
}

template <int n>
static inline void copies_wait(void) { emulated_copies_wait(n); }

static inline void prefetch(const void *) {}

static inline float emulated_f32(__half v) { return __half2float(v); }
static inline float emulated_f32(__nv_bfloat16 v) { return __bfloat162float(v); }

/* Every lane brings its fragments as f32 and adds up its own four elements, k in order. */
template <typename T>
static inline void mma(float d[4], const unsigned a[4], const unsigned b[2]) {
    T halves[12];
    float mine[12]; /* a, then b */
    memcpy(halves, a, 16);
    memcpy(halves + 8, b, 8);
    for (int i = 0; i < 12; i++) mine[i] = emulated_f32(halves[i]);
    const unsigned char *all = emulate_meeting(EMULATED_MMA, mine, sizeof mine);
    unsigned g = emulated_here->lane / 4, t = emulated_here->lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        unsigned high = i / 2, col = 2 * t + i % 2; /* row g or g + 8; column of d */
        for (unsigned k = 0; k < 16; k++) {
            unsigned pair = k % 8 / 2, late = k / 8;
            const float *x = reinterpret_cast<const float *>(all + (4 * g + pair) * EMULATED_SLOT);
            const float *y = reinterpret_cast<const float *>(all + (4 * col + pair) * EMULATED_SLOT);
            d[i] += x[2 * (high + 2 * late) + k % 2] * y[8 + 2 * late + k % 2];
        }
    }
}

static inline float fast_exp2(float x) { return x < -126.0f ? 0.0f : exp2f(x); }

static inline void load_transposed(unsigned r[4], const void *row) {
    if ((uintptr_t)row % 16 != 0) emulated_mistake("a row of a tile that does not begin at 16 bytes");
    const unsigned char *all = emulate_meeting(EMULATED_LDMATRIX, &row, sizeof row);
    unsigned g = emulated_here->lane / 4, t = emulated_here->lane % 4;
    for (unsigned i = 0; i < 4; i++) {
        uint16_t halves[2];
        for (unsigned k = 0; k < 2; k++) {
            const uint16_t *from;
            memcpy(&from, all + (8 * i + 2 * t + k) * EMULATED_SLOT, sizeof from);
            halves[k] = from[g];
        }
        memcpy(&r[i], halves, sizeof halves);
    }
}

#endif
