"""`Backend.conv3x3`: on tensor cores where `hopper` or `tiles` say so, else matrix products over gathered windows."""

import numpy as np

from ddpm_ref.checks import Array
from ddpm_ref.nn.ops import Backward
from ddpm_ref_cupy import hopper, tiles
from ddpm_ref_cupy.dense import add_bias, column_sums, part_sums, rounded, spread
from ddpm_ref_cupy.device import Device, Launch

COLUMN_BYTES = 256 << 20
"""Most memory that the windows of a part of the batch take."""
BOTH = 1 << 16
"""Filters of no more numbers are packed for both directions at once: a launch costs more than that."""


def conv3x3(run: Device, x: Array, W: Array, b: Array, stride: int = 1) -> tuple[Array, Backward]:
    """`ops.conv3x3`: (N, H, W, C) -> (N, ⌈H/stride⌉, ⌈W/stride⌉, D)."""
    key = run.address(W)
    x, W, b = run.contiguous(x), run.contiguous(W), run.contiguous(b)
    if stride == 1 and run.precision != "fp32" and x.dtype == np.float32:
        forward, adjoint = _blocks(run, x.shape, W.shape[3]), _blocks(run, (*x.shape[:3], W.shape[3]), W.shape[2])
        gradient = _gradient_blocks(run, x.shape, W.shape[3])
        if forward and adjoint and gradient:
            return _on_tensor_cores(run, x, W, b, forward, adjoint, gradient, key)
    return _over_windows(run, x, W, b, stride)


# --- tensor cores ----------------------------------------------------------------------------------------------------


def _blocks(run: Device, shape: tuple[int, ...], d: int) -> tiles.Blocks | None:
    """How a convolution of x of this shape to d channels is cut for tensor cores."""
    of = *shape, d, run.precision, run.processors
    return (hopper.blocks(*of) if run.capability == hopper.CAPABILITY else None) or tiles.blocks(*of)


def _gradient_blocks(run: Device, shape: tuple[int, ...], d: int) -> tiles.GradientBlocks | None:
    """How its filters' gradient is."""
    of = *shape, d, run.precision, run.processors
    return (hopper.gradient_blocks(*of) if run.capability == hopper.CAPABILITY else None) or tiles.gradient_blocks(*of)


def _on_tensor_cores(
    run: Device,
    x: Array,
    W: Array,
    b: Array,
    forward: tiles.Blocks,
    adjoint: tiles.Blocks,
    gradient: tiles.GradientBlocks,
    address: int,
) -> tuple[Array, Backward]:
    """Stride 1, float32, operands rounded to the device's precision. address: of the parameter that W is, or was."""
    both = W.size <= BOTH and forward.pack == adjoint.pack
    key = address, forward.pack, forward.wide
    if run.kept is not None and key in run.kept:
        filters, kept = run.kept[key], None
    else:
        filters, kept = _packed(run, W, forward, False, adjoint if both else None)
        if run.kept is not None:
            run.kept[key] = filters
    y = _convolve_tiles(run, x, filters, b, W.shape[3], forward)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dy = run.contiguous(dy)
        turned = _packed(run, W, adjoint, True)[0] if kept is None else kept
        dx = _convolve_tiles(run, dy, turned, None, W.shape[2], adjoint)
        dW, db = _gradient_of_tiles(run, x, dy, gradient)
        return dx, dW, db if b.ndim == 1 else part_sums(run, dy, len(dy))

    return y, backward


def _packed(
    run: Device, W: Array, cut: tiles.Blocks, turned: bool, also: tiles.Blocks | None = None
) -> tuple[Array, Array | None]:
    """W as the cut's kernel takes it, turned: for the adjoint; and, by the same launch, for the other direction."""
    kind = np.uint16 if run.precision == "bf16" else np.uint32
    first = run.empty((cut.filters,), kind)
    second = run.empty((also.filters,), kind) if also else None
    c, d = W.shape[:1:-1] if turned else W.shape[2:]
    sizes = (c, d, cut.wide, turned, also.wide if also else 0)
    launch = spread(cut.pack, max(cut.filters, also.filters if also else 0))
    run.launch(launch, W, first, first if second is None else second, *map(np.int32, sizes))
    return first, second


def _convolve_tiles(run: Device, x: Array, filters: Array, b: Array | None, d: int, cut: tiles.Blocks) -> Array:
    """y = conv(x), + b, to d channels."""
    n, h, w, c = x.shape
    y = run.empty((n, h, w, d), np.float32)
    t = cut.tiling
    step = -1 if b is None else 0 if b.ndim == 1 else d
    sizes = (n, h, w, c, d, t.images, t.rows, t.columns, t.count, step)
    launch = Launch(cut.kernel, cut.grid, (cut.threads,), cut.shared)
    run.launch(launch, x, filters, x if b is None else b, y, *map(np.int32, sizes))
    return y


def _gradient_of_tiles(run: Device, x: Array, dy: Array, cut: tiles.GradientBlocks) -> tuple[Array, Array]:
    """dW and db = Σ dy, parts of one array."""
    n, h, w, c = x.shape
    d, count, t = dy.shape[3], cut.grid[2], cut.tiling
    parts = run.empty((count, 9 * c + 1, d), np.float32)
    sizes = (n, h, w, c, d, t.images, t.rows, t.columns, t.count)
    launch = Launch(cut.kernel, cut.grid, (tiles.GRADIENT_THREADS,), cut.shared)
    run.launch(launch, x, dy, parts, *map(np.int32, sizes))
    sums = parts[0]
    if count > 1:
        sums = run.empty((9 * c + 1, d), np.float32)
        blocks = -(-sums.size // (32 if sums.size % 4 else 128))
        run.launch(
            Launch("conv_tensor.sum_parts", (blocks,), (256,)), parts, sums, np.int32(count), np.int32(sums.size)
        )
    return sums[:-1].reshape(3, 3, c, d), sums[-1]


# --- windows ---------------------------------------------------------------------------------------------------------


def _over_windows(run: Device, x: Array, W: Array, b: Array, stride: int) -> tuple[Array, Backward]:
    """Any dtype, precision and stride.

    forward    y  = windows(x) W + b             adjoint    dx = windows(dy, spread by the stride) W*
               dW = windows(x)ᵀ dy               db = Σ dy
    """
    n, h, w, c = x.shape
    d = W.shape[3]
    top, left = (0 if stride == 2 and size % 2 == 0 else 1 for size in (h, w))
    p, q = -(-h // stride), -(-w // stride)
    y = run.empty((n, p, q, d), x.dtype)
    _convolve(run, x, W, y, stride, 1, top, left)
    add_bias(run, y, b, n * p * q if b.ndim == 1 else p * q)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        dy = run.contiguous(dy)
        dW, dx = run.empty((3, 3, c, d), x.dtype), run.empty(x.shape, x.dtype)
        _filter_gradient(run, x, dy, dW, stride, top, left)
        turned = run.empty((3, 3, d, c), x.dtype)
        run.launch(spread("conv.turned", W.size, W.dtype.type), W, turned, np.int32(c), np.int32(d))
        _convolve(run, dy, turned, dx, 1, stride, 2 - top, 2 - left)
        return dx, dW, column_sums(run, dy) if b.ndim == 1 else part_sums(run, dy, n)

    return y, backward


def _is_bf16(run: Device, dtype: np.dtype) -> bool:
    """Whether the operands of products of this dtype are rounded to bfloat16."""
    return run.precision == "bf16" and dtype == np.float32


def _parts(run: Device, n: int, pixels: int, c: int, dtype: np.dtype) -> list[slice]:
    """The batch in parts whose windows fit `COLUMN_BYTES`."""
    each = 9 * pixels * c * (2 if _is_bf16(run, dtype) else dtype.itemsize)
    size = max(1, min(n, COLUMN_BYTES // each))
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def _windows(run: Device, x: Array, shape: tuple[int, int], stride: int, spread_by: int, top: int, left: int) -> Array:
    """windows(x) for these destination pixels, (N · P · Q, 9C); bfloat16 where the device's precision is that."""
    n, h, w, c = x.shape
    p, q = shape
    bf16 = _is_bf16(run, x.dtype)
    columns = run.empty((n * p * q, 9 * c), np.uint16 if bf16 else x.dtype)
    wide = 4 if c % 4 == 0 else 1
    name = "conv.windows" + ("4" if wide == 4 else "") + ("_bf16" if bf16 else "")
    sizes = (n, h, w, c // wide, p, q, stride, spread_by, top, left)
    run.launch(spread(name, columns.size // wide, x.dtype.type), x, columns, *map(np.int32, sizes))
    return columns


def _convolve(run: Device, x: Array, W: Array, y: Array, stride: int, spread_by: int, top: int, left: int) -> None:
    """y = windows(x) W."""
    c, d = W.shape[2:]
    p, q = y.shape[1:3]
    filters = W.reshape(9 * c, d)
    if _is_bf16(run, x.dtype):
        filters = rounded(run, filters)
    for part in _parts(run, len(x), p * q, c, x.dtype):
        columns = _windows(run, x[part], (p, q), stride, spread_by, top, left)
        run.matmul(columns, filters, y[part].reshape(-1, d))


def _filter_gradient(run: Device, x: Array, dy: Array, dW: Array, stride: int, top: int, left: int) -> None:
    """dW = windows(x)ᵀ dy."""
    c, d = dW.shape[2:]
    p, q = dy.shape[1:3]
    gradients = rounded(run, dy) if _is_bf16(run, x.dtype) else dy
    for part in _parts(run, len(x), p * q, c, x.dtype):
        columns = _windows(run, x[part], (p, q), stride, 1, top, left)
        out = dW.reshape(9 * c, d)
        run.matmul(columns, gradients[part].reshape(-1, d), out, trans_a=True, add=part.start > 0)
