/* Private to proto/: memory for one protobuf-c decode, capped by the size of what is decoded.
 *
 * protobuf-c allocates once per field while it reads a message, so a hostile message could ask for much
 * more memory than it has bytes. Here all of it comes from one block whose size is a fixed multiple of
 * the encoded size; running out ends the decode like any other malformed input. */
#ifndef PROTO_DECODE_MEMORY_H
#define PROTO_DECODE_MEMORY_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

typedef struct {
    unsigned char *base;
    size_t used_bytes, size_bytes;
} decode_memory;

/* 0 when there is no memory. max_bytes bounds the block whatever the input's length. */
int decode_memory_open(decode_memory *memory, size_t encoded_bytes, size_t max_bytes);
void *decode_memory_alloc(decode_memory *memory, size_t size_bytes); /* zeroed, 16-byte aligned */
ProtobufCAllocator decode_memory_allocator(decode_memory *memory);

#endif
