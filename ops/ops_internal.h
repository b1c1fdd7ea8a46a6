/* Private to the front: a context, and what its two files share. */
#ifndef OPS_OPS_INTERNAL_H
#define OPS_OPS_INTERNAL_H

#include "ops/ops_backend.h"

#define DEVICE_TEXT_BYTES 96

struct ops_ctx {
    const ops_backend *backend;
    void *state;
    ops_progress *progress;
    void *progress_user;
    bool is_recording; /* a graph */
    bool is_fast;      /* ops_settings */
    char device_text[DEVICE_TEXT_BYTES];
};

/* What a device does while it records is to record. */
static inline status rule_not_recording(const ops_ctx *ctx) { return ctx->is_recording ? STATUS_UNSUPPORTED : STATUS_OK; }

static inline status open_not_recording(const ops_ctx *ctx, err *e) {
    status st = rule_not_recording(ctx);
    return st == STATUS_OK ? st : fail(e, st, "ops: opened while a graph is recorded");
}

static inline bool is_empty(const ops_tensor *t) {
    for (int i = 0; i < t->n_dims; i++)
        if (t->dims[i] == 0) return true;
    return false;
}

/* Rows one behind the other, not a view of columns. */
static inline bool is_contiguous(const ops_tensor *t) { return !t->row_stride || t->row_stride == t->dims[1]; }

/* What every operator ends with, and a graph of them. */
static inline status done(const ops_ctx *ctx, status st) {
    if (ctx->progress) ctx->progress(ctx->progress_user);
    return st;
}

#endif
