/* Confinement by what every Linux since 3.17 has: resource limits and a seccomp filter written by
 * hand, because it is forty instructions and needs no library.
 *
 * The filter checks the machine's call convention first (another one has other numbers), then walks
 * a list. Calls that depend on an argument come last: memory that could be executed is refused, and a
 * signal may go to the process itself only, for abort(). */
#include "vision_node/image_sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                         \
    __has_feature(memory_sanitizer)
#define HAS_SANITIZER 1
#endif
#endif
#ifndef HAS_SANITIZER
#define HAS_SANITIZER 0
#endif

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "the system call filter knows x86-64 and arm64"
#endif

#define FILES_MAX 16

bool image_sandbox_is_possible(void) { return !HAS_SANITIZER; }

static int by_value(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

static bool close_between(int from, int to) {
    if (from > to) return true;
#ifdef SYS_close_range
    if (syscall(SYS_close_range, (unsigned)from, (unsigned)to, 0u) == 0) return true;
#endif
    int end = (int)sysconf(_SC_OPEN_MAX);
    for (int fd = from; fd <= to && fd < end; fd++) (void)close(fd);
    return true;
}

bool image_sandbox_close_files(int *keep, int n_keep, bool keep_stderr) {
    qsort(keep, (size_t)n_keep, sizeof *keep, by_value);
    int from = 3;
    for (int i = 0; i < n_keep; i++) {
        if (!close_between(from, keep[i] - 1)) return false;
        if (keep[i] >= from) from = keep[i] + 1;
    }
    if (!close_between(from, 0x7FFFFFFF)) return false;
    int null = open("/dev/null", O_RDWR);
    if (null < 0) return false;
    for (int fd = 0; fd < (keep_stderr ? 2 : 3); fd++)
        if (dup2(null, fd) < 0) return false;
    return close(null) == 0;
}

static uint64_t mapped_bytes(void) {
    uint64_t pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    char line[128] = {0};
    if (f && fgets(line, sizeof line, f)) pages = strtoull(line, NULL, 10);
    if (f) (void)fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static bool limit(int what, rlim_t value) {
    struct rlimit r = {value, value};
    return setrlimit(what, &r) == 0;
}

#define LOAD(field)    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define LOAD_ARG(n)    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[n]))
#define ALLOW          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define KILL           BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
#define ALLOW_CALL(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, 1), ALLOW

static bool install_filter(void) {
    /* Each block of the second half skips itself when the number is another. */
    struct sock_filter program[] = {
        LOAD(arch),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0),
        KILL,
        LOAD(nr),
        ALLOW_CALL(SYS_recvfrom),
        ALLOW_CALL(SYS_sendto),
        ALLOW_CALL(SYS_munmap),
        ALLOW_CALL(SYS_mremap),
        ALLOW_CALL(SYS_brk),
        ALLOW_CALL(SYS_madvise),
        ALLOW_CALL(SYS_futex),
        ALLOW_CALL(SYS_clock_gettime),
        ALLOW_CALL(SYS_getrandom),
        ALLOW_CALL(SYS_sched_yield),
        ALLOW_CALL(SYS_restart_syscall),
        ALLOW_CALL(SYS_rt_sigreturn),
        ALLOW_CALL(SYS_rt_sigprocmask),
        ALLOW_CALL(SYS_getpid),
        ALLOW_CALL(SYS_gettid),
        ALLOW_CALL(SYS_exit),
        ALLOW_CALL(SYS_exit_group),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 0, 4),
        LOAD_ARG(2),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 0, 1),
        KILL,
        ALLOW,
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 0, 4),
        LOAD_ARG(0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, STDERR_FILENO, 0, 1),
        ALLOW,
        KILL,
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_tgkill, 0, 3),
        LOAD_ARG(0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)getpid(), 0, 1),
        ALLOW,
        KILL,
    };
    struct sock_fprog filter = {sizeof program / sizeof program[0], program};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

bool image_sandbox_enter(uint64_t extra_bytes, int cpu_s) {
    return limit(RLIMIT_AS, (rlim_t)(mapped_bytes() + extra_bytes)) &&
           limit(RLIMIT_CPU, (rlim_t)cpu_s) && limit(RLIMIT_CORE, 0) &&
           limit(RLIMIT_NOFILE, FILES_MAX) && limit(RLIMIT_FSIZE, 0) && install_filter();
}
