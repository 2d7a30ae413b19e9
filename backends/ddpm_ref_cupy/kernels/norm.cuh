// What the kernels of norm.cu and norm_chunks.cu share: GroupNorm, with SiLU if asked, on x (N, S, C), S positions of C
// channels, in groups of `width` neighbouring channels.
//
//   forward    y = h or h σ(h),  h = γ x̂ + β,  x̂ = (x - mean) r,  r = 1/√(var + ε)
//   adjoint    dh = dy or dy σ (1 + h (1 - σ))     dx = r (γ dh - ⟨γ dh⟩ - x̂ ⟨γ dh x̂⟩)     dγ = Σ dh x̂     dβ = Σ dh
//
// A block owns a slab: `wide` channels of one image, whole groups (the last slab may be narrower), so that what lies
// side by side in memory is read together; all positions, held in shared memory, or a chunk of them. V, 4 or 1:
// channels a thread reads at once. The grid is (slabs N, chunks), the slabs of an image being neighbours.
//
// Statistics: a mean first, then squares of what is left; the moments of parts are joined by their counts. Nothing
// cancels. Every sum has one order, so the bits repeat.

constexpr int RESIDENT = sizeof(real) == 4 ? 3 : 1;  // blocks of 256 threads on a processor, by their registers

template <int V> struct alignas(V * sizeof(real) < 16 ? V * sizeof(real) : 16) Lane { real v[V]; };

// Whether these may be read and written in fours: a view may begin anywhere.
DEVICE bool in_fours(const void* a, const void* b, const void* c = nullptr) {
    return (((size_t)a | (size_t)b | (size_t)c) & 15) == 0;
}

template <int V> DEVICE Lane<V> lane_at(const real* p) { return *reinterpret_cast<const Lane<V>*>(p); }
template <int V> DEVICE void set_lane(real* p, const Lane<V>& a) { *reinterpret_cast<Lane<V>*>(p) = a; }

// What this block and this thread own. A thread owns V channels at `column`, + stride, … of every `rows`-th position,
// and never looks at another thread's: what is held in shared memory needs no barrier.
template <int V> struct Slab {
    int S, C, N, width, wide, n, first, channels, group, groups, from, to, rows, row, column, stride, pitch;
    int line, held_line, held_size;  // from one position of a thread to its next; from one held array to the next
    size_t origin;
    real *held, *free;

    __device__ Slab(int S, int C, int width, int wide, int chunk) : S(S), C(C), width(width), wide(wide) {
        int slabs = (C + wide - 1) / wide;
        N = gridDim.x / slabs;
        n = blockIdx.x / slabs;
        first = blockIdx.x % slabs * wide;
        channels = min(wide, C - first);
        group = first / width;
        groups = channels / width;
        from = blockIdx.y * chunk;
        to = min(S, from + chunk);
        int across = min(channels / V, (int)blockDim.x);
        stride = across * V;
        rows = blockDim.x / across;
        row = threadIdx.x / across;
        column = row < rows ? (int)threadIdx.x % across * V : channels;  // threads left over own nothing
        pitch = rows | 1;  // odd, so that neither a channel's rows nor its neighbours meet in one bank
        origin = (size_t)n * S * C + first;
        line = rows * C;
        held_line = rows * channels;
        held_size = S * channels;
        extern __shared__ __align__(16) real shared[];
        held = free = shared;
    }

    __device__ real* take(int count) {
        real* p = free;
        free += count;
        return p;
    }
    __device__ size_t at(int s, int c) const { return origin + (size_t)s * C + c; }
    __device__ real* holds(int s, int c) const { return held + s * channels + c; }

    // A thread's own sums of channels c … c + V - 1, where `fold` finds them: part[channel][row].
    __device__ void put(real* part, int c, const real (&sums)[V]) const {
        for (int k = 0; k < V; k++) {
            part[(c + k) * pitch + row] = sums[k];
            if (row == 0 && pitch > rows) part[(c + k) * pitch + rows] = 0;
        }
    }
    __device__ real* take_part() { return take(channels * pitch); }
};

// to[i] = factor Σ_j from[i * length + j], i < count, by all threads of the block: as many for each sum as there are.
static __device__ void fold(const real* from, real* to, int length, int count, real factor) {
    int lanes = 32;
    while (lanes > 1 && lanes * count > (int)blockDim.x) lanes >>= 1;
    int at_once = blockDim.x / lanes, lane = threadIdx.x % lanes;
    for (int base = 0; base < count; base += at_once) {
        int i = base + threadIdx.x / lanes;
        real sum = 0;
        if (i < count)
            for (int j = lane; j < length; j += lanes) sum += from[i * length + j];
        for (int far = lanes >> 1; far > 0; far >>= 1) sum += __shfl_xor_sync(~0u, sum, far);
        if (i < count && lane == 0) to[i] = sum * factor;
    }
}

DEVICE float logistic(float h) { return __fdividef(1.0f, 1.0f + __expf(-h)); }
DEVICE double logistic(double h) { return 1.0 / (1.0 + exp(-h)); }

// Of a thread's V channels: mean, r γ and β.
template <int V> struct Factors {
    real mean[V], scale[V], shift[V];

    __device__ Factors(
        const Slab<V>& slab, int c, const real* means, const real* rs, const real* gamma, const real* beta) {
        for (int k = 0; k < V; k++) {
            int g = (c + k) / slab.width;
            mean[k] = means[g];
            scale[k] = rs[g] * gamma[slab.first + c + k];
            shift[k] = beta[slab.first + c + k];
        }
    }
};

// --- forward ---------------------------------------------------------------------------------------------------------

template <int V, bool HELD> DEVICE void apply(
    const Slab<V>& slab, const real* __restrict__ x, const real* means, const real* rs,
    const real* __restrict__ gamma, const real* __restrict__ beta, real* __restrict__ y, int silu) {
    for (int c = slab.column; c < slab.channels; c += slab.stride) {
        Factors<V> f(slab, c, means, rs, gamma, beta);
        int s = slab.from + slab.row;
        size_t i = slab.at(s, c);
        const real* kept = slab.holds(s, c);
#pragma unroll 4
        for (; s < slab.to; s += slab.rows, i += slab.line, kept += slab.held_line) {
            Lane<V> a = HELD ? lane_at<V>(kept) : lane_at<V>(x + i);
            for (int k = 0; k < V; k++) {
                real h = (a.v[k] - f.mean[k]) * f.scale[k] + f.shift[k];
                a.v[k] = silu ? h * logistic(h) : h;
            }
            set_lane<V>(y + i, a);
        }
    }
}

// stats (2, N, G): means, then r.
template <int V> DEVICE void store_stats(const Slab<V>& slab, const real* means, const real* rs, real* stats) {
    int G = slab.C / slab.width;
    for (int g = threadIdx.x; g < slab.groups; g += blockDim.x) {
        stats[(size_t)slab.n * G + slab.group + g] = means[g];
        stats[(size_t)(slab.N + slab.n) * G + slab.group + g] = rs[g];
    }
}

// --- adjoint ---------------------------------------------------------------------------------------------------------

// v = x - mean, and dh in dy's place.
template <int V> DEVICE void pull_back(Lane<V>& v, Lane<V>& dy, const Factors<V>& f, int silu) {
    for (int k = 0; k < V; k++) {
        v.v[k] -= f.mean[k];
        if (silu) {
            real h = v.v[k] * f.scale[k] + f.shift[k], s = logistic(h);
            dy.v[k] *= s + h * s * (1 - s);
        }
    }
}

// What a block of the adjoint has in shared memory behind what it holds.
template <int V> struct Back {
    real *means, *rs, *mean_dh_x, *mean_dh;  // of each group
    real *dh_x, *dh;                         // Σ dh x̂ and Σ dh of each channel

    __device__ Back(Slab<V>& slab, const real* stats) {
        means = slab.take(slab.groups), rs = slab.take(slab.groups);
        mean_dh_x = slab.take(slab.groups), mean_dh = slab.take(slab.groups);
        dh_x = slab.take(slab.channels), dh = slab.take(slab.channels);
        int G = slab.C / slab.width;
        for (int g = threadIdx.x; g < slab.groups; g += blockDim.x) {
            means[g] = stats[(size_t)slab.n * G + slab.group + g];
            rs[g] = stats[(size_t)(slab.N + slab.n) * G + slab.group + g];
        }
        __syncthreads();
    }
};

// Σ dh x̂ and Σ dh over the block's positions into b and into row `at` of sums (2, rows, C).
template <int V, bool HELD> DEVICE void sums_back(
    Slab<V>& slab, const Back<V>& b, const real* __restrict__ x, const real* __restrict__ dy,
    const real* __restrict__ gamma, const real* __restrict__ beta, real* sums, size_t at, size_t rows,
    int silu) {
    real *part_x = slab.take_part(), *part = slab.take_part();
    for (int c = slab.column; c < slab.channels; c += slab.stride) {
        Factors<V> f(slab, c, b.means, b.rs, gamma, beta);
        real dh_x[V] = {}, dh[V] = {};
        int s = slab.from + slab.row;
        size_t i = slab.at(s, c);
        real* kept = slab.holds(s, c);
#pragma unroll 4
        for (; s < slab.to; s += slab.rows, i += slab.line, kept += slab.held_line) {
            Lane<V> v = lane_at<V>(x + i), d = lane_at<V>(dy + i);
            pull_back<V>(v, d, f, silu);
            if (HELD) {
                set_lane<V>(kept, v);
                set_lane<V>(kept + slab.held_size, d);
            }
            for (int k = 0; k < V; k++) {
                dh[k] += d.v[k];
                dh_x[k] += d.v[k] * v.v[k];
            }
        }
        slab.put(part_x, c, dh_x);
        slab.put(part, c, dh);
    }
    __syncthreads();
    fold(part_x, b.dh_x, slab.pitch, slab.channels, 1);
    fold(part, b.dh, slab.pitch, slab.channels, 1);
    __syncthreads();
    for (int c = threadIdx.x; c < slab.channels; c += blockDim.x) {
        b.dh_x[c] *= b.rs[c / slab.width];
        sums[at * slab.C + slab.first + c] = b.dh_x[c];
        sums[(rows + at) * slab.C + slab.first + c] = b.dh[c];
    }
}

// dx of the block's positions, from b.dh_x and b.dh over all positions, which each thread has written for its channels.
template <int V, bool HELD> DEVICE void apply_back(
    const Slab<V>& slab, const Back<V>& b, const real* __restrict__ x, const real* __restrict__ dy,
    const real* __restrict__ gamma, const real* __restrict__ beta, real* __restrict__ dx, int silu) {
    for (int c = threadIdx.x; c < slab.channels; c += blockDim.x) {
        b.dh_x[c] *= gamma[slab.first + c];
        b.dh[c] *= gamma[slab.first + c];
    }
    __syncthreads();
    fold(b.dh_x, b.mean_dh_x, slab.width, slab.groups, 1 / ((real)slab.S * slab.width));
    fold(b.dh, b.mean_dh, slab.width, slab.groups, 1 / ((real)slab.S * slab.width));
    __syncthreads();
    for (int c = slab.column; c < slab.channels; c += slab.stride) {
        Factors<V> f(slab, c, b.means, b.rs, gamma, beta);
        real slope[V], offset[V];
        for (int k = 0; k < V; k++) {
            int g = (c + k) / slab.width;
            slope[k] = b.rs[g] * b.rs[g] * b.mean_dh_x[g];
            offset[k] = b.rs[g] * b.mean_dh[g];
        }
        int s = slab.from + slab.row;
        size_t i = slab.at(s, c);
        const real* kept = slab.holds(s, c);
#pragma unroll 2
        for (; s < slab.to; s += slab.rows, i += slab.line, kept += slab.held_line) {
            Lane<V> v = lane_at<V>(HELD ? kept : x + i), d = lane_at<V>(HELD ? kept + slab.held_size : dy + i);
            if (!HELD) pull_back<V>(v, d, f, silu);
            for (int k = 0; k < V; k++) d.v[k] = d.v[k] * f.scale[k] - v.v[k] * slope[k] - offset[k];
            set_lane<V>(dx + i, d);
        }
    }
}
