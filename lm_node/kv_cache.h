/* Which block of keys and values belongs to whom: bookkeeping only, the arrays are the decoder's.
 *
 *     st = kv_cache_open(&kv, n_blocks, &e);
 *     st = kv_seq_open(kv, &prefix, 759, 0);              // BUSY when there is no room
 *     kv_seq_extend(kv, &prefix, 256);                    // positions 0 .. 255 may be written
 *     st = kv_seq_open(kv, &question, 900, 759);          // 47 full blocks will be shared
 *     copy = kv_seq_fork(kv, &question, &prefix, 759);    // and the partial one is there twice
 *     kv_seq_close(kv, &question);
 *
 * A block holds KV_BLOCK_TOKENS positions of one sequence, in all layers. Blocks are counted by
 * reference; only full blocks are ever shared, so nobody writes to a block that another one took: when a
 * child shares it, its parent has written it, or does so in the child's first step. A sequence reserves
 * the most it can need when it opens: afterwards extending cannot fail, and running work never has to
 * be thrown out. One thread. */
#ifndef LM_NODE_KV_CACHE_H
#define LM_NODE_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define KV_BLOCK_TOKENS 16
#define KV_BLOCKS_MAX   (1 << 26)

typedef struct kv_cache kv_cache;

typedef struct {
    int32_t *blocks; /* in order of position; NULL when closed */
    int n_blocks;
    int n_blocks_max; /* n_blocks never exceeds it */
    int n_reserved;   /* blocks this sequence may still take */
    int n_tokens;     /* positions 0 .. n_tokens - 1 have a block */
} kv_seq;

/* from < 0: nothing to copy. */
typedef struct {
    int32_t to, from;
} kv_copy;

/* Errors: BAD_ARGUMENT (0 or too many blocks), NO_MEMORY. */
MUST_USE status kv_cache_open(kv_cache **kv, int n_blocks, err *e);
void kv_cache_close(kv_cache **kv); /* every sequence is closed by then (CHECK) */

/* Blocks for n_tokens positions. */
int kv_blocks_for(int n_tokens);

/* Reserves room for n_tokens_max positions of which the first n_shared_tokens will come from a fork.
 * Errors: BUSY (not enough free blocks), NO_MEMORY. */
MUST_USE status kv_seq_open(kv_cache *kv, kv_seq *seq, int n_tokens_max, int n_shared_tokens);

/* Gives every block back; zeroed and closed sequences are fine. */
void kv_seq_close(kv_cache *kv, kv_seq *seq);

/* Room for n_tokens more, out of the reservation. */
void kv_seq_extend(kv_cache *kv, kv_seq *seq, int n_tokens);

/* The empty child begins with the first n_tokens of parent: full blocks are shared; a partial last one
 * is the child's own, and the caller sees to it that the child finds the parent's contents there. */
kv_copy kv_seq_fork(kv_cache *kv, kv_seq *child, const kv_seq *parent, int n_tokens);

/* Where position lies: block * KV_BLOCK_TOKENS + offset. */
int32_t kv_seq_slot(const kv_seq *seq, int position);

int kv_cache_n_in_use(const kv_cache *kv);    /* blocks with at least one owner */
int kv_cache_n_available(const kv_cache *kv); /* neither in use nor reserved */

#endif
