/* SHA-256 for identity, XXH3 for integrity.
 *
 *     unsigned char digest[HASH_SHA256_BYTES];
 *     hash_sha256(digest, image, image_bytes);
 *     char text[HASH_HEX_BYTES];
 *     hash_hex(text, digest, sizeof digest);
 *
 * Any thread. */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HASH_SHA256_BYTES 32
#define HASH_HEX_BYTES    (2 * HASH_SHA256_BYTES + 1)

void hash_sha256(unsigned char out[HASH_SHA256_BYTES], const void *data, size_t len_bytes);

/* The same over several pieces: open, add as often as needed, finish (which also releases). */
typedef struct hash_sha256_stream hash_sha256_stream;
hash_sha256_stream *hash_sha256_open(void);
void hash_sha256_add(hash_sha256_stream *s, const void *data, size_t len_bytes);
void hash_sha256_finish(hash_sha256_stream *s, unsigned char out[HASH_SHA256_BYTES]);

uint64_t hash_xxh3(const void *data, size_t len_bytes);

/* Lower-case hex and a zero byte: out has room for 2 * len_bytes + 1. */
void hash_hex(char *out, const unsigned char *data, size_t len_bytes);

/* The reverse, of exactly 2 * len_bytes digits; false for anything else. */
bool hash_from_hex(unsigned char *out, size_t len_bytes, const char *hex);

#endif
