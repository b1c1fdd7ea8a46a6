#include "base/hash.h"

#include <openssl/evp.h>
#include <string.h>
#include <xxhash.h>

#include "base/check.h"

hash_sha256_stream *hash_sha256_open(void) {
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    CHECK(ctx, "a SHA-256 context can be had");
    CHECK(EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1, "SHA-256 is built into libcrypto");
    return (hash_sha256_stream *)ctx;
}

void hash_sha256_add(hash_sha256_stream *s, const void *data, size_t len_bytes) {
    CHECK(EVP_DigestUpdate((EVP_MD_CTX *)s, data, len_bytes) == 1, "SHA-256 takes any bytes");
}

void hash_sha256_finish(hash_sha256_stream *s, unsigned char out[HASH_SHA256_BYTES]) {
    unsigned n = 0;
    CHECK(EVP_DigestFinal_ex((EVP_MD_CTX *)s, out, &n) == 1, "SHA-256 finishes");
    CHECK(n == HASH_SHA256_BYTES, "SHA-256 gives 32 bytes");
    EVP_MD_CTX_free((EVP_MD_CTX *)s);
}

void hash_sha256(unsigned char out[HASH_SHA256_BYTES], const void *data, size_t len_bytes) {
    hash_sha256_stream *s = hash_sha256_open();
    hash_sha256_add(s, data, len_bytes);
    hash_sha256_finish(s, out);
}

uint64_t hash_xxh3(const void *data, size_t len_bytes) { return XXH3_64bits(data, len_bytes); }

void hash_hex(char *out, const unsigned char *data, size_t len_bytes) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < len_bytes; i++) {
        out[2 * i] = digits[data[i] >> 4];
        out[2 * i + 1] = digits[data[i] & 15];
    }
    out[2 * len_bytes] = '\0';
}

static int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

bool hash_from_hex(unsigned char *out, size_t len_bytes, const char *hex) {
    if (strlen(hex) != 2 * len_bytes) return false;
    for (size_t i = 0; i < len_bytes; i++) {
        int high = hex_value(hex[2 * i]), low = hex_value(hex[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        out[i] = (unsigned char)(high << 4 | low);
    }
    return true;
}
