// What a whole training step and a whole reverse step need beside the operations: pictures from the data set on the
// device, and the counters that make one replay differ from the next.

// x_0 (N, H, W, C): pictures index[n] of a data set (.., H, W, C) of grey levels, mirrored where flip[n] is 1; flip may be
// null.  scale: the value of each level.
extern "C" __global__ void __launch_bounds__(256) step_images(
    const unsigned char* __restrict__ pixels, const int* __restrict__ index, const int* __restrict__ flip, int flips,
    const real* __restrict__ scale, real* __restrict__ x_0, i64 total, int H, int W, int C) {
    for (i64 i = first_index(); i < total; i += index_step()) {
        int c = (int)(i % C), w = (int)(i / C % W), h = (int)(i / ((i64)C * W) % H);
        i64 n = i / ((i64)C * W * H);
        int from = flips && flip[n] ? W - 1 - w : w;
        x_0[i] = scale[pixels[(((i64)index[n] * H + h) * W + from) * C + c]];
    }
}

DEVICE bool is_finite(double x) { return x - x == 0; }

// The gradient's first number becomes NaN where the loss is not finite: so does its norm, and the update changes nothing.
extern "C" __global__ void __launch_bounds__(1) step_guard(const double* __restrict__ mean, real* __restrict__ grads) {
    if (!is_finite(*mean)) grads[0] = (real)(*mean - *mean);
}

// Row k % rows of the ring: step k = counters[slot], loss, gradient norm, and the losses by quarter of t, sums and numbers.
// Then on to the next step, unless this one diverged: a replay does the same again and changes nothing again.
extern "C" __global__ void __launch_bounds__(1) step_finish(
    const double* __restrict__ mean, const double* __restrict__ norm, const double* __restrict__ quarters,
    int* __restrict__ counters, int slot, double* __restrict__ ring, int rows) {
    int k = counters[slot];
    double* row = ring + (size_t)(k % rows) * 11;
    row[0] = k;
    row[1] = *mean;
    row[2] = *norm;
    for (int i = 0; i < 8; i++) row[3 + i] = quarters[i];
    if (is_finite(*mean) && is_finite(*norm)) counters[slot] = k + 1;
}

// From t = counters[slot] to t - 1, and the same for each of N images.
extern "C" __global__ void __launch_bounds__(256) step_down(int* __restrict__ counters, int slot, int* __restrict__ t, int N) {
    int next = counters[slot] - 1;
    __syncthreads();
    if (threadIdx.x == 0) counters[slot] = next;
    for (int n = threadIdx.x; n < N; n += blockDim.x) t[n] = next;
}

// Many arrays into one vector, in order.  sources: their addresses.  first (arrays + 1,): where each begins, and the end.
// grid: one block for each 4096 numbers of the vector.
extern "C" __global__ void __launch_bounds__(256) step_gather(
    const u64* __restrict__ sources, const i64* __restrict__ first, int arrays, real* __restrict__ vector) {
    i64 from = (i64)blockIdx.x * 4096, to = from + 4096 < first[arrays] ? from + 4096 : first[arrays];
    int low = 0, high = arrays;  // first[low] <= from < first[high]
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (first[middle] <= from) low = middle;
        else high = middle;
    }
    for (i64 i = from + threadIdx.x; i < to; i += blockDim.x) {
        while (first[low + 1] <= i) low++;
        vector[i] = ((const real*)sources[low])[i - first[low]];
    }
}
