/* Private to the image decoder: the children's side and what travels between the two.
 *
 * A slot is one worker: a region of shared memory, a packet socket for requests and answers (caller
 * and worker), and a packet socket for control (caller and supervisor). Control carries one byte
 * "kill your worker" one way and image_death the other way; its end of file means "go away". A worker has
 * besides a socket of its own to the supervisor, and says there once that it is ready. */
#ifndef VISION_NODE_IMAGE_WORKER_H
#define VISION_NODE_IMAGE_WORKER_H

#include <stdatomic.h>
#include <sys/types.h>

#include "vision_node/image_decoder.h"

#define IMAGE_WORKER_KILL      'K'
#define IMAGE_WORKER_READY_SEQ UINT64_C(0)  /* the answer a worker gives unasked when it starts */

/* Start of the shared region. A worker that an image took over can write anything here: it can make its own
 * image wait for its whole time, and nothing else. */
typedef struct {
    _Atomic uint64_t taken_seq; /* request the worker took last, to tell an old death from a new one */
} image_shared;

typedef struct {
    uint64_t seq;
    uint64_t encoded_bytes;
    bool apply_exif;
    model_preprocess_config config;
} image_request;

typedef struct {
    uint64_t seq;
    int32_t code; /* status */
    image_info info;
    char text[ERR_TEXT_BYTES];
} image_answer;

typedef enum {
    IMAGE_DEATH_OWN,     /* of itself, and another worker is started */
    IMAGE_DEATH_ORDERED, /* the answer to a "kill": nobody but the caller touches the region now */
    IMAGE_DEATH_LAST     /* before it was ready, or none could be started: the slot has no worker any more */
} image_death_kind;

typedef struct {
    image_death_kind kind;
    uint64_t seq; /* what the worker says it had taken last */
    int wait_status;
} image_death;

typedef struct {
    int work_fd, control_fd; /* the children's ends */
    image_shared *shared;    /* then the file at input, then the pixels at output */
    unsigned char *input;
    unsigned char *output;
    size_t region_bytes;     /* the whole mapping, from shared */
} image_worker_slot;

/* The supervisor's whole life; called in the child right after fork by the process caller. */
_Noreturn void image_supervisor_main(image_worker_slot *slots, int n_slots,
                                     const image_decoder_limits *limits, pid_t caller);

#endif
