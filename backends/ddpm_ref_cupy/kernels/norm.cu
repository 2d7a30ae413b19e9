// GroupNorm of images whose slabs fit into shared memory: each array is read once. Also sums over many rows.
// uses: norm.cuh

template <int V> DEVICE void forward(
    const real* __restrict__ x, const real* __restrict__ gamma, const real* __restrict__ beta, real* __restrict__ y,
    real* __restrict__ stats, int S, int C, int width, int wide, int silu) {
    Slab<V> slab(S, C, width, wide, S);
    slab.take(S * slab.channels);
    real *part = slab.take_part(), *means = slab.take(slab.groups), *rs = slab.take(slab.groups);
    for (int c = slab.column; c < slab.channels; c += slab.stride) {
        real sums[V] = {};
#pragma unroll 8
        for (int s = slab.row; s < S; s += slab.rows) {
            Lane<V> a = lane_at<V>(x + slab.at(s, c));
            set_lane<V>(slab.holds(s, c), a);
            for (int k = 0; k < V; k++) sums[k] += a.v[k];
        }
        slab.put(part, c, sums);
    }
    __syncthreads();
    fold(part, means, width * slab.pitch, slab.groups, 1 / ((real)S * width));
    __syncthreads();
    for (int c = slab.column; c < slab.channels; c += slab.stride) {
        real squares[V] = {}, mean[V];
        for (int k = 0; k < V; k++) mean[k] = means[(c + k) / width];
#pragma unroll 4
        for (int s = slab.row; s < S; s += slab.rows) {
            Lane<V> a = lane_at<V>(slab.holds(s, c));
            for (int k = 0; k < V; k++) squares[k] += (a.v[k] - mean[k]) * (a.v[k] - mean[k]);
        }
        slab.put(part, c, squares);
    }
    __syncthreads();
    fold(part, rs, width * slab.pitch, slab.groups, 1 / ((real)S * width));
    __syncthreads();
    for (int g = threadIdx.x; g < slab.groups; g += blockDim.x) rs[g] = 1 / sqrt(rs[g] + (real)1e-6);
    __syncthreads();
    store_stats(slab, means, rs, stats);
    apply<V, true>(slab, x, means, rs, gamma, beta, y, silu);
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT) norm_slab(
    const real* __restrict__ x, const real* __restrict__ gamma, const real* __restrict__ beta, real* __restrict__ y,
    real* __restrict__ stats, int S, int C, int width, int wide, int V, int silu) {
    if (V == 4 && in_fours(x, y)) forward<4>(x, gamma, beta, y, stats, S, C, width, wide, silu);
    else forward<1>(x, gamma, beta, y, stats, S, C, width, wide, silu);
}

template <int V> DEVICE void slab_back(
    const real* __restrict__ x, const real* __restrict__ dy, const real* __restrict__ gamma, const real* __restrict__ beta,
    const real* __restrict__ stats, real* __restrict__ dx, real* __restrict__ sums, int S, int C, int width, int wide,
    int silu) {
    Slab<V> slab(S, C, width, wide, S);
    slab.take(2 * S * slab.channels);
    Back<V> b(slab, stats);
    sums_back<V, true>(slab, b, x, dy, gamma, beta, sums, slab.n, slab.N, silu);
    apply_back<V, true>(slab, b, x, dy, gamma, beta, dx, silu);
}

// sums (2, N, C): Σ dh x̂, then Σ dh.
extern "C" __global__ void __launch_bounds__(256, RESIDENT) norm_slab_back(
    const real* __restrict__ x, const real* __restrict__ dy, const real* __restrict__ gamma, const real* __restrict__ beta,
    const real* __restrict__ stats, real* __restrict__ dx, real* __restrict__ sums, int S, int C, int width, int wide,
    int V, int silu) {
    if (V == 4 && in_fours(x, dy, dx)) slab_back<4>(x, dy, gamma, beta, stats, dx, sums, S, C, width, wide, silu);
    else slab_back<1>(x, dy, gamma, beta, stats, dx, sums, S, C, width, wide, silu);
}

// to[i, c] = Σ_r from[i, r, c], r < rows: 32 columns a block, eight sums for each.  grid (⌈C/32⌉, I)
extern "C" __global__ void __launch_bounds__(256) norm_columns(
    const real* __restrict__ from, real* __restrict__ to, int rows, int C) {
    __shared__ real part[8][32];
    int lane = threadIdx.x % 32, eighth = threadIdx.x / 32, c = blockIdx.x * 32 + lane;
    real sum = 0;
    for (int r = eighth; c < C && r < rows; r += 8) sum += from[((size_t)blockIdx.y * rows + r) * C + c];
    part[eighth][lane] = sum;
    __syncthreads();
    if (eighth == 0 && c < C) {
        for (int i = 1; i < 8; i++) sum += part[i][lane];
        to[(size_t)blockIdx.y * C + c] = sum;
    }
}
