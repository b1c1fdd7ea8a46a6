/* Help, completion scripts and manual pages, judged by the programs that read them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/options.h"
#include "tests/support/support.h"

static const option_row rows[] = {
    {"model", 'm', OPTION_STRING, "DIR", NULL, 0, 0,
     "checkpoint folder: config.json, weights [safetensors] and the tokenizer's tables, as they are "
     "published"},
    {"max-new-tokens", 0, OPTION_INT, "N", "64", 1, 4096, "longest answer, in tokens"},
    {"cache-bytes", 0, OPTION_BYTES, "BYTES", "256M", 1048576, 1e18, "memory for features"},
    {"output", 'o', OPTION_STRING, "OUT.jsonl", "a\\b", 0, 0, ".begins with a dot"},
    {"prompt", 'p', OPTION_LIST, "TEXT", NULL, 0, 0, "a question; may be repeated"},
    {"exif", 0, OPTION_FLAG, NULL, "1", 0, 0, "turn images as their EXIF says"},
    {"an-option-with-a-name-too-long-for-the-column", 0, OPTION_FLAG, NULL, NULL, 0, 0, "rare"},
    {0}};
static const option_row no_rows[] = {{0}};
static const option_table annotate = {"mipha annotate", "PATH...", "annotate images",
                                      "  mipha annotate -p 'What is this?' photos\n  .hidden", rows,
                                      1, -1};
static const option_table inspect = {"mipha model inspect", "DIR", "show a checkpoint", NULL,
                                     no_rows, 1, 1};
static const option_table verify = {"mipha model verify", "DIR", "check a checkpoint", NULL,
                                    no_rows, 1, 1};
static const option_table broker = {"mipha-broker", NULL, "carry items between nodes",
                                    "  mipha-broker", rows, 0, 0};
static const option_table *const mipha[] = {&annotate, &inspect, &verify};
static const option_table *const daemon_tables[] = {&broker};

typedef void print_tables(const char *, const option_table *const *, size_t, FILE *);

static char *dir;

static char *printed(print_tables *print, const char *program, const option_table *const *tables,
                     size_t n, const char *file_name) {
    char *path = path_join(dir, file_name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    print(program, tables, n, f);
    assert_int_equal(fclose(f), 0);
    return path;
}

static char *text_of(void (*print)(const option_table *, FILE *), const option_table *table) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    assert_non_null(f);
    print(table, f);
    assert_int_equal(fclose(f), 0);
    return text;
}

static void help_shows_default_range_variable_and_example(void **state) {
    (void)state;
    char *help = text_of(options_print_help, &annotate);
    static const char *const pieces[] = {"Usage: mipha annotate [OPTIONS] PATH...",
                                         "  -m, --model DIR ",
                                         "      --max-new-tokens N ",
                                         "[1 to 4096; default 64; env MIPHA_MAX_NEW_TOKENS]",
                                         "[at least 1M; default 256M; env MIPHA_CACHE_BYTES]",
                                         "[default on, --no-exif turns it off; env MIPHA_EXIF]",
                                         "  -h, --help ",
                                         "      --version ",
                                         "  mipha annotate -p 'What is this?' photos\n"};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++)
        if (!strstr(help, pieces[i])) fail_msg("\"%s\" is not in\n%s", pieces[i], help);
    free(help);
}

static void help_is_aligned_and_no_line_is_wider_than_a_terminal(void **state) {
    (void)state;
    char *help = text_of(options_print_help, &annotate);
    const char *model = strstr(help, "checkpoint folder"), *tokens = strstr(help, "longest answer");
    assert_true(model && tokens);
    long model_column = model - strstr(help, "  -m, --model");
    long tokens_column = tokens - strstr(help, "      --max-new");
    assert_int_equal(model_column, tokens_column);
    for (const char *line = help; *line;) {
        size_t len = strcspn(line, "\n");
        if (len > 80) fail_msg("%zu columns: %.*s", len, (int)len, line);
        line += len + (line[len] == '\n');
    }
    free(help);
}

/* Completes a command line whose last word is under the cursor, with the real bash. */
static void expect_completion(const char *script, const char *function, const char *line,
                              const char *want) {
    char code[1024];
    (void)snprintf(code, sizeof code,
                   "source '%s'; cd '%s'; COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
                   "%s; printf '%%s ' \"${COMPREPLY[@]}\"",
                   script, dir, line, function);
    buf out, errors;
    buf_init(&out, 1 << 20);
    buf_init(&errors, 1 << 20);
    const char *argv[] = {"bash", "-uc", code, NULL};
    assert_int_equal(child_run(argv, &out, &errors, 10000), 0);
    assert_string_equal((char *)errors.data, "");
    if (strcmp((char *)out.data, want) != 0)
        fail_msg("%s: got \"%s\" want \"%s\"", line, (char *)out.data, want);
    buf_deinit(&out);
    buf_deinit(&errors);
}

static void bash_completes_commands_flags_folders_and_files(void **state) {
    (void)state;
    if (!program_exists("bash")) skip();
    char *script = printed(options_print_bash, "mipha", mipha, 3, "mipha.bash");
    const char *syntax[] = {"bash", "-n", script, NULL};
    assert_int_equal(child_run(syntax, NULL, NULL, 10000), 0);
    char *file = path_join(dir, "picture.jpg");
    file_write(file, "x", 1);
    expect_completion(script, "_mipha", "mipha ''", "annotate model ");
    expect_completion(script, "_mipha", "mipha an", "annotate ");
    expect_completion(script, "_mipha", "mipha model ''", "inspect verify ");
    expect_completion(script, "_mipha", "mipha model v", "verify ");
    expect_completion(script, "_mipha", "mipha annotate --m", "--model --max-new-tokens ");
    expect_completion(script, "_mipha", "mipha annotate --no", "--no-exif ");
    expect_completion(script, "_mipha", "mipha annotate pict", "picture.jpg ");
    expect_completion(script, "_mipha", "mipha annotate -o pict", "picture.jpg ");
    expect_completion(script, "_mipha", "mipha annotate --output = pict", "picture.jpg ");
    expect_completion(script, "_mipha", "mipha annotate --model pict", " ");
    expect_completion(script, "_mipha", "mipha annotate --max-new-tokens ''", " ");
    expect_completion(script, "_mipha", "mipha model inspect --v", "--version ");
    free(file);
    free(script);
}

static void bash_completes_a_daemon(void **state) {
    (void)state;
    if (!program_exists("bash")) skip();
    char *script = printed(options_print_bash, "mipha-broker", daemon_tables, 1, "broker.bash");
    expect_completion(script, "_mipha_broker", "mipha-broker --cach", "--cache-bytes ");
    free(script);
}

static void zsh_accepts_its_script(void **state) {
    (void)state;
    if (!program_exists("zsh")) {
        print_message("zsh is not installed: its script is not checked\n");
        skip();
    }
    char *script = printed(options_print_zsh, "mipha", mipha, 3, "_mipha");
    const char *syntax[] = {"zsh", "-n", script, NULL};
    assert_int_equal(child_run(syntax, NULL, NULL, 10000), 0);
    free(script);
}

static void the_zsh_script_escapes_what_zsh_would_obey(void **state) {
    (void)state;
    char *script = printed(options_print_zsh, "mipha", mipha, 3, "_mipha");
    buf text;
    buf_init(&text, 1 << 20);
    assert_true(file_read(&text, script));
    assert_non_null(strstr((char *)text.data, "'--model=[checkpoint folder\\: config.json, weights "
                                              "\\[safetensors\\] and the tokenizer'\\''s tables"));
    assert_non_null(strstr((char *)text.data, "]:DIR:_files -/'"));
    assert_non_null(strstr((char *)text.data, "'*--prompt=["));
    assert_non_null(strstr((char *)text.data, "'1:command:(inspect verify )'"));
    buf_deinit(&text);
    free(script);
}

static void manual_pages_render_without_a_warning(void **state) {
    (void)state;
    if (!program_exists("groff")) {
        print_message("groff is not installed: manual pages are not rendered\n");
        skip();
    }
    static const option_table *const all[] = {&annotate, &inspect, &broker};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        char *text = text_of(options_print_man, all[i]);
        char *path = path_join(dir, "page.1");
        file_write(path, text, strlen(text));
        buf out, errors;
        buf_init(&out, 1 << 20);
        buf_init(&errors, 1 << 20);
        const char *argv[] = {"groff", "-ww", "-man", "-Tascii", "-P-cbou", path, NULL};
        assert_int_equal(child_run(argv, &out, &errors, 20000), 0);
        assert_string_equal((char *)errors.data, "");
        assert_non_null(strstr((char *)out.data, "SYNOPSIS"));
        if (i == 0) {
            assert_non_null(strstr((char *)out.data, "mipha-annotate - annotate images"));
            assert_non_null(strstr((char *)out.data, "--max-new-tokens N"));
            assert_non_null(strstr((char *)out.data, ".begins with a dot."));
            assert_non_null(strstr((char *)out.data, "default a\\b"));
            assert_non_null(strstr((char *)out.data, "-p 'What is this?' photos"));
            assert_non_null(strstr((char *)out.data, "\n         .hidden"));
        }
        buf_deinit(&out);
        buf_deinit(&errors);
        free(path);
        free(text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_shows_default_range_variable_and_example),
        cmocka_unit_test(help_is_aligned_and_no_line_is_wider_than_a_terminal),
        cmocka_unit_test(bash_completes_commands_flags_folders_and_files),
        cmocka_unit_test(bash_completes_a_daemon),
        cmocka_unit_test(zsh_accepts_its_script),
        cmocka_unit_test(the_zsh_script_escapes_what_zsh_would_obey),
        cmocka_unit_test(manual_pages_render_without_a_warning),
    };
    dir = temp_dir_make();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    temp_dir_remove(dir);
    return failed;
}
