// Operations that move numbers or change each by itself. They cost what memory costs, so each reads and writes once.
//
// Where images are cut, the grid is (vectors of an image / 256, images) and images beyond the grid are walked to. V, 4 or
// 1: numbers a thread moves at once; the functions below are written for either, T being Four<real> or real.

typedef Four<real> Reals;

DEVICE real plus(real a, real b) { return a + b; }
DEVICE Reals plus(const Reals& a, const Reals& b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

// Whether these may be read and written in fours: a view may begin anywhere.
DEVICE bool in_fours(const void* a, const void* b, const void* c = nullptr) { return (((size_t)a | (size_t)b | (size_t)c) & 15) == 0; }

DEVICE u32 place() { return blockIdx.x * blockDim.x + threadIdx.x; }

// --- up-sampling -----------------------------------------------------------------------------------------------------

// The upper left corner in y (N, 2H, 2W, C) of the square that belongs to vector i of an image of x; C in vectors.
DEVICE size_t corner(u32 i, u32 W, u32 C) {
    u32 c = i % C, pixel = i / C, w = pixel % W, h = pixel / W;
    return ((size_t)(2 * h) * (2 * W) + 2 * w) * C + c;
}

template <class T> DEVICE void upsample(const T* __restrict__ x, T* __restrict__ y, int N, u32 H, u32 W, u32 C) {
    u32 i = place(), size = H * W * C, line = 2 * W * C;
    if (i >= size) return;
    size_t at = corner(i, W, C);
    for (int n = blockIdx.y; n < N; n += gridDim.y) {
        T a = x[(size_t)n * size + i], *square = y + (size_t)n * 4 * size + at;
        square[0] = square[C] = square[line] = square[line + C] = a;
    }
}

template <class T> DEVICE void upsample_back(const T* __restrict__ dy, T* __restrict__ dx, int N, u32 H, u32 W, u32 C) {
    u32 i = place(), size = H * W * C, line = 2 * W * C;
    if (i >= size) return;
    size_t at = corner(i, W, C);
    for (int n = blockIdx.y; n < N; n += gridDim.y) {
        const T* square = dy + (size_t)n * 4 * size + at;
        dx[(size_t)n * size + i] = plus(plus(plus(square[0], square[C]), square[line]), square[line + C]);
    }
}

extern "C" __global__ void __launch_bounds__(256) pointwise_upsample(
    const real* __restrict__ x, real* __restrict__ y, int N, int H, int W, int C, int V) {
    if (V == 4 && in_fours(x, y)) upsample((const Reals*)x, (Reals*)y, N, H, W, C / 4);
    else upsample(x, y, N, H, W, C);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_upsample_back(
    const real* __restrict__ dy, real* __restrict__ dx, int N, int H, int W, int C, int V) {
    if (V == 4 && in_fours(dy, dx)) upsample_back((const Reals*)dy, (Reals*)dx, N, H, W, C / 4);
    else upsample_back(dy, dx, N, H, W, C);
}

// --- channels behind channels ----------------------------------------------------------------------------------------

// a (N, S, A), b (N, S, B), y (N, S, A + B), all in vectors.
template <class T> DEVICE void concat(const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ y, int N, u32 S, u32 A, u32 B) {
    u32 i = place(), C = A + B, pixel = i / C, c = i % C;
    if (pixel >= S) return;
    for (int n = blockIdx.y; n < N; n += gridDim.y) {
        size_t s = (size_t)n * S + pixel;
        y[s * C + c] = c < A ? a[s * A + c] : b[s * B + (c - A)];
    }
}

template <class T> DEVICE void split(const T* __restrict__ y, T* __restrict__ a, T* __restrict__ b, int N, u32 S, u32 A, u32 B) {
    u32 i = place(), C = A + B, pixel = i / C, c = i % C;
    if (pixel >= S) return;
    for (int n = blockIdx.y; n < N; n += gridDim.y) {
        size_t s = (size_t)n * S + pixel;
        T* to = c < A ? a + s * A + c : b + s * B + (c - A);
        *to = y[s * C + c];
    }
}

extern "C" __global__ void __launch_bounds__(256) pointwise_concat(
    const real* __restrict__ a, const real* __restrict__ b, real* __restrict__ y, int N, int S, int A, int B, int V) {
    if (V == 4 && in_fours(a, b, y)) concat((const Reals*)a, (const Reals*)b, (Reals*)y, N, S, A / 4, B / 4);
    else concat(a, b, y, N, S, A, B);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_split(
    const real* __restrict__ y, real* __restrict__ a, real* __restrict__ b, int N, int S, int A, int B, int V) {
    if (V == 4 && in_fours(y, a, b)) split((const Reals*)y, (Reals*)a, (Reals*)b, N, S, A / 4, B / 4);
    else split(y, a, b, N, S, A, B);
}

// --- element by element: n numbers, in fours and a rest --------------------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) pointwise_add(
    const real* __restrict__ a, const real* __restrict__ b, real* __restrict__ y, u64 n) {
    u64 fours = in_fours(a, b, y) ? n / 4 : 0;
    for (u64 i = first_index(); i < fours; i += index_step())
        store4(y + 4 * i, plus(load4(a + 4 * i), load4(b + 4 * i)));
    for (u64 i = 4 * fours + first_index(); i < n; i += index_step()) y[i] = a[i] + b[i];
}

// 0 where u < rate, x keep elsewhere. It multiplies by 0 as NumPy does: the sign stays.
DEVICE real dropped(real x, float u, float rate, real keep) { return x * (u >= rate ? keep : 0); }

extern "C" __global__ void __launch_bounds__(256) pointwise_dropout(
    const real* __restrict__ x, const float* __restrict__ u, real* __restrict__ y, u64 n, float rate, real keep) {
    u64 fours = in_fours(x, u, y) ? n / 4 : 0;
    for (u64 i = first_index(); i < fours; i += index_step()) {
        Reals a = load4(x + 4 * i);
        Four<float> v = load4(u + 4 * i);
        store4(y + 4 * i, Reals{dropped(a.x, v.x, rate, keep), dropped(a.y, v.y, rate, keep),
                                dropped(a.z, v.z, rate, keep), dropped(a.w, v.w, rate, keep)});
    }
    for (u64 i = 4 * fours + first_index(); i < n; i += index_step()) y[i] = dropped(x[i], u[i], rate, keep);
}

DEVICE real logistic(real x) { return 1 / (1 + exp(-x)); }

extern "C" __global__ void __launch_bounds__(256) pointwise_silu(const real* __restrict__ x, real* __restrict__ y, u64 n) {
    for (u64 i = first_index(); i < n; i += index_step()) y[i] = x[i] * logistic(x[i]);
}

// dx = dy σ (1 + x (1 - σ))
extern "C" __global__ void __launch_bounds__(256) pointwise_silu_back(
    const real* __restrict__ x, const real* __restrict__ dy, real* __restrict__ dx, u64 n) {
    for (u64 i = first_index(); i < n; i += index_step()) {
        real s = logistic(x[i]);
        dx[i] = dy[i] * (s * (1 + x[i] * (1 - s)));
    }
}
