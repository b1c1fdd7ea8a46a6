/* Attention of halves on tensor cores, for few rows: tokens that are being decoded (attention_mma.cuh has what it is made of).
 * What it costs is reading keys and values, so it is all about having many of them on their way: block of one warp -> a key
 * head, a chunk of 128 keys counted from absolute position 0, and a tile of rows: one, or some beside each other whose tables
 * name the same blocks in the chunk, so that questions on one image read its keys once for all of them. Up to 16 queries.
 * Warps have nothing to say to each other, and alone they spread over all multiprocessors and leave their memory when they
 * end. Keys and values come in tiles of 32 (16 of heads over 80), two of them on their way.
 *
 * The order of a row's sum: in a chunk, tiles of keys in order, with a maximum that moves and a sum that begins anew; what a
 * chunk makes stays in scratch until a second kernel joins a row's chunks in order. Who shares the tile changes nothing.
 *
 * Memory: keys and values once a tile of rows and key head, and what chunks make, a 64th of them for a row alone. */
#include "ops/cuda/attention_mma.cuh"
#include "ops/cuda/attention_tiles.cuh"

#define CHUNK_KEYS   128
#define QUERIES      16 /* of a warp */
#define STAGES       2
#define JOIN_THREADS 128
#define JOIN_AHEAD   8 /* chunks whose parts are loaded before the first of them is joined */
#define PARTIAL_BYTES_MAX ((size_t)256 << 20)

template <int pad>
struct few_shape {
    static constexpr int keys = pad > 80 ? 16 : 32; /* of a tile */
};

typedef struct {
    attention_job a;
    float *partial; /* [n_chunks, rows, n_heads, pad + 2]: sums, maximum, sum of weights */
    int64_t first_row, end_row; /* of this launch; partial is for those */
    int rows_a_tile, tiles_a_kv; /* tiles_a_kv: of the queries of one row, where a tile has not room for all */
} few_attention_job;

/* ---- tiles of rows ------------------------------------------------------------------------- */

/* Whether two sequences have the same blocks in a chunk, whatever their rows see of it: only so may many be compared two by
 * two. */
static __device__ inline bool shares_chunk(const attention_job *a, int s, int other, int chunk) {
    if (s == other) return true;
    if (s < 0 || other < 0 || s >= a->n_seqs || other >= a->n_seqs) return false;
    int size = (int)a->block_tokens, first = chunk * CHUNK_KEYS / size, last = (chunk * CHUNK_KEYS + CHUNK_KEYS - 1) / size;
    if (last >= a->max_blocks) last = (int)a->max_blocks - 1;
    for (int i = first; i <= last; i++)
        if (a->tables[s * a->max_blocks + i] != a->tables[other * a->max_blocks + i]) return false;
    return true;
}

/* A tile begins at multiples of its size and wherever the keys change. */
static __device__ inline bool begins_tile(const few_attention_job *j, int64_t row, int chunk) {
    return (int)(row - j->first_row) % j->rows_a_tile == 0 || !shares_chunk(&j->a, j->a.row_seq[row], j->a.row_seq[row - 1], chunk);
}

/* How many rows the tile has that begins at a row; 0: none does. The warp asks together. */
static __device__ inline int rows_of_tile(const few_attention_job *j, int64_t row, int chunk) {
    int i = (int)threadIdx.x % WARP, size = j->rows_a_tile;
    bool begins = i < size && (row + i >= j->end_row || begins_tile(j, row + i, chunk));
    int none = warp_max(i == 0 && !begins ? 1 : 0), behind = warp_max(i > 0 && begins ? size - i : 0);
    return none ? 0 : size - behind;
}

/* ---- a chunk ------------------------------------------------------------------------------- */

template <typename T, typename C, int pad>
static __device__ inline void attend_keys(keys_memory<pad, C, few_shape<pad>::keys, STAGES> *s, query_state<pad, 1> *q,
                                          const unsigned frag[1][pad / 16][4], const attention_job *a, int seq, int kv_head,
                                          int from, int to, int all_low, int all_high) {
    constexpr int keys = few_shape<pad>::keys;
    const float scale = a->scale * LOG2_E;
    int lane = (int)threadIdx.x % WARP, stage = 0;
    copy_keys<C, pad, keys, STAGES, WARP>(s, 0, a, lane, seq, to, kv_head, from);
    copies_commit();
    for (int start = from; start <= to; start += keys, stage = 1 - stage) {
        int end = start + keys - 1, at = stage;
        if (end < to) copy_keys<C, pad, keys, STAGES, WARP>(s, 1 - stage, a, lane, seq, to, kv_head, end + 1);
        copies_commit();
        copies_wait<1>();
        if constexpr (sizeof(C) == 1) {
            open_keys<T, pad, keys, STAGES, WARP>(s, stage, lane);
            at = 0;
        }
        __syncwarp();
        float w[1][keys / 8][4];
        score<T, pad, keys, 1>(w, frag, s->keys[at]);
        bool is_whole = start >= all_low && (end < to ? end : to) <= all_high;
        if (start < all_low || end > all_high) hide<pad, keys, 1>(w, q, start);
        weigh<pad, keys, 1>(w, q, scale);
        if (!is_whole && warp_max(look_through<T, pad, keys, WARP>(s->values[at], lane, false) ? 1 : 0)) {
            add_not_finite<T, pad, keys, 1>(q, s->values[at], start);
            __syncwarp();
            (void)look_through<T, pad, keys, WARP>(s->values[at], lane, true);
            __syncwarp();
        }
        add_values<T, pad, keys, 1>(q, w, s->values[at]);
        __syncwarp(); /* the stage may be filled again */
    }
    copies_wait<0>();
}

template <int pad>
static __device__ inline float *partial_of(const few_attention_job *j, int chunk, int64_t row, int head) {
    return j->partial + (((int64_t)chunk * (j->end_row - j->first_row) + row - j->first_row) * j->a.n_heads + head) * (pad + 2);
}

template <int pad>
static __device__ inline void leave_chunk(const query_state<pad, 1> *q, const few_attention_job *j, int chunk, const int64_t row[2], const int head[2]) {
    int t = (int)threadIdx.x % 4;
    for (int i = 0; i < 2; i++) {
        float sum = quad_sum(q->sum[0][i]);
        if (row[i] < 0) continue;
        float *to = partial_of<pad>(j, chunk, row[i], head[i]);
#pragma unroll
        for (int n = 0; n < pad / 8; n++)
            *reinterpret_cast<float2 *>(to + n * 8 + 2 * t) = float2{finite_or_nan(q->acc[0][n][2 * i]), finite_or_nan(q->acc[0][n][2 * i + 1])};
        if (t == 0) *reinterpret_cast<float2 *>(to + pad) = float2{q->top[0][i], sum};
    }
}

template <typename T, typename C, int pad>
static __global__ void __launch_bounds__(WARP) attend_few_block_per_head(few_attention_job j) {
    follow_last();
    SHARED_MEMORY(memory);
    int lane = (int)threadIdx.x, chunk = (int)blockIdx.z;
    int kv_head = (int)blockIdx.y / j.tiles_a_kv, part = (int)blockIdx.y % j.tiles_a_kv;
    int64_t first_row = j.first_row + blockIdx.x;
    int n_rows = rows_of_tile(&j, first_row, chunk);
    if (n_rows == 0) return;
    bool is_mine = lane < n_rows, is_row = is_mine && row_fits(&j.a, first_row + lane);
    if (is_mine && !is_row) *j.a.fault = 1;
    int first = is_row ? first_key(&j.a, first_row + lane) : 0, last = is_row ? last_key(&j.a, first_row + lane) : -1;
    int begin = chunk * CHUNK_KEYS, end = begin + CHUNK_KEYS - 1;
    int from = -warp_max(is_row ? -first : -0x7fffffff) / few_shape<pad>::keys * few_shape<pad>::keys, to = warp_max(last);
    int all_low = warp_max(first), all_high = -warp_max(is_row ? -last : -0x7fffffff);
    if (from < begin) from = begin;
    if (to > end) to = end;
    if (from > to) return; /* nobody joins this chunk */
    query_state<pad, 1> q;
    unsigned frag[1][pad / 16][4];
    int64_t rows[2];
    int heads[2];
    begin_queries(&q);
    for (int i = 0; i < 2; i++) {
        rows[i] = row_of(&j.a, first_row, n_rows, part * QUERIES + lane / 4 + 8 * i, kv_head, &heads[i]);
        load_query<T>(frag[0], &q, 0, i, &j.a, rows[i], heads[i]);
    }
    attend_keys<T, C, pad>(reinterpret_cast<keys_memory<pad, C, few_shape<pad>::keys, STAGES> *>(memory), &q, frag, &j.a,
                           seq_of(&j.a, first_row), kv_head, from, to, all_low, all_high);
    leave_chunk<pad>(&q, &j, chunk, rows, heads);
}

/* ---- joining ------------------------------------------------------------------------------- */

/* What one dim of a row's head has of the chunks so far, and a chunk's part. */
typedef struct {
    float value, top, sum;
} part;

static __device__ inline void join(part *p, part more) {
    float top = larger(p->top, more.top), base = top == -INFINITY ? 0.0f : top;
    float a = top == -INFINITY ? 1.0f : exp2f(p->top - base), b = top == -INFINITY ? 1.0f : exp2f(more.top - base);
    p->value = p->value * a + more.value * b;
    p->sum = p->sum * a + more.sum * b;
    p->top = top;
}

/* thread -> one dim of a row's head: its chunks, in order. */
template <typename T, int pad>
static __global__ void __launch_bounds__(JOIN_THREADS) join_element_per_thread(few_attention_job j) {
    follow_last();
    int at = (int)(blockIdx.x * JOIN_THREADS + threadIdx.x), head = at / j.a.head_dim % j.a.n_heads, d = at % j.a.head_dim;
    int64_t row = j.first_row + at / j.a.head_dim / j.a.n_heads;
    if (row >= j.end_row || !row_fits(&j.a, row)) return;
    part joined = {0.0f, -INFINITY, 0.0f};
    int first = first_key(&j.a, row) / CHUNK_KEYS, last = last_key(&j.a, row) / CHUNK_KEYS;
    for (int chunk = first; chunk <= last; chunk += JOIN_AHEAD) {
        part parts[JOIN_AHEAD];
#pragma unroll
        for (int i = 0; i < JOIN_AHEAD; i++) {
            if (chunk + i > last) break;
            const float *from = partial_of<pad>(&j, chunk + i, row, head);
            float2 both = *reinterpret_cast<const float2 *>(from + pad);
            parts[i] = part{from[d], both.x, both.y};
        }
#pragma unroll
        for (int i = 0; i < JOIN_AHEAD; i++)
            if (chunk + i <= last) join(&joined, parts[i]);
    }
    from_f32(&static_cast<T *>(j.a.out)[row * j.a.out_stride + head * j.a.head_dim + d], joined.value / joined.sum);
}

/* ---- launching ----------------------------------------------------------------------------- */

template <typename T, typename C, int pad>
static status launch(cuda_state *s, few_attention_job *j) {
    const attention_job *a = &j->a;
    constexpr size_t bytes = sizeof(keys_memory<pad, C, few_shape<pad>::keys, STAGES>);
    static_assert(bytes <= SHARED_BYTES_LEAST, "a block fits every device");
    int64_t n_chunks = ceil_div(a->max_blocks * a->block_tokens, CHUNK_KEYS), n_units = a->n_heads / a->heads_a_kv * j->tiles_a_kv;
    size_t row_bytes = (size_t)(n_chunks * a->n_heads) * (pad + 2) * sizeof(float);
    int64_t at_once = (int64_t)(PARTIAL_BYTES_MAX / row_bytes);
    if (at_once < 1) at_once = 1;
    if (at_once > a->rows) at_once = a->rows;
    void *partial;
    TRY(cuda_scratch(s, &partial, (size_t)at_once * row_bytes));
    j->partial = static_cast<float *>(partial);
    TRY(cuda_allow_shared(attend_few_block_per_head<T, C, pad>, bytes));
    for (j->first_row = 0; j->first_row < a->rows; j->first_row = j->end_row) {
        j->end_row = a->rows - j->first_row < at_once ? a->rows : j->first_row + at_once;
        int64_t n_rows = j->end_row - j->first_row;
        dim3 grid((unsigned)n_rows, (unsigned)n_units, (unsigned)n_chunks);
        LAUNCH((attend_few_block_per_head<T, C, pad>), grid, WARP, bytes, s, *j);
        TRY(cuda_launched("attend_few_block_per_head"));
        LAUNCH((join_element_per_thread<T, pad>), (unsigned)ceil_div(n_rows * a->n_heads * a->head_dim, JOIN_THREADS), JOIN_THREADS, 0,
               s, *j);
        TRY(cuda_launched("join_element_per_thread"));
    }
    return STATUS_OK;
}

status cuda_attention_few(cuda_state *s, const attention_job *a) {
    few_attention_job j = {};
    j.a = *a;
    j.rows_a_tile = a->heads_a_kv < QUERIES ? QUERIES / a->heads_a_kv : 1;
    j.tiles_a_kv = (int)ceil_div(a->heads_a_kv, QUERIES);
    WITH_TILES(a, T, C, pad, return (launch<T, C, pad>(s, &j)));
}
