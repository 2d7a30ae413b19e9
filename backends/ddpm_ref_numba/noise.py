"""The counted random numbers of `ddpm_ref.random` in vectors, bit for bit, alone and fused with Eq. 4 and Eq. 11.

One group is WIDTH counters side by side, 4 · WIDTH numbers in memory's order. No `fma` in this file: every operation
is rounded on its own, as in NumPy, and LLVM fuses a·b + c only where it is told that it may. So these are NumPy's bits
for any width, split of the batch and number of threads.
"""

from typing import Any

import numpy as np
from numba import njit

from ddpm_ref import forward, reverse
from ddpm_ref.checks import Array, check_same_shape, check_step
from ddpm_ref.random import _COS_P, _LOG_2, _LOG_P, _SIN_P, _SQRT_HALF, Purpose, _checked
from ddpm_ref.schedule import Schedule
from ddpm_ref.workspace import FLOAT32
from ddpm_ref_numba.launch import kernel
from ddpm_ref_numba.simd import WIDTH, each, f4, f32, i64, i64s, load, real, splat, sqrt, store
from ddpm_ref_numba.simd_int import (
    bits,
    from_bits,
    interleave,
    load_some,
    number,
    philox4x32_10,
    store_some,
    where_bit,
    where_less,
)  # fmt: skip

GROUP = 4 * WIDTH
SERIAL = 1 << 14  # fewer numbers than this take less time than waking the other threads


# --- a group ----------------------------------------------------------------------------------------------------------

_P = [f4(c) for c in _LOG_P]
_S = [f4(c) for c in _SIN_P]
_C = [f4(c) for c in _COS_P]
L0, L1, L2, L3, L4, L5, L6, L7, L8 = _P
S0, S1, S2 = _S
C0, C1, C2 = _C
LOG_2_LOW, LOG_2_HIGH = _LOG_2
SQRT_HALF = _SQRT_HALF


@njit
def log_u24(w):
    """log u of the uniforms in (0, 1] of 32-bit words: `random._log_u24`."""
    n = bits(number((w >> 8) + 1))
    m = from_bits((n & 0x007FFFFF) | 0x3F000000)  # mantissa in [½, 1)
    e = number((n >> 23) - (126 + 24))
    f = where_less(m, splat(SQRT_HALF), m + m, m) + f4(-1)
    e = where_less(m, splat(SQRT_HALF), e + f4(-1), e)
    f2 = f * f
    p = splat(L0) * f + L1
    p = ((((((p * f + L2) * f + L3) * f + L4) * f + L5) * f + L6) * f + L7) * f + L8
    y = (p * f) * f2
    y = y + e * LOG_2_LOW
    y = y + f2 * f4(-0.5)
    y = f + y
    return y + e * LOG_2_HIGH


@njit
def sin_cos_u24(w):
    """sin and cos of the angles of 32-bit words: `random._sin_cos_u24`. Bits 31 and 30 are the quadrant."""
    r = ((w >> 8) & 0x3FFFFF) - 0x200000
    a = (number(r) + f4(0.5)) * f4(3.7450702e-7)
    a2 = a * a
    s = (((splat(S0) * a2 + S1) * a2 + S2) * a2) * a + a
    c = ((((splat(C0) * a2 + C1) * a2 + C2) * a2) * a2 + a2 * f4(-0.5)) + f4(1)
    u, v = (c + s) * SQRT_HALF, (c - s) * SQRT_HALF
    # (sin, cos) is (u, v), (v, -u), (-u, -v), (-v, u): swapped by the lower bit, the signs by both.
    sin = bits(where_bit(w, 30, v, u)) ^ (w & 0x80000000)
    cos = bits(where_bit(w, 30, u, v)) ^ ((w ^ (w << 1)) & 0x80000000)
    return from_bits(sin), from_bits(cos)


@njit
def pair(w_0, w_1):
    """Box-Muller: two normals of two words."""
    r = sqrt(log_u24(w_0) * f4(-2))
    sin, cos = sin_cos_u24(w_1)
    return r * cos, r * sin


@njit
def normals(e, sample, step, last, k0, k1):
    """GROUP normals of an image from element e on, in memory's order."""
    w = philox4x32_10(e // 4, sample, step, last, k0, k1)
    a, b = pair(w[0], w[1])
    c, d = pair(w[2], w[3])
    return interleave(a, b, c, d)


@njit
def put(p, i, left, v):
    """Store a group, or its first `left` numbers."""
    if left >= GROUP:
        for j in range(4):
            store(p, i + j * WIDTH, v[j])
    else:
        for j in range(4):
            store_some(p, i + j * WIDTH, v[j], left - j * WIDTH)


@njit
def get(p, i, left):
    """Load a group, or its first `left` numbers."""
    if left >= GROUP:
        return load(p, i), load(p, i + WIDTH), load(p, i + 2 * WIDTH), load(p, i + 3 * WIDTH)
    return (
        load_some(p, i, left),
        load_some(p, i + WIDTH, left - WIDTH),
        load_some(p, i + 2 * WIDTH, left - 2 * WIDTH),
        load_some(p, i + 3 * WIDTH, left - 3 * WIDTH),
    )


@njit
def share(thread, threads, images, count):
    """A thread's groups: how many, the image of the first and its first element."""
    groups = (count + GROUP - 1) // GROUP
    first, end = thread * images * groups // threads, (thread + 1) * images * groups // threads
    return end - first, first // groups, first % groups * GROUP


# --- kernels ----------------------------------------------------------------------------------------------------------
# The first words of every kernel's arguments: samples, images, count, k0, k1, step, last.


@kernel
def uniform_kernel(thread, threads, args):
    samples, count, out = i64s(args, 0), i64(args, 2), f32(args, 7)
    k0, k1, step, last = i64(args, 3), i64(args, 4), i64(args, 5), i64(args, 6)
    groups, n, e = share(thread, threads, i64(args, 1), count)
    for _ in range(groups):
        w = philox4x32_10(e // 4, samples[n], step, last, k0, k1)
        u = interleave(number(w[0] >> 8), number(w[1] >> 8), number(w[2] >> 8), number(w[3] >> 8))
        scale = f4(2**-24)
        put(out, n * count + e, count - e, (u[0] * scale, u[1] * scale, u[2] * scale, u[3] * scale))
        e += GROUP
        if e >= count:
            n, e = n + 1, 0


@kernel
def normal_kernel(thread, threads, args):
    samples, count, out = i64s(args, 0), i64(args, 2), f32(args, 7)
    k0, k1, step, last = i64(args, 3), i64(args, 4), i64(args, 5), i64(args, 6)
    groups, n, e = share(thread, threads, i64(args, 1), count)
    for _ in range(groups):
        put(out, n * count + e, count - e, normals(e, samples[n], step, last, k0, k1))
        e += GROUP
        if e >= count:
            n, e = n + 1, 0


@kernel
def q_sample_kernel(thread, threads, args):
    """x_t = signal_n x_0 + noise_n ε (Eq. 4), and ε."""
    samples, count, x_t, eps, x_0 = i64s(args, 0), i64(args, 2), f32(args, 7), f32(args, 8), f32(args, 9)
    k0, k1, step, last = i64(args, 3), i64(args, 4), i64(args, 5), i64(args, 6)
    signal, noise = f32(args, 10), f32(args, 11)
    groups, n, e = share(thread, threads, i64(args, 1), count)
    for _ in range(groups):
        i, left = n * count + e, count - e
        z = normals(e, samples[n], step, last, k0, k1)
        put(eps, i, left, z)
        x = get(x_0, i, left)
        a, b = each(signal, n), each(noise, n)
        put(x_t, i, left, (a * x[0] + b * z[0], a * x[1] + b * z[1], a * x[2] + b * z[2], a * x[3] + b * z[3]))
        e += GROUP
        if e >= count:
            n, e = n + 1, 0


@njit
def clipped(x):
    """x in [-1, 1], NaN staying NaN as in `np.clip`."""
    one, minus = splat(f4(1)), splat(f4(-1))
    return where_less(x, minus, minus, where_less(one, x, one, x))


@njit
def reverse_vector(x_prev, x_0_hat, x_t, output, i, left, k):
    """x̂_0 and the mean of WIDTH numbers of x_{t-1}; k: the coefficients and whether to clip."""
    x, eps = load_some(x_t, i, left), load_some(output, i, left)
    x_0 = x * k[0] - eps * k[1]
    rest = eps
    if k[4] != f4(0):
        x_0 = clipped(x_0)
        rest = x_0
    store_some(x_0_hat, i, x_0, left)
    return x * k[2] + rest * k[3]


@kernel
def p_sample_kernel(thread, threads, args):
    """x̂_0 = k_0 x_t - k_1 ε;  x_{t-1} = (k_2 x_t + k_3 ε, or k_3 x̂_0 if clipped) + σ z, without z if not noisy."""
    samples, count, x_prev, x_0_hat = i64s(args, 0), i64(args, 2), f32(args, 7), f32(args, 8)
    k0, k1, step, last = i64(args, 3), i64(args, 4), i64(args, 5), i64(args, 6)
    x_t, output, noisy, sigma = f32(args, 9), f32(args, 10), i64(args, 11), f4(real(args, 12))
    k = (f4(real(args, 13)), f4(real(args, 14)), f4(real(args, 15)), f4(real(args, 16)), f4(real(args, 17)))
    groups, n, e = share(thread, threads, i64(args, 1), count)
    for _ in range(groups):
        i, left = n * count + e, count - e
        if noisy:
            put(x_prev, i, left, normals(e, samples[n], step, last, k0, k1))
        for j in range(0, GROUP, WIDTH):
            mean = reverse_vector(x_prev, x_0_hat, x_t, output, i + j, left - j, k)
            if noisy:
                mean = mean + load_some(x_prev, i + j, left - j) * sigma
            store_some(x_prev, i + j, mean, left - j)
        e += GROUP
        if e >= count:
            n, e = n + 1, 0


# --- the backend's methods --------------------------------------------------------------------------------------------


def _run(be: Any, launch: Any, seed: int, purpose: Purpose, step: int, samples: Array, layer: int, count: int,
         *args: Any) -> None:  # fmt: skip
    ids = samples.astype(np.int64)
    threads = be.threads if len(ids) * count >= SERIAL else 1
    if len(ids) * count:
        key = seed & 0xFFFFFFFF, seed >> 32
        launch(threads, ids, len(ids), count, *key, step, int(purpose) | layer << 8, *args)


def _draw(be: Any, launch: Any, seed: int, purpose: Purpose, step: int, samples: Any, shape: Any, layer: int) -> Array:
    ids = _checked(seed, step, samples, layer)
    out = np.empty((len(ids), *shape), np.float32)
    _run(be, launch, int(seed), purpose, int(step), ids, int(layer), int(np.prod(shape)), out)
    return out


def normal(be: Any, seed: int, purpose: Purpose, step: int, samples: Any, shape: Any, *, layer: int = 0) -> Array:
    """`random.normal`."""
    return _draw(be, normal_kernel, seed, purpose, step, samples, shape, layer)


def uniform(be: Any, seed: int, purpose: Purpose, step: int, samples: Any, shape: Any, *, layer: int = 0) -> Array:
    """`random.uniform`."""
    return _draw(be, uniform_kernel, seed, purpose, step, samples, shape, layer)


def q_sample(
    be: Any, schedule: Schedule, x_0: Array, t: Any, seed: int, step: int, samples: Any
) -> tuple[Array, Array]:
    """x_t and ε of Eq. 4, float32."""
    check_step(schedule.T, t, x_0)
    ids = _ids(seed, step, samples, x_0)
    abar = np.broadcast_to(schedule.alpha_bar[t], len(x_0))
    signal, noise = (np.ascontiguousarray(c, np.float32) for c in (np.sqrt(abar), np.sqrt(1 - abar)))
    x_0 = np.ascontiguousarray(x_0)
    x_t, eps = np.empty_like(x_0), np.empty_like(x_0)
    count = int(np.prod(x_0.shape[1:]))
    _run(be, q_sample_kernel, int(seed), Purpose.EPS, int(step), ids, 0, count, x_t, eps, x_0, signal, noise)
    return x_t, eps


def takes(x_t: Array, t: Any, output: Array, predicts: str, var: Any) -> bool:
    """Whether `p_sample` has a kernel: float32, one t, a prediction of ε, a variance that is not the network's."""
    float32 = x_t.dtype == output.dtype == FLOAT32
    fixed = not (isinstance(var, str) and var == "learned")
    return bool(float32 and fixed and predicts == "eps" and x_t.ndim and np.ndim(t) == 0)


def p_sample(
    be: Any, schedule: Schedule, x_t: Array, t: int, output: Array, seed: int, samples: Any, *, var: Any, clip: bool,
    temperature: float,
) -> tuple[Array, Array]:  # fmt: skip
    """One step of Algorithm 2 of a network that predicts ε, with a variance that is not learned; float32."""
    check_same_shape(x_t=x_t, eps=output)
    check_step(schedule.T, t, x_t)
    forward.check_eps_predictable(schedule, t)
    ids = _ids(seed, int(t), samples, x_t)
    abar = schedule.alpha_bar[t]
    k = [1 / np.sqrt(abar), np.sqrt(1 - abar) / np.sqrt(abar)]
    if clip:
        k += reversed(forward.posterior_coefficients(schedule, t))
    else:
        k += [1 / np.sqrt(schedule.alpha[t]), reverse.mean_slope(schedule, t, "eps")]
    sigma = float(temperature) * np.sqrt(np.float32(reverse.reverse_variance(schedule, var)[t]))
    x_t, output = np.ascontiguousarray(x_t), np.ascontiguousarray(output)
    x_prev, x_0_hat = np.empty_like(x_t), np.empty_like(x_t)
    args = x_prev, x_0_hat, x_t, output, int(t > 1), *map(float, (sigma, *k, clip))
    _run(be, p_sample_kernel, int(seed), Purpose.Z, int(t), ids, 0, int(np.prod(x_t.shape[1:])), *args)
    return x_prev, x_0_hat


def _ids(seed: int, step: int, samples: Any, x: Array) -> Array:
    ids = _checked(seed, step, samples, 0)
    if len(ids) != len(x):
        raise ValueError(f"samples: wanted one number for each of the {len(x)} images, got {len(ids)}")
    return ids
