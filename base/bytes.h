/* A read-only view of bytes, and bounded little-endian readers and writers.
 *
 *     bytes head = {data, n};
 *     uint32_t width;
 *     if (!bytes_get_u32(head, 12, &width)) return fail(...);   // too short
 *
 * Views never own. */
#ifndef BASE_BYTES_H
#define BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const unsigned char *data;
    size_t len_bytes;
} bytes;

static inline bool bytes_has(bytes b, size_t offset, size_t n) {
    return offset <= b.len_bytes && n <= b.len_bytes - offset;
}

static inline uint64_t bytes_load_le(const unsigned char *p, int n) {
    uint64_t v = 0;
    for (int i = 0; i < n; i++) v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static inline void bytes_store_le(unsigned char *p, uint64_t v, int n) {
    for (int i = 0; i < n; i++) p[i] = (unsigned char)(v >> (8 * i));
}

static inline bool bytes_get_u16(bytes b, size_t offset, uint16_t *v) {
    if (!bytes_has(b, offset, 2)) return false;
    *v = (uint16_t)bytes_load_le(b.data + offset, 2);
    return true;
}

static inline bool bytes_get_u32(bytes b, size_t offset, uint32_t *v) {
    if (!bytes_has(b, offset, 4)) return false;
    *v = (uint32_t)bytes_load_le(b.data + offset, 4);
    return true;
}

static inline bool bytes_get_u64(bytes b, size_t offset, uint64_t *v) {
    if (!bytes_has(b, offset, 8)) return false;
    *v = bytes_load_le(b.data + offset, 8);
    return true;
}

/* a * b without wrapping; false when it does not fit. Sizes are multiplied here and nowhere else. */
static inline bool size_mul(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

#endif
