// What stands around a matrix product: biases, their gradients, rounding of the operands.

// y (rows, D) += b, (D) or one row of b for every `rows_each` rows of y; and += plus, like y, if with_plus.
extern "C" __global__ void __launch_bounds__(256) add_bias(
    stored* __restrict__ y, const real* __restrict__ b, const stored* __restrict__ plus, long long rows, int D,
    long long rows_each, int with_plus) {
    i64 total = rows * D;
    for (i64 o = first_index(); o < total; o += index_step()) {
        i64 row = o / D;
        real v = value(y[o]) + b[row / rows_each * D + o % D];
        set(y[o], with_plus ? v + value(plus[o]) : v);
    }
}

constexpr int WIDE = 16 / sizeof(stored);  // numbers in 16 bytes
template <class T> struct alignas(16) Wide { T v[WIDE]; };

// The same 16 bytes at a time: D counts these.
extern "C" __global__ void __launch_bounds__(256) add_bias_wide(
    stored* __restrict__ y, const real* __restrict__ b, const stored* __restrict__ plus, long long rows, int D,
    long long rows_each, int with_plus) {
    i64 total = rows * D;
    for (i64 o = first_index(); o < total; o += index_step()) {
        i64 row = o / D;
        Wide<stored> v = reinterpret_cast<const Wide<stored>*>(y)[o], p = {};
        Wide<real> s = reinterpret_cast<const Wide<real>*>(b)[row / rows_each * D + o % D];
        if (with_plus) p = reinterpret_cast<const Wide<stored>*>(plus)[o];
#pragma unroll
        for (int k = 0; k < WIDE; k++) {
            real sum = value(v.v[k]) + s.v[k];
            set(v.v[k], with_plus ? sum + value(p.v[k]) : sum);
        }
        reinterpret_cast<Wide<stored>*>(y)[o] = v;
    }
}

// The sum over rows first <= row < end of column blockIdx.x * 32 + lane, to threads of the first warp that have one.
DEVICE real column_sum(const stored* __restrict__ dy, i64 first, i64 end, int D, real (&part)[8][33]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, d = blockIdx.x * 32 + lane;
    real sum = 0;
    if (d < D)
        for (i64 row = first + warp; row < end; row += 8) sum += value(dy[row * D + d]);
    part[warp][lane] = sum;
    __syncthreads();
    if (warp == 0)
        for (int w = 1; w < 8; w++) sum += part[w][lane];
    return sum;
}

// sums (parts, D): of the rows of each part of dy (parts, rows, D). Grid (D / 32, parts); 32 columns and 8 rows at a time.
extern "C" __global__ void __launch_bounds__(256) part_sums(
    const stored* __restrict__ dy, real* __restrict__ sums, int rows, int D) {
    __shared__ real part[8][33];
    int d = blockIdx.x * 32 + threadIdx.x;
    real sum = column_sum(dy, (i64)blockIdx.y * rows, (i64)(blockIdx.y + 1) * rows, D, part);
    if (threadIdx.x < 32 && d < D) sums[(i64)blockIdx.y * D + d] = sum;
}

// Blocks of 32 columns each that have come to their end. The last sets it back to 0 for the next launch: launches of one
// module must not overlap, and on the one stream there is they do not.
__device__ u32 arrived[1024];

// total (D): the sum of all rows of dy (rows, D); `each` rows a block, added up by the one of their columns that ends last.
extern "C" __global__ void __launch_bounds__(256) column_sums(
    const stored* __restrict__ dy, real* sums, real* __restrict__ total, long long rows, long long each, int D) {
    __shared__ real part[8][33];
    __shared__ u32 before;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, d = blockIdx.x * 32 + lane;
    i64 first = blockIdx.y * each;
    real sum = column_sum(dy, first, min(rows, first + each), D, part);
    if (warp == 0 && d < D) sums[(i64)blockIdx.y * D + d] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();  // what this block wrote before the barrier is there for who sees it counted
        before = atomicAdd(&arrived[blockIdx.x], 1u);
        if (before == gridDim.y - 1) arrived[blockIdx.x] = 0;
        __threadfence();
    }
    __syncthreads();
    if (before != gridDim.y - 1) return;
    sum = 0;
    if (d < D)
        for (int p = warp; p < (int)gridDim.y; p += 8)
            sum += *(const volatile real*)(sums + (i64)p * D + d);  // from where other blocks' writes are seen
    part[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && d < D) {
        for (int w = 1; w < 8; w++) sum += part[w][lane];
        total[d] = sum;
    }
}

// To bfloat16, to the nearest.
extern "C" __global__ void __launch_bounds__(256) round_bf16(
    const float* __restrict__ x, unsigned short* __restrict__ y, long long size) {
    for (i64 o = first_index(); o < size; o += index_step()) y[o] = to_bf16(x[o]);
}

// The same four at a time: size counts groups of four.
extern "C" __global__ void __launch_bounds__(256) round4_bf16(
    const float* __restrict__ x, unsigned short* __restrict__ y, long long size) {
    for (i64 o = first_index(); o < size; o += index_step()) {
        Four<float> v = load4(x + 4 * o);
        store4(y + 4 * o, Four<bf16>{to_bf16(v.x), to_bf16(v.y), to_bf16(v.z), to_bf16(v.w)});
    }
}
