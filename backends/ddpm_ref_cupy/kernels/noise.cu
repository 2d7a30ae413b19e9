// The counted random numbers of ddpm_ref/random.py, bit for bit, alone and fused with Eq. 4 and line 4 of Algorithm 2.
//
// One thread makes the four numbers of one counter: element block b of image n. No operation is fused with another (add_rn,
// mul_rn, ... of the prelude), so these are NumPy's bits on every card.
//
// Common arguments:  samples (N,) the images' numbers   images N   count numbers in an image   seed   step   last purpose
// and layer. Kernels named _at read the step from counters[slot], so that a captured graph can be replayed while another
// kernel advances it; they give the same bits.
#define BLOCK 256

struct Stream { u64 seed; u32 step, last; };

struct Words { u32 w[4]; };

DEVICE Words philox4x32_10(u32 c0, u32 c1, u32 c2, u32 c3, u64 key) {
    u32 k0 = (u32)key, k1 = (u32)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const u32 high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

DEVICE Words words(const Stream& s, u32 sample, u32 block) { return philox4x32_10(block, sample, s.step, s.last, s.seed); }

// --- Box-Muller on 24 bits -------------------------------------------------------------------------------------------

DEVICE float step_of_polynomial(float y, float x, float c) { return add_rn(mul_rn(y, x), c); }

// log(n / 2^24) for n in 1..2^24: `random._log_u24`.
DEVICE float log_u24(u32 n) {
    const u32 bits = __float_as_uint((float)n);
    int exponent = (int)(bits >> 23) - (126 + 24);
    float m = __uint_as_float((bits & 0x007FFFFFu) | 0x3F000000u);  // in [1/2, 1)
    if (m < 0.70710678f) exponent -= 1, m = add_rn(m, m);
    const float f = add_rn(m, -1.0f), f2 = mul_rn(f, f), e = (float)exponent;
    float y = 7.0376836292e-2f;
    y = step_of_polynomial(y, f, -1.1514610310e-1f);
    y = step_of_polynomial(y, f, 1.1676998740e-1f);
    y = step_of_polynomial(y, f, -1.2420140846e-1f);
    y = step_of_polynomial(y, f, 1.4249322787e-1f);
    y = step_of_polynomial(y, f, -1.6668057665e-1f);
    y = step_of_polynomial(y, f, 2.0000714765e-1f);
    y = step_of_polynomial(y, f, -2.4999993993e-1f);
    y = step_of_polynomial(y, f, 3.3333331174e-1f);
    y = mul_rn(mul_rn(y, f), f2);
    y = add_rn(y, mul_rn(-2.12194440e-4f, e));
    y = add_rn(y, mul_rn(-0.5f, f2));
    y = add_rn(f, y);
    return add_rn(y, mul_rn(0.693359375f, e));
}

// The angle of 24 bits: 2 choose the quadrant, 22 the angle about its middle. `random._sin_cos_u24`.
DEVICE void sin_cos_u24(u32 n, float& sin, float& cos) {
    const int r = (int)(n & 0x3FFFFFu) - 0x200000;
    const float a = mul_rn(add_rn((float)r, 0.5f), 3.7450702e-7f), a2 = mul_rn(a, a);
    float s = -1.9515295891e-4f;
    s = step_of_polynomial(s, a2, 8.3321608736e-3f);
    s = step_of_polynomial(s, a2, -1.6666654611e-1f);
    s = add_rn(mul_rn(mul_rn(s, a2), a), a);
    float c = 2.443315711809948e-5f;
    c = step_of_polynomial(c, a2, -1.388731625493765e-3f);
    c = step_of_polynomial(c, a2, 4.166664568298827e-2f);
    c = add_rn(add_rn(mul_rn(mul_rn(c, a2), a2), mul_rn(-0.5f, a2)), 1.0f);
    const float u = mul_rn(0.70710678f, add_rn(c, s)), v = mul_rn(0.70710678f, sub_rn(c, s));
    // By quadrant (sin, cos) is (u, v), (v, -u), (-u, -v), (-v, u).
    const bool odd = n >> 22 & 1u, second_half = n >> 23 & 1u;
    sin = odd ? v : u;
    cos = odd ? u : v;
    if (second_half) sin = -sin;
    if (odd != second_half) cos = -cos;
}

DEVICE Four<float> normals(const Stream& s, u32 sample, u32 block) {
    const Words x = words(s, sample, block);
    const float r0 = sqrt_rn(mul_rn(-2.0f, log_u24((x.w[0] >> 8) + 1u)));
    const float r1 = sqrt_rn(mul_rn(-2.0f, log_u24((x.w[2] >> 8) + 1u)));
    float sin0, cos0, sin1, cos1;
    sin_cos_u24(x.w[1] >> 8, sin0, cos0);
    sin_cos_u24(x.w[3] >> 8, sin1, cos1);
    return {mul_rn(r0, cos0), mul_rn(r0, sin0), mul_rn(r1, cos1), mul_rn(r1, sin1)};
}

DEVICE Four<float> uniforms(const Stream& s, u32 sample, u32 block) {
    const Words x = words(s, sample, block);
    const float unit = 5.9604644775390625e-8f;  // 2^-24
    return {mul_rn((float)(x.w[0] >> 8), unit), mul_rn((float)(x.w[1] >> 8), unit),
            mul_rn((float)(x.w[2] >> 8), unit), mul_rn((float)(x.w[3] >> 8), unit)};
}

// --- who does what ---------------------------------------------------------------------------------------------------

struct Place { i64 image, first; u32 block; int left; };  // four numbers from `first` on, or the `left` there are

DEVICE i64 blocks_of(i64 count) { return (count + 3) / 4; }

DEVICE Place place(i64 i, i64 count) {
    const i64 blocks = blocks_of(count);
    const i64 n = i >> 32 || blocks >> 32 ? i / blocks : (i64)((u32)i / (u32)blocks);
    const u32 block = (u32)(i - n * blocks);
    const i64 left = count - 4 * (i64)block;
    return {n, n * count + 4 * (i64)block, block, left < 4 ? (int)left : 4};
}

DEVICE Four<real> in_real(const Four<float>& z) { return {(real)z.x, (real)z.y, (real)z.z, (real)z.w}; }

// Four at once where the address allows it.
template <class T> DEVICE Four<T> get(const T* p, const Place& at) {
    p += at.first;
    if (at.left == 4 && (u64)p % alignof(Four<T>) == 0) return load4(p);
    return {p[0], at.left > 1 ? p[1] : T(0), at.left > 2 ? p[2] : T(0), at.left > 3 ? p[3] : T(0)};
}

template <class T> DEVICE void put(T* p, const Place& at, const Four<T>& v) {
    p += at.first;
    if (at.left == 4 && (u64)p % alignof(Four<T>) == 0) return store4(p, v);
    p[0] = v.x;
    if (at.left > 1) p[1] = v.y;
    if (at.left > 2) p[2] = v.z;
    if (at.left > 3) p[3] = v.w;
}

// --- draws -----------------------------------------------------------------------------------------------------------

DEVICE void draw_normal(float* out, const u32* samples, i64 images, i64 count, const Stream& s) {
    for (i64 i = first_index(); i < images * blocks_of(count); i += index_step()) {
        const Place at = place(i, count);
        put(out, at, normals(s, samples[at.image], at.block));
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK)
normal(float* __restrict__ out, const u32* __restrict__ samples, i64 images, i64 count, u64 seed, u32 step, u32 last) {
    draw_normal(out, samples, images, count, {seed, step, last});
}

extern "C" __global__ void __launch_bounds__(BLOCK)
normal_at(float* __restrict__ out, const u32* __restrict__ samples, i64 images, i64 count, u64 seed,
          const int* __restrict__ counters, int slot, u32 last) {
    draw_normal(out, samples, images, count, {seed, (u32)counters[slot], last});
}

DEVICE void draw_uniform(float* out, const u32* samples, i64 images, i64 count, const Stream& s) {
    for (i64 i = first_index(); i < images * blocks_of(count); i += index_step()) {
        const Place at = place(i, count);
        put(out, at, uniforms(s, samples[at.image], at.block));
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK)
uniform(float* __restrict__ out, const u32* __restrict__ samples, i64 images, i64 count, u64 seed, u32 step, u32 last) {
    draw_uniform(out, samples, images, count, {seed, step, last});
}

extern "C" __global__ void __launch_bounds__(BLOCK)
uniform_at(float* __restrict__ out, const u32* __restrict__ samples, i64 images, i64 count, u64 seed,
           const int* __restrict__ counters, int slot, u32 last) {
    draw_uniform(out, samples, images, count, {seed, (u32)counters[slot], last});
}

// lowest + one of 0..n-1 for each image: `random.integers`.
extern "C" __global__ void __launch_bounds__(BLOCK)
integers_at(int* __restrict__ out, const u32* __restrict__ samples, i64 images, u64 seed,
            const int* __restrict__ counters, int slot, u32 last, u32 n, int lowest) {
    for (i64 i = first_index(); i < images; i += index_step())
        out[i] = lowest + (int)__umulhi(words({seed, (u32)counters[slot], last}, samples[i], 0).w[0], n);
}

// --- dropout by uniforms that are nowhere kept -----------------------------------------------------------------------

// By 0 and not to 0, as NumPy: the sign stays.
DEVICE real dropped(real x, float u, float rate, real keep) { return mul_rn(x, u >= rate ? keep : real(0)); }

// y = x keep where the uniform is at least the rate, 0 elsewhere. The adjoint is the same of dy: it draws them again.
extern "C" __global__ void __launch_bounds__(BLOCK)
dropout_at(const stored* __restrict__ x, stored* __restrict__ y, const u32* __restrict__ samples, i64 images, i64 count,
           u64 seed, const int* __restrict__ counters, int slot, u32 last, float rate, real keep) {
    const Stream s = {seed, (u32)counters[slot], last};
    for (i64 i = first_index(); i < images * blocks_of(count); i += index_step()) {
        const Place at = place(i, count);
        const Four<float> u = uniforms(s, samples[at.image], at.block);
        Four<stored> a = get(x, at);
        set(a.x, dropped(value(a.x), u.x, rate, keep)), set(a.y, dropped(value(a.y), u.y, rate, keep));
        set(a.z, dropped(value(a.z), u.z, rate, keep)), set(a.w, dropped(value(a.w), u.w, rate, keep));
        put(y, at, a);
    }
}

// --- Eq. 4: x_t = signal x_0 + noise eps -----------------------------------------------------------------------------

DEVICE real noised(real signal, real x_0, real noise, real eps) { return add_rn(mul_rn(signal, x_0), mul_rn(noise, eps)); }

// signal, noise: one number for each image, or with t tables of T + 1.
DEVICE void noise_images(real* x_t, real* eps, const real* x_0, const real* signal, const real* noise, const int* t,
                         const u32* samples, i64 images, i64 count, const Stream& s) {
    for (i64 i = first_index(); i < images * blocks_of(count); i += index_step()) {
        const Place at = place(i, count);
        const i64 k = t ? t[at.image] : at.image;
        const real a = signal[k], b = noise[k];
        const Four<real> z = in_real(normals(s, samples[at.image], at.block)), x = get(x_0, at);
        put(eps, at, z);
        put(x_t, at, {noised(a, x.x, b, z.x), noised(a, x.y, b, z.y), noised(a, x.z, b, z.z), noised(a, x.w, b, z.w)});
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK)
q_sample(real* __restrict__ x_t, real* __restrict__ eps, const real* __restrict__ x_0, const real* __restrict__ signal,
         const real* __restrict__ noise, const u32* __restrict__ samples, i64 images, i64 count, u64 seed, u32 step,
         u32 last) {
    noise_images(x_t, eps, x_0, signal, noise, nullptr, samples, images, count, {seed, step, last});
}

extern "C" __global__ void __launch_bounds__(BLOCK)
q_sample_at(real* __restrict__ x_t, real* __restrict__ eps, const real* __restrict__ x_0,
            const real* __restrict__ signal, const real* __restrict__ noise, const int* __restrict__ t,
            const u32* __restrict__ samples, i64 images, i64 count, u64 seed, const int* __restrict__ counters,
            int slot, u32 last) {
    noise_images(x_t, eps, x_0, signal, noise, t, samples, images, count, {seed, (u32)counters[slot], last});
}

// --- line 4 of Algorithm 2 -------------------------------------------------------------------------------------------
//
//   x_0_hat = k_0 x_t - k_1 output, or the output itself       clipped to [-1, 1] if asked
//   x_prev  = k_2 x_t + k_3 (output or x_0_hat)  +  sigma z    without z at t = 1

enum { PREDICTS_X_0 = 1, MEAN_FROM_X_0 = 2, CLIP = 4 };

struct Reverse { real k_0, k_1, k_2, k_3, sigma; };

// NaN stays NaN, as in np.clip.
DEVICE real clipped(real x) { return x < real(-1) ? real(-1) : x > real(1) ? real(1) : x; }

DEVICE real reverse_one(const Reverse& k, int form, bool noisy, real x, real output, real z, real& x_0_hat) {
    x_0_hat = form & PREDICTS_X_0 ? output : sub_rn(mul_rn(k.k_0, x), mul_rn(k.k_1, output));
    if (form & CLIP) x_0_hat = clipped(x_0_hat);
    const real mean = add_rn(mul_rn(k.k_2, x), mul_rn(k.k_3, form & MEAN_FROM_X_0 ? x_0_hat : output));
    return noisy ? add_rn(mean, mul_rn(k.sigma, z)) : mean;
}

// x_prev may be x_t.
DEVICE void reverse_images(real* x_prev, real* x_0_hat, const real* x_t, const real* output, const u32* samples,
                           i64 images, i64 count, const Stream& s, const Reverse& k, int form) {
    const bool noisy = s.step > 1;
    for (i64 i = first_index(); i < images * blocks_of(count); i += index_step()) {
        const Place at = place(i, count);
        const Four<real> x = get(x_t, at), o = get(output, at);
        Four<real> z = {0, 0, 0, 0}, y, x_0;
        if (noisy) z = in_real(normals(s, samples[at.image], at.block));
        y.x = reverse_one(k, form, noisy, x.x, o.x, z.x, x_0.x);
        y.y = reverse_one(k, form, noisy, x.y, o.y, z.y, x_0.y);
        y.z = reverse_one(k, form, noisy, x.z, o.z, z.z, x_0.z);
        y.w = reverse_one(k, form, noisy, x.w, o.w, z.w, x_0.w);
        put(x_0_hat, at, x_0);
        put(x_prev, at, y);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK)
p_sample(real* x_prev, real* x_0_hat, const real* x_t, const real* output, const u32* samples, i64 images, i64 count,
         u64 seed, u32 t, u32 last, real k_0, real k_1, real k_2, real k_3, real sigma, int form) {
    reverse_images(x_prev, x_0_hat, x_t, output, samples, images, count, {seed, t, last},
                   {k_0, k_1, k_2, k_3, sigma}, form);
}

// t = counters[slot]; table: (T + 1, 5), k_0 ... sigma of each t.
extern "C" __global__ void __launch_bounds__(BLOCK)
p_sample_at(real* x_prev, real* x_0_hat, const real* x_t, const real* output, const u32* samples, i64 images, i64 count,
            u64 seed, const int* counters, int slot, u32 last, const real* table, int form) {
    const u32 t = (u32)counters[slot];
    const real* k = table + 5 * (i64)t;
    reverse_images(x_prev, x_0_hat, x_t, output, samples, images, count, {seed, t, last},
                   {k[0], k[1], k[2], k[3], k[4]}, form);
}
