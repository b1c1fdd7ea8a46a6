/* How far a run is, on stderr: one line that is rewritten on a terminal, a line every five seconds
 * elsewhere, nothing when quiet.
 *
 *     progress p = progress_begin(n_total, is_quiet);
 *     p.n_done++;
 *     progress_show(&p);             // as often as liked; draws when it is time to
 *     progress_say(&p, "broker tcp://...: silent");
 *     progress_wait(&p, "the broker");  // instead of a speed and a time left, until progress_go_on(&p)
 *     progress_end(&p);
 *
 * One thread. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    size_t n_total, n_done, n_failed, n_cached; /* items; the caller counts */
    size_t n_before;   /* done by an earlier run: they do not count for the speed */
    bool is_quiet, is_terminal, has_colour;
    bool is_drawn;     /* a line stands on the terminal without a newline */
    int64_t start_us, next_us;
    const char *waits_for; /* NULL: for nothing but the work */
    int64_t wait_start_us, waited_us; /* waited_us: before this time, not counted for the speed */
} progress;

progress progress_begin(size_t n_total, bool is_quiet);
void progress_show(progress *p);
void progress_end(progress *p);

/* From now on nothing can get done, and nobody knows for how long: the line names what is waited for. Both may be said
 * again. */
void progress_wait(progress *p, const char *what);
void progress_go_on(progress *p);

/* A line of its own that the bar does not overwrite; said even when quiet. Control characters in it are
 * replaced. */
void progress_say(progress *p, const char *text);

/* The line as drawn, at most width columns, no newline; for progress_show and its test. now_us counts from
 * the start. */
#define PROGRESS_LINE_BYTES 512
void progress_line(char out[PROGRESS_LINE_BYTES], const progress *p, int64_t since_start_us, int width);

#endif
