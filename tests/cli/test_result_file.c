/* The output file: whatever is left of it, resuming keeps whole items, drops torn ones, and never mixes
 * two runs. */
#include "tests/support/support.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/result_file.h"

#define N_ITEMS 4

/* Three items with one line, one with three. */
static const char manifest[] = "{\"id\":\"a\",\"image\":\"x\"}\n"
                               "{\"id\":\"b\",\"image\":\"x\",\"prompts\":[\"1\",\"2\",\"3\"]}\n"
                               "{\"id\":\"c\",\"image\":\"x\"}\n{\"id\":\"d\",\"image\":\"x\"}\n";
static const char *const lines_of[N_ITEMS] = {
    "{\"id\":\"a\",\"prompt_index\":0,\"error\":null,\"model\":{\"fingerprint\":\"sha256:00\"}}\n",
    ("{\"id\":\"b\",\"prompt_index\":0,\"error\":null}\n{\"id\":\"b\",\"prompt_index\":1,\"error\":{}}\n"
     "{\"id\":\"b\",\"prompt_index\":2,\"error\":null}\n"),
    "{\"id\":\"c\",\"prompt_index\":0,\"error\":null}\n", "{\"id\":\"d\",\"prompt_index\":0,\"error\":null}\n"};
static const char *const default_prompts[] = {"Describe the image."};

typedef struct {
    char *dir, *manifest_path, *path;
    plan *p;
    result_file *f;
    err e;
} fixture;

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    f->dir = temp_dir_make();
    f->manifest_path = path_join(f->dir, "items.jsonl");
    f->path = path_join(f->dir, "out.jsonl");
    file_write(f->manifest_path, manifest, sizeof manifest - 1);
    plan_settings s = {.manifest = f->manifest_path, .prompts = default_prompts, .n_prompts = 1};
    assert_int_equal(plan_open(&f->p, &s, &f->e), STATUS_OK);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    result_file_close(&f->f);
    plan_close(&f->p);
    free(f->manifest_path);
    free(f->path);
    temp_dir_remove(f->dir);
    free(f);
    return 0;
}

static status open_file(fixture *f, bool resume, bool overwrite, unsigned char run) {
    result_file_close(&f->f);
    result_file_settings s = {.path = f->path, .resume = resume, .overwrite = overwrite, .digest = {run}};
    status st = result_file_open(&f->f, &s, f->p, &f->e);
    return st == STATUS_OK ? result_file_begin(f->f, &f->e) : st;
}

static void write_item(fixture *f, size_t idx) {
    assert_int_equal(result_file_write(f->f, lines_of[idx], strlen(lines_of[idx]), &f->e), STATUS_OK);
}

static void assert_content(fixture *f, const char *want) {
    buf got;
    buf_init(&got, 1 << 20);
    assert_true(file_read(&got, f->path));
    assert_int_equal(buf_append(&got, "", 0), STATUS_OK);
    assert_string_equal((const char *)got.data, want);
    buf_deinit(&got);
}

static char *all_lines(const size_t order[N_ITEMS]) {
    char *text = calloc(1, 4096);
    for (size_t i = 0; i < N_ITEMS; i++) strncat(text, lines_of[order[i]], 1000);
    return text;
}

static void written_items_are_done_after_resuming(void **state) {
    fixture *f = *state;
    assert_int_equal(open_file(f, false, false, 1), STATUS_OK);
    write_item(f, 2);
    write_item(f, 1);
    assert_int_equal(result_file_sync(f->f, &f->e), STATUS_OK);
    assert_int_equal(open_file(f, true, false, 1), STATUS_OK);
    assert_int_equal(result_file_n_done(f->f), 2);
    assert_int_equal(result_file_n_failed(f->f), 1);
    assert_false(result_file_is_done(f->f, 0));
    assert_true(result_file_is_done(f->f, 1));
    assert_true(result_file_is_done(f->f, 2));
    assert_false(result_file_is_done(f->f, 3));
    assert_null(result_file_fingerprint(f->f));
    assert_true(result_file_can_be_resumed(f->f));
    write_item(f, 0);
    assert_int_equal(open_file(f, true, false, 1), STATUS_OK);
    assert_string_equal(result_file_fingerprint(f->f), "sha256:00");
}

/* The heart of the matter: cut anywhere, resumed, and finished, the file has the same lines. */
static void a_file_cut_at_any_byte_is_finished_to_the_same_lines(void **state) {
    fixture *f = *state;
    static const size_t order[N_ITEMS] = {1, 0, 3, 2};
    char *whole = all_lines(order);
    size_t n = strlen(whole);
    for (size_t cut = 0; cut <= n; cut++) {
        assert_int_equal(open_file(f, false, true, 1), STATUS_OK);
        for (size_t i = 0; i < N_ITEMS; i++) write_item(f, order[i]);
        result_file_close(&f->f);
        assert_int_equal(truncate(f->path, (off_t)cut), 0);

        assert_int_equal(open_file(f, true, false, 1), STATUS_OK);
        size_t n_whole = 0, end = 0;
        while (n_whole < N_ITEMS && end + strlen(lines_of[order[n_whole]]) <= cut)
            end += strlen(lines_of[order[n_whole++]]);
        assert_int_equal(result_file_n_done(f->f), n_whole);
        struct stat info;
        assert_int_equal(stat(f->path, &info), 0);
        assert_int_equal(info.st_size, end);
        for (size_t i = 0; i < N_ITEMS; i++) {
            assert_int_equal(result_file_is_done(f->f, order[i]), i < n_whole);
            if (!result_file_is_done(f->f, order[i])) write_item(f, order[i]);
        }
        assert_content(f, whole);
    }
    free(whole);
}

static void a_tail_of_zeros_is_cut_off_like_any_torn_tail(void **state) {
    fixture *f = *state;
    assert_int_equal(open_file(f, false, false, 1), STATUS_OK);
    write_item(f, 2);
    char zeros[300] = {0};
    zeros[100] = '\n'; /* what a disk may leave of several lines */
    assert_int_equal(result_file_write(f->f, zeros, sizeof zeros, &f->e), STATUS_OK);
    assert_int_equal(open_file(f, true, false, 1), STATUS_OK);
    assert_int_equal(result_file_n_done(f->f), 1);
    assert_content(f, lines_of[2]);
}

static void damage_before_the_end_is_refused_and_left_alone(void **state) {
    fixture *f = *state;
    static const char *const damaged[] = {
        "garbage\n{\"id\":\"c\",\"prompt_index\":0,\"error\":null}\n",
        "{\"id\":\"b\",\"prompt_index\":0,\"error\":null}\n{\"id\":\"c\",\"prompt_index\":0,\"error\":null}\n",
        "{\"id\":\"b\",\"prompt_index\":1,\"error\":null}\n{\"id\":\"c\",\"prompt_index\":0,\"error\":null}\n",
        "{\"id\":\"c\",\"prompt_index\":0,\"error\":null}\n{\"id\":\"c\",\"prompt_index\":0,\"error\":null}\n",
        "{\"id\":\"stranger\",\"prompt_index\":0,\"error\":null}\n"};
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        assert_int_equal(open_file(f, false, true, 1), STATUS_OK);
        result_file_close(&f->f);
        file_write(f->path, damaged[i], strlen(damaged[i]));
        if (open_file(f, true, false, 1) != STATUS_BAD_FORMAT) fail_msg("taken: %s", damaged[i]);
        assert_non_null(strstr(f->e.text, "line "));
        assert_content(f, damaged[i]);
    }
}

static void results_are_not_overwritten_unless_asked(void **state) {
    fixture *f = *state;
    assert_int_equal(open_file(f, false, false, 1), STATUS_OK);
    assert_int_equal(open_file(f, false, false, 2), STATUS_OK); /* nothing in it yet */
    write_item(f, 2);
    assert_int_equal(open_file(f, false, false, 1), STATUS_BAD_ARGUMENT);
    assert_non_null(strstr(f->e.text, "--resume"));
    assert_content(f, lines_of[2]);
    assert_int_equal(open_file(f, true, true, 1), STATUS_BAD_ARGUMENT);
    assert_non_null(strstr(f->e.text, "one of them"));
    assert_content(f, lines_of[2]);
    /* Nor before new results can come; and what was there can be finished until then. */
    result_file_settings s = {.path = f->path, .overwrite = true, .digest = {2}};
    assert_int_equal(result_file_open(&f->f, &s, f->p, &f->e), STATUS_OK);
    assert_content(f, lines_of[2]);
    assert_int_equal(open_file(f, true, false, 2), STATUS_OK);
    assert_int_equal(result_file_n_done(f->f), 1);
    assert_int_equal(open_file(f, false, true, 1), STATUS_OK);
    assert_content(f, "");
}

static status open_for_retry(fixture *f) {
    result_file_close(&f->f);
    result_file_settings s = {.path = f->path, .resume = true, .retry_failed = true, .digest = {1}};
    return result_file_open(&f->f, &s, f->p, &f->e);
}

static void what_failed_is_dropped_to_be_asked_again_and_nothing_else(void **state) {
    fixture *f = *state;
    static const char failed_d[] = "{\"id\":\"d\",\"prompt_index\":0,\"error\":{},\"model\":{\"fingerprint\":\"gone\"}}\n";
    assert_int_equal(open_file(f, false, false, 1), STATUS_OK);
    assert_int_equal(result_file_write(f->f, failed_d, strlen(failed_d), &f->e), STATUS_OK);
    write_item(f, 0);
    write_item(f, 1); /* one of its lines is an error */
    write_item(f, 2);
    assert_int_equal(result_file_write(f->f, "{\"id\":\"torn", 11, &f->e), STATUS_OK);
    result_file_close(&f->f);
    assert_int_equal(chmod(f->path, 0640), 0);
    char *link_path = path_join(f->dir, "link"), *path = f->path, *strangers = path_join(f->dir, "out.jsonl.new"), text[1024];
    char *side = path_join(f->dir, "out.jsonl.manifest"), *link_side = path_join(f->dir, "link.manifest");
    assert_int_equal(symlink("out.jsonl", link_path) | symlink("out.jsonl.manifest", link_side), 0);
    f->path = link_path;

    file_write(strangers, "kept\n", 5);

    /* Not before new answers can come. */
    assert_int_equal(open_for_retry(f), STATUS_OK);
    (void)snprintf(text, sizeof text, "%s%s%s%s", failed_d, lines_of[0], lines_of[1], lines_of[2]);
    assert_content(f, text);
    assert_string_not_equal(result_file_fingerprint(f->f), "gone");
    assert_int_equal(result_file_n_done(f->f), 2);
    assert_int_equal(result_file_n_failed(f->f), 0);
    for (size_t i = 0; i < N_ITEMS; i++) assert_int_equal(result_file_is_done(f->f, i), i == 0 || i == 2);
    assert_int_equal(result_file_begin(f->f, &f->e), STATUS_OK);
    (void)snprintf(text, sizeof text, "%s%s", lines_of[0], lines_of[2]);
    assert_content(f, text);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0640);
    assert_int_equal(files_in(f->dir), 6); /* the items, the file, its link, their manifests, the stranger's */
    assert_true(lstat(link_path, &info) == 0 && S_ISLNK(info.st_mode));

    /* The new file is locked like the old one, written behind, and resumed like any. */
    result_file *other;
    result_file_settings s = {.path = path, .resume = true, .digest = {1}};
    assert_int_equal(result_file_open(&other, &s, f->p, &f->e), STATUS_CONFLICT);
    write_item(f, 3);
    assert_int_equal(open_file(f, true, false, 1), STATUS_OK);
    assert_int_equal(result_file_n_done(f->f), 3);
    assert_int_equal(open_for_retry(f), STATUS_OK); /* nothing has failed */
    assert_int_equal(result_file_begin(f->f, &f->e), STATUS_OK);
    (void)snprintf(text, sizeof text, "%s%s%s", lines_of[0], lines_of[2], lines_of[3]);
    assert_content(f, text);
    f->path = path;
    free(link_path), free(strangers), free(side), free(link_side);
}

static void another_run_is_not_mixed_in(void **state) {
    fixture *f = *state;
    assert_int_equal(open_file(f, false, false, 1), STATUS_OK);
    write_item(f, 2);
    assert_int_equal(open_file(f, true, false, 2), STATUS_BAD_ARGUMENT);
    char *side = path_join(f->dir, "out.jsonl.manifest");
    assert_int_equal(unlink(side), 0);
    assert_int_equal(open_file(f, true, false, 1), STATUS_BAD_ARGUMENT);
    assert_non_null(strstr(f->e.text, "out.jsonl.manifest"));
    assert_content(f, lines_of[2]);
    free(side);
}

static void resuming_nothing_is_starting(void **state) {
    fixture *f = *state;
    assert_int_equal(open_file(f, true, false, 1), STATUS_OK);
    assert_int_equal(result_file_n_done(f->f), 0);
    write_item(f, 0);
    assert_int_equal(open_file(f, true, false, 1), STATUS_OK);
    assert_int_equal(result_file_n_done(f->f), 1);
    result_file *other;
    result_file_settings s = {.resume = true};
    assert_int_equal(result_file_open(&other, &s, f->p, &f->e), STATUS_BAD_ARGUMENT);
}

static void a_second_writer_is_turned_away(void **state) {
    fixture *f = *state;
    assert_int_equal(open_file(f, false, false, 1), STATUS_OK);
    write_item(f, 2);
    result_file *other = NULL;
    result_file_settings s = {.path = f->path, .resume = true, .digest = {1}};
    assert_int_equal(result_file_open(&other, &s, f->p, &f->e), STATUS_CONFLICT);
    assert_null(other);
    assert_content(f, lines_of[2]);
}

static void a_full_disk_is_an_error_that_names_the_file(void **state) {
    fixture *f = *state;
    result_file_settings s = {.path = "/dev/full"};
    assert_int_equal(result_file_open(&f->f, &s, f->p, &f->e), STATUS_OK);
    assert_int_equal(result_file_write(f->f, "x", 1, &f->e), STATUS_IO);
    assert_non_null(strstr(f->e.text, "/dev/full"));
    result_file_close(&f->f);
    s.path = "/nonexistent/out.jsonl";
    assert_int_equal(result_file_open(&f->f, &s, f->p, &f->e), STATUS_IO);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        T(written_items_are_done_after_resuming),
        T(a_file_cut_at_any_byte_is_finished_to_the_same_lines),
        T(a_tail_of_zeros_is_cut_off_like_any_torn_tail),
        T(damage_before_the_end_is_refused_and_left_alone),
        T(results_are_not_overwritten_unless_asked),
        T(what_failed_is_dropped_to_be_asked_again_and_nothing_else),
        T(another_run_is_not_mixed_in),
        T(resuming_nothing_is_starting),
        T(a_second_writer_is_turned_away),
        T(a_full_disk_is_an_error_that_names_the_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
