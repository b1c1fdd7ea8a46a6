/* Private to the image decoder: the children's side and what travels between the two.
 *
 * A slot is one worker: a region of shared memory, a packet socket for requests and answers (caller
 * and worker), and a packet socket for control (caller and supervisor). Control carries one byte
 * "kill your worker" one way and image_death the other way; its end of file means "go away". */
#ifndef VISION_NODE_IMAGE_WORKER_H
#define VISION_NODE_IMAGE_WORKER_H

#include <stdatomic.h>
#include <sys/types.h>

#include "vision_node/image_decoder.h"

#define IMAGE_WORKER_KILL      'K'
#define IMAGE_WORKER_READY_SEQ UINT64_C(0)  /* the answer a worker gives unasked when it starts */
#define IMAGE_WORKER_NEVER_SEQ UINT64_MAX   /* a death before it was ready: no other is started */

/* Start of the shared region. The worker can write anything here; the caller believes nothing in it
 * but uses the supervisor's copy of taken_seq to tell an old death from a new one. */
typedef struct {
    _Atomic uint64_t taken_seq; /* request the worker took last */
    _Atomic bool is_ready;      /* set by a worker once it is confined, cleared by the supervisor */
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

typedef struct {
    uint64_t seq; /* what the worker had taken last */
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
