/* mipha-vision-node: image bytes to features in the cache. */
#include <stdlib.h>
#include <unistd.h>

#include "model/model_options.h"
#include "vision_node/vision_service.h"
#include "worker/node_program.h"

static const option_row rows[] = {
    NODE_ROWS_SLOTS(NULL, "items taken at once; without it, three batches, four on a GPU"),
    MODEL_LOAD_ROWS,
    FAST_ROW,
    {"batch", 0, OPTION_INT, "N", NULL, 1, 256, "images encoded together (cpu 8, cuda 32)"},
    {"decoders", 0, OPTION_INT, "N", NULL, 1, 64, "processes that decode image files (one a core but one, at most 16)"},
    IMAGE_DECODER_ROWS,
    {0}};

static const option_table table = {
    .program = "mipha-vision-node",
    .purpose = "turn images into features",
    .example = "  mipha-vision-node --broker tcp://broker:7001 --model DIR --cache redis://redis:6379\n",
    .rows = rows};

typedef struct {
    image_decoder *decoder;
    model *model;
    cache *cache, *store;
    vision_service *service;
} vision_parts;

static status parts_open(node_parts *out, const options *o, err *e) {
    vision_parts *p = calloc(1, sizeof *p);
    if (!p) return fail(e, STATUS_NO_MEMORY, "vision node");
    out->service = p;
    image_decoder_limits limits = {.image.pixels_max = (uint64_t)options_int(o, "max-pixels"),
                                   .wall_ms = (int)options_int(o, "decode-ms")};
    cache_settings cache_wishes = cache_settings_default();
    int n_decoders = options_is_set(o, "decoders") ? (int)options_int(o, "decoders") : image_decoder_default_workers();
    status st = image_decoder_open(&p->decoder, n_decoders, &limits, e);
    /* Both parts: every node names the same model to the broker, whichever half of it it runs. */
    model_settings checkpoint = model_settings_read(o, options_string(o, "model"));
    if (st == STATUS_OK) st = model_open(&p->model, &checkpoint, e);
    if (st == STATUS_OK) st = cache_open(&p->cache, options_string(o, "cache"), &cache_wishes, e);
    if (st == STATUS_OK) st = cache_open(&p->store, options_string(o, "cache"), &cache_wishes, e);
    if (st != STATUS_OK) return st;
    vision_service_parts parts = {p->model, p->cache, p->store, p->decoder};
    vision_service_settings wishes = vision_service_defaults(options_string(o, "device"));
    wishes.ops.n_threads = (int)options_int(o, "threads");
    wishes.ops.is_fast = options_flag(o, "fast");
    if (options_is_set(o, "batch")) wishes.max_images = (int)options_int(o, "batch");
    st = vision_service_open(&p->service, &parts, &wishes, e);
    if (st != STATUS_OK) return st;
    out->slots = vision_service_slots(p->service);
    out->handler = vision_service_handler(p->service);
    out->model_fingerprint = model_fingerprint(p->model);
    out->tower_fingerprint = model_tower_fingerprint(p->model);
    return STATUS_OK;
}

static void parts_attach(void *service, worker *w) {
    vision_service_attach(((vision_parts *)service)->service, w);
}

static void parts_close(void *service) {
    vision_parts *p = service;
    if (!p) return;
    vision_service_close(&p->service);
    cache_close(&p->store);
    cache_close(&p->cache);
    model_close(&p->model);
    image_decoder_close(&p->decoder);
    free(p);
}

int main(int argc, char **argv) {
    static const node_program program = {"mipha-vision-node", &table,      MESSAGE_ROLE_VISION,
                                         parts_open,          parts_attach, parts_close};
    return node_program_run(&program, argc, argv);
}
