/* Growable bytes with a maximum given at creation.
 *
 *     buf b;
 *     buf_init(&b, 1 << 20);
 *     if (buf_append(&b, data, n) != STATUS_OK) ...   // TOO_LARGE or NO_MEMORY, b unchanged
 *     use(b.data, b.len_bytes);
 *     buf_deinit(&b);
 *
 * data always has one zero byte after len_bytes once anything was appended, so text can be printed.
 * One thread. */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stddef.h>

#include "base/status.h"

typedef struct {
    unsigned char *data;
    size_t len_bytes;
    size_t cap_bytes;
    size_t max_bytes;
} buf;

void buf_init(buf *b, size_t max_bytes);
void buf_deinit(buf *b); /* zeroed bufs and repeated calls are fine */
void buf_clear(buf *b);  /* keeps the memory */

MUST_USE status buf_append(buf *b, const void *data, size_t len_bytes);
MUST_USE status buf_append_text(buf *b, const char *text);

/* Makes room for len_bytes more and returns where they go; the caller fills them and adds to
 * len_bytes. NULL when over the maximum or out of memory. */
unsigned char *buf_reserve(buf *b, size_t len_bytes);

#endif
