/* SIGTERM and SIGINT as a flag and a descriptor that becomes readable.
 *
 *     st = stop_open(&e);                        // once, before threads start
 *     poll on stop_fd();  if (stop_requested()) drain();
 *
 * The descriptor stays readable, so any number of poll loops can watch it. Any thread. */
#ifndef BASE_STOP_H
#define BASE_STOP_H

#include <stdbool.h>

#include "base/err.h"

MUST_USE status stop_open(err *e); /* installs the handlers; also ignores SIGPIPE */
int stop_fd(void);                 /* -1 before stop_open */
bool stop_requested(void);
MUST_USE status stop_check(err *e); /* INTERRUPTED once it is requested: for long loops */
int stop_signal(void);       /* the first signal that came, 0 when none */
void stop_request(int signo); /* as if the signal had come */

#endif
