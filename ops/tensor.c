#include "ops/tensor.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/check.h"

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    [OPS_DTYPE_F32] = {"f32", 4}, [OPS_DTYPE_F16] = {"f16", 2}, [OPS_DTYPE_BF16] = {"bf16", 2},
    [OPS_DTYPE_I32] = {"i32", 4}, [OPS_DTYPE_U8] = {"u8", 1},   [OPS_DTYPE_Q8] = {"q8", 0},
    [OPS_DTYPE_Q4] = {"q4", 0},   [OPS_DTYPE_E4M3] = {"e4m3", 1},
};

ops_tensor tensor_make(void *data, ops_place place, ops_dtype dtype, int n_dims,
                       const int64_t *dims) {
    CHECK(n_dims >= 1 && n_dims <= OPS_DIMS_MAX, "a tensor has 1 to 4 dims");
    ops_tensor t = {.data = data, .place = place, .dtype = dtype, .n_dims = n_dims};
    for (int i = 0; i < OPS_DIMS_MAX; i++) t.dims[i] = i < n_dims ? dims[i] : 1;
    return t;
}

int64_t tensor_elements(const ops_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->n_dims; i++)
        CHECK(t->dims[i] >= 0 && !__builtin_mul_overflow(n, t->dims[i], &n),
              "the dims of a tensor are not negative and their product fits");
    return n;
}

size_t tensor_bytes(const ops_tensor *t) {
    size_t bytes;
    int64_t n = tensor_elements(t), width = t->dims[t->n_dims - 1];
    if (dtype_is_quantized(t->dtype)) return width ? (size_t)(n / width) * dtype_row_bytes(t->dtype, width) : 0;
    CHECK(!__builtin_mul_overflow((size_t)n, dtype_bytes(t->dtype), &bytes), "the bytes of a tensor fit");
    return bytes;
}

bool dtype_is_quantized(ops_dtype dtype) { return dtype == OPS_DTYPE_Q8 || dtype == OPS_DTYPE_Q4; }

static size_t block_bytes(ops_dtype dtype) {
    return sizeof(uint16_t) + (dtype == OPS_DTYPE_Q8 ? QUANT_BLOCK : QUANT_BLOCK / 2);
}

size_t dtype_row_bytes(ops_dtype dtype, int64_t n) {
    if (dtype_is_quantized(dtype)) return (size_t)((n + QUANT_BLOCK - 1) / QUANT_BLOCK) * block_bytes(dtype);
    return (size_t)n * dtype_bytes(dtype);
}

size_t dtype_bytes(ops_dtype dtype) {
    CHECK((unsigned)dtype < sizeof dtypes / sizeof dtypes[0], "a dtype is one of the list");
    return dtypes[dtype].bytes;
}

const char *dtype_name(ops_dtype dtype) {
    return (unsigned)dtype < sizeof dtypes / sizeof dtypes[0] ? dtypes[dtype].name : "unknown";
}

ops_tensor tensor_rows(const ops_tensor *t, int64_t first, int64_t n) {
    CHECK(first >= 0 && n >= 0 && first <= t->dims[0] && n <= t->dims[0] - first,
          "rows of a view lie inside it");
    ops_tensor view = *t;
    int64_t row_elements = 1;
    for (int i = 1; i < t->n_dims; i++) row_elements *= t->dims[i];
    if (t->row_stride) row_elements = t->row_stride;
    if (t->data && first > 0)
        view.data = (unsigned char *)t->data + (size_t)first * dtype_row_bytes(t->dtype, row_elements);
    view.dims[0] = n;
    return view;
}

int64_t tensor_row_stride(const ops_tensor *t) { return t->row_stride ? t->row_stride : t->dims[1]; }

ops_tensor tensor_columns(const ops_tensor *t, int64_t first, int64_t n) {
    CHECK(t->n_dims == 2 && !dtype_is_quantized(t->dtype), "columns are of rows of numbers");
    CHECK(first >= 0 && n >= 0 && first <= t->dims[1] && n <= t->dims[1] - first, "columns of a view lie inside it");
    ops_tensor view = *t;
    if (t->data) view.data = (unsigned char *)t->data + (size_t)first * dtype_bytes(t->dtype);
    view.dims[1] = n;
    view.row_stride = tensor_row_stride(t);
    return view;
}

ops_tensor tensor_first(const ops_tensor *t, int64_t n_rows, int64_t width) {
    ops_tensor view = *t;
    CHECK(!t->row_stride, "the first elements stand one behind the other");
    view.n_dims = 2;
    view.dims[0] = n_rows;
    view.dims[1] = width;
    view.dims[2] = view.dims[3] = 1;
    CHECK(tensor_elements(&view) <= tensor_elements(t), "the first rows of a tensor are in it");
    return view;
}

ops_tensor tensor_reshape(const ops_tensor *t, int n_dims, const int64_t *dims) {
    CHECK(!t->row_stride, "what is reshaped is contiguous");
    ops_tensor view = tensor_make(t->data, t->place, t->dtype, n_dims, dims);
    CHECK(tensor_elements(&view) == tensor_elements(t), "a reshape keeps the number of elements");
    return view;
}

/* From the first byte to the last, what lies between rows included. */
static size_t reach_bytes(const ops_tensor *t) {
    size_t bytes = tensor_bytes(t);
    if (!t->row_stride || bytes == 0) return bytes;
    return ((size_t)(t->dims[0] - 1) * (size_t)t->row_stride + (size_t)t->dims[1]) * dtype_bytes(t->dtype);
}

bool tensor_overlaps(const ops_tensor *a, const ops_tensor *b) {
    if ((uintptr_t)a->data > (uintptr_t)b->data) return tensor_overlaps(b, a);
    size_t a_bytes = reach_bytes(a), b_bytes = reach_bytes(b), apart = (size_t)((uintptr_t)b->data - (uintptr_t)a->data);
    if (a->place != b->place || a_bytes == 0 || b_bytes == 0 || apart >= a_bytes) return false;
    size_t stride_bytes = (size_t)a->row_stride * dtype_bytes(a->dtype);
    if (!a->row_stride || !b->row_stride || stride_bytes != (size_t)b->row_stride * dtype_bytes(b->dtype)) return true;
    size_t column = apart % stride_bytes; /* where b's rows begin in those of a */
    return column < (size_t)a->dims[1] * dtype_bytes(a->dtype) ||
           column + (size_t)b->dims[1] * dtype_bytes(b->dtype) > stride_bytes;
}

/* ---- one number ---------------------------------------------------------------------------- */

static float float_of_bits(uint32_t bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static uint32_t bits_of_float(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

/* f16: 1 sign, 5 exponent (bias 15), 10 fraction. Subnormals are fraction * 2^-24, exact in f32. */
float f16_to_f32(uint16_t v) {
    uint32_t sign = (uint32_t)(v & 0x8000u) << 16;
    uint32_t exponent = (v >> 10) & 0x1fu, fraction = v & 0x3ffu;
    if (exponent == 0x1f) /* infinity, or NaN made quiet as the processors do */
        return float_of_bits(sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0));
    if (exponent == 0) {
        float magnitude = (float)fraction * 0x1p-24f;
        return float_of_bits(sign | bits_of_float(magnitude));
    }
    return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

uint16_t f32_to_f16(float v) {
    uint32_t bits = bits_of_float(v);
    uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) /* NaN: keep the top of the payload, make it quiet */
        return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds past 65504 */
    if (magnitude < 0x38800000u) { /* below 2^-14: the sum's last bit is 2^-24, so it rounds for us */
        float shifted = float_of_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (bits_of_float(shifted) - 0x3f000000u));
    }
    uint32_t odd = (magnitude >> 13) & 1u;
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

float bf16_to_f32(uint16_t v) { return float_of_bits((uint32_t)v << 16); }

uint16_t f32_to_bf16(float v) {
    uint32_t bits = bits_of_float(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* The exponent moves to its place in f32, where it means 2^120 times less; subnormals are ones there too. */
float e4m3_to_f32(uint8_t v) {
    if ((v & 0x7fu) == 0x7fu) return NAN;
    return float_of_bits((uint32_t)(v & 0x80u) << 24 | (uint32_t)(v & 0x7fu) << 20) * 0x1p120f;
}

uint8_t f32_to_e4m3(float v) {
    uint32_t bits = bits_of_float(v);
    uint32_t sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fu;
    if (magnitude >= 0x43e00000u) return (uint8_t)(sign | 0x7eu);
    if (magnitude < 0x3c800000u) { /* below 2^-6: the sum's last bit is 2^-9, so it rounds for us */
        float shifted = float_of_bits(magnitude) + 0x1p14f;
        return (uint8_t)(sign | (bits_of_float(shifted) - 0x46800000u));
    }
    uint32_t odd = (magnitude >> 20) & 1u;
    return (uint8_t)(sign | ((magnitude - 0x3c000000u + 0x7ffffu + odd) >> 20));
}

float e4m3_scale(const float *x, int64_t n, float *factor) {
    uint32_t most = 0; /* as whole numbers, so that NaN is the largest */
    for (int64_t i = 0; i < n; i++) {
        uint32_t magnitude = bits_of_float(x[i]) & 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
    }
    float top = float_of_bits(most);
    *factor = 0.0f;
    if (most >= 0x7f800000u) return NAN;
    if (top < OPS_TINY) return 0.0f;
    *factor = 448.0f / top;
    return top / 448.0f;
}

/* What the code of v stands for, without a branch on the way. */
static float rounded_to_e4m3(float v) {
    uint32_t bits = bits_of_float(v), magnitude = bits & 0x7fffffffu;
    uint32_t kept = magnitude < 0x43e00000u ? magnitude : 0x43e00000u; /* 448 */
    float small = float_of_bits(kept) + 0x1p14f - 0x1p14f; /* the sum's last bit is 2^-9, as that of codes below 2^-6 */
    uint32_t large = (kept + 0x7ffffu + (kept >> 20 & 1u)) & 0xfff00000u;
    uint32_t rounded = (kept < 0x3c800000u ? bits_of_float(small) : large) | (bits & 0x80000000u);
    return float_of_bits(magnitude > 0x7f800000u ? 0x7fc00000u : rounded);
}

void e4m3_round(float *out, const float *x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++) out[i] = rounded_to_e4m3(x[i] * factor);
}

/* ---- blocks -------------------------------------------------------------------------------- */

static float block_value(const unsigned char *block, ops_dtype dtype, int j) {
    uint16_t scale;
    memcpy(&scale, block, sizeof scale);
    const unsigned char *codes = block + sizeof scale;
    if (dtype == OPS_DTYPE_Q8) return (float)(int8_t)codes[j] * bf16_to_f32(scale);
    int half = codes[j % (QUANT_BLOCK / 2)] >> (j < QUANT_BLOCK / 2 ? 0 : 4) & 15;
    return (float)(half - 8) * bf16_to_f32(scale);
}

/* v, which is below 2^22, to the nearest whole number (in the sum the last bit is 1), and that between the two. */
static int whole_between(float v, int low, int high) {
    int whole = (int)(v + 0x1.8p23f - 0x1.8p23f);
    return whole < low ? low : whole > high ? high : whole;
}

/* What values are divided by: no step, no codes. */
static float divisor(float step) { return step != 0.0f ? step : INFINITY; }

/* The codes of a block with this step; returns the sum of squared errors. */
static double code_block(int codes[QUANT_BLOCK], const float x[QUANT_BLOCK], float step, int low, int high) {
    double sum = 0.0;
    for (int j = 0; j < QUANT_BLOCK; j++) codes[j] = whole_between(x[j] / divisor(step), low, high);
    for (int j = 0; j < QUANT_BLOCK; j++) {
        double error = (double)x[j] - (double)((float)codes[j] * step);
        sum += error * error;
    }
    return sum;
}

static float largest(const float x[QUANT_BLOCK]) {
    float best = 0.0f;
    for (int j = 0; j < QUANT_BLOCK; j++)
        if (fabsf(x[j]) > fabsf(best)) best = x[j];
    return best;
}

#define STEPS_TRIED 9

static void quantize_block_q8(unsigned char *out, const float x[QUANT_BLOCK]) {
    uint32_t most = 0; /* as whole numbers */
    for (int j = 0; j < QUANT_BLOCK; j++) {
        uint32_t magnitude = bits_of_float(x[j]) & 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
    }
    uint16_t scale = f32_to_bf16(float_of_bits(most) / 127.0f);
    const float step = bf16_to_f32(scale);
    memcpy(out, &scale, sizeof scale);
    for (int j = 0; j < QUANT_BLOCK; j++)
        out[sizeof scale + (size_t)j] = (unsigned char)whole_between(x[j] / divisor(step), -127, 127);
}

/* There is one code more below zero than above: the largest value gets it, so a step may be negative. */
static void quantize_block_q4(unsigned char *out, const float x[QUANT_BLOCK]) {
    int codes[QUANT_BLOCK], best_codes[QUANT_BLOCK];
    float top = largest(x) / -8.0f;
    double best = INFINITY;
    uint16_t scale = 0;
    for (int i = 0; i < STEPS_TRIED; i++) {
        uint16_t tried = f32_to_bf16(top * (0.8f + 0.04f * (float)i));
        double sum = code_block(codes, x, bf16_to_f32(tried), -8, 7);
        if (i > 0 && sum >= best) continue;
        best = sum;
        scale = tried;
        memcpy(best_codes, codes, sizeof codes);
    }
    memcpy(out, &scale, sizeof scale);
    for (int j = 0; j < QUANT_BLOCK / 2; j++)
        out[sizeof scale + (size_t)j] = (unsigned char)(best_codes[j] + 8 + (best_codes[j + QUANT_BLOCK / 2] + 8) * 16);
}

void quantize_row(void *out, ops_dtype dtype, const float *x, int64_t n) {
    CHECK(dtype_is_quantized(dtype), "blocks are of q8 or q4");
    unsigned char *to = out;
    for (int64_t i = 0; i < n; i += QUANT_BLOCK, to += block_bytes(dtype)) {
        float block[QUANT_BLOCK] = {0};
        if (n - i >= QUANT_BLOCK) memcpy(block, x + i, sizeof block);
        else memcpy(block, x + i, (size_t)(n - i) * sizeof *block);
        for (int j = 0; j < QUANT_BLOCK; j++) block[j] = fabsf(block[j]) <= FLT_MAX ? block[j] : 0.0f;
        if (dtype == OPS_DTYPE_Q8) quantize_block_q8(to, block);
        else quantize_block_q4(to, block);
    }
}

void tensor_set_value(const ops_tensor *t, int64_t i, float value) {
    unsigned char *at = (unsigned char *)t->data + (size_t)i * dtype_bytes(t->dtype);
    if (t->dtype == OPS_DTYPE_F32) {
        memcpy(at, &value, sizeof value);
        return;
    }
    if (t->dtype == OPS_DTYPE_E4M3) {
        *at = f32_to_e4m3(value);
        return;
    }
    CHECK(t->dtype == OPS_DTYPE_F16 || t->dtype == OPS_DTYPE_BF16, "a value is stored as a number");
    uint16_t half = t->dtype == OPS_DTYPE_F16 ? f32_to_f16(value) : f32_to_bf16(value);
    memcpy(at, &half, sizeof half);
}

float tensor_value(const ops_tensor *t, int64_t i) {
    if (dtype_is_quantized(t->dtype)) {
        int64_t width = t->dims[t->n_dims - 1], at = i % width;
        const unsigned char *row = (const unsigned char *)t->data + (size_t)(i / width) * dtype_row_bytes(t->dtype, width);
        return block_value(row + (size_t)(at / QUANT_BLOCK) * block_bytes(t->dtype), t->dtype, (int)(at % QUANT_BLOCK));
    }
    const unsigned char *at = (const unsigned char *)t->data + (size_t)i * dtype_bytes(t->dtype);
    uint16_t half;
    float v;
    if (t->dtype == OPS_DTYPE_F32) {
        memcpy(&v, at, sizeof v);
        return v;
    }
    if (t->dtype == OPS_DTYPE_E4M3) return e4m3_to_f32(*at);
    memcpy(&half, at, sizeof half);
    return t->dtype == OPS_DTYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

void tensor_row_values(float *out, const ops_tensor *t, int64_t r) {
    const int64_t n = t->dims[1];
    const unsigned char *row = (const unsigned char *)t->data + (size_t)r * dtype_row_bytes(t->dtype, n);
    uint16_t half;
    if (t->dtype == OPS_DTYPE_F32) {
        memcpy(out, row, (size_t)n * sizeof *out);
    } else if (dtype_is_quantized(t->dtype)) {
        for (int64_t i = 0; i < n; i++)
            out[i] = block_value(row + (size_t)(i / QUANT_BLOCK) * block_bytes(t->dtype), t->dtype, (int)(i % QUANT_BLOCK));
    } else if (t->dtype == OPS_DTYPE_BF16) {
        for (int64_t i = 0; i < n; i++) {
            memcpy(&half, row + 2 * i, sizeof half);
            out[i] = bf16_to_f32(half);
        }
    } else {
        CHECK(t->dtype == OPS_DTYPE_F16, "a row of numbers");
        for (int64_t i = 0; i < n; i++) {
            memcpy(&half, row + 2 * i, sizeof half);
            out[i] = f16_to_f32(half);
        }
    }
}
