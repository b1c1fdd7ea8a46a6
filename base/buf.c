#include "base/buf.h"

#include <stdlib.h>
#include <string.h>

void buf_init(buf *b, size_t max_bytes) { *b = (buf){.max_bytes = max_bytes}; }

void buf_deinit(buf *b) {
    free(b->data);
    *b = (buf){0};
}

void buf_clear(buf *b) {
    b->len_bytes = 0;
    if (b->data) b->data[0] = 0;
}

unsigned char *buf_reserve(buf *b, size_t len_bytes) {
    if (len_bytes > b->max_bytes || b->len_bytes > b->max_bytes - len_bytes) return NULL;
    size_t need = b->len_bytes + len_bytes + 1;
    if (need > b->cap_bytes) {
        size_t cap = b->cap_bytes ? b->cap_bytes : 256;
        while (cap < need) cap *= 2;
        unsigned char *grown = realloc(b->data, cap);
        if (!grown) return NULL;
        b->data = grown;
        b->cap_bytes = cap;
    }
    return b->data + b->len_bytes;
}

status buf_append(buf *b, const void *data, size_t len_bytes) {
    if (len_bytes > b->max_bytes || b->len_bytes > b->max_bytes - len_bytes)
        return STATUS_TOO_LARGE;
    unsigned char *to = buf_reserve(b, len_bytes);
    if (!to) return STATUS_NO_MEMORY;
    if (len_bytes) memcpy(to, data, len_bytes);
    b->len_bytes += len_bytes;
    b->data[b->len_bytes] = 0;
    return STATUS_OK;
}

status buf_append_text(buf *b, const char *text) { return buf_append(b, text, strlen(text)); }
