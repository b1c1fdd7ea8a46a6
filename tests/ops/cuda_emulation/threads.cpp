/* Blocks of fibers. See cuda_runtime.h for what is promised.
 *
 * The fibers of a block take turns on the host thread: the scheduler goes round and lets each that is ready run until it
 * waits or ends. A meeting (barrier or warp collective) is over when its last thread arrives, which makes the others
 * ready. What lanes bring to a collective lies in two sets of slots used in turn: a lane can be one meeting ahead of the
 * slowest, never two. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <emulated_ptx.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

#define THREADS_MAX   1024
#define WARP_LANES    32
#define STACK_BYTES   ((size_t)128 << 10)
#define STACK_STRIDE  (STACK_BYTES + 832) /* tops of stacks fall into different sets of a cache */
#define SHARED_MAX    ((size_t)227 << 10) /* of Hopper */
#define SHARED_LEAST  ((size_t)99 << 10)  /* of the older ones that have least */
#define SHARED_PLAIN  ((size_t)48 << 10)
#define GUARD_BYTES   ((size_t)4 << 10)
#define ALLOWED_MAX   256
#define COPIES_MAX    128

enum fiber_state { READY, IN_WARP, IN_BLOCK, ENDED };

#ifdef __x86_64__
typedef void *fiber_context;
#else
typedef ucontext_t fiber_context;
#endif

/* A copy on its way. */
struct pending {
    void *shared;
    const void *global;
    size_t bytes;
    unsigned group;
    bool is_there;
};

struct emulated_thread {
    emulated_place place;
    fiber_state state;
    unsigned n_copies, group; /* group: of the next copy */
    pending copies[COPIES_MAX];
    fiber_context context;
    unsigned char *stack;
    bool follows;     /* it has waited for the kernel before */
    bool is_prepared; /* its fiber exists: it runs one thread after the other, a block each */
    void *announced;  /* to the sanitizer */
};

struct warp {
    emulated_kind kind;
    unsigned n_arrived, phase;
    alignas(64) unsigned char slots[2][WARP_LANES * EMULATED_SLOT];
};

struct block {
    const char *name;
    unsigned n_threads, n_arrived, n_ended;
    int votes, vote; /* of the meeting going on, of the last one over */
    const std::function<void()> *thread; /* of the kernel that runs */
    fiber_context scheduler;
    void *scheduler_announced;
    emulated_thread threads[THREADS_MAX];
    warp warps[THREADS_MAX / WARP_LANES];
    unsigned char *shared; /* guard, SHARED_MAX, guard */
    unsigned char *stacks;
};

__thread emulated_place *emulated_here;
static __thread block *running; /* kept for the life of the host thread */

void emulated_mistake(const char *what) {
    fprintf(stderr, "emulated CUDA: %s: %s", running && running->name ? running->name : "no kernel", what);
    if (emulated_here)
        fprintf(stderr, " (block %u %u %u, thread %u)", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
    fprintf(stderr, "\n");
    abort();
}

[[noreturn]] static void launch_mistake(const char *kernel, const char *what) {
    fprintf(stderr, "emulated CUDA: %s: %s\n", kernel, what);
    abort();
}

/* ---- switching ----------------------------------------------------------------------------- */

/* ThreadSanitizer keeps a stack of calls for each fiber, and has to be told whose turn it is. What ran before a switch
 * happened before what runs after it. Part of its caller: a call that began on one stack may not end on the other. */
static inline __attribute__((always_inline)) void announce_switch(void *to) {
    (void)to;
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(to, 0);
#endif
}

static void announce_fiber(emulated_thread *t) {
    (void)t;
#ifdef __SANITIZE_THREAD__
    t->announced = __tsan_create_fiber(0);
#endif
}

static void forget_fiber(const emulated_thread *t) {
    (void)t;
#ifdef __SANITIZE_THREAD__
    if (t->announced) __tsan_destroy_fiber(t->announced);
#endif
}

static void announce_scheduler(block *b) {
    (void)b;
#ifdef __SANITIZE_THREAD__
    b->scheduler_announced = __tsan_get_current_fiber();
#endif
}

void follow_last(void) { emulated_here->self->follows = true; }

static void must_follow(const char *what) {
    if (emulated_here->self->follows) return;
    fprintf(stderr, "emulated CUDA: %s that did not wait for the kernel before\n", what);
    emulated_mistake("follow_last() was not called");
}

static void leave(emulated_thread *t);

/* For ever: a fiber that returned would leave half a stack of calls behind. */
static void fiber_main(void) {
    for (;;) {
        (*running->thread)();
        must_follow("a thread ends");
        if (emulated_here->self->n_copies > 0) emulated_mistake("a thread ends with copies on their way");
        emulated_here->self->state = ENDED;
        running->n_ended++;
        leave(emulated_here->self);
    }
}

#ifdef __x86_64__

extern "C" void emulated_switch(fiber_context *from, fiber_context to);

/* Keeps what a callee must keep on its own stack, then takes the other stack. */
__asm__(".text\n"
        ".globl emulated_switch\n"
        ".type emulated_switch, @function\n"
        "emulated_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size emulated_switch, .-emulated_switch\n");

static inline __attribute__((always_inline)) void switch_context(fiber_context *from, const fiber_context *to) { emulated_switch(from, *to); }

static void prepare(emulated_thread *t) {
    void **top = reinterpret_cast<void **>(t->stack + STACK_BYTES) - 1; /* a callee begins 8 bytes below a multiple of 16 */
    *--top = reinterpret_cast<void *>(fiber_main);
    top -= 6;
    memset(top, 0, 6 * sizeof *top);
    t->context = top;
}

#else

static inline __attribute__((always_inline)) void switch_context(fiber_context *from, const fiber_context *to) { (void)swapcontext(from, to); }

static void prepare(emulated_thread *t) {
    (void)getcontext(&t->context);
    t->context.uc_stack.ss_sp = t->stack;
    t->context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&t->context, fiber_main, 0);
}

#endif

static void leave(emulated_thread *t) {
    block *b = running;
    announce_switch(b->scheduler_announced);
    switch_context(&t->context, &b->scheduler);
}

static void enter(emulated_thread *t) {
    block *b = running;
    announce_switch(t->announced);
    switch_context(&b->scheduler, &t->context);
}

static void wait_as(fiber_state state) {
    emulated_thread *t = emulated_here->self;
    t->state = state;
    leave(t);
}

/* ---- meetings ------------------------------------------------------------------------------ */

int __syncthreads_or(int predicate) {
    block *b = running;
    must_follow("a thread comes to a barrier");
    if (b->n_ended > 0) emulated_mistake("a barrier after some threads have ended");
    if (predicate) b->votes = 1;
    if (++b->n_arrived < b->n_threads) {
        wait_as(IN_BLOCK);
        return b->vote;
    }
    b->vote = b->votes;
    b->n_arrived = 0;
    b->votes = 0;
    for (unsigned i = 0; i < b->n_threads; i++) b->threads[i].state = READY;
    return b->vote;
}

void __syncthreads(void) { (void)__syncthreads_or(0); }

const unsigned char *emulate_meeting(emulated_kind kind, const void *mine, size_t bytes) {
    unsigned index = threadIdx.x / WARP_LANES;
    warp *w = &running->warps[index];
    must_follow("a thread meets its warp");
    if (bytes > EMULATED_SLOT) emulated_mistake("too much for a slot");
    if (w->n_arrived > 0 && w->kind != kind) emulated_mistake("two kinds of collective meet in a warp");
    unsigned char *slots = w->slots[w->phase];
    w->kind = kind;
    memcpy(slots + emulated_here->lane * EMULATED_SLOT, mine, bytes);
    if (++w->n_arrived < WARP_LANES) {
        wait_as(IN_WARP);
        return slots;
    }
    w->n_arrived = 0;
    w->phase = 1 - w->phase;
    for (unsigned i = 0; i < WARP_LANES; i++) running->threads[index * WARP_LANES + i].state = READY;
    return slots;
}

/* ---- copies -------------------------------------------------------------------------------- */

void emulated_copy_async(void *shared, const void *global, size_t bytes, bool is_there) {
    emulated_thread *t = emulated_here->self;
    must_follow("a copy begins in a thread");
    uintptr_t addresses = (uintptr_t)shared | (is_there ? (uintptr_t)global : 0);
    if (addresses % bytes != 0) emulated_mistake("a copy that is not aligned to its size");
    if (t->n_copies == COPIES_MAX) emulated_mistake("too many copies on their way");
    t->copies[t->n_copies++] = pending{shared, global, bytes, t->group, is_there};
}

void copies_commit(void) { emulated_here->self->group++; }

void emulated_copies_wait(int n_left) {
    emulated_thread *t = emulated_here->self;
    unsigned kept = 0;
    for (unsigned i = 0; i < t->n_copies; i++) {
        pending *c = &t->copies[i];
        if (c->group + (unsigned)n_left >= t->group) t->copies[kept++] = *c;
        else if (c->is_there) memcpy(c->shared, c->global, c->bytes);
        else memset(c->shared, 0, c->bytes);
    }
    t->n_copies = kept;
}

/* ---- blocks -------------------------------------------------------------------------------- */

static void *pages(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) emulated_mistake("no memory for an emulated block");
    return p;
}

static void close_block(void) {
    if (!running) return;
    for (unsigned i = 0; i < THREADS_MAX; i++) forget_fiber(&running->threads[i]);
    (void)munmap(running->stacks, THREADS_MAX * STACK_STRIDE);
    (void)munmap(running->shared, SHARED_MAX + 2 * GUARD_BYTES);
    (void)munmap(running, sizeof *running);
    running = NULL;
}

/* Closes the block where its host thread ends. */
struct closer {
    bool is_set;
    ~closer() { close_block(); }
};
static thread_local closer at_end;

static block *open_block(void) {
    block *b = static_cast<block *>(pages(sizeof *b));
    at_end.is_set = true;
    b->shared = static_cast<unsigned char *>(pages(SHARED_MAX + 2 * GUARD_BYTES));
    b->stacks = static_cast<unsigned char *>(pages(THREADS_MAX * STACK_STRIDE));
    announce_scheduler(b);
    for (unsigned i = 0; i < THREADS_MAX; i++) {
        b->threads[i].stack = b->stacks + i * STACK_STRIDE;
        b->threads[i].place.self = &b->threads[i];
    }
    return b;
}

static void check_guards(const block *b, size_t shared_bytes) {
    for (size_t i = 0; i < GUARD_BYTES; i++)
        if (b->shared[i] != 0xA5 || b->shared[GUARD_BYTES + shared_bytes + i] != 0xA5)
            emulated_mistake("a write outside the shared memory of the launch");
}

/* Says what the threads that do not go on are waiting for. */
[[noreturn]] static void stuck(const block *b) {
    unsigned n[4] = {0};
    for (unsigned i = 0; i < b->n_threads; i++) n[b->threads[i].state]++;
    fprintf(stderr, "emulated CUDA: %s: block %u %u %u does not go on: %u threads at a barrier, %u at a collective, %u ended\n",
            b->name, b->threads[0].place.block.x, b->threads[0].place.block.y, b->threads[0].place.block.z, n[IN_BLOCK],
            n[IN_WARP], n[ENDED]);
    abort();
}

static void run_fibers(block *b, bool is_backwards) {
    while (b->n_ended < b->n_threads) {
        bool has_moved = false;
        for (unsigned i = 0; i < b->n_threads; i++) {
            emulated_thread *t = &b->threads[is_backwards ? b->n_threads - 1 - i : i];
            if (t->state != READY) continue;
            has_moved = true;
            emulated_here = &t->place;
            enter(t);
        }
        if (!has_moved) stuck(b);
    }
    emulated_here = NULL;
}

static void run_block(block *b, uint3 at, dim3 grid, dim3 dim, size_t shared_bytes) {
    b->n_arrived = b->n_ended = 0;
    b->votes = b->vote = 0;
    memset(b->shared, 0xA5, GUARD_BYTES);
    memset(b->shared + GUARD_BYTES, 0xFF, shared_bytes);
    memset(b->shared + GUARD_BYTES + shared_bytes, 0xA5, GUARD_BYTES);
    for (unsigned i = 0; i < b->n_threads; i++) {
        emulated_thread *t = &b->threads[i];
        t->place.thread = uint3{i, 0, 0};
        t->place.block = at;
        t->place.block_dim = dim;
        t->place.grid_dim = grid;
        t->place.lane = i % WARP_LANES;
        t->place.shared = b->shared + GUARD_BYTES;
        t->state = READY;
        t->n_copies = t->group = 0;
        t->follows = false;
        if (t->is_prepared) continue;
        t->is_prepared = true;
        announce_fiber(t);
        prepare(t);
    }
    run_fibers(b, (at.x + at.y + at.z) % 2 == 1);
    check_guards(b, shared_bytes);
}

static struct {
    void (*kernel)(void);
    size_t bytes;
} allowed[ALLOWED_MAX];

static size_t allowed_bytes(void (*kernel)(void)) {
    for (int i = 0; i < ALLOWED_MAX && allowed[i].kernel; i++)
        if (allowed[i].kernel == kernel) return allowed[i].bytes;
    return SHARED_PLAIN;
}

cudaError_t emulated_allow_shared(void (*kernel)(void), int bytes) {
    if (bytes < 0 || (size_t)bytes > (emulated_is_older() ? SHARED_LEAST : SHARED_MAX)) return cudaErrorInvalidValue;
    for (int i = 0; i < ALLOWED_MAX; i++) {
        if (allowed[i].kernel && allowed[i].kernel != kernel) continue;
        allowed[i].kernel = kernel;
        allowed[i].bytes = (size_t)bytes;
        return cudaSuccess;
    }
    return cudaErrorInvalidValue;
}

static void run_kernel(const char *name, dim3 grid, dim3 dim, size_t shared_bytes, const std::function<void()> &thread) {
    if (!running) running = open_block();
    block *b = running;
    b->name = name;
    b->n_threads = dim.x;
    b->thread = &thread;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) run_block(b, uint3{x, y, z}, grid, dim, shared_bytes);
    b->name = NULL;
}

void emulate_launch(void (*kernel)(void), const char *name, dim3 grid, dim3 dim, size_t shared_bytes, cudaStream_t stream,
                    std::function<void()> thread) {
    if (dim.x == 0 || dim.x > THREADS_MAX || dim.x % WARP_LANES != 0 || dim.y != 1 || dim.z != 1)
        launch_mistake(name, "a block that is no row of whole warps");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        launch_mistake(name, "a grid that is empty or too large");
    if (shared_bytes > allowed_bytes(kernel)) launch_mistake(name, "more shared memory than the kernel was allowed");
    (void)emulated_do(stream, [=] { run_kernel(name, grid, dim, shared_bytes, thread); });
}
