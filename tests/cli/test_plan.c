/* What is to be done: folders, manifests, and everything that can be wrong with them. */
#include "tests/support/support.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/plan.h"

typedef struct {
    char *dir;
    plan *p;
    FILE *complaints;
    char *complaint_text;
    size_t complaint_bytes;
    err e;
} fixture;

static const char *const default_prompts[] = {"Describe the image."};

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    f->dir = temp_dir_make();
    f->complaints = open_memstream(&f->complaint_text, &f->complaint_bytes);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    plan_close(&f->p);
    (void)fclose(f->complaints);
    free(f->complaint_text);
    temp_dir_remove(f->dir);
    free(f);
    return 0;
}

static void put(fixture *f, const char *name, const char *text) {
    char *path = path_join(f->dir, name);
    file_write(path, text, strlen(text));
    free(path);
}

static void folder(fixture *f, const char *name) {
    char *path = path_join(f->dir, name);
    assert_int_equal(mkdir(path, 0755), 0);
    free(path);
}

static status open_paths(fixture *f, const char *const names[], size_t n) {
    const char *paths[8];
    for (size_t i = 0; i < n; i++) paths[i] = path_join(f->dir, names[i]);
    plan_settings s = {.paths = paths, .n_paths = n, .prompts = default_prompts, .n_prompts = 1,
                       .complaints = f->complaints};
    status st = plan_open(&f->p, &s, &f->e);
    for (size_t i = 0; i < n; i++) free((void *)(uintptr_t)paths[i]);
    return st;
}

static status open_manifest(fixture *f, const char *text) {
    plan_close(&f->p);
    put(f, "items.jsonl", text);
    char *path = path_join(f->dir, "items.jsonl");
    plan_settings s = {.manifest = path, .prompts = default_prompts, .n_prompts = 1,
                       .complaints = f->complaints};
    status st = plan_open(&f->p, &s, &f->e);
    free(path);
    (void)fflush(f->complaints);
    return st;
}

static void assert_item(fixture *f, size_t idx, const char *ending) {
    const char *id = plan_id(f->p, idx);
    size_t n = strlen(id), k = strlen(ending);
    if (n < k || strcmp(id + n - k, ending) != 0) fail_msg("item %zu is %s, not ...%s", idx, id, ending);
}

/* ---- folders --------------------------------------------------------------------------------- */

static void a_folder_is_walked_in_sorted_order_and_only_images_are_taken(void **state) {
    fixture *f = *state;
    folder(f, "photos");
    folder(f, "photos/b");
    folder(f, "photos/.hidden");
    put(f, "photos/c.JPG", "x");
    put(f, "photos/a.png", "x");
    put(f, "photos/b/z.webp", "x");
    put(f, "photos/b/y.Jpeg", "x");
    put(f, "photos/b/.x.jpg", "x");
    put(f, "photos/.hidden/q.jpg", "x");
    put(f, "photos/notes.txt", "x");
    put(f, "photos/jpg", "x");
    assert_int_equal(open_paths(f, (const char *const[]){"photos"}, 1), STATUS_OK);
    assert_int_equal(plan_count(f->p), 4);
    assert_item(f, 0, "/photos/a.png");
    assert_item(f, 1, "/photos/b/y.Jpeg");
    assert_item(f, 2, "/photos/b/z.webp");
    assert_item(f, 3, "/photos/c.JPG");
}

static void a_link_back_to_its_folder_does_not_make_the_walk_endless(void **state) {
    fixture *f = *state;
    folder(f, "photos");
    put(f, "photos/a.png", "x");
    char *link = path_join(f->dir, "photos/again");
    assert_int_equal(symlink("..", link), 0);
    free(link);
    assert_int_equal(open_paths(f, (const char *const[]){"photos"}, 1), STATUS_OK);
    assert_int_equal(plan_count(f->p), 1);
}

static void a_named_file_is_tried_whatever_it_is_called(void **state) {
    fixture *f = *state;
    put(f, "picture", "x");
    assert_int_equal(open_paths(f, (const char *const[]){"picture", "absent.jpg"}, 2), STATUS_OK);
    assert_int_equal(plan_count(f->p), 2);
    plan_item item;
    assert_int_equal(plan_load(f->p, 0, &item, &f->e), STATUS_OK);
    assert_int_equal(item.code, STATUS_OK);
    assert_int_equal(item.data.len_bytes, 1);
    assert_string_equal(item.prompts[0], "Describe the image.");
    assert_int_equal(plan_load(f->p, 1, &item, &f->e), STATUS_OK);
    assert_int_equal(item.code, STATUS_IMAGE_UNREADABLE);
    assert_non_null(strstr(item.why, "No such file"));
}

static void no_images_and_nothing_named_are_usage_errors(void **state) {
    fixture *f = *state;
    folder(f, "empty");
    put(f, "empty/notes.txt", "x");
    assert_int_equal(open_paths(f, (const char *const[]){"empty"}, 1), STATUS_BAD_ARGUMENT);
    assert_non_null(strstr(f->e.text, "empty"));
    assert_int_equal(open_paths(f, NULL, 0), STATUS_BAD_ARGUMENT);
    assert_int_equal(open_manifest(f, "\n \n"), STATUS_BAD_ARGUMENT);
}

static void one_path_twice_is_a_usage_error(void **state) {
    fixture *f = *state;
    put(f, "a.jpg", "x");
    assert_int_equal(open_paths(f, (const char *const[]){"a.jpg", "a.jpg"}, 2), STATUS_BAD_ARGUMENT);
    assert_non_null(strstr(f->e.text, "a.jpg"));
}

static void a_name_that_is_not_utf8_has_an_id_that_is(void **state) {
    fixture *f = *state;
    folder(f, "photos");
    put(f, "photos/\xff\xc3\xa9.jpg", "x");
    assert_int_equal(open_paths(f, (const char *const[]){"photos"}, 1), STATUS_OK);
    assert_item(f, 0, "/photos/\\xff\xc3\xa9.jpg");
    plan_item item;
    assert_int_equal(plan_load(f->p, 0, &item, &f->e), STATUS_OK);
    assert_int_equal(item.code, STATUS_OK);
}

static void what_cannot_be_an_image_fails_alone(void **state) {
    fixture *f = *state;
    folder(f, "dir.jpg");
    put(f, "empty.jpg", "");
    char *fifo = path_join(f->dir, "fifo.jpg"), *big = path_join(f->dir, "big.jpg");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    file_write(big, "x", 1);
    assert_int_equal(truncate(big, (off_t)MESSAGE_IMAGE_BYTES_MAX + 1), 0);
    char manifest[512];
    (void)snprintf(manifest, sizeof manifest,
                   "{\"id\":\"1\",\"image\":\"dir.jpg\"}\n{\"id\":\"2\",\"image\":\"empty.jpg\"}\n"
                   "{\"id\":\"3\",\"image\":\"fifo.jpg\"}\n{\"id\":\"4\",\"image\":\"big.jpg\"}\n");
    assert_int_equal(open_manifest(f, manifest), STATUS_OK);
    static const status want[] = {STATUS_IMAGE_UNREADABLE, STATUS_IMAGE_UNDECODABLE, STATUS_IMAGE_UNREADABLE,
                                  STATUS_IMAGE_TOO_LARGE};
    for (size_t i = 0; i < 4; i++) {
        plan_item item;
        assert_int_equal(plan_load(f->p, i, &item, &f->e), STATUS_OK);
        assert_int_equal(item.code, want[i]);
        assert_true(item.why[0] != '\0');
        assert_int_equal(item.data.len_bytes, 0);
    }
    assert_int_equal(truncate(big, (off_t)MESSAGE_IMAGE_BYTES_MAX), 0);
    plan_item item;
    assert_int_equal(plan_load(f->p, 3, &item, &f->e), STATUS_OK);
    assert_int_equal(item.data.len_bytes, MESSAGE_IMAGE_BYTES_MAX);
    free(fifo);
    free(big);
}

/* ---- manifests ------------------------------------------------------------------------------- */

static void a_manifest_gives_ids_images_and_prompts(void **state) {
    fixture *f = *state;
    folder(f, "sub");
    put(f, "sub/a.jpg", "pixels");
    assert_int_equal(open_manifest(f, "{\"id\":\"one\",\"image\":\"sub/a.jpg\",\"prompt\":\"Why?\",\"note\":7}\n"
                                      "\n"
                                      "{\"id\":\"two\",\"image\":\"data:image/png;base64,Zm9v\","
                                      "\"prompts\":[\"A?\",\"\\u00e9?\"]}\r\n"
                                      "{\"id\":\"three\",\"image\":\"sub/a.jpg\"}\n"
                                      "{\"id\":\"words\"}"), STATUS_OK);
    assert_int_equal(plan_count(f->p), 4);
    assert_int_equal(plan_broken_lines(f->p), 0);
    assert_int_equal(plan_n_prompts(f->p, 1), 2);
    assert_int_equal(plan_n_prompts(f->p, 2), 1);
    assert_int_equal(plan_find(f->p, "two"), 1);
    assert_int_equal(plan_find(f->p, "four"), 4);
    plan_item item;
    assert_int_equal(plan_load(f->p, 1, &item, &f->e), STATUS_OK);
    assert_int_equal(item.code, STATUS_OK);
    assert_memory_equal(item.data.data, "foo", 3);
    assert_string_equal(item.image, "data:");
    assert_string_equal(item.prompts[1], "\xc3\xa9?");
    assert_int_equal(plan_load(f->p, 0, &item, &f->e), STATUS_OK);
    assert_memory_equal(item.data.data, "pixels", 6);
    assert_string_equal(item.image, "sub/a.jpg");
    assert_string_equal(item.prompts[0], "Why?");
    assert_int_equal(plan_load(f->p, 2, &item, &f->e), STATUS_OK);
    assert_string_equal(item.prompts[0], "Describe the image.");
    assert_int_equal(plan_load(f->p, 3, &item, &f->e), STATUS_OK);
    assert_null(item.image);
    assert_int_equal(item.code, STATUS_OK);
    assert_int_equal(item.data.len_bytes, 0);
}

static void an_item_may_have_several_images(void **state) {
    fixture *f = *state;
    folder(f, "sub");
    put(f, "sub/a.jpg", "pixels");
    put(f, "b.png", "more of them");
    put(f, "none.png", "");
    assert_int_equal(open_manifest(f, "{\"id\":\"1\",\"images\":[\"sub/a.jpg\",\"data:image/png;base64,Zm9v\",\"b.png\",\"sub/a.jpg\"]}\n"
                                      "{\"id\":\"2\",\"images\":[\"b.png\"]}\n"
                                      "{\"id\":\"3\",\"images\":[\"b.png\",\"data:,Zm9v\"]}\n"
                                      "{\"id\":\"4\",\"images\":[\"b.png\",\"sub/a.jpg\",\"absent.png\"]}\n"
                                      "{\"id\":\"5\",\"images\":[\"b.png\",\"none.png\"]}\n"
                                      "{\"id\":\"6\",\"images\":[\"b.png\",\"data:;base64,\"]}\n"
                                      "{\"id\":\"7\",\"image\":\"b.png\"}\n"), STATUS_OK);
    plan_item item;
    assert_int_equal(plan_load(f->p, 0, &item, &f->e), STATUS_OK);
    assert_int_equal(item.code, STATUS_OK);
    assert_null(item.image);
    assert_int_equal(item.n_images, 4);
    assert_int_equal(item.n_bytes, 6 + 3 + 12 + 6);
    static const char *const shown[] = {"sub/a.jpg", "data:", "b.png", "sub/a.jpg"};
    static const char *const data[] = {"pixels", "foo", "more of them", "pixels"};
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(item.images[i], shown[i]);
        assert_int_equal(item.all_data[i].len_bytes, strlen(data[i]));
        assert_memory_equal(item.all_data[i].data, data[i], strlen(data[i]));
    }
    for (size_t idx = 1; idx < 7; idx += 5) { /* a list of one is that image */
        assert_int_equal(plan_load(f->p, idx, &item, &f->e), STATUS_OK);
        assert_string_equal(item.image, "b.png");
        assert_int_equal(item.n_images, 0);
        assert_int_equal(item.data.len_bytes, 12);
        assert_int_equal(item.n_bytes, 12);
    }
    static const struct {
        status code;
        const char *why;
    } bad[] = {{STATUS_IMAGE_UNREADABLE, "image 2 of 2: data URL without"},
               {STATUS_IMAGE_UNREADABLE, "image 3 of 3: "},
               {STATUS_IMAGE_UNDECODABLE, "none.png: the file is empty"},
               {STATUS_IMAGE_UNDECODABLE, "image 2 of 2: data URL: no bytes"}};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(plan_load(f->p, 2 + i, &item, &f->e), STATUS_OK);
        assert_int_equal(item.code, bad[i].code);
        if (!strstr(item.why, bad[i].why)) fail_msg("\"%s\" does not say \"%s\"", item.why, bad[i].why);
        assert_int_equal(item.n_images, i == 1 ? 3 : 2); /* its line in the result names them all */
        assert_string_equal(item.images[0], "b.png");
        assert_int_equal(item.n_bytes, 0);
    }
}

static void each_broken_line_is_named_and_the_others_are_kept(void **state) {
    fixture *f = *state;
    static const char *const broken[] = {
        "{\"id\":\"x\"", "[]", "17", "{\"image\":\"a\"}", "{\"id\":7,\"image\":\"a\"}",
        "{\"id\":\"\",\"image\":\"a\"}", "{\"id\":\"x\",\"image\":\"\"}", "{\"id\":\"x\",\"image\":null}",
        "{\"id\":\"x\",\"image\":\"a\",\"prompt\":7}", "{\"id\":\"x\",\"image\":\"a\",\"prompts\":[]}",
        "{\"id\":\"x\",\"image\":\"a\",\"prompts\":[7]}", "{\"id\":\"x\",\"image\":\"a\",\"prompts\":\"q\"}",
        "{\"id\":\"x\",\"image\":\"a\",\"prompt\":\"\"}", "{\"id\":\"x\",\"image\":\"a\",\"turns\":{}}",
        "{\"id\":\"x\",\"image\":\"a\",\"turns\":[{\"question\":\"q\"}]}", "{\"id\":\"x\",\"image\":\"a\",\"turns\":[7]}",
        "{\"id\":\"x\",\"image\":\"a\",\"prompt\":\"q\",\"prompts\":[\"r\"]}",
        "{\"id\":\"x\",\"images\":[]}", "{\"id\":\"x\",\"images\":\"a\"}", "{\"id\":\"x\",\"images\":[\"a\",7]}",
        "{\"id\":\"x\",\"images\":[\"a\",\"\"]}", "{\"id\":\"x\",\"images\":[7]}", "{\"id\":\"x\",\"images\":null}",
        "{\"id\":\"x\",\"image\":\"a\",\"images\":[\"a\",\"b\"]}",
        "{\"id\":\"x\",\"images\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}",
        "{\"id\":\"x\",\"id\":\"y\",\"image\":\"a\"}", "{\"id\":\"\\u0000\",\"image\":\"a\"}",
        "{\"id\":\"\xff\",\"image\":\"a\"}", "{\"id\":\"x\",\"image\":\"a\"} trailing", "\xef\xbb\xbf{}"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        char text[512];
        (void)snprintf(text, sizeof text, "{\"id\":\"a\",\"image\":\"a.jpg\"}\n%s\n{\"id\":\"b\",\"image\":\"b.jpg\"}\n",
                       broken[i]);
        if (open_manifest(f, text) != STATUS_OK) fail_msg("%s: %s", broken[i], f->e.text);
        if (plan_count(f->p) != 2 || plan_broken_lines(f->p) != 1) fail_msg("%s was taken", broken[i]);
        assert_string_equal(plan_id(f->p, 1), "b");
        assert_non_null(strstr(f->complaint_text, "items.jsonl line 2: "));
        rewind(f->complaints);
    }
}

static void a_manifest_may_say_what_was_said_before(void **state) {
    fixture *f = *state;
    assert_int_equal(open_manifest(f, "{\"id\":\"a\",\"image\":\"data:image/png;base64,Zm9v\",\"prompt\":\"and?\","
                                      "\"turns\":[{\"question\":\"what?\",\"answer\":\"a dog\"}]}\n"
                                      "{\"id\":\"b\",\"image\":\"data:image/png;base64,Zm9v\"}\n"), STATUS_OK);
    plan_item item;
    assert_int_equal(plan_load(f->p, 0, &item, &f->e), STATUS_OK);
    assert_int_equal(item.n_turns, 1);
    assert_string_equal(item.turns[0].question, "what?");
    assert_string_equal(item.turns[0].answer, "a dog");
    assert_int_equal(plan_load(f->p, 1, &item, &f->e), STATUS_OK);
    assert_int_equal(item.n_turns, 0);
}

static void a_prompt_or_a_list_over_its_limit_breaks_its_line_only(void **state) {
    fixture *f = *state;
    static char text[MESSAGE_PROMPT_BYTES_MAX + 400];
    size_t n = (size_t)snprintf(text, sizeof text, "{\"id\":\"a\",\"image\":\"a.jpg\",\"prompt\":\"");
    memset(text + n, 'p', MESSAGE_PROMPT_BYTES_MAX + 1);
    (void)snprintf(text + n + MESSAGE_PROMPT_BYTES_MAX + 1, 64, "\"}\n{\"id\":\"b\",\"image\":\"b.jpg\"}\n");
    assert_int_equal(open_manifest(f, text), STATUS_OK);
    assert_int_equal(plan_broken_lines(f->p), 1);
    n = (size_t)snprintf(text, sizeof text, "{\"id\":\"a\",\"image\":\"a.jpg\",\"prompts\":[");
    for (int i = 0; i <= MESSAGE_QUESTIONS_MAX; i++) n += (size_t)snprintf(text + n, 8, "%s\"q\"", i ? "," : "");
    (void)snprintf(text + n, 8, "]}\n");
    assert_int_equal(open_manifest(f, text), STATUS_OK);
    assert_int_equal(plan_broken_lines(f->p), 1);
}

static void a_line_over_its_limit_is_left_out_and_the_next_one_read(void **state) {
    fixture *f = *state;
    put(f, "items.jsonl", "");
    char *path = path_join(f->dir, "items.jsonl");
    FILE *out = fopen(path, "w");
    static char block[1 << 20];
    memset(block, 'x', sizeof block);
    for (size_t n = 0; n <= PLAN_LINE_BYTES_MAX; n += sizeof block) (void)fwrite(block, 1, sizeof block, out);
    (void)fputs("\n{\"id\":\"b\",\"image\":\"b.jpg\"}\n", out);
    (void)fclose(out);
    plan_settings s = {.manifest = path, .prompts = default_prompts, .n_prompts = 1, .complaints = f->complaints};
    assert_int_equal(plan_open(&f->p, &s, &f->e), STATUS_OK);
    (void)fflush(f->complaints);
    assert_non_null(strstr(f->complaint_text, "line 1: longer than"));
    assert_int_equal(plan_count(f->p), 1);
    free(path);
}

static void a_second_line_with_one_id_is_refused_naming_both(void **state) {
    fixture *f = *state;
    assert_int_equal(open_manifest(f, "{\"id\":\"a\",\"image\":\"1\"}\n{\"id\":\"b\",\"image\":\"1\"}\nbroken\n"
                                      "{\"id\":\"a\",\"image\":\"2\"}\n"), STATUS_BAD_ARGUMENT);
    assert_non_null(strstr(f->e.text, "line 1 "));
    assert_non_null(strstr(f->e.text, "line 4"));
    assert_null(f->p);
}

static void ten_thousand_ids_are_all_found_again(void **state) {
    fixture *f = *state;
    buf text;
    buf_init(&text, 4 << 20);
    for (int i = 0; i < 10000; i++) {
        char line[64];
        (void)snprintf(line, sizeof line, "{\"id\":\"item-%d\",\"image\":\"a.jpg\"}\n", i);
        assert_int_equal(buf_append_text(&text, line), STATUS_OK);
    }
    assert_int_equal(open_manifest(f, (const char *)text.data), STATUS_OK);
    for (size_t i = 0; i < 10000; i++) assert_int_equal(plan_find(f->p, plan_id(f->p, i)), i);
    buf_deinit(&text);
}

static void a_bad_data_url_fails_alone(void **state) {
    fixture *f = *state;
    assert_int_equal(open_manifest(f, "{\"id\":\"1\",\"image\":\"data:image/png;base64,Zm9\"}\n"
                                      "{\"id\":\"2\",\"image\":\"data:image/png,raw\"}\n"
                                      "{\"id\":\"3\",\"image\":\"data:\"}\n"
                                      "{\"id\":\"4\",\"image\":\"data:;base64,\"}\n"), STATUS_OK);
    for (size_t i = 0; i < 4; i++) {
        plan_item item;
        assert_int_equal(plan_load(f->p, i, &item, &f->e), STATUS_OK);
        assert_int_equal(item.code, i < 3 ? STATUS_IMAGE_UNREADABLE : STATUS_IMAGE_UNDECODABLE);
    }
}

static void a_manifest_that_changes_under_us_ends_the_run(void **state) {
    fixture *f = *state;
    assert_int_equal(open_manifest(f, "{\"id\":\"1\",\"image\":\"a.jpg\"}\n{\"id\":\"2\",\"image\":\"b.jpg\"}\n"), STATUS_OK);
    put(f, "items.jsonl", "{\"id\":\"9\",\"image\":\"a.jpg\"}\n");
    plan_item item;
    assert_int_equal(plan_load(f->p, 0, &item, &f->e), STATUS_BAD_FORMAT);
    assert_non_null(strstr(f->e.text, "line 1"));
    assert_int_equal(plan_load(f->p, 1, &item, &f->e), STATUS_BAD_FORMAT);
}

static void the_digest_changes_with_whatever_is_asked(void **state) {
    fixture *f = *state;
    static const char *const texts[] = {
        "{\"id\":\"1\",\"image\":\"a.jpg\"}\n", "{\"id\":\"2\",\"image\":\"a.jpg\"}\n",
        "{\"id\":\"1\",\"image\":\"b.jpg\"}\n", "{\"id\":\"1\",\"image\":\"a.jpg\",\"prompt\":\"q\"}\n",
        "{\"id\":\"1\",\"image\":\"a.jpg\",\"prompt\":\"q\",\"turns\":[{\"question\":\"q\",\"answer\":\"a\"}]}\n",
        "{\"id\":\"1\",\"images\":[\"a.jpg\",\"b.jpg\"]}\n", "{\"id\":\"1\",\"images\":[\"b.jpg\",\"a.jpg\"]}\n",
        "{\"id\":\"1\",\"images\":[\"a.jpg\",\"a.jpg\"]}\n", "{\"id\":\"1\",\"images\":[\"a.jpg\",\"b.jpg\",\"b.jpg\"]}\n",
        "{\"id\":\"1\",\"images\":[\"a.jpg\",\"b.jpg\"],\"prompt\":\"q\"}\n", "{\"id\":\"1\",\"prompts\":[\"a.jpg\",\"b.jpg\"]}\n",
        "{\"id\":\"1\",\"image\":\"a.jpg\"}\n{\"id\":\"2\",\"image\":\"a.jpg\"}\n",
        "{\"id\":\"2\",\"image\":\"a.jpg\"}\n{\"id\":\"1\",\"image\":\"a.jpg\"}\n"};
    enum { N = sizeof texts / sizeof *texts };
    unsigned char digests[N][HASH_SHA256_BYTES], again[HASH_SHA256_BYTES];
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(open_manifest(f, texts[i]), STATUS_OK);
        plan_digest(f->p, digests[i]);
        for (size_t k = 0; k < i; k++) assert_memory_not_equal(digests[i], digests[k], HASH_SHA256_BYTES);
    }
    assert_int_equal(open_manifest(f, "\n{ \"image\":\"a.jpg\", \"id\":\"1\"}"), STATUS_OK);
    plan_digest(f->p, again);
    assert_memory_equal(again, digests[0], sizeof again);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        T(a_folder_is_walked_in_sorted_order_and_only_images_are_taken),
        T(a_link_back_to_its_folder_does_not_make_the_walk_endless),
        T(a_named_file_is_tried_whatever_it_is_called),
        T(no_images_and_nothing_named_are_usage_errors),
        T(one_path_twice_is_a_usage_error),
        T(a_name_that_is_not_utf8_has_an_id_that_is),
        T(what_cannot_be_an_image_fails_alone),
        T(a_manifest_gives_ids_images_and_prompts),
        T(an_item_may_have_several_images),
        T(each_broken_line_is_named_and_the_others_are_kept),
        T(a_manifest_may_say_what_was_said_before),
        T(a_prompt_or_a_list_over_its_limit_breaks_its_line_only),
        T(a_line_over_its_limit_is_left_out_and_the_next_one_read),
        T(a_second_line_with_one_id_is_refused_naming_both),
        T(ten_thousand_ids_are_all_found_again),
        T(a_bad_data_url_fails_alone),
        T(a_manifest_that_changes_under_us_ends_the_run),
        T(the_digest_changes_with_whatever_is_asked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
