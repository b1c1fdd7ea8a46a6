/* Private to the image decoder: what a worker gives up before it sees a byte from outside. */
#ifndef VISION_NODE_IMAGE_SANDBOX_H
#define VISION_NODE_IMAGE_SANDBOX_H

#include <stdbool.h>
#include <stdint.h>

/* False in builds with a sanitizer. */
bool image_sandbox_is_possible(void);

/* Closes every descriptor except the given ones (sorted in place) and points 0, 1 and 2 at
 * /dev/null; with keep_stderr 2 stays. False when that fails. */
bool image_sandbox_close_files(int *keep, int n_keep, bool keep_stderr);

/* Address space: what is mapped now plus extra_bytes. Processor time: cpu_s over the whole life of
 * the process. No core files, no new files. Then a filter that ends the process with SIGSYS at any
 * system call but: send and receive on open sockets, write to 2, memory without execution, futex,
 * clock, signals to itself, exit. False when something is refused, with errno. */
bool image_sandbox_enter(uint64_t extra_bytes, int cpu_s);

#endif
