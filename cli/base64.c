#include "cli/base64.h"

#include <stdint.h>

static int digit_value(unsigned char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

status base64_decode(buf *out, const char *text, size_t n_chars) {
    if (n_chars % 4 != 0) return STATUS_BAD_FORMAT;
    size_t n_padding = 0;
    while (n_padding < 2 && n_padding < n_chars && text[n_chars - 1 - n_padding] == '=') n_padding++;
    size_t n_bytes = n_chars / 4 * 3 - n_padding;
    if (n_bytes > out->max_bytes - out->len_bytes) return STATUS_TOO_LARGE;
    unsigned char *to = buf_reserve(out, n_bytes);
    if (!to) return STATUS_NO_MEMORY;

    uint32_t bits = 0;
    int n_bits = 0;
    size_t written = 0;
    for (size_t i = 0; i < n_chars - n_padding; i++) {
        int v = digit_value((unsigned char)text[i]);
        if (v < 0) return STATUS_BAD_FORMAT;
        bits = (bits << 6 | (uint32_t)v) & 0xffffff;
        n_bits += 6;
        if (n_bits < 8) continue;
        n_bits -= 8;
        to[written++] = (unsigned char)(bits >> n_bits);
    }
    if (bits & ((1u << n_bits) - 1)) return STATUS_BAD_FORMAT; /* two texts for the same bytes */
    out->len_bytes += written;
    return STATUS_OK;
}
