/* One image file of the command line, whole.
 *
 *     buf image;
 *     st = one_image_read(&image, path, &e);     // IMAGE_UNREADABLE, IMAGE_TOO_LARGE, ...
 *     buf_deinit(&image);
 *
 * Any thread. */
#ifndef CLI_ONE_IMAGE_H
#define CLI_ONE_IMAGE_H

#include "base/buf.h"
#include "base/err.h"

/* On failure image is empty and needs no deinit. Errors: IMAGE_UNREADABLE, IMAGE_TOO_LARGE,
 * IMAGE_UNDECODABLE (empty), NO_MEMORY. */
MUST_USE status one_image_read(buf *image, const char *path, err *e);

/* The same into a buf that is there already (appended). */
MUST_USE status one_image_read_into(buf *image, const char *path, err *e);

#endif
