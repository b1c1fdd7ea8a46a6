/* AVX-512 with VNNI, and tiles (AMX) for the reduced products. */
#ifdef __x86_64__
#define VARIANT amx
#define AMX_KERNELS
#ifndef AMX_TILES_HEADER
#define AMX_TILES_HEADER "ops/cpu/simd/amx_tiles.h"
#endif
#include "ops/cpu/simd/lanes16.h"
#endif
