#include "ops/tensor.h"

#include <string.h>

#include "base/check.h"

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    [OPS_DTYPE_F32] = {"f32", 4}, [OPS_DTYPE_F16] = {"f16", 2}, [OPS_DTYPE_BF16] = {"bf16", 2},
    [OPS_DTYPE_I32] = {"i32", 4}, [OPS_DTYPE_U8] = {"u8", 1},
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
    CHECK(!__builtin_mul_overflow((size_t)tensor_elements(t), dtype_bytes(t->dtype), &bytes),
          "the bytes of a tensor fit");
    return bytes;
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
    if (t->data && first > 0)
        view.data = (unsigned char *)t->data +
                    (size_t)first * (size_t)row_elements * dtype_bytes(t->dtype);
    view.dims[0] = n;
    return view;
}

ops_tensor tensor_first(const ops_tensor *t, int64_t n_rows, int64_t width) {
    ops_tensor view = *t;
    view.n_dims = 2;
    view.dims[0] = n_rows;
    view.dims[1] = width;
    view.dims[2] = view.dims[3] = 1;
    CHECK(tensor_elements(&view) <= tensor_elements(t), "the first rows of a tensor are in it");
    return view;
}

ops_tensor tensor_reshape(const ops_tensor *t, int n_dims, const int64_t *dims) {
    ops_tensor view = tensor_make(t->data, t->place, t->dtype, n_dims, dims);
    CHECK(tensor_elements(&view) == tensor_elements(t), "a reshape keeps the number of elements");
    return view;
}

bool tensor_overlaps(const ops_tensor *a, const ops_tensor *b) {
    uintptr_t a0 = (uintptr_t)a->data, b0 = (uintptr_t)b->data;
    size_t a_bytes = tensor_bytes(a), b_bytes = tensor_bytes(b);
    if (a->place != b->place || a_bytes == 0 || b_bytes == 0) return false;
    return a0 < b0 ? b0 - a0 < a_bytes : a0 - b0 < b_bytes;
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

float tensor_value(const ops_tensor *t, int64_t i) {
    const unsigned char *at = (const unsigned char *)t->data + (size_t)i * dtype_bytes(t->dtype);
    uint16_t half;
    float v;
    if (t->dtype == OPS_DTYPE_F32) {
        memcpy(&v, at, sizeof v);
        return v;
    }
    memcpy(&half, at, sizeof half);
    return t->dtype == OPS_DTYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}
