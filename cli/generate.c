/* `mipha generate`: one prompt exactly as given, without a template, for comparison with other engines. */
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/one_image.h"
#include "cli/result_line.h"
#include "cli/service.h"
#include "cli/terminal_text.h"

static const option_row rows[] = {
    {"image", 0, OPTION_LIST, "FILE", NULL, 0, 0,
     "the image; <image> in the prompt says where it goes. May be repeated: one <image> for each, in order"},
    {"raw-prompt", 'r', OPTION_STRING, "TEXT", NULL, 0, 0, "the whole prompt; nothing is added to it"},
    USE_ADAPTER_ROW,
    SAMPLING_ROWS,
    EXIF_ROW,
    {"json", 0, OPTION_FLAG, NULL, NULL, 0, 0, "print the result line instead of the text"},
    SERVICE_ROWS,
    {0}};

const option_table generate_table = {
    .program = "mipha generate",
    .purpose = "continue a raw prompt, with or without an image",
    .example = "  mipha generate --image photo.jpg --raw-prompt $'USER: <image>\\nWhat is this? ASSISTANT:'\n"
               "  mipha generate --image a.jpg --image b.jpg --raw-prompt 'USER: <image> or <image>? ASSISTANT:'\n"
               "  mipha generate --raw-prompt \"Once upon a time\" -n 40 --json\n",
    .rows = rows};

static status print_event(const options *o, const char *prompt, const client_event *event, int *exit_code,
                          err *e) {
    *exit_code = result_event_has_failed(event) ? EXIT_SOME_FAILED : EXIT_ALL_ANSWERED;
    if (options_flag(o, "json")) {
        buf lines;
        buf_init(&lines, RESULT_LINES_BYTES_MAX);
        const char *const *images;
        size_t n = options_list(o, "image", &images);
        result_subject subject = {n ? images[0] : "generate", n == 1 ? images[0] : NULL, &prompt, 1,
                                  options_flag(o, "exif"), images, n > 1 ? n : 0};
        status st = result_lines_append(&lines, &subject, event, e);
        if (st == STATUS_OK) (void)fwrite(lines.data, 1, lines.len_bytes, stdout);
        buf_deinit(&lines);
        return st;
    }
    if (event->code != STATUS_OK)
        return fail(e, event->code, "%s: %.400s", status_code((int)event->code), event->text);
    const answer *a = &event->outcome.answers[0];
    terminal_text_write(stdout, a->text, strlen(a->text), isatty(STDOUT_FILENO));
    if (a->finish_reason != ANSWER_ERROR || *a->text) (void)fputc('\n', stdout);
    if (a->finish_reason != ANSWER_ERROR) return STATUS_OK;
    return fail(e, a->code, "%s: %.400s", status_code((int)a->code), a->message);
}

static status generate(client *c, const options *o, const request *r, const several_images *images, int *exit_code,
                       err *e) {
    client_item item = {.images = images->data, .n_images = images->n, .request = r,
                        .flags = options_flag(o, "exif") ? MESSAGE_FLAG_EXIF : 0};
    client_random_id(&item.id);
    status st = client_submit(c, &item, e);
    while (st == STATUS_OK) {
        client_event event;
        st = client_poll(c, -1, &event, e);
        if (st != STATUS_OK) return st;
        if (event.kind == CLIENT_UNAVAILABLE) (void)fprintf(stderr, "%s\n", event.text);
        if (event.kind != CLIENT_RESULT) continue;
        st = print_event(o, r->questions[0].prompt, &event, exit_code, e);
        client_ack(c, &item.id);
        break;
    }
    return st;
}

status generate_run(const options *o, int *exit_code, err *e) {
    request_question question = {.prompt = options_string(o, "raw-prompt"), .is_raw = true};
    request r = {.questions = &question, .n_questions = 1};
    if (!question.prompt) return fail(e, STATUS_BAD_ARGUMENT, "--raw-prompt is needed");
    status st = sampling_from_options(&r.sampling, o, e);
    if (st == STATUS_OK) st = adapter_from_options(&r.adapter, o, e);
    if (st != STATUS_OK) return st;
    several_images images;
    const char *const *paths;
    size_t n = options_list(o, "image", &paths);
    st = several_images_read(&images, paths, n, e);
    if (st != STATUS_OK) return st;
    service s;
    client_settings settings = {.name = "generate", .window_items = 1};
    st = service_open(&s, o, &settings, e);
    if (st != STATUS_OK) {
        *exit_code = exit_code_not_started(st);
    } else {
        st = generate(s.client, o, &r, &images, exit_code, e);
        service_close(&s);
    }
    several_images_deinit(&images);
    return st;
}
