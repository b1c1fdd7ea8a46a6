/* mipha-lm-node: features and questions to text. */
#include <stdlib.h>

#include "lm_node/lm_service.h"
#include "model/model_options.h"
#include "worker/node_program.h"

static const option_row rows[] = {
    NODE_ROWS("64"),
    MODEL_LOAD_ROWS,
    FAST_ROW,
    {"kv-bytes", 0, OPTION_BYTES, "BYTES", NULL, 1 << 20, 1e13,
     "memory for keys and values, taken at start (cpu 512M, cuda 16G); when it is full, work waits"},
    {"max-questions", 0, OPTION_INT, "N", NULL, 1, 4096, "questions generated at once (cpu 64, cuda 128)"},
    {"chunk-rows", 0, OPTION_INT, "N", NULL, 1, 65536,
     "rows of prompts in one step of the engine (cpu 256, cuda 2048); smaller keeps running answers smoother"},
    {0}};

static const option_table table = {
    .program = "mipha-lm-node",
    .purpose = "answer questions from features",
    .example = "  mipha-lm-node --broker tcp://broker:7001 --model DIR --cache redis://redis:6379\n",
    .rows = rows};

typedef struct {
    model *model;
    cache *cache;
    lm_service *service;
} lm_parts;

static status parts_open(node_parts *out, const options *o, err *e) {
    lm_parts *p = calloc(1, sizeof *p);
    if (!p) return fail(e, STATUS_NO_MEMORY, "language node");
    out->service = p;
    cache_settings cache_wishes = cache_settings_default();
    model_settings checkpoint = model_settings_read(o, options_string(o, "model"));
    status st = model_open(&p->model, &checkpoint, e);
    if (st == STATUS_OK) st = cache_open(&p->cache, options_string(o, "cache"), &cache_wishes, e);
    if (st != STATUS_OK) return st;
    lm_service_parts parts = {p->model, p->cache};
    lm_service_settings wishes = lm_service_defaults(options_string(o, "device"));
    wishes.ops.n_threads = (int)options_int(o, "threads");
    wishes.ops.is_fast = options_flag(o, "fast");
    if (options_is_set(o, "kv-bytes")) wishes.kv_bytes = options_bytes(o, "kv-bytes");
    if (options_is_set(o, "max-questions")) wishes.max_questions = (int)options_int(o, "max-questions");
    if (options_is_set(o, "chunk-rows")) wishes.chunk_rows = (int)options_int(o, "chunk-rows");
    st = lm_service_open(&p->service, &parts, &wishes, e);
    if (st != STATUS_OK) return st;
    out->handler = lm_service_handler(p->service);
    out->model_fingerprint = model_fingerprint(p->model);
    out->tower_fingerprint = model_tower_fingerprint(p->model);
    return STATUS_OK;
}

static void parts_attach(void *service, worker *w) {
    lm_service_attach(((lm_parts *)service)->service, w);
}

static void parts_close(void *service) {
    lm_parts *p = service;
    if (!p) return;
    lm_service_close(&p->service);
    cache_close(&p->cache);
    model_close(&p->model);
    free(p);
}

int main(int argc, char **argv) {
    static const node_program program = {"mipha-lm-node", &table,       MESSAGE_ROLE_LM,
                                         parts_open,      parts_attach, parts_close};
    return node_program_run(&program, argc, argv);
}
