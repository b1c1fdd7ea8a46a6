/* Where the checkpoint is when nobody says: the demonstration model that ships with the program.
 *
 *     char dir[MODEL_PLACE_BYTES];
 *     st = model_place(dir, options_string(o, "model"), &e);
 *
 * Any thread. */
#ifndef CLI_MODEL_PLACE_H
#define CLI_MODEL_PLACE_H

#include "base/err.h"

#define MODEL_PLACE_BYTES 4096

/* named, when not NULL, else the first folder that exists of: ../share/mipha/models/mipha-demo beside the
 * program, then models/mipha-demo of the source tree it was built from. Errors: NOT_FOUND naming what was
 * tried. */
MUST_USE status model_place(char dir[MODEL_PLACE_BYTES], const char *named, err *e);

/* The folder the running program lies in, without a slash at the end; "." when it cannot be told. */
void program_place(char dir[MODEL_PLACE_BYTES]);

#endif
