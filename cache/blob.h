/* An image's features as stored in the cache. All integers little endian.
 *
 *   offset size  field
 *        0    4  magic       "MCB1"
 *        4    2  version     1; a reader rejects any other
 *        6    1  dtype       1 = f32, 2 = f16, 3 = bf16
 *        7    1  (zero)
 *        8    4  n_tokens    1 .. BLOB_TOKENS_MAX
 *       12    4  width       1 .. BLOB_WIDTH_MAX, elements per token
 *       16    8  payload     bytes of values: n_tokens * width * size of dtype
 *       24   32  key         SHA-256 of the key's text: an entry moved to another key is refused
 *       56    8  checksum    XXH3-64 of the 56 bytes before it followed by the XXH3-64 of the values
 *                            (8 bytes, little endian)
 *       64    -  values      row major, token first; nothing follows
 *
 * The checksum finds accidents, not attackers: whoever may write to the cache can write a valid blob.
 *
 *     blob b;
 *     if (blob_decode(&b, stored, &key, &e) != STATUS_OK) ...  // not a blob: delete it, encode again
 *
 * Any thread. */
#ifndef CACHE_BLOB_H
#define CACHE_BLOB_H

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"
#include "cache/cache_key.h"

#define BLOB_HEADER_BYTES 64
#define BLOB_TOKENS_MAX   65536
#define BLOB_WIDTH_MAX    65536
#define BLOB_VALUES_MAX   ((size_t)64 << 20) /* bytes of values; Mipha-3B in f32 has 3.4 MB */
#define BLOB_BYTES_MAX    (BLOB_HEADER_BYTES + BLOB_VALUES_MAX)

typedef enum { BLOB_F32 = 1, BLOB_F16 = 2, BLOB_BF16 = 3 } blob_dtype;

/* A view; values belong to whoever made them and need no alignment. */
typedef struct {
    blob_dtype dtype;
    uint32_t n_tokens;
    uint32_t width;
    bytes values;
} blob;

/* 4 or 2; 0 for a number that is no dtype. */
size_t blob_element_bytes(int dtype);

/* The header that stands before b's values under this key. Shape and size of b within the limits above
 * is the caller's promise, asked with blob_is_valid. Cost: reads the values once. */
void blob_header(unsigned char out[BLOB_HEADER_BYTES], const cache_key *key, const blob *b);

/* Whether dtype, shape and number of bytes belong together and stay within the limits. */
bool blob_is_valid(const blob *b);

/* Checks everything, then lets b->values point into stored. BAD_FORMAT for anything wrong. */
MUST_USE status blob_decode(blob *b, bytes stored, const cache_key *key, err *e);

#endif
