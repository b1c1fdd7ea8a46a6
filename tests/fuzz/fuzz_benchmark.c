/* The files of a benchmark from outside: refused with a reason, or read, answered and scored without harm. The first byte
 * of the input chooses the benchmark; its files follow, with a zero byte between them. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "eval/benchmark.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FILES_MAX 3

static const struct {
    const char *name, *files[FILES_MAX];
} kinds[] = {
    {"vqav2", {"llava_vqav2_mscoco_val2014.jsonl", "v2_mscoco_val2014_annotations.json"}},
    {"gqa", {"llava_gqa_testdev_balanced.jsonl", "testdev_balanced_questions.json"}},
    {"vizwiz", {"llava_test.jsonl"}},
    {"scienceqa", {"llava_test_CQM-A.json", "problems.json", "pid_splits.json"}},
    {"textvqa", {"llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"}},
    {"pope", {"llava_pope_test.jsonl", "coco/coco_pope_adversarial.json"}},
    {"mme", {"llava_mme.jsonl", "MME_Benchmark_release_version/count/1.txt"}},
    {"seed", {"llava-seed-bench.jsonl", "SEED-Bench.json"}},
    {"mmvet", {"llava-mm-vet.jsonl"}},
    {"mmbench", {"mmbench_dev_20230712.tsv"}},
    {"mmmu", {"mmmu.jsonl"}}};
#define N_KINDS (sizeof kinds / sizeof *kinds)

static char root[64];

static void path_in(char out[256], size_t kind, const char *name) {
    (void)snprintf(out, 256, "%s/%s/%s", root, kinds[kind].name, name);
}

static void remove_folders(void) {
    char command[96];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", root);
    if (system(command) != 0) return;
}

static void make_folders(void) {
    bool has_shm = access("/dev/shm", W_OK) == 0;
    char path[256];
    (void)snprintf(root, sizeof root, "%s/mipha-fuzz-XXXXXX", has_shm ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(root), "a folder for the files");
    (void)atexit(remove_folders);
    (void)snprintf(path, sizeof path, "%s/out", root);
    CHECK(mkdir(path, 0700) == 0, "a folder for what is written");
    static const char *const inner[] = {"", "coco", "MME_Benchmark_release_version", "MME_Benchmark_release_version/count"};
    for (size_t k = 0; k < N_KINDS; k++)
        for (size_t i = 0; i < sizeof inner / sizeof *inner; i++) {
            path_in(path, k, inner[i]);
            CHECK(mkdir(path, 0700) == 0, "folders of a benchmark");
        }
}

static void write_files(size_t kind, const uint8_t *data, size_t size) {
    for (int i = 0; i < FILES_MAX && kinds[kind].files[i]; i++) {
        char path[256];
        const uint8_t *cut = size ? memchr(data, '\0', size) : NULL;
        size_t n = cut ? (size_t)(cut - data) : size;
        path_in(path, kind, kinds[kind].files[i]);
        FILE *f = fopen(path, "wb");
        CHECK(f && fwrite(data, 1, n, f) == n && fclose(f) == 0, "a file is written");
        data += n + (cut != NULL);
        size -= n + (cut != NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const answers[] = {"Yes.", "B", "no, not 3.5", "(A) or 1,000", NULL};
    if (size == 0) return 0;
    if (!root[0]) make_folders();
    size_t kind = data[0] % N_KINDS;
    write_files(kind, data + 1, size - 1);
    const benchmark *b = benchmark_find(kinds[kind].name);
    eval_items items = {0};
    eval_report report = {0};
    err e = {0};
    char dir[256], out[256];
    path_in(dir, kind, "");
    (void)snprintf(out, sizeof out, "%s/out", root);
    status st = b->read(&items, dir, &e);
    CHECK(st == STATUS_OK || e.text[0], "a refusal says why");
    for (size_t i = 0; i < items.n && st == STATUS_OK; i++) {
        const char *answer = answers[i % (sizeof answers / sizeof *answers)];
        if (!items.items[i].answer && answer) items.items[i].answer = strdup(answer);
    }
    if (st == STATUS_OK && items.n > 0) st = b->finish(&items, dir, out, &report, &e);
    CHECK(st == STATUS_OK || e.text[0], "a refusal says why");
    CHECK(report.n <= EVAL_ROWS_MAX, "rows fit");
    eval_items_deinit(&items);
    return 0;
}
