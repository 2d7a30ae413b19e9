// Dense layers so small that launches cost more than their arithmetic: one launch forward, one for the whole adjoint.
//
//   y = x W + b + plus        dx = dy Wᵀ + plus        dW = xᵀ dy        db = Σ dy
//
// x: (rows, C)   W: (C, D)   y: (rows, D)   plus: as y, or as dx, if with_plus
//
// A block of 256 threads makes 64 x 32 numbers of a product, 4 x 2 a thread, 32 of K at a time.
// how: operands rounded not at all (0), to tf32 (1), to bfloat16 (2); sums are made in `real`.

DEVICE float rounded(float v, int how) { return how == 1 ? __uint_as_float(to_tf32(v)) : how == 2 ? from_bf16(to_bf16(v)) : v; }
DEVICE double rounded(double v, int) { return v; }

enum { TI = 64, TJ = 32, TK = 32, THREADS = 256 };

// A pair of operands; rows so long that neither way of filling them meets much in a bank.
struct Operands {
    real a[TK][TI + 1], b[TK][TJ + 1];
};

// sums[r][s] += Σ_k A(i0 + 4 (thread / 16) + r, k) B(k, j0 + thread % 16 + 16 s) over k0 <= k < k1.
// A(i, k) is A[i lda + k], or with A_TURNED A[k lda + i]; B(k, j) is B[k ldb + j], or with B_TURNED B[j ldb + k].
// column: gets the sum of what this thread read of B, unrounded: without B_TURNED all of column thread % 32.
template <bool A_TURNED, bool B_TURNED, class TA, class TB>
DEVICE void multiply(const TA* __restrict__ A, int lda, const TB* __restrict__ B, int ldb, int I, int J, int k0, int k1,
                     int i0, int j0, int how, Operands& tile, real (&sums)[4][2], real& column) {
    int thread = threadIdx.x;
    for (int k = k0; k < k1; k += TK) {
        real a[TI * TK / THREADS], b[TJ * TK / THREADS];
#pragma unroll
        for (int m = 0; m < TI * TK / THREADS; m++) {
            int item = m * THREADS + thread;
            int i = i0 + (A_TURNED ? item % TI : item / TK), at = k + (A_TURNED ? item / TI : item % TK);
            a[m] = i < I && at < k1 ? value(A[A_TURNED ? (i64)at * lda + i : (i64)i * lda + at]) : real(0);
        }
#pragma unroll
        for (int m = 0; m < TJ * TK / THREADS; m++) {
            int item = m * THREADS + thread;
            int j = j0 + (B_TURNED ? item / TK : item % TJ), at = k + (B_TURNED ? item % TK : item / TJ);
            b[m] = j < J && at < k1 ? value(B[B_TURNED ? (i64)j * ldb + at : (i64)at * ldb + j]) : real(0);
            column += b[m];
        }
        __syncthreads();  // nobody reads the operands before these any more
#pragma unroll
        for (int m = 0; m < TI * TK / THREADS; m++) {
            int item = m * THREADS + thread;
            tile.a[A_TURNED ? item / TI : item % TK][A_TURNED ? item % TI : item / TK] = rounded(a[m], how);
        }
#pragma unroll
        for (int m = 0; m < TJ * TK / THREADS; m++) {
            int item = m * THREADS + thread;
            tile.b[B_TURNED ? item % TK : item / TJ][B_TURNED ? item / TK : item % TJ] = rounded(b[m], how);
        }
        __syncthreads();
#pragma unroll 8
        for (int at = 0; at < TK; at++) {
            real left = tile.b[at][thread % 16], right = tile.b[at][thread % 16 + 16];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                real v = tile.a[at][thread / 16 * 4 + r];
                sums[r][0] += v * left;
                sums[r][1] += v * right;
            }
        }
    }
}

// out(i, j) = sums + bias(j) + plus(i, j); bias and plus may be null.
template <class T>
DEVICE void store(T* __restrict__ out, int ldo, const real* __restrict__ bias, const T* __restrict__ plus, int I, int J,
                  int i0, int j0, const real (&sums)[4][2]) {
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int s = 0; s < 2; s++) {
            int i = i0 + threadIdx.x / 16 * 4 + r, j = j0 + threadIdx.x % 16 + 16 * s;
            if (i >= I || j >= J) continue;
            i64 at = (i64)i * ldo + j;
            real v = bias ? sums[r][s] + bias[j] : sums[r][s];
            set(out[at], plus ? v + value(plus[at]) : v);
        }
}

// Grid (rows / 64, D / 32).
extern "C" __global__ void __launch_bounds__(256) small_forward(
    const stored* __restrict__ x, const real* __restrict__ W, const real* __restrict__ b, const stored* __restrict__ plus,
    stored* __restrict__ y, int rows, int C, int D, int how, int with_plus) {
    __shared__ Operands tile;
    real sums[4][2] = {}, column = 0;
    int i0 = blockIdx.x * TI, j0 = blockIdx.y * TJ;
    multiply<false, false>(x, C, W, D, rows, D, 0, C, i0, j0, how, tile, sums, column);
    store(y, D, b, with_plus ? plus : nullptr, rows, D, i0, j0, sums);
}

// Blocks of each tile of dW that have come to their end. The last sets it back to 0 for the next launch: launches of one
// module must not overlap, and on the one stream there is they do not.
__device__ u32 arrived[1024];

// dW and db of a tile (i0, j0) of dW, from the parts (part, C + 1, D) that its blocks wrote, by the block that ends last.
DEVICE void add_parts(const real* parts, real* __restrict__ dW, real* __restrict__ db, int C, int D, int count, int i0, int j0) {
    bool with_db = i0 == 0;
    for (int item = threadIdx.x; item < (TI + with_db) * TJ; item += THREADS) {
        int i = item < TI * TJ ? i0 + item / TJ : C, j = j0 + item % TJ;
        if ((item < TI * TJ && i >= C) || j >= D) continue;
        real sum = 0;
        for (int part = 0; part < count; part++)  // volatile: from where other blocks' writes are seen
            sum += *(const volatile real*)(parts + ((i64)part * (C + 1) + i) * D + j);
        if (i < C) dW[(i64)i * D + j] = sum;
        else db[j] = sum;
    }
}

// Blocks of dW first, (C / 64) x (D / 32) tiles in `count` parts of the rows each; then those of dx, (rows / 64) x (C / 32).
// parts: (count, C + 1, D), dW's and below it db's.
extern "C" __global__ void __launch_bounds__(256) small_adjoint(
    const stored* __restrict__ x, const real* __restrict__ W, const stored* __restrict__ dy, const stored* __restrict__ plus,
    stored* __restrict__ dx, real* __restrict__ dW, real* __restrict__ db, real* parts, int rows, int C, int D, int count,
    int how, int with_plus) {
    __shared__ Operands tile;
    __shared__ u32 before;
    real sums[4][2] = {}, column = 0;
    int down = (C + TI - 1) / TI, across = (D + TJ - 1) / TJ, block = blockIdx.x, thread = threadIdx.x;
    if (block >= down * across * count) {
        block -= down * across * count;
        int columns = (C + TJ - 1) / TJ, i0 = block / columns * TI, j0 = block % columns * TJ;
        multiply<false, true>(dy, D, W, D, rows, C, 0, D, i0, j0, how, tile, sums, column);
        store(dx, C, nullptr, with_plus ? plus : nullptr, rows, C, i0, j0, sums);
        return;
    }
    int part = block % count, number = block / count, i0 = number / across * TI, j0 = number % across * TJ;
    int each = (rows + count - 1) / count, k0 = part * each, k1 = min(rows, k0 + each);
    multiply<true, false>(x, C, dy, D, C, D, k0, k1, i0, j0, how, tile, sums, column);
    real* mine = parts + (i64)part * (C + 1) * D;
    store<real>(mine, D, nullptr, nullptr, C, D, i0, j0, sums);
    if (i0 == 0) {
        __syncthreads();  // nobody reads the operands any more
        tile.b[thread / 32][thread % 32] = column;
        __syncthreads();
        if (thread < 32 && j0 + thread < D) {
            for (int warp = 1; warp < THREADS / 32; warp++) column += tile.b[warp][thread];
            mine[(i64)C * D + j0 + thread] = column;
        }
    }
    __syncthreads();
    if (thread == 0) {
        __threadfence();  // this block's part, written before the barrier, is there for who sees it counted
        before = atomicAdd(&arrived[number], 1u);
        if (before == (u32)count - 1) arrived[number] = 0;
        __threadfence();
    }
    __syncthreads();
    if (before == (u32)count - 1) add_parts(parts, dW, db, C, D, count, i0, j0);
}
