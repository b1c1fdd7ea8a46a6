/* Attention of halves, over keys and values in halves or e4m3, on tensor cores (the formulas stand in attention.cu), for
 * head sizes that are multiples of 8 (e4m3: of 16) up to 256. block -> a tile: up to 64 queries, which are rows that see
 * the same keys times the heads that share them; warp -> 16 of them; keys and values come in tiles of 64 (32 for heads over 96, 16 over 128), the next on its way while one is
 * multiplied.
 *
 * What a row's sum is made of: chunks of 128 keys counted from absolute position 0. In a chunk, tiles of keys in order,
 * with a maximum and a sum that begin anew; then the chunk joins the chunks before it (join_one), in order. A row's
 * neighbours in its tile decide which tiles of keys go by, but one in which a row sees nothing leaves its maximum, sum
 * and values as they are, bit by bit: weights 0, factors 1. A row's place in the tile decides which lanes have it, and
 * every row of an mma is summed alike. So how rows are grouped changes nothing, nor does it matter where chunks join:
 *
 *     together   a block goes through all chunks of its tile, rows of one sequence, and joins them in shared memory
 *     apart      each chunk has blocks of its own and leaves what it made in scratch; a second kernel joins. A tile is a
 *                matter of the chunk then: rows beside each other whose tables name the same blocks there, so that
 *                questions on one image read its keys once for all of them
 *
 * Apart is for steps that have few rows of a sequence, and where there are too few tiles to fill a device; for long pieces
 * of prompts, what goes through scratch is as much as the keys and values.
 *
 * Zero times infinity: a value that is not finite must not reach a row that does not see it. Each tile of values is
 * looked through; where one is found, rows that see it get it added, and zero stands in its place for the mma.
 *
 * Weights are rounded to the dtype for the second product, a relative 2^-8 (bf16) or 2^-11; sums are f32. A query takes
 * its k in fours of neighbours (lane t: k 4t .. 4t + 3 of 16), as keys do: one 8-byte load, the same sum. Lines of keys
 * are an odd number of 32 bytes long, those of values an odd number of 16, so that no two lanes meet in a bank.
 *
 * Keys and values in e4m3 arrive as codes and are made halves, exactly, in shared memory: codes have two stages then, the
 * halves one.
 *
 * Memory: keys and values once a tile and key head. */
#include "ops/cuda/attention_tiles.cuh"

#include "ops/cuda/ptx.cuh"

#define QUERIES   64
#define THREADS   128
#define WARPS     (THREADS / WARP)
#define CHUNK_KEYS 128
#define FEW_ROWS_A_SEQ 16       /* a quarter of a tile: scratch is a quarter of the keys and values, or less */
#define FILLS_DEVICE 264        /* blocks: two for each multiprocessor of the largest device we know */
#define PARTIAL_BYTES_MAX ((size_t)64 << 20)

typedef struct {
    attention_job a;
    const int *tiles, *n_tiles; /* paged: [n_chunks, rows] first row of each, [n_chunks]; together: one line of them */
    int64_t tiles_a_group;      /* full only */
    int rows_a_tile, n_chunks;  /* n_chunks: 1 together */
    float *partial;             /* [n_chunks, rows, n_heads, pad + 2]: sums, maximum, sum of weights. NULL: together */
} tile_job;

template <int pad>
struct shape_of {
    static constexpr int keys = pad > 128 ? 16 : pad > 96 ? 32 : 64;
    static constexpr int key_line = (pad * 2 / 32 | 1) * 32; /* bytes */
    static constexpr int value_line = pad * 2 + 16;
};

/* Where codes wait to be made halves: C is what caches hold, T what is multiplied. */
template <int pad, typename C>
struct codes_of {};

template <int pad>
struct codes_of<pad, e4m3> {
    alignas(16) unsigned char keys[2][shape_of<pad>::keys * pad];
    alignas(16) unsigned char values[2][shape_of<pad>::keys * pad];
};

template <int pad, typename C>
struct shared_of {
    static constexpr bool has_codes = sizeof(C) == 1;
    static constexpr int stages = has_codes ? 1 : 2;
    alignas(16) unsigned char keys[stages][shape_of<pad>::keys * shape_of<pad>::key_line];
    alignas(16) unsigned char values[stages][shape_of<pad>::keys * shape_of<pad>::value_line];
    codes_of<pad, C> codes;
    int reduce[WARPS];
    alignas(16) float joined[QUERIES * pad]; /* last: apart has none */
};

/* A tile's rows and what they see together. */
typedef struct {
    int64_t first_row;
    int n_rows, seq, low, high; /* keys low .. high */
} tile_place;

/* ---- tiles of rows ------------------------------------------------------------------------- */

/* Whether two sequences have the same blocks in a chunk, whatever their rows see of it: only so may many be compared two by
 * two. */
static __device__ bool shares_chunk(const tile_job *j, int a, int b, int64_t chunk) {
    if (a == b) return true;
    if (!j->partial || a < 0 || b < 0 || a >= j->a.n_seqs || b >= j->a.n_seqs) return false;
    int64_t first = chunk * CHUNK_KEYS / j->a.block_tokens, last = (chunk * CHUNK_KEYS + CHUNK_KEYS - 1) / j->a.block_tokens;
    if (last >= j->a.max_blocks) last = j->a.max_blocks - 1;
    for (int64_t i = first; i <= last; i++)
        if (j->a.tables[a * j->a.max_blocks + i] != j->a.tables[b * j->a.max_blocks + i]) return false;
    return true;
}

/* A tile begins at multiples of its size and wherever the keys change. */
static __device__ inline bool begins_tile(const tile_job *j, int64_t row, int64_t chunk) {
    return row % j->rows_a_tile == 0 || !shares_chunk(j, j->a.row_seq[row], j->a.row_seq[row - 1], chunk);
}

/* blockIdx.y: the chunk */
static __global__ void find_tiles(tile_job j, int *tiles, int *n_tiles) {
    int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x, chunk = blockIdx.y;
    if (row >= j.a.rows || !begins_tile(&j, row, chunk)) return;
    tiles[chunk * j.a.rows + atomicAdd(&n_tiles[chunk], 1)] = (int)row; /* in any order */
}

static __device__ tile_place place_tile(const tile_job *j, int64_t tile, int64_t chunk, int *reduce) {
    tile_place p;
    int i = (int)threadIdx.x, size = j->rows_a_tile;
    if (j->a.tables) {
        p.first_row = j->tiles[chunk * j->a.rows + tile];
        int64_t row = p.first_row + i;
        bool ends = i > 0 && i < size && (row >= j->a.rows || begins_tile(j, row, chunk));
        p.n_rows = size - block_max(ends ? size - i : 0, reduce);
    } else {
        int64_t in_group = tile % j->tiles_a_group * size;
        p.first_row = tile / j->tiles_a_group * j->a.length + in_group;
        p.n_rows = j->a.length - in_group < size ? (int)(j->a.length - in_group) : size;
    }
    bool is_row = i < p.n_rows && row_fits(&j->a, p.first_row + i);
    if (i < p.n_rows && !is_row) *j->a.fault = 1;
    p.seq = seq_of(&j->a, p.first_row);
    p.high = block_max(is_row ? last_key(&j->a, p.first_row + i) : -1, reduce);
    p.low = -block_max(is_row ? -first_key(&j->a, p.first_row + i) : -0x7fffffff, reduce);
    return p;
}

/* ---- loads --------------------------------------------------------------------------------- */

/* This thread's share of a tile of keys and values: a part of one key. */
template <int pad>
struct share_of {
    static constexpr int shares = THREADS / shape_of<pad>::keys;
    int key, first; /* the first 16 bytes of the key, of shares */
};

template <int pad>
static __device__ inline share_of<pad> my_share(void) {
    share_of<pad> m;
    m.key = (int)threadIdx.x / share_of<pad>::shares;
    m.first = (int)threadIdx.x % share_of<pad>::shares;
    return m;
}

static __device__ inline void send_keys(unsigned char *keys, unsigned char *values, const void *k, const void *v,
                                        bool is_there) {
    copy16_async(keys, k, is_there);
    copy16_async(values, v, is_there);
}

template <typename C, int pad>
static __device__ void copy_keys(shared_of<pad, C> *s, int stage, const tile_job *j, const tile_place *p, int kv_head,
                                 int start) {
    constexpr int elements = 16 / (int)sizeof(C);
    share_of<pad> mine = my_share<pad>();
    int position = start + mine.key, head_dim = j->a.head_dim;
    int64_t key = position <= p->high ? key_at(&j->a, p->seq, position) : -1;
    if (key < 0 && position <= p->high) *j->a.fault = 1;
    int64_t at = (key < 0 ? 0 : key) + kv_head * j->a.head_stride;
    const C *k = static_cast<const C *>(j->a.k) + at, *v = static_cast<const C *>(j->a.v) + at;
    for (int c = mine.first; c < pad / elements; c += share_of<pad>::shares) {
        bool is_there = key >= 0 && c * elements < head_dim;
        unsigned char *keys, *values;
        if constexpr (shared_of<pad, C>::has_codes) {
            keys = s->codes.keys[stage] + mine.key * pad + c * 16;
            values = s->codes.values[stage] + mine.key * pad + c * 16;
        } else {
            keys = s->keys[stage] + mine.key * shape_of<pad>::key_line + c * 16;
            values = s->values[stage] + mine.key * shape_of<pad>::value_line + c * 16;
        }
        send_keys(keys, values, k + c * elements, v + c * elements, is_there);
    }
}

/* Eight codes to 16 bytes of halves. */
template <typename T>
static __device__ inline void open_eight(unsigned char *halves, const unsigned char *codes) {
    uint2 from = *reinterpret_cast<const uint2 *>(codes);
    uint4 to = {open_codes((unsigned short)from.x, T()), open_codes((unsigned short)(from.x >> 16), T()),
                open_codes((unsigned short)from.y, T()), open_codes((unsigned short)(from.y >> 16), T())};
    *reinterpret_cast<uint4 *>(halves) = to;
}

/* What this thread sent of a stage, made halves. Answers the stage that halves are in. */
template <typename T, typename C, int pad>
static __device__ int open_keys(shared_of<pad, C> *s, int stage) {
    if constexpr (shared_of<pad, C>::has_codes) {
        share_of<pad> mine = my_share<pad>();
        for (int c = mine.first; c < pad / 16; c += share_of<pad>::shares)
            for (int i = 0; i < 2; i++) {
                int at = mine.key * pad + c * 16 + i * 8, to = c * 32 + i * 16;
                open_eight<T>(s->keys[0] + mine.key * shape_of<pad>::key_line + to, s->codes.keys[stage] + at);
                open_eight<T>(s->values[0] + mine.key * shape_of<pad>::value_line + to, s->codes.values[stage] + at);
            }
        __syncwarp(); /* a key's shares are one warp's, and are looked through in others than they were opened in */
        return 0;
    }
    return stage;
}

static __device__ inline bool is_finite_half(unsigned short bits, __half) { return (bits & 0x7c00) != 0x7c00; }
static __device__ inline bool is_finite_half(unsigned short bits, __nv_bfloat16) { return (bits & 0x7f80) != 0x7f80; }

/* Whether this thread's share of the values has one that is not finite; zeroes those when told to. */
template <typename T, int pad>
static __device__ bool look_through(unsigned char *values, bool zero) {
    share_of<pad> mine = my_share<pad>();
    bool has_found = false;
    for (int c = mine.first; c < pad / CHUNK; c += share_of<pad>::shares) {
        unsigned short *v = reinterpret_cast<unsigned short *>(values + mine.key * shape_of<pad>::value_line + c * 16);
        for (int i = 0; i < CHUNK; i++) {
            if (is_finite_half(v[i], T())) continue;
            has_found = true;
            if (zero) v[i] = 0;
        }
    }
    return has_found;
}

/* ---- one warp's sixteen queries ------------------------------------------------------------ */

/* Of the two queries a lane has a part of, g and g + 8 of the warp's. */
template <int pad>
struct query_state {
    float acc[pad / 8][4];    /* sums of this chunk */
    float top[2], sum[2];     /* maximum (of log2 weights) and sum of this chunk */
    float joined_top[2], joined_sum[2];
    int first[2], last[2];    /* keys seen; last -1: none */
    int64_t row[2];           /* of the query, -1: no such query */
    int head[2];
};

template <int pad>
static __device__ void begin_chunk(query_state<pad> *q) {
    for (int i = 0; i < 2; i++) {
        q->top[i] = -INFINITY;
        q->sum[i] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < pad / 8; n++)
        for (int i = 0; i < 4; i++) q->acc[n][i] = 0.0f;
}

/* acc = acc a + more b: one element of a chunk joins those before it. */
static __device__ inline float join_one(float acc, float a, float more, float b) { return acc * a + more * b; }

/* The factors of both, and the new maximum; where neither has seen a key, 1 and 1. */
static __device__ inline float join_factors(float top, float more_top, float *a, float *b) {
    float new_top = larger(top, more_top), base = new_top == -INFINITY ? 0.0f : new_top;
    *a = new_top == -INFINITY ? 1.0f : exp2f(top - base);
    *b = new_top == -INFINITY ? 1.0f : exp2f(more_top - base);
    return new_top;
}

template <typename T, int pad>
static __device__ void load_queries(unsigned frag[pad / 16][4], query_state<pad> *q, const tile_job *j, const tile_place *p,
                                    int kv_head) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4, heads = j->a.heads_a_kv;
    for (int i = 0; i < 2; i++) {
        int query = (int)threadIdx.x / WARP * 16 + g + 8 * i;
        int64_t row = p->first_row + query / heads;
        bool is_query = query / heads < p->n_rows && row_fits(&j->a, row);
        q->row[i] = is_query ? row : -1;
        q->head[i] = kv_head * heads + query % heads;
        q->first[i] = is_query ? first_key(&j->a, row) : 0;
        q->last[i] = is_query ? last_key(&j->a, row) : -1;
        q->joined_top[i] = -INFINITY;
        q->joined_sum[i] = 0.0f;
#pragma unroll
        for (int k = 0; k < pad / 16; k++) {
            int d = k * 16 + 4 * t;
            uint2 v = {0, 0};
            if (is_query && d < j->a.head_dim)
                v = *reinterpret_cast<const uint2 *>(static_cast<const T *>(j->a.q) + row * j->a.q_stride +
                                                    q->head[i] * j->a.head_dim + d);
            frag[k][i] = v.x;
            frag[k][2 + i] = v.y;
        }
    }
}

/* Weights of a tile of keys, and with them maximum and sum; acc shrinks to the new maximum. */
template <typename T, int pad>
static __device__ void weigh(float w[shape_of<pad>::keys / 8][4], query_state<pad> *q, const unsigned frag[pad / 16][4],
                             const unsigned char *keys, int start, float scale) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    float top[2] = {q->top[0], q->top[1]};
#pragma unroll
    for (int n = 0; n < shape_of<pad>::keys / 8; n++) {
        for (int i = 0; i < 4; i++) w[n][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < pad / 16; k++) {
            uint2 v = *reinterpret_cast<const uint2 *>(keys + (n * 8 + g) * shape_of<pad>::key_line + k * 32 + t * 8);
            const unsigned b[2] = {v.x, v.y};
            mma<T>(w[n], frag[k], b);
        }
        for (int i = 0; i < 4; i++) {
            int key = start + n * 8 + 2 * t + i % 2;
            bool sees = key >= q->first[i / 2] && key <= q->last[i / 2];
            w[n][i] = sees ? w[n][i] * scale : -INFINITY;
            top[i / 2] = larger(top[i / 2], w[n][i]);
        }
    }
    float base[2], shrink[2], sum[2] = {0.0f, 0.0f};
    for (int i = 0; i < 2; i++) {
        top[i] = quad_max(top[i]);
        base[i] = top[i] == -INFINITY ? 0.0f : top[i];
        shrink[i] = exp2f(q->top[i] - base[i]);
        if (q->top[i] == top[i]) shrink[i] = 1.0f; /* also where both have seen nothing */
        q->top[i] = top[i];
    }
#pragma unroll
    for (int n = 0; n < shape_of<pad>::keys / 8; n++)
        for (int i = 0; i < 4; i++) {
            w[n][i] = exp2f(w[n][i] - base[i / 2]);
            sum[i / 2] += w[n][i];
        }
    for (int i = 0; i < 2; i++) q->sum[i] = q->sum[i] * shrink[i] + quad_sum(sum[i]);
#pragma unroll
    for (int n = 0; n < pad / 8; n++)
        for (int i = 0; i < 4; i++) q->acc[n][i] *= shrink[i / 2];
}

/* Values that are not finite, to the queries that see them. */
template <typename T, int pad>
static __device__ void add_not_finite(query_state<pad> *q, const unsigned char *values, int start) {
    int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < pad / 8; n++)
#pragma unroll 1
        for (int key = 0; key < shape_of<pad>::keys; key++)
            for (int i = 0; i < 4; i++) {
                unsigned short bits;
                memcpy(&bits, values + key * shape_of<pad>::value_line + (n * 8 + 2 * t + i % 2) * 2, sizeof bits);
                T v;
                memcpy(&v, &bits, sizeof v);
                bool sees = start + key >= q->first[i / 2] && start + key <= q->last[i / 2];
                if (sees && !is_finite_half(bits, T())) q->acc[n][i] += to_f32(v);
            }
}

template <typename T, int pad>
static __device__ void add_values(query_state<pad> *q, const float w[shape_of<pad>::keys / 8][4],
                                  const unsigned char *values) {
    int lane = (int)threadIdx.x % WARP;
    const unsigned char *line = values + (lane / 8 % 2 * 8 + lane % 8) * shape_of<pad>::value_line + lane / 16 * 16;
#pragma unroll
    for (int k = 0; k < shape_of<pad>::keys / 16; k++) {
        const unsigned a[4] = {pack_halves(w[2 * k][0], w[2 * k][1], T()), pack_halves(w[2 * k][2], w[2 * k][3], T()),
                               pack_halves(w[2 * k + 1][0], w[2 * k + 1][1], T()),
                               pack_halves(w[2 * k + 1][2], w[2 * k + 1][3], T())};
#pragma unroll
        for (int n = 0; n < pad / 16; n++) {
            unsigned v[4];
            load_transposed(v, line + k * 16 * shape_of<pad>::value_line + n * 32);
            const unsigned low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
            mma<T>(q->acc[2 * n], a, low);
            mma<T>(q->acc[2 * n + 1], a, high);
        }
    }
}

/* ---- the end of a chunk -------------------------------------------------------------------- */

/* A lane's elements of joined are its own. */
template <int pad>
static __device__ void join_chunk(query_state<pad> *q, float *joined) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; i++) {
        float a, b, *line = joined + ((int)threadIdx.x / WARP * 16 + g + 8 * i) * pad + 2 * t;
        q->joined_top[i] = join_factors(q->joined_top[i], q->top[i], &a, &b);
        q->joined_sum[i] = join_one(q->joined_sum[i], a, q->sum[i], b);
#pragma unroll
        for (int n = 0; n < pad / 8; n++)
            for (int d = 0; d < 2; d++) line[n * 8 + d] = join_one(line[n * 8 + d], a, q->acc[n][2 * i + d], b);
    }
}

template <int pad>
static __device__ void leave_chunk(const query_state<pad> *q, const tile_job *j, int64_t chunk) {
    int t = (int)threadIdx.x % 4;
    for (int i = 0; i < 2; i++) {
        if (q->row[i] < 0) continue;
        float *to = j->partial + ((chunk * j->a.rows + q->row[i]) * j->a.n_heads + q->head[i]) * (pad + 2);
#pragma unroll
        for (int n = 0; n < pad / 8; n++)
            for (int d = 0; d < 2; d++) to[n * 8 + 2 * t + d] = q->acc[n][2 * i + d];
        if (t == 0) {
            to[pad] = q->top[i];
            to[pad + 1] = q->sum[i];
        }
    }
}

template <typename T, int pad>
static __device__ void write_out(const query_state<pad> *q, const tile_job *j, const float *joined) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    for (int i = 0; i < 2; i++) {
        const float *line = joined + ((int)threadIdx.x / WARP * 16 + g + 8 * i) * pad;
        T *out = static_cast<T *>(j->a.out) + q->row[i] * j->a.out_stride + q->head[i] * j->a.head_dim;
        for (int n = 0; n < pad / 8 && q->row[i] >= 0; n++)
            for (int d = n * 8 + 2 * t; d < n * 8 + 2 * t + 2 && d < j->a.head_dim; d++)
                from_f32(&out[d], line[d] / q->joined_sum[i]);
    }
}

/* ---- kernels ------------------------------------------------------------------------------- */

/* Keys from .. to of a tile, in chunks. */
template <typename T, typename C, int pad>
static __device__ void attend_keys(shared_of<pad, C> *s, query_state<pad> *q, const unsigned frag[pad / 16][4],
                                   const tile_job *j, const tile_place *p, int kv_head, int from, int to) {
    constexpr int keys = shape_of<pad>::keys;
    const float scale = j->a.scale * 1.4426950408889634f; /* log2 e: weights are powers of two */
    bool has_queries = (int)threadIdx.x / WARP * 16 < p->n_rows * j->a.heads_a_kv; /* a warp without them only copies */
    int stage = 0;
    copy_keys<C>(s, 0, j, p, kv_head, from);
    copies_commit();
    begin_chunk(q);
    for (int start = from; start <= to; start += keys) {
        if (start + keys <= to) copy_keys<C>(s, 1 - stage, j, p, kv_head, start + keys);
        copies_commit();
        copies_wait<1>();
        int opened = open_keys<T>(s, stage);
        unsigned char *values = s->values[opened];
        bool has_bad = __syncthreads_or(look_through<T, pad>(values, false)) != 0;
        float w[keys / 8][4];
        if (has_queries) weigh<T, pad>(w, q, frag, s->keys[opened], start, scale);
        if (has_bad) {
            add_not_finite<T>(q, values, start);
            __syncthreads();
            (void)look_through<T, pad>(values, true);
            __syncthreads();
        }
        if (has_queries) add_values<T, pad>(q, w, values);
        __syncthreads(); /* the stage may be filled again */
        stage = 1 - stage;
        bool is_end = (start + keys) % CHUNK_KEYS == 0 || start + keys > to;
        if (is_end && !j->partial) {
            join_chunk(q, s->joined);
            begin_chunk(q);
        }
    }
    copies_wait<0>();
}

template <typename T, typename C, int pad>
static __global__ void __launch_bounds__(THREADS) attend_block_per_tile(tile_job j) {
    SHARED_MEMORY(memory);
    shared_of<pad, C> *s = reinterpret_cast<shared_of<pad, C> *>(memory);
    int64_t chunk = blockIdx.z; /* together: 0 */
    int64_t n_tiles = j.a.tables ? j.n_tiles[chunk] : j.a.rows / j.a.length * j.tiles_a_group;
    for (int64_t tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
        tile_place p = place_tile(&j, tile, chunk, s->reduce);
        int from = p.low / shape_of<pad>::keys * shape_of<pad>::keys, to = p.high;
        if (j.partial) {
            int begin = (int)chunk * CHUNK_KEYS, end = begin + CHUNK_KEYS - 1;
            if (from < begin) from = begin;
            if (to > end) to = end;
            if (from > to) continue; /* nobody joins this chunk; the same for the whole block */
        }
        query_state<pad> q;
        unsigned frag[pad / 16][4];
        load_queries<T>(frag, &q, &j, &p, (int)blockIdx.y);
        for (int i = (int)threadIdx.x; !j.partial && i < QUERIES * pad; i += THREADS) s->joined[i] = 0.0f;
        __syncthreads();
        if (from <= to) attend_keys<T, C, pad>(s, &q, frag, &j, &p, (int)blockIdx.y, from, to);
        if (j.partial) leave_chunk(&q, &j, chunk);
        else write_out<T, pad>(&q, &j, s->joined);
        __syncthreads();
    }
}

/* thread -> one dim of a row's head: its chunks, in order. */
template <typename T, int pad>
static __global__ void __launch_bounds__(THREADS) join_element_per_thread(tile_job j) {
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x, head = at / j.a.head_dim, row = head / j.a.n_heads;
    int d = (int)(at % j.a.head_dim);
    if (row >= j.a.rows || !row_fits(&j.a, row)) return;
    float joined = 0.0f, top = -INFINITY, sum = 0.0f;
    for (int64_t chunk = first_key(&j.a, row) / CHUNK_KEYS; chunk <= last_key(&j.a, row) / CHUNK_KEYS; chunk++) {
        const float *from = j.partial + (chunk * j.a.rows * j.a.n_heads + head) * (pad + 2);
        float a, b;
        top = join_factors(top, from[pad], &a, &b);
        sum = join_one(sum, a, from[pad + 1], b);
        joined = join_one(joined, a, from[d], b);
    }
    from_f32(&static_cast<T *>(j.a.out)[row * j.a.out_stride + head % j.a.n_heads * j.a.head_dim + d], joined / sum);
}

/* ---- launching ----------------------------------------------------------------------------- */

static size_t align256(size_t bytes) { return (bytes + 255) / 256 * 256; }

static int64_t n_tiles_most(const tile_job *j) {
    if (!j->a.tables) return j->a.rows / j->a.length * j->tiles_a_group;
    int64_t whole = ceil_div(j->a.rows, j->rows_a_tile) + j->a.n_seqs; /* more where sequences alternate: a block takes several */
    return whole < j->a.rows ? whole : j->a.rows;
}

template <typename T, typename C, int pad>
static status launch(cuda_state *s, tile_job *j) {
    typedef shared_of<pad, C> shared;
    dim3 grid((unsigned)n_tiles_most(j), (unsigned)(j->a.n_heads / j->a.heads_a_kv), j->partial ? (unsigned)j->n_chunks : 1);
    size_t bytes = j->partial ? offsetof(shared, joined) : sizeof(shared);
    TRY(cuda_allow_shared(attend_block_per_tile<T, C, pad>, bytes));
    LAUNCH((attend_block_per_tile<T, C, pad>), grid, THREADS, bytes, s->stream, *j);
    TRY(cuda_launched("attend_block_per_tile"));
    if (!j->partial) return STATUS_OK;
    int64_t n = j->a.rows * j->a.n_heads * j->a.head_dim;
    LAUNCH((join_element_per_thread<T, pad>), (unsigned)ceil_div(n, THREADS), THREADS, 0, s->stream, *j);
    return cuda_launched("join_element_per_thread");
}

template <typename T, typename C>
static status launch_pad(cuda_state *s, tile_job *j, int pad) {
    if (pad == 64) return launch<T, C, 64>(s, j);
    if (pad == 80) return launch<T, C, 80>(s, j);
    if (pad == 96) return launch<T, C, 96>(s, j);
    if (pad == 128) return launch<T, C, 128>(s, j);
    return launch<T, C, 256>(s, j);
}

template <typename T>
static status launch_cache(cuda_state *s, tile_job *j, int pad) {
    WITH_CACHE(j->a.kv_dtype, T, C, return (launch_pad<T, C>(s, j, pad)));
}

bool cuda_tiles_take(const attention_job *a) {
    int elements = 16 / (int)dtype_bytes(a->kv_dtype);
    return a->dtype != OPS_DTYPE_F32 && (a->head_dim | a->key_stride) % elements == 0 && a->head_dim <= 256 &&
           a->heads_a_kv <= QUERIES && a->q_stride % CHUNK == 0 && is_aligned16(a->out) && is_aligned16(a->q) &&
           is_aligned16(a->k) && is_aligned16(a->v);
}

status cuda_tiles_run(cuda_state *s, const attention_job *a) {
    int pad = a->head_dim <= 64 ? 64 : a->head_dim <= 80 ? 80 : a->head_dim <= 96 ? 96 : a->head_dim <= 128 ? 128 : 256;
    tile_job j = {};
    j.a = *a;
    j.rows_a_tile = QUERIES / a->heads_a_kv;
    j.tiles_a_group = a->tables ? 0 : ceil_div(a->length, j.rows_a_tile);
    int64_t keys_most = a->tables ? a->max_blocks * a->block_tokens : a->length;
    j.n_chunks = (int)ceil_div(keys_most, CHUNK_KEYS);
    size_t partial = (size_t)(j.n_chunks * a->rows * a->n_heads) * (size_t)(pad + 2) * sizeof(float);
    bool has_few_rows = a->tables && a->rows <= FEW_ROWS_A_SEQ * a->n_seqs;
    bool apart = j.n_chunks > 1 && partial <= PARTIAL_BYTES_MAX &&
                 (has_few_rows || n_tiles_most(&j) * (a->n_heads / a->heads_a_kv) < FILLS_DEVICE);
    if (!apart) j.n_chunks = 1;
    size_t counts = a->tables ? align256((size_t)j.n_chunks * sizeof(int)) : 0;
    size_t tiles = a->tables ? align256((size_t)(j.n_chunks * a->rows) * sizeof(int)) : 0;
    void *scratch;
    TRY(cuda_scratch(s, &scratch, counts + tiles + (apart ? partial : 0)));
    unsigned char *at = static_cast<unsigned char *>(scratch);
    if (apart) j.partial = reinterpret_cast<float *>(at + counts + tiles);
    if (a->tables) {
        int *n_tiles = reinterpret_cast<int *>(at), *first = reinterpret_cast<int *>(at + counts);
        CUDA_TRY(cudaMemsetAsync(n_tiles, 0, (size_t)j.n_chunks * sizeof *n_tiles, s->stream));
        dim3 grid((unsigned)ceil_div(a->rows, THREADS), (unsigned)j.n_chunks);
        LAUNCH(find_tiles, grid, THREADS, 0, s->stream, j, first, n_tiles);
        TRY(cuda_launched("find_tiles"));
        j.tiles = first;
        j.n_tiles = n_tiles;
    }
    if (a->dtype == OPS_DTYPE_F16) return launch_cache<__half>(s, &j, pad);
    return launch_cache<__nv_bfloat16>(s, &j, pad);
}
