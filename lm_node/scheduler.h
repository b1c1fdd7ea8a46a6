/* Continuous batching: who computes what in this step of the engine.
 *
 *     st = scheduler_open(&s, ctx, m, &settings, &callbacks, &e);
 *     st = scheduler_submit(s, &question, &e);
 *     while (scheduler_step(s)) {}                  // callbacks say what came out
 *     scheduler_cancel(s, user);
 *
 * A question is a list of ids with a PROMPT_IMAGE_ID for each of its images. What stands up to and including
 * the last image is its prefix: it is computed once for all questions with equal prefix ids, images and adapter, and
 * its keys and values stay for later ones until their room is needed. Running questions decode one token a step;
 * what is left of the step's rows goes to prompts, in pieces, so that a long prompt stalls nobody. The own rows of all
 * questions that wait for a prefix come behind its last ones in the same step, as far as there is room.
 *
 * A question is admitted when the blocks it can ever need are free; until then it waits in order, and
 * nothing that runs is ever thrown out. What a question answers does not depend on what runs beside it.
 * One thread, that of the context. Callbacks do not call the scheduler. */
#ifndef LM_NODE_SCHEDULER_H
#define LM_NODE_SCHEDULER_H

#include "base/hash.h"
#include "lm_node/lm_decoder.h"
#include "lm_node/sampler.h"
#include "model/model.h"
#include "ops/ops.h"

typedef struct scheduler scheduler;

typedef struct {
    uint64_t kv_bytes;
    int max_questions; /* running at once */
    int chunk_rows;    /* rows of prompts in one step */
} scheduler_settings;

/* What tells images apart: the hash of the bytes, or of the hashes of several, and how they were read. */
typedef struct {
    unsigned char sha256[HASH_SHA256_BYTES];
    uint32_t flags;
} scheduler_image;

typedef struct {
    void *user;         /* whose it is: names it in callbacks and in scheduler_cancel */
    int question_idx;
    int adapter;        /* served by the model, 0: none */
    const int32_t *ids; /* copied */
    int n_ids;
    scheduler_image image; /* with PROMPT_IMAGE_ID in ids */
    const void *features;  /* [images, n_tokens, tower hidden] in model_tower_dtype, copied; may be NULL when
                              scheduler_has_prefix said so */
    sampler_params sampling;
    int max_new_tokens; /* 1 or more; cut to what the context leaves */
    bool ignores_end;   /* goes on behind the token that ends an answer: for measuring */
} scheduler_question;

typedef enum { SCHEDULER_STOP, SCHEDULER_LENGTH, SCHEDULER_ERROR } scheduler_finish;

typedef struct {
    /* A token, the end token included. True: enough, finish with SCHEDULER_STOP. */
    bool (*token)(void *user, int question_idx, const sampled_token *t);
    /* The last word about a question. prefix_cached: another question had its prefix computed. why: with
     * SCHEDULER_ERROR only, else NULL. */
    void (*finished)(void *user, int question_idx, scheduler_finish reason, bool prefix_cached,
                     const err *why);
} scheduler_callbacks;

typedef struct {
    uint64_t prefill_tokens, prefix_tokens_reused, decode_tokens, steps, prefixes, evictions;
    int n_running, n_waiting, kv_blocks, kv_blocks_in_use;
} scheduler_counters;

MUST_USE status scheduler_open(scheduler **s, ops_ctx *ctx, const model *m,
                               const scheduler_settings *settings,
                               const scheduler_callbacks *callbacks, err *e);
void scheduler_close(scheduler **s);

/* Whether the prefix of q (ids, image, adapter) is resident or being computed, so that it needs no features. Only
 * true until the next call of scheduler_step. */
bool scheduler_has_prefix(const scheduler *s, const scheduler_question *q);

/* q->sampling was checked. Errors: PROMPT_TOO_LONG (with both numbers), BAD_PROMPT (empty, an unknown id,
 * nothing behind the last image), BAD_ARGUMENT, NO_MEMORY, NOT_FOUND (no features and no prefix). */
MUST_USE status scheduler_submit(scheduler *s, const scheduler_question *q, err *e);

/* Drops every question of user; nothing is called back for them. */
void scheduler_cancel(scheduler *s, const void *user);

/* One step of the engine; true when there is more to do. */
bool scheduler_step(scheduler *s);

scheduler_counters scheduler_read_counters(const scheduler *s);
lm_decoder_memory scheduler_get_memory(const scheduler *s);

#endif
