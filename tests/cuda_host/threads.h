// Runs CUDA kernels on the CPU: one block at a time, each of its threads a fibre, each barrier a real one.
//
// A fibre runs until it waits at a barrier; which runs next is the order that the launch names, so that a missing barrier
// changes the result in some order. Shared memory is NaN bits when a block starts. What is wrong beyond doubt (a barrier
// that not all threads reach, an unaligned access, an index past an array) ends the launch with a message.
//
// It is no model of a GPU's memory: what one thread writes, the next to run sees. Blocks run one after another.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <initializer_list>
#include <random>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static __attribute__((section("cu_shared"), aligned(16)))
#define HIDDEN __attribute__((visibility("hidden")))

extern "C" {
extern HIDDEN char __start_cu_shared[] __attribute__((weak));
extern HIDDEN char __stop_cu_shared[] __attribute__((weak));
}

struct uint3 { unsigned x, y, z; };

namespace cu {

enum Order { FORWARD, REVERSE, RANDOM, WARP_GREEDY, WARP_GREEDY_REVERSE };

struct Launch { uint3 grid, block; int shared, order; unsigned seed; };

// What runs behind a thread's back, asynchronous copies and wgmma, runs as late as it may, or at once: by the order.
static bool copies_early, products_early;

// --- errors ----------------------------------------------------------------------------------------------------------

static char error_text[512];

template <class... Args> static void fail(const char* format, Args... args) {
    if (!error_text[0]) snprintf(error_text, sizeof error_text, format, args...);
}

// --- fibres ----------------------------------------------------------------------------------------------------------

enum State { RUN, AT_WARP, AT_BLOCK, DONE };

struct Copy { void* to; const void* from; int bytes, group; bool valid; };
struct Product { float* d; uint64_t a, b; int columns, bytes, group; bool add, turned; };

struct Thread {
    void* stack_pointer;
    uint3 index;
    int number;                // within the block
    State state;
    int where;                 // the line of the barrier it waits at, or the collective's number
    int turn;                  // of `slot`: collectives alternate, so nobody overwrites what another has yet to read
    uint64_t slot[2][8];       // what this lane shows its warp
    std::vector<Copy> copies;  // asynchronous ones, made when they are waited for
    std::vector<Product> products;
    int groups, product_groups;
};

static const size_t STACK = 256 << 10;
static std::vector<Thread> threads;
static Thread* current;
static void* scheduler_stack_pointer;
static uint3 block_index, block_size, grid_size;
static void (*kernel)(void**);
static void** arguments;

// Saves the registers that a call preserves, and continues where `to` was saved.
#if defined(__x86_64__)
extern "C" HIDDEN void cu_switch(void** from, void* to);
asm(R"(
.text
.hidden cu_switch
.globl cu_switch
cu_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");
static const int SAVED = 6;  // the return address lies above these
#elif defined(__aarch64__)
extern "C" HIDDEN void cu_switch(void** from, void* to);
asm(R"(
.text
.hidden cu_switch
.globl cu_switch
cu_switch:
    stp x29, x30, [sp, #-160]!
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    ldp x29, x30, [sp], #160
    ret
)");
static const int SAVED = 1;
#else
#error "the CPU's test device knows x86-64 and AArch64"
#endif

static void pause(State state, int where) {
    current->state = state;
    current->where = where;
    cu_switch(&current->stack_pointer, scheduler_stack_pointer);
}

// What a thread cannot go on from.
template <class... Args> static void stop(const char* format, Args... args) {
    fail(format, args...);
    pause(DONE, 0);
}

static void thread_main() {
    kernel(arguments);
    pause(DONE, 0);
    abort();  // a thread that is done is never run again
}

static void start(Thread& t, int number, char* stacks) {
    t.number = number;
    t.index = {number % block_size.x, number / block_size.x % block_size.y, number / (block_size.x * block_size.y)};
    t.state = RUN;
    t.turn = t.groups = t.product_groups = 0;
    t.copies.clear();
    t.products.clear();
    void** top = (void**)(stacks + (number + 1) * STACK);
#if defined(__x86_64__)
    top -= 2;  // where a call would leave the stack: 8 past a multiple of 16, once `ret` has taken the address
    top[0] = (void*)thread_main;
    t.stack_pointer = top - SAVED;
#else
    top -= 20;
    top[SAVED] = (void*)thread_main;  // x30
    t.stack_pointer = top;
#endif
}

// --- one block -------------------------------------------------------------------------------------------------------

static int warp_end(int warp) { return std::min((warp + 1) * 32, (int)threads.size()); }

static bool can_run(int warp) {
    for (int i = warp * 32; i < warp_end(warp); i++)
        if (threads[i].state == RUN) return true;
    return false;
}

static void run(int i) {
    if (threads[i].state != RUN || error_text[0]) return;
    current = &threads[i];
    cu_switch(&scheduler_stack_pointer, current->stack_pointer);
}

// Lets a warp go on if all its lanes wait at the same collective.
static void release_warp(int warp) {
    int waiting = 0;
    for (int i = warp * 32; i < warp_end(warp); i++) waiting += threads[i].state == AT_WARP;
    if (!waiting || can_run(warp)) return;
    for (int i = warp * 32; i < warp_end(warp); i++)
        if (threads[i].state != AT_WARP || threads[i].where != threads[warp * 32].where)
            return fail("divergent warp collective: lane %d of warp %d is not where its lane 0 is", i % 32, warp);
    for (int i = warp * 32; i < warp_end(warp); i++) threads[i].state = RUN;
}

// Lets the block go on if all wait at one barrier; false once all are done.
static bool release_block() {
    const Thread& first = threads[0];
    for (const Thread& t : threads)
        if (t.state != first.state || (t.state == AT_BLOCK && t.where != first.where)) {
            const Thread& stuck = first.state == AT_BLOCK ? first : t;
            const Thread& other = first.state == AT_BLOCK ? t : first;
            fail("divergent __syncthreads: thread %d waits in line %d, thread %d %s", stuck.number, stuck.where,
                 other.number, other.state == DONE ? "has returned" : "waits elsewhere");
            return false;
        }
    if (first.state == DONE) return false;
    for (Thread& t : threads) t.state = RUN;
    return true;
}

static void run_threads(int order, std::mt19937& random) {
    const int n = threads.size(), warps = (n + 31) / 32;
    std::vector<int> turn(n);
    for (int i = 0; i < n; i++) turn[i] = order == REVERSE ? n - 1 - i : i;
    int greedy = -1;  // the warp that runs until it waits for the others
    do {
        if (order == RANDOM) std::shuffle(turn.begin(), turn.end(), random);
        if (order < WARP_GREEDY) {
            for (int i : turn) run(i);
        } else {
            for (int w = 0; w < warps && (greedy < 0 || !can_run(greedy)); w++) {
                int next = order == WARP_GREEDY ? w : warps - 1 - w;
                if (can_run(next)) greedy = next;
            }
            for (int i = greedy * 32; i < warp_end(greedy); i++) run(i);
        }
        for (int w = 0; w < warps; w++) release_warp(w);
        bool running = false;
        for (int w = 0; w < warps; w++) running |= can_run(w);
        if (!running && !error_text[0] && !release_block()) return;
    } while (!error_text[0]);
}

// --- one launch ------------------------------------------------------------------------------------------------------

static char* dynamic_shared;  // of this launch, with a guard zone behind it
static int dynamic_bytes;
static const int GUARD = 1024;

static bool is_shared(const void* p) {
    const char* c = (const char*)p;
    return (__start_cu_shared && c >= __start_cu_shared && c < __stop_cu_shared) ||
           (c >= dynamic_shared && c < dynamic_shared + dynamic_bytes);
}

static void poison() {
    if (__start_cu_shared) memset(__start_cu_shared, 0xff, __stop_cu_shared - __start_cu_shared);
    memset(dynamic_shared, 0xff, dynamic_bytes + GUARD);
}

static void check_guard() {
    for (int i = 0; i < GUARD; i++)
        if ((unsigned char)dynamic_shared[dynamic_bytes + i] != 0xff)
            return fail("wrote past the launch's %d bytes of dynamic shared memory", dynamic_bytes);
}

static const char* launch(const Launch& how, void (*body)(void**), void** args) {
    static char* stacks = (char*)mmap(nullptr, 1024 * STACK, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    const int n = how.block.x * how.block.y * how.block.z;
    const int64_t blocks = (int64_t)how.grid.x * how.grid.y * how.grid.z;
    std::mt19937 random(how.seed);
    copies_early = how.order == REVERSE || how.order == WARP_GREEDY_REVERSE;
    products_early = how.order == RANDOM || how.order == WARP_GREEDY_REVERSE;
    error_text[0] = 0;
    kernel = body, arguments = args;
    grid_size = how.grid, block_size = how.block;
    threads.resize(n);
    dynamic_bytes = how.shared;
    dynamic_shared = (char*)aligned_alloc(128, (how.shared + GUARD + 127) / 128 * 128);
    for (int64_t k = 0; k < blocks && !error_text[0]; k++) {
        const int64_t b = how.order == REVERSE || how.order == WARP_GREEDY_REVERSE ? blocks - 1 - k : k;
        block_index = {unsigned(b % how.grid.x), unsigned(b / how.grid.x % how.grid.y),
                       unsigned(b / ((int64_t)how.grid.x * how.grid.y))};
        poison();
        for (int i = 0; i < n; i++) start(threads[i], i, stacks);
        run_threads(how.order, random);
        check_guard();
    }
    free(dynamic_shared);
    return error_text;
}

}  // namespace cu

#define threadIdx (cu::current->index)
#define blockIdx (cu::block_index)
#define blockDim (cu::block_size)
#define gridDim (cu::grid_size)
#define warpSize 32
#define __syncthreads() cu::pause(cu::AT_BLOCK, __LINE__)
