/* Payloads of clients: whatever they are, decoding reads only them, and what it accepts is a bundle we would have
 * written. The first bit of the input decides whether magic, version and a plausible count are put in first. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/bundle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    size_t n = size - 1;
    unsigned char *payload = malloc(n ? n : 1);
    if (!payload) return 0;
    memcpy(payload, data + 1, n);
    if ((data[0] & 1) && n >= 8) {
        memcpy(payload, "MIPB\1", 6);
        bytes_store_le(payload + 6, 2 + payload[6] % (MESSAGE_IMAGES_MAX - 1), 2);
    }
    bundle b;
    err e;
    if (bundle_decode(&b, (bytes){payload, n}, &e) == STATUS_OK) {
        unsigned char again[BUNDLE_HEADER_BYTES_MAX];
        CHECK(b.n >= 2 && b.n <= MESSAGE_IMAGES_MAX, "images are bounded");
        size_t at = bundle_header(again, b.files, b.n);
        CHECK(memcmp(again, payload, at) == 0, "writing it again gives the same header");
        uint64_t sum = 0;
        for (size_t i = 0; i < b.n; i++) {
            CHECK(b.files[i].data == payload + at, "files follow one another");
            sum += hash_xxh3(b.files[i].data, b.files[i].len_bytes);
            at += b.files[i].len_bytes;
        }
        CHECK(at == n && (sum || !sum), "files end with the payload");
    } else {
        CHECK(b.n == 0, "what is refused holds nothing");
    }
    free(payload);
    return 0;
}
