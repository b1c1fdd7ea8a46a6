/* `mipha status`: the figures of a running cluster, as a table, as JSON, or again and again. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/stop.h"
#include "cli/commands.h"
#include "cli/service.h"
#include "cli/terminal_text.h"
#include "proto/socket.h"

#define ANSWER_MS  5000
#define LABEL_COLS 9

static const option_row rows[] = {
    {"broker", 'b', OPTION_STRING, "ENDPOINT", NULL, 0, 0, "the cluster to look at, as in tcp://host:7000"},
    {"json", 0, OPTION_FLAG, NULL, NULL, 0, 0, "print JSON, one object a report"},
    {"watch", 'w', OPTION_FLAG, NULL, NULL, 0, 0, "report again every --interval seconds until interrupted"},
    {"interval", 0, OPTION_REAL, "SECONDS", "2", 0.1, 3600, "time between reports of --watch"},
    {"log-level", 0, OPTION_STRING, "LEVEL", "error", 0, 0,
     "what to log on stderr: off, error, warn, info or debug"},
    {0}};

const option_table status_table = {
    .program = "mipha status",
    .purpose = "show queues, nodes, cache and rates of a running cluster",
    .example = "  mipha status --broker tcp://gpu-box:7000\n"
               "  mipha status --broker tcp://gpu-box:7000 --watch\n"
               "  mipha status --broker tcp://gpu-box:7000 --json\n",
    .rows = rows};

/* Which figures stand together; what no row names is shown under "other". */
static const struct {
    const char *label;
    const char *names[8];
} groups[] = {
    {"items", {"accepted", "done", "failed", "cancelled", "expired", "in_flight"}},
    {"queues", {"waiting_vision", "waiting_lm", "waiting_same_image", "encoding", "generating", "kept_bytes"}},
    {"work", {"encodes", "generates", "shared_encodings", "features_missing", "retries", "busy_answers"}},
    {"trouble", {"leases_expired", "crashes", "quarantined", "nodes_lost", "bad_messages"}},
    {"peers", {"clients", "nodes", "uptime_seconds"}}};

#define N_GROUPS (sizeof groups / sizeof *groups)

static double metric_value(const metric *all, size_t n, const char *name, bool *found) {
    for (size_t i = 0; i < n; i++) {
        if (strcmp(all[i].name, name) != 0) continue;
        *found = true;
        return all[i].value;
    }
    *found = false;
    return 0;
}

static bool is_grouped(const char *name) {
    for (size_t g = 0; g < N_GROUPS; g++)
        for (size_t i = 0; i < 8 && groups[g].names[i]; i++)
            if (strcmp(groups[g].names[i], name) == 0) return true;
    return false;
}

/* "waiting_vision" reads better as "waiting vision"; names come from other machines. */
static void print_name(const char *name) {
    char text[64];
    (void)snprintf(text, sizeof text, "%s", name);
    for (char *c = text; *c; c++)
        if (*c == '_') *c = ' ';
    terminal_text_write(stdout, text, strlen(text), true);
}

static void print_figure(const char *name, double value, bool is_first) {
    (void)fputs(is_first ? "" : "   ", stdout);
    print_name(name);
    bool is_whole = value >= -1e15 && value <= 1e15 && value == (double)(long long)value;
    (void)printf(is_whole ? " %.0f" : " %.2f", value);
}

static void print_groups(const status_report *r) {
    for (size_t g = 0; g < N_GROUPS; g++) {
        bool is_first = true, found;
        for (size_t i = 0; i < 8 && groups[g].names[i]; i++) {
            double v = metric_value(r->metrics, r->n_metrics, groups[g].names[i], &found);
            if (!found) continue;
            if (is_first) (void)printf("%-*s", LABEL_COLS, groups[g].label);
            print_figure(groups[g].names[i], v, is_first);
            is_first = false;
        }
        if (!is_first) (void)putchar('\n');
    }
    bool is_first = true;
    for (size_t i = 0; i < r->n_metrics; i++) {
        if (is_grouped(r->metrics[i].name)) continue;
        if (is_first) (void)printf("%-*s", LABEL_COLS, "other");
        print_figure(r->metrics[i].name, r->metrics[i].value, is_first);
        is_first = false;
    }
    if (!is_first) (void)putchar('\n');
}

/* What was answered since the last report, or since the broker started. */
typedef struct {
    double done, encodes;
    int64_t at_us;
    bool is_set;
} rate_base;

static void print_rates(const status_report *r, rate_base *before) {
    bool has_done, has_encodes, has_uptime;
    double done = metric_value(r->metrics, r->n_metrics, "done", &has_done);
    double encodes = metric_value(r->metrics, r->n_metrics, "encodes", &has_encodes);
    double seconds = metric_value(r->metrics, r->n_metrics, "uptime_seconds", &has_uptime);
    int64_t now_us = clock_now_us();
    rate_base base = before->is_set ? *before : (rate_base){0};
    if (before->is_set) seconds = (double)(now_us - before->at_us) * 1e-6;
    if (has_done && seconds > 0)
        (void)printf("%-*sitems %.2f/s   encodings %.2f/s   (%s)\n", LABEL_COLS, "rates",
                     (done - base.done) / seconds, (encodes - base.encodes) / seconds,
                     before->is_set ? "since the last report" : "since the broker started");
    *before = (rate_base){done, encodes, now_us, true};
}

static const char *role_name(uint32_t role) {
    if (role == (MESSAGE_ROLE_VISION | MESSAGE_ROLE_LM)) return "both";
    return role == MESSAGE_ROLE_VISION ? "vision" : role == MESSAGE_ROLE_LM ? "lm" : "?";
}

static void print_nodes(const status_report *r) {
    if (r->n_nodes == 0) {
        (void)puts("\nno nodes: nothing is answered until one joins");
        return;
    }
    (void)printf("\n%-24s %-7s %7s %7s %8s  %s\n", "NODE", "ROLE", "RUNNING", "SLOTS", "SILENT", "FIGURES");
    for (size_t i = 0; i < r->n_nodes; i++) {
        const node_status *n = &r->nodes[i];
        char name[25];
        (void)snprintf(name, sizeof name, "%.24s", n->name);
        for (unsigned char *c = (unsigned char *)name; *c; c++)
            if (*c < 0x20 || *c >= 0x7f) *c = '?';
        (void)printf("%-24s %-7s %7u %7u %5llu ms  ", name, role_name(n->role), n->running, n->slots,
                     (unsigned long long)n->silent_ms);
        if (n->is_draining) (void)fputs("draining   ", stdout);
        for (size_t k = 0; k < n->n_metrics; k++)
            print_figure(n->metrics[k].name, n->metrics[k].value, k == 0);
        (void)putchar('\n');
    }
}

static json_t *metrics_json(const metric *all, size_t n) {
    json_t *object = json_object();
    for (size_t i = 0; i < n; i++) {
        double v = all[i].value;
        bool is_whole = v >= -1e15 && v <= 1e15 && v == (double)(json_int_t)v;
        (void)json_object_set_new(object, all[i].name, is_whole ? json_integer((json_int_t)v) : json_real(v));
    }
    return object;
}

static void print_json(const status_report *r) {
    json_t *nodes = json_array();
    for (size_t i = 0; i < r->n_nodes; i++) {
        const node_status *n = &r->nodes[i];
        (void)json_array_append_new(
            nodes, json_pack("{s:s, s:s, s:I, s:I, s:I, s:b, s:o}", "name", n->name, "role", role_name(n->role),
                             "slots", (json_int_t)n->slots, "running", (json_int_t)n->running, "silent_ms",
                             (json_int_t)n->silent_ms, "draining", n->is_draining, "metrics",
                             metrics_json(n->metrics, n->n_metrics)));
    }
    json_t *whole = json_pack("{s:o, s:o}", "metrics", metrics_json(r->metrics, r->n_metrics), "nodes", nodes);
    (void)json_dumpf(whole, stdout, JSON_COMPACT | JSON_REAL_PRECISION(12));
    (void)putchar('\n');
    json_decref(whole);
}

static status report_once(client *c, const options *o, rate_base *before, int *exit_code, err *e) {
    const status_report *r;
    status st = client_status(c, ANSWER_MS, &r, e);
    if (st != STATUS_OK) return st;
    if (options_flag(o, "json")) {
        print_json(r);
    } else {
        if (options_flag(o, "watch") && isatty(STDOUT_FILENO)) (void)fputs("\x1b[H\x1b[2J", stdout);
        print_groups(r);
        print_rates(r, before);
        print_nodes(r);
    }
    if (fflush(stdout) != 0) {
        if (errno == EPIPE) *exit_code = EXIT_READER_GONE;
        return fail_errno(e, STATUS_IO, "standard output");
    }
    return STATUS_OK;
}

/* The client is polled while waiting, so that the broker keeps knowing us. */
static status wait_between(client *c, double seconds, err *e) {
    int64_t end_us = clock_now_us() + (int64_t)(seconds * 1e6);
    for (;;) {
        int64_t left_ms = (end_us - clock_now_us()) / CLOCK_MS_US;
        if (left_ms <= 0) return STATUS_OK;
        client_event event;
        status st = client_poll(c, (int)left_ms, &event, e);
        if (st != STATUS_OK && st != STATUS_TIMEOUT) return st;
        if (st == STATUS_OK && event.kind == CLIENT_UNAVAILABLE) (void)fprintf(stderr, "%s\n", event.text);
    }
}

static status watch(client *c, const options *o, int *exit_code, err *e) {
    rate_base before = {0};
    for (;;) {
        status st = report_once(c, o, &before, exit_code, e);
        if (st == STATUS_TIMEOUT) {
            (void)fprintf(stderr, "mipha status: %s\n", e->text);
            st = STATUS_OK;
        }
        if (st == STATUS_OK) st = wait_between(c, options_real(o, "interval"), e);
        if (st != STATUS_OK) return st;
    }
}

status status_run(const options *o, int *exit_code, err *e) {
    const char *endpoint = options_string(o, "broker");
    if (!endpoint) return fail(e, STATUS_BAD_ARGUMENT, "--broker ENDPOINT is needed");
    status st = log_level_from_options(o, e);
    if (st != STATUS_OK) return st;
    void *context = wire_context_open();
    client *c = NULL;
    client_settings settings = {.name = "status", .open_timeout_ms = ANSWER_MS, .stop_fd = stop_fd()};
    rate_base before = {0};
    st = client_open(&c, context, endpoint, &settings, e);
    if (st != STATUS_OK) *exit_code = exit_code_not_started(st);
    if (st == STATUS_OK) st = options_flag(o, "watch") ? watch(c, o, exit_code, e) : report_once(c, o, &before, exit_code, e);
    client_close(&c);
    wire_context_close(&context);
    return st;
}
