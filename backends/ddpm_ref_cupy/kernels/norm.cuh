// What the kernels of norm.cu and norm_chunks.cu share: GroupNorm, with SiLU if asked, on x (N, S, C), S positions of C
// channels, in groups of `width` neighbouring channels.
//
//   forward    y = h or h σ(h),  h = γ x̂ + β,  x̂ = (x - mean) r,  r = 1/√(var + ε)
//   adjoint    dh = dy or dy σ (1 + h (1 - σ))     dx = r (γ dh - ⟨γ dh⟩ - x̂ ⟨γ dh x̂⟩)     dγ = Σ dh x̂     dβ = Σ dh
//
// A block owns a slab: `wide` channels of one image, whole groups (the last slab may be narrower), so that what lies
// side by side in memory is read together; all positions, held in shared memory, or a chunk of them. V, VECTOR or 1:
// channels a thread reads at once. The grid is (slabs N, chunks), the slabs of an image being neighbours.
//
// What is held is copied there behind the threads' backs, all of it at once, and waited for in STAGES. For float arrays
// the adjoint then puts x - mean and dh in place of x and dy; of bfloat16, half as much, it reads and pulls back twice.
//
// Statistics: a mean first, then squares of what is left; the moments of parts are joined by their counts. Nothing
// cancels. Every sum has one order, so the bits repeat.

constexpr int RESIDENT = sizeof(real) == 4 ? 3 : 1;  // blocks of 256 threads on a processor, by their registers
constexpr bool SHORT = sizeof(stored) < sizeof(real);
#if __CUDA_ARCH__ == 900
constexpr int RESIDENT_BACK = RESIDENT;  // those of the adjoint
#else
constexpr int RESIDENT_BACK = SHORT ? 2 : RESIDENT;  // elsewhere than on Hopper three would spill
#endif
constexpr int VECTOR = SHORT ? 8 : 4;
constexpr int STAGES = 4;

// V neighbours as they lie in memory, and as they are computed with.
template <class T, int V> struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Vector { T v[V]; };
template <> struct Vector<bf16, 8> { Four<u32> pairs; };
template <int V> struct Lane { real v[V]; };

template <class T, int V> DEVICE void unpack(const Vector<T, V>& a, real (&v)[V]) {
    for (int k = 0; k < V; k++) v[k] = value(a.v[k]);
}
DEVICE void unpack(const Vector<bf16, 8>& a, real (&v)[8]) {
    const u32 pairs[4] = {a.pairs.x, a.pairs.y, a.pairs.z, a.pairs.w};
    for (int i = 0; i < 4; i++) v[2 * i] = __uint_as_float(pairs[i] << 16), v[2 * i + 1] = __uint_as_float(pairs[i] & ~0xffffu);
}
template <class T, int V> DEVICE void pack(Vector<T, V>& a, const real (&v)[V]) {
    for (int k = 0; k < V; k++) set(a.v[k], v[k]);
}
DEVICE void pack(Vector<bf16, 8>& a, const real (&v)[8]) {
    a.pairs = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}

// Whether these may be read and written in vectors: a view may begin anywhere.
template <class... T> DEVICE bool in_vectors(const T*... p) { return (((size_t)p | ...) & 15) == 0; }

template <int V, class T> DEVICE Vector<T, V> vector_at(const T* p) { return *reinterpret_cast<const Vector<T, V>*>(p); }
template <int V, class T> DEVICE Lane<V> lane_of(const Vector<T, V>& a) {
    Lane<V> lane;
    unpack(a, lane.v);
    return lane;
}
template <int V, class T> DEVICE Lane<V> lane_at(const T* p) { return lane_of<V>(vector_at<V>(p)); }
template <int V> DEVICE void set_lane(stored* p, const Lane<V>& lane) {
    Vector<stored, V> a;
    pack(a, lane.v);
    *reinterpret_cast<Vector<stored, V>*>(p) = a;
}

// What this block and this thread own. A thread owns V channels at `column`, + stride, … of every `rows`-th position,
// and never looks at another thread's: what is held in shared memory needs no barrier.
template <int V> struct Slab {
    int S, C, N, width, wide, n, first, channels, group, groups, from, to, rows, row, column, stride, pitch;
    int line, held_line, held_size;  // from one position of a thread to its next; from one held array to the next
    int positions, staged;           // this thread's, of each of its channels; and those of a stage
    size_t origin;
    stored* held;
    real* free;

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
        positions = max(0, to - from - row + rows - 1) / rows;
        staged = (positions + STAGES - 1) / STAGES;
        extern __shared__ __align__(16) real shared[];
        held = reinterpret_cast<stored*>(shared);
        free = shared;
    }

    __device__ real* take(int count) {
        real* p = free;
        free += count;
        return p;
    }
    __device__ size_t at(int s, int c) const { return origin + (size_t)s * C + c; }
    __device__ stored* holds(int s, int c) const { return held + s * channels + c; }

    // The groups of channels c … c + V - 1, by one division.
    __device__ void find_groups(int c, int (&of)[V]) const {
        int g = c / width, next = (g + 1) * width;
        for (int k = 0; k < V; k++) {
            if (c + k == next) g++, next += width;
            of[k] = g;
        }
    }

    // Starts copying all that this thread owns of x, and of dy, to where it is held.
    __device__ void fetch(const stored* __restrict__ x, const stored* __restrict__ dy = nullptr) {
        free = reinterpret_cast<real*>(held + (dy ? 2 : 1) * held_size);
#pragma unroll 1
        for (int stage = 0; stage < STAGES; stage++) {
            for (int c = column; c < channels; c += stride) {
                int s = stage * staged * rows + row;
                size_t i = at(s, c);
                stored* kept = holds(s, c);
#pragma unroll 4
                for (int left = stage_size(stage); left > 0; left--, i += line, kept += held_line) {
                    copy(kept, x + i);
                    if (dy) copy(kept + held_size, dy + i);
                }
            }
            async_commit();
        }
    }
    static __device__ void copy(stored* to, const stored* from) {
        constexpr int EACH = 16 / sizeof(stored);
        if (V < EACH) *to = *from;
        else for (int k = 0; k < V; k += EACH) async_copy16(to + k, from + k, true);
    }

    __device__ int stage_size(int stage) const { return min(staged, positions - stage * staged); }

    // How many of this thread's positions a stage has, once they are there.
    __device__ int arrived(int stage) const {
        if (stage == 0) async_wait<3>();
        else if (stage == 1) async_wait<2>();
        else if (stage == 2) async_wait<1>();
        else async_wait<0>();
        return stage_size(stage);
    }

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
        int g[V];
        slab.find_groups(c, g);
        Lane<V> factor = lane_at<V>(gamma + slab.first + c), term = lane_at<V>(beta + slab.first + c);
        for (int k = 0; k < V; k++) {
            mean[k] = means[g[k]];
            scale[k] = rs[g[k]] * factor.v[k];
            shift[k] = term.v[k];
        }
    }

    // From here on h = scale x + shift: without the mean, which takes registers. Only where x was rounded to bfloat16.
    __device__ void fold_mean() {
        for (int k = 0; k < V; k++) shift[k] -= mean[k] * scale[k];
    }
};

// --- forward ---------------------------------------------------------------------------------------------------------

enum { PLAIN, SILU, STATS };  // what the forward kernels are asked for: h, h σ(h), or the statistics and no y

template <int V, bool HELD> DEVICE void apply(
    const Slab<V>& slab, const stored* __restrict__ x, const real* means, const real* rs,
    const real* __restrict__ gamma, const real* __restrict__ beta, stored* __restrict__ y, int silu) {
    for (int c = slab.column; c < slab.channels; c += slab.stride) {
        Factors<V> f(slab, c, means, rs, gamma, beta);
        if (SHORT) f.fold_mean();
        size_t i = slab.at(slab.from + slab.row, c);
        const stored* kept = slab.holds(slab.row, c);
#pragma unroll 4
        for (int left = slab.positions; left > 0; left--, i += slab.line, kept += slab.held_line) {
            Lane<V> a = lane_at<V>(HELD ? kept : x + i);
            for (int k = 0; k < V; k++) {
                real h = (SHORT ? a.v[k] : a.v[k] - f.mean[k]) * f.scale[k] + f.shift[k];
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

// x becomes x - mean.
template <int V> DEVICE void centre(Lane<V>& x, const Factors<V>& f) {
    for (int k = 0; k < V; k++) x.v[k] -= f.mean[k];
}

// dy becomes dh; v: x - mean, or x once the mean is folded.
template <int V> DEVICE void pull_back(const Lane<V>& v, Lane<V>& dy, const Factors<V>& f, int silu) {
    for (int k = 0; k < V; k++) {
        real h = v.v[k] * f.scale[k] + f.shift[k], s = logistic(h);
        real slope = SHORT ? h * s - h * s * s + s : s + h * s * (1 - s);  // the first is an operation shorter
        dy.v[k] *= silu ? slope : 1;
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
    Slab<V>& slab, const Back<V>& b, const stored* __restrict__ x, const stored* __restrict__ dy,
    const real* __restrict__ gamma, const real* __restrict__ beta, real* sums, size_t at, size_t rows,
    int silu) {
    real *part_x = slab.take_part(), *part = slab.take_part();
    for (int c = slab.column; c < slab.channels; c += slab.stride) {
        Factors<V> f(slab, c, b.means, b.rs, gamma, beta);
        real dh_x[V] = {}, dh[V] = {};
        size_t i = slab.at(slab.from + slab.row, c);
        stored* kept = slab.holds(slab.row, c);
#pragma unroll 1
        for (int stage = HELD ? 0 : STAGES - 1; stage < STAGES; stage++) {
            int left = HELD ? slab.arrived(stage) : slab.positions;
#pragma unroll(HELD ? (SHORT ? 1 : 2) : 4)
            for (; left > 0; left--, i += slab.line, kept += slab.held_line) {
                Lane<V> v = lane_at<V>(HELD ? kept : x + i), d = lane_at<V>(HELD ? kept + slab.held_size : dy + i);
                centre<V>(v, f);
                pull_back<V>(v, d, f, silu);
                if (HELD && !SHORT) {
                    set_lane<V>(kept, v);
                    set_lane<V>(kept + slab.held_size, d);
                }
                for (int k = 0; k < V; k++) {
                    dh[k] += d.v[k];
                    dh_x[k] += d.v[k] * v.v[k];
                }
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

// dx of the block's positions, + plus if it is added, from b.dh_x and b.dh over all positions, which each thread has
// written for its channels.
template <int V, bool HELD> DEVICE void apply_back(
    const Slab<V>& slab, const Back<V>& b, const stored* __restrict__ x, const stored* __restrict__ dy,
    const real* __restrict__ gamma, const real* __restrict__ beta, const stored* __restrict__ plus,
    stored* __restrict__ dx, int silu, int added) {
    for (int c = threadIdx.x; c < slab.channels; c += blockDim.x) {
        b.dh_x[c] *= gamma[slab.first + c];
        b.dh[c] *= gamma[slab.first + c];
    }
    __syncthreads();
    fold(b.dh_x, b.mean_dh_x, slab.width, slab.groups, 1 / ((real)slab.S * slab.width));
    fold(b.dh, b.mean_dh, slab.width, slab.groups, 1 / ((real)slab.S * slab.width));
    __syncthreads();
    for (int c = slab.column; c < slab.channels; c += slab.stride) {
        size_t i = slab.at(slab.from + slab.row, c);
        Vector<stored, V> next;  // of plus, a position ahead
        if (added && slab.positions > 0) next = vector_at<V>(plus + i);
        Factors<V> f(slab, c, b.means, b.rs, gamma, beta);
        real slope[V], offset[V];
        int g[V];
        slab.find_groups(c, g);
        for (int k = 0; k < V; k++) {
            slope[k] = b.rs[g[k]] * b.rs[g[k]] * b.mean_dh_x[g[k]];
            offset[k] = b.rs[g[k]] * b.mean_dh[g[k]];
            if (SHORT) offset[k] -= f.mean[k] * slope[k];
        }
        if (SHORT) f.fold_mean();
        const stored* kept = slab.holds(slab.row, c);
#pragma unroll(HELD && SHORT ? 1 : 2)
        for (int left = slab.positions; left > 0; left--, i += slab.line, kept += slab.held_line) {
            Lane<V> v = lane_at<V>(HELD ? kept : x + i), d = lane_at<V>(HELD ? kept + slab.held_size : dy + i);
            if (!HELD && !SHORT) centre<V>(v, f);
            if (!HELD || SHORT) pull_back<V>(v, d, f, silu);
            for (int k = 0; k < V; k++)
                if (SHORT) d.v[k] = d.v[k] * f.scale[k] - (v.v[k] * slope[k] + offset[k]);
                else d.v[k] = d.v[k] * f.scale[k] - v.v[k] * slope[k] - offset[k];
            if (added) {
                Lane<V> p = lane_of<V>(next);
                for (int k = 0; k < V; k++) d.v[k] = add_rn(d.v[k], p.v[k]);
                if (left > 1) next = vector_at<V>(plus + i + slab.line);
            }
            set_lane<V>(dx + i, d);
        }
    }
}
