#include "base/arena.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define ARENA_ALIGN_BYTES 64 /* one cache line, and the widest vector load */

status arena_init(arena *a, size_t max_bytes, err *e) {
    *a = (arena){0};
    void *base = mmap(NULL, max_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return fail_errno(e, STATUS_NO_MEMORY, "arena of %zu bytes", max_bytes);
    *a = (arena){.base = base, .max_bytes = max_bytes};
    return STATUS_OK;
}

void arena_deinit(arena *a) {
    if (a->base) (void)munmap(a->base, a->max_bytes);
    *a = (arena){0};
}

void arena_reset(arena *a) { a->used_bytes = 0; }

void *arena_alloc(arena *a, size_t n, size_t size_bytes) {
    if (size_bytes != 0 && n > SIZE_MAX / size_bytes) return NULL;
    size_t bytes = n * size_bytes;
    size_t start = (a->used_bytes + ARENA_ALIGN_BYTES - 1) & ~(size_t)(ARENA_ALIGN_BYTES - 1);
    if (start > a->max_bytes || bytes > a->max_bytes - start) return NULL;
    a->used_bytes = start + bytes;
    return memset(a->base + start, 0, bytes);
}

char *arena_strdup(arena *a, const char *text) {
    size_t bytes = strlen(text) + 1;
    char *copy = arena_alloc(a, bytes, 1);
    return copy ? memcpy(copy, text, bytes) : NULL;
}
