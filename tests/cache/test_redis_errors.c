/* Everything a Redis, or something else on its port, may answer: never success, never a crash, never more
 * time or memory than agreed. A scripted server plays the other side. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/cache/sample.h"

typedef enum {
    THEN_GO_ON, /* keep the connection for the next command */
    THEN_CLOSE,
    THEN_HANG,
    THEN_DRIP, /* another byte every 20 ms, for ever */
    THEN_FLOOD /* bytes as fast as they go */
} afterwards;

/* One thread, one connection after another. The test thread changes the script only between calls. */
typedef struct {
    pthread_t thread;
    int listener, port;
    int quit[2];
    pthread_mutex_t lock; /* guards the script */
    const char *reply;    /* to everything but PING */
    size_t reply_bytes;   /* 0: reply is text */
    size_t piece_bytes;   /* the reply goes out in pieces of this size, apart in time; 0: whole */
    const char *ping_reply;
    int n_ping_loading; /* that many PINGs are answered with LOADING first */
    afterwards then;
    _Atomic(int) n_commands, n_connections;
} fake;

static fake f;
static cache *c;
static err e;

/* Waits until fd can be read or the test ends. */
static bool readable(int fd) {
    struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = f.quit[0], .events = POLLIN}};
    while (poll(p, 2, -1) < 0 && errno == EINTR) {
    }
    return !p[1].revents;
}

static bool quits_within(int ms) {
    struct pollfd p = {.fd = f.quit[0], .events = POLLIN};
    return poll(&p, 1, ms) > 0;
}

static bool read_line(int fd, char *line, size_t line_bytes) {
    size_t n = 0;
    while (n + 1 < line_bytes) {
        if (!readable(fd) || recv(fd, line + n, 1, 0) != 1) return false;
        if (line[n++] == '\n') break;
    }
    line[n] = '\0';
    return true;
}

/* Reads one command whole; its first word goes into name. */
static bool read_command(int fd, char *name, size_t name_bytes) {
    char line[64];
    if (!read_line(fd, line, sizeof line) || line[0] != '*') return false;
    int n_words = atoi(line + 1);
    for (int i = 0; i < n_words; i++) {
        if (!read_line(fd, line, sizeof line) || line[0] != '$') return false;
        size_t len = strtoul(line + 1, NULL, 10) + 2;
        for (size_t k = 0; k < len; k++) {
            char byte;
            if (!readable(fd) || recv(fd, &byte, 1, 0) != 1) return false;
            if (i == 0 && k < name_bytes - 1 && k + 2 < len) name[k] = byte, name[k + 1] = '\0';
        }
    }
    return n_words > 0;
}

static bool send_text(int fd, const char *text, size_t len) {
    while (len > 0) {
        ssize_t n = send(fd, text, len, MSG_NOSIGNAL);
        if (n <= 0) return false;
        text += n;
        len -= (size_t)n;
    }
    return true;
}

static bool send_pieces(int fd, const char *text, size_t len, size_t piece) {
    for (size_t at = 0; at < len; at += piece) {
        if (at > 0 && quits_within(1)) return false;
        if (!send_text(fd, text + at, len - at < piece ? len - at : piece)) return false;
    }
    return true;
}

/* True: the connection goes on. */
static bool answer(int fd, const char *name) {
    (void)pthread_mutex_lock(&f.lock);
    const char *reply = f.reply;
    size_t len = f.reply_bytes ? f.reply_bytes : strlen(reply), piece = f.piece_bytes;
    afterwards then = f.then;
    if (strcmp(name, "PING") == 0) {
        reply = f.n_ping_loading > 0 ? "-LOADING Redis is loading the dataset in memory\r\n"
                                     : f.ping_reply;
        if (f.n_ping_loading > 0) f.n_ping_loading--;
        len = strlen(reply);
        piece = 0;
        then = THEN_GO_ON;
    }
    (void)pthread_mutex_unlock(&f.lock);
    if (!send_pieces(fd, reply, len, piece ? piece : len + 1)) return false;
    static char filler[65536];
    switch (then) {
    case THEN_GO_ON:
        return true;
    case THEN_CLOSE:
        return false;
    case THEN_HANG:
        (void)readable(fd); /* until the other side gives up */
        return false;
    case THEN_DRIP:
        while (!quits_within(20))
            if (!send_text(fd, "x", 1)) break;
        return false;
    case THEN_FLOOD:
        memset(filler, 'x', sizeof filler);
        while (!quits_within(0))
            if (!send_text(fd, filler, sizeof filler)) break;
        return false;
    }
    return false;
}

static void *serve(void *arg) {
    (void)arg;
    while (readable(f.listener)) {
        int fd = accept(f.listener, NULL, NULL);
        if (fd < 0) continue;
        atomic_fetch_add(&f.n_connections, 1);
        char name[32] = "";
        while (read_command(fd, name, sizeof name)) {
            atomic_fetch_add(&f.n_commands, 1);
            if (!answer(fd, name)) break;
        }
        (void)close(fd);
    }
    return NULL;
}

static int start_fake(void **state) {
    (void)state;
    f = (fake){.ping_reply = "+PONG\r\n", .reply = "+OK\r\n"};
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    f.listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(f.listener >= 0);
    assert_int_equal(bind(f.listener, (struct sockaddr *)&at, len), 0);
    assert_int_equal(listen(f.listener, 16), 0);
    assert_int_equal(getsockname(f.listener, (struct sockaddr *)&at, &len), 0);
    f.port = ntohs(at.sin_port);
    assert_int_equal(pipe(f.quit), 0);
    assert_int_equal(pthread_mutex_init(&f.lock, NULL), 0);
    assert_int_equal(pthread_create(&f.thread, NULL, serve, NULL), 0);
    return 0;
}

static int stop_fake(void **state) {
    (void)state;
    cache_close(&c);
    (void)close(f.quit[1]);
    assert_int_equal(pthread_join(f.thread, NULL), 0);
    (void)close(f.quit[0]);
    (void)close(f.listener);
    (void)pthread_mutex_destroy(&f.lock);
    return 0;
}

static void set_script(const char *reply, afterwards then) {
    (void)pthread_mutex_lock(&f.lock);
    f.reply = reply;
    f.then = then;
    (void)pthread_mutex_unlock(&f.lock);
}

static status open_cache(const char *login) {
    char url[128];
    (void)snprintf(url, sizeof url, "redis://%s127.0.0.1:%d", login, f.port);
    cache_settings settings = cache_settings_default();
    settings.command_timeout_ms = 200;
    cache_close(&c);
    return cache_open(&c, url, &settings, &e);
}

typedef struct {
    const char *reply;
    afterwards then;
} scripted;

/* None of these is an answer to GET, SET, EXISTS or UNLINK that means success. */
static const scripted refusals[] = {
    {"-LOADING Redis is loading the dataset in memory\r\n", THEN_GO_ON},
    {"-MISCONF Redis is configured to save RDB snapshots\r\n", THEN_GO_ON},
    {"-OOM command not allowed when used memory > 'maxmemory'.\r\n", THEN_GO_ON},
    {"-READONLY You can't write against a read only replica.\r\n", THEN_GO_ON},
    {"-NOREPLICAS Not enough good replicas to write.\r\n", THEN_GO_ON},
    {"-NOAUTH Authentication required.\r\n", THEN_GO_ON},
    {"-WRONGPASS invalid username-password pair or user is disabled.\r\n", THEN_GO_ON},
    {"-NOPERM this user has no permissions to run the command\r\n", THEN_GO_ON},
    {"-MOVED 3999 127.0.0.1:6381\r\n", THEN_GO_ON},
    {"-ASK 3999 127.0.0.1:6381\r\n", THEN_GO_ON},
    {"-CLUSTERDOWN The cluster is down\r\n", THEN_GO_ON},
    {"-NOSCRIPT No matching script\r\n", THEN_GO_ON},
    {"-ERR unknown command\r\n", THEN_GO_ON},
    {"-\r\n", THEN_GO_ON},
    {"-\x1b[31m\x01\r\n", THEN_GO_ON},
    {"", THEN_CLOSE},
    {"", THEN_HANG},
    {"", THEN_DRIP},
    {"", THEN_FLOOD},
    {"+O", THEN_CLOSE},
    {"+OK\r", THEN_HANG},
    {"$1000\r\nabc", THEN_CLOSE},
    {"$1000\r\nabc", THEN_HANG},
    {"$1000000\r\n", THEN_DRIP},
    {"$9999999999\r\n", THEN_FLOOD},
    {"$9223372036854775807\r\n", THEN_FLOOD},
    {"$99999999999999999999999\r\n", THEN_HANG},
    {"$3\r\nabcXY", THEN_GO_ON},
    {"$3\r\nabc\r\nx", THEN_GO_ON},
    {"$3\r\nabc\r", THEN_HANG},
    {"$3\r\nabc\r", THEN_CLOSE},
    {"$0\r\n", THEN_HANG},
    {"$3", THEN_HANG},
    {"$3\r\nab", THEN_DRIP},
    {"$\r\n", THEN_GO_ON},
    {"$-2\r\n", THEN_GO_ON},
    {"$abc\r\n", THEN_GO_ON},
    {":\r\n", THEN_GO_ON},
    {":99999999999999999999999\r\n", THEN_GO_ON},
    {":abc\r\n", THEN_GO_ON},
    {"*0\r\n", THEN_GO_ON},
    {"*1\r\n$2\r\nOK\r\n", THEN_GO_ON},
    {"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", THEN_GO_ON},
    {"*2147483647\r\n", THEN_HANG},
    {"*9223372036854775807\r\n", THEN_HANG},
    {"*-2\r\n", THEN_GO_ON},
    {"%1\r\n+a\r\n+b\r\n", THEN_GO_ON},
    {"_\r\n", THEN_GO_ON},
    {"HTTP/1.1 400 Bad Request\r\n\r\n", THEN_CLOSE},
    {"\r\n\r\n\r\n", THEN_GO_ON},
    {"+OK\r\n+OK\r\n", THEN_GO_ON},
    {":1\r\n:1\r\n", THEN_GO_ON},
    {"$-1\r\n$-1\r\n", THEN_GO_ON},
};

static void no_refusal_and_no_nonsense_is_taken_for_success(void **state) {
    (void)state;
    cache_key key = sample_key(1);
    blob value = sample_blob(1, 10, 100);
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++)
        for (int command = 0; command < 4; command++) {
            set_script("+OK\r\n", THEN_GO_ON);
            assert_int_equal(open_cache(""), STATUS_OK);
            set_script(refusals[i].reply, refusals[i].then);
            blob got;
            buf storage;
            buf_init(&storage, BLOB_BYTES_MAX);
            int64_t took_us = clock_now_us();
            status st = command == 0   ? cache_get(c, &got, &storage, &key)
                        : command == 1 ? cache_put(c, &key, &value)
                        : command == 2 ? cache_has(c, &key)
                                       : cache_delete(c, &key);
            took_us = clock_now_us() - took_us;
            buf_deinit(&storage);
            /* To a GET an endless value is one that is too long: as a corrupt entry. */
            bool is_long = command == 0 && st == STATUS_NOT_FOUND &&
                           (refusals[i].then == THEN_FLOOD || strncmp(refusals[i].reply, "$9", 2) == 0);
            /* hiredis 1 knows the nil of RESP3, and a nil is an honest "no such key". */
            bool is_nil = command == 0 && st == STATUS_NOT_FOUND && refusals[i].reply[0] == '_';
            if (st != STATUS_UNAVAILABLE && !is_long && !is_nil)
                fail_msg("\"%s\" to command %d: status %d", refusals[i].reply, command, (int)st);
            if (took_us > 3 * CLOCK_SECOND_US)
                fail_msg("\"%s\" to command %d took %lld us", refusals[i].reply, command,
                         (long long)took_us);
        }
    sample_free(&value);
    struct rusage use;
    assert_int_equal(getrusage(RUSAGE_SELF, &use), 0);
    print_message("largest resident size %ld KB\n", use.ru_maxrss);
}

static void answers_of_the_wrong_kind_are_not_success(void **state) {
    (void)state;
    static const struct {
        const char *reply;
        bool get, put, has, forget; /* may it be what that command waits for? */
    } rows[] = {
        {"+OK\r\n", false, true, false, false},   {"+QUEUED\r\n", false, false, false, false},
        {":1\r\n", false, false, true, true},     {":-1\r\n", false, false, false, true},
        {"$2\r\nOK\r\n", true, false, false, false}, {"$-1\r\n", true, false, false, false},
        {"$0\r\n\r\n", true, false, false, false},
    };
    cache_key key = sample_key(1);
    blob value = sample_blob(1, 10, 100), got;
    buf storage;
    buf_init(&storage, BLOB_BYTES_MAX);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        set_script(rows[i].reply, THEN_GO_ON);
        assert_int_equal(open_cache(""), STATUS_OK);
        /* Nothing here is a blob: at best the entry is not there. */
        assert_int_equal(cache_get(c, &got, &storage, &key),
                         rows[i].get ? STATUS_NOT_FOUND : STATUS_UNAVAILABLE);
        assert_int_equal(open_cache(""), STATUS_OK);
        assert_int_equal(cache_put(c, &key, &value), rows[i].put ? STATUS_OK : STATUS_UNAVAILABLE);
        assert_int_equal(open_cache(""), STATUS_OK);
        status has = cache_has(c, &key);
        assert_true(rows[i].has ? has == STATUS_OK : has != STATUS_OK);
        assert_int_equal(open_cache(""), STATUS_OK);
        assert_int_equal(cache_delete(c, &key), rows[i].forget ? STATUS_OK : STATUS_UNAVAILABLE);
    }
    buf_deinit(&storage);
    sample_free(&value);
}

static void a_value_is_read_however_it_is_cut(void **state) {
    (void)state;
    cache_key key = sample_key(1);
    blob value = sample_blob(1, 3, 5);
    char reply[256];
    size_t len = BLOB_HEADER_BYTES + value.values.len_bytes;
    size_t n = (size_t)snprintf(reply, sizeof reply, "$%zu\r\n", len);
    blob_header((unsigned char *)reply + n, &key, &value);
    memcpy(reply + n + BLOB_HEADER_BYTES, value.values.data, value.values.len_bytes);
    memcpy(reply + n + len, "\r\n", 2);
    static const size_t pieces[] = {1, 2, 3, 4, 5, 6, 7, 50, 98, 99, 100, 1000};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        (void)pthread_mutex_lock(&f.lock);
        f.reply = reply;
        f.reply_bytes = n + len + 2;
        f.piece_bytes = pieces[i];
        (void)pthread_mutex_unlock(&f.lock);
        cache_settings settings = cache_settings_default();
        settings.command_timeout_ms = 10000;
        char url[64];
        (void)snprintf(url, sizeof url, "redis://127.0.0.1:%d", f.port);
        cache_close(&c);
        assert_int_equal(cache_open(&c, url, &settings, &e), STATUS_OK);
        assert_int_equal(get_sample(c, 1, 3, 5), STATUS_OK);
        assert_int_equal(get_sample(c, 1, 3, 5), STATUS_OK); /* the stream is where it should be */
        assert_int_equal(cache_counters_read(c).errors, 0);
    }
    sample_free(&value);
}

static void a_refused_write_keeps_the_connection_and_pauses_writes(void **state) {
    (void)state;
    set_script("-OOM command not allowed\r\n", THEN_GO_ON);
    assert_int_equal(open_cache(""), STATUS_OK);
    assert_int_equal(put_sample(c, 1, 1, 4), STATUS_UNAVAILABLE);
    int n = atomic_load(&f.n_commands);
    for (int i = 0; i < 100; i++) assert_int_equal(put_sample(c, 1, 1, 4), STATUS_UNAVAILABLE);
    assert_int_equal(atomic_load(&f.n_commands), n); /* not sent: a value is large */
    set_script("$-1\r\n", THEN_GO_ON);
    assert_int_equal(get_sample(c, 1, 1, 4), STATUS_NOT_FOUND);
    assert_int_equal(atomic_load(&f.n_connections), 1);
}

static void a_loading_server_is_waited_for_and_no_failure(void **state) {
    (void)state;
    f.n_ping_loading = 3; /* one for open, two for check */
    assert_int_equal(open_cache(""), STATUS_OK);
    assert_int_equal(cache_check(c, &e), STATUS_OK);
    assert_int_equal(atomic_load(&f.n_connections), 1);
    set_script("-LOADING x\r\n", THEN_GO_ON);
    assert_int_equal(get_sample(c, 1, 1, 4), STATUS_UNAVAILABLE);
    int n = atomic_load(&f.n_commands);
    assert_int_equal(get_sample(c, 1, 1, 4), STATUS_UNAVAILABLE); /* a pause of 0.1 s */
    assert_int_equal(atomic_load(&f.n_commands), n);
    assert_int_equal(atomic_load(&f.n_connections), 1);
}

static void the_breaker_opens_after_five_failures(void **state) {
    (void)state;
    assert_int_equal(open_cache(""), STATUS_OK);
    set_script("garbage\r\n", THEN_CLOSE);
    int64_t at_us[7] = {0}, until_us = clock_now_us() + 10 * CLOCK_SECOND_US;
    for (int n = 0, before = atomic_load(&f.n_commands); n < 7 && clock_now_us() < until_us;) {
        assert_int_equal(get_sample(c, 1, 1, 4), STATUS_UNAVAILABLE);
        if (atomic_load(&f.n_commands) == before) continue; /* it was not even sent */
        before = atomic_load(&f.n_commands);
        at_us[n++] = clock_now_us();
    }
    /* Five with pauses of at most 20 ms times 2, 4, 8, 16; then one probe a second (+-10 %). */
    assert_true(at_us[6] != 0);
    assert_true(at_us[5] - at_us[4] > 850 * CLOCK_MS_US);
    assert_true(at_us[6] - at_us[5] > 850 * CLOCK_MS_US);
    assert_true(at_us[4] - at_us[0] < 3 * CLOCK_SECOND_US);
}

static void a_refused_login_ends_open_and_hides_the_password(void **state) {
    (void)state;
    set_script("-WRONGPASS invalid username-password pair\r\n", THEN_GO_ON);
    assert_int_equal(open_cache("node:hunter2@"), STATUS_UNAVAILABLE);
    assert_non_null(strstr(e.text, "refused the password: WRONGPASS"));
    assert_null(strstr(e.text, "hunter2"));
    set_script("$5\r\nhello\r\n", THEN_GO_ON);
    assert_int_equal(open_cache(":hunter2@"), STATUS_OK); /* no Redis: as if it were not there */
    assert_int_equal(cache_check(c, &e), STATUS_UNAVAILABLE);
}

int main(void) {
#define TEST(t) cmocka_unit_test_setup_teardown(t, start_fake, stop_fake)
    const struct CMUnitTest tests[] = {
        TEST(no_refusal_and_no_nonsense_is_taken_for_success),
        TEST(answers_of_the_wrong_kind_are_not_success),
        TEST(a_value_is_read_however_it_is_cut),
        TEST(a_refused_write_keeps_the_connection_and_pauses_writes),
        TEST(a_loading_server_is_waited_for_and_no_failure),
        TEST(the_breaker_opens_after_five_failures),
        TEST(a_refused_login_ends_open_and_hides_the_password),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
