/* Byte-pair merging of one word.
 *
 *     bpe *b;
 *     st = bpe_open(&b, n_merges, &e);
 *     bpe_add(b, left, right, merged);                // in rank order
 *     bpe_scratch s = {0};
 *     int32_t *symbols = bpe_symbols(&s, n_bytes);      // what the word begins as: one id or more a character
 *     st = bpe_merge(b, &s, n_symbols, &ids, &n);
 *     bpe_scratch_deinit(&s);
 *
 * Read-only once all merges are added: any thread, each with its own scratch. */
#ifndef MODEL_BPE_H
#define MODEL_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef struct bpe bpe;

typedef struct {
    struct bpe_symbol *symbols;
    struct bpe_candidate *heap;
    int32_t *ids;
    size_t max_symbols; /* longest word there is room for */
    size_t n_heap;
} bpe_scratch;

/* Errors: NO_MEMORY. */
MUST_USE status bpe_open(bpe **b, size_t n_merges, err *e);
void bpe_close(bpe **b);

/* The next merge in rank order; false when the pair already has one. At most n_merges calls. */
bool bpe_add(bpe *b, int32_t left, int32_t right, int32_t merged);

/* Room for the ids of max_symbols symbols, to be filled before bpe_merge; NULL: no memory. */
int32_t *bpe_symbols(bpe_scratch *s, size_t max_symbols);

/* Repeatedly merges the adjacent pair of lowest rank, leftmost first, until none is left, beginning with the
 * first n_symbols of bpe_symbols. The ids take their place, *n of them. Cost: n log n. */
void bpe_merge(const bpe *b, bpe_scratch *s, size_t n_symbols, const int32_t **ids, size_t *n);

/* SHA-256 over the merges in rank order. Once, after the last bpe_add. */
void bpe_digest(bpe *b, unsigned char out[32]);

void bpe_scratch_deinit(bpe_scratch *s);

#endif
