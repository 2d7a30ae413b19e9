// Put in front of every kernel file. The same text runs on a GPU (nvcc, NVRTC) and, between fibres, on the CPU: what has
// no plain C++ spelling is written here twice, as PTX and as a call of tests/cuda_host/shim.h, and nowhere else.
//
//   real            float or double, by -DREAL          bf16         its 16 bits
//   stored          what arrays of images hold: real, or bf16 by -DSTORED=bf16 (STORES_BF16); value(x) reads, set(x, v) writes
//   DEVICE          in front of functions               TENSOR_CORES 0 where the card is older than sm_80
//   Four<T>         four neighbours, one load           *_rn         one operation, rounded on its own, never fused
//   warp_*, block_* reductions of one fixed order       mma_*, ldmatrix_*, async_*: tensor cores and what feeds them
#ifdef __CUDACC__
#pragma nv_diag_suppress 177  // each file uses some of this
#endif
#ifndef REAL
#define REAL float
#endif
#ifdef STORED
#define STORES_BF16 1
#else
#define STORED REAL
#define STORES_BF16 0
#endif
typedef REAL real;
typedef unsigned short bf16;
typedef STORED stored;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE static __device__ __forceinline__
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define TENSOR_CORES 0
#else
#define TENSOR_CORES 1
#endif

// --- memory ----------------------------------------------------------------------------------------------------------

template <class T> struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Four { T x, y, z, w; };

// p: aligned as Four<T>, to 16 bytes or 8 (bf16).
template <class T> DEVICE Four<T> load4(const T* p) { return *reinterpret_cast<const Four<T>*>(p); }
template <class T> DEVICE void store4(T* p, const Four<T>& v) { *reinterpret_cast<Four<T>*>(p) = v; }

// Where this thread starts and how far it steps when a one-dimensional grid shares out n things.
DEVICE i64 first_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE i64 index_step() { return (i64)gridDim.x * blockDim.x; }

// --- one operation, rounded on its own -------------------------------------------------------------------------------
// The PTX carries no .ftz whatever the compiler was told (CuPy always says -ftz=true), and .rn is never fused.

#ifdef __CUDACC__
#define ROUNDED(name, ptx)                                                                                             \
    DEVICE float name(float a, float b) { float c; asm(ptx ".rn.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b)); return c; } \
    DEVICE double name(double a, double b) { double c; asm(ptx ".rn.f64 %0, %1, %2;" : "=d"(c) : "d"(a), "d"(b)); return c; }
ROUNDED(add_rn, "add")
ROUNDED(sub_rn, "sub")
ROUNDED(mul_rn, "mul")
ROUNDED(div_rn, "div")
DEVICE float sqrt_rn(float a) { float c; asm("sqrt.rn.f32 %0, %1;" : "=f"(c) : "f"(a)); return c; }
DEVICE double sqrt_rn(double a) { double c; asm("sqrt.rn.f64 %0, %1;" : "=d"(c) : "d"(a)); return c; }
#else
template <class T> DEVICE T add_rn(T a, T b) { return a + b; }
template <class T> DEVICE T sub_rn(T a, T b) { return a - b; }
template <class T> DEVICE T mul_rn(T a, T b) { return a * b; }
template <class T> DEVICE T div_rn(T a, T b) { return a / b; }
template <class T> DEVICE T sqrt_rn(T a) { return sqrt(a); }
#endif

// --- bfloat16 and TF32 -----------------------------------------------------------------------------------------------

DEVICE float from_bf16(bf16 x) { return __uint_as_float((u32)x << 16); }

// To the nearest, ties to even; every NaN becomes 0x7fff.
DEVICE bf16 to_bf16(float x) {
#if defined(__CUDACC__) && TENSOR_CORES
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
#else
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (bf16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
#endif
}

// Two neighbours as the tensor cores take them: low in bits 0-15.
DEVICE u32 pack_bf16(float low, float high) {
#if defined(__CUDACC__) && TENSOR_CORES
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
#else
    return (u32)to_bf16(low) | (u32)to_bf16(high) << 16;
#endif
}

// What is stored, as the number it stands for, and the other way round, to the nearest.
DEVICE float value(float x) { return x; }
DEVICE double value(double x) { return x; }
DEVICE float value(bf16 x) { return from_bf16(x); }
DEVICE void set(float& to, float v) { to = v; }
DEVICE void set(double& to, double v) { to = v; }
DEVICE void set(bf16& to, float v) { to = to_bf16(v); }

// The bits of a float with 10 bits of mantissa: to the nearest, ties away from zero.
DEVICE u32 to_tf32(float x) {
#if defined(__CUDACC__) && TENSOR_CORES
    u32 y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
#else
    u32 bits = __float_as_uint(x);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
#endif
}

// --- reductions ------------------------------------------------------------------------------------------------------
// Of a fixed order, so the same bits every time. All 32 lanes, or all threads of a one-dimensional block of a multiple
// of 32, take part, and all get the result.

struct Sum { template <class T> static __device__ __forceinline__ T of(T a, T b) { return a + b; } };
struct Max { template <class T> static __device__ __forceinline__ T of(T a, T b) { return a > b ? a : b; } };

template <class Op, class T> DEVICE T warp_reduce(T v) {
#pragma unroll
    for (int far = 16; far > 0; far >>= 1) v = Op::of(v, __shfl_xor_sync(~0u, v, far));
    return v;
}

// scratch: shared, one T for each warp (32 always suffice); free for use again when this returns.
template <class Op, class T> DEVICE T block_reduce(T v, T* scratch) {
    v = warp_reduce<Op>(v);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = scratch[0];
    for (int warp = 1; warp < (int)blockDim.x / 32; warp++) v = Op::of(v, scratch[warp]);
    __syncthreads();
    return v;
}

template <class T> DEVICE T warp_sum(T v) { return warp_reduce<Sum>(v); }
template <class T> DEVICE T warp_max(T v) { return warp_reduce<Max>(v); }
template <class T> DEVICE T block_sum(T v, T* scratch) { return block_reduce<Sum>(v, scratch); }
template <class T> DEVICE T block_max(T v, T* scratch) { return block_reduce<Max>(v, scratch); }

// --- tensor cores ----------------------------------------------------------------------------------------------------
// One warp: d (16x8) += a (16xK) b (Kx8). With g = lane / 4 and t = lane % 4, a lane holds (PTX manual, mma.sync)
//
//   d[0..3]   (g, 2t) (g, 2t+1) (g+8, 2t) (g+8, 2t+1)
//   bf16      K = 16, two of k, k+1 in a register, k in its low half:
//             a[0..3] (g, 2t) (g+8, 2t) (g, 2t+8) (g+8, 2t+8)      b[0..1] (2t, g) (2t+8, g)
//   tf32      K = 8:  a[0..3] (g, t) (g+8, t) (g, t+4) (g+8, t+4)  b[0..1] (t, g) (t+4, g)

DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifndef __CUDACC__
    cu::mma_bf16(d, a, b);
#elif TENSOR_CORES
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}

DEVICE void mma_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifndef __CUDACC__
    cu::mma_tf32(d, a, b);
#elif TENSOR_CORES
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
}

// Four 8x8 matrices of 16-bit numbers (or 8x4 of 32-bit) from shared memory. Lane 8j + i brings the address of row i of
// matrix j, aligned to 16 bytes; register j of lane l receives elements (l / 4, 2 (l % 4)) and the next of matrix j, or
// with _trans (2 (l % 4), l / 4) and the one below.
DEVICE void ldmatrix_x4(u32 (&r)[4], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
#else
    cu::ldmatrix(r, 4, row, false);
#endif
}

DEVICE void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
#else
    cu::ldmatrix(r, 4, row, true);
#endif
}

// The same of two matrices; the addresses are those of lanes 0-15.
DEVICE void ldmatrix_x2(u32 (&r)[2], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
#else
    cu::ldmatrix(r, 2, row, false);
#endif
}

DEVICE void ldmatrix_x2_trans(u32 (&r)[2], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
#else
    cu::ldmatrix(r, 2, row, true);
#endif
}

// 16 bytes from global to shared memory, both aligned to 16, behind the thread's back: there after async_wait<n>(), which
// waits for all of this thread's groups but the last n, and for other threads after a barrier behind that. Zeros if not
// valid (src is then not read). Where the card has no such copies they are made at once.
DEVICE void async_copy16(void* shared, const void* src, bool valid) {
#ifndef __CUDACC__
    cu::async_copy(shared, src, 16, valid);
#elif TENSOR_CORES
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((u32)__cvta_generic_to_shared(shared)), "l"(src), "r"(valid ? 16 : 0) : "memory");
#else
    *reinterpret_cast<Four<u32>*>(shared) = valid ? *reinterpret_cast<const Four<u32>*>(src) : Four<u32>{0, 0, 0, 0};
#endif
}

DEVICE void async_commit() {
#ifndef __CUDACC__
    cu::async_commit();
#elif TENSOR_CORES
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int n> DEVICE void async_wait() {
#ifndef __CUDACC__
    cu::async_wait(n);
#elif TENSOR_CORES
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#endif
}
