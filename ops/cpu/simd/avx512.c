/* AVX-512 F, DQ, BW and VL. */
#ifdef __x86_64__
#define VARIANT avx512
#include "ops/cpu/simd/lanes16.h"
#endif
