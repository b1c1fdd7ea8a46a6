/* Memory, streams and cuBLASLt of the emulated device: everything happens at once, in the caller's thread. */
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <stdlib.h>

#include "ops/tensor.h"

#define MEMORY_MAX ((size_t)1 << 40) /* more than any device has */

const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : error == cudaErrorMemoryAllocation ? "out of memory" : "invalid argument";
}
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
#define N_DEVICES 2
static const int majors[N_DEVICES] = {9, 8};
static __thread int current;

cudaError_t cudaGetDeviceCount(int *n) {
    *n = N_DEVICES;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= N_DEVICES) return cudaErrorInvalidValue;
    current = device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    memset(properties, 0, sizeof *properties);
    memcpy(properties->name, "emulated", sizeof "emulated");
    properties->major = majors[device];
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **data, size_t bytes) {
    *data = bytes <= MEMORY_MAX ? aligned_alloc(256, (bytes + 255) / 256 * 256) : NULL;
    if (!*data) return cudaErrorMemoryAllocation;
    memset(*data, 0xFF, bytes);
    return cudaSuccess;
}
cudaError_t cudaFree(void *data) {
    free(data);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **data, size_t bytes, unsigned flags) {
    (void)flags;
    return cudaMalloc(data, bytes);
}
cudaError_t cudaFreeHost(void *data) { return cudaFree(data); }
cudaError_t cudaMemsetAsync(void *data, int value, size_t bytes, cudaStream_t stream) {
    (void)stream;
    memset(data, value, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    (void)kind;
    (void)stream;
    memcpy(to, from, bytes);
    return cudaSuccess;
}

struct emulated_stream {
    int nothing;
};
struct emulated_event {
    int nothing;
};
static emulated_stream the_stream;
static emulated_event the_event;
cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = &the_stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = &the_event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }

/* ---- cuBLASLt ------------------------------------------------------------------------------ */

struct emulated_blas {
    int nothing;
};
struct emulated_product {
    cublasOperation_t transposed;
    cublasLtEpilogue_t epilogue;
    const void *bias;
};
struct emulated_layout {
    cudaDataType_t type;
    int64_t rows, cols, stride;
};
struct emulated_preference {
    int nothing;
};
static emulated_blas the_blas;
static emulated_preference the_preference;

const char *cublasLtGetStatusString(cublasStatus_t status) { return status == CUBLAS_STATUS_SUCCESS ? "success" : "failure"; }
cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = &the_blas;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t, cudaDataType_t) {
    *d = static_cast<emulated_product *>(calloc(1, sizeof **d));
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    if (attribute == CUBLASLT_MATMUL_DESC_TRANSA) memcpy(&d->transposed, value, bytes);
    if (attribute == CUBLASLT_MATMUL_DESC_EPILOGUE) memcpy(&d->epilogue, value, bytes);
    if (attribute == CUBLASLT_MATMUL_DESC_BIAS_POINTER) memcpy(&d->bias, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) {
    free(d);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type, uint64_t rows, uint64_t cols,
                                          int64_t stride) {
    *l = static_cast<emulated_layout *>(malloc(sizeof **l));
    **l = emulated_layout{type, (int64_t)rows, (int64_t)cols, stride};
    return stride >= (int64_t)rows ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    free(l);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    *p = &the_preference;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
                                                    const void *, size_t) {
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t) { return CUBLAS_STATUS_SUCCESS; }

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void *value,
                                                    size_t bytes, size_t *written) {
    int number = attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? algo->pieces : 0;
    memcpy(value, &number, bytes);
    *written = bytes;
    return CUBLAS_STATUS_SUCCESS;
}

/* The first answer sums in two pieces, as the library's sometimes does: it must not be taken. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int n_wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *n) {
    *n = 0;
    if (a->type == CUDA_R_8F_E4M3 && majors[current] < 9) return CUBLAS_STATUS_NOT_SUPPORTED;
    for (*n = 0; *n < 2 && *n < n_wanted; ++*n)
        results[*n] = cublasLtMatmulHeuristicResult_t{{d->epilogue, 2 - *n}, CUBLAS_STATUS_SUCCESS};
    return CUBLAS_STATUS_SUCCESS;
}

static float value_at(const void *data, cudaDataType_t type, int64_t i) {
    if (type == CUDA_R_32F) return static_cast<const float *>(data)[i];
    if (type == CUDA_R_8F_E4M3) return e4m3_to_f32(static_cast<const uint8_t *>(data)[i]);
    uint16_t bits = static_cast<const uint16_t *>(data)[i];
    return type == CUDA_R_16F ? f16_to_f32(bits) : bf16_to_f32(bits);
}

static float gelu(float x) { return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x))); }

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t, void *out,
                              cublasLtMatrixLayout_t out_layout, const cublasLtMatmulAlgo_t *algo, void *, size_t,
                              cudaStream_t) {
    if (algo->epilogue != d->epilogue || algo->pieces != 1) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (d->transposed != CUBLAS_OP_T || a_layout->rows != b_layout->rows || out_layout->rows != a_layout->cols ||
        out_layout->cols != b_layout->cols)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (a_layout->type != b_layout->type) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (a_layout->type == CUDA_R_8F_E4M3) {
        int64_t sizes = a_layout->rows | a_layout->cols | a_layout->stride | b_layout->stride;
        bool is_plain = out_layout->type == CUDA_R_32F && d->epilogue == CUBLASLT_EPILOGUE_DEFAULT;
        if (majors[current] < 9 || sizes % 16 != 0 || !is_plain) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    uintptr_t addresses = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)out | (uintptr_t)d->bias;
    float kept;
    memcpy(&kept, beta, sizeof kept);
    if (addresses % 16 != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    int64_t k = a_layout->rows;
    float *row = static_cast<float *>(malloc((size_t)k * sizeof *row));
    for (int64_t r = 0; r < out_layout->cols; r++) {
        for (int64_t i = 0; i < k; i++) row[i] = value_at(b, b_layout->type, r * b_layout->stride + i);
        for (int64_t o = 0; o < out_layout->rows; o++) {
            float sum = 0.0f;
            for (int64_t i = 0; i < k; i++) sum += row[i] * value_at(a, a_layout->type, o * a_layout->stride + i);
            if (kept != 0.0f) sum += kept * value_at(c, out_layout->type, r * out_layout->stride + o);
            if (d->epilogue != CUBLASLT_EPILOGUE_DEFAULT) sum += value_at(d->bias, out_layout->type, o);
            if (d->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS) sum = gelu(sum);
            int64_t at = r * out_layout->stride + o;
            if (out_layout->type == CUDA_R_32F) static_cast<float *>(out)[at] = sum;
            else static_cast<uint16_t *>(out)[at] = out_layout->type == CUDA_R_16F ? f32_to_f16(sum) : f32_to_bf16(sum);
        }
    }
    free(row);
    return CUBLAS_STATUS_SUCCESS;
}
