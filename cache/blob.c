/* Reading goes outside in: length, magic, version, then each field against its limit, then the sizes
 * against each other, then the key, and the checksum last because it is the only costly one. The header
 * is read through the bounded readers of base/bytes.h, so a blob at an odd address is fine. */
#include "cache/blob.h"

#include <string.h>

#include "base/check.h"

#define MAGIC           "MCB1"
#define VERSION         1
#define CHECKSUM_OFFSET 56

BUILD_CHECK(CHECKSUM_OFFSET + 8 == BLOB_HEADER_BYTES, "the checksum ends the header");

size_t blob_element_bytes(int dtype) {
    switch (dtype) {
    case BLOB_F32:
        return 4;
    case BLOB_F16:
    case BLOB_BF16:
        return 2;
    default:
        return 0;
    }
}

static uint64_t checksum(const unsigned char header[BLOB_HEADER_BYTES], bytes values) {
    unsigned char covered[CHECKSUM_OFFSET + 8];
    memcpy(covered, header, CHECKSUM_OFFSET);
    bytes_store_le(covered + CHECKSUM_OFFSET, hash_xxh3(values.data, values.len_bytes), 8);
    return hash_xxh3(covered, sizeof covered);
}

bool blob_is_valid(const blob *b) {
    size_t element = blob_element_bytes((int)b->dtype), n = 0;
    return element != 0 && b->n_tokens >= 1 && b->n_tokens <= BLOB_TOKENS_MAX && b->width >= 1 &&
           b->width <= BLOB_WIDTH_MAX && size_mul(b->n_tokens, b->width, &n) &&
           size_mul(n, element, &n) && n <= BLOB_VALUES_MAX && n == b->values.len_bytes;
}

void blob_header(unsigned char out[BLOB_HEADER_BYTES], const cache_key *key, const blob *b) {
    CHECK(blob_is_valid(b), "a blob is checked before it is written");
    memset(out, 0, BLOB_HEADER_BYTES);
    memcpy(out, MAGIC, 4);
    bytes_store_le(out + 4, VERSION, 2);
    out[6] = (unsigned char)b->dtype;
    bytes_store_le(out + 8, b->n_tokens, 4);
    bytes_store_le(out + 12, b->width, 4);
    bytes_store_le(out + 16, b->values.len_bytes, 8);
    cache_key_hash(out + 24, key);
    bytes_store_le(out + CHECKSUM_OFFSET, checksum(out, b->values), 8);
}

status blob_decode(blob *b, bytes stored, const cache_key *key, err *e) {
    uint16_t version = 0;
    uint32_t n_tokens = 0, width = 0;
    uint64_t payload = 0, sum = 0;
    if (stored.len_bytes < BLOB_HEADER_BYTES)
        return fail(e, STATUS_BAD_FORMAT, "blob: %zu bytes, a header has %d", stored.len_bytes,
                    BLOB_HEADER_BYTES);
    if (memcmp(stored.data, MAGIC, 4) != 0)
        return fail(e, STATUS_BAD_FORMAT, "blob: does not begin with %s", MAGIC);
    bool all = bytes_get_u16(stored, 4, &version) && bytes_get_u32(stored, 8, &n_tokens) &&
               bytes_get_u32(stored, 12, &width) && bytes_get_u64(stored, 16, &payload) &&
               bytes_get_u64(stored, CHECKSUM_OFFSET, &sum);
    CHECK(all, "a whole header holds its fields");
    if (version != VERSION)
        return fail(e, STATUS_BAD_FORMAT, "blob: version %u, this program reads %d", version,
                    VERSION);
    if (stored.data[7] != 0) return fail(e, STATUS_BAD_FORMAT, "blob: byte 7 is not zero");

    blob found = {.dtype = (blob_dtype)stored.data[6], .n_tokens = n_tokens, .width = width};
    found.values = (bytes){stored.data + BLOB_HEADER_BYTES, stored.len_bytes - BLOB_HEADER_BYTES};
    if (payload != found.values.len_bytes || !blob_is_valid(&found))
        return fail(e, STATUS_BAD_FORMAT, "blob: dtype %d, shape %ux%u, %llu bytes of %zu present",
                    stored.data[6], n_tokens, width, (unsigned long long)payload,
                    found.values.len_bytes);
    unsigned char key_hash[HASH_SHA256_BYTES];
    cache_key_hash(key_hash, key);
    if (memcmp(stored.data + 24, key_hash, sizeof key_hash) != 0)
        return fail(e, STATUS_BAD_FORMAT, "blob: belongs to another key");
    if (checksum(stored.data, found.values) != sum)
        return fail(e, STATUS_BAD_FORMAT, "blob: wrong checksum");
    *b = found;
    return STATUS_OK;
}
