/* How a kernel is started, how it follows the one before, and where its shared memory is: what the emulator of
 * tests/ops/cuda_emulation does in its own way. All shared memory is dynamic and cut by the kernel itself, so that it can
 * be guarded.
 *
 * From compute capability 9.0 on kernels overlap (programmatic dependent launch): blocks of the next one come as soon as all
 * of this one have begun, and wait in follow_last() until everything started before is over and its writes are seen. So
 * every thread of every kernel calls it first, before it reads or writes memory of the device (it may send for some); only
 * then can what is started after the next kernel rely on this one as well. What that saves is the time between two kernels, of which a step that
 * decodes one row has hundreds. */
#ifndef OPS_CUDA_LAUNCH_CUH
#define OPS_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#define OVERLAP_CAPABILITY 90
#define OVERLAP_CUDART     12080 /* what also records such launches in graphs, and knows both attributes */

#ifdef __CUDACC__
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 10 * OVERLAP_CAPABILITY
#define OVERLAPS true /* this code may begin before the kernel before is over */
static __device__ inline void follow_last(void) {
    cudaTriggerProgrammaticLaunchCompletion();
    cudaGridDependencySynchronize();
}
#else
#define OVERLAPS false
static __device__ inline void follow_last(void) {}
#endif

#if CUDART_VERSION >= OVERLAP_CUDART
/* A multiprocessor divides its memory into shared memory and first-level cache for all blocks on it, so blocks of two kernels
 * are there together only where both want it divided alike: as much shared memory as there is. */
static inline unsigned launch_attributes(cudaLaunchAttribute attributes[2], bool has_overlap) {
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[1].val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
    return has_overlap ? 2 : 0;
}
#else
static inline unsigned launch_attributes(cudaLaunchAttribute *, bool) { return 0; }
#endif

/* state: the cuda_state whose stream it is. Errors are cudaGetLastError's. */
#define LAUNCH(kernel, grid, block, shared_bytes, state, ...)                                        \
    do {                                                                                             \
        cudaLaunchAttribute launch_attrs[2] = {};                                                    \
        cudaLaunchConfig_t launch_config = {};                                                       \
        launch_config.gridDim = (grid);                                                              \
        launch_config.blockDim = (block);                                                            \
        launch_config.dynamicSmemBytes = (shared_bytes);                                             \
        launch_config.stream = (state)->stream;                                                      \
        launch_config.attrs = launch_attrs;                                                          \
        launch_config.numAttrs = launch_attributes(launch_attrs, (state)->has_overlap);              \
        (void)cudaLaunchKernelEx(&launch_config, kernel, __VA_ARGS__); /* the launcher asks for errors */ \
    } while (0)
#endif

#define WARP 32

#endif
