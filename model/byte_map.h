/* The alphabet of byte-level BPE: each of the 256 bytes has one printable character that stands for it in
 * vocabulary files.
 *
 *     uint32_t c = byte_map_character(0x20);     // U+0120
 *     int b = byte_map_byte(0x0120);             // 0x20; -1 for characters outside the map
 *
 * Bytes 33-126, 161-172 and 174-255 stand for themselves; the other 68, in increasing order, are U+0100,
 * U+0101 and so on. Source: GPT-2, bytes_to_unicode. Any thread. */
#ifndef MODEL_BYTE_MAP_H
#define MODEL_BYTE_MAP_H

#include <stdint.h>

static inline uint32_t byte_map_character(unsigned byte) {
    if (byte <= 32) return 0x100 + byte;
    if (byte >= 127 && byte <= 160) return 0x100 + 33 + (byte - 127);
    if (byte == 173) return 0x100 + 67;
    return byte;
}

static inline int byte_map_byte(uint32_t character) {
    if (character >= 0x100 && character <= 0x100 + 32) return (int)(character - 0x100);
    if (character > 0x100 + 32 && character < 0x100 + 67) return (int)(character - 0x100 - 33 + 127);
    if (character == 0x100 + 67) return 173;
    if ((character >= 33 && character <= 126) || (character >= 161 && character <= 255))
        return character == 173 ? -1 : (int)character;
    return -1;
}

#endif
