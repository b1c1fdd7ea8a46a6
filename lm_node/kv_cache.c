/* A stack of free blocks, a count of owners for each block, and the number of free blocks that are
 * already promised. The invariant: n_reserved <= n_free, so a promise can always be kept. */
#include "lm_node/kv_cache.h"

#include <stdlib.h>

#include "base/check.h"

struct kv_cache {
    int n_blocks, n_free, n_reserved;
    int32_t *free_blocks; /* [n_free], the last is taken first */
    int32_t *n_owners;    /* [n_blocks] */
};

status kv_cache_open(kv_cache **out, int n_blocks, err *e) {
    *out = NULL;
    if (n_blocks < 1 || n_blocks > KV_BLOCKS_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "kv cache: %d blocks, need 1 to %d", n_blocks,
                    KV_BLOCKS_MAX);
    kv_cache *kv = calloc(1, sizeof *kv);
    if (kv) {
        kv->free_blocks = calloc((size_t)n_blocks, sizeof *kv->free_blocks);
        kv->n_owners = calloc((size_t)n_blocks, sizeof *kv->n_owners);
    }
    if (!kv || !kv->free_blocks || !kv->n_owners) {
        if (kv) {
            free(kv->free_blocks);
            free(kv->n_owners);
        }
        free(kv);
        return fail(e, STATUS_NO_MEMORY, "kv cache: no memory to count %d blocks", n_blocks);
    }
    kv->n_blocks = kv->n_free = n_blocks;
    for (int i = 0; i < n_blocks; i++) kv->free_blocks[i] = n_blocks - 1 - i;
    *out = kv;
    return STATUS_OK;
}

void kv_cache_close(kv_cache **out) {
    kv_cache *kv = *out;
    if (!kv) return;
    CHECK(kv->n_free == kv->n_blocks && kv->n_reserved == 0, "every sequence was closed");
    free(kv->free_blocks);
    free(kv->n_owners);
    free(kv);
    *out = NULL;
}

int kv_blocks_for(int n_tokens) { return (n_tokens + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS; }

int kv_cache_n_in_use(const kv_cache *kv) { return kv->n_blocks - kv->n_free; }
int kv_cache_n_available(const kv_cache *kv) { return kv->n_free - kv->n_reserved; }

status kv_seq_open(kv_cache *kv, kv_seq *seq, int n_tokens_max, int n_shared_tokens) {
    CHECK(n_tokens_max > 0 && n_shared_tokens >= 0 && n_shared_tokens <= n_tokens_max,
          "a sequence has room for what it shares");
    int n_blocks_max = kv_blocks_for(n_tokens_max);
    int n_own = n_blocks_max - n_shared_tokens / KV_BLOCK_TOKENS;
    *seq = (kv_seq){0};
    if (n_own > kv_cache_n_available(kv)) return STATUS_BUSY;
    seq->blocks = malloc((size_t)n_blocks_max * sizeof *seq->blocks);
    if (!seq->blocks) return STATUS_NO_MEMORY;
    seq->n_blocks_max = n_blocks_max;
    seq->n_reserved = n_own;
    kv->n_reserved += n_own;
    return STATUS_OK;
}

static int32_t take_block(kv_cache *kv, kv_seq *seq) {
    CHECK(seq->n_reserved > 0 && seq->n_blocks < seq->n_blocks_max,
          "a sequence takes no more than it reserved");
    CHECK(kv->n_free > 0, "a reserved block is there");
    seq->n_reserved--;
    kv->n_reserved--;
    int32_t block = kv->free_blocks[--kv->n_free];
    CHECK(kv->n_owners[block] == 0, "a free block has no owner");
    kv->n_owners[block] = 1;
    seq->blocks[seq->n_blocks++] = block;
    return block;
}

void kv_seq_close(kv_cache *kv, kv_seq *seq) {
    for (int i = 0; i < seq->n_blocks; i++) {
        int32_t block = seq->blocks[i];
        CHECK(kv->n_owners[block] > 0, "a block of a sequence has an owner");
        if (--kv->n_owners[block] == 0) kv->free_blocks[kv->n_free++] = block;
    }
    kv->n_reserved -= seq->n_reserved;
    free(seq->blocks);
    *seq = (kv_seq){0};
}

void kv_seq_extend(kv_cache *kv, kv_seq *seq, int n_tokens) {
    CHECK(n_tokens >= 0, "sequences only grow");
    seq->n_tokens += n_tokens;
    while (seq->n_blocks < kv_blocks_for(seq->n_tokens)) (void)take_block(kv, seq);
}

kv_copy kv_seq_fork(kv_cache *kv, kv_seq *child, const kv_seq *parent, int n_tokens) {
    CHECK(child->n_blocks == 0 && n_tokens <= parent->n_tokens, "a fork starts with what is there");
    int n_full = n_tokens / KV_BLOCK_TOKENS;
    CHECK(n_full <= child->n_blocks_max, "the child has room for what it shares");
    for (int i = 0; i < n_full; i++) {
        child->blocks[child->n_blocks++] = parent->blocks[i];
        kv->n_owners[parent->blocks[i]]++;
    }
    child->n_tokens = n_tokens;
    if (n_tokens % KV_BLOCK_TOKENS == 0) return (kv_copy){.to = -1, .from = -1};
    return (kv_copy){.to = take_block(kv, child), .from = parent->blocks[n_full]};
}

int32_t kv_seq_slot(const kv_seq *seq, int position) {
    CHECK(position >= 0 && position < seq->n_tokens, "a position inside the sequence");
    return seq->blocks[position / KV_BLOCK_TOKENS] * KV_BLOCK_TOKENS + position % KV_BLOCK_TOKENS;
}
