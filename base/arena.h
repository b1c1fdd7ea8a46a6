/* Bump memory with a hard cap: everything of one lifetime, freed in one step.
 *
 *     arena a;
 *     st = arena_init(&a, 1 << 20, &e);
 *     char *copy = arena_strdup(&a, text);     // NULL when the arena is full
 *     arena_reset(&a);                         // the request is answered
 *     arena_deinit(&a);
 *
 * One thread. Memory is zeroed and aligned to 64 bytes. */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stddef.h>

#include "base/err.h"

typedef struct {
    unsigned char *base;
    size_t used_bytes;
    size_t max_bytes;
} arena;

/* Takes max_bytes of address space at once; pages are only touched when used. Errors: NO_MEMORY. */
MUST_USE status arena_init(arena *a, size_t max_bytes, err *e);
void arena_deinit(arena *a); /* zeroed arenas and repeated calls are fine */
void arena_reset(arena *a);

/* n objects of size bytes from the arena, zeroed; NULL when full or when n * size overflows. */
void *arena_alloc(arena *a, size_t n, size_t size_bytes);
char *arena_strdup(arena *a, const char *text);

#define ARENA_NEW(a, type, n) ((type *)arena_alloc((a), (n), sizeof(type)))

#endif
