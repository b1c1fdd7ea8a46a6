/* Eight rows of eight floats, turned by unpacking pairs, then quads, then halves. */
#define TRANSPOSE_EDGE 8

static inline void transpose_square(float *out, int64_t out_stride, const float *const *rows,
                                    int64_t at) {
    __m256 r[8], pair[8], quad[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) r[j] = _mm256_loadu_ps(rows[j] + at);
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) {
        pair[j] = _mm256_unpacklo_ps(r[j], r[j + 1]);
        pair[j + 1] = _mm256_unpackhi_ps(r[j], r[j + 1]);
    }
#pragma GCC unroll 2
    for (int j = 0; j < 8; j += 4) {
        quad[j] = _mm256_shuffle_ps(pair[j], pair[j + 2], 0x44);
        quad[j + 1] = _mm256_shuffle_ps(pair[j], pair[j + 2], 0xee);
        quad[j + 2] = _mm256_shuffle_ps(pair[j + 1], pair[j + 3], 0x44);
        quad[j + 3] = _mm256_shuffle_ps(pair[j + 1], pair[j + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * out_stride, _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * out_stride,
                         _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31));
    }
}
