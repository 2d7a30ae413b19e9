// CUDA's built-in functions that kernels use, for the CPU; and the tensor-core and asynchronous operations of prelude.cuh.
#pragma once
#include "threads.h"

// --- warps -----------------------------------------------------------------------------------------------------------

namespace cu {

enum Collective { SYNC, SHUFFLE, MMA, LDMATRIX };

static void meet(int collective, unsigned mask) {
    if (mask != ~0u) fail("a warp collective with a mask of some lanes only: 0x%x", mask);
    pause(AT_WARP, collective);
}

// Shows n words to the warp; returns where the lanes' words of this meeting lie: threads[...].slot[turn].
static int show(const void* words, size_t bytes, int collective, unsigned mask) {
    const int turn = current->turn;
    memcpy(current->slot[turn], words, bytes);
    current->turn ^= 1;
    meet(collective, mask);
    return turn;
}

static const void* shown(int lane, int turn) {
    const int i = (current->number & ~31) + lane;
    if (i >= (int)threads.size()) {
        fail("lane %d reads lane %d, which the block does not have", current->number & 31, lane);
        return current->slot[turn];
    }
    return threads[i].slot[turn];
}

template <class T> static T shuffle(unsigned mask, T v, int lane) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");
    const int turn = show(&v, sizeof v, SHUFFLE, mask);
    memcpy(&v, shown(lane & 31, turn), sizeof v);
    return v;
}

static inline int lane() { return current->number & 31; }

// --- wgmma: carried out when waited for, since what it reads may not be written before, or at once ----------------------

static float as_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }

static uint64_t shared_offset(const void* p) {
    if ((uintptr_t)p % 16 || !is_shared(p)) stop("matrix: wants 16 aligned bytes of shared memory");
    return (const char*)p - dynamic_shared;
}

// Number (line, k) of a matrix in groups of eight lines of 16 bytes: a line holds some of k, or, turned, 8 of its lines.
static float element(uint64_t matrix, int bytes, bool turned, int line, int k) {
    const int first = matrix & 0x3fff, along_k = matrix >> 16 & 0x3fff, along_rows = matrix >> 32 & 0x3fff, each = 16 / bytes;
    const int inner = turned ? k % 8 * 16 + line % 8 * bytes : line % 8 * 16 + k % each * bytes;
    const int at = 16 * (first + line / 8 * along_rows + k / (turned ? 8 : each) * along_k) + inner;
    if (at + bytes > dynamic_bytes) return stop("wgmma: reads outside of shared memory"), 0;
    uint32_t bits = 0;
    memcpy((char*)&bits + 4 - bytes, dynamic_shared + at, bytes);
    return as_float(bytes == 4 ? bits & 0xffffe000u : bits);
}

static void carry_out(const Product& p) {
    const int depth = 32 / p.bytes, row = current->number / 32 % 4 * 16 + lane() / 4;
    float x[2][16], y[16];
    for (int i = 0; i < 2 * depth; i++) x[i / depth][i % depth] = element(p.a, p.bytes, p.turned, row + i / depth * 8, i % depth);
    for (int i = 0; i < p.columns / 4; i++) {
        const int column = i / 2 * 8 + lane() % 4 * 2 + i % 2;
        for (int k = 0; k < depth; k++) y[k] = element(p.b, p.bytes, p.turned, column, k);
        for (int half = 0; half < 2; half++) {
            double sum = 0;
            for (int k = 0; k < depth; k++) sum += (double)x[half][k] * y[k];
            float& d = p.d[i / 2 * 4 + half * 2 + i % 2];
            d = p.add ? d + (float)sum : (float)sum;
        }
    }
}

static void product(float* d, int columns, uint64_t a, uint64_t b, bool add, int bytes, bool turned) {
    if (threads.size() % 128) return stop("wgmma: wants whole groups of four warps");
    Product product = {d, a, b, columns, bytes, current->product_groups, add, turned};
    if (products_early) carry_out(product);
    else current->products.push_back(product);
}

static void products_commit() { current->product_groups++; }

static void products_wait(int n) {
    auto& waiting = current->products;
    size_t done = 0;
    for (; done < waiting.size() && waiting[done].group < current->product_groups - n; done++) carry_out(waiting[done]);
    waiting.erase(waiting.begin(), waiting.begin() + done);
}

static void written_for_products() {}  // the CPU has one way to memory

}  // namespace cu

static inline void __syncwarp(unsigned mask = ~0u) { cu::meet(cu::SYNC, mask); }
template <class T> static T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
    return cu::shuffle(mask, v, (cu::lane() & ~(width - 1)) | (from & (width - 1)));
}
template <class T> static T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32) {
    const int from = cu::lane() ^ with;  // lanes of a later group keep their own
    return cu::shuffle(mask, v, from < (cu::lane() | (width - 1)) + 1 ? from : cu::lane());
}
template <class T> static T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int from = cu::lane() + by;
    return cu::shuffle(mask, v, from <= (cu::lane() | (width - 1)) ? from : cu::lane());
}
template <class T> static T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
    const int from = cu::lane() - (int)by;
    return cu::shuffle(mask, v, from >= (cu::lane() & ~(width - 1)) ? from : cu::lane());
}
static inline unsigned __ballot_sync(unsigned mask, int yes) {
    unsigned all = 0;
    const int mine = yes != 0, turn = cu::show(&mine, sizeof mine, cu::SHUFFLE, mask);
    for (int l = 0; l < 32 && (cu::current->number & ~31) + l < (int)cu::threads.size(); l++) {
        int theirs;
        memcpy(&theirs, cu::shown(l, turn), sizeof theirs);
        all |= (unsigned)theirs << l;
    }
    return all;
}
static inline int __any_sync(unsigned mask, int yes) { return __ballot_sync(mask, yes) != 0; }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __trap() { cu::stop("__trap"); }

// Of integers only: on a GPU, atomics on floats would sum in any order.
template <class T, class V> static T atomicAdd(T* p, V v) {
    static_assert(std::is_integral<T>::value, "no atomics on floats: bits must repeat");
    T old = *p;
    *p = old + (T)v;
    return old;
}

// --- tensor cores: the lanes' fragments as in prelude.cuh ------------------------------------------------------------

namespace cu {

static uint32_t fragment(int lane, int i, int turn) {
    uint32_t word;
    memcpy(&word, (const char*)shown(lane, turn) + 4 * i, 4);
    return word;
}

struct Bf16 {  // two of k in a register
    static const int K = 16;
    static int lane(int k) { return k % 8 / 2; }
    static int half(int k) { return k / 8; }
    static float value(uint32_t word, int k) { return as_float(k % 2 ? word & 0xffff0000u : word << 16); }
};

struct Tf32 {  // one of k in a register, whose low 13 bits the tensor core does not see
    static const int K = 8;
    static int lane(int k) { return k % 4; }
    static int half(int k) { return k / 4; }
    static float value(uint32_t word, int) { return as_float(word & 0xffffe000u); }
};

template <class F> static void mma(float* d, const uint32_t* a, const uint32_t* b) {
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const int turn = show(mine, sizeof mine, MMA, ~0u), g = lane() / 4, t = lane() % 4;
    for (int i = 0; i < 4; i++) {
        const int row = g + i / 2 * 8, column = 2 * t + i % 2;
        double sum = 0;
        for (int k = 0; k < F::K; k++) {
            const float x = F::value(fragment(row % 8 * 4 + F::lane(k), row / 8 + 2 * F::half(k), turn), k);
            sum += (double)x * F::value(fragment(column * 4 + F::lane(k), 4 + F::half(k), turn), k);
        }
        d[i] += (float)sum;
    }
}

static void mma_bf16(float* d, const uint32_t* a, const uint32_t* b) { mma<Bf16>(d, a, b); }
static void mma_tf32(float* d, const uint32_t* a, const uint32_t* b) { mma<Tf32>(d, a, b); }

static void ldmatrix(uint32_t* r, int matrices, const void* row, bool trans) {
    const int turn = show(&row, sizeof row, LDMATRIX, ~0u);
    if (lane() < 8 * matrices && ((uintptr_t)row % 16 || !is_shared(row)))
        return stop("ldmatrix: lane %d wants 16 aligned bytes of shared memory", lane());
    for (int j = 0; j < matrices; j++) {
        uint16_t pair[2];
        for (int half = 0; half < 2; half++) {
            const int line = trans ? lane() % 4 * 2 + half : lane() / 4, place = trans ? lane() / 4 : lane() % 4 * 2 + half;
            const uint16_t* numbers;
            memcpy(&numbers, shown(8 * j + line, turn), sizeof numbers);
            pair[half] = numbers[place];
        }
        r[j] = pair[0] | (uint32_t)pair[1] << 16;
    }
    meet(LDMATRIX, ~0u);  // its memory may be written again only when all lanes have read
}

// --- asynchronous copies: made when waited for, so that a missing wait shows, or at once, so that a place that is still
// being read shows -----------------------------------------------------------------------------------------------------

static void copy_now(const Copy& c) {
    if (c.valid) memcpy(c.to, c.from, c.bytes);
    else memset(c.to, 0, c.bytes);
}

static void async_copy(void* to, const void* from, int bytes, bool valid) {
    if ((uintptr_t)to % bytes || (valid && (uintptr_t)from % bytes))
        return stop("async_copy: wants addresses aligned to %d bytes", bytes);
    if (!is_shared(to)) return stop("async_copy: wants a place in shared memory");
    Copy copy = {to, from, bytes, current->groups, valid};
    if (copies_early) copy_now(copy);
    else current->copies.push_back(copy);
}

static void async_commit() { current->groups++; }

static void async_wait(int n) {
    auto& waiting = current->copies;
    size_t done = 0;
    for (; done < waiting.size() && waiting[done].group < current->groups - n; done++) copy_now(waiting[done]);
    waiting.erase(waiting.begin(), waiting.begin() + done);
}

}  // namespace cu

// --- what the compiler's checks found (-fsanitize=alignment,bounds), with the place in the kernel's text -------------

struct SourceLocation { const char* file; unsigned line, column; };
extern "C" HIDDEN void __ubsan_handle_type_mismatch_v1(SourceLocation* at, uintptr_t p) {
    cu::stop("%s:%u: access to an address that is not aligned for its type (...%02x)", at->file, at->line, unsigned(p & 0xff));
}
extern "C" HIDDEN void __ubsan_handle_out_of_bounds(SourceLocation* at, uintptr_t index) {
    cu::stop("%s:%u: index %lld is out of its array's bounds", at->file, at->line, (long long)index);
}

// --- bits, arithmetic ------------------------------------------------------------------------------------------------

template <class To, class From> static To cu_bits(From x) { To y; static_assert(sizeof x == sizeof y, ""); memcpy(&y, &x, sizeof y); return y; }
static inline float __uint_as_float(unsigned x) { return cu_bits<float>(x); }
static inline float __int_as_float(int x) { return cu_bits<float>(x); }
static inline unsigned __float_as_uint(float x) { return cu_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return cu_bits<int>(x); }
static inline long long __double_as_longlong(double x) { return cu_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return cu_bits<double>(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
#define __expf expf  // the C library has its own __expf
#define __logf logf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
template <class T> static T __ldg(const T* p) { return *p; }
template <class A, class B> static constexpr typename std::common_type<A, B>::type min(A a, B b) { return b < a ? b : a; }
template <class A, class B> static constexpr typename std::common_type<A, B>::type max(A a, B b) { return a < b ? b : a; }

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline double2 make_double2(double x, double y) { return {x, y}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
