#include "cli/service.h"

#include <string.h>

#include "base/log.h"
#include "base/stop.h"
#include "cli/commands.h"
#include "cli/model_place.h"
#include "lm_node/prompt_template.h"
#include "proto/socket.h"

status log_level_from_options(const options *o, err *e) {
    const char *name = options_string(o, "log-level");
    log_level level;
    if (log_level_from_name(name, &level) != 0)
        return fail(e, STATUS_BAD_ARGUMENT,
                    "--log-level: \"%s\" is not off, error, warn, info or debug", name);
    log_set_level(level);
    return STATUS_OK;
}

status sampling_from_options(request_sampling *s, const options *o, err *e) {
    *s = (request_sampling){.temperature = (float)options_real(o, "temperature"),
                            .top_p = (float)options_real(o, "top-p"),
                            .top_k = (uint32_t)options_int(o, "top-k"),
                            .min_p = (float)options_real(o, "min-p"),
                            .seed = (uint64_t)options_int(o, "seed"),
                            .max_new_tokens = (uint32_t)options_int(o, "max-new-tokens"),
                            .want_logprobs = options_is_set(o, "logprobs"),
                            .n_logprobs = (uint32_t)options_int(o, "logprobs")};
    const char *const *stop;
    size_t n = options_list(o, "stop", &stop);
    if (n > MESSAGE_STOP_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "--stop: given %zu times, limit %d", n, MESSAGE_STOP_MAX);
    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(stop[i]);
        if (len < 1 || len > MESSAGE_STOP_BYTES_MAX)
            return fail(e, STATUS_BAD_ARGUMENT, "--stop: text of %zu bytes, allowed are 1 to %d", len,
                        MESSAGE_STOP_BYTES_MAX);
        s->stop[i] = stop[i];
    }
    s->n_stop = (uint32_t)n;
    return STATUS_OK;
}

status template_from_options(const char **name, const options *o, err *e) {
    *name = options_string(o, "template");
    if (!*name || prompt_template_find(*name)) return STATUS_OK;
    return fail(e, STATUS_BAD_ARGUMENT, "--template: \"%.60s\" is none of %s", *name, prompt_template_names());
}

status adapter_from_options(const char **name, const options *o, err *e) {
    *name = options_string(o, "use-adapter");
    if (!*name || strlen(*name) <= MESSAGE_NAME_BYTES_MAX) return STATUS_OK;
    return fail(e, STATUS_BAD_ARGUMENT, "--use-adapter: a name of %zu bytes, limit %d", strlen(*name), MESSAGE_NAME_BYTES_MAX);
}

status service_options_check(const options *o, err *e) {
    static const option_row rows[] = {SERVICE_ROWS, {0}};
    TRY(log_level_from_options(o, e));
    if (!options_string(o, "broker")) return STATUS_OK;
    for (const option_row *row = rows; row->name; row++) {
        bool is_for_both = strcmp(row->name, "broker") == 0 || strcmp(row->name, "log-level") == 0;
        if (!is_for_both && options_is_typed(o, row->name))
            return fail(e, STATUS_BAD_ARGUMENT, "--%s has no effect with %s: what the cluster's nodes were started with counts",
                        row->name, options_is_typed(o, "broker") ? "--broker" : "MIPHA_BROKER");
    }
    return STATUS_OK;
}

static status open_embedded(service *s, const options *o, err *e) {
    char dir[MODEL_PLACE_BYTES];
    status st = model_place(dir, options_string(o, "model"), e);
    if (st != STATUS_OK) return st;
    embedded_settings settings = embedded_defaults();
    settings.model = model_settings_read(o, dir);
    settings.device = options_string(o, "device");
    settings.cache_url = options_string(o, "cache");
    if (options_is_set(o, "threads")) settings.n_threads = (int)options_int(o, "threads");
    settings.is_fast = options_flag(o, "fast");
    if (options_is_set(o, "kv-bytes")) settings.kv_bytes = options_bytes(o, "kv-bytes");
    settings.max_pixels = (uint64_t)options_int(o, "max-pixels");
    settings.decode_ms = (int)options_int(o, "decode-ms");
    return embedded_open(&s->em, &settings, e);
}

status service_open(service *s, const options *o, const client_settings *settings, err *e) {
    *s = (service){0};
    status st = service_options_check(o, e);
    if (st != STATUS_OK) return st;
    const char *endpoint = options_string(o, "broker");
    void *context;
    if (endpoint) {
        s->zmq_context = context = wire_context_open();
    } else {
        st = open_embedded(s, o, e);
        if (st != STATUS_OK) return st;
        endpoint = embedded_endpoint(s->em);
        context = embedded_context(s->em);
    }
    client_settings with_stop = *settings;
    with_stop.stop_fd = stop_fd();
    st = client_open(&s->client, context, endpoint, &with_stop, e);
    if (st != STATUS_OK) service_close(s);
    return st;
}

void service_close(service *s) {
    client_close(&s->client);
    if (s->em) embedded_close(&s->em);
    wire_context_close(&s->zmq_context);
}
