/* The questions of the command line: every --prompt, then the lines of --prompts FILE.
 *
 *     prompt_list list;
 *     st = prompt_list_open(&list, o, "Describe the image.", &e);
 *     use(list.texts, list.n);
 *     prompt_list_close(&list);
 *
 * One thread. */
#ifndef CLI_PROMPTS_H
#define CLI_PROMPTS_H

#include "base/options.h"

typedef struct {
    const char **texts;
    size_t n;
    char *file; /* what --prompts holds */
} prompt_list;

/* Reads "prompt" and "prompts" of o; fallback when there are none. Empty lines of the file are left out.
 * Errors: IO, TOO_LARGE, NO_MEMORY. On failure list needs no close. */
MUST_USE status prompt_list_open(prompt_list *list, const options *o, const char *fallback, err *e);
void prompt_list_close(prompt_list *list);

#endif
