// Clipping, Adam and EMA over the flat vectors: ddpm_ref/nn/optim.py, each line of it one line here, rounded alike.
//
//   square_sums   partial sums of g^2, in float64, of a fixed share each: the same norm every time on every card
//   prepare       one block: the norm, and from it and the step's number what all parameters share
//   apply         one pass over the five vectors; nothing is changed if the norm is NaN or infinite
#define BLOCK 256

enum { NORM, CLIP, RATE, ROOT, DECAY, SCALARS };  // of `scalars`, float64

// partial[b] = sum of g^2 over the numbers that block b's threads take in turn.
extern "C" __global__ void __launch_bounds__(BLOCK)
square_sums(const real* __restrict__ g, double* __restrict__ partial, i64 n) {
    __shared__ double scratch[BLOCK / 32];
    double sum = 0;
    const i64 whole = (u64)g % 16 == 0 ? n / 4 : 0;
    for (i64 i = first_index(); i < whole; i += index_step()) {
        const Four<real> v = load4(g + 4 * i);
        sum += ((double)v.x * v.x + (double)v.y * v.y) + ((double)v.z * v.z + (double)v.w * v.w);
    }
    for (i64 i = 4 * whole + first_index(); i < n; i += index_step()) sum += (double)g[i] * g[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// k = counters[slot], the step's number from 1 on.  clip_norm: infinite for none.  warmup: steps, 0 for none.
extern "C" __global__ void __launch_bounds__(BLOCK)
prepare(const double* __restrict__ partial, int count, const int* __restrict__ counters, int slot,
        double* __restrict__ scalars, double lr, double warmup, double beta_1, double beta_2, double clip_norm,
        double ema) {
    __shared__ double scratch[BLOCK / 32];
    double sum = 0;
    for (int i = threadIdx.x; i < count; i += BLOCK) sum += partial[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x != 0) return;
    const double k = counters[slot], norm = sqrt_rn(sum);
    const double risen = warmup > 0 && k < warmup ? div_rn(k, warmup) : 1.0;
    scalars[NORM] = norm;
    scalars[CLIP] = norm <= clip_norm ? 1.0 : div_rn(clip_norm, norm);
    scalars[RATE] = div_rn(mul_rn(lr, risen), sub_rn(1.0, pow(beta_1, k)));
    scalars[ROOT] = div_rn(1.0, sqrt_rn(sub_rn(1.0, pow(beta_2, k))));
    scalars[DECAY] = k > 1 ? ema : 0.0;
}

struct Settings { real clip, rate, root, decay, kept, beta_1, rest_1, beta_2, rest_2, epsilon; };  // kept: 1 - decay

DEVICE void adam(const Settings& s, real g, real& theta, real& m, real& v, real& ema) {
    g = mul_rn(g, s.clip);
    m = add_rn(mul_rn(m, s.beta_1), mul_rn(s.rest_1, g));
    g = mul_rn(g, g);
    v = add_rn(mul_rn(v, s.beta_2), mul_rn(s.rest_2, g));
    const real denominator = add_rn(mul_rn(sqrt_rn(v), s.root), s.epsilon);
    theta = sub_rn(theta, mul_rn(div_rn(m, denominator), s.rate));
    ema = add_rn(mul_rn(ema, s.decay), mul_rn(s.kept, theta));
}

// rest_1, rest_2: 1 - beta_1 and 1 - beta_2, rounded once.
extern "C" __global__ void __launch_bounds__(BLOCK)
apply(real* __restrict__ theta, const real* __restrict__ g, real* __restrict__ m, real* __restrict__ v,
      real* __restrict__ ema, i64 n, const double* __restrict__ scalars, real beta_1, real rest_1, real beta_2,
      real rest_2, real epsilon) {
    const double norm = scalars[NORM];
    if (!(norm < 1.0 / 0.0)) return;
    const Settings s = {(real)scalars[CLIP], (real)scalars[RATE], (real)scalars[ROOT], (real)scalars[DECAY],
                        (real)(1.0 - scalars[DECAY]), beta_1, rest_1, beta_2, rest_2, epsilon};
    const bool aligned = (((u64)theta | (u64)g | (u64)m | (u64)v | (u64)ema) % 16) == 0;
    const i64 whole = aligned ? n / 4 : 0;
    for (i64 i = first_index(); i < whole; i += index_step()) {
        const i64 at = 4 * i;
        const Four<real> a = load4(g + at);
        Four<real> p = load4(theta + at), b = load4(m + at), c = load4(v + at), e = load4(ema + at);
        adam(s, a.x, p.x, b.x, c.x, e.x);
        adam(s, a.y, p.y, b.y, c.y, e.y);
        adam(s, a.z, p.z, b.z, c.z, e.z);
        adam(s, a.w, p.w, b.w, c.w, e.w);
        store4(theta + at, p), store4(m + at, b), store4(v + at, c), store4(ema + at, e);
    }
    for (i64 i = 4 * whole + first_index(); i < n; i += index_step()) adam(s, g[i], theta[i], m[i], v[i], ema[i]);
}
