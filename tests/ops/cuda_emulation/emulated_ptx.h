/* What ops/cuda/ptx.cuh has in assembly, lane by lane. A copy arrives no earlier than the wait that promises it: who
 * reads before it finds NaN. */
#ifndef TESTS_CUDA_EMULATION_EMULATED_PTX_H
#define TESTS_CUDA_EMULATION_EMULATED_PTX_H

#include <cuda_runtime.h>

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

static inline float emulated_f32(__half v) { return __half2float(v); }
static inline float emulated_f32(__nv_bfloat16 v) { return __bfloat162float(v); }

/* Every lane brings its fragments and adds up its own four elements, k in order. */
template <typename T>
static inline void mma(float d[4], const unsigned a[4], const unsigned b[2]) {
    struct {
        T a[8], b[4];
    } mine, others[32];
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
    const unsigned char *all = emulate_meeting(EMULATED_MMA, &mine, sizeof mine);
    for (int i = 0; i < 32; i++) memcpy(&others[i], all + i * EMULATED_SLOT, sizeof mine);
    int g = (int)emulated_here->lane / 4, t = (int)emulated_here->lane % 4;
    for (int i = 0; i < 4; i++) {
        int high = i / 2, col = 2 * t + i % 2; /* row g or g + 8; column of d */
        for (int k = 0; k < 16; k++) {
            int lane = k % 8 / 2, word = high + 2 * (k / 8);
            float x = emulated_f32(others[4 * g + lane].a[2 * word + k % 2]);
            float y = emulated_f32(others[4 * col + lane].b[2 * (k / 8) + k % 2]);
            d[i] += x * y;
        }
    }
}

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
