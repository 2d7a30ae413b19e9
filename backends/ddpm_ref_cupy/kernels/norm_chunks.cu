// GroupNorm of images that do not fit into shared memory: the positions in chunks, whose statistics come first, so that
// x is read twice, and once more for the adjoint's sums.
// uses: norm.cuh

// Moments of `so_far` numbers, their mean and Σ (x - mean)², joined by those of `more`.
DEVICE void join(real& mean, real& square, int so_far, real m, real q, int more) {
    real d = m - mean, share = (real)more / (so_far + more);
    mean += d * share;
    square += q + d * d * so_far * share;
}

// A thread takes four positions at a time, whose own mean it subtracts before it squares.
template <int V> DEVICE void chunk_moments(
    const stored* __restrict__ x, real* __restrict__ moments, int S, int C, int width, int wide, int chunk) {
    Slab<V> slab(S, C, width, wide, chunk);
    real *part = slab.take_part(), *part_square = slab.take_part();
    real *means = slab.take(slab.groups), *squares = slab.take(slab.groups);
    for (int c = slab.column; c < slab.channels; c += slab.stride) {
        real mean[V] = {}, square[V] = {};
        int n = 0, s = slab.from + slab.row;
        for (; s + 3 * slab.rows < slab.to; s += 4 * slab.rows, n += 4) {
            Lane<V> a[4];
            for (int i = 0; i < 4; i++) a[i] = lane_at<V>(x + slab.at(s + i * slab.rows, c));
            for (int k = 0; k < V; k++) {
                real m = ((a[0].v[k] + a[1].v[k]) + (a[2].v[k] + a[3].v[k])) / 4, q = 0;
                for (int i = 0; i < 4; i++) q += (a[i].v[k] - m) * (a[i].v[k] - m);
                join(mean[k], square[k], n, m, q, 4);
            }
        }
        for (; s < slab.to; s += slab.rows, n++) {
            Lane<V> a = lane_at<V>(x + slab.at(s, c));
            for (int k = 0; k < V; k++) join(mean[k], square[k], n, a.v[k], 0, 1);
        }
        for (int k = 0; k < V; k++) mean[k] *= n;
        slab.put(part, c, mean);
        slab.put(part_square, c, square);
    }
    __syncthreads();
    fold(part, means, width * slab.pitch, slab.groups, 1 / ((real)(slab.to - slab.from) * width));
    __syncthreads();
    int n = (slab.to - slab.from - slab.row + slab.rows - 1) / slab.rows;  // this thread's positions
    for (int c = slab.column; n > 0 && c < slab.channels; c += slab.stride)
        for (int k = 0; k < V; k++) {
            int i = (c + k) * slab.pitch + slab.row;
            real d = part[i] / n - means[(c + k) / width];
            part_square[i] += n * d * d;
        }
    __syncthreads();
    fold(part_square, squares, width * slab.pitch, slab.groups, 1);
    __syncthreads();
    int G = C / width;
    size_t o = ((size_t)slab.n * gridDim.y + blockIdx.y) * G + slab.group;
    for (int g = threadIdx.x; g < slab.groups; g += blockDim.x) {
        moments[o + g] = means[g];
        moments[(size_t)slab.N * gridDim.y * G + o + g] = squares[g];
    }
}

// moments (2, N, chunks, G): means, then Σ (x - mean)², over the chunk.
extern "C" __global__ void __launch_bounds__(256, 2) norm_moments(
    const stored* __restrict__ x, real* __restrict__ moments, int S, int C, int width, int wide, int V, int chunk) {
    if (V == VECTOR && in_vectors(x)) chunk_moments<VECTOR>(x, moments, S, C, width, wide, chunk);
    else chunk_moments<1>(x, moments, S, C, width, wide, chunk);
}

// A warp for each group joins the moments of all chunks.
template <int V> DEVICE void join_chunks(const Slab<V>& slab, const real* moments, real* means, real* rs, int chunk) {
    int G = slab.C / slab.width, chunks = gridDim.y, lane = threadIdx.x % 32;
    for (int g = threadIdx.x / 32; g < slab.groups; g += blockDim.x / 32) {
        const real* m = moments + (size_t)slab.n * chunks * G + slab.group + g;
        const real* q = m + (size_t)slab.N * chunks * G;
        real sum = 0, square = 0;
        for (int i = lane; i < chunks; i += 32) sum += m[(size_t)i * G] * min(chunk, slab.S - i * chunk);
        real mean = warp_sum(sum) / slab.S;
        for (int i = lane; i < chunks; i += 32) {
            real d = m[(size_t)i * G] - mean;
            square += q[(size_t)i * G] + d * d * min(chunk, slab.S - i * chunk) * slab.width;
        }
        square = warp_sum(square);
        if (lane == 0) {
            means[g] = mean;
            rs[g] = 1 / sqrt(square / ((real)slab.S * slab.width) + (real)1e-6);
        }
    }
}

template <int V> DEVICE void chunk_forward(
    const stored* __restrict__ x, const real* __restrict__ moments, const real* __restrict__ gamma,
    const real* __restrict__ beta, stored* __restrict__ y, real* __restrict__ stats, int S, int C, int width, int wide,
    int how, int chunk) {
    Slab<V> slab(S, C, width, wide, chunk);
    real *means = slab.take(slab.groups), *rs = slab.take(slab.groups);
    join_chunks(slab, moments, means, rs, chunk);
    __syncthreads();
    if (blockIdx.y == 0) store_stats(slab, means, rs, stats);
    if (how != STATS) apply<V, false>(slab, x, means, rs, gamma, beta, y, how);
}

extern "C" __global__ void __launch_bounds__(256, 2) norm_apply(
    const stored* __restrict__ x, const real* __restrict__ moments, const real* __restrict__ gamma,
    const real* __restrict__ beta, stored* __restrict__ y, real* __restrict__ stats, int S, int C, int width, int wide,
    int V, int how, int chunk) {
    if (V == VECTOR && in_vectors(x, gamma, beta, y))
        chunk_forward<VECTOR>(x, moments, gamma, beta, y, stats, S, C, width, wide, how, chunk);
    else chunk_forward<1>(x, moments, gamma, beta, y, stats, S, C, width, wide, how, chunk);
}

template <int V> DEVICE void chunk_sums(
    const stored* __restrict__ x, const stored* __restrict__ dy, const real* __restrict__ gamma,
    const real* __restrict__ beta, const real* __restrict__ stats, real* __restrict__ sums, int S, int C, int width,
    int wide, int silu, int chunk) {
    Slab<V> slab(S, C, width, wide, chunk);
    Back<V> b(slab, stats);
    size_t chunks = gridDim.y;
    sums_back<V, false>(slab, b, x, dy, gamma, beta, sums, slab.n * chunks + blockIdx.y, slab.N * chunks, silu);
}

// sums (2, N, chunks, C)
extern "C" __global__ void __launch_bounds__(256, 2) norm_sums(
    const stored* __restrict__ x, const stored* __restrict__ dy, const real* __restrict__ gamma,
    const real* __restrict__ beta, const real* __restrict__ stats, real* __restrict__ sums, int S, int C, int width,
    int wide, int V, int silu, int chunk) {
    if (V == VECTOR && in_vectors(x, dy, gamma, beta))
        chunk_sums<VECTOR>(x, dy, gamma, beta, stats, sums, S, C, width, wide, silu, chunk);
    else chunk_sums<1>(x, dy, gamma, beta, stats, sums, S, C, width, wide, silu, chunk);
}

template <int V> DEVICE void chunk_back(
    const stored* __restrict__ x, const stored* __restrict__ dy, const real* __restrict__ gamma,
    const real* __restrict__ beta, const real* __restrict__ stats, const real* __restrict__ sums,
    const stored* __restrict__ plus, stored* __restrict__ dx, int S, int C, int width, int wide, int silu, int added,
    int chunk) {
    Slab<V> slab(S, C, width, wide, chunk);
    Back<V> b(slab, stats);
    for (int c = threadIdx.x; c < slab.channels; c += blockDim.x) {
        b.dh_x[c] = sums[(size_t)slab.n * C + slab.first + c];
        b.dh[c] = sums[(size_t)(slab.N + slab.n) * C + slab.first + c];
    }
    apply_back<V, false>(slab, b, x, dy, gamma, beta, plus, dx, silu, added);
}

// sums (2, N, C).  added: whether plus is; else it is not read.
extern "C" __global__ void __launch_bounds__(256, 2) norm_back(
    const stored* __restrict__ x, const stored* __restrict__ dy, const real* __restrict__ gamma,
    const real* __restrict__ beta, const real* __restrict__ stats, const real* __restrict__ sums,
    const stored* __restrict__ plus, stored* __restrict__ dx, int S, int C, int width, int wide, int V, int silu,
    int added, int chunk) {
    if (V == VECTOR && in_vectors(x, dy, gamma, beta, plus, dx))
        chunk_back<VECTOR>(x, dy, gamma, beta, stats, sums, plus, dx, S, C, width, wide, silu, added, chunk);
    else chunk_back<1>(x, dy, gamma, beta, stats, sums, plus, dx, S, C, width, wide, silu, added, chunk);
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
