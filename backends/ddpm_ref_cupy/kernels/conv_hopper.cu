// uses: wgmma.cuh
// 3x3 convolution of stride 1 by Hopper's warpgroup products (wgmma, sm_90a), which read both operands from shared memory.
// NHWC, sums in float32; x of bf16, or of float that is rounded to tf32 once it lies in shared memory; y is `stored`.
//
//   T        an operand: bf16, or u32 for the bits of a tf32
//   patch    8 x 8 pixels, the 64 rows of a product
//   tile     4 or 2 patches: whole images, or R x Q pixels of one; its rim makes that (R+2) x (Q+2) places an image
//   chunk    128 bytes of operands of a pixel: 64 channels of bf16, 32 of tf32
//   plane    one eighth of a chunk, 16 bytes, of every place; a plane is PITCH places long
//
// So eight neighbouring pixels of a row are 128 bytes on end, which is the shape that the tensor core reads (8 rows of 16
// bytes, no swizzle); the next row of the patch lies Q + 2 places on, the next 16 bytes of channels a plane on, and a tap
// is another beginning: one tile with its rim serves all nine.

// --- operands --------------------------------------------------------------------------------------------------------

template <class T> struct Operand;
template <> struct Operand<bf16> { typedef bf16 Raw; enum { EACH = 8 }; };  // as x holds it; numbers in 16 bytes
template <> struct Operand<u32> { typedef float Raw; enum { EACH = 4 }; };

// 16 bytes of x in shared memory become operands.
DEVICE void settle16(bf16*) {}
DEVICE void settle16(u32* p) {
    Four<float> v = load4(reinterpret_cast<float*>(p));
    store4(p, Four<u32>{to_tf32(v.x), to_tf32(v.y), to_tf32(v.z), to_tf32(v.w)});
}

// The numbers of 16 bytes, added to sums.
DEVICE void add16(float (&sums)[8], const bf16* p) {
    Four<u32> v = load4(reinterpret_cast<const u32*>(p));
    u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sums[2 * i] += from_bf16((bf16)pairs[i]);
        sums[2 * i + 1] += from_bf16((bf16)(pairs[i] >> 16));
    }
}

template <class T> struct alignas(2 * sizeof(T)) Two { T x, y; };
template <class T> DEVICE void store2(T* p, const Two<T>& v) { *reinterpret_cast<Two<T>*>(p) = v; }
template <class T> DEVICE Two<T> load2(const T* p) { return *reinterpret_cast<const Two<T>*>(p); }

// 16 bytes of x in shared memory become SiLU(x scale + shift), eight of each; aligned to 16 bytes.
DEVICE void normalise16(bf16* p, const float* scale, const float* shift) {
    u32* pairs = reinterpret_cast<u32*>(p);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        Two<u32> v = load2(pairs + 2 * half);
        Four<float> a = load4(scale + 4 * half), b = load4(shift + 4 * half);
        float h[4] = {from_bf16((bf16)v.x) * a.x + b.x, from_bf16((bf16)(v.x >> 16)) * a.y + b.y,
                      from_bf16((bf16)v.y) * a.z + b.z, from_bf16((bf16)(v.y >> 16)) * a.w + b.w};
#pragma unroll
        for (int i = 0; i < 4; i++) h[i] *= __fdividef(1.0f, 1.0f + __expf(-h[i]));
        store2(pairs + 2 * half, Two<u32>{pack_bf16(h[0], h[1]), pack_bf16(h[2], h[3])});
    }
}

// Where tile `index` lies: from image n, row, column.
struct Geometry {
    int N, H, W, images, R, Q, n, row, column;
    __device__ __forceinline__ Geometry(int N, int H, int W, int images, int R, int Q, int index)
        : N(N), H(H), W(W), images(images), R(R), Q(Q) {
        int across = (W + Q - 1) / Q, each = images > 1 ? 1 : (H + R - 1) / R * across;
        n = index / each * images;
        row = index % each / across * R;
        column = index % each % across * Q;
    }
    // The number of the pixel at (h, w) of an image of the tile, or -1 outside of the images.
    __device__ __forceinline__ int at(int image, int h, int w) const {
        bool there = n + image < N && row + h >= 0 && row + h < H && column + w >= 0 && column + w < W;
        return there ? ((n + image) * H + row + h) * W + column + w : -1;
    }
    __device__ __forceinline__ int at_place(int place) const {
        int wide = Q + 2, high = R + 2;
        return at(place / (wide * high), place / wide % high - 1, place % wide - 1);
    }
};

// --- y = conv(x) + bias + plus ---------------------------------------------------------------------------------------
// A block has two warpgroups, each with PATCHES patches of BN channels; it goes through tiles blockIdx.x, + gridDim.x, ...
// as one long row of stages, nine taps for each chunk. Everything comes by asynchronous copies that nobody waits for until
// it is needed: filters, packed as (D / BN, C / chunk, tap, plane, BN, 16 bytes), a tap at a time into a ring, AHEAD stages
// before their own; the next chunk of x, be it of the next tile, into the other of two buffers, in PIECES at taps 1, 2, ...,
// each in the group of that stage's filters, so that AHEAD stages later who copied it may settle it, and by the next tap 0
// it is there for all. The products of a tap are waited for after those of the next are under way.
//
// NORM, of bf16: the convolution is that of SiLU(GroupNorm(x)). Settling is then normalising: each number of a tile and its
// rim once, in shared memory, where pixels outside of the image stay 0. The factors of a chunk's channels, scale = γ r and
// shift = β - mean γ r, are made at tap 0 from stats (2, N, G), the means and r of groups of `width` channels.
// C: a multiple of EACH.  bias_step: 0, D for one bias an image, or -1 for none.  with_plus: whether plus is added.

struct Norm {
    const float *stats, *gamma, *beta;
    int width;
};

template <int PATCHES, int BN, class T, bool NORM>
DEVICE void convolve(const typename Operand<T>::Raw* __restrict__ x, const Norm& norm, const T* __restrict__ filters,
                     const float* __restrict__ bias, const stored* __restrict__ plus, stored* __restrict__ y, int N, int H,
                     int W, int C, int D, int images, int R, int Q, int tiles, int bias_step, int with_plus) {
    constexpr int EACH = Operand<T>::EACH, CHUNK = 8 * EACH, RING = 6, AHEAD = RING - 2, PIECES = 4, PER = 2 * PATCHES;
    constexpr int FILTERS = 8 * BN * EACH;
    extern __shared__ __align__(128) unsigned char memory[];
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    int places = images * (R + 2) * (Q + 2), pitch = (places + 6) / 8 * 8 + 1;  // ≡ 1 mod 8: planes begin in other banks
    T* ring = reinterpret_cast<T*>(memory);                     // [RING][plane][BN][EACH]
    T* rimmed = ring + RING * FILTERS;                          // [2][plane][pitch][EACH]
    float* factors = reinterpret_cast<float*>(rimmed + 2 * CHUNK * pitch);        // NORM: [2][image][scale, shift][CHUNK]
    int* source = reinterpret_cast<int*>(factors + (NORM ? 4 * images * CHUNK : 0));  // [2][places]

    int columns = (D + BN - 1) / BN, chunks = (C + CHUNK - 1) / CHUNK, stages = 9 * chunks, total = tiles * columns;
    int patch_place[PATCHES], patch_image[PATCHES], patch_row[PATCHES], patch_column[PATCHES];
#pragma unroll
    for (int m = 0; m < PATCHES; m++) {
        int patch = warp / 4 * PATCHES + m, across = Q / 8, each = R / 8 * across;
        patch_image[m] = patch / each;
        patch_row[m] = patch % each / across * 8;
        patch_column[m] = patch % across * 8;
        patch_place[m] = (patch_image[m] * (R + 2) + patch_row[m]) * (Q + 2) + patch_column[m];
    }

    auto find = [&](int tile, int buffer) {
        Geometry g(N, H, W, images, R, Q, tile / columns);
        for (int place = thread; place < places; place += 256) source[buffer * places + place] = g.at_place(place);
    };
    // The stage of filters to fetch next: of which tile, which of its stages, and where in the ring.
    int coming = blockIdx.x, coming_stage = 0, coming_slot = 0;
    auto fetch_filters = [&]() {
        if (coming < total) {
            const T* from = filters + ((i64)(coming % columns) * stages + coming_stage) * FILTERS;
            T* to = ring + coming_slot * FILTERS;
#pragma unroll
            for (int i = 0; i < FILTERS; i += 256 * EACH) async_copy16(to + i + thread * EACH, from + i + thread * EACH, true);
        }
        async_commit();
        coming_slot = (coming_slot + 1) % RING;
        if (++coming_stage == stages) coming_stage = 0, coming += gridDim.x;
    };
    // A thread's part of a piece of a chunk: one plane of every 32nd place.
    int plane = thread % 8, first = thread / 8;
    auto bring = [&](int buffer, int chunk, int parity, int piece) {
        int c = chunk * CHUNK + plane * EACH;
        T* to = rimmed + (parity * 8 + plane) * pitch * EACH;
#pragma unroll
        for (int j = 0; j < PER; j++) {
            int place = first + (PIECES * j + piece) * 32;
            if (place >= places) break;
            int pixel = source[buffer * places + place];
            bool there = pixel >= 0 && c < C;
            async_copy16(to + place * EACH, x + (there ? (i64)pixel * C + c : 0), there);
        }
    };
    auto settle = [&](int buffer, int parity, int piece) {
        T* from = rimmed + (parity * 8 + plane) * pitch * EACH;
#pragma unroll
        for (int j = 0; j < PER; j++) {
            int place = first + (PIECES * j + piece) * 32;
            if (place >= places) break;
            if constexpr (NORM) {
                int image = images == 1 ? 0 : place / ((R + 2) * (Q + 2));
                const float* scale = factors + (parity * images + image) * 2 * CHUNK + plane * EACH;
                if (source[buffer * places + place] >= 0) normalise16(from + place * EACH, scale, scale + CHUNK);
            } else
                settle16(from + place * EACH);
        }
    };
    // A thread makes those of one channel of one image.
    auto find_factors = [&](int tile, int chunk, int parity) {
        int image = thread / CHUNK, at = thread % CHUNK, c = chunk * CHUNK + at;
        if (image >= images) return;
        int n = Geometry(N, H, W, images, R, Q, tile / columns).n + image, g = c / norm.width, G = C / norm.width;
        bool there = n < N && c < C;
        float scale = there ? norm.stats[(i64)(N + n) * G + g] * norm.gamma[c] : 0;
        float* to = factors + (parity * images + image) * 2 * CHUNK + at;
        to[0] = scale;
        to[CHUNK] = there ? norm.beta[c] - norm.stats[(i64)n * G + g] * scale : 0;
    };

    find(blockIdx.x, 0);
    __syncthreads();
    for (int piece = 0; piece < PIECES; piece++) bring(0, 0, 0, piece);
    for (int stage = 0; stage < AHEAD; stage++) fetch_filters();
    if (NORM) find_factors(blockIdx.x, 0, 0);
    async_wait<AHEAD - 1>();
    if (NORM) __syncthreads();  // the factors are there for all
    for (int piece = 0; piece < PIECES; piece++) settle(0, 0, piece);
    float sums[PATCHES][BN / 2] = {};
    int parity = 0, slot = 0, table = 0;
    for (int tile = blockIdx.x; tile < total; tile += gridDim.x) {
        int next = tile + gridDim.x;
        if (next < total) find(next, 1 - table);
        for (int chunk = 0; chunk < chunks; chunk++) {
            bool ends = chunk + 1 == chunks, more = !ends || next < total;
            for (int tap = 0; tap < 9; tap++) {
                async_wait<AHEAD - 1>();
                int buffer = ends ? 1 - table : table;  // where the next chunk's pixels are found
                if (more && tap > AHEAD) settle(buffer, 1 - parity, tap - AHEAD - 1);
                written_for_products();
                __syncthreads();  // this stage is there for all, and the products of the last but one are done
                if (NORM && more && tap == 0) find_factors(ends ? next : tile, ends ? 0 : chunk + 1, 1 - parity);
                if (more && tap > 0 && tap <= PIECES) bring(buffer, ends ? 0 : chunk + 1, 1 - parity, tap - 1);
                fetch_filters();
                const T* from = rimmed + (parity * 8 * pitch + tap / 3 * (Q + 2) + tap % 3) * EACH;
                u64 b = matrix(ring + slot * FILTERS, BN * 16, 128);
                products_begin();
#pragma unroll
                for (int k = 0; k < 4; k++)
#pragma unroll
                    for (int m = 0; m < PATCHES; m++) {
                        u64 a = matrix(from + patch_place[m] * EACH, pitch * 16, (Q + 2) * 16);
                        product(sums[m], a + 2 * k * pitch, b + 2 * k * BN, (chunk | tap | k) != 0, T());
                    }
                products_commit();
                products_wait<1>();
                slot = (slot + 1) % RING;
            }
            parity = 1 - parity;
        }
        products_wait<0>();

        Geometry g(N, H, W, images, R, Q, tile / columns);
#pragma unroll
        for (int m = 0; m < PATCHES; m++) {
            products_ready(sums[m]);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int pixel = g.at(patch_image[m], patch_row[m] + warp % 4 * 2 + half, patch_column[m] + lane / 4);
                if (pixel < 0) continue;
                const float* shift = bias + (i64)(pixel / (H * W)) * bias_step;
#pragma unroll
                for (int j = 0; j < BN / 8; j++) {
                    int d = tile % columns * BN + 8 * j + 2 * (lane % 4);
                    if (d < D) {
                        i64 at = (i64)pixel * D + d;
                        Two<float> v = {sums[m][4 * j + 2 * half], sums[m][4 * j + 2 * half + 1]};
                        if (bias_step >= 0) {
                            Two<float> s = load2(shift + d);
                            v.x += s.x, v.y += s.y;
                        }
                        if (with_plus) {
                            Two<stored> p = load2(plus + at);
                            v.x += value(p.x), v.y += value(p.y);
                        }
                        Two<stored> out;
                        set(out.x, v.x), set(out.y, v.y);
                        store2(y + at, out);
                    }
                }
            }
        }
        table = 1 - table;
    }
}

#if WHOLE_TILES
#define CONVOLVE(norm, ...)                                                                                            \
    convolve<__VA_ARGS__>(x, norm, filters, bias, plus, y, N, H, W, C, D, images, R, Q, tiles, bias_step, with_plus)
#else
#define CONVOLVE(norm, ...) __trap()
#endif
#define KERNEL(name, PATCHES, BN, T, RAW)                                                                              \
    extern "C" __global__ void __launch_bounds__(256) name(                                                            \
        const RAW* __restrict__ x, const T* __restrict__ filters, const float* __restrict__ bias,                      \
        const stored* __restrict__ plus, stored* __restrict__ y, int N, int H, int W, int C, int D, int images, int R, \
        int Q, int tiles, int bias_step, int with_plus) {                                                              \
        CONVOLVE(Norm{}, PATCHES, BN, T, false);                                                                       \
    }
#define NORM_KERNEL(name, PATCHES, BN)                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) name(                                                            \
        const bf16* __restrict__ x, const float* __restrict__ stats, const float* __restrict__ gamma,                  \
        const float* __restrict__ beta, const bf16* __restrict__ filters, const float* __restrict__ bias,              \
        const stored* __restrict__ plus, stored* __restrict__ y, int width, int N, int H, int W, int C, int D,         \
        int images, int R, int Q, int tiles, int bias_step, int with_plus) {                                           \
        CONVOLVE((Norm{stats, gamma, beta, width}), PATCHES, BN, bf16, true);                                          \
    }
KERNEL(bf16_256x128, 2, 128, bf16, bf16)
KERNEL(bf16_128x128, 1, 128, bf16, bf16)
KERNEL(bf16_256x64, 2, 64, bf16, bf16)
KERNEL(bf16_128x64, 1, 64, bf16, bf16)
#if STORES_BF16

NORM_KERNEL(norm_256x128, 2, 128)
NORM_KERNEL(norm_128x128, 1, 128)
NORM_KERNEL(norm_256x64, 2, 64)
NORM_KERNEL(norm_128x64, 1, 64)

#else  // and what has no y

KERNEL(tf32_256x128, 2, 128, u32, float)
KERNEL(tf32_128x128, 1, 128, u32, float)
KERNEL(tf32_256x64, 2, 64, u32, float)
KERNEL(tf32_128x64, 1, 64, u32, float)

// --- dW[tap] = Σ_p x[p + tap]ᵀ dy[p] ---------------------------------------------------------------------------------
// A block makes all nine taps of 64 channels of x and 64 of dy, of bf16, over its part of the tiles of 256 pixels, in three
// warpgroups, one for each row of taps. K are pixels, two rows of a patch at a time. While the products of a tile are made
// in eight stages, the next tile is on its way to the other of two buffers. Parts: [part][9 C + 1][D], dW's and below it
// db's, added up in order by conv_tensor's sum_parts.  C, D: multiples of 8.

DEVICE void filter_gradient(const bf16* __restrict__ x, const bf16* __restrict__ dy, float* __restrict__ parts, int N, int H,
                            int W, int C, int D, int images, int R, int Q, int tiles) {
    constexpr int THREADS = 384, PIXELS = 256, DY_PITCH = PIXELS + 1, STEP = THREADS / 8, PIECES = 4, PER = 4;
    extern __shared__ __align__(128) unsigned char memory[];
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, up = warp / 4, c0 = blockIdx.x * 64, d0 = blockIdx.y * 64;
    int places = images * (R + 2) * (Q + 2), pitch = (places + 6) / 8 * 8 + 1, rows = places + PIXELS;
    bf16* both = reinterpret_cast<bf16*>(memory);  // [2]: x [plane][pitch][8], dy [plane][DY_PITCH][8]
    int size = 64 * (pitch + DY_PITCH);
    int* source = reinterpret_cast<int*>(both + 2 * size);  // [2][places + PIXELS]: pixels, or -1
    int* patch_place = source + 2 * rows;                   // [2][4]: where patches begin, in x and in dy
    if (thread < 4) {
        int across = Q / 8, each = R / 8 * across, image = thread / each;
        int row = thread % each / across * 8, column = thread % across * 8;
        patch_place[thread] = (image * (R + 2) + row) * (Q + 2) + column;
        patch_place[4 + thread] = (image * R + row) * Q + column;
    }

    auto find = [&](int index, int buffer) {
        Geometry g(N, H, W, images, R, Q, index);
        for (int row = thread; row < rows; row += THREADS) {
            int p = row - places;
            source[buffer * rows + row] = p < 0 ? g.at_place(row) : g.at(p / (R * Q), p / Q % R, p % Q);
        }
    };
    // A thread's part of a piece: one plane of every 48th row.
    int plane = thread % 8, first = thread / 8;
    auto place = [&](int row) {
        return row < places ? plane * pitch + row : 8 * pitch + plane * DY_PITCH + row - places;
    };
    auto bring = [&](int buffer, int piece) {
#pragma unroll
        for (int j = 0; j < PER; j++) {
            int row = first + (PIECES * j + piece) * STEP;
            if (row >= rows) break;
            bool of_x = row < places;
            int pixel = source[buffer * rows + row], channels = of_x ? C : D, at = (of_x ? c0 : d0) + 8 * plane;
            bool there = pixel >= 0 && at < channels;
            const bf16* from = (of_x ? x : dy) + (there ? (i64)pixel * channels + at : 0);
            async_copy16(both + buffer * size + place(row) * 8, from, there);
        }
    };
    float column[8] = {};  // what this thread brought of dy, added up
    auto add_columns = [&](int buffer) {
#pragma unroll
        for (int j = 0; j < PER * PIECES; j++) {
            int row = first + j * STEP;
            if (row < places || row >= rows) continue;
            add16(column, both + buffer * size + place(row) * 8);
        }
    };

    int part = blockIdx.z, count = gridDim.z;
    float* mine = parts + (i64)part * (9 * C + 1) * D;
    int begin = (int)((i64)tiles * part / count), end = (int)((i64)tiles * (part + 1) / count);
    find(begin, 0);
    __syncthreads();
    for (int piece = 0; piece < PIECES; piece++) bring(0, piece);
    async_commit();
    float sums[3][32] = {};
    for (int index = begin; index < end; index++) {
        int now = (index - begin) % 2, next = 1 - now;
        bool more = index + 1 < end;
        if (more) find(index + 1, next);
        async_wait<0>();
        if (c0 == 0) add_columns(now);
        written_for_products();
        __syncthreads();  // this tile is there for all
        const bf16 *xs = both + now * size, *dys = xs + 64 * pitch;
        for (int stage = 0; stage < 8; stage++) {
            int row = stage % 2 * 4, x_place = patch_place[stage / 2] + (row + up) * (Q + 2);
            u64 a = matrix(xs + x_place * 8, (Q + 2) * 16, pitch * 16);
            u64 b = matrix(dys + (patch_place[4 + stage / 2] + row * Q) * 8, Q * 16, DY_PITCH * 16);
            products_begin();
#pragma unroll
            for (int k = 0; k < 2; k++)
#pragma unroll
                for (int j = 0; j < 3; j++)
                    product_turned(sums[j], a + 2 * k * (Q + 2) + j, b + 2 * k * Q, index > begin || stage + k > 0);
            products_commit();
            products_wait<1>();
            if (stage == 0) __syncthreads();  // the products of the tile before are done: its buffer is free
            if (more && stage < PIECES) bring(next, stage);
        }
        async_commit();
    }
    products_wait<0>();

#pragma unroll
    for (int j = 0; j < 3; j++) {
        products_ready(sums[j]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int c = c0 + warp % 4 * 16 + 8 * half + lane / 4;
#pragma unroll
            for (int l = 0; l < 8; l++) {
                int d = d0 + 8 * l + 2 * (lane % 4);
                Two<float> v = {sums[j][4 * l + 2 * half], sums[j][4 * l + 2 * half + 1]};
                if (c < C && d < D) store2(mine + ((i64)(3 * up + j) * C + c) * D + d, v);
            }
        }
    }

    if (c0 > 0) return;
    __syncthreads();  // nobody reads the tiles any more
    float* columns = reinterpret_cast<float*>(memory);  // [threads / 8][plane][8]
#pragma unroll
    for (int i = 0; i < 8; i++) columns[8 * thread + i] = column[i];
    __syncthreads();
    if (thread < 64 && d0 + thread < D) {
        float sum = 0;
        for (int i = 0; i < STEP; i++) sum += columns[64 * i + thread];
        mine[(i64)9 * C * D + d0 + thread] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(384) bf16_gradient(
    const bf16* __restrict__ x, const bf16* __restrict__ dy, float* __restrict__ parts, int N, int H, int W, int C, int D,
    int images, int R, int Q, int tiles) {
#if WHOLE_TILES
    filter_gradient(x, dy, parts, N, H, W, C, D, images, R, Q, tiles);
#else
    __trap();
#endif
}

// --- filters ---------------------------------------------------------------------------------------------------------
// W (3, 3, C, D), or, turned, the adjoint's W_{2-i, 2-j}ᵀ of W (3, 3, D, C), as the convolution of C to D channels takes
// them; zeros where C and D are filled up to whole chunks and columns of BN. also: the same of the other convolution, unless
// also_wide is 0.

template <class T, class Round>
DEVICE void pack(const float* __restrict__ W, T* __restrict__ out, int C, int D, int BN, int turned, Round round) {
    constexpr int EACH = Operand<T>::EACH;
    int chunks = (C + 8 * EACH - 1) / (8 * EACH), columns = (D + BN - 1) / BN;
    int total = columns * chunks * 9 * 8 * BN * EACH;
    for (int o = (int)first_index(); o < total; o += (int)index_step()) {
        int rest = o / EACH, n = rest % BN, plane = rest / BN % 8, tap = rest / BN / 8 % 9;
        int chunk = rest / BN / 72 % chunks, column = rest / BN / 72 / chunks;
        int c = (chunk * 8 + plane) * EACH + o % EACH, d = column * BN + n;
        i64 at = turned ? ((i64)(8 - tap) * D + d) * C + c : ((i64)tap * C + c) * D + d;
        out[o] = c < C && d < D ? round(W[at]) : T(0);
    }
}
struct ToBf16 { __device__ bf16 operator()(float v) const { return to_bf16(v); } };
struct ToTf32 { __device__ u32 operator()(float v) const { return to_tf32(v); } };

extern "C" __global__ void __launch_bounds__(256) pack_bf16_filters(
    const float* __restrict__ W, unsigned short* __restrict__ out, unsigned short* __restrict__ also, int C, int D, int wide,
    int turned, int also_wide) {
    pack(W, out, C, D, wide, turned, ToBf16());
    if (also_wide) pack(W, also, D, C, also_wide, 1 - turned, ToBf16());
}
extern "C" __global__ void __launch_bounds__(256) pack_tf32_filters(
    const float* __restrict__ W, unsigned* __restrict__ out, unsigned* __restrict__ also, int C, int D, int wide, int turned,
    int also_wide) {
    pack(W, out, C, D, wide, turned, ToTf32());
    if (also_wide) pack(W, also, D, C, also_wide, 1 - turned, ToTf32());
}
#endif
