/* Standard input, output and error, which a program may be started without.
 *
 *     st = standard_files_open(&e);      // first in main
 *
 * Where one of them is closed, the next file or socket that is opened would take its number, and be read or
 * written as it. So its number is taken by something that fails whoever uses it: EBADF, as if it were closed. */
#ifndef BASE_STANDARD_FILES_H
#define BASE_STANDARD_FILES_H

#include "base/err.h"

MUST_USE status standard_files_open(err *e); /* IO */

#endif
