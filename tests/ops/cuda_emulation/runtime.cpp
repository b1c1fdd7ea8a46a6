/* Memory, streams, graphs and cuBLASLt of the emulated device.
 *
 * What a stream is given happens as late as it may, when somebody waits for it: who reads results without waiting finds
 * nothing, and who writes again to memory that a copy has yet to read sends what it wrote. With EMULATED_CUDA_AT_ONCE in the
 * environment everything happens at once, so that who writes too late is found as well. */
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <stdlib.h>
#include <vector>

#include "ops/tensor.h"

#define MEMORY_MAX ((size_t)1 << 40) /* more than any device has */

/* ---- errors -------------------------------------------------------------------------------- */

static thread_local cudaError_t last_error;

const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorIllegalState: return "the operation cannot be performed in the present state";
    case cudaErrorNotSupported: return "operation not supported";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    default: return "invalid argument";
    }
}

cudaError_t emulated_fails(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

/* ---- streams and graphs -------------------------------------------------------------------- */

struct emulated_graph {
    std::vector<std::function<void()>> work;
};
struct emulated_graph_run {
    std::vector<std::function<void()>> work;
};
struct emulated_stream {
    emulated_graph *captured; /* NULL: it is not captured */
    bool is_spoilt;
    std::mutex turn, lock; /* held while its work is done; guards what follows */
    std::deque<std::function<void()>> given;
    uint64_t n_given, n_done;
};
static std::mutex streams_lock; /* before any stream's */
static std::set<emulated_stream *> streams;

/* Does what the stream was given, up to this many. */
static void catch_up(emulated_stream *stream, uint64_t until) {
    std::lock_guard<std::mutex> turn(stream->turn);
    for (;;) {
        std::unique_lock<std::mutex> held(stream->lock);
        if (stream->n_done >= until || stream->given.empty()) return;
        std::function<void()> work = std::move(stream->given.front());
        stream->given.pop_front();
        stream->n_done++;
        held.unlock();
        work();
    }
}

static void catch_up_all(void) {
    std::lock_guard<std::mutex> held(streams_lock);
    for (emulated_stream *stream : streams) catch_up(stream, UINT64_MAX);
}

static thread_local emulated_stream *capturing; /* the one this thread captures */

/* What a thread that captures may not ask for. */
static cudaError_t refuse_capturing(void) {
    if (!capturing) return cudaSuccess;
    capturing->is_spoilt = true;
    return emulated_fails(cudaErrorStreamCaptureUnsupported);
}

#define UNLESS_CAPTURING                         \
    do {                                         \
        cudaError_t refused = refuse_capturing(); \
        if (refused != cudaSuccess) return refused; \
    } while (0)

cudaError_t emulated_do(cudaStream_t stream, std::function<void()> work) {
    if (stream->captured) {
        if (stream->is_spoilt) return emulated_fails(cudaErrorStreamCaptureInvalidated);
        stream->captured->work.push_back(work);
        return cudaSuccess;
    }
    {
        std::lock_guard<std::mutex> held(stream->lock);
        stream->given.push_back(std::move(work));
        stream->n_given++;
    }
    static const bool at_once = getenv("EMULATED_CUDA_AT_ONCE") != NULL;
    if (at_once) catch_up(stream, UINT64_MAX);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = new emulated_stream{};
    std::lock_guard<std::mutex> held(streams_lock);
    streams.insert(*stream);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    UNLESS_CAPTURING;
    catch_up(stream, UINT64_MAX);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    {
        std::lock_guard<std::mutex> held(streams_lock);
        streams.erase(stream);
    }
    catch_up(stream, UINT64_MAX);
    delete stream->captured;
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (getenv("EMULATED_CUDA_NO_GRAPHS")) return emulated_fails(cudaErrorNotSupported);
    if (stream->captured || capturing) return emulated_fails(cudaErrorIllegalState);
    stream->captured = new emulated_graph{};
    stream->is_spoilt = false;
    capturing = stream;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = NULL;
    if (!stream->captured || capturing != stream) return emulated_fails(cudaErrorIllegalState);
    capturing = NULL;
    if (stream->is_spoilt) delete stream->captured;
    else *graph = stream->captured;
    stream->captured = NULL;
    return *graph ? cudaSuccess : emulated_fails(cudaErrorStreamCaptureInvalidated);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *run, cudaGraph_t graph, unsigned long long) {
    *run = new emulated_graph_run{graph->work};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t run, cudaStream_t stream) {
    if (stream->captured) return emulated_fails(cudaErrorStreamCaptureUnsupported);
    for (const std::function<void()> &work : run->work) (void)emulated_do(stream, work);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t run) {
    delete run;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

/* ---- device and memory --------------------------------------------------------------------- */

#define N_DEVICES 2
static const int majors[N_DEVICES] = {9, 8};
static thread_local int current;

bool emulated_is_older(void) { return majors[current] < 9; }

cudaError_t cudaGetDeviceCount(int *n) {
    *n = N_DEVICES;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= N_DEVICES) return emulated_fails(cudaErrorInvalidValue);
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
    UNLESS_CAPTURING;
    *data = bytes <= MEMORY_MAX ? aligned_alloc(256, (bytes + 255) / 256 * 256) : NULL;
    if (!*data) return emulated_fails(cudaErrorMemoryAllocation);
    memset(*data, 0xFF, bytes);
    return cudaSuccess;
}
cudaError_t cudaFree(void *data) { /* waits for the device, as the real one does */
    UNLESS_CAPTURING;
    catch_up_all();
    free(data);
    return cudaSuccess;
}

/* Host memory of cudaHostAlloc: copies of any other are over for the host when the call returns, and cannot be captured. */
static std::mutex pinned_lock;
static std::map<uintptr_t, size_t> pinned; /* where it begins, bytes */

static bool is_pinned(const void *host, size_t bytes) {
    std::lock_guard<std::mutex> held(pinned_lock);
    auto behind = pinned.upper_bound((uintptr_t)host);
    if (behind == pinned.begin()) return false;
    --behind;
    return (uintptr_t)host + bytes <= behind->first + behind->second;
}

cudaError_t cudaHostAlloc(void **data, size_t bytes, unsigned) {
    if (getenv("EMULATED_CUDA_NO_HOST_MEMORY")) return emulated_fails(cudaErrorMemoryAllocation);
    cudaError_t error = cudaMalloc(data, bytes);
    if (error != cudaSuccess) return error;
    std::lock_guard<std::mutex> held(pinned_lock);
    pinned[(uintptr_t)*data] = bytes;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *data) {
    UNLESS_CAPTURING;
    catch_up_all();
    std::lock_guard<std::mutex> held(pinned_lock);
    pinned.erase((uintptr_t)data);
    free(data);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *data, int value, size_t bytes, cudaStream_t stream) {
    return emulated_do(stream, [=] { memset(data, value, bytes); });
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    const void *host = kind == cudaMemcpyHostToDevice ? from : to;
    if (kind == cudaMemcpyDeviceToDevice || is_pinned(host, bytes)) return emulated_do(stream, [=] { memcpy(to, from, bytes); });
    UNLESS_CAPTURING;
    if (kind == cudaMemcpyHostToDevice) {
        std::vector<unsigned char> staged(static_cast<const unsigned char *>(from), static_cast<const unsigned char *>(from) + bytes);
        return emulated_do(stream, [to, staged = std::move(staged)] { memcpy(to, staged.data(), staged.size()); });
    }
    catch_up(stream, UINT64_MAX);
    memcpy(to, from, bytes);
    return cudaSuccess;
}

struct emulated_event {
    emulated_stream *stream; /* NULL: it was not recorded yet */
    uint64_t until;
};
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new emulated_event{};
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    std::lock_guard<std::mutex> held(stream->lock);
    *event = emulated_event{stream, stream->n_given};
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    UNLESS_CAPTURING;
    if (event->stream) catch_up(event->stream, event->until);
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    UNLESS_CAPTURING;
    emulated_event seen = *event; /* as it is now: it may be recorded anew */
    if (!seen.stream || seen.stream == stream) return cudaSuccess;
    return emulated_do(stream, [=] { catch_up(seen.stream, seen.until); });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}

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

/* The first answer sums in two pieces, as the library's sometimes does; for many rows the second sums from the end. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int n_wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *n) {
    const cublasLtMatmulAlgo_t all[] = {{d->epilogue, 2, false}, {d->epilogue, 1, true}, {d->epilogue, 1, false}};
    bool are_many = b->cols > 200 && b->cols < 2048;
    *n = 0;
    if (a->type == CUDA_R_8F_E4M3 && majors[current] < 9) return CUBLAS_STATUS_NOT_SUPPORTED;
    for (const cublasLtMatmulAlgo_t &algo : all)
        if ((are_many || !algo.is_backwards) && *n < n_wanted)
            results[(*n)++] = cublasLtMatmulHeuristicResult_t{algo, CUBLAS_STATUS_SUCCESS};
    return CUBLAS_STATUS_SUCCESS;
}

static float value_at(const void *data, cudaDataType_t type, int64_t i) {
    if (type == CUDA_R_32F) return static_cast<const float *>(data)[i];
    if (type == CUDA_R_8F_E4M3) return e4m3_to_f32(static_cast<const uint8_t *>(data)[i]);
    uint16_t bits = static_cast<const uint16_t *>(data)[i];
    return type == CUDA_R_16F ? f16_to_f32(bits) : bf16_to_f32(bits);
}

static float gelu(float x) { return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x))); }

/* A product as it was asked for: what describes it may be gone when it is computed. */
struct product {
    emulated_product how;
    emulated_layout a_layout, b_layout, out_layout;
    const void *a, *b, *c;
    void *out;
    float kept; /* of c */
    int pieces;
    bool is_backwards;
};

static void end_sum(const product &p, float sum, int64_t r, int64_t o) {
    if (p.kept != 0.0f) sum += p.kept * value_at(p.c, p.out_layout.type, r * p.out_layout.stride + o);
    if (p.how.epilogue != CUBLASLT_EPILOGUE_DEFAULT) sum += value_at(p.how.bias, p.out_layout.type, o);
    if (p.how.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS) sum = gelu(sum);
    int64_t at = r * p.out_layout.stride + o;
    if (p.out_layout.type == CUDA_R_32F) static_cast<float *>(p.out)[at] = sum;
    else static_cast<uint16_t *>(p.out)[at] = p.out_layout.type == CUDA_R_16F ? f32_to_f16(sum) : f32_to_bf16(sum);
}

/* Eight rows beside each other, so that eight sums wait for each other's additions. In pieces the order of a sum depends on how
 * many rows there are. */
static void multiply(const product &p) {
    const int64_t k = p.a_layout.rows, rows = p.out_layout.cols;
    const int64_t cut = p.pieces == 1 ? k : rows % 2 ? k / 2 : k / 3;
    std::vector<float> x((size_t)((rows + 7) / 8 * 8 * k)), w((size_t)k);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < k; i++)
            x[(size_t)((r / 8 * k + i) * 8 + r % 8)] = value_at(p.b, p.b_layout.type, r * p.b_layout.stride + i);
    for (int64_t o = 0; o < p.out_layout.rows; o++) {
        for (int64_t i = 0; i < k; i++) w[(size_t)i] = value_at(p.a, p.a_layout.type, o * p.a_layout.stride + i);
        for (int64_t first = 0; first < rows; first += 8) {
            float sums[2][8] = {};
            for (int64_t n = 0; n < k; n++) {
                int64_t i = p.is_backwards ? k - 1 - n : n;
                const float *eight = &x[(size_t)((first / 8 * k + i) * 8)];
                for (int r = 0; r < 8; r++) sums[i >= cut][r] += eight[r] * w[(size_t)i];
            }
            for (int64_t r = 0; r < 8 && first + r < rows; r++) end_sum(p, sums[0][r] + sums[1][r], first + r, o);
        }
    }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t, void *out,
                              cublasLtMatrixLayout_t out_layout, const cublasLtMatmulAlgo_t *algo, void *, size_t,
                              cudaStream_t stream) {
    if (algo->epilogue != d->epilogue) return CUBLAS_STATUS_NOT_SUPPORTED;
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
    if (addresses % 16 != 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    product p = {*d, *a_layout, *b_layout, *out_layout, a, b, c, out, 0.0f, algo->pieces, algo->is_backwards};
    memcpy(&p.kept, beta, sizeof p.kept);
    return emulated_do(stream, [=] { multiply(p); }) == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
