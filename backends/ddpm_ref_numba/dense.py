"""`Backend.dense`, the 1x1 convolution: y = x W + b over rows, and its adjoints.

Channels that do not fill vectors are padded with zeros until they do.
"""

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref.workspace import FLOAT32
from ddpm_ref_numba.launch import addend, fits, gradient, kernel
from ddpm_ref_numba.matmul import PANEL, ROWS, TALL, add_rows, copy_panel, panel, tall
from ddpm_ref_numba.pointwise import add_to
from ddpm_ref_numba.simd import WIDTH, at, f32, i64, load, store, transpose, zero

if TYPE_CHECKING:
    from ddpm_ref_numba import NumbaBackend

DEEP = 256  # rows summed at a time for dW: their columns of x and dy stay in the second-level cache
_MANY = 8  # tiles of dW below each other from which the copy of dy's panel pays
_PART = 1 << 16  # numbers of x that pass by all panels of W at a time: 256 KiB
_SMALL = 1 << 18  # multiplications that one thread does before another has begun, if W is
_SMALL_W = 1 << 16  # no larger than this: a larger one takes long to read


@kernel
def rows_times(thread, threads, args):
    """y = x W + b, + plus.

    args: x (M, C), W (C, D), b (D,), y (M, D), M, C, D, rows at a time, scratch (PANEL C a thread), plus, more (whether
    there is one: else any array).
    """
    x, W, b, y = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3)
    M, C, D, most = i64(args, 4), i64(args, 5), i64(args, 6), i64(args, 7)
    copy, plus, more = at(f32(args, 8), thread * PANEL * C), f32(args, 9), i64(args, 10)
    panels = (D + PANEL - 1) // PANEL
    items = (M + most - 1) // most * panels
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        first, d = item // panels * most, item % panels * PANEL
        rows, lanes = min(most, M - first), min(PANEL, D - d)
        o = first * D + d
        panel(at(x, first * C), C, 1, at(W, d), D, at(y, o), D, rows, lanes, C, at(b, d), 0, 1, copy)
        if more:
            add_rows(at(y, o), D, at(plus, o), rows, lanes)


@njit(error_model="numpy")
def _input_gradient(thread, threads, dy, W, dx, M, C, D, most, W_t, plus, more):
    """This thread's share of dx = dy Wᵀ, + plus; W_t: place for PANEL · D numbers."""
    panels = (C + PANEL - 1) // PANEL
    items = (M + most - 1) // most * panels
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        first, c = item // panels * most, item % panels * PANEL
        rows, lanes = min(most, M - first), min(PANEL, C - c)
        for i in range(0, lanes, WIDTH):
            for d in range(0, D, WIDTH):
                transpose(at(W, (c + i) * D + d), D, at(W_t, d * lanes + i), lanes)
        to = at(dx, first * C + c)
        panel(at(dy, first * D), D, 1, W_t, lanes, to, C, rows, lanes, D, to, C, 0, W_t)
        if more:
            add_rows(to, C, at(plus, first * C + c), rows, lanes)


@njit(error_model="numpy")
def _columns_sum(dy, step, rows, lanes, db, add):
    """db (+)= Σ dy over rows, for `lanes` columns."""
    for d in range(0, lanes, WIDTH):
        s0, s1 = load(db, d) if add else zero(), zero()
        for m in range(0, rows - 1, 2):
            s0, s1 = s0 + load(dy, m * step + d), s1 + load(dy, (m + 1) * step + d)
        if rows % 2:
            s0 = s0 + load(dy, (rows - 1) * step + d)
        store(db, d, s0 + s1)


@njit(error_model="numpy")
def _weight_gradient(thread, threads, x, dy, dW, db, M, C, D, copy):
    """This thread's tiles of dW = xᵀ dy and its part of db = Σ dy; copy: place for PANEL · DEEP numbers.

    Every number is a sum over all M in one order, whatever the threads.
    """
    tiles = C // TALL
    wide = PANEL if tiles * (D // PANEL) >= 2 * threads else WIDTH
    items = (D + wide - 1) // wide * tiles
    for first in range(0, M, DEEP):
        depth, at_hand = min(DEEP, M - first), -1
        B, step = at(dy, first * D), D
        for item in range(thread * items // threads, (thread + 1) * items // threads):
            d, c = item // tiles * wide, item % tiles * TALL
            lanes = min(wide, D - d)
            if d != at_hand:
                at_hand, B, step = d, at(dy, first * D + d), D
                if tiles >= _MANY and lanes < D:
                    copy_panel(B, D, lanes, depth, copy)
                    B, step = copy, lanes
            w = at(dW, c * D + d)
            tall(at(x, first * C + c), 1, C, B, step, w, D, lanes, depth, w, D, first)
            if c == 0:
                _columns_sum(B, step, depth, lanes, at(db, d), first)


@kernel
def gradients(thread, threads, args):
    """dx = dy Wᵀ, + plus, dW = xᵀ dy, db = Σ dy.

    args: x (M, C), W (C, D), dy (M, D), dx, dW, db, M, C, D, rows at a time, scratch (PANEL · max(D, DEEP) a thread),
    plus, more.
    """
    x, W, dy, dx, dW, db = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), f32(args, 4), f32(args, 5)
    M, C, D, most = i64(args, 6), i64(args, 7), i64(args, 8), i64(args, 9)
    place = at(f32(args, 10), thread * PANEL * max(D, DEEP))
    _input_gradient(thread, threads, dy, W, dx, M, C, D, most, place, f32(args, 11), i64(args, 12))
    _weight_gradient(thread, threads, x, dy, dW, db, M, C, D, place)


def takes(x: Array, W: Array, b: Array, plus: Array | None = None) -> bool:
    """The kernels' rule: float32, x (..., C), W (C, D), b (D,), plus shaped as y, nothing empty."""
    rows, matrix = x.shape, W.shape
    return (
        x.dtype == W.dtype == b.dtype == FLOAT32
        and len(matrix) == 2
        and matrix[:1] == rows[-1:]
        and matrix[1:] == b.shape
        and 0 not in rows
        and matrix[1] > 0
        and fits(plus, (*rows[:-1], matrix[1]))
    )


def dense(run: "NumbaBackend", x: Array, W: Array, b: Array, plus: Array | None = None) -> tuple[Array, Backward]:
    """`ops.dense` for what `takes` allows."""
    c, d = W.shape
    if c % WIDTH or d % WIDTH:
        return _padded(run, x, W, b, plus)
    x, W, b = np.ascontiguousarray(x), np.ascontiguousarray(W), np.ascontiguousarray(b)
    m = x.size // c
    shape = (*x.shape[:-1], d)
    y = np.empty(shape, np.float32)
    threads = 1 if m * c * d < _SMALL and c * d <= _SMALL_W else run.threads
    scratch = run.scratch("dense", threads * PANEL * c)
    rows_times(threads, x, W, b, y, m, c, d, _rows(m, c, d, threads), scratch, *addend(plus, y))

    def backward(dy: Array, plus: Array | None = None) -> tuple[Array, Array, Array]:
        dy = gradient(dy, shape)
        dx, dW, db = np.empty(x.shape, np.float32), np.empty((c, d), np.float32), np.empty(d, np.float32)
        scratch = run.scratch("dense", threads * PANEL * max(d, DEEP))
        gradients(threads, x, W, dy, dx, dW, db, m, c, d, _rows(m, d, c, threads), scratch, *addend(plus, dx))
        return dx, dW, db

    return y, backward


def _rows(m: int, c: int, d: int, threads: int) -> int:
    """Rows of x at a time: few enough to stay in the second-level cache, in parts that give all threads the same."""
    parts, panels = max(1, m * c // _PART), -(-d // PANEL)
    while parts * panels % threads and m > parts * 2 * ROWS:
        parts += 1
    return -(-m // (parts * ROWS)) * ROWS


def _padded(run: "NumbaBackend", x: Array, W: Array, b: Array, plus: Array | None) -> tuple[Array, Backward]:
    """`dense` for channels that do not fill vectors."""
    c, d = W.shape
    shape = (*x.shape[:-1], d)
    y, back = dense(run, _wider(x), _wider(_wider(W).T).T, _wider(b))

    def backward(dy: Array, plus: Array | None = None) -> tuple[Array, Array, Array]:
        dx, dW, db = back(_wider(gradient(dy, shape)))
        dx = add_to(run, np.ascontiguousarray(dx[..., :c]), plus)
        return dx, np.ascontiguousarray(dW[:c, :d]), db[:d].copy()

    return add_to(run, np.ascontiguousarray(y[..., :d]), plus), backward


def _wider(a: Array) -> Array:
    """a with zeros behind its last axis up to a multiple of WIDTH."""
    wide = np.zeros((*a.shape[:-1], a.shape[-1] + -a.shape[-1] % WIDTH), a.dtype)
    wide[..., : a.shape[-1]] = a
    return wide
