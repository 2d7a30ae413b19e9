"""Clipping, Adam and EMA in one pass over the flat vectors: `optim.update`, bound by memory alone.

Five numbers are read and four written for each parameter, after a pass over the gradient for its norm. No `fma`: the
arithmetic is free here, and without it the results are NumPy's bits wherever the norm rounds to the same clip factor.
"""

import math
from typing import Any

import numpy as np
from numba import njit

from ddpm_ref.checks import Array
from ddpm_ref.nn.optim import AdamSettings
from ddpm_ref.workspace import FLOAT32
from ddpm_ref_numba.launch import kernel
from ddpm_ref_numba.simd import WIDTH, f4, f32, i64, load, real, sqrt, store
from ddpm_ref_numba.simd_int import f64, load_some, partial_squares, store_some, wide_sum, wide_zero

# Numbers whose squares are summed on their own: the order of summation is then the same for any threads.
CHUNK = 1 << 14


@kernel
def squares_kernel(thread, threads, args):
    """sums[k] = Σ g² over the k-th chunk, in float64."""
    g, sums, count = f32(args, 0), f64(args, 1), i64(args, 2)
    chunks = (count + CHUNK - 1) // CHUNK
    for k in range(thread * chunks // threads, (thread + 1) * chunks // threads):
        first, end = k * CHUNK, min((k + 1) * CHUNK, count)
        a, b = wide_zero(), wide_zero()
        i = first
        while i + 2 * WIDTH <= end:
            a, b = partial_squares(a, load(g, i)), partial_squares(b, load(g, i + WIDTH))
            i += 2 * WIDTH
        while i < end:
            a = partial_squares(a, load_some(g, i, end - i))
            i += WIDTH
        sums[k] = wide_sum(a) + wide_sum(b)


@njit(error_model="numpy")
def adam(theta, g, m, v, ema, s):
    """The new θ, m, v and ema; s: see `update_kernel`. Every line one line of `optim.update`."""
    g = g * s[0]
    m = m * s[1] + g * s[2]
    v = v * s[3] + (g * g) * s[4]
    delta = m / (sqrt(v) * s[5] + s[6]) * s[7]
    theta = theta - delta
    return theta, m, v, ema * s[8] + theta * s[9]


@kernel
def update_kernel(thread, threads, args):
    """Numbers from argument 6 on: clip, β₁, 1-β₁, β₂, 1-β₂, 1/√(1-β₂^k), ε, rate, decay, 1-decay."""
    theta, g, m, v, ema, count = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), f32(args, 4), i64(args, 5)
    s = (
        f4(real(args, 6)), f4(real(args, 7)), f4(real(args, 8)), f4(real(args, 9)), f4(real(args, 10)),
        f4(real(args, 11)), f4(real(args, 12)), f4(real(args, 13)), f4(real(args, 14)), f4(real(args, 15)),
    )  # fmt: skip
    vectors = (count + WIDTH - 1) // WIDTH
    i, end = thread * vectors // threads * WIDTH, min((thread + 1) * vectors // threads * WIDTH, count)
    while i + WIDTH <= end:
        p, a, b, e = adam(load(theta, i), load(g, i), load(m, i), load(v, i), load(ema, i), s)
        store(theta, i, p)
        store(m, i, a)
        store(v, i, b)
        store(ema, i, e)
        i += WIDTH
    n = end - i
    if n > 0:
        p, a, b, e = adam(
            load_some(theta, i, n), load_some(g, i, n), load_some(m, i, n), load_some(v, i, n), load_some(ema, i, n), s
        )
        store_some(theta, i, p, n)
        store_some(m, i, a, n)
        store_some(v, i, b, n)
        store_some(ema, i, e, n)


def takes(params: Array, grads: Array, m: Array, v: Array, ema: Array) -> bool:
    """The kernels' rule: plain float32 vectors of one length, writeable but for grads."""
    size = (params.size,)
    return all(
        type(a) is np.ndarray and a.dtype == FLOAT32 and a.shape == size and a.flags.c_contiguous
        for a in (params, grads, m, v, ema)
    ) and all(a.flags.writeable for a in (params, m, v, ema))


def gradient_norm(be: Any, grads: Array) -> float:
    """`optim.gradient_norm`: the same for any number of threads."""
    sums = np.zeros(-(-len(grads) // CHUNK))
    if len(grads):
        squares_kernel(be.threads if len(sums) > 1 else 1, grads, sums, len(grads))
    return math.sqrt(float(np.sum(sums)))


def update(
    be: Any, params: Array, grads: Array, m: Array, v: Array, ema: Array, step: int, settings: AdamSettings
) -> float:
    """`optim.update` for what `takes` allows."""
    s = settings
    norm = gradient_norm(be, grads)
    if not math.isfinite(norm) or not len(params):
        return norm
    clip = 1.0 if s.clip_norm is None or norm <= s.clip_norm else s.clip_norm / norm
    rate = s.learning_rate(step) / (1 - s.beta_1**step)
    root = 1 / math.sqrt(1 - s.beta_2**step)
    decay = s.ema if step > 1 else 0.0
    factors = clip, s.beta_1, 1 - s.beta_1, s.beta_2, 1 - s.beta_2, root, s.epsilon, rate, decay, 1 - decay
    threads = be.threads if len(params) >= CHUNK else 1
    update_kernel(threads, params, grads, m, v, ema, len(params), *map(float, factors))
    return norm
