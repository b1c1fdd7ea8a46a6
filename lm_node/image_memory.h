/* Where features of images wait on the host for the decoder: in memory of ops_host_open, so that they cross to the device
 * from where they stand.
 *
 *     st = image_memory_open(&m, ctx, image_bytes, 64, &e);
 *     unsigned char *place = image_memory_take(m, &e);    // NULL: no memory
 *     image_memory_give(m, place);
 *     image_memory_close(&m);
 *
 * Such memory is dear to open, so places are kept when they are given back, and more are opened only when all are taken. What
 * was once taken at a time is kept until close: what is asked at once (slots times images of a job) and what is resident.
 * One thread, that of the context, which outlives it. */
#ifndef LM_NODE_IMAGE_MEMORY_H
#define LM_NODE_IMAGE_MEMORY_H

#include "ops/ops.h"

typedef struct image_memory image_memory;

/* image_bytes: of a place, 1 or more. n_at_once: places opened together, the first of them here. Errors: NO_MEMORY, DEVICE. */
MUST_USE status image_memory_open(image_memory **m, ops_ctx *ctx, size_t image_bytes, int n_at_once, err *e);
void image_memory_close(image_memory **m); /* every place was given back (CHECK) */

unsigned char *image_memory_take(image_memory *m, err *e);
void image_memory_give(image_memory *m, unsigned char *place); /* which nothing on its way to the device reads; NULL is fine */

#endif
