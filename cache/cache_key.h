/* The name under which an image's features are kept: printable, of fixed length, and different whenever
 * the features could be different.
 *
 *     cache_key key;
 *     cache_key_make(&key, model_tower_fingerprint(m), (cache_preprocess){1, true}, image_sha256);
 *     log_debug("key", "%s", key.text);
 *
 *   mc:1:00112233445566778899aabbccddeeff:0001e:<64 hex digits of the image's SHA-256>
 *   ^  ^ ^                                ^   ^
 *   |  | first 16 bytes of the tower's    |   e: EXIF orientation applied, n: not
 *   |  |   fingerprint, in hex            version of decoding and preprocessing, 4 hex digits
 *   |  version of key and blob
 *   prefix, so that an access list of Redis can name all of them: mc:*
 *
 * Any thread. */
#ifndef CACHE_CACHE_KEY_H
#define CACHE_CACHE_KEY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/hash.h"

#define CACHE_KEY_CHARS 108

typedef struct {
    char text[CACHE_KEY_CHARS + 1];
} cache_key;

typedef struct {
    uint16_t version; /* raised whenever the same bytes would give other pixels */
    bool applies_exif;
} cache_preprocess;

void cache_key_make(cache_key *key, const unsigned char tower_fingerprint[HASH_SHA256_BYTES],
                    cache_preprocess preprocess,
                    const unsigned char source_sha256[HASH_SHA256_BYTES]);

/* A key that came from outside; false unless it has exactly the form above. */
bool cache_key_parse(cache_key *key, bytes text);

/* What a blob says it belongs to: SHA-256 of the key's text. */
void cache_key_hash(unsigned char out[HASH_SHA256_BYTES], const cache_key *key);

#endif
