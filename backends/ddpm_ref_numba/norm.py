"""`Backend.group_norm`, fused with SiLU.

A thread owns slices: some channels of one image, whole vectors and whole groups. It reads `BLOCK` positions of a slice
at a time, which stay in the first-level cache while they are summed, centred and summed again; so x comes twice from
memory or the caches behind: for its moments, and to be normalised. Only mean and r = 1/√(var + ε) of each group are
kept.
"""

from math import lcm, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref.workspace import FLOAT32
from ddpm_ref_numba.launch import addend, gradient, kernel
from ddpm_ref_numba.simd import WIDTH, at, exp, f4, f32, fma, i64, load, put, sigmoid, splat, store, zero

if TYPE_CHECKING:
    from ddpm_ref_numba import NumbaBackend

BLOCK = 16  # positions at a time
_WIDE = 128  # channels of a slice at most, unless one group needs more: neighbours in memory are read together
_SMALL = 8192  # numbers that one thread normalises before another has begun


@njit(error_model="numpy")
def _moments(x, S, C, wide, means, squares):
    """Mean and Σ (x - mean)² of each channel of a slice over its S positions.

    Blocks have their own mean; joining (n₁, m₁, q₁) and (n₂, m₂, q₂) gives q = q₁ + q₂ + (m₂ - m₁)² n₁ n₂ / (n₁ + n₂).
    """
    for s in range(0, S, BLOCK):
        rows = min(BLOCK, S - s)
        inverse, share, both = f4(1 / rows), f4(rows / (s + rows)), f4(s * rows / (s + rows))
        for c in range(0, wide, WIDTH):
            p = at(x, s * C + c)
            a, b = zero(), zero()
            for i in range(0, rows - 1, 2):
                a, b = a + load(p, i * C), b + load(p, i * C + C)
            if rows % 2:
                a = a + load(p, (rows - 1) * C)
            m = (a + b) * inverse
            a, b = zero(), zero()
            for i in range(0, rows - 1, 2):
                d, e = load(p, i * C) - m, load(p, i * C + C) - m
                a, b = fma(d, d, a), fma(e, e, b)
            if rows % 2:
                d = load(p, (rows - 1) * C) - m
                a = fma(d, d, a)
            q = a + b
            if s:
                before = load(means, c)
                d = m - before
                m = fma(d, splat(share), before)
                q = fma(d * d, splat(both), q + load(squares, c))
            store(means, c, m)
            store(squares, c, q)


@kernel
def normalise(thread, threads, args):
    """args: x (N, S, C), gamma, beta, y, mean and r (N, G), N, S, C, channels of a group, of a slice, silu, scratch."""
    x, gamma, beta, y, mean, r = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), f32(args, 4), f32(args, 5)
    N, S, C, width, wide, silu = i64(args, 6), i64(args, 7), i64(args, 8), i64(args, 9), i64(args, 10), i64(args, 11)
    means = at(f32(args, 12), thread * 3 * wide)
    squares, scale = at(means, wide), at(means, 2 * wide)
    slices = C // wide
    for item in range(thread * N * slices // threads, (thread + 1) * N * slices // threads):
        n, first = item // slices, item % slices * wide
        o = n * S * C + first
        _moments(at(x, o), S, C, wide, means, squares)
        group = (n * C + first) // width
        for g in range(0, wide, width):
            total = 0.0
            for c in range(g, g + width):
                total += means[c]
            m = total / width
            total = 0.0
            for c in range(g, g + width):
                d = means[c] - m
                total += squares[c] + S * d * d
            rn = f4(1 / sqrt(total / (S * width) + 1e-6))
            mean[group], r[group] = f4(m), rn
            group += 1
            for c in range(g, g + width):
                means[c], scale[c] = f4(m), gamma[first + c] * rn
        for s in range(0, S, BLOCK):
            rows = min(BLOCK, S - s)
            for c in range(0, wide, WIDTH):
                m, a, b = load(means, c), load(scale, c), load(beta, first + c)
                p, q = at(x, o + s * C + c), at(y, o + s * C + c)
                for i in range(rows):
                    h = fma(load(p, i * C) - m, a, b)
                    if silu:
                        h = h / (exp(h * f4(-1)) + f4(1))
                    store(q, i * C, h)


@njit(error_model="numpy")
def _sums_back(x, dy, dx, S, C, wide, silu, means, scale, beta, sum_dh, sum_dh_v):
    """Σ dh and Σ dh (x - mean) of each channel of a slice; dx becomes dh where that is not dy itself."""
    one = splat(f4(1))
    for s in range(0, S, BLOCK):
        rows = min(BLOCK, S - s)
        for c in range(0, wide, WIDTH):
            m, a, b = load(means, c), load(scale, c), load(beta, c)
            i = s * C + c
            s1, s2 = zero(), zero()
            for _ in range(rows):
                v, dh = load(x, i) - m, load(dy, i)
                if silu:
                    h = fma(v, a, b)
                    z = sigmoid(h)
                    dh = dh * fma(h * z, one - z, z)
                    store(dx, i, dh)
                s1, s2 = s1 + dh, fma(dh, v, s2)
                i += C
            if s:
                s1, s2 = s1 + load(sum_dh, c), s2 + load(sum_dh_v, c)
            store(sum_dh, c, s1)
            store(sum_dh_v, c, s2)


@kernel
def normalise_back(thread, threads, args):
    """dx, and Σ dh x̂ and Σ dh over positions of each image and channel.

    args: x, gamma, beta, mean, r, dy, dx, sum_dh_x (N, C), sum_dh (N, C), N, S, C, width, wide, silu, scratch, plus,
    more (whether there is one: else any array).
    dx = γ r dh - (x - mean) slope - offset, + plus, with dh = dy or dy SiLU'(h).
    """
    x, gamma, beta, mean, r, dy = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), f32(args, 4), f32(args, 5)
    dx, sum_dh_x, sum_dh = f32(args, 6), f32(args, 7), f32(args, 8)
    N, S, C, width, wide, silu = i64(args, 9), i64(args, 10), i64(args, 11), i64(args, 12), i64(args, 13), i64(args, 14)
    means, plus, more = at(f32(args, 15), thread * 4 * wide), f32(args, 16), i64(args, 17)
    scale, slope, offset = at(means, wide), at(means, 2 * wide), at(means, 3 * wide)
    slices = C // wide
    for item in range(thread * N * slices // threads, (thread + 1) * N * slices // threads):
        n, first = item // slices, item % slices * wide
        o, k = n * S * C + first, n * C + first
        for g in range(0, wide, width):
            m, rn = mean[(k + g) // width], r[(k + g) // width]
            for c in range(g, g + width):
                means[c], scale[c] = m, gamma[first + c] * rn
        s1, s2 = at(sum_dh, k), at(sum_dh_x, k)
        _sums_back(at(x, o), at(dy, o), at(dx, o), S, C, wide, silu, means, scale, at(beta, first), s1, s2)
        for g in range(0, wide, width):
            rn = r[(k + g) // width]
            t1, t2 = 0.0, 0.0
            for c in range(g, g + width):
                sum_dh_x[k + c] *= rn
                t1 += gamma[first + c] * sum_dh[k + c]
                t2 += gamma[first + c] * sum_dh_x[k + c]
            u, w = f4(-rn * rn * t2 / (S * width)), f4(-rn * t1 / (S * width))
            for c in range(g, g + width):
                slope[c], offset[c] = u, w
        for s in range(0, S, BLOCK):
            rows = min(BLOCK, S - s)
            for c in range(0, wide, WIDTH):
                m, a, u, w = load(means, c), load(scale, c), load(slope, c), load(offset, c)
                i = o + s * C + c
                for _ in range(rows):
                    dh = load(dx, i) if silu else load(dy, i)
                    put(dx, i, fma(dh, a, fma(load(x, i) - m, u, w)), plus, more)
                    i += C


def takes(x: Array, gamma: Array, beta: Array, groups: int) -> bool:
    """The kernels' rule: float32, channels in whole vectors and in whole groups, gamma and beta (C,), not empty."""
    shape = x.shape
    return (
        x.dtype == gamma.dtype == beta.dtype == FLOAT32
        and len(shape) > 1
        and gamma.shape == beta.shape == shape[-1:]
        and shape[-1] % WIDTH == 0
        and groups > 0
        and shape[-1] % groups == 0
        and 0 not in shape
    )


def _slice(n: int, c: int, width: int, threads: int) -> int:
    """Channels of a slice: whole groups of this width, and so many that each thread has slices of its own."""
    least = lcm(WIDTH, width)
    parts = c // least
    for k in range(parts, 1, -1):
        if parts % k == 0 and k * least <= _WIDE and (n * parts // k) % threads == 0:
            return k * least
    return least


def group_norm(
    run: "NumbaBackend", x: Array, gamma: Array, beta: Array, groups: int, silu: bool
) -> tuple[Array, Backward]:
    """`ops.group_norm` for what `takes` allows."""
    x, gamma, beta = np.ascontiguousarray(x), np.ascontiguousarray(gamma), np.ascontiguousarray(beta)
    n, c = len(x), x.shape[-1]
    threads = 1 if x.size < _SMALL else run.threads
    s, width = x.size // (n * c), c // groups
    wide = _slice(n, c, width, threads)
    y, mean, r = np.empty_like(x), np.empty(n * groups, np.float32), np.empty(n * groups, np.float32)
    normalise(threads, x, gamma, beta, y, mean, r, n, s, c, width, wide, silu, run.scratch("norm", threads * 4 * wide))

    def backward(dy: Array, plus: Array | None = None) -> tuple[Array, Array, Array]:
        dy = gradient(dy, x.shape)
        dx, sum_dh_x, sum_dh = np.empty_like(x), np.empty((n, c), np.float32), np.empty((n, c), np.float32)
        normalise_back(
            threads, x, gamma, beta, mean, r, dy, dx, sum_dh_x, sum_dh, n, s, c, width, wide, silu,
            run.scratch("norm", threads * 4 * wide), *addend(plus, dx),
        )  # fmt: skip
        return dx, sum_dh_x.sum(axis=0), sum_dh.sum(axis=0)

    return y, backward
