#include "worker/node_program.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/standard_files.h"
#include "base/stop.h"

#define EXIT_USAGE       2
#define EXIT_NOT_STARTED 3

typedef struct {
    const node_program *program;
    const options *o;
} child_arguments;

static worker_settings settings_from(const node_program *program, const options *o,
                                     const node_parts *parts, char name[MESSAGE_NAME_BYTES_MAX + 1]) {
    char host[40] = "host";
    (void)gethostname(host, sizeof host - 1);
    if (options_is_set(o, "name"))
        (void)snprintf(name, MESSAGE_NAME_BYTES_MAX + 1, "%s", options_string(o, "name"));
    else
        (void)snprintf(name, MESSAGE_NAME_BYTES_MAX + 1, "%s:%ld", host, (long)getpid());
    worker_settings s = {.name = name,
                         .role = program->role,
                         .slots = options_int(o, "slots") ? (uint32_t)options_int(o, "slots") : parts->slots,
                         .slot_bytes = options_bytes(o, "slot-bytes"),
                         .drain_ms = (int)options_int(o, "drain-ms"),
                         .watch_signals = true};
    memcpy(s.model_fingerprint, parts->model_fingerprint, HASH_SHA256_BYTES);
    memcpy(s.tower_fingerprint, parts->tower_fingerprint, HASH_SHA256_BYTES);
    return s;
}

/* The engine's whole life. Nothing has a thread before program->open, which may fork. */
static int child_main(supervisor_child *supervised, void *arg) {
    const node_program *program = ((child_arguments *)arg)->program;
    const options *o = ((child_arguments *)arg)->o;
    err e = {0};
    node_parts parts = {0};
    worker *w = NULL;
    void *context = NULL;
    char name[MESSAGE_NAME_BYTES_MAX + 1];

    status st = stop_open(&e);
    if (st == STATUS_OK) st = program->open(&parts, o, &e);
    if (st == STATUS_OK) {
        worker_settings settings = settings_from(program, o, &parts, name);
        settings.supervised = supervised;
        context = wire_context_open();
        st = worker_open(&w, context, options_string(o, "broker"), &settings, &parts.handler, &e);
    }
    if (st == STATUS_OK) {
        program->attach(parts.service, w);
        st = worker_run(w, &e);
    }
    if (st != STATUS_OK) (void)fprintf(stderr, "%s: %s\n", program->name, e.text);
    program->close(parts.service); /* its threads know the worker */
    worker_close(&w);
    wire_context_close(&context);
    return st == STATUS_OK ? 0 : EXIT_NOT_STARTED;
}

static int run(const node_program *program, const options *o) {
    log_level level;
    if (log_level_from_name(options_string(o, "log-level"), &level) != 0) {
        (void)fprintf(stderr, "%s: --log-level: \"%s\" is not off, error, warn, info or debug\n",
                      program->name, options_string(o, "log-level"));
        return EXIT_USAGE;
    }
    if (!options_is_set(o, "model")) {
        (void)fprintf(stderr, "%s: --model is needed: a checkpoint folder\n", program->name);
        return EXIT_USAGE;
    }
    log_set_level(level);
    log_set_role(program->name);
    child_arguments arguments = {program, o};
    return supervisor_run(child_main, &arguments);
}

int node_program_run(const node_program *program, int argc, char **argv) {
    err e = {0};
    options o;
    if (standard_files_open(&e) != STATUS_OK) {
        (void)fprintf(stderr, "%s: %s\n", program->name, e.text);
        return EXIT_NOT_STARTED;
    }
    if (options_parse(&o, program->table, argc, argv, &e) != STATUS_OK) {
        (void)fprintf(stderr, "%s: %s\n", program->name, e.text);
        return EXIT_USAGE;
    }
    int exit_code = 0;
    if (o.wants_help) options_print_help(program->table, stdout);
    else if (o.wants_version) (void)printf("%s %s\n", program->name, MIPHA_VERSION);
    else exit_code = run(program, &o);
    options_deinit(&o);
    return exit_code;
}
