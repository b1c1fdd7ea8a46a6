/* Result lines: one JSON object for each question of an item, as the contract of the command line says.
 *
 *     buf lines;
 *     buf_init(&lines, RESULT_LINES_BYTES_MAX);
 *     st = result_lines_append(&lines, &what, &event, &e);     // all lines of the item
 *
 * Any thread. */
#ifndef CLI_RESULT_LINE_H
#define CLI_RESULT_LINE_H

#include <stdbool.h>

#include "client/client.h"

#define RESULT_LINES_BYTES_MAX (256u << 20)

/* What was asked, for the lines; the event says what came back. */
typedef struct {
    const char *id;    /* valid UTF-8 */
    const char *image; /* shown as it is; NULL: none, or several */
    const char *const *prompts;
    size_t n_prompts;
    bool exif;
    const char *const *images; /* n_images of them when they are several */
    size_t n_images;           /* 0, or 2 and more */
} result_subject;

/* event: a CLIENT_RESULT. Appends n_prompts lines, each ended by a newline. Errors: NO_MEMORY, TOO_LARGE. */
MUST_USE status result_lines_append(buf *lines, const result_subject *subject,
                                    const client_event *event, err *e);

/* An event for an item that failed before it was submitted. text must outlive it. */
client_event result_event_failed(status code, const char *text);

/* Whether any of the event's answers is an error. */
bool result_event_has_failed(const client_event *event);

#endif
