/* Image files of the command line, whole: one, or the several of one item.
 *
 *     buf image;
 *     st = one_image_read(&image, path, &e);     // IMAGE_UNREADABLE, IMAGE_TOO_LARGE, ...
 *     buf_deinit(&image);
 *
 *     several_images all;
 *     st = several_images_read(&all, paths, n, &e);
 *     client_item item = {.images = all.data, .n_images = all.n};
 *     several_images_deinit(&all);
 *
 * Any thread. */
#ifndef CLI_ONE_IMAGE_H
#define CLI_ONE_IMAGE_H

#include "base/buf.h"
#include "base/bytes.h"
#include "base/err.h"
#include "proto/message.h"

/* On failure image is empty and needs no deinit. Errors: IMAGE_UNREADABLE, IMAGE_TOO_LARGE,
 * IMAGE_UNDECODABLE (empty), NO_MEMORY. */
MUST_USE status one_image_read(buf *image, const char *path, err *e);

/* The same into a buf that is there already (appended); the limit is for all that is in it. */
MUST_USE status one_image_read_into(buf *image, const char *path, err *e);

typedef struct {
    buf files[MESSAGE_IMAGES_MAX];
    bytes data[MESSAGE_IMAGES_MAX]; /* views of files */
    size_t n;
} several_images;

/* On failure all is empty and needs no deinit. Errors: as one_image_read, BAD_ARGUMENT (over MESSAGE_IMAGES_MAX). */
MUST_USE status several_images_read(several_images *all, const char *const *paths, size_t n, err *e);
void several_images_deinit(several_images *all); /* zeroed and repeated calls are fine */

#endif
