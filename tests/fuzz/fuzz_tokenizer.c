/* A tokenizer.json from outside: it is refused with a reason, or it encodes every text into ids that decode
 * to the text again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "model/tokenizer.h"

#define IDS_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64], file[96];

static void remove_folder(void) {
    (void)unlink(file);
    (void)rmdir(folder);
}

static void write_file(const uint8_t *data, size_t size) {
    if (!folder[0]) {
        bool has_shm = access("/dev/shm", W_OK) == 0;
        (void)snprintf(folder, sizeof folder, "%s/mipha-fuzz-XXXXXX", has_shm ? "/dev/shm" : "/tmp");
        CHECK(mkdtemp(folder), "a folder for the file");
        (void)snprintf(file, sizeof file, "%s/tokenizer.json", folder);
        (void)atexit(remove_folder);
    }
    FILE *f = fopen(file, "wb");
    CHECK(f && fwrite(data, 1, size, f) == size && fclose(f) == 0, "the file is written");
}

static void use(const tokenizer *t) {
    static const char *const texts[] = {"", "Hello world", "  two\t\ttabs ", "na\xc3\xafve \xf0\x9f\x98\x80 don't",
                                        "<|endoftext|>USER: a", "\xc2\xa0\xe3\x80\x80 12 \xd9\xa3!?"};
    static int32_t ids[IDS_MAX];
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        size_t n;
        err e;
        if (tokenizer_encode(t, texts[i], strlen(texts[i]), (tokenizer_mode)(i % 2), ids, IDS_MAX, &n, &e) !=
            STATUS_OK)
            continue;
        for (size_t k = 0; k < n; k++)
            CHECK(ids[k] >= 0 && ids[k] < tokenizer_n_ids(t), "an id is one of the tokenizer's");
        buf whole, pieces;
        buf_init(&whole, 1 << 20);
        buf_init(&pieces, 1 << 20);
        tokenizer_stream *s;
        CHECK(tokenizer_stream_open(&s, t) == STATUS_OK, "a stream opens");
        status st = tokenizer_decode(t, ids, n, true, &whole);
        for (size_t k = 0; k < n && st == STATUS_OK; k++) st = tokenizer_stream_push(s, ids[k], &pieces);
        if (st == STATUS_OK) st = tokenizer_stream_flush(s, &pieces);
        CHECK(st != STATUS_OK || (whole.len_bytes == pieces.len_bytes &&
                                  (whole.len_bytes == 0 ||
                                   memcmp(whole.data, pieces.data, whole.len_bytes) == 0)),
              "the pieces of a stream add up to the text");
        tokenizer_stream_close(&s);
        buf_deinit(&whole);
        buf_deinit(&pieces);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    write_file(data, size);
    tokenizer *t;
    err e = {0};
    if (tokenizer_open(&t, folder, &e) != STATUS_OK) {
        CHECK(!t && e.text[0], "a refusal says why and leaves nothing");
        return 0;
    }
    use(t);
    tokenizer_close(&t);
    return 0;
}
