/* `mipha annotate`: every item of a plan through a service, every answer into the output.
 *
 * One loop: fill the window, wait for an event, write the result, now and then make what was written
 * durable and only then acknowledge it. An image is read when there is room for it and not before, so
 * memory is bounded by the window however long the list is. A result goes from the broker's memory to the
 * disk before the broker is told that it may forget it, so being killed at any moment costs repeated work and
 * no answer. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/same_file.h"
#include "base/stop.h"
#include "cli/commands.h"
#include "cli/progress.h"
#include "cli/prompts.h"
#include "cli/result_file.h"
#include "cli/result_line.h"
#include "cli/service.h"

#define DEFAULT_PROMPT "Describe the image."
#define SYNC_ITEMS     64
#define SYNC_US        (200 * CLOCK_MS_US)
#define POLL_MS        100
#define CANCEL_WAIT_US (3 * CLOCK_SECOND_US)

static const option_row rows[] = {
    {"prompt", 'p', OPTION_LIST, "TEXT", NULL, 0, 0,
     "a question for every image; may be repeated (without any: \"" DEFAULT_PROMPT "\")"},
    {"prompts", 0, OPTION_STRING, "FILE", NULL, 0, 0, "questions from a file, one a line"},
    {"input", 'i', OPTION_STRING, "ITEMS.jsonl", NULL, 0, 0,
     "items, one JSON object a line: id, image (path or data: URL; none: text alone) or a list of images, prompt or "
     "prompts, turns before them, adapter; - is standard input"},
    {"output", 'o', OPTION_STRING, "OUT.jsonl", NULL, 0, 0, "result lines go here instead of standard output, and what they are of into OUT.jsonl.manifest"},
    {"resume", 0, OPTION_FLAG, NULL, NULL, 0, 0, "finish an interrupted run: keep what OUT.jsonl has"},
    {"retry-failed", 0, OPTION_FLAG, NULL, NULL, 0, 0, "as --resume, and ask again what has failed: its old lines go"},
    {"overwrite", 0, OPTION_FLAG, NULL, NULL, 0, 0, "replace an OUT.jsonl that has results in it"},
    TEMPLATE_ROW,
    USE_ADAPTER_ROW,
    SAMPLING_ROWS,
    EXIF_ROW,
    {"concurrency", 'c', OPTION_INT, "N", "64", 1, 4096, "items under way at once"},
    SERVICE_ROWS,
    {"quiet", 'q', OPTION_FLAG, NULL, NULL, 0, 0, "no progress on stderr"},
    {0}};

const option_table annotate_table = {
    .program = "mipha annotate",
    .positional = "[PATH...]",
    .purpose = "answer questions about many images, one result line for each question",
    .example = "  mipha annotate -p \"What is in the picture?\" -p \"What colour is it?\" photos/ > answers.jsonl\n"
               "  mipha annotate --input items.jsonl -o answers.jsonl\n"
               "  mipha annotate --input items.jsonl -o answers.jsonl --resume\n"
               "  mipha annotate --input items.jsonl -o answers.jsonl --retry-failed\n"
               "  mipha annotate --broker tcp://gpu-box:7000 -o answers.jsonl photos/\n",
    .rows = rows,
    .positional_max = -1};

typedef struct {
    plan *p;
    result_file *out;
    client *c;
    progress bar;
    request_sampling sampling;
    const char *template_name; /* NULL: the checkpoint's own */
    const char *adapter;       /* of items that name none; NULL: none */
    bool exif;
    unsigned char digest[HASH_SHA256_BYTES];
    size_t next;           /* first item not yet looked at */
    bool has_loaded;       /* `loaded` is item next - 1 and waits for room */
    plan_item loaded;
    bool is_stopping;
    struct ticket *tickets; /* of all items the client has */
    buf lines;
    item_id unacked[SYNC_ITEMS]; /* written, not yet synced */
    size_t n_unacked;
    int64_t sync_due_us;   /* 0: nothing to sync */
} run;

/* ---- results out ----------------------------------------------------------------------------- */

static status sync_and_ack(run *r, err *e) {
    status st = result_file_sync(r->out, e);
    if (st != STATUS_OK) return st;
    for (size_t i = 0; i < r->n_unacked; i++) client_ack(r->c, &r->unacked[i]);
    r->n_unacked = 0;
    r->sync_due_us = 0;
    return STATUS_OK;
}

static status write_item(run *r, const result_subject *subject, const client_event *event, err *e) {
    buf_clear(&r->lines);
    status st = result_lines_append(&r->lines, subject, event, e);
    if (st == STATUS_OK) st = result_file_write(r->out, r->lines.data, r->lines.len_bytes, e);
    if (st != STATUS_OK) return st;
    r->bar.n_done++;
    if (result_event_has_failed(event)) r->bar.n_failed++;
    if (event->vision.features_cached) r->bar.n_cached++;
    if (!r->sync_due_us) r->sync_due_us = clock_now_us() + SYNC_US;
    return STATUS_OK;
}

/* Lines of two models in one file would be a trap for whoever reads them. */
static status check_model(const run *r, const client_event *event, err *e) {
    const char *before = result_file_fingerprint(r->out);
    if (!before || !event->has_fingerprints) return STATUS_OK;
    char hex[HASH_HEX_BYTES];
    hash_hex(hex, event->model_fingerprint, sizeof event->model_fingerprint);
    if (strncmp(before, "sha256:", 7) == 0 && strcmp(before + 7, hex) == 0) return STATUS_OK;
    return fail(e, STATUS_MODEL_MISMATCH,
                "the results so far are of model %.20s..., this one is sha256:%.13s...; use another -o",
                before, hex);
}

/* What an outstanding item needs to be written: owned, since the plan has moved on. */
typedef struct ticket {
    struct ticket *next, **link; /* in run.tickets */
    size_t idx;
    char *image;
    char *images[MESSAGE_IMAGES_MAX];
    size_t n_images;
    char **prompts; /* NULL: the plan's defaults */
    const char *const *shared_prompts;
    size_t n_prompts;
} ticket;

static void ticket_close(ticket *t) {
    *t->link = t->next;
    if (t->next) t->next->link = t->link;
    for (size_t i = 0; t->prompts && i < t->n_prompts; i++) free(t->prompts[i]);
    for (size_t i = 0; i < t->n_images; i++) free(t->images[i]);
    free(t->prompts);
    free(t->image);
    free(t);
}

static ticket *ticket_open(run *r, size_t idx, const plan_item *item, const prompt_list *defaults) {
    ticket *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->next = r->tickets;
    t->link = &r->tickets;
    if (t->next) t->next->link = &t->next;
    r->tickets = t;
    t->idx = idx;
    t->n_prompts = item->n_prompts;
    t->image = item->image ? strdup(item->image) : NULL;
    bool ok = t->image || !item->image;
    t->n_images = item->n_images;
    for (size_t i = 0; i < t->n_images; i++) ok = (t->images[i] = strdup(item->images[i])) && ok;
    if (item->prompts == defaults->texts) {
        t->shared_prompts = item->prompts;
    } else if (ok && (t->prompts = calloc(item->n_prompts, sizeof *t->prompts))) {
        for (size_t i = 0; i < item->n_prompts; i++)
            ok = (t->prompts[i] = strdup(item->prompts[i])) && ok;
        t->shared_prompts = (const char *const *)t->prompts;
    } else {
        ok = false;
    }
    if (ok) return t;
    ticket_close(t);
    return NULL;
}

static status take_result(run *r, const client_event *event, err *e) {
    ticket *t = event->tag;
    status st = STATUS_OK;
    /* What was cancelled by the person who stopped the run is left for --resume. */
    if (!(r->is_stopping && event->code == STATUS_CANCELLED)) {
        result_subject subject = {plan_id(r->p, t->idx), t->image, t->shared_prompts, t->n_prompts, r->exif,
                                  (const char *const *)t->images, t->n_images};
        st = check_model(r, event, e);
        if (st == STATUS_OK) st = write_item(r, &subject, event, e);
    }
    ticket_close(t);
    if (st != STATUS_OK) return st;
    r->unacked[r->n_unacked++] = event->id;
    return r->n_unacked == SYNC_ITEMS ? sync_and_ack(r, e) : STATUS_OK;
}

/* ---- items in -------------------------------------------------------------------------------- */

static status write_failed_item(run *r, const plan_item *item, status code, const char *why, err *e) {
    result_subject subject = {item->id, item->image, item->prompts, item->n_prompts, r->exif, item->images,
                              item->n_images};
    client_event event = result_event_failed(code, why);
    return write_item(r, &subject, &event, e);
}

static status submit_loaded(run *r, const prompt_list *defaults, err *e) {
    const plan_item *loaded = &r->loaded;
    request_question questions[MESSAGE_QUESTIONS_MAX];
    for (size_t i = 0; i < loaded->n_prompts; i++)
        questions[i] = (request_question){
            .prompt = loaded->prompts[i], .turns = loaded->turns, .n_turns = loaded->n_turns};
    request asked = {.questions = questions, .n_questions = loaded->n_prompts, .sampling = r->sampling,
                     .template_name = r->template_name,
                     .adapter = loaded->adapter ? loaded->adapter : r->adapter};
    client_item item = {.image = loaded->data, .images = loaded->all_data, .n_images = loaded->n_images,
                        .request = &asked, .flags = r->exif ? MESSAGE_FLAG_EXIF : 0};
    client_random_id(&item.id); /* one made of the run's contents would be spent, or somebody else's */
    ticket *t = ticket_open(r, r->next - 1, loaded, defaults);
    if (!t) return fail(e, STATUS_NO_MEMORY, "item \"%.200s\": out of memory", loaded->id);
    item.tag = t;
    err why;
    status st = client_submit(r->c, &item, &why);
    if (st == STATUS_OK) return STATUS_OK;
    ticket_close(t);
    if (st == STATUS_NO_MEMORY) {
        *e = why;
        return st;
    }
    return write_failed_item(r, loaded, st, why.text, e);
}

/* Loads and submits until the window is full or nothing is left. *has_more: something could still be
 * submitted without an answer coming first. */
static status fill_window(run *r, const prompt_list *defaults, bool *has_more, err *e) {
    *has_more = false;
    for (int n = 0; !r->is_stopping && n < SYNC_ITEMS; n++) {
        while (!r->has_loaded && r->next < plan_count(r->p) && result_file_is_done(r->out, r->next))
            r->next++;
        if (!r->has_loaded) {
            if (r->next == plan_count(r->p) || !client_has_room(r->c, 1)) return STATUS_OK;
            status st = plan_load(r->p, r->next++, &r->loaded, e);
            if (st != STATUS_OK) return st;
            r->has_loaded = true;
        }
        status st;
        if (r->loaded.code != STATUS_OK)
            st = write_failed_item(r, &r->loaded, r->loaded.code, r->loaded.why, e);
        else if (!client_has_room(r->c, r->loaded.n_bytes))
            return STATUS_OK;
        else
            st = submit_loaded(r, defaults, e);
        if (st != STATUS_OK) return st;
        r->has_loaded = false;
    }
    *has_more = !r->is_stopping;
    return STATUS_OK;
}

/* ---- the loop -------------------------------------------------------------------------------- */

static bool is_finished(const run *r) {
    if (client_unanswered(r->c) > 0) return false;
    return r->is_stopping || (!r->has_loaded && r->next == plan_count(r->p));
}

static status take_event(run *r, const client_event *event, err *e) {
    switch (event->kind) {
    case CLIENT_RESULT: return take_result(r, event, e);
    case CLIENT_UNAVAILABLE:
        progress_say(&r->bar, event->text);
        progress_wait(&r->bar, "the broker");
        return STATUS_OK;
    case CLIENT_AVAILABLE:
        progress_say(&r->bar, "the broker is back");
        progress_go_on(&r->bar);
        return STATUS_OK;
    case CLIENT_TOKENS:
    case CLIENT_STATUS: return STATUS_OK;
    }
    return STATUS_OK;
}

static void begin_stopping(run *r) {
    r->is_stopping = true;
    client_watch(r->c, -1, -1); /* it stays readable */
    client_cancel_all(r->c);
}

static status loop(run *r, const prompt_list *defaults, err *e) {
    int64_t give_up_us = INT64_MAX;
    while (!is_finished(r)) {
        if (stop_requested() && !r->is_stopping) {
            begin_stopping(r);
            give_up_us = clock_now_us() + CANCEL_WAIT_US;
        }
        if (clock_now_us() > give_up_us) break; /* what a broker does not take back is left to it */
        bool has_more;
        status st = fill_window(r, defaults, &has_more, e);
        if (st != STATUS_OK) return st;
        if (r->sync_due_us && clock_now_us() >= r->sync_due_us) st = sync_and_ack(r, e);
        if (st != STATUS_OK) return st;
        progress_show(&r->bar);
        if (is_finished(r)) break;
        client_event event;
        st = client_poll(r->c, has_more ? 0 : POLL_MS, &event, e);
        if (st == STATUS_OK) st = take_event(r, &event, e);
        if (st != STATUS_OK && st != STATUS_TIMEOUT && st != STATUS_INTERRUPTED) return st;
    }
    return sync_and_ack(r, e);
}

/* ---- opening --------------------------------------------------------------------------------- */

/* The plan's digest and everything else that decides an answer and is known before the model is. */
static void digest_text(hash_sha256_stream *h, const char *name, const char *value) {
    if (!value) return;
    hash_sha256_add(h, name, strlen(name) + 1);
    hash_sha256_add(h, value, strlen(value) + 1);
}

static void digest_run(run *r, const options *o) {
    char text[512];
    const request_sampling *s = &r->sampling;
    int n = snprintf(text, sizeof text, "%a %a %u %a %llu %u %d %u %d", (double)s->temperature,
                     (double)s->top_p, s->top_k, (double)s->min_p, (unsigned long long)s->seed,
                     s->max_new_tokens, s->want_logprobs, s->n_logprobs, r->exif);
    hash_sha256_stream *h = hash_sha256_open();
    plan_digest(r->p, r->digest);
    hash_sha256_add(h, r->digest, sizeof r->digest);
    hash_sha256_add(h, text, (size_t)n + 1);
    for (uint32_t i = 0; i < s->n_stop; i++) digest_text(h, "stop", s->stop[i]);
    digest_text(h, "model", options_string(o, "model"));
    digest_text(h, "template", r->template_name);
    digest_text(h, "use-adapter", r->adapter);
    digest_text(h, "adapter", options_string(o, "adapter"));
    digest_text(h, "dtype", options_string(o, "dtype"));
    digest_text(h, "kv-dtype", options_string(o, "kv-dtype"));
    const char *const *served;
    for (size_t i = 0, n_served = options_list(o, "serve-adapter", &served); i < n_served; i++)
        digest_text(h, "serve-adapter", served[i]);
    hash_sha256_finish(h, r->digest);
}

static status open_plan(run *r, const options *o, const prompt_list *prompts, err *e) {
    plan_settings settings = {.paths = (const char *const *)o->positional,
                              .n_paths = (size_t)o->n_positional,
                              .manifest = options_string(o, "input"),
                              .prompts = prompts->texts,
                              .n_prompts = prompts->n,
                              .complaints = stderr};
    return plan_open(&r->p, &settings, e);
}

static status output_is_no_input(const char *path, const options *o, err *e) {
    struct stat out;
    if (!path || stat(path, &out) != 0 || !S_ISREG(out.st_mode)) return STATUS_OK;
    bool is_input = is_same_file(&out, options_string(o, "input"));
    for (int i = 0; i < o->n_positional; i++) is_input = is_input || is_same_file(&out, o->positional[i]);
    return is_input ? fail(e, STATUS_BAD_ARGUMENT, "%.300s is an input of this run; name another -o", path) : STATUS_OK;
}

static status open_output(run *r, const options *o, err *e) {
    result_file_settings settings = {.path = options_string(o, "output"),
                                     .resume = options_flag(o, "resume") || options_flag(o, "retry-failed"),
                                     .retry_failed = options_flag(o, "retry-failed"),
                                     .overwrite = options_flag(o, "overwrite")};
    TRY(output_is_no_input(settings.path, o, e));
    digest_run(r, o);
    memcpy(settings.digest, r->digest, sizeof settings.digest);
    return result_file_open(&r->out, &settings, r->p, e);
}

static void say_summary(const run *r, const options *o) {
    size_t n_missing = plan_count(r->p) - r->bar.n_done, n_broken = plan_broken_lines(r->p);
    if (r->is_stopping && n_missing > 0)
        (void)fprintf(stderr, "interrupted: %zu of %zu items are answered\n", r->bar.n_done,
                      plan_count(r->p));
    if (options_flag(o, "quiet")) return;
    if (r->bar.n_failed)
        (void)fprintf(stderr, "%zu item%s failed; %s why%s\n", r->bar.n_failed, r->bar.n_failed == 1 ? "" : "s",
                      r->bar.n_failed == 1 ? "its lines say" : "their lines say",
                      result_file_can_be_resumed(r->out) ? ", and --retry-failed asks again" : "");
    if (n_broken)
        (void)fprintf(stderr, "%zu broken line%s of the manifest left out\n", n_broken,
                      n_broken == 1 ? "" : "s");
}

/* Everything that is wrong with the command line or the inputs is said before the model is loaded. */
static status prepare(run *r, const options *o, const prompt_list *prompts, int *exit_code, err *e) {
    status st = service_options_check(o, e);
    if (st == STATUS_OK) st = sampling_from_options(&r->sampling, o, e);
    if (st == STATUS_OK) st = template_from_options(&r->template_name, o, e);
    if (st == STATUS_OK) st = adapter_from_options(&r->adapter, o, e);
    if (st == STATUS_OK) st = open_plan(r, o, prompts, e);
    if (st == STATUS_OK) st = open_output(r, o, e);
    if (st != STATUS_OK) *exit_code = exit_code_not_started(st);
    return st;
}

/* On the screen on which the progress would be drawn. */
static bool shows_results(const options *o) {
    const char *path = options_string(o, "output");
    return (!path || strcmp(path, "-") == 0) && isatty(STDOUT_FILENO) && isatty(STDERR_FILENO);
}

static status answer_all(run *r, const options *o, const prompt_list *prompts, int *exit_code, err *e) {
    service s;
    client_settings settings = {.name = "annotate", .window_items = (uint32_t)options_int(o, "concurrency")};
    status st = service_open(&s, o, &settings, e);
    if (st != STATUS_OK) {
        *exit_code = exit_code_not_started(st);
        return st;
    }
    r->c = s.client;
    r->bar = progress_begin(plan_count(r->p), options_flag(o, "quiet") || shows_results(o));
    r->bar.n_done = r->bar.n_before = result_file_n_done(r->out);
    r->bar.n_failed = result_file_n_failed(r->out);
    st = result_file_begin(r->out, e);
    if (st == STATUS_OK) st = loop(r, prompts, e);
    progress_end(&r->bar);
    if (st != STATUS_OK) client_cancel_all(s.client); /* nobody is left to read the rest */
    service_close(&s);
    while (r->tickets) ticket_close(r->tickets);
    return st;
}

status annotate_run(const options *o, int *exit_code, err *e) {
    run *r = calloc(1, sizeof *r);
    if (!r) return fail(e, STATUS_NO_MEMORY, "out of memory");
    prompt_list prompts;
    status st = prompt_list_open(&prompts, o, DEFAULT_PROMPT, e);
    if (st != STATUS_OK) {
        *exit_code = EXIT_USAGE;
        free(r);
        return st;
    }
    r->exif = options_flag(o, "exif");
    buf_init(&r->lines, RESULT_LINES_BYTES_MAX);
    st = prepare(r, o, &prompts, exit_code, e);
    if (st == STATUS_OK && result_file_n_done(r->out) < plan_count(r->p))
        st = answer_all(r, o, &prompts, exit_code, e);
    else if (st == STATUS_OK) {
        st = result_file_begin(r->out, e);
        r->bar.n_failed = result_file_n_failed(r->out);
    }
    if (st == STATUS_OK) {
        if (r->bar.n_done == 0) r->bar.n_done = result_file_n_done(r->out);
        say_summary(r, o);
        bool has_failure = r->bar.n_failed > 0 || plan_broken_lines(r->p) > 0;
        *exit_code = r->is_stopping && r->bar.n_done < plan_count(r->p) ? EXIT_INTERRUPTED
                     : has_failure                                     ? EXIT_SOME_FAILED
                                                                       : EXIT_ALL_ANSWERED;
    }
    if (r->out && result_file_reader_is_gone(r->out)) *exit_code = EXIT_READER_GONE;
    result_file_close(&r->out);
    plan_close(&r->p);
    prompt_list_close(&prompts);
    buf_deinit(&r->lines);
    free(r);
    return st;
}
