/* For row r with query q and its keys k[0 .. pos], values v[0 .. pos], of one head:
 *
 *     s[j] = scale * sum over d of q[d] k[j][d]
 *     out[d] = sum over j of exp(s[j] - max s) v[j][d]  /  sum over j of exp(s[j] - max s)
 *
 * Keys are taken in chunks of 64 counted from absolute position 0, with a running maximum and sum
 * (Milakov and Gimelshein 2018). Everything about a row depends on its own query, its own keys in that order, and its
 * kind; keys past pos are never multiplied. So neither the other rows, nor the block size of a cache, nor the cut into
 * calls changes a bit. With a window, chunks that lie wholly before it are left out, and in its first chunk the keys
 * before it get weight 0.
 *
 * A task is up to 384 rows of one head, or of some heads beside each other where rows are few: what is found out about
 * a chunk is used for all of them, and a block of the cache is read from its front to its end. For each chunk, the rows
 * whose keys lie in the same memory are served together: all rows of one sequence, and rows of several sequences that
 * share the block, as the questions on one image do.
 *
 *     many rows   keys are transposed to [d][64] and values copied to [64][hd], once; then tiles of rows go through the
 *                 same micro-kernels as ops_linear. s[j] sums over d in order, in blocks of 256 that reload their
 *                 partial sum; the values of a chunk are added one key after the other
 *     few rows    one after the other over keys and values as they lie. s[j] is sixteen sums, folded; values as above
 *
 *     in bf16     where the caller allows it and there are tiles, many rows are multiplied in bf16, 16 at a time, weights and
 *                 values likewise; sums and the softmax are as before
 *
 * Full attention is the paged one with a block per group and every row at the last position. */
#include <math.h>
#include <string.h>

#include "base/check.h"
#include "ops/cpu/cpu_internal.h"

#define ROWS_A_TASK  384
#define ROWS_A_TILE  SOFTMAX_ROWS /* at most */
#define HEADS_A_TASK 8           /* of few rows */
#define HEADS_BYTES  (128 << 10) /* of their sums */

BUILD_CHECK(TILE_ROWS_MAX <= ROWS_A_TILE && ATTENTION_TILE_ROWS <= ROWS_A_TILE, "a workspace has room for either tile");

typedef struct {
    const simd_kernels *simd;
    float *out;
    const float *q;
    const unsigned char *k, *v; /* of kv_dtype, which has kv_bytes */
    ops_dtype kv_dtype;
    size_t kv_bytes;
    const int32_t *tables, *row_seq, *row_pos;
    int64_t n_rows, max_blocks, block_tokens;
    int64_t seq_rows; /* a task lies in a run of so many rows: a sequence in full attention, all of them in the paged one */
    int64_t q_stride, out_stride;                  /* from row to row */
    int64_t block_stride, head_stride, key_stride; /* of k and v: from block to block, key head to key head, key to key */
    int64_t head_dim, padded_dim;                  /* padded_dim: up to a multiple of 32 */
    int heads_a_kv, n_heads, window;
    float scale;
    bool is_few;
    const simd_attention *rounded; /* NULL: exact */
    int64_t rows_a_task, heads_a_task;
    unsigned char *scratch;
    size_t thread_bytes;
} attention_job;

/* What one thread works with; cut from its part of the scratch. */
typedef struct {
    float *acc;     /* [heads, rows, padded_dim]: sum of p v so far */
    float *max;     /* [heads, rows] */
    float *sum;     /* [heads, rows] */
    float *keys;    /* [KEY_CHUNK, padded_dim] */
    float *keys_t;  /* [head_dim, KEY_CHUNK] */
    float *values;  /* [KEY_CHUNK, padded_dim] */
    float *q_tile;  /* [rows of a tile, TILE_STRIDE] */
    float *p_tile;  /* [the same]: scores, then weights */
    float *acc_tile; /* [rows of a tile, padded_dim] */
    uint16_t *queries; /* [rows, padded_dim] and [rows of a tile, padded_dim], in bf16 */
    uint16_t *weights; /* [rows of a tile, KEY_CHUNK] in bf16 */
    int32_t *members; /* [2, rows]: the rows served together, and next */
    bool *served;   /* [rows] */
} workspace;

/* Cuts the parts from base, or with NULL only adds them up. */
static size_t workspace_cut(const attention_job *j, unsigned char *base, workspace *w) {
    size_t used = 0, rows = (size_t)j->rows_a_task, heads = (size_t)j->heads_a_task, dim = (size_t)j->padded_dim;
#define CUT(field, n)                                                                              \
    do {                                                                                           \
        if (base) w->field = (void *)(base + used);                                                \
        used += align_up((n) * sizeof *w->field);                                                  \
    } while (0)
    CUT(acc, heads * rows * dim);
    CUT(max, heads * rows);
    CUT(sum, heads * rows);
    CUT(keys, KEY_CHUNK * dim);
    CUT(keys_t, dim * KEY_CHUNK);
    CUT(values, KEY_CHUNK * dim);
    CUT(q_tile, ROWS_A_TILE * TILE_STRIDE);
    CUT(p_tile, ROWS_A_TILE * TILE_STRIDE);
    CUT(acc_tile, ROWS_A_TILE * dim);
    CUT(queries, j->rounded ? (rows + ROWS_A_TILE) * dim : 0);
    CUT(weights, j->rounded ? ROWS_A_TILE * KEY_CHUNK : 0);
    CUT(members, 2 * rows);
    CUT(served, rows);
#undef CUT
    return used;
}

/* The first position row r sees. */
static int64_t first_key(const attention_job *j, int64_t r) {
    int64_t first = (int64_t)j->row_pos[r] + 1 - j->window;
    return j->window == 0 || first < 0 ? 0 : first;
}

/* Keys of row r in the chunk that begins at position start, those before its window included unless all
 * are. */
static int keys_in_chunk(const attention_job *j, int64_t r, int64_t start) {
    int64_t n = (int64_t)j->row_pos[r] + 1 - start;
    if (n < 0 || start + KEY_CHUNK <= first_key(j, r)) return 0;
    return n > KEY_CHUNK ? KEY_CHUNK : (int)n;
}

static const int32_t *blocks_of(const attention_job *j, int64_t r) {
    return j->tables + j->row_seq[r] * j->max_blocks;
}

/* Whether the first n > 0 keys of the chunk are the same memory for both rows. */
static bool same_keys(const attention_job *j, int64_t a, int64_t b, int64_t start, int n) {
    if (j->row_seq[a] == j->row_seq[b]) return true;
    const int32_t *block_a = blocks_of(j, a), *block_b = blocks_of(j, b);
    for (int64_t i = start / j->block_tokens; i <= (start + n - 1) / j->block_tokens; i++)
        if (block_a[i] != block_b[i]) return false;
    return true;
}

/* Rows that see the same keys of a chunk, and where those are. */
typedef struct {
    int64_t start; /* position of the chunk */
    int32_t *rows; /* relative to the task's first */
    int64_t n_rows;
    size_t at[KEY_CHUNK]; /* bytes from k and v to what the first head has of a key; behind the last, the last again */
    int n; /* keys */
} group;

/* What one head has of them. */
typedef struct {
    const void *keys[KEY_CHUNK], *values[KEY_CHUNK];
    ops_dtype dtype;
} group_head;

/* A task on its way through chunks, and in a chunk through its groups. */
typedef struct {
    const attention_job *j;
    bool *served; /* [n_rows] in this chunk */
    int64_t first, n_rows;
    int64_t start, last_pos, leader;
} group_walk;

/* The n keys of row r from position start. */
static void find_keys(const attention_job *j, group *g, int64_t r) {
    const int32_t *block = blocks_of(j, r) + g->start / j->block_tokens;
    int64_t in_block = g->start % j->block_tokens;
    for (int i = 0; i < KEY_CHUNK; i++, in_block++) {
        if (i >= g->n) {
            g->at[i] = g->at[i - 1];
            continue;
        }
        if (in_block == j->block_tokens) block++, in_block = 0;
        g->at[i] = (size_t)(*block * j->block_stride + in_block * j->key_stride) * j->kv_bytes;
    }
}

static void find_head(const attention_job *j, group_head *h, const group *g, int64_t head) {
    size_t offset = (size_t)(head / j->heads_a_kv * j->head_stride) * j->kv_bytes;
    h->dtype = j->kv_dtype;
    for (int i = 0; i < KEY_CHUNK; i++) {
        h->keys[i] = j->k + g->at[i] + offset;
        h->values[i] = j->v + g->at[i] + offset;
    }
}

/* The rows not served yet that see what the leader's sequence has in the chunk. */
static void find_group(group_walk *at, group *g) {
    const attention_job *j = at->j;
    int64_t first = at->first, leader = at->leader, longest = leader; /* of the sequence: its keys include all others' */
    for (int64_t r = leader + 1; r < at->n_rows; r++)
        if (!at->served[r] && j->row_seq[first + r] == j->row_seq[first + leader] &&
            j->row_pos[first + r] > j->row_pos[first + longest])
            longest = r;
    g->start = at->start;
    g->n = keys_in_chunk(j, first + longest, g->start);
    g->n_rows = 0;
    for (int64_t r = leader; r < at->n_rows; r++) {
        int n = keys_in_chunk(j, first + r, g->start);
        if (at->served[r] || n > g->n || !same_keys(j, first + longest, first + r, g->start, n)) continue;
        at->served[r] = true;
        g->rows[g->n_rows++] = (int32_t)r;
    }
    find_keys(j, g, first + longest);
}

/* False: there is none any more. */
static bool next_group(group_walk *at, group *g) {
    for (; at->start <= at->last_pos; at->start += KEY_CHUNK, at->leader = 0) {
        for (int64_t r = 0; at->leader == 0 && r < at->n_rows; r++)
            at->served[r] = keys_in_chunk(at->j, at->first + r, at->start) == 0;
        while (at->leader < at->n_rows && at->served[at->leader]) at->leader++;
        if (at->leader == at->n_rows) continue;
        find_group(at, g);
        at->leader++;
        return true;
    }
    return false;
}

/* Makes f32 of them, in lines of padded_dim. In full attention, and from block to block, they are far from each other,
 * which no processor foresees: all are asked for beforehand. */
static void widen_keys(const attention_job *j, workspace *w, group_head *h, int n) {
    for (int i = 0; i < n; i++) {
        prefetch(h->keys[i], j->head_dim * (int64_t)j->kv_bytes);
        prefetch(h->values[i], j->head_dim * (int64_t)j->kv_bytes);
    }
    for (int i = 0; i < n; i++) {
        float *key = w->keys + i * j->padded_dim, *value = w->values + i * j->padded_dim;
        j->simd->widen(key, h->keys[i], h->dtype, j->head_dim);
        j->simd->widen(value, h->values[i], h->dtype, j->head_dim);
        memset(value + j->head_dim, 0, (size_t)(j->padded_dim - j->head_dim) * sizeof *value);
        h->keys[i] = key;
        h->values[i] = value;
    }
    h->dtype = OPS_DTYPE_F32;
}

/* The softmax step of some rows over a chunk, whose scores are in p_tile: weights are left there. rows[] are relative to
 * first, and see n_keys[]; what came before shrinks by shrink [SOFTMAX_ROWS]. */
static void weigh(const attention_job *j, workspace *w, int64_t first, const int32_t *rows, int n_rows, int64_t start,
                  const int *n_keys, float *shrink) {
    float max[SOFTMAX_ROWS] = {0}, sum[SOFTMAX_ROWS];
    for (int i = 0; i < n_rows; i++) {
        int64_t n_before = first_key(j, first + rows[i]) - start;
        for (int64_t k = 0; k < n_before; k++) w->p_tile[i * TILE_STRIDE + k] = -INFINITY;
        max[i] = w->max[rows[i]];
        sum[i] = w->sum[rows[i]];
    }
    j->simd->softmax_step(w->p_tile, n_rows, n_keys, j->scale, max, sum, shrink);
    for (int i = 0; i < n_rows; i++) {
        w->max[rows[i]] = max[i];
        w->sum[rows[i]] = sum[i];
    }
}

static bool are_side_by_side(const int32_t *rows, int n_rows) { return rows[n_rows - 1] - rows[0] == n_rows - 1; }

/* Few rows, one after the other. While keys are multiplied their values are asked for, and while values are, what comes
 * next. */
static void attend_rows(const attention_job *j, workspace *w, const group *g, group_head *h, const group_head *next, int64_t first,
                        int64_t q_offset) {
    const void *const *values = h->values, *const *keys = next ? next->keys : NULL;
    if (g->n_rows > 1 && h->dtype != OPS_DTYPE_F32) {
        widen_keys(j, w, h, g->n);
        values = NULL;
    }
    for (int64_t i = 0; i < g->n_rows; i++, values = keys = NULL) {
        int r = g->rows[i], n = keys_in_chunk(j, first + r, g->start);
        float *s = w->p_tile, *acc = w->acc + r * j->padded_dim, shrink[SOFTMAX_ROWS];
        j->simd->scores(s, j->q + (first + r) * j->q_stride + q_offset, h->keys, h->dtype, n, j->head_dim, values);
        weigh(j, w, first, &g->rows[i], 1, g->start, &n, shrink);
        if (shrink[0] != 1.0f) j->simd->scale(acc, acc, shrink[0], j->head_dim);
        j->simd->add_values(acc, s, h->values, h->dtype, n, j->head_dim, keys);
    }
}

/* One chunk for a tile of rows: scores, softmax step, values. rows[] are relative to first. */
static void attend_tile(const attention_job *j, workspace *w, int64_t first, const int32_t *rows,
                        int n_rows, int64_t start, int64_t q_offset) {
    const simd_kernels *simd = j->simd;
    int n_keys[TILE_ROWS_MAX], most = 0, fewest = KEY_CHUNK;
    for (int i = 0; i < n_rows; i++) {
        n_keys[i] = keys_in_chunk(j, first + rows[i], start);
        most = n_keys[i] > most ? n_keys[i] : most;
        fewest = n_keys[i] < fewest ? n_keys[i] : fewest;
    }
    for (int64_t d = 0; d < j->head_dim; d += TILE_STRIDE) {
        int64_t n_dims = min_i64(TILE_STRIDE, j->head_dim - d);
        for (int i = 0; i < n_rows; i++)
            simd->widen(w->q_tile + i * TILE_STRIDE, j->q + (first + rows[i]) * j->q_stride + q_offset + d, OPS_DTYPE_F32,
                        n_dims);
        for (int c = 0; c < most; c += PANEL_COLS)
            simd->tile(w->p_tile + c, TILE_STRIDE, w->q_tile, n_rows, w->keys_t + d * KEY_CHUNK + c,
                       KEY_CHUNK, OPS_DTYPE_F32, n_dims, PANEL_COLS, d > 0);
    }
    /* Rows side by side, as they mostly are, are added to where they lie. */
    bool is_apart = !are_side_by_side(rows, n_rows);
    float *acc = is_apart ? w->acc_tile : w->acc + rows[0] * j->padded_dim, shrink[SOFTMAX_ROWS];
    weigh(j, w, first, rows, n_rows, start, n_keys, shrink);
    for (int i = 0; i < n_rows; i++)
        if (is_apart || shrink[i] != 1.0f)
            simd->scale(acc + i * j->padded_dim, w->acc + rows[i] * j->padded_dim, shrink[i], j->padded_dim);
    for (int64_t d = 0; d < j->head_dim; d += PANEL_COLS) {
        int n_cols = (int)min_i64(PANEL_COLS, (j->head_dim - d + 15) / 16 * 16);
        simd->tile(acc + d, j->padded_dim, w->p_tile, n_rows, w->values + d, j->padded_dim,
                   OPS_DTYPE_F32, fewest, n_cols, true);
        for (int i = 0; i < n_rows; i++)
            if (n_keys[i] > fewest) /* the same sum goes on, for this row alone */
                simd->tile(acc + i * j->padded_dim + d, j->padded_dim,
                           w->p_tile + i * TILE_STRIDE + fewest, 1,
                           w->values + fewest * j->padded_dim + d, j->padded_dim, OPS_DTYPE_F32,
                           n_keys[i] - fewest, n_cols, true);
    }
    for (int i = 0; is_apart && i < n_rows; i++)
        memcpy(w->acc + rows[i] * j->padded_dim, acc + i * j->padded_dim,
               (size_t)j->padded_dim * sizeof(float));
}

/* The same in bf16: keys are in keys_t, values where keys were. broken: keys with values that are not finite, which spoil
 * the rows that see them and no others. */
static void attend_tile_rounded(const attention_job *j, workspace *w, int64_t first, const int32_t *rows, int n_rows,
                                int64_t start, uint64_t broken) {
    const simd_attention *rounded = j->rounded;
    int64_t dim = j->padded_dim;
    bool is_apart = n_rows < ATTENTION_TILE_ROWS || !are_side_by_side(rows, n_rows);
    uint16_t *queries = w->queries + (is_apart ? j->rows_a_task : rows[0]) * dim;
    float *acc = is_apart ? w->acc_tile : w->acc + rows[0] * dim, shrink[SOFTMAX_ROWS];
    int n_keys[ATTENTION_TILE_ROWS];
    for (int i = 0; i < n_rows; i++) {
        n_keys[i] = keys_in_chunk(j, first + rows[i], start);
        if (is_apart) memcpy(queries + i * dim, w->queries + rows[i] * dim, (size_t)dim * sizeof *queries);
    }
    rounded->scores(w->p_tile, queries, w->keys_t, dim);
    weigh(j, w, first, rows, n_rows, start, n_keys, shrink);
    for (int i = 0; i < n_rows; i++) {
        rounded->narrow(w->weights + i * KEY_CHUNK, w->p_tile + i * TILE_STRIDE, KEY_CHUNK);
        if (is_apart || shrink[i] != 1.0f) j->simd->scale(acc + i * dim, w->acc + rows[i] * dim, shrink[i], dim);
    }
    rounded->add_values(acc, w->weights, w->keys, dim);
    for (int i = 0; broken && i < n_rows; i++)
        if (broken & (UINT64_MAX >> (KEY_CHUNK - n_keys[i]))) j->simd->scale(acc + i * dim, acc + i * dim, NAN, dim);
    for (int i = 0; is_apart && i < n_rows; i++) memcpy(w->acc + rows[i] * dim, acc + i * dim, (size_t)dim * sizeof *acc);
}

static void attend_tiles_rounded(const attention_job *j, workspace *w, const group *g, group_head *h, int64_t first) {
    widen_keys(j, w, h, g->n);
    for (int i = 0; i < g->n; i++)
        memset(w->keys + i * j->padded_dim + j->head_dim, 0, (size_t)(j->padded_dim - j->head_dim) * sizeof *w->keys);
    j->rounded->pack_keys(w->keys_t, w->keys, g->n, j->padded_dim);
    uint64_t broken = j->rounded->pack_values(w->keys, w->values, g->n, j->padded_dim);
    for (int64_t m = 0; m < g->n_rows; m += ATTENTION_TILE_ROWS)
        attend_tile_rounded(j, w, first, g->rows + m, (int)min_i64(ATTENTION_TILE_ROWS, g->n_rows - m), g->start, broken);
}

/* Many rows: keys and values of the group are copied, and meet the rows in tiles. */
static void attend_tiles(const attention_job *j, workspace *w, const group *g, group_head *h, int64_t first, int64_t q_offset) {
    widen_keys(j, w, h, g->n);
    j->simd->transpose(w->keys_t, (const float *const *)h->keys, g->n, j->head_dim);
    for (int64_t m = 0; m < g->n_rows; m += j->simd->tile_rows)
        attend_tile(j, w, first, g->rows + m, (int)min_i64(j->simd->tile_rows, g->n_rows - m), g->start, q_offset);
}

/* The workspace as the task's head of that number sees it. */
static workspace workspace_of(const attention_job *j, const workspace *w, int64_t head) {
    workspace own = *w;
    own.acc += head * j->rows_a_task * j->padded_dim;
    own.max += head * j->rows_a_task;
    own.sum += head * j->rows_a_task;
    return own;
}

static void write_rows(const attention_job *j, const workspace *w, int64_t first, int64_t n_rows, int64_t head) {
    for (int64_t r = 0; r < n_rows; r++)
        j->simd->divide(j->out + (first + r) * j->out_stride + head * j->head_dim, w->acc + r * j->padded_dim, w->sum[r],
                        j->head_dim);
}

static void attend_task(void *arg, int64_t task, int thread) {
    const attention_job *j = arg;
    workspace w;
    (void)workspace_cut(j, j->scratch + (size_t)thread * j->thread_bytes, &w);
    int64_t n_parts = ceil_div(j->n_heads, j->heads_a_task);
    int64_t head = task % n_parts * j->heads_a_task, n_heads = min_i64(j->heads_a_task, j->n_heads - head);
    int64_t n_pieces = ceil_div(j->seq_rows, j->rows_a_task), piece = task / n_parts;
    int64_t in_seq = piece % n_pieces * j->rows_a_task, first = piece / n_pieces * j->seq_rows + in_seq;
    int64_t n_rows = min_i64(j->rows_a_task, j->seq_rows - in_seq);
    int64_t last_pos = 0, start = INT64_MAX;
    for (int64_t r = 0; r < n_rows; r++) {
        if (j->row_pos[first + r] > last_pos) last_pos = j->row_pos[first + r];
        start = min_i64(start, first_key(j, first + r) / KEY_CHUNK * KEY_CHUNK);
    }
    for (int64_t i = 0; i < j->heads_a_task * j->rows_a_task; i++) {
        w.max[i] = -INFINITY;
        w.sum[i] = 0.0f;
    }
    memset(w.acc, 0, (size_t)(j->heads_a_task * j->rows_a_task * j->padded_dim) * sizeof *w.acc);
    group_walk walk = {j, w.served, first, n_rows, start, last_pos, 0};
    group groups[2] = {{.rows = w.members}, {.rows = w.members + j->rows_a_task}};
    group_head heads[2];
    if (j->rounded) j->rounded->enter();
    for (int64_t r = 0; j->rounded && r < n_rows; r++)
        j->rounded->narrow(w.queries + r * j->padded_dim, j->q + (first + r) * j->q_stride + head * j->head_dim, j->head_dim);
    bool has_next = next_group(&walk, &groups[0]);
    if (has_next) find_head(j, &heads[0], &groups[0], head);
    for (int i = 0, at = 0; has_next; i = 1 - i) {
        has_next = next_group(&walk, &groups[1 - i]);
        for (int64_t h = 0; h < n_heads; h++, at = 1 - at) {
            bool is_last = h + 1 == n_heads;
            const group_head *next = is_last && !has_next ? NULL : &heads[1 - at];
            if (next) find_head(j, &heads[1 - at], &groups[is_last ? 1 - i : i], is_last ? head : head + h + 1);
            workspace own = workspace_of(j, &w, h);
            if (j->is_few) attend_rows(j, &own, &groups[i], &heads[at], next, first, (head + h) * j->head_dim);
            else if (j->rounded) attend_tiles_rounded(j, &own, &groups[i], &heads[at], first);
            else attend_tiles(j, &own, &groups[i], &heads[at], first, (head + h) * j->head_dim);
        }
    }
    if (j->rounded) j->rounded->leave();
    for (int64_t h = 0; h < n_heads; h++) {
        const workspace own = workspace_of(j, &w, h);
        write_rows(j, &own, first, n_rows, head + h);
    }
}

/* Sizes, and scratch: table_bytes in front for the tables of full attention, then a workspace for each
 * thread. */
static status prepare(cpu_state *s, attention_job *j, const ops_tensor *q, const ops_attention_params *params,
                      size_t table_bytes) {
    j->simd = s->simd;
    j->q_stride = tensor_row_stride(q);
    j->n_heads = params->n_heads;
    j->heads_a_kv = params->n_heads / params->n_kv_heads;
    j->scale = params->scale;
    j->window = params->window;
    j->is_few = params->is_few;
    j->head_dim = q->dims[1] / params->n_heads;
    j->padded_dim = ceil_div(j->head_dim, PANEL_COLS) * PANEL_COLS;
    bool is_rounded = params->may_round && !j->is_few && j->padded_dim <= TILE_STRIDE;
    j->rounded = is_rounded ? j->simd->attention : NULL;
    int64_t n_whole = j->n_rows / j->seq_rows * j->n_heads, n_wanted = 2 * pool_threads(s->pool);
    int64_t n_pieces = ceil_div(j->seq_rows, ROWS_A_TASK);
    if (!j->is_few && n_whole * n_pieces < n_wanted) n_pieces = min_i64(2 * n_pieces, j->seq_rows);
    j->rows_a_task = ceil_div(j->seq_rows, n_pieces);
    int64_t n_single = n_whole * n_pieces, head_bytes = j->rows_a_task * j->padded_dim * (int64_t)sizeof(float);
    j->heads_a_task = !j->is_few ? 1 : min_i64(min_i64(HEADS_A_TASK, HEADS_BYTES / head_bytes), n_single / n_wanted);
    if (j->heads_a_task < 1) j->heads_a_task = 1;
    j->thread_bytes = workspace_cut(j, NULL, NULL);
    unsigned char *scratch =
        cpu_scratch(s, table_bytes + j->thread_bytes * (size_t)pool_threads(s->pool));
    if (!scratch) return STATUS_NO_MEMORY;
    j->scratch = scratch + table_bytes;
    return STATUS_OK;
}

static int64_t n_tasks(const attention_job *j) {
    return j->n_rows / j->seq_rows * ceil_div(j->seq_rows, j->rows_a_task) * ceil_div(j->n_heads, j->heads_a_task);
}

status cpu_attention(void *state, ops_tensor *out, const ops_tensor *q, const ops_tensor *k,
                     const ops_tensor *v, int64_t length, const ops_attention_params *params) {
    cpu_state *s = state;
    int64_t n_rows = q->dims[0], n_groups = n_rows / length;
    attention_job j = {.out = out->data, .q = q->data, .k = k->data, .v = v->data,
                       .n_rows = n_rows, .seq_rows = length, .max_blocks = 1, .block_tokens = length,
                       .out_stride = tensor_row_stride(out), .block_stride = length * tensor_row_stride(k),
                       .head_stride = k->dims[1] / params->n_kv_heads, .key_stride = tensor_row_stride(k),
                       .kv_dtype = OPS_DTYPE_F32, .kv_bytes = sizeof(float)};
    size_t table_bytes = align_up((size_t)(n_groups + 2 * n_rows) * sizeof(int32_t));
    status st = prepare(s, &j, q, params, table_bytes);
    if (st != STATUS_OK) return st;
    int32_t *tables = s->scratch, *row_seq = tables + n_groups, *row_pos = row_seq + n_rows;
    for (int64_t g = 0; g < n_groups; g++) tables[g] = (int32_t)g;
    for (int64_t r = 0; r < n_rows; r++) {
        row_seq[r] = (int32_t)(r / length);
        row_pos[r] = (int32_t)(length - 1);
    }
    j.tables = tables;
    j.row_seq = row_seq;
    j.row_pos = row_pos;
    pool_run(s->pool, n_tasks(&j), attend_task, &j);
    return STATUS_OK;
}

/* Every block that a row will read must exist. Rows of one sequence mostly stand together, so the
 * blocks already looked at for the row before are not looked at again. */
static bool tables_fit(const attention_job *j, int64_t n_seqs, int64_t n_blocks) {
    int64_t seq = -1, n_checked = 0;
    for (int64_t r = 0; r < j->n_rows; r++) {
        if (j->row_seq[r] < 0 || j->row_seq[r] >= n_seqs || j->row_pos[r] < 0) return false;
        int64_t n = j->row_pos[r] / j->block_tokens + 1;
        if (n > j->max_blocks) return false;
        if (j->row_seq[r] != seq) n_checked = 0;
        seq = j->row_seq[r];
        if (n > n_checked && !cpu_indices_fit(blocks_of(j, r) + n_checked, n - n_checked, n_blocks))
            return false;
        n_checked = n > n_checked ? n : n_checked;
    }
    return true;
}

status cpu_attention_paged(void *state, ops_tensor *out, const ops_tensor *q,
                           const ops_tensor *k_cache, const ops_tensor *v_cache,
                           const ops_tensor *tables, const ops_tensor *row_seq,
                           const ops_tensor *row_pos, const ops_attention_params *params) {
    cpu_state *s = state;
    attention_job j = {.out = out->data, .q = q->data, .k = k_cache->data, .v = v_cache->data,
                       .tables = tables->data, .row_seq = row_seq->data, .row_pos = row_pos->data,
                       .n_rows = q->dims[0], .seq_rows = q->dims[0], .max_blocks = tables->dims[1],
                       .block_tokens = k_cache->dims[2], .out_stride = tensor_row_stride(out),
                       .block_stride = k_cache->dims[1] * k_cache->dims[2] * k_cache->dims[3],
                       .head_stride = k_cache->dims[2] * k_cache->dims[3], .key_stride = k_cache->dims[3], .kv_dtype = k_cache->dtype,
                       .kv_bytes = dtype_bytes(k_cache->dtype)};
    if (j.block_tokens < 1 || !tables_fit(&j, tables->dims[0], k_cache->dims[0]))
        return STATUS_BAD_ARGUMENT;
    status st = prepare(s, &j, q, params, 0);
    if (st != STATUS_OK) return st;
    pool_run(s->pool, n_tasks(&j), attend_task, &j);
    return STATUS_OK;
}
