/* One event, one line: `ts level role event key=value ...` on stderr, or wherever the sink sends it.
 *
 *     log_set_role("broker");
 *     log_info("node_joined", "node=%s role=%s", name, role);
 *
 * Silent until log_set_level is called: a library never prints on its own. Levels: error (someone
 * must act), warn (we coped), info (life cycle), debug. Never pixels, prompts or keys above debug.
 * Any thread; a line is written with one call, so lines never mix. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { LOG_OFF, LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG } log_level;

typedef void log_sink(log_level level, const char *line);

void log_set_level(log_level level);
void log_set_role(const char *role); /* static string; default "mipha" */
void log_set_sink(log_sink *sink);   /* NULL: stderr */

/* LOG_OFF for an unknown name is told apart by the return value: 0 found, -1 not. */
int log_level_from_name(const char *name, log_level *level);

void log_write(log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#ifdef __cplusplus
}
#endif

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)

#endif
