/* Byte-pair merging of one word.
 *
 *     bpe *b;
 *     st = bpe_open(&b, byte_ids, n_merges, &e);
 *     bpe_add(b, left, right, merged);                // in rank order
 *     bpe_scratch s = {0};
 *     size_t n = bpe_merge(b, &s, word, word_bytes, &ids);
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
    size_t max_bytes; /* longest word there is room for */
    size_t n_heap;
} bpe_scratch;

/* byte_ids: the id of each single byte. Errors: NO_MEMORY. */
MUST_USE status bpe_open(bpe **b, const int32_t byte_ids[256], size_t n_merges, err *e);
void bpe_close(bpe **b);

/* The next merge in rank order; false when the pair already has one. At most n_merges calls. */
bool bpe_add(bpe *b, int32_t left, int32_t right, int32_t merged);

/* Repeatedly merges the adjacent pair of lowest rank, leftmost first, until none is left. *ids is valid
 * until the next call with this scratch and has *n entries. Cost: n log n. Errors: NO_MEMORY. */
MUST_USE status bpe_merge(const bpe *b, bpe_scratch *s, const unsigned char *word, size_t word_bytes,
                          const int32_t **ids, size_t *n);

/* SHA-256 over the byte table and the merges in rank order. Once, after the last bpe_add. */
void bpe_digest(bpe *b, unsigned char out[32]);

void bpe_scratch_deinit(bpe_scratch *s);

#endif
