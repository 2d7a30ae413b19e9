// 3x3 convolution of stride 1 on tensor cores, without columns: a tile of pixels with its rim lies in shared memory, and
// serves all nine taps. NHWC, sums in float32; x of bf16, or of float that is rounded to tf32 once it lies in shared memory;
// y is `stored`.
//
//   T         an operand: bf16, or u32 for the bits of a tf32
//   tile      `images` whole images, or R x Q pixels of one; its rim makes that (R+2) x (Q+2) places an image
//   place     where in shared memory a pixel of the rimmed tile lies: images x (R+2) x (Q+2) of them
//
// Rows in shared memory are 16 bytes, or for fragments read by single words 32, longer than a multiple of 128: the eight
// rows of an ldmatrix, and the 32 words of a fragment, never meet in a bank.

template <class T> struct Operand;  // as x holds it; numbers in 16 bytes; of K in one mma; more in a row of filters
template <> struct Operand<bf16> {
    typedef bf16 Raw;
    enum { EACH = 8, DEPTH = 16, LONGER = 8 };
};
template <> struct Operand<u32> {
    typedef float Raw;
    enum { EACH = 4, DEPTH = 8, LONGER = 8 };
};

// 16 bytes of x in shared memory become operands.
DEVICE void settle16(bf16*) {}
DEVICE void settle16(u32* p) {
    Four<float> v = load4(reinterpret_cast<float*>(p));
    store4(p, Four<u32>{to_tf32(v.x), to_tf32(v.y), to_tf32(v.z), to_tf32(v.w)});
}

// The numbers of 16 bytes as they came, added to sums.
DEVICE void add16(float (&sums)[4], const u32* p) {
    Four<float> v = load4(reinterpret_cast<const float*>(p));
    sums[0] += v.x, sums[1] += v.y, sums[2] += v.z, sums[3] += v.w;
}
DEVICE void add16(float (&sums)[8], const bf16* p) {
    Four<u32> v = load4(reinterpret_cast<const u32*>(p));
    u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sums[2 * i] += from_bf16((bf16)pairs[i]);
        sums[2 * i + 1] += from_bf16((bf16)(pairs[i] >> 16));
    }
}

// Tiles of an image batch, and where tile `index` lies.
struct Geometry {
    int N, H, W, images, R, Q, n, row, column;
    __device__ __forceinline__ Geometry(int N, int H, int W, int images, int R, int Q, int index)
        : N(N), H(H), W(W), images(images), R(R), Q(Q) {
        int across = (W + Q - 1) / Q, each = images > 1 ? 1 : (H + R - 1) / R * across;
        n = index / each * images;
        row = index % each / across * R;
        column = index % each % across * Q;
    }
    __device__ __forceinline__ int places() const { return images * (R + 2) * (Q + 2); }
    // The number of the pixel at a place, or -1 outside of the images.
    __device__ __forceinline__ int at_place(int place) const {
        int wide = Q + 2, high = R + 2, image = place / (wide * high);
        int h = row + place / wide % high - 1, w = column + place % wide - 1;
        bool there = n + image < N && h >= 0 && h < H && w >= 0 && w < W;
        return there ? ((n + image) * H + h) * W + w : -1;
    }
    // The number of pixel p of the tile, or -1.
    __device__ __forceinline__ int at_pixel(int p) const { return at_place(place(p)) ; }
    // The place of pixel p of the tile.
    __device__ __forceinline__ int place(int p) const {
        return (p / (R * Q) * (R + 2) + p / Q % R + 1) * (Q + 2) + p % Q + 1;
    }
};

DEVICE void add(Four<float>& a, const Four<float>& b) { a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w; }

template <class T> struct alignas(2 * sizeof(T)) Two { T x, y; };

// Two numbers of p, and to p, of which `left` have a place; twos: whether p is aligned to two.
template <class T> DEVICE Two<float> some(const T* p, int left, bool twos) {
    Two<T> v = twos ? *reinterpret_cast<const Two<T>*>(p) : Two<T>{p[0], left > 1 ? p[1] : T(0)};
    return {value(v.x), value(v.y)};
}
template <class T> DEVICE void store_some(T* p, float a, float b, int left, bool twos) {
    Two<T> v;
    set(v.x, a), set(v.y, b);
    if (twos) *reinterpret_cast<Two<T>*>(p) = v;
    else {
        p[0] = v.x;
        if (left > 1) p[1] = v.y;
    }
}

DEVICE void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], bf16) { mma_bf16(d, a, b); }
DEVICE void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], u32) { mma_tf32(d, a, b); }

// Fragments b of NJ times 8 columns from n0, rows from k, of an array [k][n] of rows `row` apart.
template <int NJ> DEVICE void load_columns(u32 (&b)[NJ][2], const bf16* from, int k, int n0, int row, int lane) {
    const bf16* mine = from + (k + lane % 16) * row + n0 + lane / 16 * 8;
#pragma unroll
    for (int j = 0; j < NJ; j += 2) {
        u32 r[4];
        ldmatrix_x4_trans(r, mine + 8 * j);
        b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
    }
}
template <int NJ> DEVICE void load_columns(u32 (&b)[NJ][2], const u32* from, int k, int n0, int row, int lane) {
    const u32* mine = from + (k + lane % 4) * row + n0 + lane / 4;
#pragma unroll
    for (int j = 0; j < NJ; j++) b[j][0] = mine[8 * j], b[j][1] = mine[4 * row + 8 * j];
}

// Fragments a of 16 columns of an array [k][m], that is of its transpose. mine: where the lane's rows begin (`rows_of`).
DEVICE void rows_of(int (&mine)[2], const int* place, int k, int lane, bf16) {
    mine[0] = place[k + lane / 16 * 8 + lane % 8] + lane / 8 % 2 * 8;
}
DEVICE void rows_of(int (&mine)[2], const int* place, int k, int lane, u32) {
    mine[0] = place[k + lane % 4] + lane / 4, mine[1] = place[k + lane % 4 + 4] + lane / 4;
}
DEVICE void load_transposed(u32 (&a)[4], const bf16* from, const int (&mine)[2], int) { ldmatrix_x4_trans(a, from + mine[0]); }
DEVICE void load_transposed(u32 (&a)[4], const u32* from, const int (&mine)[2], int) {
    a[0] = from[mine[0]], a[1] = from[mine[0] + 8], a[2] = from[mine[1]], a[3] = from[mine[1] + 8];
}

// --- y = conv(x) + bias + plus ---------------------------------------------------------------------------------------
// A block makes BM pixels of BN channels in warps of (BM / WM) x (BN / WN). Channels of x come in chunks of 64 bytes, by
// asynchronous copies: the next chunk, in PIECES at the first taps of this one, to the other of two tiles; and filters,
// already rounded and filled up with zeros to whole chunks and 16 bytes, (9, C, D), a tap at a time, AHEAD taps before their
// own. AHEAD taps after it brought a piece, a thread settles it.
//
// Where there are few tiles, gridDim.z blocks share one, each making the sums over some of the chunks. They write them to
// parts, [tile][block][BM][BN] as the threads hold them, and the block of a tile that ends last adds them up, in the blocks'
// order whichever that is.
// C: a multiple of EACH.  bias_step: 0, D for one bias an image, or -1 for none.  with_plus: whether plus is added.

// Blocks of each tile that have come to their end. The last sets it back to 0 for the next launch: launches of one module
// must not overlap, and on the one stream there is they do not.
__device__ u32 arrived[1024];

// sums of all of a tile's blocks, to the threads of the one that ends last: which returns true.
template <int COUNT, int THREADS> DEVICE bool add_blocks(float (&sums)[COUNT], float* parts) {
    __shared__ u32 before;
    int tile = blockIdx.y * gridDim.x + blockIdx.x, thread = threadIdx.x, count = gridDim.z;
    float* all = parts + (i64)tile * count * COUNT * THREADS;
#pragma unroll
    for (int i = 0; i < COUNT; i++) all[((i64)blockIdx.z * COUNT + i) * THREADS + thread] = sums[i];
    __syncthreads();
    if (thread == 0) {
        __threadfence();  // this block's sums, written before the barrier, are there for who sees it counted
        before = atomicAdd(&arrived[tile], 1u);
        if (before == (u32)count - 1) arrived[tile] = 0;
        __threadfence();
    }
    __syncthreads();
    if (before != (u32)count - 1) return false;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        float sum = 0;
        for (int block = 0; block < count; block++)  // volatile: from where other blocks' writes are seen
            sum += *(const volatile float*)(all + ((i64)block * COUNT + i) * THREADS + thread);
        sums[i] = sum;
    }
    return true;
}

template <int BM, int BN, int WM, int WN, class T>
DEVICE void convolve(const typename Operand<T>::Raw* __restrict__ x, const T* __restrict__ filters,
                     const float* __restrict__ bias, const stored* __restrict__ plus, stored* __restrict__ y, float* parts,
                     int N, int H, int W, int C, int D, int images, int R, int Q, int bias_step, int with_plus) {
    constexpr int THREADS = WM * WN * 32, TM = BM / WM, TN = BN / WN, MI = TM / 16, NJ = TN / 8;
    constexpr int EACH = Operand<T>::EACH, DEPTH = Operand<T>::DEPTH, PIECES = 6, PER = 2;
    constexpr int CHUNK = 64 / sizeof(T), PITCH = CHUNK + 16 / sizeof(T), ROW = BN + Operand<T>::LONGER, AHEAD = 3;
    extern __shared__ __align__(16) unsigned char memory[];
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, m0 = warp % WM * TM, n0 = warp / WM * TN;
    Geometry tile(N, H, W, images, R, Q, blockIdx.y);
    int places = tile.places(), d0 = blockIdx.x * BN;
    T* rimmed = reinterpret_cast<T*>(memory);                      // [2][places][PITCH]
    T* ring = rimmed + 2 * places * PITCH;                         // [AHEAD + 1][CHUNK][ROW]
    int* source = reinterpret_cast<int*>(ring + (AHEAD + 1) * CHUNK * ROW);  // [places]
    for (int place = thread; place < places; place += THREADS) source[place] = tile.at_place(place);

    int first[MI];  // where this lane's row of each fragment of x begins, for the tap in the middle
#pragma unroll
    for (int i = 0; i < MI; i++) first[i] = tile.place(m0 + 16 * i + lane % 16) * PITCH;
    float all_sums[MI * NJ * 4] = {};
    auto& sums = reinterpret_cast<float(&)[MI][NJ][4]>(all_sums);

    int chunks = (C + CHUNK - 1) / CHUNK, begin = chunks * blockIdx.z / gridDim.z, end = chunks * (blockIdx.z + 1) / gridDim.z;
    int wide_c = chunks * CHUNK, wide_d = (D + EACH - 1) / EACH * EACH;
    bool twos = D % 2 == 0;
    auto fetch_filters = [&](int stage) {
        if (stage < 9 * end) {
            const T* from = filters + ((i64)(stage % 9) * wide_c + stage / 9 * CHUNK) * wide_d + d0;
            T* to = ring + stage % (AHEAD + 1) * CHUNK * ROW;
            constexpr int ACROSS = BN / EACH;
            for (int i = thread; i < CHUNK * ACROSS; i += THREADS) {
                int k = i / ACROSS, d = i % ACROSS * EACH;
                bool there = d0 + d < D;
                async_copy16(to + k * ROW + d, there ? from + (i64)k * wide_d + d : filters, there);
            }
        }
        async_commit();
    };
    // A thread's part of a piece of a chunk: a quarter of every so many places.
    int quarter = thread % 4 * EACH;
    auto bring = [&](int chunk, int piece) {
        int c = chunk * CHUNK + quarter;
#pragma unroll
        for (int j = 0; j < PER; j++) {
            int place = ((PIECES * j + piece) * THREADS + thread) / 4;
            if (place >= places) break;
            bool there = source[place] >= 0 && c < C;
            const auto* from = x + (there ? (i64)source[place] * C + c : 0);
            async_copy16(rimmed + (chunk % 2 * places + place) * PITCH + quarter, from, there);
        }
    };
    auto settle = [&](int chunk, int piece) {
#pragma unroll
        for (int j = 0; j < PER; j++) {
            int place = ((PIECES * j + piece) * THREADS + thread) / 4;
            if (place < places) settle16(rimmed + (chunk % 2 * places + place) * PITCH + quarter);
        }
    };

    __syncthreads();
    for (int piece = 0; piece < PIECES; piece++) bring(begin, piece);
    for (int stage = 9 * begin; stage < 9 * begin + AHEAD; stage++) fetch_filters(stage);
    async_wait<AHEAD - 1>();
    for (int piece = 0; piece < PIECES; piece++) settle(begin, piece);
    for (int chunk = begin; chunk < end; chunk++) {
        for (int tap = 0; tap < 9; tap++) {
            int stage = 9 * chunk + tap;
            bool more = chunk + 1 < end;
            async_wait<AHEAD - 1>();
            if (more && tap >= AHEAD) settle(chunk + 1, tap - AHEAD);
            __syncthreads();  // this stage is there for all, and nobody reads the one before it any more
            if (more && tap < PIECES) bring(chunk + 1, tap);
            fetch_filters(stage + AHEAD);
            const T* from = rimmed + chunk % 2 * places * PITCH + ((tap / 3 - 1) * (Q + 2) + tap % 3 - 1) * PITCH;
            const T* with = ring + stage % (AHEAD + 1) * CHUNK * ROW;
#pragma unroll
            for (int k = 0; k < CHUNK; k += DEPTH) {
                u32 a[MI][4], b[NJ][2];
#pragma unroll
                for (int i = 0; i < MI; i++) ldmatrix_x4(a[i], from + first[i] + k + lane / 16 * EACH);
                load_columns<NJ>(b, with, k, n0, ROW, lane);
#pragma unroll
                for (int i = 0; i < MI; i++)
#pragma unroll
                    for (int j = 0; j < NJ; j++) multiply(sums[i][j], a[i], b[j], T());
            }
        }
    }
    async_wait<0>();
    if (gridDim.z > 1 && !add_blocks<MI * NJ * 4, THREADS>(all_sums, parts)) return;

#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int pixel = tile.at_pixel(m0 + 16 * i + 8 * half + lane / 4);
            if (pixel < 0) continue;
            const float* shift = bias + (i64)(pixel / (H * W)) * (bias_step < 0 ? 0 : bias_step);
#pragma unroll
            for (int j = 0; j < NJ; j++) {
                int d = d0 + n0 + 8 * j + 2 * (lane % 4);
                if (d < D) {
                    i64 at = (i64)pixel * D + d;
                    float left = sums[i][j][2 * half], right = sums[i][j][2 * half + 1];
                    if (bias_step >= 0) left += shift[d], right += shift[min(d + 1, D - 1)];
                    if (with_plus) {
                        Two<float> p = some(plus + at, D - d, twos);
                        left += p.x, right += p.y;
                    }
                    store_some(y + at, left, right, D - d, twos);
                }
            }
        }
}

#define CONVOLVE(name, BM, BN, WM, WN, T, RAW)                                                                         \
    extern "C" __global__ void __launch_bounds__(WM * WN * 32) name(                                                   \
        const RAW* __restrict__ x, const T* __restrict__ filters, const float* __restrict__ bias,                      \
        const stored* __restrict__ plus, stored* __restrict__ y, float* parts, int N, int H, int W, int C, int D,      \
        int images, int R, int Q, int tiles, int bias_step, int with_plus) {                                           \
        convolve<BM, BN, WM, WN, T>(x, filters, bias, plus, y, parts, N, H, W, C, D, images, R, Q, bias_step, with_plus); \
    }
CONVOLVE(bf16_256x128, 256, 128, 4, 2, bf16, bf16)
CONVOLVE(bf16_128x128, 128, 128, 2, 2, bf16, bf16)
CONVOLVE(bf16_128x64, 128, 64, 4, 1, bf16, bf16)
CONVOLVE(bf16_64x64, 64, 64, 2, 2, bf16, bf16)
CONVOLVE(bf16_64x32, 64, 32, 2, 2, bf16, bf16)
#if !STORES_BF16  // and what has no y

CONVOLVE(tf32_256x128, 256, 128, 4, 2, u32, float)
CONVOLVE(tf32_128x128, 128, 128, 2, 2, u32, float)
CONVOLVE(tf32_128x64, 128, 64, 4, 1, u32, float)
CONVOLVE(tf32_64x64, 64, 64, 2, 2, u32, float)
CONVOLVE(tf32_64x32, 64, 32, 2, 2, u32, float)

// --- dW[tap] = Σ_p x[p + tap]ᵀ dy[p] ---------------------------------------------------------------------------------
// A block makes all nine taps of 64 channels of x and 64 of dy over its part of the tiles of PIXELS pixels, in twelve
// warps: three rows of taps x (2 x 2) quarters. While a tile is multiplied, the next is on its way to the other of two
// buffers, a piece or two at each step; who brought it settles it. Parts: [part][9 C + 1][D], dW's and below it db's, added
// up in order by `sum_parts`.  x and dy have rows of C and D filled up to multiples of EACH.

template <int PIXELS, class T>
DEVICE void filter_gradient(const typename Operand<T>::Raw* __restrict__ x, const typename Operand<T>::Raw* __restrict__ dy,
                            float* __restrict__ parts, int N, int H, int W, int C, int D, int images, int R, int Q, int tiles) {
    constexpr int THREADS = 384, EACH = Operand<T>::EACH, DEPTH = Operand<T>::DEPTH, STEPS = PIXELS / DEPTH, WIDE = 64;
    constexpr int ROW = WIDE + Operand<T>::LONGER, ITEMS = WIDE / EACH, PIECES = 2;
    extern __shared__ __align__(16) unsigned char memory[];
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    int up = warp / 4, c1 = warp % 2 * 32, d1 = warp / 2 % 2 * 32, c0 = blockIdx.x * WIDE, d0 = blockIdx.y * WIDE;
    int places = images * (R + 2) * (Q + 2), rows = places + PIXELS;
    int wide_c = (C + EACH - 1) / EACH * EACH, wide_d = (D + EACH - 1) / EACH * EACH;
    T* both = reinterpret_cast<T*>(memory);                               // [2][places + PIXELS][ROW]: x, then dy
    int* source = reinterpret_cast<int*>(both + 2 * rows * ROW);          // [2][places + PIXELS]: pixels, or -1
    int* place = source + 2 * rows;                                       // [PIXELS]: times ROW
    for (int p = thread; p < PIXELS; p += THREADS) place[p] = Geometry(N, H, W, images, R, Q, 0).place(p) * ROW;

    auto find = [&](int index, int buffer) {
        Geometry tile(N, H, W, images, R, Q, index);
        for (int row = thread; row < rows; row += THREADS)
            source[buffer * rows + row] = row < places ? tile.at_place(row) : tile.at_pixel(row - places);
    };
    int at = thread % ITEMS * EACH, pieces = (rows * ITEMS + THREADS - 1) / THREADS;
    auto bring = [&](int buffer, int piece) {
        int row = (piece * THREADS + thread) / ITEMS;
        if (row >= rows) return;
        bool of_x = row < places;
        int pixel = source[buffer * rows + row], c = (of_x ? c0 : d0) + at, channels = of_x ? wide_c : wide_d;
        bool there = pixel >= 0 && c < channels;
        async_copy16(both + (buffer * rows + row) * ROW + at, (of_x ? x : dy) + (there ? (i64)pixel * channels + c : 0), there);
    };
    float column[EACH] = {};  // what this thread brought of dy, added up
    auto settle = [&](int buffer) {
        for (int piece = 0; piece < pieces; piece++) {
            int row = (piece * THREADS + thread) / ITEMS;
            T* mine = both + (buffer * rows + row) * ROW + at;
            if (row >= places && row < rows && c0 == 0) add16(column, mine);
            if (row < rows) settle16(mine);
        }
    };

    int part = blockIdx.z, count = gridDim.z;
    float* mine = parts + (i64)part * (9 * C + 1) * D;
    int begin = (int)((i64)tiles * part / count), end = (int)((i64)tiles * (part + 1) / count);
    float sums[3][2][4][4] = {};
    find(begin, 0);
    __syncthreads();
    for (int piece = 0; piece < pieces; piece++) bring(0, piece);
    async_commit();
    for (int index = begin; index < end; index++) {
        int now = (index - begin) % 2, next = 1 - now;
        bool more = index + 1 < end;
        if (more) find(index + 1, next);
        async_wait<0>();
        settle(now);
        __syncthreads();  // this tile is there for all, and nobody reads the one before it any more
        const T *xs = both + now * rows * ROW, *dys = xs + places * ROW;
        for (int step = 0; step < STEPS; step++) {
            if (more)
#pragma unroll
                for (int j = 0; j < PIECES; j++) bring(next, PIECES * step + j);
            u32 b[4][2];
            load_columns<4>(b, dys, step * DEPTH, d1, ROW, lane);
            int mine[2];
            rows_of(mine, place, step * DEPTH, lane, T());
#pragma unroll
            for (int j = 0; j < 3; j++) {
                const T* from = xs + ((up - 1) * (Q + 2) + j - 1) * ROW + c1;
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    u32 a[4];
                    load_transposed(a, from + 16 * i, mine, lane);
#pragma unroll
                    for (int l = 0; l < 4; l++) multiply(sums[j][i][l], a, b[l], T());
                }
            }
        }
        async_commit();
    }

#pragma unroll
    for (int j = 0; j < 3; j++)
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int c = c0 + c1 + 16 * i + 8 * half + lane / 4;
#pragma unroll
                for (int l = 0; l < 4; l++) {
                    int d = d0 + d1 + 8 * l + 2 * (lane % 4);
                    float* to = mine + ((i64)(3 * up + j) * C + c) * D + d;
                    if (c < C && d < D) store_some(to, sums[j][i][l][2 * half], sums[j][i][l][2 * half + 1], D - d, D % 2 == 0);
                }
            }

    if (c0 > 0) return;
    __syncthreads();  // nobody reads the tiles any more
    float* columns = reinterpret_cast<float*>(memory);  // [threads / ITEMS][WIDE]
#pragma unroll
    for (int i = 0; i < EACH; i++) columns[thread * EACH + i] = column[i];
    __syncthreads();
    if (thread < WIDE && d0 + thread < D) {
        float sum = 0;
        for (int i = 0; i < THREADS / ITEMS; i++) sum += columns[i * WIDE + thread];
        mine[(i64)9 * C * D + d0 + thread] = sum;
    }
}

#define FILTER_GRADIENT(name, PIXELS, T, RAW)                                                                          \
    extern "C" __global__ void __launch_bounds__(384) name(                                                            \
        const RAW* __restrict__ x, const RAW* __restrict__ dy, float* __restrict__ parts, int N, int H, int W, int C,  \
        int D, int images, int R, int Q, int tiles) {                                                                  \
        filter_gradient<PIXELS, T>(x, dy, parts, N, H, W, C, D, images, R, Q, tiles);                                  \
    }
FILTER_GRADIENT(bf16_gradient, 128, bf16, bf16)
FILTER_GRADIENT(tf32_gradient, 64, u32, float)

// sums[i] = Σ parts[part][i] of `size` numbers, four at a time where that is even: every eighth part by a warp, then the
// eight sums in order. A block makes 32 (or 32 times four) of them.
extern "C" __global__ void __launch_bounds__(256) sum_parts(
    const float* __restrict__ parts, float* __restrict__ sums, int count, int size) {
    __shared__ Four<float> eighths[8][32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, wide = size % 4 ? 1 : 4;
    i64 o = ((i64)blockIdx.x * 32 + lane) * wide;
    Four<float> sum = {0, 0, 0, 0};
    if (o < size)
        for (int part = warp; part < count; part += 8) {
            const float* from = parts + (i64)part * size + o;
            if (wide == 4) add(sum, load4(from));
            else sum.x += *from;
        }
    eighths[warp][lane] = sum;
    __syncthreads();
    if (warp || o >= size) return;
    for (int w = 1; w < 8; w++) add(sum, eighths[w][lane]);
    if (wide == 4) store4(sums + o, sum);
    else sums[o] = sum.x;
}

// --- filters ---------------------------------------------------------------------------------------------------------
// Filters of a convolution of C to D channels as operands, (9, C, D) with C filled up to whole chunks and D to 16 bytes: W
// (3, 3, C, D), or, turned, the adjoint's W_{2-i, 2-j}ᵀ of W (3, 3, D, C). also: the same of the other convolution, unless
// also_wide is 0. wide: no matter here.

template <class T, class Round>
DEVICE void pack(const float* __restrict__ W, T* __restrict__ out, int C, int D, int turned, Round round) {
    constexpr int CHUNK = 64 / sizeof(T), EACH = Operand<T>::EACH;
    int wide_c = (C + CHUNK - 1) / CHUNK * CHUNK, wide_d = (D + EACH - 1) / EACH * EACH;
    int total = 9 * wide_c * wide_d;
    for (int o = (int)first_index(); o < total; o += (int)index_step()) {
        int c = o / wide_d % wide_c, d = o % wide_d, tap = o / (wide_c * wide_d);
        i64 at = turned ? ((i64)(8 - tap) * D + d) * C + c : ((i64)tap * C + c) * D + d;
        out[o] = c < C && d < D ? round(W[at]) : T(0);
    }
}
struct ToBf16 { __device__ bf16 operator()(float v) const { return to_bf16(v); } };
struct ToTf32 { __device__ u32 operator()(float v) const { return to_tf32(v); } };

extern "C" __global__ void __launch_bounds__(256) pack_bf16_filters(
    const float* __restrict__ W, unsigned short* __restrict__ out, unsigned short* __restrict__ also, int C, int D, int wide,
    int turned, int also_wide) {
    pack(W, out, C, D, turned, ToBf16());
    if (also_wide) pack(W, also, D, C, 1 - turned, ToBf16());
}
extern "C" __global__ void __launch_bounds__(256) pack_tf32_filters(
    const float* __restrict__ W, unsigned* __restrict__ out, unsigned* __restrict__ also, int C, int D, int wide, int turned,
    int also_wide) {
    pack(W, out, C, D, turned, ToTf32());
    if (also_wide) pack(W, also, D, C, 1 - turned, ToTf32());
}
#endif
