/* Strict base64 (RFC 4648, section 4): full groups, padding where it belongs, no other characters, no
 * bits left over.
 *
 *     st = base64_decode(&out, text, n);      // appended to out; BAD_FORMAT, TOO_LARGE, NO_MEMORY
 *
 * Any thread. */
#ifndef CLI_BASE64_H
#define CLI_BASE64_H

#include "base/buf.h"

MUST_USE status base64_decode(buf *out, const char *text, size_t n_chars);

#endif
