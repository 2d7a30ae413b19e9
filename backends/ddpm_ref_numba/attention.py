"""`Backend.attention`: softmax(q kᵀ / √C) v with one head, and its adjoints."""

from typing import TYPE_CHECKING

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_numba.launch import kernel
from ddpm_ref_numba.matmul import product
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

_ROWS = 64  # queries at a time


@kernel
def attend(thread, threads, args):
    """P and y of blocks of queries.  args: q, k, v, P (N, S, S), y, N, S, C, scale, scratch (S C a thread)."""
    q, k, v, P, y = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), f32(args, 4)
    N, S, C, scale = i64(args, 5), i64(args, 6), i64(args, 7), f4(real(args, 8))
    k_t = at(f32(args, 9), thread * S * C)
    parts = (S + _ROWS - 1) // _ROWS
    items, at_hand = N * parts, -1
    for item in range(thread * items // threads, (thread + 1) * items // threads):
        n, first = item // parts, item % parts * _ROWS
        rows = min(_ROWS, S - first)
        if n != at_hand:
            at_hand = n
            for s in range(0, S, WIDTH):
                for c in range(0, C, WIDTH):
                    transpose(at(k, (n * S + s) * C + c), C, at(k_t, c * S + s), S)
        p = at(P, (n * S + first) * S)
        product(at(q, (n * S + first) * C), C, 1, k_t, S, p, S, rows, S, C, 0)
        for r in range(rows):
            top = load(p, r * S)
            for j in range(WIDTH, S, WIDTH):
                top = maximum(top, load(p, r * S + j))
            highest, total = splat(lane_max(top)), zero()
            for j in range(0, S, WIDTH):
                e = exp((load(p, r * S + j) - highest) * scale)
                total = total + e
                store(p, r * S + j, e)
            share = splat(f4(1) / lane_sum(total))
            for j in range(0, S, WIDTH):
                store(p, r * S + j, load(p, r * S + j) * share)
        product(p, S, 1, at(v, n * S * C), C, at(y, (n * S + first) * C), C, rows, C, S, 0)


@kernel
def attend_back(thread, threads, args):
    """dq, dk, dv of whole images.  args: q, k, v, P, dy, dq, dk, dv, N, S, C, scale, scratch (S (C + S) a thread)."""
    q, k, v, P, dy = f32(args, 0), f32(args, 1), f32(args, 2), f32(args, 3), f32(args, 4)
    dq, dk, dv = f32(args, 5), f32(args, 6), f32(args, 7)
    N, S, C, scale = i64(args, 8), i64(args, 9), i64(args, 10), f4(real(args, 11))
    v_t = at(f32(args, 12), thread * S * (C + S))
    dA = at(v_t, S * C)
    for n in range(thread * N // threads, (thread + 1) * N // threads):
        o, p = n * S * C, at(P, n * S * S)
        for s in range(0, S, WIDTH):
            for c in range(0, C, WIDTH):
                transpose(at(v, o + s * C + c), C, at(v_t, c * S + s), S)
        product(at(dy, o), C, 1, v_t, S, dA, S, S, S, C, 0)
        for r in range(S):
            total = zero()
            for j in range(0, S, WIDTH):
                total = fma(load(dA, r * S + j), load(p, r * S + j), total)
            mean = splat(lane_sum(total))
            for j in range(0, S, WIDTH):
                store(dA, r * S + j, (load(dA, r * S + j) - mean) * load(p, r * S + j) * scale)
        product(dA, S, 1, at(k, o), C, at(dq, o), C, S, C, S, 0)
        product(dA, 1, S, at(q, o), C, at(dk, o), C, S, C, S, 0)
        product(p, 1, S, at(dy, o), C, at(dv, o), C, S, C, S, 0)


def takes(q: Array) -> bool:
    """The kernels' rule: positions and channels in whole vectors."""
    return q.shape[1] % WIDTH == 0 and q.shape[2] % WIDTH == 0 and q.size > 0


def attention(run: "NumbaBackend", q: Array, k: Array, v: Array) -> tuple[Array, Backward]:
    """`ops.attention` for float32 and shapes that `takes` allows."""
    q, k, v = np.ascontiguousarray(q), np.ascontiguousarray(k), np.ascontiguousarray(v)
    n, s, c = q.shape
    P, y, scale = np.empty((n, s, s), np.float32), np.empty((n, s, c), np.float32), float(c**-0.5)
    threads = run.threads
    attend(threads, q, k, v, P, y, n, s, c, scale, run.scratch("attention", threads * s * c))

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dy = np.ascontiguousarray(dy)
        dq, dk, dv = np.empty_like(q), np.empty_like(q), np.empty_like(q)
        scratch = run.scratch("attention back", threads * s * (c + s))
        attend_back(threads, q, k, v, P, dy, dq, dk, dv, n, s, c, scale, scratch)
        return dq, dk, dv

    return y, backward
