"""`Backend.dense`, the 1x1 convolution: one matrix product, the bias and the sums of its gradient."""

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_cupy.device import Device, Launch

_MOST_BLOCKS = 1 << 16


def spread(kernel: str, items: int, real: object = np.float32) -> Launch:
    """A launch of 256 threads a block over this many items, which the kernel walks in steps of the whole grid."""
    return Launch(kernel, (max(1, min(-(-items // 256), _MOST_BLOCKS)),), (256,), real=real)


def dense(run: Device, x: Array, W: Array, b: Array) -> tuple[Array, Backward]:
    """`ops.dense`: (..., C) -> (..., D)."""
    x, W = run.contiguous(x), run.contiguous(W)
    rows, (c, d) = x.size // x.shape[-1], W.shape
    flat = x.reshape(rows, c)
    y = run.matmul(flat, W, run.empty((rows, d), x.dtype))
    add_bias(run, y, run.contiguous(b), rows)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dy = run.contiguous(dy).reshape(rows, d)
        dx = run.matmul(dy, W, run.empty((rows, c), x.dtype), trans_b=True)
        dW = run.matmul(flat, dy, run.empty((c, d), x.dtype), trans_a=True)
        return dx.reshape(x.shape), dW, column_sums(run, dy)

    return y.reshape(*x.shape[:-1], d), backward


def add_bias(run: Device, y: Array, b: Array, rows_each: int) -> None:
    """y (..., D) += b, (D,), or (N, D) with one row of b for every `rows_each` rows of y."""
    d = y.shape[-1]
    rows = y.size // d
    wide = 4 if d % 4 == 0 else 1
    launch = spread("dense.add_bias4" if wide == 4 else "dense.add_bias", y.size // wide, y.dtype.type)
    run.launch(launch, y, b, np.int64(rows), np.int32(d // wide), np.int64(rows_each))


def column_sums(run: Device, dy: Array) -> Array:
    """Sums over all but the last axis, (D,), in an order that the shape alone decides.

    In two stages where there are many rows: of parts of about a square root of them, then of the parts.
    """
    d = dy.shape[-1]
    rows = dy.size // d
    parts = next(p for p in range(max(1, int(rows**0.5)), 0, -1) if rows % p == 0)
    if rows > 64 and parts > 1:
        return part_sums(run, part_sums(run, dy, parts), 1).reshape(d)
    return part_sums(run, dy, 1).reshape(d)


def part_sums(run: Device, dy: Array, parts: int) -> Array:
    """Sums of equal parts of the rows, in order: (parts, D)."""
    d = dy.shape[-1]
    sums = run.empty((parts, d), dy.dtype)
    launch = Launch("dense.column_sums", (-(-d // 32), parts), (256,), real=dy.dtype.type)
    run.launch(launch, dy, sums, np.int32(dy.size // d // parts), np.int32(d))
    return sums


def rounded(run: Device, x: Array) -> Array:
    """float32 to bfloat16, as uint16."""
    y = run.empty(x.shape, np.uint16)
    wide = 4 if x.size % 4 == 0 else 1
    launch = spread("dense.round4_bf16" if wide == 4 else "dense.round_bf16", x.size // wide)
    run.launch(launch, x, y, np.int64(x.size // wide))
    return y
