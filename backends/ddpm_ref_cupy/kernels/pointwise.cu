// Operations that move numbers or change each by itself. They cost what memory costs, so each reads and writes once;
// the bits are NumPy's, but for SiLU.
//
// Where images are cut, the grid is (vectors of an image / 256, images) and images beyond the grid are walked to. V, the
// numbers in 16 bytes or 1: how many a thread moves at once; the functions below are written for either, T being Numbers
// or stored.

constexpr int WIDE = 16 / sizeof(stored);
struct alignas(16) Numbers { stored v[WIDE]; };

// As four words, since nvcc reads 16-bit members one by one.
DEVICE Numbers get(const Numbers* p) {
    union { Four<u32> words; Numbers numbers; } n;
    n.words = load4(reinterpret_cast<const u32*>(p));
    return n.numbers;
}
DEVICE stored get(const stored* p) { return *p; }

DEVICE real plus(real a, real b) { return add_rn(a, b); }

// The sum from left to right, rounded once to what is stored.
template <class... More> DEVICE stored sum(stored a, stored b, More... more) {
    stored s;
    real total = plus(value(a), value(b));
    ((total = plus(total, value(more))), ...);
    set(s, total);
    return s;
}
template <class... More> DEVICE Numbers sum(const Numbers& a, const Numbers& b, const More&... more) {
    Numbers s;
#pragma unroll
    for (int k = 0; k < WIDE; k++) s.v[k] = sum(a.v[k], b.v[k], more.v[k]...);
    return s;
}

// Whether these may be read and written 16 bytes at a time: a view may begin anywhere.
DEVICE bool in_sixteens(const void* a, const void* b, const void* c = nullptr) {
    return (((size_t)a | (size_t)b | (size_t)c) & 15) == 0;
}

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
        dx[(size_t)n * size + i] = sum(get(square), get(square + C), get(square + line), get(square + line + C));
    }
}

extern "C" __global__ void __launch_bounds__(256) pointwise_upsample(
    const stored* __restrict__ x, stored* __restrict__ y, int N, int H, int W, int C, int V) {
    if (V > 1 && in_sixteens(x, y)) upsample((const Numbers*)x, (Numbers*)y, N, H, W, C / V);
    else upsample(x, y, N, H, W, C);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_upsample_back(
    const stored* __restrict__ dy, stored* __restrict__ dx, int N, int H, int W, int C, int V) {
    if (V > 1 && in_sixteens(dy, dx)) upsample_back((const Numbers*)dy, (Numbers*)dx, N, H, W, C / V);
    else upsample_back(dy, dx, N, H, W, C);
}

// --- channels behind channels ----------------------------------------------------------------------------------------

// a (N, S, A), b (N, S, B), y (N, S, A + B), all in vectors.
template <class T> DEVICE void concat(
    const T* __restrict__ a, const T* __restrict__ b, T* __restrict__ y, int N, u32 S, u32 A, u32 B) {
    u32 i = place(), C = A + B, pixel = i / C, c = i % C;
    if (pixel >= S) return;
    for (int n = blockIdx.y; n < N; n += gridDim.y) {
        size_t s = (size_t)n * S + pixel;
        y[s * C + c] = c < A ? a[s * A + c] : b[s * B + (c - A)];
    }
}

template <class T> DEVICE void split(
    const T* __restrict__ y, T* __restrict__ a, T* __restrict__ b, int N, u32 S, u32 A, u32 B) {
    u32 i = place(), C = A + B, pixel = i / C, c = i % C;
    if (pixel >= S) return;
    for (int n = blockIdx.y; n < N; n += gridDim.y) {
        size_t s = (size_t)n * S + pixel;
        T* to = c < A ? a + s * A + c : b + s * B + (c - A);
        *to = y[s * C + c];
    }
}

extern "C" __global__ void __launch_bounds__(256) pointwise_concat(
    const stored* __restrict__ a, const stored* __restrict__ b, stored* __restrict__ y, int N, int S, int A, int B, int V) {
    if (V > 1 && in_sixteens(a, b, y)) concat((const Numbers*)a, (const Numbers*)b, (Numbers*)y, N, S, A / V, B / V);
    else concat(a, b, y, N, S, A, B);
}

extern "C" __global__ void __launch_bounds__(256) pointwise_split(
    const stored* __restrict__ y, stored* __restrict__ a, stored* __restrict__ b, int N, int S, int A, int B, int V) {
    if (V > 1 && in_sixteens(y, a, b)) split((const Numbers*)y, (Numbers*)a, (Numbers*)b, N, S, A / V, B / V);
    else split(y, a, b, N, S, A, B);
}

// --- element by element: n numbers, 16 bytes at a time and a rest ----------------------------------------------------

extern "C" __global__ void __launch_bounds__(256) pointwise_add(
    const stored* __restrict__ a, const stored* __restrict__ b, stored* __restrict__ y, u64 n) {
    u64 wides = in_sixteens(a, b, y) ? n / WIDE : 0;
    for (u64 i = first_index(); i < wides; i += index_step())
        ((Numbers*)y)[i] = sum(get((const Numbers*)a + i), get((const Numbers*)b + i));
    for (u64 i = WIDE * wides + first_index(); i < n; i += index_step()) y[i] = sum(a[i], b[i]);
}

// By 0 and not to 0: the sign stays, and NaN, as in NumPy.
DEVICE stored masked(stored x, unsigned char kept, real keep) {
    stored y;
    set(y, mul_rn(value(x), kept ? keep : real(0)));
    return y;
}

// What goes with Numbers, one for each.
struct alignas(WIDE) Mask { unsigned char v[WIDE]; };
struct alignas(WIDE < 4 ? 4 * WIDE : 16) Uniforms { float v[WIDE]; };

DEVICE Numbers masked(const Numbers& x, const Mask& m, real keep) {
    Numbers y;
#pragma unroll
    for (int k = 0; k < WIDE; k++) y.v[k] = masked(x.v[k], m.v[k], keep);
    return y;
}

// mask = u ≥ rate, kept for the adjoint; y = x keep there, 0 elsewhere.
extern "C" __global__ void __launch_bounds__(256) pointwise_dropout(
    const stored* __restrict__ x, const float* __restrict__ u, stored* __restrict__ y, unsigned char* __restrict__ mask,
    u64 n, float rate, real keep) {
    u64 wides = in_sixteens(x, u, y) ? n / WIDE : 0;
    for (u64 i = first_index(); i < wides; i += index_step()) {
        Uniforms v = ((const Uniforms*)u)[i];
        Mask m;
#pragma unroll
        for (int k = 0; k < WIDE; k++) m.v[k] = v.v[k] >= rate;
        ((Mask*)mask)[i] = m;
        ((Numbers*)y)[i] = masked(get((const Numbers*)x + i), m, keep);
    }
    for (u64 i = WIDE * wides + first_index(); i < n; i += index_step()) {
        mask[i] = u[i] >= rate;
        y[i] = masked(x[i], mask[i], keep);
    }
}

extern "C" __global__ void __launch_bounds__(256) pointwise_dropout_back(
    const stored* __restrict__ dy, const unsigned char* __restrict__ mask, stored* __restrict__ dx, u64 n, real keep) {
    u64 wides = in_sixteens(dy, dx) ? n / WIDE : 0;
    for (u64 i = first_index(); i < wides; i += index_step())
        ((Numbers*)dx)[i] = masked(get((const Numbers*)dy + i), ((const Mask*)mask)[i], keep);
    for (u64 i = WIDE * wides + first_index(); i < n; i += index_step()) dx[i] = masked(dy[i], mask[i], keep);
}

// By itself SiLU is the time embedding's, too small for vectors to matter.
DEVICE real logistic(real x) { return 1 / (1 + exp(-x)); }

extern "C" __global__ void __launch_bounds__(256) pointwise_silu(
    const stored* __restrict__ x, stored* __restrict__ y, u64 n) {
    for (u64 i = first_index(); i < n; i += index_step()) {
        real a = value(x[i]);
        set(y[i], a * logistic(a));
    }
}

// dx = dy σ (1 + x (1 - σ))
extern "C" __global__ void __launch_bounds__(256) pointwise_silu_back(
    const stored* __restrict__ x, const stored* __restrict__ dy, stored* __restrict__ dx, u64 n) {
    for (u64 i = first_index(); i < n; i += index_step()) {
        real a = value(x[i]), s = logistic(a);
        set(dx[i], value(dy[i]) * (s * (1 + a * (1 - s))));
    }
}
