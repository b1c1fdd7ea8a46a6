/* Files to the pixels that a tower of 384 takes, one after the other on one thread.
 *
 *     image_bench FILE... [--rounds N]
 *
 *     image file=a.jpg width=640 height=480 decode_ms=0.86 resize_ms=0.79
 *
 * resize_ms: padded to a square and resized, as a node does for Mipha-3B. Processor time, the median of the rounds; no
 * sandbox and no process between. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/median.h"
#include "vision_node/image_decode.h"
#include "vision_node/image_preprocess.h"

#define SIZE       384
#define ROUNDS_MAX 999

static double now_ms(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static unsigned char *read_whole(size_t *n_bytes, const char *path) {
    FILE *file = fopen(path, "rb");
    unsigned char *data = file ? malloc(IMAGE_ENCODED_BYTES_MAX) : NULL;
    *n_bytes = data ? fread(data, 1, IMAGE_ENCODED_BYTES_MAX, file) : 0;
    if (file) (void)fclose(file);
    return data;
}

static status run(const char *path, int n_rounds, err *e) {
    static double decode[ROUNDS_MAX], resize[ROUNDS_MAX];
    static unsigned char pixels[SIZE * SIZE * 3];
    const model_preprocess_config config = {.size = SIZE, .resize = SIZE, .pad_to_square = true, .pad_rgb = {127, 127, 127}};
    const image_limits limits = {0};
    size_t n_bytes;
    unsigned char *data = read_whole(&n_bytes, path);
    if (!data) return fail(e, STATUS_NOT_FOUND, "%s: cannot be read", path);
    image_info info = {0};
    status st = STATUS_OK;
    for (int round = 0; round < n_rounds && st == STATUS_OK; round++) {
        image_rgb image = {0};
        double start = now_ms();
        st = image_decode(&image, &info, (bytes){data, n_bytes}, &limits, e);
        decode[round] = now_ms() - start;
        if (st == STATUS_OK) st = image_preprocess(pixels, &image, &config, e);
        resize[round] = now_ms() - start - decode[round];
        image_rgb_deinit(&image);
    }
    free(data);
    if (st != STATUS_OK) return st;
    printf("image file=%s width=%d height=%d decode_ms=%.2f resize_ms=%.2f\n", path, info.width, info.height,
           median(decode, n_rounds), median(resize, n_rounds));
    return STATUS_OK;
}

int main(int argc, char **argv) {
    int n_rounds = 21, n_files = argc - 1;
    if (argc > 3 && strcmp(argv[argc - 2], "--rounds") == 0) {
        n_rounds = (int)strtol(argv[argc - 1], NULL, 10);
        n_files -= 2;
    }
    if (n_files < 1 || n_rounds < 1 || n_rounds > ROUNDS_MAX) {
        (void)fprintf(stderr, "usage: image_bench FILE... [--rounds N]\n");
        return 2;
    }
    for (int i = 1; i <= n_files; i++) {
        err e = {0};
        if (run(argv[i], n_rounds, &e) == STATUS_OK) continue;
        (void)fprintf(stderr, "image_bench: %s\n", e.text);
        return 1;
    }
    return 0;
}
