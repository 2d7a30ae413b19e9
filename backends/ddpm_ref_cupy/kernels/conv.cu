// 3x3 convolution as matrix products over gathered windows, and what stands around them; NHWC, filters (3, 3, C, D).
//
// N images, H W rows and columns of the source, P Q of the destination, C channels of the source, D of the destination.

// Window (i, j) of pixel (p, q) reads source pixel ((p stride + i - top) / spread, (q stride + j - left) / spread) where
// that is whole and inside, else 0: stride 1 or 2 with spread 1 is the convolution, stride 1 with spread 1 or 2 its
// adjoint. columns: (N, P, Q, 9, C).
template <class T>
DEVICE void gather_windows(const T* __restrict__ x, T* __restrict__ columns, int N, int H, int W, int C, int P, int Q,
                           int stride, int spread, int top, int left) {
    i64 total = (i64)N * P * Q * 9 * C;
    for (i64 o = first_index(); o < total; o += index_step()) {
        int c = (int)(o % C);
        i64 rest = o / C;
        int tap = (int)(rest % 9);
        rest /= 9;
        int q = (int)(rest % Q), p = (int)(rest / Q % P);
        i64 n = rest / ((i64)P * Q);
        int h = p * stride + tap / 3 - top, w = q * stride + tap % 3 - left;
        bool there = h >= 0 && w >= 0 && h % spread == 0 && w % spread == 0 && h / spread < H && w / spread < W;
        columns[o] = there ? x[((n * H + h / spread) * W + w / spread) * C + c] : T();
    }
}

extern "C" __global__ void __launch_bounds__(256) windows(
    const stored* __restrict__ x, stored* __restrict__ columns, int N, int H, int W, int C, int P, int Q, int stride,
    int spread, int top, int left) {
    gather_windows(x, columns, N, H, W, C, P, Q, stride, spread, top, left);
}

// The same 16 bytes at a time: C counts these.
extern "C" __global__ void __launch_bounds__(256) windows_wide(
    const stored* __restrict__ x, stored* __restrict__ columns, int N, int H, int W, int C, int P, int Q, int stride,
    int spread, int top, int left) {
    gather_windows(reinterpret_cast<const Four<u32>*>(x), reinterpret_cast<Four<u32>*>(columns), N, H, W, C, P, Q, stride,
                   spread, top, left);
}

// y (..., wide) = x (..., C) with zeros behind the channels; size: numbers of y.
extern "C" __global__ void __launch_bounds__(256) filled(
    const float* __restrict__ x, stored* __restrict__ y, long long size, int C, int wide) {
    for (i64 o = first_index(); o < size; o += index_step()) {
        int c = (int)(o % wide);
        set(y[o], c < C ? x[o / wide * C + c] : 0.0f);
    }
}

extern "C" __global__ void __launch_bounds__(256) widened(
    const stored* __restrict__ x, real* __restrict__ y, long long size) {
    for (i64 o = first_index(); o < size; o += index_step()) y[o] = value(x[o]);
}

// W*_ij = W_{2-i, 2-j}ᵀ, (3, 3, D, C): the filters of the adjoint.
extern "C" __global__ void __launch_bounds__(256) turned(const real* __restrict__ W, real* __restrict__ turned, int C, int D) {
    i64 total = (i64)9 * C * D;
    for (i64 o = first_index(); o < total; o += index_step()) {
        int c = (int)(o % C), d = (int)(o / C % D), tap = (int)(o / ((i64)C * D));
        turned[o] = W[((i64)(8 - tap) * C + c) * D + d];
    }
}
