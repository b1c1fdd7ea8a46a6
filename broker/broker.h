/* The loop around the state machine: sockets and time in, actions out.
 *
 *     broker *b;
 *     st = broker_open(&b, zmq_context, &settings, &e);
 *     printf("clients: %s\n", broker_front(b));
 *     st = broker_run(b, &e);          // until broker_stop or SIGTERM, then drains
 *     broker_close(&b);
 *
 * One thread runs it; broker_stop may come from any. */
#ifndef BROKER_BROKER_H
#define BROKER_BROKER_H

#include "broker/item_machine.h"

typedef struct broker broker;

typedef struct {
    const char *front; /* where clients connect; "tcp://127.0.0.1:*" takes a free port */
    const char *back;  /* where nodes connect */
    machine_limits limits;
    int drain_ms;       /* how long accepted work may take after a stop */
    bool watch_signals; /* stop on SIGTERM and SIGINT (needs stop_open) */
} broker_settings;

broker_settings broker_settings_default(void);

/* Errors: BAD_ARGUMENT, IO (an endpoint cannot be bound), NO_MEMORY. */
MUST_USE status broker_open(broker **b, void *zmq_context, const broker_settings *settings, err *e);
const char *broker_front(const broker *b);
const char *broker_back(const broker *b);
MUST_USE status broker_run(broker *b, err *e);
void broker_stop(broker *b);
void broker_close(broker **b);

#endif
