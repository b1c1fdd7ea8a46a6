/* What every node does besides its own computing: register, take work, report, drain.
 *
 *     worker *w;
 *     st = worker_open(&w, zmq_context, "tcp://broker:7001", &settings, &handler, &e);
 *     st = worker_run(w, &e);        // until worker_stop, SIGTERM, or the broker refuses us
 *     worker_close(&w);
 *
 * Two threads. The caller of worker_run talks to the broker and never computes, so heartbeats go out
 * whatever the engine does. A second thread, started inside, runs the handler and never waits for the
 * network. A lease's progress grows when the computing thread comes round, and inside a round with each
 * worker_made_progress, so a long step keeps its leases and a stuck engine stops renewing them while the
 * node's heartbeats still go out.
 *
 * Answers are kept until the broker has confirmed them, and offered again after a lost connection. A
 * broker that is silent for three heartbeats is left and dialled again. */
#ifndef WORKER_WORKER_H
#define WORKER_WORKER_H

#include "proto/request.h"
#include "proto/socket.h"
#include "worker/mailbox.h"
#include "worker/supervisor.h"

typedef struct worker worker;

/* One piece of work: an ENCODE or GENERATE message with its payload. The handler owns it after start
 * and gives it back with worker_answer. */
typedef struct job {
    mailbox_letter letter;
    wire_message wire;
    int64_t received_us;
    int breadcrumb; /* slot in the supervisor's page, -1 without one */
} job;

/* All of them are called on the computing thread only. */
typedef struct {
    void *self;
    /* Takes the job. The handler answers it, now or in a later step, exactly once. */
    void (*start)(void *self, job *j);
    /* The client gave up: answer soon or not at all with worker_forget; ignoring it is allowed. */
    void (*cancel)(void *self, const item_id *item, uint32_t attempt);
    /* Does a bounded piece of work; true when there is more to do at once. */
    bool (*step)(void *self);
    /* Figures for `mipha status`; names are static. Called on the computing thread between steps. */
    size_t (*metrics)(void *self, metric *out, size_t max);
} worker_handler;

#define WORKER_METRICS_MAX 32

typedef struct {
    const char *name; /* shown to people: host and pid, or "embedded" */
    uint32_t role;    /* MESSAGE_ROLE_* */
    uint32_t slots;   /* jobs at once */
    uint64_t slot_bytes; /* payload bytes at once */
    unsigned char model_fingerprint[HASH_SHA256_BYTES];
    unsigned char tower_fingerprint[HASH_SHA256_BYTES];
    int drain_ms;           /* how long running work may take after a stop, before it is released */
    bool watch_signals;     /* stop on SIGTERM and SIGINT (needs stop_open) */
    supervisor_child *supervised; /* NULL when the node runs without a supervisor (embedded) */
} worker_settings;

MUST_USE status worker_open(worker **w, void *zmq_context, const char *endpoint,
                            const worker_settings *settings, const worker_handler *handler, err *e);

/* Returns OK after a drain. MODEL_MISMATCH or another code when the broker refuses the node, with the
 * broker's words in e. */
MUST_USE status worker_run(worker *w, err *e);
void worker_stop(worker *w); /* any thread, any number of times */
void worker_close(worker **w);

/* Sends the answer to a job (ENCODED, GENERATED, FEATURES_MISSING, FAILED) and frees the job. m needs
 * kind, code, flags, text, body and report only; item and attempt are the job's. payload is taken over;
 * NULL: there is none. Computing thread. */
void worker_answer(worker *w, job **moved, message *m, wire_payload *payload);

/* A FAILED answer from a status and its text; the broker tries again elsewhere when it is status_is_of_machine.
 * DEVICE is no answer under a supervisor: a device that failed stays so for its process, which dies here instead of
 * failing whatever comes; the next one opens the device anew, and the broker hears what this one had in hand. */
void worker_answer_failed(worker *w, job **moved, status code, const char *text);

/* Frees a cancelled job without an answer. Computing thread. */
void worker_forget(worker *w, job **moved);

/* Inside a long step: says that the work is moving, so that leases are renewed. Computing thread. */
void worker_made_progress(worker *w);

/* The handler's step is called once more, soon: for threads that the handler gives work to. Any thread. */
void worker_wake(worker *w);

/* Frees a job that was never answered because the node ends. */
void job_free(job **j);

/* Sends a TOKENS message about a running job; not kept, not confirmed. Computing thread. */
void worker_stream(worker *w, const job *j, uint32_t question_idx, uint32_t token_idx, bytes body);

#endif
