"""`Backend.upsample` and `Backend.dropout`: what moves memory and computes next to nothing."""

from typing import TYPE_CHECKING

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_numba.launch import kernel
from ddpm_ref_numba.simd import WIDTH, f4, f32, i64, load, real, splat, store
from ddpm_ref_numba.simd_int import load_some, store_some, where_less

if TYPE_CHECKING:
    from ddpm_ref_numba import NumbaBackend

_SMALL = 1 << 14  # fewer numbers than this take less time than waking the other threads


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


@kernel
def dropped(thread, threads, args):
    """y = 0 where u < rate, else x · keep.  args: x, u, y, count, rate, keep."""
    x, u, y, count = f32(args, 0), f32(args, 1), f32(args, 2), i64(args, 3)
    rate, keep = splat(f4(real(args, 4))), splat(f4(real(args, 5)))
    nothing = splat(f4(0))
    groups = (count + WIDTH - 1) // WIDTH
    for group in range(thread * groups // threads, (thread + 1) * groups // threads):
        i, left = group * WIDTH, count - group * WIDTH
        kept = where_less(load_some(u, i, left), rate, nothing, keep)
        store_some(y, i, load_some(x, i, left) * kept, left)


def upsample(run: "NumbaBackend", x: Array) -> tuple[Array, Backward]:
    """`ops.upsample` for float32 and channels in whole vectors."""
    x = np.ascontiguousarray(x)
    n, h, w, c = x.shape
    y = np.empty((n, 2 * h, 2 * w, c), np.float32)
    threads = 1 if x.size < _SMALL else run.threads
    doubled(threads, x, y, n * h, w, c)

    def backward(dy: Array) -> Array:
        dx = np.empty((n, h, w, c), np.float32)
        summed(threads, np.ascontiguousarray(dy), dx, n * h, w, c)
        return dx

    return y, backward


def dropout(run: "NumbaBackend", x: Array, uniform: Array, rate: float) -> tuple[Array, Backward]:
    """`ops.dropout` for float32."""
    uniform = np.ascontiguousarray(uniform)
    keep = float(np.float32(1 / (1 - rate)))
    threads = 1 if x.size < _SMALL else run.threads

    def apply(a: Array) -> Array:
        a = np.ascontiguousarray(a)
        out = np.empty_like(a)
        dropped(threads, a, uniform, out, a.size, float(np.float32(rate)), keep)
        return out

    return apply(x), apply
