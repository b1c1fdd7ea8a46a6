/* Few rows: out[r,o] = act(bias[o] + sum over k of x[r,k] w[o,k]) + add[r,o] at the speed the weights can be read with.
 *
 * Outputs are the 16 of m16n8k16 and rows of x its 8, so that one row wastes no weights. block -> 64 outputs, up to 64
 * rows, and one of n_splits runs of k; warp -> 16 outputs and all rows; a step is 64 k, of which STAGES are on their way
 * to shared memory while one is multiplied. Partial sums of the runs go to scratch and are added in their order.
 *
 * The order of a sum: n_splits follows from the size of the matrix alone; in a run, steps in order, in a step two times
 * two mma. A column of an mma is summed like any other and knows nothing of its neighbours, so a row's bits depend on
 * neither the number of rows nor its place among them. The 16 k of an mma are not 16 neighbours: lane t takes k 8t ..
 * 8t + 7 of every 32, for weights and rows alike, which is one 16-byte load and the same sum.
 *
 * Weights in blocks: codes are exact as halves, so two mma over the 32 k of a block give its sum of x times code, which
 * is then multiplied by the scale in f32: no weight is rounded. Codes of OPS_PRODUCT_FP8 are exact as halves on both sides;
 * their scales are of whole outputs and rows, and meet the sum at its end.
 *
 * Banks: a quarter of a warp reads two lines of 128 bytes, 64 bytes each: the chunks of odd lines are swapped by halves.
 * Half a warp reads four lines of 64 bytes of q8 or e4m3 codes, 32 bytes each: likewise by pairs of lines. q4 needs nothing. */
#include "ops/cuda/linear.cuh"
#include "ops/cuda/ptx.cuh"

#define OUTPUTS     64
#define THREADS     128
#define STEP        64
#define STAGES      4
#define LINE_BYTES  128 /* a step of halves */
#define SPLIT_BLOCKS 256 /* as many blocks as make a large device busy; a smaller matrix is split until there are */
#define SPLIT_STEPS 4    /* but no run of k is shorter */

enum weight_kind { HALVES, CODES8, CODES4, CODES_E4M3 };

typedef struct {
    weight_view w;
    linear_end end;
    float *partial; /* [n_splits, rows, n_out], NULL with one split */
    const void *x;
    int64_t rows, x_stride, n_in, n_out, steps_a_split; /* n_in: of rows that may be shorter than those of weights */
    bool is_f32_out;
} few_job;

static __device__ constexpr int line_bytes(int kind) { return kind == HALVES ? 128 : kind == CODES4 ? 32 : 64; }
static __device__ constexpr bool has_blocks(int kind) { return kind == CODES8 || kind == CODES4; }

/* Where chunk c of a line stands. */
static __device__ inline int place_of(int kind, int line, int c) {
    if (kind == HALVES) return c ^ (line & 1) << 2;
    if (kind == CODES4) return c;
    return c ^ (line >> 1 & 1) << 1;
}

/* Shared memory of a stage: lines of weights, their scales, lines of rows. */
template <int kind, int n_tiles>
struct stage_of {
    alignas(16) unsigned char weights[OUTPUTS * line_bytes(kind)];
    unsigned scales[has_blocks(kind) ? OUTPUTS : 4]; /* two bf16 a step */
    alignas(16) unsigned char rows[8 * n_tiles * LINE_BYTES];
};

template <typename T, int kind, int n_tiles>
static __device__ void copy_stage(stage_of<kind, n_tiles> *stage, const few_job *j, int64_t first_out, int64_t first_row,
                                  int64_t k) {
    const int chunks = line_bytes(kind) / 16;
    const int64_t line = j->w.row_elements * line_bytes(kind) / STEP; /* bytes of a row of weights */
    for (int i = (int)threadIdx.x; i < OUTPUTS * chunks; i += THREADS) {
        int o = i / chunks, c = i % chunks;
        const unsigned char *from = j->w.data + (first_out + o) * line + k / STEP * line_bytes(kind) + c * 16;
        copy16_async(stage->weights + o * line_bytes(kind) + place_of(kind, o, c) * 16, from, first_out + o < j->n_out);
    }
    if (has_blocks(kind) && threadIdx.x < OUTPUTS) {
        int64_t o = first_out + threadIdx.x;
        copy4_async(&stage->scales[threadIdx.x], j->w.scales + (o * j->w.row_elements + k) / QUANT_BLOCK, o < j->n_out);
    }
    for (int i = (int)threadIdx.x; i < 8 * n_tiles * 8; i += THREADS) {
        int r = i / 8, c = i % 8;
        bool is_there = first_row + r < j->rows && k + c * CHUNK < j->n_in;
        const T *from = static_cast<const T *>(j->x) + (first_row + r) * j->x_stride + k + c * CHUNK;
        copy16_async(stage->rows + r * LINE_BYTES + place_of(HALVES, r, c) * 16, from, is_there);
    }
}

/* Eight weights of a line as four words of halves: k 8t .. 8t + 7 of the half-th 32 of a step. */
template <typename T, int kind>
static __device__ inline void load_weights(unsigned words[4], const unsigned char *weights, int line, int half, int t) {
    const unsigned char *at = weights + line * line_bytes(kind);
    if (kind == HALVES) {
        uint4 v = *reinterpret_cast<const uint4 *>(at + place_of(kind, line, half * 4 + t) * 16);
        words[0] = v.x;
        words[1] = v.y;
        words[2] = v.z;
        words[3] = v.w;
        return;
    }
    uint2 v;
    if (kind == CODES4) v = *reinterpret_cast<const uint2 *>(at + half * 16 + t % 2 * 8);
    else v = *reinterpret_cast<const uint2 *>(at + place_of(kind, line, half * 2 + t / 2) * 16 + t % 2 * 8);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        unsigned pair = (i < 2 ? v.x : v.y) >> 16 * (i % 2) & 0xffff;
        float low, high;
        if (kind == CODES8) {
            low = (float)(signed char)(pair & 255);
            high = (float)(signed char)(pair >> 8);
        } else if (kind == CODES_E4M3) {
            low = code_to_f32((unsigned char)pair);
            high = code_to_f32((unsigned char)(pair >> 8));
        } else {
            low = (float)((int)(pair >> t / 2 * 4 & 15) - 8);
            high = (float)((int)(pair >> 8 >> t / 2 * 4 & 15) - 8);
        }
        words[i] = pack_halves(low, high, T());
    }
}

static __device__ inline float scale_of(unsigned two, int half) {
    return __uint_as_float(half ? two & 0xffff0000u : two << 16); /* bf16 is the top of an f32 */
}

/* acc += one step. */
template <typename T, int kind, int n_tiles>
static __device__ inline void multiply_stage(float acc[n_tiles][4], const stage_of<kind, n_tiles> *stage) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4, line = (int)threadIdx.x / WARP * 16 + g;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        unsigned low[4], high[4];
        load_weights<T, kind>(low, stage->weights, line, half, t);
        load_weights<T, kind>(high, stage->weights, line + 8, half, t);
        const unsigned a[2][4] = {{low[0], high[0], low[1], high[1]}, {low[2], high[2], low[3], high[3]}};
#pragma unroll
        for (int n = 0; n < n_tiles; n++) {
            int row = n * 8 + g;
            uint4 v = *reinterpret_cast<const uint4 *>(stage->rows + row * LINE_BYTES + place_of(HALVES, row, half * 4 + t) * 16);
            const unsigned b[2][2] = {{v.x, v.y}, {v.z, v.w}};
            if (!has_blocks(kind)) {
                mma<T>(acc[n], a[0], b[0]);
                mma<T>(acc[n], a[1], b[1]);
            } else {
                float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                mma<T>(sum, a[0], b[0]);
                mma<T>(sum, a[1], b[1]);
                float scale_low = scale_of(stage->scales[line], half), scale_high = scale_of(stage->scales[line + 8], half);
                acc[n][0] = fmaf(sum[0], scale_low, acc[n][0]);
                acc[n][1] = fmaf(sum[1], scale_low, acc[n][1]);
                acc[n][2] = fmaf(sum[2], scale_high, acc[n][2]);
                acc[n][3] = fmaf(sum[3], scale_high, acc[n][3]);
            }
        }
    }
}

template <typename T>
static __device__ inline void finish_few(const few_job *j, float sum, int64_t row, int64_t o) {
    if (j->is_f32_out) finish_one<float>(&j->end, sum, row, o);
    else finish_one<T>(&j->end, sum, row, o);
}

template <typename T, int kind, int n_tiles>
static __global__ void __launch_bounds__(THREADS) linear_few_warp_per_16_outputs(few_job j) {
    SHARED_MEMORY(memory);
    stage_of<kind, n_tiles> *stages = reinterpret_cast<stage_of<kind, n_tiles> *>(memory);
    int64_t first_out = (int64_t)blockIdx.x * OUTPUTS, first_row = (int64_t)blockIdx.y * 8 * n_tiles;
    int64_t step = blockIdx.z * j.steps_a_split, n_steps = j.w.row_elements / STEP - step;
    if (n_steps > j.steps_a_split) n_steps = j.steps_a_split;
    float acc[n_tiles][4] = {};
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < n_steps) copy_stage<T>(&stages[i], &j, first_out, first_row, (step + i) * STEP);
        copies_commit();
    }
    for (int64_t i = 0; i < n_steps; i++) {
        copies_wait<STAGES - 2>();
        __syncthreads(); /* step i is here, and nobody reads the stage that is filled next */
        int64_t ahead = i + STAGES - 1;
        if (ahead < n_steps) copy_stage<T>(&stages[ahead % STAGES], &j, first_out, first_row, (step + ahead) * STEP);
        copies_commit();
        multiply_stage<T, kind, n_tiles>(acc, &stages[i % STAGES]);
    }
    copies_wait<0>();
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < n_tiles; n++)
        for (int i = 0; i < 4; i++) {
            int64_t o = first_out + (int)threadIdx.x / WARP * 16 + g + i / 2 * 8, row = first_row + n * 8 + 2 * t + i % 2;
            if (o >= j.n_out || row >= j.rows) continue;
            if (j.partial) j.partial[((int64_t)blockIdx.z * j.rows + row) * j.n_out + o] = acc[n][i];
            else finish_few<T>(&j, acc[n][i], row, o);
        }
}

/* thread -> one result: the runs' partial sums, in order. */
template <typename T>
static __global__ void __launch_bounds__(THREADS) linear_few_finish(few_job j, int n_splits) {
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= j.rows * j.n_out) return;
    float sum = j.partial[at];
    for (int i = 1; i < n_splits; i++) sum += j.partial[i * j.rows * j.n_out + at];
    finish_few<T>(&j, sum, at / j.n_out, at % j.n_out);
}

template <typename T, int kind, int n_tiles>
static status launch(cuda_state *s, const few_job *j, int n_splits) {
    dim3 grid((unsigned)ceil_div(j->n_out, OUTPUTS), (unsigned)ceil_div(j->rows, 8 * n_tiles), (unsigned)n_splits);
    size_t bytes = STAGES * sizeof(stage_of<kind, n_tiles>);
    TRY(cuda_allow_shared(linear_few_warp_per_16_outputs<T, kind, n_tiles>, bytes));
    LAUNCH((linear_few_warp_per_16_outputs<T, kind, n_tiles>), grid, THREADS, bytes, s->stream, *j);
    return cuda_launched("linear_few_warp_per_16_outputs");
}

/* As many tiles of rows as are needed, up to eight: which of them changes no row's sum. */
template <typename T, int kind>
static status launch_rows(cuda_state *s, const few_job *j, int n_splits) {
    if (j->rows <= 8) return launch<T, kind, 1>(s, j, n_splits);
    if (j->rows <= 16) return launch<T, kind, 2>(s, j, n_splits);
    if (j->rows <= 32) return launch<T, kind, 4>(s, j, n_splits);
    return launch<T, kind, 8>(s, j, n_splits);
}

template <typename T>
static status launch_kind(cuda_state *s, const few_job *j, int n_splits) {
    if (j->w.dtype == OPS_DTYPE_Q8) TRY((launch_rows<T, CODES8>(s, j, n_splits)));
    else if (j->w.dtype == OPS_DTYPE_Q4) TRY((launch_rows<T, CODES4>(s, j, n_splits)));
    else if (j->w.dtype == OPS_DTYPE_E4M3) TRY((launch_rows<T, CODES_E4M3>(s, j, n_splits)));
    else TRY((launch_rows<T, HALVES>(s, j, n_splits)));
    if (n_splits == 1) return STATUS_OK;
    LAUNCH((linear_few_finish<T>), (unsigned)ceil_div(j->rows * j->n_out, THREADS), THREADS, 0, s->stream, *j, n_splits);
    return cuda_launched("linear_few_finish");
}

status cuda_few_run(cuda_state *s, const linear_job *l) {
    const cuda_matrix *m = l->m;
    int64_t n_steps = m->row_elements / STEP, n_tiles = ceil_div(m->head.n_out, OUTPUTS);
    int64_t n_splits = ceil_div(SPLIT_BLOCKS, n_tiles), most = n_steps / SPLIT_STEPS;
    if (n_splits > most) n_splits = most > 0 ? most : 1;
    int64_t n_in = l->row_scales ? m->row_elements : m->head.n_in; /* codes are filled up */
    few_job j = {weights_of(m), end_of(l), NULL, l->x, l->rows, l->x_stride, n_in, m->head.n_out,
                 ceil_div(n_steps, n_splits), l->out_dtype == OPS_DTYPE_F32};
    n_splits = ceil_div(n_steps, j.steps_a_split);
    if (n_splits > 1) {
        void *partial;
        TRY(cuda_scratch(s, &partial, (size_t)(n_splits * l->rows * m->head.n_out) * sizeof(float)));
        j.partial = static_cast<float *>(partial);
    }
    if (l->dtype == OPS_DTYPE_F16) return launch_kind<__half>(s, &j, (int)n_splits);
    return launch_kind<__nv_bfloat16>(s, &j, (int)n_splits);
}
