#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Error texts quote file names and bytes from outside; a terminal must not obey them. */
static void make_printable(char *text) {
    for (unsigned char *p = (unsigned char *)text; *p; p++)
        if (*p < 0x20 || *p == 0x7f) *p = '?';
}

status fail(err *e, status code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    e->code = code;
    if (vsnprintf(e->text, sizeof e->text, format, args) < 0) e->text[0] = '\0';
    va_end(args);
    make_printable(e->text);
    return code;
}

status fail_errno(err *e, status code, const char *format, ...) {
    int saved_errno = errno;
    va_list args;
    va_start(args, format);
    e->code = code;
    int n = vsnprintf(e->text, sizeof e->text, format, args);
    va_end(args);
    if (n < 0) n = 0;
    size_t used = (size_t)n < sizeof e->text ? (size_t)n : sizeof e->text - 1;
    char reason[128];
    if (strerror_r(saved_errno, reason, sizeof reason) != 0)
        (void)snprintf(reason, sizeof reason, "error %d", saved_errno);
    (void)snprintf(e->text + used, sizeof e->text - used, ": %s", reason);
    make_printable(e->text);
    errno = saved_errno;
    return code;
}
