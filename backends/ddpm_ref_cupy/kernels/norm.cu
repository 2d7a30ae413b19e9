// GroupNorm of images whose slabs fit into shared memory: each array is read once, in one launch each way.
// uses: norm.cuh

template <int V> DEVICE void forward(
    const stored* __restrict__ x, const real* __restrict__ gamma, const real* __restrict__ beta, stored* __restrict__ y,
    real* __restrict__ stats, int S, int C, int width, int wide, int how) {
    Slab<V> slab(S, C, width, wide, S);
    slab.fetch(x);
    real *part = slab.take_part(), *means = slab.take(slab.groups), *rs = slab.take(slab.groups);
    for (int c = slab.column; c < slab.channels; c += slab.stride) {
        real sums[V] = {};
        const stored* kept = slab.holds(slab.row, c);
#pragma unroll 1
        for (int stage = 0; stage < STAGES; stage++) {
#pragma unroll 2
            for (int left = slab.arrived(stage); left > 0; left--, kept += slab.held_line) {
                Lane<V> a = lane_at<V>(kept);
                for (int k = 0; k < V; k++) sums[k] += a.v[k];
            }
        }
        slab.put(part, c, sums);
    }
    __syncthreads();
    fold(part, means, width * slab.pitch, slab.groups, 1 / ((real)S * width));
    __syncthreads();
    for (int c = slab.column; c < slab.channels; c += slab.stride) {
        real squares[V] = {}, mean[V];
        int g[V];
        slab.find_groups(c, g);
        for (int k = 0; k < V; k++) mean[k] = means[g[k]];
        const stored* kept = slab.holds(slab.row, c);
#pragma unroll 4
        for (int left = slab.positions; left > 0; left--, kept += slab.held_line) {
            Lane<V> a = lane_at<V>(kept);
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
    if (how != STATS) apply<V, true>(slab, x, means, rs, gamma, beta, y, how);
}

extern "C" __global__ void __launch_bounds__(256, RESIDENT) norm_slab(
    const stored* __restrict__ x, const real* __restrict__ gamma, const real* __restrict__ beta, stored* __restrict__ y,
    real* __restrict__ stats, int S, int C, int width, int wide, int V, int how) {
    if (V == VECTOR && in_vectors(x, gamma, beta, y)) forward<VECTOR>(x, gamma, beta, y, stats, S, C, width, wide, how);
    else forward<1>(x, gamma, beta, y, stats, S, C, width, wide, how);
}

// Blocks of each slab that have come to their end. The last sets it back to 0 for the next launch: launches of one
// module must not overlap, and on the one stream there is they do not.
__device__ u32 arrived[1024];

// totals (2, C) = Σ over images of sums (2, N, C), of a slab's channels by the block of it that ends last, whichever that
// is: it adds in the same order.
template <int V> DEVICE void add_images(const Slab<V>& slab, const real* sums, real* totals) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        __threadfence();  // this block's sums, which it wrote before its last barrier, are there for who sees it counted
        u32* count = arrived + slab.first / slab.wide;
        last = atomicAdd(count, 1u) == (u32)slab.N - 1;
        if (last) *count = 0;
        __threadfence();
    }
    __syncthreads();
    if (!last) return;
    real* part = reinterpret_cast<real*>(slab.held);
    int both = 2 * slab.channels, across = min(both, (int)blockDim.x), parts = blockDim.x / across;
    int mine = threadIdx.x / across, column = threadIdx.x % across;
    for (int base = 0; base < both; base += across) {
        int c = base + column, which = c >= slab.channels;
        size_t place = slab.first + c - which * slab.channels;
        real sum = 0;
        if (mine < parts && c < both) {
            for (int n = mine; n < slab.N; n += parts)  // volatile: from where other blocks' writes are seen
                sum += *(const volatile real*)(sums + (size_t)(which * slab.N + n) * slab.C + place);
            part[mine * across + column] = sum;
        }
        __syncthreads();
        if (mine == 0 && c < both) {
            for (int i = 1; i < parts; i++) sum += part[i * across + column];
            totals[which * (size_t)slab.C + place] = sum;
        }  // and no barrier: with a second round there is one part, each thread's own
    }
}

template <int V> DEVICE void slab_back(
    const stored* __restrict__ x, const stored* __restrict__ dy, const real* __restrict__ gamma,
    const real* __restrict__ beta, const real* __restrict__ stats, const stored* __restrict__ plus,
    stored* __restrict__ dx, real* sums, real* __restrict__ totals, int S, int C, int width, int wide, int silu,
    int added) {
    Slab<V> slab(S, C, width, wide, S);
    slab.fetch(x, dy);
    Back<V> b(slab, stats);
    sums_back<V, true>(slab, b, x, dy, gamma, beta, sums, slab.n, slab.N, silu);
    apply_back<V, true>(slab, b, x, dy, gamma, beta, plus, dx, silu, added);
    add_images(slab, sums, totals);
}

// sums (2, N, C): Σ dh x̂, then Σ dh.  totals (2, C): dγ, then dβ.  added: whether plus is; else it is not read.
extern "C" __global__ void __launch_bounds__(256, RESIDENT_BACK) norm_slab_back(
    const stored* __restrict__ x, const stored* __restrict__ dy, const real* __restrict__ gamma,
    const real* __restrict__ beta, const real* __restrict__ stats, const stored* __restrict__ plus,
    stored* __restrict__ dx, real* sums, real* __restrict__ totals, int S, int C, int width, int wide, int V, int silu,
    int added) {
    if (V == VECTOR && in_vectors(x, dy, gamma, beta, plus, dx))
        slab_back<VECTOR>(x, dy, gamma, beta, stats, plus, dx, sums, totals, S, C, width, wide, silu, added);
    else
        slab_back<1>(x, dy, gamma, beta, stats, plus, dx, sums, totals, S, C, width, wide, silu, added);
}
