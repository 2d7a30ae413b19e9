"""`Backend.upsample`, `dropout`, `concat` and `add`: what moves memory and computes next to nothing."""

import math
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_numba.launch import addend, gradient, kernel
from ddpm_ref_numba.simd import WIDTH, f4, f32, i64, load, real, splat, store, u32
from ddpm_ref_numba.simd_int import load_some, store_at_least, store_some, where_stored

if TYPE_CHECKING:
    from ddpm_ref_numba import NumbaBackend

SMALL = 1 << 14  # fewer numbers than this take less time than waking the other threads


@kernel
def doubled(thread, threads, args):
    """y[2i + a, 2j + b] = x[i, j].  args: x, y, rows (N H), W, C."""
    x, y, rows, W, C = f32(args, 0), f32(args, 1), i64(args, 2), i64(args, 3), i64(args, 4)
    for row in range(thread * rows // threads, (thread + 1) * rows // threads):
        for j in range(W):
            i, o = (row * W + j) * C, (4 * row * W + 2 * j) * C
            for c in range(0, C, WIDTH):
                v = load(x, i + c)
                store(y, o + c, v)
                store(y, o + C + c, v)
                store(y, o + 2 * W * C + c, v)
                store(y, o + (2 * W + 1) * C + c, v)


@kernel
def summed(thread, threads, args):
    """The adjoint: dx[i, j] = Σ_ab dy[2i + a, 2j + b].  args: dy, dx, rows (N H), W, C."""
    dy, dx, rows, W, C = f32(args, 0), f32(args, 1), i64(args, 2), i64(args, 3), i64(args, 4)
    for row in range(thread * rows // threads, (thread + 1) * rows // threads):
        for j in range(W):
            i, o = (row * W + j) * C, (4 * row * W + 2 * j) * C
            for c in range(0, C, WIDTH):
                top = load(dy, o + c) + load(dy, o + C + c)
                store(dx, i + c, top + load(dy, o + 2 * W * C + c) + load(dy, o + (2 * W + 1) * C + c))


@njit
def masked(y, x, kept, k, n, keep):
    """y = x · (keep or 0) by the k-th bits: the k-th vector, of which n numbers are there. -0 and NaN as in NumPy."""
    factor = where_stored(kept, k, keep, splat(f4(0)))
    if n >= WIDTH:
        store(y, k * WIDTH, load(x, k * WIDTH) * factor)
    else:
        store_some(y, k * WIDTH, load_some(x, k * WIDTH, n) * factor, n)


@kernel
def dropped(thread, threads, args):
    """The bits of u >= rate; y = x · keep where they are 1, else x · 0.  args: x, u, y, bits, count, rate, keep."""
    x, u, y, kept, count = f32(args, 0), f32(args, 1), f32(args, 2), u32(args, 3), i64(args, 4)
    rate, keep = splat(f4(real(args, 5))), splat(f4(real(args, 6)))
    vectors = (count + WIDTH - 1) // WIDTH
    for k in range(thread * vectors // threads, (thread + 1) * vectors // threads):
        n = count - k * WIDTH
        store_at_least(kept, k, load(u, k * WIDTH) if n >= WIDTH else load_some(u, k * WIDTH, n), rate)
        masked(y, x, kept, k, n, keep)


@kernel
def dropped_again(thread, threads, args):
    """The adjoint: dx = dy by the same bits.  args: dy, dx, bits, count, keep."""
    dy, dx, kept, count, keep = f32(args, 0), f32(args, 1), u32(args, 2), i64(args, 3), splat(f4(real(args, 4)))
    vectors = (count + WIDTH - 1) // WIDTH
    for k in range(thread * vectors // threads, (thread + 1) * vectors // threads):
        masked(dx, dy, kept, k, count - k * WIDTH, keep)


@njit
def copy(to, i, source, j, count):
    """to[i : i + count] = source[j : j + count]."""
    k = 0
    while k + WIDTH <= count:
        store(to, i + k, load(source, j + k))
        k += WIDTH
    if k < count:
        store_some(to, i + k, load_some(source, j + k, count - k), count - k)


@kernel
def joined(thread, threads, args):
    """y = [a, b] pixel by pixel.  args: a, b, y, pixels, channels of a, channels of b."""
    a, b, y, pixels, c, d = f32(args, 0), f32(args, 1), f32(args, 2), i64(args, 3), i64(args, 4), i64(args, 5)
    for p in range(thread * pixels // threads, (thread + 1) * pixels // threads):
        copy(y, p * (c + d), a, p * c, c)
        copy(y, p * (c + d) + c, b, p * d, d)


@kernel
def added(thread, threads, args):
    """y = a + b, y perhaps a itself.  args: a, b, y, count."""
    a, b, y, count = f32(args, 0), f32(args, 1), f32(args, 2), i64(args, 3)
    groups = (count + WIDTH - 1) // WIDTH
    end = min((thread + 1) * groups // threads * WIDTH, count)
    i = thread * groups // threads * WIDTH
    while i + WIDTH <= end:
        store(y, i, load(a, i) + load(b, i))
        i += WIDTH
    if i < end:
        store_some(y, i, load_some(a, i, end - i) + load_some(b, i, end - i), end - i)


@kernel
def parted(thread, threads, args):
    """The adjoint: da, db of dy.  args: da, db, dy, pixels, channels of a, channels of b."""
    a, b, y, pixels, c, d = f32(args, 0), f32(args, 1), f32(args, 2), i64(args, 3), i64(args, 4), i64(args, 5)
    for p in range(thread * pixels // threads, (thread + 1) * pixels // threads):
        copy(a, p * c, y, p * (c + d), c)
        copy(b, p * d, y, p * (c + d) + c, d)


def upsample(run: "NumbaBackend", x: Array) -> tuple[Array, Backward]:
    """`ops.upsample` for float32, channels in whole vectors, nothing empty."""
    x = np.ascontiguousarray(x)
    n, h, w, c = x.shape
    y = np.empty((n, 2 * h, 2 * w, c), np.float32)
    threads = 1 if x.size < SMALL else run.threads
    doubled(threads, x, y, n * h, w, c)

    def backward(dy: Array) -> Array:
        dx = np.empty((n, h, w, c), np.float32)
        summed(threads, gradient(dy, (n, 2 * h, 2 * w, c)), dx, n * h, w, c)
        return dx

    return y, backward


def dropout(run: "NumbaBackend", x: Array, uniform: Array, rate: float) -> tuple[Array, Backward]:
    """`ops.dropout` for float32 arrays of one shape; its adjoint keeps one bit a number, not the uniforms or a mask."""
    x, uniform = np.ascontiguousarray(x), np.ascontiguousarray(uniform)
    y, kept = np.empty_like(x), np.empty(-(-x.size // 32), np.uint32)
    keep = float(np.float32(1 / (1 - rate)))
    shape, threads = x.shape, 1 if x.size < SMALL else run.threads
    dropped(threads, x, uniform, y, kept, x.size, float(np.float32(rate)), keep)

    def backward(dy: Array) -> Array:
        dy = gradient(dy, shape)
        dx = np.empty_like(dy)
        dropped_again(threads, dy, dx, kept, dy.size, keep)
        return dx

    return y, backward


def concat(run: "NumbaBackend", a: Array, b: Array) -> tuple[Array, Backward]:
    """`ops.concat` for float32; the adjoint's parts are contiguous, since convolutions read them next."""
    (*place, c), d = a.shape, b.shape[-1]
    a, b, y = np.ascontiguousarray(a), np.ascontiguousarray(b), np.empty((*place, c + d), np.float32)
    pixels, threads = math.prod(place), 1 if y.size < SMALL else run.threads
    joined(threads, a, b, y, pixels, c, d)

    def backward(dy: Array) -> tuple[Array, Array]:
        da, db = np.empty((*place, c), np.float32), np.empty((*place, d), np.float32)
        parted(threads, da, db, gradient(dy, (*place, c + d)), pixels, c, d)
        return da, db

    return y, backward


def add_to(run: "NumbaBackend", y: Array, plus: Array | None) -> Array:
    """y += plus, if there is one, for a contiguous float32 y."""
    plus, more = addend(plus, y)
    if more:
        added(1 if y.size < SMALL else run.threads, y, plus, y, y.size)
    return y


def add(run: "NumbaBackend", a: Array, b: Array) -> tuple[Array, Backward]:
    """`ops.add` for float32 and arrays that are worth a launch."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    y = np.empty_like(a)
    added(run.threads, a, b, y, y.size)
    return y, lambda dy: (dy, dy)
