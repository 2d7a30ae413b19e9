// Hopper's products of whole tiles from shared memory (wgmma), for sm_90a alone. Four warps together: d (64 x N) += a b,
// where a (64 x K) and b (K x N), of bf16 with K = 16 or tf32 with K = 8, lie in shared memory in groups of eight lines of
// 16 bytes, one behind the other. A group's lines are rows of a (columns of b) with 8 or 4 neighbours of K in each; or, for
// product_turned, 8 lines of K with rows (columns) in each.
//
// A thread's d[4 j + 2 h + i]: row 16 (warp % 4) + lane / 4 + 8 h, column 8 j + 2 (lane % 4) + i.
#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WHOLE_TILES 1
#else
#define WHOLE_TILES 0
#endif

// A matrix for wgmma: where it begins (16 bytes aligned), and how many bytes lie from a group of 8 x 8 to the next along K,
// and to the next along rows (columns).
DEVICE u64 matrix(const void* first, int along_k, int along_rows) {
#ifdef __CUDACC__
    u64 at = (u32)__cvta_generic_to_shared(first);
#else
    u64 at = cu::shared_offset(first);
#endif
    return at >> 4 & 0x3fff | (u64)(along_k >> 4 & 0x3fff) << 16 | (u64)(along_rows >> 4 & 0x3fff) << 32;
}

// The same, `bytes` further on.
DEVICE u64 further(u64 matrix, int bytes) { return matrix + (bytes >> 4); }

// Before the first product, and after this thread wrote to d itself.
DEVICE void products_begin() {
#if defined(__CUDACC__) && WHOLE_TILES
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Products since the last call are one group.
DEVICE void products_commit() {
#ifndef __CUDACC__
    cu::products_commit();
#elif WHOLE_TILES
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Until all groups but the last n are done; d may be read then, and shared memory written again by these four warps.
template <int n> DEVICE void products_wait() {
#ifndef __CUDACC__
    cu::products_wait(n);
#elif WHOLE_TILES
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
#endif
}

// What this thread wrote to shared memory can be seen by products after the next barrier.
DEVICE void written_for_products() {
#ifndef __CUDACC__
    cu::written_for_products();
#elif WHOLE_TILES
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Nothing that reads d comes before this: it stands behind the wait that d is ready after.
template <int N> DEVICE void products_ready(float (&d)[N]) {
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

#define D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D16(d, i) D4(d, i), D4(d, i + 4), D4(d, i + 8), D4(d, i + 12)
#define D32(d, i) D16(d, i), D16(d, i + 16)
#define REGISTERS_32                                                                                                   \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                           \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64                                                                                                   \
    REGISTERS_32 ", "                                                                                                  \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                 \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#ifndef __CUDACC__
#define PRODUCT_32(bytes, turned, shape, last) cu::product(d, 64, a, b, add, bytes, turned)
#define PRODUCT_64(bytes, turned, shape, last) cu::product(d, 128, a, b, add, bytes, turned)
#elif WHOLE_TILES
#define PRODUCT_32(bytes, turned, shape, last)                                                                         \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"                                                            \
                 "wgmma.mma_async.sync.aligned." shape " {" REGISTERS_32 "}, %32, %33, p, 1, 1" last ";\n}"            \
                 : D32(d, 0) : "l"(a), "l"(b), "r"((int)add))
#define PRODUCT_64(bytes, turned, shape, last)                                                                         \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"                                                            \
                 "wgmma.mma_async.sync.aligned." shape " {" REGISTERS_64 "}, %64, %65, p, 1, 1" last ";\n}"            \
                 : D32(d, 0), D32(d, 32) : "l"(a), "l"(b), "r"((int)add))
#else
#define PRODUCT_32(bytes, turned, shape, last) __trap()
#define PRODUCT_64(bytes, turned, shape, last) __trap()
#endif

// d += a b, or = without add. The last argument says what the numbers are.
DEVICE void product(float (&d)[32], u64 a, u64 b, bool add, bf16) {
    PRODUCT_32(2, false, "m64n64k16.f32.bf16.bf16", ", 0, 0");
}
DEVICE void product(float (&d)[64], u64 a, u64 b, bool add, bf16) {
    PRODUCT_64(2, false, "m64n128k16.f32.bf16.bf16", ", 0, 0");
}
DEVICE void product(float (&d)[32], u64 a, u64 b, bool add, u32) {
    PRODUCT_32(4, false, "m64n64k8.f32.tf32.tf32", "");
}
DEVICE void product(float (&d)[64], u64 a, u64 b, bool add, u32) {
    PRODUCT_64(4, false, "m64n128k8.f32.tf32.tf32", "");
}
DEVICE void product_turned(float (&d)[32], u64 a, u64 b, bool add) {
    PRODUCT_32(2, true, "m64n64k16.f32.bf16.bf16", ", 1, 1");
}
