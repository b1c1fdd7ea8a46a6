/* Private to ops/cuda: the state of a context, its matrices, and the operators of the table.
 *
 * A file has kernels, `static __global__`, which call follow_last() first, one thread's part in the first lines; a launcher that chooses grid and block;
 * and the entry, which unpacks tensors. Arithmetic is f32 but for norms of f32 rows, which are summed in double.
 * Products and sums are contracted nowhere but where fmaf is written (-fmad=false), as on the CPU. */
#ifndef OPS_CUDA_CUDA_INTERNAL_CUH
#define OPS_CUDA_CUDA_INTERNAL_CUH

#include <cublasLt.h>
#include <cuda_runtime.h>
#include <math.h>

#include "base/check.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/reduce.cuh"
#include "ops/cuda/vec.cuh"
#include "ops/ops_backend.h"

#define CUDA_LANES_MAX  8                  /* of an upload: at 10 GB/s each, more than a bus of 50 */
#define WORKSPACE_BYTES ((size_t)32 << 20) /* cuBLASLt's; what it asks for on Hopper */
#define ROW_MULTIPLE    64                 /* elements a row of weights is filled up to: a step of linear_few */
#define SHARED_BYTES_DEFAULT 49152         /* a kernel that takes more says so before its launch */
#define SHARED_BYTES_LEAST (99 << 10)      /* what a block can have on every device since sm_80 */

/* One thread's way to the device: pinned memory in two halves, and what says that a half was read. */
typedef struct {
    unsigned char *halves;
    cudaEvent_t sent[2];
    int half;
} cuda_lane;

typedef struct cuda_host cuda_host;       /* memory of ops_host_open */
typedef struct cuda_product cuda_product; /* what cuBLASLt multiplies, and how: linear_many.cu */

/* Device memory that grows to the largest need and is kept. */
typedef struct {
    unsigned char *data;
    size_t bytes;
} cuda_space;

typedef struct {
    int device;
    bool is_fast; /* ops_settings */
    bool multiplies_e4m3; /* its tensor cores do: compute capability 8.9 */
    bool has_overlap;     /* of kernels: launch.cuh */
    cudaStream_t stream;
    cudaStream_t up, down; /* of crossings beside operators */
    cudaEvent_t turn;      /* where one stream goes on behind another */
    cublasLtHandle_t blas;
    void *workspace;
    int *fault; /* host memory that kernels see: set when an index lies outside its table, told by sync */
    cuda_lane lanes[CUDA_LANES_MAX];
    int n_lanes;
    cuda_host *hosts;
    cuda_product *products;
    cuda_space scratch; /* one operator's at a time */
    cuda_space codes;   /* likewise: rows of x as codes and their scales, while scratch is for what multiplies them */
    unsigned n_scratch_moves; /* of either: a graph knows them by their addresses */
    bool is_recording;        /* a graph: both stay where they are */
} cuda_state;

/* Weights as they lie in the checkpoint, each row filled up with zeros to row_elements. Blocks are taken apart:
 * codes [n_out, row_elements] (q4: half as many bytes, in the order of the file), scales [n_out, row_elements / 32].
 * OPS_PRODUCT_FP8 has codes [n_out, row_elements] too, and a scale an output. */
typedef struct {
    ops_matrix head; /* first, so that the two pointers are one */
    int64_t row_elements;
    unsigned char *weights;
    __nv_bfloat16 *scales;
    float *output_scales; /* [n_out], OPS_PRODUCT_FP8 only */
    float *bias;          /* [n_out], zero where there is none */
    void *own_bias; /* the same in the weights' dtype where that is exact and a half, or NULL */
    bool has_many[2]; /* cuBLASLt has an algorithm for it: with a bias, with a bias and the tanh GELU */
    ops_dtype many_dtype; /* that its products run in there */
} cuda_matrix;

/* The status of a CUDA call; one that failed is logged with its text. */
MUST_USE status cuda_status(cudaError_t error, const char *call);
#define CUDA_TRY(call) TRY(cuda_status((call), #call))

/* What a launcher ends with: whether its kernels could be started. */
MUST_USE status cuda_launched(const char *kernel);

/* What a call on a thread begins with that may not have named the device yet. */
MUST_USE status cuda_use_device(const cuda_state *s);

/* BAD_ARGUMENT once, where an index lay outside its table. */
MUST_USE status cuda_tell_fault(cuda_state *s);

/* crossings.cu */
cudaError_t cuda_lanes_open(cuda_state *s);
void cuda_lanes_close(cuda_state *s);
status cuda_host_open(void *state, void **host, size_t bytes, err *e);
void cuda_host_close(void *state, void *host, size_t bytes);
status cuda_upload(void *state, void *device, const void *host, size_t bytes);
status cuda_download(void *state, void *host, const void *device, size_t bytes);
status cuda_upload_ahead(void *state, void *device, const void *host, size_t bytes);
status cuda_download_behind(void *state, void *host, const void *device, size_t bytes);
status cuda_mark_open(void *state, ops_mark **mark, err *e);
status cuda_mark_set(void *state, ops_mark *mark);
status cuda_mark_wait(void *state, ops_mark *mark);
void cuda_mark_close(void *state, ops_mark *mark);

/* An upload of rows that are made where they cross: `fill` writes n of them, from `first`, to pinned memory, all their bytes
 * for to[0] and behind those all for to[1]. Several threads call it at once. */
typedef struct {
    void (*fill)(const void *user, unsigned char *pinned, int64_t first, int64_t n);
    const void *user;
    int64_t n_rows;
    unsigned char *to[2]; /* of the device */
    size_t row_bytes[2];  /* there; 0: there is no second place */
    size_t spare_bytes;   /* behind what fill writes, for its own use */
} cuda_rows_upload;
MUST_USE status cuda_upload_rows(cuda_state *s, const cuda_rows_upload *u);

/* graphs.cu */
status cuda_graph_begin(void *state, err *e);
status cuda_graph_end(void *state, ops_graph **graph, err *e);
bool cuda_graph_is_current(const void *state, const ops_graph *graph);
status cuda_graph_run(void *state, const ops_graph *graph);
void cuda_graph_close(void *state, ops_graph *graph);

/* At least this much, 256-aligned, contents undefined. Errors: NO_MEMORY, DEVICE; UNSUPPORTED where it would have to grow
 * while a graph is recorded. */
MUST_USE status cuda_scratch(cuda_state *s, void **data, size_t bytes);
MUST_USE status cuda_codes(cuda_state *s, void **data, size_t bytes);

/* Lets a kernel have this much shared memory. */
template <typename K>
static inline status cuda_allow_shared(K *kernel, size_t bytes) {
    if (bytes <= SHARED_BYTES_DEFAULT) return STATUS_OK;
    return cuda_status(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                       "cudaFuncSetAttribute");
}

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline bool is_aligned16(const void *p) { return (uintptr_t)p % 16 == 0; }

/* Runs the statement with T the type of an activations' dtype. */
#define WITH_DTYPE(dtype, T, ...)                                      \
    do {                                                               \
        if ((dtype) == OPS_DTYPE_F16) {                                \
            typedef __half T;                                          \
            __VA_ARGS__;                                               \
        } else if ((dtype) == OPS_DTYPE_BF16) {                        \
            typedef __nv_bfloat16 T;                                   \
            __VA_ARGS__;                                               \
        } else {                                                       \
            typedef float T;                                           \
            __VA_ARGS__;                                               \
        }                                                              \
    } while (0)

/* Runs the statement with C the type that keys and values are kept in beside activations of type T. */
#define WITH_CACHE(dtype, T, C, ...)                                   \
    do {                                                               \
        if ((dtype) == OPS_DTYPE_E4M3) {                               \
            typedef e4m3 C;                                            \
            __VA_ARGS__;                                               \
        } else {                                                       \
            typedef T C;                                               \
            __VA_ARGS__;                                               \
        }                                                              \
    } while (0)

/* An activation of one f32: within 2e-7 |x| of the formulas in ops.h, and as they are at infinity and NaN. x is divided
 * by 1 + exp, which goes to infinity and 1 without losing what is left of x. */
static __device__ inline float activation(float x, ops_act act) {
    switch (act) {
    case OPS_ACT_GELU_TANH: return x / (1.0f + expf(-1.5957691216f * (x + 0.044715f * x * x * x)));
    case OPS_ACT_GELU_ERF: return 0.5f * x * (1.0f + erff(x * 0.70710678118f));
    case OPS_ACT_QUICK_GELU: return x / (1.0f + expf(-1.702f * x));
    case OPS_ACT_SILU: return x / (1.0f + expf(-x));
    default: return x;
    }
}

status cuda_matrix_open(void *state, ops_matrix **matrix, const ops_rows *rows, const ops_tensor *bias,
                        ops_product product, err *e);
void cuda_matrix_close(void *state, ops_matrix *matrix);
status cuda_linear(void *state, ops_tensor *out, const ops_tensor *x, const ops_matrix *matrix,
                   const ops_linear_params *params);
status cuda_layer_norm(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w, const ops_tensor *b,
                       float eps);
status cuda_rms_norm(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w, float eps);
status cuda_activate(void *state, ops_tensor *out, const ops_tensor *x, ops_act act);
status cuda_gate(void *state, ops_tensor *out, const ops_tensor *x, ops_act act);
status cuda_scale_columns(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *w);
status cuda_add_table(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *table);
status cuda_gather_rows(void *state, ops_tensor *out, const ops_tensor *table, const ops_tensor *ids);
status cuda_scatter_rows(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *to);
status cuda_cast(void *state, ops_tensor *out, const ops_tensor *x);
status cuda_candidates_rows(void *state, ops_tensor *out, const ops_tensor *x, int64_t n,
                            const ops_candidates_wanted *wanted);
status cuda_patch_rows(void *state, ops_tensor *out, const ops_tensor *x, const ops_tensor *levels, int patch);
status cuda_attention(void *state, ops_tensor *out, const ops_tensor *q, const ops_tensor *k, const ops_tensor *v,
                      int64_t length, const ops_attention_params *params);
status cuda_rope(void *state, ops_tensor *x, const ops_tensor *cos, const ops_tensor *sin, const ops_tensor *positions,
                 int n_heads);
status cuda_kv_append(void *state, ops_tensor *k_cache, ops_tensor *v_cache, const ops_tensor *k, const ops_tensor *v,
                      ops_tensor *q, const ops_kv_places *at, int n_heads, int n_kv_heads);
status cuda_kv_copy_block(void *state, ops_tensor *cache, int64_t to, int64_t from);
status cuda_attention_paged(void *state, ops_tensor *out, const ops_tensor *q, const ops_tensor *k_cache,
                            const ops_tensor *v_cache, const ops_tensor *tables, const ops_tensor *row_seq,
                            const ops_tensor *row_pos, const ops_attention_params *params);

#endif
