#include "lm_node/image_memory.h"

#include <stdlib.h>

#include "base/check.h"

typedef struct slab {
    struct slab *next;
    void *places;
} slab;

struct image_memory {
    ops_ctx *ctx;
    size_t place_bytes, slab_bytes;
    int n_at_once, n_taken, n_places;
    slab *slabs;
    unsigned char **unused; /* [n_places - n_taken], the last given back on top; room for n_places */
};

static status open_slab(image_memory *m, err *e) {
    size_t n = (size_t)m->n_places + (size_t)m->n_at_once;
    unsigned char **unused = realloc(m->unused, n * sizeof *unused);
    if (!unused) return fail(e, STATUS_NO_MEMORY, "no memory for features of %d images", m->n_at_once);
    m->unused = unused;
    slab *more = calloc(1, sizeof *more);
    if (!more) return fail(e, STATUS_NO_MEMORY, "no memory for features of %d images", m->n_at_once);
    status st = ops_host_open(m->ctx, &more->places, m->slab_bytes, e);
    if (st != STATUS_OK) {
        free(more);
        return st;
    }
    more->next = m->slabs;
    m->slabs = more;
    int n_unused = m->n_places - m->n_taken;
    for (int i = 0; i < m->n_at_once; i++)
        m->unused[n_unused + m->n_at_once - 1 - i] = (unsigned char *)more->places + (size_t)i * m->place_bytes;
    m->n_places = (int)n;
    return STATUS_OK;
}

status image_memory_open(image_memory **out, ops_ctx *ctx, size_t image_bytes, int n_at_once, err *e) {
    CHECK(image_bytes > 0 && n_at_once > 0, "places have a size");
    *out = NULL;
    image_memory *m = calloc(1, sizeof *m);
    if (!m) return fail(e, STATUS_NO_MEMORY, "no memory for features of images");
    m->ctx = ctx;
    m->place_bytes = ops_cut_bytes(OPS_DTYPE_U8, (int64_t)image_bytes);
    m->slab_bytes = m->place_bytes * (size_t)n_at_once;
    m->n_at_once = n_at_once;
    status st = open_slab(m, e);
    if (st != STATUS_OK) image_memory_close(&m);
    *out = m;
    return st;
}

void image_memory_close(image_memory **out) {
    image_memory *m = *out;
    if (!m) return;
    CHECK(m->n_taken == 0, "every place was given back");
    for (slab *s = m->slabs, *next; s; s = next) {
        next = s->next;
        ops_host_close(m->ctx, &s->places, m->slab_bytes);
        free(s);
    }
    free(m->unused);
    free(m);
    *out = NULL;
}

unsigned char *image_memory_take(image_memory *m, err *e) {
    if (m->n_taken == m->n_places && open_slab(m, e) != STATUS_OK) return NULL;
    m->n_taken++;
    return m->unused[m->n_places - m->n_taken];
}

void image_memory_give(image_memory *m, unsigned char *place) {
    if (!place) return;
    CHECK(m->n_taken > 0, "a place was taken");
    m->unused[m->n_places - m->n_taken] = place;
    m->n_taken--;
}
