/* The part of CUDA that ops/cuda uses, on the processor, for tests: the same .cu files compile as C++ against this
 * folder and run without a device.
 *
 * A thread of a block is a fiber, and blocks run one after the other. A fiber runs until it meets others: at a barrier
 * of the block or a collective of its warp; every second block runs its fibers backwards, so that what works only in
 * one order is seen. Mistakes end the program with a line that names the kernel: a barrier that not all threads reach,
 * two different collectives meeting in a warp, a write behind the shared memory asked for, a launch no device takes.
 * Shared memory and memory from cudaMalloc begin as NaN. A stream does what it is given when somebody waits for it, as late
 * as it may; with EMULATED_CUDA_AT_ONCE in the environment at once. A stream that is captured keeps what it is given and does
 * it when the graph is launched; what the runtime refuses to a thread that captures is refused here, and spoils the capture.
 * What is not here is time, caches, and memory order between barriers: a race that the order of fibers hides stays hidden.
 *
 * There are two devices: the first multiplies e4m3, the second is of a generation that does not.
 *
 * Part of tests only; the C++ is that of the .cu files. Several host threads may emulate at once. */
#ifndef TESTS_CUDA_EMULATION_CUDA_RUNTIME_H
#define TESTS_CUDA_EMULATION_CUDA_RUNTIME_H

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};

/* ---- threads ------------------------------------------------------------------------------- */

struct emulated_thread;

/* What the running fiber sees. */
struct emulated_place {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
    unsigned lane;
    unsigned char *shared;
    emulated_thread *self;
};
extern __thread emulated_place *emulated_here;

#define threadIdx (emulated_here->thread)
#define blockIdx  (emulated_here->block)
#define blockDim  (emulated_here->block_dim)
#define gridDim   (emulated_here->grid_dim)

#define SHARED_MEMORY(name) unsigned char *name = emulated_here->shared

typedef struct emulated_stream *cudaStream_t;

/* A kernel with its arguments as they were at the launch: thread() is one thread's call of it. kernel: for what it was
 * allowed. */
void emulate_launch(void (*kernel)(void), const char *name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                    std::function<void()> thread);

template <typename T>
struct emulated_as_declared {
    typedef T type;
};

template <typename... P>
static void emulate_kernel(void (*kernel)(P...), const char *name, dim3 grid, dim3 block, size_t shared_bytes,
                           cudaStream_t stream, typename emulated_as_declared<P>::type... args) {
    std::tuple<P...> kept(args...);
    emulate_launch(reinterpret_cast<void (*)(void)>(kernel), name, grid, block, shared_bytes, stream,
                   [kernel, kept] { std::apply(kernel, kept); });
}

#define LAUNCH(kernel, grid, block, shared_bytes, state, ...) \
    emulate_kernel(kernel, #kernel, grid, block, shared_bytes, (state)->stream, __VA_ARGS__)

/* A thread that ends, meets others or begins a copy without it has made a mistake. */
void follow_last(void);
#define OVERLAPS true
#define __CUDA_ARCH_LIST__ 800, 890, 900
#define CUDART_VERSION     13000

void __syncthreads(void);

/* Every lane of the warp brings up to EMULATED_SLOT bytes and gets those of all, one slot a lane. */
#define EMULATED_SLOT 64
enum emulated_kind { EMULATED_SYNC, EMULATED_SHUFFLE, EMULATED_VOTE, EMULATED_MMA, EMULATED_LDMATRIX };
const unsigned char *emulate_meeting(emulated_kind kind, const void *mine, size_t bytes);

/* A mistake in a kernel: prints it and aborts. */
[[noreturn]] void emulated_mistake(const char *what);

template <typename V>
static inline V __shfl_xor_sync(unsigned mask, V v, int lanes) {
    if (mask != 0xffffffffu) emulated_mistake("a shuffle of some lanes only");
    const unsigned char *all = emulate_meeting(EMULATED_SHUFFLE, &v, sizeof v);
    V other;
    memcpy(&other, all + (emulated_here->lane ^ (unsigned)lanes) * EMULATED_SLOT, sizeof other);
    return other;
}

static inline void __syncwarp(void) { (void)emulate_meeting(EMULATED_SYNC, "", 1); }

int __syncthreads_or(int predicate);

static inline unsigned __float_as_uint(float v) {
    unsigned bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static inline float __uint_as_float(unsigned bits) {
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static inline int atomicAdd(int *at, int more) { /* one fiber runs at a time */
    int before = *at;
    *at += more;
    return before;
}

/* The product is exact in double; rounding twice differs from once in the last bit, seldom. */
static inline float emulated_fmaf(float a, float b, float c) { return (float)((double)a * (double)b + (double)c); }
#define fmaf emulated_fmaf

/* ---- the runtime --------------------------------------------------------------------------- */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorIllegalState = 401,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum { cudaHostAllocDefault = 0, cudaHostAllocMapped = 2 };
typedef struct emulated_event *cudaEvent_t;
typedef struct emulated_graph *cudaGraph_t;
typedef struct emulated_graph_run *cudaGraphExec_t;
struct cudaDeviceProp {
    char name[256];
    int major, minor;
};

const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError(void);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaMalloc(void **data, size_t bytes);
cudaError_t cudaFree(void *data);
/* Refused where the environment has EMULATED_CUDA_NO_HOST_MEMORY. */
cudaError_t cudaHostAlloc(void **data, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *data);
cudaError_t cudaMemsetAsync(void *data, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
/* Refused where the environment has EMULATED_CUDA_NO_GRAPHS. */
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *run, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t run, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t run);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
#define cudaEventBlockingSync  1u
#define cudaEventDisableTiming 2u
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t emulated_do(cudaStream_t stream, std::function<void()> work);
cudaError_t emulated_fails(cudaError_t error); /* leaves it for cudaGetLastError */
cudaError_t emulated_allow_shared(void (*kernel)(void), int bytes);
bool emulated_is_older(void); /* the device of this thread: compute capability 8 */

template <typename K>
static inline cudaError_t cudaFuncSetAttribute(K *kernel, cudaFuncAttribute attribute, int value) {
    (void)attribute;
    return emulated_allow_shared(reinterpret_cast<void (*)(void)>(kernel), value);
}

#endif
