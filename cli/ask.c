/* `mipha ask`: one image or some, questions typed in, each answered on its own as its tokens come.
 *
 * The client has to be polled while the person thinks, or the broker would take us for gone, so standard
 * input is watched by the same poll that waits for answers. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/stop.h"
#include "cli/commands.h"
#include "cli/one_image.h"
#include "cli/service.h"
#include "cli/terminal_text.h"

#define POLL_MS 500

static const option_row rows[] = {
    {"prompt", 'p', OPTION_LIST, "TEXT", NULL, 0, 0, "ask this instead of reading questions; may be repeated"},
    TEMPLATE_ROW,
    USE_ADAPTER_ROW,
    SAMPLING_ROWS,
    EXIF_ROW,
    SERVICE_ROWS,
    {0}};

const option_table ask_table = {
    .program = "mipha ask",
    .positional = "IMAGE...",
    .purpose = "ask questions about an image, or about several together; answers appear as they are made",
    .example = "  mipha ask photo.jpg\n"
               "  mipha ask photo.jpg -p \"What does the sign say?\"\n"
               "  mipha ask before.jpg after.jpg -p \"What has changed?\"\n"
               "  echo \"How many dogs are there?\" | mipha ask photo.jpg\n",
    .rows = rows,
    .positional_min = 1,
    .positional_max = MESSAGE_IMAGES_MAX};

typedef struct {
    client *c;
    several_images images;
    unsigned char image_sha256[HASH_SHA256_BYTES]; /* of the only one */
    request_sampling sampling;
    const char *template_name; /* NULL: the checkpoint's own */
    const char *adapter;       /* NULL: none */
    uint32_t flags;
    bool is_interactive; /* a person types */
    bool is_escaped;     /* stdout is a terminal */
    bool has_failed;
    buf typed;           /* read and not yet used */
    bool is_at_end;
} dialogue;

/* What the result has beyond what was streamed. */
static void print_rest(const dialogue *d, const buf *shown, const char *text) {
    size_t n = strlen(text);
    bool continues = shown->len_bytes <= n && memcmp(text, shown->len_bytes ? shown->data : (const void *)text,
                                                     shown->len_bytes) == 0;
    if (!continues) (void)fputc('\n', stdout); /* the whole answer, on a line of its own */
    size_t from = continues ? shown->len_bytes : 0;
    terminal_text_write(stdout, text + from, n - from, d->is_escaped);
    (void)fputc('\n', stdout);
    (void)fflush(stdout);
}

static void print_failure(dialogue *d, status code, const char *text) {
    d->has_failed = true;
    (void)fprintf(stderr, "%s: ", status_code((int)code));
    terminal_text_write(stderr, text, strlen(text), true);
    (void)fputc('\n', stderr);
}

static void print_result(dialogue *d, const buf *shown, const client_event *event) {
    if (event->code != STATUS_OK) {
        if (shown->len_bytes) (void)fputc('\n', stdout);
        (void)fflush(stdout);
        print_failure(d, event->code, event->text);
        return;
    }
    const answer *a = &event->outcome.answers[0];
    if (a->finish_reason != ANSWER_ERROR || shown->len_bytes || *a->text) print_rest(d, shown, a->text);
    if (a->finish_reason == ANSWER_ERROR) print_failure(d, a->code, a->message);
}

static status wait_for_answer(dialogue *d, const item_id *id, err *e) {
    buf shown;
    buf_init(&shown, MESSAGE_ENVELOPE_BYTES_MAX);
    status st = STATUS_OK;
    for (bool is_answered = false; st == STATUS_OK && !is_answered;) {
        client_event event;
        st = client_poll(d->c, POLL_MS, &event, e);
        if (st == STATUS_TIMEOUT) {
            st = STATUS_OK;
            continue;
        }
        if (st != STATUS_OK) break;
        if (event.kind == CLIENT_UNAVAILABLE) (void)fprintf(stderr, "%s\n", event.text);
        if (event.kind == CLIENT_TOKENS) {
            terminal_text_write(stdout, event.tokens.text, strlen(event.tokens.text), d->is_escaped);
            (void)fflush(stdout);
            if (buf_append_text(&shown, event.tokens.text) != STATUS_OK)
                st = fail(e, STATUS_NO_MEMORY, "out of memory");
        }
        if (event.kind == CLIENT_RESULT) {
            print_result(d, &shown, &event);
            client_ack(d->c, id);
            is_answered = true;
        }
    }
    buf_deinit(&shown);
    return st;
}

static status ask(dialogue *d, const char *prompt, err *e) {
    request_question question = {.prompt = prompt};
    request r = {.questions = &question, .n_questions = 1, .sampling = d->sampling,
                 .template_name = d->template_name, .adapter = d->adapter};
    client_item item = {.images = d->images.data, .n_images = d->images.n, .image_sha256 = d->image_sha256,
                        .request = &r, .flags = d->flags};
    client_random_id(&item.id);
    err why;
    status st = client_submit(d->c, &item, &why);
    if (st != STATUS_OK) {
        print_failure(d, st, why.text);
        return STATUS_OK;
    }
    client_watch(d->c, stop_fd(), -1);
    return wait_for_answer(d, &item.id, e);
}

/* Cuts the first line off what was typed; false when there is none yet. The line stays where it is until
 * drop_line. */
static char *typed_line(const dialogue *d, size_t *n_bytes) {
    if (!d->typed.len_bytes) return NULL;
    char *end = memchr(d->typed.data, '\n', d->typed.len_bytes);
    if (!end && !d->is_at_end) return NULL;
    *n_bytes = end ? (size_t)(end - (char *)d->typed.data) + 1 : d->typed.len_bytes;
    if (end) *end = '\0';
    return (char *)d->typed.data;
}

static void drop_line(dialogue *d, size_t n_bytes) {
    memmove(d->typed.data, d->typed.data + n_bytes, d->typed.len_bytes - n_bytes);
    d->typed.len_bytes -= n_bytes;
    d->typed.data[d->typed.len_bytes] = 0;
}

static status read_some(dialogue *d, err *e) {
    unsigned char *to = buf_reserve(&d->typed, 4096);
    if (!to) return fail(e, STATUS_TOO_LARGE, "a question of more than %zu bytes", d->typed.max_bytes);
    ssize_t n = read(STDIN_FILENO, to, 4096);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return STATUS_OK;
    if (n < 0) return fail_errno(e, STATUS_IO, "reading questions");
    d->is_at_end = n == 0;
    d->typed.len_bytes += (size_t)n;
    d->typed.data[d->typed.len_bytes] = 0;
    return STATUS_OK;
}

/* Waits until standard input has something, keeping the client alive meanwhile. */
static status wait_for_typing(dialogue *d, err *e) {
    client_watch(d->c, stop_fd(), STDIN_FILENO);
    for (;;) {
        client_event event;
        err ignored;
        status st = client_poll(d->c, POLL_MS, &event, &ignored);
        TRY(stop_check(e));
        if (st == STATUS_INTERRUPTED) return read_some(d, e);
        if (st != STATUS_OK && st != STATUS_TIMEOUT) {
            *e = ignored;
            return st;
        }
    }
}

static status converse(dialogue *d, err *e) {
    for (;;) {
        if (d->is_interactive) (void)fputs("> ", stderr);
        size_t n_bytes = 0;
        char *line;
        while (!(line = typed_line(d, &n_bytes)) && !d->is_at_end) {
            status st = wait_for_typing(d, e);
            if (st != STATUS_OK) return st;
        }
        if (!line) break;
        line[strcspn(line, "\r")] = '\0';
        status st = line[strspn(line, " \t")] ? ask(d, line, e) : STATUS_OK;
        if (st != STATUS_OK) return st;
        drop_line(d, n_bytes);
    }
    if (d->is_interactive) (void)fputc('\n', stderr);
    return STATUS_OK;
}

static status run_dialogue(dialogue *d, const options *o, int *exit_code, err *e) {
    service s;
    client_settings settings = {.name = "ask", .window_items = 1};
    status st = service_open(&s, o, &settings, e);
    if (st != STATUS_OK) {
        *exit_code = exit_code_not_started(st);
        return st;
    }
    d->c = s.client;
    const char *const *prompts;
    size_t n = options_list(o, "prompt", &prompts);
    if (n == 0)
        st = converse(d, e);
    for (size_t i = 0; i < n && st == STATUS_OK; i++) st = ask(d, prompts[i], e);
    if (st == STATUS_INTERRUPTED) client_cancel_all(d->c);
    service_close(&s);
    return st;
}

/* "mipha ask photo.jpg 'What is it?'" is what most people try first. */
static status read_images(dialogue *d, const options *o, err *e) {
    status st = several_images_read(&d->images, (const char *const *)o->positional, (size_t)o->n_positional, e);
    if (st != STATUS_IMAGE_UNREADABLE || options_is_set(o, "prompt")) return st;
    err why = *e;
    return fail(e, st, "%.400s (a question is written behind -p)", why.text);
}

status ask_run(const options *o, int *exit_code, err *e) {
    dialogue d = {.is_interactive = isatty(STDIN_FILENO), .is_escaped = isatty(STDOUT_FILENO)};
    d.flags = MESSAGE_FLAG_STREAM | (options_flag(o, "exif") ? MESSAGE_FLAG_EXIF : 0);
    status st = sampling_from_options(&d.sampling, o, e);
    if (st == STATUS_OK) st = template_from_options(&d.template_name, o, e);
    if (st == STATUS_OK) st = adapter_from_options(&d.adapter, o, e);
    if (st == STATUS_OK) st = read_images(&d, o, e);
    if (st != STATUS_OK) return st;
    hash_sha256(d.image_sha256, d.images.data[0].data, d.images.data[0].len_bytes);
    buf_init(&d.typed, 4 * MESSAGE_PROMPT_BYTES_MAX);
    st = run_dialogue(&d, o, exit_code, e);
    buf_deinit(&d.typed);
    several_images_deinit(&d.images);
    if (st == STATUS_OK) *exit_code = d.has_failed ? EXIT_SOME_FAILED : EXIT_ALL_ANSWERED;
    return st;
}
