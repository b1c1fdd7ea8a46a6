/* Attention of many rows in bf16 on tiles, included by kernels.h behind amx_kernels.h: a chunk of KEY_CHUNK keys and their
 * values, and 16 rows at a time. Queries and weights lie row by row; keys as words of two dims, [dim / 2][key], and values as
 * words of two keys, [key / 2][dim]. */

#define KEYS_STRIDE    (KEY_CHUNK * 4)
#define WEIGHTS_STRIDE (KEY_CHUNK * 2)

BUILD_CHECK(ATTENTION_TILE_ROWS == TILE_EDGE && KEY_CHUNK == 4 * TILE_EDGE, "a tile of sums for each quarter of the keys");

static void attention_narrow(uint16_t *out, const float *x, int64_t n) {
    for (; n > 0; n -= QUANT_BLOCK, x += QUANT_BLOCK, out += QUANT_BLOCK) narrow_some(out, x, n);
}

/* A key of two halves a word stands where it was in f32. */
static void attention_pack_keys(void *packed, float *keys, int n, int64_t width) {
    const float *rows[KEY_CHUNK];
    for (int i = 0; i < n; i++) {
        float *key = keys + i * width;
        for (int64_t d = 0; d < width; d += QUANT_BLOCK) narrow_line(key + d / 2, key + d);
        rows[i] = key;
    }
    transpose(packed, rows, n, width / 2);
}

static uint64_t attention_pack_values(void *packed, const float *values, int n, int64_t width) {
    const vu high = (vu){0} + 0xffff0000u, exponent = (vu){0} + 0x7f800000u;
    uint64_t broken = 0;
    for (int i = 0; i < KEY_CHUNK; i += 2) {
        const float *pair = values + i * width;
        float *to = (float *)packed + i / 2 * width;
        vi infinite[2] = {{0}};
        for (int64_t d = 0; d < width; d += LANES) {
            vu word[2] = {{0}};
            for (int k = 0; k < 2 && i + k < n; k++) {
                word[k] = (vu)vround_bf16(vload(pair + k * width + d));
                vi is_broken = (vi)((word[k] & exponent) == exponent);
                word[k] = word[k] & (vu)~is_broken;
                infinite[k] = infinite[k] | is_broken;
            }
            vstore(to + d, (vf)((word[1] & high) | (word[0] >> 16)));
        }
        for (int k = 0; k < 2; k++)
            if (_mm512_test_epi32_mask((__m512i)infinite[k], (__m512i)infinite[k])) broken |= UINT64_C(1) << (i + k);
    }
    return broken;
}

static void attention_scores(float *s, const uint16_t *queries, const void *keys, int64_t width) {
    const unsigned char *k = keys;
    const size_t stride = TILE_STRIDE * sizeof *s, q_stride = (size_t)width * sizeof *queries;
    zero_sums();
    for (int64_t d = 0; d < width; d += QUANT_BLOCK, k += TILE_EDGE * KEYS_STRIDE) {
        TILE_LOAD(4, queries + d, q_stride);
        TILE_LOAD(5, k, KEYS_STRIDE);
        TILE_DOT_BF16(0, 4, 5);
        TILE_LOAD(6, k + LINE_BYTES, KEYS_STRIDE);
        TILE_DOT_BF16(1, 4, 6);
        TILE_LOAD(7, k + 2 * LINE_BYTES, KEYS_STRIDE);
        TILE_DOT_BF16(2, 4, 7);
        TILE_LOAD(5, k + 3 * LINE_BYTES, KEYS_STRIDE);
        TILE_DOT_BF16(3, 4, 5);
    }
    TILE_STORE(0, s, stride);
    TILE_STORE(1, s + TILE_EDGE, stride);
    TILE_STORE(2, s + 2 * TILE_EDGE, stride);
    TILE_STORE(3, s + 3 * TILE_EDGE, stride);
}

static void attention_add_values(float *acc, const uint16_t *weights, const void *values, int64_t width) {
    const unsigned char *v = values;
    const size_t stride = (size_t)width * sizeof *acc, half = TILE_EDGE * stride; /* of acc as of values: words of a row */
    TILE_LOAD(4, weights, WEIGHTS_STRIDE);
    TILE_LOAD(5, weights + QUANT_BLOCK, WEIGHTS_STRIDE);
    for (int64_t d = 0; d < width; d += 2 * TILE_EDGE, v += 2 * LINE_BYTES) {
        float *to = acc + d;
        TILE_LOAD(0, to, stride);
        TILE_LOAD(1, to + TILE_EDGE, stride);
        TILE_LOAD(6, v, stride);
        TILE_DOT_BF16(0, 4, 6);
        TILE_LOAD(7, v + LINE_BYTES, stride);
        TILE_DOT_BF16(1, 4, 7);
        TILE_LOAD(6, v + half, stride);
        TILE_DOT_BF16(0, 5, 6);
        TILE_LOAD(7, v + half + LINE_BYTES, stride);
        TILE_DOT_BF16(1, 5, 7);
        TILE_STORE(0, to, stride);
        TILE_STORE(1, to + TILE_EDGE, stride);
    }
}

static const simd_attention attention_bf16 = {
    .narrow = attention_narrow,
    .pack_keys = attention_pack_keys,
    .pack_values = attention_pack_values,
    .scores = attention_scores,
    .add_values = attention_add_values,
    .enter = amx_enter,
    .leave = tile_release,
};
