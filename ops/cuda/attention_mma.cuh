/* Private to ops/cuda: what attention on tensor cores is made of, for a warp that has 16 m_tiles queries, whose keys and values
 * come in tiles of `keys` through shared memory (the formulas stand in attention.cu).
 *
 * A row's neighbours among the queries decide which tiles of keys go by, but one in which a row sees nothing leaves its
 * maximum, sum and values as they are, bit by bit: weights 0, factors 1. A row's place decides which lanes have it, and every
 * row of an mma is summed alike. So how rows are grouped changes nothing.
 *
 * Zero times infinity: a value that is not finite must not reach a row that does not see it. Tiles that some row does not see
 * whole are looked through; where such a value is found, rows that see it get it added, and zero stands in its place for the
 * mma. What a row has of it is NaN in the end, whichever way it came.
 *
 * Weights are rounded to the dtype for the second product, a relative 2^-8 (bf16) or 2^-11; sums are f32. A query takes
 * its k in fours of neighbours (lane t: k 4t .. 4t + 3 of 16), as keys do: one 8-byte load, the same sum. Lines of keys
 * are an odd number of 32 bytes long, those of values an odd number of 16, so that no two lanes meet in a bank.
 *
 * Keys and values in e4m3 arrive as codes and are made halves, exactly, in shared memory: codes have stages then, the
 * halves one. */
#ifndef OPS_CUDA_ATTENTION_MMA_CUH
#define OPS_CUDA_ATTENTION_MMA_CUH

#include "ops/cuda/attention.cuh"
#include "ops/cuda/ptx.cuh"

#define LOG2_E 1.4426950408889634f

/* ---- keys and values in shared memory ------------------------------------------------------ */

template <int pad>
struct line_of { /* bytes */
    static constexpr int key = (pad * 2 / 32 | 1) * 32;
    static constexpr int value = pad * 2 + 16;
};

/* Where codes wait to be made halves: C is what caches hold. */
template <int pad, typename C, int keys, int stages>
struct codes_memory {};

template <int pad, int n_keys, int stages>
struct codes_memory<pad, e4m3, n_keys, stages> {
    alignas(16) unsigned char keys[stages][n_keys * pad];
    alignas(16) unsigned char values[stages][n_keys * pad];
};

template <int pad, typename C, int n_keys, int stages>
struct keys_memory {
    static constexpr bool has_codes = sizeof(C) == 1;
    alignas(16) unsigned char keys[has_codes ? 1 : stages][n_keys * line_of<pad>::key];
    alignas(16) unsigned char values[has_codes ? 1 : stages][n_keys * line_of<pad>::value];
    codes_memory<pad, C, n_keys, stages> codes;
};

/* How `threads` threads share out a tile: some have a key each, and as many as it takes come back for more. */
template <int keys, int threads>
struct shares_of {
    static constexpr int a_key = threads / keys > 2 ? threads / keys : 2;
    static constexpr int keys_a_pass = threads / a_key;
};

/* Keys start .. of a sequence, those up to `high`, and zeros for those behind it. */
template <typename C, int pad, int n_keys, int stages, int threads>
static __device__ inline void copy_keys(keys_memory<pad, C, n_keys, stages> *s, int stage, const attention_job *j, int thread,
                                        int seq, int high, int kv_head, int start) {
    typedef shares_of<n_keys, threads> shares;
    constexpr int elements = 16 / (int)sizeof(C);
#pragma unroll
    for (int key = thread / shares::a_key; key < n_keys; key += shares::keys_a_pass) {
        int position = start + key;
        int64_t place = position <= high ? key_at(j, seq, position) : -1;
        if (place < 0 && position <= high) *j->fault = 1;
        int64_t at = (place < 0 ? 0 : place) + kv_head * j->head_stride;
        const C *k = static_cast<const C *>(j->k) + at, *v = static_cast<const C *>(j->v) + at;
#pragma unroll
        for (int c = thread % shares::a_key; c < pad / elements; c += shares::a_key) {
            bool is_there = place >= 0 && c * elements < j->head_dim;
            unsigned char *to_key, *to_value;
            if constexpr (sizeof(C) == 1) {
                to_key = s->codes.keys[stage] + key * pad + c * 16;
                to_value = s->codes.values[stage] + key * pad + c * 16;
            } else {
                to_key = s->keys[stage] + key * line_of<pad>::key + c * 16;
                to_value = s->values[stage] + key * line_of<pad>::value + c * 16;
            }
            copy16_async(to_key, k + c * elements, is_there);
            copy16_async(to_value, v + c * elements, is_there);
        }
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

/* What this thread copied of a stage, made halves; others see it behind the next barrier. */
template <typename T, int pad, int n_keys, int stages, int threads>
static __device__ inline void open_keys(keys_memory<pad, e4m3, n_keys, stages> *s, int stage, int thread) {
    typedef shares_of<n_keys, threads> shares;
    for (int key = thread / shares::a_key; key < n_keys; key += shares::keys_a_pass)
        for (int c = thread % shares::a_key; c < pad / 16; c += shares::a_key)
            for (int i = 0; i < 2; i++) {
                int at = key * pad + c * 16 + i * 8, to = c * 32 + i * 16;
                open_eight<T>(s->keys[0] + key * line_of<pad>::key + to, s->codes.keys[stage] + at);
                open_eight<T>(s->values[0] + key * line_of<pad>::value + to, s->codes.values[stage] + at);
            }
}

static __device__ inline bool is_finite_half(unsigned short bits, __half) { return (bits & 0x7c00) != 0x7c00; }
static __device__ inline bool is_finite_half(unsigned short bits, __nv_bfloat16) { return (bits & 0x7f80) != 0x7f80; }

/* Whether this thread's share of the values has one that is not finite; zeroes those when told to. */
template <typename T, int pad, int n_keys, int threads>
static __device__ inline bool look_through(unsigned char *values, int thread, bool zero) {
    typedef shares_of<n_keys, threads> shares;
    bool has_found = false;
#pragma unroll 1
    for (int key = thread / shares::a_key; key < n_keys; key += shares::keys_a_pass)
#pragma unroll 1
        for (int c = thread % shares::a_key; c < pad / CHUNK; c += shares::a_key) {
            unsigned short *v = reinterpret_cast<unsigned short *>(values + key * line_of<pad>::value + c * 16);
            for (int i = 0; i < CHUNK; i++) {
                if (is_finite_half(v[i], T())) continue;
                has_found = true;
                if (zero) v[i] = 0;
            }
        }
    return has_found;
}

/* ---- a warp's queries ---------------------------------------------------------------------- */

/* Of the two queries a lane has a part of in each mma tile, g and g + 8 of its sixteen. */
template <int pad, int m_tiles>
struct query_state {
    float acc[m_tiles][pad / 8][4];
    float top[m_tiles][2], sum[m_tiles][2]; /* the maximum (of log2 weights); of the sum, what this lane has */
    int first[m_tiles][2], last[m_tiles][2]; /* keys seen; last -1: none */
};

template <int pad, int m_tiles>
static __device__ inline void begin_queries(query_state<pad, m_tiles> *q) {
#pragma unroll
    for (int m = 0; m < m_tiles; m++) {
        for (int i = 0; i < 2; i++) {
            q->top[m][i] = -INFINITY;
            q->sum[m][i] = 0.0f;
        }
#pragma unroll
        for (int n = 0; n < pad / 8; n++)
            for (int i = 0; i < 4; i++) q->acc[m][n][i] = 0.0f;
    }
}

/* The row and head of a query of a tile, which has n_rows rows times the heads of a key head; row -1: there is none. */
static __device__ inline int64_t row_of(const attention_job *j, int64_t first_row, int n_rows, int query, int kv_head, int *head) {
    int64_t row = first_row + query / j->heads_a_kv;
    *head = kv_head * j->heads_a_kv + query % j->heads_a_kv;
    return query / j->heads_a_kv < n_rows && row_fits(j, row) ? row : -1;
}

/* The query of a row and head, and what it sees, as row g or g + 8 of an mma tile; row -1: none. */
template <typename T, int pad, int m_tiles>
static __device__ inline void load_query(unsigned frag[pad / 16][4], query_state<pad, m_tiles> *q, int m, int high,
                                         const attention_job *j, int64_t row, int head) {
    int t = (int)threadIdx.x % 4;
    const T *from = static_cast<const T *>(j->q) + row * j->q_stride + head * j->head_dim;
    q->first[m][high] = row >= 0 ? first_key(j, row) : 0;
    q->last[m][high] = row >= 0 ? last_key(j, row) : -1;
#pragma unroll
    for (int k = 0; k < pad / 16; k++) {
        int d = k * 16 + 4 * t;
        uint2 v = {0, 0};
        if (row >= 0 && d < j->head_dim) v = *reinterpret_cast<const uint2 *>(from + d);
        frag[k][high] = v.x;
        frag[k][2 + high] = v.y;
    }
}

/* Products of the queries and a tile of keys. */
template <typename T, int pad, int n_keys, int m_tiles>
static __device__ inline void score(float w[m_tiles][n_keys / 8][4], const unsigned frag[m_tiles][pad / 16][4],
                                    const unsigned char *keys) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < n_keys / 8; n++) {
#pragma unroll
        for (int m = 0; m < m_tiles; m++)
            for (int i = 0; i < 4; i++) w[m][n][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < pad / 16; k++) {
            uint2 v = *reinterpret_cast<const uint2 *>(keys + (n * 8 + g) * line_of<pad>::key + k * 32 + t * 8);
            const unsigned b[2] = {v.x, v.y};
#pragma unroll
            for (int m = 0; m < m_tiles; m++) mma<T>(w[m][n], frag[m][k], b);
        }
    }
}

template <int pad, int n_keys, int m_tiles>
static __device__ inline void hide(float w[m_tiles][n_keys / 8][4], const query_state<pad, m_tiles> *q, int start) {
    int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < m_tiles; m++)
#pragma unroll
        for (int n = 0; n < n_keys / 8; n++)
            for (int i = 0; i < 4; i++) {
                int key = start + n * 8 + 2 * t + i % 2;
                if (key < q->first[m][i / 2] || key > q->last[m][i / 2]) w[m][n][i] = -INFINITY;
            }
}

/* Scores to weights, and with them maximum and sum; acc shrinks to the new maximum. scale > 0, log2 e in it. */
template <int pad, int n_keys, int m_tiles>
static __device__ inline void weigh(float w[m_tiles][n_keys / 8][4], query_state<pad, m_tiles> *q, float scale) {
#pragma unroll
    for (int m = 0; m < m_tiles; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float top = -INFINITY, sum = 0.0f;
#pragma unroll
            for (int n = 0; n < n_keys / 8; n++) top = larger(top, larger(w[m][n][2 * i], w[m][n][2 * i + 1]));
            top = larger(q->top[m][i], quad_max(top) * scale);
            float base = top == -INFINITY ? 0.0f : top;
            float shrink = q->top[m][i] == top ? 1.0f : fast_exp2(q->top[m][i] - base); /* also where both have seen nothing */
            q->top[m][i] = top;
#pragma unroll
            for (int n = 0; n < n_keys / 8; n++)
                for (int c = 2 * i; c < 2 * i + 2; c++) {
                    w[m][n][c] = fast_exp2(fmaf(w[m][n][c], scale, -base));
                    sum += w[m][n][c];
                }
            q->sum[m][i] = q->sum[m][i] * shrink + sum;
#pragma unroll
            for (int n = 0; n < pad / 8; n++)
                for (int c = 2 * i; c < 2 * i + 2; c++) q->acc[m][n][c] *= shrink;
        }
}

template <typename T, int pad, int n_keys, int m_tiles>
static __device__ inline void add_values(query_state<pad, m_tiles> *q, const float w[m_tiles][n_keys / 8][4],
                                         const unsigned char *values) {
    int lane = (int)threadIdx.x % WARP;
    const unsigned char *line = values + (lane / 8 % 2 * 8 + lane % 8) * line_of<pad>::value + lane / 16 * 16;
#pragma unroll
    for (int k = 0; k < n_keys / 16; k++) {
        unsigned a[m_tiles][4];
#pragma unroll
        for (int m = 0; m < m_tiles; m++)
            for (int i = 0; i < 4; i++) {
                const float *pair = &w[m][2 * k + i / 2][i % 2 * 2];
                a[m][i] = pack_halves(pair[0], pair[1], T());
            }
#pragma unroll
        for (int n = 0; n < pad / 16; n++) {
            unsigned v[4];
            load_transposed(v, line + k * 16 * line_of<pad>::value + n * 32);
            const unsigned low[2] = {v[0], v[1]}, high[2] = {v[2], v[3]};
#pragma unroll
            for (int m = 0; m < m_tiles; m++) {
                mma<T>(q->acc[m][2 * n], a[m], low);
                mma<T>(q->acc[m][2 * n + 1], a[m], high);
            }
        }
    }
}

static __device__ inline float finite_or_nan(float v) { return isfinite(v) ? v : NAN; }

/* Values that are not finite, to the queries that see them. */
template <typename T, int pad, int n_keys, int m_tiles>
static __device__ inline void add_not_finite(query_state<pad, m_tiles> *q, const unsigned char *values, int start) {
    int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < pad / 8; n++)
#pragma unroll 1
        for (int key = 0; key < n_keys; key++)
            for (int c = 0; c < 2; c++) {
                unsigned short bits;
                memcpy(&bits, values + key * line_of<pad>::value + (n * 8 + 2 * t + c) * 2, sizeof bits);
                if (is_finite_half(bits, T())) continue;
                T v;
                memcpy(&v, &bits, sizeof v);
#pragma unroll
                for (int m = 0; m < m_tiles; m++)
                    for (int i = 0; i < 2; i++)
                        if (start + key >= q->first[m][i] && start + key <= q->last[m][i]) q->acc[m][n][2 * i + c] += to_f32(v);
            }
}

#endif
