/* Attention of halves on tensor cores, for many rows: prompts, and the tokens of pictures (attention_mma.cuh has what it is made
 * of). block -> a tile: up to 128 queries (64 of heads over 96), which are rows of one sequence times the heads that share its
 * keys; warp -> 32 of them (16). Keys and values come in tiles of 64 (32 of heads over 80, 16 over 128), the next on its way
 * while one is multiplied; a warp looks at those that its rows see something of.
 *
 * The order of a row's sum: tiles of keys counted from absolute position 0, in order, with a maximum that moves. Who else is in
 * the tile of rows changes nothing.
 *
 * Memory: keys and values once a tile of rows and key head. */
#include "ops/cuda/attention_mma.cuh"
#include "ops/cuda/attention_tiles.cuh"

#define THREADS 128
#define WARPS   (THREADS / WARP)
#define STAGES  2

template <int pad>
struct many_shape {
    static constexpr int keys = pad > 128 ? 16 : pad > 80 ? 32 : 64;
    static constexpr int m_tiles = pad > 96 ? 1 : 2;
    static constexpr int queries_a_warp = 16 * m_tiles, queries = WARPS * queries_a_warp;
};

typedef struct {
    attention_job a;
    const int *tiles, *n_tiles; /* paged: [rows] first row of each tile, and how many */
    int64_t tiles_a_group;      /* full */
    int rows_a_tile;
} many_job;

/* A tile's rows and what they see: some of them keys low .. high, all of them keys all_low .. all_high. */
typedef struct {
    int64_t first_row;
    int n_rows, seq, low, high, all_low, all_high;
} tile_place;

template <int pad, typename C>
struct many_memory {
    keys_memory<pad, C, many_shape<pad>::keys, STAGES> keys;
    int reduce[WARPS];
};

/* ---- tiles of rows ------------------------------------------------------------------------- */

/* A tile begins at multiples of its size and wherever the sequence changes. */
static __device__ inline bool begins_tile(const many_job *j, int64_t row) {
    return row % j->rows_a_tile == 0 || j->a.row_seq[row] != j->a.row_seq[row - 1];
}

static __global__ void find_tiles(many_job j, int *tiles, int *n_tiles) {
    follow_last();
    int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (row < j.a.rows && begins_tile(&j, row)) tiles[atomicAdd(n_tiles, 1)] = (int)row; /* in any order */
}

static __device__ inline tile_place place_tile(const many_job *j, int64_t tile, int *reduce) {
    tile_place p;
    int i = (int)threadIdx.x, size = j->rows_a_tile;
    if (!j->a.tables) {
        int64_t in_group = tile % j->tiles_a_group * size;
        p.first_row = tile / j->tiles_a_group * j->a.length + in_group;
        p.n_rows = j->a.length - in_group < size ? (int)(j->a.length - in_group) : size;
        p.seq = seq_of(&j->a, p.first_row);
        p.low = p.all_low = 0;
        p.high = p.all_high = (int)j->a.length - 1;
        return p;
    }
    p.first_row = j->tiles[tile];
    int64_t row = p.first_row + i;
    bool ends = i > 0 && i < size && (row >= j->a.rows || begins_tile(j, row));
    p.n_rows = size - block_max(ends ? size - i : 0, reduce);
    bool is_row = i < p.n_rows && row_fits(&j->a, row);
    if (i < p.n_rows && !is_row) *j->a.fault = 1;
    int first = is_row ? first_key(&j->a, row) : 0, last = is_row ? last_key(&j->a, row) : -1;
    p.seq = seq_of(&j->a, p.first_row);
    p.high = block_max(last, reduce);
    p.all_low = block_max(first, reduce);
    p.low = -block_max(is_row ? -first : -0x7fffffff, reduce);
    p.all_high = -block_max(is_row ? -last : -0x7fffffff, reduce);
    return p;
}

/* ---- a tile -------------------------------------------------------------------------------- */

/* Of the block's queries, this lane's in an mma tile of its warp. */
template <int pad>
static __device__ inline int query_of(int m, int high) {
    return (int)threadIdx.x / WARP * many_shape<pad>::queries_a_warp + m * 16 + (int)threadIdx.x % WARP / 4 + 8 * high;
}

template <typename T, int pad, int m_tiles>
static __device__ inline void load_queries(unsigned frag[m_tiles][pad / 16][4], query_state<pad, m_tiles> *q, const many_job *j,
                                           const tile_place *p, int kv_head) {
    begin_queries(q);
#pragma unroll
    for (int m = 0; m < m_tiles; m++)
        for (int i = 0; i < 2; i++) {
            int head;
            int64_t row = row_of(&j->a, p->first_row, p->n_rows, query_of<pad>(m, i), kv_head, &head);
            load_query<T>(frag[m], q, m, i, &j->a, row, head);
        }
}

/* What a warp's rows see, as a tile_place has it of the block's; low above high: nothing. */
template <int pad, int m_tiles>
static __device__ inline void see_together(const query_state<pad, m_tiles> *q, int *low, int *high, int *all_low, int *all_high) {
    int least = 0x7fffffff, most = -1, most_first = 0, least_last = 0x7fffffff;
    for (int m = 0; m < m_tiles; m++)
        for (int i = 0; i < 2; i++) {
            if (q->last[m][i] < 0) continue; /* no row, or one that is not counted: its weights go nowhere */
            least = q->first[m][i] < least ? q->first[m][i] : least;
            most = larger(most, q->last[m][i]);
            most_first = larger(most_first, q->first[m][i]);
            least_last = q->last[m][i] < least_last ? q->last[m][i] : least_last;
        }
    *low = -warp_max(-least);
    *high = warp_max(most);
    *all_low = warp_max(most_first);
    *all_high = -warp_max(-least_last);
}

template <typename T, typename C, int pad>
static __device__ inline void attend_keys(many_memory<pad, C> *s, query_state<pad, many_shape<pad>::m_tiles> *q,
                                          const unsigned frag[many_shape<pad>::m_tiles][pad / 16][4], const many_job *j,
                                          const tile_place *p, int kv_head) {
    constexpr int keys = many_shape<pad>::keys, m_tiles = many_shape<pad>::m_tiles;
    const float scale = j->a.scale * LOG2_E;
    int thread = (int)threadIdx.x, stage = 0, low, high, all_low, all_high;
    see_together(q, &low, &high, &all_low, &all_high);
    int from = p->low / keys * keys;
    copy_keys<C, pad, keys, STAGES, THREADS>(&s->keys, 0, &j->a, thread, p->seq, p->high, kv_head, from);
    copies_commit();
    for (int start = from; start <= p->high; start += keys, stage = 1 - stage) {
        int end = start + keys - 1;
        copies_wait<0>();
        __syncthreads(); /* the tile is here, and nobody looks at the one before */
        if (end < p->high) copy_keys<C, pad, keys, STAGES, THREADS>(&s->keys, 1 - stage, &j->a, thread, p->seq, p->high, kv_head, end + 1);
        copies_commit();
        int at = stage;
        if constexpr (sizeof(C) == 1) {
            open_keys<T, pad, keys, STAGES, THREADS>(&s->keys, stage, thread);
            at = 0;
            __syncthreads();
        }
        unsigned char *values = s->keys.values[at];
        bool sees = start <= high && end >= low;
        float w[m_tiles][keys / 8][4];
        if (sees) {
            score<T, pad, keys, m_tiles>(w, frag, s->keys.keys[at]);
            if (start < all_low || end > all_high) hide<pad, keys, m_tiles>(w, q, start);
            weigh<pad, keys, m_tiles>(w, q, scale);
        }
        bool is_whole = start >= p->all_low && (end < p->high ? end : p->high) <= p->all_high;
        if (!is_whole && __syncthreads_or(look_through<T, pad, keys, THREADS>(values, thread, false))) {
            add_not_finite<T, pad, keys, m_tiles>(q, values, start);
            __syncthreads();
            (void)look_through<T, pad, keys, THREADS>(values, thread, true);
            __syncthreads();
        }
        if (sees) add_values<T, pad, keys, m_tiles>(q, w, values);
    }
}

template <typename T, int pad, int m_tiles>
static __device__ inline void write_out(const query_state<pad, m_tiles> *q, const many_job *j, const tile_place *p, int kv_head) {
    int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < m_tiles; m++)
        for (int i = 0; i < 2; i++) {
            int head;
            int64_t row = row_of(&j->a, p->first_row, p->n_rows, query_of<pad>(m, i), kv_head, &head);
            float sum = quad_sum(q->sum[m][i]);
            T *out = static_cast<T *>(j->a.out) + row * j->a.out_stride + head * j->a.head_dim;
#pragma unroll
            for (int n = 0; n < pad / 8; n++) {
                int d = n * 8 + 2 * t;
                if (row < 0 || d >= j->a.head_dim) continue; /* heads are whole eights */
                for (int c = 0; c < 2; c++) from_f32(&out[d + c], finite_or_nan(q->acc[m][n][2 * i + c]) / sum); /* rows may begin anywhere */
            }
        }
}

template <typename T, typename C, int pad>
static __global__ void __launch_bounds__(THREADS, 2) attend_many_block_per_tile(many_job j) {
    follow_last();
    SHARED_MEMORY(memory);
    many_memory<pad, C> *s = reinterpret_cast<many_memory<pad, C> *>(memory);
    int64_t n_tiles = j.a.tables ? *j.n_tiles : j.a.rows / j.a.length * j.tiles_a_group;
    for (int64_t tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        tile_place p = place_tile(&j, tile, s->reduce);
        query_state<pad, many_shape<pad>::m_tiles> q;
        unsigned frag[many_shape<pad>::m_tiles][pad / 16][4];
        load_queries<T>(frag, &q, &j, &p, (int)blockIdx.y);
        attend_keys<T, C, pad>(s, &q, frag, &j, &p, (int)blockIdx.y);
        write_out<T>(&q, &j, &p, (int)blockIdx.y);
        copies_wait<0>();
        __syncthreads(); /* the next tile's keys may come */
    }
}

/* ---- launching ----------------------------------------------------------------------------- */

template <typename T, typename C, int pad>
static status launch(cuda_state *s, many_job *j) {
    const attention_job *a = &j->a;
    j->rows_a_tile = many_shape<pad>::queries / a->heads_a_kv;
    j->tiles_a_group = a->tables ? 0 : ceil_div(a->length, j->rows_a_tile);
    int64_t n_tiles = a->tables ? ceil_div(a->rows, j->rows_a_tile) + a->n_seqs /* more where sequences alternate: a block takes several */
                                : a->rows / a->length * j->tiles_a_group;
    if (n_tiles > a->rows) n_tiles = a->rows;
    if (a->tables) {
        void *scratch;
        TRY(cuda_scratch(s, &scratch, (size_t)(a->rows + 1) * sizeof(int)));
        int *count = static_cast<int *>(scratch);
        CUDA_TRY(cudaMemsetAsync(count, 0, sizeof *count, s->stream));
        LAUNCH(find_tiles, (unsigned)ceil_div(a->rows, THREADS), THREADS, 0, s, *j, count + 1, count);
        TRY(cuda_launched("find_tiles"));
        j->n_tiles = count;
        j->tiles = count + 1;
    }
    dim3 grid((unsigned)n_tiles, (unsigned)(a->n_heads / a->heads_a_kv));
    size_t bytes = sizeof(many_memory<pad, C>);
    TRY(cuda_allow_shared(attend_many_block_per_tile<T, C, pad>, bytes));
    LAUNCH((attend_many_block_per_tile<T, C, pad>), grid, THREADS, bytes, s, *j);
    return cuda_launched("attend_many_block_per_tile");
}

status cuda_attention_many(cuda_state *s, const attention_job *a) {
    many_job j = {};
    j.a = *a;
    WITH_TILES(a, T, C, pad, return (launch<T, C, pad>(s, &j)));
}
