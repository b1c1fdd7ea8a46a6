/* Steps of decoding as recorded graphs, one for each size of step.
 *
 *     if (step_graphs_pad(graphs, &padded, &batch))                        // a step of decoding only
 *         st = step_graphs_run(graphs, &is_replayed, &padded, network, user);
 *
 * A step that decodes starts more than two hundred kernels, most of which take less time than starting them. A graph starts
 * them all at once, but what it starts is fixed: so a step is filled up with rows of nobody to one of few sizes, and each
 * size has its graph. What the rows are (tokens, positions, slots, tables) is read from arrays on the device, whose places
 * depend on the size alone.
 *
 * A row of nobody is token 0 at position 0 of a sequence whose only block is the spare one, which no other row sees. No
 * row's bits depend on other rows (ops.h) or on how much wider than needed tables are.
 *
 * A size runs plainly the first time, is recorded the second, and is launched from then on: what the device takes for a size
 * once is there before it is recorded, and a size that comes once costs no recording. The GRAPHS_MAX sizes used last are
 * kept. A device that fails to record runs all steps plainly from then on. One thread, that of the context. */
#ifndef LM_NODE_STEP_GRAPHS_H
#define LM_NODE_STEP_GRAPHS_H

#include "lm_node/lm_decoder.h"

typedef struct step_graphs step_graphs;

typedef struct {
    int max_rows;         /* of a step with all rows wanted, each of a sequence of its own */
    int max_table_blocks; /* of the longest sequence */
    int32_t spare_block;
} step_graphs_settings;

/* NULL inside where the device has no graphs. Errors: NO_MEMORY. */
MUST_USE status step_graphs_open(step_graphs **g, ops_ctx *ctx, const step_graphs_settings *settings, err *e);
void step_graphs_close(step_graphs **g); /* before what the graphs name is closed */

/* False: not a step that has a graph. Else the step filled up to its size, good until the next call of this; its first rows
 * and its first wanted rows are those of the step. g NULL: false. */
bool step_graphs_pad(step_graphs *g, lm_batch *padded, const lm_batch *b);

/* All operators of a step, the same ones for every step of a size. */
typedef status step_network(void *user);

/* Runs the network on a padded step; is_replayed: from its graph. */
MUST_USE status step_graphs_run(step_graphs *g, bool *is_replayed, const lm_batch *padded, step_network *network, void *user);

#endif
