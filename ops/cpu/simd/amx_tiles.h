/* The instructions on tiles, under names of our own. Tiles are numbered 0 to 7 and belong to the thread; a number is a
 * constant. A tile is at most 16 rows of 64 bytes. Tests put a plain C version in the place of this file. */
#ifndef OPS_CPU_SIMD_AMX_TILES_H
#define OPS_CPU_SIMD_AMX_TILES_H

#include <immintrin.h>
#include <stdint.h>

#define TILES 8

/* The memory form of a configuration. */
typedef struct {
    uint8_t palette, start_row, zero[14];
    uint16_t row_bytes[16]; /* of tiles 0 to 7 */
    uint8_t rows[16];
} tile_config;

/* GCC 12 believes that only the first 8 bytes are read, and may leave the rest unwritten. */
static inline void tile_configure(const tile_config *config) {
    __asm__ volatile("" : : "r"(config) : "memory");
    _tile_loadconfig(config);
}
static inline void tile_release(void) { _tile_release(); }

/* A line of 32 values in bf16, to nearest even; what is below 2^-126 becomes zero. */
static inline void narrow_line(void *to, const float *x) {
    __m512bh line = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
    _mm512_storeu_si512(to, (__m512i)line);
}

#define TILE_ZERO(t)                 _tile_zero(t)
#define TILE_LOAD(t, from, stride)   _tile_loadd(t, from, stride)
#define TILE_STORE(t, to, stride)    _tile_stored(t, to, stride)
#define TILE_DOT_BF16(c, a, b)       _tile_dpbf16ps(c, a, b) /* c [m][n] += a [m][2 k] b [k][n][2] */
#define TILE_DOT_INT8(c, a, b)       _tile_dpbsud(c, a, b)   /* c [m][n] += a [m][4 k] b [k][n][4], signed times unsigned */

#endif
