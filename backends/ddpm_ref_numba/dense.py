"""`Backend.dense`, the 1x1 convolution: y = x W + b over rows, and its adjoints."""

from typing import TYPE_CHECKING

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_numba.launch import kernel
from ddpm_ref_numba.matmul import columns
from ddpm_ref_numba.simd import WIDTH, at, f32, i64, load, store, transpose, zero

if TYPE_CHECKING:
    from ddpm_ref_numba import NumbaBackend

BLOCK = 64  # rows at a time: x's stay in the first-level cache while the columns of W pass by
DEEP = 256  # rows summed at a time for dW: their columns of x and dy stay in the second-level cache
_SMALL = 1 << 16  # multiplications that one thread does before another has begun


@kernel
def rows_times(thread, threads, args):
    """y = x W + b.  args: x (M, C), W, W_step, b (D,), y (M, D), M, C, D; C any, D a multiple of WIDTH.

    W: (C, D) with W_step 0, or its panels [D/K][C][K] with W_step K.
    """
    x, W, W_step, b, y = f32(args, 0), f32(args, 1), i64(args, 2), f32(args, 3), f32(args, 4)
    M, C, D = i64(args, 5), i64(args, 6), i64(args, 7)
    lanes = 2 * WIDTH if D % (2 * WIDTH) == 0 else WIDTH
    panels, blocks = D // lanes, (M + BLOCK - 1) // BLOCK
    items = blocks * panels
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        first, d = item // panels * BLOCK, item % panels * lanes
        rows = min(BLOCK, M - first)
        w, step = (at(W, d * C), lanes) if W_step else (at(W, d), D)
        columns(at(x, first * C), C, 1, w, step, at(y, first * D + d), D, rows, lanes, C, at(b, d), 0, 1)


@kernel
def panels(thread, threads, args):
    """W or its transpose in panels [D/K][C][K].  args: W, out, C, D, turned; C, D of out, multiples of WIDTH.

    Strides of whole rows of W would put a panel into few sets of the cache.
    """
    W, out, C, D, turned = f32(args, 0), f32(args, 1), i64(args, 2), i64(args, 3), i64(args, 4)
    lanes = 2 * WIDTH if D % (2 * WIDTH) == 0 else WIDTH
    blocks = C // WIDTH
    items = D // WIDTH * blocks
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        d, c = item // blocks * WIDTH, item % blocks * WIDTH
        o = (d // lanes * C + c) * lanes + d % lanes
        if turned:
            transpose(at(W, d * C + c), C, at(out, o), lanes)
        else:
            for i in range(WIDTH):
                store(out, o + i * lanes, load(W, (c + i) * D + d))


@kernel
def gradients(thread, threads, args):
    """dW = xᵀ dy and db = Σ dy.  args: x (M, C), dy (M, D), dW, db, M, C, D; C and D multiples of WIDTH.

    A thread owns WIDTH rows of dW at a time and sums over all M, so that the result does not depend on the threads.
    """
    x, dy, dW, db = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3)
    M, C, D = i64(args, 4), i64(args, 5), i64(args, 6)
    lanes = 2 * WIDTH if D % (2 * WIDTH) == 0 else WIDTH
    panels = D // lanes
    items = C // WIDTH * panels
    for first in range(0, M, DEEP):
        depth = min(DEEP, M - first)
        for item in range(thread * items // threads, (thread + 1) * items // threads):
            c, d = item // panels * WIDTH, item % panels * lanes
            w = at(dW, c * D + d)
            columns(at(x, first * C + c), 1, C, at(dy, first * D + d), D, w, D, WIDTH, lanes, depth, w, D, first)
    groups = D // WIDTH
    for group in range(thread * groups // threads, (thread + 1) * groups // threads):
        s0, s1, d = zero(), zero(), group * WIDTH
        for m in range(0, M - 1, 2):
            s0 = s0 + load(dy, m * D + d)
            s1 = s1 + load(dy, (m + 1) * D + d)
        if M % 2:
            s0 = s0 + load(dy, (M - 1) * D + d)
        store(db, d, s0 + s1)


def takes(x: Array, W: Array) -> bool:
    """The kernels' rule: whole vectors of channels on both sides."""
    return W.shape[0] % WIDTH == 0 and W.shape[1] % WIDTH == 0 and x.size > 0


def dense(run: "NumbaBackend", x: Array, W: Array, b: Array) -> tuple[Array, Backward]:
    """`ops.dense` for float32 and shapes that `takes` allows."""
    c, d = W.shape
    x, W, b = np.ascontiguousarray(x), np.ascontiguousarray(W), np.ascontiguousarray(b)
    m = x.size // c
    y = np.empty((*x.shape[:-1], d), np.float32)
    threads = 1 if m * c * d < _SMALL else run.threads
    _times(run, threads, x, W, b, y, m, c, d, turned=False)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dy = np.ascontiguousarray(dy)
        dx, dW, db = np.empty(x.shape, np.float32), np.empty((c, d), np.float32), np.empty(d, np.float32)
        _times(run, threads, dy, W, run.zeros(c), dx, m, d, c, turned=True)
        gradients(threads, x, dy, dW, db, m, c, d)
        return dx, dW, db

    return y, backward


def _times(
    run: "NumbaBackend", threads: int, x: Array, W: Array, b: Array, y: Array, m: int, c: int, d: int, *, turned: bool
) -> None:
    """y = x W + b with W or its transpose, in panels where there are rows enough to pay for that."""
    lanes = 0
    if turned or m >= BLOCK:
        lanes = 2 * WIDTH if d % (2 * WIDTH) == 0 else WIDTH
        given, W = W, run.scratch("dense panels", c * d)
        panels(1 if c * d < _SMALL else threads, given, W, c, d, turned)
    rows_times(threads, x, W, lanes, b, y, m, c, d)
