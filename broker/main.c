/* mipha-broker: options, sockets, loop, drain. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/options.h"
#include "base/ready_file.h"
#include "base/standard_files.h"
#include "base/stop.h"
#include "broker/broker.h"
#include "proto/socket.h"

#define EXIT_USAGE       2
#define EXIT_NOT_STARTED 3

static const option_row rows[] = {
    {"front", 0, OPTION_STRING, "ENDPOINT", "tcp://127.0.0.1:7000", 0, 0,
     "where clients connect; port * takes a free one"},
    {"back", 0, OPTION_STRING, "ENDPOINT", "tcp://127.0.0.1:7001", 0, 0,
     "where nodes connect; port * takes a free one"},
    {"queue-items", 0, OPTION_INT, "N", "16384", 1, 16777216,
     "items kept at once; more are answered BUSY"},
    {"queue-bytes", 0, OPTION_BYTES, "BYTES", "1G", 1 << 20, 1e15,
     "bytes of images, questions and results kept at once"},
    {"features-bytes", 0, OPTION_BYTES, "BYTES", "256M", 0, 1e15,
     "bytes of features kept at once while the cache is away and they travel with the work"},
    {"heartbeat-ms", 0, OPTION_INT, "MS", "1000", 10, 60000,
     "a side that is silent for three of these is taken for gone"},
    {"lease-ms", 0, OPTION_INT, "MS", "30000", 40, 3600000,
     "work without progress for this long goes to another node"},
    {"drain-ms", 0, OPTION_INT, "MS", "30000", 0, 86400000,
     "how long accepted work may take after a stop"},
    {"ready-file", 0, OPTION_STRING, "FILE", NULL, 0, 0,
     "write the two endpoints to this file, one a line, once they accept connections; removed at the end, refused while another broker has it"},
    {"log-level", 0, OPTION_STRING, "LEVEL", "info", 0, 0,
     "what to log on stderr: off, error, warn, info or debug"},
    {0}};

static const option_table table = {
    .program = "mipha-broker",
    .purpose = "carry items between clients and nodes",
    .example = "  mipha-broker --front tcp://0.0.0.0:7000 --back tcp://0.0.0.0:7001\n",
    .rows = rows};

static broker_settings settings_from(const options *o) {
    broker_settings s = broker_settings_default();
    s.front = options_string(o, "front");
    s.back = options_string(o, "back");
    s.limits.n_items_max = (uint32_t)options_int(o, "queue-items");
    s.limits.n_images_max = 2 * s.limits.n_items_max;
    s.limits.bytes_max = options_bytes(o, "queue-bytes");
    s.limits.features_bytes_max = options_bytes(o, "features-bytes");
    s.limits.heartbeat_us = options_int(o, "heartbeat-ms") * CLOCK_MS_US;
    s.limits.lease_us = options_int(o, "lease-ms") * CLOCK_MS_US;
    s.drain_ms = (int)options_int(o, "drain-ms");
    s.watch_signals = true;
    return s;
}

static status write_ready_file(ready_file *ready, const broker *b, err *e) {
    char text[1024];
    (void)snprintf(text, sizeof text, "%s\n%s\n", broker_front(b), broker_back(b));
    return ready_file_write(ready, text, e);
}

static int run(const options *o, err *e) {
    log_level level;
    if (log_level_from_name(options_string(o, "log-level"), &level) != 0) {
        (void)fail(e, STATUS_BAD_ARGUMENT, "--log-level: \"%s\" is not off, error, warn, info or debug",
                   options_string(o, "log-level"));
        return EXIT_USAGE;
    }
    log_set_level(level);
    log_set_role("broker");
    broker_settings settings = settings_from(o);
    void *context = wire_context_open();
    broker *b = NULL;
    ready_file ready = {.fd = -1};
    status st = stop_open(e);
    if (st == STATUS_OK) st = ready_file_claim(&ready, options_string(o, "ready-file"), e);
    if (st == STATUS_OK) st = broker_open(&b, context, &settings, e);
    if (st == STATUS_OK) st = write_ready_file(&ready, b, e);
    int exit_code = st == STATUS_OK ? 0 : EXIT_NOT_STARTED;
    if (st == STATUS_OK) {
        log_info("ready", "front=%s back=%s", broker_front(b), broker_back(b));
        st = broker_run(b, e);
        exit_code = st == STATUS_OK ? 0 : 1;
    }
    ready_file_remove(&ready);
    broker_close(&b);
    wire_context_close(&context);
    return exit_code;
}

int main(int argc, char **argv) {
    err e = {0};
    options o;
    if (standard_files_open(&e) != STATUS_OK) {
        (void)fprintf(stderr, "mipha-broker: %s\n", e.text);
        return EXIT_NOT_STARTED;
    }
    if (options_parse(&o, &table, argc, argv, &e) != STATUS_OK) {
        (void)fprintf(stderr, "mipha-broker: %s\n", e.text);
        return EXIT_USAGE;
    }
    int exit_code = 0;
    if (o.wants_help) options_print_help(&table, stdout);
    else if (o.wants_version) (void)printf("mipha-broker %s\n", MIPHA_VERSION);
    else if ((exit_code = run(&o, &e)) != 0) (void)fprintf(stderr, "mipha-broker: %s\n", e.text);
    options_deinit(&o);
    return exit_code;
}
