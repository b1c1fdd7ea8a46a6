/* The service a command works with: a running cluster when --broker names one, else broker and nodes in
 * this process. The same client talks to both.
 *
 *     static const option_row rows[] = {SERVICE_ROWS, SAMPLING_ROWS, {0}};
 *     service s;
 *     st = service_open(&s, o, window_items, &e);     // before any thread exists
 *     client_submit(s.client, ...);
 *     service_close(&s);
 *
 * One thread. */
#ifndef CLI_SERVICE_H
#define CLI_SERVICE_H

#include "base/options.h"
#include "cli/embedded.h"
#include "client/client.h"
#include "model/model_options.h"
#include "vision_node/image_decoder.h"

#define MODEL_ROW                                                                                  \
    {"model", 'm', OPTION_STRING, "DIR", NULL, 0, 0,                                               \
     "checkpoint folder; without it, the demonstration model that ships with mipha"}

#define COMPUTE_ROWS                                                                               \
    {"device", 0, OPTION_STRING, "NAME", "cpu", 0, 0, "where to compute: cpu, cuda, cuda:N"},      \
        {"threads", 0, OPTION_INT, "N", NULL, 1, 256, "compute threads; without it, one per core"}

#define SERVICE_ROWS                                                                               \
    MODEL_ROW, MODEL_LOAD_ROWS,                                                                    \
        {"broker", 'b', OPTION_STRING, "ENDPOINT", NULL, 0, 0,                                     \
         "use a running cluster, as in tcp://host:7000, with the model and the limits it was started with; without it, " \
         "everything runs in this process"},                                                       \
        {"cache", 0, OPTION_STRING, "URL", NULL, 0, 0,                                             \
         "keep image features in Redis, as in redis://host:6379; without it, in memory"},          \
        COMPUTE_ROWS, FAST_ROW,                                                                                    \
        {"kv-bytes", 0, OPTION_BYTES, "BYTES", NULL, 1 << 20, 1099511627776.0,                     \
         "memory for keys and values of running questions"},                                       \
        IMAGE_DECODER_ROWS,                                                                        \
        {"log-level", 0, OPTION_STRING, "LEVEL", "error", 0, 0,                                    \
         "what to log on stderr: off, error, warn, info or debug"}

#define SAMPLING_ROWS                                                                              \
    {"max-new-tokens", 'n', OPTION_INT, "N", "128", 1, MESSAGE_NEW_TOKENS_MAX,                     \
     "longest answer, in tokens"},                                                                 \
        {"temperature", 't', OPTION_REAL, "T", "0", 0, 100,                                        \
         "randomness; 0 always takes the most likely token"},                                      \
        {"top-p", 0, OPTION_REAL, "P", "1", 0, 1, "sample from the most likely mass P; 1 is off"}, \
        {"top-k", 0, OPTION_INT, "K", "0", 0, 1000000,                                             \
         "sample from the K most likely tokens; 0 is off"},                                        \
        {"min-p", 0, OPTION_REAL, "P", "0", 0, 1,                                                  \
         "leave out tokens below P times the most likely one; 0 is off"},                          \
        {"seed", 's', OPTION_INT, "S", "0", 0, 4294967295.0, "of the random choices"},       \
        {"logprobs", 0, OPTION_INT, "K", NULL, 0, MESSAGE_LOGPROBS_MAX,                            \
         "report each token's log-probability and its K best alternatives"},                       \
        {"stop", 0, OPTION_LIST, "TEXT", NULL, 0, 0,                                               \
         "end an answer before this text; up to 4 times"}

#define EXIF_ROW                                                                                   \
    {"exif", 0, OPTION_FLAG, NULL, "1", 0, 0,                                                      \
     "turn photos upright as their EXIF orientation says; other engines mostly take them as they are stored"}

#define TEMPLATE_ROW                                                                               \
    {"template", 0, OPTION_STRING, "NAME", NULL, 0, 0,                                             \
     "form of the prompt: phi, gemma, phi3, llava-1.5, llava-hf or plain; without it, the checkpoint's own"}

#define USE_ADAPTER_ROW                                                                            \
    {"use-adapter", 0, OPTION_STRING, "NAME", NULL, 0, 0,                                          \
     "ask the adapter that is served under this name"}

typedef struct {
    embedded *em;      /* NULL with --broker */
    void *zmq_context; /* ours only with --broker */
    client *client;
} service;

/* What can be said of SERVICE_ROWS before anything is opened: --log-level is read, and what only a service in this process
 * would obey is refused beside --broker, where it was typed. Errors: BAD_ARGUMENT. */
MUST_USE status service_options_check(const options *o, err *e);

/* Errors: BAD_ARGUMENT (usage, service_options_check), INTERRUPTED, and whatever keeps model or broker from opening: the caller
 * exits with exit_code_not_started. On failure s needs no close. */
MUST_USE status service_open(service *s, const options *o, const client_settings *settings, err *e);
void service_close(service *s);

/* Reads SAMPLING_ROWS; the stop strings are views of o. Errors: BAD_ARGUMENT. */
MUST_USE status sampling_from_options(request_sampling *s, const options *o, err *e);

/* NULL without TEMPLATE_ROW's option. Errors: BAD_ARGUMENT. */
MUST_USE status template_from_options(const char **name, const options *o, err *e);

/* NULL without USE_ADAPTER_ROW's option. Errors: BAD_ARGUMENT (too long a name). */
MUST_USE status adapter_from_options(const char **name, const options *o, err *e);

/* Reads --log-level. Errors: BAD_ARGUMENT. */
MUST_USE status log_level_from_options(const options *o, err *e);

#endif
