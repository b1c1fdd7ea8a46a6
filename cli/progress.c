/* The speed is that of the whole run so far, less the time in which there was nothing to work with. The time left is made
 * from it: simple, and steady when items come in bursts. */
#include "cli/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"

#define TERMINAL_US  (100 * CLOCK_MS_US)
#define ELSEWHERE_US (5 * CLOCK_SECOND_US)
#define BAR_MAX      30
#define WIDTH_USUAL  80

static int terminal_width(void) {
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return WIDTH_USUAL;
}

progress progress_begin(size_t n_total, bool is_quiet) {
    const char *term = getenv("TERM"), *no_colour = getenv("NO_COLOR");
    bool can_move = !term || strcmp(term, "dumb") != 0;
    progress p = {.n_total = n_total, .is_quiet = is_quiet, .start_us = clock_now_us()};
    p.is_terminal = can_move && isatty(STDERR_FILENO);
    p.has_colour = p.is_terminal && !(no_colour && *no_colour);
    p.next_us = p.start_us + (p.is_terminal ? 0 : ELSEWHERE_US);
    return p;
}

static void duration_text(char out[32], double seconds) {
    if (seconds > 359999) seconds = 359999;
    int s = (int)(seconds + 0.5);
    if (s >= 3600)
        (void)snprintf(out, 32, "%dh%02dm", s / 3600, s % 3600 / 60);
    else if (s >= 60)
        (void)snprintf(out, 32, "%dm%02ds", s / 60, s % 60);
    else
        (void)snprintf(out, 32, "%ds", s);
}

/* "120/600  20% 34.1/s  98 cached  2 failed  14s left" */
static void figures(char out[PROGRESS_LINE_BYTES], const progress *p, int64_t since_start_us) {
    double seconds = (double)since_start_us / 1e6, worked = seconds - (double)p->waited_us / 1e6;
    size_t n_now = p->n_done - p->n_before;
    double rate = worked > 0.05 ? (double)n_now / worked : 0;
    int n = snprintf(out, PROGRESS_LINE_BYTES, "%zu/%zu %3d%%", p->n_done, p->n_total,
                     p->n_total ? (int)(100.0 * (double)p->n_done / (double)p->n_total) : 100);
    size_t used = (size_t)n;
    if (!p->waits_for)
        used += (size_t)snprintf(out + used, PROGRESS_LINE_BYTES - used, rate < 10 ? "  %.1f/s" : "  %.0f/s", rate);
    if (p->n_cached)
        used += (size_t)snprintf(out + used, PROGRESS_LINE_BYTES - used, "  %zu cached", p->n_cached);
    if (p->n_failed)
        used += (size_t)snprintf(out + used, PROGRESS_LINE_BYTES - used, "  %zu failed", p->n_failed);
    char text[32];
    if (p->n_done < p->n_total && p->waits_for) {
        (void)snprintf(out + used, PROGRESS_LINE_BYTES - used, "  waiting for %.60s", p->waits_for);
    } else if (p->n_done < p->n_total && rate > 0) {
        duration_text(text, (double)(p->n_total - p->n_done) / rate);
        (void)snprintf(out + used, PROGRESS_LINE_BYTES - used, "  %s left", text);
    } else if (p->n_done >= p->n_total) {
        duration_text(text, seconds);
        (void)snprintf(out + used, PROGRESS_LINE_BYTES - used, "  in %s", text);
    }
}

void progress_line(char out[PROGRESS_LINE_BYTES], const progress *p, int64_t since_start_us, int width) {
    char text[PROGRESS_LINE_BYTES];
    figures(text, p, since_start_us);
    int n_text = (int)strlen(text);
    int n_bar = width - n_text - 3; /* brackets and a space */
    if (n_bar > BAR_MAX) n_bar = BAR_MAX;
    if (n_bar < 5) { /* no room for a bar: what fits of the figures */
        (void)snprintf(out, PROGRESS_LINE_BYTES, "%.*s", width > 0 ? width : 0, text);
        return;
    }
    int n_full = p->n_total ? (int)((double)n_bar * (double)p->n_done / (double)p->n_total) : n_bar;
    char bar[BAR_MAX + 1];
    for (int i = 0; i < n_bar; i++) bar[i] = i < n_full ? '#' : '.';
    bar[n_bar] = '\0';
    (void)snprintf(out, PROGRESS_LINE_BYTES, "[%s] %.400s", bar, text);
}

static void draw(progress *p) {
    char line[PROGRESS_LINE_BYTES];
    int64_t since_us = clock_now_us() - p->start_us;
    if (!p->is_terminal) {
        figures(line, p, since_us);
        (void)fprintf(stderr, "%s\n", line);
        return;
    }
    /* One column stays free: a line of full width would wrap on some terminals. */
    progress_line(line, p, since_us, terminal_width() - 1);
    bool in_red = p->has_colour && p->n_failed > 0;
    (void)fprintf(stderr, "\r%s%s%s\x1b[K", in_red ? "\x1b[31m" : "", line, in_red ? "\x1b[0m" : "");
    p->is_drawn = true;
}

void progress_show(progress *p) {
    int64_t now_us = clock_now_us();
    if (p->is_quiet || now_us < p->next_us) return;
    p->next_us = now_us + (p->is_terminal ? TERMINAL_US : ELSEWHERE_US);
    draw(p);
}

void progress_wait(progress *p, const char *what) {
    if (!p->waits_for) p->wait_start_us = clock_now_us();
    p->waits_for = what;
    p->next_us = 0;
}

void progress_go_on(progress *p) {
    if (!p->waits_for) return;
    p->waited_us += clock_now_us() - p->wait_start_us;
    p->waits_for = NULL;
    p->next_us = 0;
}

void progress_say(progress *p, const char *text) {
    char line[PROGRESS_LINE_BYTES];
    (void)snprintf(line, sizeof line, "%s", text);
    for (unsigned char *c = (unsigned char *)line; *c; c++)
        if (*c < 0x20 || *c == 0x7f) *c = '?';
    (void)fprintf(stderr, "%s%s\n", p->is_drawn ? "\r\x1b[K" : "", line);
    p->is_drawn = false;
    p->next_us = 0;
}

void progress_end(progress *p) {
    if (!p->is_quiet) {
        draw(p);
        if (p->is_terminal) (void)fputc('\n', stderr);
    }
    p->is_drawn = false;
}
