// Attention over the S positions of an image: softmax of the scores and its adjoint, which stand between matrix
// products, and the whole operation in one block for each image where images are small.
//
// attention_softmax, attention_softmax_back    one warp a row, which is read again from the cache, never from memory; of
//                                              bfloat16, rows in eights up to 1024 are held in registers
// attention_small, attention_small_back        one block an image: all in shared memory, products in tiles of 4x4

// to = softmax(scale from), a row of S numbers, by one warp; to may be from, since a lane reads only what it writes.
template <class To> DEVICE void softmax(const real* from, To* to, int S, real scale) {
    int lane = threadIdx.x % 32;
    real most = from[0] * scale, sum = 0;
#pragma unroll 8
    for (int j = lane; j < S; j += 32) most = from[j] * scale > most ? from[j] * scale : most;
    most = warp_max(most);
#pragma unroll 4
    for (int j = lane; j < S; j += 32) sum += exp(from[j] * scale - most);
    sum = warp_sum(sum);
#pragma unroll 4
    for (int j = lane; j < S; j += 32) set(to[j], exp(from[j] * scale - most) / sum);
}

// to = scale P (d - Σ P d), a row of S numbers, by one warp; to may be d.
template <class From, class To> DEVICE void softmax_adjoint(const From* P, const real* d, To* to, int S, real scale) {
    int lane = threadIdx.x % 32;
    real sum = 0;
#pragma unroll 4
    for (int j = lane; j < S; j += 32) sum += value(P[j]) * d[j];
    sum = warp_sum(sum);
#pragma unroll 4
    for (int j = lane; j < S; j += 32) set(to[j], (d[j] - sum) * value(P[j]) * scale);
}

// The same of bfloat16, S a multiple of 8 and at most HELD: eight neighbours a lane, four times, read and written once.
constexpr int HELD = 1024;
typedef Four<u32> Eight;  // as they lie in memory, in pairs: unpacked, rows held would take twice the registers

DEVICE void unpack(const Eight& a, real (&v)[8]) {
    const u32 pairs[4] = {a.x, a.y, a.z, a.w};
    for (int i = 0; i < 4; i++) v[2 * i] = from_bf16((bf16)pairs[i]), v[2 * i + 1] = from_bf16((bf16)(pairs[i] >> 16));
}
DEVICE Eight packed(const real (&v)[8]) {
    return {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
}

// The real numbers from p on, aligned to 16 bytes.
DEVICE void load8(const real* p, real (&to)[8]) {
    Four<real> low = load4(p), high = load4(p + 4);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

DEVICE void softmax_held(const real* A, stored* P, int S, real scale) {
    int first = 8 * (threadIdx.x % 32);
    real a[HELD / 256][8], most = A[0] * scale, sum = 0;
#pragma unroll
    for (int c = 0; c < HELD / 256; c++) {
        if (first + 256 * c >= S) continue;
        load8(A + first + 256 * c, a[c]);
        for (int i = 0; i < 8; i++) a[c][i] *= scale, most = a[c][i] > most ? a[c][i] : most;
    }
    most = warp_max(most);
#pragma unroll
    for (int c = 0; c < HELD / 256; c++) {
        if (first + 256 * c >= S) continue;
        for (int i = 0; i < 8; i++) a[c][i] = exp(a[c][i] - most), sum += a[c][i];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int c = 0; c < HELD / 256; c++) {
        if (first + 256 * c >= S) continue;
        for (int i = 0; i < 8; i++) a[c][i] /= sum;
        *(Eight*)(P + first + 256 * c) = packed(a[c]);
    }
}

DEVICE void softmax_adjoint_held(const stored* P, const real* d, stored* to, int S, real scale) {
    int first = 8 * (threadIdx.x % 32);
    Eight p[HELD / 256];
    real v[8], a[HELD / 256][8], sum = 0;
#pragma unroll
    for (int c = 0; c < HELD / 256; c++) {
        if (first + 256 * c >= S) continue;
        p[c] = *(const Eight*)(P + first + 256 * c);
        unpack(p[c], v);
        load8(d + first + 256 * c, a[c]);
        for (int i = 0; i < 8; i++) sum += v[i] * a[c][i];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int c = 0; c < HELD / 256; c++) {
        if (first + 256 * c >= S) continue;
        unpack(p[c], v);
        for (int i = 0; i < 8; i++) a[c][i] = (a[c][i] - sum) * v[i] * scale;
        *(Eight*)(to + first + 256 * c) = packed(a[c]);
    }
}

DEVICE bool held(int S) { return sizeof(stored) == 2 && S % 8 == 0 && S <= HELD; }

// What is not bfloat16 is changed in place: one pointer for both names of the array, so that loads may pass stores.
template <class T> DEVICE T* or_in_place(T* from, T*) { return from; }
template <class T, class To> DEVICE To* or_in_place(T*, To* to) { return to; }

// P (rows, S) of the scores; but for bfloat16, the same array.  A warp a row; warps beyond the last have nothing to do.
extern "C" __global__ void __launch_bounds__(128) attention_softmax(
    real* scores, stored* P, int rows, int S, real scale) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    real* from = scores + (size_t)row * S;
    stored* to = or_in_place(from, P + (size_t)row * S);
    if (held(S)) softmax_held(from, to, S, scale);
    else softmax(from, to, S, scale);
}

// dA (rows, S), the gradient of the scores, of dP; but for bfloat16, the same array.
extern "C" __global__ void __launch_bounds__(128) attention_softmax_back(
    const stored* __restrict__ P, real* dP, stored* dA, int rows, int S, real scale) {
    int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    real* from = dP + (size_t)row * S;
    stored* to = or_in_place(from, dA + (size_t)row * S);
    if (held(S)) softmax_adjoint_held(P + (size_t)row * S, from, to, S, scale);
    else softmax_adjoint(P + (size_t)row * S, from, to, S, scale);
}

// --- whole images in shared memory -----------------------------------------------------------------------------------

struct alignas(16) Row { real v[4]; };

// A matrix of R rows and C columns in shared memory: zeros up to multiples of four, then four places unused, so that
// neighbouring rows do not meet in one bank.
struct Tiles {
    real* at;
    int rows, columns, pitch;  // rows and columns in fours

    __device__ Tiles(real*& free, int R, int C) {
        rows = (R + 3) / 4;
        columns = (C + 3) / 4;
        pitch = 4 * columns + 4;
        at = free;
        free += 4 * rows * pitch;
    }

    __device__ Row four(int row, int column) const {
        return *reinterpret_cast<const Row*>(at + row * pitch + 4 * column);
    }

    __device__ void load(const stored* from, int R, int C) const {
        int width = 4 * columns;
        for (int i = threadIdx.x; i < 4 * rows * width; i += blockDim.x) {
            int r = i / width, c = i % width;
            at[r * pitch + c] = r < R && c < C ? value(from[r * C + c]) : real(0);
        }
    }
};

// Four rows and four columns of a factor: along[k][i], k counted along the sum. With ACROSS the sum runs along its
// columns, and a thread's four rows are `count` apart; otherwise along its rows, and its four columns are neighbours.
template <bool ACROSS> DEVICE void load_tile(const Tiles& m, int tile, int count, int k, real along[4][4]) {
    for (int i = 0; i < 4; i++) {
        Row four = ACROSS ? m.four(tile + i * count, k) : m.four(4 * k + i, tile);
        for (int j = 0; j < 4; j++) (ACROSS ? along[j][i] : along[i][j]) = four.v[j];
    }
}

// store(i, j, Σ_k a_ik b_kj) for every i and j, those of the padding too.
template <bool A_ACROSS, bool B_ACROSS, class Store> DEVICE void product(const Tiles& a, const Tiles& b, Store store) {
    int I = A_ACROSS ? a.rows : a.columns, J = B_ACROSS ? b.rows : b.columns, K = A_ACROSS ? a.columns : a.rows;
    for (int tile = threadIdx.x; tile < I * J; tile += blockDim.x) {
        int ti = tile / J, tj = tile % J;
        real sum[4][4] = {};
        for (int k = 0; k < K; k++) {
            real x[4][4], y[4][4];
            load_tile<A_ACROSS>(a, ti, I, k, x);
            load_tile<B_ACROSS>(b, tj, J, k, y);
            for (int l = 0; l < 4; l++)
                for (int i = 0; i < 4; i++)
                    for (int j = 0; j < 4; j++) sum[i][j] += x[l][i] * y[l][j];
        }
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++)
                store(A_ACROSS ? ti + i * I : 4 * ti + i, B_ACROSS ? tj + j * J : 4 * tj + j, sum[i][j]);
    }
}

// One image a block; P (N, S, S) is kept for the adjoint.
extern "C" __global__ void __launch_bounds__(256) attention_small(
    const stored* __restrict__ q, const stored* __restrict__ k, const stored* __restrict__ v, stored* __restrict__ y,
    stored* __restrict__ P, int S, int C, real scale) {
    extern __shared__ __align__(16) real shared[];
    real* free = shared;
    Tiles q_(free, S, C), k_(free, S, C), v_(free, S, C), P_(free, S, S);
    size_t image = (size_t)blockIdx.x * S * C, square = (size_t)blockIdx.x * S * S;
    q_.load(q + image, S, C);
    k_.load(k + image, S, C);
    v_.load(v + image, S, C);
    __syncthreads();
    product<true, true>(q_, k_, [&](int i, int j, real a) { P_.at[i * P_.pitch + j] = a; });
    __syncthreads();
    for (int i = threadIdx.x / 32; i < S; i += blockDim.x / 32) {
        real* row = P_.at + i * P_.pitch;
        softmax(row, row, S, scale);
        for (int j = threadIdx.x % 32; j < S; j += 32) set(P[square + i * S + j], row[j]);
    }
    __syncthreads();
    product<true, false>(P_, v_, [&](int i, int c, real a) {
        if (i < S && c < C) set(y[image + i * C + c], a);
    });
}

extern "C" __global__ void __launch_bounds__(256) attention_small_back(
    const stored* __restrict__ q, const stored* __restrict__ k, const stored* __restrict__ v, const stored* __restrict__ P,
    const stored* __restrict__ dy, stored* __restrict__ dq, stored* __restrict__ dk, stored* __restrict__ dv, int S, int C,
    real scale) {
    extern __shared__ __align__(16) real shared[];
    real* free = shared;
    Tiles q_(free, S, C), k_(free, S, C), v_(free, S, C), dy_(free, S, C), P_(free, S, S), dA(free, S, S);
    size_t image = (size_t)blockIdx.x * S * C;
    q_.load(q + image, S, C);
    k_.load(k + image, S, C);
    v_.load(v + image, S, C);
    dy_.load(dy + image, S, C);
    P_.load(P + (size_t)blockIdx.x * S * S, S, S);
    __syncthreads();
    product<true, true>(dy_, v_, [&](int i, int j, real a) { dA.at[i * dA.pitch + j] = a; });
    __syncthreads();
    // Rows and columns of the padding too: there P is 0, and so dA becomes 0.
    for (int i = threadIdx.x / 32; i < 4 * dA.rows; i += blockDim.x / 32)
        softmax_adjoint(P_.at + i * P_.pitch, dA.at + i * dA.pitch, dA.at + i * dA.pitch, 4 * dA.columns, scale);
    __syncthreads();
    auto into = [&](stored* out) {
        return [=](int i, int c, real a) {
            if (i < S && c < C) set(out[image + i * C + c], a);
        };
    };
    product<true, false>(dA, k_, into(dq));
    product<false, false>(dA, q_, into(dk));
    product<false, false>(P_, dy_, into(dv));
}
