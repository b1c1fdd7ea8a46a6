#include "ops/cpu/simd/simd.h"

#include <string.h>

#ifdef __x86_64__
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

static bool has_vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
#endif

static bool always(void) { return true; }

const simd_kernels *simd_choose(const char *name) {
    /* best first */
    static const struct {
        const simd_kernels *kernels;
        bool (*works)(void);
    } variants[] = {
#ifdef __x86_64__
        {&simd_vnni, has_vnni},
        {&simd_avx512, has_avx512},
        {&simd_avx2, has_avx2},
#endif
        {&simd_generic, always},
    };
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++)
        if ((!name || strcmp(name, variants[i].kernels->name) == 0) && variants[i].works())
            return variants[i].kernels;
    return NULL;
}

bool simd_is_known(const char *name) {
    static const char *const names[] = {"generic", "avx2", "avx512", "vnni", "amx"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return false;
}
