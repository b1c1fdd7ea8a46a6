/* Private to ops/cuda: attention on tensor cores, for the jobs it takes. Whether it takes one follows from dtype, head
 * size and alignment alone, so all rows of a network go the same way. */
#ifndef OPS_CUDA_ATTENTION_TILES_CUH
#define OPS_CUDA_ATTENTION_TILES_CUH

#include "ops/cuda/attention.cuh"

bool cuda_tiles_take(const attention_job *a);
MUST_USE status cuda_tiles_run(cuda_state *s, const attention_job *a); /* cuda_tiles_take */

#endif
