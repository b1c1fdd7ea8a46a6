/* UTF-8, one character at a time, strict: no overlong forms, no surrogates, nothing above U+10FFFF.
 *
 *     size_t n;
 *     utf8_kind kind = utf8_next(data, len_bytes, &code_point, &n);
 *     data += n;
 *
 * Any thread. Source: Unicode 15, table 3-7 and section 3.9 (maximal subparts). */
#ifndef MODEL_UTF8_H
#define MODEL_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UTF8_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

typedef enum {
    UTF8_CHARACTER, /* n bytes are one character */
    UTF8_BROKEN,    /* n bytes are one maximal subpart of an ill-formed sequence: one U+FFFD */
    UTF8_CUT_OFF    /* all n = len bytes are the beginning of a character that could still become whole */
} utf8_kind;

/* len_bytes >= 1; 1 <= *n_bytes <= 4. *code_point is set for UTF8_CHARACTER only. */
utf8_kind utf8_next(const unsigned char *data, size_t len_bytes, uint32_t *code_point,
                    size_t *n_bytes);

/* Place of the first byte that is not part of a whole character, or len_bytes when all are. */
size_t utf8_valid_bytes(const unsigned char *data, size_t len_bytes);

/* Writes one character, returns its bytes (1 to 4). code_point is a scalar value. */
size_t utf8_put(unsigned char out[4], uint32_t code_point);

#endif
