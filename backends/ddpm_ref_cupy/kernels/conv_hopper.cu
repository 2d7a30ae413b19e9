// uses: wgmma.cuh
// 3x3 convolution of stride 1 by Hopper's warpgroup products (wgmma, sm_90a), which read both operands from shared memory.
// NHWC float32 in and out, sums in float32; operands are rounded on their way into shared memory.
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
template <> struct Operand<bf16> { enum { EACH = 8 }; };  // numbers in 16 bytes
template <> struct Operand<u32> { enum { EACH = 4 }; };

template <class T> struct alignas(2 * sizeof(T)) Two { T x, y; };
template <class T> DEVICE void store2(T* p, const Two<T>& v) { *reinterpret_cast<Two<T>*>(p) = v; }
DEVICE Two<float> load2(const float* p) { return *reinterpret_cast<const Two<float>*>(p); }

DEVICE void add(Four<float>& a, const Four<float>& b) { a.x += b.x, a.y += b.y, a.z += b.z, a.w += b.w; }

// Four channels.
DEVICE void put(bf16* to, const Four<float>& v) {
    store2(reinterpret_cast<u32*>(to), Two<u32>{pack_bf16(v.x, v.y), pack_bf16(v.z, v.w)});
}
DEVICE void put(u32* to, const Four<float>& v) {
    store4(to, Four<u32>{to_tf32(v.x), to_tf32(v.y), to_tf32(v.z), to_tf32(v.w)});
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

// --- y = conv(x) + bias ----------------------------------------------------------------------------------------------
// A block has two warpgroups, each with PATCHES patches of BN channels; it goes through tiles blockIdx.x, + gridDim.x, ...
// as one long row of chunks. While the nine taps of a chunk are multiplied, the next chunk, be it of the next tile, is on
// its way to the other of two buffers, through registers, an eighth at a time: read at one tap, kept at the next. Filters,
// packed as (D / BN, C / chunk, tap, plane, BN, 16 bytes), come a tap at a time into a ring of four, two taps ahead.
// The products of a tap are waited for after those of the next are under way.
// bias_step: 0, D for one bias an image, or -1 for none.

template <int PATCHES, int BN, class T>
DEVICE void convolve(const float* __restrict__ x, const T* __restrict__ filters, const float* __restrict__ bias,
                     float* __restrict__ y, int N, int H, int W, int C, int D, int images, int R, int Q, int tiles,
                     int bias_step) {
    constexpr int EACH = Operand<T>::EACH, CHUNK = 8 * EACH, QUADS = CHUNK / 4, HELD = PATCHES * EACH / 4, RING = 4;
    constexpr int FILTERS = 8 * BN * EACH, STEP = 256 / QUADS;
    extern __shared__ __align__(128) unsigned char memory[];
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    int places = images * (R + 2) * (Q + 2), pitch = (places + 6) / 8 * 8 + 1;  // ≡ 1 mod 8: planes begin in other banks
    T* ring = reinterpret_cast<T*>(memory);                     // [RING][plane][BN][EACH]
    T* rimmed = ring + RING * FILTERS;                          // [2][plane][pitch][EACH]
    int* source = reinterpret_cast<int*>(rimmed + 2 * CHUNK * pitch);  // [2][places]

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
    // An eighth of a chunk: four channels at a time of every STEP-th place.
    int quad = thread % QUADS, first = thread / QUADS;
    auto read = [&](Four<float> (&held)[HELD], int buffer, int chunk, int eighth) {
        int c = chunk * CHUNK + 4 * quad;
#pragma unroll
        for (int j = 0; j < HELD; j++) {
            int place = first + (8 * j + eighth) * STEP, pixel = place < places && c < C ? source[buffer * places + place] : -1;
            held[j] = pixel < 0 ? Four<float>{0, 0, 0, 0} : load4(x + (i64)pixel * C + c);
        }
    };
    auto keep = [&](const Four<float> (&held)[HELD], int parity, int eighth) {
        T* to = rimmed + ((parity * 8 + 4 * quad / EACH) * pitch) * EACH + 4 * quad % EACH;
#pragma unroll
        for (int j = 0; j < HELD; j++) {
            int place = first + (8 * j + eighth) * STEP;
            if (place < places) put(to + place * EACH, held[j]);
        }
    };

    find(blockIdx.x, 0);
    fetch_filters();
    fetch_filters();
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 8; half += 4) {
        Four<float> many[4][HELD];
#pragma unroll
        for (int i = 0; i < 4; i++) read(many[i], 0, 0, half + i);
#pragma unroll
        for (int i = 0; i < 4; i++) keep(many[i], 0, half + i);
    }
    float sums[PATCHES][BN / 2] = {};
    Four<float> held[HELD];
    int parity = 0, slot = 0, table = 0;
    for (int tile = blockIdx.x; tile < total; tile += gridDim.x) {
        int next = tile + gridDim.x;
        if (next < total) find(next, 1 - table);
        for (int chunk = 0; chunk < chunks; chunk++) {
            bool ends = chunk + 1 == chunks, more = !ends || next < total;
            for (int tap = 0; tap < 9; tap++) {
                async_wait<1>();
                written_for_products();
                __syncthreads();  // this stage is there for all, and the products of the last but one are done
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
                if (more && tap > 0) keep(held, 1 - parity, tap - 1);
                if (more && tap < 8) read(held, ends ? 1 - table : table, ends ? 0 : chunk + 1, tap);
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
                        Two<float> v = {sums[m][4 * j + 2 * half], sums[m][4 * j + 2 * half + 1]};
                        if (bias_step >= 0) {
                            Two<float> s = load2(shift + d);
                            v.x += s.x, v.y += s.y;
                        }
                        store2(y + (i64)pixel * D + d, v);
                    }
                }
            }
        }
        table = 1 - table;
    }
}

#if WHOLE_TILES
#define CONVOLVE(...) convolve<__VA_ARGS__>(x, filters, bias, y, N, H, W, C, D, images, R, Q, tiles, bias_step)
#else
#define CONVOLVE(...) __trap()
#endif
#define KERNEL(name, PATCHES, BN, T)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256) name(                                                            \
        const float* __restrict__ x, const T* __restrict__ filters, const float* __restrict__ bias,                    \
        float* __restrict__ y, int N, int H, int W, int C, int D, int images, int R, int Q, int tiles, int bias_step) { \
        CONVOLVE(PATCHES, BN, T);                                                                                      \
    }
KERNEL(bf16_256x128, 2, 128, bf16)
KERNEL(bf16_128x128, 1, 128, bf16)
KERNEL(bf16_256x64, 2, 64, bf16)
KERNEL(bf16_128x64, 1, 64, bf16)
KERNEL(tf32_256x128, 2, 128, u32)
KERNEL(tf32_128x128, 1, 128, u32)
KERNEL(tf32_256x64, 2, 64, u32)
KERNEL(tf32_128x64, 1, 64, u32)

// --- dW[tap] = Σ_p x[p + tap]ᵀ dy[p] ---------------------------------------------------------------------------------
// A block makes all nine taps of 64 channels of x and 64 of dy over its part of the tiles of 256 pixels, in three
// warpgroups, one for each row of taps. K are pixels, two rows of a patch at a time. While the products of a tile are made
// in eight stages, the next tile is on its way to the other of two buffers, a seventh at a time: read at one stage, kept at
// the next. Parts: [part][9 C + 1][D], dW's and below it db's, added up in order by conv_tensor's sum_parts.

DEVICE void filter_gradient(const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ parts, int N,
                            int H, int W, int C, int D, int images, int R, int Q, int tiles) {
    constexpr int THREADS = 384, PIXELS = 256, DY_PITCH = PIXELS + 1, STEP = THREADS / 16, HELD = 4, PIECES = 7;
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
    int quad = thread % 16, first = thread / 16;
    auto read = [&](Four<float> (&held)[HELD], int buffer, int piece) {
#pragma unroll
        for (int j = 0; j < HELD; j++) {
            int row = first + (PIECES * j + piece) * STEP, pixel = row < rows ? source[buffer * rows + row] : -1;
            bool of_x = row < places;
            int channels = of_x ? C : D, at = (of_x ? c0 : d0) + 4 * quad;
            held[j] = pixel < 0 || at >= channels ? Four<float>{0, 0, 0, 0} : load4((of_x ? x : dy) + (i64)pixel * channels + at);
        }
    };
    Four<float> column = {};  // what this thread keeps of dy, added up
    auto keep = [&](const Four<float> (&held)[HELD], int buffer, int piece) {
#pragma unroll
        for (int j = 0; j < HELD; j++) {
            int row = first + (PIECES * j + piece) * STEP;
            bool of_x = row < places;
            int place = quad / 2 * (of_x ? pitch : DY_PITCH) + (of_x ? row : 8 * pitch + row - places);
            if (row < rows) put(both + buffer * size + place * 8 + quad % 2 * 4, held[j]);
            if (!of_x) add(column, held[j]);  // zeros behind the last row
        }
    };

    int part = blockIdx.z, count = gridDim.z;
    float* mine = parts + (i64)part * (9 * C + 1) * D;
    int begin = (int)((i64)tiles * part / count), end = (int)((i64)tiles * (part + 1) / count);
    find(begin, 0);
    __syncthreads();
#pragma unroll
    for (int some = 0; some < PIECES; some += 4) {
        Four<float> many[4][HELD];
#pragma unroll
        for (int i = some; i < PIECES && i < some + 4; i++) read(many[i - some], 0, i);
#pragma unroll
        for (int i = some; i < PIECES && i < some + 4; i++) keep(many[i - some], 0, i);
    }
    float sums[3][32] = {};
    Four<float> held[HELD];
    for (int index = begin; index < end; index++) {
        int now = (index - begin) % 2, next = 1 - now;
        bool more = index + 1 < end;
        if (more) find(index + 1, next);
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
            if (more && stage > 0) keep(held, next, stage - 1);
            if (more && stage < PIECES) read(held, next, stage);
            products_wait<1>();
            if (stage == 0) __syncthreads();  // the products of the tile before are done: its buffer is free
        }
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
    Four<float>* columns = reinterpret_cast<Four<float>*>(memory);  // [threads / 16][16]
    columns[thread] = column;
    __syncthreads();
    int d = d0 + 4 * thread;
    if (thread < 16 && d < D) {
        for (int i = 1; i < THREADS / 16; i++) add(column, columns[16 * i + thread]);
        store4(mine + (i64)9 * C * D + d, column);
    }
}

extern "C" __global__ void __launch_bounds__(384) bf16_gradient(
    const float* __restrict__ x, const float* __restrict__ dy, float* __restrict__ parts, int N, int H, int W, int C, int D,
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
