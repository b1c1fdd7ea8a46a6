/* Everything that decides the features is in the key and nothing else is: two nodes with the same tower
 * share entries whatever decoder they run, and a new preprocessing version never reads old entries. The
 * URL or file name of an image is not part of it; its bytes are. */
#include "cache/cache_key.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"

#define PREFIX            "mc:1:"
#define FINGERPRINT_BYTES 16

void cache_key_make(cache_key *key, const unsigned char tower_fingerprint[HASH_SHA256_BYTES],
                    cache_preprocess preprocess,
                    const unsigned char source_sha256[HASH_SHA256_BYTES]) {
    char tower[HASH_HEX_BYTES], source[HASH_HEX_BYTES];
    hash_hex(tower, tower_fingerprint, FINGERPRINT_BYTES);
    hash_hex(source, source_sha256, HASH_SHA256_BYTES);
    int n = snprintf(key->text, sizeof key->text, PREFIX "%s:%04x%c:%s", tower, preprocess.version,
                     preprocess.applies_exif ? 'e' : 'n', source);
    CHECK(n == CACHE_KEY_CHARS, "a key has one length");
}

static bool is_hex(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f')))
            return false;
    return true;
}

bool cache_key_parse(cache_key *key, bytes text) {
    if (text.len_bytes != CACHE_KEY_CHARS) return false;
    memcpy(key->text, text.data, CACHE_KEY_CHARS);
    key->text[CACHE_KEY_CHARS] = '\0';
    const char *t = key->text;
    return memcmp(t, PREFIX, 5) == 0 && is_hex(t + 5, 32) && t[37] == ':' && is_hex(t + 38, 4) &&
           (t[42] == 'e' || t[42] == 'n') && t[43] == ':' && is_hex(t + 44, 64);
}

void cache_key_hash(unsigned char out[HASH_SHA256_BYTES], const cache_key *key) {
    hash_sha256(out, key->text, CACHE_KEY_CHARS);
}
