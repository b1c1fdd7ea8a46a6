#include "lm_node/step_indices.h"

#include "base/check.h"
#include "lm_node/kv_cache.h"

int64_t step_indices_max(const lm_decoder_settings *s) {
    return (int64_t)7 * s->max_rows + (int64_t)5 * s->max_out +
           (int64_t)s->max_seqs * (kv_blocks_for(s->max_context) + KV_BLOCK_TOKENS);
}

/* ---- checks ------------------------------------------------------------------------------------- */

static void check_range(const int32_t *values, int n, int64_t end, const char *what) {
    for (int i = 0; i < n; i++) CHECK(values[i] >= 0 && values[i] < end, what);
}

static void check_twice(const step_room *room, const lm_batch *b, const lm_kv_twice *t) {
    CHECK(t->n_rows >= 1 && t->first_row >= 0 && t->first_row <= b->n_rows - t->n_rows, "rows written twice are rows");
    CHECK(t->first_slot >= 0 && t->first_slot / KV_BLOCK_TOKENS < room->s->kv_blocks &&
              t->first_slot % KV_BLOCK_TOKENS + t->n_rows <= KV_BLOCK_TOKENS,
          "rows written twice go to one block that exists");
}

void step_check(const step_room *room, const lm_batch *b) {
    CHECK(b->n_rows >= 1 && b->n_rows <= room->s->max_rows, "a step has 1 to max_rows rows");
    CHECK(b->n_seqs >= 1 && b->n_seqs <= room->s->max_seqs, "a step has 1 to max_seqs sequences");
    CHECK(b->n_out >= 0 && b->n_out <= room->s->max_out, "a step has at most max_out rows of logits");
    CHECK(b->n_decode_rows >= 0 && b->n_decode_rows <= b->n_rows, "decoded rows are rows");
    CHECK(b->n_image_rows >= 0 && b->n_image_rows <= b->n_rows, "image rows are rows");
    CHECK(b->n_table_blocks >= 1 && b->n_table_blocks <= kv_blocks_for(room->s->max_context),
          "a table is no longer than the context");
    check_range(b->ids, b->n_rows, room->c->n_vocab_in, "a token has an embedding");
    check_range(b->positions, b->n_rows,
                b->n_table_blocks * KV_BLOCK_TOKENS < room->s->max_context
                    ? b->n_table_blocks * KV_BLOCK_TOKENS
                    : room->s->max_context,
                "a position is inside table and context");
    check_range(b->slots, b->n_rows, (int64_t)room->s->kv_blocks * KV_BLOCK_TOKENS, "a slot exists");
    check_range(b->seqs, b->n_rows, b->n_seqs, "a row belongs to a sequence");
    check_range(b->image_rows, b->n_image_rows, b->n_rows, "an image row is a row");
    check_range(b->out_rows, b->n_out, b->n_rows, "a wanted row is a row");
    check_range(b->tables, b->n_seqs * b->n_table_blocks, room->s->kv_blocks, "a block exists");
    if (b->adapters) check_range(b->adapters, b->n_rows, room->n_adapters + 1, "an adapter is served");
    CHECK(b->n_twice >= 0 && b->n_twice <= room->s->max_seqs, "at most max_seqs sequences begin with rows of others");
    for (int i = 0; i < b->n_twice; i++) check_twice(room, b, &b->twice[i]);
}

/* ---- upload ------------------------------------------------------------------------------------- */

/* What was put into the host's copy from `first` on, where it will be on the device. */
static ops_tensor staged(const step_room *room, int64_t first) { return tensor_rows(&room->device, first, room->used - first); }

/* Values of n rows; rows NULL: the first n. */
static ops_tensor stage(step_room *room, const int32_t *values, const int32_t *rows, int64_t n) {
    const int64_t first = room->used;
    for (int64_t i = 0; i < n; i++) room->host[room->used++] = values[rows ? rows[i] : i];
    return staged(room, first);
}

/* Which row of cosines and sines each row takes: its position's, in the second table where the call it
 * belongs to is long. */
static ops_tensor stage_turns(step_room *room, const lm_batch *b, const int32_t *rows, int n) {
    const int64_t first = room->used;
    for (int i = 0; i < n; i++) {
        int row = rows ? rows[i] : i;
        int32_t position = b->positions[row], span = b->spans ? b->spans[row] : position + 1;
        bool is_long = room->c->has_long_rope && span > room->c->original_positions;
        room->host[room->used++] = position + (is_long ? room->s->max_context : 0);
    }
    return staged(room, first);
}

/* Which of n rows are of which kind, the first n_few few. */
static void stage_kinds(step_room *room, row_kinds *k, const lm_batch *b, const int32_t *rows, int n, int n_few) {
    *k = (row_kinds){.n_few = n_few};
    for (int a = 1; a <= room->n_adapters; a++)
        for (int first = 0, end = n_few; first < n; first = end, end = n) {
            const int64_t before = room->used;
            for (int i = first; i < end; i++)
                if (batch_adapter(b, rows ? rows[i] : i) == a) room->host[room->used++] = i;
            if (room->used == before) continue;
            k->groups[k->n_groups].served = a;
            k->groups[k->n_groups].is_few = first < n_few;
            k->groups[k->n_groups++].rows = staged(room, before);
        }
}

static void stage_places(step_room *room, row_places *at, const lm_batch *b, const int32_t *rows, int n, int n_few) {
    at->positions = stage(room, b->positions, rows, n);
    at->turns = stage_turns(room, b, rows, n);
    at->seqs = stage(room, b->seqs, rows, n);
    stage_kinds(room, &at->kinds, b, rows, n, n_few);
}

static void stage_twice(step_room *room, step_indices *at, const lm_batch *b) {
    const int64_t first = room->used;
    for (int i = 0; i < b->n_twice; i++)
        for (int k = 0; k < b->twice[i].n_rows; k++) room->host[room->used++] = b->twice[i].first_slot + k;
    at->n_twice = b->n_twice;
    at->twice = b->twice;
    at->twice_slots = staged(room, first);
}

status step_indices_upload(step_indices *at, step_room *room, const lm_batch *b) {
    room->used = 0;
    at->ids = stage(room, b->ids, NULL, b->n_rows);
    at->slots = stage(room, b->slots, NULL, b->n_rows);
    at->image_rows = stage(room, b->image_rows, NULL, b->n_image_rows);
    at->out_rows = stage(room, b->out_rows, NULL, b->n_out);
    ops_tensor tables = stage(room, b->tables, NULL, (int64_t)b->n_seqs * b->n_table_blocks);
    at->all.tables = at->wanted.tables = tensor_reshape(&tables, 2, (int64_t[]){b->n_seqs, b->n_table_blocks});
    stage_places(room, &at->all, b, NULL, b->n_rows, b->n_decode_rows);
    stage_places(room, &at->wanted, b, b->out_rows, b->n_out, b->n_out);
    stage_twice(room, at, b);
    ops_tensor all = staged(room, 0);
    return ops_upload(room->ctx, &all, room->host);
}
