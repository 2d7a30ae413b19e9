// 3x3 convolution of stride 1 on tensor cores, without columns: a tile of pixels with its rim lies in shared memory, and
// serves all nine taps. NHWC float32 in and out, sums in float32; operands are rounded on their way into shared memory.
//
//   T         an operand: bf16, or u32 for the bits of a tf32
//   tile      `images` whole images, or R x Q pixels of one; its rim makes that (R+2) x (Q+2) places an image
//   place     where in shared memory a pixel of the rimmed tile lies: images x (R+2) x (Q+2) of them
//
// Rows in shared memory are 16 bytes, or for fragments read by single words 32, longer than a multiple of 128: the eight
// rows of an ldmatrix, and the 32 words of a fragment, never meet in a bank.

template <class T> struct Operand;
template <> struct Operand<bf16> {
    enum { EACH = 8, DEPTH = 16, LONGER = 8 };  // numbers in 16 bytes; of K in one mma; more in a row of filters
};
template <> struct Operand<u32> {
    enum { EACH = 4, DEPTH = 8, LONGER = 8 };
};

// 16 bytes of operands from EACH floats.
DEVICE void put(bf16* to, const Four<float>& a, const Four<float>& b) {
    store4(reinterpret_cast<u32*>(to),
           Four<u32>{pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w)});
}
DEVICE void put(u32* to, const Four<float>& a, const Four<float>&) {
    store4(to, Four<u32>{to_tf32(a.x), to_tf32(a.y), to_tf32(a.z), to_tf32(a.w)});
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
template <class T> DEVICE void store2(T* p, const Two<T>& v) { *reinterpret_cast<Two<T>*>(p) = v; }

// Four channels from p, of which `left` are there, zeros behind them; fours: whether p is aligned to 16 bytes.
DEVICE Four<float> some(const float* p, int left, bool fours) {
    if (fours && left >= 4) return load4(p);
    return Four<float>{left > 0 ? p[0] : 0, left > 1 ? p[1] : 0, left > 2 ? p[2] : 0, left > 3 ? p[3] : 0};
}
// Two numbers to p, of which `left` have a place; twos: whether p is aligned to 8 bytes.
DEVICE void store_some(float* p, float a, float b, int left, bool twos) {
    if (twos && left >= 2) return store2(p, Two<float>{a, b});
    if (left > 0) p[0] = a;
    if (left > 1) p[1] = b;
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

// --- y = conv(x) + bias ----------------------------------------------------------------------------------------------
// A block makes BM pixels of BN channels in warps of (BM / WM) x (BN / WN). Channels of x come in chunks of 64 bytes:
// while the nine taps of a chunk are multiplied, a ninth at a time of the next chunk is on its way to the other of two
// tiles, through registers. Filters, already rounded and filled up with zeros to whole chunks and 16 bytes, (9, C, D), come
// a tap at a time, three taps ahead.
// bias_step: 0, D for one bias an image, or -1 for none.

template <int BM, int BN, int WM, int WN, class T>
DEVICE void convolve(const float* __restrict__ x, const T* __restrict__ filters, const float* __restrict__ bias,
                     float* __restrict__ y, int N, int H, int W, int C, int D, int images, int R, int Q, int bias_step) {
    constexpr int THREADS = WM * WN * 32, TM = BM / WM, TN = BN / WN, MI = TM / 16, NJ = TN / 8;
    constexpr int EACH = Operand<T>::EACH, DEPTH = Operand<T>::DEPTH;
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
    float sums[MI][NJ][4] = {};

    int chunks = (C + CHUNK - 1) / CHUNK, stages = 9 * chunks, items = places * 4;
    int wide_c = chunks * CHUNK, wide_d = (D + EACH - 1) / EACH * EACH;
    bool fours = C % 4 == 0, twos = D % 2 == 0;
    auto fetch_filters = [&](int stage) {
        if (stage < stages) {
            const T* from = filters + ((i64)(stage % 9) * wide_c + stage / 9 * CHUNK) * wide_d + d0;
            T* to = ring + stage % (AHEAD + 1) * CHUNK * ROW;
            constexpr int ACROSS = BN / EACH;
            for (int i = thread; i < CHUNK * ACROSS; i += THREADS) {
                int k = i / ACROSS, d = i % ACROSS * EACH;
                async_copy16(to + k * ROW + d, from + (i64)k * wide_d + d, d0 + d < D);
            }
        }
        async_commit();
    };
    // One ninth of a chunk: 16 bytes of operands a thread.
    Four<float> held[2];
    auto read_ninth = [&](int chunk, int ninth) {
        int item = ninth * THREADS + thread, pixel = item < items ? source[item / 4] : -1;
        held[0] = held[1] = Four<float>{0, 0, 0, 0};
        if (pixel >= 0) {
            int c = chunk * CHUNK + item % 4 * EACH;
            const float* from = x + (i64)pixel * C + c;
            held[0] = some(from, C - c, fours);
            if (EACH == 8) held[1] = some(from + 4, C - c - 4, fours);
        }
    };
    auto keep_ninth = [&](int chunk, int ninth) {
        int item = ninth * THREADS + thread;
        if (item < items) put(rimmed + (chunk % 2 * places + item / 4) * PITCH + item % 4 * EACH, held[0], held[1]);
    };

    for (int stage = 0; stage < AHEAD; stage++) fetch_filters(stage);
    __syncthreads();
    for (int ninth = 0; ninth < 9; ninth++) {
        read_ninth(0, ninth);
        keep_ninth(0, ninth);
    }
    for (int chunk = 0; chunk < chunks; chunk++) {
        for (int tap = 0; tap < 9; tap++) {
            int stage = 9 * chunk + tap;
            async_wait<AHEAD - 1>();
            __syncthreads();  // this stage is there for all, and nobody reads the one before it any more
            fetch_filters(stage + AHEAD);
            if (chunk + 1 < chunks) read_ninth(chunk + 1, tap);
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
            if (chunk + 1 < chunks) keep_ninth(chunk + 1, tap);
        }
    }
    async_wait<0>();

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
                    float left = sums[i][j][2 * half], right = sums[i][j][2 * half + 1];
                    if (bias_step >= 0) left += shift[d], right += shift[min(d + 1, D - 1)];
                    store_some(y + (i64)pixel * D + d, left, right, D - d, twos);
                }
            }
        }
}

#define CONVOLVE(name, BM, BN, WM, WN, T)                                                                              \
    extern "C" __global__ void __launch_bounds__(WM * WN * 32) name(                                                   \
        const float* __restrict__ x, const T* __restrict__ filters, const float* __restrict__ bias,                    \
        float* __restrict__ y, int N, int H, int W, int C, int D, int images, int R, int Q, int tiles, int bias_step) { \
        convolve<BM, BN, WM, WN, T>(x, filters, bias, y, N, H, W, C, D, images, R, Q, bias_step);                      \
    }
CONVOLVE(bf16_256x128, 256, 128, 4, 2, bf16)
CONVOLVE(bf16_128x128, 128, 128, 2, 2, bf16)
CONVOLVE(bf16_128x64, 128, 64, 4, 1, bf16)
CONVOLVE(bf16_64x64, 64, 64, 2, 2, bf16)
CONVOLVE(bf16_64x32, 64, 32, 2, 2, bf16)
CONVOLVE(tf32_256x128, 256, 128, 4, 2, u32)
CONVOLVE(tf32_128x128, 128, 128, 2, 2, u32)
CONVOLVE(tf32_128x64, 128, 64, 4, 1, u32)
CONVOLVE(tf32_64x64, 64, 64, 2, 2, u32)
CONVOLVE(tf32_64x32, 64, 32, 2, 2, u32)

// --- dW[tap] = Σ_p x[p + tap]ᵀ dy[p] ---------------------------------------------------------------------------------
// A block makes all nine taps of 64 channels of x and 64 of dy over its part of the tiles of PIXELS pixels, in twelve
// warps: three rows of taps x (2 x 2) quarters. While a tile is multiplied, the next is on its way, a piece at each step.
// Parts: [part][9 C + 1][D], dW's and below it db's, added up in order by `sum_parts`.

template <int PIXELS, class T>
DEVICE void filter_gradient(const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ parts, int N,
                            int H, int W, int C, int D, int images, int R, int Q, int tiles) {
    constexpr int THREADS = 384, EACH = Operand<T>::EACH, DEPTH = Operand<T>::DEPTH, STEPS = PIXELS / DEPTH, WIDE = 64;
    constexpr int ROW = WIDE + Operand<T>::LONGER, ITEMS = WIDE / EACH, PIECES = 2;
    extern __shared__ __align__(16) unsigned char memory[];
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    int up = warp / 4, c1 = warp % 2 * 32, d1 = warp / 2 % 2 * 32, c0 = blockIdx.x * WIDE, d0 = blockIdx.y * WIDE;
    int places = images * (R + 2) * (Q + 2), rows = places + PIXELS;
    T* both = reinterpret_cast<T*>(memory);                               // [2][places + PIXELS][ROW]: x, then dy
    int* source = reinterpret_cast<int*>(both + 2 * rows * ROW);          // [2][places + PIXELS]: pixels, or -1
    int* place = source + 2 * rows;                                       // [PIXELS]: times ROW
    for (int p = thread; p < PIXELS; p += THREADS) place[p] = Geometry(N, H, W, images, R, Q, 0).place(p) * ROW;

    auto find = [&](int index, int buffer) {
        Geometry tile(N, H, W, images, R, Q, index);
        for (int row = thread; row < rows; row += THREADS)
            source[buffer * rows + row] = row < places ? tile.at_place(row) : tile.at_pixel(row - places);
    };
    bool fours = C % 4 == 0 && D % 4 == 0;
    Four<float> held[PIECES][2], column[2] = {};  // column: what this thread keeps of dy, added up
    auto read = [&](int buffer, int piece, Four<float> (&into)[2]) {
        int item = piece * THREADS + thread, row = item / ITEMS, at = item % ITEMS * EACH;
        into[0] = into[1] = Four<float>{0, 0, 0, 0};
        int pixel = row < rows ? source[buffer * rows + row] : -1;
        bool of_x = row < places;
        if (pixel >= 0 && at < (of_x ? C - c0 : D - d0)) {
            const float* from = of_x ? x + (i64)pixel * C + c0 + at : dy + (i64)pixel * D + d0 + at;
            int left = of_x ? C - c0 - at : D - d0 - at;
            into[0] = some(from, left, fours);
            if (EACH == 8) into[1] = some(from + 4, left - 4, fours);
        }
    };
    auto keep = [&](int buffer, int piece, const Four<float> (&from)[2]) {
        int item = piece * THREADS + thread, row = item / ITEMS;
        if (row < rows) put(both + (buffer * rows + row) * ROW + item % ITEMS * EACH, from[0], from[1]);
        if (row >= places) add(column[0], from[0]), add(column[1], from[1]);  // zeros behind the last row
    };

    int part = blockIdx.z, count = gridDim.z;
    float* mine = parts + (i64)part * (9 * C + 1) * D;
    int begin = (int)((i64)tiles * part / count), end = (int)((i64)tiles * (part + 1) / count);
    int pieces = (rows * ITEMS + THREADS - 1) / THREADS;
    float sums[3][2][4][4] = {};
    find(begin, 0);
    __syncthreads();
    for (int piece = 0; piece < pieces; piece++) {
        read(0, piece, held[0]);
        keep(0, piece, held[0]);
    }
    for (int index = begin; index < end; index++) {
        int now = (index - begin) % 2, next = 1 - now;
        bool more = index + 1 < end;
        if (more) find(index + 1, next);
        __syncthreads();  // this tile is there for all, and nobody reads the one before it any more
        const T *xs = both + now * rows * ROW, *dys = xs + places * ROW;
        for (int step = 0; step < STEPS; step++) {
            if (more)
#pragma unroll
                for (int j = 0; j < PIECES; j++)
                    if (PIECES * step + j < pieces) read(next, PIECES * step + j, held[j]);
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
            if (more)
#pragma unroll
                for (int j = 0; j < PIECES; j++)
                    if (PIECES * step + j < pieces) keep(next, PIECES * step + j, held[j]);
        }
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
    Four<float>* columns = reinterpret_cast<Four<float>*>(memory);  // [threads / ITEMS][WIDE / 4]
    for (int i = 0; i < EACH / 4; i++) columns[thread * (EACH / 4) + i] = column[i];
    __syncthreads();
    if (thread < WIDE / 4) {
        Four<float> sum = columns[thread];
        for (int i = 1; i < THREADS / ITEMS; i++) add(sum, columns[i * (WIDE / 4) + thread]);
        int left = D - d0 - 4 * thread;
        float* to = mine + (i64)9 * C * D + d0 + 4 * thread;
        store_some(to, sum.x, sum.y, left, D % 2 == 0);
        store_some(to + 2, sum.z, sum.w, left - 2, D % 2 == 0);
    }
}

#define FILTER_GRADIENT(name, PIXELS, T)                                                                               \
    extern "C" __global__ void __launch_bounds__(384) name(                                                            \
        const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ parts, int N, int H, int W,     \
        int C, int D, int images, int R, int Q, int tiles) {                                                           \
        filter_gradient<PIXELS, T>(x, dy, parts, N, H, W, C, D, images, R, Q, tiles);                                  \
    }
FILTER_GRADIENT(bf16_gradient, 128, bf16)
FILTER_GRADIENT(tf32_gradient, 64, u32)

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
