"""`Backend.group_norm`, fused with SiLU: a slice of channels of an image at a time, so that it stays in cache.

A slice is the fewest channels that are whole vectors and whole groups; a thread owns slices of images. Sums run over
positions in vectors and over a group's channels in float64. Only mean and r = 1/√(var + ε) of each group are kept.
"""

from math import lcm, sqrt
from typing import TYPE_CHECKING

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_numba.launch import kernel
from ddpm_ref_numba.simd import WIDTH, at, f4, f32, fma, i64, load, sigmoid, splat, store, zero

if TYPE_CHECKING:
    from ddpm_ref_numba import NumbaBackend

_MOST = 512  # channels of the widest slice


@kernel
def normalise(thread, threads, args):
    """args: x (N, S, C), gamma, beta, y, mean (N, G), r (N, G), N, S, C, width, wide, silu, scratch.

    width, wide: channels of a group, of a slice.
    """
    x, gamma, beta, y, mean, r = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), f32(args, 4), f32(args, 5)
    N, S, C, width, wide, silu = i64(args, 6), i64(args, 7), i64(args, 8), i64(args, 9), i64(args, 10), i64(args, 11)
    sums = at(f32(args, 12), thread * 3 * wide)
    scale, shift = at(sums, wide), at(sums, 2 * wide)
    slices = C // wide
    for item in range(thread * N * slices // threads, (thread + 1) * N * slices // threads):
        n, first = item // slices, item % slices * wide
        o = n * S * C + first
        for c in range(0, wide, WIDTH):
            a, b = zero(), zero()
            for s in range(0, S - 1, 2):
                a = a + load(x, o + s * C + c)
                b = b + load(x, o + (s + 1) * C + c)
            if S % 2:
                a = a + load(x, o + (S - 1) * C + c)
            store(sums, c, a + b)
        for g in range(0, wide, width):
            total = 0.0
            for c in range(g, g + width):
                total += sums[c]
            m = f4(total / (S * width))
            mean[(n * C + first + g) // width] = m
            for c in range(g, g + width):
                shift[c] = m
        for c in range(0, wide, WIDTH):
            a, b, m = zero(), zero(), load(shift, c)
            for s in range(0, S - 1, 2):
                d, e = load(x, o + s * C + c) - m, load(x, o + (s + 1) * C + c) - m
                a, b = fma(d, d, a), fma(e, e, b)
            if S % 2:
                d = load(x, o + (S - 1) * C + c) - m
                a = fma(d, d, a)
            store(sums, c, a + b)
        for g in range(0, wide, width):
            total = 0.0
            for c in range(g, g + width):
                total += sums[c]
            rn = f4(1 / sqrt(total / (S * width) + 1e-6))
            r[(n * C + first + g) // width] = rn
            for c in range(g, g + width):
                scale[c] = gamma[first + c] * rn
        for c in range(0, wide, WIDTH):
            m, a, b = load(shift, c), load(scale, c), load(beta, first + c)
            for s in range(S):
                h = fma(load(x, o + s * C + c) - m, a, b)
                if silu:
                    h = h * sigmoid(h)
                store(y, o + s * C + c, h)


@kernel
def normalise_back(thread, threads, args):
    """dx, and Σ dh x̂ and Σ dh over positions of each image and channel.

    args: x, gamma, beta, mean, r, dy, dx, sum_dh_x (N, C), sum_dh (N, C), N, S, C, width, wide, silu, scratch.
    dx holds dh between the two passes.
    """
    x, gamma, beta, mean, r, dy = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), f32(args, 4), f32(args, 5)
    dx, sum_dh_x, sum_dh = f32(args, 6), f32(args, 7), f32(args, 8)
    N, S, C, width, wide, silu = i64(args, 9), i64(args, 10), i64(args, 11), i64(args, 12), i64(args, 13), i64(args, 14)
    means = at(f32(args, 15), thread * 4 * wide)
    rs, slope, offset = at(means, wide), at(means, 2 * wide), at(means, 3 * wide)
    slices = C // wide
    one = splat(f4(1))
    for item in range(thread * N * slices // threads, (thread + 1) * N * slices // threads):
        n, first = item // slices, item % slices * wide
        o, k = n * S * C + first, n * C + first
        for c in range(wide):
            means[c], rs[c] = mean[(k + c) // width], r[(k + c) // width]
        for c in range(0, wide, WIDTH):
            m, rn, b = load(means, c), load(rs, c), load(beta, first + c)
            a = load(gamma, first + c) * rn
            s1, s2 = zero(), zero()
            for s in range(S):
                i = o + s * C + c
                v, dh = load(x, i) - m, load(dy, i)
                if silu:
                    h = fma(v, a, b)
                    z = sigmoid(h)
                    dh = dh * fma(h * z, one - z, z)
                    store(dx, i, dh)
                s1, s2 = s1 + dh, fma(dh, v, s2)
            store(sum_dh, k + c, s1)
            store(sum_dh_x, k + c, s2 * rn)
        for g in range(0, wide, width):
            t1, t2 = 0.0, 0.0
            for c in range(g, g + width):
                t1 += gamma[first + c] * sum_dh[k + c]
                t2 += gamma[first + c] * sum_dh_x[k + c]
            rn = rs[g]
            for c in range(g, g + width):
                slope[c] = f4(rn * rn * t2 / (S * width))
                offset[c] = f4(rn * t1 / (S * width))
        for c in range(0, wide, WIDTH):
            m, a, u, w = load(means, c), load(gamma, first + c) * load(rs, c), load(slope, c), load(offset, c)
            for s in range(S):
                i = o + s * C + c
                dh = load(dx, i) if silu else load(dy, i)
                store(dx, i, dh * a - (load(x, i) - m) * u - w)


def takes(x: Array, groups: int) -> bool:
    """The kernels' rule: channels in whole vectors, and slices of at most `_MOST`."""
    c = x.shape[-1]
    return c % WIDTH == 0 and _slice(c, groups) <= min(c, _MOST) and c % _slice(c, groups) == 0 and x.size > 0


def _slice(c: int, groups: int) -> int:
    return lcm(WIDTH, c // groups)


def group_norm(
    run: "NumbaBackend", x: Array, gamma: Array, beta: Array, groups: int, silu: bool
) -> tuple[Array, Backward]:
    """`ops.group_norm` for float32 and shapes that `takes` allows."""
    x, gamma, beta = np.ascontiguousarray(x), np.ascontiguousarray(gamma), np.ascontiguousarray(beta)
    n, c = len(x), x.shape[-1]
    s, width, wide = x.size // (n * c), c // groups, _slice(c, groups)
    y, stats = np.empty_like(x), np.empty((2, n, groups), np.float32)
    mean, r = stats
    threads = 1 if x.size < 8192 else run.threads
    normalise(threads, x, gamma, beta, y, mean, r, n, s, c, width, wide, silu, run.scratch("norm", threads * 4 * wide))

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dy = np.ascontiguousarray(dy)
        dx, sums = np.empty_like(x), np.empty((2, n, c), np.float32)
        normalise_back(
            threads, x, gamma, beta, mean, r, dy, dx, sums[0], sums[1], n, s, c, width, wide, silu,
            run.scratch("norm", threads * 4 * wide),
        )  # fmt: skip
        dgamma, dbeta = sums.sum(axis=1)
        return dx, dgamma, dbeta

    return y, backward
