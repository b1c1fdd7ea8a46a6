/* Three lists: prefixes (resident or being computed), waiting questions in order, and running ones. A step
 * takes one row of every question that decodes, image by image, then fills its chunk with rows of prompts: of a prefix for
 * the first question that wants it, of a question whose prefix is there or complete with this step.
 *
 * A prefix mostly ends inside a block, and every question on it goes on in a block of its own, which has to begin with the
 * prefix's last rows. What earlier steps have written of them is copied before the step; rows of the step itself are
 * written to both blocks (lm_kv_twice). Either way they are computed once, and nobody waits a step, in which all weights are
 * read, for them. Only a prefix of whose last block one step has written a part and this one the rest has its questions
 * wait for the next.
 *
 * Room: a prefix nobody wants is evicted when its blocks are needed, the least recently used first. One
 * that only waiting questions want stays, unless nothing runs: then nobody else would ever make room, so
 * it is unloaded and computed again later from its features, which are kept as long as the prefix. */
#include "lm_node/scheduler.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/log.h"
#include "lm_node/image_memory.h"
#include "lm_node/kv_cache.h"
#include "lm_node/lm_decoder.h"
#include "lm_node/prompt.h"

#define IMAGES_AT_ONCE 64 /* that memory for features is opened for: of 729 rows of 1152 halves 107 MB */

typedef struct prefix {
    struct prefix *next;
    scheduler_image image;
    int adapter;
    int32_t *ids; /* up to and with its last image */
    bool is_long; /* computed as part of prompts longer than long_from */
    int n_ids, n_tokens, n_images;
    unsigned char **features; /* [n_images], each a place of s->images */
    kv_seq seq;    /* closed until a question that wants it is admitted */
    int n_done;    /* positions computed */
    int n_planned; /* positions of the current step, done when it succeeds */
    int first_row; /* of the current step, of these */
    int n_users;   /* questions, waiting and running */
    bool is_broken; /* gave something that is not a number: no further question may share it */
    uint64_t used; /* step of last use */
} prefix;

typedef struct running {
    struct running *next;
    scheduler_question q; /* ids and features are not used after submit */
    int32_t *ids;         /* behind the prefix: prompt, then what was generated */
    int n_prompt, n_ids, n_max;
    int n_done; /* of ids, with keys and values */
    prefix *prefix;
    bool computes_prefix; /* rows of it were computed because this one wanted them */
    bool is_forked;
    kv_seq seq;
} running;

struct scheduler {
    lm_decoder *decoder;
    kv_cache *kv;
    sampler *sampler;
    scheduler_settings settings;
    scheduler_callbacks callbacks;
    int32_t eos_id;
    int image_tokens, max_context, n_kv_blocks;
    int long_from;  /* positions from which a prompt turns its keys otherwise; INT_MAX: it never does */
    int n_vocab_in; /* ids that have an embedding */
    size_t feature_row_bytes;
    image_memory *images; /* features of prefixes */
    prefix *prefixes;
    running *waiting, **waiting_last;
    running *active, **active_last;
    int n_active, n_waiting;
    scheduler_counters counters;
    /* One step's arrays. */
    int32_t *row_ids, *positions, *spans, *slots, *seqs, *adapters, *image_rows, *tables, *out_rows;
    ops_candidates_wanted *wanted;
    lm_kv_twice *twice;
    const unsigned char **feature_rows;
    running **out_of; /* whose logits row */
    const kv_seq **seq_of;
    lm_batch batch;
    int max_rows, max_seqs;
};

/* ---- prefixes ---------------------------------------------------------------------------------- */

/* How many ids a prompt's prefix has, its last image included; 0 without an image. */
static int prefix_ids(const int32_t *ids, int n_ids) {
    while (n_ids > 0 && ids[n_ids - 1] != PROMPT_IMAGE_ID) n_ids--;
    return n_ids;
}

static int count_images(const int32_t *ids, int n_ids) {
    int n = 0;
    for (int i = 0; i < n_ids; i++) n += ids[i] == PROMPT_IMAGE_ID;
    return n;
}

/* Rows of ids once images are in their places. */
static int64_t count_tokens(const scheduler *s, const int32_t *ids, int n_ids) {
    return n_ids + (int64_t)count_images(ids, n_ids) * (s->image_tokens - 1);
}

/* The prefix of q, which has n_ids ids before its image. */
static prefix *find_prefix(const scheduler *s, const scheduler_question *q, int n_ids, bool is_long) {
    for (prefix *p = s->prefixes; p; p = p->next)
        if (!p->is_broken && p->is_long == is_long && p->adapter == q->adapter && p->n_ids == n_ids &&
            p->image.flags == q->image.flags &&
            memcmp(p->image.sha256, q->image.sha256, sizeof q->image.sha256) == 0 &&
            memcmp(p->ids, q->ids, (size_t)n_ids * sizeof *q->ids) == 0)
            return p;
    return NULL;
}

bool scheduler_has_prefix(const scheduler *s, const scheduler_question *q) {
    int n_shared = prefix_ids(q->ids, q->n_ids);
    return n_shared > 0 && find_prefix(s, q, n_shared, count_tokens(s, q->ids, q->n_ids) > s->long_from) != NULL;
}

static void free_features(scheduler *s, prefix *p) {
    for (int i = 0; p->features && i < p->n_images; i++) image_memory_give(s->images, p->features[i]);
    free(p->features);
}

/* As they are handed over, each image to a place of its own. */
static status keep_features(scheduler *s, prefix *p, const unsigned char *features, err *e) {
    const size_t image_bytes = (size_t)s->image_tokens * s->feature_row_bytes;
    for (int i = 0; i < p->n_images; i++) {
        p->features[i] = image_memory_take(s->images, e);
        if (!p->features[i]) return e->code;
        memcpy(p->features[i], features + (size_t)i * image_bytes, image_bytes);
    }
    return STATUS_OK;
}

static void free_prefix(scheduler *s, prefix *p) {
    for (prefix **at = &s->prefixes; *at; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
    kv_seq_close(s->kv, &p->seq);
    free_features(s, p);
    free(p->ids);
    free(p);
}

static status make_prefix(scheduler *s, prefix **made, const scheduler_question *q, int n_ids, bool is_long, err *e) {
    prefix *p = calloc(1, sizeof *p);
    if (p) {
        p->n_images = count_images(q->ids, n_ids);
        p->ids = malloc((size_t)n_ids * sizeof *p->ids);
        p->features = calloc((size_t)p->n_images, sizeof *p->features);
    }
    bool has_memory = p && p->ids && p->features;
    status st = has_memory ? keep_features(s, p, q->features, e) : fail(e, STATUS_NO_MEMORY, "question: no memory for its image");
    if (st != STATUS_OK) {
        if (p) free_prefix(s, p);
        return st;
    }
    p->image = q->image;
    p->adapter = q->adapter;
    p->is_long = is_long;
    p->n_ids = n_ids;
    p->n_tokens = (int)count_tokens(s, q->ids, n_ids);
    memcpy(p->ids, q->ids, (size_t)n_ids * sizeof *p->ids);
    p->next = s->prefixes;
    s->prefixes = p;
    s->counters.prefixes++;
    *made = p;
    return STATUS_OK;
}

static void unload_prefix(scheduler *s, prefix *p) {
    kv_seq_close(s->kv, &p->seq);
    p->n_done = p->n_planned = 0;
}

/* For `wanted`: gives back the blocks of one prefix; false when there is none to take. */
static bool make_room(scheduler *s, const prefix *wanted) {
    prefix *oldest = NULL;
    for (prefix *p = s->prefixes; p; p = p->next)
        if (p->n_users == 0 && p->seq.blocks && (!oldest || p->used < oldest->used)) oldest = p;
    for (prefix *p = s->prefixes; p && !oldest && !s->active; p = p->next)
        if (p != wanted && p->seq.blocks) oldest = p;
    if (!oldest) return false;
    if (oldest->n_users == 0) free_prefix(s, oldest);
    else unload_prefix(s, oldest);
    s->counters.evictions++;
    return true;
}

/* ---- questions ---------------------------------------------------------------------------------- */

static void free_running(scheduler *s, running *r) {
    kv_seq_close(s->kv, &r->seq);
    if (r->prefix) {
        prefix *p = r->prefix;
        p->used = s->counters.steps;
        /* Nobody waits for the rest of it. */
        if (--p->n_users == 0 && (p->n_done < p->n_tokens || p->is_broken)) free_prefix(s, p);
    }
    free(r->ids);
    free(r);
}

/* Ids come from a tokenizer, which may know more of them than the model has rows. */
static status check_ids(const scheduler *s, const scheduler_question *q, err *e) {
    for (int i = 0; i < q->n_ids; i++)
        if (q->ids[i] != PROMPT_IMAGE_ID && (q->ids[i] < 0 || q->ids[i] >= s->n_vocab_in))
            return fail(e, STATUS_BAD_PROMPT, "prompt: token %d at place %d, the model has 0 to %d",
                        (int)q->ids[i], i, s->n_vocab_in - 1);
    if (q->n_ids < 1 || q->ids[q->n_ids - 1] == PROMPT_IMAGE_ID)
        return fail(e, STATUS_BAD_PROMPT, "prompt: no token %s",
                    q->n_ids < 1 ? "at all" : "behind the image");
    if (q->max_new_tokens < 1)
        return fail(e, STATUS_BAD_ARGUMENT, "max_new_tokens %d, need 1 or more", q->max_new_tokens);
    return STATUS_OK;
}

static status check_length(const scheduler *s, const scheduler_question *q, int64_t n_prompt, err *e) {
    if (n_prompt >= s->max_context)
        return fail(e, STATUS_PROMPT_TOO_LONG,
                    "prompt of %lld tokens, the context is %d and an answer needs room", (long long)n_prompt,
                    s->max_context);
    int64_t n_wanted = n_prompt + q->max_new_tokens;
    int n_all = n_wanted > s->max_context ? s->max_context : (int)n_wanted;
    int need = kv_blocks_for(n_all) + 1; /* one more: the partial block of a prefix is there twice */
    if (need > s->n_kv_blocks)
        return fail(e, STATUS_PROMPT_TOO_LONG,
                    "prompt and answer of %d tokens need %d blocks of keys and values, there are %d",
                    n_all, need, s->n_kv_blocks);
    return STATUS_OK;
}

status scheduler_submit(scheduler *s, const scheduler_question *q, err *e) {
    status st = check_ids(s, q, e);
    if (st != STATUS_OK) return st;
    int n_shared = prefix_ids(q->ids, q->n_ids), n_own = q->n_ids - n_shared;
    int64_t n_tokens = count_tokens(s, q->ids, q->n_ids);
    st = check_length(s, q, n_tokens, e);
    if (st != STATUS_OK) return st;
    int n_prompt = (int)n_tokens;
    int n_new = s->max_context - n_prompt;
    if (n_new > q->max_new_tokens) n_new = q->max_new_tokens;

    running *r = calloc(1, sizeof *r);
    if (r) r->ids = malloc((size_t)(n_own + n_new) * sizeof *r->ids);
    if (!r || !r->ids) {
        free(r);
        return fail(e, STATUS_NO_MEMORY, "question: no memory");
    }
    r->q = *q;
    r->n_prompt = r->n_ids = n_own;
    r->n_max = n_own + n_new;
    memcpy(r->ids, q->ids + n_shared, (size_t)n_own * sizeof *r->ids);
    if (n_shared > 0) {
        bool is_long = n_prompt > s->long_from;
        r->prefix = find_prefix(s, q, n_shared, is_long);
        if (!r->prefix && !q->features)
            st = fail(e, STATUS_NOT_FOUND, "question: no features of its image");
        else if (!r->prefix)
            st = make_prefix(s, &r->prefix, q, n_shared, is_long, e);
        if (st != STATUS_OK) {
            free(r->ids);
            free(r);
            return st;
        }
        r->prefix->n_users++;
    }
    *s->waiting_last = r;
    s->waiting_last = &r->next;
    s->n_waiting++;
    return STATUS_OK;
}

static void unlink_running(running **list, running ***last, int *n, running *r) {
    for (running **at = list; *at; at = &(*at)->next) {
        if (*at != r) continue;
        *at = r->next;
        if (!*at) *last = at;
        (*n)--;
        return;
    }
}

static void cancel_in(scheduler *s, running **list, running ***last, int *n, const void *user) {
    for (running *r = *list, *next; r; r = next) {
        next = r->next;
        if (r->q.user != user) continue;
        unlink_running(list, last, n, r);
        free_running(s, r);
    }
}

void scheduler_cancel(scheduler *s, const void *user) {
    cancel_in(s, &s->waiting, &s->waiting_last, &s->n_waiting, user);
    cancel_in(s, &s->active, &s->active_last, &s->n_active, user);
}

static void finish(scheduler *s, running *r, scheduler_finish reason, const err *why) {
    unlink_running(&s->active, &s->active_last, &s->n_active, r);
    bool prefix_cached = r->prefix && !r->computes_prefix;
    s->callbacks.finished(r->q.user, r->q.question_idx, reason, prefix_cached, why);
    free_running(s, r);
}

/* ---- admission ---------------------------------------------------------------------------------- */

/* Reserves everything the question can need. BUSY: no room now, but running questions will make some. */
static status reserve(scheduler *s, running *r) {
    prefix *p = r->prefix;
    int n_prefix = p ? p->n_tokens : 0;
    status st = STATUS_OK;
    if (p && !p->seq.blocks) {
        while ((st = kv_seq_open(s->kv, &p->seq, n_prefix, 0)) == STATUS_BUSY && make_room(s, p)) {}
        if (st != STATUS_OK) return st;
    }
    while ((st = kv_seq_open(s->kv, &r->seq, n_prefix + r->n_max, n_prefix)) == STATUS_BUSY &&
           make_room(s, p)) {}
    return st;
}

static void admit(scheduler *s) {
    while (s->waiting && s->n_active < s->settings.max_questions) {
        running *r = s->waiting;
        status st = reserve(s, r);
        if (st == STATUS_BUSY) {
            CHECK(s->active, "what was accepted fits when nothing else runs");
            return;
        }
        unlink_running(&s->waiting, &s->waiting_last, &s->n_waiting, r);
        r->next = NULL;
        *s->active_last = r;
        s->active_last = &r->next;
        s->n_active++;
        if (st != STATUS_OK) {
            err e;
            IGNORE(fail(&e, st, "question: no memory to start"), "the reason goes to the asker");
            finish(s, r, SCHEDULER_ERROR, &e);
        }
    }
}

/* ---- one step ----------------------------------------------------------------------------------- */

static int add_seq(scheduler *s, const kv_seq *seq) {
    CHECK(s->batch.n_seqs < s->max_seqs, "a step has room for every running sequence");
    s->seq_of[s->batch.n_seqs] = seq;
    return s->batch.n_seqs++;
}

/* Whose rows are added: one sequence of the step, with one adapter. */
typedef struct {
    int seq_idx, adapter;
    const kv_seq *seq;
} row_owner;

/* span: positions of the prompt it is a part of, or up to itself when it is decoded. */
static void add_row(scheduler *s, const row_owner *of, int32_t id, int position, int span) {
    int row = s->batch.n_rows++;
    s->adapters[row] = of->adapter;
    s->spans[row] = span;
    s->row_ids[row] = id;
    s->positions[row] = position;
    s->slots[row] = kv_seq_slot(of->seq, position);
    s->seqs[row] = of->seq_idx;
}

/* image_row: of all its images' rows. */
static void add_image_row(scheduler *s, const row_owner *of, const prefix *p, int image_row, int position, int span) {
    s->image_rows[s->batch.n_image_rows] = s->batch.n_rows;
    s->feature_rows[s->batch.n_image_rows] =
        p->features[image_row / s->image_tokens] + (size_t)(image_row % s->image_tokens) * s->feature_row_bytes;
    s->batch.n_image_rows++;
    add_row(s, of, 0, position, span);
}

static void add_prefix_rows(scheduler *s, prefix *p, int *room) {
    int n = p->n_tokens - p->n_done;
    if (n > *room) n = *room;
    kv_seq_extend(s->kv, &p->seq, n);
    const row_owner of = {add_seq(s, &p->seq), p->adapter, &p->seq};
    int image_row = 0;
    for (int position = 0, at = 0; position < p->n_done + n; position++) {
        bool is_image = p->ids[at] == PROMPT_IMAGE_ID;
        int span = p->is_long ? s->long_from + 1 : position + 1;
        if (position >= p->n_done && is_image) add_image_row(s, &of, p, image_row, position, span);
        else if (position >= p->n_done) add_row(s, &of, p->ids[at], position, span);
        image_row += is_image;
        if (!is_image || image_row % s->image_tokens == 0) at++;
    }
    p->n_planned = n;
    p->first_row = s->batch.n_rows - n;
    *room -= n;
    s->counters.prefill_tokens += (uint64_t)n;
}

/* Positions of p's last block, unless it is full. */
static int n_in_last_block(const prefix *p) { return p->n_tokens % KV_BLOCK_TOKENS; }

/* Whether rows of p's questions can be in this step: p is complete before it, or with it and its last block is of one piece. */
static bool can_be_followed(const prefix *p) {
    if (p->n_done == p->n_tokens) return true;
    return p->n_done + p->n_planned == p->n_tokens && p->n_done <= p->n_tokens - n_in_last_block(p);
}

/* Does not fail when p's rows are in the step. */
static status fork_prefix(scheduler *s, running *r, err *e) {
    const prefix *p = r->prefix;
    if (r->is_forked || !p) return STATUS_OK;
    r->is_forked = true;
    if (!r->computes_prefix) s->counters.prefix_tokens_reused += (uint64_t)p->n_tokens;
    kv_copy copy = kv_seq_fork(s->kv, &r->seq, &p->seq, p->n_tokens);
    if (copy.from < 0) return STATUS_OK;
    if (p->n_planned == 0) return lm_decoder_copy_block(s->decoder, copy.to, copy.from, e);
    CHECK(s->batch.n_twice < s->max_seqs, "a step has room for every running sequence");
    s->twice[s->batch.n_twice++] = (lm_kv_twice){.first_row = p->first_row + p->n_planned - n_in_last_block(p),
                                                 .n_rows = n_in_last_block(p),
                                                 .first_slot = copy.to * KV_BLOCK_TOKENS};
    return STATUS_OK;
}

/* n rows of the question's own ids; the last one's logits are wanted when no id is left. */
static void add_own_rows(scheduler *s, running *r, int n) {
    int base = r->prefix ? r->prefix->n_tokens : 0;
    kv_seq_extend(s->kv, &r->seq, n);
    const row_owner of = {add_seq(s, &r->seq), r->q.adapter, &r->seq};
    for (int i = 0; i < n; i++) {
        int at = r->n_done + i, span = base + (at < r->n_prompt ? r->n_prompt : at + 1);
        add_row(s, &of, r->ids[at], base + at, span);
    }
    r->n_done += n;
    if (r->n_done < r->n_ids) return;
    s->out_of[s->batch.n_out] = r;
    s->wanted[s->batch.n_out] = sampler_wants(&r->q.sampling, lm_decoder_n_offered(s->decoder));
    s->out_rows[s->batch.n_out++] = s->batch.n_rows - 1;
}

/* Of the questions with one prefix, or of those without. */
static void add_decode_rows_of(scheduler *s, const prefix *p) {
    for (running *r = s->active; r; r = r->next)
        if (r->prefix == p && r->n_ids > r->n_prompt) {
            add_own_rows(s, r, 1);
            s->counters.decode_tokens++;
        }
}

/* Questions on one image stand beside each other: a device reads the keys that they share once for all of them. */
static void add_decode_rows(scheduler *s) {
    add_decode_rows_of(s, NULL);
    for (prefix *p = s->prefixes; p; p = p->next)
        if (p->n_users > 0) add_decode_rows_of(s, p);
}

/* In the order of the questions: of each its prefix, if nobody before it wanted that, and then its own rows. */
static void add_prompt_rows(scheduler *s) {
    int room = s->settings.chunk_rows;
    for (running *r = s->active, *next; r && room > 0; r = next) {
        prefix *p = r->prefix;
        next = r->next;
        if (r->n_ids > r->n_prompt) continue;
        if (p && p->n_done < p->n_tokens && p->n_planned == 0) {
            add_prefix_rows(s, p, &room);
            r->computes_prefix = true;
        }
        if (room == 0 || (p && !can_be_followed(p))) continue;
        err e;
        if (fork_prefix(s, r, &e) != STATUS_OK) {
            finish(s, r, SCHEDULER_ERROR, &e);
            continue;
        }
        int n = r->n_prompt - r->n_done;
        if (n > room) n = room;
        add_own_rows(s, r, n);
        room -= n;
        s->counters.prefill_tokens += (uint64_t)n;
    }
}

static void settle_prefixes(scheduler *s, bool has_run) {
    for (prefix *p = s->prefixes; p; p = p->next) {
        if (!has_run && p->n_planned > 0) unload_prefix(s, p);
        p->n_done += p->n_planned;
        p->n_planned = 0;
    }
}

static void fill_tables(scheduler *s) {
    int columns = 1;
    for (int i = 0; i < s->batch.n_seqs; i++)
        if (s->seq_of[i]->n_blocks > columns) columns = s->seq_of[i]->n_blocks;
    memset(s->tables, 0, (size_t)(s->batch.n_seqs * columns) * sizeof *s->tables);
    for (int i = 0; i < s->batch.n_seqs; i++)
        memcpy(s->tables + i * columns, s->seq_of[i]->blocks,
               (size_t)s->seq_of[i]->n_blocks * sizeof *s->tables);
    s->batch.n_table_blocks = columns;
}

typedef struct {
    lm_decoder *decoder;
    int row;
} step_row;

static status fetch_logits(void *user, const float **logits, err *e) {
    const step_row *from = user;
    return lm_decoder_logits(from->decoder, logits, from->row, e);
}

/* The next token of a question whose logits are row i. */
static status pick_token(scheduler *s, sampled_token *t, const running *r, const lm_step *out, int i, err *e) {
    step_row from = {s->decoder, i};
    const sampler_row row = {&out->candidates[i], lm_decoder_n_offered(s->decoder), fetch_logits, &from};
    return sampler_pick(s->sampler, t, &row, &r->q.sampling, (uint64_t)(r->n_ids - r->n_prompt), e);
}

static void take_token(scheduler *s, running *r, const lm_step *out, int i) {
    sampled_token t;
    err e;
    if (pick_token(s, &t, r, out, i, &e) != STATUS_OK) {
        if (r->prefix) r->prefix->is_broken = true;
        finish(s, r, SCHEDULER_ERROR, &e);
        return;
    }
    bool wants_stop = s->callbacks.token(r->q.user, r->q.question_idx, &t);
    r->ids[r->n_ids++] = t.id;
    bool has_ended = t.id == s->eos_id && !r->q.ignores_end;
    if (has_ended || wants_stop) finish(s, r, SCHEDULER_STOP, NULL);
    else if (r->n_ids == r->n_max) finish(s, r, SCHEDULER_LENGTH, NULL);
}

static void fail_all(scheduler *s, const err *e) {
    log_error("step_failed", "reason=\"%s\"", e->text);
    while (s->active) finish(s, s->active, SCHEDULER_ERROR, e);
}

bool scheduler_step(scheduler *s) {
    admit(s);
    if (!s->active) return false;
    s->counters.steps++;
    s->batch = (lm_batch){.ids = s->row_ids,
                          .positions = s->positions,
                          .spans = s->spans,
                          .slots = s->slots,
                          .seqs = s->seqs,
                          .adapters = s->adapters,
                          .image_rows = s->image_rows,
                          .feature_rows = s->feature_rows,
                          .tables = s->tables,
                          .out_rows = s->out_rows,
                          .wanted = s->wanted,
                          .twice = s->twice};
    add_decode_rows(s);
    s->batch.n_decode_rows = s->batch.n_rows;
    add_prompt_rows(s);
    if (s->batch.n_rows == 0) return s->active || s->waiting;
    fill_tables(s);
    lm_step out;
    err e;
    if (lm_decoder_step(s->decoder, &out, &s->batch, &e) != STATUS_OK) {
        settle_prefixes(s, false);
        fail_all(s, &e);
        return s->waiting != NULL;
    }
    settle_prefixes(s, true);
    for (int i = 0; i < s->batch.n_out; i++) take_token(s, s->out_of[i], &out, i);
    return s->active || s->waiting;
}

scheduler_counters scheduler_read_counters(const scheduler *s) {
    scheduler_counters c = s->counters;
    c.n_running = s->n_active;
    c.n_waiting = s->n_waiting;
    c.kv_blocks = s->n_kv_blocks;
    c.kv_blocks_in_use = kv_cache_n_in_use(s->kv);
    return c;
}

lm_decoder_memory scheduler_get_memory(const scheduler *s) { return lm_decoder_get_memory(s->decoder); }

/* ---- opening and closing ------------------------------------------------------------------------ */

static status open_arrays(scheduler *s, err *e) {
    size_t rows = (size_t)s->max_rows, seqs = (size_t)s->max_seqs;
    size_t columns = (size_t)kv_blocks_for(s->max_context);
    int32_t **of_rows[] = {&s->row_ids, &s->positions, &s->spans, &s->slots, &s->seqs, &s->adapters, &s->image_rows};
    bool has_all = true;
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++)
        has_all &= (*of_rows[i] = calloc(rows, sizeof **of_rows[i])) != NULL;
    s->out_rows = calloc(seqs, sizeof *s->out_rows);
    s->wanted = calloc(seqs, sizeof *s->wanted);
    s->twice = calloc(seqs, sizeof *s->twice);
    s->tables = calloc(seqs * columns, sizeof *s->tables);
    s->feature_rows = calloc(rows, sizeof *s->feature_rows);
    s->out_of = calloc(seqs, sizeof(running *));
    s->seq_of = calloc(seqs, sizeof(kv_seq *));
    if (has_all && s->out_rows && s->wanted && s->twice && s->tables && s->feature_rows && s->out_of && s->seq_of)
        return STATUS_OK;
    return fail(e, STATUS_NO_MEMORY, "scheduler: no memory for steps of %d rows", s->max_rows);
}

/* No more at once than have room for their keys. */
static status open_images(scheduler *s, ops_ctx *ctx, err *e) {
    int n = s->n_kv_blocks / kv_blocks_for(s->image_tokens);
    if (n < 1) n = 1;
    if (n > IMAGES_AT_ONCE) n = IMAGES_AT_ONCE;
    return image_memory_open(&s->images, ctx, (size_t)s->image_tokens * s->feature_row_bytes, n, e);
}

status scheduler_open(scheduler **out, ops_ctx *ctx, const model *m,
                      const scheduler_settings *settings, const scheduler_callbacks *callbacks,
                      err *e) {
    *out = NULL;
    const model_config *c = model_get_config(m);
    size_t block_bytes = lm_decoder_block_bytes(ctx, m);
    uint64_t n_blocks = settings->kv_bytes / block_bytes;
    if (settings->max_questions < 1 || settings->max_questions > 4096 || settings->chunk_rows < 1 ||
        settings->chunk_rows > 65536)
        return fail(e, STATUS_BAD_ARGUMENT, "scheduler: %d questions, %d rows a step",
                    settings->max_questions, settings->chunk_rows);
    if (n_blocks < 2 || n_blocks > KV_BLOCKS_MAX)
        return fail(e, STATUS_BAD_ARGUMENT,
                    "kv-bytes: %llu gives %llu blocks of %zu bytes, need 2 to %d",
                    (unsigned long long)settings->kv_bytes, (unsigned long long)n_blocks,
                    block_bytes, KV_BLOCKS_MAX);
    scheduler *s = calloc(1, sizeof *s);
    if (!s) return fail(e, STATUS_NO_MEMORY, "scheduler");
    s->settings = *settings;
    s->callbacks = *callbacks;
    s->eos_id = tokenizer_eos_id(model_get_tokenizer(m));
    s->image_tokens = c->tower.n_tokens;
    s->max_context = c->decoder.max_positions;
    s->long_from = c->decoder.has_long_rope ? c->decoder.original_positions : INT_MAX;
    s->n_kv_blocks = (int)n_blocks;
    s->n_vocab_in = c->decoder.n_vocab_in;
    s->waiting_last = &s->waiting;
    s->active_last = &s->active;
    s->max_rows = settings->chunk_rows + settings->max_questions;
    s->max_seqs = 2 * settings->max_questions; /* each may compute its prefix, and itself */
    lm_decoder_settings d = {.max_rows = s->max_rows,
                             .max_seqs = s->max_seqs,
                             .max_out = settings->max_questions,
                             .max_context = s->max_context,
                             .kv_blocks = s->n_kv_blocks};
    status st = lm_decoder_open(&s->decoder, ctx, m, &d, e);
    if (st == STATUS_OK) st = kv_cache_open(&s->kv, s->n_kv_blocks, e);
    if (st == STATUS_OK) st = sampler_open(&s->sampler, lm_decoder_n_vocab(s->decoder), e);
    if (st == STATUS_OK) {
        s->feature_row_bytes = lm_decoder_feature_row_bytes(s->decoder);
        st = open_arrays(s, e);
    }
    if (st == STATUS_OK) st = open_images(s, ctx, e);
    if (st != STATUS_OK) {
        scheduler_close(&s);
        return st;
    }
    *out = s;
    return STATUS_OK;
}

void scheduler_close(scheduler **out) {
    scheduler *s = *out;
    if (!s) return;
    for (running *r = s->waiting, *next; r; r = next) {
        next = r->next;
        free_running(s, r);
    }
    for (running *r = s->active, *next; r; r = next) {
        next = r->next;
        free_running(s, r);
    }
    while (s->prefixes) free_prefix(s, s->prefixes);
    image_memory_close(&s->images);
    sampler_close(&s->sampler);
    kv_cache_close(&s->kv);
    lm_decoder_close(&s->decoder);
    free(s->row_ids);
    free(s->positions);
    free(s->spans);
    free(s->slots);
    free(s->seqs);
    free(s->adapters);
    free(s->image_rows);
    free(s->out_rows);
    free(s->wanted);
    free(s->twice);
    free(s->tables);
    free(s->feature_rows);
    free(s->out_of);
    free(s->seq_of);
    free(s);
    *out = NULL;
}
