#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The log sink is one of the two pieces of global state the project allows (the other is the stop
 * flag in stop.c): every layer must be able to log, and none should carry a logger along. */
static _Atomic(int) current_level = LOG_OFF;
static _Atomic(const char *) current_role = "mipha";
static _Atomic(log_sink *) current_sink; /* NULL: stderr */

static const char *const level_names[] = {"off", "error", "warn", "info", "debug"};

void log_set_level(log_level level) { atomic_store(&current_level, (int)level); }
void log_set_role(const char *role) { atomic_store(&current_role, role); }
void log_set_sink(log_sink *sink) { atomic_store(&current_sink, sink); }

int log_level_from_name(const char *name, log_level *level) {
    for (int i = 0; i <= LOG_DEBUG; i++) {
        if (strcmp(name, level_names[i]) != 0) continue;
        *level = (log_level)i;
        return 0;
    }
    return -1;
}

void log_write(log_level level, const char *event, const char *format, ...) {
    if ((int)level > atomic_load(&current_level)) return;

    char line[1024];
    struct timespec now;
    struct tm utc;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &utc);
    size_t used = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &utc);
    int n = snprintf(line + used, sizeof line - used, ".%03ldZ %s %s[%ld] %s ",
                     now.tv_nsec / 1000000, level_names[level], atomic_load(&current_role),
                     (long)getpid(), event);
    if (n > 0) used += (size_t)n;
    if (used > sizeof line - 2) used = sizeof line - 2;

    va_list args;
    va_start(args, format);
    n = vsnprintf(line + used, sizeof line - used, format, args);
    va_end(args);
    if (n > 0) used += (size_t)n;
    if (used > sizeof line - 2) used = sizeof line - 2;
    for (size_t i = 0; i < used; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) line[i] = '?';
    line[used] = '\0';

    log_sink *sink = atomic_load(&current_sink);
    if (sink) {
        sink(level, line);
        return;
    }
    line[used++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, used);
    (void)written; /* a log line that cannot be written has nowhere to be reported */
}
