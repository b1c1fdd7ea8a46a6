/* What the program says about itself: help, completion, manual pages, and exit statuses of wrong use. */
#include "tests/support/support.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"

#define MIPHA      PROGRAM_DIR "/mipha"
#define TIMEOUT_MS 60000
#define WORDS_MAX  12

/* Runs `mipha` with the words of a line, split at spaces. */
static ended_run run(const char *line) {
    const char *argv[WORDS_MAX + 2] = {MIPHA};
    char *copy = strdup(line), *rest = NULL;
    int n = 1;
    for (char *word = strtok_r(copy, " ", &rest); word && n <= WORDS_MAX; word = strtok_r(NULL, " ", &rest))
        argv[n++] = word;
    ended_run r = ended_run_of(argv, TIMEOUT_MS);
    free(copy);
    return r;
}

static bool has(const buf *b, const char *text) { return b->data && strstr((const char *)b->data, text); }

static void assert_run(const char *line, int exit_code, const char *in_out, const char *in_errors) {
    ended_run r = run(line);
    if (r.exit_code != exit_code || (in_out && !has(&r.out, in_out)) || (in_errors && !has(&r.errors, in_errors)))
        fail_msg("mipha %s: exit %d, not %d\nstdout: %s\nstderr: %s", line, r.exit_code, exit_code,
                 ended_run_out(&r), ended_run_errors(&r));
    ended_run_free(&r);
}

static void help_of_every_command_shows_an_example_and_every_environment_twin(void **state) {
    (void)state;
    size_t n = 0;
    for (const command *c = commands; c->table; c++, n++) {
        char line[128];
        (void)snprintf(line, sizeof line, "%s --help", c->table->program + strlen("mipha "));
        ended_run r = run(line);
        assert_int_equal(r.exit_code, 0);
        assert_int_equal(r.errors.len_bytes, 0);
        if (!has(&r.out, "Example:\n  ")) fail_msg("%s shows no example", line);
        if (!has(&r.out, c->table->purpose + strlen(c->table->purpose) / 2 + 8) && !has(&r.out, c->table->program))
            fail_msg("%s does not say what it is for", line);
        for (const option_row *row = c->table->rows; row->name; row++) {
            char twin[128] = "MIPHA_";
            for (size_t i = 0; row->name[i]; i++)
                twin[6 + i] = row->name[i] == '-' ? '_' : (char)toupper((unsigned char)row->name[i]);
            char flag[128];
            (void)snprintf(flag, sizeof flag, "--%.100s", row->name);
            if (!has(&r.out, twin) || !has(&r.out, flag)) fail_msg("%s does not show %s", line, twin);
        }
        ended_run_free(&r);
    }
    assert_true(n >= 12);
}

static void every_command_is_in_the_help_of_the_program(void **state) {
    (void)state;
    ended_run r = run("--help");
    assert_int_equal(r.exit_code, 0);
    for (const command *c = commands; c->table; c++)
        if (!has(&r.out, c->table->program + strlen("mipha "))) fail_msg("%s is not listed", c->table->program);
    ended_run_free(&r);
    assert_run("--version", 0, "mipha ", NULL);
    assert_run("annotate --version", 0, "mipha ", NULL);
    assert_run("help model inspect", 0, "mipha model inspect", NULL);
    assert_run("model --help", 0, "mipha model inspect", NULL);
    assert_run("help model", 0, "mipha model inspect", NULL);
}

static void wrong_use_exits_2_and_says_what_is_wrong(void **state) {
    (void)state;
    assert_run("", 2, NULL, "Usage:");
    assert_run("annotat", 2, NULL, "no command \"annotat\"");
    assert_run("model", 2, NULL, "model inspect");
    assert_run("model frobnicate", 2, NULL, "model inspect");
    assert_run("annotate", 2, NULL, "nothing to do");
    assert_run("annotate --modle x", 2, NULL, "did you mean --model?");
    assert_run("annotate --concurrency 0 x", 2, NULL, "--concurrency");
    assert_run("annotate --temperature hot x", 2, NULL, "--temperature");
    assert_run("annotate --resume x.jpg", 2, NULL, "-o");
    assert_run("annotate --retry-failed x.jpg", 2, NULL, "--retry-failed needs the file to finish");
    assert_run("annotate --broker nonsense x.jpg", 2, NULL, "nonsense");
    assert_run("annotate --device tpu x.jpg", 2, NULL, "tpu");
    assert_run("annotate --threads 257 x.jpg", 2, NULL, "maximum 256");
    assert_run("bench --model /nonexistent sing", 2, NULL, "expected one of");
    assert_run("annotate --log-level loud x.jpg", 2, NULL, "--log-level");
    assert_run("annotate --stop a --stop b --stop c --stop d --stop e x.jpg", 2, NULL, "--stop");
    assert_run("annotate --prompts /nonexistent x.jpg", 2, NULL, "/nonexistent");
    assert_run("ask", 2, NULL, "mipha ask: needs IMAGE");
    assert_run("ask " SOURCE_DIR "/examples/farm.jpg What", 1, NULL, "What: No such file or directory (a question is written behind -p)");
    assert_run("status --broker localhost:7000", 2, NULL, "\"localhost:7000\" is not an endpoint: they are written as in tcp://host:7000");
    assert_run("status --broker http://localhost:7000", 2, NULL, "\"http://localhost:7000\" is not an endpoint");
    assert_run("up now", 2, NULL, "mipha up takes options only");
    assert_run("generate", 2, NULL, "--raw-prompt");
    assert_run("embed x.jpg", 2, NULL, "-o");
    assert_run("embed x.jpg -o /dev/null --layer top", 2, NULL, "--layer");
    assert_run("status", 2, NULL, "--broker");
    assert_run("completion fish", 2, NULL, "bash");
    assert_run("man nothing", 2, NULL, "nothing");
}

/* What a service in this process would obey. Somebody's environment is for other commands, too. */
static void what_a_cluster_does_not_obey_is_refused_beside_broker(void **state) {
    (void)state;
    static const char *const typed[] = {"--model x", "--dtype f32", "--kv-dtype f16", "--adapter x", "--serve-adapter a=x",
                                          "--cache redis://x", "--device cuda", "--threads 2", "--fast", "--kv-bytes 1G",
                                          "--max-pixels 9", "--decode-ms 9"};
    char line[160], wanted[96];
    for (size_t i = 0; i < sizeof typed / sizeof *typed; i++) {
        (void)snprintf(line, sizeof line, "annotate " SOURCE_DIR "/examples --broker nonsense %s", typed[i]);
        (void)snprintf(wanted, sizeof wanted, "%.*s has no effect with --broker", (int)strcspn(typed[i], " "), typed[i]);
        assert_run(line, 2, NULL, wanted);
    }
    assert_run("ask " SOURCE_DIR "/examples/farm.jpg -p What? --broker nonsense --threads 2", 2, NULL, "--threads has no effect");
    assert_run("generate -r What? --broker nonsense --device cpu", 2, NULL, "--device has no effect");
    assert_int_equal(setenv("MIPHA_MODEL", "/nonexistent", 1) | setenv("MIPHA_BROKER", "nonsense", 1), 0);
    assert_run("generate -r What?", 2, NULL, "nonsense");
    assert_run("generate -r What? --threads 2", 2, NULL, "--threads has no effect with MIPHA_BROKER");
    assert_int_equal(unsetenv("MIPHA_MODEL") | unsetenv("MIPHA_BROKER"), 0);
}

static void what_cannot_be_opened_exits_3_and_says_why(void **state) {
    (void)state;
    assert_run("annotate --model /nonexistent x.jpg", 3, NULL, "/nonexistent");
    assert_run("annotate --model /tmp x.jpg", 3, NULL, "/tmp");
    assert_run("annotate --input /nonexistent.jsonl", 3, NULL, "/nonexistent.jsonl");
    assert_run("tokenize --model /tmp hello", 3, NULL, "/tmp");
    assert_run("model verify /tmp", 3, NULL, "/tmp");
    char line[96];
    (void)snprintf(line, sizeof line, "status --broker tcp://127.0.0.1:%d", free_port());
    assert_run(line, 3, NULL, "no broker answers");
}

static void shell_exits(const char *line, int exit_code, const char *in_out) {
    char whole[512];
    (void)snprintf(whole, sizeof whole, "exec " MIPHA " %s", line);
    ended_run r = ended_run_of((const char *const[]){"/bin/sh", "-c", whole, NULL}, TIMEOUT_MS);
    if (r.exit_code != exit_code || (in_out && !has(&r.out, in_out)))
        fail_msg("mipha %s: exit %d, not %d\n%s%s", line, r.exit_code, exit_code, ended_run_out(&r), ended_run_errors(&r));
    ended_run_free(&r);
}

static void output_that_cannot_be_written_is_no_success(void **state) {
    (void)state;
    shell_exits("--help >/dev/full", 1, NULL);
    shell_exits("--version >/dev/full", 1, NULL);
    shell_exits("annotate --help >/dev/full", 1, NULL);
    shell_exits("tokenize hello >/dev/full", 1, NULL);
    shell_exits("ask " SOURCE_DIR "/examples/farm.jpg -p What -n 2 >/dev/full", 1, NULL);
    shell_exits("tokenize hello >&-", 1, NULL);
}

static void a_closed_standard_input_is_an_error_of_who_reads_it(void **state) {
    (void)state;
    shell_exits("tokenize - <&-", 1, NULL);
    shell_exits("ask " SOURCE_DIR "/examples/farm.jpg <&-", 1, NULL);
    shell_exits("tokenize hello <&-", 0, "[");
}

static void completion_scripts_are_accepted_by_their_shells(void **state) {
    (void)state;
    static const char *const shells[] = {"bash", "zsh"};
    char *dir = temp_dir_make();
    for (size_t i = 0; i < 2; i++) {
        char line[64];
        (void)snprintf(line, sizeof line, "completion %s", shells[i]);
        ended_run r = run(line);
        assert_int_equal(r.exit_code, 0);
        assert_true(has(&r.out, "annotate") && has(&r.out, "--max-new-tokens"));
        if (program_exists(shells[i])) {
            char *path = path_join(dir, "script");
            file_write(path, r.out.data, r.out.len_bytes);
            const char *argv[] = {shells[i], "-n", path, NULL};
            assert_int_equal(child_run(argv, NULL, NULL, TIMEOUT_MS), 0);
            free(path);
        }
        ended_run_free(&r);
    }
    temp_dir_remove(dir);
}

static void every_command_has_a_manual_page(void **state) {
    (void)state;
    for (const command *c = commands; c->table; c++) {
        char line[64];
        (void)snprintf(line, sizeof line, "man %s", c->table->program + strlen("mipha "));
        ended_run r = run(line);
        assert_int_equal(r.exit_code, 0);
        assert_true(has(&r.out, ".TH"));
        ended_run_free(&r);
    }
    /* Sentences begin with a capital, values stay what one has to write. */
    assert_run("man annotate", 0, "\nA question for every image", NULL);
    assert_run("man annotate", 0, "\nf32 or f16: ", NULL);
}

static void text_becomes_ids_and_ids_become_text(void **state) {
    (void)state;
    ended_run r = run("tokenize hello");
    assert_int_equal(r.exit_code, 0);
    char line[256];
    (void)snprintf(line, sizeof line, "tokenize --decode %.*s", (int)strcspn((char *)r.out.data, "\n"),
                   (char *)r.out.data);
    assert_run(line, 0, "hello\n", NULL);
    ended_run_free(&r);
    assert_run("tokenize --decode [-1]", 2, NULL, "element 0");
    assert_run("tokenize --decode [99999999]", 2, NULL, "element 0");
    assert_run("tokenize --decode nonsense", 2, NULL, "list");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_of_every_command_shows_an_example_and_every_environment_twin),
        cmocka_unit_test(every_command_is_in_the_help_of_the_program),
        cmocka_unit_test(wrong_use_exits_2_and_says_what_is_wrong),
        cmocka_unit_test(what_a_cluster_does_not_obey_is_refused_beside_broker),
        cmocka_unit_test(what_cannot_be_opened_exits_3_and_says_why),
        cmocka_unit_test(output_that_cannot_be_written_is_no_success),
        cmocka_unit_test(a_closed_standard_input_is_an_error_of_who_reads_it),
        cmocka_unit_test(completion_scripts_are_accepted_by_their_shells),
        cmocka_unit_test(every_command_has_a_manual_page),
        cmocka_unit_test(text_becomes_ids_and_ids_become_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
