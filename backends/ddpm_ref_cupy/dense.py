"""`Backend.dense`, the 1x1 convolution: matrix products, the bias and the sums of its gradient."""

import math

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_cupy.device import PRECISIONS, Device, Launch, real_of
from ddpm_ref_cupy.pointwise import add

SMALL = 1 << 25
"""Most multiplications of a layer that `dense_small.cu` makes."""
_MOST_BLOCKS = 1 << 16
_MOST_TILES = 1024  # that dense_small.cu counts


def spread(kernel: str, items: int, real: object = np.float32) -> Launch:
    """A launch of 256 threads a block over this many items, which the kernel walks in steps of the whole grid."""
    return Launch(kernel, (max(1, min(-(-items // 256), _MOST_BLOCKS)),), (256,), real=real)


def dense(run: Device, x: Array, W: Array, b: Array, plus: Array | None = None) -> tuple[Array, Backward]:
    """`ops.dense`: (..., C) -> (..., D). x, y and their gradients may be bfloat16."""
    address = run.address(W)
    x, W, b = run.contiguous(x), run.contiguous(W), run.contiguous(b)
    rows, (c, d) = x.size // x.shape[-1], W.shape
    plus = None if plus is None else run.contiguous(plus).reshape(rows, d)
    flat = x.reshape(rows, c)
    y, backward = _small(run, flat, W, b, plus) if is_small(rows, c, d) else _large(run, flat, W, b, plus, address)

    def of_any_shape(dy: Array, plus: Array | None = None) -> tuple[Array, Array, Array]:
        more = None if plus is None else run.contiguous(plus).reshape(rows, c)
        dx, dW, db = backward(run.contiguous(dy).reshape(rows, d), more)
        return dx.reshape(x.shape), dW, db

    return y.reshape(*x.shape[:-1], d), of_any_shape


def _large(run: Device, x: Array, W: Array, b: Array, plus: Array | None, address: int) -> tuple[Array, Backward]:
    """`dense` of a matrix x by the device's matrix products. address: of the parameter that W is, or was.

    bfloat16 is rounded twice: by the product, and with the bias.
    """
    shape = W.shape
    if x.dtype == np.uint16:
        W = _rounded_once(run, W, address)
    y = run.matmul(x, W, run.empty((len(x), len(b)), x.dtype))
    add_bias(run, y, b, len(x), plus)

    def backward(dy: Array, plus: Array | None) -> tuple[Array, Array, Array]:
        dx = run.matmul(dy, W, run.empty(x.shape, x.dtype), trans_b=True)
        dW = run.matmul(x, dy, run.empty(shape, real_of(x.dtype)), trans_a=True)
        return dx if plus is None else add(run, dx, plus)[0], dW, column_sums(run, dy)

    return y, backward


def _rounded_once(run: Device, W: Array, address: int) -> Array:
    """W as bfloat16, kept where it stays what it is."""
    if run.kept is None:
        return rounded(run, W)
    if (address, "dense") not in run.kept:
        run.kept[address, "dense"] = rounded(run, W)
    return run.kept[address, "dense"]


def is_small(rows: int, c: int, d: int) -> bool:
    """Whether launches cost more than arithmetic: a few microseconds of it, without tensor cores."""
    return rows * c * d <= SMALL and -(-c // 64) * -(-d // 32) <= _MOST_TILES


def small_parts(rows: int) -> int:
    """In how many parts of the rows a small layer's dW is made: of 128 rows or more."""
    return max(1, min(32, rows // 128))


def _small(run: Device, x: Array, W: Array, b: Array, plus: Array | None) -> tuple[Array, Backward]:
    """`dense` of a matrix x, one launch each way."""
    (rows, c), d, kind, real = x.shape, len(b), x.dtype, W.dtype
    how = np.int32(PRECISIONS.index(run.precision) if real == np.float32 else 0)
    y = run.empty((rows, d), kind)
    sizes = tuple(map(np.int32, (rows, c, d)))
    launch = Launch("dense_small.small_forward", (-(-rows // 64), -(-d // 32)), (256,), real=kind)
    run.launch(launch, x, W, b, y if plus is None else plus, y, *sizes, how, np.int32(plus is not None))

    def backward(dy: Array, plus: Array | None) -> tuple[Array, Array, Array]:
        dx, dW, db = run.empty(x.shape, kind), run.empty(W.shape, real), run.empty(b.shape, real)
        count = small_parts(rows)
        parts = run.empty((count, c + 1, d), real)
        blocks = -(-c // 64) * -(-d // 32) * count + -(-rows // 64) * -(-c // 32)
        launch = Launch("dense_small.small_adjoint", (blocks,), (256,), real=kind)
        more = dx if plus is None else plus
        run.launch(
            launch, x, W, dy, more, dx, dW, db, parts, *sizes, np.int32(count), how, np.int32(plus is not None)
        )  # fmt: skip
        return dx, dW, db

    return y, backward


def add_bias(run: Device, y: Array, b: Array, rows_each: int, plus: Array | None = None) -> None:
    """y (..., D) += b, (D,), or (N, D) with one row of b for every `rows_each` rows of y; and += plus, like y."""
    d = y.shape[-1]
    rows, each = y.size // d, 16 // y.itemsize
    wide = each if d % each == 0 else 1
    launch = spread("dense.add_bias_wide" if wide == each else "dense.add_bias", y.size // wide, y.dtype)
    sizes = np.int64(rows), np.int32(d // wide), np.int64(rows_each), np.int32(plus is not None)
    run.launch(launch, y, b, y if plus is None else plus, *sizes)


def column_sums(run: Device, dy: Array) -> Array:
    """Sums over all but the last axis, (D,), in an order that the shape alone decides.

    Parts of about a square root of the rows are added up first.
    """
    d = dy.shape[-1]
    rows, groups = dy.size // d, -(-d // 32)
    if groups > _MOST_TILES:
        return part_sums(run, dy, 1).reshape(d)
    each = max(64, math.isqrt(rows))
    parts = -(-rows // each)
    sums, total = run.empty((parts, d), real_of(dy.dtype)), run.empty((d,), real_of(dy.dtype))
    launch = Launch("dense.column_sums", (groups, parts), (256,), real=dy.dtype)
    run.launch(launch, dy, sums, total, np.int64(rows), np.int64(each), np.int32(d))
    return total


def part_sums(run: Device, dy: Array, parts: int) -> Array:
    """Sums of equal parts of the rows, in order: (parts, D)."""
    d = dy.shape[-1]
    sums = run.empty((parts, d), real_of(dy.dtype))
    launch = Launch("dense.part_sums", (-(-d // 32), parts), (256,), real=dy.dtype)
    run.launch(launch, dy, sums, np.int32(dy.size // d // parts), np.int32(d))
    return sums


def rounded(run: Device, x: Array) -> Array:
    """float32 to bfloat16, as uint16."""
    y = run.empty(x.shape, np.uint16)
    wide = 4 if x.size % 4 == 0 else 1
    launch = spread("dense.round4_bf16" if wide == 4 else "dense.round_bf16", x.size // wide)
    run.launch(launch, x, y, np.int64(x.size // wide))
    return y
