// L_simple and its gradient, and the embedding of t: a training step's two ends of the network.

// D elements an image, cut into chunks.  grid: N chunks, those of an image together.
//   sums (N, chunks)   Σ r², r = output - target, each square rounded as the array is, and summed in double
//   d_output           r by 2/D, by the loss's weight, by 1/N: one rounding each, as when NumPy takes these steps
extern "C" __global__ void __launch_bounds__(256) loss_squares(
    const real* __restrict__ output, const real* __restrict__ target, real* __restrict__ d_output,
    double* __restrict__ sums, int D, int chunk, real slope, real weight, real share) {
    __shared__ double scratch[32];
    int chunks = (D + chunk - 1) / chunk, n = blockIdx.x / chunks;
    int from = blockIdx.x % chunks * chunk, to = min(D, from + chunk);
    size_t image = (size_t)n * D;
    double sum = 0;
#pragma unroll 4
    for (int i = from + threadIdx.x; i < to; i += blockDim.x) {
        real r = output[image + i] - target[image + i];
        sum += mul_rn(r, r);
        d_output[image + i] = mul_rn(mul_rn(mul_rn(r, slope), weight), share);
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// From these sums, in one block:
//   losses (N,)        of each image: weight Σ r² / D
//   mean (1,)          part times their mean; part: these images' share of the whole batch
//   quarters (2, 4)    Σ losses and their number, for t ≤ T/4, …, t > 3T/4
// With `add` the last two are added to.
extern "C" __global__ void __launch_bounds__(256) loss_report(
    const double* __restrict__ sums, const int* __restrict__ t, double* __restrict__ losses,
    double* __restrict__ mean, double* __restrict__ quarters, int N, int chunks, int D, int T, double weight,
    double part, int add) {
    __shared__ double scratch[32];
    double total[9] = {};  // of all; then sums and counts of the quarters
    for (int n = threadIdx.x; n < N; n += blockDim.x) {
        double sum = 0;
        for (int k = 0; k < chunks; k++) sum += sums[(size_t)n * chunks + k];
        double loss = weight * (sum / D);
        losses[n] = loss;
        total[0] += loss;
        long long quarter = (4LL * t[n] - 1) / T;
#pragma unroll
        for (int q = 0; q < 4; q++)
            if (q == quarter) {
                total[1 + q] += loss;
                total[5 + q] += 1;
            }
    }
#pragma unroll
    for (int i = 0; i < 9; i++) {
        double sum = block_sum(total[i], scratch);
        if (threadIdx.x == 0) {
            double* to = i == 0 ? mean : quarters + i - 1;
            *to = (add ? *to : 0) + (i == 0 ? part * (sum / N) : sum);
        }
    }
}

// out (N, dim): of a table's rows, the (t - 1)-th.
extern "C" __global__ void __launch_bounds__(128) loss_rows(
    const real* __restrict__ table, const int* __restrict__ t, real* __restrict__ out, int N, int dim) {
    for (i64 i = first_index(); i < (i64)N * dim; i += index_step()) {
        int n = (int)(i / dim), k = (int)(i % dim);
        out[i] = table[(size_t)(t[n] - 1) * dim + k];
    }
}
