/* A word is a doubly linked list of symbols in an array, and a heap holds the merges that are possible
 * now, lowest rank first and leftmost first among equals. A merge makes the left symbol grow, takes the
 * right one out of the list, and adds the two pairs that became possible. Entries of the heap are not
 * removed when a neighbour changes; they are recognised as stale when they come out, because the pair at
 * their place no longer gives their result. The plain way, scanning the word for every merge, is
 * quadratic, and a word may be a megabyte.
 *
 * The heap never holds more than two entries per symbol: one per adjacent pair at the start, and each of the
 * at most n-1 merges takes one out and puts at most two in.
 *
 * Merges are found by (left, right) in an open-addressing table at most half full. */
#include "model/bpe.h"

#include <stdlib.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/hash.h"

#define EMPTY UINT64_MAX

typedef struct {
    uint64_t pair; /* left << 32 | right, EMPTY when unused */
    uint32_t rank;
    int32_t merged;
} merge_slot;

struct bpe {
    merge_slot *slots;
    size_t mask; /* slots - 1, a power of two minus one */
    size_t n_merges, max_merges;
    hash_sha256_stream *digest; /* of the merges so far */
};

struct bpe_symbol {
    int32_t id; /* -1: merged into its left neighbour */
    int32_t prev, next;
};

struct bpe_candidate {
    uint32_t rank;
    int32_t place; /* of the left symbol */
    int32_t merged;
};

static void add_to_digest(bpe *b, int32_t id) {
    unsigned char le[4];
    bytes_store_le(le, (uint32_t)id, sizeof le);
    CHECK(b->digest, "merges are added before the digest is asked for");
    hash_sha256_add(b->digest, le, sizeof le);
}

status bpe_open(bpe **out, size_t n_merges, err *e) {
    *out = NULL;
    bpe *b = calloc(1, sizeof *b);
    size_t n_slots = 16;
    while (n_slots < 2 * n_merges) n_slots *= 2;
    if (b) b->slots = malloc(n_slots * sizeof *b->slots);
    if (!b || !b->slots) {
        free(b);
        return fail(e, STATUS_NO_MEMORY, "no memory for %zu merges", n_merges);
    }
    for (size_t i = 0; i < n_slots; i++) b->slots[i].pair = EMPTY;
    b->mask = n_slots - 1;
    b->max_merges = n_merges;
    b->digest = hash_sha256_open();
    *out = b;
    return STATUS_OK;
}

void bpe_close(bpe **b) {
    if (!*b) return;
    unsigned char unused[HASH_SHA256_BYTES];
    if ((*b)->digest) hash_sha256_finish((*b)->digest, unused);
    free((*b)->slots);
    free(*b);
    *b = NULL;
}

/* The slot of a pair, or the empty one where it would go. */
static merge_slot *slot_of(const bpe *b, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t hash = pair * UINT64_C(0x9E3779B97F4A7C15);
    size_t at = (size_t)(hash ^ hash >> 32) & b->mask;
    while (b->slots[at].pair != pair && b->slots[at].pair != EMPTY) at = (at + 1) & b->mask;
    return &b->slots[at];
}

bool bpe_add(bpe *b, int32_t left, int32_t right, int32_t merged) {
    CHECK(b->n_merges < b->max_merges, "no more merges are added than were announced");
    merge_slot *slot = slot_of(b, left, right);
    if (slot->pair != EMPTY) return false;
    *slot = (merge_slot){(uint64_t)(uint32_t)left << 32 | (uint32_t)right, (uint32_t)b->n_merges++,
                         merged};
    add_to_digest(b, left);
    add_to_digest(b, right);
    add_to_digest(b, merged);
    return true;
}

void bpe_digest(bpe *b, unsigned char out[HASH_SHA256_BYTES]) {
    CHECK(b->digest, "the digest is asked for once, after the last merge");
    hash_sha256_finish(b->digest, out);
    b->digest = NULL;
}

static bool is_before(const struct bpe_candidate *a, const struct bpe_candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->place < b->place;
}

static void heap_push(bpe_scratch *s, struct bpe_candidate c) {
    size_t at = s->n_heap++;
    while (at > 0 && is_before(&c, &s->heap[(at - 1) / 2])) {
        s->heap[at] = s->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    s->heap[at] = c;
}

static struct bpe_candidate heap_pop(bpe_scratch *s) {
    struct bpe_candidate top = s->heap[0], last = s->heap[--s->n_heap];
    size_t at = 0;
    for (size_t child = 1; child < s->n_heap; child = 2 * at + 1) {
        if (child + 1 < s->n_heap && is_before(&s->heap[child + 1], &s->heap[child])) child++;
        if (!is_before(&s->heap[child], &last)) break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = last;
    return top;
}

static void push_pair(const bpe *b, bpe_scratch *s, int32_t place) {
    const struct bpe_symbol *left = &s->symbols[place];
    if (left->next < 0) return;
    const merge_slot *slot = slot_of(b, left->id, s->symbols[left->next].id);
    if (slot->pair != EMPTY)
        heap_push(s, (struct bpe_candidate){slot->rank, place, slot->merged});
}

int32_t *bpe_symbols(bpe_scratch *s, size_t max_symbols) {
    if (max_symbols <= s->max_symbols) return s->ids;
    size_t n = 64;
    while (n < max_symbols) n *= 2;
    bpe_scratch_deinit(s);
    s->symbols = malloc(n * sizeof *s->symbols);
    s->heap = malloc(2 * n * sizeof *s->heap);
    s->ids = malloc(n * sizeof *s->ids);
    if (!s->symbols || !s->heap || !s->ids)
        bpe_scratch_deinit(s);
    else
        s->max_symbols = n;
    return s->ids;
}

void bpe_merge(const bpe *b, bpe_scratch *s, size_t n_symbols, const int32_t **ids, size_t *n) {
    CHECK(n_symbols <= s->max_symbols && n_symbols < INT32_MAX / 2, "places in a word fit");
    int32_t end = (int32_t)n_symbols;
    for (int32_t i = 0; i < end; i++)
        s->symbols[i] = (struct bpe_symbol){s->ids[i], i - 1, i + 1 < end ? i + 1 : -1};
    s->n_heap = 0;
    for (int32_t i = 0; i < end; i++) push_pair(b, s, i);

    while (s->n_heap > 0) {
        struct bpe_candidate top = heap_pop(s);
        struct bpe_symbol *left = &s->symbols[top.place];
        if (left->id < 0 || left->next < 0) continue;
        struct bpe_symbol *right = &s->symbols[left->next];
        const merge_slot *slot = slot_of(b, left->id, right->id);
        if (slot->pair == EMPTY || slot->merged != top.merged) continue;
        left->id = top.merged;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) s->symbols[left->next].prev = top.place;
        if (left->prev >= 0) push_pair(b, s, left->prev);
        push_pair(b, s, top.place);
    }
    *n = 0;
    for (int32_t i = n_symbols ? 0 : -1; i >= 0; i = s->symbols[i].next)
        s->ids[(*n)++] = s->symbols[i].id;
    *ids = s->ids;
}

void bpe_scratch_deinit(bpe_scratch *s) {
    free(s->symbols);
    free(s->heap);
    free(s->ids);
    *s = (bpe_scratch){0};
}
