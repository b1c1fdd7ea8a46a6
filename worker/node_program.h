/* What the main functions of the nodes share: options, supervisor, worker, exit status.
 *
 *     int main(int argc, char **argv) {
 *         static const node_program program = {"mipha-lm-node", &table, MESSAGE_ROLE_LM, node_open, ...};
 *         return node_program_run(&program, argc, argv);
 *     }
 *
 * The engine runs in a child process (supervisor.h). Exit status: 0 after a drain, 2 usage, 3 could not
 * start or was refused by the broker. */
#ifndef WORKER_NODE_PROGRAM_H
#define WORKER_NODE_PROGRAM_H

#include "base/options.h"
#include "worker/worker.h"

/* Rows every node has; `slots` is its own default. */
#define NODE_ROWS(slots) NODE_ROWS_SLOTS(slots, "items taken at once")
#define NODE_ROWS_SLOTS(slots, slots_help)                                                         \
    {"broker", 'b', OPTION_STRING, "ENDPOINT", "tcp://127.0.0.1:7001", 0, 0,                       \
     "the broker's back endpoint"},                                                                \
        {"model", 'm', OPTION_STRING, "DIR", NULL, 0, 0, "checkpoint folder; how it is opened is the same for every node of a cluster"},                     \
        {"cache", 0, OPTION_STRING, "URL", "redis://127.0.0.1:6379", 0, 0,                         \
         "where features are handed over; several servers apart by commas"},                       \
        {"device", 0, OPTION_STRING, "NAME", "cpu", 0, 0, "where to compute: cpu, cuda, cuda:N"},  \
        {"threads", 0, OPTION_INT, "N", "0", 0, 256, "compute threads; 0: one per core"},          \
        {"name", 0, OPTION_STRING, "NAME", NULL, 0, 0,                                             \
         "shown in status; without it, host and process number"},                                  \
        {"slots", 0, OPTION_INT, "N", slots, 1, 1024, slots_help},                                      \
        {"slot-bytes", 0, OPTION_BYTES, "BYTES", "256M", 1 << 20, 1e13,                            \
         "image or feature bytes taken at once"},                                                  \
        {"drain-ms", 0, OPTION_INT, "MS", "30000", 0, 86400000,                                    \
         "how long running work may take after a stop before it is handed back"},                  \
        {"log-level", 0, OPTION_STRING, "LEVEL", "info", 0, 0,                                     \
         "what to log on stderr: off, error, warn, info or debug"}

/* What a role fills in when it opens. */
typedef struct {
    void *service;
    worker_handler handler;
    uint32_t slots; /* where the row has no default */
    const unsigned char *model_fingerprint, *tower_fingerprint; /* HASH_SHA256_BYTES each */
} node_parts;

typedef struct {
    const char *name;
    const option_table *table;
    uint32_t role;
    status (*open)(node_parts *parts, const options *o, err *e);
    void (*attach)(void *service, worker *w);
    void (*close)(void *service); /* NULL is passed when open failed before it made one */
} node_program;

int node_program_run(const node_program *program, int argc, char **argv);

#endif
