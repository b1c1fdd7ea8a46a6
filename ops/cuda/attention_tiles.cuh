/* Private to ops/cuda: attention on tensor cores, for the jobs they take, in two ways: rows of a kind that comes in small
 * numbers (ops_attention_params.is_few, paged only), and all others. Whether tensor cores take a job follows from dtype, head
 * size, scale and alignment alone, so all rows of a network go the same way. */
#ifndef OPS_CUDA_ATTENTION_TILES_CUH
#define OPS_CUDA_ATTENTION_TILES_CUH

#include "ops/cuda/attention.cuh"

#define HEAD_DIM_MOST   256
#define HEADS_A_KV_MOST 64 /* queries of one row that see the same key: what a block of the largest heads has */

static inline bool cuda_tiles_take(const attention_job *a) {
    int elements = 16 / (int)dtype_bytes(a->kv_dtype);
    return a->dtype != OPS_DTYPE_F32 && a->scale > 0.0f && (a->head_dim | a->key_stride) % elements == 0 &&
           a->head_dim <= HEAD_DIM_MOST && a->heads_a_kv <= HEADS_A_KV_MOST && a->q_stride % CHUNK == 0 &&
           is_aligned16(a->out) && is_aligned16(a->q) && is_aligned16(a->k) && is_aligned16(a->v);
}

/* Both for jobs that cuda_tiles_take. */
MUST_USE status cuda_attention_many(cuda_state *s, const attention_job *a);
MUST_USE status cuda_attention_few(cuda_state *s, const attention_job *a);

/* Runs the statement with `pad` the elements that heads are filled up to. */
#define WITH_PAD(head_dim, pad, ...)                                                  \
    do {                                                                              \
        if ((head_dim) <= 64) { constexpr int pad = 64; __VA_ARGS__; }                \
        else if ((head_dim) <= 80) { constexpr int pad = 80; __VA_ARGS__; }           \
        else if ((head_dim) <= 96) { constexpr int pad = 96; __VA_ARGS__; }           \
        else if ((head_dim) <= 128) { constexpr int pad = 128; __VA_ARGS__; }         \
        else { constexpr int pad = HEAD_DIM_MOST; __VA_ARGS__; }                      \
    } while (0)

/* And with T the type of a job's activations, C of its keys and values. */
#define WITH_TILES(a, T, C, pad, ...)                                                                          \
    do {                                                                                                       \
        if ((a)->dtype == OPS_DTYPE_F16) {                                                                     \
            typedef __half T;                                                                                  \
            WITH_CACHE((a)->kv_dtype, T, C, WITH_PAD((a)->head_dim, pad, __VA_ARGS__));                        \
        } else {                                                                                               \
            typedef __nv_bfloat16 T;                                                                           \
            WITH_CACHE((a)->kv_dtype, T, C, WITH_PAD((a)->head_dim, pad, __VA_ARGS__));                        \
        }                                                                                                      \
    } while (0)

#endif
