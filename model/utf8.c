/* The second byte decides: after E0, ED, F0 and F4 its range is narrower than 80..BF, which excludes
 * overlong forms, surrogates and everything above U+10FFFF. A sequence is broken at the first byte that
 * cannot continue it; what came before that byte is the maximal subpart. */
#include "model/utf8.h"

#include "base/check.h"

utf8_kind utf8_next(const unsigned char *data, size_t len_bytes, uint32_t *code_point,
                    size_t *n_bytes) {
    CHECK(len_bytes > 0, "there is a byte to look at");
    unsigned char first = data[0], low = 0x80, high = 0xBF;
    size_t need = 0;
    uint32_t value = 0;
    *n_bytes = 1;
    if (first < 0x80) {
        *code_point = first;
        return UTF8_CHARACTER;
    }
    if (first >= 0xC2 && first <= 0xDF) {
        need = 2;
        value = first & 0x1Fu;
    } else if (first >= 0xE0 && first <= 0xEF) {
        need = 3;
        value = first & 0x0Fu;
        if (first == 0xE0) low = 0xA0;
        if (first == 0xED) high = 0x9F;
    } else if (first >= 0xF0 && first <= 0xF4) {
        need = 4;
        value = first & 0x07u;
        if (first == 0xF0) low = 0x90;
        if (first == 0xF4) high = 0x8F;
    } else {
        return UTF8_BROKEN;
    }
    for (size_t i = 1; i < need; i++) {
        *n_bytes = i;
        if (i == len_bytes) return UTF8_CUT_OFF;
        if (data[i] < low || data[i] > high) return UTF8_BROKEN;
        value = value << 6 | (data[i] & 0x3Fu);
        low = 0x80;
        high = 0xBF;
    }
    *n_bytes = need;
    *code_point = value;
    return UTF8_CHARACTER;
}

size_t utf8_valid_bytes(const unsigned char *data, size_t len_bytes) {
    size_t at = 0;
    while (at < len_bytes) {
        uint32_t code_point;
        size_t n;
        if (utf8_next(data + at, len_bytes - at, &code_point, &n) != UTF8_CHARACTER) break;
        at += n;
    }
    return at;
}

size_t utf8_put(unsigned char out[4], uint32_t code_point) {
    if (code_point < 0x80) {
        out[0] = (unsigned char)code_point;
        return 1;
    }
    size_t n = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    static const unsigned char LEAD[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = n - 1; i > 0; i--) {
        out[i] = (unsigned char)(0x80 | (code_point & 0x3F));
        code_point >>= 6;
    }
    out[0] = (unsigned char)(LEAD[n] | code_point);
    return n;
}
