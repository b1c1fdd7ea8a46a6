/* Text of a model or of a stranger, made harmless for a terminal: control characters, C1 ones included, are
 * shown as \xNN, so that no answer can move the cursor or set a title. Newlines and tabs stay.
 *
 *     terminal_text_write(stdout, text, n_bytes, isatty(STDOUT_FILENO));
 *
 * Any thread. */
#ifndef CLI_TERMINAL_TEXT_H
#define CLI_TERMINAL_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/* As it is when escaped is false. */
void terminal_text_write(FILE *to, const char *text, size_t n_bytes, bool escaped);

#endif
