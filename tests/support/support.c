/* Children write into unlinked files rather than pipes: a test then needs no reader thread and a child
 * that prints a lot cannot stall. PR_SET_PDEATHSIG makes sure that a crashed test leaves nothing. */
#include "tests/support/support.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

extern char **environ;

static _Noreturn void give_up(const char *what) {
    perror(what);
    abort();
}

uint64_t test_seed(void) {
    const char *text = getenv("MIPHA_TEST_SEED");
    uint64_t seed = text && *text ? strtoull(text, NULL, 0) : UINT64_C(20260101);
    printf("seed %llu (MIPHA_TEST_SEED)\n", (unsigned long long)seed);
    return seed;
}

/* ---- time ---- */

bool wait_until(condition *is_true, void *arg, int timeout_ms) {
    int64_t deadline_us = clock_now_us() + timeout_ms * CLOCK_MS_US;
    for (;;) {
        if (is_true(arg)) return true;
        if (clock_now_us() >= deadline_us) return false;
        struct timespec pause = {.tv_nsec = 1000000};
        (void)nanosleep(&pause, NULL);
    }
}

/* ---- places ---- */

/* A failed assertion jumps over temp_dir_remove, and so does a skip: what is left is removed when the process ends. A
 * process forked meanwhile has nothing to do with it. */
static struct {
    char *path;
    pid_t owner;
} temp_dirs[64];
#define TEMP_DIRS_MAX (sizeof temp_dirs / sizeof *temp_dirs)

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where) {
    (void)info, (void)type, (void)where;
    (void)remove(path);
    return 0;
}

void temp_dir_remove(char *path) {
    if (!path) return;
    for (size_t i = 0; i < TEMP_DIRS_MAX; i++)
        if (temp_dirs[i].path == path) temp_dirs[i].path = NULL;
    (void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(path);
}

size_t files_in(const char *dir) {
    DIR *d = opendir(dir);
    assert_non_null(d);
    size_t n = 0;
    for (struct dirent *entry; (entry = readdir(d));) n += entry->d_name[0] != '.';
    (void)closedir(d);
    return n;
}

static void remove_left_dirs(void) {
    for (size_t i = 0; i < TEMP_DIRS_MAX; i++)
        if (temp_dirs[i].path && temp_dirs[i].owner == getpid()) temp_dir_remove(temp_dirs[i].path);
}

char *temp_dir_make(void) {
    static bool is_watched;
    const char *root = getenv("TMPDIR");
    char *path = path_join(root && *root ? root : "/tmp", "mipha-test-XXXXXX");
    if (!mkdtemp(path)) give_up(path);
    if (!is_watched && atexit(remove_left_dirs) != 0) give_up("atexit");
    is_watched = true;
    size_t i = 0;
    while (i < TEMP_DIRS_MAX && temp_dirs[i].path) i++;
    if (i == TEMP_DIRS_MAX) give_up("too many temporary folders");
    temp_dirs[i].path = path;
    temp_dirs[i].owner = getpid();
    return path;
}

char *path_join(const char *dir, const char *name) {
    size_t n = strlen(dir) + strlen(name) + 2;
    char *path = malloc(n);
    if (!path) give_up("malloc");
    (void)snprintf(path, n, "%s/%s", dir, name);
    return path;
}

void file_write(const char *path, const void *data, size_t len_bytes) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, len_bytes, f) != len_bytes || fclose(f) != 0) give_up(path);
}

static void read_all(int fd, buf *out) {
    for (;;) {
        unsigned char *to = buf_reserve(out, 4096);
        if (!to) return;
        ssize_t n = pread(fd, to, 4096, (off_t)out->len_bytes);
        if (n <= 0) break;
        out->len_bytes += (size_t)n;
    }
    out->data[out->len_bytes] = 0;
}

bool file_read(buf *out, const char *path) {
    buf_clear(out);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    read_all(fd, out);
    (void)close(fd);
    return true;
}

int free_port(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, len) < 0 ||
        getsockname(fd, (struct sockaddr *)&at, &len) < 0)
        give_up("free port");
    (void)close(fd);
    return ntohs(at.sin_port);
}

/* ---- processes ---- */

static int output_file(void) {
    char path[] = "/tmp/mipha-output-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0) give_up(path);
    (void)unlink(path);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

/* In the child: our files become its output, nothing its input. */
static void enter_child(const child *c, pid_t parent) {
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(125); /* the parent ended before the line above */
    int null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (dup2(null_fd, 0) < 0 || dup2(c->out_fd, 1) < 0 || dup2(c->err_fd, 2) < 0) _exit(125);
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static bool fork_child(child *c) {
    *c = (child){.out_fd = output_file(), .err_fd = output_file()};
    pid_t parent = getpid();
    (void)fflush(NULL);
    c->pid = fork();
    if (c->pid < 0) give_up("fork");
    if (c->pid == 0) enter_child(c, parent);
    return c->pid == 0;
}

void child_start(child *c, const char *const argv[], const char *const environment[]) {
    if (!fork_child(c)) return;
    for (size_t i = 0; environment && environment[i]; i++) (void)putenv((char *)environment[i]);
    (void)execvp(argv[0], (char *const *)argv);
    fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

void child_start_function(child *c, int (*function)(void *arg), void *arg) {
    if (!fork_child(c)) return;
    int result = function(arg);
    (void)fflush(NULL);
    _exit(result);
}

bool child_is_running(child *c) {
    if (c->pid <= 0) return false;
    pid_t got = waitpid(c->pid, &c->wait_status, WNOHANG);
    if (got == 0) return true;
    if (got < 0) c->wait_status = 0x7f00;
    c->pid = 0;
    return false;
}

static bool has_ended(void *arg) { return !child_is_running(arg); }

int child_wait(child *c, int timeout_ms) {
    if (!wait_until(has_ended, c, timeout_ms)) return -1;
    return WIFEXITED(c->wait_status) ? WEXITSTATUS(c->wait_status) : 128 + WTERMSIG(c->wait_status);
}

int child_stop(child *c, int signo, int timeout_ms) {
    if (child_is_running(c)) (void)kill(c->pid, signo);
    int result = child_wait(c, timeout_ms);
    child_close(c);
    return result;
}

void child_close(child *c) {
    if (child_is_running(c)) {
        (void)kill(c->pid, SIGKILL);
        (void)waitpid(c->pid, &c->wait_status, 0);
    }
    if (c->out_fd > 0) (void)close(c->out_fd);
    if (c->err_fd > 0) (void)close(c->err_fd);
    *c = (child){.wait_status = c->wait_status};
}

void child_stdout(child *c, buf *out) {
    buf_clear(out);
    read_all(c->out_fd, out);
}

void child_stderr(child *c, buf *out) {
    buf_clear(out);
    read_all(c->err_fd, out);
}

typedef struct {
    child *c;
    const char *text;
    bool was_seen;
} awaited;

static bool holds(int fd, const char *text) {
    buf all;
    buf_init(&all, 16 << 20);
    read_all(fd, &all);
    bool found = all.data && memmem(all.data, all.len_bytes, text, strlen(text));
    buf_deinit(&all);
    return found;
}

static bool seen_or_ended(void *arg) {
    awaited *a = arg;
    bool runs = child_is_running(a->c); /* asked first: what it printed last is then in the files */
    a->was_seen = holds(a->c->out_fd, a->text) || holds(a->c->err_fd, a->text);
    return a->was_seen || !runs;
}

bool child_wait_for_output(child *c, const char *text, int timeout_ms) {
    awaited a = {.c = c, .text = text};
    (void)wait_until(seen_or_ended, &a, timeout_ms);
    return a.was_seen;
}

int child_run(const char *const argv[], buf *out, buf *errors, int timeout_ms) {
    child c;
    child_start(&c, argv, NULL);
    int result = child_wait(&c, timeout_ms);
    if (out) child_stdout(&c, out);
    if (errors) child_stderr(&c, errors);
    child_close(&c);
    return result;
}

ended_run ended_run_of(const char *const argv[], int timeout_ms) {
    ended_run r;
    buf_init(&r.out, 64 << 20);
    buf_init(&r.errors, 64 << 20);
    r.exit_code = child_run(argv, &r.out, &r.errors, timeout_ms);
    return r;
}

const char *ended_run_out(const ended_run *r) { return r->out.data ? (const char *)r->out.data : ""; }

const char *ended_run_errors(const ended_run *r) { return r->errors.data ? (const char *)r->errors.data : ""; }

void ended_run_free(ended_run *r) {
    buf_deinit(&r->out);
    buf_deinit(&r->errors);
}

bool program_exists(const char *name) {
    const char *path = getenv("PATH");
    char candidate[4096];
    while (path && *path) {
        int len = (int)strcspn(path, ":");
        (void)snprintf(candidate, sizeof candidate, "%.*s/%s", len, path, name);
        if (access(candidate, X_OK) == 0) return true;
        path += len + (path[len] == ':');
    }
    return false;
}
