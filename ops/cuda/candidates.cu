/* The candidates of rows. Block -> a row; thread -> the columns t, t + THREADS, ... for totals; for the rest, where order
 * changes nothing, fours of columns where the row is aligned, with AHEAD reads under way at once: a row is one block's, and
 * waiting for memory is what it does most.
 *
 * A value's key is its rank among floats above its column from behind: the order of keys, falling, is that of candidates,
 * and no two keys of a row are equal. The row is read three times: for the largest key of each thread, for the keys that
 * reach a bound, and for each total.
 *
 * The bound: neighbouring threads form as many groups as there can be candidates. The least of the groups' largest keys
 * is reached by one key of each group, so by enough, and seldom by many more (some 270 of 50,000 in no particular order).
 * Where more reach it than there is room for, as in a row whose large values all lie in the columns of one group, halving
 * finds one that fits. A key's place is the number of larger keys: nothing depends on the order they were put down in. */
#include "ops/cuda/cuda_internal.cuh"

#define THREADS 512
#define WARPS   (THREADS / WARP)
#define GROUP   (THREADS / OPS_CANDIDATES_MAX)
#define ROOM    THREADS /* keys that are compared with each other: one a thread */
#define AHEAD   8       /* 51,200 columns: 25 fours a thread */

typedef unsigned long long key;

#define NOT_FINITE 0xffffffffu /* above the rank of every number */

static __device__ inline unsigned rank_of(float v) {
    unsigned bits = __float_as_uint(v + 0.0f); /* -0 counts as 0 */
    return !isfinite(v) ? NOT_FINITE : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ inline key key_from(unsigned rank, unsigned column) { return (key)rank << 32 | (0xffffffffu - column); }
static __device__ inline key key_of(float v, unsigned column) { return key_from(rank_of(v), column); }

static __device__ inline int32_t column_of(key k) { return (int32_t)(0xffffffffu - (unsigned)k); }

/* visit(value, column) for each column of the thread, in order. */
template <typename V>
static __device__ inline void each_own(const float *row, int64_t n, V visit) {
    int64_t n_fours = (uintptr_t)row % sizeof(uint4) == 0 ? n / 4 : 0;
    const uint4 *fours = reinterpret_cast<const uint4 *>(row);
    for (int64_t first = threadIdx.x; first < n_fours; first += AHEAD * THREADS) {
        uint4 v[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (first + i * THREADS < n_fours) v[i] = fours[first + i * THREADS];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (first + i * THREADS >= n_fours) continue;
            unsigned column = 4 * (unsigned)(first + i * THREADS);
            visit(__uint_as_float(v[i].x), column);
            visit(__uint_as_float(v[i].y), column + 1);
            visit(__uint_as_float(v[i].z), column + 2);
            visit(__uint_as_float(v[i].w), column + 3);
        }
    }
#pragma unroll 8
    for (int64_t c = 4 * n_fours + threadIdx.x; c < n; c += THREADS) visit(row[c], (unsigned)c);
}

/* The largest of the thread's own keys; 0, which is below every number's, where it has none. Of equal ranks it is the first
 * column's, so that ranks are compared and keys are not. */
static __device__ inline key largest_own(const float *row, int64_t n) {
    unsigned best = 0, at = 0;
    each_own(row, n, [&](float v, unsigned column) {
        unsigned rank = rank_of(v);
        if (rank > best) best = rank, at = column;
    });
    return best == 0 ? 0 : key_from(best, at);
}

static __device__ inline unsigned n_reaching(key bound, const float *row, int64_t n, unsigned *shared) {
    unsigned own = 0;
    each_own(row, n, [&](float v, unsigned column) { own += key_of(v, column) >= bound; });
    return block_sum(own, shared);
}

/* A bound that at least OPS_CANDIDATES_MAX keys reach, or all, and at most ROOM. */
static __device__ key bound_of(key own, key best, const float *row, int64_t n, key *shared) {
    key low = ~block_max(~lanes_max(own, GROUP), shared), high = best + 1, bound = low;
    for (;;) {
        unsigned reach = n_reaching(bound, row, n, reinterpret_cast<unsigned *>(shared));
        if (reach > ROOM) low = bound; /* at least that many reach low, fewer than wanted reach high */
        else if (reach < OPS_CANDIDATES_MAX && reach < n) high = bound;
        else return bound;
        bound = low + (high - low) / 2;
    }
}

static __device__ double total_at(double temperature, double largest, const float *row, int64_t n, double *shared) {
    double sum = 0.0, scale = 1.0 / temperature;
    for (int64_t c = threadIdx.x; c < n; c += THREADS) sum += exp(((double)row[c] - largest) * scale);
    return block_sum(sum, shared);
}

/* Each of the n keys of the block to its place, if that is among the wanted ones. */
static __device__ void put_in_order(ops_candidates *out, const key *keys, int n, int n_wanted, const float *row) {
    if ((int)threadIdx.x >= n) return;
    key own = keys[threadIdx.x];
    int place = 0;
    for (int i = 0; i < n; i++) place += keys[i] > own;
    if (place >= n_wanted) return;
    out->column[place] = column_of(own);
    out->value[place] = row[column_of(own)];
}

static __global__ void candidates_block_per_row(ops_candidates *out, const float *x, int64_t cols, int64_t n,
                                                const ops_candidates_wanted *all_wanted) {
    follow_last();
    SHARED_MEMORY(memory);
    key *shared = reinterpret_cast<key *>(memory), *keys = shared + WARPS;
    int *n_keys = reinterpret_cast<int *>(keys + ROOM);
    const float *row = x + blockIdx.x * cols;
    const ops_candidates_wanted wanted = all_wanted ? all_wanted[blockIdx.x] : ops_candidates_wanted{1, {0.0f, 0.0f}};
    out += blockIdx.x;
    key own = largest_own(row, n), best = block_max(own, shared);
    bool is_bad = best >> 32 == NOT_FINITE;
    if (threadIdx.x == 0) {
        out->total[0] = out->total[1] = 0.0;
        out->bad = is_bad ? column_of(best) : -1;
        out->n = is_bad ? 0 : n < wanted.n ? (int32_t)n : wanted.n;
        out->column[0] = column_of(best);
        out->value[0] = row[column_of(best)];
        *n_keys = 0;
    }
    if (is_bad) return;
    if (wanted.n > 1) {
        key bound = bound_of(own, best, row, n, shared); /* with barriers: the count is 0 for all behind it */
        each_own(row, n, [&](float v, unsigned column) {
            key k = key_of(v, column);
            if (k >= bound) keys[atomicAdd(n_keys, 1)] = k;
        });
        __syncthreads();
        put_in_order(out, keys, *n_keys, wanted.n, row);
    }
    for (int i = 0; i < 2; i++) {
        if (!(wanted.temperature[i] > 0.0f)) continue;
        double sum = total_at((double)wanted.temperature[i], (double)row[column_of(best)], row, n,
                              reinterpret_cast<double *>(shared));
        if (threadIdx.x == 0) out->total[i] = sum;
    }
}

status cuda_candidates_rows(void *state, ops_tensor *out, const ops_tensor *x, int64_t n,
                            const ops_candidates_wanted *wanted) {
    cuda_state *s = static_cast<cuda_state *>(state);
    void *device_wanted = NULL;
    if (wanted) {
        size_t bytes = (size_t)x->dims[0] * sizeof *wanted;
        TRY(cuda_scratch(s, &device_wanted, bytes));
        TRY(cuda_upload(s, device_wanted, wanted, bytes));
    }
    size_t shared_bytes = (WARPS + ROOM + 1) * sizeof(key);
    LAUNCH(candidates_block_per_row, (unsigned)x->dims[0], THREADS, shared_bytes, s,
           static_cast<ops_candidates *>(out->data), static_cast<const float *>(x->data), x->dims[1], n,
           static_cast<const ops_candidates_wanted *>(device_wanted));
    return cuda_launched("candidates_block_per_row");
}
