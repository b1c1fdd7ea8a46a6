/* A ready file is one service's, appears whole, and outlives nobody who runs. */
#include "tests/support/support.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/ready_file.h"

typedef struct {
    char *dir, *path, *draft;
} fixture;

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    f->dir = temp_dir_make();
    f->path = path_join(f->dir, "ready");
    f->draft = path_join(f->dir, "ready.new");
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    temp_dir_remove(f->dir);
    free(f->path), free(f->draft), free(f);
    return 0;
}

static bool is_there(const char *path) { return access(path, F_OK) == 0; }

static void assert_says(const char *path, const char *text) {
    buf found;
    buf_init(&found, 1 << 16);
    assert_true(file_read(&found, path));
    assert_string_equal((const char *)found.data, text);
    buf_deinit(&found);
}

static void it_appears_when_it_is_written_and_goes_at_the_end(void **state) {
    const fixture *f = *state;
    ready_file r;
    err e;
    file_write(f->path, "of one that was killed\n", 23);
    file_write(f->draft, "of one that was killed while it started\n", 40);
    assert_int_equal(ready_file_claim(&r, f->path, &e), STATUS_OK);
    assert_false(is_there(f->path));
    assert_int_equal(ready_file_write(&r, "here\n", &e), STATUS_OK);
    assert_says(f->path, "here\n");
    assert_false(is_there(f->draft));
    ready_file_remove(&r);
    assert_false(is_there(f->path));
    ready_file_remove(&r);
    assert_int_equal(ready_file_claim(&r, f->path, &e), STATUS_OK);
    ready_file_remove(&r); /* never written */
    assert_false(is_there(f->path) || is_there(f->draft));
}

static void a_second_one_is_refused_and_leaves_the_first_alone(void **state) {
    const fixture *f = *state;
    ready_file first, second;
    err e;
    assert_int_equal(ready_file_claim(&first, f->path, &e), STATUS_OK);
    assert_int_equal(ready_file_claim(&second, f->path, &e), STATUS_CONFLICT); /* while it starts */
    ready_file_remove(&second);
    assert_int_equal(ready_file_write(&first, "first\n", &e), STATUS_OK);
    assert_int_equal(ready_file_claim(&second, f->path, &e), STATUS_CONFLICT); /* while it runs */
    assert_non_null(strstr(e.text, "ready is another's"));
    ready_file_remove(&second);
    assert_says(f->path, "first\n");
    assert_false(is_there(f->draft));

    /* Somebody removed it by hand: what stands there then is the second's. */
    assert_int_equal(unlink(f->path), 0);
    assert_int_equal(ready_file_claim(&second, f->path, &e), STATUS_OK);
    assert_int_equal(ready_file_write(&second, "second\n", &e), STATUS_OK);
    ready_file_remove(&first);
    assert_says(f->path, "second\n");
    ready_file_remove(&second);
    assert_false(is_there(f->path));
}

static void none_is_wanted_or_none_can_be_made(void **state) {
    (void)state;
    ready_file r;
    err e;
    assert_int_equal(ready_file_claim(&r, NULL, &e), STATUS_OK);
    assert_int_equal(ready_file_write(&r, "nowhere\n", &e), STATUS_OK);
    ready_file_remove(&r);
    assert_int_equal(ready_file_claim(&r, "/nonexistent/ready", &e), STATUS_IO);
    ready_file_remove(&r);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        T(it_appears_when_it_is_written_and_goes_at_the_end),
        T(a_second_one_is_refused_and_leaves_the_first_alone),
        cmocka_unit_test(none_is_wanted_or_none_can_be_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
