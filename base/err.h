/* What went wrong, in one line a person can act on: the thing, what was found, what was needed.
 *
 *     return fail(e, STATUS_BAD_FORMAT, "weights %s: %lld bytes, need %d", path, size, MIN_BYTES);
 *
 * Filled once, at the place that knows; callers pass it up unchanged. One owner, no thread rule. */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include "base/status.h"

#define ERR_TEXT_BYTES 512

typedef struct {
    status code;
    char text[ERR_TEXT_BYTES]; /* one line, no newline; control bytes are replaced by '?' */
} err;

#ifdef __cplusplus
extern "C" {
#endif

/* Fills e and returns code, so that a failing line reads as one. Text that does not fit is cut. */
status fail(err *e, status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* As fail, followed by ": " and the text of errno, which stays as it was at the call. */
status fail_errno(err *e, status code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#ifdef __cplusplus
}
#endif

#endif
