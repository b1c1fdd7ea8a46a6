/* How a kernel is started and where its shared memory is: the two things the emulator of tests/ops/cuda_emulation
 * does in its own way. All shared memory is dynamic and cut by the kernel itself, so that it can be guarded. */
#ifndef OPS_CUDA_LAUNCH_CUH
#define OPS_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>

#ifdef __CUDACC__
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]
#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    (kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#endif

#define WARP 32

#endif
