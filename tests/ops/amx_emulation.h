/* The instructions of ops/cpu/simd/amx_tiles.h in plain C, after Intel's manual: eight tiles a thread, products of bf16 in
 * two sums a lane (even and odd k) that begin at zero, f32 with subnormal numbers taken and given as zero; of bytes, exact
 * and modulo 2^32. What the configuration does not allow is our own mistake (CHECK), where the processor raises a fault. */
#ifndef TESTS_OPS_AMX_EMULATION_H
#define TESTS_OPS_AMX_EMULATION_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/check.h"
#include "ops/tensor.h"

#define TILES 8

typedef struct {
    uint8_t palette, start_row, zero[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

typedef union {
    unsigned char bytes[64];
    int8_t i8[64];
    int32_t i32[16];
    uint16_t bf16[32];
    float f32[16];
} tile_row;

BUILD_CHECK(sizeof(tile_config) == 64 && sizeof(tile_row) == 64, "as the processor has them");

static _Thread_local struct {
    tile_config config;
    tile_row rows[TILES][16];
} tiles;

static inline void tile_configure(const tile_config *config) {
    CHECK(config->palette == 1 && config->start_row == 0, "palette 1 from the start");
    for (int t = 0; t < TILES; t++) CHECK(config->rows[t] <= 16 && config->row_bytes[t] <= 64, "a tile is 16 rows of 64 bytes");
    memset(&tiles, 0, sizeof tiles);
    tiles.config = *config;
}

static inline void tile_release(void) { memset(&tiles, 0, sizeof tiles); }

static inline void emulate_zero(int t) {
    CHECK(tiles.config.palette == 1, "tiles are configured");
    memset(tiles.rows[t], 0, sizeof tiles.rows[t]);
}

static inline void emulate_load(int t, const void *from, size_t stride) {
    emulate_zero(t);
    for (int r = 0; r < tiles.config.rows[t]; r++)
        memcpy(&tiles.rows[t][r], (const unsigned char *)from + (size_t)r * stride, tiles.config.row_bytes[t]);
}

static inline void emulate_store(int t, void *to, size_t stride) {
    CHECK(tiles.config.palette == 1, "tiles are configured");
    for (int r = 0; r < tiles.config.rows[t]; r++)
        memcpy((unsigned char *)to + (size_t)r * stride, &tiles.rows[t][r], tiles.config.row_bytes[t]);
}

static inline void expect_shapes(int c, int a, int b) {
    const tile_config *k = &tiles.config;
    CHECK(k->palette == 1 && c != a && a != b && c != b, "three tiles");
    CHECK(k->row_bytes[a] == 4 * k->rows[b] && k->row_bytes[b] == k->row_bytes[c] && k->rows[a] == k->rows[c],
          "rows and columns of a product fit");
}

static inline float flushed(float v) { return fabsf(v) < 0x1p-126f ? copysignf(0.0f, v) : v; }

static inline float widened(uint16_t v) {
    uint32_t bits = (uint32_t)v << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return flushed(f);
}

static inline void emulate_dot_bf16(int c, int a, int b) {
    expect_shapes(c, a, b);
    for (int m = 0; m < tiles.config.rows[c]; m++) {
        float even[16] = {0}, odd[16] = {0};
        for (int k = 0; k < tiles.config.rows[b]; k++) {
            float a0 = widened(tiles.rows[a][m].bf16[2 * k]), a1 = widened(tiles.rows[a][m].bf16[2 * k + 1]);
            for (int n = 0; n < tiles.config.row_bytes[c] / 4; n++) {
                even[n] = flushed(fmaf(a0, widened(tiles.rows[b][k].bf16[2 * n]), even[n]));
                odd[n] = flushed(fmaf(a1, widened(tiles.rows[b][k].bf16[2 * n + 1]), odd[n]));
            }
        }
        for (int n = 0; n < tiles.config.row_bytes[c] / 4; n++)
            tiles.rows[c][m].f32[n] = flushed(flushed(tiles.rows[c][m].f32[n]) + flushed(even[n] + odd[n]));
    }
}

static inline void emulate_dot_int8(int c, int a, int b) {
    expect_shapes(c, a, b);
    for (int m = 0; m < tiles.config.rows[c]; m++)
        for (int k = 0; k < tiles.config.rows[b]; k++)
            for (int n = 0; n < tiles.config.row_bytes[c] / 4; n++) {
                uint32_t sum = (uint32_t)tiles.rows[c][m].i32[n];
                for (int i = 0; i < 4; i++)
                    sum += (uint32_t)(tiles.rows[a][m].i8[4 * k + i] * tiles.rows[b][k].bytes[4 * n + i]);
                tiles.rows[c][m].i32[n] = (int32_t)sum;
            }
}

static inline void narrow_line(void *to, const float *x) {
    for (int i = 0; i < 32; i++) {
        uint16_t half = f32_to_bf16(flushed(x[i]));
        memcpy((unsigned char *)to + 2 * i, &half, sizeof half);
    }
}

#define TILE_ZERO(t)               emulate_zero(t)
#define TILE_LOAD(t, from, stride) emulate_load(t, from, stride)
#define TILE_STORE(t, to, stride)  emulate_store(t, to, stride)
#define TILE_DOT_BF16(c, a, b)     emulate_dot_bf16(c, a, b)
#define TILE_DOT_INT8(c, a, b)     emulate_dot_int8(c, a, b)

#endif
