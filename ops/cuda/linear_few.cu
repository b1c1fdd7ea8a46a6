/* Few rows: out[r,o] = act(bias[o] + sum over k of x[r,k] w[o,k]) + add[r,o] at the speed the weights can be read with.
 *
 * Outputs are the 16 of m16n8k16 and rows of x its 8, so that one row wastes no weights. block -> a tile of outputs and
 * rows, and one of n_splits runs of k; a step is 64 k, of which `stages` are on their way to shared memory while one is
 * multiplied; warp -> some of the tile's outputs, all its rows, and both halves of a step or one. At the end the tile's sums
 * lie in shared memory, and a thread finishes one output for every second row. Partial sums of the runs go to scratch and
 * are added in their order.
 *
 * The tile goes by the number of rows. Up to FEW_ROWS it is 16 outputs of a warp that is a block of its own: no barrier,
 * and as even a load as can be. With more rows, x itself becomes traffic: it is read once a tile, so tiles grow to 64 and
 * 128 outputs, and x stays within half of the bytes of halves; and warps take 32 outputs of half a step, not 16 of a whole one,
 * because each reads all the rows it multiplies from shared memory. Copies go by pointers that only move, steps are unrolled
 * so that stages are constants: a step of a small tile is hardly more than its copies, loads and products.
 *
 * The order of a sum: n_splits follows from the size of the matrix alone; in a run, two chains, of the first and the second
 * 32 k of every step, steps in order, two mma each; then first plus second. A column of an mma is summed like any other
 * and knows nothing of its neighbours, and no tile changes a chain, so a row's bits depend on neither the number of rows,
 * nor its place among them, nor the tile. The 16 k of an mma are not 16 neighbours: lane t takes k 8t .. 8t + 7 of
 * every 32, for weights and rows alike, which is one 16-byte load and the same sum.
 *
 * Weights in blocks: codes are exact as halves, so two mma over the 32 k of a block give its sum of x times code, which
 * is then multiplied by the scale in f32: no weight is rounded. Codes of OPS_PRODUCT_FP8 are exact as halves on both sides;
 * their scales are of whole outputs and rows, and meet the sum at its end.
 *
 * Memory: weights once, x once a tile of outputs. Lines behind the last output are copies of it, and nobody's; rows that are
 * not there, and k behind the last, are zeros. Shared memory is within the 99 KB that every device since sm_80 has.
 *
 * Banks: a quarter of a warp reads two lines of 128 bytes, 64 bytes each: the chunks of odd lines are swapped by halves.
 * Half a warp reads four lines of 64 bytes of q8 or e4m3 codes, 32 bytes each: likewise by pairs of lines. q4 needs nothing.
 * Lanes of a tile of sums are two rows of it apart, and a row is 4 words longer than its outputs: 32 different banks. */
#include "ops/cuda/linear.cuh"
#include "ops/cuda/ptx.cuh"

#define STEP         64
#define LINE_BYTES   128 /* a step of halves */
#define SPLIT_TILE   64  /* n_splits: this many outputs */
#define SPLIT_TILES  264 /* are counted as one of so many that make a large device busy; a smaller matrix is split, */
#define SPLIT_STEPS  4   /* but no run of k is shorter */
#define FEW_ROWS     4   /* of a block of one warp */
#define FINISH_ROWS  8   /* whose ends a thread reads at once */
#define FINISH_SPLITS 8  /* partial sums likewise */
#define FINISH_THREADS 128

enum weight_kind { HALVES, CODES8, CODES4, CODES_E4M3 };

typedef struct {
    weight_view w;
    linear_end end;
    float *partial; /* [n_splits, rows, n_out], NULL with one split */
    const void *x;
    int64_t rows, x_stride, n_in, n_out, steps_a_split; /* n_in: of rows that may be shorter than those of weights */
    bool is_f32_out;
} few_job;

/* A block's tile: outputs of a warp in 16, rows in 8, warps beside each other in outputs, and 1, or 2 for the halves of a
 * step. blocks: on a multiprocessor, as far as registers go. */
template <int out_tiles_, int row_tiles_, int out_warps_, int k_warps_, int stages_, int blocks_>
struct tile_shape {
    static constexpr int out_tiles = out_tiles_, row_tiles = row_tiles_, out_warps = out_warps_, k_warps = k_warps_;
    static constexpr int stages = stages_, blocks = blocks_, chains = 2 / k_warps, warps = out_warps * k_warps;
    static constexpr int threads = warps * WARP, outputs = 16 * out_tiles * out_warps, rows = 8 * row_tiles;
    static constexpr int sums_pitch = outputs + 4;
    static constexpr bool rows_first = rows == 64; /* blocks of the same outputs run together, so that weights come once: */
};                                                 /* only the largest tile has several of rows, and the fewest of outputs */

/* The registers of two blocks of a large tile are worth a shortage only where two have the shared memory. */
static __host__ __device__ constexpr int resident(int blocks) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    return blocks == 2 ? 1 : blocks;
#else
    return blocks;
#endif
}

static __device__ constexpr int line_bytes(int kind) { return kind == HALVES ? 128 : kind == CODES4 ? 32 : 64; }
static __device__ constexpr bool has_blocks(int kind) { return kind == CODES8 || kind == CODES4; }

/* Where chunk c of a line stands. Lines a multiple of four apart agree. */
static __device__ inline int place_of(int kind, int line, int c) {
    if (kind == HALVES) return c ^ (line & 1) << 2;
    if (kind == CODES4) return c;
    return c ^ (line >> 1 & 1) << 1;
}

/* Shared memory of a stage: lines of weights, their scales, lines of rows. */
template <int kind, typename S>
struct stage_of {
    alignas(16) unsigned char weights[S::outputs * line_bytes(kind)];
    alignas(16) unsigned char rows[S::rows * LINE_BYTES];
    unsigned scales[has_blocks(kind) ? S::outputs : 4]; /* two bf16 a step */
};

/* What is read before is ready, what is written next is free. */
template <typename S>
static __device__ inline void meet(void) {
    if (S::warps == 1) __syncwarp();
    else __syncthreads();
}

/* ---- copies -------------------------------------------------------------------------------- */

/* What a thread copies of a step, the same chunk of lines that are `apart`: where it comes from, at the step that goes to
 * the first stage; of rows the first, and how far it is to the next. */
template <int kind, typename S>
struct few_copies {
    static constexpr int chunks = line_bytes(kind) / 16, apart = S::threads / chunks, lines = S::outputs / apart;
    static constexpr int row_chunks = LINE_BYTES / 16, rows_apart = S::threads / row_chunks;
    static constexpr int row_lines = (S::rows + rows_apart - 1) / rows_apart;
    static_assert(S::outputs % apart == 0 && apart % 4 == 0 && rows_apart % 4 == 0, "lines of a thread stand alike");
    const unsigned char *weights[lines], *row, *scales;
    int64_t rows_apart_bytes;
    int k_left, rows_left; /* of a row from its chunk on, of rows from its first on */
};

template <typename T, int kind, typename S>
static __device__ inline few_copies<kind, S> copies_from(const few_job *j, int64_t first_out, int64_t first_row, int64_t step) {
    typedef few_copies<kind, S> copies;
    copies f;
    int tid = (int)threadIdx.x, c = tid % copies::row_chunks;
    int64_t line = j->w.row_elements / STEP * line_bytes(kind); /* bytes of a row of weights */
#pragma unroll
    for (int i = 0; i < copies::lines; i++) {
        int64_t o = first_out + tid / copies::chunks + i * copies::apart;
        if (o >= j->n_out) o = j->n_out - 1;
        f.weights[i] = j->w.data + o * line + step * line_bytes(kind) + tid % copies::chunks * 16;
    }
    int64_t r = first_row + tid / copies::row_chunks;
    f.rows_left = (int)(j->rows - r < S::rows ? j->rows - r : S::rows);
    if (f.rows_left <= 0) r = first_row;
    f.row = reinterpret_cast<const unsigned char *>(static_cast<const T *>(j->x) + r * j->x_stride + step * STEP + c * CHUNK);
    f.rows_apart_bytes = copies::rows_apart * j->x_stride * (int64_t)sizeof(T);
    f.k_left = (int)(j->n_in - step * STEP) - c * CHUNK;
    if (has_blocks(kind)) {
        int64_t o = first_out + tid;
        if (o >= j->n_out) o = j->n_out - 1;
        f.scales = reinterpret_cast<const unsigned char *>(j->w.scales + (o * j->w.row_elements + step * STEP) / QUANT_BLOCK);
    }
    return f;
}

/* Begins the copies of the step that is `ahead` of the first stage's. */
template <int kind, typename S>
static __device__ inline void copy_step(stage_of<kind, S> *stage, const few_copies<kind, S> *f, int ahead) {
    typedef few_copies<kind, S> copies;
    int tid = (int)threadIdx.x, o = tid / copies::chunks, r = tid / copies::row_chunks;
    unsigned char *weights = stage->weights + o * line_bytes(kind) + place_of(kind, o, tid % copies::chunks) * 16;
    unsigned char *rows = stage->rows + r * LINE_BYTES + place_of(HALVES, r, tid % copies::row_chunks) * 16;
#pragma unroll
    for (int i = 0; i < copies::lines; i++)
        copy16_async(weights + i * copies::apart * line_bytes(kind), f->weights[i] + ahead * line_bytes(kind), true);
    bool has_k = f->k_left > ahead * STEP;
#pragma unroll
    for (int i = 0; i < copies::row_lines; i++)
        if (S::rows % copies::rows_apart == 0 || r + i * copies::rows_apart < S::rows)
            copy16_async(rows + i * copies::rows_apart * LINE_BYTES, f->row + i * f->rows_apart_bytes + ahead * LINE_BYTES,
                         f->rows_left > i * copies::rows_apart && has_k);
    if (has_blocks(kind) && tid < S::outputs) copy4_async(&stage->scales[tid], f->scales + ahead * 4, true);
}

/* The weights of the first n steps, while the kernel before still runs: nobody writes them. One thread of two that share 32
 * bytes, which is what a level of the cache takes at once. */
template <int kind, typename S>
static __device__ inline void send_for_weights(const few_copies<kind, S> *f, int n) {
    if (threadIdx.x % 2 != 0) return;
#pragma unroll
    for (int ahead = 0; ahead < S::stages - 1; ahead++)
#pragma unroll
        for (int i = 0; i < few_copies<kind, S>::lines; i++)
            if (ahead < n) prefetch(f->weights[i] + ahead * line_bytes(kind));
}

template <int kind, typename S>
static __device__ inline void move_on(few_copies<kind, S> *f) {
#pragma unroll
    for (int i = 0; i < few_copies<kind, S>::lines; i++) f->weights[i] += S::stages * line_bytes(kind);
    f->row += S::stages * LINE_BYTES;
    if (has_blocks(kind)) f->scales += S::stages * 4;
    f->k_left -= S::stages * STEP;
}

/* ---- products ------------------------------------------------------------------------------ */

/* Eight weights of a line, g or a multiple of eight on, as four words of halves: k 8t .. 8t + 7 of the half-th 32 of a step. */
template <typename T, int kind>
static __device__ inline void load_weights(unsigned words[4], const unsigned char *weights, int line, int half, int g, int t) {
    const unsigned char *at = weights + line * line_bytes(kind);
    if (kind == HALVES) {
        uint4 v = *reinterpret_cast<const uint4 *>(at + place_of(kind, g, half * 4 + t) * 16);
        words[0] = v.x;
        words[1] = v.y;
        words[2] = v.z;
        words[3] = v.w;
        return;
    }
    uint2 v;
    if (kind == CODES4) v = *reinterpret_cast<const uint2 *>(at + half * 16 + t % 2 * 8);
    else v = *reinterpret_cast<const uint2 *>(at + place_of(kind, g, half * 2 + t / 2) * 16 + t % 2 * 8);
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

/* acc += a half of a step, for the outputs of a warp. */
template <typename T, int kind, typename S>
static __device__ inline void multiply_half(float acc[S::out_tiles][S::row_tiles][4], const stage_of<kind, S> *stage,
                                            int first_line, int half) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    unsigned a[S::out_tiles][2][4];
    float scales[S::out_tiles][2];
#pragma unroll
    for (int m = 0; m < S::out_tiles; m++) {
        int line = first_line + m * 16 + g;
        unsigned low[4], high[4];
        load_weights<T, kind>(low, stage->weights, line, half, g, t);
        load_weights<T, kind>(high, stage->weights, line + 8, half, g, t);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[m][i / 2][i % 2 * 2] = low[i];
            a[m][i / 2][i % 2 * 2 + 1] = high[i];
        }
        scales[m][0] = has_blocks(kind) ? scale_of(stage->scales[line], half) : 1.0f;
        scales[m][1] = has_blocks(kind) ? scale_of(stage->scales[line + 8], half) : 1.0f;
    }
#pragma unroll
    for (int n = 0; n < S::row_tiles; n++) {
        const unsigned char *row = stage->rows + (n * 8 + g) * LINE_BYTES;
        uint4 v = *reinterpret_cast<const uint4 *>(row + place_of(HALVES, g, half * 4 + t) * 16);
        const unsigned b[2][2] = {{v.x, v.y}, {v.z, v.w}};
#pragma unroll
        for (int m = 0; m < S::out_tiles; m++) {
            if (!has_blocks(kind)) {
                mma<T>(acc[m][n], a[m][0], b[0]);
                mma<T>(acc[m][n], a[m][1], b[1]);
            } else {
                float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
                mma<T>(sum, a[m][0], b[0]);
                mma<T>(sum, a[m][1], b[1]);
#pragma unroll
                for (int i = 0; i < 4; i++) acc[m][n][i] = fmaf(sum[i], scales[m][i / 2], acc[m][n][i]);
            }
        }
    }
}

/* ---- ends ---------------------------------------------------------------------------------- */

/* A warp's sums of one half, and those that lie there already, to the tile of sums [rows, sums_pitch]. */
template <typename S>
static __device__ inline void put_sums(float *sums, const float acc[S::out_tiles][S::row_tiles][4], int first_line, bool adds) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int m = 0; m < S::out_tiles; m++)
#pragma unroll
        for (int n = 0; n < S::row_tiles; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float *at = sums + (n * 8 + 2 * t + i % 2) * S::sums_pitch + first_line + m * 16 + g + i / 2 * 8;
                *at = adds ? acc[m][n][i] + *at : acc[m][n][i];
            }
}

/* One output's results for rows first, first + apart, ... of the tile. Activations go one by one, for there is a lot of
 * code to one; what is added comes from far away, several at once. */
template <typename O, typename S>
static __device__ inline void finish_rows(const linear_end *e, const float *sums, int64_t first_row, int first, int n_rows, int64_t o) {
    const int apart = S::threads / S::outputs, at_once = S::rows / apart < FINISH_ROWS ? S::rows / apart : FINISH_ROWS;
    for (int from = first; from < n_rows; from += at_once * apart) {
        float more[at_once] = {};
#pragma unroll
        for (int i = 0; i < at_once; i++)
            if (from + i * apart < n_rows) more[i] = added<O>(e, (first_row + from + i * apart) * e->n_out + o);
#pragma unroll
        for (int i = 0; i < at_once; i++) {
            int r = from + i * apart;
            if (r < n_rows) store_result<O>(e, sums[r * S::sums_pitch], more[i], (first_row + r) * e->n_out + o);
        }
    }
}

template <typename T, typename S>
static __device__ inline void finish_tile(const few_job *j, float *sums, int64_t first_out, int64_t first_row) {
    static_assert(S::threads % S::outputs == 0, "a thread has one output");
    const int apart = S::threads / S::outputs;
    int line = (int)threadIdx.x % S::outputs, first = (int)threadIdx.x / S::outputs;
    int64_t o = first_out + line, left = j->rows - first_row;
    if (o >= j->n_out) return;
    int n_rows = left < S::rows ? (int)left : S::rows;
    sums += line;
    if (j->partial) {
        float *to = j->partial + (blockIdx.z * j->rows + first_row) * j->n_out + o;
        for (int r = first; r < n_rows; r += apart) to[r * j->n_out] = sums[r * S::sums_pitch];
        return;
    }
    output_end end = output_end_of(&j->end, o);
#pragma unroll 1
    for (int r = first; r < n_rows; r += apart) {
        float *sum = sums + r * S::sums_pitch;
        *sum = end_sum(&j->end, &end, *sum, first_row + r, o);
    }
    if (j->is_f32_out) finish_rows<float, S>(&j->end, sums, first_row, first, n_rows, o);
    else finish_rows<T, S>(&j->end, sums, first_row, first, n_rows, o);
}

/* ---- kernels ------------------------------------------------------------------------------- */

template <typename T, int kind, typename S>
static __global__ void __launch_bounds__(S::threads, resident(S::blocks)) linear_few_tile(few_job j) {
    SHARED_MEMORY(memory);
    stage_of<kind, S> *stages = reinterpret_cast<stage_of<kind, S> *>(memory);
    int64_t first_out = (int64_t)(S::rows_first ? blockIdx.y : blockIdx.x) * S::outputs;
    int64_t first_row = (int64_t)(S::rows_first ? blockIdx.x : blockIdx.y) * S::rows;
    int64_t step = blockIdx.z * j.steps_a_split, left = j.w.row_elements / STEP - step;
    int n_steps = (int)(left < j.steps_a_split ? left : j.steps_a_split), warp = (int)threadIdx.x / WARP;
    int first_line = warp % S::out_warps * 16 * S::out_tiles, k_warp = warp / S::out_warps;
    few_copies<kind, S> from = copies_from<T, kind, S>(&j, first_out, first_row, step);
    if (OVERLAPS && S::rows < 64) send_for_weights<kind, S>(&from, n_steps); /* tiles of 64 have no registers for it */
    follow_last();
    float acc[S::chains][S::out_tiles][S::row_tiles][4] = {};
#pragma unroll
    for (int i = 0; i < S::stages - 1; i++) {
        if (i < n_steps) copy_step<kind, S>(&stages[i], &from, i);
        copies_commit();
    }
    for (int i = 0; i < n_steps; i += S::stages) {
#pragma unroll
        for (int s = 0; s < S::stages; s++) {
            if (i + s >= n_steps) break;
            copies_wait<S::stages - 2>();
            meet<S>(); /* step i + s is here, and nobody reads the stage that is filled next */
            const int ahead = s + S::stages - 1;
            if (i + ahead < n_steps) copy_step<kind, S>(&stages[ahead % S::stages], &from, ahead);
            copies_commit();
#pragma unroll
            for (int c = 0; c < S::chains; c++)
                multiply_half<T, kind, S>(acc[c], &stages[s], first_line, S::chains == 2 ? c : k_warp);
        }
        move_on<kind, S>(&from);
    }
    copies_wait<0>();
    meet<S>(); /* nobody reads stages any more */
    static_assert(S::rows * S::sums_pitch * sizeof(float) <= S::stages * sizeof(stage_of<kind, S>), "sums lie where stages lay");
    float *sums = reinterpret_cast<float *>(memory);
    if (S::chains == 2) {
        put_sums<S>(sums, acc[0], first_line, false);
        put_sums<S>(sums, acc[S::chains - 1], first_line, true); /* a thread's own */
    } else {
        if (k_warp == 0) put_sums<S>(sums, acc[0], first_line, false);
        meet<S>();
        if (k_warp == 1) put_sums<S>(sums, acc[0], first_line, true);
    }
    meet<S>();
    finish_tile<T, S>(&j, sums, first_out, first_row);
}

/* block -> FINISH_THREADS outputs of a row; thread -> one result: the runs' partial sums, in order. */
template <typename T>
static __global__ void __launch_bounds__(FINISH_THREADS) linear_few_finish(few_job j, int n_splits) {
    follow_last();
    int64_t row = blockIdx.x, o = (int64_t)blockIdx.y * FINISH_THREADS + threadIdx.x, at = row * j.n_out + o;
    if (o >= j.n_out) return;
    output_end end = output_end_of(&j.end, o);
    float sum = 0.0f, more = j.is_f32_out ? added<float>(&j.end, at) : added<T>(&j.end, at);
    for (int first = 0; first < n_splits; first += FINISH_SPLITS) {
        float partial[FINISH_SPLITS] = {};
#pragma unroll
        for (int i = 0; i < FINISH_SPLITS; i++)
            if (first + i < n_splits) partial[i] = j.partial[(first + i) * j.rows * j.n_out + at];
#pragma unroll
        for (int i = 0; i < FINISH_SPLITS; i++)
            if (first + i < n_splits) sum = first + i == 0 ? partial[0] : sum + partial[i];
    }
    sum = end_sum(&j.end, &end, sum, row, o);
    if (j.is_f32_out) store_result<float>(&j.end, sum, more, at);
    else store_result<T>(&j.end, sum, more, at);
}

template <typename T, int kind, typename S>
static status launch(cuda_state *s, const few_job *j, int n_splits) {
    unsigned out_tiles = (unsigned)ceil_div(j->n_out, S::outputs), row_tiles = (unsigned)ceil_div(j->rows, S::rows);
    dim3 grid(S::rows_first ? row_tiles : out_tiles, S::rows_first ? out_tiles : row_tiles, (unsigned)n_splits);
    size_t bytes = S::stages * sizeof(stage_of<kind, S>);
    static_assert(S::stages * sizeof(stage_of<kind, S>) <= SHARED_BYTES_LEAST, "a block fits every device");
    TRY(cuda_allow_shared(linear_few_tile<T, kind, S>, bytes));
    LAUNCH((linear_few_tile<T, kind, S>), grid, S::threads, bytes, s, *j);
    return cuda_launched("linear_few_tile");
}

/* Copies of x are half of those of halves at most. */
typedef tile_shape<1, 1, 1, 1, 8, 8> tile_of_4;  /* rows, of 8 */
typedef tile_shape<1, 2, 4, 1, 6, 3> tile_of_16;
typedef tile_shape<2, 4, 2, 2, 6, 3> tile_of_32;
typedef tile_shape<2, 8, 4, 2, 4, 2> tile_of_64;

/* Which of them changes no row's sum. */
template <typename T, int kind>
static status launch_rows(cuda_state *s, const few_job *j, int n_splits) {
    if (j->rows <= FEW_ROWS) return launch<T, kind, tile_of_4>(s, j, n_splits);
    if (j->rows <= 16) return launch<T, kind, tile_of_16>(s, j, n_splits);
    if (j->rows <= 32) return launch<T, kind, tile_of_32>(s, j, n_splits);
    return launch<T, kind, tile_of_64>(s, j, n_splits);
}

template <typename T>
static status launch_kind(cuda_state *s, const few_job *j, int n_splits) {
    if (j->w.dtype == OPS_DTYPE_Q8) TRY((launch_rows<T, CODES8>(s, j, n_splits)));
    else if (j->w.dtype == OPS_DTYPE_Q4) TRY((launch_rows<T, CODES4>(s, j, n_splits)));
    else if (j->w.dtype == OPS_DTYPE_E4M3) TRY((launch_rows<T, CODES_E4M3>(s, j, n_splits)));
    else TRY((launch_rows<T, HALVES>(s, j, n_splits)));
    if (n_splits == 1) return STATUS_OK;
    dim3 grid((unsigned)j->rows, (unsigned)ceil_div(j->n_out, FINISH_THREADS)); /* a matrix that is split has few outputs */
    LAUNCH((linear_few_finish<T>), grid, FINISH_THREADS, 0, s, *j, n_splits);
    return cuda_launched("linear_few_finish");
}

status cuda_few_run(cuda_state *s, const linear_job *l) {
    const cuda_matrix *m = l->m;
    int64_t n_steps = m->row_elements / STEP, n_splits = SPLIT_TILES / ceil_div(m->head.n_out, SPLIT_TILE);
    int64_t most = n_steps / SPLIT_STEPS;
    if (n_splits > most) n_splits = most;
    if (n_splits < 1) n_splits = 1;
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
