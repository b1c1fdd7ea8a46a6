/* Several image files as one payload, for an item with more than one image.
 *
 *     unsigned char head[BUNDLE_HEADER_BYTES_MAX];
 *     size_t n_head = bundle_header(head, files, n);           // the files follow, one after another
 *
 *     bundle b;
 *     st = bundle_decode(&b, payload, &e);                     // BAD_MESSAGE says what is wrong
 *     use(b.files[1]);
 *
 *   offset size  field
 *        0    4  magic  "MIPB"
 *        4    2  version 1, little endian like all of it; a reader refuses any other
 *        6    2  count  2 .. MESSAGE_IMAGES_MAX
 *        8    4  size of the first file in bytes, 1 or more; then that of each other one
 *  8 + 4 n    -  the files in that order; nothing follows
 *
 * There is one bundle of a list of files, so equal lists have equal hashes. A single image travels as it is:
 * a bundle is told by MESSAGE_FLAG_BUNDLE and never by what the bytes look like. Any thread. */
#ifndef PROTO_BUNDLE_H
#define PROTO_BUNDLE_H

#include "base/bytes.h"
#include "proto/message.h"

#define BUNDLE_VERSION          1
#define BUNDLE_HEADER_BYTES_MAX (8 + 4 * MESSAGE_IMAGES_MAX)

/* A view. */
typedef struct {
    bytes files[MESSAGE_IMAGES_MAX];
    size_t n;
} bundle;

/* What stands before the files; returns its size. n is 2 .. MESSAGE_IMAGES_MAX, no file is empty, and all of
 * them together have at most MESSAGE_IMAGE_BYTES_MAX bytes: the caller's promise. */
size_t bundle_header(unsigned char out[BUNDLE_HEADER_BYTES_MAX], const bytes *files, size_t n);

/* b's files point into payload. */
MUST_USE status bundle_decode(bundle *b, bytes payload, err *e);

#endif
