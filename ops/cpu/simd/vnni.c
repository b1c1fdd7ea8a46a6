/* AVX-512 with VNNI: four products of bytes in one instruction. */
#ifdef __x86_64__
#define VARIANT vnni
#include "ops/cpu/simd/lanes16.h"
#endif
