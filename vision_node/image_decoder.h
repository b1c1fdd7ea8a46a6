/* Decoding and preprocessing in processes of their own: a bomb costs ten seconds of one of them, a
 * crash or a takeover of a decoder library ends one of them, and the node goes on.
 *
 *     image_decoder_limits limits = {0};                          // all defaults
 *     st = image_decoder_open(&d, 2, &limits, &e);                // early in main
 *     st = image_decoder_run(d, pixels, &info, encoded, false, &config, &e);   // from any thread
 *     image_decoder_close(&d);
 *
 * Processes: the caller -> one supervisor -> n workers. The supervisor forks workers and forks them
 * again when they die; it never sees an image. A worker has no files, no network, a system call
 * filter and limits on memory and processor time; it shares one region of memory with the caller.
 * All of them die with the caller, however it dies. They ignore SIGINT, SIGTERM and SIGHUP, so that a
 * signal to the whole process group lets the caller drain first.
 *
 * Built with a sanitizer, or with without_sandbox set, the filter and the limits on memory and
 * processor time are left out: sanitizers and valgrind need more calls and more memory than a
 * decoder. Everything else stays. */
#ifndef VISION_NODE_IMAGE_DECODER_H
#define VISION_NODE_IMAGE_DECODER_H

#include "model/model_config.h"
#include "vision_node/image_decode.h"

#define IMAGE_DECODER_WORKERS_MAX 64
#define IMAGE_DECODER_SIZE_MAX    1024  /* pixels a side that there is room for by default */
#define IMAGE_DECODER_WALL_MS     10000 /* the longest one image may take by default */

typedef struct {
    image_limits image;
    int size_max;         /* largest config.size; 0: IMAGE_DECODER_SIZE_MAX */
    int wall_ms;          /* for one image; 0: IMAGE_DECODER_WALL_MS */
    bool without_sandbox; /* for valgrind only */
    void (*before_decode)(bytes encoded); /* tests misbehave here, in the worker; NULL otherwise */
} image_decoder_limits;

typedef struct image_decoder image_decoder;

/* One for every core but one, which the node itself needs: at least 1, at most 16. */
int image_decoder_default_workers(void);

/* Options of every program that opens a decoder. */
#define IMAGE_DECODER_ROWS                                                                         \
    {"max-pixels", 0, OPTION_INT, "N", "64000000", 1, 1e9,                                         \
     "largest image, in pixels; larger ones are refused before they are decoded"},                 \
        {"decode-ms", 0, OPTION_INT, "MS", "10000", 1, 600000,                                     \
         "longest time one image may take to decode"}

/* Call it early in main: while no other thread runs (it forks), before keys and weights are loaded
 * (the children keep a copy of what the process held), and from a thread that stays until the end
 * (the children die with the thread that made them). Returns when every worker has said it is ready.
 * Memory: per worker, address space for the largest file and its pixels; pages are taken when used.
 * Errors: BAD_ARGUMENT, NO_MEMORY, UNAVAILABLE (a worker cannot be started, with the reason). */
MUST_USE status image_decoder_open(image_decoder **d, int n_workers,
                                   const image_decoder_limits *limits, err *e);

int image_decoder_n_workers(const image_decoder *d);

/* Kills the workers and waits for them; no image_decoder_run may be in progress. */
void image_decoder_close(image_decoder **d); /* NULL inside is fine */

/* image_decode, then image_rgb_orient when apply_exif, then image_preprocess, in a worker. Blocks
 * until a worker is free and has answered. Any thread.
 *
 * pixels [config->size, size, 3], written on success only. info may be NULL.
 * Errors: those of the three, and IMAGE_UNDECODABLE when the worker died (naming the signal) or took
 * longer than wall_ms, and UNAVAILABLE when the worker that had the image cannot be started any more, or none
 * can. After any other error the next image works.
 * Cost: two copies (file in, pixels out) and two messages, about 30 us, over decoding in place. */
MUST_USE status image_decoder_run(image_decoder *d, unsigned char *pixels, image_info *info, bytes encoded,
                                  bool apply_exif, const model_preprocess_config *config, err *e);

/* Workers that were replaced so far: after a crash, a timeout, or 60 s of processor time. */
uint64_t image_decoder_n_replaced(const image_decoder *d);

#endif
