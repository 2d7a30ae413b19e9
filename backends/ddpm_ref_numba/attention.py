"""`Backend.attention`: softmax(q kᵀ / √C) v with one head, and its adjoints.

Rows of P are Z numbers apart, S rounded up to whole vectors; what lies behind S is 0. Channels that do not fill vectors
are padded with zeros until they do. P is kept for the adjoint.
"""

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref.workspace import FLOAT32
from ddpm_ref_numba.launch import gradient, kernel
from ddpm_ref_numba.matmul import PANEL, ROWS, product
from ddpm_ref_numba.simd import (
    WIDTH,
    at,
    exp,
    f4,
    f32,
    fma,
    i64,
    lane_max,
    lane_sum,
    load,
    maximum,
    real,
    splat,
    store,
    transpose,
    zero,
)

if TYPE_CHECKING:
    from ddpm_ref_numba import NumbaBackend

_ROWS = 32  # queries at a time: their rows of P stay in the first-level cache up to S = 256
_SMALL = 1 << 17  # multiplications that one thread does before another has begun
_PRODUCTS, _SUMS = 1, 2  # of the adjoint: dA and dq; dk and dv


@njit(error_model="numpy")
def _transposed(a, S, C, a_t, Z):
    """aᵀ (C, Z) of a (S, C), with zeros behind S."""
    whole = S // WIDTH * WIDTH
    for s in range(0, whole, WIDTH):
        for c in range(0, C, WIDTH):
            transpose(at(a, s * C + c), C, at(a_t, c * Z + s), Z)
    if whole < Z:
        for c in range(C):
            for s in range(whole, S):
                a_t[c * Z + s] = a[s * C + c]
            for s in range(S, Z):
                a_t[c * Z + s] = f4(0)


@njit(error_model="numpy")
def _softmax(p, S, Z, scale):
    """One row of scores to probabilities."""
    for s in range(S, Z):
        p[s] = f4(-np.inf)
    top = load(p, 0)
    for s in range(WIDTH, Z, WIDTH):
        top = maximum(top, load(p, s))
    highest, total = splat(lane_max(top)), zero()
    for s in range(0, Z, WIDTH):
        e = exp((load(p, s) - highest) * scale)
        total = total + e
        store(p, s, e)
    share = splat(f4(1) / lane_sum(total))
    for s in range(0, Z, WIDTH):
        store(p, s, load(p, s) * share)
    for s in range(S, Z):
        p[s] = f4(0)


@kernel
def attend(thread, threads, args):
    """P and y, some queries at a time.

    args: q, k, v, P (N, S, Z), y, N, S, C, Z, scale, queries at a time, scratch (C Z + max(C, S) PANEL a thread).
    """
    q, k, v, P, y = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), f32(args, 4)
    N, S, C, Z, scale, most = i64(args, 5), i64(args, 6), i64(args, 7), i64(args, 8), f4(real(args, 9)), i64(args, 10)
    k_t = at(f32(args, 11), thread * (C * Z + max(C, S) * PANEL))
    copy = at(k_t, C * Z)
    parts = (S + most - 1) // most
    items, at_hand = N * parts, -1
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        n, first = item // parts, item % parts * most
        rows, i, o = min(most, S - first), (n * S + first) * C, n * S * C
        if n != at_hand:
            at_hand = n
            _transposed(at(k, o), S, C, k_t, Z)
        p = at(P, (n * S + first) * Z)
        product(at(q, i), C, 1, k_t, Z, p, Z, rows, Z, C, 0, copy)
        for r in range(rows):
            _softmax(at(p, r * Z), S, Z, scale)
        product(p, Z, 1, at(v, o), C, at(y, i), C, rows, C, S, 0, copy)


@njit(error_model="numpy")
def _score_gradient(dA, P, Z, scale):
    """dA = P (dP - Σ P dP) / √C of one row, in the place of dP."""
    total = zero()
    for s in range(0, Z, WIDTH):
        total = fma(load(dA, s), load(P, s), total)
    mean = splat(lane_sum(total))
    for s in range(0, Z, WIDTH):
        store(dA, s, (load(dA, s) - mean) * load(P, s) * scale)


@kernel
def attend_back(thread, threads, args):
    """dq, dk, dv, some queries and keys at a time.

    args: q, k, v, P, dy, dq, dk, dv, N, S, C, Z, scale, queries at a time, what (1: dA and dq, 2: dk and dv, 3: both,
    with all queries at a time), dA (N, S, Z; for 3 only as many as threads), scratch as in `attend`.
    """
    q, k, v, P, dy = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), f32(args, 4)
    dq, dk, dv, N, S, C = f32(args, 5), f32(args, 6), f32(args, 7), i64(args, 8), i64(args, 9), i64(args, 10)
    Z, scale, most, what = i64(args, 11), f4(real(args, 12)), i64(args, 13), i64(args, 14)
    v_t = at(f32(args, 16), thread * (C * Z + max(C, S) * PANEL))
    copy = at(v_t, C * Z)
    parts = (S + most - 1) // most
    items, at_hand = N * parts, -1
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        n, first = item // parts, item % parts * most
        rows, i, o, p = min(most, S - first), (n * S + first) * C, n * S * C, at(P, n * S * Z)
        dA = at(f32(args, 15), (thread if what == _PRODUCTS + _SUMS else n) * S * Z)
        if what & _PRODUCTS:
            if n != at_hand:
                at_hand = n
                _transposed(at(v, o), S, C, v_t, Z)
            d = at(dA, first * Z)
            product(at(dy, i), C, 1, v_t, Z, d, Z, rows, Z, C, 0, copy)
            for r in range(rows):
                _score_gradient(at(d, r * Z), at(p, (first + r) * Z), Z, scale)
            product(d, Z, 1, at(k, o), C, at(dq, i), C, rows, C, S, 0, copy)
        if what & _SUMS:
            product(at(dA, first), 1, Z, at(q, o), C, at(dk, i), C, rows, C, S, 0, copy)
            product(at(p, first), 1, Z, at(dy, o), C, at(dv, i), C, rows, C, S, 0, copy)


def takes(q: Array, k: Array, v: Array) -> bool:
    """The kernels' rule: float32, (N, S, C) each, not empty."""
    return q.dtype == k.dtype == v.dtype == FLOAT32 and q.ndim == 3 and q.shape == k.shape == v.shape and q.size > 0


def attention(run: "NumbaBackend", q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
    """`ops.attention` for what `takes` allows."""
    shape, c = q.shape, q.shape[2]
    if c % WIDTH:
        y, back = _attention(run, *(_wider(a) for a in (q, k, v)), c)
        return y[..., :c].copy(), lambda dy: tuple(d[..., :c].copy() for d in back(_wider(gradient(dy, shape))))
    return _attention(run, q, k, v, c)


def _attention(run: "NumbaBackend", q: Array, k: Array, v: Array, channels: int) -> tuple[Array, Backward]:
    """`attention` for whole vectors of channels, some of them perhaps padding."""
    q, k, v = np.ascontiguousarray(q), np.ascontiguousarray(k), np.ascontiguousarray(v)
    n, s, c = q.shape
    z = s + -s % WIDTH
    P, y, scale = np.empty((n, s, z), np.float32), np.empty((n, s, c), np.float32), float(channels**-0.5)
    threads = 1 if n * s * s * c < _SMALL else run.threads
    size = threads * (c * z + max(c, s) * PANEL)
    attend(threads, q, k, v, P, y, n, s, c, z, scale, _rows(n, s, threads), run.scratch("attention", size))

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dy = gradient(dy, (n, s, c))
        dq, dk, dv = np.empty((n, s, c), np.float32), np.empty((n, s, c), np.float32), np.empty((n, s, c), np.float32)
        scratch = run.scratch("attention", size)
        whole = n % threads == 0 or n >= 4 * threads
        # Threads that share an image must all have made dA before dk and dv are summed over its rows.
        steps = [(_PRODUCTS + _SUMS, s)] if whole else [(w, _rows(n, s, threads)) for w in (_PRODUCTS, _SUMS)]
        dA = run.scratch("attention dA", (threads if whole else n) * s * z)
        for what, rows in steps:
            attend_back(threads, q, k, v, P, dy, dq, dk, dv, n, s, c, z, scale, rows, what, dA, scratch)
        return dq, dk, dv

    return y, backward


def _rows(n: int, s: int, threads: int) -> int:
    """Queries at a time: few enough for the cache, in parts that give all threads the same."""
    parts = -(-s // _ROWS)
    while n * parts % threads and s > parts * ROWS:
        parts += 1
    return -(-s // (parts * ROWS)) * ROWS


def _wider(a: Array) -> Array:
    """a with zeros behind its last axis up to a multiple of WIDTH."""
    wide = np.zeros((*a.shape[:-1], a.shape[-1] + -a.shape[-1] % WIDTH), a.dtype)
    wide[..., : a.shape[-1]] = a
    return wide
