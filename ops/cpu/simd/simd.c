#include "ops/cpu/simd/simd.h"

#include <string.h>

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef __x86_64__
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

static bool has_vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

#ifdef OPS_AMX_EMULATED
static bool has_amx(void) { return has_vnni(); }
#else
#define LEAF_FEATURES       7
#define EDX_AMX             (1u << 22 | 1u << 24 | 1u << 25) /* bf16, tiles, int8 */
#define XCR0_TILES          (3u << 17)                       /* the system saves their configuration and data */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_TILE_DATA  18

/* The processor has tiles, the system saves them, and this process may use them, which it has to ask for. */
static bool has_amx(void) {
    unsigned a, b, c, d, xcr0_low, xcr0_high;
    if (!has_vnni() || !__builtin_cpu_supports("avx512bf16") || !__get_cpuid_count(LEAF_FEATURES, 0, &a, &b, &c, &d) || (d & EDX_AMX) != EDX_AMX) return false;
    __asm__ volatile("xgetbv" : "=a"(xcr0_low), "=d"(xcr0_high) : "c"(0));
    if ((xcr0_low & XCR0_TILES) != XCR0_TILES) return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_TILE_DATA) == 0;
}
#endif
#endif

static bool always(void) { return true; }

const simd_kernels *simd_choose(const char *name) {
    /* best first */
    static const struct {
        const simd_kernels *kernels;
        bool (*works)(void);
    } variants[] = {
#ifdef __x86_64__
        {&simd_amx, has_amx},
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
