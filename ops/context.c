/* The checked front of everything about a context but its operators: devices, memory, crossings, graphs. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "ops/ops_internal.h"

#define CUT_ALIGN_BYTES 64

/* ---- opening ------------------------------------------------------------------------------- */

#ifdef MIPHA_CUDA
static const ops_backend *const backends[] = {&cpu_backend, &cuda_backend};
#else
static const ops_backend *const backends[] = {&cpu_backend};
#endif

/* "cuda:1" names backend "cuda" and index 1; false when text is not of that form. */
static bool device_matches(const char *text, const char *name, int *index) {
    size_t n = strlen(name);
    if (strncmp(text, name, n) != 0) return false;
    *index = 0;
    if (text[n] == '\0') return true;
    if (text[n] != ':' || text[n + 1] < '0' || text[n + 1] > '9') return false;
    char *end;
    long v = strtol(text + n + 1, &end, 10);
    if (*end != '\0' || v > 1023) return false;
    *index = (int)v;
    return true;
}

status ops_open(ops_ctx **ctx, const ops_settings *settings, err *e) {
    *ctx = NULL;
    const char *device = settings->device ? settings->device : "cpu";
    if (settings->n_threads < 0 || settings->n_threads > OPS_THREADS_MAX)
        return fail(e, STATUS_BAD_ARGUMENT, "ops: %d threads, need 0 (one per core) to %d",
                    settings->n_threads, OPS_THREADS_MAX);
    const ops_backend *backend = NULL;
    int index = 0;
    for (size_t i = 0; i < sizeof backends / sizeof backends[0] && !backend; i++)
        if (device_matches(device, backends[i]->name, &index)) backend = backends[i];
    if (!backend && device_matches(device, "cuda", &index))
        return fail(e, STATUS_UNSUPPORTED,
                    "ops: device \"%s\": this program was built without CUDA, need \"cpu\"", device);
    if (!backend)
        return fail(e, STATUS_BAD_ARGUMENT, "ops: device \"%s\", need \"cpu\", \"cuda\" or \"cuda:N\"",
                    device);
    ops_ctx *c = calloc(1, sizeof *c);
    if (!c) return fail(e, STATUS_NO_MEMORY, "ops: no memory for a context");
    c->backend = backend;
    c->is_fast = settings->is_fast;
    status st = backend->open(&c->state, settings, index, c->device_text, sizeof c->device_text, e);
    if (st != STATUS_OK) {
        free(c);
        return st;
    }
    *ctx = c;
    return STATUS_OK;
}

int ops_device_count(const char *name) {
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++)
        if (strcmp(backends[i]->name, name) == 0) return backends[i]->count();
    return 0;
}

void ops_close(ops_ctx **ctx) {
    if (!*ctx) return;
    (*ctx)->backend->close((*ctx)->state);
    free(*ctx);
    *ctx = NULL;
}

const char *ops_device_text(const ops_ctx *ctx) { return ctx->device_text; }

bool ops_takes_cache(const ops_ctx *ctx, ops_dtype activations, ops_dtype cache) {
    return cache == activations || (ctx->backend->caches & OPS_DTYPE_BIT(cache)) != 0;
}

ops_dtype ops_activation_dtype(const ops_ctx *ctx, ops_dtype stored) {
    ops_dtype dtype = dtype_is_quantized(stored) ? OPS_DTYPE_BF16 : stored;
    return ctx->backend->activations & OPS_DTYPE_BIT(dtype) ? dtype : OPS_DTYPE_F32;
}

void ops_set_progress(ops_ctx *ctx, ops_progress *progress, void *user) {
    ctx->progress = progress;
    ctx->progress_user = user;
}

/* ---- memory -------------------------------------------------------------------------------- */

status ops_block_open(ops_ctx *ctx, ops_block *block, size_t size_bytes, err *e) {
    *block = (ops_block){.ctx = ctx};
    if (size_bytes == 0) return STATUS_OK;
    TRY(open_not_recording(ctx, e));
    TRY(ctx->backend->memory_open(ctx->state, &block->data, size_bytes, e));
    block->size_bytes = size_bytes;
    return STATUS_OK;
}

void ops_block_close(ops_block *block) {
    if (block->data)
        block->ctx->backend->memory_close(block->ctx->state, block->data, block->size_bytes);
    *block = (ops_block){0};
}

static size_t round_up_cut(size_t bytes) {
    CHECK(bytes <= SIZE_MAX - CUT_ALIGN_BYTES, "the bytes of a cut fit");
    return (bytes + CUT_ALIGN_BYTES - 1) / CUT_ALIGN_BYTES * CUT_ALIGN_BYTES;
}

size_t ops_cut_bytes(ops_dtype dtype, int64_t n_elements) {
    size_t bytes;
    CHECK(n_elements >= 0 &&
              !__builtin_mul_overflow((size_t)n_elements, dtype_bytes(dtype), &bytes),
          "the bytes of a cut fit");
    return round_up_cut(bytes);
}

ops_tensor ops_block_cut(ops_block *block, ops_dtype dtype, int n_dims, const int64_t *dims) {
    ops_tensor t = tensor_make(NULL, OPS_PLACE_DEVICE, dtype, n_dims, dims);
    size_t bytes = ops_cut_bytes(dtype, tensor_elements(&t));
    CHECK(bytes <= round_up_cut(block->size_bytes) - block->used_bytes,
          "a block is as large as the sum of its cuts");
    if (block->data) t.data = (unsigned char *)block->data + block->used_bytes;
    block->used_bytes += bytes;
    return t;
}

status ops_host_open(ops_ctx *ctx, void **host, size_t size_bytes, err *e) {
    *host = NULL;
    TRY(open_not_recording(ctx, e));
    return size_bytes ? ctx->backend->host_open(ctx->state, host, size_bytes, e) : STATUS_OK;
}

void ops_host_close(ops_ctx *ctx, void **host, size_t size_bytes) {
    if (*host) ctx->backend->host_close(ctx->state, *host, size_bytes);
    *host = NULL;
}

/* ---- crossings ----------------------------------------------------------------------------- */

static status rule_crossing(const ops_ctx *ctx, const ops_tensor *t, const void *host) {
    TRY(rule_not_recording(ctx));
    if (t->place != OPS_PLACE_DEVICE) return STATUS_UNSUPPORTED;
    if (!t->data || !host) return STATUS_BAD_ARGUMENT;
    return is_contiguous(t) ? STATUS_OK : STATUS_BAD_SHAPE;
}

status ops_upload(ops_ctx *ctx, ops_tensor *out, const void *host) {
    if (is_empty(out)) return STATUS_OK;
    TRY(rule_crossing(ctx, out, host));
    return ctx->backend->upload(ctx->state, out->data, host, tensor_bytes(out));
}

status ops_download(ops_ctx *ctx, void *host, const ops_tensor *x) {
    if (is_empty(x)) return STATUS_OK;
    TRY(rule_crossing(ctx, x, host));
    return ctx->backend->download(ctx->state, host, x->data, tensor_bytes(x));
}

status ops_sync(ops_ctx *ctx) {
    TRY(rule_not_recording(ctx));
    return ctx->backend->sync(ctx->state);
}

bool ops_runs_ahead(const ops_ctx *ctx) { return ctx->backend->mark_open != NULL; }

status ops_upload_ahead(ops_ctx *ctx, ops_tensor *out, const void *host) {
    if (!ops_runs_ahead(ctx) || is_empty(out)) return ops_upload(ctx, out, host);
    TRY(rule_crossing(ctx, out, host));
    return ctx->backend->upload_ahead(ctx->state, out->data, host, tensor_bytes(out));
}

status ops_download_behind(ops_ctx *ctx, void *host, const ops_tensor *x) {
    if (!ops_runs_ahead(ctx) || is_empty(x)) return ops_download(ctx, host, x);
    TRY(rule_crossing(ctx, x, host));
    return ctx->backend->download_behind(ctx->state, host, x->data, tensor_bytes(x));
}

status ops_mark_open(ops_ctx *ctx, ops_mark **mark, err *e) {
    *mark = NULL;
    TRY(open_not_recording(ctx, e));
    return ops_runs_ahead(ctx) ? ctx->backend->mark_open(ctx->state, mark, e) : STATUS_OK;
}

status ops_mark_set(ops_ctx *ctx, ops_mark *mark) {
    TRY(rule_not_recording(ctx));
    return ops_runs_ahead(ctx) ? ctx->backend->mark_set(ctx->state, mark) : STATUS_OK;
}

status ops_mark_wait(ops_ctx *ctx, ops_mark *mark) {
    TRY(rule_not_recording(ctx));
    return ops_runs_ahead(ctx) ? ctx->backend->mark_wait(ctx->state, mark) : ops_sync(ctx);
}

void ops_mark_close(ops_ctx *ctx, ops_mark **mark) {
    if (*mark) ctx->backend->mark_close(ctx->state, *mark);
    *mark = NULL;
}

/* ---- graphs -------------------------------------------------------------------------------- */

bool ops_has_graphs(const ops_ctx *ctx) { return ctx->backend->graph_begin != NULL; }

static status rule_graphs(const ops_ctx *ctx, err *e) {
    return ops_has_graphs(ctx) ? STATUS_OK : fail(e, STATUS_UNSUPPORTED, "ops: device %s has no graphs", ctx->device_text);
}

status ops_graph_begin(ops_ctx *ctx, err *e) {
    TRY(rule_graphs(ctx, e));
    if (ctx->is_recording) return fail(e, STATUS_BAD_ARGUMENT, "ops: a graph begins while another is recorded");
    TRY(ctx->backend->graph_begin(ctx->state, e));
    ctx->is_recording = true;
    return STATUS_OK;
}

status ops_graph_end(ops_ctx *ctx, ops_graph **graph, err *e) {
    if (graph) *graph = NULL;
    TRY(rule_graphs(ctx, e));
    if (!ctx->is_recording) return fail(e, STATUS_BAD_ARGUMENT, "ops: a graph ends that did not begin");
    ctx->is_recording = false;
    return ctx->backend->graph_end(ctx->state, graph, e);
}

bool ops_graph_is_current(const ops_ctx *ctx, const ops_graph *graph) {
    return ops_has_graphs(ctx) && graph && ctx->backend->graph_is_current(ctx->state, graph);
}

status ops_graph_run(ops_ctx *ctx, const ops_graph *graph) {
    if (!ops_has_graphs(ctx)) return STATUS_UNSUPPORTED;
    TRY(rule_not_recording(ctx));
    if (!ops_graph_is_current(ctx, graph)) return STATUS_BAD_ARGUMENT;
    return done(ctx, ctx->backend->graph_run(ctx->state, graph));
}

void ops_graph_close(ops_ctx *ctx, ops_graph **graph) {
    if (*graph) ctx->backend->graph_close(ctx->state, *graph);
    *graph = NULL;
}
