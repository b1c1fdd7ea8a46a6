/* A test that fails or skips leaves no folder behind. */
#include "tests/support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int ends_early(void *arg) {
    (void)arg;
    char *file = path_join(temp_dir_make(), "file");
    file_write(file, "x", 1);
    printf("%s\n", file);
    exit(3); /* as main does after a test that failed */
}

static void what_an_ended_process_left_is_gone_and_nobody_elses(void **state) {
    (void)state;
    char *ours = temp_dir_make();
    child c;
    buf file;
    buf_init(&file, 1 << 16);
    child_start_function(&c, ends_early, NULL);
    assert_int_equal(child_wait(&c, 10000), 3);
    child_stdout(&c, &file);
    child_close(&c);
    char *path = (char *)file.data;
    path[strcspn(path, "\n")] = '\0';
    assert_int_equal(access(path, F_OK), -1);
    *strrchr(path, '/') = '\0';
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(access(ours, F_OK), 0);
    temp_dir_remove(ours);
    buf_deinit(&file);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_an_ended_process_left_is_gone_and_nobody_elses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
