// Hopper's products of whole tiles from shared memory (wgmma), for sm_90a alone. Four warps together: d (64 x N) += a b,
// where a (64 x 16) and b (16 x N), of bf16, lie in shared memory in groups of 8 x 8: eight lines of 16 bytes, one behind
// the other. A group's lines are rows of a (columns of b) with 8 neighbours of K in each, or, turned, 8 lines of K with
// rows (columns) in each.
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

// d += a b, or = without add. TURN_A, TURN_B: 1 if the groups' lines are lines of K.
template <int TURN_A, int TURN_B> DEVICE void product_64x64(float (&d)[32], u64 a, u64 b, int add) {
#ifndef __CUDACC__
    cu::product(d, 64, a, b, TURN_A, TURN_B, add);
#elif WHOLE_TILES
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, %35, %36;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b), "r"(add), "n"(TURN_A), "n"(TURN_B));
#else
    __trap();
#endif
}

template <int TURN_A, int TURN_B> DEVICE void product_64x128(float (&d)[64], u64 a, u64 b, int add) {
#ifndef __CUDACC__
    cu::product(d, 128, a, b, TURN_A, TURN_B, add);
#elif WHOLE_TILES
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, %67, %68;\n}"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
        : "l"(a), "l"(b), "r"(add), "n"(TURN_A), "n"(TURN_B));
#else
    __trap();
#endif
}
