// uses: wgmma.cuh
// 3x3 convolution of stride 1 in bf16 by Hopper's products of whole tiles. As conv_tensor.cu, but the rimmed tile lies in
// groups for wgmma, 8 channels a line: [channels / 8][places][8]. Eight neighbouring pixels of a row are then a group, and
// 8 x 8 pixels of the image the rows of one product; a tap is the same matrix begun a few places further on.
//
// A tile is R x Q pixels, multiples of 8, of one image, or `images` whole images of 8 x 8.
// `pitch`, places from one line of channels to the next, is 1 more than a multiple of 8: what a quarter of a warp writes at
// once, a pixel's 8 lines of channels, meets in no bank.

struct Tile {
    int N, H, W, R, Q, n, row, column;
    __device__ __forceinline__ Tile(int N, int H, int W, int images, int R, int Q, int index) : N(N), H(H), W(W), R(R), Q(Q) {
        int across = (W + Q - 1) / Q, each = images > 1 ? 1 : (H + R - 1) / R * across;
        n = index / each * images;
        row = index % each / across * R;
        column = index % each % across * Q;
    }
    // The number of the pixel (h, w) of the tile's image `image`, counted from its rim's corner at (-1, -1); or -1.
    __device__ __forceinline__ int pixel(int image, int h, int w) const {
        h += row - 1;
        w += column - 1;
        return n + image < N && h >= 0 && h < H && w >= 0 && w < W ? ((n + image) * H + h) * W + w : -1;
    }
    __device__ __forceinline__ int at_place(int place) const {
        int wide = Q + 2;
        return pixel(place / (wide * (R + 2)), place / wide % (R + 2), place % wide);
    }
    // The place of the corner of eighth x eighth number `block` of the tile, and its image, row and column there.
    __device__ __forceinline__ void block(int number, int& image, int& h, int& w) const {
        int across = Q / 8, each = R / 8 * across;
        image = number / each;
        h = number % each / across * 8;
        w = number % each % across * 8;
    }
};

DEVICE void put8(bf16* to, const Four<float>& a, const Four<float>& b) {
    store4(reinterpret_cast<u32*>(to), Four<u32>{pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w)});
}

struct alignas(8) Pair { float x, y; };

// --- y = conv(x) + bias ----------------------------------------------------------------------------------------------
// A block of two groups of four warps makes 256 pixels of BN channels, 2 x 64 pixels a group. Channels come in chunks of
// 64. The products of a tap run while the next is prepared: filters two taps ahead, and an eighth of the next chunk.

template <int BN>
DEVICE void convolve(const float* __restrict__ x, const bf16* __restrict__ filters, const float* __restrict__ bias,
                     float* __restrict__ y, int N, int H, int W, int C, int D, int images, int R, int Q, int pitch, int bias_step) {
    constexpr int THREADS = 256, CHUNK = 64, LINES = CHUNK / 8, RING = 4, STAGE = CHUNK * BN, MOST = 2;
    extern __shared__ __align__(128) unsigned char memory[];
    int thread = threadIdx.x, lane = thread % 32, group = thread / 128;
    Tile tile(N, H, W, images, R, Q, blockIdx.y);
    int places = images * (R + 2) * (Q + 2), d0 = blockIdx.x * BN;
    bf16* rimmed = reinterpret_cast<bf16*>(memory);              // [2][LINES][pitch][8]
    bf16* ring = rimmed + 2 * LINES * pitch * 8;                 // [RING][LINES][BN][8]
    int* source = reinterpret_cast<int*>(ring + RING * STAGE);   // [places]
    for (int place = thread; place < places; place += THREADS) source[place] = tile.at_place(place);

    int chunks = C / CHUNK, stages = 9 * chunks, items = places * LINES;
    auto fetch_filters = [&](int stage) {
        if (stage < stages) {
            const bf16* from = filters + (((i64)(stage % 9) * C / 8 + stage / 9 * LINES) * D + d0) * 8;
            bf16* to = ring + stage % RING * STAGE;
            for (int i = thread; i < LINES * BN; i += THREADS) {
                int line = i / BN, d = i % BN;
                async_copy16(to + i * 8, from + ((i64)line * D + d) * 8, d0 + d < D);
            }
        }
        async_commit();
    };
    Four<float> held[MOST][2];
    auto read_eighth = [&](int chunk, int eighth) {
#pragma unroll
        for (int j = 0; j < MOST; j++) {
            int item = (eighth * MOST + j) * THREADS + thread, pixel = item < items ? source[item / LINES] : -1;
            held[j][0] = held[j][1] = Four<float>{0, 0, 0, 0};
            if (pixel >= 0) {
                const float* from = x + (i64)pixel * C + chunk * CHUNK + item % LINES * 8;
                held[j][0] = load4(from);
                held[j][1] = load4(from + 4);
            }
        }
    };
    auto keep_eighth = [&](int chunk, int eighth) {
#pragma unroll
        for (int j = 0; j < MOST; j++) {
            int item = (eighth * MOST + j) * THREADS + thread;
            if (item < items)
                put8(rimmed + ((chunk % 2 * LINES + item % LINES) * pitch + item / LINES) * 8, held[j][0], held[j][1]);
        }
    };

    float sums[2][BN / 2] = {};
    u64 pixels[2];  // this group's two blocks of 8 x 8 pixels, the tap at their corner
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int image, h, w;
        tile.block(2 * group + i, image, h, w);
        pixels[i] = matrix(rimmed + ((image * (R + 2) + h) * (Q + 2) + w) * 8, pitch * 16, (Q + 2) * 16);
    }
    u64 columns = matrix(ring, BN * 16, 128);

    fetch_filters(0);
    fetch_filters(1);
    __syncthreads();
    for (int eighth = 0; eighth < 8; eighth++) {
        read_eighth(0, eighth);
        keep_eighth(0, eighth);
    }
    for (int chunk = 0; chunk < chunks; chunk++) {
        for (int tap = 0; tap < 9; tap++) {
            int stage = 9 * chunk + tap;
            async_wait<1>();
            written_for_products();
            __syncthreads();  // this stage is there for all, and the products of all but the last one are done
            int offset = chunk % 2 * LINES * pitch * 16 + (tap / 3 * (Q + 2) + tap % 3) * 16;
            products_begin();
#pragma unroll
            for (int k = 0; k < CHUNK / 16; k++) {
                u64 b = further(columns, (stage % RING * STAGE + k * 16 * BN) * 2);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    u64 a = further(pixels[i], offset + 2 * k * pitch * 16);
                    if constexpr (BN == 128) product_64x128<0, 0>(reinterpret_cast<float(&)[64]>(sums[i]), a, b, 1);
                    else product_64x64<0, 0>(reinterpret_cast<float(&)[32]>(sums[i]), a, b, 1);
                }
            }
            products_commit();
            fetch_filters(stage + 2);
            bool more = chunk + 1 < chunks && tap > 0;
            if (more) read_eighth(chunk + 1, tap - 1);
            products_wait<1>();
            if (more) keep_eighth(chunk + 1, tap - 1);
        }
    }
    products_wait<0>();
    async_wait<0>();

#pragma unroll
    for (int i = 0; i < 2; i++) {
        int image, h, w;
        tile.block(2 * group + i, image, h, w);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int pixel = tile.pixel(image, h + 2 * (thread / 32 % 4) + half + 1, w + lane / 4 + 1);
            if (pixel < 0) continue;
            const float* shift = bias + (i64)(pixel / (H * W)) * bias_step;
#pragma unroll
            for (int j = 0; j < BN / 8; j++) {
                int d = d0 + 8 * j + 2 * (lane % 4);
                if (d < D) {
                    Pair v = {sums[i][4 * j + 2 * half] + shift[d], sums[i][4 * j + 2 * half + 1] + shift[d + 1]};
                    *reinterpret_cast<Pair*>(y + (i64)pixel * D + d) = v;
                }
            }
        }
    }
}

#define CONVOLVE(name, BN)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) name(                                                            \
        const float* __restrict__ x, const unsigned short* __restrict__ filters, const float* __restrict__ bias,       \
        float* __restrict__ y, int N, int H, int W, int C, int D, int images, int R, int Q, int pitch, int bias_step) { \
        convolve<BN>(x, filters, bias, y, N, H, W, C, D, images, R, Q, pitch, bias_step);                              \
    }
CONVOLVE(whole_256x128, 128)
CONVOLVE(whole_256x64, 64)

// --- dW[tap] = Σ_p x[p + tap]ᵀ dy[p] ---------------------------------------------------------------------------------
// A block of three groups of four warps makes all taps of 64 channels of x and 64 of dy over its part of the tiles of
// PIXELS pixels: a group each row of taps. The sum runs over pixels, so both operands are turned. While a tile is
// multiplied, the next is on its way, a piece of it for each step of 16 pixels, four pieces at a time.
// Parts: [part][9][C][D], added up in order by conv_tensor's sum_parts.

template <int PIXELS>
DEVICE void filter_gradient(const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ parts, int N,
                            int H, int W, int C, int D, int images, int R, int Q, int pitch, int tiles) {
    constexpr int THREADS = 384, WIDE = 64, LINES = WIDE / 8, STEPS = PIXELS / 16, APART = PIXELS + 1, EACH = 4;
    extern __shared__ __align__(128) unsigned char memory[];
    int thread = threadIdx.x, lane = thread % 32, up = thread / 128, c0 = blockIdx.x * WIDE, d0 = blockIdx.y * WIDE;
    int places = images * (R + 2) * (Q + 2), rows = places + PIXELS, size = LINES * (pitch + APART) * 8;
    bf16* both = reinterpret_cast<bf16*>(memory);             // [2]: x [LINES][pitch][8], dy [LINES][APART][8]
    int* source = reinterpret_cast<int*>(both + 2 * size);    // [2][places + PIXELS]: pixels, or -1

    auto find = [&](int index, int buffer) {
        Tile tile(N, H, W, images, R, Q, index);
        for (int row = thread; row < rows; row += THREADS) {
            int found;
            if (row < places) {
                found = tile.at_place(row);
            } else {
                int image, h, w, p = row - places;
                tile.block(p / 64, image, h, w);
                found = tile.pixel(image, h + p % 64 / 8 + 1, w + p % 8 + 1);
            }
            source[buffer * rows + row] = found;
        }
    };
    Four<float> held[EACH][2];
    auto read = [&](int buffer, int piece, Four<float> (&held)[2]) {
        int item = piece * THREADS + thread, row = item / LINES, at = item % LINES * 8;
        held[0] = held[1] = Four<float>{0, 0, 0, 0};
        int pixel = row < rows ? source[buffer * rows + row] : -1;
        bool of_x = row < places;
        if (pixel >= 0 && at < (of_x ? C - c0 : D - d0)) {
            const float* from = of_x ? x + (i64)pixel * C + c0 + at : dy + (i64)pixel * D + d0 + at;
            held[0] = load4(from);
            held[1] = load4(from + 4);
        }
    };
    auto keep = [&](int buffer, int piece, const Four<float> (&held)[2]) {
        int item = piece * THREADS + thread, row = item / LINES, line = item % LINES;
        bf16* to = both + buffer * size + (row < places ? line * pitch + row : LINES * pitch + line * APART + row - places) * 8;
        if (row < rows) put8(to, held[0], held[1]);
    };

    int part = blockIdx.z, count = gridDim.z;
    int begin = (int)((i64)tiles * part / count), end = (int)((i64)tiles * (part + 1) / count);
    int pieces = (rows * LINES + THREADS - 1) / THREADS;
    float sums[3][32] = {};
    u64 dys = matrix(both + LINES * pitch * 8, 128, APART * 16);
    u64 xs = matrix(both, (Q + 2) * 16, pitch * 16);
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
        written_for_products();
        __syncthreads();  // this tile is there for all, and the products of the one before it are done
        Tile tile(N, H, W, images, R, Q, index);
        for (int step = 0; step < STEPS; step++) {
            int image, h, w;  // 16 pixels: two rows of an 8 x 8
            tile.block(step / 4, image, h, w);
            int corner = (image * (R + 2) + h + step % 4 * 2 + up) * (Q + 2) + w;
            u64 b = further(dys, now * size * 2 + step * 256);
            products_begin();
#pragma unroll
            for (int j = 0; j < 3; j++)
                product_64x64<1, 1>(sums[j], further(xs, now * size * 2 + (corner + j) * 16), b, 1);
            products_commit();
            if (more && step % EACH == 0)
#pragma unroll
                for (int j = 0; j < EACH; j++) read(next, step + j, held[j]);
            products_wait<1>();
            if (more && step % EACH == EACH - 1)
#pragma unroll
                for (int j = 0; j < EACH; j++) keep(next, step + 1 - EACH + j, held[j]);
        }
        products_wait<0>();
    }

#pragma unroll
    for (int j = 0; j < 3; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int c = c0 + 16 * (thread / 32 % 4) + lane / 4 + 8 * half;
#pragma unroll
            for (int l = 0; l < 8; l++) {
                int d = d0 + 8 * l + 2 * (lane % 4);
                if (c < C && d < D) {
                    Pair v = {sums[j][4 * l + 2 * half], sums[j][4 * l + 2 * half + 1]};
                    *reinterpret_cast<Pair*>(parts + (((i64)part * 9 + 3 * up + j) * C + c) * D + d) = v;
                }
            }
        }
}

extern "C" __global__ void __launch_bounds__(384) whole_gradient(
    const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ parts, int N, int H, int W, int C, int D,
    int images, int R, int Q, int pitch, int tiles) {
    filter_gradient<256>(x, dy, parts, N, H, W, C, D, images, R, Q, pitch, tiles);
}

// W (3, 3, C, D) as bf16 in groups for wgmma, (9, C/8, D, 8); or, turned, the adjoint's W_{2-i, 2-j}ᵀ, (9, D/8, C, 8).
extern "C" __global__ void __launch_bounds__(256) pack_whole(
    const float* __restrict__ W, unsigned short* __restrict__ out, int C, int D, int turned) {
    i64 total = (i64)9 * C * D;
    int from = turned ? D : C, to = turned ? C : D;
    for (i64 o = first_index(); o < total; o += index_step()) {
        int inner = (int)(o % 8), column = (int)(o / 8 % to), line = (int)(o / 8 / to % (from / 8)), tap = (int)(o / ((i64)C * D));
        int k = 8 * line + inner, c = turned ? column : k, d = turned ? k : column;
        out[o] = to_bf16(W[((i64)(turned ? 8 - tap : tap) * C + c) * D + d]);
    }
}
