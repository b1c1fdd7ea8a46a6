/* Every way a call can fail because of the outside world, from one list.
 *
 *     status st = safetensors_open(&file, path, &e);
 *     if (st != STATUS_OK) return st;             // the text is already in e
 *
 * The same list gives the `error.code` of result lines (status_code) and the numbers on the wire, so
 * rows are only ever appended. Any thread. */
#ifndef BASE_STATUS_H
#define BASE_STATUS_H

#include <stdbool.h>

/*    name                number code                   text */
#define STATUS_LIST(X)                                                                             \
    X(OK,                  0, "ok",                    "success")                                  \
    X(BAD_ARGUMENT,        1, "bad_argument",          "an argument is out of its range")          \
    X(BAD_SHAPE,           2, "bad_shape",             "tensor shapes do not fit together")        \
    X(UNSUPPORTED,         3, "unsupported",           "valid, but not supported here")            \
    X(NO_MEMORY,           4, "no_memory",             "out of memory or over a memory limit")     \
    X(IO,                  5, "io_error",              "reading or writing failed")                \
    X(NOT_FOUND,           6, "not_found",             "no such thing")                            \
    X(BAD_FORMAT,          7, "bad_format",            "malformed data")                           \
    X(TOO_LARGE,           8, "too_large",             "over a size limit")                        \
    X(BUSY,                9, "busy",                  "a queue is full; try again later")         \
    X(TIMEOUT,            10, "timeout",               "no answer in time")                        \
    X(CANCELLED,          11, "cancelled",             "cancelled by the client")                  \
    X(DEADLINE_EXCEEDED,  12, "deadline_exceeded",     "not finished before its deadline")         \
    X(IMAGE_UNDECODABLE,  13, "image_undecodable",     "not an image this service can decode")     \
    X(IMAGE_TOO_LARGE,    14, "image_too_large",       "image over the size limit")                \
    X(IMAGE_UNREADABLE,   15, "image_unreadable",      "the image file cannot be read")            \
    X(PROMPT_TOO_LONG,    16, "prompt_too_long",       "prompt longer than the context")           \
    X(BAD_PROMPT,         17, "bad_prompt",            "prompt holds text reserved for the model") \
    X(BAD_MODEL,          18, "bad_model",             "checkpoint refused")                       \
    X(MODEL_MISMATCH,     19, "model_mismatch",        "a different model is served")              \
    X(BAD_MESSAGE,        20, "bad_message",           "malformed or oversized message")           \
    X(BAD_VERSION,        21, "bad_version",           "unknown protocol version")                 \
    X(UNAVAILABLE,        22, "unavailable",           "a needed service cannot be reached")       \
    X(QUARANTINED,        23, "quarantined",           "set aside after killing several nodes")    \
    X(CONFLICT,           24, "conflict",              "same id, different content")               \
    X(NODE_LOST,          25, "node_lost",             "the node that had the work is gone")       \
    X(DEVICE,             26, "device_error",          "the compute device failed")                \
    X(INTERRUPTED,        27, "interrupted",           "stopped by a signal")                      \
    X(INTERNAL,           28, "internal",              "a fault of this program")

typedef enum {
#define X(name, number, code, text) STATUS_##name = number,
    STATUS_LIST(X)
#undef X
    STATUS_COUNT
} status;

#define MUST_USE __attribute__((warn_unused_result))

/* Leaves the function with the status of a call that did not succeed, where there is nothing to give back. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        status try_status = (call);                                                                \
        if (try_status != STATUS_OK) return try_status;                                            \
    } while (0)

/* Says out loud that a status is not looked at, and why. */
#define IGNORE(call, why)                                                                          \
    do {                                                                                           \
        if ((call) != STATUS_OK) { /* why */                                                       \
        }                                                                                          \
    } while (0)

#ifdef __cplusplus
extern "C" {
#endif

/* Static lower-case code for any number, "unknown" for one this build has not heard of. */
const char *status_code(int number);

/* Static sentence for any number. */
const char *status_text(int number);

/* Number of a code, or -1. */
int status_from_code(const char *code);

/* Whether the machine was at fault (NO_MEMORY, IO, UNAVAILABLE, DEVICE): the same work may succeed on another. Any
 * other failure is the work's own, and the same everywhere. */
bool status_is_of_machine(status code);

#ifdef __cplusplus
}
#endif

#endif
