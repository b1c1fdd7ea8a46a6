#include "proto/decode_memory.h"

#include <stdlib.h>
#include <string.h>

/* The worst honest ratio of decoded to encoded size: a repeated message of two bytes (tag and zero
 * length) becomes a pointer and a struct of at most 160 bytes. protobuf-c doubles its arrays of
 * repeated fields only once it has counted them, so nothing is wasted on growth. */
#define BYTES_PER_ENCODED_BYTE 96
#define BYTES_ALWAYS           4096

int decode_memory_open(decode_memory *memory, size_t encoded_bytes, size_t max_bytes) {
    size_t size = BYTES_ALWAYS;
    if (encoded_bytes > (max_bytes - size) / BYTES_PER_ENCODED_BYTE)
        size = max_bytes;
    else
        size += encoded_bytes * BYTES_PER_ENCODED_BYTE;
    *memory = (decode_memory){.base = malloc(size), .size_bytes = size};
    return memory->base != NULL;
}

void *decode_memory_alloc(decode_memory *memory, size_t size_bytes) {
    size_t start = (memory->used_bytes + 15) & ~(size_t)15;
    if (start > memory->size_bytes || size_bytes > memory->size_bytes - start) return NULL;
    memory->used_bytes = start + size_bytes;
    return memset(memory->base + start, 0, size_bytes);
}

static void *alloc_from(void *data, size_t size_bytes) {
    return decode_memory_alloc((decode_memory *)data, size_bytes);
}

static void free_nothing(void *data, void *pointer) {
    (void)data;
    (void)pointer; /* the block is released as a whole */
}

ProtobufCAllocator decode_memory_allocator(decode_memory *memory) {
    return (ProtobufCAllocator){
        .alloc = alloc_from, .free = free_nothing, .allocator_data = memory};
}
