#include "base/check.h"

#include <stdlib.h>

#include "base/log.h"

void check_failed(const char *file, int line, const char *cond, const char *what) {
    log_error("check", "at=%s:%d cond=\"%s\" what=\"%s\"", file, line, cond, what);
    abort();
}
