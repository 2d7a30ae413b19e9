// Kernels that are right, and some that are wrong on purpose, for tests/test_cuda_host.py.

extern "C" __global__ void __launch_bounds__(256) sums(const real* __restrict__ x, real* __restrict__ y, int n) {
    __shared__ real scratch[32];
    real sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[(i64)blockIdx.x * n + i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(128) turned(const float* x, float* y) {  // 128 numbers, last first, twice
    __shared__ float row[128];
    for (int half = 0; half < 2; half++) {
        row[threadIdx.x] = x[128 * half + threadIdx.x];
        __syncthreads();  // written
        y[128 * half + threadIdx.x] = row[127 - threadIdx.x];
        __syncthreads();  // read
    }
}

extern "C" __global__ void __launch_bounds__(64) divergent(float* y, int limit) {
    if ((int)threadIdx.x < limit) __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void __launch_bounds__(64) two_places(float* y) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(32) half_a_warp(float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(~0u, y[threadIdx.x], 1);
}

extern "C" __global__ void __launch_bounds__(64) shifted(const float* x, float* y, int by) {
    store4(y + 4 * threadIdx.x, load4(x + 4 * threadIdx.x + by));
}

extern "C" __global__ void __launch_bounds__(32) past_shared(float* y, int last) {
    __shared__ float few[32];
    for (int i = threadIdx.x; i <= last; i += 32) few[i] = 1;
    y[threadIdx.x] = few[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(32) dynamic(float* y, int n) {
    extern __shared__ __align__(16) float many[];
    y[threadIdx.x] = many[threadIdx.x];
    for (int i = threadIdx.x; i < n; i += 32) many[i] = 1;
}

extern "C" __global__ void __launch_bounds__(64) copied(const float* x, float* y, int waits, int valid) {
    extern __shared__ float copy[];
    async_copy16(copy + 4 * threadIdx.x, x + 4 * threadIdx.x, threadIdx.x < (unsigned)valid);
    async_commit();
    async_copy16(copy + 256 + 4 * threadIdx.x, x + 4 * threadIdx.x, true);
    async_commit();
    if (waits == 1) async_wait<1>();
    if (waits == 2) async_wait<0>();
    __syncthreads();
    for (int i = threadIdx.x; i < 512; i += 64) y[i] = copy[i ^ 64];
}

extern "C" __global__ void __launch_bounds__(32) product(const float* a, const float* b, float* d, int as_bf16) {
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    float sum[4] = {0, 0, 0, 0};
    if (as_bf16) {  // a (16, 16), b (16, 8)
        __shared__ bf16 A[16][24], B[16][8];
        for (int i = lane; i < 256; i += 32) A[i / 16][i % 16] = to_bf16(a[i]);
        for (int i = lane; i < 128; i += 32) B[i / 8][i % 8] = to_bf16(b[i]);
        __syncwarp();
        u32 x[4], y[2];
        ldmatrix_x4(x, &A[lane % 16][lane / 16 * 8]);
        ldmatrix_x2_trans(y, &B[lane % 16][0]);
        mma_bf16(sum, x, y);
    } else {  // a (16, 8), b (8, 8)
        const u32 x[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[g * 8 + 64 + t]), to_tf32(a[g * 8 + t + 4]),
                          to_tf32(a[g * 8 + 64 + t + 4])};
        const u32 y[2] = {to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])};
        mma_tf32(sum, x, y);
    }
    for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

extern "C" __global__ void __launch_bounds__(32) lanes(int* y) {
    const int v = 100 + threadIdx.x;
    y[threadIdx.x] = __shfl_sync(~0u, v, 5);
    y[32 + threadIdx.x] = __shfl_xor_sync(~0u, v, 3);
    y[64 + threadIdx.x] = __shfl_down_sync(~0u, v, 4);
    y[96 + threadIdx.x] = __shfl_up_sync(~0u, v, 4);
    y[128 + threadIdx.x] = __shfl_sync(~0u, v, 2, 8);
    y[160 + threadIdx.x] = (int)__ballot_sync(~0u, threadIdx.x % 3 == 0);
    y[192 + threadIdx.x] = warp_max(v % 17);
}

extern "C" __global__ void __launch_bounds__(128) where(int* y) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    y[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1000 * block + thread;
}

extern "C" __global__ void converted(const float* x, unsigned short* one, unsigned* two, unsigned* tf32, int n) {
    for (int i = (int)first_index(); i < n; i += (int)index_step()) {
        one[i] = to_bf16(x[i]);
        two[i] = pack_bf16(x[i], x[n - 1 - i]);
        tf32[i] = to_tf32(x[i]);
    }
}
