/* `mipha up`: a whole cluster on this machine, in the foreground.
 *
 * Everything is a child process, started here and stopped here: redis-server, the broker, the nodes. They
 * are started before this process has a thread of its own, then a client waits until every node has
 * joined. A node that ends is reported and not started again; without the broker there is no cluster. */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/ready_file.h"
#include "base/stop.h"
#include "cli/child_process.h"
#include "cli/commands.h"
#include "cli/model_place.h"
#include "cli/service.h"
#include "proto/socket.h"

#define NODES_MAX       64
#define ENDPOINT_BYTES  256
#define REDIS_TRIES     5
#define REDIS_START_MS  5000
#define BROKER_START_MS 10000
#define NODES_START_MS  300000 /* big checkpoints take minutes to read and to hash */
#define STOP_MS         35000  /* a little more than nodes take to drain */

static const option_row rows[] = {
    MODEL_ROW,
    MODEL_LOAD_ROWS,
    {"vision-nodes", 0, OPTION_INT, "N", "1", 1, NODES_MAX, "how many vision nodes, on each GPU if there are"},
    {"lm-nodes", 0, OPTION_INT, "N", "1", 1, NODES_MAX, "how many language nodes, on each GPU if there are"},
    {"device", 0, OPTION_STRING, "NAME", "cpu", 0, 0, "where nodes compute: cpu, cuda, cuda:N"},
    {"gpus", 0, OPTION_STRING, "LIST", NULL, 0, 0, "nodes on each of these GPUs: all, or numbers apart by commas"},
    {"front", 0, OPTION_STRING, "ENDPOINT", "tcp://127.0.0.1:*", 0, 0, "where clients connect; * is a free port"},
    {"back", 0, OPTION_STRING, "ENDPOINT", "tcp://127.0.0.1:*", 0, 0, "where nodes connect; * is a free port"},
    {"cache", 0, OPTION_STRING, "URL", NULL, 0, 0,
     "a Redis that runs already; without it, a redis-server is started for this cluster"},
    {"threads", 0, OPTION_INT, "N", NULL, 1, 256, "compute threads of each node; without it, one per core"},
    FAST_ROW,
    {"kv-bytes", 0, OPTION_BYTES, "BYTES", NULL, 1 << 20, 1099511627776.0,
     "memory of each language node for keys and values"},
    {"ready-file", 0, OPTION_STRING, "FILE", NULL, 0, 0, "write the clients' endpoint here once all nodes have joined; removed at the end, refused while another cluster has it"},
    {"log-level", 0, OPTION_STRING, "LEVEL", "warn", 0, 0,
     "what the programs log on stderr: off, error, warn, info or debug"},
    {0}};

const option_table up_table = {
    .program = "mipha up",
    .purpose = "run a local cluster in the foreground until interrupted",
    .example = "  mipha up --vision-nodes 2 --lm-nodes 2\n"
               "  mipha up --front tcp://0.0.0.0:7000 --model Mipha-3B/ --gpus all\n",
    .rows = rows};

typedef struct {
    child_process redis, broker, nodes[2 * NODES_MAX];
    bool is_reported[2 * NODES_MAX], is_redis_reported;
    size_t n_nodes;
    char model_dir[MODEL_PLACE_BYTES], program_dir[MODEL_PLACE_BYTES];
    char cache_url[ENDPOINT_BYTES], front[ENDPOINT_BYTES], back[ENDPOINT_BYTES];
    char temp_dir[256], ready_path[300]; /* the broker's ready file, in our folder */
    ready_file announced;                /* ours, if one is wanted */
} cluster;

/* ---- redis ----------------------------------------------------------------------------------- */

/* A port nobody used a moment ago. Somebody may take it before redis does, so the caller tries again. */
static int free_port(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int port = 0;
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, n) == 0 &&
        getsockname(fd, (struct sockaddr *)&address, &n) == 0)
        port = ntohs(address.sin_port);
    if (fd >= 0) (void)close(fd);
    return port;
}

static bool redis_answers(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                  .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char answer_text[8] = "";
    bool ok = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
              send(fd, "PING\r\n", 6, MSG_NOSIGNAL) == 6;
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    ok = ok && poll(&readable, 1, 500) > 0 && recv(fd, answer_text, 5, 0) == 5 &&
         memcmp(answer_text, "+PONG", 5) == 0;
    if (fd >= 0) (void)close(fd);
    return ok;
}

/* Nothing durable lives there, so it never writes to disk; when full it forgets what expires. */
static status start_redis(cluster *k, err *e) {
    for (int n = 0; n < REDIS_TRIES; n++) {
        char port_text[12];
        int port = free_port();
        (void)snprintf(port_text, sizeof port_text, "%d", port);
        const char *argv[] = {"redis-server", "--port", port_text, "--bind", "127.0.0.1", "--save", "",
                              "--appendonly", "no", "--maxmemory", "1gb", "--maxmemory-policy",
                              "volatile-lru", "--dir", k->temp_dir, NULL};
        status st = child_process_start(&k->redis, argv, true, e);
        if (st != STATUS_OK) return st;
        int64_t end_us = clock_now_us() + REDIS_START_MS * CLOCK_MS_US;
        while (!child_process_has_ended(&k->redis) && clock_now_us() < end_us && !stop_requested()) {
            if (redis_answers(port)) {
                (void)snprintf(k->cache_url, sizeof k->cache_url, "redis://127.0.0.1:%d", port);
                return STATUS_OK;
            }
            (void)poll(NULL, 0, 20);
        }
        if (k->redis.pid) break;
    }
    return fail(e, STATUS_UNAVAILABLE, "redis-server does not start; name a running one with --cache");
}

static status choose_cache(cluster *k, const options *o, err *e) {
    const char *url = options_string(o, "cache");
    if (url) {
        if (strlen(url) >= sizeof k->cache_url)
            return fail(e, STATUS_BAD_ARGUMENT, "--cache: %zu bytes, limit %zu", strlen(url),
                        sizeof k->cache_url - 1);
        (void)snprintf(k->cache_url, sizeof k->cache_url, "%s", url);
        return STATUS_OK;
    }
    if (!child_process_exists("redis-server"))
        return fail(e, STATUS_NOT_FOUND,
                    "redis-server is not installed; install it, or name a running one with --cache");
    return start_redis(k, e);
}

/* ---- our own programs ------------------------------------------------------------------------ */

/* Beside this program, else in PATH. */
static void find_program(char out[MODEL_PLACE_BYTES], const cluster *k, const char *name) {
    int n = snprintf(out, MODEL_PLACE_BYTES, "%s/%s", k->program_dir, name);
    if (n < 0 || n >= MODEL_PLACE_BYTES || access(out, X_OK) != 0)
        (void)snprintf(out, MODEL_PLACE_BYTES, "%s", name);
}

/* The ready file names the endpoints for clients and for nodes, in this order. */
static bool read_endpoints(cluster *k) {
    char text[2 * ENDPOINT_BYTES + 64] = "";
    FILE *in = fopen(k->ready_path, "rbe");
    if (!in) return false;
    size_t n = fread(text, 1, sizeof text - 1, in);
    (void)fclose(in);
    text[n] = '\0';
    char *found[2] = {0}, *rest = NULL;
    int n_found = 0;
    for (char *word = strtok_r(text, " \t\r\n=", &rest); word && n_found < 2;
         word = strtok_r(NULL, " \t\r\n=", &rest))
        if (strstr(word, "://") && strlen(word) < ENDPOINT_BYTES) found[n_found++] = word;
    if (n_found < 2) return false;
    memcpy(k->front, found[0], strlen(found[0]) + 1);
    memcpy(k->back, found[1], strlen(found[1]) + 1);
    return true;
}

static status start_broker(cluster *k, const options *o, err *e) {
    char program[MODEL_PLACE_BYTES];
    find_program(program, k, "mipha-broker");
    const char *argv[] = {program, "--front", options_string(o, "front"), "--back",
                          options_string(o, "back"), "--ready-file", k->ready_path, "--log-level",
                          options_string(o, "log-level"), NULL};
    status st = child_process_start(&k->broker, argv, false, e);
    if (st != STATUS_OK) return st;
    k->broker.name = "mipha-broker";
    int64_t end_us = clock_now_us() + BROKER_START_MS * CLOCK_MS_US;
    while (clock_now_us() < end_us && !stop_requested()) {
        if (read_endpoints(k)) return STATUS_OK;
        if (child_process_has_ended(&k->broker)) {
            char how[CHILD_PROCESS_TEXT_BYTES];
            return fail(e, STATUS_UNAVAILABLE, "mipha-broker ended at once, with %s",
                        child_process_end_text(how, &k->broker));
        }
        (void)poll(NULL, 0, 10);
    }
    return stop_requested() ? fail(e, STATUS_INTERRUPTED, "interrupted")
                            : fail(e, STATUS_TIMEOUT, "mipha-broker is not ready within %d ms", BROKER_START_MS);
}

/* Words of a node's command line. */
typedef struct {
    const char *argv[32 + 2 * MODEL_SERVED_MAX];
    size_t n;
} words;

static void add(words *w, const char *word) { w->argv[w->n++] = word; }

static void add_pair(words *w, const char *name, const char *value) {
    if (!value) return;
    add(w, name);
    add(w, value);
}

/* n nodes of one kind on a device. */
static status start_nodes(cluster *k, const options *o, const char *name, int64_t n, const char *device, bool is_lm, err *e) {
    char program[MODEL_PLACE_BYTES], threads[24], kv_bytes[24];
    find_program(program, k, name);
    (void)snprintf(threads, sizeof threads, "%lld", (long long)options_int(o, "threads"));
    (void)snprintf(kv_bytes, sizeof kv_bytes, "%llu", (unsigned long long)options_bytes(o, "kv-bytes"));
    words w = {0};
    add(&w, program);
    add_pair(&w, "--broker", k->back);
    add_pair(&w, "--model", k->model_dir);
    add_pair(&w, "--cache", k->cache_url);
    add_pair(&w, "--log-level", options_string(o, "log-level"));
    add_pair(&w, "--dtype", options_string(o, "dtype"));
    add_pair(&w, "--kv-dtype", options_string(o, "kv-dtype"));
    add_pair(&w, "--device", device);
    add_pair(&w, "--adapter", options_string(o, "adapter"));
    add_pair(&w, "--threads", options_is_set(o, "threads") ? threads : NULL);
    if (options_flag(o, "fast")) add(&w, "--fast");
    add_pair(&w, "--kv-bytes", is_lm && options_is_set(o, "kv-bytes") ? kv_bytes : NULL);
    const char *const *served;
    size_t n_served = options_list(o, "serve-adapter", &served);
    if (n_served > MODEL_SERVED_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "--serve-adapter: given %zu times, limit %d", n_served, MODEL_SERVED_MAX);
    for (size_t i = 0; i < n_served; i++) add_pair(&w, "--serve-adapter", served[i]);
    for (int64_t i = 0; i < n; i++) {
        if (k->n_nodes == sizeof k->nodes / sizeof *k->nodes)
            return fail(e, STATUS_BAD_ARGUMENT, "more than %zu nodes", k->n_nodes);
        status st = child_process_start(&k->nodes[k->n_nodes], w.argv, false, e);
        if (st != STATUS_OK) return st;
        k->nodes[k->n_nodes++].name = name;
    }
    return STATUS_OK;
}

static status start_both(cluster *k, const options *o, const char *device, err *e) {
    status st = start_nodes(k, o, "mipha-vision-node", options_int(o, "vision-nodes"), device, false, e);
    return st == STATUS_OK ? start_nodes(k, o, "mipha-lm-node", options_int(o, "lm-nodes"), device, true, e) : st;
}

/* "all", or numbers apart by commas: nodes of both kinds on each of these GPUs. */
static status start_all_nodes(cluster *k, const options *o, err *e) {
    const char *gpus = options_string(o, "gpus");
    if (!gpus) return start_both(k, o, options_string(o, "device"), e);
    int n_gpus = ops_device_count("cuda");
    if (n_gpus == 0) return fail(e, STATUS_UNSUPPORTED, "--gpus: no GPU here, or this program was built without CUDA");
    char device[24];
    status st = STATUS_OK;
    for (int i = 0; i < n_gpus && strcmp(gpus, "all") == 0 && st == STATUS_OK; i++) {
        (void)snprintf(device, sizeof device, "cuda:%d", i);
        st = start_both(k, o, device, e);
    }
    for (const char *at = gpus; strcmp(gpus, "all") != 0 && st == STATUS_OK;) {
        char *end;
        long i = strtol(at, &end, 10);
        if (end == at || (*end != ',' && *end != '\0') || i < 0 || i >= n_gpus)
            return fail(e, STATUS_BAD_ARGUMENT, "--gpus: \"%.60s\", expected all, or numbers from 0 to %d apart by commas", gpus,
                        n_gpus - 1);
        (void)snprintf(device, sizeof device, "cuda:%ld", i);
        st = start_both(k, o, device, e);
        if (*end == '\0') break;
        at = end + 1;
    }
    return st;
}

/* ---- watching -------------------------------------------------------------------------------- */

/* False when the broker is gone. */
static bool report_ended(cluster *k) {
    char how[CHILD_PROCESS_TEXT_BYTES];
    for (size_t i = 0; i < k->n_nodes; i++) {
        if (k->is_reported[i] || !child_process_has_ended(&k->nodes[i])) continue;
        k->is_reported[i] = true;
        (void)fprintf(stderr, "%s ended with %s\n", k->nodes[i].name, child_process_end_text(how, &k->nodes[i]));
    }
    if (k->redis.name && !k->is_redis_reported && child_process_has_ended(&k->redis)) {
        k->is_redis_reported = true;
        (void)fprintf(stderr, "redis-server ended with %s\n", child_process_end_text(how, &k->redis));
    }
    return !child_process_has_ended(&k->broker);
}

static bool has_lost_node(const cluster *k) {
    for (size_t i = 0; i < k->n_nodes; i++)
        if (k->is_reported[i]) return true;
    return false;
}

static status wait_for_nodes(cluster *k, err *e) {
    void *context = wire_context_open();
    client *c = NULL;
    client_settings settings = {.name = "up", .stop_fd = stop_fd()};
    status st = client_open(&c, context, k->front, &settings, e);
    int64_t end_us = clock_now_us() + NODES_START_MS * CLOCK_MS_US;
    for (size_t n_joined = 0; st == STATUS_OK && n_joined < k->n_nodes;) {
        const status_report *report;
        client_event event;
        if (!report_ended(k) || has_lost_node(k))
            st = fail(e, STATUS_UNAVAILABLE, "not every program of the cluster started");
        else if (clock_now_us() > end_us)
            st = fail(e, STATUS_TIMEOUT, "%zu of %zu nodes have joined within %d s", n_joined, k->n_nodes,
                      NODES_START_MS / 1000);
        else if ((st = client_status(c, 5000, &report, e)) == STATUS_OK) {
            n_joined = report->n_nodes;
            if (n_joined < k->n_nodes) st = client_poll(c, 100, &event, e);
        }
        if (st == STATUS_TIMEOUT && clock_now_us() <= end_us) st = STATUS_OK;
    }
    client_close(&c);
    wire_context_close(&context);
    return st;
}

static status announce(cluster *k, err *e) {
    (void)printf("%s\n", k->front);
    (void)fflush(stdout);
    (void)fprintf(stderr, "cluster of %zu nodes is ready; try:\n  mipha annotate --broker %s IMAGES\n"
                          "Ctrl-C stops it\n", k->n_nodes, k->front);
    char text[ENDPOINT_BYTES + 1];
    (void)snprintf(text, sizeof text, "%s\n", k->front);
    return ready_file_write(&k->announced, text, e);
}

static status watch(cluster *k, err *e) {
    struct pollfd stop = {.fd = stop_fd(), .events = POLLIN};
    while (!stop_requested()) {
        if (!report_ended(k)) {
            char how[CHILD_PROCESS_TEXT_BYTES];
            return fail(e, STATUS_UNAVAILABLE, "mipha-broker ended with %s; the cluster is stopped",
                        child_process_end_text(how, &k->broker));
        }
        (void)poll(&stop, 1, 200);
    }
    return STATUS_OK;
}

/* Nodes first, so that they can hand back what they have; all of them at once. */
static void stop_all(cluster *k) {
    for (size_t i = 0; i < k->n_nodes; i++) child_process_ask_to_stop(&k->nodes[i]);
    for (size_t i = 0; i < k->n_nodes; i++) child_process_stop(&k->nodes[i], STOP_MS);
    child_process_stop(&k->broker, STOP_MS);
    child_process_stop(&k->redis, STOP_MS);
    ready_file_remove(&k->announced);
    if (k->ready_path[0]) (void)unlink(k->ready_path);
    if (k->temp_dir[0]) (void)rmdir(k->temp_dir);
}

static status prepare(cluster *k, const options *o, err *e) {
    const char *temp = getenv("TMPDIR");
    program_place(k->program_dir);
    k->announced.fd = -1;
    if (options_is_typed(o, "device") && options_is_typed(o, "gpus"))
        return fail(e, STATUS_BAD_ARGUMENT, "--device is where all nodes compute, --gpus puts some on each GPU; write one of them");
    status st = log_level_from_options(o, e);
    if (st == STATUS_OK) st = model_place(k->model_dir, options_string(o, "model"), e);
    if (st == STATUS_OK) st = ready_file_claim(&k->announced, options_string(o, "ready-file"), e);
    if (st != STATUS_OK) return st;
    (void)snprintf(k->temp_dir, sizeof k->temp_dir, "%.200s/mipha-up-XXXXXX", temp && *temp ? temp : "/tmp");
    if (!mkdtemp(k->temp_dir)) {
        k->temp_dir[0] = '\0';
        return fail_errno(e, STATUS_IO, "making a temporary folder");
    }
    (void)snprintf(k->ready_path, sizeof k->ready_path, "%s/broker", k->temp_dir);
    return STATUS_OK;
}

status up_run(const options *o, int *exit_code, err *e) {
    cluster *k = calloc(1, sizeof *k);
    if (!k) return fail(e, STATUS_NO_MEMORY, "out of memory");
    status st = prepare(k, o, e);
    if (st == STATUS_OK) st = choose_cache(k, o, e);
    if (st == STATUS_OK) st = start_broker(k, o, e);
    if (st == STATUS_OK) st = start_all_nodes(k, o, e);
    if (st == STATUS_OK) st = wait_for_nodes(k, e);
    if (st == STATUS_OK) st = announce(k, e);
    if (st != STATUS_OK) *exit_code = exit_code_not_started(st);
    if (st == STATUS_OK && (st = watch(k, e)) == STATUS_OK) {
        (void)fputs("stopping\n", stderr);
        *exit_code = EXIT_ALL_ANSWERED;
    }
    stop_all(k);
    free(k);
    return st;
}
