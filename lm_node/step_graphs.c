#include "lm_node/step_graphs.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "lm_node/kv_cache.h"

#define GRAPHS_MAX     32
#define TABLE_MIN      16 /* blocks: 256 positions, so that most sequences begin in one size */
#define ROWS_DOUBLE_TO 8  /* sizes of rows are 1, 2, 4, 8, 16, 24, 32, ...: few rows read the weights in eights */

typedef struct {
    int n_rows, n_table_blocks; /* 0: none */
    bool has_run;
    ops_graph *graph;
    uint64_t last_use;
} sized_graph;

struct step_graphs {
    ops_ctx *ctx;
    step_graphs_settings s;
    bool is_off;
    uint64_t n_uses;
    sized_graph sizes[GRAPHS_MAX];
    int32_t *ids, *positions, *slots, *seqs, *out_rows; /* [max_rows] each, of the padded step */
    int32_t *tables;                                    /* [max_rows, max_table_blocks] */
};

status step_graphs_open(step_graphs **out, ops_ctx *ctx, const step_graphs_settings *settings, err *e) {
    *out = NULL;
    if (!ops_has_graphs(ctx)) return STATUS_OK;
    CHECK(settings->max_rows >= 1 && settings->max_table_blocks >= 1, "a step has rows and tables");
    const size_t rows = (size_t)settings->max_rows;
    step_graphs *g = calloc(1, sizeof *g);
    if (!g) return fail(e, STATUS_NO_MEMORY, "decoder: no memory for graphs");
    g->ctx = ctx;
    g->s = *settings;
    int32_t **arrays[] = {&g->ids, &g->positions, &g->slots, &g->seqs, &g->out_rows};
    bool has_all = (g->tables = calloc(rows * (size_t)settings->max_table_blocks, sizeof *g->tables)) != NULL;
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        has_all &= (*arrays[i] = calloc(rows, sizeof **arrays[i])) != NULL;
    *out = g;
    if (has_all) return STATUS_OK;
    step_graphs_close(out);
    return fail(e, STATUS_NO_MEMORY, "decoder: no memory for graphs of %d rows", settings->max_rows);
}

void step_graphs_close(step_graphs **out) {
    step_graphs *g = *out;
    if (!g) return;
    for (int i = 0; i < GRAPHS_MAX; i++) ops_graph_close(g->ctx, &g->sizes[i].graph);
    free(g->ids);
    free(g->positions);
    free(g->slots);
    free(g->seqs);
    free(g->out_rows);
    free(g->tables);
    free(g);
    *out = NULL;
}

/* ---- padding ------------------------------------------------------------------------------------- */

static int at_most(int n, int max) { return n < max ? n : max; }

static int rows_of_size(const step_graphs *g, int n) {
    int rows = 1;
    while (rows < n) rows += rows < ROWS_DOUBLE_TO ? rows : ROWS_DOUBLE_TO;
    return at_most(rows, g->s.max_rows);
}

static int table_of_size(const step_graphs *g, int n) {
    int blocks = TABLE_MIN;
    while (blocks < n) blocks *= 2;
    return at_most(blocks, g->s.max_table_blocks);
}

/* Of tokens being decoded only, whose logits are all wanted, none with an adapter: then every step of a size is the same
 * operators. */
static bool has_graph(const step_graphs *g, const lm_batch *b) {
    if (b->n_rows > g->s.max_rows || b->n_decode_rows < b->n_rows || b->n_out != b->n_rows) return false;
    if (b->n_image_rows > 0 || b->n_twice > 0 || b->n_seqs > b->n_rows) return false;
    for (int i = 0; b->adapters && i < b->n_rows; i++)
        if (b->adapters[i] != 0) return false;
    return true;
}

/* A decoded row's span is up to itself, which need not be said. */
static void pad_rows(step_graphs *g, const lm_batch *b, int n_rows) {
    for (int i = 0; i < n_rows; i++) {
        bool is_own = i < b->n_rows;
        g->ids[i] = is_own ? b->ids[i] : 0;
        g->positions[i] = is_own ? b->positions[i] : 0;
        g->slots[i] = is_own ? b->slots[i] : g->s.spare_block * KV_BLOCK_TOKENS;
        g->seqs[i] = is_own ? b->seqs[i] : b->n_rows; /* one for all of them: n_seqs is not above n_rows */
        g->out_rows[i] = is_own ? b->out_rows[i] : i;
    }
}

static void pad_tables(step_graphs *g, const lm_batch *b, int n_rows, int n_blocks) {
    for (int i = 0; i < n_rows; i++) {
        int32_t *row = g->tables + (size_t)i * (size_t)n_blocks;
        int n_own = i < b->n_seqs ? b->n_table_blocks : 0;
        if (n_own > 0) memcpy(row, b->tables + (size_t)i * (size_t)n_own, (size_t)n_own * sizeof *row);
        for (int k = n_own; k < n_blocks; k++) row[k] = g->s.spare_block;
    }
}

bool step_graphs_pad(step_graphs *g, lm_batch *padded, const lm_batch *b) {
    if (!g || g->is_off || !has_graph(g, b)) return false;
    const int n_rows = rows_of_size(g, b->n_rows), n_blocks = table_of_size(g, b->n_table_blocks);
    pad_rows(g, b, n_rows);
    pad_tables(g, b, n_rows, n_blocks);
    *padded = (lm_batch){.n_rows = n_rows,
                         .n_decode_rows = n_rows,
                         .ids = g->ids,
                         .positions = g->positions,
                         .slots = g->slots,
                         .seqs = g->seqs,
                         .n_seqs = n_rows,
                         .n_table_blocks = n_blocks,
                         .tables = g->tables,
                         .n_out = n_rows,
                         .out_rows = g->out_rows};
    return true;
}

/* ---- running ------------------------------------------------------------------------------------- */

/* That of the size, or in place of the one not used for longest a new one. */
static sized_graph *find_size(step_graphs *g, const lm_batch *padded) {
    sized_graph *oldest = &g->sizes[0];
    for (int i = 0; i < GRAPHS_MAX; i++) {
        sized_graph *size = &g->sizes[i];
        if (size->n_rows == padded->n_rows && size->n_table_blocks == padded->n_table_blocks) return size;
        if (size->last_use < oldest->last_use) oldest = size;
    }
    ops_graph_close(g->ctx, &oldest->graph);
    *oldest = (sized_graph){.n_rows = padded->n_rows, .n_table_blocks = padded->n_table_blocks};
    return oldest;
}

static status record(step_graphs *g, sized_graph *size, step_network *network, void *user, err *e) {
    status st = ops_graph_begin(g->ctx, e);
    if (st != STATUS_OK) return st;
    st = network(user);
    if (st == STATUS_OK) return ops_graph_end(g->ctx, &size->graph, e);
    IGNORE(ops_graph_end(g->ctx, NULL, e), "there is nothing to keep");
    return fail(e, st, "an operator: %s", status_text((int)st));
}

status step_graphs_run(step_graphs *g, bool *is_replayed, const lm_batch *padded, step_network *network, void *user) {
    sized_graph *size = find_size(g, padded);
    err e;
    size->last_use = ++g->n_uses;
    if (!ops_graph_is_current(g->ctx, size->graph)) ops_graph_close(g->ctx, &size->graph);
    if (size->has_run && !size->graph && record(g, size, network, user, &e) != STATUS_OK) {
        g->is_off = true;
        log_warn("step_graphs_off", "rows=%d table_blocks=%d reason=\"%s\"", size->n_rows, size->n_table_blocks, e.text);
    }
    *is_replayed = size->graph != NULL;
    if (size->graph) return ops_graph_run(g->ctx, size->graph);
    status st = network(user);
    size->has_run = st == STATUS_OK;
    return st;
}
