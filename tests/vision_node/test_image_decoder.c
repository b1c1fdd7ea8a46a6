/* Decoding in processes of their own: the same bytes as decoding in place, and a node that lives on whatever
 * an image does to a decoder. */
#include "tests/vision_node/image_cases.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>

#include "vision_node/image_decoder.h"
#include "vision_node/image_preprocess.h"
#include "vision_node/image_sandbox.h"
#include "vision_node/image_worker.h"

#define SIZE       32
#define N_PIXEL_BYTES   (3 * SIZE * SIZE)
#define WALL_MS    1500
#define WAIT_MS    20000
#define GOOD       "jpeg_420_q92.jpg"
#define TAKEN_OVER_FILL_AT 10

/* ---- misbehaviour, by the first bytes of the "image" ------------------------------------------- */

static bool starts_with(bytes b, const char *word) {
    return b.len_bytes >= strlen(word) && memcmp(b.data, word, strlen(word)) == 0;
}

/* What a worker shares with its caller starts a page before its image. */
static volatile unsigned char *own_region(bytes encoded) {
    return (volatile unsigned char *)(uintptr_t)encoded.data - 65536;
}

/* Runs inside the worker. */
static void misbehave(bytes encoded) {
    if (starts_with(encoded, "CRASH")) {
        /* Without the sandbox cmocka's own handler is still there, and would go on to its exit. */
        if (!image_sandbox_is_possible()) (void)signal(SIGSEGV, SIG_DFL);
        (void)raise(SIGSEGV);
    }
    if (starts_with(encoded, "ABORT")) abort();
    if (starts_with(encoded, "LEAVE")) _exit(5);
    if (starts_with(encoded, "TAKEN OVER")) { /* all that a worker can write that is not the image, and the way out */
        for (size_t at = 0; at < sizeof(image_shared); at++) own_region(encoded)[at] = encoded.data[TAKEN_OVER_FILL_AT];
        _exit(0);
    }
    if (starts_with(encoded, "HANG"))
        for (volatile unsigned i = 0;; i++) continue;
    if (starts_with(encoded, "OPEN")) (void)open("/etc/passwd", O_RDONLY);
    if (starts_with(encoded, "SOCKET")) (void)socket(AF_INET, SOCK_STREAM, 0);
    if (starts_with(encoded, "FORK")) (void)fork();
    if (starts_with(encoded, "KILL")) (void)kill(getppid(), SIGTERM);
    if (starts_with(encoded, "CODE"))
        (void)mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (starts_with(encoded, "MEMORY")) { /* refused, not granted */
        for (int i = 0; i < 64; i++) {
            unsigned char *p = malloc((size_t)1 << 30);
            if (!p) return;
            p[0] = 1;
        }
        abort();
    }
}

static image_decoder *open_decoder(int n_workers) {
    image_decoder_limits limits = {.wall_ms = WALL_MS, .before_decode = misbehave};
    image_decoder *d;
    err e;
    if (image_decoder_open(&d, n_workers, &limits, &e) != STATUS_OK) fail_msg("%s", e.text);
    return d;
}

static status decode(image_decoder *d, unsigned char *pixels, bytes encoded, err *e) {
    model_preprocess_config config = image_case_config(SIZE, true);
    image_info info;
    return image_decoder_run(d, pixels, &info, encoded, true, &config, e);
}

static status decode_in_place(unsigned char *pixels, bytes encoded, err *e) {
    model_preprocess_config config = image_case_config(SIZE, true);
    image_limits limits = {0};
    image_rgb image = {0};
    image_info info;
    status st = image_decode(&image, &info, encoded, &limits, e);
    if (st == STATUS_OK) st = image_rgb_orient(&image, info.orientation, e);
    if (st == STATUS_OK) st = image_preprocess(pixels, &image, &config, e);
    image_rgb_deinit(&image);
    return st;
}

static void expects_good(image_decoder *d) {
    size_t n;
    unsigned char *data = image_case_load(GOOD, &n);
    unsigned char got[N_PIXEL_BYTES], want[N_PIXEL_BYTES];
    err e;
    if (decode(d, got, (bytes){data, n}, &e) != STATUS_OK) fail_msg("%s", e.text);
    assert_int_equal(decode_in_place(want, (bytes){data, n}, &e), STATUS_OK);
    assert_memory_equal(got, want, sizeof got);
    free(data);
}

static bytes word(const char *text) { return (bytes){(const unsigned char *)text, strlen(text)}; }

/* ---- promises ------------------------------------------------------------------------------------ */

static void every_file_gives_the_bytes_and_the_refusals_of_decoding_in_place(void **state) {
    (void)state;
    image_decoder *d = open_decoder(2);
    DIR *dir = opendir(TEST_DATA_DIR "/images");
    assert_non_null(dir);
    int n_good = 0, n_bad = 0;
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') continue;
        size_t n;
        unsigned char *data = image_case_load(entry->d_name, &n);
        for (int is_cut = 0; is_cut < 2; is_cut++) {
            unsigned char got[N_PIXEL_BYTES], want[N_PIXEL_BYTES];
            err e, in_place;
            bytes encoded = {data, is_cut ? n / 2 : n};
            status st = decode(d, got, encoded, &e), expected = decode_in_place(want, encoded, &in_place);
            if (st != expected) fail_msg("%s: %s", entry->d_name, e.text);
            if (st == STATUS_OK) assert_memory_equal(got, want, sizeof got);
            else assert_string_equal(e.text, in_place.text);
            n_good += st == STATUS_OK;
            n_bad += st != STATUS_OK;
        }
        free(data);
    }
    (void)closedir(dir);
    assert_true(n_good > 50 && n_bad > 50);
    assert_int_equal(image_decoder_n_replaced(d), 0);
    image_decoder_close(&d);
}

static void an_image_of_thirty_thousand_by_thirty_thousand_is_refused_with_both_numbers(void **state) {
    (void)state;
    static const unsigned char nothing[] = {0x78, 0x9c, 0x03, 0, 0, 0, 0, 1};
    image_decoder *d = open_decoder(1);
    unsigned char png[256];
    size_t n = image_case_png(png, 30000, 30000, 8, 2, nothing, sizeof nothing);
    unsigned char pixels[N_PIXEL_BYTES];
    err e;
    assert_int_equal(decode(d, pixels, (bytes){png, n}, &e), STATUS_IMAGE_TOO_LARGE);
    assert_non_null(strstr(e.text, "30000"));
    assert_non_null(strstr(e.text, "64000000"));
    assert_int_equal(decode(d, pixels, word("text, not a picture"), &e), STATUS_IMAGE_UNDECODABLE);
    assert_int_equal(decode(d, pixels, (bytes){0}, &e), STATUS_IMAGE_UNDECODABLE);
    expects_good(d);
    image_decoder_close(&d);
}

static void a_worker_that_dies_costs_one_image_its_answer_and_is_replaced(void **state) {
    (void)state;
    static const struct {
        const char *what, *why;
    } deaths[] = {{"CRASH", "segmentation fault"}, {"ABORT", "abort"}, {"LEAVE", "exit status 5"}};
    image_decoder *d = open_decoder(1);
    unsigned char pixels[N_PIXEL_BYTES];
    err e;
    for (size_t i = 0; i < 6; i++) {
        size_t k = i % 3;
        assert_int_equal(decode(d, pixels, word(deaths[k].what), &e), STATUS_IMAGE_UNDECODABLE);
        /* A sanitizer ends the process itself, with an exit status of its own. */
        if (image_sandbox_is_possible() && !strstr(e.text, deaths[k].why))
            fail_msg("%s: %s", deaths[k].what, e.text);
        expects_good(d);
        assert_int_equal(image_decoder_n_replaced(d), i + 1);
    }
    image_decoder_close(&d);
}

static void a_worker_that_is_taken_over_costs_one_image_whatever_it_writes(void **state) {
    (void)state;
    static const unsigned char fills[] = {0xff, 0, 1, 0xff};
    image_decoder *d = open_decoder(1);
    for (size_t i = 0; i < sizeof fills; i++) {
        unsigned char image[] = "TAKEN OVER?", pixels[N_PIXEL_BYTES];
        image[TAKEN_OVER_FILL_AT] = fills[i];
        err e;
        assert_int_equal(decode(d, pixels, (bytes){image, sizeof image}, &e), STATUS_IMAGE_UNDECODABLE);
        assert_non_null(strstr(e.text, "longer than 1500 ms"));
        expects_good(d);
    }
    image_decoder_close(&d);
}

static void a_worker_that_hangs_is_killed_when_its_time_is_over(void **state) {
    (void)state;
    image_decoder *d = open_decoder(1);
    unsigned char pixels[N_PIXEL_BYTES];
    err e;
    assert_int_equal(decode(d, pixels, word("HANG"), &e), STATUS_IMAGE_UNDECODABLE);
    assert_non_null(strstr(e.text, "longer than 1500 ms"));
    expects_good(d);
    image_decoder_close(&d);
}

static void the_sandbox_forbids_files_network_processes_signals_and_code(void **state) {
    (void)state;
    if (!image_sandbox_is_possible()) skip();
    static const char *const crimes[] = {"OPEN", "SOCKET", "FORK", "KILL", "CODE"};
    image_decoder *d = open_decoder(1);
    unsigned char pixels[N_PIXEL_BYTES];
    err e;
    for (size_t i = 0; i < sizeof crimes / sizeof *crimes; i++) {
        assert_int_equal(decode(d, pixels, word(crimes[i]), &e), STATUS_IMAGE_UNDECODABLE);
        if (!strstr(e.text, "forbidden system call")) fail_msg("%s: %s", crimes[i], e.text);
        expects_good(d);
    }
    /* Memory beyond its limit is refused, so the worker lives and says that this is no image. */
    uint64_t n_replaced = image_decoder_n_replaced(d);
    assert_int_equal(decode(d, pixels, word("MEMORY"), &e), STATUS_IMAGE_UNDECODABLE);
    assert_int_equal(image_decoder_n_replaced(d), n_replaced);
    image_decoder_close(&d);
}

typedef struct {
    image_decoder *d;
    int seed, n_wrong;
} caller;

static void *call_often(void *arg) {
    caller *c = arg;
    size_t n;
    unsigned char *data = image_case_load(GOOD, &n);
    unsigned char want[N_PIXEL_BYTES], got[N_PIXEL_BYTES];
    err e;
    c->n_wrong += decode_in_place(want, (bytes){data, n}, &e) != STATUS_OK;
    for (int i = 0; i < 40; i++) {
        if ((i + c->seed) % 10 == 0) {
            c->n_wrong += decode(c->d, got, word("CRASH"), &e) != STATUS_IMAGE_UNDECODABLE;
            continue;
        }
        c->n_wrong += decode(c->d, got, (bytes){data, n}, &e) != STATUS_OK || memcmp(got, want, sizeof got);
    }
    free(data);
    return NULL;
}

static void many_callers_share_few_workers_and_crashes_hit_only_their_own_image(void **state) {
    (void)state;
    image_decoder *d = open_decoder(3);
    caller callers[6];
    pthread_t threads[6];
    for (int i = 0; i < 6; i++) {
        callers[i] = (caller){d, i, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, call_often, &callers[i]), 0);
    }
    for (int i = 0; i < 6; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(callers[i].n_wrong, 0);
    }
    assert_int_equal(image_decoder_n_replaced(d), 24);
    image_decoder_close(&d);
}

/* ---- what is left behind ------------------------------------------------------------------------ */

static int n_open_files(void) {
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    int n = 0;
    while (readdir(dir)) n++;
    (void)closedir(dir);
    return n;
}

static long resident_kb(void) {
    FILE *f = fopen("/proc/self/statm", "r");
    long pages = 0;
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%*d %ld", &pages), 1);
    (void)fclose(f);
    return pages * sysconf(_SC_PAGESIZE) / 1024;
}

static void files_and_memory_do_not_grow(void **state) {
    (void)state;
    int n_before = n_open_files();
    image_decoder *d = open_decoder(1);
    int n_files = n_open_files();
    long kb = 0;
    unsigned char pixels[N_PIXEL_BYTES];
    err e;
    size_t n;
    unsigned char *data = image_case_load(GOOD, &n);
    for (int i = 0; i < 2000; i++) {
        if (i == 500) kb = resident_kb();
        bytes encoded = i % 200 == 7 ? word("LEAVE") : (bytes){data, n};
        (void)decode(d, pixels, encoded, &e);
    }
    free(data);
    assert_int_equal(n_open_files(), n_files);
    if (image_sandbox_is_possible()) assert_true(resident_kb() < kb + 2048);
    image_decoder_close(&d);
    assert_int_equal(n_open_files(), n_before);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child is left, dead or alive */
}

static int decode_for_ever(void *arg) {
    (void)arg;
    image_decoder *d = open_decoder(2);
    (void)printf("open\n");
    (void)fflush(stdout);
    for (;;) expects_good(d);
    return 0;
}

static size_t descendants(long pid, long *pids, size_t n) {
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/%ld/task/%ld/children", pid, pid);
    FILE *f = fopen(path, "r");
    long found;
    while (f && n < 16 && fscanf(f, "%ld", &found) == 1) {
        pids[n++] = found;
        n = descendants(found, pids, n);
    }
    if (f) (void)fclose(f);
    return n;
}

typedef struct {
    const long *pids;
    size_t n;
} family;

static bool is_gone(void *arg) {
    const family *all = arg;
    for (size_t i = 0; i < all->n; i++) {
        char path[64], state = 'Z';
        (void)snprintf(path, sizeof path, "/proc/%ld/stat", all->pids[i]);
        FILE *f = fopen(path, "r");
        if (f && fscanf(f, "%*d %*s %c", &state) != 1) state = 'Z';
        if (f) (void)fclose(f);
        if (f && state != 'Z') return false;
    }
    return true;
}

static void nobody_outlives_a_caller_that_was_killed(void **state) {
    (void)state;
    child c;
    child_start_function(&c, decode_for_ever, NULL);
    assert_true(child_wait_for_output(&c, "open", WAIT_MS));
    long pids[16];
    family all = {pids, descendants(c.pid, pids, 0)};
    assert_int_equal(all.n, 3); /* the supervisor and two workers */
    assert_false(is_gone(&all));
    assert_int_equal(child_stop(&c, SIGKILL, WAIT_MS), 128 + SIGKILL);
    assert_true(wait_until(is_gone, &all, WAIT_MS));
    child_close(&c);
}

static void limits_that_make_no_sense_are_refused(void **state) {
    (void)state;
    image_decoder *d;
    err e;
    image_decoder_limits limits = {.size_max = 5000};
    assert_int_equal(image_decoder_open(&d, 1, &limits, &e), STATUS_BAD_ARGUMENT);
    limits = (image_decoder_limits){0};
    assert_int_equal(image_decoder_open(&d, 0, &limits, &e), STATUS_BAD_ARGUMENT);
    assert_int_equal(image_decoder_open(&d, IMAGE_DECODER_WORKERS_MAX + 1, &limits, &e), STATUS_BAD_ARGUMENT);
    assert_null(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_file_gives_the_bytes_and_the_refusals_of_decoding_in_place),
        cmocka_unit_test(an_image_of_thirty_thousand_by_thirty_thousand_is_refused_with_both_numbers),
        cmocka_unit_test(a_worker_that_dies_costs_one_image_its_answer_and_is_replaced),
        cmocka_unit_test(a_worker_that_is_taken_over_costs_one_image_whatever_it_writes),
        cmocka_unit_test(a_worker_that_hangs_is_killed_when_its_time_is_over),
        cmocka_unit_test(the_sandbox_forbids_files_network_processes_signals_and_code),
        cmocka_unit_test(many_callers_share_few_workers_and_crashes_hit_only_their_own_image),
        cmocka_unit_test(files_and_memory_do_not_grow),
        cmocka_unit_test(nobody_outlives_a_caller_that_was_killed),
        cmocka_unit_test(limits_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
