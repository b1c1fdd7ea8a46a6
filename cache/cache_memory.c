/* Features in this process: a hash table and a list from the most to the least recently used, bounded by
 * bytes.
 *
 * One lock guards table and list. Copying 1.7 MB takes longer than finding it, so nobody copies under the
 * lock: an entry counts its readers, a reader copies after letting go of the lock, and an entry dropped
 * meanwhile is freed by whoever lets go of it last. Memory in use can therefore pass the limit by what
 * is being read at that moment. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "cache/cache_backend.h"

#define BUCKETS 16384 /* 128 KB; with 1.7 MB values 27 GB of entries before chains form */

typedef struct entry {
    struct entry *next_in_bucket;
    struct entry *newer, *older; /* list of all; NULL at the ends */
    cache_key key;
    size_t n_users; /* the table is one, each reader one; guarded by lock */
    size_t len_bytes;
    unsigned char data[];
} entry;

typedef struct {
    pthread_mutex_t lock; /* guards everything below and n_users */
    entry *newest, *oldest;
    uint64_t bytes_held, bytes_max, n_held, evictions;
    entry *buckets[BUCKETS];
} memory;

static uint64_t cost_of(size_t len_bytes) { return sizeof(entry) + len_bytes; }

static entry **bucket_of(memory *m, const cache_key *key) {
    return &m->buckets[hash_xxh3(key->text, CACHE_KEY_CHARS) % BUCKETS];
}

/* The place that points at the key's entry, or at the end of its chain. */
static entry **find(memory *m, const cache_key *key) {
    entry **at = bucket_of(m, key);
    while (*at && memcmp((*at)->key.text, key->text, CACHE_KEY_CHARS) != 0)
        at = &(*at)->next_in_bucket;
    return at;
}

static void unlink_from_list(memory *m, entry *n) {
    *(n->newer ? &n->newer->older : &m->newest) = n->older;
    *(n->older ? &n->older->newer : &m->oldest) = n->newer;
    n->newer = n->older = NULL;
}

static void make_newest(memory *m, entry *n) {
    n->newer = NULL;
    n->older = m->newest;
    *(m->newest ? &m->newest->newer : &m->oldest) = n;
    m->newest = n;
}

static void release(entry *n) {
    if (--n->n_users == 0) free(n);
}

static void drop(memory *m, entry **at) {
    entry *n = *at;
    *at = n->next_in_bucket;
    unlink_from_list(m, n);
    m->bytes_held -= cost_of(n->len_bytes);
    m->n_held--;
    release(n);
}

status cache_memory_open(void **self, const cache_settings *settings, err *e) {
    if (settings->memory_bytes < 4096)
        return fail(e, STATUS_BAD_ARGUMENT, "cache memory: %llu bytes, need at least 4096",
                    (unsigned long long)settings->memory_bytes);
    memory *m = calloc(1, sizeof *m);
    if (!m) return fail(e, STATUS_NO_MEMORY, "cache memory: out of memory");
    m->bytes_max = settings->memory_bytes;
    CHECK(pthread_mutex_init(&m->lock, NULL) == 0, "a mutex can be made");
    *self = m;
    return STATUS_OK;
}

static void memory_close(void *self) {
    memory *m = self;
    while (m->oldest) drop(m, find(m, &m->oldest->key));
    (void)pthread_mutex_destroy(&m->lock);
    free(m);
}

static status memory_get(void *self, buf *out, const cache_key *key) {
    memory *m = self;
    (void)pthread_mutex_lock(&m->lock);
    entry *n = *find(m, key);
    if (n) {
        n->n_users++;
        unlink_from_list(m, n);
        make_newest(m, n);
    }
    (void)pthread_mutex_unlock(&m->lock);
    if (!n) return STATUS_NOT_FOUND;

    status st = buf_append(out, n->data, n->len_bytes);
    if (st == STATUS_NO_MEMORY) st = STATUS_UNAVAILABLE;

    (void)pthread_mutex_lock(&m->lock);
    release(n);
    (void)pthread_mutex_unlock(&m->lock);
    return st;
}

static status memory_put(void *self, const cache_key *key, bytes head, bytes body) {
    memory *m = self;
    size_t len = head.len_bytes + body.len_bytes;
    if (cost_of(len) > m->bytes_max) return STATUS_TOO_LARGE;
    entry *n = malloc(sizeof *n + len);
    if (!n) return STATUS_UNAVAILABLE;
    *n = (entry){.key = *key, .n_users = 1, .len_bytes = len};
    memcpy(n->data, head.data, head.len_bytes);
    memcpy(n->data + head.len_bytes, body.data, body.len_bytes);

    (void)pthread_mutex_lock(&m->lock);
    entry **at = find(m, key);
    if (*at) drop(m, at);
    while (m->bytes_held + cost_of(len) > m->bytes_max) {
        drop(m, find(m, &m->oldest->key));
        m->evictions++;
    }
    at = bucket_of(m, key);
    n->next_in_bucket = *at;
    *at = n;
    make_newest(m, n);
    m->bytes_held += cost_of(len);
    m->n_held++;
    (void)pthread_mutex_unlock(&m->lock);
    return STATUS_OK;
}

static status memory_has(void *self, const cache_key *key) {
    memory *m = self;
    (void)pthread_mutex_lock(&m->lock);
    bool found = *find(m, key) != NULL;
    (void)pthread_mutex_unlock(&m->lock);
    return found ? STATUS_OK : STATUS_NOT_FOUND;
}

static status memory_forget(void *self, const cache_key *key) {
    memory *m = self;
    (void)pthread_mutex_lock(&m->lock);
    entry **at = find(m, key);
    if (*at) drop(m, at);
    (void)pthread_mutex_unlock(&m->lock);
    return STATUS_OK;
}

static status memory_check(void *self, err *e) {
    (void)self, (void)e;
    return STATUS_OK;
}

static void memory_count(void *self, cache_counters *counters) {
    memory *m = self;
    (void)pthread_mutex_lock(&m->lock);
    counters->evictions = m->evictions;
    counters->bytes_held = m->bytes_held;
    counters->n_held = m->n_held;
    (void)pthread_mutex_unlock(&m->lock);
}

const cache_backend cache_memory_backend = {memory_get,   memory_put,   memory_has, memory_forget,
                                            memory_check, memory_count, memory_close};
